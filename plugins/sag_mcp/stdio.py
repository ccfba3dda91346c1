"""A server that is a process of ours: messages over its standard input and output, a line each.

Bounded where the SDK's own transport is not: a line, the bytes of a minute, what waits to be written, what is kept of
standard error. Bytes that are no UTF-8 are replaced, lines that are no messages are skipped. The work on what arrives
is done in slices, so that a server that floods us does not hold up the loop. A keeper (`keeper.py`) stands between,
so that the end of the hub, however it comes, is the end of the server and of all that it started.
Imports the SDK, so it is imported when a server is first started.
Above: a connection. Below: the keeper, the sieve.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse
from msgspec import UNSET, Struct

from sag_mcp.ends import Broken
from sag_mcp.sieve import MAX_MESSAGE, MAX_MINUTE, REQUEST, Bucket, Id, Sieve

Json = dict[str, Any]

MAX_UNREAD = 16 << 20  # of what the server does not read
STDERR_KEPT = 64 << 10
STDERR_SECOND = 8 << 20  # a server that writes more to standard error waits
CHUNK = 64 << 10
SLICE_S = 0.004
OWN_S = 0.5  # for the end of a process whose output has ended
STOP_S = 5.0  # the keeper takes 4.5 s at most
INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")
GARBAGE_LOGGED = 3
KEEPER = Path(__file__).with_name("keeper.py")


class Frame(Struct):
    """A JSON-RPC message; whatever stands in it is taken as it is."""

    id: Any = UNSET
    method: Any = UNSET
    params: Any = UNSET
    result: Any = UNSET
    error: Any = UNSET


_frames = msgspec.json.Decoder(Frame)


class Lines:
    """Lines out of pieces; costs the same for one long line as for many short ones."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that are whole now, without their ends.

        Raises:
            Broken: mcp.too_big, where one is longer than the limit.
        """
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            self._add(line)
            line = b"".join(self._pieces) if len(self._pieces) > 1 else line
            self._pieces.clear()
            self._size = 0
            if line.strip():
                yield line
        if rest:
            self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        self._pieces.append(piece)
        if self._size > self._limit:
            raise Broken("mcp.too_big", f"The server sent a line of more than {self._limit >> 20} MiB.")


class Stdio:
    """The transport, as the SDK takes one: enter it for a pair of streams, once.

    Args:
        command: The program and its arguments.
        env: What it gets in its environment besides `INHERITED`.
        cwd: Where it starts.
        sieve: What decides on each message.
        log: For lines that are no messages.
        ended: Called when nothing comes any more.

    Attributes:
        broken: Why it was given up, if it was.
        proven: Whether it ever did what it is for; one that did not is not given time to end.
        exit: The status with which it ended of itself, once it was left.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        sieve: Sieve,
        log: logging.Logger,
        ended: Callable[[], None],
    ) -> None:
        self.command, self.cwd, self.sieve, self.log = list(command), cwd, sieve, log
        own = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # What is installed beside the hub is found, whether or not its environment is the active one.
        own["PATH"] = os.pathsep.join([*filter(None, [own.get("PATH", os.defpath)]), os.path.dirname(sys.executable)])
        self.env = own | dict(env)
        self.broken: Broken | None = None
        self.proven = False
        self.exit: int | None = None
        self._ended = ended
        self._over = False
        self._stderr = bytearray()
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._garbage = 0
        self._minute = Bucket(MAX_MINUTE / 60, MAX_MINUTE)

    @property
    def status(self) -> int | None:
        """The exit status, once it has one; 128 + the signal where one ended it."""
        return self._process.returncode if self._process is not None else None

    @property
    def stderr(self) -> str:
        """The end of what it wrote to standard error."""
        return self._stderr.decode("utf-8", "replace")

    async def __aenter__(self) -> tuple[MemoryObjectReceiveStream[SessionMessage | Exception], _Writer]:
        if os.name != "posix":
            raise OSError("servers with a command need a POSIX system")
        theirs, self._lifeline = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(KEEPER), str(theirs), *self.command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self.env,
                cwd=self.cwd,
                pass_fds=(theirs,),
                start_new_session=True,
                limit=4 * CHUNK,
            )
        except BaseException:
            self._cut()
            raise
        finally:
            os.close(theirs)
        send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](64)
        self._receive = receive
        self._tasks = [asyncio.create_task(self._read(send)), asyncio.create_task(self._read_stderr())]
        return receive, _Writer(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stop()

    async def _stop(self) -> None:
        """End the process and all below it, within `STOP_S`."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        ending = asyncio.create_task(process.wait())
        if self._over and self.broken is None:
            await asyncio.wait({ending}, timeout=OWN_S)
            self.exit = process.returncode
        self._receive.close()  # what comes now is nobody's, and is read all the same, so that the server can end
        process.stdin.close()
        if not self.proven:
            self._kill()
        self._cut()
        await asyncio.wait({ending}, timeout=STOP_S)
        if process.returncode is None:
            self.log.error("%s does not end; killed", self.command[0])
            process.kill()
        ending.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=1)
        for task in self._tasks:
            if task.done() and not task.cancelled() and (e := task.exception()) is not None:
                self.log.error("reading from %s failed", self.command[0], exc_info=e)
        transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
        transport.close()  # pipes that somebody unknown still holds

    def _cut(self) -> None:
        """End the lifeline: the keeper ends the server."""
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    def give_up(self, broken: Broken) -> None:
        """Kill the server at once, for a reason."""
        if self.broken is None:
            self.broken = broken
        self._kill()

    def _kill(self) -> None:
        if self._lifeline is not None:
            try:
                os.write(self._lifeline, b"K")
            except OSError:
                self.log.debug("the keeper of %s is gone already", self.command[0])

    # what comes

    async def _read(self, send: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        lines = Lines()
        began = time.monotonic()
        try:
            while chunk := await _next(self._process.stdout):
                if not self._minute.take(len(chunk)):
                    raise Broken("mcp.too_big", f"The server sent more than {MAX_MINUTE >> 20} MiB in a minute.")
                for line in lines.feed(chunk):
                    if (message := self._sift(line)) is not None:
                        await send.send(message)
                    if time.monotonic() - began > SLICE_S:
                        await asyncio.sleep(0)
                        began = time.monotonic()
                await asyncio.sleep(0)
                began = time.monotonic()
        except Broken as e:
            self.give_up(e)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the SDK has left
        finally:
            self._over = True
            self._ended()
            send.close()
        while await _next(self._process.stdout):
            pass

    def _sift(self, line: bytes) -> SessionMessage | None:
        """The message of a line, if it is one that the SDK is to see."""
        try:
            frame = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._skip(line)
            return None
        id = _id(frame.id)
        if isinstance(frame.method, str):
            params = _object(frame.params)
            given: Json = {"params": params} if params is not None else {}
            if frame.id is UNSET:
                if not self.sieve.notification(frame.method, params):
                    return None
                return SessionMessage(JSONRPCNotification(jsonrpc="2.0", method=frame.method, **given))
            if id is None or not self.sieve.request(id, frame.method):
                return None
            return SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=id, method=frame.method, **given))
        if frame.id is UNSET:
            self._skip(line)
            return None
        result = _object(frame.result) if frame.error is UNSET else None
        seen = self.sieve.response(id, result)
        if seen is None or id is None:
            return None
        if result is not None:
            return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=id, result=seen))
        error = _object(frame.error) or {}
        code, message = error.get("code"), error.get("message")
        data = ErrorData(
            code=code if isinstance(code, int) else -32603,
            message=message if isinstance(message, str) else "the answer is neither a result nor an error",
            data=error.get("data"),
        )
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=id, error=data))

    def _skip(self, line: bytes) -> None:
        self._garbage += 1
        if self._garbage <= GARBAGE_LOGGED:
            self.log.warning("skipped a line that is no message: %s", ascii(line[:200].decode("utf-8", "replace")))

    async def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        second = Bucket(STDERR_SECOND, 2 * STDERR_SECOND)
        while chunk := await _next(self._process.stderr):
            self._stderr += chunk
            del self._stderr[:-STDERR_KEPT]
            await asyncio.sleep(second.charge(len(chunk)))

    # what goes

    def write(self, message: SessionMessage) -> None:
        """Send a message; never waits.

        Raises:
            anyio.BrokenResourceError: It cannot be sent any more.
        """
        note(self.sieve, message)
        assert self._process is not None
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing() or self.broken is not None:
            raise anyio.BrokenResourceError
        stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        if stdin.transport.get_write_buffer_size() > MAX_UNREAD:
            self.give_up(Broken("mcp.closed", "The server does not read what it is sent."))
            raise anyio.BrokenResourceError


class _Writer:
    """The stream that the SDK writes to."""

    def __init__(self, stdio: Stdio) -> None:
        self._stdio = stdio

    async def send(self, item: SessionMessage, /) -> None:
        self._stdio.write(item)

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> _Writer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def note(sieve: Sieve, message: SessionMessage) -> None:
    """Tell the sieve of a message that is being sent."""
    match message.message:
        case JSONRPCRequest(id=id, method=method, params=params):
            sieve.asks(id, method, params, REQUEST.get())
        case JSONRPCResponse(id=id):
            sieve.answers(id)
        case JSONRPCError(id=id):
            sieve.answers(id)
        case JSONRPCNotification(method="notifications/cancelled", params=params):
            sieve.cancels(params)
        case _:
            pass


async def _next(pipe: asyncio.StreamReader) -> bytes:
    try:
        return await pipe.read(CHUNK)
    except ConnectionError:  # the pipes of uvloop are sockets
        return b""


def _decode(line: bytes) -> Frame:
    try:
        return _frames.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        # Bytes that are no UTF-8, halves of characters, or NaN, which Python's own encoder writes.
        whole = json.loads(line.decode("utf-8", "replace"), parse_constant=lambda _: None)
        return _frames.decode(json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace"))


def _object(value: Any) -> Json | None:
    return value if isinstance(value, dict) else None


def _id(id: Any) -> Id | None:
    if isinstance(id, float) and id.is_integer():
        return int(id)
    return id if isinstance(id, int | str) and not isinstance(id, bool) else None
