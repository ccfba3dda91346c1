"""Sessions: what outlives a cut connection for a while — a client's tools and the calls of them that are open.

Protocol sections 2 (resume) and 7 (tools that the client provides). Sessions live in memory: a restart of the hub
ends them, and their open calls are lost.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Container, Mapping
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct, field

from sag.engine.context import CallContext
from sag.engine.ends import ToolLost
from sag.hooks.tool import Tool, ToolError
from sag.schema.events import ToolProgress
from sag.schema.ids import new_id, new_secret
from sag.wire import frames

Json = dict[str, Any]
_TOOL_NAME = re.compile(r"^[A-Za-z0-9_.:/-]{1,128}$")
MAX_TOOLS = 128


class ClientTool(Struct):
    """A tool as a client declares it in `hello`; `input` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    input: Json = field(default_factory=lambda: {"type": "object"})
    idempotent: bool = False
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 60_000
    risk: str = "read"


class Outlet(Protocol):
    """Where a session's requests go: the connection that holds it."""

    def send(self, text: bytes) -> None: ...


class OpenCall:
    """A call that the client has not answered.

    Attributes:
        sent: Whether it went out, so that the client may know of it.
        lost_at: Ends it as lost; set by a cut under one that must not be sent again.
    """

    __slots__ = ("context", "future", "id", "idempotent", "lost_at", "params", "sent")

    def __init__(self, id: str, params: Json, idempotent: bool, context: CallContext) -> None:
        self.id, self.params, self.idempotent, self.context = id, params, idempotent, context
        self.future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self.sent = False
        self.lost_at: asyncio.TimerHandle | None = None

    def lose(self, why: str) -> None:
        """The client can answer no more; one that was answered is left."""
        if not self.future.done():
            self.future.set_exception(ToolLost(why))


