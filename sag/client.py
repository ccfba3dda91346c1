"""A client of the socket protocol for asyncio: one object that stays connected, and topics that are always right.

Above: the command line, `sag.testing`, tests. Below: the reducers, which fold here exactly as in the hub. It knows the
protocol alone and nothing of the hub's insides, so whoever writes a client in another language can read it as one
worked example (protocol sections 1 to 4, 7 and 8).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakSet

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from sag import __version__
from sag.address import Address, fault_of, unreachable
from sag.client_toolbox import ClientTool as ClientTool
from sag.client_toolbox import ClientToolbox, Handler
from sag.client_toolbox import ToolCall as ToolCall
from sag.errors import Fault
from sag.topics.reducers import FAMILIES, PlainReducer, Reducer, State

Json = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])
READING = frozenset({"get", "list", "export", "me", "refresh", "subscribe", "unsubscribe"})
HELLO_S = 15.0  # the hub gives a client 10 s for its hello; the answer brings the times that hold from then on
STEADY_S = 5.0  # a connection that lasted this long begins the waits anew; a hub that accepts and closes is spared
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
HELLO = 0
_encode = msgspec.json.encode


# topics


class Topic:
    """A topic that is followed.

    Attributes:
        name: `conv:…`, `user:me` …
        gen, off: Where this client stands in the topic's log.
        lost: Where it stood when the hub could not serve what followed, `{gen, from}`; events may have been missed.
        fault: Why it is followed no longer.
    """

    def __init__(self, name: str, reducer: Reducer, start: Json) -> None:
        self.name = name
        self.gen: str | None = None
        self.off = 0
        self.t: int | None = None
        self.lost: Json | None = None
        self.fault: Fault | None = None
        self.asking = False
        self.placed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start = start
        self._reducer = reducer
        self._readers: WeakSet[Events] = WeakSet()

    @property
    def state(self) -> State:
        """The topic's state at `off`: plain JSON, changed in place; read it, do not write."""
        return self._reducer.state

    def events(self) -> Events:
        """What happens from now on, each event after it was folded into the state."""
        return Events(self._readers, self.fault)

    async def until(self, true: Callable[[State], Any], timeout_s: float = 30.0) -> State:
        """Wait until something holds of the state.

        Raises:
            TimeoutError: It did not come to hold in time.
            Fault: The topic ended, or the client.
        """
        events = self.events()
        async with asyncio.timeout(timeout_s):
            while not true(self.state):
                if await anext(events, None) is None:
                    raise self.fault or Fault("topic.unknown")
        return self.state

    # for the client

    @property
    def position(self) -> Json:
        return self._start if self.gen is None else {"gen": self.gen, "off": self.off}

    def place(self, answer: Json) -> None:
        """Take the answer to a subscribe; one that was overtaken by a newer is left."""
        self.asking = False
        if self.gen is None or answer["gen"] != self.gen or answer["off"] >= self.off:
            again, self.gen, self.off = self.gen is not None, answer["gen"], answer["off"]
            if answer["mode"] == "snapshot":
                self.lost = answer.get("lost")
                self._reducer.load(answer["snap"])
                if again:
                    self._tell(("topic.snapshot", self.state))
        if not self.placed.done():
            self.placed.set_result(None)

    def receive(self, frame: Json) -> bool:
        """Apply an event by the cursor rule; False means that the topic has to be subscribed again."""
        if self.asking:
            return True
        name, d, off = frame["e"], frame.get("d"), frame.get("o")
        if off is not None:
            if off <= self.off:
                return True
            if frame.get("p", off - 1) != self.off:
                return False
            self._reducer.fold(name, d)
            self.off = off
        self._tell((name, d))
        return True

    def end(self, fault: Fault, quiet: bool = False) -> None:
        """It is followed no longer; readers are told by the fault, or just end where that was to be expected."""
        self.fault = fault
        if not self.placed.done():
            self.placed.set_exception(fault)
            self.placed.exception()
        self._tell(None if quiet else fault)

    def _tell(self, item: tuple[str, Any] | Fault | None) -> None:
        for reader in self._readers:
            reader.queue.put_nowait(item)


class Events:
    """Iterates over `(name, d)`; `("topic.snapshot", state)` says that the state was replaced as a whole.

    Nothing is dropped: who asks for events has to read them, or let go of the iterator.
    """

    def __init__(self, readers: WeakSet[Events], fault: Fault | None) -> None:
        self.queue: asyncio.Queue[tuple[str, Any] | Fault | None] = asyncio.Queue()
        readers.add(self)
        if fault is not None:
            self.queue.put_nowait(fault)

    def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        return self

    async def __anext__(self) -> tuple[str, Any]:
        item = await self.queue.get()
        if isinstance(item, tuple):
            return item
        self.queue.put_nowait(item)  # the end is the end for whoever asks again
        if item is None:
            raise StopAsyncIteration
        raise item


