"""Which calls go ahead, ask or are refused: whose word counts, what is remembered, what becomes of changed tools."""

from __future__ import annotations

from typing import Any

import pytest

from sag.engine.approvals import Approvals, Verdict
from sag.errors import Fault
from sag.hooks.connector import Health
from sag.hooks.tool import SampleMessage, TextContent, Tool
from sag.ops.dispatch import User
from sag.testing.provider import call, say
from tests.connectors import FakeConnector, make_tool
from tests.engine.conftest import ADA, CALLED

Json = dict[str, Any]
OPTIONS = ["allow_once", "allow_run", "allow_always", "deny"]


class Kept:
    """A store and a transaction in memory."""

    def __init__(self) -> None:
        self.rows: Json = {}
        self.later: list[Any] = []

    async def list(self, space: str, prefix: str = "") -> Json:
        return dict(self.rows)

    def write(self, tx: Any, space: str, key: str, value: Any) -> None:
        self.rows[key] = value

    def drop(self, tx: Any, space: str, key: str) -> None:
        del self.rows[key]

    def after(self, do: Any) -> None:
        do()


def offered(**given: Any) -> Tool:
    return make_tool("read", connector="files", **given)


def approvals(of: Tool | None = None, **decided: Any) -> Approvals:
    """What a user decided of the tool that is offered, and of its connector."""
    kept: Any = Kept()
    found, tool = Approvals(kept), of or offered()
    if "tool" in decided:
        found.remember(kept, ADA, "files/read", decided["tool"], tool.fingerprint, tool.definition)
    if "connector" in decided:
        found.remember(kept, ADA, "files", decided["connector"])
    return found


@pytest.mark.parametrize(
    ("admin", "device", "user", "risk", "policy"),
    [
        (None, {}, {}, "read", "auto"),
        (None, {}, {}, "write", "auto"),
        (None, {}, {}, "danger", "ask"),
        ("ask", {}, {}, "read", "ask"),
        ("auto", {}, {}, "danger", "auto"),
        ("deny", {"files/read": "auto", "files": "auto"}, {"tool": "auto", "connector": "auto"}, "read", "deny"),
        ("ask", {}, {"connector": "auto"}, "danger", "auto"),
        ("auto", {}, {"connector": "deny"}, "read", "deny"),
        (None, {"files": "ask"}, {"connector": "auto"}, "read", "ask"),
        (None, {"files": "deny"}, {"tool": "auto"}, "read", "auto"),
        (None, {"files": "auto"}, {"tool": "deny"}, "read", "deny"),
        (None, {"files/read": "auto"}, {"tool": "deny"}, "danger", "auto"),
        (None, {"files/read": "deny", "files": "auto"}, {"tool": "auto", "connector": "auto"}, "read", "deny"),
        (None, {"files/write": "deny"}, {}, "read", "auto"),
    ],
)
def test_the_nearest_word_counts_and_an_administrators_refusal_above_all(
    admin: Any, device: Json, user: Json, risk: str, policy: str
) -> None:
    switches = {key: {"policy": wanted} for key, wanted in device.items()}
    tool = offered(policy=admin, risk=risk)
    assert approvals(tool, **user).decide(ADA, tool, switches, {}).policy == policy


def test_what_one_user_decided_is_not_anothers() -> None:
    found = approvals(tool="deny", connector="deny")
    assert found.decide(User("bob", "Bob"), offered(), {}, {}).policy == "auto"
    assert [key for key, _ in found.of(ADA)] == ["files/read", "files"]
    assert list(found.of(User("bob", "Bob"))) == []


@pytest.mark.parametrize(
    "change", [{"description": "Other."}, {"risk": "danger"}, {"input": {"type": "object", "title": "new"}}]
)
def test_what_was_allowed_for_always_holds_for_the_definition_that_was_shown(change: Json) -> None:
    found = approvals(tool="auto")
    assert found.decide(ADA, offered(), {}, {}) == Verdict("auto")
    assert found.decide(ADA, offered(title="Another title", timeout_s=1), {}, {}) == Verdict("auto")
    asked = found.decide(ADA, offered(**change), {}, {})
    assert (asked.policy, asked.always, asked.changed) == ("ask", True, offered().definition)
    assert found.decide(ADA, offered(**change), {"files": {"policy": "auto"}}, {}).policy == "ask"


def test_the_order_of_members_is_no_change() -> None:
    one: Json = {"type": "object", "properties": {"a": {}, "b": {}}}
    other: Json = {"properties": {"b": {}, "a": {}}, "type": "object"}
    assert offered(input=one).fingerprint == offered(input=other).fingerprint


