"""The MCP server for Productive.io: people, bookings, availability, projects and time entries, read-only.

It owns the tools: what a model may ask for and what it is answered. How Productive is asked is the work of
`productive_api`, how hours are worked out that of `availability`. `sag-mcp-productive` starts it over stdio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from sag_resourcing.jsonapi import Record
from sag_resourcing.productive_api import (
    BOOKED_ON,
    is_inactive,
    is_kind,
    name_person,
    name_work,
    read_all,
    read_bookings,
    read_holidays,
    read_note,
    read_one,
    read_person,
    read_settings,
)
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
from sag_resourcing.upstream import Upstream, Vendor

DESCRIPTION = """\
MCP server for Productive.io over stdio; it only reads. Set in its environment:
  PRODUCTIVE_API_TOKEN       a token: Productive, Settings, API integrations
  PRODUCTIVE_ORG_ID          the organization's number (also PRODUCTIVE_ORGANIZATION_ID)
  PRODUCTIVE_BASE_URL        another address of the API
  PRODUCTIVE_PRESENT_EVENTS  absence types, by name or id and with commas between, that take no working time;
                             remote work never does. Default: Working from home, Remote work"""

INSTRUCTIONS = """\
Resource planning in Productive.io, read-only. All amounts are hours, all days YYYY-MM-DD and included.
For "who is free" or "what are they booked on" one get_availability over the window answers both. Ids come from
list_people and list_projects; never make one up. Members that are left out of a result are zero or empty. A result with
"cut": true lists only a part: raise limit or ask for less. What `notes` say belongs into the answer."""


# --- what the tools answer ---


class PersonLine(BaseModel):
    """A person in a list."""

    id: str
    name: str
    title: str | None = None
    email: str | None = None
    company: str | None = None
    tags: list[str] = []
    inactive: bool = False


class People(Result):
    """People, by name."""

    people: list[PersonLine]


class WorkWeek(BaseModel):
    """Working hours for a span of time."""

    start: date | None = None
    end: date | None = None
    hours: list[float] = Field(description="Monday to Sunday")
    second_week: list[float] | None = Field(default=None, description="Where the weeks alternate: every second week")
    hours_per_week: float = Field(description="On average")


class PersonDetails(BaseModel):
    """A person in full. Members left out are empty."""

    id: str
    name: str
    nickname: str | None = None
    title: str | None = None
    email: str | None = None
    company: str | None = None
    manager: str | None = None
    manager_id: str | None = None
    holiday_calendar: str | None = None
    tags: list[str] = []
    joined_at: str | None = None
    inactive: bool = False
    placeholder: bool = False
    work_weeks: list[WorkWeek] = Field(default=[], description="Working hours; none are known where it is left out")
    notes: list[str] = []


class ProjectLine(BaseModel):
    """A project in a list."""

    id: str
    name: str
    number: str | None = None
    company: str | None = None
    manager: str | None = None
    internal: bool = False
    last_activity: str | None = None


class Projects(Result):
    """Projects, by name."""

    projects: list[ProjectLine]


class Assignment(BaseModel):
    """Somebody is a member of a project."""

    person: str
    person_id: str
    project: str
    project_id: str


class Assignments(Result):
    """Who is a member of which project, whether anything is booked or not."""

    assignments: list[Assignment]


# --- the tools ---


class Productive:
    """The tools. Their docstrings are what a model reads."""

    def __init__(self, connection: Connection, present_events: frozenset[str]) -> None:
        self._connection, self._present = connection, present_events

    async def list_people(
        self,
        query: Annotated[Query, Field(description="Part of a name or email; leave out for everybody")] = None,
        kind: Annotated[
            Literal["user", "placeholder", "contact", "agent"],
            Field(
                description="`user`: who works here; `placeholder`: a role to be filled; `contact`: a client's person"
            ),
        ] = "user",
        include_inactive: Annotated[bool, Field(description="Deactivated and archived people too")] = False,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, People]:
        """List people of Productive with their ids, titles, companies and tags, by name.

        Use it to turn a name into a person id for the other tools. Two people may have the same name: compare title and
        email, and ask the user if in doubt. Hours are in get_availability, the working week in get_person_details.
        """
        call = self._connection.open_call()
        filters = [("person_type", {"user": "1", "contact": "2", "placeholder": "3", "agent": "4"}[kind])]
        filters += [] if include_inactive else [("status", "1")]
        filters += [("query", query)] if query else []
        records = await read_all(call, "/people", "people", filters, include="company", sort="name")
        found = [
            PersonLine(
                id=record.id,
                name=name_person(record),
                title=record.text("title") or None,
                email=record.text("email") or None,
                company=_name(record.one("company")),
                tags=_tags(record),
                inactive=is_inactive(record),
            )
            for record in records
            if is_kind(record, kind) and (include_inactive or not is_inactive(record))
        ]
        found.sort(key=lambda p: (p.name, p.id))
        return answer(People(**count_shown(found, limit), people=found[:limit]))

    async def get_person_details(
        self, person_id: Annotated[Id, Field(description="From list_people")]
    ) -> Annotated[CallToolResult, PersonDetails]:
        """Tell everything about one person of Productive: contact, manager, holiday calendar, and the working week.

        `work_weeks` are hours per weekday, Monday first, each for a span of time; part-time people have zeros or small
        numbers there. What is booked is told by list_bookings, what is free by get_availability.
        """
        call = self._connection.open_call()
        record = await read_one(call, f"/people/{person_id}", "company,manager,holiday_calendar")
        person = read_person(record, {})
        manager = record.one("manager")
        details = PersonDetails(
            id=record.id,
            name=person.name,
            nickname=record.text("nickname") or None,
            title=person.title or None,
            email=record.text("email") or None,
            company=_name(record.one("company")),
            manager=name_person(manager) if manager else None,
            manager_id=manager.id if manager else None,
            holiday_calendar=_name(record.one("holiday_calendar")),
            tags=_tags(record),
            joined_at=record.text("joined_at")[:10] or None,
            inactive=is_inactive(record),
            placeholder=bool(record.get("placeholder")),
            work_weeks=[
                WorkWeek(
                    start=p.start,
                    end=p.end,
                    hours=list(p.hours[:7]),
                    second_week=list(p.hours[7:]) if p.alternates else None,
                    hours_per_week=round(sum(p.hours) * 7 / len(p.hours), 2),
                )
                for p in person.patterns
            ],
            notes=list(person.notes) or ([] if person.patterns else ["No working hours are set in Productive."]),
        )
        return answer(details)

    async def list_bookings(
        self,
        start: Start,
        end: End,
        person_ids: Annotated[Ids, Field(description="From list_people; leave out for everybody")] = None,
        project_id: Annotated[Id | None, Field(description="From list_projects; only work on this project")] = None,
        kind: Annotated[
            Literal["all", "work", "absence"], Field(description="`absence` has working from home and its like too")
        ] = "all",
        include_drafts: Annotated[bool, Field(description="Tentative bookings too; they are marked")] = True,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Bookings]:
        """List bookings of Productive that overlap a window: work on a project's service, and time off.

        `hours` are those that fall into the window, on working days of the person; public holidays are none.
        `planned_as` says how the booking was entered. Canceled and rejected bookings are left out. To see what is left
        free, use get_availability.
        """
        window, call = read_window(start, end), self._connection.open_call()
        filters = [("person_id", ",".join(person_ids))] if person_ids else []
        filters += [("project_id", project_id)] if project_id else []
        records, bookings = await read_bookings(call, window, filters, self._present, drafts=include_drafts)
        kept = [
            booking
            for booking in bookings
            if (not person_ids or booking.person in person_ids)
            and (project_id is None or booking.project == project_id)
            and (kind == "all" or (booking.kind == "work") == (kind == "work"))
        ]
        calendars = await read_holidays(call, window, kept)
        people = {p.id: p for record in records if (p := record.one("person")) is not None}
        read = {id: read_person(people[id], calendars) for id in {booking.person for booking in kept}}
        return answer(list_bookings(kept, read.__getitem__, window, limit=limit))

    async def get_availability(
        self,
        start: Start,
        end: End,
        person_ids: Annotated[Ids, Field(description="From list_people; leave out for all active people")] = None,
        query: Annotated[Query, Field(description="Only people with this in their name or email")] = None,
        by: ByWhat = "auto",
        count_tentative: Annotated[
            bool, Field(description="Take drafts off what is free; they are told as `tentative` either way")
        ] = False,
        min_free: MinFree = 0,
        limit: Annotated[Limit, Field(description="How many people are listed at most")] = 30,
    ) -> Annotated[CallToolResult, Availability]:
        """Tell who of Productive has how many hours free in a window, and what each person is booked on.

        Per person: totals; day by day (or week by week) capacity, holidays, time off, booked hours with what they are
        for, free and overbooked hours; the bookings behind it; and notes about what is uncertain. People with the most
        free hours come first. capacity - holiday - absence - booked = free - overbooked; overbooked days are never
        netted with free ones. Working from home is not time off.
        """
        window, call = read_window(start, end), self._connection.open_call()
        if person_ids:
            chosen = [await read_one(call, f"/people/{id}", "holiday_calendar") for id in dict.fromkeys(person_ids)]
        else:
            filters = [("status", "1"), ("person_type", "1")] + ([("query", query)] if query else [])
            listed = await read_all(call, "/people", "people", filters, include="holiday_calendar", sort="name")
            chosen = [record for record in listed if is_kind(record, "user") and not is_inactive(record)]
        ids = [record.id for record in chosen]
        only = [("person_id", ",".join(ids))] if ids and (person_ids or query) and len(ids) <= 100 else []
        bookings = (await read_bookings(call, window, only, self._present, drafts=True))[1] if ids else []
        bookings = [booking for booking in bookings if booking.person in ids]
        calendars = await read_holidays(call, window, bookings)
        notes = [] if ids else ["There is nobody to look at: no active person matches."]
        if len(ids) > 1 and len({booking.person for booking in bookings}) < 2:
            notes.append(
                "At most one person's bookings are visible. If the token may not see those of others, they only seem "
                "free; a manager's token sees them."
            )
        return answer(
            list_availability(
                [read_person(record, calendars) for record in chosen],
                bookings,
                window,
                by=by,
                count_tentative=count_tentative,
                min_free=min_free,
                limit=limit,
                notes=notes,
            )
        )

    async def list_projects(
        self,
        query: Annotated[Query, Field(description="Part of a name; leave out for all")] = None,
        status: Annotated[Literal["active", "archived", "all"], Field(description="Which projects")] = "active",
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Projects]:
        """List projects of Productive with their ids, clients and managers, by name.

        Use it to turn a project's name into a project id. Who works on one is told by list_bookings (planned hours),
        list_project_assignments (members) and get_time_entries (worked hours).
        """
        call = self._connection.open_call()
        filters = [] if status == "all" else [("status", "1" if status == "active" else "2")]
        filters += [("query", query)] if query else []
        include = "company,project_manager"
        found = [
            ProjectLine(
                id=record.id,
                name=record.text("name") or f"project {record.id}",
                number=record.text("project_number") or record.text("number") or None,
                company=_name(record.one("company")),
                manager=name_person(manager) if (manager := record.one("project_manager")) else None,
                internal=record.number("project_type_id") == 1,
                last_activity=record.text("last_activity_at")[:10] or None,
            )
            for record in await read_all(call, "/projects", "projects", filters, include=include, sort="name")
        ]
        found.sort(key=lambda p: (p.name, p.id))
        return answer(Projects(**count_shown(found, limit), projects=found[:limit]))

    async def list_project_assignments(
        self,
        person_id: Annotated[Id | None, Field(description="From list_people: the projects of this person")] = None,
        project_id: Annotated[Id | None, Field(description="From list_projects: the people of this project")] = None,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, Assignments]:
        """List who is a member of which project of Productive.

        A member may see and track time on a project. That says nothing about planned hours: for those use list_bookings
        or get_availability.
        """
        call = self._connection.open_call()
        filters = [("person_id", person_id)] if person_id else []
        filters += [("project_id", project_id)] if project_id else []
        found = []
        for record in await read_all(
            call, "/project_assignments", "assignments", filters, include="person,project", sort="id"
        ):
            person, project = record.one("person"), record.one("project")
            if person is None or project is None:
                continue
            if person_id in (None, person.id) and project_id in (None, project.id):
                name = project.text("name") or f"project {project.id}"
                found.append(
                    Assignment(person=name_person(person), person_id=person.id, project=name, project_id=project.id)
                )
        found.sort(key=lambda a: (a.project, a.person, a.person_id))
        return answer(Assignments(**count_shown(found, limit), assignments=found[:limit]))

    async def get_time_entries(
        self,
        start: Start,
        end: End,
        person_ids: Annotated[Ids, Field(description="From list_people; leave out for everybody")] = None,
        project_id: Annotated[Id | None, Field(description="From list_projects; leave out for all")] = None,
        status: Annotated[
            Literal["approved", "unapproved", "rejected"] | None,
            Field(description="Leave out for all but rejected ones"),
        ] = None,
        limit: Limit = 200,
    ) -> Annotated[CallToolResult, TimeEntries]:
        """List time that was worked, as tracked in Productive, with sums by person and by project.

        This is the past; what is planned is told by list_bookings. Sums are over all entries of the window, those that
        are not listed too. Rejected entries count only where they are asked for.
        """
        window, call = read_window(start, end), self._connection.open_call()
        filters = [("after", str(start)), ("before", str(end))]
        filters += [("person_id", ",".join(person_ids))] if person_ids else []
        filters += [("project_id", project_id)] if project_id else []
        filters += [("status", {"approved": "1", "unapproved": "2", "rejected": "3"}[status])] if status else []
        entries: list[TimeEntry] = []
        projects: list[str] = []
        for record in await read_all(
            call, "/time_entries", "time entries", filters, include=f"person,{BOOKED_ON}", sort="date"
        ):
            person, day, service = record.one("person"), record.day("date"), record.one("service")
            project = record.one("service", "deal", "project")
            is_now = "rejected" if record.get("rejected") else "approved" if record.get("approved") else "unapproved"
            if (
                person is None
                or day is None
                or not window.overlaps(day, day)
                or (person_ids and person.id not in person_ids)
                or (project_id and (project is None or project.id != project_id))
                or (is_now != status if status else is_now == "rejected")
            ):
                continue
            projects.append((project.text("name") if project else "") or "no project")
            entries.append(
                TimeEntry(
                    id=record.id,
                    date=day,
                    person=name_person(person),
                    person_id=person.id,
                    what=name_work(service),
                    hours=(record.number("time") or 0.0) / 60,
                    billable=None if (b := record.number("billable_time")) is None else b / 60,
                    status=f"{is_now}, draft" if record.get("draft") else is_now,
                    project_id=project.id if project else None,
                    service_id=service.id if service else None,
                    note=shorten(read_note(record.text("note"))),
                )
            )
        return answer(list_time_entries(entries, projects, window, limit=limit))


def _name(record: Record | None) -> str | None:
    return (record.text("name") or None) if record else None


def _tags(record: Record) -> list[str]:
    tags = record.get("tag_list")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def build(env: Mapping[str, str], connect: Callable[[Vendor], Upstream] = Upstream) -> MCPServer[None]:
    """The server, set up from an environment."""
    settings = read_settings(env)
    connection = Connection(settings.vendor, connect)
    tools = Productive(connection, settings.present_events)
    return make_server(
        "productive",
        "Productive.io resource planning",
        INSTRUCTIONS,
        connection,
        {
            "List people": tools.list_people,
            "Person in detail": tools.get_person_details,
            "List bookings": tools.list_bookings,
            "Who is free": tools.get_availability,
            "List projects": tools.list_projects,
            "Members of projects": tools.list_project_assignments,
            "Worked time": tools.get_time_entries,
        },
    )


def main() -> None:
    """Run over stdio."""
    serve(build, DESCRIPTION)


if __name__ == "__main__":
    main()
