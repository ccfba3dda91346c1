"""Who may call a model's server now."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from sag.engine import gate as gates
from sag.engine.gate import WINDOW, Breaker, Gate, Gates, Ticket
from sag.hooks.provider import ProviderError


class Vendor:
    """Lets `allowed` calls through in each span of `span_s`, and refuses the others for the rest of it.

    Refusals come after 0.02 s, answers after `answers_s`.
    """

    def __init__(self, allowed: int, span_s: float, tells: bool = True, answers_s: float = 0.02) -> None:
        self.allowed, self.span_s, self.tells, self.answers_s = allowed, span_s, tells, answers_s
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.calls: Counter[int] = Counter()

    async def call(self) -> float | None:
        """How long to wait; None for an answer."""
        passed = self.loop.time() - self.began
        span = int(passed / self.span_s)
        self.calls[span] += 1
        counted = self.calls[span]
        await asyncio.sleep(self.answers_s if counted <= self.allowed else 0.02)
        if counted <= self.allowed:
            return None
        return (span + 1) * self.span_s - passed if self.tells else -1.0


async def run(gate: Gate, call: Callable[[], Awaitable[float | None]], tries: int = 100) -> int:
    """One run: asks until it is answered; gives how often it asked."""
    for number in range(1, tries + 1):
        ticket = await gate.enter(lambda _: None, again=number > 1)
        wait_s = await call()
        if wait_s is None:
            ticket.answered()
            return number
        ticket.limited(wait_s if wait_s >= 0 else None)
    raise AssertionError("never answered")


async def test_without_refusals_calls_go_out_as_answers_come_in() -> None:
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]
    told: list[float | None] = []
    later = asyncio.ensure_future(gate.enter(told.append))
    await asyncio.sleep(0.01)
    assert (later.done(), told) == (False, [None])
    for ticket in tickets:
        ticket.answered()
    (await later).answered()
    more = [await gate.enter(lambda _: None) for _ in range(WINDOW + 1)]  # as many as were answered
    assert len(more) == WINDOW + 1
    assert gate._blocked_s() == math.inf


@pytest.mark.parametrize(("answers_s", "tells"), [(0.02, True), (0.2, True), (0.2, False)])
async def test_fifty_runs_do_not_stampede_a_vendor_that_limits_the_rate(answers_s: float, tells: bool) -> None:
    vendor, gate = Vendor(10, 0.5, tells, answers_s), Gate()
    asked = await asyncio.gather(*(run(gate, vendor.call) for _ in range(50)))
    spans = max(vendor.calls) + 1
    assert sum(vendor.calls.values()) == sum(asked)
    assert sum(vendor.calls.values()) <= 1.5 * vendor.allowed * spans
    assert max(asked) <= 3
    assert spans <= 12, "and it does not take much longer than it has to"
    assert gate._out == 0


async def test_a_vendor_that_tells_no_time_is_left_alone_longer_each_time() -> None:
    gate = Gate()
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(3):
        ticket = await gate.enter(lambda _: None)
        times.append(loop.time())
        ticket.limited(None)
    first, second = times[1] - times[0], times[2] - times[1]
    assert 0.5 <= first <= 0.7
    assert 1.0 <= second <= 1.3


async def test_negative_and_zero_waits_are_no_reason_to_stop() -> None:
    gate = Gate()
    for wait_s in (0.0, 0.0):
        ticket = await gate.enter(lambda _: None)
        ticket.limited(wait_s)
    async with asyncio.timeout(1.0):
        await gate.enter(lambda _: None)


async def test_a_wait_of_hours_fails_the_others_at_once() -> None:
    gate = Gate()
    ticket = await gate.enter(lambda _: None)
    ticket.limited(1e9)
    for _ in range(3):
        with pytest.raises(ProviderError) as raised:
            async with asyncio.timeout(0.1):
                await gate.enter(lambda _: None)
        assert (raised.value.kind, raised.value.retry) == ("provider.rate_limit", False)
        assert "h" in raised.value.message


async def test_a_turn_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONGEST_S", 0.05)
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]
    with pytest.raises(ProviderError) as raised:
        await gate.enter(lambda _: None)
    assert raised.value.kind == "provider.rate_limit"
    tickets[0].leave()
    async with asyncio.timeout(0.1):
        await gate.enter(lambda _: None)


async def test_the_longest_wait_that_is_honoured_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONGEST_S", 0.3)
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]
    waiting = asyncio.ensure_future(gate.enter(lambda _: None))
    await asyncio.sleep(0.1)
    for ticket in tickets:
        ticket.limited(0.3)
    async with asyncio.timeout(1.0):
        await waiting


async def test_no_more_than_three_minutes_are_waited_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONGEST_S", 0.1)
    gate = Gate()
    ticket = await gate.enter(lambda _: None)
    ticket.limited(0.1)
    began = gate._loop.time()
    waiting = asyncio.ensure_future(gate.enter(lambda _: None))
    while not waiting.done():
        await asyncio.sleep(0.02)
        ticket.limited(0.1)
        assert gate._loop.time() - began < 1.0
    assert isinstance(waiting.exception(), ProviderError)
    assert gate._loop.time() - began >= 0.3
    assert (gate._out, len(gate._waiting) + len(gate._returning)) == (0, 0)


async def test_who_is_cancelled_while_waiting_takes_no_turn() -> None:
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]
    waiting = [asyncio.ensure_future(gate.enter(lambda _: None)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    tickets[0].leave()
    waiting[1].cancel()  # its turn has come in this very moment
    async with asyncio.timeout(0.1):
        await waiting[2]


async def test_leaving_twice_counts_once() -> None:
    gate = Gate()
    ticket = await gate.enter(lambda _: None)
    ticket.answered()
    ticket.leave()
    ticket.leave()
    assert gate._out == 0


async def test_the_breaker_opens_after_five_failures_and_one_call_tries_whether_it_is_over() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(breaker.enter())
    late = [breaker.enter() for _ in range(20)]
    breaker.failed(breaker.enter())
    with pytest.raises(ProviderError) as raised:
        breaker.enter()
    assert raised.value.kind == "provider.unreachable"
    assert raised.value.after_ms is not None
    assert 0 < raised.value.after_ms <= 1000
    for tries in late:  # they began before
        breaker.failed(tries)
        breaker.left(tries)
    await asyncio.sleep(raised.value.after_ms / 1000 + 0.02)
    tries = breaker.enter()
    assert tries
    for other in late:
        breaker.failed(other)
        breaker.left(other)
        with pytest.raises(ProviderError):
            breaker.enter()  # one at a time
    breaker.failed(tries)
    with pytest.raises(ProviderError) as again:
        breaker.enter()
    assert again.value.after_ms is not None
    assert 1000 < again.value.after_ms <= 2000, "it is left alone for longer"


async def test_an_answer_closes_the_breaker() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(breaker.enter())
    breaker.answered()
    for _ in range(4):
        breaker.failed(breaker.enter())
    assert breaker.enter() is False


async def test_a_wait_of_hours_fails_those_who_wait_already(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]
    waiting = [asyncio.ensure_future(gate.enter(lambda _: None)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    tickets[0].limited(7200)
    async with asyncio.timeout(0.1):
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(e, "kind", None) for e in done] == ["provider.rate_limit", None, "provider.rate_limit"]
    assert (gate._out, len(gate._waiting) + len(gate._returning)) == (WINDOW - 1, 0)


async def test_a_loop_that_stood_still_loses_no_place_and_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONGEST_S", 0.1)
    gate = Gate()
    ticket = await gate.enter(lambda _: None)
    ticket.limited(0.05)
    waiting = [asyncio.ensure_future(gate.enter(lambda _: None)) for _ in range(3)]
    await asyncio.sleep(0)
    time.sleep(0.3)  # the turn and the end of the patience are due in the same moment
    done = await asyncio.gather(*waiting, return_exceptions=True)
    through = [one for one in done if isinstance(one, Ticket)]
    assert len(through) == 1, "one was answered before, so one may go"
    assert gate._out == len(through)
    for one in through:
        one.leave()
    assert (gate._out, len(gate._waiting) + len(gate._returning)) == (0, 0)


async def test_a_wait_that_cannot_be_told_takes_no_place() -> None:
    gate = Gate()
    tickets = [await gate.enter(lambda _: None) for _ in range(WINDOW)]

    def tell(_: float | None) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await gate.enter(tell)
    tickets[0].leave()
    assert (gate._out, len(gate._waiting) + len(gate._returning)) == (WINDOW - 1, 0)


async def test_limiters_that_nobody_needs_are_dropped_though_their_server_limited_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Gates()
    for n in range(400):
        ticket = await made.gate(f"a/{n}").enter(lambda _: None)
        ticket.limited(0.0)
    now = asyncio.get_running_loop().time() + 60
    for gate in made._gates.values():
        monkeypatch.setattr(gate, "_loop", SimpleNamespace(time=lambda: now))
    made.gate("a/one more")
    assert len(made._gates) == 1
