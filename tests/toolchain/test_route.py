"""`POST /api/toolchain` as programs outside use it: bodies, events, names and ids, failures, and who goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import msgspec
import pytest
from msgspec import Struct

from sag.testing.upstream import Calls, Cut, FakeUpstream, Hang, Say, Script, ToolCall, say
from tests.harness import until
from tests.toolchain.bench import CALLED, Bench, Json, bench, calls, said

WEATHER = ("weather", {"city": "Oslo"})
ADD = ("add", {"a": 2, "b": 3})


# the chunk as the types of OpenAI's SDK have it, and nothing beside


class Function(Struct, forbid_unknown_fields=True):
    name: str | None = None
    arguments: str | None = None


class CallDelta(Struct, forbid_unknown_fields=True):
    index: int
    id: str | None = None
    function: Function | None = None
    type: Literal["function"] | None = None


class Delta(Struct, forbid_unknown_fields=True):
    content: str | None = None
    role: Literal["developer", "system", "user", "assistant", "tool"] | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(Struct, forbid_unknown_fields=True):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"] | None


class Chunk(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[Choice]


class Event(Struct):
    """A server-sent event."""

    name: str
    data: Json
    id: str | None = None


def body(**given: Any) -> Json:
    return {"stage_id": "s1", "model_name": "fake", "user_prompt": "How is Oslo?", **given}


@asynccontextmanager
async def serving(*scripts: Script, **options: Any) -> AsyncIterator[tuple[Bench, httpx.AsyncClient]]:
    async with bench(**options) as b, httpx.AsyncClient(base_url=b.hub.url, timeout=20, trust_env=False) as http:
        b.model.script(*scripts)
        yield b, http


async def post(http: httpx.AsyncClient, **given: Any) -> Json:
    answer = await http.post("/api/toolchain", json=body(**given))
    assert answer.status_code == 200, answer.text
    told: Json = answer.json()
    return told


async def refused(http: httpx.AsyncClient, content: Json) -> tuple[int, Json]:
    answer = await http.post("/api/toolchain", json=content)
    return answer.status_code, answer.json()["error"]["data"]


def read(text: str) -> list[Event]:
    """The events of a stream's text, comments left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append(Event(fields["event"], json.loads(fields["data"]), fields.get("id")))
    return events


async def stream(http: httpx.AsyncClient, **given: Any) -> list[Event]:
    answer = await http.post("/api/toolchain", json=body(stream=True, **given))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return read(answer.text)


def joined(events: list[Event], part: str) -> tuple[str, list[tuple[str, str]], list[str | None]]:
    """What the chunks of a phase say by OpenAI's rules: the text, the calls, why they end."""
    chunks = [msgspec.convert(e.data["chunk"], Chunk) for e in events if e.id and e.id.startswith(part)]
    assert chunks[0].choices[0].delta.role == "assistant"
    text, made = "", dict[int, tuple[str, str]]()
    ends: list[str | None] = []
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            name, arguments = made.get(call.index, ("", ""))
            function = call.function or Function()
            made[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
        ends.append(choice.finish_reason)
    return text, [made[i] for i in range(len(made))], ends


async def last_run(b: Bench) -> Json:
    """The newest run's object."""
    runs = (await b.client.call("run.list"))["runs"]
    return dict((await b.client.call("run.get", {"run": runs[0]["run"]}))["object"])


# answers


async def test_the_results_are_answered_where_no_synthesis_is_wanted() -> None:
    async with serving(calls(WEATHER, ADD)) as (_, http):
        told = await post(http, synthesis=False)
        assert list(told) == ["stage_id", "type", "tool_results"]
        assert (told["stage_id"], told["type"]) == ("s1", "tool_results")
        ids = [result.pop("id") for result in told["tool_results"]]
        assert len(set(ids)) == 2
        assert told["tool_results"] == [
            {
                "name": "weather",
                "arguments": {"city": "Oslo"},
                "status": "ok",
                "result": {"city": "Oslo", "sky": "clear"},
            },
            {"name": "add", "arguments": {"a": 2, "b": 3}, "status": "ok", "result": 5},
        ]


async def test_a_synthesis_is_answered_as_text_and_the_body_reaches_the_model() -> None:
    async with serving(calls(WEATHER), say("Clear skies.")) as (b, http):
        told = await post(
            http,
            base_url=b.model.url,
            stream=False,
            max_tokens=[50, 60],
            temperature=[0.1, 0.9],
            system_prompt="Be brief.",
            synthesis=True,
        )
        assert told == {"stage_id": "s1", "type": "text", "text": "Clear skies."}
        first, second = (request.json for request in b.model.chats)
        assert (first["temperature"], first["max_tokens"]) == (0.1, 50)
        assert (second["temperature"], second["max_tokens"]) == (0.9, 60)
        assert first["messages"][0]["content"].startswith("Be brief.\n\nUse ")
        assert first["messages"][-1]["content"] == "How is Oslo?"
        assert second["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (say("No."), "toolchain.no_tool: The model chose no tool. It said: No."),
        (calls(("add", {"a": 1})), "toolchain.invalid: add: The arguments do not fit: "),
        (calls(("broken", {})), "toolchain.tool_failed: broken: no bread"),
        (Script([], status=400, body=b'{"error":{"message":"no"}}'), "provider.refused: "),
    ],
)
async def test_each_failure_is_an_answer_of_its_own_with_and_without_a_stream(script: Script, message: str) -> None:
    async with serving(script, script) as (_, http):
        told = await post(http)
        assert list(told) == ["stage_id", "type", "message"]
        assert told["type"] == "error"
        assert told["message"].startswith(message)
        *_, last = events = await stream(http)
        assert last.name == "error"
        assert list(last.data) == ["stage_id", "error"]
        assert last.data["error"] == told["message"]
        assert "tool_summary" not in [event.name for event in events]


