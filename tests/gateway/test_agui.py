"""AG-UI: by plain HTTP, and by the public client from npm, unchanged, whose verifier checks the order of all events."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest

from sag.hooks.kind import RunKind
from sag.plugin import Run, RunConfig
from sag.testing.hub import running_hub
from sag.testing.upstream import Calls, Cut, FakeUpstream, Hang, Say, Script, Think, ToolCall, Usage, fail, say
from tests.gateway.conftest import CALLED, MODEL, Gateway, events_of, run_agent, types

Json = dict[str, Any]
PAINT = {"name": "paint", "description": "Paint the page", "parameters": {"type": "object", "properties": {}}}


def user(text: Any, id: str = "u1") -> Json:
    return {"id": id, "role": "user", "content": text}


def words(events: list[Json]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


async def status_of(gateway: Gateway) -> list[str]:
    return [run["status"] for run in (await gateway.rpc("run.list"))["runs"]]


# plain HTTP


async def test_a_run_is_told_in_the_events_of_the_protocol(gateway: Gateway) -> None:
    gateway.up.script(
        Script(
            [Think("Hm."), Say("Let me see."), Calls([ToolCall("double", {"number": 21})])],
            usage=Usage(input=5, output=4, reasoning=1),
        ),
        say("It is 42.", usage=Usage(input=9, output=3, cached=2)),
    )
    props = {"config": {"reasoning": "low"}}
    events = await gateway.agui(messages=[user("What is twice 21?")], forwardedProps=props)
    squeezed = [t for t, before in zip(types(events), ["", *types(events)], strict=False) if t != before]
    assert squeezed == [
        "RUN_STARTED", "STEP_STARTED",
        "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_END",
        "REASONING_END",
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "STEP_FINISHED", "TOOL_CALL_RESULT",
        "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "STEP_FINISHED",
        "RUN_FINISHED",
    ]  # fmt: skip
    assert events[0] == {"type": "RUN_STARTED", "threadId": "t1", "runId": "x1", "protocolVersion": "1.0"}
    start = next(e for e in events if e["type"] == "TOOL_CALL_START")
    text = next(e for e in events if e["type"] == "TEXT_MESSAGE_START")
    result = next(e for e in events if e["type"] == "TOOL_CALL_RESULT")
    assert (start["toolCallName"], start["parentMessageId"]) == ("double", text["messageId"])
    assert (result["toolCallId"], result["content"]) == (start["toolCallId"], "42")
    assert words(events) == "Let me see.It is 42."
    assert events[-1] == {
        "type": "RUN_FINISHED",
        "threadId": "t1",
        "runId": "x1",
        "outcome": {"type": "success"},
        "usage": [
            {
                "provider": "lab", "model": "fake", "inputTokens": 16, "outputTokens": 7, "totalTokens": 23,
                "reasoningTokens": 1, "cachedInputTokens": 2, "cacheWriteInputTokens": 0,
            }
        ],
    }  # fmt: skip


async def test_a_thread_is_a_conversation_and_what_was_said_before_counts_in_a_new_one(gateway: Gateway) -> None:
    before = [user("Zero?", "u0"), {"id": "a0", "role": "assistant", "content": "Null."}]
    rules = {"id": "s", "role": "system", "content": "Be brief."}
    first = [rules, *before, user("One?")]
    await gateway.agui(messages=first, context=[{"description": "Page", "value": "Home"}])
    told = [*first, {"id": "a1", "role": "assistant", "content": "x"}, user("Two?", "u2")]
    await gateway.agui(messages=told, runId="x2")
    assert gateway.sent(0)[0] == ("system", "Be brief.\n\nPage: Home")
    said = "One?\nWhat was said before:\n\nUser: Zero?\n\nAssistant: Null."
    assert gateway.sent(1) == [("system", "Be brief."), ("user", said), ("assistant", said), ("user", "Two?")]
    assert len(await gateway.convs()) == 1
    # nothing new: nothing happens
    assert types(await gateway.agui(messages=told[:-1])) == ["RUN_STARTED", "RUN_FINISHED"]
    # a thread of another name is another conversation; a deleted one begins anew
    await gateway.agui(messages=[user("Hi")], threadId="t2")
    convs = await gateway.convs()
    assert len(convs) == 2
    for conv in convs:
        await gateway.rpc("conversation.delete", conv=conv)
    assert words(await gateway.agui(messages=[user("Hi again")])) == "Hi again"
    assert len(await gateway.convs()) == 1


async def test_pictures_and_documents_reach_the_model(gateway: Gateway) -> None:
    data = base64.b64encode(b"\x89PNG....").decode()
    content = [
        {"type": "text", "text": "See"},
        {"type": "image", "source": {"type": "data", "value": data, "mimeType": "image/png"}},
        {"type": "binary", "mimeType": "image/png", "data": data},
    ]
    await gateway.agui(messages=[user(content)])
    assert gateway.files() == [("image/png", b"\x89PNG....")] * 2
    for part in (
        {"type": "audio", "source": {"type": "data", "value": data, "mimeType": "audio/wav"}},
        {"type": "image", "source": {"type": "file", "value": "file-1"}},
        {"type": "image", "source": {"type": "data", "value": "?", "mimeType": "image/png"}},
        {"type": "image"},
        "text",
        None,
    ):
        body = {"threadId": "t", "runId": "x", "messages": [user([part])]}
        answer = await gateway.http.post("/agui", json=body)
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (400, "request.bad"), part


async def test_what_does_not_fit_is_an_http_error(gateway: Gateway) -> None:
    fits = {"threadId": "t", "runId": "x", "messages": [user("hi")]}
    for path, body, status, kind in (
        ("/agui", {"runId": "x", "messages": []}, 400, "rpc.params"),
        ("/agui", {**fits, "threadId": ""}, 400, "rpc.params"),
        ("/agui", {**fits, "tools": [{"name": "a b"}]}, 400, "request.bad"),
        ("/agui/nothing", fits, 404, "kind.unknown"),
        ("/agui", {**fits, "forwardedProps": {"model": "no/such"}}, 422, "config.invalid"),
        ("/agui", {**fits, "forwardedProps": {"config": {"colour": 1}}}, 422, "config.invalid"),
        ("/agui", {**fits, "messages": ["hi"]}, 400, "rpc.params"),
    ):
        answer = await gateway.http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (status, kind), answer.text
    assert await gateway.convs() == []


async def test_a_run_that_fails_is_an_error_and_one_that_is_stopped_is_cancelled(gateway: Gateway) -> None:
    gateway.up.script(fail(401, "Wrong key."))
    events = await gateway.agui(messages=[user("hi")])
    assert (events[-1]["type"], events[-1]["code"]) == ("RUN_ERROR", "provider.auth")
    gateway.up.script(Script([Say("one "), Hang()]))
    asking = asyncio.create_task(gateway.agui(messages=[user("more")]))
    async with asyncio.timeout(10):
        while "running" not in await status_of(gateway):
            await asyncio.sleep(0.01)
    [run, _] = (await gateway.rpc("run.list"))["runs"]
    await gateway.rpc("run.cancel", run=run["run"])
    assert (await asking)[-1]["outcome"] == {"type": "cancelled"}


async def test_what_got_no_answer_is_heard_once_and_tried_again_where_nothing_else_is_said(gateway: Gateway) -> None:
    one, two = user("One?", "u1"), user("Two?", "u2")
    gateway.up.script(fail(401))
    assert (await gateway.agui(messages=[one]))[-1]["type"] == "RUN_ERROR"
    assert words(await gateway.agui(messages=[one, two])) == "Two?"
    assert gateway.sent() == [("user", "One?"), ("user", "Two?")]
    gateway.up.script(fail(401))
    three = [one, two, {"id": "a1", "role": "assistant", "content": "Two?"}, user("Three?", "u3")]
    assert (await gateway.agui(messages=three))[-1]["type"] == "RUN_ERROR"
    assert words(await gateway.agui(messages=three)) == "Three?"


async def test_an_interrupt_that_is_not_answered_is_told_again(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "a"})])]), say("done"))
    asked = (await gateway.agui(messages=[user("erase a", "u1")]))[-1]["outcome"]
    stale = {"interruptId": "a-of-before", "status": "resolved", "payload": {"approved": True}}
    async with asyncio.timeout(10):
        for resume in ([stale], [], None):
            events = await gateway.agui(messages=[user("erase a", "u1")], resume=resume)
            assert events[-1]["outcome"] == asked
        said = [user("erase a", "u1"), user("Well?", "u2")]
        for _ in range(2):
            assert (await gateway.agui(messages=said))[-1]["outcome"] == asked
    answer = {"interruptId": asked["interrupts"][0]["id"], "status": "resolved", "payload": {"approved": True}}
    assert words(await gateway.agui(resume=[answer])) == "done"
    assert [text for role, text in gateway.sent() if role == "user"] == ["erase a", "Well?"]


@pytest.mark.parametrize("payload", [None, "no", {}, {"approved": "no"}, {"approved": None}, {"approved": 0}, [], 1])
async def test_nothing_is_allowed_by_an_answer_that_does_not_say_so(gateway: Gateway, payload: Any) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "a"})])]), say("done"))
    (asked,) = (await gateway.agui(messages=[user("erase a", "u1")]))[-1]["outcome"]["interrupts"]
    resume = [{"interruptId": asked["id"], "status": "resolved", "payload": payload}]
    body = {"threadId": "t1", "runId": "x2", "messages": [], "protocolVersion": "1.0", "resume": resume}
    answer = await gateway.http.post("/agui", json=body)
    assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (400, "request.bad")
    assert CALLED == []
    resume[0]["payload"] = {"approved": False}
    assert words(await gateway.agui(resume=resume)) == "done"
    assert CALLED == []


async def test_a_client_of_before_1_0_is_told_nothing_that_it_does_not_know(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "x"})])]), say("Gone."))
    asking = asyncio.create_task(gateway.agui(messages=[user("erase")], protocolVersion=None))
    async with asyncio.timeout(10):
        while not (convs := await gateway.convs()) or not (asks := (await gateway.state(convs[0]))["asks"]):
            await asyncio.sleep(0.01)
    await gateway.rpc("ask.answer", ask=next(iter(asks)), choice="allow_once")
    events = await asking
    assert words(events) == "Gone."
    assert "protocolVersion" not in events[0]
    assert events[-1] == {"type": "RUN_FINISHED", "threadId": "t1", "runId": "x1"}


async def test_a_run_ends_when_its_client_is_gone(gateway: Gateway) -> None:
    gateway.up.script(Script([Say("one "), Hang()]))
    body = {"threadId": "t", "runId": "x", "messages": [user("hi")]}
    async with gateway.http.stream("POST", "/agui", json=body) as answer:
        async for line in answer.aiter_lines():
            if "TEXT_MESSAGE_CONTENT" in line:
                break
    async with asyncio.timeout(5):
        while await status_of(gateway) != ["cancelled"]:
            await asyncio.sleep(0.01)


async def test_two_requests_that_begin_a_thread_meet_in_one_conversation(gateway: Gateway) -> None:
    await asyncio.gather(*(gateway.agui(messages=[user(f"hi {i}")]) for i in range(3)))
    assert len(await gateway.convs()) == 1
    assert await status_of(gateway) == ["done"] * 3


async def test_an_answer_given_elsewhere_is_told_to_the_client_that_comes_back(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "x"})])]), say("Gone."))
    events = await gateway.agui(messages=[user("erase")])
    [interrupt] = events[-1]["outcome"]["interrupts"]
    await gateway.rpc("ask.answer", ask=interrupt["id"], choice="allow_once")
    async with asyncio.timeout(10):
        while await status_of(gateway) != ["done"]:
            await asyncio.sleep(0.01)
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": True}}]
    events = await gateway.agui(messages=[user("erase")][:0], resume=resume)
    assert words(events) == "Gone."
    assert events[-1]["outcome"] == {"type": "success"}
    assert CALLED == ["erase x"]
    assert types(await gateway.agui(messages=[], resume=resume)) == ["RUN_STARTED", "RUN_FINISHED"]


async def test_a_frontends_tool_that_is_not_answered_fails_and_the_user_is_heard(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("paint", {})])]), say("As you like."))
    events = await gateway.agui(messages=[user("paint it")], tools=[PAINT])
    assert len(events[-1]["outcome"]["pendingToolCallIds"]) == 1
    # and the message that began the run is not said again
    events = await gateway.agui(messages=[user("paint it"), user("or rather not", "u2")], tools=[PAINT])
    assert words(events) == "As you like."
    assert gateway.sent()[-2:] == [("tool", "Error (error): The client gave no answer."), ("user", "or rather not")]


async def test_an_answer_to_a_run_that_is_over_is_told_to_a_new_one(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("paint", {})])]))
    events = await gateway.agui(messages=[user("paint it")], tools=[PAINT])
    [call] = events[-1]["outcome"]["pendingToolCallIds"]
    [run] = (await gateway.rpc("run.list"))["runs"]
    await gateway.rpc("run.cancel", run=run["run"])
    made = {"id": call, "type": "function", "function": {"name": "paint", "arguments": "{}"}}
    told = [
        user("paint it"),
        {"id": "a", "role": "assistant", "toolCalls": [made]},
        {"id": "t", "role": "tool", "toolCallId": call, "content": "red"},
    ]
    await gateway.agui(messages=told, tools=[PAINT])
    assert gateway.sent()[-1] == ("user", "What was said before:\n\nTool: paint: red")


# the public client


async def test_the_public_client_runs_two_turns_on_one_thread(gateway: Gateway) -> None:
    gateway.up.script(
        Script([Think("Hm."), Say("Let me see."), Calls([ToolCall("double", {"number": 21})])]),
        say("It is 42."),
    )
    props = {"forwardedProps": {"config": {"reasoning": "low"}}}
    told = await run_agent(gateway, {"say": "Twice 21?", **props}, {"say": "Thanks", **props})
    assert [run.get("error") for run in told["runs"]] == [None, None]
    assert told["warnings"] == []
    said = [(m["role"], m.get("content")) for m in told["messages"]]
    assert said == [
        ("user", "Twice 21?"), ("reasoning", "Hm."), ("assistant", "Let me see."), ("tool", "42"),
        ("assistant", "It is 42."), ("user", "Thanks"), ("reasoning", said[6][1]), ("assistant", "Thanks"),
    ]  # fmt: skip
    [call] = told["messages"][2]["toolCalls"]
    assert call["function"] == {"name": "double", "arguments": '{"number": 21}'}
    assert [run["finished"]["outcome"] for run in told["runs"]] == ["success"] * 2
    assert [role for role, _ in gateway.sent()] == ["user", "assistant", "tool", "assistant", "user"]
    [conv] = await gateway.convs()
    assert len((await gateway.state(conv))["runs"]) == 2


async def test_the_public_client_calls_tools_of_the_frontend(gateway: Gateway) -> None:
    gateway.up.script(
        Script([Say("I paint."), Calls([ToolCall("paint", {"it": "red"}), ToolCall("double", {"number": 1})])]),
        Script([Calls([ToolCall("paint", {"it": "blue"}), ToolCall("ask__name", {})])]),
        say("Painted."),
    )
    answers = {"paint": "done", "ask__name": "Ada"}
    tools = [PAINT, {"name": "ask__name", "description": "Ask"}]
    told = await run_agent(gateway, {"say": "Paint!", "answers": answers}, tools=tools)
    assert [run.get("error") for run in told["runs"]] == [None] * 3
    assert [len(run["finished"].get("pendingToolCallIds", [])) for run in told["runs"]] == [1, 2, 0]
    assert told["messages"][-1]["content"] == "Painted."
    assert told["warnings"] == []
    names = [call["function"]["name"] for m in told["messages"] for call in m.get("toolCalls") or []]
    assert names == ["paint", "double", "paint", "ask__name"]
    assert [content for role, content in gateway.sent() if role == "tool"] == ["done", "2", "done", "Ada"]
    assert (await status_of(gateway), CALLED) == (["done"], ["double 1"])


async def test_the_public_client_answers_interrupts(gateway: Gateway) -> None:
    for payload, called, answer in (
        ({"approved": True, "editedArgs": {"name": "some"}}, ["erase some"], "erased some"),
        ({"approved": False}, [], "denied"),
    ):
        CALLED.clear()
        gateway.up.script(Script([Calls([ToolCall("erase", {"name": "all"})])]), say("So be it."))
        body = [user("erase", f"{payload['approved']}")]
        events = await gateway.agui(messages=body, threadId=str(payload))
        [interrupt] = events[-1]["outcome"]["interrupts"]
        assert (interrupt["reason"], interrupt["message"]) == ("approval", "Allow erase?")
        assert interrupt["metadata"]["subject"]["args"] == {"name": "all"}
        assert interrupt["expiresAt"].endswith("Z")
        assert interrupt["toolCallId"] in [e.get("toolCallId") for e in events]
        resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": payload}]
        events = await gateway.agui(messages=body, threadId=str(payload), resume=resume)
        assert words(events) == "So be it."
        assert [content for role, content in gateway.sent() if role == "user"] == ["erase"]
        result = next(e for e in events if e["type"] == "TOOL_CALL_RESULT")
        assert (CALLED, answer in result["content"]) == (called, True)


async def test_the_public_client_is_interrupted_and_goes_on(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "all"})])]), say("Kept."))
    told = await run_agent(gateway, {"say": "Erase"}, {"say": "Well?"})
    first, second = told["runs"]
    assert first["finished"]["outcome"] == "interrupt"
    assert "pending interrupt" in second["error"]  # the client itself sees to it that it is answered
    [interrupt] = first["finished"]["interrupts"]
    resume = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    told = await run_agent(gateway, {"resume": resume}, messages=told["messages"][:1])
    assert told["runs"][0].get("error") is None
    assert (told["messages"][-1]["content"], CALLED) == ("Kept.", [])


async def test_the_public_client_sees_agents_and_what_they_say_by_their_names(gateway: Gateway) -> None:
    gateway.up.script(say("yes"), say("no"), say("still yes"))
    bots = {"a": {"name": "Ada", "model": MODEL}, "b": {"name": "Bob", "model": MODEL}}
    props = {"config": {"bots": bots, "max_turns": 3}}
    told = await run_agent(gateway, {"say": "Tea?", "forwardedProps": props}, path="/agui/dialogue")
    [run] = told["runs"]
    assert (run.get("error"), told["warnings"]) == (None, [])
    assert [(m.get("name"), m["content"]) for m in told["messages"][1:]] == [
        ("Ada", "yes"), ("Bob", "no"), ("Ada", "still yes"),
    ]  # fmt: skip
    agents = [event["name"] for event in run["events"] if event["type"] == "SUBAGENT_STARTED"]
    assert agents == ["Ada", "Bob", "Ada"]


async def test_the_public_client_forgets_what_is_void(gateway: Gateway) -> None:
    gateway.up.script(Script([Say("Half an ans"), Cut()]), say("The whole answer."))
    told = await run_agent(gateway, {"say": "hi"}, {"say": "more"})
    assert [run.get("error") for run in told["runs"]] == [None, None]
    assert "MESSAGES_SNAPSHOT" in [event["type"] for event in told["runs"][0]["events"]]
    assert [m["content"] for m in told["messages"]] == ["hi", "The whole answer.", "more", "more"]


async def test_the_public_client_may_abort(gateway: Gateway) -> None:
    gateway.up.script(Script([Say("one "), Hang()]))
    await run_agent(gateway, {"say": "hi", "abort": "TEXT_MESSAGE_CONTENT"})
    async with asyncio.timeout(5):
        while await status_of(gateway) != ["cancelled"]:
            await asyncio.sleep(0.01)


async def test_the_public_client_gets_errors(gateway: Gateway) -> None:
    gateway.up.script(fail(401, "Wrong key."))
    told = await run_agent(gateway, {"say": "hi"})
    assert told["runs"][0]["events"][-1]["code"] == "provider.auth"
    told = await run_agent(gateway, {"say": "hi"}, path="/agui/nothing")
    assert told["runs"][0]["status"] == 404


async def test_what_a_run_keeps_is_the_state_of_the_client() -> None:
    async def plan(run: Run) -> None:
        await run.update({"steps": {"a": "open"}})
        await run.update({"steps": {"a": "done", "b": "open"}, "note": None})

    async with FakeUpstream("vllm") as up:
        kind = RunKind("listing", RunConfig, plan)
        tables = {"openai": {"providers": {"lab": {"flavor": "vllm", "base_url": up.url}}}}
        async with running_hub(env={}, tables=tables, kinds=[kind]) as hub, httpx.AsyncClient() as http:
            body = {"threadId": "t", "runId": "x", "messages": [user("go")], "state": {"mine": 1}}
            events = events_of(await http.post(f"{hub.url}/agui/listing", json=body))
    snapshots = [event["snapshot"] for event in events if event["type"] == "STATE_SNAPSHOT"]
    assert snapshots == [
        {"mine": 1, "listing": {"steps": {"a": "open"}}},
        {"mine": 1, "listing": {"steps": {"a": "done", "b": "open"}}},
    ]