class _Request(NamedTuple):
    text: bytes
    future: asyncio.Future[Any]
    topic: Topic | None


# the client


class Client:
    """A connection to a hub that comes back by itself; an async context manager.

    Requests that were unanswered when the connection broke are sent again under their idempotency key, topics are
    followed from where they stood, and tool calls are answered on the next connection.

    Args:
        url: `http(s)://host:port` or `ws(s)://…` of the hub, or an `Address`.
        client_id: The device or frontend whose settings apply.
        token: A bearer token; without one the hub may know the user otherwise.
        tools: Tools that runs which this client starts may call.
        caps: What `hello` tells of it, such as `{"ask": ["approval"]}`.
        reducers: Folds of plugins' topics by family; a topic without one keeps the state of its last snapshot.
        on_status: Told `connected`, `lost`, `bye`, `auth.expiring` and at last `ended`, with their details.
    """

    def __init__(
        self,
        url: str | Address,
        client_id: str = "cli",
        token: str | None = None,
        *,
        tools: Iterable[ClientTool] = (),
        caps: Json | None = None,
        reducers: Mapping[str, Callable[[str], Reducer]] | None = None,
        on_status: Callable[[str, Json], None] = lambda name, details: None,
    ) -> None:
        self._address = url if isinstance(url, Address) else Address(url)
        self._token = token
        self._client = {"id": client_id, "kind": "cli", "name": "sag", "version": __version__}
        self._tools = ClientToolbox(self._say, lambda: int(self.limits["frame"]))
        for tool in tools:
            self._tools.add(tool)
        self._caps = caps or {}
        self._families = {**FAMILIES, **(reducers or {})}
        self._on_status = on_status
        self.url = self._address.url
        self.user: Json = {}
        self.server: Json = {}
        self.limits: Json = {"frame": 1 << 20}
        self.topics: dict[str, Topic] = {}
        self.session: Json = {}
        self.tools_refused: list[str] = []
        self.connected = False
        self._by_t: dict[int, Topic] = {}
        self._pending: dict[int | str, _Request] = {}
        self._next_id = HELLO
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._silence_s = HELLO_S
        self._bye: Json | None = None
        self._not_before = 0.0
        self._at_once = False
        self._hellos: list[asyncio.Future[list[str]]] = []
        self._fault: Fault | None = None
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Client:
        """Connect and say hello.

        Raises:
            Fault: hub.unreachable, or why the hub refuses.
        """
        greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._stay_connected(greeted), name="sag client")
        try:
            await greeted
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = self._tools.tasks()
        self._tools.reset()
        if self._task is not None:
            self._task.cancel()
            tasks.append(self._task)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end(Fault("connection.ended", "The client was closed.", code=499))

    # what it is for

    async def call(self, method: str, params: Json | None = None, *, timeout_s: float | None = 60.0) -> Any:
        """Send a request and wait for its answer, over as many connections as it takes.

        What changes something is given an idempotency key unless `params` has one, so that it takes effect once.

        Raises:
            Fault: What the hub answered.
            TimeoutError: No answer in time; the hub is told to stop.
        """
        params = dict(params or {})
        if method.rpartition(".")[2] not in READING:
            params.setdefault("key", secrets.token_hex(16))
        return await self._ask(method, params, timeout_s)

    async def subscribe(self, name: str, start: str | None = None, *, gen: str | None = None, off: int = 0) -> Topic:
        """Follow a topic; one that is followed already is given as it is.

        Args:
            name: `conv:<id>`, `user:me`, `client:<id>`, `hub` or a plugin's.
            start: `head` for what comes from now on without a state, `snapshot`; else the hub chooses.
            gen, off: Where the caller stands from an earlier time; its state is not known then.

        Raises:
            Fault: topic.unknown, topic.limit …
        """
        topic = self.topics.get(name)
        if topic is None:
            topic = self._topic(name, {"from": start} if start else {"gen": gen, "off": off} if gen else {})
            self._subscribe(topic)
        await asyncio.shield(topic.placed)
        return topic

    async def unsubscribe(self, name: str) -> None:
        """Follow a topic no longer."""
        if (topic := self.topics.pop(name, None)) is not None:
            topic.end(Fault("topic.unknown", "It is followed no longer."), quiet=True)
            await self.call("topic.unsubscribe", {"topic": name})

    # tools that it offers

    def add_tool(
        self,
        name: str,
        description: str,
        input: Mapping[str, Any],
        handler: Handler,
        *,
        idempotent: bool = False,
        timeout_ms: int = 60_000,
        risk: str = "read",
    ) -> None:
        """Offer a tool to the runs that this client starts; one of the same name is replaced.

        It is told in the next hello: add it before the client is entered, or call `offer` afterwards. The arguments
        are those of `ClientTool`.
        """
        self._tools.add(ClientTool(name, handler, description, input, idempotent, timeout_ms, risk))

    def drop_tool(self, name: str) -> None:
        """Offer a tool no longer, from the next hello on; one that is not there is no error."""
        self._tools.drop(name)

    def tool(
        self, name: str | None = None, *, idempotent: bool = False, timeout_ms: int = 60_000, risk: str = "read"
    ) -> Callable[[F], F]:
        """Decorates a function as a tool: arguments from its signature, the description from its docstring.

        A parameter named `ctx` is given the `ToolCall`.

        Raises:
            TypeError: A parameter has no annotation, or there is no docstring.
        """

        def add(function: F) -> F:
            from sag.hooks.tool import tool

            made = tool(name=name)(function)

            async def handle(args: Json, call: ToolCall) -> Any:
                context: Any = call
                return await made.call(made.check(args), context)

            self.add_tool(
                made.name, made.description, made.input, handle, idempotent=idempotent, timeout_ms=timeout_ms, risk=risk
            )
            return function

        return add

    async def offer(self) -> list[str]:
        """Tell the hub now of tools that were added or dropped, and give the names that it refuses.

        Tools are told in hello alone, so this says hello on a new connection, which goes on where the old one was.

        Raises:
            Fault: The client ended.
        """
        if self._fault is not None:
            raise self._fault
        told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._hellos.append(told)
        if self._socket is not None:
            self._at_once = True
            self._socket.transport.abort()
        return await told

    async def refresh(self, token: str) -> None:
        """Go on with another token of the same user, after `auth.expiring`."""
        self._token = token
        await self.call("auth.refresh", {"token": token})

    def drop_connection(self) -> None:
        """Cut the socket as a bad network does; the client comes back by itself. For tests."""
        if self._socket is not None:
            self._socket.transport.abort()

    # requests

    async def _ask(self, method: str, params: Json, timeout_s: float | None, topic: Topic | None = None) -> Any:
        if self._fault is not None:
            raise self._fault
        self._next_id += 1
        id = self._next_id
        text = _encode({"id": id, "method": method, "params": params})
        if len(text) > self.limits["frame"]:
            raise Fault("frame.large", f"A request is at most {self.limits['frame']} bytes; upload what is larger.")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[id] = _Request(text, future, topic)
        if self.connected:
            self._out.put_nowait(text)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except (TimeoutError, asyncio.CancelledError):
            if self.connected:
                self._out.put_nowait(_encode({"method": "rpc.cancel", "params": {"id": id}}))
            raise
        finally:
            self._pending.pop(id, None)

    def _topic(self, name: str, start: Json) -> Topic:
        family, _, id = name.partition(":")
        make = self._families.get(family)
        reducer = make(id) if make else PlainReducer({}, lambda state, event, d: None)
        topic = self.topics[name] = Topic(name, reducer, start)
        return topic

    def _subscribe(self, topic: Topic) -> None:
        """Ask for a topic from where it stands, once; while that is open its frames are dropped."""
        if topic.asking or topic.fault is not None or self.topics.get(topic.name) is not topic:
            return
        topic.asking = True
        if self.connected:  # else hello asks
            self._next_id += 1
            text = _encode(
                {"id": self._next_id, "method": "topic.subscribe", "params": {"topic": topic.name, **topic.position}}
            )
            self._pending[self._next_id] = _Request(text, asyncio.get_running_loop().create_future(), topic)
            self._out.put_nowait(text)

    def _place(self, topic: Topic, answer: Json, *, alone: bool = True) -> None:
        """What the hub says where a topic stands; runs before the next frame is looked at."""
        if error := answer.get("error"):
            self._not_placed(topic, fault_of(error), alone)
            return
        topic.t = answer["t"] if topic.t is None else max(topic.t, answer["t"])
        self._by_t[answer["t"]] = topic
        topic.place(answer)

    def _not_placed(self, topic: Topic, fault: Fault, alone: bool) -> None:
        topic.asking = False
        if fault.kind == "topic.later" and not alone:  # it does not fit in beside the others
            self._subscribe(topic)
        elif fault.retry and topic.placed.done():
            asyncio.get_running_loop().call_later((fault.after_ms or 1000) / 1000, self._subscribe, topic)
        else:
            self._drop(topic, fault)

    def _drop(self, topic: Topic, fault: Fault, quiet: bool = False) -> None:
        if self.topics.get(topic.name) is topic:
            del self.topics[topic.name]
        topic.end(fault, quiet)

    # one connection after the other

    async def _stay_connected(self, greeted: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            began = loop.time()
            self._bye = None
            try:
                await self._one_connection(greeted)
            except asyncio.CancelledError:
                raise
            except Exception as e:
                fault = self._why(e)
            finally:
                self.connected, self._socket = False, None
            if not greeted.done():
                greeted.set_exception(fault)
                return
            if not fault.retry:
                self._end(fault)
                return
            if self._at_once:
                self._at_once = False
                continue
            attempt = 0 if loop.time() - began >= STEADY_S else attempt + 1
            wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt, 10)))
            wait_s = max(wait_s, self._not_before - loop.time(), (fault.after_ms or 0) / 1000)
            self._on_status("lost", {"reason": fault.message, "wait_s": wait_s})
            await asyncio.sleep(wait_s)

    async def _one_connection(self, greeted: asyncio.Future[None]) -> None:
        """Connect, greet, read until it ends; always raises."""
        out = self._out = asyncio.Queue()
        self._silence_s = HELLO_S
        self._address = self._address.now()
        async with connect(
            _socket_url(self._address.url),
            subprotocols=[Subprotocol("sag.1.json")],
            ssl=self._address.tls(),
            proxy=None,
            compression=None,
            ping_interval=None,  # the protocol has a heartbeat of its own
            close_timeout=2,
            max_size=16 << 20,
        ) as socket:
            self._socket = socket
            writer = asyncio.create_task(self._write(socket, out))
            try:
                out.put_nowait(self._hello(greeted))
                while True:
                    try:
                        async with asyncio.timeout(self._silence_s):
                            text = await socket.recv()
                    except TimeoutError:
                        socket.transport.abort()
                        raise
                    if isinstance(text, str):
                        objects = msgspec.json.decode(text)
                        for thing in objects if isinstance(objects, list) else [objects]:
                            self._receive(thing)
            finally:
                writer.cancel()

    async def _write(self, socket: ClientConnection, out: asyncio.Queue[bytes]) -> None:
        try:
            while True:
                await socket.send(await out.get(), text=True)
        except ConnectionClosed:
            pass  # the reader sees it too

    def _hello(self, greeted: asyncio.Future[None]) -> bytes:
        self._by_t.clear()
        for id in [id for id, request in self._pending.items() if request.topic is not None]:
            del self._pending[id]  # hello asks for every topic
        for topic in self.topics.values():
            topic.t, topic.asking = None, True
        params: Json = {
            "v": 1,
            "client": self._client,
            "caps": self._caps,
            "topics": {name: topic.position for name, topic in self.topics.items()},
            "tools": self._tools.declarations(),
        }
        # Read only now: a hub that was started again tells its new token before it serves.
        if token := self._token or self._address.now().token:
            params["auth"] = {"scheme": "bearer", "token": token}
        if self.session:
            params["resume"] = {"session": self.session["id"], "secret": self.session["secret"]}
        self._greeted = greeted
        return _encode({"id": HELLO, "method": "hello", "params": params})

    def _welcome(self, result: Json) -> None:
        """Hello was answered: everything is where it was, and what is unanswered is sent again."""
        self.user, self.server, self.limits = result["user"], result["server"], result["limits"]
        self.session, self.tools_refused = result["session"], result.get("tools_refused", [])
        self._silence_s = (result["ping"]["every_ms"] + result["ping"]["timeout_ms"]) / 1000
        self.connected = True
        if self.session["resumed"]:
            self._tools.resume()
        else:
            self._tools.reset()
        for name, answer in result["topics"].items():
            if (topic := self.topics.get(name)) is not None:
                self._place(topic, answer, alone=False)
        for topic in list(self.topics.values()):
            if topic.t is None:  # asked for since hello was sent
                topic.asking = False
                self._subscribe(topic)
        for request in list(self._pending.values()):
            if request.topic is None:
                self._out.put_nowait(request.text)
        if not self._greeted.done():
            self._greeted.set_result(None)
        for told in self._hellos:
            if not told.done():
                told.set_result(self.tools_refused)
        self._hellos.clear()
        self._on_status("connected", {"resumed": self.session["resumed"]})

    def _why(self, e: Exception) -> Fault:
        """Why a connection ended, and whether to come back."""
        if isinstance(e, Fault):
            return e
        if bye := self._bye:
            text = f"the hub closed the connection ({bye.get('code')} {bye.get('reason')})"
            return Fault("connection.ended", text, code=bye.get("code"), retry=bool(bye.get("reconnect")))
        if isinstance(e, ConnectionClosed):
            code = e.rcvd.code if e.rcvd else 1006
            return Fault("connection.ended", "the connection broke", code=code, retry=not 4500 <= code < 5000)
        if isinstance(e, InvalidStatus):
            try:
                return fault_of(msgspec.json.decode(e.response.body or b"")["error"])
            except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
                status = e.response.status_code
                text = f"no hub at {self._address.url}: it answers with HTTP {status}"
                return Fault("hub.unreachable", text, code=503, retry=status >= 500)
        if isinstance(e, InvalidURI | ValueError):
            return Fault("hub.unreachable", f"{self._address.url} is no address of a hub", code=400)
        if isinstance(e, OSError | TimeoutError | InvalidHandshake | EOFError):
            return unreachable(self._address.url, e)
        raise e

    def _end(self, fault: Fault) -> None:
        """The client comes back no more."""
        self._fault = self._fault or fault
        for request in self._pending.values():
            if not request.future.done():
                request.future.set_exception(fault)
                request.future.exception()
        for told in self._hellos:
            if not told.done():
                told.set_exception(fault)
        self._hellos.clear()
        for topic in list(self.topics.values()):
            self._drop(topic, fault)
        self._on_status("ended", {"reason": fault.message, "code": fault.code})

    # what comes in

    def _receive(self, thing: Json) -> None:
        """One object; nothing here waits, so that each is done with before the next."""
        if "e" in thing:
            topic = self._by_t.get(thing["t"])
            if topic is not None and topic.fault is None and not topic.receive(thing):
                self._subscribe(topic)
        elif "method" in thing:
            params = thing.get("params") or {}
            if "id" in thing:
                self._request(thing["id"], thing["method"], params)
            else:
                self._notice(thing["method"], params)
        elif "id" in thing:
            self._answered(thing["id"], thing)
        elif "ping" in thing:
            self._out.put_nowait(_encode({"pong": thing["ping"]}))
            for t, head in (thing.get("heads") or {}).items():
                topic = self._by_t.get(int(t))
                if topic is not None and topic.t == int(t) and head > topic.off:
                    self._subscribe(topic)

    def _answered(self, id: Any, thing: Json) -> None:
        if id == HELLO and not self.connected:
            if "error" in thing:
                raise fault_of(thing["error"])
            self._welcome(thing["result"])
            return
        request = self._pending.get(id)
        if request is None:
            return
        if "error" in thing and (thing["error"].get("data") or {}).get("kind") == "draining":
            return  # it is sent again to the hub that comes up
        del self._pending[id]
        if request.topic is not None:
            self._place(request.topic, thing if "error" in thing else thing["result"])
        elif request.future.done():
            return
        elif "error" in thing:
            request.future.set_exception(fault_of(thing["error"]))
        else:
            result = thing["result"]
            if isinstance(result, dict) and isinstance(answer := result.get("topic"), dict) and "conv" in result:
                name = f"conv:{result['conv']}"
                self._place(self.topics.get(name) or self._topic(name, {}), answer)
            request.future.set_result(result)

    def _notice(self, method: str, params: Json) -> None:
        if method == "topic.closed":
            topic = self._by_t.pop(params["t"], None)
            if topic is not None and topic.t == params["t"]:
                if params["reason"] in ("gen", "behind"):
                    self._subscribe(topic)
                else:
                    self._drop(topic, Fault("topic.unknown", f"The topic ended: {params['reason']}."), quiet=True)
        elif method == "rpc.cancel":
            self._tools.stop(str(params.get("id")), Fault("request.cancelled"))
        elif method == "bye":
            self._bye = params
            self._not_before = asyncio.get_running_loop().time() + (params.get("after_ms") or 0) / 1000
            self._on_status("bye", params)
        elif method == "auth.expiring":
            self._on_status("auth.expiring", params)

    def _request(self, id: str, method: str, params: Json) -> None:
        if method == "tool.call":
            self._tools.call(id, params)
        else:
            self._out.put_nowait(_encode({"id": id, "error": Fault("rpc.method").body()}))

    def _say(self, text: bytes) -> None:
        """Send what is of this connection alone, or of the next, which it comes back to by itself."""
        if self.connected:
            self._out.put_nowait(text)


def _socket_url(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/")
    return urlunsplit((scheme, parts.netloc, path if path.endswith("/ws") else f"{path}/ws", "", ""))