async def test_what_is_left_out_of_the_body_has_defaults() -> None:
    async with serving(calls(WEATHER), say("Clear.")) as (b, http):
        answer = await http.post("/api/toolchain", json={"model_name": "fake", "user_prompt": "Oslo?"})
        assert answer.json() == {"stage_id": "toolchain", "type": "text", "text": "Clear."}
        assert "temperature" not in b.model.chats[0].json
        assert "max_tokens" not in b.model.chats[0].json


@pytest.mark.parametrize("stage_id", [7, "a stage: ö", "x" * 200, "a.synthesis"])
async def test_any_stage_id_comes_back_as_it_was(stage_id: str | int) -> None:
    async with serving(calls(ADD), say("Five."), calls(ADD), say("Five.")) as (_, http):
        assert await post(http, stage_id=stage_id) == {"stage_id": stage_id, "type": "text", "text": "Five."}
        events = await stream(http, stage_id=stage_id)
        assert {event.data["stage_id"] for event in events} == {stage_id}
        assert events[0].id == f"{stage_id}-chunk-0"


async def test_null_and_a_list_that_ends_early_leave_settings_to_the_vendor() -> None:
    async with serving(calls(ADD), say("Five.")) as (b, http):
        await post(http, temperature=[None, 0.5], max_tokens=[40])
        first, second = (request.json for request in b.model.chats)
        assert "temperature" not in first
        assert first["max_tokens"] == 40
        assert second["temperature"] == 0.5
        assert "max_tokens" not in second


async def test_a_result_that_is_too_long_to_be_shown_has_a_file() -> None:
    async with serving(calls(("recite", {"count": 100_000}))) as (_, http):
        (result,) = (await post(http, synthesis=False))["tool_results"]
        assert result["result"].endswith("[cut: the result has 500000 bytes]")
        assert len((await http.get(f"/api/files/{result['ref']}")).content) == 500_000


# events


async def test_a_stream_tells_chunks_then_the_results_then_the_synthesis() -> None:
    pick = Script([Say("Let me see."), Calls([ToolCall(*WEATHER), ToolCall(*ADD)])])
    async with serving(pick, say("Clear skies, and five.")) as (_, http):
        events = await stream(http)
        names = [event.name for event in events]
        summary = names.index("tool_summary")
        assert set(names[:summary]) == set(names[summary + 1 : -1]) == {"tool_completion_chunk"}
        assert names[-1] == "done"
        assert events[-1].data == {"stage_id": "s1"}
        assert list(events[0].data) == ["stage_id", "chunk"]
        assert [e.id for e in events[:summary]] == [f"s1-chunk-{n}" for n in range(summary)]
        told = events[summary + 1 : -1]
        assert [e.id for e in told] == [f"s1-chunk-integ-{n}" for n in range(len(told))]
        assert len(told) > 3
        text, made, ends = joined(events[:summary], "s1-chunk-")
        assert text == "Let me see."
        assert [(name, json.loads(arguments)) for name, arguments in made] == [WEATHER, ADD]
        assert ends == [None] * (len(ends) - 1) + ["tool_calls"]
        text, made, ends = joined(told, "s1-chunk-integ-")
        assert (text, made) == ("Clear skies, and five.", [])
        assert ends == [None] * (len(ends) - 1) + ["stop"]
        assert list(events[summary].data) == ["stage_id", "tool_results"]
        assert [r["result"] for r in events[summary].data["tool_results"]] == [{"city": "Oslo", "sky": "clear"}, 5]
        assert len({e.data["chunk"]["id"] for e in told}) == 1
        chunk = msgspec.convert(told[0].data["chunk"], Chunk)
        assert chunk.model == "fake"
        assert chunk.created > 1_700_000_000


