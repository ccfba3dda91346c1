"""What the tools of both servers answer with: the shapes a model reads, and the figures put into them.

It owns the common shapes, the rounding, and how an answer is written down: compact JSON in which members that hold
nothing are left out. It computes nothing; that is `availability`'s work. Shapes of one vendor alone stand in its
module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from mcp.types import CallToolResult, TextContent
from pydantic import AfterValidator, BaseModel, Field

from sag_resourcing.availability import (
    Balance,
    Booking,
    Kind,
    Person,
    Window,
    compute,
    find_doubts,
    group_weeks,
    spread,
    sum_up,
)

By = Literal["auto", "day", "week"]

DAYS_SHOWN = 14
"""The longest window that is shown day by day where nothing else is asked for."""

LONGEST = 100_000
"""How many characters an answer may have: some 30,000 tokens."""

Hours = Annotated[float, AfterValidator(lambda hours: round(hours, 2) + 0.0)]


class Result(BaseModel):
    """What all answers with a list have; the list is the last member.

    Members that are zero, empty or false are left out.
    """

    window: str | None = Field(default=None, description="First and last day that were looked at, both included")
    units: str | None = Field(default=None, description="The unit of all amounts")
    shown: int = Field(description="How many are listed here")
    total: int = Field(description="How many there are")
    cut: bool = Field(default=False, description="Whether there are more than are listed; ask for less, or raise limit")
    notes: list[str] = Field(default=[], description="What to know about these figures; tell the user what matters")


class Amounts(BaseModel):
    """Hours of one or more days. Members left out are 0.

    capacity - holiday - absence - booked (- tentative, where it counts) = free - overbooked
    """

    capacity: Hours = Field(description="Working hours by the person's pattern")
    holiday: Hours = Field(default=0, description="Of these, lost to public holidays")
    absence: Hours = Field(default=0, description="Of these, lost to time off")
    booked: Hours = Field(description="Firm work")
    tentative: Hours = Field(default=0, description="Work that is not firm yet")
    free: Hours = Field(description="What is left, of days that have something left")
    overbooked: Hours = Field(
        default=0, description="Planned beyond capacity, on days where it is; not netted with free"
    )
    on: dict[str, Hours] = Field(default={}, description="Work by what it is for, tentative work included")
    away: dict[str, Hours] = Field(default={}, description="Time off by kind")


class Span(Amounts):
    """Hours of a day or a week."""

    start: date = Field(description="First day")
    end: date | None = Field(default=None, description="Last day, where it is another one")


class BookingLine(BaseModel):
    """A booking, with its hours inside the window."""

    id: str
    person: str | None = None
    person_id: str | None = None
    kind: Kind = Field(
        default="work", description="`present` is an absence that takes no time, such as working from home"
    )
    what: str = Field(description="Project and service or phase, or the kind of absence")
    start: date
    end: date
    hours: Hours = Field(description="Hours that fall into the window")
    planned_as: str = Field(description="How it was entered")
    tentative: bool = False
    pending: bool = Field(default=False, description="Time off that is not approved yet; it is taken off all the same")
    project_id: str | None = None
    service_id: str | None = None
    note: str | None = None


class PersonHours(BaseModel):
    """One person's window."""

    id: str
    name: str
    title: str | None = None
    totals: Amounts
    spans: list[Span] = Field(description="Day by day or week by week; days without hours or bookings are left out")
    bookings: list[BookingLine] = []
    holidays: dict[date, str] = {}
    notes: list[str] = []


class Availability(Result):
    """Who has how many hours free, and what takes the rest."""

    by: Literal["day", "week"] = Field(description="What the spans are")
    tentative_counted: bool = Field(description="Whether tentative work is taken off what is free")
    everyone: Amounts = Field(description="All people together, those not listed too")
    people: list[PersonHours] = Field(description="Those with the most free hours first")


