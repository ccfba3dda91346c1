"""The official SDK of OpenAI, unchanged, speaks to the hub (`sdk.py`, in the environment of `scripts/peers`)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sag.testing.upstream import Calls, Cut, Hang, Say, Script, Think, ToolCall, Usage, fail, say
from tests.gateway.conftest import CALLED, MODEL, Gateway, Sdk

Json = dict[str, Any]
USER = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


def ask(**more: Any) -> Json:
    return {"model": MODEL, "messages": USER, **more}


async def test_models_are_listed_and_retrieved(gateway: Gateway, sdk: Sdk) -> None:
    ids = await sdk.do(gateway, "models")
    assert {MODEL, "sag/chat", "sag/plan", "sag/triage"} <= set(ids)
    for id in (MODEL, "sag/dialogue"):
        assert (await sdk.do(gateway, "retrieve", id=id))["id"] == id
    read = await sdk.do(gateway, "retrieve", id="no/such")
    assert (read["error"], read["code"]) == ("NotFoundError", "model_not_found")


async def test_an_answer_is_read_whole_and_streamed(gateway: Gateway, sdk: Sdk) -> None:
    usage = Usage(input=10, output=6, cached=4, reasoning=2)
    for do in ("create", "accumulate"):
        gateway.up.script(Script([Think("Hm."), Say("Grüße 🙂")], usage=usage))
        more = {"stream_options": {"include_usage": True}} if do == "accumulate" else {}
        read = await sdk.do(gateway, do, request=ask(reasoning_effort="low", **more))
        [choice] = read["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Grüße 🙂", "stop")
        assert choice["message"]["reasoning_content"] == "Hm."
        assert (read["usage"]["prompt_tokens"], read["usage"]["completion_tokens"]) == (14, 6)
        assert read["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
        assert read["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    read = await sdk.do(gateway, "chunks", request=ask(stream_options={"include_usage": True}))
    assert "".join(c["delta"]["content"] or "" for chunk in read for c in chunk["choices"]) == "hi"
    assert read[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("do", ["create", "accumulate"])
async def test_the_hubs_tools_run_on_the_server(gateway: Gateway, sdk: Sdk, do: str) -> None:
    gateway.up.script(Script([Calls([ToolCall("double", {"number": 4})])]), say("8"))
    read = await sdk.do(gateway, do, request=ask())
    assert (read["choices"][0]["message"]["content"], read["choices"][0]["message"]["tool_calls"]) == ("8", None)
    assert CALLED == ["double 4"]


async def test_a_run_kind_is_a_model(gateway: Gateway, sdk: Sdk) -> None:
    gateway.up.script(say("yes"), say("no"))
    bots = {"a": {"name": "Ada", "model": MODEL}, "b": {"name": "Bob", "model": MODEL}}
    extra = {"config": {"bots": bots, "max_turns": 2}}
    read = await sdk.do(gateway, "accumulate", request=ask(model="sag/dialogue", extra_body=extra))
    assert read["choices"][0]["message"]["content"] == "Ada: yes\n\nBob: no"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_loop_goes_round_with_the_sdks_own_objects(gateway: Gateway, sdk: Sdk, stream: bool) -> None:
    gateway.up.script(
        Script([Say("First"), Calls([ToolCall("weather", {"at": "sea"}), ToolCall("double", {"number": 1})])]),
        Script([Calls([ToolCall("weather", {"at": "hill"}), ToolCall("weather", {"at": "town"})])]),
        say("Rain everywhere."),
    )
    request = ask(tools=[WEATHER])
    read = await sdk.do(gateway, "loop", request=request, results=[["rain"], ["mist", "drizzle"]], stream=stream)
    assert (read.get("text"), read["finish"], read["rounds"]) == ("Rain everywhere.", "stop", 3), read
    assert read["calls"] == [
        [["weather", {"at": "sea"}]],
        [["weather", {"at": "hill"}], ["weather", {"at": "town"}]],
        [],
    ]
    assert CALLED == ["double 1"]
    assert [content for role, content in gateway.sent() if role == "tool"] == ["rain", "2", "mist", "drizzle"]
    assert [run["status"] for run in (await gateway.rpc("run.list"))["runs"]] == ["done"]


async def test_closing_a_stream_ends_its_run(gateway: Gateway, sdk: Sdk) -> None:
    gateway.up.script(Script([Say("one "), Hang()]))
    assert await sdk.do(gateway, "leave", request=ask()) == "one "
    async with asyncio.timeout(5):
        while [run["status"] for run in (await gateway.rpc("run.list"))["runs"]] != ["cancelled"]:
            await asyncio.sleep(0.01)


async def test_errors_are_the_right_exceptions(gateway: Gateway, sdk: Sdk) -> None:
    for do in ("create", "chunks"):
        for request, error, code in (
            (ask(model="nope"), "NotFoundError", "model_not_found"),
            (ask(model="sag/nothing"), "NotFoundError", "model_not_found"),
            (ask(n=2), "BadRequestError", "unsupported_value"),
            (ask(temperature=9), "BadRequestError", "invalid_value"),
        ):
            read = await sdk.do(gateway, do, request=request)
            assert (read["error"], read["code"]) == (error, code), read
        for failure, error in ((fail(429, "Slow."), "RateLimitError"), (fail(500, "Broken."), "InternalServerError")):
            gateway.up.script(failure)
            read = await sdk.do(gateway, do, request=ask(extra_body={"config": {"retries": 0}}))
            assert read["error"] == error, read
    gateway.up.script(Script([Say("one "), Cut()]))
    read = await sdk.do(gateway, "chunks", request=ask(extra_body={"config": {"retries": 0}}))
    assert (read["error"], read["code"]) == ("APIError", "provider.disconnected")
    read = await sdk.do(gateway, "models", key="sag_revoked")
    assert (read["error"], read["code"]) == ("AuthenticationError", "invalid_api_key")
