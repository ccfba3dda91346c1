"""The journal's interface: what keeps topics' logs, and what commits together with their events.

A unit is committed whole or not at all. Units of one topic are committed in the order in which they were submitted;
after one failed, later ones of its topics fail too until the topic was loaded anew. An implementation by a database
stands beside this file (`sqlite.py`); others are plugins. Tables that are no topic (idempotency keys, listings, the
plugins' own keys) are written by `Put` and `Drop`, so that they share the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from sag.errors import Fault
from sag.topics.merge import Entry

Row = dict[str, Any]


class Put(NamedTuple):
    """Insert a row of a table, or replace the one with the same primary key."""

    table: str
    row: Row


class Drop(NamedTuple):
    """Delete the rows of a table whose columns equal these, and are at most those of `upto`."""

    table: str
    where: Row
    upto: Row = {}


class Kept(NamedTuple):
    """A topic as the journal has it.

    Attributes:
        tid: The journal's number for it.
        gen: Its generation.
        first: The oldest offset that is kept.
        head: The newest offset.
        snap_off: The offset of the kept state; 0 where there is none.
        snap: The kept state as JSON.
        entries: The events after `snap_off`.
    """

    tid: int
    gen: str
    first: int
    head: int
    snap_off: int
    snap: bytes | None
    entries: list[Entry]


class Unit:
    """What commits together: events of topics, then rows. `done` is called on the loop, with the fault if it failed."""

    __slots__ = ("crash", "done", "events", "writes")

    def __init__(self) -> None:
        self.events: list[tuple[int, Entry]] = []
        self.writes: list[Put | Drop] = []
        self.done: Callable[[Fault | None], None] = ignore
        self.crash: str | None = None


def ignore(fault: Fault | None) -> None:
    return


class Journal(Protocol):
    """Keeps topics. Methods are called on the event loop; none of them blocks it.

    Attributes:
        told: Is called on the loop when `done` was called of all units that were committed together.
    """

    told: Callable[[], None]

    def new_topic(self, owner: str, name: str, gen: str) -> tuple[int, Put]:
        """A number for a new topic and the row to submit with its first event."""

    async def load(self, owner: str, name: str) -> Kept | None:
        """A topic with its newest kept state and the events after it.

        Raises:
            Fault: store.unavailable, store.busy.
        """

    async def read(self, tid: int, after: int, upto: int, limit: int) -> list[Entry]:
        """Events after an offset up to another, in order, at most about `limit` bytes but at least one."""

    def submit(self, unit: Unit) -> None:
        """Commit a unit and call its `done`, with a Fault where it failed (store.full, store.busy …)."""

    async def rows(self, table: str, where: Row, *, order: str = "", limit: int = 1000) -> list[Row]:
        """Rows of a table whose columns equal these; `order` is a column, `-` before it for descending."""

    async def sums(
        self,
        table: str,
        of: Sequence[str],
        where: Row,
        *,
        by: Sequence[str] = (),
        since: Row | None = None,
        upto: Row | None = None,
        order: str = "",
        limit: int = 1000,
    ) -> list[Row]:
        """Sums over groups of rows.

        Args:
            table: Of which table.
            of: Columns of whole numbers.
            where: What columns have to equal.
            by: Columns in which the rows of a group agree; without any there is one group, of all.
            since, upto: The least and the most that columns may be.
            order: One of `by` or `of`, `-` before it for descending.
            limit: How many groups at most.

        Returns:
            Of each group the columns of `by`; `count`, its rows; each column's sum, None where no row has a value; and
            `<column>_missing`, how many rows have none.

        Raises:
            Fault: store.unavailable, store.busy.
        """

    async def stale(self, keep_events: int, before_ts: int) -> list[tuple[str, str, int]]:
        """Topics with events past retention: (owner, name, the newest offset that may go)."""

    async def close(self) -> None:
        """Commit what was submitted, then end."""


def sizes(entries: Sequence[Entry]) -> int:
    """Bytes of the bodies."""
    return sum([len(e.body) for e in entries])
