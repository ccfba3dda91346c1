"""What no script says is the same with every vendor: an echo, calls, the tools' answers, a thought."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct, field

from sag.testing.upstream import THOUGHT, FakeUpstream, Json, ToolCall, call, fail, say, write_calls
from tests.testing.asking import OBJECT, Got, send


class Heard(Struct):
    """What an answer says, in words of no vendor."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str = ""
    sent: int = 0
    written: int = 0
    replay: list[Json] = field(default_factory=list)


class Wire(ABC):
    """How one vendor is asked and heard. `thinking` turns reasoning on."""

    def __init__(self, flavor: Any, path: str, thinking: Json, headers: dict[str, str] | None = None) -> None:
        self.flavor, self.path, self.thinking = flavor, path, thinking
        self.headers = headers or {}

    async def ask(self, up: FakeUpstream, messages: list[Json], tools: bool, stream: bool, **more: Any) -> Heard:
        body = {"model": "fake", "stream": stream, **self.body(messages, tools), **more}
        got = await send(up, "POST", self.path, body, self.headers)
        assert got.status == 200, got.body
        return self.hear(got, stream)

    @abstractmethod
    def body(self, messages: list[Json], tools: bool) -> Json:
        """The members of a request that differ."""

    @abstractmethod
    def hear(self, got: Got, stream: bool) -> Heard:
        """What an answer says."""

    @abstractmethod
    def results(self, heard: Heard, results: list[str]) -> list[Json]:
        """The answer and its tools' results, as the next request has them."""


class ChatWire(Wire):
    def body(self, messages: list[Json], tools: bool) -> Json:
        offered = [{"type": "function", "function": {"name": name, "parameters": OBJECT}} for name in ("f", "g")]
        return {"messages": messages, "tools": offered if tools else None}

    async def ask(self, up: FakeUpstream, messages: list[Json], tools: bool, stream: bool, **more: Any) -> Heard:
        if stream:
            more["stream_options"] = {"include_usage": True}
        return await super().ask(up, messages, tools, stream, **more)

    def hear(self, got: Got, stream: bool) -> Heard:
        heard = Heard()
        calls: dict[int, Json] = {}
        deltas = []
        for event in got.events if stream else [got.json]:
            if event.get("usage"):
                heard.sent, heard.written = event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                heard.finish = choice["finish_reason"] or ""
                deltas.append(choice["delta" if stream else "message"])
        for delta in deltas:
            heard.text += delta.get("content") or ""
            heard.thought += delta.get("reasoning") or ""
            for i, one in enumerate(delta.get("tool_calls") or ()):
                entry = calls.setdefault(one["index"] if stream else i, {"id": "", "name": "", "arguments": ""})
                entry["id"] += one.get("id", "")
                entry["name"] += one["function"].get("name", "")
                entry["arguments"] += one["function"]["arguments"]
        heard.calls = [(one["name"], json.loads(one["arguments"])) for one in calls.values()]
        functions = [
            {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in calls.values()
        ]
        heard.replay = [{"role": "assistant", "content": None, "tool_calls": functions}]
        return heard

    def results(self, heard: Heard, results: list[str]) -> list[Json]:
        ids = [one["id"] for one in heard.replay[0]["tool_calls"]]
        return [
            {"role": "tool", "tool_call_id": id, "content": result} for id, result in zip(ids, results, strict=True)
        ]


class ResponsesWire(Wire):
    def body(self, messages: list[Json], tools: bool) -> Json:
        offered = [{"type": "function", "name": name, "parameters": OBJECT} for name in ("f", "g")]
        return {"input": messages, "tools": offered if tools else None}

    def hear(self, got: Got, stream: bool) -> Heard:
        answer = got.events[-1]["response"] if stream else got.json
        heard = Heard(replay=answer["output"])
        for item in answer["output"]:
            if item["type"] == "message":
                heard.text += "".join(part["text"] for part in item["content"])
            elif item["type"] == "reasoning":
                heard.thought += "".join(part["text"] for part in item["summary"])
            else:
                heard.calls.append((item["name"], json.loads(item["arguments"])))
        heard.finish = "tool_calls" if heard.calls else "stop"
        assert answer["status"] == "completed"
        if stream:
            deltas = [e["delta"] for e in got.events if e["type"] == "response.output_text.delta"]
            assert "".join(deltas) == heard.text
            deltas = [e["delta"] for e in got.events if e["type"] == "response.reasoning_summary_text.delta"]
            assert "".join(deltas) == heard.thought
        heard.sent, heard.written = answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]
        return heard

    def results(self, heard: Heard, results: list[str]) -> list[Json]:
        ids = [item["call_id"] for item in heard.replay if item["type"] == "function_call"]
        return [
            {"type": "function_call_output", "call_id": id, "output": result}
            for id, result in zip(ids, results, strict=True)
        ]


