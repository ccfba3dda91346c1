"""Readers that are slow, gone or asleep, and what the others notice of it (RELIABILITY F10, F11, F16)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.harness import FULL, Client, Hub, Proxy, check_state, until

RATE = 2000
PADDING = 10 if FULL else 60  # characters more in each token, so that the kernel's buffers are full soon
SECONDS = 20 if FULL else 3


class Clock:
    """How long a client waits for an answer, again and again, while something else goes on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.waits: list[float] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await self._client.call("user.me")
            self.waits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)

    async def stop(self) -> float:
        """Gives the 99th percentile in ms."""
        self._task.cancel()
        await asyncio.wait({self._task})
        self.waits.sort()
        return self.waits[int(len(self.waits) * 0.99)] * 1000


async def stream(hub: Hub, proxy: Proxy | None) -> tuple[int, float, Client | None]:
    """A run at full speed, with or without a client that never reads; gives peak RSS in KiB and p99 in ms."""
    async with Client(hub.url, "maker") as maker, Client(hub.url, "other") as other:
        never: Client | None = None
        started, view = await maker.say(f"flood {RATE * SECONDS} {RATE} {PADDING}")
        if proxy is not None:
            never = Client(proxy.url, "never")
            never.keep()
            await never.online.wait()
            await never.follow(view.topic)
            proxy.stalled.add("s2c")
        clock = Clock(other)
        peak = 0
        deadline = time.monotonic() + SECONDS + 20
        while view.run(started["run"]).get("status") != "done":
            assert time.monotonic() < deadline, "the run is held up"
            peak = max(peak, hub.rss_kib())
            await asyncio.sleep(0.05)
        p99 = await clock.stop()
        await check_state(hub.url, view.topic, view)
        if never is None:
            return peak, p99, None
        assert maker.connects == other.connects == 1
        return peak, p99, never


async def test_a_client_that_never_reads_costs_little_and_is_freed(make_hub: Callable[..., Hub]) -> None:
    # the two runs have a hub each: what a run leaves behind in the allocator would help or hurt the second
    stall = "10000" if FULL else "2000"
    base, base_p99, _ = await stream(make_hub(SAG_STALL_MS=stall), None)
    hub = make_hub(SAG_STALL_MS=stall)
    async with Proxy(hub.port, rcvbuf=4096) as proxy:
        began = time.monotonic()
        peak, p99, never = await stream(hub, proxy)
        assert never is not None
        try:
            assert peak - base <= 2048, f"RSS {peak} KiB with a reader that stalls, {base} KiB without"
            print(f"never reads: RSS {peak - base:+d} KiB; p99 {p99:.1f} ms with it, {base_p99:.1f} ms without")
            assert p99 <= max(50.0, 2 * base_p99), f"p99 {p99:.1f} ms with it, {base_p99:.1f} ms without"
            async with hub.http() as http:

                async def freed() -> bool:
                    return bool((await http.get("/health")).json()["connections"] == 0)

                while not await freed():
                    assert time.monotonic() - began < SECONDS + 15, "the stalled connection is not freed"
                    await asyncio.sleep(0.05)
            topic = next(iter(never.views))
            view = never.views[topic]
            behind = view.cur
            proxy.stalled.clear()
            await until(lambda: never.connects == 2 and never.online.is_set(), "the way back")
            await check_state(hub.url, topic, view)
            assert view.modes[-1] == "replay"
            assert view.cur > behind
        finally:
            await never.close()


async def test_a_slow_reader_catches_up_in_merged_frames_and_stays(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_PING_EVERY_MS="1000", SAG_PING_TIMEOUT_MS="1500", SAG_TICK_MS="10")
    async with Proxy(hub.port, rcvbuf=4096) as proxy, Client(hub.url, "maker") as maker:
        slow = Client(proxy.url, "slow")
        await slow.connect()
        started, view = await maker.say("flood 4000 4000 200")
        seen = await slow.follow(view.topic)
        proxy.stalled.add("s2c")
        await asyncio.sleep(1.2)
        proxy.stalled.clear()
        await maker.done(view, started["run"])
        await check_state(hub.url, view.topic, seen, view)
        assert slow.connects == 1
        assert slow.code is None
        merged = [e for e in seen.events if e["e"] == "delta" and "p" in e]
        assert merged, "what it missed came in larger frames"
        assert len(seen.events) < len(view.events)
        await slow.close()


