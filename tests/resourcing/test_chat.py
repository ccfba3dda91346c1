"""The question that it is all about, through a chat: both servers side by side as connectors of one hub.

The figures are those that are worked out in `test_productive` and `test_smartsheet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.resourcing.fakes import run
from tests.resourcing.fakes.productive import Productive
from tests.resourcing.fakes.smartsheet import Smartsheet
from tests.resourcing.servers import SCRIPTS, WEEK, by_name, hours, productive_env, smartsheet_env

FREE = {"Frida Aas": 31, "Ana Berg": 20, "Cara Lind": 20, "Ben Dahl": 12, "Emil Sand": 4, "Dina Moe": 0}
FREE_IN_RM = {"Ana Berg": 14, "Ben Dahl": 8, "Emil Sånd": 8, "Cara Lind": 4}


async def test_who_is_free_next_week_and_what_are_they_booked_on(tmp_path: Path) -> None:
    """With pages of two, part-time weeks, holidays and a 429 of each on the way."""
    productive, smartsheet = Productive(page_cap=2), Smartsheet(page_cap=2)
    productive.script("/bookings", productive.limit())
    smartsheet.script("/assignments", smartsheet.limit())
    model = ScriptedProvider(
        call(("productive__get_availability", WEEK), ("smartsheet__get_user_availability", WEEK)),
        call(("productive__list_projects", {}), ("smartsheet__list_projects", {})),
        say("Frida is."),
    )
    with run(productive) as productive_url, run(smartsheet) as smartsheet_url:
        servers = {
            "productive": {"command": [str(SCRIPTS / "sag-mcp-productive")], "env": productive_env(productive_url)},
            "smartsheet": {"command": [str(SCRIPTS / "sag-mcp-smartsheet")], "env": smartsheet_env(smartsheet_url)},
        }
        tables: dict[str, dict[str, Any]] = {"mcp": {"servers": servers}}
        async with running_hub(providers=[model], tables=tables, data=tmp_path) as hub, hub.client() as client:
            about = await client.subscribe("hub")
            wanted = {"productive", "smartsheet"}
            await about.until(
                lambda s: {n for n, c in s["connectors"].items() if c["status"] == "ready"} >= wanted, timeout_s=30
            )
            question = [{"kind": "text", "text": "Who is free next week, and what are they booked on?"}]
            started = await client.call("run.start", {"input": question})
            topic = await client.subscribe(f"conv:{started['conv']}")
            state = await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done", timeout_s=40)
    used = {(t["origin"], t["name"]): t for t in state["tools"].values()}
    assert all(t["status"] == "ok" for t in used.values()), used
    of_productive = used["productive", "get_availability"]["result"]["data"]
    of_smartsheet = used["smartsheet", "get_user_availability"]["result"]["data"]

    assert {name: p["totals"].get("free", 0) for name, p in by_name(of_productive).items()} == FREE
    assert hours(of_productive["everyone"]) == (180, 16, 16, 68, 10, 87, 7)
    ana = by_name(of_productive)["Ana Berg"]["totals"]
    assert ana["on"] == {"Website relaunch: Design": 12, "App: Research": 8}
    assert by_name(of_productive)["Ben Dahl"]["holidays"] == {"2026-09-16": "Town day"}

    assert {name: p["totals"].get("free", 0) for name, p in by_name(of_smartsheet).items()} == FREE_IN_RM
    assert hours(of_smartsheet["everyone"]) == (132, 24, 12, 62, 2, 34, 2)
    assert by_name(of_smartsheet)["Ana Berg"]["totals"]["on"] == {"Website relaunch: Build": 16, "App": 2}

    # Each has its own `list_projects`, and the model reads which is which.
    projects = {origin: t["result"]["data"] for (origin, name), t in used.items() if name == "list_projects"}
    assert projects.keys() == wanted
    assert projects["productive"] != projects["smartsheet"]
    read = model.requests[1].messages
    assert any('"everyone"' in m.text for m in read if m.role == "tool")
    # The 429 were on the way, and pages: each was asked again.
    assert len(productive.asked("/bookings")) == 8
    assert len(smartsheet.asked("/assignments")) == 6
