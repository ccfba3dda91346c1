"""The names under which models know tools, and which tools a run is offered."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from sag.engine.toolbox import Toolbox, is_on, legal_name
from sag.testing.provider import call, say
from tests.connectors import FakeConnector, make_tool

LEGAL = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CONNECTORS = ["", "a", "a_", "a__b", "time", "smartsheet-rm", "x" * 40]
NAMES = [
    "b", "_b", "__b", "b__c", "b_", "list_projects", "list-projects", "list.projects", "list/projects", "list projects",
    "größe", "list_projects" * 6, "list_projects" * 6 + "2", "x" * 64, "x" * 62, "tool\n", "a/b", "a", "time__b",
    "é", "e\u0301", " ", "", "…", "日本", "日本2",
]  # fmt: skip


def test_every_name_is_legal_and_no_two_are_the_same() -> None:
    names: dict[str, tuple[str, str]] = {}
    for connector, name in itertools.product(CONNECTORS, NAMES):
        legal = legal_name(name, connector)
        assert LEGAL.fullmatch(legal), (connector, name, legal)
        assert names.setdefault(legal, (connector, name)) == (connector, name)
        assert legal == legal_name(name, connector)


def test_names_that_may_stay_do() -> None:
    assert legal_name("list_projects") == "list_projects"
    assert legal_name("list_projects", "productive") == "productive__list_projects"
    assert legal_name("x" * 57, "abcde") == f"abcde__{'x' * 57}"
    assert legal_name("x" * 58, "abcde").startswith("abcde__xxx")
    assert legal_name("list.projects", "a").startswith("a__list_projects_")


def test_a_name_does_not_depend_on_who_else_is_there() -> None:
    alone = Toolbox([make_tool("list", connector="two")], {})
    among = Toolbox([make_tool("list"), make_tool("list", connector="one"), make_tool("list", connector="two")], {})
    assert {s.name for s in alone.specs()} <= {s.name for s in among.specs()}
    assert len(among.specs()) == 3


def test_a_tool_is_found_by_the_models_name_and_by_its_key_and_by_no_other() -> None:
    one, two = make_tool("list", connector="one"), make_tool("list", connector="two")
    box = Toolbox([one, two], {})
    assert box.find("one__list") is box.find("one/list") is one
    assert box.find("two__list") is box.find("two/list") is two
    for name in ("list", "one", "one_list", "", "three__list", "One__list"):
        assert box.find(name) is None


def test_a_model_may_leave_out_the_digest_where_no_other_tool_is_meant() -> None:
    show, odd, even = (
        make_tool("screen.show"),
        make_tool("list.all", connector="one"),
        make_tool("list all", connector="one"),
    )
    box = Toolbox([show, odd, even], {})
    assert box.find("screen_show") is box.find(legal_name("screen.show")) is show
    assert box.find("one__list_all") is None
    assert box.find(legal_name("list all", "one")) is even


def test_a_client_takes_no_name_of_the_hubs() -> None:
    mine, theirs, other = make_tool("list"), make_tool("list", origin="client"), make_tool("one/list")
    of_connector = make_tool("list", connector="one")
    lookalike = make_tool("one__list", origin="client")
    box = Toolbox([mine, of_connector, theirs, other, lookalike], {})
    assert box.find("list") is mine
    assert box.find("one/list") is of_connector
    assert box.find("one__list") is of_connector
    assert len({s.name for s in box.specs()}) == len(box.specs()) == 3


@pytest.mark.parametrize(
    ("switched", "on"),
    [
        ({}, [True, True, True]),
        ({"one": False}, [False, False, True]),
        ({"one": False, "one/list": True}, [True, False, True]),
        ({"one/list": False}, [False, True, True]),
        ({"list": False}, [True, True, False]),
        ({"": False}, [True, True, True]),
    ],
)
def test_a_tools_own_switch_counts_before_its_connectors(switched: dict[str, bool], on: list[bool]) -> None:
    tools = [make_tool("list", connector="one"), make_tool("get", connector="one"), make_tool("list")]
    assert [is_on(tool, switched) for tool in tools] == on
    box = Toolbox(tools, switched)
    assert [box.find(tool.key) is tool for tool in tools] == on
    assert len(box.specs()) == sum(on)


# --- in runs ---


async def test_two_connectors_with_the_same_tool_both_work_in_one_step(bench: Any) -> None:
    def of(name: str) -> FakeConnector:
        async def say_name(args: Any, ctx: Any) -> str:
            return name

        return FakeConnector(name, make_tool("list_projects", say_name, description=f"Of {name}."))

    both = call(("productive__list_projects", {}), ("smartsheet__list_projects", {}), ("list_projects", {}))
    hub = await bench(both, say("done"), connectors=[of("productive"), of("smartsheet")])
    state = await hub.end(await hub.start("go"))
    told = {(t["origin"], t["name"], t.get("connector")): t.get("result") for t in state["tools"].values()}
    assert told == {
        ("productive", "list_projects", "productive"): "productive",
        ("smartsheet", "list_projects", "smartsheet"): "smartsheet",
        ("", "list_projects", None): None,
    }
    described = {s.name: s.description for s in hub.provider.requests[0].tools if "projects" in s.name}
    assert described == {
        "productive__list_projects": "Of productive.", "smartsheet__list_projects": "Of smartsheet.",
    }  # fmt: skip
    again = [p.name for m in hub.provider.requests[1].messages for p in m.parts if hasattr(p, "arguments")]
    assert again == ["productive__list_projects", "smartsheet__list_projects", "list_projects"]


async def test_a_transcript_keeps_its_names_when_the_connector_is_gone(bench: Any) -> None:
    odd = FakeConnector("odd", make_tool("größe.messen"))
    legal = legal_name("größe.messen", "odd")
    hub = await bench(call((legal, {})), say("1"), say("2"), connectors=[odd])
    started = await hub.start("go")
    state = await hub.end(started)
    assert [t["name"] for t in state["tools"].values()] == ["größe.messen"]
    await hub.app.extensions.connectors.drop("odd")
    await hub.end(await hub.start("more", conv=started["conv"]))
    sent = [p.name for m in hub.provider.requests[2].messages for p in m.parts if hasattr(p, "arguments")]
    assert sent == [legal]
    assert not any("odd" in s.name for s in hub.provider.requests[2].tools)


@pytest.mark.parametrize("scope", ["client", "conv", "run"])
async def test_a_switch_of_a_connector_or_a_tool_works_at_every_scope(bench: Any, scope: str) -> None:
    files = FakeConnector("files", make_tool("read"), make_tool("write"))
    hub = await bench(say("0"), say("1"), connectors=[files])
    started = await hub.start("go")
    await hub.end(started)
    switches = {"files": False, "files/read": True}
    if scope == "client":
        tools = {key: {"enabled": on} for key, on in switches.items()}
        await hub.call("config.patch", scope="client:chat", patch={"tools": tools})
    elif scope == "conv":
        await hub.call("config.patch", scope=f"conv:{started['conv']}", patch={"tools": switches})
    config = {"tools": switches} if scope == "run" else {}
    await hub.end(await hub.start("go", conv=started["conv"], config=config))
    offered = [{s.name for s in r.tools if "files" in s.name} for r in hub.provider.requests]
    assert offered == [{"files__read", "files__write"}, {"files__read"}]


async def test_a_tool_that_is_switched_off_in_mid_run_is_unknown_to_the_next_step(bench: Any) -> None:
    files = FakeConnector("files", make_tool("read"))
    hub = await bench(call(("files__read", {})), call(("files__read", {})), say("done"), connectors=[files])

    async def off(args: Any, ctx: Any) -> str:
        await ctx.patch(f"run:{ctx.run}", {"tools": {"files/read": False}})
        return "off now"

    files.offered = [make_tool("read", off)]
    files.tell()
    started = await hub.start("go")
    state = await hub.end(started)
    assert [t["status"] for t in state["tools"].values()] == ["ok", "invalid"]
    assert [any(s.name == "files__read" for s in r.tools) for r in hub.provider.requests] == [True, False, False]