@pytest.mark.parametrize("policy", ["ask", "deny"])
def test_a_refusal_holds_for_a_tool_that_has_changed(policy: str) -> None:
    assert approvals(tool=policy).decide(ADA, offered(description="Other."), {}, {}).policy == policy


def test_what_was_allowed_for_the_run_overrules_asking_and_no_refusal() -> None:
    tool = offered(risk="danger")
    allowed = {"files/read": tool.fingerprint}
    assert approvals().decide(ADA, tool, {}, allowed).policy == "auto"
    assert approvals().decide(ADA, tool, {"files": {"policy": "ask"}}, allowed).policy == "auto"
    assert approvals(tool="ask").decide(ADA, tool, {}, allowed).policy == "auto"
    assert approvals().decide(ADA, offered(risk="danger", description="Other."), {}, allowed).policy == "ask"
    assert approvals().decide(ADA, tool, {"files/read": {"policy": "deny"}}, allowed).policy == "deny"
    assert approvals(connector="deny").decide(ADA, tool, {}, allowed).policy == "deny"
    assert approvals().decide(ADA, offered(risk="danger", policy="deny"), {}, allowed).policy == "deny"


def test_a_device_that_wants_to_be_asked_each_time_does_not_offer_always() -> None:
    assert approvals().decide(ADA, offered(), {"files/read": {"policy": "ask"}}, {}).always is False
    assert approvals().decide(ADA, offered(), {"files": {"policy": "ask"}}, {}).policy == "ask"


async def test_what_was_kept_before_definitions_were_is_read() -> None:
    kept: Any = Kept()
    kept.rows = {"ada launch": True, "ada files/a b": {"policy": "deny"}, "ada files": {"policy": "ask", "ts": 7}}
    found = Approvals(kept)
    await found.load()
    assert {key: (r.policy, r.ts) for key, r in found.of(ADA)} == {
        "launch": ("auto", 0), "files/a b": ("deny", 0), "files": ("ask", 7),
    }  # fmt: skip


# --- in runs ---


async def asked(hub: Any, started: Any) -> tuple[str, Json]:
    state = await hub.until(started["conv"], lambda s: s["asks"])
    ((ask, opened),) = state["asks"].items()
    return ask, opened


def status(state: Json) -> list[str]:
    return [t["status"] for t in state["tools"].values()]


def files(**given: Any) -> FakeConnector:
    async def read(args: Any, ctx: Any) -> str:
        CALLED.append(args)
        return "content"

    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    return FakeConnector("files", make_tool("read", read, **{"input": schema, "risk": "danger", **given}))


READ = call(("files__read", {"path": "a"}))


async def test_a_tool_that_has_changed_asks_again_and_shows_before_and_after(bench: Any) -> None:
    connector = files(description="Reads.")
    hub = await bench(READ, say("1"), READ, say("2"), READ, say("3"), connectors=[connector])
    started = await hub.start("go")
    ask, opened = await asked(hub, started)
    assert "changed" not in opened["subject"]
    assert opened["options"] == OPTIONS
    assert opened["schema"] == connector.offered[0].input
    before = connector.offered[0].definition
    await hub.call("ask.answer", ask=ask, choice="allow_always")
    await hub.end(started)
    started = await hub.start("again")  # not asked
    await hub.end(started)
    connector.offered = files(description="Reads, and sends away.").offered
    connector.tell()
    started = await hub.start("and again")
    ask, opened = await asked(hub, started)
    assert opened["subject"]["changed"] == {"before": before, "after": connector.offered[0].definition}
    assert opened["options"] == OPTIONS
    (policy,) = (await hub.call("tool.policy.list"))["policies"]
    assert (policy["key"], policy["changed"]) == ("files/read", True)
    await hub.call("ask.answer", ask=ask, choice="allow_always")
    await hub.end(started)
    (policy,) = (await hub.call("tool.policy.list"))["policies"]
    assert "changed" not in policy
    assert len(CALLED) == 3


async def test_two_answers_for_a_run_and_a_change_in_mid_run_do_not_mix(bench: Any) -> None:
    connector = files()
    scripts = [READ, READ, READ, say("done")]
    hub = await bench(*scripts, connectors=[connector])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    connector.offered = files(description="Other.").offered
    connector.tell()
    await hub.call("ask.answer", ask=ask, choice="allow_run")
    state = await hub.end(started)  # the run keeps the definition that was allowed
    assert status(state) == ["ok", "ok", "ok"]
    assert state["runs"][started["run"]]["allow"] == {"files/read": files().offered[0].fingerprint}
    assert (await hub.call("tool.policy.list"))["policies"] == []


