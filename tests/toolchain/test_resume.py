"""`kill -9` in every phase of a tool chain, then `run.resume`: what was finished is not done again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sag.testing.upstream import Calls, FakeUpstream, Hang, Say, Script, ToolCall, say
from tests.harness import Client, Hub, View, check_state, new_key, until

MARK = ToolCall("probe_mark", {"id": "one"})
SLOW = ToolCall("probe_slow", {"id": "two", "ms": 20})
JSON = '{"name": "probe_mark", "arguments": {"id": "one"}}'


@pytest.fixture
async def model() -> AsyncIterator[FakeUpstream]:
    """Calls `probe_mark` where tools are offered, else says that it is done; unless something is scripted."""
    async with FakeUpstream() as upstream:
        yield upstream


def serve(make_hub: Callable[..., Hub], model: FakeUpstream, config: str = "", **env: str) -> Hub:
    env = {"LLM_PROVIDER": "openai", "LLM_BASE_URL": model.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"} | env
    return make_hub(config, **env)


async def start(client: Client, **config: Any) -> tuple[str, View]:
    input = [{"kind": "text", "text": "Do it."}]
    started = await client.sure("run.start", kind="toolchain", input=input, config=config, key=new_key())
    topic = f"conv:{started['conv']}"
    if topic not in client.views:
        await client.sure("topic.subscribe", topic=topic)
    return started["run"], client.views[topic]


async def go_on(hub: Hub, client: Client, view: View, run: str, status: str = "done") -> dict[str, Any]:
    """Kill the hub, start it again, resume the run and wait for its end."""
    hub.kill()
    await hub.restart()
    await until(lambda: view.run(run).get("status") == "interrupted", "the interrupted run")
    await client.sure("run.resume", run=run)
    object = await client.done(view, run, status)
    await check_state(hub.url, view.topic, view)
    return object


def text(view: View, agent: str) -> str:
    own = [m for m in view.has["messages"] if m.get("agent") == agent]
    return "|".join("".join(p["text"] for p in m["parts"] if p["kind"] == "text") for m in own)


@pytest.fixture
async def client() -> AsyncIterator[list[Client]]:
    opened: list[Client] = []
    yield opened
    for one in opened:
        await one.close()


async def connect(hub: Hub, opened: list[Client]) -> Client:
    opened.append(Client(hub.url).keep())
    await opened[-1].online.wait()
    return opened[-1]


async def test_a_kill_while_the_model_picks_asks_it_again(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(Script([Say("Let me"), Hang()]), Script([Calls([MARK])]), say("Done."))
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device)
    await until(lambda: text(view, "toolchain") == "Let me", "the first words")
    await go_on(hub, device, view, run)
    assert hub.journal("tool mark") == ["tool mark one"]
    assert text(view, "toolchain.synthesis") == "Done."
    assert len(model.chats) == 3


async def test_a_kill_during_a_call_repeats_only_what_does_no_harm(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    slow = ToolCall("probe_slow", {"id": "two", "ms": 3000})
    model.script(Script([Calls([MARK, slow])]), say("Done."))
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device)
    await until(lambda: "ok" in [t["status"] for t in view.has["tools"].values()], "the end of the first call")
    await until(lambda: hub.journal("tool slow"), "the second call")
    await go_on(hub, device, view, run)
    assert hub.journal("tool mark") == ["tool mark one"]
    assert hub.journal("tool slow") == ["tool slow two", "tool slow two"]
    assert text(view, "toolchain.synthesis") == "Done."
    told = model.chats[-1].json["messages"][-1]["content"]
    assert told.count('"status":"ok"') == 2
    assert len(model.chats) == 2


async def test_a_call_that_a_kill_lost_is_a_tool_that_failed(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(Script([Calls([ToolCall("probe_mark", {"id": "one", "ms": 5000})])]))
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device)
    await until(lambda: hub.journal("tool mark"), "the call")
    object = await go_on(hub, device, view, run, "failed")
    assert object["error"]["kind"] == "toolchain.tool_failed"
    assert "lost" in object["error"]["message"]
    assert hub.journal("tool mark") == ["tool mark one"]
    assert len(model.chats) == 1


async def test_a_kill_during_the_synthesis_calls_no_tool_again(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(Script([Calls([MARK, SLOW])]), Script([Say("It is"), Hang()]), say("It is done."))
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device)
    await until(lambda: text(view, "toolchain.synthesis") == "It is", "the first words")
    await go_on(hub, device, view, run)
    assert hub.journal("tool") == ["tool mark one", "tool slow two"]
    assert text(view, "toolchain.synthesis") == "It is|It is done."
    assert model.chats[1].json["messages"] == model.chats[2].json["messages"]
    told = (await device.call("run.get", run=run))["object"]
    assert told["agents"] == {"toolchain": "closed", "toolchain.synthesis": "closed"}


async def test_a_kill_in_the_second_stage_leaves_the_first_alone(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(
        Script([Calls([MARK])]),
        say("First."),
        Script([Say("Hm"), Hang()]),
        Script([Calls([ToolCall("probe_mark", {"id": "two"})])]),
        say("Second."),
    )
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device, stages={"a": {}, "b": {}})
    await until(lambda: text(view, "b") == "Hm", "the second stage")
    await go_on(hub, device, view, run)
    assert hub.journal("tool mark") == ["tool mark one", "tool mark two"]
    assert (text(view, "a.synthesis"), text(view, "b.synthesis")) == ("First.", "Second.")
    assert model.chats[3].json["messages"][-1]["content"] == "First."
    assert len(model.chats) == 5


async def test_an_approval_outlives_a_kill(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(Script([Calls([ToolCall("probe_danger", {"id": "one"}), MARK])]), say("Dared."))
    hub = serve(make_hub, model)
    device = await connect(hub, client)
    run, view = await start(device)
    ask = await device.asked(view)
    await until(lambda: "ok" in [t["status"] for t in view.has["tools"].values()], "the other call")
    hub.kill()
    await hub.restart()
    await until(lambda: view.run(run)["status"] == "waiting", "the run that waits")
    await device.sure("ask.answer", ask=ask, choice="allow_once")
    await device.done(view, run)
    assert hub.journal("tool") == ["tool mark one", "tool danger one"]
    assert text(view, "toolchain.synthesis") == "Dared."


@pytest.mark.parametrize(
    ("point", "words"),
    [
        *[(f"commit_before_send:{n}", False) for n in (3, 5, 7, 9)],
        *[(f"commit_before_send:{n}", True) for n in (5, 6, 7)],
        ("append_before_commit:6", False),
        ("provider_sent:2", False),
        ("first_delta:1", True),
        ("tool_done_before_commit", False),
    ],
)
async def test_a_kill_at_any_point_calls_the_tool_at_most_once(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client], point: str, words: bool
) -> None:
    pick = say(JSON) if words else Script([Calls([MARK])])
    model.answer = lambda request: pick if request.json.get("tools") else say("Done.")
    (hub := serve(make_hub, model, "[openai]\ntext_calls = false\n")).terminate()
    assert await hub.ended() == 0
    await hub.restart(SAG_CRASH_AT=point)
    device = await connect(hub, client)
    beginning = asyncio.ensure_future(start(device))
    assert await hub.ended() == -9
    await hub.restart()
    run, view = await beginning
    await until(lambda: view.run(run).get("status") in ("interrupted", "done"), "the run")
    if view.run(run)["status"] == "interrupted":
        await device.sure("run.resume", run=run)
        await until(lambda: view.run(run)["status"] in ("done", "failed"), "the end")
    if view.run(run)["status"] == "done":
        assert hub.journal("tool mark") == ["tool mark one"]
        assert text(view, "toolchain.synthesis").endswith("Done.")
    else:  # the call was begun, and nobody knows how it ended
        assert view.run(run)["error"]["kind"] == "toolchain.tool_failed"
        assert [t["status"] for t in view.has["tools"].values()] == ["lost"]
        assert len(hub.journal("tool mark")) <= 1
    await check_state(hub.url, view.topic, view)


async def test_a_hub_that_goes_down_leaves_the_run_of_an_open_stream_to_be_resumed(
    make_hub: Callable[..., Hub], model: FakeUpstream, client: list[Client]
) -> None:
    model.script(Script([Calls([MARK])]), Script([Say("It is"), Hang()]), say("It is done."))
    hub = serve(make_hub, model, SAG_DRAIN_S="0")
    body = {"stage_id": "s", "model_name": "fake", "user_prompt": "Do it.", "stream": True}
    async with hub.http() as http:
        reading = asyncio.ensure_future(http.post("/api/toolchain", json=body))
        await model.wait_requests(2)
        hub.terminate()
        assert await hub.ended() == 0
        await asyncio.wait({reading})
    await hub.restart()
    device = await connect(hub, client)
    (run,) = (await device.call("run.list"))["runs"]
    assert run["status"] == "interrupted"
    await device.sure("run.resume", run=run["run"])
    view = device.views[f"conv:{run['conv']}"]
    await until(lambda: view.run(run["run"])["status"] == "done", "the resumed run")
    assert text(view, "s.synthesis").endswith("It is done.")
    assert hub.journal("tool mark") == ["tool mark one"]
