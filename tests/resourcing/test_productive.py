"""The Productive server against a fake of Productive: over stdio with the SDK's client, and in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import pytest
from mcp import Client

from sag_resourcing.availability import Pattern
from sag_resourcing.jsonapi import read_error, read_records
from sag_resourcing.productive import build
from sag_resourcing.productive_api import read_booking, read_note, read_patterns
from tests.resourcing.fakes import Scripted, run
from tests.resourcing.fakes.productive import TOKEN, Productive, booking, make_dataset, person
from tests.resourcing.servers import (
    ERAS,
    WEEK,
    Clock,
    ask,
    by_name,
    fail,
    hours,
    over_stdio,
    productive_env,
)

TOOLS = [
    "list_people",
    "get_person_details",
    "list_bookings",
    "get_availability",
    "list_projects",
    "list_project_assignments",
    "get_time_entries",
]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Productive, str]]:
    productive = Productive()
    with run(productive) as url:
        yield productive, url


@pytest.fixture
def fake(served: tuple[Productive, str]) -> tuple[Productive, str]:
    """The fake and its address; nothing was asked of it yet."""
    served[0].reset()
    return served


@asynccontextmanager
async def server(env: dict[str, str], clock: Clock | None = None) -> AsyncIterator[Client]:
    """The server in memory."""
    async with Client(build(env, (clock or Clock()).connect)) as client:
        yield client


# --- the question that it is all about ---


@pytest.mark.parametrize("mode", ERAS)
async def test_who_is_free_next_week_and_what_are_they_booked_on(tmp_path, mode):
    """With pages of two, part-time weeks, a holiday and a 429 on the way."""
    fake = Productive(page_cap=2)
    fake.script("/bookings", fake.limit())
    log = tmp_path / "stderr"
    with run(fake) as url:
        async with over_stdio("sag-mcp-productive", productive_env(url), mode, log) as client:
            assert (client.protocol_version < "2026") == (mode == "legacy")
            found = await ask(client, "get_availability", **WEEK)
    people = by_name(found)
    assert [*people] == ["Frida Aas", "Ana Berg", "Cara Lind", "Ben Dahl", "Emil Sand", "Dina Moe"]  # most free first

    # Ana has five days of 8. Design 4 h a day from Monday to Wednesday (12), then half of Thursday and Friday (8);
    # what lies before the 14th and after the 18th does not count.
    # 40 - 12 - 8 = 20.
    ana = people["Ana Berg"]
    assert hours(ana["totals"]) == (40, 0, 0, 20, 0, 20, 0)
    assert ana["totals"]["on"] == {"Website relaunch: Design": 12, "App: Research": 8}
    assert [day["on"] for day in ana["spans"]] == [{"Website relaunch: Design": 4}] * 3 + [{"App: Research": 4}] * 2
    assert [(b["id"], b["hours"], b["project_id"], b["service_id"]) for b in ana["bookings"]] == [
        ("901", 12, "601", "340"),
        ("902", 8, "602", "341"),
    ]

    # Ben works alternating weeks, and the one of the 14th is his longer one: 8, 8, 8, 8, 0. Wednesday is a holiday in
    # his calendar. 12 h are spread over 10 to 15 September, of which only Monday and Tuesday are working days: 6 each.
    # 32 - 8 - 12 = 12: Monday 2, Tuesday 2, Thursday 8.
    ben = people["Ben Dahl"]
    assert hours(ben["totals"]) == (32, 8, 0, 12, 0, 12, 0)
    assert [(day["start"], day["free"]) for day in ben["spans"]] == [
        ("2026-09-14", 2),
        ("2026-09-15", 2),
        ("2026-09-16", 0),
        ("2026-09-17", 8),
    ]
    assert ben["holidays"] == {"2026-09-16": "Town day"}
    assert "alternating weeks" in ben["notes"][0]

    # Cara has 8 on Monday and Tuesday, and 4 a day from Wednesday on: 28. Thursday and Friday are vacation, booked
    # with 8 h a day, of which a day of 4 loses 4. Working from home, a canceled and a rejected booking take nothing.
    # A draft of 2 h a day is told and not taken off.
    # 28 - 8 = 20.
    cara = people["Cara Lind"]
    assert hours(cara["totals"]) == (28, 0, 8, 0, 10, 20, 0)
    assert [day["capacity"] for day in cara["spans"]] == [8, 8, 4, 4, 4]
    assert cara["totals"]["away"] == {"Vacation": 8}
    assert {b["id"]: (b.get("kind", "work"), b["hours"]) for b in cara["bookings"]} == {
        "904": ("absence", 8),
        "905": ("present", 0),
        "906": ("work", 10),
    }
    assert [b["id"] for b in cara["bookings"] if b.get("pending")] == ["904"]
    assert [b["id"] for b in cara["bookings"] if b.get("tentative")] == ["906"]

    # Of Dina no working hours are known: 3 h on Monday are 3 h too many.
    dina = people["Dina Moe"]
    assert hours(dina["totals"]) == (0, 0, 0, 3, 0, 0, 3)
    assert "No working hours are known" in dina["notes"][0]

    # Emil has five days of 8 without Wednesday, a holiday: 32. Design 6 h on four days (24), and half of Monday and
    # Tuesday on top (8): those two days hold 10 h, 2 too many each; Thursday and Friday have 2 left each.
    emil = people["Emil Sand"]
    assert hours(emil["totals"]) == (40, 8, 0, 32, 0, 4, 4)
    assert [day.get("overbooked", 0) for day in emil["spans"]] == [2, 2, 0, 0, 0]

    # Frida hands over for 1 h on Monday, the last day of that booking, and is at a customer's on Tuesday.
    # 40 - 8 - 1 = 31.
    assert hours(people["Frida Aas"]["totals"]) == (40, 0, 8, 1, 0, 31, 0)

    # Everybody: 180 = 40 + 32 + 28 + 0 + 40 + 40, and 180 - 16 - 16 - 68 = 80 = 87 - 7.
    assert hours(found["everyone"]) == (180, 16, 16, 68, 10, 87, 7)
    assert (found["window"], found["units"], found["by"]) == ("2026-09-14 to 2026-09-18", "hours", "day")
    assert (found["shown"], found["total"], found.get("cut", False)) == (6, 6, False)

    # It read page after page, each with the same sort, and came back after the 429 no sooner than it was told to.
    assert [asked.get("page[number]") for asked in fake.asked("/people")] == ["1", "2", "3"]
    bookings = fake.asked("/bookings")
    assert [asked.get("page[number]") for asked in bookings] == ["1", "1", "2", "3", "4", "5", "6", "7"]
    assert {asked.get("sort") for asked in bookings} == {"started_on"}
    assert bookings[1].at - bookings[0].at >= 1.0
    assert {asked.get("page[size]") for asked in fake.journal} == {"200"}
    assert {asked.method for asked in fake.journal} == {"GET"}
    assert all(TOKEN not in value for asked in fake.journal for _, value in asked.query)
    assert all(asked.headers["accept-encoding"] == "identity" for asked in fake.journal)
    assert "rate limit, waiting 1.0 s" in log.read_text()
    assert TOKEN not in log.read_text()


async def test_drafts_can_be_taken_off_what_is_free(fake):
    # Cara: Monday and Tuesday 6 left, Wednesday 2; on Thursday and Friday the draft's 2 h are too many: 14 - 4.
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_availability", **WEEK, person_ids=["14"], count_tentative=True)
    assert hours(found["people"][0]["totals"]) == (28, 0, 8, 0, 10, 14, 4)
    assert found["tentative_counted"]


async def test_some_people_alone_are_asked_for_by_id_and_left_out_by_what_is_free(fake):
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_availability", **WEEK, person_ids=[12, "16", "19"], min_free=5)
        missing = await fail(client, "get_availability", **WEEK, person_ids=["999"])
    assert [p["name"] for p in found["people"]] == ["Gone Person", "Ana Berg"]
    assert "deactivated" in found["people"][0]["notes"][0]
    assert fake[0].asked("/bookings")[0].get("filter[person_id]") == "12,16,19"
    assert "nothing at /api/v2/people/999" in missing
    assert "list_people" in missing


async def test_filters_that_productive_passes_over_are_made_good():
    fake = Productive(ignored=["status", "person_id", "project_id", "after", "before"])
    with run(fake) as url:
        async with server(productive_env(url)) as client:
            found = await ask(client, "get_availability", **WEEK)
            of_ana = await ask(client, "list_bookings", **WEEK, person_ids=["12"])
            of_app = await ask(client, "list_bookings", **WEEK, project_id="602")
            worked = await ask(client, "get_time_entries", start="2026-09-08", end="2026-09-08", status="unapproved")
            members = await ask(client, "list_project_assignments", person_id="12", project_id="602")
    assert [p["name"] for p in found["people"]][-1] == "Dina Moe"
    assert "Gone Person" not in by_name(found)
    assert [b["id"] for b in of_ana["bookings"]] == ["901", "902"]
    assert [b["id"] for b in of_app["bookings"]] == ["903", "911", "902"]
    assert [e["id"] for e in worked["entries"]] == ["802", "803"]
    assert members["total"] == 1


async def test_long_windows_are_shown_by_week(fake):
    # Ben's other week has 8 on Monday and Tuesday alone; 12 h of the 10th to the 15th all fall on the 14th and 15th.
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_availability", start="2026-09-07", end="2026-09-27", person_ids=["13"])
    assert found["by"] == "week"
    assert [(w["start"], w["end"], w["capacity"], w["booked"], w["free"]) for w in found["people"][0]["spans"]] == [
        ("2026-09-07", "2026-09-13", 16, 0, 16),
        ("2026-09-14", "2026-09-20", 32, 12, 12),
        ("2026-09-21", "2026-09-27", 16, 0, 16),
    ]


async def test_events_that_are_no_absence_are_a_setting(fake):
    env = productive_env(fake[1], PRODUCTIVE_PRESENT_EVENTS="customer SITE, 999")
    async with server(env) as client:
        found = await ask(client, "get_availability", **WEEK, person_ids=["20", "14"])
    # Frida's day at the customer's is none off: 40 - 1. Remote work stays none whatever is set.
    people = by_name(found)
    assert hours(people["Frida Aas"]["totals"]) == (40, 0, 0, 1, 0, 39, 0)
    assert people["Cara Lind"]["totals"]["absence"] == 8


async def test_what_is_cut_says_so(fake):
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_availability", **WEEK, limit=2)
        people = await ask(client, "list_people", limit=1)
    assert (found["shown"], found["total"], found["cut"], len(found["people"])) == (2, 6, True, 2)
    assert hours(found["everyone"])[0] == 180  # those who are not shown are in it
    assert (people["shown"], people["total"], people["cut"]) == (1, 6, True)


async def test_what_is_too_long_to_be_read_is_cut_and_says_so(fake, monkeypatch):
    monkeypatch.setattr("sag_resourcing.results.LONGEST", 2_500)
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_availability", **WEEK)
    assert len(json.dumps(found, separators=(",", ":"))) <= 2_500
    assert (found["total"], found["cut"]) == (6, True)
    assert 1 <= found["shown"] == len(found["people"]) < 6
    assert hours(found["everyone"])[0] == 180


async def test_a_token_that_sees_nobody_elses_plan_is_told_of():
    data = make_dataset()
    data["bookings"] = [b for b in data["bookings"] if b["related"]["person"] == ("people", "12")]
    with run(Productive(dataset=data)) as url:
        async with server(productive_env(url)) as client:
            found = await ask(client, "get_availability", **WEEK)
    assert "only seem free" in found["notes"][0]


async def test_nobody_found_is_said_and_pages_of_nothing_are_none():
    data = make_dataset()
    data["people"] = []
    fake = Productive(dataset=data)
    with run(fake) as url:
        async with server(productive_env(url)) as client:
            found = await ask(client, "get_availability", **WEEK)
    assert found["people"] == []
    assert "nobody" in found["notes"][0]
    assert len(fake.asked("/people")) == 1  # `total_pages` is 0 then


# --- the other tools ---


async def test_people_are_listed_by_kind_and_name(fake):
    async with server(productive_env(fake[1])) as client:
        users = await ask(client, "list_people")
        berg = await ask(client, "list_people", query="berg")
        open_roles = await ask(client, "list_people", kind="placeholder")
        clients = await ask(client, "list_people", kind="contact")
        everybody = await ask(client, "list_people", include_inactive=True)
    assert [p["name"] for p in users["people"]] == [
        "Ana Berg",
        "Ben Dahl",
        "Cara Lind",
        "Dina Moe",
        "Emil Sand",
        "Frida Aas",
    ]
    assert berg["people"] == [
        {
            "id": "12",
            "name": "Ana Berg",
            "title": "Designer",
            "email": "ana@example.test",
            "company": "Example",
            "tags": ["ux"],
        }
    ]
    assert [p["id"] for p in open_roles["people"]] == ["17"]
    assert [p["id"] for p in clients["people"]] == ["18"]
    assert [p["name"] for p in everybody["people"] if p.get("inactive")] == ["Gone Person"]


async def test_a_person_is_told_with_their_working_week(fake):
    async with server(productive_env(fake[1])) as client:
        ben = await ask(client, "get_person_details", person_id="13")
        dina = await ask(client, "get_person_details", person_id="15")
    assert (ben["name"], ben["manager"], ben["manager_id"], ben["holiday_calendar"]) == (
        "Ben Dahl",
        "Ana Berg",
        "12",
        "Oslo",
    )
    # 4 days of 8 and 2 days of 8 in turns: 24 h a week on average.
    assert ben["work_weeks"] == [
        {
            "start": "2026-09-01",
            "hours": [8, 8, 8, 8, 0, 0, 0],
            "second_week": [8, 8, 0, 0, 0, 0, 0],
            "hours_per_week": 24,
        }
    ]
    assert dina["notes"] == ["No working hours are set in Productive."]


async def test_bookings_are_listed_with_their_hours_in_the_window(fake):
    async with server(productive_env(fake[1])) as client:
        everything = await ask(client, "list_bookings", **WEEK)
        work = await ask(client, "list_bookings", **WEEK, kind="work", include_drafts=False)
        away = await ask(client, "list_bookings", **WEEK, kind="absence")
    listed = {b["id"]: b for b in everything["bookings"]}
    # The placeholder's is among them; canceled and rejected ones, and those outside of the window, are not.
    assert sorted(listed) == ["901", "902", "903", "904", "905", "906", "909", "910", "911", "912", "915", "916"]
    assert listed["903"]["planned_as"] == "12 h in all"
    assert listed["902"]["planned_as"] == "50 % of each day's hours"
    assert listed["915"]["note"] == "Hand over"
    assert listed["909"]["person"] == "Dina Moe"
    assert "No working hours are known of Dina Moe" in everything["notes"][0]
    # 901: 12, 902: 8, 903: 12, 909: 3, 910: 24 (not on the holiday), 911: 8, 915: 1, 916: 40.
    assert (work["hours"], work["total"]) == (108, 8)
    assert {b["id"]: b["hours"] for b in away["bookings"]} == {"904": 8, "905": 0, "912": 8}


async def test_projects_are_listed_with_client_and_manager(fake):
    async with server(productive_env(fake[1])) as client:
        active = await ask(client, "list_projects")
        archived = await ask(client, "list_projects", status="archived")
    assert [(p["name"], p["id"], p["number"]) for p in active["projects"]] == [
        ("App", "602", "102"),
        ("Internal", "603", "1"),
        ("Website relaunch", "601", "101"),
    ]
    assert active["projects"][2]["company"] == "Nordlys"
    assert active["projects"][2]["manager"] == "Ana Berg"
    assert [p["name"] for p in active["projects"] if p.get("internal")] == ["Internal"]
    assert [p["id"] for p in archived["projects"]] == ["604"]


async def test_members_of_projects_are_listed_though_they_cannot_be_sorted(fake, caplog):
    with caplog.at_level(logging.WARNING, "sag_resourcing"):
        async with server(productive_env(fake[1])) as client:
            found = await ask(client, "list_project_assignments", project_id="601")
    assert found["assignments"] == [
        {"person": "Ana Berg", "person_id": "12", "project": "Website relaunch", "project_id": "601"},
        {"person": "Ben Dahl", "person_id": "13", "project": "Website relaunch", "project_id": "601"},
    ]
    assert [asked.get("sort") for asked in fake[0].asked("/project_assignments")] == ["id", None]
    assert "cannot sort" in caplog.text


async def test_time_entries_are_summed_in_hours(fake):
    async with server(productive_env(fake[1])) as client:
        found = await ask(client, "get_time_entries", start="2026-09-07", end="2026-09-11")
        rejected = await ask(client, "get_time_entries", start="2026-09-07", end="2026-09-11", status="rejected")
        of_ben = await ask(client, "get_time_entries", start="2026-09-07", end="2026-09-11", person_ids=["13"], limit=1)
    # 90 and 480 minutes of Ana, 30 of Ben; his 600 rejected ones do not count, nor does the entry of the 12th.
    assert found["hours"] == 10
    assert [(s["name"], s["hours"]) for s in found["by_person"]] == [("Ana Berg", 9.5), ("Ben Dahl", 0.5)]
    assert [(s["name"], s["id"], s["hours"]) for s in found["by_project"]] == [
        ("Website relaunch", "601", 9.5),
        ("App", "602", 0.5),
    ]
    first = found["entries"][0]
    assert (first["hours"], first["billable"], first["note"], first["status"]) == (1.5, 1.5, "Kick-off", "approved")
    assert found["entries"][1]["billable"] == 7.5
    assert found["entries"][2]["status"] == "unapproved, draft"
    assert (rejected["hours"], rejected["total"]) == (10, 1)
    assert of_ben["total"] == 1


# --- what goes wrong ---


async def test_without_settings_the_tools_are_listed_and_say_what_to_set(tmp_path):
    async with over_stdio("sag-mcp-productive", {}, "legacy", tmp_path / "stderr") as client:
        tools = (await client.list_tools()).tools
        said = await fail(client, "list_people")
    assert [tool.name for tool in tools] == TOOLS
    assert "PRODUCTIVE_API_TOKEN is not set" in said
    for tool in tools:
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert tool.annotations.idempotent_hint
        assert tool.annotations.destructive_hint is False
        assert tool.output_schema is not None
        assert tool.input_schema["additionalProperties"] is False
        assert tool.description is not None
        assert len(tool.description) > 100
        assert all(p.get("description") for p in tool.input_schema["properties"].values()), tool.name


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"PRODUCTIVE_API_TOKEN": ""}, "PRODUCTIVE_API_TOKEN is not set"),
        ({"PRODUCTIVE_API_TOKEN": "${PRODUCTIVE_API_TOKEN}"}, "PRODUCTIVE_API_TOKEN is not set"),
        ({"PRODUCTIVE_API_TOKEN": "two words"}, "PRODUCTIVE_API_TOKEN holds characters"),
        ({"PRODUCTIVE_ORG_ID": " "}, "PRODUCTIVE_ORG_ID is not set"),
        ({"PRODUCTIVE_ORG_ID": "77-example"}, "PRODUCTIVE_ORG_ID has to be a number"),
        ({"PRODUCTIVE_BASE_URL": "api.productive.io"}, "PRODUCTIVE_BASE_URL has to be an address"),
        ({"PRODUCTIVE_BASE_URL": "https://me:secret@api.example.com"}, "PRODUCTIVE_BASE_URL has to be an address"),
    ],
)
async def test_a_wrong_setting_is_named(changed, says):
    async with server(productive_env("http://127.0.0.1:9") | changed) as client:
        said = await fail(client, "list_projects")
    assert says in said
    assert "secret" not in said


async def test_names_of_other_servers_settings_are_taken_too(fake):
    env = {"PRODUCTIVE_TOKEN": TOKEN, "PRODUCTIVE_ORGANIZATION_ID": "77", "PRODUCTIVE_API_BASE_URL": fake[1] + "/"}
    async with server(env) as client:
        assert (await ask(client, "list_projects"))["total"] == 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"PRODUCTIVE_API_TOKEN": "wrong-token-987"},
            ["refuses the token", "PRODUCTIVE_API_TOKEN", "Token is invalid"],
        ),
        ({"PRODUCTIVE_ORG_ID": "78"}, ["not in organization 78", "PRODUCTIVE_ORG_ID is most likely wrong"]),
    ],
)
async def test_a_refused_token_and_a_wrong_organization_are_told_apart(fake, changed, says):
    async with server(productive_env(fake[1]) | changed) as client:
        said = await fail(client, "list_people")
    assert all(part in said for part in says)
    assert "wrong-token-987" not in said


def error(status: str, code: str, title: str, detail: str, pointer: str = "") -> bytes:
    source = {"source": {"pointer": pointer}} if pointer else {}
    return json.dumps(
        {"errors": [{"status": status, "code": code, "title": title, "detail": detail} | source]}
    ).encode()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Scripted(403, {}, error("forbidden", "denied", "Access Denied", "No")), ["may not see this", "manager's"]),
        (Scripted(415, {}, error("415", "media", "Unsupported Media Type", "No")), ["content type (415)"]),
        (
            Scripted(
                422, {}, error("unprocessable_content", "x", "Invalid Attribute", "is bad", "data/attributes/time")
            ),
            ["(422)", "Invalid Attribute is bad (data/attributes/time)"],
        ),
        (Scripted(400, {}, b""), ["refuses the request (400)"]),
        (Scripted(418, {}, b"<html>"), ["HTTP 418"]),
        (Scripted(302, {"Location": "http://127.0.0.1:1/"}), ["redirects (HTTP 302)", "PRODUCTIVE_BASE_URL"]),
        (Scripted(200, {}, b"<html>"), ["without the JSON that was expected", "PRODUCTIVE_BASE_URL"]),
        (Scripted(200, {}, b"[]"), ["without the JSON that was expected"]),
        (Scripted(200, {}, b'{"data": [{"id": "1"}]}'), []),
        (Scripted(503, {}, b"", times=9), ["fails at the moment (HTTP 503)"]),
        (Scripted(401, {}, error("401", "invalid_auth_token", "Bad", f"{TOKEN} is bad")), ["*** is bad"]),
    ],
)
async def test_each_refusal_says_what_to_do(fake, answer, says):
    fake[0].script("/projects", answer)
    async with server(productive_env(fake[1])) as client:
        if not says:  # a record with nothing in it is one all the same
            assert (await ask(client, "list_projects"))["projects"] == [{"id": "1", "name": "project 1"}]
            return
        said = await fail(client, "list_projects")
    assert all(part in said for part in says), said
    assert TOKEN not in said


async def test_a_failure_that_passes_is_tried_again(fake):
    clock = Clock()
    fake[0].script("/projects", Scripted(502, times=2))
    async with server(productive_env(fake[1]), clock) as client:
        assert (await ask(client, "list_projects"))["total"] == 3
    assert clock.slept == [0.5, 1.0]


async def test_nobody_listening_is_told_with_the_address():
    clock = Clock()
    async with server(productive_env("http://127.0.0.1:9/api"), clock) as client:
        said = await fail(client, "list_projects")
    assert "127.0.0.1:9) cannot be reached" in said
    assert clock.slept == [0.5, 1.0, 2.0]


async def test_a_limit_without_a_time_is_waited_for_ten_seconds(fake):
    clock = Clock()
    fake[0].script("/projects", Scripted(429, times=2))
    async with server(productive_env(fake[1]), clock) as client:
        assert (await ask(client, "list_projects"))["total"] == 3
    assert clock.slept == [10, 10]


async def test_a_limit_that_lasts_is_told_with_the_time_and_kept_by_the_next_call(fake):
    clock = Clock()
    fake[0].script("/projects", Scripted(429, {"Retry-After": "120"}))
    async with server(productive_env(fake[1]), clock) as client:
        said = await fail(client, "list_projects")
        assert "Try again in 120 s, at 08:02:00 UTC" in said  # the clock stands at 08:00
        clock.now += 30
        assert "Try again in 90 s" in await fail(client, "list_people")
        assert len(fake[0].journal) == 1  # nothing was asked that would have been refused
        clock.now += 60
        assert (await ask(client, "list_projects"))["total"] == 3
    assert clock.slept == [30]


async def test_waiting_is_bounded(fake):
    clock = Clock()
    fake[0].script("/projects", Scripted(429, {"Retry-After": "9"}, times=99))
    async with server(productive_env(fake[1]), clock) as client:
        said = await fail(client, "list_projects")
    assert "Try again in" in said
    assert sum(clock.slept) <= 50
    assert len(fake[0].journal) <= 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"start": "14.9.2026", "end": "2026-09-18"}, "YYYY-MM-DD"),
        ({"start": "20260914", "end": "2026-09-18"}, "YYYY-MM-DD"),
        ({"start": 20260914, "end": "2026-09-18"}, "YYYY-MM-DD"),
        ({"start": "2026-02-30", "end": "2026-09-18"}, "start"),
        ({"start": "2026-09-18", "end": "2026-09-14"}, "before start"),
        ({"start": "2026-01-01", "end": "2027-02-01"}, "longer than 366 days"),
        ({"start": "0001-01-01", "end": "0001-01-02"}, "outside of the years"),
        ({"start": "2026-09-14"}, "end"),
        (WEEK | {"person_ids": ["12,13"]}, "person_ids"),
        (WEEK | {"person_ids": ["../people"]}, "person_ids"),
        (WEEK | {"person_ids": ["١٢"]}, "person_ids"),
        (WEEK | {"person_id": "12"}, "person_id"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused(fake, arguments, says):
    async with server(productive_env(fake[1])) as client:
        said = await fail(client, "get_availability", **arguments)
    assert says in said
    assert fake[0].journal == []


async def test_more_than_can_be_read_is_refused_instead_of_cut(fake):
    body = {"data": [], "meta": {"current_page": 1, "total_pages": 62, "total_count": 12_345}}
    fake[0].script("/bookings", Scripted(200, {}, json.dumps(body).encode()))
    async with server(productive_env(fake[1])) as client:
        said = await fail(client, "get_availability", **WEEK)
    assert "12,345 bookings" in said
    assert "shorter window" in said


async def test_an_answer_without_end_is_cut_off(fake, monkeypatch):
    monkeypatch.setattr("sag_resourcing.upstream.BODY_BYTES", 1_000)
    async with server(productive_env(fake[1])) as client:
        assert "at once. Ask for less" in await fail(client, "list_people")


async def test_a_booking_without_days_is_an_error_and_no_free_time():
    data = make_dataset()
    data["bookings"].append(booking("999", "12", "2026-09-14", "2026-09-18", minutes=60, ended_on="2026-09-99"))
    with run(Productive(dataset=data, ignored=["after", "before"])) as url:
        async with server(productive_env(url)) as client:
            assert "booking 999 without the days" in await fail(client, "get_availability", **WEEK)


async def test_working_hours_that_cannot_be_read_are_told():
    data = make_dataset()
    data["people"] = [person("12", "Ana", "Berg", "Designer", [["2026-01-05", None, [8, 8], 65416]])]
    data["bookings"] = []
    with run(Productive(dataset=data)) as url:
        async with server(productive_env(url)) as client:
            found = await ask(client, "get_availability", **WEEK)
    assert "could not be read" in found["people"][0]["notes"][0]


# --- reading ---


def test_availabilities_are_json_in_a_string():
    calendars = {"65416": {date(2026, 12, 25): "Christmas"}}
    given = '[["2026-09-15", null, [8,8,8,8,8,0,0,8,8,8,8,8,0,0], 65416], [null, "2026-09-14", [1,2,3,4,5,6,7]]]'
    assert read_patterns(given, calendars, "65416") == [
        Pattern((8, 8, 8, 8, 8, 0, 0) * 2, date(2026, 9, 15), None, calendars["65416"]),
        Pattern((1, 2, 3, 4, 5, 6, 7), None, date(2026, 9, 14), calendars["65416"]),
    ]
    assert read_patterns("[]", {}) == read_patterns(None, {}) == read_patterns("", {}) == []
    for wrong in ('{"a": 1}', "[1]", '[["2026-09-15", null, [8]]]', "no json"):
        with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind, read_person tells of it
            read_patterns(wrong, {})


def test_a_relationship_that_was_not_asked_for_is_not_taken_for_none():
    document = {
        "data": {
            "id": "901",
            "type": "bookings",
            "relationships": {
                "person": {"data": {"type": "people", "id": "12"}},
                "service": {"meta": {"included": False}},
                "event": {"data": None},
            },
        }
    }
    record = read_records(document)[0]
    person = record.one("person")
    assert person is not None
    assert (person.id, person.get("first_name")) == ("12", None)  # named, not included
    assert record.one("service", "deal") is None
    assert record.one("event") is None


@pytest.mark.parametrize(
    ("attributes", "mode", "amount"),
    [
        ({"booking_method_id": 1, "time": 90, "total_time": 450}, "per_day", 1.5),
        ({"booking_method_id": 2, "percentage": 25, "time": 120}, "share", 0.25),
        ({"booking_method_id": 3, "total_time": 600, "time": 120}, "total", 10),
        ({"booking_method_id": 1, "time": None, "total_time": 600}, "total", 10),
        ({"time": 60}, "per_day", 1),
        ({}, "share", 0),
    ],
)
def test_a_booking_is_read_by_its_method(attributes, mode, amount):
    given = {"started_on": "2026-09-14", "ended_on": "2026-09-18"} | attributes
    related = {"person": {"data": {"type": "people", "id": "12"}}}
    document = {"data": {"id": "1", "type": "bookings", "attributes": given, "relationships": related}}
    found = read_booking(read_records(document)[0], frozenset())
    assert found is not None
    assert (found.mode, found.amount) == (mode, amount)


def test_errors_are_read_by_code_and_words():
    body = json.loads(error("not_found", "record_not_found", "Not Found", "No such", "data/id"))
    assert read_error(body) == ("record_not_found", "Not Found No such (data/id)")
    nothing: list[Any] = [None, [], {}, {"errors": []}, {"errors": ["x"]}]
    assert all(read_error(body) == ("", "") for body in nothing)


def test_notes_lose_their_html():
    assert read_note("<ul><li>Kick&amp;off</li><li>b</li></ul>") == "Kick&off  b"
