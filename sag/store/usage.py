"""What model rounds took: a row for each step, made in the commit of the event that closes it, and sums of rows.

Money is kept and summed in whole nano-dollars, so that sums are exact whatever their order; a step's cost is rounded
once, by half a billionth of a dollar at most. Rows stay when their conversation is deleted: of it they know the id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from sag.topics.journal import Journal, Put, Row
from sag.topics.topic import Topic

NANO = 1_000_000_000
MOST_TOKENS = 1_000_000_000_000
MOST_USD = 1_000_000.0
TOKENS = ("input", "output", "reasoning", "cached", "cache_write")

By = Literal["day", "model", "conv", "run", "user"]
_COLUMNS = {"day": "day", "model": "model", "conv": "conv", "run": "run", "user": "owner"}


class Sums(NamedTuple):
    """What some steps took together.

    Attributes:
        key: What they have in common; "" for the sum of all.
        steps: How many they are.
        input, output, reasoning, cached, cache_write: Tokens.
        nano_usd: What those cost together whose price is known; None where it is known of none.
        unpriced: Of how many the price is not known.
    """

    key: str
    steps: int
    input: int
    output: int
    reasoning: int
    cached: int
    cache_write: int
    nano_usd: int | None
    unpriced: int


def step_row(topic: Topic, d: Any, ts: int) -> Put | None:
    """The row of a `step.close` of a conversation, if it tells what the step took.

    A vendor's figure that cannot be is bounded, and a cost that cannot be counts as not known: no row may be one that
    cannot be kept or summed.
    """
    usage, run = d.get("usage"), topic.state["runs"].get(d["run"])
    if usage is None or run is None:
        return None
    message: dict[str, Any] = next((m for m in reversed(topic.state["messages"]) if _is_of(m, d)), {})
    row = {
        "day": utc_day(ts),
        "owner": topic.owner,
        "run": d["run"],
        "step": d["step"],
        "conv": topic.name[5:],
        "model": d.get("model") or message.get("model") or run.get("model", ""),
        "agent": message.get("agent"),
        "client": run.get("client") or None,
        **{name: min(max(int(usage.get(name, 0)), 0), MOST_TOKENS) for name in TOKENS},
        "nano_usd": to_nano(usage.get("cost_usd")),
        "ms": d.get("ms"),
        "ts": ts,
    }
    return Put("usage", row)


def _is_of(message: Any, d: Any) -> bool:
    return bool(message.get("step") == d["step"] and message.get("run") == d["run"])


def utc_day(ts: int) -> str:
    """The day of a time in Unix ms, `YYYY-MM-DD`."""
    return _day(ts // 86_400_000)


@lru_cache(64)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()


def to_nano(usd: float | None) -> int | None:
    """Dollars as whole nano-dollars; None for what is no amount that a step can cost."""
    if usd is None or not math.isfinite(usd) or not 0 <= usd <= MOST_USD:
        return None
    return round(usd * NANO)


def sum_of(parts: Iterable[Sums]) -> Sums:
    """The sum of sums."""
    total = Sums("", 0, 0, 0, 0, 0, 0, None, 0)
    for part in parts:
        known = [n for n in (total.nano_usd, part.nano_usd) if n is not None]
        counts = {name: getattr(total, name) + getattr(part, name) for name in ("steps", *TOKENS, "unpriced")}
        total = total._replace(**counts, nano_usd=sum(known) if known else None)
    return total


class Ledger:
    """The rows of all steps."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def sums(self, where: Row, first: str, last: str, by: By | None = None, limit: int = 1) -> list[Sums]:
        """Sums over the days from `first` to `last`.

        Args:
            where: What `owner`, `conv`, `run` or `model` have to be.
            first, last: `YYYY-MM-DD`, UTC.
            by: What makes a group; None makes one of all.
            limit: How many groups at most: the newest days, else those that cost the most.

        Raises:
            Fault: store.unavailable, store.busy.
        """
        columns = () if by is None else (_COLUMNS[by],)
        order = "" if by is None else "-day" if by == "day" else "-nano_usd"
        rows = await self._journal.sums(
            "usage", (*TOKENS, "nano_usd"), where, by=columns, since={"day": first}, upto={"day": last},
            order=order, limit=limit,
        )  # fmt: skip
        return [_sums(row, row[columns[0]] if columns else "") for row in rows]


def _sums(row: Row, key: str) -> Sums:
    tokens = {name: row[name] or 0 for name in TOKENS}
    return Sums(key, row["count"], **tokens, nano_usd=row["nano_usd"], unpriced=row["nano_usd_missing"])