async def read_slowly(hub: Hub, rate: int, rcvbuf: int, timeout_s: float) -> None:
    """One reader that is slower than the stream, to its end."""
    async with Proxy(hub.port, rcvbuf=rcvbuf) as proxy, Client(hub.url, "maker") as maker:
        proxy.rate = rate
        slow = Client(proxy.url, "slow")
        await slow.connect()
        started, view = await maker.say("flood 4000 4000 180")
        seen = await slow.follow(view.topic)
        began = time.monotonic()
        await maker.done(view, started["run"])
        try:
            await until(
                lambda: slow.code is not None or seen.run(started["run"]).get("status") == "done", "its end", timeout_s
            )
            assert slow.code is None, f"thrown out with {slow.code} after {time.monotonic() - began:.0f} s"
            assert time.monotonic() - began > 1.5, "it was not slow"
            await check_state(hub.url, view.topic, seen, view)
            assert any("p" in e for e in seen.events)
        finally:
            slow.cut()
            await slow.close()


async def test_a_reader_that_is_slower_than_the_stream_is_not_thrown_out(make_hub: Callable[..., Hub]) -> None:
    # so slow that a ping waits in the buffers for several times as long as a pong may take
    hub = make_hub(SAG_PING_EVERY_MS="300", SAG_PING_TIMEOUT_MS="300", SAG_STALL_MS="4000")
    await read_slowly(hub, 250_000, 16_384, 40)


@pytest.mark.timeout(600 if FULL else 60)
async def test_a_reader_with_a_small_window_is_not_taken_for_one_that_stalls(make_hub: Callable[..., Hub]) -> None:
    if FULL:
        await read_slowly(make_hub(), 2048, 4096, 500)
        return
    hub = make_hub(SAG_STALL_MS="4000")
    async with Proxy(hub.port, rcvbuf=4096) as proxy, Client(hub.url, "maker") as maker:
        proxy.rate = 8192
        async with Client(proxy.url, "slow") as slow:
            started, view = await maker.say("flood 4000 4000 180")
            await slow.follow(view.topic)
            await maker.done(view, started["run"])
            end = time.monotonic() + 10  # more than twice as long as one that takes nothing would be kept
            while time.monotonic() < end:
                assert slow.code is None, f"thrown out with {slow.code}"
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("ways", [("c2s",), ("s2c",), ("c2s", "s2c")])
async def test_a_half_open_connection_is_found_and_the_run_goes_on(
    make_hub: Callable[..., Hub], ways: tuple[str, ...]
) -> None:
    hub = make_hub(SAG_PING_EVERY_MS="300", SAG_PING_TIMEOUT_MS="300", SAG_STALL_MS="1000")
    async with Proxy(hub.port, rcvbuf=4096) as proxy:
        client = Client(proxy.url)
        await client.connect()
        started, view = await client.say("flood 1200 600")
        await until(lambda: view.named("delta"), "the stream")
        proxy.stalled.update(ways)  # type: ignore[arg-type]
        async with hub.http() as http:
            began = time.monotonic()
            while (await http.get("/health")).json()["connections"]:
                assert time.monotonic() - began < 8, "the hub does not notice"
                await asyncio.sleep(0.02)
        if "c2s" in ways:
            await until(lambda: "4002 no pong" in hub.log())  # which is written by a thread of its own
        if ways == ("c2s",):
            assert await client.closed() == 4002
        client.cut()  # its own deadline has passed
        await client.closed()
        proxy.stalled.clear()
        await client.connect()
        assert client.hello["topics"][view.topic]["mode"] == "replay"
        await client.done(view, started["run"])
        await check_state(hub.url, view.topic, view)
        await client.close()


async def test_reading_goes_on_while_a_run_works(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_PING_EVERY_MS="400", SAG_PING_TIMEOUT_MS="400")
    async with Client(hub.url) as client:
        started, view = await client.say("hang")
        await until(lambda: view.text(started["run"]), "the stream")
        waits = []
        deadline = time.monotonic() + (30 if FULL else 2.5)
        value = 0
        while time.monotonic() < deadline:
            value += 1
            began = time.monotonic()
            patch = {"temperature": (value % 20) / 10}
            await client.call("config.patch", scope=f"run:{started['run']}", patch=patch)
            waits.append(time.monotonic() - began)
            client.send({"ping": value})
            await asyncio.sleep(0.02)
        assert max(waits) < 0.1, f"a patch was answered after {max(waits) * 1000:.0f} ms"
        pings = [f for f in client.frames if "ping" in f]
        assert len(pings) >= 4
        began = time.monotonic()
        await client.call("run.cancel", run=started["run"])
        assert time.monotonic() - began < 0.1
        await client.done(view, started["run"], "cancelled")
        assert client.connects == 1
        await check_state(hub.url, view.topic, view)