class Session:
    """A client's session.

    Attributes:
        id: Its id.
        user: Whose it is; a resume by another is no resume.
        outlet: The connection that holds it, None while it is cut.
    """

    def __init__(self, user: str, keep_ms: int) -> None:
        self.id = new_id("ses_")
        self.user = user
        self.keep_ms = keep_ms
        self.outlet: Outlet | None = None
        self._secret = ""
        self._fresh: str | None = None
        self._tools: dict[str, Tool] = {}
        self._calls: dict[str, OpenCall] = {}
        self._cancelled: list[str] = []  # while it was cut
        self._next = 0
        self.gone = False

    # secrets

    def rotate(self) -> str:
        """A new secret; the old one holds until `confirm`."""
        self._fresh = new_secret()
        return self._fresh

    def confirm(self) -> None:
        """The client sent something after the new secret reached it: the old one holds no longer."""
        if self._fresh is not None:
            self._secret, self._fresh = self._fresh, None

    def knows(self, secret: str) -> bool:
        """Whether a client may resume with this; that it has the new secret confirms it."""
        if self._fresh is not None and hmac.compare_digest(self._fresh, secret):
            self.confirm()
        return bool(self._secret) and hmac.compare_digest(self._secret, secret)

    # tools

    @property
    def tools(self) -> Mapping[str, Tool]:
        return {} if self.gone else self._tools

    def declare(self, tools: list[ClientTool], taken: Container[str]) -> list[str]:
        """Take a client's tools; gives the names that cannot be had.

        Args:
            tools: All that it offers from now on.
            taken: Names of the hub's own.
        """
        refused: list[str] = []
        self._tools = {}
        for t in tools:
            legal = _TOOL_NAME.match(t.name) and t.name not in taken and t.name not in self._tools
            if not legal or len(self._tools) >= MAX_TOOLS:
                refused.append(t.name)
                continue
            self._tools[t.name] = self._tool(t)
        return refused

    def _tool(self, t: ClientTool) -> Tool:
        async def call(args: Any, ctx: Any) -> Any:
            return await self._call(t, args, ctx)

        risk: Any = t.risk if t.risk in ("read", "write", "danger") else "write"
        return Tool(
            t.name,
            t.description,
            t.input,
            call,
            risk=risk,
            idempotent=t.idempotent,
            timeout_s=t.timeout_ms / 1000,
            longest_s=0,  # the client is told a deadline, and progress does not move it
            origin="client",
        )

    async def _call(self, t: ClientTool, args: Json, ctx: CallContext) -> Any:
        if self.gone:
            raise ToolLost("The client that offers this tool is gone.")
        self._next += 1
        id = f"s{self._next}"
        params = {"call": ctx.call, "run": ctx.run, "name": t.name, "args": args, "deadline_ms": t.timeout_ms}
        call = self._calls[id] = OpenCall(id, params, t.idempotent, ctx)
        self._send(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._cancel(id)
            raise
        finally:
            self._calls.pop(id, None)
            if call.lost_at is not None:
                call.lost_at.cancel()

    def _send(self, call: OpenCall) -> None:
        if self.outlet is not None:
            params = {**call.params, "redelivered": call.sent}
            call.sent = True
            self.outlet.send(frames.request(call.id, "tool.call", params))

    def _cancel(self, id: str) -> None:
        if self.outlet is not None:
            self.outlet.send(frames.notification("rpc.cancel", {"id": id}))
        else:
            self._cancelled.append(id)

    def cut(self) -> None:
        """The connection is gone: a call that went out and must not be sent again is lost after a while.

        That is `keep_ms` later or at its deadline, whichever comes first (protocol section 7).
        """
        self.outlet = None
        loop = asyncio.get_running_loop()
        for call in self._calls.values():
            if not call.sent or call.idempotent or call.lost_at is not None:
                continue
            at = loop.time() + self.keep_ms / 1000
            if call.context.limit is not None and (deadline := call.context.limit.when()) is not None:
                at = min(at, deadline - 0.02)  # just before, since at the deadline it would be a timeout
            call.lost_at = loop.call_at(at, call.lose, "The connection to the client broke; it did not answer since.")

    def redeliver(self) -> None:
        """After a resume: send what never went out, and idempotent calls again; others may be answered unasked."""
        while self._cancelled:
            self._cancel(self._cancelled.pop())
        for call in list(self._calls.values()):
            if call.idempotent or not call.sent:
                self._send(call)

    def answered(self, id: object, result: bytes, error: bytes) -> None:
        """The client answered a call; an id that is not open is ignored."""
        call = self._calls.get(id) if isinstance(id, str) else None
        if call is None or call.future.done():
            return
        try:
            body: Any = msgspec.json.decode(error or result)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            body, error = {"message": "The client's answer cannot be read."}, b"{}"
        if error:
            message = body.get("message") if isinstance(body, dict) else None
            call.future.set_exception(ToolError(str(message or "The client reports an error.")[:2000]))
        else:
            call.future.set_result(body)

    def progressed(self, params: Json) -> None:
        """The client told how far a call is."""
        call = self._calls.get(str(params.get("id")))
        done = params.get("done")
        if call is None or not isinstance(done, int | float):
            return
        if call.lost_at is not None:  # so it is still at work, and will answer
            call.lost_at.cancel()
            call.lost_at = None
        total, text = params.get("total"), params.get("text")
        call.context.report(
            ToolProgress(
                call.context.call,
                done,
                total if isinstance(total, int | float) else None,
                text[:500] if isinstance(text, str) else None,
            )
        )

    def end(self) -> None:
        """The session is over: its open calls are lost."""
        self.gone = True
        for call in list(self._calls.values()):
            call.lose("The client that offers this tool went away.")


class Sessions:
    """All sessions; one without a connection is kept for `keep_ms`."""

    def __init__(self, keep_ms: int) -> None:
        self._keep_ms = keep_ms
        self._sessions: dict[str, Session] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def find(self, id: str, secret: str, user: str) -> Session | None:
        """A session to resume; None where it is unknown, expired, another's, or the secret is wrong."""
        session = self._sessions.get(id)
        if session is None or session.user != user or not session.knows(secret):
            return None
        if timer := self._timers.pop(id, None):
            timer.cancel()
        return session

    def new(self, user: str) -> Session:
        session = Session(user, self._keep_ms)
        self._sessions[session.id] = session
        return session

    def cut(self, session: Session) -> None:
        """A session lost its connection."""
        session.cut()
        loop = asyncio.get_running_loop()
        self._timers[session.id] = loop.call_later(self._keep_ms / 1000, self._expire, session)

    def _expire(self, session: Session) -> None:
        self._timers.pop(session.id, None)
        self._sessions.pop(session.id, None)
        session.end()

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
