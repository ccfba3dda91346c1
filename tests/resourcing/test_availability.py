"""The working out of hours, held to figures worked out by hand.

All of it is about the week of Monday, 14 September 2026, unless a test says otherwise.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sag_resourcing.availability import (
    Balance,
    Booking,
    Kind,
    Mode,
    Pattern,
    Person,
    Window,
    compute,
    find_doubts,
    group_weeks,
    spread,
    sum_up,
)

FULL = (8.0, 8.0, 8.0, 8.0, 8.0, 0.0, 0.0)
WEEK = Window(date(2026, 9, 14), date(2026, 9, 18))
WEDNESDAY = date(2026, 9, 16)


def sept(day: int) -> date:
    return date(2026, 9, day)


def ana(*patterns: Pattern, **more: Any) -> Person:
    return Person("12", "Ana Berg", patterns=patterns or (Pattern(FULL),), **more)


def book(
    mode: Mode,
    amount: float,
    start: int = 14,
    end: int = 18,
    *,
    kind: Kind = "work",
    tentative: bool = False,
    working_days: float | None = None,
    what: str = "Design",
) -> Booking:
    return Booking(
        "901",
        "12",
        sept(start),
        sept(end),
        mode,
        amount,
        what,
        kind=kind,
        tentative=tentative,
        working_days=working_days,
    )


def days(balances: list[Balance], member: str) -> list[float]:
    return [getattr(balance, member) for balance in balances]


# --- capacity ---


def test_a_week_of_seven_numbers_repeats():
    pattern = Pattern((8, 8, 8, 8, 4, 0, 0), start=date(2026, 1, 1))
    assert [pattern.on(day) for day in Window(sept(11), sept(14))] == [4, 0, 0, 8]  # Friday to Monday
    assert not pattern.alternates


def test_fourteen_numbers_alternate_from_the_week_in_which_they_start():
    # It starts on Tuesday, 1 September, so the week of Monday, 31 August, is the first one. That of the 7th is the
    # second, and that of the 14th the first again.
    pattern = Pattern((1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17), start=sept(1))
    assert [pattern.on(day) for day in Window(sept(1), sept(6))] == [2, 3, 4, 5, 6, 7]
    assert [pattern.on(day) for day in Window(sept(7), sept(13))] == [11, 12, 13, 14, 15, 16, 17]
    assert [pattern.on(day) for day in Window(sept(14), sept(20))] == [1, 2, 3, 4, 5, 6, 7]
    # Far in both directions: 12 weeks later is an even number of weeks, 11 is odd; the week before is odd.
    assert pattern.on(sept(14) + timedelta(weeks=12)) == 1
    assert pattern.on(sept(14) + timedelta(weeks=11)) == 11
    assert pattern.on(date(2026, 8, 24)) == 11


def test_fourteen_equal_numbers_do_not_alternate():
    assert not Pattern(FULL * 2, start=sept(1)).alternates
    assert find_doubts(ana(Pattern(FULL * 2, start=sept(1))), [], WEEK) == []


def test_the_pattern_that_covers_the_day_holds_and_of_two_the_later():
    person = ana(
        Pattern(FULL, end=sept(15)),
        Pattern((4, 4, 4, 4, 4, 0, 0), start=sept(16)),
        Pattern((2, 2, 2, 2, 2, 0, 0), start=sept(18)),
    )
    assert [person.capacity(day) for day in WEEK] == [8, 8, 4, 4, 2]


def test_of_patterns_without_a_start_the_first_holds():
    person = ana(Pattern((6, 6, 6, 6, 6, 0, 0), end=sept(15)), Pattern(FULL))
    assert [person.capacity(day) for day in WEEK] == [6, 6, 8, 8, 8]


def test_there_are_no_hours_before_the_first_day_and_after_the_last():
    person = ana(first_day=sept(15), last_day=sept(17))
    assert [person.capacity(day) for day in WEEK] == [0, 8, 8, 8, 0]


def test_a_holiday_takes_the_whole_day_and_none_on_a_day_off():
    pattern = Pattern((8, 8, 4, 8, 8, 0, 0), holidays={WEDNESDAY: "Town day", sept(19): "Saturday's"})
    found = compute(ana(pattern), [], Window(sept(14), sept(19)))
    assert days(found, "capacity") == [8, 8, 4, 8, 8, 0]
    assert days(found, "holiday") == [0, 0, 4, 0, 0, 0]
    assert days(found, "free") == [8, 8, 0, 8, 8, 0]
    assert sum_up(found, WEEK).holidays == {WEDNESDAY: "Town day"}


# --- the three ways of booking ---


def test_hours_per_day_fall_on_working_days():
    # Thursday 17 to Monday 21: the weekend is left out.
    booking = Booking("1", "12", sept(17), sept(21), "per_day", 4, "Design")
    assert spread(booking, ana(), Window(sept(14), sept(30))) == {sept(17): 4, sept(18): 4, sept(21): 4}
    assert spread(booking, ana(), WEEK) == {sept(17): 4, sept(18): 4}


def test_a_share_is_of_each_days_hours():
    person = ana(Pattern((8, 4, 8, 0, 6, 0, 0), holidays={WEDNESDAY: "Town day"}))
    # Half of 8, of 4, of nothing (holiday; not a working day), of 6.
    assert spread(book("share", 0.5), person, WEEK) == {sept(14): 4, sept(15): 2, sept(18): 3}


def test_a_total_is_spread_over_the_working_days_of_the_whole_booking():
    # 10 to 16 September has Thursday, Friday, Monday, Tuesday, Wednesday; without the holiday four: 12 / 4 = 3 each.
    # Two of them lie in the window.
    person = ana(Pattern(FULL, holidays={WEDNESDAY: "Town day"}))
    assert spread(book("total", 12, 10, 16), person, WEEK) == {sept(14): 3, sept(15): 3}


def test_a_total_is_divided_by_the_vendors_count_and_a_difference_is_told():
    # The vendor counts three working days, the pattern has five: 12 / 3 = 4 on each of them.
    booking = book("total", 12, working_days=3)
    assert list(spread(booking, ana(), WEEK).values()) == [4, 4, 4, 4, 4]
    assert "counts 3 working days" in find_doubts(ana(), [booking], WEEK)[0]
    assert find_doubts(ana(), [book("total", 12, working_days=5)], WEEK) == []


@pytest.mark.parametrize(
    ("mode", "amount", "expected"), [("per_day", 4.0, 4.0), ("total", 4.0, 4.0), ("share", 0.5, 0)]
)
def test_a_booking_on_a_day_off_is_not_lost(mode, amount, expected):
    # Friday is a day off; the booking falls on it all the same, and is told of.
    person = ana(Pattern((8, 8, 8, 8, 0, 0, 0)))
    booking = book(mode, amount, 18, 18)
    friday = compute(person, [booking], WEEK)[-1]
    assert (friday.capacity, friday.booked, friday.free, friday.overbooked) == (0, expected, 0, expected)
    assert "days without working hours" in find_doubts(person, [booking], WEEK)[0]


def test_a_booking_of_a_weekend_alone_falls_on_the_weekend():
    # A total of 6 over Saturday and Sunday.
    booking = book("total", 6, 19, 20)
    assert spread(booking, ana(), Window(sept(14), sept(20))) == {sept(19): 3, sept(20): 3}


def test_somebody_without_known_hours_is_booked_from_monday_to_friday_and_overbooked():
    person = Person("15", "Ben Dahl")
    total = sum_up(compute(person, [book("per_day", 3, 11, 15)], WEEK), WEEK)
    assert (total.capacity, total.booked, total.free, total.overbooked) == (0, 6, 0, 6)
    doubts = find_doubts(person, [book("per_day", 3, 11, 15)], WEEK)
    assert doubts[0].startswith("No working hours are known from 2026-09-14 to 2026-09-18")


# --- the balance ---


def test_absences_take_no_more_than_the_day_has():
    # Four hours a day. A whole day off of eight hours takes four; a second absence finds nothing left.
    person = ana(Pattern((4, 4, 4, 4, 4, 0, 0)))
    away = [
        book("per_day", 8, 15, 15, kind="absence", what="Vacation"),
        book("per_day", 8, 15, 15, kind="absence", what="Sick"),
    ]
    tuesday = compute(person, away, WEEK)[1]
    assert (tuesday.absence, tuesday.free, tuesday.overbooked) == (4, 0, 0)
    assert tuesday.away == {"Vacation": 4}


def test_an_absence_on_a_holiday_takes_nothing():
    person = ana(Pattern(FULL, holidays={WEDNESDAY: "Town day"}))
    total = sum_up(compute(person, [book("share", 1, kind="absence")], WEEK), WEEK)
    assert (total.capacity, total.holiday, total.absence, total.free) == (40, 8, 32, 0)


def test_work_during_an_absence_is_overbooked():
    found = compute(ana(), [book("per_day", 8, 15, 15, kind="absence"), book("per_day", 2)], WEEK)
    assert days(found, "overbooked") == [0, 2, 0, 0, 0]
    assert days(found, "free") == [6, 0, 6, 6, 6]


def test_being_present_elsewhere_takes_nothing():
    total = sum_up(compute(ana(), [book("per_day", 8, kind="present")], WEEK), WEEK)
    assert (total.absence, total.booked, total.free) == (0, 0, 40)


def test_free_hours_of_one_day_do_not_hide_the_overbooking_of_another():
    # Monday 12 of 8, Tuesday 4 of 8: four too many and four free, not zero.
    found = compute(ana(), [book("per_day", 12, 14, 14), book("per_day", 4, 15, 15)], Window(sept(14), sept(15)))
    total = sum_up(found, Window(sept(14), sept(15)))
    assert (total.booked, total.free, total.overbooked) == (16, 4, 4)


def test_tentative_work_is_told_apart_and_counts_where_it_is_to():
    bookings = [book("per_day", 6), book("per_day", 4, tentative=True, what="App")]
    apart = sum_up(compute(ana(), bookings, WEEK), WEEK)
    assert (apart.booked, apart.tentative, apart.free, apart.overbooked) == (30, 20, 10, 0)
    counted = sum_up(compute(ana(), bookings, WEEK, count_tentative=True), WEEK)
    assert (counted.booked, counted.tentative, counted.free, counted.overbooked) == (30, 20, 0, 10)
    assert counted.on == {"Design": 30, "App": 20}


def test_weeks_begin_on_monday_and_the_ends_are_cut_off():
    found = group_weeks(compute(ana(), [book("per_day", 1, 14, 25)], Window(sept(17), sept(29))))
    assert [(w.start.day, w.end.day, w.capacity, w.booked, w.free) for w in found] == [
        (17, 20, 16, 2, 14),
        (21, 27, 40, 5, 35),
        (28, 29, 16, 0, 16),
    ]


def test_an_endless_booking_is_spread_at_once():
    endless = Booking("1", "12", date(1, 1, 1), date(9999, 12, 31), "per_day", 1, "Design")
    assert spread(endless, ana(), WEEK) == dict.fromkeys(WEEK, 1)


amounts = st.floats(0, 24, allow_nan=False).map(lambda hours: round(hours, 2))
bookings_of_september = st.builds(
    lambda mode, amount, start, length, kind, tentative: Booking(
        "1",
        "12",
        sept(1) + timedelta(start),
        sept(1) + timedelta(start + length),
        mode,
        amount / 24 if mode == "share" else amount,
        "Design",
        kind=kind,
        tentative=tentative,
    ),
    st.sampled_from(["per_day", "share", "total"]),
    amounts,
    st.integers(0, 29),
    st.integers(0, 20),
    st.sampled_from(["work", "absence", "present"]),
    st.booleans(),
)


@given(
    st.lists(amounts, min_size=14, max_size=14).map(tuple),
    st.lists(bookings_of_september, max_size=6),
    st.booleans(),
)
def test_the_balance_always_adds_up(hours, bookings, count_tentative):
    person = ana(Pattern(hours, start=sept(3), holidays={WEDNESDAY: "Town day"}))
    window = Window(sept(1), sept(30))
    found = compute(person, bookings, window, count_tentative=count_tentative)
    for each in [*found, *group_weeks(found), sum_up(found, window)]:
        taken = each.holiday + each.absence + each.booked + (each.tentative if count_tentative else 0)
        assert each.capacity - taken == pytest.approx(each.free - each.overbooked, abs=1e-6)
        assert each.holiday + each.absence <= each.capacity + 1e-6
        assert sum(each.on.values()) == pytest.approx(each.booked + each.tentative, abs=1e-6)
        assert min(each.free, each.overbooked) >= 0
    assert all(not (day.free and day.overbooked) for day in found)


@given(amounts, st.integers(0, 29), st.integers(0, 20))
def test_the_days_of_a_total_add_up_to_it(amount, start, length):
    booking = Booking(
        "1", "12", sept(1) + timedelta(start), sept(1) + timedelta(start + length), "total", amount, "Design"
    )
    everything = Window(date(2026, 8, 1), date(2026, 12, 1))
    assert sum(spread(booking, ana(), everything).values()) == pytest.approx(amount)
