"""The official SDKs of OpenAI and Anthropic read from the fakes what the scripts say: the fakes are like the real ones.

The SDKs run in an environment of their own, in one process for all tests (`sdk_reader.py`): that of `scripts/peers`, or
the one whose interpreter SAG_PEERS_PYTHON names.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sag.testing.upstream import (
    THOUGHT,
    Calls,
    Cut,
    Emit,
    Fail,
    FakeUpstream,
    FlavorName,
    Json,
    Refusal,
    Say,
    Script,
    Step,
    Think,
    ToolCall,
    Usage,
    fail,
    say,
)
from tests.testing.asking import PDF, PNG

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SAG_PEERS_PYTHON") or ROOT / ".venv/peers/bin/python")
WAIT_S = 30.0

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no peers: run scripts/peers")


class Reader:
    """The process with the SDKs."""

    def __init__(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.endswith(("_PROXY", "_proxy"))}
        clean = {name: value for name, value in clean.items() if not name.startswith(("OPENAI", "ANTHROPIC", "AZURE"))}
        self._process = subprocess.Popen(
            [str(PYTHON), str(Path(__file__).with_name("sdk_reader.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean,
        )
        self._read()  # the versions: it has begun

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process with the SDKs has ended; its error is above"
        return json.loads(line)

    def _do(self, job: Json) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    async def do(self, job: Json) -> Any:
        """The answer to a job."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await asyncio.to_thread(self._do, job)
        except TimeoutError:
            self._process.kill()
            raise

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["streaming", "whole"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Wire:
    """An SDK and the API that it speaks to, and how text is put for it."""

    def __init__(self, reader: Reader, up: FakeUpstream, client: Json, api: str) -> None:
        self.reader, self.up, self.client, self.api = reader, up, client, api

    async def ask(self, text: str = "hello", *, stream: bool = False, results: Any = None, **request: Any) -> Any:
        """One round, or with `results` two."""
        made: Json = {"model": "fake"}
        if self.api == "responses":
            made["input"] = [{"role": "user", "content": text}]
        else:
            made["messages"] = [{"role": "user", "content": text}]
        if self.api == "messages":
            made["max_tokens"] = 4096
        job: Json = {"client": self.client, "api": self.api, "stream": stream, "request": {**made, **request}}
        if results is not None:
            job["results"] = results
        return await self.reader.do(job)

    def tools(self, *names: str) -> list[Json]:
        schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
        if self.api == "messages":
            return [{"name": name, "input_schema": schema} for name in names]
        each = [{"name": name, "parameters": schema, "strict": True} for name in names]
        if self.api == "responses":
            return [{"type": "function", **one} for one in each]
        return [{"type": "function", "function": one} for one in each]


WIRES: dict[str, tuple[FlavorName, str]] = {
    "chat": ("openai", "chat"),
    "responses": ("openai", "responses"),
    "messages": ("anthropic", "messages"),
    "azure classic": ("azure", "chat"),
    "azure v1": ("azure", "chat"),
    "azure responses": ("azure", "responses"),
    "openrouter": ("openrouter", "chat"),
    "vllm": ("vllm", "chat"),
    "ollama": ("ollama", "chat"),
}
OWN = ("chat", "responses", "messages")


@pytest.fixture(params=list(WIRES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def up(name: str):
    flavor, _ = WIRES[name]
    async with FakeUpstream(flavor, api_key="k", strict=flavor == "openai") as server:
        yield server


@pytest.fixture
def wire(name: str, up: FakeUpstream, reader: Reader) -> Wire:
    flavor, api = WIRES[name]
    client: Json = {"class": "OpenAI", "base_url": up.url, "api_key": "k", "max_retries": 0}
    if flavor == "anthropic":
        client["class"] = "Anthropic"
    elif name == "azure v1":
        client["base_url"] = f"{up.url}/openai/v1/"
    elif flavor == "azure":
        version = "2025-04-01-preview" if api == "responses" else "2024-10-21"
        client = {"class": "AzureOpenAI", "azure_endpoint": up.url, "api_key": "k", "api_version": version}
        client["max_retries"] = 0
    return Wire(reader, up, client, api)


def bare(calls: list[Json]) -> list[tuple[str, Any]]:
    return [(one["name"], one["arguments"]) for one in calls]


# what is read


async def test_the_text_is_read(wire, up, stream):
    up.script(say("Hällo big\nworld 😀"))
    read = await wire.ask(stream=stream)
    assert (read["text"], read["calls"], read["thought"]) == ("Hällo big\nworld 😀", [], "")
    assert read["finish"] in ("stop", "completed", "end_turn")
    assert up.chats[0].json.get("stream", False) == stream


async def test_calls_are_read_with_their_ids_and_arguments(wire, up, stream):
    calls = [ToolCall("f", {"x": 'ä" 😀', "n": [1, None]}, id="own_1"), ToolCall("g", {}), ToolCall("f", {"x": ""})]
    interleaved = wire.api != "chat" or not stream
    up.script(Script([Say("Wait."), Calls(calls, interleaved=interleaved)]))
    read = await wire.ask(stream=stream, tools=wire.tools("f", "g"))
    assert bare(read["calls"]) == [(one.name, one.arguments) for one in calls]
    assert read["calls"][0]["id"] == "own_1"
    assert len({one["id"] for one in read["calls"]}) == 3
    assert read["text"] == "Wait."
    assert read["finish"] in ("tool_calls", "completed", "tool_use")


async def test_usage_is_read(wire, up, stream):
    up.script(say("x", usage=Usage(input=100, output=20, cached=40, cache_write=5, reasoning=7)))
    read = await wire.ask(stream=stream)
    assert (read["written"], read["cached"], read["reasoning"]) == (20, 40, 7)
    assert read["sent"] == (100 if wire.api == "messages" else 145)
    if wire.api == "messages":
        assert read["cache_write"] == 5


async def test_a_tool_loop_goes_round_with_the_sdks_own_objects(wire, up, stream):
    read = await wire.ask(
        'call f {"x": 1} and call g', stream=stream, tools=wire.tools("f", "g"), results=["one", "two"]
    )
    assert (read.get("error"), read.get("text")) == (None, "one two"), read
    assert len(up.chats) == 2
    assert up.chats[1].asked.answers == ["one", "two"]


THINKING: dict[str, Json] = {
    "responses": {
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
    },
    "messages": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "vllm": {"reasoning_effort": "low"},
    "ollama": {"reasoning_effort": "low"},
    "openrouter": {"extra_body": {"reasoning": {"effort": "low"}}},
}


@pytest.mark.parametrize("name", list(THINKING))
async def test_thoughts_are_read_and_go_back_with_the_answers_of_tools(name, wire, up, stream):
    given = {**THINKING[name], "tools": wire.tools("f")}
    read = await wire.ask("call f", stream=stream, **given)
    assert (read["thought"], bare(read["calls"])) == (THOUGHT, [("f", {})])
    assert read["reasoning"] == len(THOUGHT.split())
    assert all(read.get("sealed", [True]))
    read = await wire.ask("call f", stream=stream, **given, results=["done"])
    assert read.get("text") == "done", read


@pytest.mark.parametrize("name", ["messages"])
async def test_hidden_thoughts_and_odd_events_do_not_disturb(wire, up, stream):
    steps: list[Step] = [
        Think("secret", redacted=True),
        Say("a"),
        Emit({"type": "new_event"}),
        Calls([ToolCall("g", "")]),
    ]
    up.script(Script(steps))
    read = await wire.ask(stream=stream, tools=wire.tools("g"))
    assert (read["types"], bare(read["calls"])) == (["redacted_thinking", "text", "tool_use"], [("g", {})])


@pytest.mark.parametrize("name", ["chat", "responses", "messages"])
async def test_answers_that_stop_early_say_so(name, wire, up, stream):
    expected = {"chat": "length", "responses": "max_output_tokens", "messages": "max_tokens"}
    # The SDK's accumulator of chat raises at that itself.
    if name == "chat" and stream:
        pytest.skip("the SDK makes it an exception of its own")
    up.script(say("half a", finish="length"))
    read = await wire.ask(stream=stream)
    assert (read["text"], read["finish"]) == ("half a", expected[name])


@pytest.mark.parametrize("name", ["messages"])
async def test_refusals_and_pauses_are_read(wire, up, stream):
    up.script(Script([Say("Well"), Refusal("Not that.", "bio")]), say("so far", finish="pause_turn"))
    read = await wire.ask(stream=stream)
    assert (read["finish"], read["details"]) == (
        "refusal",
        {"type": "refusal", "category": "bio", "explanation": "Not that."},
    )
    assert (await wire.ask(stream=stream))["finish"] == "pause_turn"


@pytest.mark.parametrize("name", ["chat"])
async def test_a_refusal_of_chat_is_read(wire, up, stream):
    up.script(Script([Refusal("I will not.")]))
    assert (await wire.ask(stream=stream))["refusal"] == "I will not."


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("chat", ["chunk", "content.delta", "content.done"]),
        ("responses", ["response.created", "response.output_text.delta", "response.completed"]),
        ("messages", ["message_start", "text", "content_block_stop", "message_stop"]),
    ],
)
async def test_the_sdks_see_the_events_that_they_know(wire, kinds):
    assert set(kinds) <= set((await wire.ask(stream=True))["kinds"])


@pytest.mark.parametrize("name", ["openrouter"])
async def test_openrouters_cost_is_read(wire, stream):
    assert (await wire.ask(stream=stream))["extra"]["cost"] > 0


@pytest.mark.parametrize("name", OWN)
async def test_images_and_files_arrive(name, wire, up):
    image, file = f"data:image/png;base64,{PNG}", f"data:application/pdf;base64,{PDF}"
    contents: dict[str, list[Json]] = {
        "chat": [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": file}},
        ],
        "responses": [
            {"type": "input_image", "detail": "auto", "image_url": image},
            {"type": "input_file", "filename": "a.pdf", "file_data": file},
        ],
        "messages": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            },
        ],
    }
    member = "input" if name == "responses" else "messages"
    up.script(say("I see."))
    read = await wire.ask(**{member: [{"role": "user", "content": contents[name]}]})
    assert read.get("text") == "I see.", read
    files = [(file.mime, file.name, file.data[:4]) for file in up.chats[0].asked.files]
    assert files == [("image/png", "", b"\x89PNG"), ("application/pdf", "a.pdf", b"%PDF")]


