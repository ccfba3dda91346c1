"""What is particular to Productive's API: its pages, relationships, units and refusals.

It reads whole collections, and turns people and bookings into those of `availability`; minutes become hours here. The
tools stand above it, in `productive`; below are `upstream`, which does the asking, and `jsonapi`.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError

from sag_resourcing.availability import Booking, Kind, Mode, Pattern, Person, Window
from sag_resourcing.jsonapi import Record, read_error, read_records
from sag_resourcing.upstream import (
    ITEMS,
    Answer,
    Call,
    Params,
    Refusal,
    Vendor,
    find_fault,
    find_setting,
    read_retry_after,
    too_many,
)

log = logging.getLogger("sag_resourcing")

NAME = "Productive"
BASE_URL = "https://api.productive.io/api/v2"
MEDIA_TYPE = "application/vnd.api+json"
PAGE_SIZE = 200
LIMIT_WAIT_S = 10.0
"""Productive's limits are per 10 s, and its 429 need not say how long to wait."""
PRESENT_EVENTS = "Working from home, Remote work"
BOOKED_ON = "service.deal.company,service.deal.project"


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        vendor: How to reach Productive, or what is wrong with the settings.
        present_events: Names, in lower case, and ids of absence types that take no working time.
    """

    vendor: Vendor | str
    present_events: frozenset[str]


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings in an environment; faults become text, since a server without settings starts all the same."""
    token = find_setting(env, "PRODUCTIVE_API_TOKEN", "PRODUCTIVE_TOKEN")
    organization = find_setting(env, "PRODUCTIVE_ORG_ID", "PRODUCTIVE_ORGANIZATION_ID")
    base_url = (find_setting(env, "PRODUCTIVE_BASE_URL", "PRODUCTIVE_API_BASE_URL") or BASE_URL).rstrip("/")
    events = find_setting(env, "PRODUCTIVE_PRESENT_EVENTS") or PRESENT_EVENTS
    present = frozenset(name.strip().lower() for name in events.split(",") if name.strip())
    fault = find_fault(base_url, "PRODUCTIVE_BASE_URL", token, "PRODUCTIVE_API_TOKEN")
    if fault is None and not re.fullmatch(r"\d+", organization):
        fault = "PRODUCTIVE_ORG_ID is not set" if not organization else "PRODUCTIVE_ORG_ID has to be a number"
        fault += ". It is the organization's number, which stands in Productive's address in the browser."
    if fault is not None:
        return Settings(fault, present)
    vendor = Vendor(
        name=NAME,
        base_url=base_url,
        headers={
            "X-Auth-Token": token,
            "X-Organization-Id": organization,
            "Accept": MEDIA_TYPE,
            "Content-Type": MEDIA_TYPE,
        },
        secrets=(token,),
        read_wait=read_retry_after,
        default_wait_s=LIMIT_WAIT_S,
        explain=lambda refused: explain(refused, organization),
        base_variable="PRODUCTIVE_BASE_URL",
    )
    return Settings(vendor, present)


def explain(refused: Answer, organization: str) -> str:
    """What a refusal of Productive means and what to do."""
    code, words = read_error(refused.body)
    said = f" Productive says: {words}" if words else ""
    if refused.status == 401:
        return (
            "Productive refuses the token. Look whether PRODUCTIVE_API_TOKEN is a token from Productive's Settings, "
            f"API integrations, and was not revoked.{said}"
        )
    if refused.status == 403 and code == "no_person":
        return (
            f"The token is valid, but its person is not in organization {organization}: PRODUCTIVE_ORG_ID is most "
            f"likely wrong. It is the number in Productive's address in the browser.{said}"
        )
    if refused.status == 403:
        return f"The token's person may not see this. A manager's token sees more.{said}"
    if refused.status == 404:
        return (
            f"Productive has nothing at {refused.path}. Ids come from list_people and list_projects; where those fail "
            f"too, PRODUCTIVE_BASE_URL is wrong.{said}"
        )
    if refused.status == 415:
        return (
            "Productive refuses the content type (415), although it is the right one. Look whether "
            f"PRODUCTIVE_BASE_URL leads through a proxy that changes headers.{said}"
        )
    if refused.status in (400, 422):
        return f"Productive refuses the request ({refused.status}). Change the arguments it names.{said}"
    return f"Productive refuses the request (HTTP {refused.status}).{said}"


