"""One model round on one model: tried until it is answered or given up.

Asks the limiter and the breaker first, waits where they or the vendor say so, and tries again what may come right by
itself. Waits are told as the run's status. What another model might do better is decided above, in `sag.engine.run`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from sag.engine.gate import LONGEST_S, Breaker, Ticket
from sag.engine.transport import Deadlines, Exchange
from sag.hooks.provider import ModelRequest, Provider, ProviderError
from sag.schema.ids import now_ms

if TYPE_CHECKING:
    from sag.engine.run import Run
    from sag.engine.writer import Ear, PartWriter
    from sag.hooks.kind import RunConfig

log = logging.getLogger("sag.engine")

UNREACHABLE_S = 30.0  # how long a server that cannot be reached is tried
SHOWN = 50  # characters of a prompt in the log, at level debug


class Attempts:
    """The attempts at one round.

    Args:
        run, step: Whose round it is.
        name, provider: The model's full name and who serves it.
        request: What is asked.
        config: The config that the step runs on.
        writer: Where the answer goes.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        name: str,
        provider: Provider,
        request: ModelRequest,
        config: RunConfig,
        writer: PartWriter | Ear,
    ) -> None:
        self._run, self._step, self._name, self._provider = run, step, name, provider
        self._request, self._config, self._writer = request, config, writer
        self._deadlines = Deadlines(first_token_s=config.first_token_s, gap_s=config.gap_s, total_s=config.total_s)
        self._gates = run._engine.gates
        self._loop = asyncio.get_running_loop()
        self._number = 1
        self._failure: ProviderError | None = None
        self._told = False

    async def run(self) -> Exchange:
        """Try until it is answered.

        Raises:
            ProviderError: It is given up.
            RunLimit, RunEnded: From the writer.
        """
        began = self._loop.time()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("run %s step %d: %s is asked %r", self._run.id, self._step, self._name, self._prompt())
        while True:
            try:
                return await self._try()
            except ProviderError as e:
                wait_s = _retry_wait_s(e, self._number)
                # The limiter knows how long to wait for these, and waits for all runs.
                limited = e.kind in ("provider.rate_limit", "provider.overloaded")
                left_s = UNREACHABLE_S - (self._loop.time() - began) if e.kind == "provider.unreachable" else LONGEST_S
                if not e.retry or self._number > self._config.retries or wait_s > left_s:
                    raise
                self._failure = e
                self._number += 1
                await self._void()
                if not limited:
                    if e.after_ms is not None:
                        wait_s *= random.uniform(1.0, 1.1)  # others were told the same
                    self._tell(wait_s)
                    await asyncio.sleep(wait_s)

    async def _try(self) -> Exchange:
        breaker = self._gates.breaker(self._provider.name)
        tries = breaker.enter()
        ticket: Ticket | None = None
        try:
            ticket = await self._gates.gate(self._name).enter(self._tell, again=self._number > 1)
            self._tell_going_on()
            return await self._ask(breaker, tries, ticket)
        finally:
            if ticket is not None:
                ticket.leave()
            breaker.left(tries)

    async def _ask(self, breaker: Breaker, tries: bool, ticket: Ticket) -> Exchange:
        heard = False

        def begun() -> None:
            nonlocal heard
            heard = True
            ticket.answered()
            breaker.answered()

        clock = self._loop.time
        began = clock()
        transport = self._run._engine.transport
        try:
            exchange = await transport.run(self._provider, self._request, self._deadlines, self._writer.take, begun)
        except ProviderError as e:
            log.info(
                "run %s step %d: %s failed after %.2f s: %s: %s, request %s",
                self._run.id, self._step, self._name, clock() - began, e.kind, e.message, e.request or "-",
            )  # fmt: skip
            if not heard and e.kind in ("provider.unreachable", "provider.timeout"):
                breaker.failed(tries)
            elif not heard:
                breaker.answered()
            if e.kind in ("provider.rate_limit", "provider.overloaded") and e.retry:
                ticket.limited(None if e.after_ms is None else e.after_ms / 1000)
            raise
        log.info(
            "run %s step %d: %s answered in %.2f s, first after %.2f s, request %s",
            self._run.id, self._step, self._name, clock() - began, exchange.first_s, exchange.request or "-",
        )  # fmt: skip
        return exchange

    async def _void(self) -> None:
        """Drop what came of an attempt."""
        tx = self._run._begin()
        self._writer.drop(tx, "provider_retry")
        if not tx.empty:
            await tx.submit()

    def _tell(self, wait_s: float | None) -> None:
        """Tell that the run waits, and for what."""
        failure = self._failure
        why = {
            "kind": failure.kind if failure is not None else "provider.rate_limit",
            "message": failure.message if failure is not None else "Other calls to this model go first.",
            "attempt": self._number,
            "of": self._config.retries + 1,
            "ts": now_ms(),
        }
        after_ms = None if wait_s is None else round(wait_s * 1000)
        self._patch({"status": "waiting", "after_ms": after_ms, "why": why})
        self._told = True

    def _tell_going_on(self) -> None:
        if self._told:
            self._told = False
            self._patch({"status": "running", "after_ms": None, "why": None})

    def _patch(self, patch: dict[str, object]) -> None:
        tx = self._run._begin()
        self._run.set_status(tx, patch)
        tx.submit()

    def _prompt(self) -> str:
        return next((m.text for m in reversed(self._request.messages) if m.role == "user"), "")[:SHOWN]


def _retry_wait_s(e: ProviderError, attempt: int) -> float:
    """The vendor's own wait, else 0.5 s doubled each time up to 8 s, less up to a quarter (as vendors' SDKs do)."""
    if e.after_ms is not None:
        return e.after_ms / 1000
    return min(8.0, 0.5 * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.0)
