"""The fakes of those who speak OpenAI's chat in their own way: vLLM, Ollama, Azure, OpenRouter."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from sag.testing.upstream import (
    Calls,
    Fail,
    FakeUpstream,
    File,
    FlavorName,
    Hang,
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
from tests.testing.asking import OBJECT, PDF, PNG, Got, send

USER = [{"role": "user", "content": "hello world"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": OBJECT}} for name in ("f", "g")]
BEARER = {"authorization": "Bearer k"}
TWO = Calls([ToolCall("f", {"x": 1}), ToolCall("g", {"y": 2})])
THOUGHT: list[Step] = [Think("hm so"), Say("yes")]
CLASSIC = "/openai/deployments/fake/chat/completions?api-version=2024-10-21"


async def ask(up: FakeUpstream, path: str = "/v1/chat/completions", headers: Any = None, **more: Any) -> Got:
    if "/api/v1" in up.url:
        path, headers = "/api" + path, headers or BEARER
    return await send(up, "POST", path, {"model": "fake", "messages": USER, **more}, headers)


def deltas(got: Got) -> list[Json]:
    return [event["choices"][0]["delta"] for event in got.events if event["choices"]]


# chat itself


async def test_a_refusal_stands_beside_the_text():
    async with FakeUpstream() as up:
        up.script(Script([Refusal("I will not.")]), Script([Refusal("I will not.")]))
        assert [d["refusal"] for d in deltas(await ask(up, stream=True)) if d.get("refusal")] == ["I", " will", " not."]
        message = (await ask(up)).json["choices"][0]["message"]
        assert (message["content"], message["refusal"]) == (None, "I will not.")


async def test_chunks_are_padded_by_a_strict_server_unless_not_wanted():
    async with FakeUpstream(strict=True) as up:
        assert all(event["obfuscation"] for event in (await ask(up, stream=True)).events)
        got = await ask(up, stream=True, stream_options={"include_obfuscation": False})
        assert not any("obfuscation" in event for event in got.events)


async def test_openai_counts_what_it_thinks_and_does_not_show_it():
    async with FakeUpstream() as up:
        got = await ask(up, reasoning_effort="high")
        assert list(got.json["choices"][0]["message"]) == ["role", "content", "refusal"]
        assert got.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
        assert got.json["usage"]["completion_tokens"] == 8


async def test_reasoning_models_take_no_sampling():
    async with FakeUpstream(reasoning_models=["fake"]) as up:
        given: list[Json] = [{"max_tokens": 5}, {"temperature": 0.5}, {"top_p": 0.5}]
        for one in given:
            got = await ask(up, **one)
            assert (got.status, [got.error["param"]]) == (400, list(one))
        assert (await ask(up, temperature=1, max_completion_tokens=5)).status == 200


async def test_images_and_files_are_taken_and_noted():
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
    ]
    async with FakeUpstream() as up:
        got = await ask(up, messages=[{"role": "user", "content": content}])
        assert got.json["choices"][0]["message"]["content"] == "what is it?"
        assert up.requests[0].asked is not None
        assert up.requests[0].asked.files == [
            File("image/png", b"\x89PNG\r\n\x1a\n"),
            File("", source="https://pictures.example/a.png"),
            File("application/pdf", b"%PDF-1.4", "a.pdf"),
            File("", source="file_1"),
            File("audio/wav", b"\x89PNG\r\n\x1a\n"),
        ]


@pytest.mark.parametrize(
    ("role", "part"),
    [
        ("user", {"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}),
        ("user", {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}),
        ("user", {"type": "image_url", "image_url": {"url": f"data:application/pdf;base64,{PDF}"}}),
        ("user", {"type": "image_url", "image_url": {"url": PNG}}),
        ("user", {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}}),
        ("user", {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}),
        ("user", {"type": "input_audio", "input_audio": {"data": PNG, "format": "ogg"}}),
        ("user", {"type": "input_text", "text": "x"}),
        ("user", {"type": "text"}),
        ("system", {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}),
    ],
)
async def test_parts_that_are_malformed_are_refused(role, part):
    async with FakeUpstream() as up:
        got = await ask(up, messages=[{"role": role, "content": [part]}])
        assert (got.status, got.error["param"].startswith("messages[0].content[0].")) == (400, True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tool_choice": "auto"}, "'tool_choice' is only allowed when 'tools' are specified"),
        ({"parallel_tool_calls": False}, "'parallel_tool_calls' is only allowed"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}, "'h' not found"),
        ({"reasoning_effort": "huge"}, "Invalid value: 'huge'"),
        ({"messages": [{"role": "user", "content": []}]}, "content"),
        ({"messages": "hi"}, "'messages': expected an array"),
        ({"tools": {}}, "'tools': expected an array"),
        ({"stream": True, "stream_options": "usage"}, "'stream_options': expected an object"),
        ({"temperature": "hot"}, "'temperature': expected an integer or a number"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": 1}]}, "'messages[1].tool_calls': expected an array"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "function.name"),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]},
            "expected a string",
        ),
    ],
)
async def test_more_that_breaks_the_contract_of_chat(given, words):
    async with FakeUpstream(strict=True) as up:
        got = await ask(up, **given)
        assert (got.status, words in got.error["message"]) == (400, True), got.error


async def test_waits_and_cuts_happen_before_an_answer_that_is_whole():
    async with FakeUpstream() as up:
        up.script(Script([Say("a"), Hang()]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(up)
        assert await up.requests[0].wait_ended() == "client"
        up.script(Script([Say("a"), Fail(500, "It broke.")]))
        got = await ask(up)
        assert (got.status, got.error["message"]) == (500, "It broke.")


# vLLM


async def test_vllm_streams_its_reasoning_under_either_name():
    async with FakeUpstream("vllm") as up:
        up.script(Script(THOUGHT), Script([Think("hm", member="reasoning_content"), Say("yes")]), Script(THOUGHT))
        got = await ask(up, stream=True)
        assert [d.get("reasoning") for d in deltas(got)] == [None, "hm", " so", None, None]
        assert got.done
        assert all(choice["stop_reason"] is None for event in got.events for choice in event["choices"])
        assert [d.get("reasoning_content") for d in deltas(await ask(up, stream=True))][1] == "hm"
        assert (await ask(up)).json["choices"][0]["message"]["reasoning"] == "hm so"


@pytest.mark.parametrize(
    ("given", "thinks"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, False),
        ({"reasoning_effort": "low", "include_reasoning": False}, False),
    ],
)
async def test_vllm_thinks_where_it_is_told_to(given, thinks):
    async with FakeUpstream("vllm") as up:
        assert ("reasoning" in (await ask(up, **given)).json["choices"][0]["message"]) == thinks


async def test_vllm_has_errors_of_its_own():
    async with FakeUpstream("vllm", api_key="k", tool_parser=False, strict=True) as up:
        got = await ask(up)
        assert (got.status, got.json) == (401, {"error": "Unauthorized"})
        got = await ask(up, headers=BEARER, model="none")
        assert (got.status, got.error["type"], got.error["code"]) == (404, "NotFoundError", 404)
        got = await ask(up, headers=BEARER, tools=TOOLS)
        assert (got.status, got.error["code"], "--tool-call-parser" in got.error["message"]) == (400, 400, True)
        assert (await ask(up, headers=BEARER, tools=TOOLS, tool_choice="required")).status == 200
        assert (await ask(up, headers=BEARER, guided_json={}, tool_choice="auto")).status == 200
        up.script(Script([Say("a"), Fail(500, "The engine died.")]))
        got = await ask(up, headers=BEARER, stream=True)
        assert (got.events[-1]["error"]["code"], got.done) == (500, True)
        assert (await send(up, "GET", "/version")).status == 200


async def test_vllm_tells_how_much_fits():
    async with FakeUpstream("vllm", models=["/models/qwen"], max_model_len=32768) as up:
        [model] = (await send(up, "GET", "/v1/models")).json["data"]
        assert (model["id"], model["root"], model["max_model_len"]) == ("/models/qwen", "/models/qwen", 32768)
        assert model["owned_by"] == "vllm"


# Ollama


async def test_ollama_sends_calls_whole():
    async with FakeUpstream("ollama") as up:
        up.script(Script([TWO]), Script([Calls(TWO.calls, whole=True)]))
        for indexes in ([0, 1], [0, 0]):
            got = await ask(up, stream=True, tools=TOOLS, tool_choice="none")
            made = [one for delta in deltas(got) for one in delta.get("tool_calls", ())]
            assert [one["function"]["arguments"] for one in made] == ['{"x": 1}', '{"y": 2}']
            assert [one["index"] for one in made] == indexes
            assert all(one["id"] for one in made)
            assert got.events[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
            assert {event["system_fingerprint"] for event in got.events} == {"fp_ollama"}


async def test_ollama_thinks_beside_empty_content():
    async with FakeUpstream("ollama") as up:
        up.script(Script(THOUGHT))
        assert deltas(await ask(up, stream=True))[1:3] == [
            {"content": "", "reasoning": "hm"},
            {"content": "", "reasoning": " so"},
        ]
        assert (await ask(up, reasoning_effort="minimal")).status == 400


async def test_ollama_has_errors_of_few_types_and_no_key():
    async with FakeUpstream("ollama", api_key="k") as up:
        got = await ask(up, model="none")
        assert (got.status, got.error) == (
            404,
            {
                "message": 'model "none" not found, try pulling it first',
                "type": "not_found_error",
                "param": None,
                "code": None,
            },
        )
        up.script(fail(500, "no memory"))
        assert (await ask(up)).error["type"] == "api_error"
        linked = [{"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}}]
        got = await ask(up, messages=[{"role": "user", "content": linked}])
        assert (got.status, got.error["type"]) == (400, "invalid_request_error")
        assert (await ask(up, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "h"}})).status == 200
        [model] = (await send(up, "GET", "/v1/models")).json["data"]
        assert (model["id"], model["owned_by"]) == ("fake", "library")


async def test_a_model_may_take_long_to_load():
    async with FakeUpstream("ollama") as up:
        up.script(say("a", before_s=0.2))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ask(up, stream=True)
        assert loop.time() - began >= 0.2


# Azure


@pytest.fixture
async def azure():
    async with FakeUpstream("azure", api_key="k", access_token="t") as up:
        yield up


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (CLASSIC, {"api-key": "k"}, 200),
        (CLASSIC, {"authorization": "Bearer t"}, 200),
        (CLASSIC, {"authorization": "Bearer k"}, 401),
        (CLASSIC, {"api-key": "t"}, 401),
        (CLASSIC, {}, 401),
        ("/openai/v1/chat/completions", {"api-key": "k"}, 200),
        ("/openai/v1/chat/completions?api-version=preview", {"authorization": "Bearer k"}, 200),
        ("/openai/v1/chat/completions", {"authorization": "Bearer t"}, 200),
        ("/openai/v1/chat/completions", {"authorization": "Bearer x"}, 401),
        ("/openai/deployments/fake/chat/completions", {"api-key": "k"}, 404),
        (CLASSIC.replace("2024-10-21", "latest"), {"api-key": "k"}, 404),
        ("/v1/chat/completions", {"api-key": "k"}, 404),
    ],
)
async def test_azure_knows_two_addresses_and_two_kinds_of_keys(azure, path, headers, status):
    got = await ask(azure, path, headers)
    assert got.status == status
    assert got.headers["apim-request-id"]
    if status != 200:
        assert set(got.error) == {"code", "message"}
        assert got.error["code"] == str(status)


@pytest.mark.parametrize(
    ("path", "model"),
    [(CLASSIC.replace("/fake/", "/none/"), "fake"), ("/openai/v1/chat/completions", "none")],
)
async def test_azure_names_deployments_that_are_not_there(azure, path, model):
    got = await ask(azure, path, {"api-key": "k"}, model=model)
    assert (got.status, got.error["code"]) == (404, "DeploymentNotFound")


async def test_on_azures_classic_address_the_deployment_is_the_model(azure):
    azure.script(say("x"), model="fake")
    got = await ask(azure, CLASSIC, {"api-key": "k"}, model="ignored")
    assert (got.json["model"], got.json["choices"][0]["message"]["content"]) == ("fake", "x")
    old = CLASSIC.replace("2024-10-21", "2024-02-01")
    got = await ask(azure, old, {"api-key": "k"}, stream=True, stream_options={"include_usage": True})
    assert (got.status, "stream_options" in got.error["message"]) == (400, True)


async def test_azure_filters_content(azure):
    got = await ask(azure, CLASSIC, {"api-key": "k"}, stream=True)
    assert got.events[0]["choices"] == []
    assert got.events[0]["prompt_filter_results"][0]["content_filter_results"]["hate"]["severity"] == "safe"
    assert all("content_filter_results" in event["choices"][0] for event in got.events[1:])
    azure.script(fail(400, "Filtered.", code="content_filter"), say("a", finish="content_filter"))
    got = await ask(azure, CLASSIC, {"api-key": "k"})
    assert (got.status, got.error["code"], got.error["param"]) == (400, "content_filter", "prompt")
    inner = got.error["innererror"]
    assert (inner["code"], inner["content_filter_result"]["hate"]["filtered"]) == ("ResponsibleAIPolicyViolation", True)
    got = await ask(azure, CLASSIC, {"api-key": "k"}, stream=True)
    assert got.events[-1]["choices"][0]["content_filter_results"]["hate"]["filtered"]


async def test_azure_tells_the_wait_in_milliseconds_too(azure):
    azure.script(fail(429, "Wait.", headers={"Retry-After": "7"}), fail(429, "Wait."))
    got = await ask(azure, CLASSIC, {"api-key": "k"})
    assert (got.headers["retry-after"], got.headers["retry-after-ms"], got.error["code"]) == ("7", "7000", "429")
    assert got.headers["x-ratelimit-remaining-requests"] == "0"
    assert "retry-after-ms" not in (await ask(azure, CLASSIC, {"api-key": "k"})).headers


async def test_azure_lists_and_has_responses_at_both_addresses(azure):
    key = {"api-key": "k"}
    for base, query in (("/openai/v1", ""), ("/openai", "?api-version=2025-04-01-preview")):
        [model] = (await send(azure, "GET", f"{base}/models{query}", headers=key)).json["data"]
        assert (model["id"], model["capabilities"]["chat_completion"]) == ("fake", True)
        got = await send(azure, "POST", f"{base}/responses{query}", {"model": "fake", "input": "hi"}, key)
        assert got.json["output"][0]["content"][0]["text"] == "hi"
        got = await send(azure, "GET", f"{base}/responses/{got.json['id']}{query}", headers=key)
        assert got.json["status"] == "completed"


# OpenRouter


@pytest.fixture
async def router():
    async with FakeUpstream("openrouter", api_key="k") as up:
        yield up


async def test_openrouter_tells_usage_and_cost_without_being_asked(router):
    usage = Usage(input=100, output=10, cached=50)
    router.script(Script([Say("a")], usage=usage), Script([Say("a")], usage=usage))
    got = await ask(router, stream=True)
    assert got.body.startswith(b": OPENROUTER PROCESSING\n\n")
    last = got.events[-1]
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["is_byok"]) == ([], 150, False)
    cost = 100 * Decimal("0.000003") + 50 * Decimal("0.0000003") + 10 * Decimal("0.000015")
    assert last["usage"]["cost"] == float(cost)
    assert (await ask(router)).json["usage"] == last["usage"]
    assert {(event["provider"], event["id"]) for event in got.events} == {("Fake", got.headers["x-generation-id"])}
    assert got.events[-2]["choices"][0]["native_finish_reason"] == "stop"


async def test_openrouter_keeps_a_record_of_what_was_answered(router):
    router.script(Script(THOUGHT))
    got = await ask(router, stream=True, session_id="s")
    id = got.headers["x-generation-id"]
    path = f"/api/v1/generation?id={id}"
    assert (await send(router, "GET", path, headers=BEARER)).status == 404
    record = (await send(router, "GET", path, headers=BEARER)).json["data"]
    usage = got.events[-1]["usage"]
    assert (record["id"], record["model"], record["streamed"], record["cancelled"]) == (id, "fake", True, False)
    assert (record["finish_reason"], record["session_id"]) == ("stop", "s")
    assert (record["tokens_prompt"], record["tokens_completion"]) == (usage["prompt_tokens"], 3)
    assert (record["native_tokens_reasoning"], record["total_cost"]) == (2, usage["cost"])
    assert (await send(router, "GET", "/api/v1/generation?id=none", headers=BEARER)).status == 404
    key = (await send(router, "GET", "/api/v1/key", headers=BEARER)).json["data"]
    assert (key["usage"], key["limit_remaining"]) == (usage["cost"], 100 - usage["cost"])
    router.script(fail(500, "No."))
    got = await ask(router)
    assert (got.status, "x-generation-id" in got.headers) == (500, False)
    credit = (await send(router, "GET", "/api/v1/credits", headers=BEARER)).json["data"]
    assert credit == {"total_credits": 100, "total_usage": usage["cost"]}


async def test_openrouter_records_that_a_client_left(router):
    router.script(Script([Say("a b c d e f")], tokens_per_s=20))
    async with aiohttp.ClientSession() as http:
        body = {"model": "fake", "messages": USER, "stream": True}
        async with http.post(f"{router.url}/chat/completions", json=body, headers=BEARER) as answer:
            id = answer.headers["x-generation-id"]
            await answer.content.readuntil(b" c")
    assert await router.requests[0].wait_ended() == "client"
    path = f"/api/v1/generation?id={id}"
    await send(router, "GET", path, headers=BEARER)
    record = (await send(router, "GET", path, headers=BEARER)).json["data"]
    assert (record["cancelled"], record["finish_reason"]) == (True, None)
    assert 3 <= record["tokens_completion"] < 6


async def test_openrouter_gives_details_of_its_reasoning_and_wants_them_unchanged(router):
    router.script(*[Script([Think("hm so"), Think("secret", redacted=True), Calls([ToolCall("f", id="a")])])] * 2)
    got = await ask(router, stream=True)
    told = [one for delta in deltas(got) for one in delta.get("reasoning_details", ())]
    assert [(one["type"], one["index"]) for one in told] == [
        ("reasoning.text", 0),
        ("reasoning.text", 0),
        ("reasoning.text", 0),
        ("reasoning.encrypted", 1),
    ]
    message = (await ask(router)).json["choices"][0]["message"]
    text, hidden = message["reasoning_details"]
    assert (message["reasoning"], text["text"], hidden["type"]) == ("hm so", "hm so", "reasoning.encrypted")
    answer = {"role": "tool", "tool_call_id": "a", "content": "r"}
    for details, status in (
        (told, 200),
        ([text, hidden], 200),
        ([{**text, "text": "other"}, hidden], 400),
        ([text, {**hidden, "data": "x"}], 400),
    ):
        assistant = {**message, "reasoning_details": details}
        got = await ask(router, messages=[*USER, assistant, answer])
        assert got.status == status
    assert got.error["metadata"]["provider_name"] == "Fake"
    got = await ask(router, reasoning={"effort": "high", "exclude": True})
    assert not {"reasoning", "reasoning_details"} & set(got.json["choices"][0]["message"])
    assert got.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6


@pytest.mark.parametrize(
    ("given", "thinks"),
    [
        ({"reasoning": {"enabled": True}}, True),
        ({"reasoning": {"enabled": False, "effort": "high"}}, False),
        ({"reasoning": {"max_tokens": 2000}}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning_effort": "low"}, True),
        ({}, False),
    ],
)
async def test_openrouter_thinks_where_it_is_told_to(router, given, thinks):
    assert ("reasoning" in (await ask(router, **given)).json["choices"][0]["message"]) == thinks


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (fail(401, "No."), "authentication"),
        (fail(402, "No."), "payment_required"),
        (fail(429, "No."), "rate_limit_exceeded"),
        (fail(502, "No."), "provider_unavailable"),
        (fail(503, "No."), "provider_overloaded"),
        (fail(500, "No."), "server"),
        (fail(400, "No.", code="context_length_exceeded"), "context_length_exceeded"),
        (fail(403, "No.", metadata={"reasons": ["hate"], "flagged_input": "x"}), "permission_denied"),
    ],
)
async def test_openrouters_errors_name_their_type(router, script, kind):
    router.script(script)
    got = await ask(router)
    assert (got.status, got.error["code"], got.error["metadata"]["error_type"]) == (script.status, script.status, kind)
    assert script.status != 403 or got.error["metadata"]["reasons"] == ["hate"]


async def test_openrouter_fails_in_mid_stream_with_a_chunk_that_has_both(router):
    router.script(Script([Say("a"), Fail(502, "It went away.")]), Script([Say("a"), Fail(502, "It went away.")]))
    got = await ask(router, stream=True)
    last = got.events[-1]
    assert (last["error"]["code"], last["choices"][0]["finish_reason"]) == (502, "error")
    assert last["error"]["metadata"]["error_type"] == "provider_unavailable"
    assert last["object"] == "chat.completion.chunk"
    got = await ask(router)
    [choice] = got.json["choices"]
    assert (got.status, choice["finish_reason"], choice["error"]["code"]) == (200, "error", 502)
    assert choice["message"]["content"] == "a"


async def test_openrouter_wants_a_key_but_for_its_catalogue(router):
    for headers, status in (({"x": "y"}, 401), ({"authorization": "Bearer x"}, 401), (BEARER, 200)):
        assert (await ask(router, headers=headers)).status == status
    assert (await send(router, "GET", "/api/v1/key")).status == 401
    assert (await send(router, "GET", "/api/v1/models")).status == 200
    got = await ask(router, model="none")
    assert (got.status, got.error["message"]) == (400, "none is not a valid model ID")
    assert (await ask(router, model="fake:free")).status == 200
    assert (await ask(router, model="openrouter/auto")).json["usage"]["cost"] == 0


async def test_openrouters_catalogue_has_prices_as_text_and_filters():
    small: Json = {
        "id": "acme/small",
        "context_length": 4000,
        "created": 1_700_000_000,
        "pricing": {"prompt": "0.0000001", "completion": "0.0000002"},
        "supported_parameters": ["max_tokens"],
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
    }
    async with FakeUpstream("openrouter", models=["acme/large", small], max_model_len=200_000) as up:

        async def listed(query: str = "") -> Any:
            got = await send(up, "GET", f"/api/v1/models{query}")
            return [one["id"] for one in got.json["data"]] if got.status == 200 else got.error["message"]

        large, _, auto = (await send(up, "GET", "/api/v1/models")).json["data"]
        assert (large["pricing"]["prompt"], large["context_length"]) == ("0.000003", 200_000)
        assert auto["pricing"] == {"prompt": "-1", "completion": "-1"}
        everything = ["acme/large", "acme/small", "openrouter/auto"]
        assert await listed() == everything
        assert await listed("?q=small") == ["acme/small"]
        assert await listed("?supported_parameters=tools,temperature") == ["acme/large", "openrouter/auto"]
        assert await listed("?input_modalities=image") == ["acme/large", "openrouter/auto"]
        assert await listed("?context=100000") == ["acme/large", "openrouter/auto"]
        assert await listed("?max_price=1") == ["acme/small"]
        assert await listed("?min_price=0.05&max_price=5") == ["acme/large", "acme/small"]
        assert await listed("?min_price=0.5") == ["acme/large"]
        assert await listed("?sort=pricing-high-to-low") == everything
        assert await listed("?sort=newest") == ["acme/large", "openrouter/auto", "acme/small"]
        assert "Invalid sort" in await listed("?sort=best")
        page = (await send(up, "GET", "/api/v1/models?limit=2")).json
        assert ([one["id"] for one in page["data"]], page["total_count"]) == (everything[:2], 3)
        assert page["links"]["next"]
        assert await listed("?offset=2&limit=2") == everything[2:]
        assert "limit" in await listed("?limit=0")
        assert "number" in await listed("?limit=x")


# all


@pytest.mark.parametrize(
    ("flavor", "base"),
    [
        ("openai", "/v1"),
        ("vllm", "/v1"),
        ("ollama", "/v1"),
        ("azure", ""),
        ("openrouter", "/api/v1"),
        ("anthropic", ""),
    ],
)
async def test_the_base_url_is_what_a_provider_is_configured_with(flavor: FlavorName, base: str):
    async with FakeUpstream(flavor) as up:
        assert up.url == f"http://127.0.0.1:{up.port}{base}"