# models and counting


@pytest.mark.parametrize("name", ["chat", "messages", "azure v1", "vllm", "ollama", "openrouter"])
async def test_models_are_listed(name, wire, up, reader):
    up.models |= {f"m{i}": {} for i in range(45)}
    request = {"limit": 10} if name == "messages" else {}
    read = await reader.do({"client": wire.client, "api": "models", "request": request})
    assert [id for id in read["ids"] if id != "openrouter/auto"] == ["fake", *(f"m{i}" for i in range(45))]
    assert len(up.requests) == (5 if name == "messages" else 1)


@pytest.mark.parametrize("name", ["messages"])
async def test_tokens_are_counted_as_they_are_told(wire, reader):
    request = {"model": "fake", "messages": [{"role": "user", "content": "one two three"}], "system": "be kind"}
    counted = await reader.do({"client": wire.client, "api": "count", "request": request})
    assert counted["tokens"] == (await wire.ask("one two three", system="be kind"))["sent"]


# errors


ERRORS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    429: "RateLimitError",
    500: "InternalServerError",
}


@pytest.mark.parametrize("status", list(ERRORS))
async def test_errors_are_the_right_exceptions(name, wire, up, status):
    up.script(fail(status, "It will not do."))
    read = await wire.ask(stream=True)
    assert (read["error"], read["status"]) == (ERRORS[status], status)
    # vLLM's middleware has a body of its own.
    words = "Error code: 401" if (name, status) == ("vllm", 401) else "It will not do."
    assert words in read["message"]


