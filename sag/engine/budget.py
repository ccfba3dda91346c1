"""Budgets: what each user's runs may take in a day and a month, and whether that is used up.

What was taken is read from the ledger once, at start, and from then on added up from the rows of each commit, so that
a check asks nobody. A step counts when it has ended: steps that run at the same time may exceed a budget by what they
take together. Above: the run, which asks before each step. Below: settings and the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec import Struct

from sag.engine.ends import RunLimit
from sag.schema.ids import now_ms
from sag.settings import Budget, BudgetLimits
from sag.store.usage import NANO, utc_day
from sag.topics.journal import Drop, Journal, Put, Row

log = logging.getLogger("sag.engine")

DAY_MS = 86_400_000
KEPT_DAYS = 64  # a month, and another so that a clock that is set right again finds its own
MOST_GROUPS = 1_000_000


class DollarBudget(Struct):
    """A budget in US dollars, and what of it is used; it begins anew at `resets_at`, Unix ms."""

    limit_usd: float
    spent_usd: float
    resets_at: int


class TokenBudget(Struct):
    """A budget in tokens, and what of it is used; it begins anew at `resets_at`, Unix ms."""

    limit_tokens: int
    spent_tokens: int
    resets_at: int


class BudgetView(Struct, omit_defaults=True):
    """A user's budgets; those that are set."""

    day: DollarBudget | None = None
    month: DollarBudget | None = None
    day_tokens: TokenBudget | None = None


class _Spent(NamedTuple):
    nano_usd: int = 0
    tokens: int = 0


class Budgets:
    """What users may spend, and what they have spent.

    Args:
        journal: Where the rows of all steps are.
        settings: The table `[budget]`.
        now: The time in Unix ms.

    Attributes:
        on: Whether anybody has a budget.
    """

    def __init__(self, journal: Journal, settings: Budget, now: Callable[[], int] = now_ms) -> None:
        self.on = any(settings.of(user) != BudgetLimits() for user in ("", *settings.users))
        self._journal, self._settings, self._now = journal, settings, now
        self._spent: dict[str, dict[str, _Spent]] = {}  # by user and day
        self._warned: set[str] = set()

    async def load(self) -> None:
        """Read what was spent this month; before anything runs.

        Raises:
            Fault: store.unavailable, store.busy.
        """
        if self.on:
            since = {"day": f"{utc_day(self._now())[:7]}-01"}
            of = ("nano_usd", "input", "output")
            rows = await self._journal.sums("usage", of, {}, by=("owner", "day"), since=since, limit=MOST_GROUPS)
            for row in rows:
                self._add(row)

    def count(self, writes: Sequence[Put | Drop]) -> None:
        """Add what was committed; `Topics.kept` calls it."""
        if self.on:
            for write in writes:
                if write.table == "usage" and isinstance(write, Put):
                    self._add(write.row)
                    if write.row["nano_usd"] is None:
                        self._warn(write.row["owner"], write.row["model"])

    def _add(self, row: Row) -> None:
        days = self._spent.setdefault(row["owner"], {})
        spent = days.get(row["day"], _Spent())
        tokens = row["input"] + row["output"]
        days[row["day"]] = _Spent(spent.nano_usd + (row["nano_usd"] or 0), spent.tokens + tokens)
        if len(days) > KEPT_DAYS:
            del days[min(days)]

    def _warn(self, user: str, model: str) -> None:
        limits = self._settings.of(user)
        if (limits.day_usd is not None or limits.month_usd is not None) and model not in self._warned:
            self._warned.add(model)
            text = "the price of %s is not known, so that it counts in no budget of dollars; plugins.toml can tell it"
            log.warning(text, model)

    async def check(self, user: str) -> None:
        """Whether a user's next step may begin. What a step cost whose price is not known counts as nothing.

        Raises:
            RunLimit: A budget is used up; which, and when it begins anew, in words for a person.
        """
        if not self.on or (has := self.view(user)) is None:
            return
        if (day := has.day) is not None and day.spent_usd >= day.limit_usd:
            raise _used_up(f"{_dollars(day.limit_usd)} a day", "at 00:00 UTC")
        if (tokens := has.day_tokens) is not None and tokens.spent_tokens >= tokens.limit_tokens:
            raise _used_up(f"{tokens.limit_tokens:,} tokens a day", "at 00:00 UTC")
        if (month := has.month) is not None and month.spent_usd >= month.limit_usd:
            raise _used_up(f"{_dollars(month.limit_usd)} a month", f"on {utc_day(month.resets_at)} at 00:00 UTC")

    def view(self, user: str) -> BudgetView | None:
        """A user's budgets as they are now, if there are any."""
        limits, now = self._settings.of(user), self._now()
        today = utc_day(now)
        tomorrow = (now // DAY_MS + 1) * DAY_MS
        days = self._spent.get(user, {})
        spent = days.get(today, _Spent())
        out = BudgetView()
        if limits.day_usd is not None:
            out.day = DollarBudget(limits.day_usd, spent.nano_usd / NANO, tomorrow)
        if limits.month_usd is not None:
            month = sum(s.nano_usd for day, s in days.items() if day[:7] == today[:7])
            out.month = DollarBudget(limits.month_usd, month / NANO, _next_month(now))
        if limits.day_tokens is not None:
            out.day_tokens = TokenBudget(int(limits.day_tokens), spent.tokens, tomorrow)
        return None if out == BudgetView() else out


def _next_month(now: int) -> int:
    """The first instant of the month after a time; both in Unix ms."""
    day = datetime.fromtimestamp(now / 1000, UTC)
    return round(datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC).timestamp() * 1000)


def _dollars(usd: float) -> str:
    whole, _, cents = f"{usd:,.6f}".partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"


def _used_up(what: str, when: str) -> RunLimit:
    return RunLimit(f"The budget of {what} is used up; it begins anew {when}.")
