"""One socket: reads frames, calls operations, and is the one writer of what goes out.

Live events are written as they are committed, without a queue or a task; a socket that does not take them is left
behind, and one task reads forward for it from its cursors once it takes bytes again (protocol section 3). Reading
never waits for work (RELIABILITY row 1). Above: `sag.web.socket`. Below: the session machine, topics, operations.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from msgspec import Raw, Struct, field

from sag.errors import Fault
from sag.hub.session import ClientTool, Session
from sag.hub.subscription import Position, Subscribed, place, place_at_start, read_on, resolve
from sag.ops.dispatch import Call, User, decode_params, error_body, params_fault
from sag.ops.operation import Operation
from sag.schema.ids import now_ms
from sag.topics.merge import encode, frame, tails
from sag.topics.topic import Batch, Topic
from sag.wire import closing, frames
from sag.wire.closing import Closing
from sag.wire.session import End, Hello, Notice, Phase, Ping, Pong, Refuse, Request, Response, SessionMachine

if TYPE_CHECKING:
    from sag.hub.hub import Hub

log = logging.getLogger("sag.hub")
Json = dict[str, Any]
VERSION = 1
HELLO_ROOM = 4096


class Socket(Protocol):
    """The way out of one WebSocket."""

    writable: bool
    sink: Any

    def write(self, *frames: bytes) -> None:
        """Send whole WebSocket frames; never waits."""

    def unsent(self) -> int:
        """Bytes that the peer has not acknowledged, as far as this machine knows."""

    async def close(self, code: int, reason: str) -> None:
        """Close in order; may take as long as the peer lets it."""

    def abort(self) -> None:
        """Drop the connection at once."""


class Subscription:
    """A connection's cursor in a topic."""

    __slots__ = ("active", "connection", "cursor", "lagging", "replay_to", "t", "topic")

    def __init__(self, connection: Connection, topic: Topic, t: int, cursor: int, replay_to: int) -> None:
        self.connection, self.topic, self.t = connection, topic, t
        self.cursor, self.replay_to = cursor, replay_to
        self.active = self.lagging = False

    def offer(self, topic: Topic, batch: Batch) -> None:
        if not self.active:
            return
        connection = self.connection
        if self.lagging or self.cursor != batch.after or not connection.socket.writable:
            connection.lag(self)
            return
        t = self.t
        data = batch.cache.get(t)
        if data is None:
            data = batch.cache[t] = frames.websocket_text(batch.text(t))
        self.cursor = batch.last
        if connection.answering:
            connection.hold(data)
        else:
            connection.socket.write(data)

    def ephemeral(self, topic: Topic, name: str, body: bytes) -> None:
        if self.active and not self.lagging and self.connection.socket.writable:
            text = b'{"t":%d,"e":"%b","d":%b}' % (self.t, name.encode(), body)
            self.connection.let_go(frames.websocket_text(text))

    def ended(self, topic: Topic, reason: str) -> None:
        self.connection.topic_closed(self, reason)


class ClientInfo(Struct):
    """Who speaks: the device or frontend whose settings apply."""

    id: str
    kind: str = ""
    name: str = ""
    version: str = ""


class Auth(Struct):
    """Credentials in `hello`."""

    scheme: str = "bearer"
    token: str = ""


class Resume(Struct):
    """The session to go on with."""

    session: str
    secret: str


class HelloParams(Struct):
    """Params of `hello`; only `v` and `client.id` are required."""

    v: int
    client: ClientInfo
    auth: Auth | None = None
    caps: Json = field(default_factory=dict)
    topics: dict[str, Position] = field(default_factory=dict)
    tools: list[ClientTool] | None = None
    resume: Resume | None = None


class UnsubscribeParams(Struct):
    """Params of `topic.unsubscribe`."""

    topic: str


class SubscribeParams(Struct, rename={"from_": "from"}):
    """Params of `topic.subscribe`."""

    topic: str
    gen: str | None = None
    off: int | None = None
    from_: Literal["head", "snapshot"] | None = None