# --- reading ---


async def read_all(
    call: Call, path: str, what: str, filters: Params = (), *, include: str = "", sort: str = ""
) -> list[Record]:
    """All records of a collection, page by page; one that moved to the next page meanwhile is there once.

    Args:
        what: What they are, in the plural, for errors.
        sort: So that pages do not overlap; where Productive knows no such sort, its own order is taken.

    Raises:
        ToolError: It could not be read, or there are more than 10,000.
    """
    found: dict[str, Record] = {}
    number, pages = 0, 1
    while number < pages:
        params = [*((f"filter[{name}]", value) for name, value in filters)]
        params += [("include", include)] if include else []
        params += [("sort", sort)] if sort else []
        params += [("page[number]", str(number + 1)), ("page[size]", str(PAGE_SIZE))]
        try:
            document = await call.get(path, params)
        except Refusal as e:
            if not sort or read_error(e.answer.body)[0] != "sort_param_unsupported":
                raise
            log.warning("Productive cannot sort %s by %s; its own order is taken", path, sort)
            sort = ""
            continue
        meta = document.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        pages, total = _count(meta.get("total_pages")), _count(meta.get("total_count"))
        if total > ITEMS or len(found) > ITEMS:
            raise too_many(NAME, what, total)
        for record in read_records(document):
            found.setdefault(record.id, record)
        number += 1
    return list(found.values())


async def read_one(call: Call, path: str, include: str) -> Record:
    """One record by its path.

    Raises:
        ToolError: It could not be read.
    """
    records = read_records(await call.get(path, [("include", include)]))
    if not records:
        raise ToolError(f"Productive sends nothing for {path}.")
    return records[0]


async def read_bookings(
    call: Call, window: Window, filters: Params, present_events: frozenset[str], *, drafts: bool
) -> tuple[list[Record], list[Booking]]:
    """The bookings that overlap a window, and the records that they come from.

    Args:
        drafts: Whether tentative ones are among them.
    """
    # A day more on both sides, since Productive does not say whether its bounds belong to the window.
    day = timedelta(days=1)
    asked = [("after", str(window.start - day)), ("before", str(window.end + day)), *filters]
    asked += [("with_draft", "true")] if drafts else []
    include = f"person,event,{BOOKED_ON}"
    records = await read_all(call, "/bookings", "bookings", asked, include=include, sort="started_on")
    bookings = [booking for record in records if (booking := read_booking(record, present_events)) is not None]
    return records, [
        booking
        for booking in bookings
        if window.overlaps(booking.start, booking.end) and (drafts or not booking.tentative)
    ]


async def read_holidays(call: Call, window: Window, bookings: Sequence[Booking]) -> dict[str, dict[date, str]]:
    """The names of holidays by day, by the id of their calendar.

    They are those of the window, and of bookings of a total, whose working days are counted; yet none that is further
    than a year from the window, for bookings without a sensible end.
    """
    year = timedelta(days=366)
    totals = [booking for booking in bookings if booking.mode == "total"]
    start = max(window.start - year, min([window.start, *(booking.start for booking in totals)]))
    end = min(window.end + year, max([window.end, *(booking.end for booking in totals)]))
    span = [("after", str(start)), ("before", str(end))]
    calendars: dict[str, dict[date, str]] = {}
    for record in await read_all(call, "/holidays", "holidays", span, include="holiday_calendar", sort="date"):
        calendar, day = record.one("holiday_calendar"), record.day("date")
        if calendar is not None and day is not None:
            calendars.setdefault(calendar.id, {})[day] = record.text("name") or "Holiday"
    return calendars


def read_patterns(given: Any, calendars: Mapping[str, Mapping[date, str]], calendar: str = "") -> list[Pattern]:
    """The working patterns in a person's `availabilities`, which is JSON inside a string.

    Args:
        given: Rows of start, end or null, seven or fourteen hours from Monday on, and the holiday calendar's id.
        calendars: Holidays by calendar.
        calendar: The person's own, for rows that name none.

    Raises:
        ValueError: It is something else.
    """
    rows = json.loads(given) if isinstance(given, str) and given.strip() else given or []
    if not isinstance(rows, list):
        raise ValueError("no list")
    patterns = []
    for row in rows:
        if not isinstance(row, list) or len(row) < 3 or not isinstance(row[2], list) or len(row[2]) not in (7, 14):
            raise ValueError("no row of start, end, and 7 or 14 hours")
        start, end = (None if day is None else date.fromisoformat(str(day)[:10]) for day in row[:2])
        hours = tuple(float(number or 0) for number in row[2])
        named = str(row[3]) if len(row) > 3 and row[3] is not None else calendar
        patterns.append(Pattern(hours, start, end, calendars.get(named, {})))
    return patterns


