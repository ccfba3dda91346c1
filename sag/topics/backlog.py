"""What waits for the journal. Whoever brings more can be held up, for a model's server may be faster than a disk."""

from __future__ import annotations

from collections.abc import Callable

LIMIT = 8 << 20


class Backlog:
    """Bytes of events that are submitted and not committed.

    Args:
        limit: Above so many it is full; held up are readers of upstreams, until half of it is gone.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.size = 0
        self._waiting: list[Callable[[], None]] = []

    @property
    def is_full(self) -> bool:
        return self.size > self.limit

    def add(self, size: int) -> None:
        """So many bytes were submitted, or are committed or lost where it is negative."""
        self.size += size
        if self._waiting and self.size <= self.limit // 2:
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()

    def when_lower(self, call: Callable[[], None]) -> None:
        """Call once when it is half empty; whoever is gone by then is called all the same."""
        self._waiting.append(call)
