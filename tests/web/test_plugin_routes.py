"""HTTP routes of plugins: what their functions are given, and what becomes of what they return or raise."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from sag.testing.hub import RunningHub, running_hub
from sag.web import http as facade
from tests.harness import until

Json = dict[str, Any]

PLUGIN = """
import asyncio
from msgspec import Struct
from sag.plugin import Fault, Reply, Sent, Stream

SEEN = []
END = asyncio.Event()

class Roll(Struct):
    sides: int

async def roll(request):
    asked = await request.json(Roll)
    return {"sides": asked.sides, "id": request.path["id"], "user": request.user.id, "client": request.client,
            "query": dict(request.query), "from": request.address}

async def picture(request):
    return Reply(b"<svg/>", "image/svg+xml", 201, {"x-more": "yes"})

async def fails(request):
    if request.query.get("how") == "fault":
        raise Fault("run.queue", "Slow down.", after_ms=2500)
    raise RuntimeError("secret detail")

async def stream(request):
    async def events():
        SEEN.append("begun")
        try:
            yield Sent(comment="connected\\ndata: forged")
            yield Sent({"a": 1}, "na\\nme", "i\\rd")
            yield Sent("two\\r\\nlines\\rand: a\\nthird")
            if request.query.get("for") == "ever":
                await asyncio.Event().wait()
            if request.query.get("for") == "end":
                await END.wait()
                yield Sent("the end")
                await asyncio.Event().wait()
            if request.query.get("for") == "wrong":
                raise RuntimeError("secret detail")
        finally:
            SEEN.append("ended")
    return Stream(events())

async def rest(request):
    if request.path["rest"] == "wrong/key":
        raise Fault("model.unknown")
    asked = await request.json(dict, large=True)
    return {"rest": request.path["rest"], "user": request.user.id, "size": len(asked["x"])}

def told(fault):
    return Reply(fault.kind.encode(), "text/plain", fault.status)

@hookimpl
def register(hub):
    hub.add_route("POST /api/dice/{id}", roll)
    hub.add_route("GET /api/dice/{file}.svg", picture)
    hub.add_route("GET /api/fails", fails)
    hub.add_route("GET /api/stream", stream)
    hub.add_route("POST /other/{rest:path}", rest, any_key=True, failed=told)
    hub.add_route("POST /api/dice/{other}", roll)
    for wrong in ("GET /a/{b:path}/c", "", "GET", "GET api", "FETCH /a", "GET /a//b", "GET /a?b", "get /a"):
        try:
            hub.add_route(wrong, roll)
        except ValueError as e:
            hub.note(str(e))