@pytest.mark.parametrize("name", ["messages"])
async def test_an_overload_has_an_exception_of_its_own(wire, up):
    up.script(fail(529, "Busy."), Script([Say("a"), Fail(529, "Busy.")]))
    read = await wire.ask(stream=True)
    assert (read["error"], read["status"], read["request_id"]) == ("OverloadedError", 529, "req_1")
    read = await wire.ask(stream=True)
    assert "overloaded_error" in read["message"]


@pytest.mark.parametrize("name", ["chat", "openrouter", "vllm"])
async def test_an_error_in_mid_stream_is_raised(wire, up):
    up.script(Script([Say("a"), Fail(500, "It went away.")]))
    read = await wire.ask(stream=True)
    assert (read["error"], "It went away." in read["message"]) == ("APIError", True)


@pytest.mark.parametrize("name", OWN)
async def test_a_connection_that_breaks_is_raised(wire, up):
    up.script(Script([Say("a"), Cut("fin")]))
    # Before version 3 the SDK of OpenAI lets its HTTP client's own exception through.
    assert (await wire.ask(stream=True)).get("error") in ("APIConnectionError", "RemoteProtocolError")


async def test_a_wrong_key_is_an_error_of_authentication(name, wire, up):
    if name == "ollama":
        pytest.skip("it takes any key")
    wire.client["api_key"] = "other"
    assert (await wire.ask())["error"] == "AuthenticationError"


