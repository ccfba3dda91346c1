"""A fake of Smartsheet Resource Management, with its odd corners, over a week that can be worked out by hand.

What it does as the real one does: `next` as a path that begins with `/api/v1`, no totals, nested lists cut off at the
page's size, refusals without a body, 429 with the moment of the reset, phases only with `with_phases`, states of
projects only with `fields=project_state`, suggestions without hours, `day0` as Sunday, and `from` and `to` that leave
out what ends or starts on that very day.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from tests.resourcing.fakes import Asked, Fake, Json, Scripted, main

TOKEN = "rm-token-abcdefghij"
Dataset = dict[str, list[Json]]


def user(id: int, first: str, last: str, role: str, **more: Any) -> Json:
    return {
        "id": id,
        "first_name": first,
        "last_name": last,
        "display_name": f"{first} {last}",
        "email": f"{first.lower()}@example.test",
        "user_type_id": 2,
        "role": role,
        "discipline": "UX" if role == "Designer" else "Engineering",
        "location": "Oslo",
        "hire_date": None,
        "termination_date": None,
        "archived": False,
        "type": "User",
        "created_at": f"2024-03-01T08:00:{id % 60:02}Z",
    } | more


def block(id: int, user_id: int, start: str | None, end: str | None, days: list[float]) -> Json:
    """An availability; `days` from Sunday on."""
    hours = {f"day{n}": value for n, value in enumerate(days)}
    return {"id": id, "user_id": user_id, "starts_at": start, "ends_at": end} | hours


def assignment(id: int, user_id: int, of: int, start: str, end: str, mode: str, amount: float, **more: Any) -> Json:
    """An assignment; only the amount of its mode is there."""
    member = {"percent": "percent", "hours_per_day": "hours_per_day", "fixed": "fixed_hours"}[mode]
    return {
        "id": id,
        "user_id": user_id,
        "assignable_id": of,
        "starts_at": start,
        "ends_at": end,
        "allocation_mode": mode,
        member: amount,
        "note": None,
        "description": None,
        "repetition_id": None,
    } | more


def project(id: int, name: str, state: str, parent: int | None = None, phase: str | None = None, **more: Any) -> Json:
    return {
        "id": id,
        "name": name,
        "client": "Nordlys",
        "project_code": f"N-{id}",
        "project_state": state,
        "starts_at": "2026-09-01",
        "ends_at": "2026-12-31",
        "parent_id": parent,
        "phase_name": phase,
        "archived": False,
        "type": "Project",
        "timeentry_lockout": -1,
    } | more


def entry(id: int, user_id: int, of: int, kind: str, day: str, hours: float | None, suggested: float | None) -> Json:
    return {
        "id": id,
        "user_id": user_id,
        "assignable_id": of,
        "assignable_type": kind,
        "date": day,
        "hours": hours,
        "scheduled_hours": suggested,
        "is_suggestion": hours is None,
        "task": None,
        "notes": None,
    }


def make_dataset() -> Dataset:
    """Four people around the week of Monday, 14 September 2026, whose Thursday is a holiday."""
    return {
        "users": [
            user(118, "Ana", "Berg", "Designer"),
            user(119, "Ben", "Dahl", "Developer"),
            user(120, "Cara", "Lind", "Developer", termination_date="2026-09-16"),
            user(121, "Dina", "Moe", "Developer", archived=True),
            user(122, "Emil", "Sånd", "Tester"),
            {"id": 900, "title": "Developer (open)", "type": "PlaceholderResource", "archived": False},
        ],
        "availabilities": [
            block(51, 119, None, "2026-09-06", [0, 8, 8, 8, 8, 8, 0]),
            block(52, 119, "2026-09-07", "2026-09-15", [0, 8, 8, 0, 0, 0, 0]),
            block(53, 119, "2026-09-16", None, [2, 0, 0, 4, 8, 0, 0]),
        ],
        "holidays": [
            {"id": 1, "date": "2026-09-17", "name": "Founders' day"},
            {"id": 2, "date": "2026-12-25", "name": "Christmas"},
            {"id": 3, "date": "2027-01-01", "name": "New year"},
        ],
        "leave_types": [{"id": 2, "name": "Vacation"}, {"id": 3, "name": "Sick"}, {"id": 4, "name": "Other"}],
        "projects": [
            project(501, "Website relaunch", "Confirmed"),
            project(511, "Website relaunch", "Confirmed", 501, "Build"),
            project(502, "App", "Tentative"),
            project(503, "Old site", "Confirmed", archived=True),
        ],
        "assignments": [
            assignment(889, 118, 511, "2026-09-14", "2026-09-18", "percent", 0.5),
            assignment(890, 118, 502, "2026-09-18", "2026-09-22", "hours_per_day", 2),
            assignment(891, 119, 501, "2026-09-10", "2026-09-16", "fixed", 12),
            assignment(892, 120, 2, "2026-09-14", "2026-09-14", "percent", 1.0),
            assignment(893, 120, 501, "2026-09-15", "2026-09-18", "hours_per_day", 6),
            assignment(894, 122, 501, "2026-09-14", "2026-09-16", "hours_per_day", 6),
            assignment(895, 122, 511, "2026-09-14", "2026-09-14", "percent", 0.5),
            assignment(896, 122, 3, "2026-09-18", "2026-09-18", "hours_per_day", 4),
            assignment(897, 900, 501, "2026-09-14", "2026-09-18", "hours_per_day", 8),
            assignment(898, 121, 501, "2026-09-14", "2026-09-18", "hours_per_day", 8),
            assignment(899, 118, 503, "2026-09-01", "2026-09-11", "percent", 1.0),
        ],
        "time_entries": [
            entry(701, 118, 511, "Project", "2026-09-07", 6.5, None),
            entry(702, 118, 2, "LeaveType", "2026-09-08", 8, None),
            entry(703, 119, 501, "Project", "2026-09-08", 4, None),
            entry(704, 119, 501, "Project", "2026-09-11", None, 6),
            entry(705, 118, 502, "Project", "2026-09-12", 1, None),
        ],
    }


class Smartsheet(Fake):
    """The fake.

    Args:
        sheets: Be Smartsheet 2.0 instead, which knows no such token.
    """

    def __init__(self, page_cap: int = 1000, dataset: Dataset | None = None, *, sheets: bool = False) -> None:
        super().__init__("/api/v1", min(page_cap, 1000))
        self.data = dataset or make_dataset()
        self.sheets = sheets

    def limit(self) -> Scripted:
        def headers() -> dict[str, str]:
            reset = math.floor(time.time()) + 1
            return {"X-RateLimit-Limit": "120", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}

        return Scripted(429, headers)

    def answer(self, asked: Asked, path: str) -> Response:
        if self.sheets:
            body = {"errorCode": 1002, "message": "Your Access Token is invalid.", "refId": "abc123"}
            return Response(json.dumps(body), 401, media_type=self.media_type)
        if asked.headers.get("auth") != TOKEN:
            return Response(status_code=401)
        if asked.method != "GET":
            return Response(status_code=404)
        match path.strip("/").split("/"):
            case ["users"]:
                return self._page(asked, self.data["users"], lambda i: _is_listed(i, asked), self._with_nested)
            case ["users", id]:
                found = next((i for i in self.data["users"] if str(i["id"]) == id and "title" not in i), None)
                return Response(status_code=404) if found is None else self.json(self._with_nested(found, asked))
            case ["projects"]:
                return self._page(asked, self.data["projects"], lambda i: _is_project(i, asked), _with_state)
            case ["holidays" | "leave_types" as name]:
                return self._page(asked, self.data[name], lambda i: True)
            case ["assignments" | "time_entries" as name]:
                return self._page(asked, self.data[name], lambda i: self._is_within(i, asked))
            case ["users", id, "assignments" | "time_entries" | "availabilities" as name]:
                if all(str(i["id"]) != id for i in self.data["users"]):
                    return Response(status_code=404)
                return self._page(
                    asked, self.data[name], lambda i: str(i["user_id"]) == id and self._is_within(i, asked)
                )
            case ["projects", id, "assignments" | "time_entries" as name]:
                below = {str(p["id"]) for p in self.data["projects"] if str(p["parent_id"]) == id} | {id}
                return self._page(
                    asked, self.data[name], lambda i: str(i["assignable_id"]) in below and self._is_within(i, asked)
                )
        return Response(status_code=404)

    def _page(
        self,
        asked: Asked,
        items: list[Json],
        keep: Callable[[Json], bool],
        shape: Callable[[Json, Asked], Json] = lambda i, _: i,
    ) -> Response:
        number = int(asked.get("page") or 1)
        found = [shape(i, asked) for i in items if keep(i)]
        return self.json(self._collection(asked.path, asked.query, found, number, self._size(asked)))

    def _size(self, asked: Asked) -> int:
        return min(int(asked.get("per_page") or 20), self.page_cap)

    def _collection(self, path: str, query: list[tuple[str, str]], found: list[Json], number: int, size: int) -> Json:
        others = [(key, value) for key, value in query if key not in ("page", "per_page")]

        def link(page: int) -> str:
            return f"{path}?{urlencode([*others, ('page', str(page)), ('per_page', str(size))])}"

        more = len(found) > number * size
        return {
            "data": found[(number - 1) * size : number * size],
            "paging": {
                "page": number,
                "per_page": size,
                "previous": link(number - 1) if number > 1 else None,
                "self": link(number),
                "next": link(number + 1) if more else None,
            },
        }

    def _with_nested(self, i: Json, asked: Asked) -> Json:
        if "availabilities" not in (asked.get("fields") or "").split(",") or "title" in i:
            return i
        rows = [row for row in self.data["availabilities"] if row["user_id"] == i["id"]]
        path = f"{self.root}/users/{i['id']}/availabilities"
        return i | {"availabilities": self._collection(path, [], rows, 1, self._size(asked))}

    def _is_within(self, i: Json, asked: Asked) -> bool:
        after, before = asked.get("from") or "", asked.get("to") or "9999"
        if "date" in i:
            return after <= i["date"] <= before and (not i["is_suggestion"] or asked.get("with_suggestions") == "true")
        if "assignable_id" not in i:
            return True
        phases = {p["id"] for p in self.data["projects"] if p["parent_id"]}
        shown = i["assignable_id"] not in phases or asked.get("with_phases") == "true"
        return bool(i["ends_at"] > after and i["starts_at"] < before and shown)


def _is_listed(i: Json, asked: Asked) -> bool:
    if i["archived"] and asked.get("with_archived") != "true":
        return False
    return "title" not in i or asked.get("include_placeholders") == "true"


def _is_project(i: Json, asked: Asked) -> bool:
    if i["archived"] and asked.get("with_archived") != "true":
        return False
    if i["parent_id"] and asked.get("with_phases") != "true":
        return False
    states = (asked.get("filter_list") or "").split(",") if asked.get("filter_field") == "project_state" else []
    return not states or i["project_state"] in states


def _with_state(i: Json, asked: Asked) -> Json:
    if "project_state" in (asked.get("fields") or "").split(","):
        return i
    return {name: value for name, value in i.items() if name != "project_state"}


if __name__ == "__main__":
    main(Smartsheet)