async def test_a_stream_without_synthesis_ends_with_the_results() -> None:
    async with serving(calls(ADD)) as (_, http):
        events = await stream(http, synthesis=False)
        assert [event.name for event in events[-2:]] == ["tool_summary", "done"]
        assert events[-2].data["tool_results"][0]["result"] == 5
        assert not any("integ" in (event.id or "") for event in events)


async def test_a_call_in_plain_json_is_told_as_what_it_became() -> None:
    text = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
    async with serving(say(text), say("Five.")) as (_, http):
        events = await stream(http)
        said, made, ends = joined([e for e in events if "integ" not in (e.id or "")], "s1-chunk-")
        assert (said, [(name, json.loads(a)) for name, a in made], ends[-1]) == ("", [ADD], "tool_calls")
    async with serving(say(text), say("Five."), flavor="anthropic") as (_, http):
        events = await stream(http)
        said, made, ends = joined([e for e in events if "integ" not in (e.id or "")], "s1-chunk-")
        assert (said, made, ends[-1]) == (text, [], "stop")
        summary = next(e for e in events if e.name == "tool_summary")
        assert summary.data["tool_results"][0]["name"] == "add"
        assert events[-1].name == "done"


async def test_an_answer_that_breaks_off_begins_again_under_another_chunk_id() -> None:
    broken = Script([Say(["One ", "two "]), Cut()])
    async with serving(calls(ADD), broken, say("One two three.")) as (_, http):
        events = await stream(http)
        told = [e.data["chunk"] for e in events if "integ" in (e.id or "")]
        ids = list(dict.fromkeys(chunk["id"] for chunk in told))
        assert len(ids) == 2
        texts = ["".join(c["choices"][0]["delta"].get("content", "") for c in told if c["id"] == id) for id in ids]
        assert texts[1] == "One two three."
        assert "One two ".startswith(texts[0])
        assert events[-1].name == "done"


async def test_a_run_that_is_cancelled_elsewhere_is_told_as_cancel() -> None:
    async with serving(calls(("hold", {})), calls(("hold", {}))) as (b, http):
        for streamed in (True, False):
            CALLED.clear()
            asking = asyncio.ensure_future(http.post("/api/toolchain", json=body(stream=streamed)))
            await until(lambda: CALLED == ["hold"], "the call")
            run = (await b.client.call("run.list"))["runs"][0]["run"]
            await b.client.call("run.cancel", {"run": run})
            answer = await asking
            if streamed:
                events = read(answer.text)
                assert (events[-1].name, events[-1].data) == ("cancel", {"stage_id": "s1"})
            else:
                message = "run.cancelled: The run was cancelled."
                assert answer.json() == {"stage_id": "s1", "type": "error", "message": message}


async def test_a_conversation_that_is_deleted_ends_its_stream() -> None:
    async with serving(calls(("hold", {}))) as (b, http):
        asking = asyncio.ensure_future(stream(http))
        await until(lambda: CALLED == ["hold"], "the call")
        conv = (await b.client.call("run.list"))["runs"][0]["conv"]
        await b.client.call("conversation.delete", {"conv": conv})
        events = await asking
        assert events[-1].name in ("cancel", "error")


# models and their places