"""


@pytest.fixture
async def hub(plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningHub]:
    entry_point = plugin("dicing", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    async with running_hub() as running:
        yield running


def http(hub: RunningHub) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=hub.url, trust_env=False, timeout=10)


async def test_a_function_gets_what_was_asked_and_its_result_is_json(hub: RunningHub) -> None:
    async with http(hub) as client:
        answer = await client.post("/api/dice/d%206?n=2", json={"sides": 6}, headers={"sag-client": "hall-1"})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json() == {
            "sides": 6, "id": "d 6", "user": "local", "client": "hall-1", "query": {"n": "2"}, "from": "127.0.0.1",
        }  # fmt: skip
        answer = await client.get("/api/dice/a.b.svg")
        assert (answer.status_code, answer.content, answer.headers["x-more"]) == (201, b"<svg/>", "yes")
        assert answer.headers["content-type"] == "image/svg+xml"


async def test_what_does_not_fit_is_told_with_its_status(hub: RunningHub) -> None:
    async with http(hub) as client:
        for content, headers, status, kind in (
            (b'{"sides": "six"}', {"content-type": "application/json"}, 400, "rpc.params"),
            (b"{", {"content-type": "application/json"}, 400, "rpc.params"),
            (b'{"sides": 6}', {"content-type": "text/plain"}, 415, "media.type"),
            (b" " * (2 << 20), {"content-type": "application/json"}, 413, "frame.large"),
            (b'{"sides": 6}', {"content-type": "application/json", "origin": "http://evil.example"}, 403, None),
            (b'{"sides": 6}', {"content-type": "application/json", "authorization": "Bearer wrong"}, 401, None),
        ):
            answer = await client.post("/api/dice/d6", content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert kind is None or answer.json()["error"]["data"]["kind"] == kind
        assert (await client.get("/api/stream", headers={"origin": "http://evil.example"})).status_code == 403
        answer = await client.get("/api/fails?how=fault")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        answer = await client.get("/api/fails")
        assert answer.status_code == 500
        assert "secret" not in answer.text


async def test_clients_of_others_may_send_any_key_and_are_told_faults_in_their_form(hub: RunningHub) -> None:
    async with http(hub) as client:
        for key in ("Bearer sk-anything", f"Bearer {hub.app.own_token}"):
            headers = {"authorization": key}
            answer = await client.post("/other/a%2Fb/c", json={"x": "y" * (2 << 20)}, headers=headers)
            assert answer.json() == {"rest": "a/b/c", "user": "local", "size": 2 << 20}
        for key in ("Bearer sag_revoked", "Basic eDp5"):
            answer = await client.post("/other/a", json={"x": ""}, headers={"authorization": key})
            assert (answer.status_code, answer.text) == (401, "auth.invalid")
        answer = await client.post("/other/wrong/key", json={"x": ""})
        assert (answer.status_code, answer.text, answer.headers["content-type"][:10]) == (
            404, "model.unknown", "text/plain",
        )  # fmt: skip
    hub.app.guard._local = False
    async with http(hub) as client:
        answer = await client.post("/other/a", json={"x": ""}, headers={"authorization": "Bearer sk-anything"})
        assert (answer.status_code, answer.text) == (401, "auth.invalid")
        assert (await client.post("/other/a", json={"x": ""})).text == "auth.required"


async def test_another_method_is_told_which_there_are(hub: RunningHub) -> None:
    async with http(hub) as client:
        answer = await client.put("/api/dice/d6", json={})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await client.get("/rpc/user.me")).status_code == 405


async def test_events_are_sent_so_that_no_text_can_forge_one(hub: RunningHub) -> None:
    async with http(hub) as client:
        answer = await client.get("/api/stream")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == (
            ": connected\n: data: forged\n\n"
            'id: i d\nevent: na me\ndata: {"a":1}\n\n'
            "data: two\ndata: lines\ndata: and: a\ndata: third\n\n"
        )


async def test_a_stream_is_kept_alive_and_ends_with_its_client(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "KEEPALIVE_S", 0.05)
    seen = hub.app.extensions.routes["GET /api/stream"].function.__globals__["SEEN"]
    async with http(hub) as client, client.stream("GET", "/api/stream?for=ever") as answer:
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            if text.endswith(":\n\n:\n\n"):
                break
        assert seen == ["begun"]
    await until(lambda: seen == ["begun", "ended"], "the end of the iterator")


async def test_a_stream_ends_when_its_token_is_revoked(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facade, "KEEPALIVE_S", 0.05)
    seen = hub.app.extensions.routes["GET /api/stream"].function.__globals__["SEEN"]
    async with http(hub) as admin, http(hub) as client:
        made = (await admin.post("/rpc/token.new", json={"user": "bob"})).json()
        client.headers["authorization"] = f"Bearer {made['token']}"
        async with client.stream("GET", "/api/stream?for=ever") as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line == ":":
                    break
            assert (await admin.post("/rpc/token.drop", json={"id": made["info"]["id"]})).status_code == 200
            async with asyncio.timeout(10):
                assert {line async for line in lines} <= {"", ":"}
    assert seen == ["begun", "ended"]


async def test_a_topics_events_end_with_a_revoked_token_and_say_so(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "COMMENT_S", 0.05)
    async with http(hub) as admin, http(hub) as client:
        made = (await admin.post("/rpc/token.new", json={"user": "bob"})).json()
        client.headers["authorization"] = f"Bearer {made['token']}"
        async with client.stream("GET", "/events/user:me") as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line == ":":
                    break
            assert (await admin.post("/rpc/token.drop", json={"id": made["info"]["id"]})).status_code == 200
            async with asyncio.timeout(10):
                said = [line async for line in lines if line not in ("", ":")]
    assert said == ["event: topic.closed", 'data: {"reason":"denied"}']


async def test_a_stream_that_fails_ends_and_the_hub_goes_on(hub: RunningHub) -> None:
    async with http(hub) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/stream?for=wrong")
        assert (await client.get("/health")).status_code == 200


async def test_a_hub_that_goes_down_ends_its_streams(
    plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point = plugin("dicing", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    async with running_hub() as hub, http(hub) as client:
        reading = asyncio.create_task(client.get("/api/stream?for=ever"))
        seen = hub.app.extensions.routes["GET /api/stream"].function.__globals__["SEEN"]
        await until(lambda: seen == ["begun"], "the stream")
        hub.app.http.close()
        assert (await reading).status_code == 200
        assert seen == ["begun", "ended"]


async def test_what_a_stream_has_left_to_say_is_said_before_the_hub_ends_it(
    plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point = plugin("dicing", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    async with running_hub() as hub, http(hub) as client:
        reading = asyncio.create_task(client.get("/api/stream?for=end"))
        names = hub.app.extensions.routes["GET /api/stream"].function.__globals__
        await until(lambda: names["SEEN"] == ["begun"], "the stream")
        hub.app.http.close()
        names["END"].set()
        assert (await asyncio.wait_for(reading, 5)).text.endswith("data: the end\n\n")
        assert names["SEEN"] == ["begun", "ended"]


async def test_a_route_that_is_taken_or_none_is_told(hub: RunningHub) -> None:
    (info,) = hub.app.host.plugins
    assert info.provides.routes == [
        "POST /api/dice/{id}", "GET /api/dice/{file}.svg", "GET /api/fails", "GET /api/stream",
        "POST /other/{rest:path}",
    ]  # fmt: skip
    assert info.problems == ["route 'POST /api/dice/{other}' is left out: it is taken"]
    assert len(info.notes) == 8