class MessagesWire(Wire):
    def body(self, messages: list[Json], tools: bool) -> Json:
        offered = [{"name": name, "input_schema": OBJECT} for name in ("f", "g")]
        return {"messages": messages, "max_tokens": 4096, "tools": offered if tools else None}

    def hear(self, got: Got, stream: bool) -> Heard:
        heard = Heard()
        answer = read_message(got) if stream else got.json
        for block in answer["content"]:
            if block["type"] == "text":
                heard.text += block["text"]
            elif block["type"] == "thinking":
                heard.thought += block["thinking"]
            else:
                heard.calls.append((block["name"], block["input"]))
        heard.finish = {"end_turn": "stop", "tool_use": "tool_calls"}[answer["stop_reason"]]
        heard.sent, heard.written = answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]
        heard.replay = [{"role": "assistant", "content": answer["content"]}]
        return heard

    def results(self, heard: Heard, results: list[str]) -> list[Json]:
        ids = [block["id"] for block in heard.replay[0]["content"] if block["type"] == "tool_use"]
        blocks = [
            {"type": "tool_result", "tool_use_id": id, "content": result}
            for id, result in zip(ids, results, strict=True)
        ]
        return [{"role": "user", "content": blocks}]


def read_message(got: Got) -> Json:
    """The message that a stream of Anthropic's makes."""
    assert got.names == [event["type"] for event in got.events]
    message: Json = got.events[0]["message"]
    inputs: dict[int, str] = {}
    for event in got.events[1:]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif event["type"] == "content_block_stop" and event["index"] in inputs:
            message["content"][event["index"]]["input"] = json.loads(inputs[event["index"]] or "{}")
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    return message


BEARER = {"authorization": "Bearer k"}
ANTHROPIC = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
SUMMARY = {"effort": "low", "summary": "auto"}
VERSION = "api-version=2024-10-21"
WIRES: dict[str, Callable[[], Wire]] = {
    "openai": lambda: ChatWire("openai", "/v1/chat/completions", {}),
    "responses": lambda: ResponsesWire("openai", "/v1/responses", {"reasoning": SUMMARY}),
    "vllm": lambda: ChatWire("vllm", "/v1/chat/completions", {"reasoning_effort": "low"}),
    "ollama": lambda: ChatWire("ollama", "/v1/chat/completions", {"reasoning": {"effort": "low"}}),
    "openrouter": lambda: ChatWire("openrouter", "/api/v1/chat/completions", {"reasoning": {"enabled": True}}, BEARER),
    "azure": lambda: ChatWire("azure", f"/openai/deployments/fake/chat/completions?{VERSION}", {}, {"api-key": "k"}),
    "azure v1": lambda: ChatWire("azure", "/openai/v1/chat/completions", {}, BEARER),
    "azure responses": lambda: ResponsesWire("azure", "/openai/v1/responses", {"reasoning": SUMMARY}, BEARER),
    "anthropic": lambda: MessagesWire("anthropic", "/v1/messages", {"thinking": {"type": "adaptive"}}, ANTHROPIC),
}


@pytest.fixture(params=list(WIRES))
def wire(request):
    return WIRES[request.param]()


@pytest.fixture
async def up(wire):
    async with FakeUpstream(wire.flavor) as server:
        yield server


@pytest.fixture(params=[True, False], ids=["streaming", "whole"])
def stream(request):
    return request.param


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


async def test_the_users_words_come_back(wire, up, stream):
    heard = await wire.ask(up, user("hello big\nwörld 😀"), False, stream)
    assert (heard.text, heard.thought, heard.calls, heard.finish) == ("hello big\nwörld 😀", "", [], "stop")
    assert heard.sent > 4
    assert heard.written == 4


async def test_tools_are_called_and_their_answers_repeated(wire, up, stream):
    told = user('call f {"x": [1, "ä\\""]} and call g and call h {}')
    heard = await wire.ask(up, told, True, stream)
    assert (heard.calls, heard.finish) == ([("f", {"x": [1, 'ä"']}), ("g", {})], "tool_calls")
    again = [*told, *heard.replay, *wire.results(heard, ["one", "two"])]
    heard = await wire.ask(up, again, True, stream)
    assert (heard.text, heard.calls, heard.finish) == ("one two", [], "stop")
    assert up.requests[-1].asked.answers == ["one", "two"]


async def test_what_is_not_offered_is_not_called(wire, up, stream):
    heard = await wire.ask(up, user("call f {}"), False, stream)
    assert (heard.text, heard.calls) == ("call f {}", [])