class Connection:
    """One socket's side of the hub."""

    __slots__ = (
        "_bad_rate", "_greeting", "_heartbeat", "_held", "_last_heard", "_next_t", "_outbox", "_outbox_size", "_pump",
        "_timers", "_unsent", "address", "answering", "client", "closed", "closing", "expires", "hub", "machine",
        "session", "socket", "subscriptions", "token", "user",
    )  # fmt: skip

    def __init__(self, hub: Hub, socket: Socket, user: User | None, token: str | None, address: str) -> None:
        self.hub, self.socket, self.user, self.token, self.address = hub, socket, user, token, address
        self.machine = SessionMachine(hub.limits.inflight)
        self.client = ""
        self.session: Session | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.closed = False
        self.closing: Closing | None = None
        self.expires: int | None = None
        self._next_t = 1
        self.answering: dict[Any, asyncio.Task[None]] = {}
        self._greeting: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._held: list[bytes] = []
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._bad_rate = (0.0, 0.0)
        self._last_heard = time.monotonic()
        self._unsent = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._later("hello", hub.settings.hello_ms, lambda: self.end(closing.NO_HELLO))
        socket.sink = self

    # timers

    def _later(self, name: str, ms: float, call: Any) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
        if not self.closed:
            self._timers[name] = asyncio.get_running_loop().call_later(ms / 1000, call)

    # reading

    def receive(self, text: str | None, data: bytes | None = None) -> None:
        """A frame came; nothing here waits."""
        self._last_heard = time.monotonic()
        if self._too_fast():
            self.end(closing.LIMIT)
            return
        if self.session is not None and self.machine.phase is Phase.OPEN:
            self.session.confirm()
        for act in self.machine.receive(text) if text is not None else self.machine.receive_bytes():
            match act:
                case Request(id, method, params):
                    self._start(id, method, params)
                case Response(id, result, error):
                    if self.session is not None:
                        self.session.answered(id, result, error)
                case Pong():
                    pass
                case Notice(method, params):
                    self._notice(method, params)
                case Hello(id, params):
                    self._greeting = asyncio.ensure_future(self._hello(id, params))
                case Refuse(id, fault):
                    self._fail(id, fault, "frame")
                case Ping(value):
                    self.send(b'{"pong":%b}' % value)
                case End(why):
                    self.end(why)

    def _too_fast(self) -> bool:
        """Whether the client sends more than the limit for longer than a burst of four seconds' worth."""
        limit = self.hub.limits.frames_per_s
        level, at = self._bad_rate
        level = max(0.0, level - (self._last_heard - at) * limit) + 1
        self._bad_rate = (level, self._last_heard)
        return level > limit * 4

    def _notice(self, method: str, params: bytes) -> None:
        try:
            values = msgspec.json.decode(params or b"{}")
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return
        if not isinstance(values, dict):
            return
        if method == "rpc.cancel":
            id = values.get("id")
            if isinstance(id, int | str) and (task := self.answering.get(id)):
                # A task that is cancelled before its first step never runs, and would leave the request unanswered.
                asyncio.get_running_loop().call_soon(task.cancel)
        elif method == "rpc.progress" and self.session is not None:
            self.session.progressed(values)

    def _fail(self, id: Any, e: BaseException, what: str) -> None:
        self.send(frames.failure(id, error_body(e, what)[1]))

    # requests

    def _start(self, id: Any, method: str, params: bytes) -> None:
        self.answering[id] = asyncio.create_task(self._serve(id, method, params))

    async def _serve(self, id: Any, method: str, params: bytes) -> None:
        activate: Subscription | None = None
        try:
            if method.startswith("topic.") or method == "auth.refresh":
                self.hub.count(method)
                result, activate = await self._own(method, params)
            else:
                result, activate = await self._operation(method, params)
            text = frames.answer(id, result)
            if len(text) > self.hub.limits.frame:
                raise Fault("frame.large", "The answer does not fit a frame; ask for less.")
        except BaseException as e:
            if activate is not None:
                self._drop(activate)
            activate = None
            _, body = error_body(e, method)
            text = frames.failure(id, body)
        self.answering.pop(id, None)
        self.machine.answered(id)
        self.send(text)
        if activate is not None:
            self._activate(activate)

    async def _operation(self, method: str, params: bytes) -> tuple[bytes, Subscription | None]:
        dispatcher = self.hub.dispatcher
        op: Operation = dispatcher.registry.get(method)
        call = Call(self.user, self.client, begin=dispatcher.begin, peer=self)
        if op.topic is None:
            return (await dispatcher.call(call, op, params))[1], None
        dispatcher.admit(call, op)
        decoded = decode_params(op, params)
        if not decoded.subscribe:
            return (await dispatcher.call(call, op, params, decoded))[1], None
        answer: Subscribed | Json | None = None
        subscription: Subscription | None = None
        name = await op.topic(call, decoded)
        if name is not None and name not in self.subscriptions:
            answer, subscription = await self._try_subscribe(name, Position())
        try:
            result = (await dispatcher.call(call, op, params, decoded))[1]
        except BaseException:
            if subscription is not None:
                self._drop(subscription)
            raise
        if name is None:
            name = f"conv:{msgspec.json.decode(result)['conv']}"
            if name not in self.subscriptions:
                answer, subscription = await self._try_subscribe(name, None)
        if answer is None:
            return result, None
        return encode({**msgspec.json.decode(result, type=dict[str, Raw]), "topic": answer}), subscription

    async def _try_subscribe(self, name: str, at: Position | None) -> tuple[Subscribed | Json, Subscription | None]:
        try:
            return await self.subscribe(name, at)
        except Fault as fault:
            return {"error": fault.body()}, None

    @property
    def tool_source(self) -> Session | None:
        return self.session

    async def _own(self, method: str, params: bytes) -> tuple[bytes, Subscription | None]:
        """The operations that belong to a connection."""
        if method == "topic.subscribe":
            p = _decode(params, SubscribeParams)
            answer, subscription = await self.subscribe(p.topic, Position(p.gen, p.off, p.from_))
            return encode(answer), subscription
        if method == "topic.unsubscribe":
            name = _decode(params, UnsubscribeParams).topic
            if (old := self.subscriptions.get(name)) is not None:
                self._drop(old)
            return b"{}", None
        if method == "auth.refresh":
            user, expires, token = await self.hub.identify(_decode(params, Auth).token)
            if self.user is None or user.id != self.user.id:
                raise Fault("auth.invalid", "The token is another user's.")
            self.user, self.token = user, token
            self._expire_at(expires)
            return encode({"expires_ms": None if expires is None else max(0, expires - now_ms())}), None
        raise Fault("rpc.method", f"There is no method {method!r}.")

    # hello

    async def _hello(self, id: Any, raw: bytes) -> None:
        activate: list[Subscription] = []
        try:
            result, activate = await self._greet(raw)
        except asyncio.CancelledError:
            return
        except Exception as e:
            fault, body = error_body(e, "hello")
            self.send(frames.failure(id, body))
            if fault.kind == "rpc.params":
                self.machine.try_again()
                return
            self.machine.close()
            why = {401: closing.NOT_AUTHENTICATED, 429: closing.LIMIT, 503: closing.RESTART}.get(fault.code)
            self.end(why or (closing.BAD_VERSION if fault.kind == "hello.version" else closing.BAD_FRAME))
            return
        if self.closed:
            return
        if timer := self._timers.pop("hello", None):
            timer.cancel()
        self.send(frames.answer(id, result))
        self.machine.greeted()
        for subscription in activate:
            self._activate(subscription)
        assert self.session is not None
        self.session.outlet = self
        self.session.redeliver()
        self._expire_at(self.expires)
        self._later("ping", self.hub.settings.ping_every_ms, self._ping)

    async def _greet(self, raw: bytes) -> tuple[bytes, list[Subscription]]:
        p = _decode(raw, HelloParams)
        if p.v != VERSION:
            raise Fault("hello.version", f"This hub speaks version {VERSION} of the protocol.")
        if not (0 < len(p.client.id) <= 64 and all(c.isalnum() or c in "._-" for c in p.client.id)):
            raise Fault("rpc.params", "client.id is 1 to 64 letters, digits, '.', '_' or '-'.", path="$.client.id")
        hub = self.hub
        if p.auth is not None:
            if p.auth.scheme != "bearer":
                raise Fault("auth.invalid", f"Unknown scheme {p.auth.scheme[:40]!r}; use bearer.")
            self.user, self.expires, self.token = await hub.identify(p.auth.token)
        if self.user is None:
            raise Fault("auth.required")
        hub.joined(self)
        self.client = p.client.id
        session = hub.sessions.find(p.resume.session, p.resume.secret, self.user.id) if p.resume else None
        resumed = session is not None
        if session is None:
            session = hub.sessions.new(self.user.id)
        elif isinstance(session.outlet, Connection):
            old = session.outlet
            session.cut()
            old.session = None
            old.end(closing.REPLACED)
        self.session = session
        refused = session.declare(p.tools, hub.taken()) if p.tools is not None else []
        topics: dict[str, Any] = {}
        activate: list[Subscription] = []
        room = hub.limits.frame - HELLO_ROOM
        for name, position in p.topics.items():
            try:
                answer, subscription = await self.subscribe(name, position, room)
            except Fault as fault:
                topics[name] = {"error": fault.body()}
                room -= 400 + len(name)
                continue
            topics[name] = answer
            room -= 200 + len(name) + (len(answer.snap) if isinstance(answer.snap, Raw) else 0)
            activate.append(subscription)
        settings = hub.settings
        return encode(
            {
                "v": VERSION,
                "server": {"name": "sag", "version": hub.version},
                "user": {"id": self.user.id, "name": self.user.name, "roles": list(self.user.roles)},
                "session": {
                    "id": session.id,
                    "secret": session.rotate(),
                    "resumed": resumed,
                    "keep_ms": settings.keep_ms,
                },
                "tools_refused": refused,
                "ping": {"every_ms": settings.ping_every_ms, "timeout_ms": settings.ping_timeout_ms},
                "limits": {"frame": hub.limits.frame, "inflight": hub.limits.inflight, "topics": hub.limits.topics},
                "topics": topics,
            }
        ), activate

    def _expire_at(self, expires: int | None) -> None:
        """Tell when the token expires, and end the connection then."""
        self.expires = expires
        for name in ("expiring", "expired"):
            if timer := self._timers.pop(name, None):
                timer.cancel()
        if expires is None:
            return
        left_ms = max(0, expires - now_ms())
        notice_ms = min(60_000, left_ms // 2)
        self._later(
            "expiring",
            left_ms - notice_ms,
            lambda: self.send(frames.notification("auth.expiring", {"in_ms": notice_ms})),
        )
        self._later("expired", left_ms, lambda: self.end(closing.AUTH_EXPIRED))

    # topics

    async def subscribe(
        self, name: str, at: Position | None, room: int | None = None
    ) -> tuple[Subscribed, Subscription]:
        """Place a cursor in a topic; events flow once it is activated, after the answer.

        Args:
            name: The topic.
            at: Where the client stands; None is before the first event of a topic that was just made.
            room: The most bytes that a snapshot may have.

        Raises:
            Fault: topic.unknown, topic.limit, topic.later.
        """
        if self.user is None:
            raise Fault("auth.required")
        if name not in self.subscriptions and len(self.subscriptions) >= self.hub.limits.topics:
            raise Fault("topic.limit")
        topic = await resolve(self.hub.topics, self.user, name)
        topic.pins += 1
        try:
            limit = self.hub.limits.frame - HELLO_ROOM if room is None else room
            if at is None and topic.first == 1:
                answer = place_at_start(self.hub.topics, topic)
            else:
                answer = await place(topic, at or Position(), limit)
        finally:
            topic.pins -= 1
        if (old := self.subscriptions.get(name)) is not None:
            self._drop(old)
        answer.t = self._next_t
        self._next_t += 1
        subscription = Subscription(self, topic, answer.t, answer.off, answer.head if at is not None else answer.off)
        if not self.closed:
            self.subscriptions[name] = subscription
            topic.readers[subscription] = None
        return answer, subscription

    def _activate(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.topic.name) is not subscription:
            return
        subscription.active = True
        if subscription.cursor < subscription.topic.head:
            self.lag(subscription)

    def _drop(self, subscription: Subscription) -> None:
        subscription.active = False
        subscription.topic.readers.pop(subscription, None)
        if self.subscriptions.get(subscription.topic.name) is subscription:
            del self.subscriptions[subscription.topic.name]

    def topic_closed(self, subscription: Subscription, reason: str) -> None:
        """A topic can be followed no longer."""
        self._drop(subscription)
        self.send(frames.notification("topic.closed", {"t": subscription.t, "reason": reason}))

    # writing

    def send(self, text: bytes) -> None:
        """Send an answer, a request or a notification; keeps it while the socket takes nothing."""
        if self.closed:
            return
        if self.socket.writable and not self._outbox:
            self.let_go(frames.websocket_text(text))
            return
        self._outbox.append(text)
        self._outbox_size += len(text)
        if self._outbox_size > self.hub.limits.outbox:
            self.end(closing.SLOW)

    def hold(self, frame: bytes) -> None:
        """Write a frame with the answer that is about to follow it, or two turns later.

        The answer to what caused an event comes just behind it, and two writes cost twice as much as one.
        """
        if not self._held:
            asyncio.get_running_loop().call_soon(self._hold_on)
        self._held.append(frame)

    def _hold_on(self) -> None:
        """One turn is over; the answer may come with the next."""
        if self._held:
            asyncio.get_running_loop().call_soon(self.let_go)

    def let_go(self, *frames: bytes) -> None:
        """Write what was held, and what follows it."""
        if self._held:
            frames = (*self._held, *frames)
            self._held.clear()
        if frames:
            self.socket.write(*frames)

    def lag(self, subscription: Subscription) -> None:
        """A subscription is behind: it is read forward for as soon as the socket takes bytes."""
        subscription.lagging = True
        if self._pump is None and not self.closed and self.socket.writable:
            self._pump = asyncio.ensure_future(self._catch_up())

    def drained(self) -> None:
        """The socket takes bytes again."""
        while self._outbox and self.socket.writable:
            text = self._outbox.pop(0)
            self._outbox_size -= len(text)
            self.let_go(frames.websocket_text(text))
        if self._pump is None and not self.closed and any(s.lagging for s in self.subscriptions.values()):
            self._pump = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        """Read forward for what lags, as long as the socket takes bytes."""
        try:
            while not self.closed and self.socket.writable:
                behind = [s for s in self.subscriptions.values() if s.lagging and s.active]
                if not behind:
                    return
                for s in behind:
                    if s.active and self.socket.writable:
                        await self._forward(s)
        except Fault as fault:
            log.warning("a reader cannot be served: %s", fault.message)
            self.end(closing.OVERLOADED)
        finally:
            self._pump = None

    async def _forward(self, s: Subscription) -> None:
        try:
            entries = await read_on(self.hub.topics, s.topic, s.cursor)
        except Fault as fault:
            if fault.kind != "topic.unknown":
                raise
            self.topic_closed(s, "behind")
            return
        if not s.active:
            return
        if not entries:
            s.lagging = False
            return
        replay = s.cursor < s.replay_to
        if replay:
            entries = [e for e in entries if e.off <= s.replay_to]
        objects = tails(entries, s.cursor, replay=replay)
        s.cursor = entries[-1].off
        self.let_go(frames.websocket_text(frame(s.t, objects)))
        if s.cursor >= s.topic.head:
            s.lagging = False
        await asyncio.sleep(0)

    # heartbeat

    def _ping(self) -> None:
        if self.closed:
            return
        heads = {str(s.t): s.cursor for s in self.subscriptions.values() if s.active and not s.lagging}
        self._unsent = self.socket.unsent()
        asked = time.monotonic()
        self.send(encode({"ping": now_ms(), "heads": heads}))
        settings = self.hub.settings
        self._later("pong", settings.ping_timeout_ms, lambda: self._check_pong(asked))
        self._later("ping", settings.ping_every_ms, self._ping)

    def _check_pong(self, asked: float) -> None:
        """End the connection of a client that is not there; one that still takes bytes only reads slowly."""
        if self._last_heard >= asked or self.closed:
            return
        unsent = self.socket.unsent()
        if 0 < unsent != self._unsent:
            self._unsent = unsent
            self._later("pong", self.hub.settings.ping_timeout_ms, lambda: self._check_pong(asked))
            return
        self.end(closing.NO_PONG)

    # ending

    def say_bye(self, why: Closing, after_ms: int = 0) -> None:
        """Tell the client that and why the connection will end, once."""
        if self.closed or self.closing is not None:
            return
        self.closing = why
        bye = {"code": why.code, "reason": why.reason, "reconnect": why.reconnect, "after_ms": after_ms}
        self.send(frames.notification("bye", bye))

    def end(self, why: Closing) -> None:
        """Say `bye` and close; a socket that takes nothing is dropped."""
        if self.closed:
            return
        self.say_bye(why)
        blocked = not self.socket.writable or bool(self._outbox)
        level = logging.WARNING if why in (closing.SLOW, closing.NO_PONG) else logging.INFO
        log.log(level, "connection of %s ended: %d %s", self.client or self.address, why.code, why.reason)
        self.shut()
        if blocked:
            self.socket.abort()
        else:
            self.hub.spawn(self._close(why))

    async def _close(self, why: Closing) -> None:
        task = asyncio.ensure_future(self.socket.close(why.code, why.reason))
        done, _ = await asyncio.wait({task}, timeout=2)
        if not done:
            task.cancel()
            self.socket.abort()
        elif not task.cancelled():
            task.exception()

    def shut(self) -> None:
        """The socket is gone or going: let go of everything. What was accepted goes on."""
        if self.closed:
            return
        self.closed = True
        self.machine.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        for subscription in list(self.subscriptions.values()):
            self._drop(subscription)
        if self._pump is not None:
            self._pump.cancel()
        if self._greeting is not None:
            self._greeting.cancel()
        self._outbox.clear()
        if self.session is not None and self.session.outlet in (None, self):
            self.hub.sessions.cut(self.session)
        self.hub.left(self)


def _decode(raw: bytes, struct: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw or b"{}", type=struct)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as e:
        raise params_fault(e) from None