async def test_a_refusal_that_comes_in_mid_run_stops_what_was_allowed_for_it(bench: Any) -> None:
    hub = await bench(READ, READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.call("config.patch", scope="client:chat", patch={"tools": {"files/read": {"policy": "deny"}}})
    await hub.call("ask.answer", ask=ask, choice="allow_run")
    state = await hub.end(started)
    assert status(state) == ["ok", "denied"]
    assert len(CALLED) == 1


async def test_edited_arguments_are_checked_run_and_told(bench: Any) -> None:
    hub = await bench(READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    for wrong, path in (
        ({"path": 7}, "$.data.args.path"),
        ({}, "$.data.args"),
        ([], "$.data.args"),
        ("x", "$.data.args"),
    ):
        with pytest.raises(Fault) as raised:
            await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": wrong})
        assert (raised.value.kind, raised.value.data["path"]) == ("ask.invalid", path)
    await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"path": "b"}})
    state = await hub.end(started)
    assert CALLED == [{"path": "b"}]
    assert [t["args"] for t in state["tools"].values()] == [{"path": "b"}]
    sent = hub.provider.requests[1].messages
    assert '"b"' in next(p.arguments for m in sent if m.role == "assistant" for p in m.parts if hasattr(p, "arguments"))


@pytest.mark.parametrize("by", ["device", "user", "connector", "admin"])
async def test_what_is_refused_tells_the_model_and_asks_nobody(bench: Any, by: str) -> None:
    connector = files(risk="read", policy="deny" if by == "admin" else None)
    hub = await bench(READ, say("sorry"), connectors=[connector])
    if by == "device":
        await hub.call("config.patch", scope="client:chat", patch={"tools": {"files": {"policy": "deny"}}})
    elif by in ("user", "connector"):
        key = "files/read" if by == "user" else "files"
        await hub.call("tool.policy.set", tool=key, policy="deny")
    state = await hub.end(await hub.start("go"))
    assert status(state) == ["denied"]
    assert not CALLED
    told = hub.provider.requests[1].messages[-1]
    assert (told.role, "A policy forbids this tool." in told.text) == ("tool", True)


async def test_an_answer_no_tells_the_model_and_is_not_remembered(bench: Any) -> None:
    hub = await bench(READ, say("1"), READ, say("2"), connectors=[files()])
    for _ in range(2):
        started = await hub.start("go")
        ask, _ = await asked(hub, started)
        await hub.call("ask.answer", ask=ask, choice="deny", data={"args": {"path": "b"}})
        state = await hub.end(started)
        assert status(state) == ["denied"]
        assert "denied this call" in hub.provider.requests[-1].messages[-1].text
    assert (await hub.call("tool.policy.list"))["policies"] == []
    assert not CALLED


