"""Files that people upload: content by digest in a folder, and who may have it in a table."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

from msgspec import Struct

from sag.errors import Fault
from sag.schema.ids import new_id
from sag.settings import crash_at
from sag.topics.journal import Journal, Put
from sag.topics.topic import Topics


class Blob(Struct):
    """An uploaded file: the `ref` that messages name, and what was told of it."""

    ref: str
    mime: str
    name: str
    size: int


class Blobs:
    """Uploaded files of all users.

    Args:
        folder: Where contents lie; each file is named by its SHA-256.
    """

    def __init__(self, folder: Path, journal: Journal, topics: Topics) -> None:
        self._folder = folder
        self._journal = journal
        self._topics = topics

    async def put(self, owner: str, data: bytes, mime: str, name: str) -> Blob:
        """Keep a file.

        Raises:
            Fault: store.full, store.unavailable.
        """
        blob, row = await self.write(owner, data, mime, name)
        tx = self._topics.begin()
        tx.put(row)
        await tx.submit()
        return blob

    async def write(self, owner: str, data: bytes, mime: str, name: str, ref: str = "") -> tuple[Blob, Put]:
        """Write a file's content, and give the row that makes it the user's once it is committed.

        Raises:
            Fault: store.full, store.unavailable.
        """
        digest = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self._write, digest, data)
        blob = Blob(ref or new_id("f"), mime, name, len(data))
        row = {"ref": blob.ref, "owner": owner, "digest": digest, "mime": mime, "name": name, "size": blob.size}
        return blob, Put("blob", row)

    def _write(self, digest: str, data: bytes) -> None:
        target = self._folder / digest
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                return
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            crash_at("blob_rename")
            temporary.replace(target)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind = "store.full" if full else "store.unavailable"
            raise Fault(kind, f"The file cannot be kept: {e.strerror}") from None

    async def get(self, owner: str, ref: str) -> tuple[Blob, bytes]:
        """A user's file.

        Raises:
            Fault: file.unknown.
        """
        blob, digest = await self._find(owner, ref)
        try:
            data = await asyncio.to_thread((self._folder / digest).read_bytes)
        except OSError:
            raise Fault("file.unknown") from None
        return blob, data

    async def info(self, owner: str, ref: str) -> Blob:
        """What was told of a user's file.

        Raises:
            Fault: file.unknown.
        """
        return (await self._find(owner, ref))[0]

    async def _find(self, owner: str, ref: str) -> tuple[Blob, str]:
        rows = await self._journal.rows("blob", {"ref": ref, "owner": owner})
        if not rows:
            raise Fault("file.unknown")
        row = rows[0]
        return Blob(ref, row["mime"], row["name"], row["size"]), row["digest"]
