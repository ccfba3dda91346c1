"""The time that the server tells, in headers and bodies."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import formatdate

NOON = 1_795_262_400.0  # 2026-11-21 12:00:00 UTC


class Clock:
    """It stands still until it is moved, so that tests know what is told.

    Args:
        at: What it shows, in Unix seconds; None lets it run with the real time.
    """

    def __init__(self, at: float | None = NOON) -> None:
        self._at = at
        self._moved = 0.0

    def move(self, seconds: float) -> None:
        """Move it."""
        self._moved += seconds

    @property
    def now(self) -> float:
        """Unix seconds."""
        return (time.time() if self._at is None else self._at) + self._moved

    def write_http(self) -> str:
        """As a header tells it, `Sat, 21 Nov 2026 12:00:00 GMT`."""
        return formatdate(self.now, usegmt=True)

    def write_rfc3339(self, after_s: float = 0.0) -> str:
        """As RFC 3339 in whole seconds, `2026-11-21T12:00:00Z`."""
        return datetime.fromtimestamp(int(self.now + after_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