async def test_always_is_kept_by_a_restart_and_taken_back_for_good(bench: Any) -> None:
    hub = await bench(READ, say("1"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_always")
    await hub.end(started)
    hub = await bench(READ, say("2"), connectors=[files()])
    await hub.end(await hub.start("again"))
    assert len(CALLED) == 2
    await hub.call("tool.policy.set", tool="files/read", policy=None)
    assert (await hub.call("tool.policy.list"))["policies"] == []
    await hub.call("tool.policy.set", tool="files/read", policy=None)  # and again
    hub = await bench(READ, say("3"), connectors=[files()])
    started = await hub.start("and again")
    ask, opened = await asked(hub, started)
    assert "changed" not in opened["subject"]
    await hub.call("ask.answer", ask=ask, choice="deny")
    await hub.end(started)


async def test_a_change_while_the_hub_was_down_asks_again(bench: Any) -> None:
    hub = await bench(READ, say("1"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_always")
    await hub.end(started)
    hub = await bench(READ, say("2"), connectors=[files(description="Other.")])
    started = await hub.start("again")
    ask, opened = await asked(hub, started)
    assert opened["subject"]["changed"]["before"]["description"] == "Does read."
    await hub.call("ask.answer", ask=ask, choice="deny")
    await hub.end(started)


async def test_an_answer_after_a_restart_runs_the_approved_call_though_its_connector_is_slow(bench: Any) -> None:
    hub = await bench(READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.app.engine.drain(0)
    slow = files()
    tools, slow.offered = slow.offered, []
    hub = await bench(say("done"), connectors=[slow])
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    slow.offered = tools
    slow.tell()
    await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"path": "b"}})
    state = await hub.end(started)
    assert status(state) == ["ok"]
    assert CALLED == [{"path": "b"}]


@pytest.mark.parametrize("what", ["input", "risk", "gone"])
async def test_an_approval_does_not_hold_for_a_tool_that_changed_while_it_was_asked_for(bench: Any, what: str) -> None:
    hub = await bench(READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    now: dict[str, Json] = {"input": {"input": {"type": "object", "required": ["x"]}}, "risk": {"risk": "write"}}
    changed = files(**now.get(what, {}))
    if what == "gone":
        changed.offered = []
    await hub.app.engine.drain(0)
    hub = await bench(say("done"), connectors=[changed])
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    assert status(state) == ["lost"]
    assert not CALLED


async def test_what_is_allowed_while_its_connector_is_away_is_what_was_shown(bench: Any) -> None:
    hub = await bench(READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.app.engine.drain(0)
    connector = files(description="Other.")
    tools, connector.offered = connector.offered, []
    hub = await bench(say("done"), READ, say("2"), connectors=[connector])
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    await hub.call("ask.answer", ask=ask, choice="allow_always", data={"args": {"path": 7}})
    await hub.end(started)
    connector.offered = tools
    connector.tell()
    started = await hub.start("again")
    ask, opened = await asked(hub, started)
    assert opened["subject"]["changed"]["before"]["risk"] == "danger"
    await hub.call("ask.answer", ask=ask, choice="deny")
    await hub.end(started)
    assert not CALLED


async def test_arguments_that_nobody_could_check_when_they_were_edited_are_checked_before_they_are_used(
    bench: Any,
) -> None:
    hub = await bench(READ, say("done"), connectors=[files()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.app.engine.drain(0)
    connector = files()
    tools, connector.offered = connector.offered, []
    connector.shown = Health("starting")
    hub = await bench(say("done"), connectors=[connector])
    await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"path": 7}})
    connector.offered, connector.shown = tools, Health("ready")
    connector.tell()
    state = await hub.end(started)
    assert status(state) == ["invalid"]
    assert "$.path" in hub.provider.requests[0].messages[-1].text
    assert not CALLED


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_call_that_waited_to_ask_the_model_is_begun_again_after_a_restart_only_if_that_does_no_harm(
    bench: Any, idempotent: bool
) -> None:
    async def think(args: Any, ctx: Any) -> str:
        CALLED.append("thinks")
        sampled = await ctx.sample([SampleMessage("user", [TextContent("?")])])
        return f"model says {sampled.text}"

    def wise() -> FakeConnector:
        return FakeConnector("wise", make_tool("think", think, idempotent=idempotent))

    hub = await bench(call(("wise__think", {})), say("done"), connectors=[wise()])
    started = await hub.start("go")
    ask, _ = await asked(hub, started)
    await hub.app.engine.drain(0)
    hub = await bench(say("42"), say("done"), connectors=[wise()])
    with pytest.raises(Fault) as raised:
        await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"path": "x"}})
    assert raised.value.data["path"] == "$.data.args"
    await hub.call("ask.answer", ask=ask, choice="allow_run")
    state = await hub.end(started)
    assert status(state) == ["ok" if idempotent else "lost"]
    assert len(CALLED) == (2 if idempotent else 1)


async def test_several_calls_of_a_step_ask_each_for_itself_and_those_that_may_run_do(bench: Any) -> None:
    connector = files()
    connector.offered = [*connector.offered, make_tool("look")]
    both = call(("files__read", {"path": "a"}), ("files__look", {}), ("files__read", {"path": "b"}))
    hub = await bench(both, say("done"), connectors=[connector])
    started = await hub.start("go")
    state = await hub.until(started["conv"], lambda s: len(s["asks"]) == 2 and "ok" in status(s))
    one, two = sorted(state["asks"], key=lambda a: state["asks"][a]["subject"]["args"]["path"])
    await hub.call("ask.answer", ask=two, choice="deny")
    await hub.call("ask.answer", ask=one, choice="allow_once")
    state = await hub.end(started)
    assert sorted(status(state)) == ["denied", "ok", "ok"]
    assert CALLED == [{"path": "a"}]


async def test_a_policy_of_one_connector_leaves_a_tool_of_the_same_name_alone(bench: Any) -> None:
    one, two = (FakeConnector(name, make_tool("list")) for name in ("one", "two"))
    hub = await bench(call(("one__list", {}), ("two__list", {})), say("done"), connectors=[one, two])
    await hub.call("tool.policy.set", tool="one", policy="deny")
    state = await hub.end(await hub.start("go"))
    assert {t["connector"]: t["status"] for t in state["tools"].values()} == {"one": "denied", "two": "ok"}
