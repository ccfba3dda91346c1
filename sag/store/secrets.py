"""Plugins' secrets: encrypted rows, with a key of this hub's own beside the data (or given in `SAG_SECRET_KEY`).

Who has a copy of the database alone, a backup say, has no secrets.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sag.errors import Fault
from sag.secret import remember
from sag.store.kv import KeyValue

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

log = logging.getLogger("sag.store")
SPACE = "sag.secret"
FILE = "secret.key"


class Secrets:
    """Secrets by a plugin's space and key.

    Args:
        folder: The data folder; the key lies there, readable by the hub's user alone.
        kv: Where the encrypted values are kept.
        given: A passphrase in place of the file.
    """

    def __init__(self, folder: Path, kv: KeyValue, given: str = "") -> None:
        self._folder, self._kv, self._given = folder, kv, given
        self._box: Fernet | None = None

    async def get(self, space: str, key: str) -> str | None:
        """A secret, or None where there is none or the hub's key is another one now.

        Raises:
            Fault: store.unavailable, where the hub's key cannot be read.
        """
        kept = await self._kv.get(SPACE, f"{space} {key}")
        if kept is None:
            return None
        await asyncio.to_thread(self._cipher)  # what it imports would hold the loop
        from cryptography.fernet import InvalidToken

        try:
            value = self._cipher().decrypt(kept.encode()).decode()
        except (InvalidToken, UnicodeError):
            log.error("a secret of %s cannot be read: the key in %s is not the one that it was kept with", space, FILE)
            return None
        remember(value)
        return value

    async def put(self, space: str, key: str, value: str | None) -> None:
        """Keep a secret; None forgets it.

        Raises:
            Fault: store.unavailable, where the hub's key cannot be read or written; store.full and its like.
        """
        if value is None:
            await self._kv.delete(SPACE, f"{space} {key}")
            return
        remember(value)
        box = await asyncio.to_thread(self._cipher)
        await self._kv.put(SPACE, f"{space} {key}", box.encrypt(value.encode()).decode())

    def _cipher(self) -> Fernet:
        from cryptography.fernet import Fernet

        if self._box is None:
            if self._given:
                digest = hashlib.scrypt(self._given.encode(), salt=b"sag.secret", n=1 << 14, r=8, p=1, dklen=32)
                self._box = Fernet(base64.urlsafe_b64encode(digest))
            else:
                try:
                    self._box = Fernet(self._own_key())
                except (OSError, ValueError) as e:
                    log.error("the key of the secrets, %s in the data folder, cannot be used: %s", FILE, e)
                    raise Fault("store.unavailable", "The key of the secrets cannot be used; the log says why.") from e
        return self._box

    def _own_key(self) -> bytes:
        """The key in the file; a new one that is whole before anybody sees it, and outlives what it encrypts."""
        from cryptography.fernet import Fernet

        path = self._folder / FILE
        if not path.exists():
            fd, fresh = tempfile.mkstemp(prefix=f"{FILE}.", dir=self._folder)  # readable by this user alone
            try:
                with open(fd, "wb") as file:
                    file.write(Fernet.generate_key())
                    file.flush()
                    os.fsync(fd)
                try:
                    os.link(fresh, path)
                except FileExistsError:
                    pass  # another process was faster
                except OSError:  # a file system without links
                    os.replace(fresh, path)
            finally:
                Path(fresh).unlink(missing_ok=True)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return path.read_bytes().strip()
