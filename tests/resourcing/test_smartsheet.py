"""The server for Smartsheet Resource Management against a fake: over stdio with the SDK's client, and in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date
from email.utils import formatdate

import httpx
import pytest
from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError

from sag_resourcing.smartsheet import build
from sag_resourcing.smartsheet_api import Calendar, join_next, read_assignables, read_assignment, read_person, read_wait
from tests.resourcing.fakes import Scripted, run
from tests.resourcing.fakes.smartsheet import TOKEN, Smartsheet, assignment, block, entry, make_dataset, project, user
from tests.resourcing.servers import (
    ERAS,
    WEEK,
    Clock,
    ask,
    by_name,
    fail,
    hours,
    over_stdio,
    smartsheet_env,
)

TOOLS = ["list_users", "get_user_availability", "list_projects", "list_assignments", "get_time_entries"]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Smartsheet, str]]:
    smartsheet = Smartsheet()
    with run(smartsheet) as url:
        yield smartsheet, url


@pytest.fixture
def fake(served: tuple[Smartsheet, str]) -> tuple[Smartsheet, str]:
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
    """With pages of two, nested ones too, a part-time week, a holiday on Thursday and a 429 on the way."""
    fake = Smartsheet(page_cap=2)
    fake.script("/assignments", fake.limit())
    log = tmp_path / "stderr"
    with run(fake) as url:
        async with over_stdio("sag-mcp-smartsheet", smartsheet_env(url), mode, log) as client:
            assert (client.protocol_version < "2026") == (mode == "legacy")
            found = await ask(client, "get_user_availability", **WEEK)
    people = by_name(found)
    assert [*people] == ["Ana Berg", "Ben Dahl", "Emil Sånd", "Cara Lind"]  # archived Dina and the placeholder are not

    # Ana has the account's week, five days of 8, without Thursday: 32. Half of each on a phase (16), and 2 h on Friday
    # on a tentative project, which counts unless it is not to.
    # 40 - 8 - 16 - 2 = 14.
    ana = people["Ana Berg"]
    assert hours(ana["totals"]) == (40, 8, 0, 16, 2, 14, 0)
    assert ana["totals"]["on"] == {"Website relaunch: Build": 16, "App": 2}
    assert [day["free"] for day in ana["spans"]] == [4, 4, 4, 0, 2]
    assert ana["holidays"] == {"2026-09-17": "Founders' day"}
    assert [(b["id"], b["hours"], b["project_id"], b.get("tentative", False)) for b in ana["bookings"]] == [
        ("889", 16, "501", False),
        ("890", 2, "502", True),
    ]

    # Ben's own hours: 8 on Monday and Tuesday, and from the 16th 4 on Wednesday and 8 on Thursday (the holiday): 28.
    # 12 h are spread over the 10th to the 16th, of which Monday, Tuesday and Wednesday are working days: 4 each.
    # 28 - 8 - 12 = 8: Monday 4, Tuesday 4, Wednesday 0.
    ben = people["Ben Dahl"]
    assert hours(ben["totals"]) == (28, 8, 0, 12, 0, 8, 0)
    assert [(day["start"], day["capacity"], day["free"]) for day in ben["spans"]] == [
        ("2026-09-14", 8, 4),
        ("2026-09-15", 8, 4),
        ("2026-09-16", 4, 0),
        ("2026-09-17", 8, 0),
    ]

    # Cara leaves on Wednesday: three days of 8. Monday is vacation; 6 h a day from Tuesday on, of which two days count.
    # 24 - 8 - 12 = 4.
    assert hours(people["Cara Lind"]["totals"]) == (24, 0, 8, 12, 0, 4, 0)

    # Emil: 6 h from Monday to Wednesday (18) and half of Monday on top (4), so Monday has 2 h too many. 4 h of Friday
    # he is sick. Tuesday 2, Wednesday 2 and Friday 4 are left: 40 - 8 - 4 - 22 = 6 = 8 - 2.
    emil = people["Emil Sånd"]
    assert hours(emil["totals"]) == (40, 8, 4, 22, 0, 8, 2)
    assert emil["totals"]["away"] == {"Sick": 4}

    # Everybody: 40 + 28 + 24 + 40 = 132, and 132 - 24 - 12 - 62 - 2 = 32 = 34 - 2.
    assert hours(found["everyone"]) == (132, 24, 12, 62, 2, 34, 2)
    assert (found["window"], found["units"], found["tentative_counted"]) == ("2026-09-14 to 2026-09-18", "hours", True)

    assert [asked.get("page") for asked in fake.asked("/users")] == [None, "2"]
    assert len(fake.asked("/users/119/availabilities")) == 1  # the rest of a nested list
    assignments = fake.asked("/assignments")
    assert [asked.get("page") for asked in assignments] == [None, None, "2", "3", "4", "5"]
    assert {(a.get("from"), a.get("to"), a.get("with_phases")) for a in assignments} == {
        ("2026-09-13", "2026-09-19", "true")
    }
    assert assignments[1].at >= int(assignments[0].at) + 1  # not before the reset
    assert {asked.method for asked in fake.journal} == {"GET"}
    assert all(TOKEN not in value for asked in fake.journal for _, value in asked.query)
    assert "rate limit" in log.read_text()
    assert TOKEN not in log.read_text()


async def test_tentative_projects_can_be_left_out_of_the_count(fake):
    async with server(smartsheet_env(fake[1])) as client:
        found = await ask(client, "get_user_availability", **WEEK, user_ids=["118"], count_tentative=False)
    assert hours(found["people"][0]["totals"]) == (40, 8, 0, 16, 2, 16, 0)
    assert [asked.path for asked in fake[0].journal if "assignments" in asked.path] == ["/api/v1/users/118/assignments"]


async def test_day0_is_sunday(fake):
    # From the 16th on Ben has 2 h on Sundays, 4 on Wednesdays and 8 on Thursdays.
    async with server(smartsheet_env(fake[1])) as client:
        found = await ask(client, "get_user_availability", start="2026-09-20", end="2026-09-26", user_ids=["119"])
    assert {day["start"]: day["capacity"] for day in found["people"][0]["spans"]} == {
        "2026-09-20": 2,
        "2026-09-23": 4,
        "2026-09-24": 8,
    }


async def test_the_accounts_week_is_a_setting(fake):
    # 7.5 h from Monday to Thursday, of which one is the holiday. Half of each day: 11.25; the App has no day left on
    # Friday to fall on within the window, but Monday the 21st.
    env = smartsheet_env(fake[1], SMARTSHEET_RM_WEEK="7.5, 7.5, 7.5, 7.5, 0, 0, 0")
    async with server(env) as client:
        found = await ask(client, "get_user_availability", **WEEK, query="berg")
    assert hours(found["people"][0]["totals"]) == (30, 7.5, 0, 11.25, 0, 11.25, 0)


async def test_users_are_found_by_parts_of_their_names_whatever_the_accents(fake):
    async with server(smartsheet_env(fake[1])) as client:
        emil = await ask(client, "list_users", query="SAND emil")
        developers = await ask(
            client, "list_users", query="developer", include_archived=True, include_placeholders=True
        )
        everybody = await ask(client, "list_users", limit=3)
    assert emil["users"] == [
        {
            "id": "122",
            "name": "Emil Sånd",
            "email": "emil@example.test",
            "role": "Tester",
            "discipline": "Engineering",
            "location": "Oslo",
            "user_type": "portfolio editor",
        }
    ]
    assert [(u["name"], u.get("archived", False), u.get("placeholder", False)) for u in developers["users"]] == [
        ("Ben Dahl", False, False),
        ("Cara Lind", False, False),
        ("Developer (open)", False, True),
        ("Dina Moe", True, False),
    ]
    assert (everybody["shown"], everybody["total"], everybody["cut"]) == (3, 4, True)


async def test_projects_are_listed_with_state_and_phases(fake):
    async with server(smartsheet_env(fake[1])) as client:
        projects = await ask(client, "list_projects")
        phases = await ask(client, "list_projects", query="relaunch", include_phases=True)
        tentative = await ask(client, "list_projects", states=["Tentative"], include_archived=True)
        archived = await ask(client, "list_projects", include_archived=True)
    assert [(p["id"], p["name"], p["state"]) for p in projects["projects"]] == [
        ("502", "App", "Tentative"),
        ("501", "Website relaunch", "Confirmed"),
    ]
    assert [(p["id"], p.get("phase"), p.get("parent_id")) for p in phases["projects"]] == [
        ("501", None, None),
        ("511", "Build", "501"),
    ]
    assert [p["id"] for p in tentative["projects"]] == ["502"]
    assert [p["id"] for p in archived["projects"] if p.get("archived")] == ["503"]


async def test_assignments_are_listed_with_their_hours_in_the_window(fake):
    async with server(smartsheet_env(fake[1])) as client:
        everything = await ask(client, "list_assignments", **WEEK)
        relaunch = await ask(client, "list_assignments", **WEEK, project_id="501")
        phase = await ask(client, "list_assignments", **WEEK, project_id="511")
        leave = await ask(client, "list_assignments", **WEEK, kind="absence")
        of_two = await ask(client, "list_assignments", **WEEK, user_ids=["118", "122"], kind="work")
    listed = {b["id"]: (b["person"], b["what"], b["hours"], b["planned_as"]) for b in everything["bookings"]}
    assert listed["889"] == ("Ana Berg", "Website relaunch: Build", 16, "50 % of each day's hours")
    assert listed["891"] == ("Ben Dahl", "Website relaunch", 12, "12 h in all")
    assert listed["893"] == ("Cara Lind", "Website relaunch", 12, "6 h per working day")
    assert listed["897"] == ("Developer (open)", "Website relaunch", 32, "8 h per working day")
    assert listed["898"] == ("Dina Moe", "Website relaunch", 32, "8 h per working day")
    assert "899" not in listed
    assert sorted(b["id"] for b in relaunch["bookings"]) == ["889", "891", "893", "894", "895", "897", "898"]
    assert sorted(b["id"] for b in phase["bookings"]) == ["889", "895"]
    assert {b["id"]: b["what"] for b in leave["bookings"]} == {"892": "Vacation", "896": "Sick"}
    assert sorted(b["id"] for b in of_two["bookings"]) == ["889", "890", "894", "895"]
    # 889: 16, 890: 2, 894: 18, 895: 4.
    assert of_two["hours"] == 40


async def test_suggestions_have_no_hours_and_are_not_summed(fake):
    window = {"start": "2026-09-07", "end": "2026-09-11"}
    async with server(smartsheet_env(fake[1])) as client:
        confirmed = await ask(client, "get_time_entries", **window)
        suggested = await ask(client, "get_time_entries", **window, include_suggestions=True, user_ids=["119"])
        relaunch = await ask(client, "get_time_entries", **window, project_id="501")
    # 6.5 + 8 of Ana, the latter vacation, and 4 of Ben; the entry of the 12th is outside.
    assert confirmed["hours"] == 18.5
    assert [(s["name"], s["hours"]) for s in confirmed["by_person"]] == [("Ana Berg", 14.5), ("Ben Dahl", 4)]
    assert [(s["name"], s["hours"]) for s in confirmed["by_project"]] == [("Website relaunch", 10.5), ("Vacation", 8)]
    assert "suggested" not in confirmed
    assert (suggested["hours"], suggested["suggested"], suggested["total"]) == (4, 6, 2)
    assert [(e["hours"], e.get("suggested"), e.get("status")) for e in suggested["entries"]] == [
        (4, None, None),
        (0, 6, "suggested"),
    ]
    assert [e["what"] for e in relaunch["entries"]] == ["Website relaunch: Build", "Website relaunch"]


async def test_a_suggestion_is_none_of_the_hours_and_an_entry_that_comes_twice_counts_once(fake):
    items = [entry(701, 118, 501, "Project", "2026-09-07", 2, None)] * 2  # it moved to the next page meanwhile
    items.append(entry(702, 118, 501, "Project", "2026-09-07", 3, 6) | {"is_suggestion": True})
    fake[0].script("/time_entries", Scripted(200, {}, json.dumps({"data": items, "paging": {}}).encode(), times=2))
    window = {"start": "2026-09-07", "end": "2026-09-11"}
    async with server(smartsheet_env(fake[1])) as client:
        unasked = await ask(client, "get_time_entries", **window)
        asked = await ask(client, "get_time_entries", **window, include_suggestions=True)
    assert (unasked["hours"], unasked["total"]) == (2, 1)
    assert (asked["hours"], asked["suggested"], asked["total"]) == (2, 6, 2)


# --- what goes wrong ---


async def test_without_settings_the_tools_are_listed_and_say_what_to_set(tmp_path):
    async with over_stdio("sag-mcp-smartsheet", {}, "2026-07-28", tmp_path / "stderr") as client:
        tools = (await client.list_tools()).tools
        said = await fail(client, "list_users")
    assert [tool.name for tool in tools] == TOOLS
    assert "SMARTSHEET_RM_API_TOKEN is not set" in said
    for tool in tools:
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert tool.annotations.idempotent_hint
        assert tool.output_schema is not None
        assert tool.input_schema["additionalProperties"] is False
        assert all(p.get("description") for p in tool.input_schema["properties"].values()), tool.name


@pytest.mark.parametrize(
    "week", ["8,8,8,8,8", "8,8,8,8,8,0,0,0", "8,8,8,8,eight,0,0", "8,8,8,8,25,0,0", "8,8,8,8,-1,0,0"]
)
async def test_a_week_that_is_none_is_named(week):
    async with server(smartsheet_env("http://127.0.0.1:9", SMARTSHEET_RM_WEEK=week)) as client:
        assert "SMARTSHEET_RM_WEEK has to be seven numbers" in await fail(client, "list_users")


async def test_a_token_of_the_wrong_product_is_told_on_both_sides(fake):
    async with server(smartsheet_env(fake[1], SMARTSHEET_RM_API_TOKEN="token-of-sheets-42")) as client:
        said = await fail(client, "list_users")  # a 401 without a body
    assert "a token of Smartsheet 2.0" in said
    assert "token-of-sheets-42" not in said
    with run(Smartsheet(sheets=True)) as url:
        async with server(smartsheet_env(url)) as client:
            said = await fail(client, "list_users")
    assert "is Smartsheet 2.0" in said
    assert "SMARTSHEET_RM_BASE_URL" in said
    assert "Your Access Token is invalid." in said


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Scripted(403), "administrators only"),
        (Scripted(404), "nothing at /api/v1/users"),
        (Scripted(422, {}, b'{"message": "bad sort"}'), "It says: bad sort"),
        (Scripted(409), "HTTP 409"),
        (Scripted(500, times=9), "fails at the moment (HTTP 500)"),
        (Scripted(200, {}, b""), "without the JSON that was expected"),
    ],
)
async def test_each_refusal_says_what_to_do(fake, answer, says):
    fake[0].script("/users", answer)
    async with server(smartsheet_env(fake[1])) as client:
        assert says in await fail(client, "list_users")


async def test_an_unknown_user_is_told(fake):
    async with server(smartsheet_env(fake[1])) as client:
        said = await fail(client, "get_user_availability", **WEEK, user_ids=["999"])
    assert "nothing at /api/v1/users/999" in said
    assert "list_users" in said


async def test_availabilities_that_are_not_embedded_are_asked_for():
    fake = Smartsheet()
    fake._with_nested = lambda i, asked: i  # type: ignore[method-assign]
    with run(fake) as url:
        async with server(smartsheet_env(url)) as client:
            found = await ask(client, "get_user_availability", **WEEK, user_ids=["119"])
    assert hours(found["people"][0]["totals"])[0] == 28


async def test_a_page_that_leads_back_or_elsewhere_is_not_followed(fake):
    again = b'{"data": [{"id": 1}], "paging": {"next": "/api/v1/holidays?page=1"}}'
    away = b'{"data": [{"id": 1}], "paging": {"next": "http://127.0.0.1:9/api/v1/holidays?page=2"}}'
    fake[0].script("/holidays", Scripted(200, {}, again, times=3), Scripted(200, {}, away))
    async with server(smartsheet_env(fake[1])) as client:
        assert "the same page of holidays" in await fail(client, "get_user_availability", **WEEK)
        fake[0].scripts["/holidays"][0].times = 0
        assert "another host" in await fail(client, "get_user_availability", **WEEK)


async def test_an_assignment_to_something_unknown_counts_and_is_named():
    data = make_dataset()
    data["assignments"] = [assignment(1, 118, 12345, "2026-09-14", "2026-09-14", "hours_per_day", 3)]
    with run(Smartsheet(dataset=data)) as url:
        async with server(smartsheet_env(url)) as client:
            found = await ask(client, "get_user_availability", **WEEK, user_ids=["118"])
    assert found["people"][0]["totals"]["on"] == {"unknown project 12345": 3}


async def test_a_limit_without_a_time_is_waited_for_ten_seconds(fake):
    clock = Clock()
    fake[0].script("/users", Scripted(429, times=2))
    async with server(smartsheet_env(fake[1]), clock) as client:
        assert (await ask(client, "list_users"))["total"] == 4
    assert clock.slept == [10, 10]


# --- reading ---


def test_the_reset_is_a_moment_by_the_servers_clock():
    now = 1_800_000_000.0
    at = {"Date": formatdate(now - 3600, usegmt=True)}  # this machine is an hour ahead
    reset = {"X-RateLimit-Reset": f"{now - 3600 + 20:.0f}"}
    assert read_wait(httpx.Headers(at | reset), now) == 20
    assert read_wait(httpx.Headers({"X-RateLimit-Reset": f"{now + 7:.0f}"}), now) == 7
    assert read_wait(httpx.Headers({"X-RateLimit-Reset": "30"}), now) == 1  # long ago: it may be asked again
    assert read_wait(httpx.Headers({"Retry-After": "4"}), now) == 4
    assert read_wait(httpx.Headers({"X-RateLimit-Reset": "soon"}), now) is None
    assert read_wait(httpx.Headers({}), now) is None


@pytest.mark.parametrize(
    ("base", "following", "expected"),
    [
        ("https://a.test/api/v1", "/api/v1/users?page=2", "https://a.test/api/v1/users?page=2"),
        ("https://a.test/2.0/rm/api/v1", "/api/v1/users?page=2", "https://a.test/2.0/rm/api/v1/users?page=2"),
        ("https://a.test/2.0/rm/api/v1", "/2.0/rm/api/v1/users?page=2", "https://a.test/2.0/rm/api/v1/users?page=2"),
        ("https://a.test/api/v1", "https://a.test/api/v1/users?page=2", "https://a.test/api/v1/users?page=2"),
    ],
)
def test_next_is_joined_to_the_host(base, following, expected):
    assert join_next(base, following) == expected


@pytest.mark.parametrize(
    "following",
    ["https://b.test/api/v1/users", "//b.test/users", "http://a.test/users", "https://a.test:444/", "http://["],
)
def test_next_never_takes_the_token_to_another_host(following):
    with pytest.raises(ToolError, match="another host"):
        join_next("https://a.test/api/v1", following)


def test_own_hours_win_over_the_accounts_week_also_without_a_start():
    calendar = Calendar((8, 8, 8, 8, 8, 0, 0), {})
    ben = read_person(
        user(119, "Ben", "Dahl", "Developer"), [block(1, 119, None, None, [0, 4, 4, 4, 4, 4, 0])], calendar
    )
    assert ben.capacity(date(2026, 9, 14)) == 4
    assert ben.notes == []
    twice = [block(1, 119, None, None, [0, 4, 4, 4, 4, 4, 0]), block(2, 119, "2026-09-01", None, [0, 2, 2, 2, 2, 2, 0])]
    ben = read_person(user(119, "Ben", "Dahl", "Developer"), twice, calendar)
    assert ben.capacity(date(2026, 9, 14)) == 2
    assert "overlap" in ben.notes[0]


@pytest.mark.parametrize(
    ("given", "mode", "amount"),
    [
        ({"allocation_mode": "percent", "percent": 0.25}, "share", 0.25),
        ({"allocation_mode": "hours_per_day", "hours_per_day": 3}, "per_day", 3),
        ({"allocation_mode": "fixed", "fixed_hours": 20}, "total", 20),
        ({"percent": 1.0}, "share", 1),
        ({"allocation_mode": None, "hours_per_day": 2}, "per_day", 2),
        ({"allocation_mode": "percent"}, "share", 0),
    ],
)
def test_an_assignment_is_read_by_its_mode(given, mode, amount):
    assignables = read_assignables([project(501, "Website relaunch", "Confirmed")], [{"id": 2, "name": "Vacation"}])
    item = {"id": 1, "user_id": 118, "assignable_id": 501, "starts_at": "2026-09-14", "ends_at": "2026-09-18"}
    found = read_assignment(item | given, assignables)
    assert (found.mode, found.amount, found.kind, found.what) == (mode, amount, "work", "Website relaunch")
    away = read_assignment(item | {"assignable_id": 2}, assignables)
    assert (away.mode, away.amount, away.kind) == ("share", 1, "absence")  # leave without an amount is whole days