async def test_a_thought_comes_first_where_reasoning_is_on(wire, up, stream):
    heard = await wire.ask(up, user("call f"), True, stream, **wire.thinking)
    assert heard.thought == (THOUGHT if wire.thinking else "")
    assert heard.calls == [("f", {})]
    # It comes back with the tool's answer, as the vendors want it.
    again = [*user("call f"), *heard.replay, *wire.results(heard, ["one"])]
    heard = await wire.ask(up, again, True, stream, **wire.thinking)
    assert heard.text == "one"


async def test_one_script_is_written_in_every_format(wire, up, stream):
    up.script(say("Hello there", finish="stop"), call("f", {"x": 1}))
    assert (await wire.ask(up, user("x"), True, stream)).text == "Hello there"
    assert (await wire.ask(up, user("x"), True, stream)).calls == [("f", {"x": 1})]


async def test_errors_have_a_message_and_the_status(wire, up, stream):
    up.script(fail(429, "Too much.", headers={"Retry-After": "7"}))
    got = await send(up, "POST", wire.path, {"model": "fake", **wire.body(user("x"), False)}, wire.headers)
    assert (got.status, got.headers["retry-after"], got.error["message"]) == (429, "7", "Too much.")
    assert got.headers["content-type"] == "application/json"


async def test_usage_may_be_told_by_the_script(wire, up, stream):
    from sag.testing.upstream import Usage

    up.script(say("x", usage=Usage(input=5, output=7, cached=3, cache_write=2, reasoning=1)))
    heard = await wire.ask(up, user("x"), False, stream)
    assert heard.written == 7
    assert heard.sent == (5 if wire.flavor == "anthropic" else 10)


@pytest.mark.parametrize(
    ("choice", "told", "calls"),
    [
        ("none", "call f", []),
        ("required", "do it", [("f", {})]),
        ("required", "call g", [("g", {})]),
        ({"type": "function", "function": {"name": "g"}}, "call f", [("g", {})]),
    ],
)
async def test_the_tool_choice_is_heeded(choice, told, calls):
    wire = WIRES["openai"]()
    async with FakeUpstream(strict=True) as up:
        heard = await wire.ask(up, user(told), True, True, tool_choice=choice)
        assert heard.calls == calls


CALLS = [ToolCall("f", {"x": "a b", "n": 2}), ToolCall("g")]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (
            "hermes",
            '<tool_call>\n{"name": "f", "arguments": {"x": "a b", "n": 2}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        ),
        (
            "qwen_coder",
            '<tools>\n[{"name": "f", "arguments": {"x": "a b", "n": 2}}, {"name": "g", "arguments": {}}]\n</tools>',
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=x>\na b\n</parameter>\n<parameter=n>\n2\n</parameter>\n</function>\n"
            "</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        ),
        ("llama", '{"name": "f", "parameters": {"x": "a b", "n": 2}}; {"name": "g", "parameters": {}}'),
        ("pythonic", "[f(x='a b', n=2), g()]"),
        ("olmo", "<function_calls>\nf(x='a b', n=2)\ng()\n</function_calls>"),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": "a b", "n": 2}}, {"name": "g", "arguments": {}}]'),
        ("xlam", '[{"name": "f", "arguments": {"x": "a b", "n": 2}}, {"name": "g", "arguments": {}}]'),
        (
            "functiongemma",
            "<start_function_call>call:f{x:<escape>a b<escape>,n:2}<end_function_call>"
            "<start_function_call>call:g{}<end_function_call>",
        ),
        (
            "fenced",
            '```json\n[{"name": "f", "arguments": {"x": "a b", "n": 2}}, {"name": "g", "arguments": {}}]\n```',
        ),
    ],
)
async def test_calls_may_stand_in_the_text(family, text):
    assert write_calls(CALLS, family) == text
    wire = WIRES["vllm"]()
    async with FakeUpstream("vllm", tool_text=family) as up:
        heard = await wire.ask(up, user('call f {"x": "a b", "n": 2} call g'), True, True)
        assert (heard.text, heard.calls, heard.finish) == (text, [], "stop")
        pieces = await send(up, "POST", wire.path, {"model": "fake", "stream": True, **wire.body(user("call g"), True)})
        assert max(len(e["choices"][0]["delta"].get("content") or "") for e in pieces.events) == 3


def test_calls_in_text_want_objects_and_a_family_that_is_known():
    with pytest.raises(ValueError, match="'f' are text"):
        write_calls([ToolCall("f", "{broken")])
    with pytest.raises(ValueError, match="'none' is no family"):
        write_calls(CALLS, "none")