async def test_a_model_is_found_by_its_full_name_its_own_name_and_the_address() -> None:
    async with FakeUpstream("openai", models=["fake", "org/fake"]) as other:
        table = {"openai": {"providers": {"other": {"base_url": other.url, "model": "fake"}}}}
        async with serving(tables=table) as (b, http):
            b.model.answer = other.answer = lambda request: calls(ADD)
            for given, upstream, model in [
                ({"model_name": "openai/fake"}, b.model, "fake"),
                ({"model_name": "other/fake"}, other, "fake"),
                ({"model_name": "fake"}, b.model, "fake"),
                ({"model_name": "fake", "base_url": other.url}, other, "fake"),
                ({"model_name": "other/fake", "base_url": other.url + "/"}, other, "fake"),
                ({"model_name": "org/fake", "base_url": other.url.replace("http:", "HTTP:")}, other, "org/fake"),
                ({"model_name": "new/one", "base_url": other.url.removesuffix("/v1")}, other, "new/one"),
                ({"model_name": "fake", "base_url": ""}, b.model, "fake"),
            ]:
                before = len(upstream.chats)
                await post(http, synthesis=False, **given)
                assert [r.json["model"] for r in upstream.chats[before:]] == [model], given


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "https://api.openai.com/v1", "http://[", "http://h:x/v1", "nonsense", "/"]
)
async def test_an_address_of_no_configured_provider_is_refused(url: str) -> None:
    async with serving() as (b, http):
        status, data = await refused(http, body(base_url=url))
        assert (status, data["kind"]) == (422, "provider.unknown")
        assert b.model.chats == []


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"user_prompt": ""}, "$.user_prompt"),
        ({"user_prompt": None}, "$.user_prompt"),
        ({"model_name": ""}, "$.model_name"),
        ({"temperature": [3, 1]}, "$.temperature[0]"),
        ({"temperature": 0.3}, "$.temperature"),
        ({"temperature": [0.1, 0.2, 0.3]}, "$.temperature"),
        ({"max_tokens": [0, 10]}, "$.max_tokens[0]"),
        ({"stage_id": ""}, "$.stage_id"),
        ({"stage_id": {}}, "$.stage_id"),
        ({"stream": "yes"}, "$.stream"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_its_place(wrong: Json, path: str) -> None:
    async with serving() as (b, http):
        status, data = await refused(http, body(**wrong))
        assert (status, data["kind"], data["path"]) == (400, "rpc.params", path)
        assert (await b.client.call("run.list"))["runs"] == []


@pytest.mark.parametrize("name", ["nobody/none", "none", "openai/"])
async def test_a_model_of_no_provider_is_refused(name: str) -> None:
    async with serving() as (_, http):
        status, data = await refused(http, body(model_name=name))
        assert (status, data["kind"]) == (404, "model.unknown")


# who goes away


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_caller_who_goes_away_takes_the_run_along(streamed: bool) -> None:
    async with serving(calls(ADD), Script([Say("Well"), Hang()])) as (b, _):
        async with httpx.AsyncClient(base_url=b.hub.url, timeout=20, trust_env=False) as http:
            asking = asyncio.ensure_future(http.post("/api/toolchain", json=body(stream=streamed)))
            await b.model.wait_requests(2)
            asking.cancel()
            await asyncio.wait({asking})
        async with asyncio.timeout(5):
            while (run := await last_run(b))["status"] == "running":
                await asyncio.sleep(0.01)
        assert run["status"] == "cancelled"
        await until(lambda: b.model.chats[1].ended == "client", "the end of the model call")


async def test_a_caller_who_has_its_answer_takes_nothing_along() -> None:
    async with serving(calls(ADD), say("Five."), calls(ADD), say("Five.")) as (b, http):
        await post(http)
        await stream(http)
        runs = (await b.client.call("run.list"))["runs"]
        assert [run["status"] for run in runs] == ["done", "done"]


async def test_two_callers_at_once_have_answers_of_their_own() -> None:
    async with serving() as (b, http):
        b.model.answer = lambda request: calls(ADD) if request.json.get("tools") else say("Five.")
        asked = [post(http, stage_id=f"s{n}") for n in range(4)] + [post(http, stage_id="raw", synthesis=False)]
        told, events = await asyncio.gather(asyncio.gather(*asked), stream(http, stage_id="t"))
        assert [t["stage_id"] for t in told] == ["s0", "s1", "s2", "s3", "raw"]
        assert {event.data["stage_id"] for event in events} == {"t"}


async def test_other_devices_see_the_run_and_may_speak_into_it() -> None:
    async with serving(calls(("hold", {})), say("Held and noted.")) as (b, http):
        asking = asyncio.ensure_future(post(http))
        await until(lambda: CALLED == ["hold"], "the call")
        conv = (await b.client.call("run.list"))["runs"][0]["conv"]
        input = [{"kind": "text", "text": "Mind the wind."}]
        await b.client.call("run.start", {"conv": conv, "input": input, "when": "steer"})
        topic = await b.client.subscribe(f"conv:{conv}")
        b.gate.set()
        assert (await asking)["text"] == "Held and noted."
        assert "Mind the wind." in b.asked(1)[-1]["content"]
        await topic.until(lambda state: said(state, "s1.synthesis") == ["Held and noted."])


async def test_a_device_without_credentials_and_a_foreign_page_are_turned_away() -> None:
    async with serving() as (_, http):
        answer = await http.post("/api/toolchain", json=body(), headers={"origin": "https://evil.example"})
        assert answer.status_code == 403
        answer = await http.post("/api/toolchain", content=json.dumps(body()))
        assert answer.status_code == 415
