"""The process: signals, limits, a disk that is full, a file that is locked, plugins and logs that block.

RELIABILITY F3, F4, F6, F14, F17, F18, F37, F38, F42, F44.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus

from tests.harness import FULL, Client, Hub, Proxy, Refused, check_state, new_key, until, upgrade_request

Json = dict[str, Any]
HI = [{"kind": "text", "text": "hi"}]


async def health(hub: Hub) -> httpx.Response:
    async with hub.http() as http:
        return await http.get("/health")


async def slowest_answer(client: Client, seconds: float) -> float:
    """How long all but one in a hundred of small answers take at most, in ms: whether the loop stands still."""
    waits, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.monotonic()
        await client.call("user.me")
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.005)
    return sorted(waits)[int(len(waits) * 0.99)] * 1000


# --- F3, F4: signals ---


async def test_sigterm_tells_everybody_waits_for_runs_and_interrupts_the_rest(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_DRAIN_S="1.2")
    crowd = [Client(hub.url, f"c{n}") for n in range(50)]
    await asyncio.gather(*(c.connect() for c in crowd))
    brief = [await c.say("flood 100 200") for c in crowd[:2]]
    long = [await c.say("hang") for c in crowd[2:5]]
    await until(lambda: all(view.text(run["run"]) for run, view in brief + long), "the streams")
    keyed: Json = {"conv": long[0][0]["conv"], "input": HI, "key": new_key()}
    hub.terminate()
    began = time.monotonic()
    await until(lambda: all(c.bye for c in crowd), "bye to all", 5)
    assert time.monotonic() - began < 0.25, "bye came late"
    byes = [c.bye or {} for c in crowd]
    assert {b["code"] for b in byes} == {4000}
    assert all(b["reconnect"] is True and 0 <= b["after_ms"] <= 10_000 for b in byes)
    assert len({b["after_ms"] for b in byes}) > 25, "the times to come back are spread"
    refused = await crowd[9].refused("run.start", **keyed)
    assert (refused.code, refused.kind, refused.data["retry"]) == (503, "draining", True)
    assert (await crowd[9].call("run.get", run=long[0][0]["run"]))["object"]["status"] == "running"
    with pytest.raises(InvalidStatus) as denied:
        await Client(hub.url).open()
    assert denied.value.response.status_code == 503
    assert int(denied.value.response.headers["retry-after"]) >= 1
    assert (await health(hub)).status_code == 503
    async with hub.http() as http:
        answer = await http.post("/rpc/run.start", json={"input": HI})
        assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) >= 1
    codes = await asyncio.gather(*(c.closed() for c in crowd))
    assert set(codes) == {4000}
    assert await hub.ended(3.2) == 0
    assert time.monotonic() - began < 1.2 + 2
    for run, view in brief:
        assert view.run(run["run"])["status"] == "done", "it ended in time"
    for run, view in long:
        assert view.run(run["run"])["status"] == "interrupted"
    for client in crowd:
        await client.close()
    await hub.restart()
    async with Client(hub.url) as client:
        run, view = long[0]
        seen = await client.follow(view.topic)
        assert seen.run(run["run"])["status"] == "interrupted"
        await client.call("run.resume", run=run["run"])
        await until(lambda: seen.run(run["run"])["status"] == "running", "it goes on")
        await client.call("run.cancel", run=run["run"])
        await client.done(seen, run["run"], "cancelled")
        again = await client.call("run.start", **keyed)  # a refusal is not kept under the key
        await client.done(seen, again["run"])
        await check_state(hub.url, view.topic, seen)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(make_hub: Callable[..., Hub], first: signal.Signals) -> None:
    hub = make_hub(SAG_DRAIN_S="20")
    client = Client(hub.url)
    await client.connect()
    started, view = await client.say("hang")
    await until(lambda: view.text(started["run"]), "the stream")
    assert hub.process is not None
    hub.process.send_signal(first)
    await until(lambda: client.bye, "bye")
    began = time.monotonic()
    hub.process.send_signal(signal.SIGTERM)
    assert await hub.ended(5) == 0
    assert time.monotonic() - began <= 2
    assert view.run(started["run"])["status"] == "interrupted"
    await client.close()


async def test_neither_a_blocked_reader_nor_a_deaf_plugin_delays_the_end(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_DRAIN_S="0.2")
    async with Proxy(hub.port, rcvbuf=4096) as proxy, Client(hub.url) as maker:
        blocked = Client(proxy.url)
        await blocked.connect()
        started, view = await maker.say("flood 100000 3000 300")
        await blocked.follow(view.topic)
        proxy.stalled.add("s2c")
        deaf, _ = await maker.say("deaf")
        thread, seen = await maker.say('call probe_thread {"seconds": 30}')
        await until(lambda: seen.named("tool.open"), "the thread")
        await asyncio.sleep(1.0)
        hub.terminate()
        began = time.monotonic()
        assert await hub.ended(12) == 0
        assert time.monotonic() - began <= 0.2 + 7, "it took too long"
        blocked.cut()
        await blocked.close()
    await hub.restart()
    async with Client(hub.url) as client:
        for run in (started, deaf, thread):
            assert (await client.call("run.get", run=run["run"]))["object"]["status"] == "interrupted"


# --- F6: two hubs, other files ---


async def test_a_second_hub_on_the_same_folder_is_refused(make_hub: Callable[..., Hub], tmp_path: Path) -> None:
    hub = make_hub()
    second = make_hub(start=False, data=tmp_path / "elsewhere")
    second.data = hub.data
    began = time.monotonic()
    second.spawn()
    assert await second.ended(5) == 78
    assert time.monotonic() - began <= 1.5
    assert "another hub is using this data folder" in second.log()
    assert len(second.log().strip().splitlines()) == 1
    async with Client(hub.url) as client:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
    hub.kill()
    second.log_path.write_text("")
    await second.restart()  # the lock of one that was killed is taken over
    async with Client(second.url) as client:
        assert (await client.call("run.get", run=started["run"]))["object"]["status"] == "done"
    second.stop()


@pytest.mark.parametrize(("what", "code"), [("newer", 78), ("garbage", 74)])
async def test_a_file_that_cannot_be_served_is_refused_and_left_alone(
    make_hub: Callable[..., Hub], what: str, code: int
) -> None:
    hub = make_hub()
    hub.terminate()
    assert await hub.ended() == 0
    path = hub.data / "sag.db"
    if what == "newer":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        path.write_bytes(b"no database" * 1000)
    before = path.read_bytes()
    hub.spawn()
    assert await hub.ended(5) == code
    assert "Traceback" not in hub.log()
    assert path.read_bytes() == before


async def test_a_port_that_is_taken_is_told_in_one_line(make_hub: Callable[..., Hub], tmp_path: Path) -> None:
    hub = make_hub()
    second = make_hub(start=False, data=tmp_path / "elsewhere")
    second.port = hub.port
    second.spawn()
    assert await second.ended(5) == 78
    assert "cannot listen" in second.log()
    assert len(second.log().strip().splitlines()) == 1


# --- F14, F17, F18: too many, too slow ---


async def test_connections_over_a_limit_are_refused_and_the_others_stay(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub("[hub.limits]\nconnections = 4\nconnections_per_user = 3\n")
    inside = [Client(hub.url, f"c{n}") for n in range(3)]
    for client in inside:
        await client.connect()
    fourth = await Client(hub.url).open()
    refused = await fourth.refused("hello", **fourth.greeting())
    assert (refused.code, refused.kind) == (429, "connection.limit")
    assert refused.data["after_ms"] > 0
    assert await fourth.closed() == 4505
    async with hub.http() as http:
        while (await http.get("/health")).json()["connections"] > 3:
            await asyncio.sleep(0.01)
    waiting = await Client(hub.url).open()  # before hello it counts too
    with pytest.raises(InvalidStatus) as denied:
        await Client(hub.url).open()
    assert denied.value.response.status_code == 503
    assert int(denied.value.response.headers["retry-after"]) >= 1
    assert (await health(hub)).status_code == 200
    for client in inside:
        await client.call("user.me")
    waiting.cut()
    await waiting.close()
    await inside[0].cut_and_wait()
    again = Client(hub.url)
    for _ in range(100):
        try:
            await again.connect()
            break
        except (InvalidStatus, Refused):
            await asyncio.sleep(0.02)
    await again.call("user.me")
    for client in (again, *inside):
        await client.close()


async def test_connections_of_one_address_are_limited(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub("[hub.limits]\nconnections_per_address = 2\n")
    async with Client(hub.url), Client(hub.url) as second:
        with pytest.raises(InvalidStatus) as denied:
            await Client(hub.url).open()
        assert denied.value.response.status_code == 429
        await second.call("user.me")


async def test_a_client_that_sends_too_fast_is_4505(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub("[hub.limits]\nframes_per_s = 50\n")
    async with Client(hub.url, "calm") as calm:
        hasty = Client(hub.url, "hasty")
        await hasty.connect()
        for _ in range(400):
            hasty.send({"pong": 1})
        assert await hasty.closed() == 4505
        await calm.call("user.me")


async def test_those_who_dawdle_are_sent_away(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_HELLO_MS="500", SAG_HEAD_MS="700", SAG_BODY_MS="700")
    each = 125 if FULL else 10
    async with Client(hub.url) as client:
        baseline = hub.sockets()
        head = b"POST /rpc/user.me HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        starts = [b"", head[:30], upgrade_request(), head + b"Content-Length: 5000\r\n\r\n{"]
        answers: dict[bytes, list[bytes]] = {start: [] for start in starts}

        async def dawdle(start: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            writer.write(start)
            got = b""
            try:
                async with asyncio.timeout(8):
                    while data := await asyncio.wait_for(reader.read(4096), 8):
                        got += data
            except ConnectionError:
                pass
            finally:
                writer.close()
            answers[start].append(got)

        async def drip(start: bytes) -> None:
            """One byte now and then does not help."""
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            try:
                async with asyncio.timeout(8):
                    for n in range(len(start)):
                        writer.write(start[n : n + 1])
                        await writer.drain()
                        await asyncio.sleep(0.05)
                        if reader.at_eof():
                            return
                raise AssertionError("a head of a byte at a time was let through")
            except ConnectionError:
                return
            finally:
                writer.close()

        await asyncio.gather(*(dawdle(s) for s in starts for _ in range(each)), drip(head), drip(head))
        assert all(a.startswith(b"HTTP/1.1 101") and b"4502" in a for a in answers[upgrade_request()])
        assert all(b" 408 " in a.splitlines()[0] for a in answers[starts[3]])
        await until(lambda: hub.sockets() <= baseline, "the sockets come back", 6)
        await client.call("user.me")


async def test_without_file_descriptors_it_waits_quietly_and_recovers(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    async with Client(hub.url) as client, hub.http() as http:
        started, view = await client.say("flood 1200 300")
        await http.get("/health")
        hub.limit(resource.RLIMIT_NOFILE, hub.fds() + 8)
        crowd = []
        for _ in range(60):
            _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            crowd.append(writer)
        cpu = hub.cpu_s()
        logged = len(hub.log())
        wait_ms = await slowest_answer(client, 2.0)
        busy = (hub.cpu_s() - cpu) / 2.0
        assert busy < 0.35, f"a busy loop: {busy:.0%} of a CPU"
        assert wait_ms < 100
        assert hub.log().count("\n", logged) <= 5, "the log is flooded"
        patched = await client.call("config.patch", scope="client:fds", patch={"ui": {"a": 1}})
        assert patched["rev"] == 2, "the store keeps its files"
        for writer in crowd:
            writer.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                async with asyncio.timeout(2), Client(hub.url):
                    break
            except (OSError, TimeoutError, EOFError, InvalidHandshake):
                assert time.monotonic() < deadline, "it does not recover"
        await client.done(view, started["run"])
        hub.unlimit(resource.RLIMIT_NOFILE)
        await check_state(hub.url, view.topic, view)


# --- F37, F38: the store ---


async def test_a_full_disk_refuses_changes_and_nothing_else(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_TICK_MS="5")
    hub.forgive("cannot be closed yet")
    async with Client(hub.url, "one") as client, Client(hub.url, "two") as other:
        before, view = await client.say("hi")
        await client.done(view, before["run"])
        started, _ = await client.say("flood 20000 1500 100", before["conv"])
        seen = await other.follow(view.topic)
        await until(lambda: len(view.named("delta")) > 30, "the stream")
        biggest = max(f.stat().st_size for f in hub.data.iterdir())
        hub.limit(resource.RLIMIT_FSIZE, biggest + 40_000)

        async def full() -> Refused | None:
            try:
                await client.call("config.patch", scope="client:x", patch={"ui": {"x": new_key() * 50}})
            except Refused as refused:
                return refused
            return None

        deadline = time.monotonic() + 10
        while (refused := await full()) is None:
            assert time.monotonic() < deadline, "the disk is not full"
        assert (refused.code, refused.kind, refused.data["retry"]) == (507, "store.full", True)
        start = await client.refused("run.start", input=HI)
        assert start.code == 507
        await until(lambda: "cannot be closed yet: store.full" in hub.log(), "the run meets the full disk")
        async with hub.http() as http:
            assert (await http.get("/health")).status_code == 200
            answer = await http.post("/rpc/run.start", json={"input": HI})
            assert answer.status_code == 507
            upload = await http.post("/api/files?name=big", content=os.urandom(biggest + 200_000))
            assert upload.status_code == 507
            listed = await http.get("/api/conversations")
            assert listed.status_code == 200
        assert (await client.call("run.get", run=before["run"]))["object"]["status"] == "done"
        assert (await client.call("conversation.list"))["conversations"]
        hub.unlimit(resource.RLIMIT_FSIZE)
        run = await client.done(view, started["run"], "failed", 15)
        assert run["error"]["kind"] == "store.full"
        text = view.text(started["run"])
        assert text.startswith("w0x")
        after, _ = await client.say("after", before["conv"])
        await client.done(view, after["run"])
        answer = await client.call("config.patch", scope="client:y", patch={"ui": {"x": 1}})
        assert answer["rev"] == 2
        await check_state(hub.url, view.topic, view, seen)
        assert client.connects == other.connects == 1
        blobs = list((hub.data / "blobs").glob("*")) if (hub.data / "blobs").exists() else []
        assert blobs == [], "no half file"
    hub.kill()
    await hub.restart()
    async with Client(hub.url) as client:
        again = await client.follow(view.topic)
        assert again.text(started["run"]) == text


async def test_a_cancel_works_while_the_disk_is_full(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.forgive("cannot be closed yet")
    async with Client(hub.url) as client:
        started, view = await client.say("hang")
        await until(lambda: view.text(started["run"]), "the stream")
        biggest = max(f.stat().st_size for f in hub.data.iterdir())
        hub.limit(resource.RLIMIT_FSIZE, biggest)
        began = time.monotonic()
        try:
            await client.call("run.cancel", run=started["run"])
        except Refused as refused:
            assert refused.code == 507
        assert time.monotonic() - began < 2
        hub.unlimit(resource.RLIMIT_FSIZE)
        for _ in range(200):
            try:
                await client.call("run.cancel", run=started["run"])
            except Refused as refused:
                if refused.code == 409:
                    break
            await asyncio.sleep(0.02)
        run = await client.done(view, started["run"], None)
        assert run["status"] in ("cancelled", "failed")
        await check_state(hub.url, view.topic, view)


async def test_a_locked_file_is_503_in_time_and_the_loop_goes_on(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    async with Client(hub.url, "one") as client, Client(hub.url, "two") as other:
        started, view = await client.say("hi")
        await client.done(view, started["run"])
        db = sqlite3.connect(hub.data / "sag.db", isolation_level=None)
        try:
            db.execute("BEGIN EXCLUSIVE")
            await client.call("config.patch", scope=f"conv:{started['conv']}", patch={"top_p": 0.5})
            await asyncio.sleep(0.5)  # it is kept beside the database, which is found locked now
            began = time.monotonic()
            change = asyncio.create_task(
                client.refused("config.patch", scope=f"conv:{started['conv']}", patch={"temperature": 1})
            )
            worst = await slowest_answer(other, 3.0)
            assert worst < 50, f"the loop stood still for {worst:.0f} ms"
            assert (await other.call("run.list"))["runs"], "reading goes on"
            refused = await change
            assert (refused.code, refused.kind, refused.data["retry"]) == (503, "store.busy", True)
            assert time.monotonic() - began < 7
        finally:
            db.close()

        async def patched() -> bool:
            try:
                await client.call("config.patch", scope=f"conv:{started['conv']}", patch={"temperature": 1})
            except Refused as refused:
                assert refused.code == 503
                return False
            return True

        deadline = time.monotonic() + 5
        while not await patched():
            assert time.monotonic() < deadline, "it does not recover"
            await asyncio.sleep(0.02)
        await check_state(hub.url, view.topic, view)
        assert view.has["conv"]["rev"] == 3


# --- F42, F44: plugins and logs that block ---


async def test_a_plugin_that_holds_the_loop_is_named_and_nobody_is_lost(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.forgive("probe")
    seconds = 5.0 if FULL else 1.8
    async with Client(hub.url, topics=["hub"]) as client, Client(hub.url) as other:
        started, view = await client.say(f'call probe_block {{"seconds": {seconds}}}')
        await client.done(view, started["run"])
        await other.call("user.me")
        assert client.connects == other.connects == 1
        line = next(line for line in hub.log().splitlines() if "held the event loop" in line)
        assert "plugin probe" in line
        assert "probe_block" in line
        assert "time.sleep(seconds)" in hub.log(), "with the stack"
        hub.forgive("Traceback")
        topic = client.views["hub"]
        await until(lambda: topic.has["plugins"]["probe"].get("problems"), "the plugin's problem on the hub's topic")
        assert "held the event loop" in topic.has["plugins"]["probe"]["problems"][0]
        await check_state(hub.url, view.topic, view)
        await check_state(hub.url, "hub", topic)


@pytest.mark.parametrize("sink", ["blocked", "closed"])
async def test_a_log_sink_that_blocks_or_breaks_costs_nothing(make_hub: Callable[..., Hub], sink: str) -> None:
    hub = make_hub(start=False)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        hub.start(stderr=writer)
    finally:
        os.close(writer)
    if sink == "closed":
        os.close(reader)
    async with Client(hub.url) as client:
        started, view = await client.say("hi")

        async def noise() -> None:
            for _ in range(1500 if FULL else 150):  # each is a line of the log
                brief = await Client(hub.url).open()
                await brief.refused("hello", v=9, client={"id": "x"})
                await brief.closed()

        noisy = asyncio.gather(*(noise() for _ in range(2)))
        worst = await slowest_answer(client, 1.5)
        await noisy
        assert worst < 100, f"the loop stood still for {worst:.0f} ms"
        await client.done(view, started["run"])
        await check_state(hub.url, view.topic, view)
    hub.terminate()
    assert await hub.ended(6) == 0
    if sink == "blocked":
        os.close(reader)


async def test_memory_does_not_grow_with_repetition(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()

    async def crowd() -> None:
        clients = [Client(hub.url, f"c{n}", topics=["user:me", "hub"]) for n in range(60)]
        await asyncio.gather(*(c.connect() for c in clients))
        runs = await asyncio.gather(*(c.say("flood 30 0") for c in clients[:10]))
        for client, (run, view) in zip(clients, runs, strict=False):
            await client.done(view, run["run"])
        for client in clients:
            await client.cut_and_wait()
        async with hub.http() as http:
            while (await http.get("/health")).json()["connections"]:
                await asyncio.sleep(0.01)

    seen = []
    for _ in range(3):
        for _ in range(3):
            await crowd()
        seen.append(await hub.rpc("probe.look") | {"rss": hub.rss_kib(), "fds": hub.fds()})
    for kind in ("hub.connection.Connection", "hub.connection.Subscription", "web.server.HubSocketProtocol"):
        assert seen[-1]["objects"].get(f"sag.{kind}", 0) == 0
    assert seen[-1]["tasks"] == seen[0]["tasks"]
    assert seen[-1]["fds"] <= seen[0]["fds"] + 2
    assert seen[-1]["rss"] - seen[1]["rss"] <= 2048, [s["rss"] for s in seen]
