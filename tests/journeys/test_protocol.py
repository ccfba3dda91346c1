"""The protocol's promises, one by one, as a program sees them that knows its text alone (sections 1 to 8 and 10)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.harness import WAIT_S, Client, Gone, Hub, Refused, check_state, new_key, until

Json = dict[str, Any]
MARK = 'call probe_mark {"id": "%s"}'
DANGER = 'call probe_danger {"id": "%s"}'


async def answer_to(client: Client, thing: Any, id: Any = None) -> Json:
    """Send something raw and give the next answer under an id."""
    seen = len(client.frames)
    client.send(thing)

    def found() -> Json | None:
        return next((f for f in client.frames[seen:] if "id" in f and f["id"] == id and "method" not in f), None)

    return dict(await until(found, f"an answer under {id}"))


# --- section 1: framing ---


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic d3Jvbmc="}, 401),
    ],
)
async def test_a_foreign_page_and_bad_credentials_are_refused_before_the_upgrade(
    common: Hub, headers: dict[str, str], status: int
) -> None:
    client = Client(common.url, headers=headers)
    with pytest.raises(InvalidStatus) as refused:
        await client.open()
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == status


async def upgrade(hub: Hub, protocol: str | None, host: str = "", **headers: str) -> bytes:
    """The head of the answer to an upgrade by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    lines = [
        f"Host: {host or f'127.0.0.1:{hub.port}'}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
    ]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *(f"{k}: {v}" for k, v in headers.items())]
    lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
    writer.write(("GET /ws HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(WAIT_S):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head.lower()


async def test_a_client_may_offer_no_subprotocol_but_not_only_others(common: Hub) -> None:
    assert b"101" in await upgrade(common, None)
    assert b"sec-websocket-protocol: sag.1.json" in await upgrade(common, "other, sag.1.json")
    assert b" 400 " in (await upgrade(common, "other.1")).splitlines()[0]
    assert b"101" in await upgrade(common, None, Origin=f"http://127.0.0.1:{common.port}")
    assert b" 403 " in (await upgrade(common, None, "evil.example")).splitlines()[0]


async def test_a_frame_may_be_an_array_and_ids_are_kept_as_they_were(common: Hub) -> None:
    async with Client(common.url) as client:
        seen = len(client.frames)
        client.send([{"id": "a", "method": "user.me"}, {"jsonrpc": "2.0", "id": 901, "method": "user.me"}])
        await until(lambda: {f.get("id") for f in client.frames[seen:]} >= {"a", 901}, "both answers")
        assert all("jsonrpc" not in f for f in client.frames)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", -32700),
        ("nothing", -32700),
        ('{"id": 1, "method": "user.me", "params": NaN}', -32700),
        ("[" * 20_000, -32700),
        ('{"a":' * 20_000, -32700),
        ("3", -32600),
        ("[]", -32600),
        ("{}", -32600),
        ('[3, {"unknown": 1}]', -32600),
        ('{"id": 1.5, "method": "user.me"}', -32600),
        ('{"id": null, "method": "user.me"}', -32600),
        ('{"id": 7}', -32600),
        ('{"method": 3, "id": 1}', -32600),
    ],
)
async def test_what_is_no_frame_is_answered_and_the_connection_stays(common: Hub, text: str, code: int) -> None:
    async with Client(common.url) as client:
        answer = await answer_to(client, text)
        assert answer["error"]["code"] == code, answer
        assert (await client.call("user.me"))["id"] == "local"


async def test_the_third_bad_frame_in_a_row_ends_the_connection(common: Hub) -> None:
    client = Client(common.url)
    await client.connect()
    for _ in range(2):
        await answer_to(client, "{")
    await client.call("user.me")  # a good one between: the count begins anew
    for _ in range(3):
        client.send("{")
    assert await client.closed() == 4501
    assert client.bye is not None
    assert (client.bye["code"], client.bye["reconnect"]) == (4501, False)


async def test_bytes_without_a_stream_are_a_bad_frame(common: Hub) -> None:
    async with Client(common.url) as client:
        assert (await answer_to(client, b"\x01\0\0\0\0\0\0\0"))["error"]["code"] == -32600


async def test_a_frame_over_the_limit_is_1009(common: Hub) -> None:
    client = Client(common.url)
    await client.connect()
    client.send(json.dumps({"id": 9, "method": "user.me", "params": {"x": "y" * (1 << 20)}}))
    assert await client.closed() == 1009


async def test_methods_and_params_that_do_not_fit_are_told_with_their_path(common: Hub) -> None:
    async with Client(common.url) as client:
        assert (await client.refused("no.such")).code == -32601
        wrong = await client.refused("run.start", input="text")
        assert (wrong.code, wrong.kind, wrong.data["path"]) == (-32602, "rpc.params", "$.input")
        inner = await client.refused("run.start", input=[{"kind": "smell", "text": "x"}])
        assert (inner.code, inner.data["path"]) == (-32602, "$.input[0].kind") or inner.data["path"].startswith("$.inp")
        answer = await answer_to(client, {"id": "p", "method": "user.me", "params": [1]}, "p")
        assert answer["error"]["code"] == -32602
        for refused in (wrong, inner):
            assert "Traceback" not in refused.message
            assert refused.data["trace"]


async def test_too_many_unanswered_requests_are_429_and_reading_goes_on(common: Hub) -> None:
    async with Client(common.url) as client:
        most = client.hello["limits"]["inflight"]
        batch = [{"id": f"n{i}", "method": "conversation.list"} for i in range(most + 6)]
        seen = len(client.frames)
        client.send(batch)
        await until(lambda: sum("id" in f for f in client.frames[seen:]) == len(batch), "all answers")
        refused = [f["error"] for f in client.frames[seen:] if "error" in f]
        assert {e["data"]["kind"] for e in refused} == {"inflight.limit"}
        assert len(refused) == 6
        assert all(e["code"] == 429 and e["data"]["after_ms"] > 0 for e in refused)
        await client.call("user.me")


# --- section 2: hello ---


async def test_a_request_before_hello_is_401(common: Hub) -> None:
    client = await Client(common.url).open()
    refused = await client.refused("user.me")
    assert (refused.code, refused.kind) == (401, "hello.first")
    client.send({"method": "rpc.cancel", "params": {"id": 1}})
    client.send(
        [client_hello := {"id": 70, "method": "hello", "params": client.greeting()}, {**client_hello, "id": 71}]
    )
    assert (await answer_to(client, {"pong": 1}, 71))["error"]["data"]["kind"] == "hello.first"
    await until(lambda: any(f.get("id") == 70 and "result" in f for f in client.frames), "hello's answer")
    await client.close()


async def test_hello_tells_who_and_what_the_limits_are(common: Hub) -> None:
    async with Client(common.url) as client:
        hello = client.hello
        assert hello["v"] == 1
        assert hello["server"]["name"] == "sag"
        assert hello["user"] == {"id": "local", "name": "You", "roles": ["user", "admin"]}
        assert hello["limits"] == {"frame": 1 << 20, "inflight": 64, "topics": 128}
        assert hello["ping"] == {"every_ms": 25000, "timeout_ms": 10000}
        assert hello["session"]["resumed"] is False
        assert hello["session"]["keep_ms"] == 120_000
        assert hello["tools_refused"] == []
        assert (await client.refused("hello", v=1, client={"id": "x"})).code == 400


@pytest.mark.parametrize(
    ("params", "code", "close"),
    [
        ({"v": 2, "client": {"id": "x"}}, 400, 4503),
        ({"v": 1, "client": {"id": "x"}, "auth": {"scheme": "bearer", "token": "wrong"}}, 401, 4500),
        ({"v": 1, "client": {"id": "x"}, "auth": {"scheme": "magic", "token": "wrong"}}, 401, 4500),
    ],
)
async def test_a_hello_that_is_refused_is_answered_then_bye_then_closed(
    common: Hub, params: Json, code: int, close: int
) -> None:
    client = await Client(common.url).open()
    refused = await client.refused("hello", **params)
    assert refused.code == code
    assert await client.closed() == close
    assert client.bye is not None
    assert client.bye["reconnect"] is False


