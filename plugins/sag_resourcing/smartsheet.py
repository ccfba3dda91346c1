"""The MCP server for Smartsheet Resource Management: users, assignments, availability, projects, time; read-only.

It owns the tools: what a model may ask for and what it is answered. How the API is asked is the work of
`smartsheet_api`, how hours are worked out that of `availability`. `sag-mcp-smartsheet` starts it over stdio.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from sag_resourcing.availability import Person, Window
from sag_resourcing.results import (
    Availability,
    Bookings,
    Result,
    TimeEntries,
    TimeEntry,
    answer,
    count_shown,
    list_availability,
    list_bookings,
    list_time_entries,
    shorten,
)
from sag_resourcing.server import (
    ByWhat,
    Connection,
    End,
    Id,
    Ids,
    Limit,
    MinFree,
    Query,
    Start,
    make_server,
    read_window,
    serve,
)
from sag_resourcing.smartsheet_api import (
    DAY,
    USER_TYPES,
    Assignable,
    Calendar,
    Json,
    name_user,
    read_all,
    read_assignables,
    read_assignment,
    read_day,
    read_person,
    read_rest,
    read_settings,
)
from sag_resourcing.upstream import (
    Call,
    Params,
    Upstream,
    Vendor,
    read_number,
)

DESCRIPTION = """\
MCP server for Smartsheet Resource Management over stdio; it only reads. Set in its environment:
  SMARTSHEET_RM_API_TOKEN  a token: Resource Management, Settings, Developer API (administrators only)
  SMARTSHEET_RM_BASE_URL   another address of the API
  SMARTSHEET_RM_WEEK       the account's working week, hours from Monday to Sunday. Default: 8,8,8,8,8,0,0"""

INSTRUCTIONS = """\
Resource planning in Smartsheet Resource Management, read-only. All amounts are hours, all days YYYY-MM-DD and included.
For "who is free" or "what are they booked on" one get_user_availability over the window answers both. Ids come from
list_users and list_projects; never make one up. Members that are left out of a result are zero or empty. A result with
"cut": true lists only a part: raise limit or ask for less. What `notes` say belongs into the answer."""


# --- what the tools answer ---


class UserLine(BaseModel):
    """A user in a list."""

    id: str
    name: str
    email: str | None = None
    role: str | None = None
    discipline: str | None = None
    location: str | None = None
    user_type: str | None = Field(default=None, description="What the user may do in Resource Management")
    hire_date: date | None = None
    termination_date: date | None = None
    archived: bool = False
    placeholder: bool = Field(default=False, description="A role to be filled, nobody yet")


class Users(Result):
    """Users, by name."""

    users: list[UserLine]


class ProjectLine(BaseModel):
    """A project or a phase in a list."""

    id: str
    name: str
    client: str | None = None
    code: str | None = None
    state: str | None = Field(default=None, description="Internal, Tentative or Confirmed")
    start: date | None = None
    end: date | None = None
    phase: str | None = Field(default=None, description="Of a phase: its name; `name` is the project's")
    parent_id: str | None = Field(default=None, description="Of a phase: the project's id")
    archived: bool = False


class Projects(Result):
    """Projects, by name; phases after their project."""

    projects: list[ProjectLine]


# --- the tools ---


