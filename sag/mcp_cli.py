"""`sag mcp`: the hub as an MCP server for hosts that start a program, by carrying messages to and from its `/mcp`.

Of MCP it knows what carrying takes: which message answers which, the session of the handshake revisions, the headers
of 2026-07-28. A hub that was started again is found again, and its session begun anew, without the host's noticing.
Above: `sag.cli`. Below: the address of the hub.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from sag.address import Address, find, rpc, unreachable
from sag.errors import Fault
from sag.hooks.streams import SseEvents
from sag.terminal import read_lines

if TYPE_CHECKING:
    import httpx

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Json = dict[str, Any]

PATIENCE_S = 10.0  # for a hub that is being started again
AGAIN_S = 0.5
LOSSES = 2  # of one message: another token, another session
LAST_WORDS_S = 2.0  # for what is under way when the host closes its end; hosts wait so long before they kill
EVENT = 64 << 20  # bytes of one message
VERSION = "io.modelcontextprotocol/protocolVersion"
INITIALIZED, CANCELLED = "notifications/initialized", "notifications/cancelled"
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
PARSE_ERROR, INVALID_REQUEST, CLOSED = -32700, -32600, -32000
_PLAIN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `mcp` to the command line of `sag`."""
    parser = subparsers.add_parser("mcp", help="be an MCP server on standard input and output, for hosts that start it")
    parser.add_argument("--url", help="the hub's address (default: SAG_URL, else the one that runs on this machine)")
    parser.add_argument("--token", help="a token (default: SAG_TOKEN, else the running hub's own)")
    parser.add_argument("--data", metavar="DIR", help="the data folder of the hub on this machine")


def run(args: argparse.Namespace) -> int:
    """Carry messages until the host closes its end; gives the process's exit status."""
    address = find(args.url, args.token, args.data)
    try:
        rpc(address, "user.me", {})
    except Fault as fault:
        hint = "; start one with `sag serve`" if fault.kind == "hub.unreachable" else ""
        print(f"sag: {fault.message}{hint}", file=sys.stderr)
        return 1
    try:
        asyncio.run(_main(address))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the host is gone
    return 0


async def _main(address: Address) -> None:
    import httpx

    lines: asyncio.Queue[str | None] = asyncio.Queue()
    read_lines(sys.stdin.fileno(), lines.put_nowait)
    # The hub closes what was idle for 5 s, and what is sent into that is lost.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=3)
    timeout = httpx.Timeout(10, read=None, pool=None)
    async with httpx.AsyncClient(trust_env=False, verify=address.tls() or True, timeout=timeout, limits=limits) as http:
        bridge = Bridge(address, http)
        carrying = asyncio.create_task(bridge.carry(lines))
        try:
            await asyncio.wait({carrying, bridge.broken}, return_when=asyncio.FIRST_COMPLETED)
            (carrying if carrying.done() else bridge.broken).result()
        finally:
            carrying.cancel()
            await bridge.close()


class Carried(NamedTuple):
    """A message of the host's, as it was written, and what is looked at of it."""

    text: bytes
    id: Any
    method: Any
    params: Any

    def member(self, name: str) -> Any:
        """A member of its params, or None."""
        return self.params.get(name) if isinstance(self.params, dict) else None

    @property
    def version(self) -> Any:
        """The revision that it is in, where it says so by itself: since 2026-07-28."""
        meta = self.member("_meta")
        return meta.get(VERSION) if isinstance(meta, dict) else None


