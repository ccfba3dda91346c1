"""The fake model server does what real ones do, right and wrong."""

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from sag.testing.upstream import (
    Calls,
    Comment,
    Cut,
    Emit,
    FakeUpstream,
    Hang,
    Raw,
    Say,
    Script,
    Step,
    Think,
    ToolCall,
    call,
    fail,
    gzip_bomb,
    say,
)

USER = [{"role": "user", "content": "hello big world"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g")]


@pytest.fixture
async def up():
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(5)) as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, up: FakeUpstream, messages: Any = USER, **given: Any
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of an answer."""
    body = {"model": "fake", "messages": messages, "stream": True, "stream_options": {"include_usage": True}} | given
    body = {name: value for name, value in body.items() if value is not None}
    async with http.post(f"{up.url}/chat/completions", json=body) as answer:
        return answer.status, answer.headers, await answer.read()


async def stream(http: aiohttp.ClientSession, up: FakeUpstream, messages: Any = USER, **given: Any) -> list[Any]:
    """The events of an answer, the last of which has to be [DONE]."""
    status, headers, body = await ask(http, up, messages, **given)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *events, done = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(one) for one in events]


def deltas(events: list[Any]) -> list[Any]:
    return [one["choices"][0]["delta"] for one in events if one["choices"]]


def made_calls(events: list[Any]) -> dict[int, list[str]]:
    calls: dict[int, list[str]] = {}
    for delta in deltas(events):
        for one in delta.get("tool_calls", []):
            entry = calls.setdefault(one["index"], ["", "", ""])
            entry[0] += one.get("id", "")
            entry[1] += one["function"].get("name", "")
            entry[2] += one["function"]["arguments"]
    return calls


async def test_the_default_answer_is_an_echo_in_real_envelopes(http, up):
    events = await stream(http, up)
    assert deltas(events)[0] == {"role": "assistant", "content": None, "refusal": None}
    assert [delta["content"] for delta in deltas(events)[1:-1]] == ["hello", " big", " world"]
    assert events[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert all(one["usage"] is None and one["object"] == "chat.completion.chunk" for one in events[:-1])
    assert len({one["id"] for one in events}) == 1


async def test_usage_comes_only_to_who_asks(http, up):
    events = await stream(http, up, stream_options=None)
    assert all("usage" not in one for one in events)


async def test_an_offered_tool_is_called_and_its_answer_repeated(http, up):
    user = {"role": "user", "content": 'call f {"x": [1, "ä"]} and call g and call h {}'}
    calls = made_calls(await stream(http, up, [user], tools=TOOLS))
    assert [(name, json.loads(arguments)) for _, name, arguments in calls.values()] == [
        ("f", {"x": [1, "ä"]}),
        ("g", {}),
    ]
    functions = [{"id": id, "type": "function", "function": {"name": n, "arguments": a}} for id, n, a in calls.values()]
    answers = [{"role": "tool", "tool_call_id": one["id"], "content": f"r{i}"} for i, one in enumerate(functions)]
    assistant = {"role": "assistant", "content": None, "tool_calls": functions}
    events = await stream(http, up, [user, assistant, *answers], tools=TOOLS)
    assert "".join(delta.get("content") or "" for delta in deltas(events)) == "r0 r1"


async def test_without_tools_the_same_words_are_echoed(http, up):
    events = await stream(http, up, [{"role": "user", "content": "call f {}"}])
    assert made_calls(events) == {}


async def test_calls_come_interleaved_cut_anywhere_whole_or_under_one_index(http, up):
    two = [ToolCall("f", {"x": 'ä"'}), ToolCall("g", "{broken", id="own")]
    up.script(Script([Calls(two)]), Script([Calls(two, interleaved=False)]), Script([Calls(two, whole=True)]))
    events = await stream(http, up)
    order = [one["tool_calls"][0]["index"] for one in deltas(events) if "tool_calls" in one]
    assert order[:4] == [0, 1, 0, 1]
    assert [entry[1:] for entry in made_calls(events).values()] == [["f", r'{"x": "\u00e4\""}'], ["g", "{broken"]]
    assert made_calls(events)[1][0] == "own"
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    events = await stream(http, up)
    order = [one["tool_calls"][0]["index"] for one in deltas(events) if "tool_calls" in one]
    assert order == sorted(order)
    assert list(made_calls(await stream(http, up))) == [0]


async def test_scripts_are_used_in_order_and_by_model(http, up):
    up.script(say("one"), say("two"))
    up.script(say("other"), model="other")
    heard = []
    for model in ("fake", "other", "other", "fake"):
        events = await stream(http, up, model=model)
        heard.append("".join(delta.get("content") or "" for delta in deltas(events)))
    assert heard == ["one", "other", "two", "hello big world"]


async def test_a_callable_answers_or_leaves_it(http):
    async with FakeUpstream(answer=lambda request: say("x") if request.json["model"] == "a" else None) as up:
        for model, text in (("a", "x"), ("b", "hello big world")):
            events = await stream(http, up, model=model)
            assert "".join(delta.get("content") or "" for delta in deltas(events)) == text


async def test_vendors_have_their_ways(http, up):
    steps: list[Step] = [
        Comment(),
        Emit({"choices": [], "prompt_filter_results": []}),
        Think("hm"),
        Think("so", member="reasoning_content"),
        Say(["a", "b"]),
        Emit({"error": {"message": "m"}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
    ]
    up.script(Script(steps, finish="length", usage={"prompt_tokens": 1}, newline="\r\n", bom=True, role=False))
    status, _, body = await ask(http, up)
    assert status == 200
    assert body.startswith(b"\xef\xbb\xbf: OPENROUTER PROCESSING\r\n\r\n")
    for part in (
        b'{"reasoning":"hm"}',
        b'{"reasoning_content":"so"}',
        b'"finish_reason":"length"',
        b'"prompt_tokens":1',
    ):
        assert part in body
    assert b"\n\n" not in body.replace(b"\r\n", b"")


async def test_a_request_without_stream_gets_one_object(http, up):
    _, headers, body = await ask(http, up, stream=None, stream_options=None)
    given = json.loads(body)
    assert headers["content-type"] == "application/json"
    assert given["choices"][0]["message"]["content"] == "hello big world"
    up.script(call("f", {"x": 1}))
    _, _, body = await ask(http, up, stream=None, stream_options=None)
    [choice] = json.loads(body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}


CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
}
ANSWER = {"role": "tool", "tool_call_id": "a", "content": "r"}


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"messages": []}, 400, "empty array"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "Invalid value: 'robot'"),
        ({"messages": [{"role": "user"}]}, 400, "content"),
        ({"messages": [ANSWER]}, 400, "role 'tool'"),
        ({"messages": [*USER, CALLED]}, 400, "did not have response messages: a"),
        ({"messages": [*USER, CALLED, *USER]}, 400, "did not have response messages: a"),
        ({"messages": [*USER, CALLED, ANSWER, ANSWER]}, 400, "role 'tool'"),
        ({"messages": [*USER, CALLED, ANSWER]}, 200, ""),
        ({"model": None}, 400, "model"),
        ({"model": "other"}, 404, "does not exist"),
        ({"best_of": 3}, 400, "Unknown parameter: 'best_of'"),
        ({"stream": None}, 400, "stream_options"),
        ({"tools": []}, 400, "too short"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, 400, "pattern"),
        ({"tools": TOOLS}, 200, ""),
    ],
)
async def test_requests_that_break_the_contract_get_the_real_error(http, given, status, words):
    async with FakeUpstream(strict=True) as up:
        answered, _, body = await ask(http, up, **{"messages": USER, **given})
        assert answered == status
        if words:
            assert words in json.loads(body)["error"]["message"]
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_what_is_not_strict_ignores_unknown_parameters(http, up):
    assert (await ask(http, up, best_of=3, model="any"))[0] == 200


async def test_keys_paths_methods_and_models(http):
    async with FakeUpstream(api_key="k", models=["a", "b"]) as up:
        assert (await ask(http, up))[0] == 401
        right = {"authorization": "Bearer k"}
        async with http.get(f"{up.url}/models", headers=right) as answer:
            listed = (await answer.json())["data"]
        assert [(one["id"], one["max_model_len"]) for one in listed] == [("a", 8192), ("b", 8192)]
        for method, path, status in (("GET", "/chat/completions", 405), ("POST", "/nothing", 404)):
            async with http.request(method, up.url + path, headers=right, json={}) as answer:
                assert answer.status == status
        async with http.post(f"{up.url}/chat/completions", headers=right, data=b"{") as answer:
            assert answer.status == 400


async def test_a_server_without_a_tool_parser_refuses_tools(http):
    async with FakeUpstream(tool_parser=False) as up:
        status, _, body = await ask(http, up, tools=TOOLS)
        assert (status, json.loads(body)["error"]["code"]) == (400, 400)


async def test_errors_carry_their_headers(http, up):
    up.script(
        fail(429, "slow", code="rate_limit_exceeded", headers={"Retry-After": "7", "x-ratelimit-reset-tokens": "1s"})
    )
    status, headers, body = await ask(http, up)
    assert (status, headers["retry-after"], headers["x-ratelimit-reset-tokens"]) == (429, "7", "1s")
    assert json.loads(body)["error"] == {
        "message": "slow",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }


async def test_a_bomb_is_small_and_becomes_large(http, up):
    up.script(gzip_bomb(5 << 20))
    _, headers, body = await ask(http, up)
    assert headers["content-encoding"] == "gzip"
    assert len(body) < 10_000
    assert len(gzip.decompress(body)) > 5 << 20


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(head="rst"), aiohttp.ClientOSError),
        (Script(head="fin"), aiohttp.ServerDisconnectedError),
        (Script(head="garbage"), aiohttp.ClientResponseError),
        (Script([Say("a"), Cut("fin")]), aiohttp.ClientPayloadError),
        (Script([Say("a"), Cut("rst")]), aiohttp.ClientError),
        (Script(headers={"x": "a" * 100_000}), aiohttp.ClientResponseError),
    ],
)
async def test_connections_end_badly_on_demand(http, up, script, error):
    up.script(script)
    with pytest.raises(error):
        await ask(http, up)
    if script.head != "send" or script.steps:
        assert await up.requests[0].wait_ended() == "cut"


async def test_a_client_that_leaves_is_noted(http, up):
    for script in (Script([Hang()]), Script(head="hang"), Script([Say(["x"] * 9999)], tokens_per_s=10)):
        up.script(script)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(http, up)
        assert await up.requests[-1].wait_ended() == "client"


async def test_a_body_may_come_byte_by_byte_or_end_with_the_connection(http, up):
    up.script(
        Script([Say("ä b")], segment=1), Script([Say("ä b")], framing="close"), Script([Raw(b"as it is")], role=False)
    )
    first, second = [(await ask(http, up))[2] for _ in range(2)]
    assert first.split(b"\n")[2:] == second.replace(b"chatcmpl-2", b"chatcmpl-1").split(b"\n")[2:]
    assert (await ask(http, up))[2].startswith(b"as it isdata: ")


async def test_the_pace_is_kept(http):
    async with FakeUpstream(tokens_per_s=200) as up:
        up.script(Script([Say(["x"] * 40)]))
        began = time.monotonic()
        await stream(http, up)
        assert 0.19 < time.monotonic() - began < 1


async def test_the_journal_holds_what_came(http, up):
    waiting = asyncio.create_task(up.wait_requests(1))
    await ask(http, up)
    [request] = await waiting
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["content-type"] == "application/json"
    assert request.json["messages"] == USER
    assert (await request.wait_ended(), request.tokens) == ("done", 3)
    assert up.connections == 1


async def test_flooding_is_fast(http, up):
    up.script(Script([Say(["token "] * 20_000)]))
    began = time.process_time()
    events = await stream(http, up)
    assert len(events) == 20_003
    assert time.process_time() - began < 3


@pytest.mark.parametrize(("flavor", "path"), [("openai", "/chat/completions"), ("anthropic", "/v1/messages")])
async def test_it_runs_by_itself(http, flavor, path):
    command = [sys.executable, "-m", "sag.testing.upstream", "--flavor", flavor, "--port", "0", "--tokens", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            body = {"model": "fake", "messages": USER, "max_tokens": 9}
            headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
            async with http.post(url + path, json=body, headers=headers) as answer:
                assert " tok0 tok1 tok2 tok3 tok4" in await answer.text()
        finally:
            process.terminate()
            process.wait(10)
