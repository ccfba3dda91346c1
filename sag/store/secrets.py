"""Plugins' secrets: encrypted rows, with a key of this hub's own beside the data (or given in `SAG_SECRET_KEY`).

Who has a copy of the database alone, a backup say, has no secrets.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

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
        """A secret, or None where there is none or the hub's key is another one now."""
        from cryptography.fernet import InvalidToken

        kept = await self._kv.get(SPACE, f"{space} {key}")
        if kept is None:
            return None
        try:
            value = self._cipher().decrypt(kept.encode()).decode()
        except InvalidToken:
            log.error("a secret of %s cannot be read: the key in %s is not the one that it was kept with", space, FILE)
            return None
        remember(value)
        return value

    async def put(self, space: str, key: str, value: str | None) -> None:
        """Keep a secret; None forgets it."""
        if value is None:
            await self._kv.delete(SPACE, f"{space} {key}")
            return
        remember(value)
        await self._kv.put(SPACE, f"{space} {key}", self._cipher().encrypt(value.encode()).decode())

    def _cipher(self) -> Fernet:
        from cryptography.fernet import Fernet

        if self._box is None:
            if self._given:
                digest = hashlib.scrypt(self._given.encode(), salt=b"sag.secret", n=1 << 14, r=8, p=1, dklen=32)
                self._box = Fernet(base64.urlsafe_b64encode(digest))
            else:
                self._box = Fernet(self._own_key())
        return self._box

    def _own_key(self) -> bytes:
        from cryptography.fernet import Fernet

        path = self._folder / FILE
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(Fernet.generate_key())
        except FileExistsError:
            pass
        return path.read_bytes()
