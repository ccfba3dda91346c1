"""Applications that plugins mount: whom the hub lets through to them, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from sag.testing.hub import RunningHub, running_hub
from tests.harness import until

Json = dict[str, Any]

PLUGIN = '''
import asyncio, json

STREAMS = []

async def app(scope, receive, send):
    """Says what it was given; a path may want more."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    path = scope["path"]
    if path.endswith("/raise"):
        raise RuntimeError("secret detail")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    if path.endswith("/half"):
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("secret detail")
    if path.endswith("/stream"):
        STREAMS.append(scope)
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        STREAMS.append("ended")
        return
    state = scope["state"]
    told = {"path": path, "user": state["user"].id, "client": state["client"], "method": scope["method"],
            "body": body.decode(), "query": scope["query_string"].decode()}
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})

@hookimpl
def register(hub):
    hub.add_mount("/echo", app)
    hub.add_mount("/deep/down", app)
    hub.add_mount("/health", app)
    hub.add_mount("/rpc", app)
    for wrong in ("", "/", "echo", "/echo/", "/a//b", "/{all}", "/a b", "/a?b"):
        try:
            hub.add_mount(wrong, app)
        except ValueError as e:
            hub.note(str(e))
'''


@pytest.fixture
async def hub(plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningHub]:
    """A hub with the plugin alone, beside what belongs to the hub."""
    entry_point = plugin("mounted", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    async with running_hub(env={"SAG_ORIGINS": "https://friend.example"}) as running:
        yield running


def http(hub: RunningHub, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=hub.url, headers=headers, trust_env=False, timeout=10)


async def test_a_request_reaches_the_application_with_its_user_and_client(hub: RunningHub) -> None:
    async with http(hub) as client:
        for path in ("/echo", "/echo/", "/echo/a/b%20c", "/deep/down/x"):
            answer = await client.post(f"{path}?q=1", content=b"body", headers={"sag-client": "hall-1"})
            assert answer.status_code == 200
            assert answer.json() == {
                "path": path.replace("%20", " "), "user": "local", "client": "hall-1", "method": "POST",
                "body": "body", "query": "q=1",
            }  # fmt: skip
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            assert (await client.request(method, "/echo")).json()["method"] == method
        for path in ("/echoes", "/deep", "/deep/", "/deep/downer"):
            assert (await client.get(path)).status_code != 200 or "user" not in (await client.get(path)).text


async def test_the_hubs_own_paths_stay_its_own(hub: RunningHub) -> None:
    async with http(hub) as client:
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.post("/rpc/user.me", json={})).json()["id"] == "local"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_foreign_page_and_a_foreign_name_are_kept_out_of_reading_too(hub: RunningHub, method: str) -> None:
    async with http(hub) as client:
        for headers, status in (
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"host": "evil.example"}, 403),
            ({"host": "evil.example", "origin": "http://evil.example"}, 403),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "Basic eDp5"}, 401),
            ({"origin": "https://friend.example"}, 200),
            ({"origin": hub.url}, 200),
        ):
            answer = await client.request(method, "/echo/x", headers=headers)
            assert answer.status_code == status, headers
            if status != 200:
                assert "user" not in answer.text
                assert answer.json()["error"]["code"] == status


async def test_a_token_says_who_it_is_and_in_the_url_it_is_refused(hub: RunningHub) -> None:
    async with hub.client() as admin:
        token = (await admin.call("token.new", {"user": "bob"}))["token"]
    async with http(hub, authorization=f"Bearer {token}") as client:
        assert (await client.get("/echo")).json()["user"] == "bob"
    async with http(hub) as client:
        answer = await client.get(f"/echo?token={token}")
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (400, "request.bad")
        assert token not in answer.text


async def test_where_a_token_is_needed_nobody_comes_without_one(
    plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point = plugin("mounted", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    async with running_hub(auth="required") as hub, http(hub) as client:
        answer = await client.get("/echo")
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (401, "auth.required")


async def test_what_an_application_raises_is_an_error_without_its_insides(hub: RunningHub) -> None:
    async with http(hub) as client:
        answer = await client.get("/echo/raise")
        assert answer.status_code == 500
        assert answer.json()["error"]["data"]["trace"]
        assert "secret detail" not in answer.text
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/echo/half")  # it had begun, so all that can be told is that it broke off
        assert (await client.get("/echo")).status_code == 200


async def test_a_plugin_that_failed_serves_no_more(hub: RunningHub) -> None:
    async with http(hub) as client:
        assert (await client.get("/echo")).status_code == 200
        hub.app.extensions.mounts.pop("/echo")
        answer = await client.get("/echo")
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (503, "plugin.failed")
        assert (await client.get("/deep/down")).status_code == 200


async def test_a_stream_ends_with_its_reader_and_with_the_hub(
    plugin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point = plugin("mounted", PLUGIN)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry_point])
    import sys

    async with running_hub() as hub:
        streams: list[Any] = sys.modules[entry_point.module].STREAMS
        async with http(hub) as client:
            async with client.stream("GET", "/echo/stream") as stream:
                assert await anext(stream.aiter_bytes()) == b"begun "
            await until(lambda: "ended" in streams, "the application's notice that its reader is gone")
            streams.clear()

            async def read() -> bytes:
                async with client.stream("GET", "/echo/stream") as stream:
                    return b"".join([piece async for piece in stream.aiter_bytes()])

            reading = asyncio.create_task(read())
            await until(lambda: streams, "the stream")
            hub.app.http.close()
            async with asyncio.timeout(5):
                assert await reading == b"begun "
            assert "ended" in streams


async def test_a_socket_upgrade_is_no_request(hub: RunningHub) -> None:
    key = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "x" * 24,
    }
    async with http(hub, **key) as client:
        answer = await client.get("/echo")
        assert answer.status_code >= 400


async def test_paths_that_lie_in_each_other_are_the_first_ones(
    plugin: Callable[..., Any], make_host: Callable[..., Any]
) -> None:
    def mounting(*paths: str) -> str:
        return "@hookimpl\ndef register(hub):\n" + "".join(
            f"    hub.add_mount({p!r}, lambda s, r, t: None)\n" for p in paths
        )

    host = make_host(
        plugin("one", mounting("/a/b", "/mcp")),
        plugin("two", mounting("/a", "/a/b", "/a/b/c", "/a/bc", "/a/c", "/mcp/x", "/mc", "/z", "/z/y")),
    )
    one, two = (next(p for p in host.plugins if p.name == name) for name in ("one", "two"))
    assert one.provides.mounts == ["/a/b", "/mcp"]
    assert two.provides.mounts == ["/a/bc", "/a/c", "/mc", "/z"]
    left_out = ["/a", "/a/b", "/a/b/c", "/mcp/x", "/z/y"]
    assert two.problems == [f"mount {path!r} is left out: the path is taken" for path in left_out]
    assert set(host.extensions.mounts) == {"/a/b", "/mcp", "/a/bc", "/a/c", "/mc", "/z"}


async def test_a_path_that_cannot_be_is_refused(plugin: Callable[..., Any], make_host: Callable[..., Any]) -> None:
    host = make_host(plugin("mounted", PLUGIN))
    assert len(host.get("mounted").notes) == 8
