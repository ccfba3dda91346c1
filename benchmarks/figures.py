"""The figures. Each takes the servers in turn, several times, and gives the values of every round."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from msgspec import Struct, field

from benchmarks.client import Asker, SagClient, drop_sockets, expected, make_asker, open_socket
from benchmarks.process import (
    Server,
    free_port,
    is_healthy,
    make_bare,
    make_litellm,
    make_raw,
    make_sag,
    make_sdk,
    peers_python,
)
from benchmarks.upstream import Upstream

SETTLE_S = 1.0
SLOW_ROUNDS = 3


class Size(Struct):
    """How much is done."""

    rounds: int = 5
    streams: int = 100
    asks: int = 10
    tokens: int = 96
    flood_tokens: int = 256
    flood_rounds: int = 31
    flood_replies: int = 100
    sockets: int = 1000
    events: int = 60
    messages: int = 20_000
    starts: int = 5
    stall_s: float = 8.0
    settle_s: float = SETTLE_S


QUICK = Size(rounds=3, tokens=48, flood_rounds=6, flood_replies=50, events=20, messages=5_000, starts=3, stall_s=3.0)


class Figure(Struct):
    """What was measured of one thing.

    Attributes:
        name: What.
        unit: Of the values.
        values: Of each server, one a round.
        base: The server that the others are compared with.
        within: The hub's middle may not be above so many times that of these servers, as far as they are there.
        limit: Nor above this.
        note: What has to be said about it.
    """

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    base: str = ""
    within: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    note: str = ""

    def add(self, server: Server, value: float) -> None:
        self.values.setdefault(server.name, []).append(value)

    def middle(self, server: str) -> float:
        """The mean of the middle half of the rounds.

        A machine that is shared has two paces, and a median jumps from one to the other.
        """
        values = sorted(self.values[server])
        cut = len(values) // 4
        return statistics.mean(values[cut : len(values) - cut])

    @property
    def is_met(self) -> bool | None:
        """Whether the hub is within its limits; None where there are none."""
        present = {name: times for name, times in self.within.items() if name in self.values}
        met = [self.middle("sag") <= times * self.middle(name) for name, times in present.items()]
        met += [self.middle("sag") <= self.limit] if self.limit is not None else []
        return all(met) if met else None


@contextlib.asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[Sequence[Server]]:
    """The servers started; at the end all sockets are dropped and the servers stopped."""
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(server) for server in servers]
        finally:
            drop_sockets()
            await asyncio.sleep(0.1)


async def relay(size: Size) -> list[Figure]:
    """Tokens from a model's server to sockets: all streams are asked at the same instant, then paced at 50 tokens/s."""
    figure = Figure(f"relay, CPU per token, {size.streams} streams", "µs", base="raw", within={"bare": 1})
    async with (
        Upstream() as upstream,
        running(make_sag(upstream.url), make_raw(upstream.url), make_bare(upstream.url)) as servers,
    ):
        askers = {server.name: [make_asker(server) for _ in range(size.streams)] for server in servers}
        for server in servers:
            await asyncio.gather(*(asker.open() for asker in askers[server.name]))
        for number in range(size.rounds + 1):
            upstream.tokens = size.tokens if number else 4  # the first round warms up
            for server in servers:
                before = server.cpu_s()
                answers = await asyncio.gather(*(asker.ask() for asker in askers[server.name]))
                await asyncio.sleep(0.1)
                used = server.cpu_s() - before
                if any(text != expected(upstream.tokens) for _, text in answers):
                    raise RuntimeError(f"{server.name}: an answer came otherwise than it was sent")
                if number:
                    figure.add(server, used / (size.streams * size.tokens) * 1e6)
    return [figure]


async def ttft(size: Size) -> list[Figure]:
    """From the question to the first token, of a model's server that answers at once: all of it is the relay's."""
    one = Figure("time to first token, 1 stream", "ms", base="raw", limit=2.2)
    many = Figure(f"time to first token, {size.streams} at once", "ms", base="raw", limit=80.0)
    async with (
        Upstream(tokens=4) as upstream,
        running(make_sag(upstream.url), make_raw(upstream.url), make_bare(upstream.url)) as servers,
    ):
        askers = {server.name: [make_asker(server) for _ in range(size.streams)] for server in servers}
        for server in servers:
            await asyncio.gather(*(asker.open() for asker in askers[server.name]))
        for number in range(size.rounds + 1):
            for server in servers:
                first, *_ = askers[server.name]
                alone = [(await first.ask())[0] * 1e3 for _ in range(size.asks)]
                at_once = await asyncio.gather(*(asker.ask() for asker in askers[server.name]))
                if number:
                    one.add(server, statistics.median(alone))
                    many.add(server, statistics.median(seconds for seconds, _ in at_once) * 1e3)
    return [one, many]


