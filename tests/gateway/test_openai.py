"""The OpenAI API of the hub, by plain HTTP: what is taken, what is answered, what becomes of the runs."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest

from sag.testing.hub import running_hub
from sag.testing.upstream import Calls, Cut, Hang, Say, Script, Think, ToolCall, Usage, fail, say
from tests.gateway.conftest import CALLED, MODEL, Gateway, events_of
from tests.harness import until

Json = dict[str, Any]
PNG = base64.b64encode(b"\x89PNG....").decode()
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather", "parameters": {"type": "object", "properties": {}}},
}


def text_of(chunks: list[Json], member: str = "content") -> str:
    return "".join(c["delta"].get(member) or "" for chunk in chunks for c in chunk["choices"])


def error_of(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["code"], error["param"]


# models


async def test_models_and_run_kinds_are_listed_and_found_by_their_names(gateway: Gateway) -> None:
    listed = (await gateway.http.get("/openai/v1/models")).json()
    ids = [one["id"] for one in listed["data"]]
    assert listed["object"] == "list"
    assert {MODEL, "sag/chat", "sag/dialogue", "sag/plan"} <= set(ids)
    assert "sag/completion" not in ids
    one = (await gateway.http.get(f"/openai/v1/models/{MODEL}")).json()
    assert (one["id"], one["object"], one["owned_by"]) == (MODEL, "model", "lab")
    assert error_of(await gateway.http.get("/openai/v1/models/no/such/one")) == (404, "model_not_found", "model")


# answers


async def test_an_answer_has_the_form_of_the_api(gateway: Gateway) -> None:
    gateway.up.script(Script([Think("Hm."), Say("Hello.")], usage=Usage(input=10, output=5, cached=4, reasoning=2)))
    answer = (await gateway.ask(reasoning_effort="low")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello.", "refusal": None, "reasoning_content": "Hm."},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (14, 5, 19)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}


async def test_a_stream_tells_text_as_it_comes_and_usage_where_it_is_wanted(gateway: Gateway) -> None:
    gateway.up.script(Script([Think("Hm."), Say("one two three")], usage=Usage(input=3, output=5)))
    answer = await gateway.ask(stream=True, stream_options={"include_usage": True}, reasoning_effort="low")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = events_of(answer)
    assert text_of(chunks) == "one two three"
    assert text_of(chunks, "reasoning_content") == "Hm."
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 8)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in events_of(await gateway.ask(stream=True))[-1]


async def test_parameters_reach_the_model(gateway: Gateway) -> None:
    await gateway.ask(
        temperature=0.3, top_p=0.5, max_completion_tokens=77, stop="END", seed=5, reasoning_effort="high",
        presence_penalty=0, n=1, user="somebody", metadata={"a": "b"}, unheard_of=True,
    )  # fmt: skip
    sent = gateway.up.chats[0].json
    assert (sent["temperature"], sent["top_p"], sent["stop"], sent["seed"]) == (0.3, 0.5, ["END"], 5)
    assert 77 in (sent.get("max_tokens"), sent.get("max_completion_tokens"))
    assert sent["reasoning_effort"] == "high"
    assert not {"user", "metadata", "unheard_of"} & set(sent)
    await gateway.ask(max_tokens=8, config={"temperature": 0.9})
    assert gateway.up.chats[1].json["temperature"] == 0.9


async def test_the_model_gets_the_requests_messages_and_no_others(gateway: Gateway) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "text", "text": "here"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "sea"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    assert (await gateway.ask(messages=messages)).json()["choices"][0]["message"]["content"] == "And now?"
    sent = gateway.up.chats[0].json["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"at": "sea"}'}
    assert (sent[3]["tool_call_id"], sent[3]["content"]) == ("call_1", "rain")
    # one that ends with a tool's answer, from elsewhere
    await gateway.ask(messages=messages[:4])
    assert [m["role"] for m in gateway.up.chats[1].json["messages"]] == ["system", "user", "assistant", "tool"]
    # and one that has nothing but instructions
    await gateway.ask(messages=messages[:1])
    assert gateway.sent() == [("system", "Be brief.")]


async def test_pictures_reach_the_model(gateway: Gateway) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    assert (await gateway.ask(messages=[{"role": "user", "content": content}])).status_code == 200
    assert gateway.files(0) == [("image/png", b"\x89PNG....")]
    headers = {"sag-conversation": "album"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    assert (await gateway.http.post("/openai/v1/chat/completions", json=body, headers=headers)).status_code == 200
    assert gateway.files(1) == [("image/png", b"\x89PNG....")]
    big = f"data:image/png;base64,{'A' * (4 << 20)}"
    content[1] = {"type": "image_url", "image_url": {"url": big}}
    assert (await gateway.ask(messages=[{"role": "user", "content": content}])).status_code == 200
    for url in ("http://127.0.0.1:9/x.png", "data:image/png,x", "file:///etc/passwd", "data:image/png;base64,?"):
        content[1] = {"type": "image_url", "image_url": {"url": url}}
        assert (await gateway.ask(messages=[{"role": "user", "content": content}])).status_code in (400, 403), url


async def test_the_hub_runs_its_tools_and_the_client_sees_text_alone(gateway: Gateway) -> None:
    for stream in (False, True):
        gateway.up.script(
            Script([Say("Let me see."), Calls([ToolCall("double", {"number": 21})])], usage=Usage(input=5, output=2)),
            say("It is 42.", usage=Usage(input=9, output=3)),
        )
        answer = await gateway.ask(stream=stream, stream_options={"include_usage": True} if stream else None)
        if stream:
            chunks = events_of(answer)
            assert text_of(chunks) == "Let me see.\n\nIt is 42."
            assert chunks[-1]["usage"]["total_tokens"] == 19
        else:
            [choice] = answer.json()["choices"]
            assert choice["message"]["content"] == "Let me see.\n\nIt is 42."
            assert (choice["finish_reason"], "tool_calls" in choice["message"]) == ("stop", False)
            assert answer.json()["usage"]["total_tokens"] == 19
    assert CALLED == ["double 21"] * 2
    assert "double" in [tool["function"]["name"] for tool in gateway.up.chats[0].json["tools"]]
    await gateway.ask(tool_choice="none", tools=[WEATHER])
    assert "tools" not in gateway.up.chats[-1].json


async def test_an_answer_that_stops_early_says_why(gateway: Gateway) -> None:
    for finish, told in (("length", "length"), ("content_filter", "content_filter")):
        gateway.up.script(say("half a", finish=finish))
        assert (await gateway.ask()).json()["choices"][0]["finish_reason"] == told


async def test_a_run_without_rounds_ends_like_one_that_is_too_long(gateway: Gateway) -> None:
    gateway.up.script(*[Script([Say("again"), Calls([ToolCall("double", {"number": 1})])])] * 2)
    [choice] = (await gateway.ask(config={"rounds": 2})).json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "again\n\nagain")
    gateway.up.script(*[Script([Calls([ToolCall("double", {"number": 1})])])] * 2)
    assert error_of(await gateway.ask(config={"rounds": 2}))[:2] == (429, "insufficient_quota")


async def test_what_holds_for_the_device_holds_for_these_clients(gateway: Gateway) -> None:
    patch = {"llm": {"temperature": 0.7}, "tools": {"double": {"enabled": False}}}
    await gateway.rpc("config.patch", scope="client:openai", patch=patch)
    await gateway.ask()
    await gateway.agui(messages=[{"id": "1", "role": "user", "content": "hi"}])
    by_openai, by_agui = (request.json for request in gateway.up.chats)
    assert (by_openai.get("temperature"), by_agui.get("temperature")) == (0.7, None)
    names = [[tool["function"]["name"] for tool in sent["tools"]] for sent in (by_openai, by_agui)]
    assert ["double" in each for each in names] == [False, True]


# run kinds, conversations


async def test_a_run_kind_is_a_model_and_agents_are_named(gateway: Gateway) -> None:
    bots = {"bots": {"a": {"name": "Ada", "model": MODEL}, "b": {"name": "Bob", "model": MODEL}}, "max_turns": 2}
    kinds = {kind["name"]: kind for kind in (await gateway.rpc("kind.list"))["kinds"]}
    assert set(bots) <= set(kinds["dialogue"]["schema"]["$defs"]["DialogueConfig"]["properties"])
    gateway.up.script(say("I say yes."), say("I say no."))
    answer = await gateway.ask("Tea or coffee?", model="sag/dialogue", config=bots, store=True)
    assert answer.json()["choices"][0]["message"]["content"] == "Ada: I say yes.\n\nBob: I say no."
    assert (answer.json()["model"], len(gateway.up.chats)) == ("sag/dialogue", 2)
    [conv] = await gateway.convs()
    [run] = (await gateway.state(conv))["runs"].values()
    assert run["kind"] == "dialogue"
    answer = await gateway.ask(model="sag/dialogue", tools=[WEATHER])
    assert error_of(answer) == (400, "request.bad", "tools")


async def test_what_came_before_is_told_to_a_run_kind_as_text(gateway: Gateway) -> None:
    messages = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    await gateway.ask(model="sag/toolchain", messages=messages, store=True)
    [conv] = await gateway.convs()
    state = await gateway.state(conv)
    parts = [part["text"] for part in state["messages"][0]["parts"]]
    assert parts == ["Three?", "What was said before:\n\nUser: One?\n\nAssistant: Two."]
    assert state["conv"]["title"].startswith("Three?")


async def test_a_kind_takes_a_model_and_a_bare_name_finds_its_provider(gateway: Gateway) -> None:
    for name in (f"sag/chat:{MODEL}", "sag/chat", "fake"):
        answer = (await gateway.ask("hello", model=name)).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, "hello")
    assert {request.json["model"] for request in gateway.up.chats} == {"fake"}


async def test_a_conversation_that_the_client_names_keeps_the_transcript(gateway: Gateway) -> None:
    headers = {"sag-conversation": "my talk"}
    before = [{"role": "user", "content": "Zero?"}, {"role": "assistant", "content": "Null."}]
    first = [*before, {"role": "user", "content": "One?"}]
    for messages in (first, [*first, {"role": "assistant", "content": "…"}, {"role": "user", "content": "Two?"}]):
        body = {"model": MODEL, "messages": messages}
        answer = await gateway.http.post("/openai/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    [conv] = await gateway.convs()
    assert len((await gateway.state(conv))["runs"]) == 2
    told = "One?\nWhat was said before:\n\nUser: Zero?\n\nAssistant: Null."
    assert gateway.sent(1) == [("user", told), ("assistant", told), ("user", "Two?")]
    headers = {"sag-conversation": conv}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Three?"}]}
    await gateway.http.post("/openai/v1/chat/completions", json=body, headers=headers)
    assert await gateway.convs() == [conv]
    assert gateway.sent()[-1] == ("user", "Three?")


async def test_two_requests_that_begin_with_one_name_meet_in_one_conversation(gateway: Gateway) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"sag-conversation": "both"}
    url = "/openai/v1/chat/completions"
    answers = await asyncio.gather(*(gateway.http.post(url, json=body, headers=headers) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(await gateway.convs()) == 1


@pytest.mark.parametrize("tables", [{"gateway": {"keep_s": 0.0}}])
async def test_conversations_that_nobody_asked_for_go_and_others_stay(gateway: Gateway) -> None:
    await gateway.ask()
    await until_async(gateway, 0)
    await gateway.ask("stay", store=True)
    gateway.up.script(
        Script([Calls([ToolCall("note_add", {"text": "milk"})])]),
        say("done"),
    )
    await gateway.ask("a note")
    gateway.up.script(fail(400, "No."))
    assert (await gateway.ask("fails")).status_code == 400
    await until_async(gateway, 2)
    titles = [one["title"] for one in (await gateway.rpc("conversation.list"))["conversations"]]
    assert sorted(titles) == ["a note", "stay"]
    async with asyncio.timeout(10):  # the keys go after the conversations
        while await gateway.hub.app.kv.list("gateway"):
            await asyncio.sleep(0.01)


async def test_a_conversation_that_nobody_asked_for_stays_for_a_while(gateway: Gateway) -> None:
    await gateway.ask()
    [conv] = await gateway.convs()
    [trace] = (await gateway.hub.app.kv.list("gateway", "trace ")).values()
    assert trace["conv"] == conv
    await gateway.rpc("run.start", conv=conv, input=[{"kind": "text", "text": "and more"}])  # a person goes on with it
    await until(lambda: len(gateway.up.chats) == 2, "the second run")
    assert gateway.sent() == [("user", "hi"), ("assistant", "hi"), ("user", "and more")]


async def until_async(gateway: Gateway, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await gateway.convs()) != count:
            await asyncio.sleep(0.01)


# the client's tools


def with_results(asked: list[Json], message: Json, *results: str) -> list[Json]:
    calls = message["tool_calls"]
    told = [
        {"role": "tool", "tool_call_id": call["id"], "content": text}
        for call, text in zip(calls, results, strict=True)
    ]  # fmt: skip
    return [*asked, {k: message[k] for k in ("role", "content", "tool_calls")}, *told]


async def test_the_clients_tools_are_called_where_it_is_and_the_run_goes_on(gateway: Gateway) -> None:
    calls = Calls([ToolCall("weather", {"at": "sea"}), ToolCall("double", {"number": 2}), ToolCall("weather", {})])
    gateway.up.script(Script([Say("One moment."), calls], usage=Usage(input=5, output=2)))
    asked = [{"role": "user", "content": "How is it?"}]
    answer = (await gateway.ask(messages=asked, tools=[WEATHER])).json()
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "One moment.")
    made = choice["message"]["tool_calls"]
    assert [(c["type"], c["function"]["name"], c["function"]["arguments"]) for c in made] == [
        ("function", "weather", '{"at":"sea"}'),
        ("function", "weather", "{}"),
    ]
    assert all(len(c["id"]) <= 40 for c in made)
    assert (CALLED, answer["usage"]["total_tokens"]) == (["double 2"], 7)
    offered = [tool["function"]["name"] for tool in gateway.up.chats[0].json["tools"]]
    assert {"weather", "double"} <= set(offered)
    gateway.up.script(say("It rains.", usage=Usage(input=20, output=4)))
    asked = with_results(asked, choice["message"], "rain", "more rain")
    answer = (await gateway.ask(messages=asked, tools=[WEATHER])).json()
    assert answer["choices"][0]["message"]["content"] == "It rains."
    assert answer["usage"]["total_tokens"] == 24  # of this request alone
    # The model reads its own round, with the hub's own call in it, which the client never saw.
    sent = gateway.up.chats[1].json["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool", "tool"]
    assert [m["content"] for m in sent[2:]] == ["rain", "4", "more rain"]
    assert len(await gateway.convs()) == 1


async def test_a_stream_tells_calls_and_what_the_user_says_besides_is_heard(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("my__weather", {"at": "sea"})])]), say("Fine."))
    mine = {"type": "function", "function": {"name": "my__weather"}}
    asked: list[Json] = [{"role": "user", "content": "How is it?"}]
    chunks = events_of(await gateway.ask(messages=asked, tools=[mine], stream=True))
    [delta] = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["delta"].get("tool_calls")]
    [call] = delta["tool_calls"]
    assert (call["index"], call["function"]["name"]) == (0, "my__weather")
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    message = {"role": "assistant", "content": None, "tool_calls": [{k: v for k, v in call.items() if k != "index"}]}
    asked = [*with_results(asked, message, "rain"), {"role": "user", "content": "Be quick."}]
    answer = events_of(await gateway.ask(messages=asked, tools=[mine], stream=True))
    assert text_of(answer) == "Fine."
    assert gateway.sent()[-2:] == [("tool", "rain"), ("user", "Be quick.")]


async def test_a_client_that_tells_its_story_anew_gets_a_run_of_its_own(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("weather", {})])]))
    asked = [{"role": "user", "content": "How is it?"}]
    message = (await gateway.ask(messages=asked, tools=[WEATHER])).json()["choices"][0]["message"]
    gateway.up.script(say("ok"))
    other = with_results([{"role": "user", "content": "How is it there?"}], message, "rain")
    assert (await gateway.ask(messages=other, tools=[WEATHER])).status_code == 200
    assert gateway.sent()[0] == ("user", "How is it there?")
    runs = (await gateway.rpc("run.list"))["runs"]
    assert sorted(run["status"] for run in runs) == ["cancelled", "done"]
    # and so does one whose run is over
    gateway.up.script(say("ok"))
    assert (await gateway.ask(messages=with_results(asked, message, "sun"), tools=[WEATHER])).status_code == 200
    assert [role for role, _ in gateway.sent()] == ["user", "assistant", "tool"]


async def test_many_rounds_of_the_clients_are_not_counted_as_the_hubs(gateway: Gateway) -> None:
    asked: list[Json] = [{"role": "user", "content": "How is it?"}]
    for i in range(8):
        gateway.up.script(Script([Calls([ToolCall("weather", {"i": i})])]))
        answer = await gateway.ask(messages=asked, tools=[WEATHER], config={"rounds": 2})
        [choice] = answer.json()["choices"]
        assert choice["finish_reason"] == "tool_calls", choice
        asked = with_results(asked, choice["message"], f"rain {i}")
    gateway.up.script(say("At last."))
    answer = await gateway.ask(messages=asked, tools=[WEATHER], config={"rounds": 2})
    assert answer.json()["choices"][0]["message"]["content"] == "At last."
    assert len((await gateway.rpc("run.list"))["runs"]) == 1


async def test_calls_come_one_by_one_where_the_client_wants_that(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("weather", {"n": 1}), ToolCall("weather", {"n": 2})])]), say("Both."))
    asked: list[Json] = [{"role": "user", "content": "How is it?"}]
    for n in (1, 2):
        answer = await gateway.ask(messages=asked, tools=[WEATHER], parallel_tool_calls=False)
        [choice] = answer.json()["choices"]
        [call] = choice["message"]["tool_calls"]
        assert call["function"]["arguments"] == f'{{"n":{n}}}'
        asked = with_results(asked, choice["message"], "rain")
    answer = await gateway.ask(messages=asked, tools=[WEATHER], parallel_tool_calls=False)
    assert answer.json()["choices"][0]["message"]["content"] == "Both."


@pytest.mark.parametrize("tables", [{"gateway": {"answer_s": 0.2, "keep_s": 0.0}}])
async def test_a_run_whose_client_never_answers_is_given_up(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("weather", {})])]))
    await gateway.ask(tools=[WEATHER])

    async def is_over() -> bool:
        return all(run["status"] == "cancelled" for run in (await gateway.rpc("run.list"))["runs"])

    async with asyncio.timeout(10):
        while not await is_over():
            await asyncio.sleep(0.02)
    assert len(gateway.up.chats) == 1
    plugin = next(p for p in gateway.hub.app.host.plugins if p.name == "gateway")
    assert plugin.problems == []


# what waits for a person


async def test_a_dangerous_tool_waits_for_a_person(gateway: Gateway) -> None:
    gateway.up.script(Script([Calls([ToolCall("erase", {"name": "all"})])]), say("Gone."))
    waiting = asyncio.create_task(gateway.ask("erase it"))
    async with asyncio.timeout(10):
        while not (convs := await gateway.convs()) or not (asks := (await gateway.state(convs[0]))["asks"]):
            await asyncio.sleep(0.01)
    assert not waiting.done()
    await gateway.rpc("ask.answer", ask=next(iter(asks)), choice="allow_once")
    assert (await waiting).json()["choices"][0]["message"]["content"] == "Gone."
    assert CALLED == ["erase all"]


# going away


@pytest.mark.parametrize("stream", [True, False])
async def test_a_run_ends_when_its_client_is_gone(gateway: Gateway, stream: bool) -> None:
    gateway.up.script(Script([Say("one "), Hang()]))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": stream}

    async def ask() -> None:
        url = f"{gateway.url}/chat/completions"
        async with httpx.AsyncClient() as http, http.stream("POST", url, json=body) as answer:
            async for _ in answer.aiter_bytes():
                return

    asking = asyncio.create_task(ask())
    await until(lambda: len(gateway.up.chats) == 1, "the model's request")
    if not stream:
        async with asyncio.timeout(10):
            [conv] = await gateway.convs()
            while not (await gateway.state(conv))["messages"][-1]["parts"]:
                await asyncio.sleep(0.01)
        asking.cancel()
    await asyncio.wait({asking})
    async with asyncio.timeout(5):
        while [run["status"] for run in (await gateway.rpc("run.list"))["runs"]] != ["cancelled"]:
            await asyncio.sleep(0.01)


# errors


@pytest.mark.parametrize("stream", [True, False])
async def test_errors_before_the_answer_have_their_status(gateway: Gateway, stream: bool) -> None:
    for failure, told, again in (
        (fail(429, "Slow down.", headers={"retry-after": "0"}), (429, "rate_limit_exceeded"), "true"),
        (fail(400, "This model's maximum context length is 5 tokens."), (400, "context_length_exceeded"), "false"),
        (fail(401, "Wrong key."), (502, "provider.auth"), "false"),
        (fail(500, "Broken."), (503, "provider.overloaded"), "true"),
        (fail(404, "The model does not exist."), (400, "provider.refused"), "false"),
    ):
        gateway.up.script(failure)
        answer = await gateway.ask(stream=stream, config={"retries": 0, "trim": False})
        assert error_of(answer)[:2] == told, answer.text
        assert answer.headers["x-should-retry"] == again


async def test_an_error_in_mid_stream_is_its_last_event(gateway: Gateway) -> None:
    gateway.up.script(Script([Say("one two"), Cut()]))
    answer = await gateway.ask(stream=True, config={"retries": 0})
    events = events_of(answer)
    assert (answer.status_code, text_of(events[:-1])) == (200, "one two")
    assert events[-1]["error"]["code"] == "provider.disconnected"
    assert "[DONE]" not in answer.text


async def test_what_was_told_and_is_void_is_an_error_of_a_stream_and_none_of_a_whole_answer(gateway: Gateway) -> None:
    gateway.up.script(Script([Say("one two"), Cut()]), say("three"))
    assert events_of(await gateway.ask(stream=True))[-1]["error"]["code"] == "gateway.void"
    gateway.up.script(Script([Say("one two"), Cut()]), say("three"))
    assert (await gateway.ask()).json()["choices"][0]["message"]["content"] == "three"


REFUSED: list[tuple[Json, int, str, str | None]] = [
    ({"model": "nope"}, 404, "model_not_found", "model"),
    ({"model": "no/such"}, 404, "model_not_found", "model"),
    ({"model": "lab/other"}, 404, "model_not_found", "model"),
    ({"model": "sag/plan:lab/other"}, 404, "model_not_found", "model"),
    ({"model": "sag/nothing"}, 404, "model_not_found", "model"),
    ({"model": "sag/"}, 404, "model_not_found", "model"),
    ({"model": ""}, 404, "model_not_found", "model"),
    ({"n": 2}, 400, "unsupported_value", "n"),
    ({"response_format": {"type": "json_object"}}, 400, "unsupported_value", "response_format"),
    ({"tool_choice": "required"}, 400, "unsupported_value", "tool_choice"),
    ({"logprobs": True}, 400, "unsupported_value", "logprobs"),
    ({"presence_penalty": 1}, 400, "unsupported_value", "presence_penalty"),
    ({"functions": [{"name": "f"}]}, 400, "unsupported_value", "functions"),
    ({"temperature": 5}, 400, "invalid_value", "temperature"),
    ({"temperature": "hot"}, 400, "rpc.params", "temperature"),
    ({"reasoning_effort": "extreme"}, 400, "invalid_value", "reasoning_effort"),
    ({"config": {"colour": 1}}, 400, "invalid_value", None),
    ({"messages": []}, 400, "rpc.params", "messages"),
    ({"messages": "hi"}, 400, "rpc.params", "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "rpc.params", "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "request.bad", "messages[0].role"),
    ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, 400, "request.bad", "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "unsupported_value", None),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "request.bad", "tools[0].function.name"),
    ({"tools": [{"type": "web_search"}]}, 400, "unsupported_value", "tools[0].type"),
    ({"tools": [WEATHER, WEATHER]}, 400, "request.bad", "tools"),
]


@pytest.mark.parametrize(("request_", "status", "code", "param"), REFUSED, ids=lambda v: str(v)[:40])
async def test_what_cannot_be_is_refused(
    gateway: Gateway, request_: Json, status: int, code: str, param: str | None
) -> None:
    answer = await gateway.ask(**request_)
    got = error_of(answer)
    assert got[:2] == (status, code), answer.text
    assert param is None or got[2] == param
    assert gateway.up.chats == []
    assert await gateway.convs() == []


async def test_a_call_that_is_not_answered_is_refused(gateway: Gateway) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "user", "content": "y"},
    ]
    assert error_of(await gateway.ask(messages=asked)) == (400, "request.bad", "messages")
    answer = await gateway.http.post("/openai/v1/chat/completions", content=b"{", headers={"content-type": "text/x"})
    assert error_of(answer)[:2] == (415, "media.type")
    answer = await gateway.http.post(
        "/openai/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert error_of(answer)[:2] == (400, "rpc.params")


async def test_where_a_token_is_needed_it_has_to_be_the_hubs() -> None:
    async with running_hub(env={}, auth="required") as hub, httpx.AsyncClient(base_url=hub.url) as http:
        for headers in ({}, {"authorization": "Bearer sk-any"}):
            answer = await http.get("/openai/v1/models", headers=headers)
            assert error_of(answer)[:2] == (401, "invalid_api_key")
        headers = {"authorization": f"Bearer {hub.app.own_token}"}
        assert (await http.get("/openai/v1/models", headers=headers)).status_code == 200