async def test_a_model_that_is_not_there_is_not_found(name, wire):
    if name == "azure classic":
        # The SDK puts the model into the path, as the deployment.
        assert (await wire.ask(model="none"))["code"] == "DeploymentNotFound"
    read = await wire.ask(model="none")
    assert read["error"] == ("BadRequestError" if name == "openrouter" else "NotFoundError")


@pytest.mark.parametrize("name", OWN)
async def test_codes_are_read(name, wire, up):
    up.script(fail(429, "Pay.", code="insufficient_quota"))
    read = await wire.ask()
    assert read["error"] == "RateLimitError"
    if name != "messages":
        assert read["code"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"retry-after": "0.2"}, 0.2), ({"retry-after-ms": "200", "retry-after": "20"}, 0.2)],
)
@pytest.mark.parametrize("name", [*OWN, "azure classic"])
async def test_sdks_wait_as_long_as_they_are_told(wire, up, headers, least):
    wire.client["max_retries"] = 2
    up.script(fail(429, "Wait.", headers=headers), say("there"))
    read = await wire.ask(stream=True)
    assert read.get("text") == "there", read
    first, second = up.chats
    assert least <= second.at - first.at < least + 5
    assert second.headers["x-stainless-retry-count"] == "1"


@pytest.mark.parametrize("name", OWN)
async def test_sdks_do_not_try_again_what_they_are_told_not_to(wire, up):
    wire.client["max_retries"] = 2
    up.script(fail(500, "No.", headers={"x-should-retry": "false"}))
    assert (await wire.ask())["error"] == "InternalServerError"
    up.script(fail(400, "No."))
    assert (await wire.ask())["error"] == "BadRequestError"
    assert len(up.chats) == 2


# Azure


async def test_azure_takes_tokens_of_entra(reader):
    async with FakeUpstream("azure", api_key="k", access_token="t") as up:
        classic = {"class": "AzureOpenAI", "azure_endpoint": up.url, "api_version": "2024-10-21", "azure_ad_token": "t"}
        current = {"class": "OpenAI", "base_url": f"{up.url}/openai/v1/", "api_key": "t"}
        for client in (classic, current):
            read = await Wire(reader, up, {**client, "max_retries": 0}, "chat").ask("hi")
            assert read.get("text") == "hi", read
        assert [request.path.partition("?")[0] for request in up.requests] == [
            "/openai/deployments/fake/chat/completions",
            "/openai/v1/chat/completions",
        ]
        assert {request.headers["authorization"] for request in up.requests} == {"Bearer t"}
        assert "api-key" not in up.requests[0].headers