def read_person(record: Record, calendars: Mapping[str, Mapping[date, str]]) -> Person:
    """A person with their working patterns."""
    own = record.one("holiday_calendar")
    notes = ["This person is deactivated or archived."] if is_inactive(record) else []
    try:
        patterns = read_patterns(record.get("availabilities"), calendars, own.id if own else "")
    except (ValueError, TypeError):
        patterns = []
        notes.append("The working hours in Productive could not be read.")
    return Person(record.id, name_person(record), record.text("title"), patterns, notes=notes)


def read_booking(record: Record, present_events: frozenset[str]) -> Booking | None:
    """A booking; None for one that was canceled or rejected, or that names no person.

    Productive's minutes become hours.

    Raises:
        ToolError: It has no days.
    """
    person, event = record.one("person"), record.one("event")
    if record.get("canceled") or record.get("rejected") or person is None:
        return None
    start, end = record.day("started_on"), record.day("ended_on")
    if start is None or end is None or end < start:
        raise ToolError(f"Productive sends booking {record.id} without the days that it lasts.")
    kind: Kind = "work"
    if event is not None:
        remote = event.get("absence_type") == "remote_work"
        kind = "present" if remote or {event.id, event.text("name").lower()} & present_events else "absence"
    mode, amount = _read_amount(record, kind)
    project, service = record.one("service", "deal", "project"), record.one("service")
    return Booking(
        id=record.id,
        person=person.id,
        start=start,
        end=end,
        mode=mode,
        amount=amount,
        what=name_absence(event) if event is not None else name_work(service),
        kind=kind,
        tentative=bool(record.get("draft")),
        pending=event is not None and record.get("approved") is False,
        working_days=record.number("total_working_days"),
        project=project.id if project else None,
        service=service.id if service else None,
        note=read_note(record.text("note")),
    )


def _read_amount(record: Record, kind: Kind) -> tuple[Mode, float]:
    method = record.number("booking_method_id")
    minutes, percentage, total = (record.number(name) for name in ("time", "percentage", "total_time"))
    if percentage is not None and (method == 2 or (method is None and minutes is None)):
        return "share", percentage / 100
    if total is not None and (method == 3 or minutes is None):
        return "total", total / 60
    if minutes is not None:
        return "per_day", minutes / 60
    return "share", 1.0 if kind == "absence" else 0.0  # without any amount: the whole day off, or nothing


def name_person(record: Record | None) -> str:
    """What a person is called."""
    if record is None:
        return "unknown"
    name = f"{record.text('first_name')} {record.text('last_name')}".strip()
    return name or record.text("email") or f"person {record.id}"


def name_work(service: Record | None) -> str:
    """Project and service; the deal where there is no project. Names of services repeat, so none stands by itself."""
    if service is None:
        return "unknown work"
    project, deal = service.one("deal", "project"), service.one("deal")
    over = (project.text("name") if project else "") or (deal.text("name") if deal else "")
    name = service.text("name") or f"service {service.id}"
    return f"{over}: {name}" if over else name


def name_absence(event: Record) -> str:
    """The kind of an absence."""
    return event.text("name") or f"absence {event.id}"


def read_note(text: str) -> str:
    """A note without its HTML."""
    return html.unescape(re.sub(r"<[^>]{0,500}>", " ", text)).strip()


def is_inactive(record: Record) -> bool:
    """Whether a person left, or was put away."""
    return bool(record.get("deactivated_at") or record.get("archived_at"))


def is_kind(record: Record, kind: str) -> bool:
    """Whether a record is of a kind of person as far as it tells by itself; filters may have been passed over."""
    for name in ("placeholder", "agent"):
        if record.get(name) is not None and bool(record.get(name)) != (kind == name):
            return False
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
