"""Who may call a model's server now: a limiter for each model under a key, a circuit breaker for each server.

All runs share them, so that fifty runs that meet a rate limit do not ask fifty times over. Pure but for timers.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable

from sag.hooks.provider import ProviderError

LONGEST_S = 60.0
WINDOW = 16
CALM = 4
BREAK_AFTER = 5
BREAK_S = (1.0, 30.0)


class Ticket:
    """One call that the limiter let through. Tell it what became of the call; then and in any case `leave`."""

    __slots__ = ("_gate", "_left", "_period")

    def __init__(self, gate: Gate, period: int) -> None:
        self._gate, self._period, self._left = gate, period, False

    def answered(self) -> None:
        """The server has begun to answer."""
        if not self._left:
            self._left = True
            self._gate._answer(self._period)

    def limited(self, after_s: float | None) -> None:
        """The server refuses for now, and says for how long, or does not."""
        self._gate._limit(after_s, self._period)
        self.leave()

    def leave(self) -> None:
        """The call is over."""
        if not self._left:
            self._left = True
            self._gate._leave()


class Gate:
    """Lets calls through as fast as the server takes them.

    As long as nothing is refused, so many calls may be unanswered at a time as were answered before, `WINDOW` at first;
    the answers set the pace, as in TCP. When one is refused, all wait as long as the server asks; after that no more
    go out in each such span than were answered in the last, and a quarter more each time while that goes well. With
    that a server gets at most one and a half times the calls that it allows (reliability F27), the first rush included.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._window = WINDOW
        self._out = 0
        self._waiting: deque[asyncio.Future[Ticket]] = deque()
        self._returning: deque[asyncio.Future[Ticket]] = deque()  # were refused, and go first
        self._timer: asyncio.TimerHandle | None = None
        self._opens = 0.0
        self._strikes = 0
        self._refused: tuple[str, float] | None = None  # words, and until when
        self._period = 0
        self._period_s = 0.0
        self._period_ends = 0.0
        self._quota: int | None = None
        self._begun = self._answers = self._calm = self._proven = self._grown = 0

    async def enter(self, tell: Callable[[float | None], None], *, again: bool = False) -> Ticket:
        """Wait for one's turn.

        Args:
            tell: Is called before a wait, with about how many seconds it takes, or None.
            again: It was refused before, so it goes first: the last ones of a span are those who may be refused.

        Raises:
            ProviderError: provider.rate_limit, where the server asks for more than a minute, or the turn did not come
                in a minute besides what the server asks for.
        """
        if self._refused is not None and self._loop.time() < self._opens:
            raise self._refuse(*self._refused)
        if not self._returning and not self._waiting and self._blocked_s() is None:
            return self._begin()
        turn: asyncio.Future[Ticket] = self._loop.create_future()
        line = self._returning if again else self._waiting
        line.append(turn)
        began = self._loop.time()
        try:
            blocked_s = self._pump()
            if not turn.done():
                tell(blocked_s if blocked_s is not None and math.isfinite(blocked_s) else None)
            while not turn.done():
                # What the server asks for meanwhile is waited for besides, but not time and again.
                ends = min(max(began, self._opens), began + 2 * LONGEST_S) + LONGEST_S
                if (left_s := ends - self._loop.time()) <= 0:
                    text = f"So many calls wait for this model that the turn did not come within {ends - began:.0f} s."
                    raise ProviderError("provider.rate_limit", text, retry=False)
                await asyncio.wait({turn}, timeout=left_s)
            return turn.result()
        except BaseException:
            if turn.done() and turn.exception() is None:  # let through in the same moment
                turn.result().leave()
            raise
        finally:
            if turn in line:
                line.remove(turn)
                self._pump()

    @property
    def idle(self) -> bool:
        """Whether it holds nothing worth keeping."""
        now = self._loop.time()
        calm = self._quota is None or now > self._period_ends + CALM * self._period_s
        return not self._out and not self._returning and not self._waiting and calm and self._opens < now

    def _begin(self) -> Ticket:
        self._out += 1
        self._begun += 1
        return Ticket(self, self._period)

    def _blocked_s(self) -> float | None:
        """How long until another call may begin: None for now, infinity for as soon as one is answered."""
        now = self._loop.time()
        if now < self._opens:
            return self._opens - now
        self._refused = None
        if self._quota is not None and now >= self._period_ends:
            self._next_period(now)
        if self._quota is not None and self._begun >= self._quota:
            return self._period_ends - now
        return math.inf if self._out >= self._window else None

    def _next_period(self, now: float) -> None:
        assert self._quota is not None
        self._calm += 1
        if self._begun >= self._quota:
            self._quota += max(1, self._quota // 4)
        elif self._calm >= CALM:
            self._quota, self._period_s = None, 0.0
        self._period_ends = now + self._period_s
        self._begun = self._answers = 0

    def _pump(self) -> float | None:
        """Let through who may go."""
        while line := self._returning or self._waiting:
            blocked_s = self._blocked_s()
            if blocked_s is not None:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if math.isfinite(blocked_s):
                    self._timer = self._loop.call_later(blocked_s + 0.001, self._pump)
                return blocked_s
            turn = line.popleft()
            if not turn.done():
                turn.set_result(self._begin())
        return None

    def _answer(self, period: int) -> None:
        self._out -= 1
        if period == self._period:
            self._strikes = 0
            self._answers += 1
        elif self._quota is not None and period == self._period - 1:
            # A refusal is quicker than an answer, so most answers of the span before come after it.
            self._proven += 1
            self._quota = max(self._quota, self._proven)
        self._grown += 1
        self._window = min(max(self._window, self._grown), 4096)
        self._pump()

    def _leave(self) -> None:
        self._out -= 1
        self._pump()

    def _limit(self, after_s: float | None, period: int) -> None:
        now = self._loop.time()
        if period == self._period:  # the first refusal since the gate opened; the others went out before it came
            self._period += 1
            self._strikes += 1
            if self._answers or self._quota is None:  # else it is not open yet, which says nothing of how much it takes
                self._proven = self._answers
                self._quota = max(1, self._answers)
            # Where it does not say when it opens, one call at a time finds that out.
            self._window = 1 if after_s is None else max(1, min(self._window, self._answers))
            self._calm = self._begun = self._answers = self._grown = 0
        wait_s = min(8.0, 0.25 * 2.0**self._strikes) if after_s is None else after_s
        if wait_s > LONGEST_S:
            self._refused = f"The model's server asks to wait for {_words(wait_s)}.", now + wait_s
            wait_s = LONGEST_S
            for line in (self._returning, self._waiting):
                for turn in line:
                    if not turn.done():
                        turn.set_exception(self._refuse(*self._refused))
                line.clear()
        self._opens = max(self._opens, now + wait_s * random.uniform(1.0, 1.1))
        self._period_s = max(0.5, wait_s, self._period_s)  # what is told is the rest of the server's span
        self._period_ends = self._opens + self._period_s

    def _refuse(self, text: str, until: float) -> ProviderError:
        return ProviderError("provider.rate_limit", text, after_s=until - self._loop.time(), retry=False)


class Breaker:
    """Keeps calls from a server that does not answer.

    After `BREAK_AFTER` failures in a row it is left alone for a while, then one call at a time tries if it is back.
    """

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._failures = 0
        self._opens = 0.0
        self._pause_s = BREAK_S[0]
        self._probing = False

    def enter(self) -> bool:
        """Before a call; gives whether it is the one that tries.

        Raises:
            ProviderError: provider.unreachable, with the time after which to try again.
        """
        if self._failures < BREAK_AFTER:
            return False
        left_s = self._opens - self._now()
        if left_s > 0 or self._probing:
            text = "The model's server has not answered lately."
            raise ProviderError("provider.unreachable", text, after_s=max(left_s, 0.5))
        self._probing = True
        return True

    def answered(self) -> None:
        """The server answered, be it with an error."""
        self._failures, self._pause_s, self._probing = 0, BREAK_S[0], False

    def failed(self, tries: bool) -> None:
        """The server could not be reached, or did not answer; `tries` is what `enter` gave."""
        if not tries and self._failures >= BREAK_AFTER:
            return  # it began before the server was left alone
        self._failures += 1
        self.left(tries)
        if self._failures >= BREAK_AFTER:
            self._opens = self._now() + self._pause_s
            self._pause_s = min(self._pause_s * 2, BREAK_S[1])

    def left(self, tries: bool) -> None:
        """The call is over, whether or not it could tell."""
        if tries:
            self._probing = False


class Gates:
    """The limiters by a model's full name, the breakers by a provider's."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}
        self._breakers: dict[str, Breaker] = {}

    def gate(self, model: str) -> Gate:
        """The limiter of a model."""
        gate = self._gates.get(model)
        if gate is None:
            if len(self._gates) >= 256:
                self._gates = {name: one for name, one in self._gates.items() if not one.idle}
            gate = self._gates[model] = Gate()
        return gate

    def breaker(self, provider: str) -> Breaker:
        """The breaker of a provider's server."""
        breaker = self._breakers.get(provider)
        if breaker is None:
            breaker = self._breakers[provider] = Breaker()
        return breaker


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
