"""A fake of Productive's API v2: JSON:API with its odd corners, over a week that can be worked out by hand.

What it does as the real one does: relationships without an id unless they are named in `include`, `total_pages: 0` for
nothing, availabilities as JSON in a string, drafts only where asked for, unknown filters passed over, unknown sorts
refused, words instead of numbers in `errors[].status`. It is stricter in one point that nobody knows: bookings have to
end after `after` and start before `before`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from tests.resourcing.fakes import Asked, Fake, Json, Scripted, main

TOKEN = "productive-token-0123456789"
ORGANIZATION = "77"
SORTS = {
    "people": {"name", "email", "title", "joined_at", "last_seen_at"},
    "bookings": {"started_on", "draft", "last_activity_at"},
    "projects": {"name", "created_at"},
    "time_entries": {"date"},
    "holidays": {"date"},
    "project_assignments": set(),
}
SLUGS = {400: "unprocessable_content", 401: "unauthorized", 403: "forbidden", 404: "not_found", 415: "415"}

Dataset = dict[str, list[Json]]


def item(type: str, id: str, attributes: Json, **related: tuple[str, str] | None) -> Json:
    """A resource; what it is related to is given as (type, id)."""
    return {"type": type, "id": id, "attributes": attributes, "related": related}


def person(id: str, first: str, last: str, title: str, availabilities: list[Any], kind: int = 1, **more: Any) -> Json:
    attributes = {
        "first_name": first,
        "last_name": last,
        "nickname": None,
        "email": f"{first.lower()}@example.test",
        "title": title,
        "tag_list": [],
        "is_user": kind == 1,
        "placeholder": kind == 3,
        "agent": kind == 4,
        "joined_at": "2026-01-05",
        "deactivated_at": None,
        "archived_at": None,
        "availabilities": json.dumps(availabilities),
        "person_type": kind,
    } | more
    return item(
        "people",
        id,
        attributes,
        company=("companies", "40"),
        manager=None if id == "12" else ("people", "12"),
        holiday_calendar=("holiday_calendars", "65416"),
    )


def booking(
    id: str,
    whose: str,
    start: str,
    end: str,
    *,
    minutes: int | None = None,
    percentage: int | None = None,
    total: int | None = None,
    days: int | None = None,
    service: str | None = None,
    event: str | None = None,
    **more: Any,
) -> Json:
    attributes = {
        "started_on": start,
        "ended_on": end,
        "booking_method_id": 1 if minutes is not None else 2 if percentage is not None else 3,
        "time": minutes,
        "percentage": percentage,
        "total_time": total,
        "total_working_days": days,
        "note": None,
        "draft": False,
        "approved": True,
        "rejected": False,
        "canceled": False,
    } | more
    return item(
        "bookings",
        id,
        attributes,
        person=("people", whose),
        service=("services", service) if service else None,
        event=("events", event) if event else None,
        approver=None,
    )


def entry(id: str, whose: str, day: str, minutes: int, service: str, **more: Any) -> Json:
    attributes = {
        "date": day,
        "time": minutes,
        "billable_time": minutes,
        "note": None,
        "approved": False,
        "rejected": False,
        "draft": False,
    } | more
    return item("time_entries", id, attributes, person=("people", whose), service=("services", service))


FULL = [8, 8, 8, 8, 8, 0, 0]


def make_dataset() -> Dataset:
    """Six active people around the week of Monday, 14 September 2026; Wednesday is a holiday in calendar 65417."""
    return {
        "people": [
            person("12", "Ana", "Berg", "Designer", [["2026-01-05", None, FULL * 2, 65416]], tag_list=["ux"]),
            # A fortnight whose weeks differ; the pattern starts on a Tuesday.
            person(
                "13",
                "Ben",
                "Dahl",
                "Developer",
                [["2026-09-01", None, [8, 8, 8, 8, 0, 0, 0, 8, 8, 0, 0, 0, 0, 0], 65417]],
            ),
            # An older record with seven numbers; part-time from Wednesday on.
            person(
                "14",
                "Cara",
                "Lind",
                "Designer",
                [
                    ["2026-01-01", "2026-09-15", FULL, 65416],
                    ["2026-09-16", None, [4, 4, 4, 4, 4, 0, 0], 65416],
                ],
            ),
            person("15", "Dina", "Moe", "Developer", []),
            person("16", "Emil", "Sand", "Developer", [["2026-01-05", None, FULL * 2, 65417]]),
            person("17", "Developer", "(open)", "", [["2026-01-05", None, FULL * 2, 65416]], kind=3),
            person("18", "Kim", "Client", "Buyer", [], kind=2),
            person(
                "19",
                "Gone",
                "Person",
                "Developer",
                [["2026-01-05", None, FULL * 2, 65416]],
                deactivated_at="2026-08-01T00:00:00.000+02:00",
            ),
            person("20", "Frida", "Aas", "Tester", [["2026-01-05", None, FULL * 2, 65416]]),
        ],
        "bookings": [
            booking("901", "12", "2026-09-14", "2026-09-16", minutes=240, total=720, days=3, service="340"),
            booking("902", "12", "2026-09-17", "2026-09-21", percentage=50, service="341"),
            booking("903", "13", "2026-09-10", "2026-09-15", total=720, days=2, service="341"),
            booking("904", "14", "2026-09-17", "2026-09-18", minutes=480, event="71", approved=False),
            booking("905", "14", "2026-09-14", "2026-09-18", minutes=480, event="70"),
            booking("906", "14", "2026-09-14", "2026-09-18", minutes=120, service="340", draft=True),
            booking("907", "14", "2026-09-14", "2026-09-18", minutes=480, service="340", canceled=True),
            booking("908", "14", "2026-09-14", "2026-09-14", minutes=480, event="71", rejected=True),
            booking("909", "15", "2026-09-14", "2026-09-14", minutes=180, service="342"),
            booking("910", "16", "2026-09-14", "2026-09-18", minutes=360, service="340"),
            booking("911", "16", "2026-09-14", "2026-09-15", percentage=50, service="341"),
            booking("912", "20", "2026-09-15", "2026-09-15", minutes=480, event="72"),
            booking("913", "12", "2026-09-07", "2026-09-11", minutes=480, service="340"),
            booking("914", "12", "2026-09-22", "2026-09-25", minutes=480, service="340"),
            booking("915", "20", "2026-09-11", "2026-09-14", minutes=60, service="342", note="<p>Hand&nbsp;over</p>"),
            booking("916", "17", "2026-09-14", "2026-09-18", minutes=480, service="340"),
        ],
        "events": [
            item("events", "70", {"name": "Working from home", "absence_type": "remote_work"}),
            item("events", "71", {"name": "Vacation", "absence_type": "time_off"}),
            item("events", "72", {"name": "Customer site", "absence_type": "time_off"}),
        ],
        "services": [
            item("services", "340", {"name": "Design"}, deal=("deals", "510")),
            item("services", "341", {"name": "Research"}, deal=("deals", "511")),
            item("services", "342", {"name": "Design"}, deal=("deals", "512")),
        ],
        "deals": [
            item("deals", "510", {"name": "Relaunch 2026"}, company=("companies", "41"), project=("projects", "601")),
            item("deals", "511", {"name": "App budget"}, company=("companies", "41"), project=("projects", "602")),
            item("deals", "512", {"name": "Internal time"}, company=("companies", "40"), project=("projects", "603")),
        ],
        "projects": [
            item("projects", "601", project("Website relaunch", 101, 2), **managed("41")),
            item("projects", "602", project("App", 102, 2), **managed("41")),
            item("projects", "603", project("Internal", 1, 1), **managed("40")),
            item("projects", "604", project("Old site", 99, 2, archived=True), **managed("41")),
        ],
        "companies": [item("companies", "40", {"name": "Example"}), item("companies", "41", {"name": "Nordlys"})],
        "holiday_calendars": [
            item("holiday_calendars", "65416", {"name": "Oslo"}),
            item("holiday_calendars", "65417", {"name": "Bergen"}),
        ],
        "holidays": [
            item("holidays", "1", {"name": "Town day", "date": "2026-09-16"}, holiday_calendar=calendar("65417")),
            item("holidays", "2", {"name": "Christmas", "date": "2026-12-25"}, holiday_calendar=calendar("65416")),
            item("holidays", "3", {"name": "Christmas", "date": "2026-12-25"}, holiday_calendar=calendar("65417")),
        ],
        "project_assignments": [
            item("project_assignments", "1", {}, person=("people", "12"), project=("projects", "601")),
            item("project_assignments", "2", {}, person=("people", "13"), project=("projects", "601")),
            item("project_assignments", "3", {}, person=("people", "12"), project=("projects", "602")),
        ],
        "time_entries": [
            entry("801", "12", "2026-09-07", 90, "340", approved=True, note="<ul><li>Kick-off</li></ul>"),
            entry("802", "12", "2026-09-08", 480, "340", billable_time=450),
            entry("803", "13", "2026-09-08", 30, "341", draft=True),
            entry("804", "13", "2026-09-11", 600, "341", rejected=True),
            entry("805", "12", "2026-09-12", 60, "340"),
        ],
    }


def project(name: str, number: int, type: int, *, archived: bool = False) -> Json:
    return {"name": name, "project_number": str(number), "project_type_id": type, "archived": archived}


def managed(company: str) -> dict[str, tuple[str, str]]:
    return {"company": ("companies", company), "project_manager": ("people", "12")}


def calendar(id: str) -> tuple[str, str]:
    return ("holiday_calendars", id)


class Productive(Fake):
    """The fake.

    Args:
        ignored: Names of filters that it passes over although the real one knows them.
    """

    media_type = "application/vnd.api+json; charset=utf-8"

    def __init__(self, page_cap: int = 200, dataset: Dataset | None = None, ignored: Iterable[str] = ()) -> None:
        super().__init__("/api/v2", min(page_cap, 200))
        self.data = dataset or make_dataset()
        self.ignored = set(ignored)

    def limit(self) -> Scripted:
        body = json.dumps({"errors": [{"status": "too_many_requests", "code": "rate_limit", "title": "Slow down"}]})
        return Scripted(429, {"Retry-After": "1"}, body.encode())

    def answer(self, asked: Asked, path: str) -> Response:
        if asked.headers.get("x-auth-token") != TOKEN:
            return self._refuse(401, "invalid_auth_token", "Unauthenticated", "Token is invalid")
        if asked.headers.get("x-organization-id") != ORGANIZATION:
            return self._refuse(403, "no_person", "Access Denied", "X-Auth-Token has no person in X-Organization-Id")
        if asked.headers.get("content-type", "application/vnd.api+json").split(";")[0] != "application/vnd.api+json":
            return self._refuse(415, "unsupported_media_type", "Unsupported Media Type", "Use application/vnd.api+json")
        if asked.method == "DELETE":
            return Response(status_code=204)
        if asked.method != "GET":
            return self._refuse(404, "route_not_found", "Not Found", f"{asked.method} {path}")
        type, _, id = path.strip("/").partition("/")
        if type not in self.data:
            return self._refuse(404, "route_not_found", "Not Found", path)
        include = [i.split(".") for i in (asked.get("include") or "").split(",") if i]
        if id:
            found = next((i for i in self.data[type] if i["id"] == id), None)
            if found is None:
                return self._refuse(404, "record_not_found", "Record Not Found", f"No {type} with id {id}")
            return self.json({"data": self._shape(found, include)} | self._include([found], include))
        return self._list(asked, type, include)

    def _list(self, asked: Asked, type: str, include: list[list[str]]) -> Response:
        sort = asked.get("sort")
        if sort is not None and sort.lstrip("-") not in SORTS.get(type, set()):
            return self._refuse(400, "sort_param_unsupported", "Sort param unsupported", f"{sort} is not supported")
        items = [i for i in self.data[type] if self._passes(i, asked, type)]
        if sort:
            items.sort(key=lambda i: str(_value(i, sort.lstrip("-"))), reverse=sort.startswith("-"))
        size = min(int(asked.get("page[size]") or 30), self.page_cap)
        number = int(asked.get("page[number]") or 1)
        page = items[(number - 1) * size : number * size]
        pages = -(-len(items) // size)
        body = {
            "data": [self._shape(i, include) for i in page],
            "links": {"first": "…", "last": "…", "next": None},
            "meta": {
                "current_page": number,
                "total_pages": pages,
                "total_count": len(items),
                "page_size": size,
                "max_page_size": self.page_cap,
            },
        }
        return self.json(body | self._include(page, include))

    def _passes(self, i: Json, asked: Asked, type: str) -> bool:
        attributes = i["attributes"]
        filters = {
            key[7:-1]: value
            for key, value in asked.query
            if key.startswith("filter[") and key[7:-1] not in self.ignored
        }
        if type == "bookings" and attributes["draft"] and filters.get("with_draft") != "true":
            return False
        for name, value in filters.items():
            values = value.split(",")
            if name in ("after", "before"):
                ok = _within(attributes, type, name, value)
            elif name == "status" and type == "people":
                ok = (attributes["deactivated_at"] is None) == (value == "1")
            elif name == "status" and type == "projects":
                ok = attributes["archived"] == (value == "2")
            elif name == "status" and type == "time_entries":
                is_now = "3" if attributes["rejected"] else "1" if attributes["approved"] else "2"
                ok = is_now == value
            elif name == "person_type":
                ok = str(attributes["person_type"]) in values
            elif name == "query":
                ok = value.lower() in " ".join(str(v) for v in attributes.values()).lower()
            elif name == "person_id":
                ok = i["related"]["person"][1] in values
            elif name == "project_id":
                ok = self._project(i) in values
            else:
                ok = True  # an unknown filter is passed over
            if not ok:
                return False
        return True

    def _project(self, i: Json) -> str | None:
        related = i["related"]
        if "project" in related:
            return str(related["project"][1])
        if related.get("service") is None:
            return None
        service = self._find(*related["service"])
        deal = self._find(*service["related"]["deal"])
        return str(deal["related"]["project"][1])

    def _find(self, type: str, id: str) -> Json:
        return next(i for i in self.data[type] if i["id"] == id)

    def _shape(self, i: Json, include: list[list[str]]) -> Json:
        relationships: Json = {"organization": {"data": {"type": "organizations", "id": ORGANIZATION}}}
        asked = {names[0] for names in include}
        for name, target in i["related"].items():
            if name not in asked:
                relationships[name] = {"meta": {"included": False}}
            else:
                relationships[name] = {"data": {"type": target[0], "id": target[1]} if target else None}
        attributes = {k: v for k, v in i["attributes"].items() if k not in ("person_type", "archived")}
        return {"id": i["id"], "type": i["type"], "attributes": attributes, "relationships": relationships}

    def _include(self, items: list[Json], include: list[list[str]]) -> Json:
        """The included records; several ways to one record are put together."""
        ways: dict[tuple[str, str], list[list[str]]] = {}

        def walk(i: Json, names: list[str]) -> None:
            target = i["related"].get(names[0])
            if target is None:
                return
            rest = ways.setdefault(target, [])
            if names[1:]:
                rest.append(names[1:])
                walk(self._find(*target), names[1:])

        for i in items:
            for names in include:
                walk(i, names)
        included = [self._shape(self._find(*target), rest) for target, rest in ways.items()]
        return {"included": included} if include else {}

    def _refuse(self, status: int, code: str, title: str, detail: str) -> Response:
        error = {"status": SLUGS.get(status, str(status)), "code": code, "title": title, "detail": detail, "meta": {}}
        return self.json({"errors": [error]}, status)


def _value(i: Json, name: str) -> Any:
    attributes = i["attributes"]
    if name == "name" and i["type"] == "people":
        return f"{attributes['first_name']} {attributes['last_name']}"
    return attributes.get(name)


def _within(attributes: Json, type: str, name: str, day: str) -> bool:
    if type == "bookings":
        return bool(attributes["ended_on"] > day if name == "after" else attributes["started_on"] < day)
    return bool(attributes["date"] >= day if name == "after" else attributes["date"] <= day)


if __name__ == "__main__":
    main(Productive)
