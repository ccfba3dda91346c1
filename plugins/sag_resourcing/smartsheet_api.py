"""What is particular to the API of Smartsheet Resource Management: its pages, nested pages, units and refusals.

It reads whole collections, and turns users and assignments into the people and bookings of `availability`. It is
another product than Smartsheet 2.0, the one of sheets, with other tokens; once it was called 10,000ft. The tools stand
above it, in `smartsheet`; below is `upstream`, which does the asking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import httpx
from mcp.server.mcpserver.exceptions import ToolError

from sag_resourcing.availability import Booking, Mode, Pattern, Person
from sag_resourcing.upstream import (
    ITEMS,
    Answer,
    Call,
    Params,
    Vendor,
    find_fault,
    find_setting,
    read_http_date,
    read_number,
    read_retry_after,
    too_many,
)

Json = dict[str, Any]

NAME = "Smartsheet Resource Management"
BASE_URL = "https://api.rm.smartsheet.com/api/v1"
PAGE_SIZE = 1000
LIMIT_WAIT_S = 10.0
WEEK = "8,8,8,8,8,0,0"
DAY = timedelta(days=1)
USER_TYPES = {
    0: "none",
    1: "administrator",
    2: "portfolio editor",
    3: "reporter",
    4: "viewer",
    5: "contractor",
    7: "people scheduler",
    8: "project editor",
}


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        vendor: How to reach the API, or what is wrong with the settings.
        week: Working hours of those who have none of their own, Monday first.
    """

    vendor: Vendor | str
    week: tuple[float, ...]


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings in an environment; faults become text, since a server without settings starts all the same."""
    token = find_setting(env, "SMARTSHEET_RM_API_TOKEN", "SMARTSHEET_RM_TOKEN", "RM_API_TOKEN")
    base_url = (find_setting(env, "SMARTSHEET_RM_BASE_URL") or BASE_URL).rstrip("/")
    given = find_setting(env, "SMARTSHEET_RM_WEEK") or WEEK
    fault = find_fault(base_url, "SMARTSHEET_RM_BASE_URL", token, "SMARTSHEET_RM_API_TOKEN")
    week = tuple(hours for part in given.split(",") if (hours := read_number(part)) is not None and 0 <= hours <= 24)
    if len(week) != 7 or given.count(",") != 6:
        fault = fault or f"SMARTSHEET_RM_WEEK has to be seven numbers of hours from Monday to Sunday, such as {WEEK}"
    if fault is not None:
        return Settings(fault, ())
    vendor = Vendor(
        name=NAME,
        base_url=base_url,
        headers={"auth": token, "Accept": "application/json"},
        secrets=(token,),
        read_wait=read_wait,
        default_wait_s=LIMIT_WAIT_S,
        explain=lambda refused: explain(refused, base_url),
        base_variable="SMARTSHEET_RM_BASE_URL",
    )
    return Settings(vendor, week)


def read_wait(headers: httpx.Headers, now: float) -> float | None:
    """How many seconds until `X-RateLimit-Reset`, which is a moment in epoch seconds and no delay.

    The server's own clock, its `Date`, says what time it is, since this machine's may be wrong.
    """
    reset = read_number(headers.get("x-ratelimit-reset"))
    if reset is None:
        return read_retry_after(headers, now)
    at = read_http_date(headers.get("date", ""))
    return max(1.0, reset - (now if at is None else at))


def explain(refused: Answer, base_url: str) -> str:
    """What a refusal means and what to do. The body may be empty."""
    body = refused.body if isinstance(refused.body, dict) else {}
    said = f" It says: {body['message']}" if body.get("message") else ""
    host = httpx.URL(base_url).host
    if "errorCode" in body or "refId" in body:
        return (
            f"{host} is Smartsheet 2.0, the API of sheets, which knows no Resource Management token. Set "
            f"SMARTSHEET_RM_BASE_URL to {BASE_URL}, or leave it out.{said}"
        )
    if refused.status == 401:
        return (
            "Resource Management refuses the token. It has to be one of Resource Management itself (its Settings, "
            "Developer API, administrators only) in SMARTSHEET_RM_API_TOKEN; a token of Smartsheet 2.0, the API of "
            f"sheets, does not work here.{said}"
        )
    if refused.status == 403:
        return f"The token may not see this. Resource Management gives tokens to administrators only.{said}"
    if refused.status == 404:
        return (
            f"Resource Management has nothing at {refused.path}. Ids come from list_users and list_projects; where "
            f"those fail too, SMARTSHEET_RM_BASE_URL is wrong.{said}"
        )
    if refused.status in (400, 422):
        return f"Resource Management refuses the request ({refused.status}). Change the arguments.{said}"
    return f"Resource Management refuses the request (HTTP {refused.status}).{said}"


# --- reading ---


async def read_all(call: Call, base_url: str, path: str, what: str, params: Params = ()) -> list[Json]:
    """All items of a collection, page by page; one that moved to the next page meanwhile is there once.

    Args:
        what: What they are, in the plural, for errors.

    Raises:
        ToolError: It could not be read, or there are more than 10,000.
    """
    page = await call.get(path, [*params, ("per_page", str(PAGE_SIZE))])
    return await read_rest(call, base_url, page, what)


async def read_rest(call: Call, base_url: str, page: Any, what: str) -> list[Json]:
    """The items of a first page, nested or not, and of those that follow it."""
    found: dict[Any, Json] = {}
    seen: set[str] = set()
    while True:
        data = page.get("data") if isinstance(page, dict) else None
        for item in data if isinstance(data, list) else []:
            if isinstance(item, dict):
                found.setdefault(item.get("id", len(found)), item)
        paging = page.get("paging") if isinstance(page, dict) else None
        following = paging.get("next") if isinstance(paging, dict) else None
        if not following:
            return list(found.values())
        if len(found) > ITEMS or len(seen) > ITEMS:
            raise too_many(NAME, what)
        url = join_next(base_url, str(following))
        if url in seen:
            raise ToolError(f"{NAME} sends the same page of {what} again and again. Try again later.")
        seen.add(url)
        page = await call.get(url)


def join_next(base_url: str, following: str) -> str:
    """The address of a next page, which is given as a path that begins with `/api/v1`.

    It is joined to the host; where the API stands below a path of its own, to that.

    Raises:
        ToolError: It leads to another host, which must not get the token.
    """
    base = httpx.URL(base_url)
    prefix = base.path.rstrip("/").removesuffix("/api/v1")
    if prefix and following.startswith("/") and not following.startswith(base.path):
        following = prefix + following
    try:
        url = base.join(following)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if (url.scheme, url.host, url.port) != (base.scheme, base.host, base.port):
        raise ToolError(f"{NAME} names a next page on another host, which is not followed.")
    return str(url)


@dataclass(frozen=True)
class Assignable:
    """What time can be assigned to: a project, a phase of one, or a kind of leave.

    Attributes:
        project: The project's id; of a phase its parent's.
    """

    id: str
    name: str
    leave: bool = False
    tentative: bool = False
    project: str | None = None


@dataclass(frozen=True)
class Calendar:
    """What holds for the whole account.

    Attributes:
        week: Working hours, Monday first.
        holidays: Names by day.
    """

    week: tuple[float, ...]
    holidays: Mapping[date, str] = field(default_factory=dict)


def read_person(user: Json, rows: Iterable[Json], calendar: Calendar) -> Person:
    """A user with their working patterns: their own availabilities, else the account's week.

    Args:
        rows: Their availabilities; `day0` is Sunday.
    """
    own = []
    for row in rows:
        hours = tuple(read_number(row.get(f"day{n}")) or 0.0 for n in (1, 2, 3, 4, 5, 6, 0))
        own.append(Pattern(hours, read_day(row.get("starts_at")), read_day(row.get("ends_at")), calendar.holidays))
    own.sort(key=lambda p: p.start or date.min)
    overlap = any(a.end is None or b.start is None or b.start <= a.end for a, b in pairwise(own))
    return Person(
        str(user.get("id")),
        name_user(user),
        ", ".join(str(user[name]) for name in ("role", "discipline") if user.get(name)),
        [*own, Pattern(calendar.week, holidays=calendar.holidays)],
        first_day=read_day(user.get("hire_date")),
        last_day=read_day(user.get("termination_date")),
        notes=["Availabilities in Resource Management overlap; the one that starts last is taken."] if overlap else [],
    )


def read_assignment(item: Json, assignables: Mapping[str, Assignable]) -> Booking:
    """An assignment as a booking. `percent` is a part of one: 0.25 is a quarter.

    Raises:
        ToolError: It has no days.
    """
    id, of = str(item.get("id")), str(item.get("assignable_id"))
    start, end = read_day(item.get("starts_at")), read_day(item.get("ends_at"))
    if start is None or end is None or end < start:
        raise ToolError(f"{NAME} sends assignment {id} without the days that it lasts.")
    target = assignables.get(of) or Assignable(of, f"unknown project {of}", project=of)
    mode, amount = _read_amount(item, target.leave)
    return Booking(
        id=id,
        person=str(item.get("user_id")),
        start=start,
        end=end,
        mode=mode,
        amount=amount,
        what=target.name,
        kind="absence" if target.leave else "work",
        tentative=target.tentative,
        project=target.project,
        note=str(item.get("note") or item.get("description") or ""),
    )


def _read_amount(item: Json, leave: bool) -> tuple[Mode, float]:
    modes: dict[str, tuple[Mode, str]] = {
        "percent": ("share", "percent"),
        "hours_per_day": ("per_day", "hours_per_day"),
        "fixed": ("total", "fixed_hours"),
    }
    named = item.get("allocation_mode")
    for name in [named] if named in modes else list(modes):
        mode, member = modes[name]
        if (amount := read_number(item.get(member))) is not None:
            return mode, amount
    return "share", 1.0 if leave else 0.0  # without any amount: the whole day off, or nothing


def read_assignables(projects: Iterable[Json], leave_types: Iterable[Json]) -> dict[str, Assignable]:
    """What assignments may be for, by id; a phase is named after its project."""
    found = list(projects)
    parents = {str(item.get("id")): item for item in found}
    assignables: dict[str, Assignable] = {}
    for item in found:
        id = str(item.get("id"))
        parent = parents.get(str(item.get("parent_id")), item) if item.get("parent_id") else item
        name = str(parent.get("name") or item.get("name") or f"project {id}")
        if item.get("parent_id"):
            name += f": {item.get('phase_name') or item.get('name') or f'phase {id}'}"
        state = item.get("project_state") or parent.get("project_state")
        project = str(item.get("parent_id") or id)
        assignables[id] = Assignable(id, name, tentative=state == "Tentative", project=project)
    for item in leave_types:
        id = str(item.get("id"))
        assignables[id] = Assignable(id, str(item.get("name") or f"leave {id}"), leave=True)
    return assignables


def read_day(given: Any) -> date | None:
    """A day, the time of day left out; None for what is none."""
    try:
        return date.fromisoformat(str(given)[:10])
    except ValueError:
        return None


def name_user(user: Json) -> str:
    """What a user or a placeholder is called."""
    name = f"{user.get('first_name') or ''} {user.get('last_name') or ''}".strip()
    shown = user.get("display_name") or name or user.get("title") or user.get("email")
    return str(shown or f"user {user.get('id')}")
