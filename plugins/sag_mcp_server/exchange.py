"""One request of a host from its beginning to its result, however many rounds it takes.

In the handshake revisions the server asks its host while a request goes on. Since 2026-07-28 it cannot: the request is
answered with what is asked, and the host sends it again with the answers. The work behind a request does not notice,
for it waits in between. Above: the context that tools are given, and the service. Nothing here knows of tools.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

import mcp_types as t
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError

from sag.plugin import ToolError

Context = ServerRequestContext[Any, Any]
Note = Callable[[Context], Awaitable[None]]
R = TypeVar("R", bound=BaseModel)

TOGETHER_S = 0.01  # what is asked within so long is asked in one round
ENDING_S = 0.5  # for work that is slow to heed that it is ended
NOTES = 1000  # that wait for a host which reads slowly; then the oldest goes
WAITING = 32  # requests of one user that wait for their next round


class CannotAsk(ToolError):
    """The host has no means to answer.

    Args:
        why: What it cannot.
        needed: The capability that it would need.
    """

    def __init__(self, why: str, needed: t.ClientCapabilities) -> None:
        super().__init__(why)
        self.needed = needed


class Exchange:
    """A request that goes on.

    Attributes:
        stateless: Whether the host is asked by answering it.
        capabilities: What the host can, as it said.
        cancelled: Whether the host, or the hub, called it off.
        over: Whether nobody hears of it any more.
    """

    def __init__(self, key: bytes, stateless: bool, early: t.InputResponses) -> None:
        self.key, self.stateless = key, stateless
        self.cancelled = self.over = False
        self.task: asyncio.Task[BaseModel] | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.capabilities = t.ClientCapabilities()
        self._ctx: Context | None = None
        self._early = early
        self._asked: dict[str, tuple[t.InputRequest, tuple[type[BaseModel], ...], asyncio.Future[Any]]] = {}
        self._keys: set[str] = set()
        self._notes: deque[Note] = deque(maxlen=NOTES)
        self._news = asyncio.Event()

    # for the work

    def tell(self, note: Note) -> None:
        """Send a notification with the request, in order; nothing waits for it."""
        if self._ctx is not None and not self.over:
            self._notes.append(note)
            self._news.set()

    async def ask(self, name: str, request: t.InputRequest, *kinds: type[R]) -> R | None:
        """Have the host's user, or its model, asked.

        Args:
            name: What the question is called where several are asked at once.
            request: The question.
            kinds: What the answer may be; the first is what it is read as.

        Returns:
            The answer; None if the host never came back with one.

        Raises:
            ToolError: The host refused, or answered with something else.
        """
        if self.over:
            return None
        if not self.stateless:
            ctx = self._ctx
            assert ctx is not None
            await self._send_notes()  # what was told before is told before
            metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
            try:
                return await ctx.session.send_request(request, kinds[0], metadata=metadata)
            except MCPError as e:
                raise ToolError(f"The host did not answer: {e.message}") from None
            except ValidationError:
                raise ToolError("The host answered with something else than it was asked for.") from None
        key = next(
            k for n in range(1, len(self._keys) + 2) if (k := name if n == 1 else f"{name}_{n}") not in self._keys
        )
        self._keys.add(key)
        if isinstance(answer := self._early.get(key), kinds):
            return answer
        future: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        self._asked[key] = request, kinds, future
        self._news.set()
        try:
            return await future
        finally:
            self._asked.pop(key, None)

    # for the rounds

    def begin_round(self, ctx: Context, answers: t.InputResponses) -> None:
        """Take a request of the host: its answers go to who asked; what does not fit is asked again."""
        self._ctx = ctx
        self.capabilities = ctx.session.client_capabilities or t.ClientCapabilities()
        if self.expiry is not None:
            self.expiry.cancel()
        for key, answer in answers.items():
            _, kinds, future = self._asked.get(key, (None, (), None))
            if future is not None and isinstance(answer, kinds) and not future.done():
                future.set_result(answer)

    async def rest(self) -> t.InputRequests:
        """Send what is told until the work is done, or has to be asked; gives what is asked."""
        assert self.task is not None
        while True:
            await self._send_notes()
            if self.task.done():
                return {}
            if self._open():
                await asyncio.sleep(TOGETHER_S)
                await self._send_notes()
                if not self.task.done() and (asked := self._open()):
                    return asked
            else:
                self._news.clear()
                await self._news.wait()

    async def _send_notes(self) -> None:
        while self._notes:
            assert self._ctx is not None
            await self._notes.popleft()(self._ctx)

    def _open(self) -> t.InputRequests:
        return {key: request for key, (request, _, future) in self._asked.items() if not future.done()}

    def wake(self) -> None:
        """The work is done."""
        self._news.set()

    def pause(self) -> None:
        """The host has been answered for now."""
        self._ctx = None

    def give_up(self) -> None:
        """Nobody will answer any more; the work goes on without."""
        self.over = True
        for _, _, future in self._asked.values():
            if not future.done():
                future.set_result(None)

    def cancel(self) -> None:
        """End the work."""
        self.cancelled = self.over = True
        self._ctx = None
        self._notes.clear()
        if self.task is not None:
            self.task.cancel()


class Exchanges:
    """All requests that go on.

    Args:
        waiting_s: How long one waits for its host to come back.
    """

    def __init__(self, waiting_s: float) -> None:
        self._waiting_s = waiting_s
        self._running: set[Exchange] = set()
        self._waiting: dict[str, tuple[str, Exchange]] = {}

    async def serve(
        self,
        ctx: Context,
        params: t.InputResponseRequestParams,
        user: str,
        work: Callable[[Exchange], Coroutine[Any, Any, R]],
    ) -> R | t.InputRequiredResult:
        """Answer a request: begin its work, or go on with it.

        Raises:
            MCPError: What it continues is not there; or as the work raises.
        """
        own = params.model_dump(mode="json", exclude={"meta", "input_responses", "request_state"})
        key = msgspec.json.encode([user, ctx.method, own], order="deterministic")
        answers = params.input_responses or {}
        if params.request_state is None:
            exchange = Exchange(key, ctx.protocol_version in MODERN_PROTOCOL_VERSIONS, answers)
            exchange.begin_round(ctx, {})
            exchange.task = asyncio.create_task(work(exchange), name=f"mcp {ctx.method}")
            exchange.task.add_done_callback(lambda task: self._ended(exchange))
            self._running.add(exchange)
        else:
            exchange = self._taken_up(params.request_state, key)
            exchange.begin_round(ctx, answers)
        try:
            asked = await exchange.rest()
        except BaseException:  # the host is gone, or called it off
            exchange.cancel()
            raise
        exchange.pause()
        assert exchange.task is not None
        if not asked:
            if exchange.task.cancelled():
                raise MCPError(t.INTERNAL_ERROR, "The call was ended.")
            return cast(R, exchange.task.result())
        return t.InputRequiredResult(input_requests=asked, request_state=self._put_by(exchange, user))

    async def close(self) -> None:
        """End all, and let it be told."""
        tasks = [exchange.task for exchange in self._running if exchange.task is not None]
        for exchange in list(self._running):
            if exchange.expiry is not None:
                exchange.expiry.cancel()
            exchange.cancel()
        self._waiting.clear()
        if tasks:
            await asyncio.wait(tasks, timeout=ENDING_S)
            await asyncio.sleep(TOGETHER_S)

    def _taken_up(self, state: str, key: bytes) -> Exchange:
        _, exchange = self._waiting.get(state, ("", None))
        if exchange is None or exchange.key != key:
            raise MCPError(t.INVALID_PARAMS, "There is no such request to go on with, or not any more.")
        del self._waiting[state]
        return exchange

    def _put_by(self, exchange: Exchange, user: str) -> str:
        mine = [state for state, (owner, _) in self._waiting.items() if owner == user]
        if len(mine) >= WAITING:
            self._give_up(mine[0])
        state = secrets.token_urlsafe(24)
        self._waiting[state] = user, exchange
        exchange.expiry = asyncio.get_running_loop().call_later(self._waiting_s, self._give_up, state)
        return state

    def _give_up(self, state: str) -> None:
        if (found := self._waiting.pop(state, None)) is not None:
            found[1].give_up()

    def _ended(self, exchange: Exchange) -> None:
        self._running.discard(exchange)
        exchange.wake()
        task = exchange.task
        assert task is not None
        if not task.cancelled():
            task.exception()  # it is told to the host, if there is one still