async def test_a_hello_without_its_members_is_32602_and_may_be_said_again(common: Hub) -> None:
    client = await Client(common.url).open()
    for params in ({"client": {"id": "x"}}, {"v": 1}, {"v": 1, "client": {"id": "../x"}}, {"v": 1, "client": 3}):
        assert (await client.refused("hello", **params)).code == -32602
    await client.call("hello", **client.greeting())
    await client.call("user.me")
    await client.close()


async def test_no_hello_in_time_is_4502_and_silence_is_4002(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_HELLO_MS="200", SAG_PING_EVERY_MS="150", SAG_PING_TIMEOUT_MS="150")
    client = await Client(hub.url).open()
    assert await client.closed() == 4502
    silent, heard = Client(hub.url), Client(hub.url)
    silent.pongs = False
    await silent.connect()
    await heard.connect()
    assert await silent.closed() == 4002
    assert silent.bye is not None
    assert silent.bye["reconnect"] is True
    await asyncio.sleep(0.4)
    await heard.call("user.me")
    await heard.close()


async def test_without_credentials_a_hub_that_requires_them_is_4500(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_AUTH="required")
    client = await Client(hub.url).open()
    refused = await client.refused("hello", v=1, client={"id": "x"})
    assert (refused.code, refused.kind) == (401, "auth.required")
    assert await client.closed() == 4500
    async with hub.http() as http:
        for answer in (
            await http.post("/rpc/user.me", json={}),
            await http.get("/api/conversations"),
            await http.get("/events/user:me"),
        ):
            assert answer.status_code == 401
            assert answer.json()["error"]["data"]["kind"] == "auth.required"


async def test_topics_of_hello_that_cannot_be_had_are_errors_under_their_names(common: Hub) -> None:
    async with Client(common.url) as client:
        _, view = await client.say("hello")
    async with Client(common.url, topics=["conv:none", view.topic, "user:me", "strange", "hub"]) as client:
        topics = client.hello["topics"]
        assert topics["conv:none"]["error"]["code"] == 404
        assert topics["conv:none"]["error"]["data"]["kind"] == "topic.unknown"
        assert topics["strange"]["error"]["code"] == 404
        assert topics[view.topic]["mode"] == "snapshot"
        assert set(topics["user:me"]["snap"]) >= {"convs", "runs", "asks"}
        assert set(topics["hub"]["snap"]) >= {"plugins", "connectors", "models"}
        assert len({topics[n]["t"] for n in (view.topic, "user:me", "hub")}) == 3


async def test_one_round_trip_restores_everything(common: Hub) -> None:
    client = Client(common.url)
    await client.connect()
    started, view = await client.say("flood 60 200")
    await until(lambda: view.cur > 8, "the stream")
    await client.cut_and_wait()
    before = view.cur
    await client.connect()
    answer = client.hello["topics"][view.topic]
    assert client.hello["session"]["resumed"] is True
    assert (answer["mode"], answer["off"]) == ("replay", before)
    assert answer["head"] >= before
    await client.done(view, started["run"])
    assert view.modes == ["snapshot", "replay"]
    assert view.asked_again == 0
    assert view.text(started["run"]) == "".join(f"w{n} " for n in range(60))
    await check_state(common.url, view.topic, view)
    await client.close()


def resumed(client: Client) -> bool:
    return bool(client.hello["session"]["resumed"])


async def test_the_secret_rotates_and_the_old_one_holds_until_the_first_frame(common: Hub) -> None:
    client = Client(common.url)
    await client.connect()
    await client.call("user.me")
    first = dict(client.session or {})
    await client.cut_and_wait()
    await client.connect()
    second = dict(client.session or {})
    assert (second["id"], second["resumed"]) == (first["id"], True)
    assert second["secret"] != first["secret"]
    await client.cut_and_wait()  # it sent nothing since
    client.session = first
    await client.connect()
    assert resumed(client), "the answer may have been lost with the cut"
    await client.call("user.me")
    third = dict(client.session)
    await client.cut_and_wait()
    wrong: list[Json] = [{"id": first["id"], "secret": "wrong"}, {"id": "ses_none", "secret": "x"}]
    for stale in (first, second, *wrong):
        client.session = stale
        await client.connect()
        assert not resumed(client), stale
        assert client.hello["session"]["id"] != first["id"]
        await client.cut_and_wait()
    client.session = third
    await client.connect()
    assert resumed(client)
    await client.close()


async def test_resuming_while_the_old_socket_is_open_replaces_it(common: Hub) -> None:
    old = Client(common.url)
    await old.connect()
    await old.call("user.me")
    new = Client(common.url)
    new.session = old.session
    await new.connect()
    assert new.hello["session"]["resumed"] is True
    assert await old.closed() == 4003
    assert old.bye is not None
    assert old.bye["reconnect"] is True
    await new.call("user.me")
    await new.close()


async def test_a_session_that_is_past_its_time_is_a_new_one(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_KEEP_MS="200")
    client = Client(hub.url)
    await client.connect()
    await client.cut_and_wait()
    await asyncio.sleep(0.35)
    await client.connect()
    assert client.hello["session"]["resumed"] is False
    await client.close()


async def test_a_token_that_expires_is_announced_refreshed_and_at_last_4004(common: Hub) -> None:
    brief = await common.rpc("token.new", {"user": "bea", "expires_s": 1})
    longer = await common.token("bea")
    foreign = await common.token("carl")
    client, left = Client(common.url, token=brief["token"]), Client(common.url, token=brief["token"])
    await client.connect()
    await left.connect()
    await until(lambda: any(n["method"] == "auth.expiring" and n["params"]["in_ms"] > 0 for n in client.notices))
    assert (await client.refused("auth.refresh", token=foreign)).code == 401
    assert (await client.refused("auth.refresh", token="wrong")).code == 401
    assert "expires_ms" in await client.call("auth.refresh", token=longer)
    assert await left.closed() == 4004
    assert left.bye is not None
    assert left.bye["reconnect"] is True
    assert (await client.call("user.me"))["id"] == "bea"
    await client.close()


async def test_a_revoked_token_ends_what_it_opened(common: Hub) -> None:
    made = await common.rpc("token.new", {"user": "dora"})
    client = Client(common.url, token=made["token"])
    await client.connect()
    await common.rpc("token.drop", {"id": made["info"]["id"]})
    assert await client.closed() == 4504
    again = await Client(common.url).open()
    refused = await again.refused("hello", **client.greeting())
    assert refused.code == 401
    assert await again.closed() == 4500


# --- section 3: topics ---