async def flood(size: Size) -> list[Figure]:
    """Tokens as fast as the server takes them: the hub with its journal on, beside what others build on."""
    within = {"raw": 2, "openai-sdk": 0.1, "litellm": 0.1}
    counts = sorted({1, min(10, size.streams), size.streams})
    figures = [Figure(f"flood, CPU per token, {n} streams", "µs", base="raw", within=within) for n in counts]
    makes: list[Callable[[str], Server]] = [make_sag, make_raw, make_bare]
    if peers_python():
        makes += [make_sdk, make_litellm]
    else:
        for figure in figures:
            figure.note = "without openai-sdk and litellm: scripts/peers installs them"
    async with (
        Upstream(tokens=size.flood_tokens, every_s=0) as upstream,
        running(*(make(upstream.url) for make in makes)) as servers,
    ):
        askers = {server.name: [make_asker(server) for _ in range(size.streams)] for server in servers}
        for server in servers:
            await asyncio.gather(*(asker.open() for asker in askers[server.name]))
        for count, figure in zip(counts, figures, strict=True):
            # A machine's pace changes by the minute, so rounds are many and short, and everybody goes first in turn.
            for number in range(size.flood_rounds + 1):
                first = number % len(servers)
                for server in (*servers[first:], *servers[:first]):
                    # Where a token costs fifty times as much, fewer of them are measured as well.
                    slow = server.name in ("openai-sdk", "litellm")
                    if slow and number > SLOW_ROUNDS:
                        continue
                    replies = max(1 if slow else 2, size.flood_replies // (3 * count if slow else count))
                    chosen = askers[server.name][:count]
                    before = server.cpu_s()
                    await asyncio.gather(*(_ask_often(server, asker, replies, upstream.tokens) for asker in chosen))
                    await asyncio.sleep(0.1)
                    used = server.cpu_s() - before
                    if number:
                        figure.add(server, used / (count * replies * upstream.tokens) * 1e6)
    return figures


async def _ask_often(server: Server, asker: Asker, times: int, tokens: int) -> None:
    for _ in range(times):
        _, text = await asker.ask()
        if text != expected(tokens):
            raise RuntimeError(f"{server.name}: an answer came otherwise than it was sent")


async def fanout(size: Size) -> list[Figure]:
    """One event of about 120 bytes to everybody, the next one when the last has it; so nothing can be merged."""
    figure = Figure(f"fan-out, CPU per delivery, {size.sockets} sockets", "µs", base="raw", within={"bare": 1})
    async with Upstream(tokens=1) as upstream, running(make_sag(upstream.url), make_raw(), make_bare()) as servers:
        publishers = {}
        for server in servers:
            join = _join_sag if server.name == "sag" else _join_bare
            publishers[server.name] = await join(server, size.sockets)
        for number in range(size.rounds + 1):
            for server in servers:
                await asyncio.sleep(0.1)
                before = server.cpu_s()
                for _ in range(size.events):
                    await publishers[server.name]()
                if number:
                    figure.add(server, (server.cpu_s() - before) / (size.events * size.sockets) * 1e6)
    return [figure]


class _Crowd:
    """Counts frames of all sockets."""

    def __init__(self) -> None:
        self._left = 0
        self._event = asyncio.Event()

    def expect(self, count: int) -> None:
        self._left = count
        self._event.clear()

    def take(self, text: bytes) -> None:
        self._left -= 1
        if not self._left:
            self._event.set()
        elif self._left < 0:
            raise RuntimeError(f"more came than was sent: {text[:80]!r}")

    async def all_came(self) -> None:
        await asyncio.wait_for(self._event.wait(), 30)


async def _join_bare(server: Server, count: int) -> Callable[[], Awaitable[None]]:
    crowd = _Crowd()
    for _ in range(count):
        (await open_socket(server, "/fanout", crowd.take)).send(b"join")
    publisher = await open_socket(server, "/fanout", lambda _: None)
    text = (
        b'{"t":1,"o":1234,"e":"config","d":{"scope":"conv:c7","rev":1234,"patch":{"temperature":0.25},"by":"u1","x":1}}'
    )

    async def publish() -> None:
        crowd.expect(count)
        publisher.send(text)
        await crowd.all_came()

    return publish


async def _join_sag(server: Server, count: int) -> Callable[[], Awaitable[None]]:
    publisher = SagClient(server)
    await publisher.open()
    await publisher.ask()
    topic = f"conv:{publisher.conv}"
    await publisher.call("topic.unsubscribe", {"topic": topic})
    crowd = _Crowd()
    for number in range(count):
        subscriber = SagClient(server, f"crowd-{number}")
        await subscriber.open(topic)
        subscriber.hand_over(crowd.take)
    temperature = 0.0

    async def publish() -> None:
        nonlocal temperature
        temperature = (temperature + 0.25) % 2
        crowd.expect(count)
        await publisher.call("config.patch", {"scope": topic, "patch": {"temperature": temperature}})
        await crowd.all_came()

    return publish


async def idle(size: Size) -> list[Figure]:
    """Memory that a connection takes while nothing happens, after `hello` with one topic."""
    shared = Figure(f"memory per idle connection, {size.sockets}", "KiB", base="bare", limit=30.0)
    own = Figure("the same, each with a topic of its own", "KiB")
    async with running(make_sag(), make_bare(), make_sag()) as (sag, bare, other):
        for server, figure, topic in ((sag, shared, "user:me"), (bare, shared, ""), (other, own, "client:")):
            await _connect_idle(server, 10, topic, "warm")
            await asyncio.sleep(size.settle_s)
            before = server.memory_kib()
            await _connect_idle(server, size.sockets, topic, "idle")
            await asyncio.sleep(size.settle_s)
            figure.add(server, (server.memory_kib() - before) / size.sockets)
    return [shared, own]


async def _connect_idle(server: Server, count: int, topic: str, name: str) -> None:
    for number in range(count):
        if server.name == "sag":
            client = SagClient(server, f"{name}-{number}")
            await client.open(topic + client.name if topic.endswith(":") else topic)
        else:
            answered = asyncio.Event()
            sock = await open_socket(server, "/echo", _setter(answered))
            sock.send(b"hello")
            await asyncio.wait_for(answered.wait(), 10)


def _setter(event: asyncio.Event) -> Callable[[bytes], None]:
    return lambda _: event.set()


async def start(size: Size) -> list[Figure]:
    """From exec to the first answer of /health, and what is resident then while nothing happens."""
    seconds = Figure("start to the first answer", "s", base="bare", limit=1.0)
    memory = Figure("memory at rest", "MB", base="bare", limit=60.0)
    for _ in range(size.starts):
        for make in (make_sag, make_bare):
            server = make(port=free_port())
            began = time.monotonic()
            with server:
                while not is_healthy(server.port):
                    if time.monotonic() - began > 30:
                        raise RuntimeError(f"{server.name} does not answer")
                    await asyncio.sleep(0.002)
                seconds.add(server, time.monotonic() - began)
                await asyncio.sleep(size.settle_s)
                memory.add(server, server.memory_kib("Rss") / 1024)
    return [seconds, memory]


async def dispatch(size: Size) -> list[Figure]:
    """`user.me` and its answer beside an echo of 120 bytes; 64 sockets with one request each in flight."""
    figure = Figure("request and answer, CPU", "µs", base="bare")
    async with running(make_sag(), make_bare(), make_raw()) as servers:
        groups = {server.name: [await _open_echo(server) for _ in range(64)] for server in servers}
        for number in range(size.rounds + 1):
            for server in servers:
                before = server.cpu_s()
                each = size.messages // 64
                await asyncio.gather(*(exchange(each) for exchange in groups[server.name]))
                if number:
                    figure.add(server, (server.cpu_s() - before) / (each * 64) * 1e6)
    return [figure]


async def _open_echo(server: Server) -> Callable[[int], Awaitable[None]]:
    """A socket that sends a message again and again, each when the last is answered."""
    left = 0
    done: asyncio.Future[None]

    def send() -> None:
        sock.send(b'{"id":%d,"method":"user.me"}' % (100 + left) if server.name == "sag" else b"x" * 120)

    def take(text: bytes) -> None:
        nonlocal left
        left -= 1
        if left:
            send()
        else:
            done.set_result(None)

    async def exchange(count: int) -> None:
        nonlocal left, done
        left, done = count, asyncio.get_running_loop().create_future()
        send()
        await asyncio.wait_for(done, 60)

    if server.name == "sag":
        client = SagClient(server)
        await client.open()
        client.hand_over(take)
        sock = client.socket
    else:
        sock = await open_socket(server, "/echo", take)
    return exchange


async def stall(size: Size) -> list[Figure]:
    """The longest that one request waits beside idle sockets: what a garbage collection or a sweep would hold up."""
    longest = Figure(f"longest wait of a request beside {size.sockets} idle sockets", "ms", base="bare", limit=10.0)
    typical = Figure("the same, median", "ms", base="bare")
    async with running(make_sag(), make_bare()) as servers:
        for server in servers:
            await _connect_idle(server, size.sockets, "user:me", "idle")
        exchanges = {server.name: await _open_echo(server) for server in servers}
        for number in range(3):
            for server in servers:
                exchange = exchanges[server.name]
                waits = []
                until = time.monotonic() + (size.stall_s if number else 0.5)
                while time.monotonic() < until:
                    began = time.perf_counter()
                    await exchange(1)
                    waits.append((time.perf_counter() - began) * 1e3)
                if number:
                    longest.add(server, max(waits))
                    typical.add(server, statistics.median(waits))
    return [longest, typical]


FIGURES: dict[str, Callable[[Size], Awaitable[list[Figure]]]] = {
    "relay": relay,
    "flood": flood,
    "ttft": ttft,
    "fanout": fanout,
    "dispatch": dispatch,
    "idle": idle,
    "start": start,
    "stall": stall,
}
