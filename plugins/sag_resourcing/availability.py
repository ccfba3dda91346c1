"""Who has how many hours and what takes them: plain figures, worked out in the same way for every planning system.

It owns the working pattern, the spreading of bookings over days, and the balance of a day. It touches nothing outside
and knows no vendor: `productive` and `smartsheet` translate what they read into these objects, and `results` puts the
figures into what a tool answers. All amounts are hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

Mode = Literal["per_day", "share", "total"]
Kind = Literal["work", "absence", "present"]

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """Days from `start` to `end`, both included."""

    start: date
    end: date

    def __iter__(self) -> Iterator[date]:
        return (self.start + DAY * n for n in range((self.end - self.start).days + 1))

    def overlaps(self, start: date, end: date) -> bool:
        """Whether days from `start` to `end` share one with these."""
        return start <= self.end and end >= self.start


@dataclass(frozen=True, slots=True)
class Pattern:
    """Hours per weekday for a span of time, with the holidays that hold in it.

    Attributes:
        hours: Seven numbers, Monday first, or fourteen that alternate week by week.
        start: The first day; None is since ever.
        end: The last day; None is for ever.
        holidays: Names by day.
    """

    hours: tuple[float, ...]
    start: date | None = None
    end: date | None = None
    holidays: Mapping[date, str] = field(default_factory=dict)

    def covers(self, day: date) -> bool:
        """Whether the pattern holds on a day."""
        return (self.start is None or self.start <= day) and (self.end is None or day <= self.end)

    def on(self, day: date) -> float:
        """The hours of a day.

        Of fourteen numbers the first seven hold in the week in which the pattern starts, and in every second week
        from there. Productive does not say from where the weeks are counted, so this is the likely reading and not a
        known one; `alternates` tells where it matters.
        """
        weeks = (_monday(day) - _monday(self.start or date.min)).days // 7
        return self.hours[(weeks * 7 + day.weekday()) % len(self.hours)]

    @property
    def alternates(self) -> bool:
        """Whether one week differs from the next."""
        return self.hours[:7] != self.hours[-7:]


@dataclass(frozen=True, slots=True)
class Person:
    """A person's working time.

    Attributes:
        patterns: Of those that cover a day, the one that starts last holds; of those, the first.
        first_day, last_day: There are no hours before and after; None is no bound.
        notes: What to know about these figures.
    """

    id: str
    name: str
    title: str = ""
    patterns: Sequence[Pattern] = ()
    first_day: date | None = None
    last_day: date | None = None
    notes: Sequence[str] = ()

    def employed(self, day: date) -> bool:
        """Whether a day lies between the first and the last."""
        return not ((self.first_day and day < self.first_day) or (self.last_day and day > self.last_day))

    def pattern(self, day: date) -> Pattern | None:
        """The pattern that holds on a day."""
        covering = [p for p in self.patterns if p.covers(day)] if self.employed(day) else []
        return max(covering, key=lambda p: p.start or date.min, default=None)

    def capacity(self, day: date) -> float:
        """The hours of a day, holidays not yet taken off."""
        pattern = self.pattern(day)
        return pattern.on(day) if pattern else 0.0

    def holiday(self, day: date) -> str | None:
        """The holiday that a day is for this person."""
        pattern = self.pattern(day)
        return pattern.holidays.get(day) if pattern else None

    def available(self, day: date) -> float:
        """The hours of a day, none on a holiday."""
        return 0.0 if self.holiday(day) else self.capacity(day)


@dataclass(frozen=True, slots=True)
class Booking:
    """Time that is planned for a person.

    Attributes:
        person: Whose, by id.
        start, end: First and last day.
        mode: How `amount` is meant: hours on each working day (`per_day`), a part of each day's hours (`share`, 0.5
            is half), or hours in all, spread evenly over the working days (`total`).
        what: What it is for, in words.
        kind: `work`; `absence`; or `present`, an absence that takes no time, such as working from home.
        tentative: Not firm yet: a draft, or work on a project that may not come.
        pending: An absence that nobody has approved yet.
        working_days: How many working days the vendor counts in it, where it says.
        project, service: Their ids, to ask further.
        note: What its author wrote.
    """

    id: str
    person: str
    start: date
    end: date
    mode: Mode
    amount: float
    what: str
    kind: Kind = "work"
    tentative: bool = False
    pending: bool = False
    working_days: float | None = None
    project: str | None = None
    service: str | None = None
    note: str = ""


@dataclass(slots=True)
class Balance:
    """Hours of a person in a span of days.

    capacity - holiday - absence - booked (- tentative, where it counts) = free - overbooked. Over several days both
    may be above zero: hours that are free on Tuesday do not undo the overbooking of Monday.

    Attributes:
        on: Work by what it is for, tentative work included.
        away: Absences by their name.
        holidays: Names by day.
    """

    start: date
    end: date
    capacity: float = 0.0
    holiday: float = 0.0
    absence: float = 0.0
    booked: float = 0.0
    tentative: float = 0.0
    free: float = 0.0
    overbooked: float = 0.0
    on: dict[str, float] = field(default_factory=dict)
    away: dict[str, float] = field(default_factory=dict)
    holidays: dict[date, str] = field(default_factory=dict)

    def add(self, other: Balance) -> None:
        """Take the hours of other days in."""
        for name in ("capacity", "holiday", "absence", "booked", "tentative", "free", "overbooked"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, more in ((self.on, other.on), (self.away, other.away)):
            for what, hours in more.items():
                mine[what] = mine.get(what, 0.0) + hours
        self.holidays |= other.holidays


def find_working_days(booking: Booking, person: Person) -> Callable[[date], bool]:
    """Tells of a day in a booking's span whether the booking falls on it: whether the person has hours on it.

    Where no day of the span has any (booked on a day off, or nothing is known of the person's week) it falls on Monday
    to Friday, or else on every day, so that no booking gets lost.
    """
    span = Window(booking.start, booking.end)
    if any(person.available(day) > 0 for day in span):
        return lambda day: person.available(day) > 0
    if any(_is_weekday(day, person) for day in span):
        return lambda day: _is_weekday(day, person)
    return lambda day: True


def spread(booking: Booking, person: Person, window: Window) -> dict[date, float]:
    """A booking's hours by day, for the days that lie in a window.

    A total is divided by the vendor's count of working days where it gives one, else by ours. An absence takes what a
    day has and no more, so a day off of eight hours is four on a day of four.
    """
    if booking.kind == "present" or not window.overlaps(booking.start, booking.end):
        return {}
    falls = find_working_days(booking, person)
    within = Window(max(window.start, booking.start), min(window.end, booking.end))
    days = [day for day in within if falls(day)]
    if booking.mode == "share":
        return {day: booking.amount * person.available(day) for day in days}
    rate = booking.amount
    if booking.mode == "total":
        rate /= booking.working_days or sum(map(falls, Window(booking.start, booking.end)))
    if booking.kind == "absence":
        return {day: min(rate, person.available(day)) for day in days}
    return dict.fromkeys(days, rate)


def compute(
    person: Person, bookings: Iterable[Booking], window: Window, *, count_tentative: bool = False
) -> list[Balance]:
    """The balance of each day of a window.

    Absences together take what the day has and no more. Work is not bounded: what exceeds the day is overbooked.

    Args:
        bookings: This person's.
        count_tentative: Whether tentative work is taken off what is free.
    """
    days = {day: Balance(day, day) for day in window}
    for day, balance in days.items():
        balance.capacity = person.capacity(day)
        if (holiday := person.holiday(day)) and balance.capacity:
            balance.holiday = balance.capacity
            balance.holidays[day] = holiday
    for booking in bookings:
        for day, hours in spread(booking, person, window).items():
            found = days[day]
            if not hours:
                continue
            if booking.kind == "absence":
                hours = min(hours, found.capacity - found.holiday - found.absence)
                if hours > 0:
                    found.absence += hours
                    found.away[booking.what] = found.away.get(booking.what, 0.0) + hours
                continue
            if booking.tentative:
                found.tentative += hours
            else:
                found.booked += hours
            found.on[booking.what] = found.on.get(booking.what, 0.0) + hours
    for balance in days.values():
        left = balance.capacity - balance.holiday - balance.absence - balance.booked
        left -= balance.tentative if count_tentative else 0.0
        balance.free, balance.overbooked = max(0.0, left), max(0.0, -left)
    return list(days.values())


def sum_up(days: Iterable[Balance], window: Window) -> Balance:
    """The balance of all days together."""
    total = Balance(window.start, window.end)
    for day in days:
        total.add(day)
    return total


def group_weeks(days: Iterable[Balance]) -> list[Balance]:
    """Days put together to weeks from Monday to Sunday; the first and the last may be shorter."""
    weeks: dict[date, Balance] = {}
    for day in days:
        week = weeks.setdefault(_monday(day.start), Balance(day.start, day.end))
        week.end = day.end
        week.add(day)
    return list(weeks.values())


def find_doubts(person: Person, bookings: Iterable[Booking], window: Window) -> list[str]:
    """What is not certain about a person's figures in a window, in words for whoever reads them."""
    doubts = list(person.notes)
    if unknown := [day for day in window if person.employed(day) and person.pattern(day) is None]:
        doubts.append(f"No working hours are known from {unknown[0]} to {unknown[-1]}; capacity counts as 0 there.")
    holding = {id(p): p for day in window if (p := person.pattern(day))}
    if any(p.alternates for p in holding.values()):
        doubts.append(
            "Works alternating weeks. Which week is which is counted from the week in which the pattern starts; "
            "compare one week with the planning system."
        )
    for booking in bookings:
        if booking.kind == "present" or not window.overlaps(booking.start, booking.end):
            continue
        span, named = Window(booking.start, booking.end), f"Booking {booking.id} ({booking.what})"
        if booking.kind == "work" and not any(person.available(day) > 0 for day in span):
            nothing = "; a percentage of those is nothing." if booking.mode == "share" else "."
            doubts.append(f"{named} lies on days without working hours{nothing}")
        elif booking.mode == "total" and booking.working_days:
            falls = find_working_days(booking, person)
            if (ours := sum(map(falls, span))) != booking.working_days:
                doubts.append(
                    f"{named}: the planning system counts {booking.working_days:g} working days in it and the working "
                    f"pattern has {ours}, so its hours per day may differ."
                )
    return doubts


def _is_weekday(day: date, person: Person) -> bool:
    return day.weekday() < 5 and not person.holiday(day)


def _monday(day: date) -> date:
    return day - DAY * day.weekday()