class Smartsheet:
    """The tools. Their docstrings are what a model reads."""

    def __init__(self, connection: Connection, base_url: str, week: tuple[float, ...]) -> None:
        self._connection, self._base_url, self._week = connection, base_url, week

    async def list_users(
        self,
        query: Annotated[
            Query, Field(description="Part of a name, email, role, discipline or location; leave out for everybody")
        ] = None,
        include_archived: Annotated[bool, Field(description="People who are archived too")] = False,
        include_placeholders: Annotated[bool, Field(description="Roles to be filled too")] = False,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Users]:
        """List users of Smartsheet Resource Management with their ids, roles and disciplines, by name.

        Use it to turn a name into a user id for the other tools. Two users may have the same name: compare email and
        role, and ask the user if in doubt. Hours are in get_user_availability.
        """
        call = self._connection.open_call()
        params = [("with_archived", "true")] if include_archived else []
        params += [("include_placeholders", "true")] if include_placeholders else []
        found = [
            UserLine(
                id=str(user.get("id")),
                name=name_user(user),
                email=user.get("email") or None,
                role=user.get("role") or None,
                discipline=user.get("discipline") or None,
                location=user.get("location") or None,
                user_type=USER_TYPES.get(user.get("user_type_id") or 0),
                hire_date=read_day(user.get("hire_date")),
                termination_date=read_day(user.get("termination_date")),
                archived=bool(user.get("archived")),
                placeholder=_is_placeholder(user),
            )
            for user in await self._read(call, "/users", "users", [*params, ("sort_field", "created")])
            if _matches(user, query)
            and (include_archived or not user.get("archived"))
            and (include_placeholders or not _is_placeholder(user))
        ]
        found.sort(key=lambda u: (u.name, u.id))
        return answer(Users(**count_shown(found, limit), users=found[:limit]))

    async def get_user_availability(
        self,
        start: Start,
        end: End,
        user_ids: Annotated[Ids, Field(description="From list_users; leave out for all users")] = None,
        query: Annotated[
            Query, Field(description="Only users with this in their name, email, role, discipline or location")
        ] = None,
        by: ByWhat = "auto",
        count_tentative: Annotated[
            bool, Field(description="Take work on tentative projects off what is free; it is told as `tentative`")
        ] = True,
        min_free: MinFree = 0,
        limit: Annotated[Limit, Field(description="How many people are listed at most")] = 30,
    ) -> Annotated[CallToolResult, Availability]:
        """Tell who of Smartsheet Resource Management has how many hours free in a window, and what they are booked on.

        Per person: totals; day by day (or week by week) capacity, holidays, leave, booked hours with project and phase,
        free and overbooked hours; the assignments behind it; and notes about what is uncertain. People with the most
        free hours come first. capacity - holiday - absence - booked (- tentative, where it counts) = free - overbooked;
        overbooked days are never netted with free ones. Capacity is a person's own availability, else the working week
        that this server is set to.
        """
        window, call = read_window(start, end), self._connection.open_call()
        embed = [("fields", "availabilities")]
        if user_ids:
            users = [await call.get(f"/users/{id}", embed) for id in dict.fromkeys(user_ids)]
        else:
            users = await self._read(call, "/users", "users", [*embed, ("sort_field", "created")])
            users = [
                user
                for user in users
                if not user.get("archived") and not _is_placeholder(user) and _matches(user, query)
            ]
        calendar = await self._read_calendar(call)
        people = [await self._read_person(call, user, calendar) for user in users]
        people = [person for person in people if user_ids or any(map(person.employed, window))]
        assignments = await self._read_assignments(call, window, user_ids) if people else []
        assignables = await self._read_assignables(call) if assignments else {}
        return answer(
            list_availability(
                people,
                [read_assignment(item, assignables) for item in assignments],
                window,
                by=by,
                count_tentative=count_tentative,
                min_free=min_free,
                limit=limit,
                notes=[] if people else ["There is nobody to look at: no user matches."],
            )
        )

    async def list_projects(
        self,
        query: Annotated[Query, Field(description="Part of a name, client or project code; leave out for all")] = None,
        states: Annotated[
            list[Literal["Internal", "Tentative", "Confirmed"]] | None, Field(description="Leave out for all")
        ] = None,
        include_phases: Annotated[bool, Field(description="The phases of projects too")] = False,
        include_archived: Annotated[bool, Field(description="Archived projects too")] = False,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Projects]:
        """List projects of Smartsheet Resource Management with their ids, clients, states and dates, by name.

        Use it to turn a project's name into a project id. Who is planned on one is told by list_assignments, who worked
        on it by get_time_entries.
        """
        call = self._connection.open_call()
        params = [("fields", "project_state"), ("sort_field", "created")]
        params += [("with_phases", "true")] if include_phases else []
        params += [("with_archived", "true")] if include_archived else []
        params += [("filter_field", "project_state"), ("filter_list", ",".join(states))] if states else []
        found = [
            ProjectLine(
                id=str(item.get("id")),
                name=str(item.get("name") or f"project {item.get('id')}"),
                client=item.get("client") or None,
                code=item.get("project_code") or None,
                state=item.get("project_state") or None,
                start=read_day(item.get("starts_at")),
                end=read_day(item.get("ends_at")),
                phase=item.get("phase_name") or None,
                parent_id=str(item["parent_id"]) if item.get("parent_id") else None,
                archived=bool(item.get("archived")),
            )
            for item in await self._read(call, "/projects", "projects", params)
            if (include_archived or not item.get("archived"))
            and (include_phases or not item.get("parent_id"))
            and (not states or item.get("project_state") in states)
            and _contains(query, item, "name", "client", "project_code", "phase_name")
        ]
        found.sort(key=lambda p: (p.name, p.parent_id or p.id, p.phase or "", p.id))
        return answer(Projects(**count_shown(found, limit), projects=found[:limit]))

    async def list_assignments(
        self,
        start: Start,
        end: End,
        user_ids: Annotated[Ids, Field(description="From list_users; leave out for everybody")] = None,
        project_id: Annotated[
            Id | None, Field(description="From list_projects; only work on this project and its phases")
        ] = None,
        kind: Annotated[Literal["all", "work", "absence"], Field(description="`absence` is leave")] = "all",
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Bookings]:
        """List assignments of Smartsheet Resource Management that overlap a window: work on projects and phases, leave.

        `hours` are those that fall into the window, on working days of the person; public holidays are none.
        `planned_as` says how the assignment was entered. Those of placeholders, roles to be filled, are listed too. To
        see what is left free, use get_user_availability.
        """
        window, call = read_window(start, end), self._connection.open_call()
        items = await self._read_assignments(call, window, user_ids, project_id)
        assignables = await self._read_assignables(call) if items else {}
        kept = [
            booking
            for item in items
            if (booking := read_assignment(item, assignables)).kind == kind or kind == "all"
            if project_id in (None, booking.project, str(item.get("assignable_id")))
        ]
        people: dict[str, Person] = {}
        if kept:
            calendar = await self._read_calendar(call)
            wanted = {booking.person for booking in kept}
            embed = [("fields", "availabilities"), ("with_archived", "true"), ("include_placeholders", "true")]
            for user in await self._read(call, "/users", "users", embed):
                if str(user.get("id")) in wanted:
                    person = await self._read_person(call, user, calendar)
                    people[person.id] = person
            for id in wanted - people.keys():
                people[id] = read_person({"id": id}, [], calendar)
        return answer(list_bookings(kept, people.__getitem__, window, limit=limit))

    async def get_time_entries(
        self,
        start: Start,
        end: End,
        user_ids: Annotated[Ids, Field(description="From list_users; leave out for everybody")] = None,
        project_id: Annotated[
            Id | None, Field(description="From list_projects; this project and its phases; leave out for all")
        ] = None,
        include_suggestions: Annotated[
            bool, Field(description="Hours that the schedule suggests and nobody has confirmed, as `suggested`")
        ] = False,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, TimeEntries]:
        """List time that was worked, as tracked in Smartsheet Resource Management, with sums by person and by project.

        This is the past; what is planned is told by list_assignments. Sums are over all entries of the window, those
        that are not listed too, and have no suggestions in them. Leave counts as its own heading.
        """
        window, call = read_window(start, end), self._connection.open_call()
        params = [("from", str(start - DAY)), ("to", str(end + DAY)), ("sort_field", "created")]
        params += [("with_suggestions", "true")] if include_suggestions else []
        paths = _of_users("/time_entries", user_ids)
        items = [item for path in paths for item in await self._read(call, path, "time entries", params)]
        assignables = await self._read_assignables(call) if items else {}
        users = {}
        if items:
            everybody = [("with_archived", "true"), ("include_placeholders", "true")]
            users = {str(user.get("id")): user for user in await self._read(call, "/users", "users", everybody)}
        entries: list[TimeEntry] = []
        projects: list[str] = []
        for item in items:
            day, user_id, of = read_day(item.get("date")), str(item.get("user_id")), str(item.get("assignable_id"))
            target = assignables.get(of) or Assignable(of, f"unknown project {of}", project=of)
            suggested = bool(item.get("is_suggestion"))
            if (
                day is None
                or not window.overlaps(day, day)
                or (user_ids and user_id not in user_ids)
                or (project_id and project_id not in (target.project, of))
                or (suggested and not include_suggestions)
            ):
                continue
            over = assignables.get(target.project or "")
            projects.append(over.name if over else target.name)
            entries.append(
                TimeEntry(
                    id=str(item.get("id")),
                    date=day,
                    person=name_user(users.get(user_id) or {"id": user_id}),
                    person_id=user_id,
                    what=f"{target.name}, {item['task']}" if item.get("task") else target.name,
                    hours=0.0 if suggested else read_number(item.get("hours")) or 0.0,
                    suggested=read_number(item.get("scheduled_hours")) or 0.0 if suggested else None,
                    status="suggested" if suggested else None,
                    project_id=target.project,
                    note=shorten(item.get("notes")),
                )
            )
        return answer(list_time_entries(entries, projects, window, limit=limit))

    async def _read(self, call: Call, path: str, what: str, params: Params = ()) -> list[Json]:
        return await read_all(call, self._base_url, path, what, params)

    async def _read_calendar(self, call: Call) -> Calendar:
        holidays = {
            day: str(item.get("name") or "Holiday")
            for item in await self._read(call, "/holidays", "holidays")
            if (day := read_day(item.get("date"))) is not None
        }
        return Calendar(self._week, holidays)

    async def _read_person(self, call: Call, user: Json, calendar: Calendar) -> Person:
        """A user with all of their availabilities, whose list within the user may be cut off."""
        nested = user.get("availabilities")
        if isinstance(nested, dict):
            rows = await read_rest(call, self._base_url, nested, "availabilities")
        elif _is_placeholder(user):
            rows = []
        else:
            rows = await self._read(call, f"/users/{user.get('id')}/availabilities", "availabilities")
        return read_person(user, rows, calendar)

    async def _read_assignables(self, call: Call) -> dict[str, Assignable]:
        params = [("with_phases", "true"), ("with_archived", "true"), ("fields", "project_state")]
        projects = await self._read(call, "/projects", "projects", [*params, ("sort_field", "created")])
        return read_assignables(projects, await self._read(call, "/leave_types", "leave types"))

    async def _read_assignments(
        self, call: Call, window: Window, user_ids: Sequence[str] | None, project_id: str | None = None
    ) -> list[Json]:
        # `from` and `to` are "ends after" and "starts before", so a day more on both sides.
        params = [("from", str(window.start - DAY)), ("to", str(window.end + DAY)), ("with_phases", "true")]
        paths = [f"/projects/{project_id}/assignments"] if project_id else _of_users("/assignments", user_ids)
        items = [item for path in paths for item in await self._read(call, path, "assignments", params)]
        return [
            item for item in items if _overlaps(item, window) and (not user_ids or str(item["user_id"]) in user_ids)
        ]


