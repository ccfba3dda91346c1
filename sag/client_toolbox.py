"""The tools that a client offers, and the hub's calls of them (protocol section 7).

A call runs once, however often it comes: what works goes on through a cut, what was answered is answered again from
memory until its deadline. Above: `sag.client`, whose frames come in and go out here. It knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from sag.errors import Fault

Json = dict[str, Any]
Handler = Callable[[Json, "ToolCall"], Any]
_encode = msgspec.json.encode


class ToolCall:
    """A call of a client's tool, as its handler is given it.

    Attributes:
        call, run: Its id and its run's.
        name: The tool's.
        redelivered: The hub sent it again after a cut, and it was not known here: of an idempotent tool alone.
        cancelled: It is over; for handlers that run in a thread, the others are cancelled.
    """

    def __init__(self, params: Json, tell: Callable[[Json], None]) -> None:
        self.call, self.run, self.name = str(params.get("call")), str(params.get("run")), str(params.get("name"))
        self.redelivered = params.get("redelivered") is True
        self.cancelled = False
        self._tell = tell

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Show on every device how far the call is; may be called in a thread."""
        told = {"done": done, "total": total, "text": text}
        self._tell({name: value for name, value in told.items() if value is not None})


class ClientTool(NamedTuple):
    """A tool that this client offers to the runs that it starts (protocol section 7).

    Attributes:
        handler: `handler(args, call)`; `async def`, or a function that runs in a thread. Gives text, any JSON, content
            as `{"content": [...]}`, or None. What it raises is told to the model.
        input: JSON Schema of the arguments.
        idempotent: Whether the hub may send a call again after a cut.
        timeout_ms: How long a call may take.
        risk: read, write or danger; danger asks a person first.
    """

    name: str
    handler: Handler
    description: str = ""
    input: Mapping[str, Any] = {"type": "object"}
    idempotent: bool = False
    timeout_ms: int = 60_000
    risk: str = "read"

    def declaration(self) -> Json:
        return {k: v for k, v in self._asdict().items() if k != "handler"}


class _Served:
    """A call that arrived here.

    Attributes:
        call: What its handler has.
        until: When its time is over.
        task: What works on it.
        timer: Ends it at its deadline.
        answer: What was answered; kept until its time is over, for it may not have arrived.
    """

    def __init__(self, call: ToolCall, until: float) -> None:
        self.call, self.until = call, until
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.answer: bytes | None = None

    def end(self) -> None:
        self.call.cancelled = True
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()


class ClientToolbox:
    """A client's tools and the calls of them.

    Args:
        send: Sends a frame; drops it while there is no connection.
        room: Tells how large a frame may be.
    """

    def __init__(self, send: Callable[[bytes], None], room: Callable[[], int]) -> None:
        self._send, self._room = send, room
        self._tools: dict[str, ClientTool] = {}
        self._served: dict[str, _Served] = {}

    def add(self, tool: ClientTool) -> None:
        """Have a tool; one of the same name is replaced."""
        self._tools[tool.name] = tool

    def drop(self, name: str) -> None:
        """Have a tool no longer; one that is not there is no error."""
        self._tools.pop(name, None)

    def declarations(self) -> list[Json]:
        """The tools as `hello` tells them."""
        return [tool.declaration() for tool in self._tools.values()]

    def tasks(self) -> list[asyncio.Task[None]]:
        """What works on calls."""
        return [served.task for served in self._served.values() if served.task is not None]

    def resume(self) -> None:
        """The session goes on: give answers again, for they may not have arrived; the hub ignores what is not open."""
        self._forget_expired()
        for served in self._served.values():
            if served.answer is not None:
                self._send(served.answer)

    def call(self, id: str, params: Json) -> None:
        """Take a `tool.call`."""
        self._forget_expired()
        if (known := self._served.get(id)) is not None:  # it runs once, however often it comes
            if known.answer is not None:
                self._send(known.answer)
            return
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def tell(told: Json) -> None:
            if threading.get_ident() == thread:
                self._progress(id, served, told)
            else:
                loop.call_soon_threadsafe(self._progress, id, served, told)

        call = ToolCall(params, tell)
        served = self._served[id] = _Served(call, loop.time() + params.get("deadline_ms", 60_000) / 1000)
        tool = self._tools.get(call.name)
        if tool is None:
            self._answer(id, served, fault=Fault("tool.unknown", f"This client has no tool {call.name!r}."))
        elif call.redelivered and not tool.idempotent:
            text = "Whether the tool has done this before is not known, and it must not do it twice."
            self._answer(id, served, fault=Fault("tool.lost", text, code=409))
        else:
            over = Fault("tool.timeout", f"{tool.name} was not done in time.", code=408)
            served.timer = loop.call_at(served.until, self.stop, id, over)
            served.task = asyncio.create_task(self._run_tool(id, served, tool, params.get("args") or {}))

    async def _run_tool(self, id: str, served: _Served, tool: ClientTool, args: Json) -> None:
        """Answer a tool call; on the next connection where this one breaks meanwhile."""
        try:
            if inspect.iscoroutinefunction(tool.handler):
                result = await tool.handler(args, served.call)
            else:
                result = await asyncio.to_thread(tool.handler, args, served.call)
                if inspect.isawaitable(result):
                    result = await result
            self._answer(id, served, _content(result))
        except asyncio.CancelledError:
            self._answer(id, served, fault=Fault("request.cancelled"))
        except Exception as e:
            fault = e if isinstance(e, Fault) else Fault("tool.error", str(e) or type(e).__name__)
            self._answer(id, served, fault=fault)

    def _answer(self, id: str, served: _Served, result: Json | None = None, fault: Fault | None = None) -> None:
        """Answer a call, unless that was done: by a cancel or its deadline, or its session is over."""
        if served.answer is not None or self._served.get(id) is not served:
            return
        answer = _encode({"id": id, "result": result} if fault is None else {"id": id, "error": fault.body()})
        if len(answer) > self._room():
            fault = Fault("frame.large", "The tool's result is too large for a frame.")
            answer = _encode({"id": id, "error": fault.body()})
        served.answer = answer
        if served.timer is not None:
            served.timer.cancel()
        self._send(answer)

    def _progress(self, id: str, served: _Served, told: Json) -> None:
        if served.answer is None and self._served.get(id) is served:
            self._send(_encode({"method": "rpc.progress", "params": {"id": id, **told}}))

    def stop(self, id: str, fault: Fault) -> None:
        """Answer a call with a fault, and have its handler stop."""
        if (served := self._served.get(id)) is not None and served.answer is None:
            self._answer(id, served, fault=fault)
            served.end()

    def _forget_expired(self) -> None:
        """Forget the answers that nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        for id in [id for id, s in self._served.items() if s.answer is not None and s.until <= now]:
            del self._served[id]

    def reset(self) -> None:
        """The session is over and its calls are lost; their ids may come again and mean others."""
        served, self._served = self._served, {}
        for each in served.values():
            each.end()


def _content(result: Any) -> Json:
    """What a handler gave, as a call is answered."""
    if isinstance(result, dict) and isinstance(result.get("content"), list):
        return result
    if result is None:
        return {"content": []}
    text = result if isinstance(result, str) else _encode(result).decode()
    return {"content": [{"kind": "text", "text": text}]}