async def test_a_subscriber_is_told_from_where_it_goes_on(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("one two three")
        await client.done(view, started["run"])
        topic, gen, head = view.topic, view.gen, view.cur

        async def ask(**given: Any) -> Json:
            return dict(await client.call("topic.subscribe", topic=topic, **given))

        nothing = await ask()
        assert (nothing["mode"], nothing["off"], nothing["head"]) == ("snapshot", head, head)
        assert "lost" not in nothing
        replay = await ask(gen=gen, off=3)
        assert (replay["mode"], replay["gen"], replay["off"], replay["head"]) == ("replay", gen, 3, head)
        await until(lambda: view.cur == head, "the replay")
        assert all(e.get("r") == 1 for e in client.frames if e.get("t") == replay["t"])
        at_head = await ask(gen=gen, off=head)
        assert (at_head["mode"], at_head["off"]) == ("replay", head)
        other = await ask(gen="other", off=3)
        assert (other["mode"], other["lost"]) == ("snapshot", {"gen": "other", "from": 3})
        beyond = await ask(gen=gen, off=head + 1)
        assert (beyond["mode"], beyond["lost"]) == ("snapshot", {"gen": gen, "from": head + 1})
        without = await ask(off=3)
        assert without["mode"] == "snapshot"
        assert without["off"] == without["head"] == head
        negative = await ask(gen=gen, off=-1)
        assert negative["mode"] == "snapshot"
        from_head = await ask(**{"from": "head"})
        assert (from_head["mode"], from_head["off"], from_head["head"]) == ("replay", head, head)
        assert "snap" not in from_head
        from_snapshot = await ask(**{"from": "snapshot"})
        assert from_snapshot["mode"] == "snapshot"
        assert "lost" not in from_snapshot
        handles = [a["t"] for a in (nothing, replay, at_head, other, beyond, without, from_head, from_snapshot)]
        assert len(set(handles)) == len(handles)
        assert (await client.refused("topic.subscribe", topic=topic, **{"from": "middle"})).code == -32602
        assert (await client.refused("topic.subscribe", topic=topic, off="x")).data["path"] == "$.off"
        assert client.strays == []


async def test_events_end_with_unsubscribe_and_go_on_under_the_new_handle_alone(common: Hub) -> None:
    async with Client(common.url) as client, Client(common.url) as second:
        started, view = await client.say("flood 400 400")
        other = await second.follow(view.topic)
        handles = []
        for _ in range(5):
            first = other.t
            answer = await second.call("topic.subscribe", topic=view.topic, gen=other.gen, off=other.cur)
            assert answer["mode"] == "replay"
            handles += [first, answer["t"]]
        await until(lambda: other.cur > answer["head"] + 3, "events under the new handle")
        await second.call("topic.unsubscribe", topic=view.topic)
        seen = len(second.frames)
        await second.call("topic.unsubscribe", topic=view.topic)
        await second.call("user.me")
        assert [f for f in second.frames[seen:] if "e" in f] == []
        assert second.strays == []
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        await check_state(common.url, view.topic, view)


async def test_topics_are_limited_and_unknown_ones_are_404(common: Hub) -> None:
    async with Client(common.url, token=await common.token("limit")) as client:
        most = client.hello["limits"]["topics"]
        for first in range(0, most, 32):
            await asyncio.gather(*(client.follow(f"client:d{i}") for i in range(first, first + 32)))
        refused = await client.refused("topic.subscribe", topic="client:more")
        assert (refused.code, refused.kind) == (429, "topic.limit")
        await client.call("topic.subscribe", topic="client:d0")  # again is no more
        await client.call("topic.unsubscribe", topic="client:d1")
        await client.call("topic.subscribe", topic="client:more")
        await client.call("topic.unsubscribe", topic="client:more")
        for topic in ("conv:none", "conv:", "client:", "client:../x", "user:local", "user:", "nothing:x", "", "hub:x"):
            refused = await client.refused("topic.subscribe", topic=topic)
            assert (refused.code, refused.kind) == (404, "topic.unknown"), topic


async def test_a_deleted_conversation_closes_its_topic_everywhere(common: Hub) -> None:
    async with Client(common.url, topics=["user:me"]) as client, Client(common.url) as second:
        started, view = await client.say("flood 2000 200")
        other = await second.follow(view.topic)
        handle = other.t
        await client.call("conversation.delete", conv=started["conv"], key=new_key())
        await until(lambda: other.closed == "deleted" and view.closed == "deleted", "topic.closed")
        assert {"t": handle, "reason": "deleted"} in [n["params"] for n in second.notices]
        assert (await second.refused("topic.subscribe", topic=view.topic)).code == 404
        assert (await second.refused("run.get", run=started["run"])).code == 404
        assert (await second.refused("run.cancel", run=started["run"])).code == 404
        inbox = client.views["user:me"]
        await until(lambda: started["conv"] not in inbox.has["convs"] and started["run"] not in inbox.has["runs"])
        await check_state(common.url, "user:me", inbox)


async def test_deltas_are_merged_by_the_tick_and_the_first_goes_out_at_once(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_TICK_MS="100")
    async with Client(hub.url) as client:
        started, view = await client.say("flood 500 1000")
        await client.done(view, started["run"])
        deltas = [e for e in view.events if e["e"] == "delta"]
        assert 3 <= len(deltas) <= 12
        assert deltas[0]["d"][1] == "w0 "
        assert "".join(d["d"][1] for d in deltas) == "".join(f"w{n} " for n in range(500))
        await check_state(hub.url, view.topic, view)


async def test_heartbeats_tell_heads_and_are_answered(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_PING_EVERY_MS="100", SAG_PING_TIMEOUT_MS="1000")
    async with Client(hub.url, topics=["user:me"]) as client:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
        wanted = {str(v.t): v.cur for v in client.views.values()}
        await until(lambda: any(f.get("heads") == wanted for f in client.frames), "heads of both topics")
        client.send({"ping": 12345})
        await until(lambda: any(f.get("pong") == 12345 for f in client.frames), "the pong")
        view.cur -= 1  # as if the last event had been lost on the way
        assert view.state is not None
        await until(lambda: view.asked_again == 1 and view.modes[-1] == "replay", "a subscribe for the head told")


async def test_a_state_that_does_not_fit_comes_in_pieces(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub("[hub.limits]\nframe = 16384\n")
    async with Client(hub.url) as client:
        for device in ("a", "b"):
            ui = {f"k{i}": "x" * 70 for i in range(90)}
            await client.call("config.patch", scope=f"client:{device}", patch={"ui": ui})
        conv = None
        for n in range(12):
            started, view = await client.say(f"{n} " + "long " * 300, conv)
            conv = started["conv"]
            await client.done(view, started["run"])
    async with Client(hub.url, topics=["client:a", "client:b"]) as client:
        assert client.hello["topics"]["client:a"]["mode"] == "snapshot"
        later = client.hello["topics"]["client:b"]["error"]
        assert (later["code"], later["data"]["kind"]) == (413, "topic.later")
        assert (await client.call("topic.subscribe", topic="client:b"))["mode"] == "snapshot"
        await client.follow(f"conv:{conv}")
        snap = client.views[f"conv:{conv}"].has
        assert snap["before"] == snap["messages"][0]["msg"]
        assert set(snap["runs"]) == {m["run"] for m in snap["messages"]}
        messages, before = snap["messages"], snap["before"]
        while before:
            page = await client.call("message.list", conv=conv, before=before)
            assert page["messages"]
            messages, before = page["messages"] + messages, page.get("before")
        assert len(messages) == 24
        assert [m["role"] for m in messages] == ["user", "assistant"] * 12
        assert len({m["msg"] for m in messages}) == 24
        assert (await client.refused("message.list", conv=conv, before="none")).code == 404


async def test_two_conversations_stream_on_one_connection(common: Hub) -> None:
    async with Client(common.url, topics=["user:me"]) as client:
        (one, view_one), (two, view_two) = await asyncio.gather(client.say("flood 80 400"), client.say("flood 81 400"))
        assert one["conv"] != two["conv"]
        await client.done(view_one, one["run"])
        await client.done(view_two, two["run"])
        assert view_one.text(one["run"]).endswith("w79 ")
        assert view_two.text(two["run"]).endswith("w80 ")
        assert client.strays == []
        for view in (view_one, view_two, client.views["user:me"]):
            assert view.asked_again == 0
            await check_state(common.url, view.topic, view)


# --- section 4: runs ---


async def test_a_started_run_is_answered_before_its_first_event(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("Book a van for Friday, please: it has to be a large one, white, and clean")
        assert (started["state"], started["topic"]["mode"]) == ("running", "snapshot")
        assert started["at"][view.topic] > started["topic"]["off"]
        t = started["topic"]["t"]
        await client.done(view, started["run"])
        answer_at = next(i for i, f in enumerate(client.frames) if "topic" in f.get("result", {}))
        first = next(i for i, f in enumerate(client.frames) if f.get("t") == t)
        assert answer_at < first
        event = client.frames[first]
        assert event.get("p", event["o"] - 1) == started["topic"]["off"]
        title = view.has["conv"]["title"]
        assert "Book a van for Friday" in title
        assert len(title) <= 60
        assert [m["role"] for m in view.has["messages"]] == ["user", "assistant"]
        assert view.has["messages"][0]["msg"] == started["msg"]
        again, _ = await client.say("And a second one", started["conv"])
        assert "topic" not in again, "it was subscribed already"
        await client.done(view, again["run"])
        last = view.events[-1]
        assert (last["e"], last["d"]["run"]) == ("run.close", again["run"])
        off, _ = await client.call("run.start", input=[{"kind": "text", "text": "x"}], subscribe=False), 0
        assert "topic" not in off
        assert f"conv:{off['conv']}" not in client.views
        await check_state(common.url, view.topic, view)


async def test_a_subscription_that_fails_does_not_fail_the_run(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub("[hub.limits]\ntopics = 1\n")
    async with Client(hub.url, topics=["user:me"]) as client:
        answer = await client.call("run.start", input=[{"kind": "text", "text": "hi"}])
        assert answer["topic"]["error"]["data"]["kind"] == "topic.limit"
        await until(lambda: client.views["user:me"].named("run.close"), "the run's end")


async def test_tools_run_and_numbers_are_never_used_twice(common: Hub) -> None:
    async with Client(common.url) as client:
        text = (
            MARK % "t1" + " " + 'call probe_slow {"id": "t2", "ms": 100} call no_such {"x": 1} call probe_mark {"y": 2}'
        )
        started, view = await client.say(text)
        await client.done(view, started["run"])
        opened, closed = view.named("tool.open"), view.named("tool.close")
        assert len(opened) == len(closed) == 4
        assert {t["call"] for t in opened} == {t["call"] for t in closed}
        status: dict[str, list[str]] = {t["name"]: [] for t in opened}
        for tool in view.has["tools"].values():
            status[tool["name"]].append(tool["status"])
        assert sorted(status["probe_mark"]) == ["invalid", "ok"]
        assert (status["probe_slow"], status["no_such"]) == (["ok"], ["invalid"])
        assert any("progress" in t for t in view.has["tools"].values())
        parts = [p["part"] for p in view.named("part.open")]
        assert len(parts) == len(set(parts))
        assert parts == sorted(parts)
        assert [s["step"] for s in view.named("step.open")] == [1, 2]
        order = [e["e"] for e in view.events]
        assert order.index("step.close") < order.index("tool.open")
        assert (
            view.run(started["run"])["usage"] == {"input": 7, "output": 2}
            or view.run(started["run"])["usage"]["input"] > 0
        )
        await check_state(common.url, view.topic, view)


async def test_runs_of_a_conversation_queue_in_order(common: Hub) -> None:
    async with Client(common.url, topics=["user:me"]) as client:
        first, view = await client.say("flood 60 300")
        second, _ = await client.say("second", first["conv"])
        third, _ = await client.say("fail", first["conv"])
        fourth, _ = await client.say("fourth", first["conv"], when="queue")
        assert [r["state"] for r in (first, second, third, fourth)] == ["running", "queued", "queued", "queued"]
        await client.done(view, fourth["run"])
        ends = [(d["run"], d["status"]) for d in view.named("run.close")]
        assert ends == [
            (first["run"], "done"),
            (second["run"], "done"),
            (third["run"], "failed"),
            (fourth["run"], "done"),
        ]
        begun = [d["run"] for d in view.named("run") if d["patch"].get("status") == "running"]
        assert [r for r in begun if r != third["run"]][:1] == [second["run"]]
        assert view.named("run.open")[1]["status"] == "queued"
        assert view.run(third["run"])["error"]["kind"] == "provider.disconnected"
        failed = [
            p for m in view.has["messages"] if m.get("run") == third["run"] for p in m["parts"] if p.get("partial")
        ]
        assert [p["text"] for p in failed] == ["This breaks off "]
        inbox = client.views["user:me"]
        await until(lambda: not set(inbox.has["runs"]) & {first["run"], fourth["run"]}, "an empty inbox")
        await check_state(common.url, "user:me", inbox)
        await check_state(common.url, view.topic, view)


async def test_a_transcript_holds_runs_that_ended_before_and_its_own(common: Hub) -> None:
    async with Client(common.url) as client:
        first, view = await client.say("hang alpha")
        second, _ = await client.say("beta queued", first["conv"])
        assert len([m for m in view.has["messages"] if m["role"] == "user"]) >= 1
        await client.call("run.cancel", run=first["run"])
        await client.done(view, second["run"])
        await check_state(common.url, view.topic, view)


async def test_a_steer_joins_the_active_run_at_its_next_step(common: Hub) -> None:
    async with Client(common.url) as client:
        first, view = await client.say("flood 60 300")
        await until(lambda: view.named("delta"), "the stream")
        steer, _ = await client.say("steered words", first["conv"], when="steer", kind="nonsense")
        assert (steer["state"], steer["run"]) == ("steered", first["run"])
        await client.done(view, first["run"])
        assert [s["step"] for s in view.named("step.open")] == [1, 2]
        assert "steered words" in view.text(first["run"])
        alone, _ = await client.say("alone", first["conv"], when="steer")
        assert alone["state"] == "running"
        assert alone["run"] != first["run"]
        await client.done(view, alone["run"])
        await check_state(common.url, view.topic, view)


async def test_an_interrupt_cancels_first_and_goes_ahead_of_the_queue(common: Hub) -> None:
    async with Client(common.url) as client:
        first, view = await client.say("hang one")
        queued, _ = await client.say("queued", first["conv"])
        await until(lambda: view.named("delta"), "the stream")
        urgent, _ = await client.say("urgent", first["conv"], when="interrupt")
        assert urgent["state"] == "running"
        await client.done(view, queued["run"])
        ends = [(d["run"], d["status"]) for d in view.named("run.close")]
        assert ends == [(first["run"], "cancelled"), (urgent["run"], "done"), (queued["run"], "done")]
        order = [(e["e"], e["d"].get("run")) for e in view.events if isinstance(e["d"], dict)]
        assert order.index(("run.close", first["run"])) < order.index(("run.open", urgent["run"]))
        await check_state(common.url, view.topic, view)


async def test_reject_and_a_full_queue_are_refused(common: Hub) -> None:
    async with Client(common.url) as client:
        first, view = await client.say("hang")
        conv = first["conv"]
        hi = [{"kind": "text", "text": "x"}]
        busy = await client.refused("run.start", conv=conv, input=hi, when="reject")
        assert (busy.code, busy.kind) == (409, "run.busy")
        queued = [await client.call("run.start", conv=conv, input=hi) for _ in range(16)]
        full = await client.refused("run.start", conv=conv, input=hi)
        assert (full.code, full.kind, full.data["after_ms"]) == (429, "run.queue", 5000)
        assert full.data["retry"] is True
        for run in queued:
            await client.call("run.cancel", run=run["run"])
        await client.call("run.cancel", run=first["run"])
        await client.done(view, first["run"], "cancelled")
        assert {r["status"] for r in view.has["runs"].values()} == {"cancelled"}
        await check_state(common.url, view.topic, view)


async def test_what_is_asked_of_a_closed_run_is_409(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
        run = started["run"]
        for method, params in (
            ("run.cancel", {}),
            ("config.patch", {"scope": f"run:{run}", "patch": {"temperature": 1}}),
        ):
            refused = await client.refused(method, **({"run": run} if method == "run.cancel" else {}), **params)
            assert (refused.code, refused.kind, refused.data["status"]) == (409, "run.closed", "done")
        refused = await client.refused("run.resume", run=run)
        assert (refused.code, refused.kind) == (409, "run.state")
        for method in ("run.cancel", "run.get", "run.resume", "run.export"):
            assert (await client.refused(method, run="none")).code == 404
        assert (await client.call("run.get", run=run))["object"]["status"] == "done"
        listed = await client.call("run.list", conv=started["conv"])
        assert [r["run"] for r in listed["runs"]] == [run]
        for format in ("json", "md"):
            assert "You said" in (await client.call("run.export", run=run, format=format))["text"]


async def test_cancel_now_keeps_the_partial_text(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say(MARK % "c1" + ' call probe_slow {"id": "c2", "ms": 9000}')
        await until(lambda: view.named("tool.progress"), "progress")
        answer = await client.call("run.cancel", run=started["run"], mode="now", key=new_key())
        assert answer["status"] == "cancelled"
        await client.done(view, started["run"], "cancelled")
        slow = next(t for t in view.has["tools"].values() if t["name"] == "probe_slow")
        assert slow["status"] == "cancelled"
        hung, _ = await client.say("hang", started["conv"])
        await until(lambda: view.text(hung["run"]) == "I hang ", "text")
        await client.call("run.cancel", run=hung["run"])
        await client.done(view, hung["run"], "cancelled")
        part = view.has["messages"][-1]["parts"][-1]
        assert (part["text"], part["partial"], part["open"]) == ("I hang ", True, False)
        assert view.named("step.close")[-1]["finish"] == "cancelled"
        assert view.events[-1]["e"] == "run.close"
        await check_state(common.url, view.topic, view)


async def test_cancel_after_the_step_lets_the_step_end(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("flood 40 200")
        await until(lambda: view.named("delta"), "the stream")
        await client.call("run.cancel", run=started["run"], mode="after_step")
        await client.done(view, started["run"], None)
        assert view.text(started["run"]).endswith("w39 ")
        assert view.named("part.close")[-1].get("partial") is None
        tools, _ = await client.say('call probe_slow {"id": "s", "ms": 200}', started["conv"])
        await until(lambda: view.named("tool.progress"), "the tool")
        await client.call("run.cancel", run=tools["run"], mode="after_step")
        await client.done(view, tools["run"], "cancelled")
        assert [t["status"] for t in view.has["tools"].values()] == ["ok"]
        assert sum(s["run"] == tools["run"] for s in view.named("step.open")) == 1
        await check_state(common.url, view.topic, view)


async def test_a_disconnect_stops_no_run(common: Hub) -> None:
    client = Client(common.url)
    await client.connect()
    started, view = await client.say("flood 60 300")
    await client.cut_and_wait()
    await asyncio.sleep(0.4)
    await client.connect()
    await client.done(view, started["run"])
    await check_state(common.url, view.topic, view)
    await client.close()


async def test_long_text_goes_on_in_the_next_part(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("x" * 400_000)
        await client.done(view, started["run"])
        parts = [p for m in view.has["messages"] if m["role"] == "assistant" for p in m["parts"]]
        assert len(parts) >= 2
        assert all(len(p["text"].encode()) <= 256 << 10 for p in parts)
        assert "x" * 400_000 in "".join(p["text"] for p in parts)
        await check_state(common.url, view.topic, view)


# --- section 4: keys ---


async def test_a_key_gives_the_first_answer_again_on_every_road(common: Hub) -> None:
    params = {"input": [{"kind": "text", "text": "once"}], "key": new_key()}
    async with Client(common.url) as client, Client(common.url) as second, common.http() as http:
        first = await client.call("run.start", **params)
        again = await second.call("run.start", **params)
        web = (await http.post("/rpc/run.start", json=params)).json()
        header = (
            await http.post(
                "/api/runs", json={"input": params["input"]}, headers={"Idempotency-Key": str(params["key"])}
            )
        ).json()
        topic = again.pop("topic")
        assert topic["mode"] in ("snapshot", "replay"), "made anew"
        first.pop("topic")
        assert first == again == web == header
        view = second.views[f"conv:{first['conv']}"]
        await second.done(view, first["run"])
        assert len(view.has["runs"]) == 1
        other = {**params, "input": [{"kind": "text", "text": "twice"}]}
        mismatch = await client.refused("run.start", **other)
        assert (mismatch.code, mismatch.kind) == (409, "key.mismatch")
        assert (await http.post("/rpc/run.start", json=other)).status_code == 409
        await check_state(common.url, view.topic, view)


async def test_concurrent_duplicates_wait_for_the_first(common: Hub) -> None:
    async with Client(common.url) as client, Client(common.url) as second, common.http() as http:
        params = {"input": [{"kind": "text", "text": "together"}], "key": new_key()}
        answers = await asyncio.gather(
            client.call("run.start", **params),
            second.call("run.start", **params),
            http.post("/rpc/run.start", json=params),
            client.call("run.start", **params),
        )
        given = [a.json() if isinstance(a, httpx.Response) else a for a in answers]
        assert len({(a["run"], a["msg"], a["conv"]) for a in given}) == 1
        assert len({json.dumps(a["at"]) for a in given}) == 1


async def test_failures_are_not_kept_under_a_key_and_users_have_their_own(common: Hub) -> None:
    token = await common.token("keyed")
    async with Client(common.url) as client, Client(common.url, token=token) as other:
        started, view = await client.say("hang")
        key = new_key()
        params: Json = {"scope": f"run:{started['run']}", "patch": {"temperature": 0.5}, "key": key}
        assert (await client.refused("config.patch", **params, rev=9)).kind == "config.conflict"
        answer = await client.call("config.patch", **params, rev=1)
        assert answer["rev"] == 2
        assert await client.call("config.patch", **params, rev=1) == answer
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        shared = {"input": [{"kind": "text", "text": "mine"}], "key": new_key()}
        mine = await client.call("run.start", **shared)
        theirs = await other.call("run.start", **shared)
        assert mine["run"] != theirs["run"]


# --- section 5: asks ---


async def test_approval_runs_the_call_once_and_later_answers_get_the_outcome(common: Hub) -> None:
    async with Client(common.url, topics=["user:me"]) as client, Client(common.url, "hall-1") as other:
        started, view = await client.say(DANGER % "a1")
        ask = await client.asked(view)
        opened = view.has["asks"][ask]
        assert opened["kind"] == "approval"
        assert {"tool": "probe_danger", "args": {"id": "a1"}}.items() <= opened["subject"].items()
        assert opened["options"][-1] == opened["on_expiry"] == "deny"
        assert opened["expires_at"] > opened["ts"]
        await until(lambda: view.run(started["run"])["status"] == "waiting", "waiting")
        assert ask in client.views["user:me"].has["asks"]
        assert common.journal("tool danger a1") == []
        for choice, data in (("perhaps", None), ("allow_once", {"args": {"id": 7}}), ("allow_once", {"args": []})):
            refused = await other.refused("ask.answer", ask=ask, choice=choice, data=data)
            assert (refused.code, refused.kind) == (422, "ask.invalid"), choice
        assert ask in view.has["asks"], "the ask stays"
        answer = await other.call("ask.answer", ask=ask, choice="allow_once", key=new_key())
        late = await client.refused("ask.answer", ask=ask, choice="deny")
        assert (late.code, late.kind) == (409, "ask.closed")
        assert late.data["outcome"] == answer["outcome"]
        await client.done(view, started["run"])
        assert view.named("ask.close") == [{"ask": ask, "by": "local", "client": "hall-1", "choice": "allow_once"}]
        assert len(common.journal("tool danger a1")) == 1
        assert client.views["user:me"].has["asks"].get(ask) is None
        assert (await client.refused("ask.answer", ask="none", choice="deny")).code == 404
        await check_state(common.url, view.topic, view)
        await check_state(common.url, "user:me", client.views["user:me"])


async def test_denied_and_edited_and_remembered(common: Hub) -> None:
    async with Client(common.url) as client:
        denied, view = await client.say(DANGER % "d1")
        await client.call("ask.answer", ask=await client.asked(view), choice="deny")
        await client.done(view, denied["run"])
        edited, _ = await client.say(DANGER % "d2", denied["conv"])
        ask = await client.asked(view)
        await client.call("ask.answer", ask=ask, choice="allow_once", data={"args": {"id": "d2-edited"}})
        await client.done(view, edited["run"])
        assert [t["status"] for t in view.has["tools"].values()] == ["denied", "ok"]
        assert list(view.has["tools"].values())[1]["args"] == {"id": "d2-edited"}
        assert view.named("ask.close")[-1]["args"] == {"id": "d2-edited"}
        twice, _ = await client.say(DANGER % "d3" + " " + DANGER % "d4", denied["conv"])
        await until(lambda: len(view.has["asks"]) == 2, "two asks at once")
        for ask in list(view.has["asks"]):
            await client.call("ask.answer", ask=ask, choice="allow_run")
        await client.done(view, twice["run"])
        for id, count in (("d1", 0), ("d2", 0), ("d2-edited", 1), ("d3", 1), ("d4", 1)):
            assert sum(line == f"tool danger {id}" for line in common.journal()) == count, id
        await check_state(common.url, view.topic, view)


async def test_the_end_of_a_run_closes_its_asks_and_time_does_too(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say(DANGER % "e1")
        ask = await client.asked(view)
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        assert view.named("ask.close") == [{"ask": ask, "by": None, "choice": None, "why": "run"}]
        late = await client.refused("ask.answer", ask=ask, choice="allow_once")
        assert (late.code, late.data["outcome"]["why"]) == (409, "run")
        assert common.journal("tool danger e1") == []
        expiring, _ = await client.say('call probe_form {"id": "e2", "seconds": 0.2}', started["conv"])
        ask = await client.asked(view)
        await client.done(view, expiring["run"])
        close = view.named("ask.close")[-1]
        assert (close["by"], close["why"], close["choice"]) == (
            None,
            "expired",
            view.named("ask.open")[-1]["on_expiry"],
        )
        await check_state(common.url, view.topic, view)


async def test_a_form_is_held_to_its_schema(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say('call probe_form {"id": "f1"}')
        ask = await client.asked(view)
        submit = view.has["asks"][ask]["options"][0]
        assert view.has["asks"][ask]["schema"]["required"] == ["name"]
        for data in (None, {}, {"name": 3}):
            refused = await client.refused("ask.answer", ask=ask, choice=submit, data=data)
            assert (refused.code, refused.kind) == (422, "ask.invalid")
        await client.call("ask.answer", ask=ask, choice=submit, data={"name": "Ada"})
        await client.done(view, started["run"])
        tool = next(iter(view.has["tools"].values()))
        assert tool["result"] == {"choice": submit, "data": {"name": "Ada"}}
        await check_state(common.url, view.topic, view)


# --- section 6: config ---


async def test_config_is_patched_in_every_scope(common: Hub) -> None:
    async with Client(common.url, "scopes", topics=["client:scopes"]) as client, Client(common.url) as other:
        device = client.views["client:scopes"]
        first = await client.call("config.get", scope="client:scopes")
        assert (first["rev"], first["config"]) == (1, {})
        assert first["schema"]
        patched = await other.call("config.patch", scope="client:scopes", patch={"llm": {"temperature": 0.1}})
        assert patched["rev"] == 2
        assert "client:scopes" in patched["at"]
        await until(lambda: device.has["config"] == {"llm": {"temperature": 0.1}}, "the device's own view")
        started, view = await client.say("hang", config={"max_tokens": 5})
        run = f"run:{started['run']}"
        conv = f"conv:{started['conv']}"
        got = await client.call("config.get", scope=run)
        assert got["config"] == {"max_tokens": 5}
        assert (got["effective"]["temperature"], got["effective"]["max_tokens"]) == (0.1, 5)
        at_conv = await client.call("config.patch", scope=conv, patch={"temperature": 0.3, "system": "Be brief."})
        assert at_conv["rev"] == 2
        frozen = await client.call("config.get", scope=run)
        assert frozen["effective"]["temperature"] == 0.1, "the layers below a run are frozen when it begins"
        answer = await client.call("config.patch", scope=run, patch={"temperature": 0.7}, rev=1)
        assert (answer["rev"], answer["applies"]) == (2, "next_step")
        assert answer["effective"]["temperature"] == 0.7
        back = await client.call("config.patch", scope=run, patch={"temperature": None})
        assert back["effective"]["temperature"] == 0.1
        await until(lambda: view.cur >= back["at"][conv], "the config events")
        assert view.run(started["run"])["config"] == {"max_tokens": 5}
        assert view.has["conv"]["config"] == {"temperature": 0.3, "system": "Be brief."}
        assert [(d["scope"], d["rev"]) for d in view.named("config")] == [(conv, 2), (run, 2), (run, 3)]
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        later, _ = await client.say("later", started["conv"])
        await client.done(view, later["run"])
        assert "temperature 0.3" in view.text(later["run"])
        await check_state(common.url, view.topic, view)
        await check_state(common.url, "client:scopes", device)


async def test_a_patch_that_does_not_fit_changes_nothing(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("hang")
        run = f"run:{started['run']}"
        for patch, path in (
            ({"temperature": "hot"}, "$.temperature"),
            ({"temprature": 1}, "$.temprature"),
            ({"tools": {"x": "y"}}, "$.tools"),
            ({"rounds": -1}, "$.rounds"),
        ):
            refused = await client.refused("config.patch", scope=run, patch=patch)
            assert (refused.code, refused.kind) == (422, "config.invalid"), patch
            assert refused.data["path"].startswith(path), refused.data
        refused = await client.refused("config.patch", scope=run, patch={"temperature": 1}, rev=5)
        assert (refused.code, refused.kind, refused.data["rev"]) == (409, "config.conflict", 1)
        assert "effective" in refused.data
        for nonsense in (3, "x", None):
            assert (await client.refused("config.patch", scope=run, patch=nonsense)).code in (422, -32602)
        start = await client.refused("run.start", input=[{"kind": "text", "text": "x"}], config={"nonsense": 1})
        assert (start.code, start.data["path"]) == (422, "$.nonsense")
        for scope in ("run:none", "conv:none", "client:", "hub:x", "nothing"):
            assert (await client.refused("config.patch", scope=scope, patch={})).code == 404
            assert (await client.refused("config.get", scope=scope)).code == 404
        refused = await client.refused("config.patch", scope="client:test", patch={"strange": {}})
        assert (refused.code, refused.data["path"]) == (422, "$.strange")
        assert view.named("config") == []
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        await check_state(common.url, view.topic, view)


async def test_apply_now_drops_the_call_in_flight_and_starts_the_step_again(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("flood 2000 300")
        await until(lambda: len(view.named("delta")) > 2, "the stream")
        run = f"run:{started['run']}"
        answer = await client.call("config.patch", scope=run, patch={"temperature": 0.9}, apply="now")
        assert answer["applies"] == "now"
        await until(lambda: len(view.named("step.open")) == 2, "the step's second start")
        names = [e["e"] for e in view.events]
        dropped = names.index("part.drop")
        assert names.index("config") < dropped
        assert names[dropped : dropped + 3] == ["part.drop", "step.close", "step.open"]
        assert view.named("part.drop")[0]["why"] == "config"
        assert (view.named("step.close")[0]["step"], view.named("step.close")[0]["finish"]) == (1, "config")
        assert view.named("step.open")[1]["step"] == 2
        assert view.named("config.applied") == [{"scope": run, "rev": 2, "step": 2}]
        await until(lambda: view.text(started["run"]).startswith("w0 w1 "), "text of the second call")
        assert "t=0.9" in common.journal("model flood 2000 300")[-1]
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        tools, _ = await client.say('call probe_slow {"id": "n", "ms": 300}', started["conv"])
        await until(lambda: view.named("tool.progress"), "the tool")
        answer = await client.call("config.patch", scope=f"run:{tools['run']}", patch={"temperature": 0.2}, apply="now")
        assert answer["applies"] == "next_step", "no call is in flight"
        await client.call("config.patch", scope=f"run:{tools['run']}", patch={"temperature": 0.4})
        await client.done(view, tools["run"])
        applied = [d for d in view.named("config.applied") if d["scope"] == f"run:{tools['run']}"]
        assert applied == [{"scope": f"run:{tools['run']}", "rev": 3, "step": 2}]
        await check_state(common.url, view.topic, view)


async def test_a_tool_patches_through_the_same_door(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say('call probe_patch {"scope": "run:RUN", "temperature": 0.25}')
        await client.done(view, started["run"])
        assert view.named("config")[0]["patch"] == {"temperature": 0.25}
        assert view.named("config.applied") == [{"scope": f"run:{started['run']}", "rev": 2, "step": 2}]
        assert view.run(started["run"])["rev"] == 2
        await check_state(common.url, view.topic, view)


# --- section 7: the client's tools ---


def tool(name: str, **given: Any) -> Json:
    return {"name": name, "description": "Shows.", "input": {"type": "object"}, **given}


async def test_a_clients_tool_is_called_in_its_session_alone(common: Hub) -> None:
    def answer(params: Json) -> Json:
        return {"content": [{"kind": "text", "text": f"shown {params['args']['card']}"}]}

    declared = [tool("screen.show"), tool("probe_mark"), tool("screen.show"), tool("not a name!")]
    client = Client(common.url, tools=declared, answer=answer)
    async with client, Client(common.url, tools=[], answer=answer) as other:
        assert client.hello["tools_refused"] == ["probe_mark", "screen.show", "not a name!"]
        started, view = await client.say('call screen_show {"card": "x"}')
        await client.done(view, started["run"])
        call = client.calls[0]
        assert call["method"] == "tool.call"
        assert call["params"]["name"] == "screen.show"
        assert call["params"]["run"] == started["run"]
        assert call["params"]["redelivered"] is False
        assert call["params"]["deadline_ms"] > 0
        opened = view.named("tool.open")[0]
        assert (opened["call"], opened["name"]) == (call["params"]["call"], "screen.show")
        assert view.named("tool.close")[0]["status"] == "ok"
        assert "shown x" in view.text(started["run"])
        foreign, seen = await other.say('call screen_show {"card": "y"}')
        await other.done(seen, foreign["run"])
        assert seen.named("tool.close")[0]["status"] == "invalid"
        assert len(client.calls) == 1
        assert other.calls == []
        await check_state(common.url, view.topic, view)


async def test_a_clients_tool_tells_progress_fails_and_is_cancelled(common: Hub) -> None:
    async with Client(common.url, tools=[tool("work"), tool("slow", timeout_ms=150)]) as client:
        started, view = await client.say("call work {}")
        call = await until(lambda: client.calls and client.calls[0], "the call")
        client.send({"method": "rpc.progress", "params": {"id": call["id"], "done": 1, "total": 2, "text": "half"}})
        await until(lambda: view.named("tool.progress"), "progress")
        assert view.named("tool.progress")[0] == {"call": call["params"]["call"], "done": 1, "total": 2, "text": "half"}
        client.send({"id": call["id"], "error": {"code": 500, "message": "It broke."}})
        await client.done(view, started["run"])
        close = view.named("tool.close")[0]
        assert (close["status"], close["error"]["message"]) == ("error", "It broke.")
        slow, _ = await client.say("call slow {}", started["conv"])
        await client.done(view, slow["run"])
        assert view.named("tool.close")[1]["status"] == "timeout"
        hung, _ = await client.say("call work {}", started["conv"])
        call = await until(lambda: len(client.calls) == 3 and client.calls[2], "the call")
        await client.call("run.cancel", run=hung["run"])
        await until(lambda: {"method": "rpc.cancel", "params": {"id": call["id"]}} in client.notices, "rpc.cancel")
        await client.done(view, hung["run"], "cancelled")
        assert view.named("tool.close")[2]["status"] == "cancelled"
        client.send({"id": call["id"], "error": {"code": 499, "message": "cancelled"}})
        client.send({"id": "s999", "result": {}})
        await client.call("user.me")
        await check_state(common.url, view.topic, view)


async def test_after_a_cut_an_idempotent_call_is_sent_again_and_others_may_be_answered_unasked(common: Hub) -> None:
    client = Client(common.url, tools=[tool("again", idempotent=True), tool("once")])
    await client.connect()
    started, view = await client.say("call again {} call once {}")
    await until(lambda: len(client.calls) == 2, "both calls")
    await client.call("user.me")
    again, once = sorted(client.calls, key=lambda c: c["params"]["name"])
    await client.cut_and_wait()
    client.tools = None  # left out keeps the session's tools
    await client.connect()
    assert client.hello["session"]["resumed"] is True
    await until(lambda: len(client.calls) == 3, "the redelivered call")
    sent = client.calls[2]
    assert (sent["id"], sent["params"]["redelivered"]) == (again["id"], True)
    assert {k: v for k, v in sent["params"].items() if k not in ("redelivered", "deadline_ms")} == {
        k: v for k, v in again["params"].items() if k not in ("redelivered", "deadline_ms")
    }
    hello_at = max(i for i, f in enumerate(client.frames) if "session" in f.get("result", {}))
    assert hello_at < client.frames.index(sent)
    for call in (again, once):
        client.send({"id": call["id"], "result": {"content": [{"kind": "text", "text": call["params"]["name"]}]}})
    await client.done(view, started["run"])
    assert {t["status"] for t in view.has["tools"].values()} == {"ok"}
    later, _ = await client.say("call once {}", started["conv"])
    await until(lambda: len(client.calls) == 4, "the tools are kept")
    client.send({"id": client.calls[3]["id"], "result": "plain"})
    await client.done(view, later["run"])
    await check_state(common.url, view.topic, view)
    await client.close()


async def test_a_call_whose_client_stays_away_is_lost(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_KEEP_MS="300")
    async with Client(hub.url) as watcher:
        client = Client(hub.url, tools=[tool("work"), tool("again", idempotent=True)])
        await client.connect()
        started, view = await client.say("call work {} call again {}")
        await until(lambda: len(client.calls) == 2, "the calls")
        seen = await watcher.follow(view.topic)
        await client.cut_and_wait()
        await watcher.done(seen, started["run"])
        assert {t["status"] for t in seen.has["tools"].values()} == {"lost"}
        await check_state(hub.url, view.topic, seen)


async def test_the_deadline_of_a_call_goes_on_through_a_cut(common: Hub) -> None:
    client = Client(common.url, tools=[tool("work", timeout_ms=400)])
    await client.connect()
    started, view = await client.say("call work {}")
    await until(lambda: client.calls, "the call")
    await client.cut_and_wait()
    await client.connect()
    await client.done(view, started["run"])
    assert view.named("tool.close")[0]["status"] in ("timeout", "lost")
    await client.close()


# --- section 8: cancelling a request ---


async def test_a_cancelled_request_is_still_answered(common: Hub) -> None:
    async with Client(common.url) as client:
        key = new_key()
        params = {"input": [{"kind": "text", "text": "x"}], "key": key}
        answers = []
        for _ in range(20):
            future = client.begin("conversation.list")
            client.send({"method": "rpc.cancel", "params": {"id": client.last_id}})
            try:
                answers.append(await asyncio.wait_for(future, WAIT_S))
            except Refused as refused:
                assert (refused.code, refused.kind) == (499, "request.cancelled")
                answers.append(refused)
        assert any(isinstance(a, Refused) for a in answers)
        future = client.begin("run.start", **params)
        client.send({"method": "rpc.cancel", "params": {"id": client.last_id}})
        try:
            await asyncio.wait_for(future, WAIT_S)
        except Refused as refused:
            assert refused.code == 499
        first = await client.call("run.start", **params)
        second = await client.call("run.start", **params)
        assert first["run"] == second["run"], "what was accepted goes on under its key"
        client.send({"method": "rpc.cancel", "params": {"id": 99999}})
        client.send({"method": "rpc.cancel", "params": {"id": [1]}})
        client.send({"method": "rpc.cancel"})
        client.send({"method": "no.such.notice", "params": {}})
        await client.call("user.me")


# --- section 8: foreign things ---


async def test_another_users_things_are_404_on_every_road(common: Hub) -> None:
    ada, bob = await common.token("ada"), await common.token("bob")
    async with Client(common.url, token=ada) as owner, Client(common.url, token=bob) as client:
        started, view = await owner.say(DANGER % "foreign")
        ask = await owner.asked(view)
        conv, run = started["conv"], started["run"]
        text = [{"kind": "text", "text": "x"}]
        requests: list[tuple[str, Json]] = [
            ("topic.subscribe", {"topic": view.topic}),
            ("topic.subscribe", {"topic": view.topic, "gen": view.gen, "off": 1}),
            ("run.start", {"conv": conv, "input": text}),
            ("run.get", {"run": run}),
            ("run.cancel", {"run": run}),
            ("run.resume", {"run": run}),
            ("run.export", {"run": run}),
            ("ask.answer", {"ask": ask, "choice": "allow_once"}),
            ("config.get", {"scope": f"conv:{conv}"}),
            ("config.get", {"scope": f"run:{run}"}),
            ("config.patch", {"scope": f"conv:{conv}", "patch": {}}),
            ("config.patch", {"scope": f"run:{run}", "patch": {}}),
            ("message.list", {"conv": conv}),
            ("conversation.get", {"conv": conv}),
            ("conversation.update", {"conv": conv, "title": "mine"}),
            ("conversation.delete", {"conv": conv}),
        ]
        async with common.http(bob) as http:
            for method, params in requests:
                refused = await client.refused(method, **params)
                assert refused.code == 404, f"{method} {params}"
                unknown = (
                    await client.refused(
                        method, **json.loads(json.dumps(params).replace(conv, "c-none").replace(run, "r-none"))
                    )
                    if ask not in json.dumps(params)
                    else refused
                )
                assert unknown.kind == refused.kind, "its existence is not told"
                answer = await http.post(f"/rpc/{method}", json=params)
                assert answer.status_code == 404, method
            for path in (
                f"/events/{view.topic}",
                f"/api/conversations/{conv}",
                f"/api/conversations/{conv}/messages",
                f"/api/runs/{run}",
                f"/api/runs/{run}/export",
                f"/api/config/run:{run}",
                f"/api/config/conv:{conv}",
            ):
                answer = await http.get(path)
                assert answer.status_code == 404, path
            assert (await http.delete(f"/api/conversations/{conv}")).status_code == 404
            assert (await http.post(f"/api/asks/{ask}", json={"choice": "deny"})).status_code == 404
        assert (await client.call("run.list", conv=conv))["runs"] == []
        assert (await client.call("conversation.list"))["conversations"] == []
        thief = Client(common.url, token=bob, topics=[view.topic])
        thief.session = owner.session
        await thief.connect()
        assert thief.hello["session"]["resumed"] is False
        assert thief.hello["topics"][view.topic]["error"]["code"] == 404
        await thief.close()
        await owner.call("user.me")  # its session is still its own
        refused = await client.refused("token.list")
        assert refused.code == 403
        assert (await client.refused("token.new", user="ada")).code == 403
        await owner.call("ask.answer", ask=ask, choice="deny")
        await owner.done(view, run)
        await check_state(common.url, view.topic, view, token=ada)


async def test_client_ids_belong_to_a_user(common: Hub) -> None:
    ada, bob = await common.token("ada"), await common.token("bob")
    async with Client(common.url, "same", token=ada) as one, Client(common.url, "same", token=bob) as two:
        await one.call("config.patch", scope="client:same", patch={"ui": {"theme": "dark"}})
        assert (await two.call("config.get", scope="client:same"))["config"] == {}


async def test_uploaded_files_are_their_owners_alone_and_never_active(common: Hub) -> None:
    ada, bob = await common.token("ada"), await common.token("bob")
    async with common.http(ada) as owner, common.http(bob) as other:
        html = b"<script>alert(1)</script>"
        made = (await owner.post("/api/files?name=x.html", content=html, headers={"content-type": "text/html"})).json()
        got = await owner.get(f"/api/files/{made['ref']}")
        assert got.content == html
        assert got.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in got.headers["content-security-policy"]
        assert got.headers["x-content-type-options"] == "nosniff"
        assert (await other.get(f"/api/files/{made['ref']}")).status_code == 404
        assert (await owner.get("/api/files/none")).status_code == 404


# --- section 10: HTTP ---


async def test_the_same_operations_over_http(common: Hub) -> None:
    async with common.http() as http, Client(common.url) as client:
        started = (await http.post("/rpc/run.start", json={"input": [{"kind": "text", "text": "web"}]})).json()
        assert "topic" not in started
        view = await client.follow(f"conv:{started['conv']}")
        await client.done(view, started["run"])
        rest = (await http.get(f"/api/runs/{started['run']}")).json()
        assert rest == await client.call("run.get", run=started["run"])
        listed = (await http.get("/api/conversations", params={"limit": 500})).json()
        assert started["conv"] in [c["conv"] for c in listed["conversations"]]
        renamed = await http.patch(f"/api/conversations/{started['conv']}", json={"title": "New"})
        assert renamed.status_code == 200
        await until(lambda: view.has["conv"]["title"] == "New", "the title")
        patched = await http.patch(f"/api/config/conv:{started['conv']}", json={"patch": {"temperature": 0.5}})
        assert patched.json()["rev"] == 2
        await check_state(common.url, view.topic, view)


@pytest.mark.parametrize(
    ("method", "body", "headers", "status", "code"),
    [
        ("run.start", b"{", {}, 400, -32700),
        ("run.start", b"[1]", {}, 400, -32602),
        ("run.start", b'{"input": 3}', {}, 400, -32602),
        ("run.start", b"{}", {"content-type": "text/plain"}, 415, 415),
        ("run.start", b'{"input":[{"kind":"text","text":"x"}],"conv":"none"}', {}, 404, 404),
        ("no.such", b"{}", {}, 404, -32601),
        ("hello", b"{}", {}, 404, -32601),
        ("topic.subscribe", b'{"topic":"hub"}', {}, 404, -32601),
        ("auth.refresh", b"{}", {}, 404, -32601),
        ("run.start", b"{}", {"origin": "https://evil.example"}, 403, 403),
        ("run.start", b"{}", {"origin": "null"}, 403, 403),
        ("run.start", b"{}", {"host": "evil.example"}, 403, 403),
        ("user.me", b"{}", {"authorization": "Bearer wrong"}, 401, 401),
    ],
)
async def test_errors_over_http_have_their_status(
    common: Hub, method: str, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    async with common.http() as http:
        answer = await http.post(
            f"/rpc/{method}", content=body, headers={"content-type": "application/json", **headers}
        )
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["code"] == code
        assert error["data"]["kind"]
        assert "Traceback" not in answer.text


async def test_a_simple_form_post_of_a_foreign_page_changes_nothing(common: Hub) -> None:
    async with common.http() as http:
        before = len((await http.get("/api/conversations", params={"limit": 1000})).json()["conversations"])
        body = '{"input":[{"kind":"text","text":"forged"}]}'
        for headers in (
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "application/json", "origin": "https://evil.example"},
        ):
            for path in ("/rpc/run.start", "/api/runs"):
                answer = await http.post(path, content=body, headers=headers)
                assert answer.status_code in (403, 415), (path, headers)
        after = len((await http.get("/api/conversations", params={"limit": 1000})).json()["conversations"])
        assert after == before


async def test_schemas_health_and_unknown_paths(common: Hub) -> None:
    async with common.http() as http:
        for name in ("jsonschema", "asyncapi", "openapi"):
            answer = await http.get(f"/schema/{name}.json")
            assert answer.status_code == 200, name
            assert answer.json()
        assert (await http.get("/schema/none.json")).status_code == 404
        assert (await http.get("/health")).json()["status"] == "ok"
        missing = await http.get("/api/none")
        assert missing.status_code == 404


class Sse:
    """Server-sent events as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, str]:
        """The next event; comments are left out."""
        event: dict[str, str] = {}
        async with asyncio.timeout(WAIT_S):
            async for line in self._lines:
                if not line:
                    if "data" in event:
                        return event
                    event = {}
                    continue
                name, _, value = line.partition(":")
                if name:
                    event[name] = value.removeprefix(" ")
        raise Gone("the stream ended")


async def test_a_topic_as_server_sent_events(common: Hub) -> None:
    async with Client(common.url) as client, common.http() as http:
        started, view = await client.say("flood 60 300")
        async with http.stream("GET", f"/events/{view.topic}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            sse = Sse(response)
            first = await sse.next()
            assert first["event"] == "topic"
            answer = json.loads(first["data"])
            assert answer["mode"] == "snapshot"
            assert "t" not in answer
            assert first["id"] == f"{answer['gen']}:{answer['off']}"
            mine = type(view)(view.topic)
            mine.adopt({**answer, "t": 0})
            last = ""
            while not mine.run(started["run"]).get("status") or len(mine.events) < 6:
                event = await sse.next()
                last = event["id"]
                body = json.loads(event["data"])
                assert "t" not in body
                assert last == f"{answer['gen']}:{body['o']}"
                assert mine.take(body)
        async with http.stream("GET", f"/events/{view.topic}?gen=x&off=1", headers={"last-event-id": last}) as response:
            sse = Sse(response)
            answer = json.loads((await sse.next())["data"])
            assert (answer["mode"], answer["off"]) == ("replay", mine.cur), "Last-Event-ID wins"
            while mine.run(started["run"])["status"] != "done":
                assert mine.take(json.loads((await sse.next())["data"]))
        await client.done(view, started["run"])
        await check_state(common.url, view.topic, view, mine)
        async with http.stream("GET", f"/events/{view.topic}?gen=other&off=2") as response:
            answer = json.loads((await Sse(response).next())["data"])
            assert (answer["mode"], answer["lost"]) == ("snapshot", {"gen": "other", "from": 2})
        assert (await http.get(f"/events/{view.topic}?off=x")).status_code == 400
        assert (await http.get("/events/conv:none")).status_code == 404
