"""The tail of the embedded journal: what was committed and is not in the database yet, in a file of its own.

A commit to the database writes every page that it touches, about ten for an event of a few hundred bytes; here it
writes the bytes alone. Records stand one behind the other from the file's beginning. Once the database has them all,
the next record goes to the beginning again, over those that were there, so that the file does not grow.

A record counts if it is whole, of this epoch and follows the one before; an epoch lasts as long as one process. What
stands behind the last one that counts was never told to anybody.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from struct import Struct
from typing import NamedTuple

_HEAD = Struct("<8sQII")  # epoch, number, size and checksum
EPOCH_BYTES = 8


class Records(NamedTuple):
    """What a tail holds.

    Attributes:
        records: Those that count, in order.
        damaged: Others stand behind one that is not whole.
    """

    records: list[bytes]
    damaged: bool = False


class Tail:
    """The file.

    Args:
        path: Where it is; made where it is missing.
        sync: Wait at each record until the disk has it.

    Attributes:
        number: Of the newest record.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, sync: bool) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sync = sync
        if sync:
            folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(folder)
            os.close(folder)
        self._epoch = b""
        self._at = 0
        self.number = 0

    def read(self, epoch: bytes, after: int) -> Records:
        """The records of an epoch that follow one; none if the next of them is not there."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        out: list[bytes] = []
        at, last = 0, None
        while (found := _find(data, at, epoch)) is not None:
            number, record = found
            if number != last + 1 if last is not None else number > after + 1:
                break
            if number > after:
                out.append(record)
            at, last = at + _HEAD.size + len(record), number
        newest = after if last is None else max(after, last)
        while epoch and (at := data.find(epoch, at)) >= 0:
            if (found := _find(data, at, epoch)) is not None and found[0] > newest:
                return Records(out, damaged=True)
            at += 1
        return Records(out)

    def begin(self, epoch: bytes) -> None:
        """Begin an epoch, once the database has all of the one before."""
        self._epoch = epoch
        self.restart(0)
        self.clear()

    def append(self, record: bytes) -> None:
        """Keep a record.

        Raises:
            OSError: It is not kept: the disk is full, or fails.
        """
        number = self.number + 1
        data = _HEAD.pack(self._epoch, number, len(record), _check(self._epoch, number, record)) + record
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:] if written else data, self._at + written)
            if self._sync:
                os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # it may be whole, and nobody is told so
                os.pwrite(self._file, bytes(_HEAD.size), self._at)
            raise
        self._at += len(data)
        self.number = number

    def restart(self, number: int) -> None:
        """The database has all records up to a number; those that follow go to the file's beginning."""
        self._at, self.number = 0, number

    def clear(self) -> None:
        """Leave nothing in the file of what the database has, or has no longer."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._at)

    def close(self) -> None:
        os.close(self._file)


def _find(data: bytes, at: int, epoch: bytes) -> tuple[int, bytes] | None:
    """The number of the record that begins at a place, and what it holds, if one does."""
    if len(data) - at < _HEAD.size:
        return None
    of, number, size, check = _HEAD.unpack_from(data, at)
    record = data[at + _HEAD.size : at + _HEAD.size + size]
    whole = of == epoch and len(record) == size and check == _check(epoch, number, record)
    return (number, record) if whole else None


def _check(epoch: bytes, number: int, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(epoch + number.to_bytes(8, "little")))