def _of_users(path: str, user_ids: Sequence[str] | None) -> list[str]:
    """Where to read of some users: at each of a few, else at everybody's."""
    few = list(dict.fromkeys(user_ids or []))
    return [f"/users/{id}{path}" for id in few] if 1 <= len(few) <= 5 else [path]


def _overlaps(item: Json, window: Window) -> bool:
    start, end = read_day(item.get("starts_at")), read_day(item.get("ends_at"))
    return start is None or end is None or window.overlaps(start, end)


def _is_placeholder(user: Json) -> bool:
    return "placeholder" in str(user.get("type") or "").lower()


def _matches(user: Json, query: str | None) -> bool:
    named = ("display_name", "first_name", "last_name", "title", "email", "role", "discipline", "location")
    return _contains(query, user, *named)


def _contains(query: str | None, item: Json, *members: str) -> bool:
    """Whether each word of a query stands somewhere in the members, case and accents left aside."""
    text = _fold(" ".join(str(item.get(name) or "") for name in members))
    return all(word in text for word in _fold(query or "").split())


def _fold(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def build(env: Mapping[str, str], connect: Callable[[Vendor], Upstream] = Upstream) -> MCPServer[None]:
    """The server, set up from an environment."""
    settings = read_settings(env)
    connection = Connection(settings.vendor, connect)
    base_url = "" if isinstance(settings.vendor, str) else settings.vendor.base_url
    tools = Smartsheet(connection, base_url, settings.week)
    return make_server(
        "smartsheet",
        "Smartsheet Resource Management",
        INSTRUCTIONS,
        connection,
        {
            "List users": tools.list_users,
            "Who is free": tools.get_user_availability,
            "List projects": tools.list_projects,
            "List assignments": tools.list_assignments,
            "Worked time": tools.get_time_entries,
        },
    )


def main() -> None:
    """Run over stdio."""
    serve(build, DESCRIPTION)


if __name__ == "__main__":
    main()
