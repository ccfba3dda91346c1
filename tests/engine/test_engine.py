"""Runs: steps, tools, asks, config, queue, cancel, retry, resume."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sag.errors import Fault
from sag.hooks.provider import CallFragment, Finish, ProviderError, Reasoning, Text
from sag.testing.provider import call, say
from tests.engine.conftest import CALLED


def _kinds(events: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in events]


async def test_a_reply_is_told_from_its_first_event_to_its_last(bench: Any) -> None:
    hub = await bench(say("Hello ", "world"))
    started = await hub.start("hi")
    state = await hub.end(started)
    assert hub.texts(state) == ["Hello world"]
    assert state["conv"]["title"] == "hi"
    assert state["runs"][started["run"]]["usage"] == {"input": 1, "output": 2}
    names = _kinds(await hub.events(started["conv"]))
    assert names[:3] == ["conv", "run.open", "message.add"]
    assert names[-1] == "run.close"
    assert [n for n in names if n != "delta"][3:] == [
        "step.open", "message.add", "part.open", "part.close", "step.close", "run.close",
    ]  # fmt: skip


async def test_tools_run_together_and_their_results_go_back(bench: Any) -> None:
    hub = await bench(call(("double", {"number": 2}), ("double", {"number": 5})), say("4 and 10"))
    started = await hub.start("double")
    state = await hub.end(started)
    assert sorted(CALLED) == [2, 5]
    assert sorted(t["result"] for t in state["tools"].values()) == [4, 10]
    roles = [m.role for m in hub.provider.requests[1].messages]
    assert roles == ["user", "assistant", "tool", "tool"]
    assert [m.text for m in hub.provider.requests[1].messages[2:]] == ["4", "10"]


@pytest.mark.parametrize(
    ("name", "args", "status", "words"),
    [
        ("double", {"number": "two"}, "invalid", "$.number"),
        ("double", {"number": 1, "more": 2}, "invalid", "more"),
        ("double", "{not json", "invalid", "not JSON"),
        ("double", "[1]", "invalid", "JSON object"),
        ("double", "", "invalid", "number"),
        ("nonsense", {}, "invalid", "no tool"),
        ("grumble", {}, "error", "no milk"),
        ("dawdle", {}, "timeout", "No answer within"),
    ],
)
async def test_a_call_that_goes_wrong_is_told_to_the_model(
    bench: Any, name: str, args: object, status: str, words: str
) -> None:
    hub = await bench(call((name, args)), say("sorry"))
    started = await hub.start("go")
    state = await hub.end(started)
    (tool,) = state["tools"].values()
    assert tool["status"] == status
    told = hub.provider.requests[1].messages[-1]
    assert told.role == "tool"
    assert words in told.text
    assert not CALLED
    names = _kinds(await hub.events(started["conv"]))
    assert names.count("tool.open") == names.count("tool.close") == 1


async def test_rounds_are_capped(bench: Any) -> None:
    hub = await bench(call(("double", {"number": 1})))
    state = await hub.end(await hub.start("go", config={"rounds": 3}), "limit")
    assert len(hub.provider.requests) == 3
    assert [r["error"]["kind"] for r in state["runs"].values()] == ["run.limit"]


async def test_too_many_calls_and_too_long_arguments_end_with_limit(bench: Any) -> None:
    many = [*(CallFragment(i, id=str(i), name="double", arguments='{"number":1}') for i in range(65)), Finish("tools")]
    hub = await bench(
        many, [CallFragment(0, id="a", name="double", arguments="x" * (1 << 19)), CallFragment(0, arguments="y")]
    )
    await hub.end(await hub.start("go"), "limit")
    await hub.end(await hub.start("go"), "limit")
    assert not CALLED


async def test_long_text_goes_on_in_the_next_part(bench: Any) -> None:
    hub = await bench(say("é" * 200_000, "x" * 300_000))
    state = await hub.end(await hub.start("go"))
    parts = state["messages"][1]["parts"]
    assert "".join(p["text"] for p in parts) == "é" * 200_000 + "x" * 300_000
    assert all(len(p["text"].encode()) <= 256 << 10 for p in parts)


async def test_reasoning_is_a_part_of_its_own(bench: Any) -> None:
    hub = await bench([Reasoning("hm"), Text("yes"), Finish("stop")])
    state = await hub.end(await hub.start("go"))
    assert [(p["kind"], p["text"]) for p in state["messages"][1]["parts"]] == [("reasoning", "hm"), ("text", "yes")]


async def test_danger_asks_first_and_the_answer_decides(bench: Any) -> None:
    hub = await bench(call(("launch", {"what": "a rocket"})), say("done"))
    started = await hub.start("go")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    ((ask, opened),) = state["asks"].items()
    print_ = opened["subject"].pop("fingerprint")
    assert print_ == hub.app.extensions.tools["launch"].fingerprint
    subject = {"tool": "launch", "key": "launch", "origin": "", "args": {"what": "a rocket"}, "risk": "danger"}
    assert opened["subject"] == subject
    assert not CALLED
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    with pytest.raises(Fault, match="Choose one of"):
        await hub.call("ask.answer", ask=ask, choice="maybe")
    with pytest.raises(Fault) as wrong:
        await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"what": 5}})
    assert (wrong.value.kind, wrong.value.data["path"]) == ("ask.invalid", "$.data.args.what")
    await hub.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"what": "a kite"}})
    state = await hub.end(started)
    assert CALLED == ["a kite"]
    assert next(iter(state["tools"].values()))["args"] == {"what": "a kite"}
    with pytest.raises(Fault) as late:
        await hub.call("ask.answer", ask=ask, choice="deny")
    assert (late.value.kind, late.value.data["outcome"]["choice"]) == ("ask.closed", "allow_once")


async def test_denied_is_told_and_nothing_runs(bench: Any) -> None:
    hub = await bench(call(("launch", {"what": "x"})), say("ok"))
    started = await hub.start("go")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    await hub.call("ask.answer", ask=next(iter(state["asks"])), choice="deny")
    state = await hub.end(started)
    assert not CALLED
    assert next(iter(state["tools"].values()))["status"] == "denied"
    assert "denied" in hub.provider.requests[1].messages[-1].text


@pytest.mark.parametrize(("choice", "asks"), [("allow_once", 2), ("allow_run", 1), ("allow_always", 1)])
async def test_what_was_allowed_for_longer_is_not_asked_again(bench: Any, choice: str, asks: int) -> None:
    hub = await bench(call(("launch", {"what": "1"})), call(("launch", {"what": "2"})), say("ok"))
    started = await hub.start("go")
    for _ in range(asks):
        state = await hub.until(started["conv"], lambda s: s["asks"])
        ask = next(iter(state["asks"]))
        await hub.call("ask.answer", ask=ask, choice=choice)
        await hub.until(started["conv"], lambda s, ask=ask: ask not in s["asks"])
    await hub.end(started)
    assert CALLED == ["1", "2"]


async def test_an_ask_that_nobody_answers_expires(bench: Any) -> None:
    hub = await bench(call(("launch", {"what": "x"})), say("ok"), ask_s=0.1)
    started = await hub.start("go")
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["status"] == "denied"
    closed = [d for n, d in await hub.events(started["conv"]) if n == "ask.close"]
    assert [(d["by"], d["choice"], d["why"]) for d in closed] == [(None, "deny", "expired")]


async def test_a_tools_form_is_answered_with_data_that_fits(bench: Any) -> None:
    hub = await bench(call(("ask_name", {})), say("ok"))
    started = await hub.start("go")
    state = await hub.until(started["conv"], lambda s: s["asks"])
    ask = next(iter(state["asks"]))
    with pytest.raises(Fault) as wrong:
        await hub.call("ask.answer", ask=ask, choice="accept", data={"name": 5})
    assert wrong.value.kind == "ask.invalid"
    await hub.call("ask.answer", ask=ask, choice="accept", data={"name": "Ada"})
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["result"] == "accept {'name': 'Ada'}"


async def test_cancel_keeps_the_partial_text_and_ends_all_below(bench: Any) -> None:
    hub = await bench([Text("half"), asyncio.Event()], say("fine"))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["half"])
    assert (await hub.call("run.cancel", run=started["run"]))["status"] == "cancelled"
    state = await hub.end(started, "cancelled")
    assert state["messages"][1]["parts"][0]["partial"] is True
    with pytest.raises(Fault) as closed:
        await hub.call("run.cancel", run=started["run"])
    assert (closed.value.kind, closed.value.data["status"]) == ("run.closed", "cancelled")
    state = await hub.end(await hub.start("again", conv=started["conv"]))
    assert "interrupted here" in hub.provider.requests[1].messages[1].text


async def test_cancel_closes_the_ask_and_the_call(bench: Any) -> None:
    hub = await bench(call(("launch", {"what": "x"})))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: s["asks"])
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    assert state["asks"] == {}
    assert next(iter(state["tools"].values()))["status"] == "cancelled"
    names = _kinds(await hub.events(started["conv"]))
    assert names.index("ask.close") < names.index("tool.close") < names.index("run.close")
    inbox = await hub.app.topics.get("ada", "user:me")
    assert (inbox.state["runs"], inbox.state["asks"]) == ({}, {})


async def test_cancel_after_the_step_lets_it_end(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([Text("a"), go, Text("b"), *call(("double", {"number": 1}))], say("never"))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["a"])
    await hub.call("run.cancel", run=started["run"], mode="after_step")
    go.set()
    state = await hub.end(started, "cancelled")
    assert hub.texts(state) == ["ab"]
    assert CALLED == [1]
    assert len(hub.provider.requests) == 1


async def test_input_waits_its_turn_joins_or_goes_ahead(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([Text("1"), go, Finish("stop")], say("2"), say("3"), say("4"))
    first = await hub.start("first")
    conv = first["conv"]
    await hub.until(conv, lambda s: hub.texts(s) == ["1"])
    with pytest.raises(Fault) as busy:
        await hub.start("no", conv=conv, when="reject")
    assert busy.value.kind == "run.busy"
    queued = await hub.start("second", conv=conv)
    assert queued["state"] == "queued"
    steered = await hub.start("steer", conv=conv, when="steer")
    assert (steered["state"], steered["run"]) == ("steered", first["run"])
    go.set()
    await hub.end(first)
    await hub.end(queued)
    assert [m.text for m in hub.provider.requests[1].messages] == ["first", "1", "steer"]
    assert [m.text for m in hub.provider.requests[2].messages] == ["first", "1", "steer", "2", "second"]


async def test_interrupt_cancels_and_goes_ahead_of_the_queue(bench: Any) -> None:
    hub = await bench([Text("1"), asyncio.Event()], say("urgent"), say("later"))
    first = await hub.start("first")
    conv = first["conv"]
    await hub.until(conv, lambda s: hub.texts(s) == ["1"])
    queued = await hub.start("queued", conv=conv)
    urgent = await hub.start("urgent", conv=conv, when="interrupt")
    assert urgent["state"] == "running"
    await hub.end(first, "cancelled")
    await hub.end(urgent)
    state = await hub.end(queued)
    assert state["runs"][urgent["run"]]["begun"] < state["runs"][queued["run"]]["begun"]


async def test_the_queue_is_bounded_and_a_failed_run_does_not_stop_it(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([go, ProviderError("provider.auth", "bad key")], say("fine"))
    first = await hub.start("first")
    waiting = [await hub.start(str(n), conv=first["conv"]) for n in range(16)]
    with pytest.raises(Fault) as full:
        await hub.start("17", conv=first["conv"])
    assert (full.value.kind, full.value.code) == ("run.queue", 429)
    await hub.call("run.cancel", run=waiting[3]["run"])
    go.set()
    await hub.end(first, "failed")
    await hub.end(waiting[15])
    await hub.end(waiting[3], "cancelled")


async def test_a_patch_takes_hold_at_the_next_step(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([Text("a"), go, *call(("double", {"number": 1}))], say("b"))
    started = await hub.start("go", config={"temperature": 1.0})
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["a"])
    scope = f"run:{started['run']}"
    patched = await hub.call("config.patch", scope=scope, rev=1, patch={"temperature": 0.2, "system": "be brief"})
    assert (patched["rev"], patched["applies"], patched["effective"]["temperature"]) == (2, "next_step", 0.2)
    with pytest.raises(Fault) as late:
        await hub.call("config.patch", scope=scope, rev=1, patch={"temperature": 0.9})
    assert (late.value.kind, late.value.data["rev"]) == ("config.conflict", 2)
    assert late.value.data["effective"]["temperature"] == 0.2
    go.set()
    state = await hub.end(started)
    one, two = hub.provider.requests
    assert (one.temperature, one.messages[0].role) == (1.0, "user")
    assert (two.temperature, two.messages[0].text) == (0.2, "be brief")
    assert state["runs"][started["run"]]["applied"] == {"rev": 2, "step": 2}
    applied = [d for n, d in await hub.events(started["conv"]) if n == "config.applied"]
    assert applied == [{"scope": scope, "rev": 2, "step": 2}]


async def test_a_patch_for_now_starts_the_step_again(bench: Any) -> None:
    hub = await bench([Text("old"), asyncio.Event()], say("new"))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["old"])
    scope = f"run:{started['run']}"
    patched = await hub.call("config.patch", scope=scope, patch={"temperature": 0.1}, apply="now")
    assert patched["applies"] == "now"
    state = await hub.end(started)
    assert hub.texts(state) == ["", "new"]
    events = await hub.events(started["conv"])
    assert [d["why"] for n, d in events if n == "part.drop"] == ["config"]
    assert [(d["step"], d["finish"]) for n, d in events if n == "step.close"] == [(1, "config"), (2, "stop")]
    assert hub.provider.requests[1].temperature == 0.1


@pytest.mark.parametrize(
    ("patch", "path"),
    [({"temperature": 9}, "$.temperature"), ({"nonsense": 1}, "$.nonsense"), ({"rounds": "x"}, "$.rounds"),
     ({"model": "nobody/x"}, "$.model"), ({"tools": {"double": 1}}, "$.tools[...]")],
)  # fmt: skip
async def test_a_patch_that_does_not_fit_changes_nothing(bench: Any, patch: dict[str, Any], path: str) -> None:
    hub = await bench()
    started = await hub.start("go")
    state = await hub.end(started)
    with pytest.raises(Fault) as wrong:
        await hub.call("config.patch", scope=f"conv:{started['conv']}", patch=patch)
    assert (wrong.value.kind, wrong.value.data["path"]) == ("config.invalid", path)
    assert state["conv"]["rev"] == 1


async def test_layers_lie_on_each_other_and_freeze_when_the_run_begins(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([Text("a"), go, *call(("double", {"number": 1}))], say("b"))
    await hub.call("config.patch", scope="client:chat", patch={"llm": {"temperature": 0.5, "system": "device"}})
    started = await hub.start("go", config={"max_tokens": 7})
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["a"])
    await hub.call("config.patch", scope="client:chat", patch={"llm": {"temperature": 0.9}})
    await hub.call("config.patch", scope=f"conv:{started['conv']}", patch={"system": "conversation"})
    go.set()
    await hub.end(started)
    for request in hub.provider.requests:
        assert (request.temperature, request.max_tokens, request.messages[0].text) == (0.5, 7, "device")
    await hub.end(await hub.start("next", conv=started["conv"]))
    assert (hub.provider.requests[-1].temperature, hub.provider.requests[-1].messages[0].text) == (0.9, "conversation")
    view = await hub.call("config.get", scope=f"conv:{started['conv']}")
    assert (view["config"], view["rev"]) == ({"system": "conversation"}, 2)
    assert view["effective"]["temperature"] == 0.9
    assert view["effective"]["rounds"] == 5


async def test_a_broken_answer_is_dropped_and_asked_for_again(bench: Any) -> None:
    broken = [Text("garb"), ProviderError("provider.disconnected", "gone", after_s=0.01)]
    hub = await bench(broken, say("whole"))
    started = await hub.start("go")
    state = await hub.end(started)
    assert hub.texts(state) == ["whole"]
    assert [d["why"] for n, d in await hub.events(started["conv"]) if n == "part.drop"] == ["provider_retry"]


async def test_a_lasting_failure_keeps_the_last_partial_text(bench: Any) -> None:
    hub = await bench([Text("par"), ProviderError("provider.truncated", "cut", after_s=0.01)])
    started = await hub.start("go", config={"retries": 1})
    state = await hub.end(started, "failed")
    assert len(hub.provider.requests) == 2
    assert [(p["text"], p["partial"]) for p in state["messages"][1]["parts"]] == [("par", True)]
    assert state["runs"][started["run"]]["error"]["kind"] == "provider.truncated"


async def test_an_empty_answer_ends_the_run(bench: Any) -> None:
    hub = await bench([Finish("stop")])
    await hub.end(await hub.start("go"))
    assert len(hub.provider.requests) == 1


async def test_a_restart_interrupts_and_resume_goes_on(bench: Any) -> None:
    hub = await bench(call(("double", {"number": 4})), [Text("half"), asyncio.Event()])
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: hub.texts(s)[-1:] == ["half"])
    hub.app.engine._homes.clear()  # as a kill leaves it: nothing is closed
    for task in list(hub.app.engine._tasks):
        task.cancel()
    hub = await bench(say("whole"))
    state = await hub.end(started, "interrupted")
    assert state["messages"][-1]["parts"][0]["partial"] is True
    again = await hub.call("run.resume", run=started["run"])
    assert again == {"conv": started["conv"], "run": started["run"], "state": "running", "at": again["at"]}
    state = await hub.end(started)
    assert CALLED == [4]
    assert [m.text for m in hub.provider.requests[0].messages] == ["go", "", "8"]
    assert hub.texts(state) == ["", "half", "whole"]
    with pytest.raises(Fault) as over:
        await hub.call("run.resume", run=started["run"])
    assert over.value.kind == "run.state"


@pytest.mark.parametrize("tool", ["launch", "ask_name"])
async def test_an_open_ask_outlives_a_restart(bench: Any, tool: str) -> None:
    hub = await bench(call((tool, {"what": "x"} if tool == "launch" else {})), say("ok"))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: s["asks"])
    await hub.app.engine.drain(0)
    hub = await bench(say("after"))
    state = await hub.state(started["conv"])
    assert state["runs"][started["run"]]["status"] == "waiting"
    ask = next(iter(state["asks"]))
    if tool == "launch":
        await hub.call("ask.answer", ask=ask, choice="allow_once")
    else:
        await hub.call("ask.answer", ask=ask, choice="accept", data={"name": "Ada"})
    state = await hub.end(started)
    (called,) = state["tools"].values()
    assert called["status"] == ("ok" if tool == "launch" else "lost")
    assert (["x"] if tool == "launch" else []) == CALLED
    assert hub.texts(state)[-1] == "after"


async def test_queued_runs_are_interrupted_by_a_restart(bench: Any) -> None:
    hub = await bench([Text("a"), asyncio.Event()])
    first = await hub.start("one")
    second = await hub.start("two", conv=first["conv"])
    await hub.until(first["conv"], lambda s: hub.texts(s) == ["a"])
    await hub.app.engine.drain(0)
    hub = await bench(say("b"))
    await hub.end(first, "interrupted")
    await hub.end(second, "interrupted")
    assert not hub.provider.requests


async def test_deleting_a_conversation_ends_its_run_and_leaves_nothing(bench: Any) -> None:
    hub = await bench([Text("a"), asyncio.Event()])
    started = await hub.start("one")
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["a"])
    await hub.call("conversation.delete", conv=started["conv"])
    assert await hub.app.topics.find("ada", f"conv:{started['conv']}") is None
    for method, params in (("run.get", {"run": started["run"]}), ("conversation.get", {"conv": started["conv"]})):
        with pytest.raises(Fault) as gone:
            await hub.call(method, **params)
        assert gone.value.code == 404
    inbox = await hub.app.topics.get("ada", "user:me")
    assert inbox.state == {"convs": {}, "runs": {}, "asks": {}}


async def test_a_key_gives_the_first_answer_and_one_effect(bench: Any) -> None:
    hub = await bench(say("ok"))
    answers = await asyncio.gather(*(hub.start("go", key="k1") for _ in range(5)))
    assert all(a == answers[0] for a in answers)
    await hub.end(answers[0])
    with pytest.raises(Fault) as other:
        await hub.start("something else", key="k1")
    assert other.value.kind == "key.mismatch"
    hub = await bench(say("ok"))
    assert await hub.start("go", key="k1") == answers[0]
    assert not hub.provider.requests


async def test_failures_are_not_kept_under_a_key(bench: Any) -> None:
    hub = await bench(say("ok"))
    with pytest.raises(Fault):
        await hub.start("go", conv="nowhere", key="k1")
    with pytest.raises(Fault) as again:
        await hub.start("other", conv="nowhere", key="k1")
    assert again.value.kind == "conv.unknown"


async def test_a_full_disk_fails_the_run_and_nothing_is_stuck(bench: Any) -> None:
    go = asyncio.Event()
    hub = await bench([Text("kept"), go, *[Text("y" * 50_000)] * 40, Finish("stop")], say("fine"))
    started = await hub.start("go")
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["kept"])
    db = hub.app.journal._write
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0] + 2}")
    full: Fault | None = None
    for _ in range(100):
        try:
            await hub.call("config.patch", scope="client:chat", patch={"ui": {"x": "z" * 30_000}})
        except Fault as e:
            full = e
            break
        await asyncio.sleep(0.01)
    assert full is not None
    assert full.kind == "store.full"
    go.set()
    (topic,) = [t for t in hub.app.topics.loaded() if t.name == f"conv:{started['conv']}"]
    for _ in range(200):
        if topic.lost:
            break
        await asyncio.sleep(0.01)
    assert topic.lost.kind == "store.full"
    db.execute("PRAGMA max_page_count=1000000")
    state = await hub.end(started, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "store.full"
    assert hub.texts(state)[0].startswith("kept")
    await hub.end(await hub.start("again", conv=started["conv"]))