class Bookings(Result):
    """Bookings, by start."""

    hours: Hours = Field(description="Of all of them inside the window, tentative ones and time off included")
    bookings: list[BookingLine]


class Sum(BaseModel):
    """Hours under one heading."""

    id: str | None = None
    name: str
    hours: Hours


class TimeEntry(BaseModel):
    """Time that was worked."""

    id: str
    date: date
    person: str
    person_id: str
    what: str = Field(description="Project and service, phase or kind of absence")
    hours: Hours = Field(description="Worked; 0 of a suggestion")
    billable: Hours | None = Field(default=None, description="Of these, billable")
    suggested: Hours | None = Field(
        default=None, description="Hours that the schedule suggests and nobody has confirmed"
    )
    status: str | None = None
    project_id: str | None = None
    service_id: str | None = None
    note: str | None = None


class TimeEntries(Result):
    """Time that was worked, by day. The sums are over all entries, those not listed too."""

    hours: Hours
    suggested: Hours = Field(default=0, description="Suggested by the schedule, not in `hours`")
    by_person: list[Sum]
    by_project: list[Sum]
    entries: list[TimeEntry]


def answer(result: BaseModel) -> CallToolResult:
    """A result as structured content, and the same as text for hosts that read no other.

    A list that would be longer than a model can read is cut, and says so.
    """
    data, text = _write(result)
    while isinstance(result, Result) and len(text) > LONGEST and result.shown > 1:
        name = next(reversed(type(result).model_fields))
        shown = min(result.shown - 1, max(1, result.shown * LONGEST // len(text)))
        rows = getattr(result, name)[:shown]
        result = result.model_copy(update={name: rows, "shown": shown, "cut": True})
        data, text = _write(result)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)


def count_shown(found: Sequence[object], limit: int) -> dict[str, Any]:
    """The counts of a list that is shown up to a limit, as `Result` has them."""
    return {"shown": min(limit, len(found)), "total": len(found), "cut": len(found) > limit}


def name_window(window: Window) -> str:
    """A window as answers name it."""
    return f"{window.start} to {window.end}"


def shorten(text: str | None, length: int = 200) -> str | None:
    """A text on one line and not longer than that; None for an empty one."""
    line = " ".join((text or "").split())
    if len(line) > length:
        return line[: length - 1] + "…"
    return line or None


def list_availability(
    people: Sequence[Person],
    bookings: Iterable[Booking],
    window: Window,
    *,
    by: By,
    count_tentative: bool,
    min_free: float,
    limit: int,
    notes: Sequence[str],
) -> Availability:
    """Everybody's hours in a window.

    Args:
        bookings: Of these people; others are left out.
        by: `auto` is by day up to 14 days, else by week.
        min_free: Leaves out those with fewer free hours.
        limit: How many people are listed.
    """
    weekly = by == "week" or (by == "auto" and (window.end - window.start).days >= DAYS_SHOWN)
    of: dict[str, list[Booking]] = {person.id: [] for person in people}
    for booking in sorted(bookings, key=lambda b: (b.start, b.end, b.id)):
        if booking.person in of and window.overlaps(booking.start, booking.end):
            of[booking.person].append(booking)
    found: list[PersonHours] = []
    everybody = Balance(window.start, window.end)
    for person in people:
        days = compute(person, of[person.id], window, count_tentative=count_tentative)
        total = sum_up(days, window)
        if round(total.free, 2) < min_free:
            continue
        everybody.add(total)
        spans = group_weeks(days) if weekly else days
        found.append(
            PersonHours(
                id=person.id,
                name=person.name,
                title=person.title or None,
                totals=Amounts(**_amounts(total)),
                spans=[_span(s) for s in spans if s.capacity or s.on],
                bookings=[describe_booking(b, person, window, named=False) for b in of[person.id]],
                holidays=total.holidays,
                notes=find_doubts(person, of[person.id], window),
            )
        )
    found.sort(key=lambda p: (-p.totals.free, p.name, p.id))
    return Availability(
        window=name_window(window),
        units="hours",
        **count_shown(found, limit),
        notes=list(notes),
        by="week" if weekly else "day",
        tentative_counted=count_tentative,
        everyone=Amounts(**_amounts(everybody) | {"on": {}, "away": {}}),
        people=found[:limit],
    )


def list_bookings(
    bookings: Iterable[Booking],
    find_person: Callable[[str], Person],
    window: Window,
    *,
    limit: int,
    notes: Sequence[str] = (),
) -> Bookings:
    """Bookings with their hours in a window."""
    found = sorted(bookings, key=lambda b: (b.start, b.end, b.id))
    people = {b.person: find_person(b.person) for b in found}
    lines = [describe_booking(b, people[b.person], window) for b in found]
    if unknown := sorted({person.name for person in people.values() if not any(map(person.pattern, window))}):
        notes = [
            *notes,
            f"No working hours are known of {', '.join(unknown)}: their bookings are spread over Monday to Friday, and "
            "a percentage counts as nothing.",
        ]
    return Bookings(
        window=name_window(window),
        units="hours",
        **count_shown(lines, limit),
        notes=list(notes),
        hours=sum(line.hours for line in lines),
        bookings=lines[:limit],
    )


def list_time_entries(
    entries: Sequence[TimeEntry],
    projects: Sequence[str],
    window: Window,
    *,
    limit: int,
    notes: Sequence[str] = (),
) -> TimeEntries:
    """Time entries and their sums.

    Args:
        projects: The name of each entry's project.
    """
    ordered = sorted(entries, key=lambda e: (e.date, e.person, e.id))
    return TimeEntries(
        window=name_window(window),
        units="hours",
        **count_shown(ordered, limit),
        notes=list(notes),
        hours=sum(e.hours for e in ordered),
        suggested=sum(e.suggested or 0.0 for e in ordered),
        by_person=_sum((e.person_id, e.person, e.hours) for e in entries),
        by_project=_sum((e.project_id, name, e.hours) for e, name in zip(entries, projects, strict=True)),
        entries=ordered[:limit],
    )


def describe_booking(booking: Booking, person: Person, window: Window, *, named: bool = True) -> BookingLine:
    """A booking with its hours in a window."""
    return BookingLine(
        id=booking.id,
        person=person.name if named else None,
        person_id=person.id if named else None,
        kind=booking.kind,
        what=booking.what,
        start=booking.start,
        end=booking.end,
        hours=sum(spread(booking, person, window).values()),
        planned_as={
            "per_day": f"{booking.amount:g} h per working day",
            "share": f"{booking.amount * 100:g} % of each day's hours",
            "total": f"{booking.amount:g} h in all",
        }[booking.mode],
        tentative=booking.tentative,
        pending=booking.pending,
        project_id=booking.project,
        service_id=booking.service,
        note=shorten(booking.note),
    )


def _write(result: BaseModel) -> tuple[dict[str, Any], str]:
    data = _trim(result.model_dump(mode="json", exclude_defaults=True))
    return data, json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _trim(value: Any) -> Any:
    """Whole numbers without their `.0`, which a model would read for nothing."""
    if isinstance(value, dict):
        return {key: _trim(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trim(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _amounts(balance: Balance) -> dict[str, Any]:
    return {name: getattr(balance, name) for name in Amounts.model_fields}


def _span(balance: Balance) -> Span:
    end = balance.end if balance.end != balance.start else None
    return Span(**_amounts(balance), start=balance.start, end=end)


def _sum(rows: Iterable[tuple[str | None, str, float]]) -> list[Sum]:
    sums: dict[tuple[str | None, str], float] = {}
    for id, name, hours in rows:
        sums[id, name] = sums.get((id, name), 0.0) + hours
    found = [Sum(id=id, name=name, hours=hours) for (id, name), hours in sums.items()]
    return sorted(found, key=lambda s: (-s.hours, s.name, s.id or ""))