class Bridge:
    """Carries messages between a host and a hub.

    Attributes:
        broken: Raises what ends the bridge, such as that there is nobody left to write to.
    """

    def __init__(self, address: Address, http: httpx.AsyncClient) -> None:
        self._address, self._http = address, http
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session: str | None = None
        self._version: str | None = None
        self._hello: Carried | None = None
        self._renewing = asyncio.Lock()
        self._requests: dict[Any, tuple[Carried, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None

    async def carry(self, lines: asyncio.Queue[str | None]) -> None:
        """Take messages, one a line, until there are no more."""
        while (line := await lines.get()) is not None:
            if line.strip():
                await self._take(line)
        if under_way := {task for _, task in self._requests.values()}:
            await asyncio.wait(under_way, timeout=LAST_WORDS_S)

    async def close(self) -> None:
        """End what is under way, and the session."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        if self._session is not None:
            with contextlib.suppress(Exception):  # else it ends by itself, later
                async with asyncio.timeout(1):
                    await self._http.delete(self._url, headers=self._headers(self._session))

    # from the host

    async def _take(self, line: str) -> None:
        try:
            message = msgspec.json.decode(line)
        except (msgspec.MsgspecError, RecursionError) as e:
            self._refuse(None, PARSE_ERROR, f"This is not JSON: {e}")
            return
        if not isinstance(message, dict) or not isinstance(message.get("id"), str | int | float | None):
            self._refuse(None, INVALID_REQUEST, "A message is one JSON object.")
            return
        carried = Carried(line.encode(), message.get("id"), message.get("method"), message.get("params"))
        if carried.method == "initialize":
            await self._begin(carried)
        elif carried.method is not None and carried.id is not None:
            task = self._spawn(self._request(carried))
            self._requests[carried.id] = carried, task
            task.add_done_callback(lambda _: self._requests.pop(carried.id, None))
        elif carried.method == CANCELLED and self._call_off(carried.member("requestId")):
            pass
        elif self._session is not None:
            await self._notify(carried)
            if carried.method == INITIALIZED:
                self._listener = self._spawn(self._listen())

    def _call_off(self, id: Any) -> bool:
        """Cancel a request, where closing its answer is how the hub is told; gives whether it is."""
        request, task = self._requests.get(id, (None, None)) if isinstance(id, str | int | float) else (None, None)
        if request is None or task is None or request.version is None:
            return False
        task.cancel()
        return True

    async def _begin(self, message: Carried) -> None:
        """Carry the message that begins a session."""
        if self._listener is not None:
            self._listener.cancel()
        self._session, self._version, self._hello = None, None, message
        await self._request(message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (e := task.exception()) is not None and not self.broken.done():
            self.broken.set_exception(e)

    # to the host

    def _write(self, message: bytes) -> None:
        sys.stdout.buffer.write(message.replace(b"\n", b" ") + b"\n")
        sys.stdout.buffer.flush()

    def _refuse(self, id: Any, code: int, why: str) -> None:
        self._write(msgspec.json.encode({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": why}}))

    # to the hub

    @property
    def _url(self) -> str:
        return f"{self._address.url}/mcp"

    async def _request(self, message: Carried) -> None:
        """Carry a request, and its answer with all that comes before it."""
        import httpx

        id, why = message.id, "The hub went away meanwhile."
        try:
            async with self._send(message, self._session if message.version is None else None) as response:
                if message is self._hello:
                    self._session = response.headers.get("mcp-session-id")
                async for text in _messages(response):
                    told = _read(text)
                    if response.is_error and (told.jsonrpc is None or told.id != id):
                        why = told.error.get("message") or f"HTTP {response.status_code}"
                        break
                    if message is self._hello:
                        self._version = told.result.get("protocolVersion")
                    self._write(text)
                    if told.id == id and told.method is None:
                        return
        except httpx.HTTPError as e:
            why = f"{why} ({e})"
        except Fault as fault:
            why = fault.message
        self._refuse(id, CLOSED, why)

    async def _notify(self, message: Carried) -> None:
        """Carry what is not answered: a notification, or an answer to the hub's own request."""
        import httpx

        with contextlib.suppress(httpx.HTTPError, Fault):  # the requests tell that the hub is gone
            async with self._send(message, self._session) as response:
                await response.aread()

    @contextlib.asynccontextmanager
    async def _send(self, message: Carried, session: str | None) -> AsyncIterator[httpx.Response]:
        """Post a message, again while the hub has not taken it: it is away, or knows the session no more.

        Raises:
            Fault: It stays away.
        """
        import httpx

        deadline, lost = asyncio.get_running_loop().time() + PATIENCE_S, 0
        while True:
            address = self._address
            try:
                async with self._http.stream(
                    "POST", self._url, content=message.text, headers=self._headers(session, message)
                ) as response:
                    if lost == LOSSES or not await self._is_lost(response, address, session):
                        yield response
                        return
                    lost += 1
                    session = session and self._session
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                if asyncio.get_running_loop().time() > deadline:
                    raise unreachable(self._address.url, e) from None
                await asyncio.sleep(AGAIN_S)
                self._address = self._address.now()

    def _headers(self, session: str | None, message: Carried | None = None) -> dict[str, str]:
        headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        if self._address.token:
            headers["authorization"] = f"Bearer {self._address.token}"
        if session is not None:
            headers["mcp-session-id"] = session
            if self._version is not None:
                headers["mcp-protocol-version"] = self._version
        elif message is not None and message.version is not None:
            headers |= {"mcp-protocol-version": _field(message.version), "mcp-method": _field(message.method)}
            if (name := message.member(NAMED.get(message.method or "", ""))) is not None:
                headers["mcp-name"] = _field(name)
        return headers

    async def _is_lost(self, response: httpx.Response, asked: Address, session: str | None) -> bool:
        """Whether the hub was started again since, so that the message has to be sent again to what it is now.

        Raises:
            Fault: A new session cannot be had.
        """
        if response.status_code == 401 and (now := asked.now()) != asked:
            self._address = now
            return True
        if response.status_code == 404 and session is not None:
            await self._renew(session)
            return True
        return False

    async def _renew(self, lost: str) -> None:
        """Begin the session anew, and let the host know that it may find other things there.

        Raises:
            Fault: The hub does not want to.
        """
        async with self._renewing:
            if self._session != lost or self._hello is None:
                return
            async with self._send(self._hello, None) as response:
                async for text in _messages(response):
                    self._version = _read(text).result.get("protocolVersion")
            if (session := response.headers.get("mcp-session-id")) is None:
                raise Fault("hub.unreachable", "The hub was started again, and does not begin a session.", code=503)
            self._session = session
            await self._notify(
                Carried(b'{"jsonrpc":"2.0","method":"%b"}' % INITIALIZED.encode(), None, INITIALIZED, None)
            )
            for what in ("tools", "prompts", "resources"):
                changed = {"jsonrpc": "2.0", "method": f"notifications/{what}/list_changed"}
                self._write(msgspec.json.encode(changed))

    async def _listen(self) -> None:
        """Carry what the hub tells by itself, as long as there is a session."""
        import httpx

        while (session := self._session) is not None:
            address = self._address
            with contextlib.suppress(httpx.HTTPError, Fault):
                async with self._http.stream("GET", self._url, headers=self._headers(session)) as response:
                    if not await self._is_lost(response, address, session):
                        if response.is_error:
                            return
                        async for text in _messages(response):
                            self._write(text)
            await asyncio.sleep(AGAIN_S)
            self._address = self._address.now()


class _Told(Struct):
    """What is read of a message of the hub's."""

    jsonrpc: str | None = None
    id: Any = None
    method: str | None = None
    result: Json = {}
    error: Json = {}


def _read(text: bytes) -> _Told:
    try:
        return msgspec.json.decode(text, type=_Told)
    except (msgspec.MsgspecError, RecursionError):
        return _Told()


async def _messages(response: httpx.Response) -> AsyncIterator[bytes]:
    """The messages of an answer: one, or a stream of them."""
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        if body := (await response.aread()).strip():
            yield body
        return
    events = SseEvents(EVENT)
    async for data in response.aiter_bytes():
        for lines in events.feed(data):
            if text := b"\n".join(lines).strip():
                yield text


def _field(value: Any) -> str:
    """A value as a header holds it (2026-07-28, section Headers)."""
    text = str(value)
    if _PLAIN.fullmatch(text) and not text.startswith("=?base64?"):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="
