"""The operation that tells what model rounds took."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from sag.engine.budget import BudgetView
from sag.engine.engine import Engine
from sag.errors import Fault
from sag.ops.dispatch import Call, User
from sag.ops.operation import Params, operation
from sag.store.usage import NANO, By, Ledger, Sums, sum_of
from sag.topics.journal import Journal

Json = dict[str, Any]
Day = Annotated[str, Meta(pattern=r"^[12]\d{3}-\d{2}-\d{2}$")]
SPAN_DAYS = 30
TITLES = 10_000


class UsageGet(Params):
    """Of which steps, and how they are put together.

    Attributes:
        by: What makes a row.
        from: The first day, UTC; left out, the range has 30 days.
        to: The last day, UTC; left out, today.
        conv: Of one conversation.
        run: Of one run.
        model: Of one model, `provider/model`.
        user: Of another user, or with `*` of all; for administrators, as is `by` with `user`, which is of all.
        limit: How many rows at most: the newest days, else those that cost the most.
    """

    by: By = "day"
    from_: Day | None = field(default=None, name="from")
    to: Day | None = None
    conv: str | None = None
    run: str | None = None
    model: str | None = None
    user: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class UsageSum(Struct, omit_defaults=True, kw_only=True):
    """What some steps took together.

    Attributes:
        steps: How many they are; those that ended without their usage being told are not among them.
        input, output: Tokens sent and written.
        reasoning: How many of those written are thoughts.
        cached: How many of those sent the vendor still had.
        cache_write: How many of those sent the vendor keeps for later.
        unpriced: For how many steps the price is not known; they are missing in `cost_usd`.
        cost_usd: In US dollars; left out where the price is known of no step.
    """

    steps: int
    input: int
    output: int
    reasoning: int
    cached: int
    cache_write: int
    unpriced: int
    cost_usd: float | None = None


class UsageRow(UsageSum, omit_defaults=True, kw_only=True):
    """What the steps of a day, model, conversation, run or user took.

    Attributes:
        steps, input, output, reasoning, cached, cache_write, unpriced, cost_usd: As of the total.
        key: The day, or the id or name of the other.
        label: The title of a conversation of one's own that is still there, the label of a model.
    """

    key: str
    label: str | None = None


class UsageReport(Struct, omit_defaults=True):
    """Days in their order, else what cost the most first; the sum of all; the user's budgets, if there are any.

    `more` tells that there are more rows than were asked for; `total` counts them all.
    """

    rows: list[UsageRow]
    total: UsageSum
    budget: BudgetView | None = None
    more: bool = False


class Usages:
    """The operation on usage."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self._engine, self._journal = engine, journal
        self._ledger = Ledger(journal)

    @operation("usage.get", who="user", rest="GET /api/usage")
    async def get(self, call: Call, params: UsageGet) -> UsageReport:
        """What model rounds took: tokens, and money where prices are known."""
        if (params.user is not None or params.by == "user") and "admin" not in call.me.roles:
            raise Fault("access.denied", "Only administrators see what other users took.")
        owner = params.user or ("*" if params.by == "user" else call.me.id)
        given = {"owner": owner, "conv": params.conv, "run": params.run, "model": params.model}
        where = {name: value for name, value in given.items() if value not in (None, "*")}
        if params.run is not None and params.conv is None:
            # Rows are found by conversation; for a run that went with its own, those of the days are looked through.
            for row in await self._journal.rows("run", {"id": params.run}):
                where["conv"] = row["conv"]
        first, last = _range(params)
        found = await self._ledger.sums(where, first, last, params.by, params.limit + 1)
        if more := len(found) > params.limit:
            del found[params.limit :]
            (total,) = await self._ledger.sums(where, first, last)
        else:
            total = sum_of(found)
        found.sort(key=(lambda s: s.key) if params.by == "day" else _by_cost)
        labels = await self._labels(call.me, params.by, owner, found)
        rows = [UsageRow(key=s.key, label=labels.get(s.key), **_members(s)) for s in found]
        budget = None if owner == "*" else self._engine.budgets.view(owner)
        return UsageReport(rows, UsageSum(**_members(total)), budget, more)

    async def _labels(self, me: User, by: By, owner: str, found: Sequence[Sums]) -> dict[str, str]:
        """Names for people, by key. Titles are told to those alone whose they are."""
        if by == "model":
            known = {s.key: self._engine.models.info(s.key) for s in found}
            return {name: model.label for name, model in known.items() if model is not None and model.label}
        if by == "conv" and owner == me.id and found:
            rows = await self._journal.rows("conversation", {"owner": owner}, order="-updated", limit=TITLES)
            return {row["id"]: row["title"] for row in rows if row["title"]}
        return {}


def _range(params: UsageGet) -> tuple[str, str]:
    """The first and the last day.

    Raises:
        Fault: rpc.params.
    """
    last = _day(params.to, "to") or datetime.now(UTC).date()
    first = _day(params.from_, "from") or last - timedelta(days=SPAN_DAYS - 1)
    if first > last:
        raise Fault("rpc.params", "The first day comes after the last.", path="$.from")
    return first.isoformat(), last.isoformat()


def _day(text: str | None, member: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise Fault("rpc.params", f"There is no day {text}.", path=f"$.{member}") from None


def _by_cost(s: Sums) -> tuple[int, int, str]:
    return -(s.nano_usd or 0), -(s.input + s.output), s.key


def _members(s: Sums) -> Json:
    """The members of a sum on the wire, where money is in dollars."""
    out = s._asdict()
    del out["key"]
    nano_usd = out.pop("nano_usd")
    return {**out, "cost_usd": None if nano_usd is None else nano_usd / NANO}
