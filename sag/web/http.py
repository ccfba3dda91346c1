"""The same operations over HTTP: `/rpc`, REST routes, server-sent events, schemas, health, files, the page.

Nothing is decided here that the socket does not decide by the same call (protocol section 10).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from sag.errors import Fault
from sag.hooks.hub import MountedApp
from sag.hooks.routes import PluginRoute, Reply, Sent, Stream
from sag.hooks.routes import Request as RouteRequest
from sag.hub.hub import Hub
from sag.hub.subscription import Follower, Position, place, resolve
from sag.ops.dispatch import DECODE_ERRORS, Call, Dispatcher, error_body, params_fault
from sag.ops.operation import Operation
from sag.store.blobs import Blobs
from sag.topics.merge import encode, tails
from sag.web.guard import Guard

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
COMMENT_S = 30.0
KEEPALIVE_S = 15.0
FAREWELL_S = 0.5  # that streams have for the end of runs which the hub interrupts
SLOWEST = 1 << 10  # bytes of a body per second
Answer = Callable[[Request], Awaitable[Response]]
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class HttpFacade:
    """The HTTP side of the hub.

    Args:
        hub: For topics and limits.
        dispatcher: What calls operations.
        guard: What every request passes first.
        blobs: Uploaded files.
        health: What `/health` tells.
        schemas: The generated documents by name.
    """

    def __init__(
        self,
        hub: Hub,
        dispatcher: Dispatcher,
        guard: Guard,
        blobs: Blobs,
        health: Callable[[], dict[str, Any]],
        schemas: Callable[[str], bytes | None],
    ) -> None:
        self._hub, self._dispatcher, self._guard, self._blobs = hub, dispatcher, guard, blobs
        self._health, self._schemas = health, schemas
        self._followers: set[Follower] = set()
        self._closing = asyncio.Event()
        self.mounts: Mapping[str, MountedApp] = {}
        self.plugin_routes: Mapping[str, PluginRoute] = {}

    def routes(self, frontend: Path) -> list[BaseRoute]:
        """All routes; a REST route stands for its operation."""
        routes: list[BaseRoute] = [
            Route("/health", self._health_answer, methods=["GET"]),
            Route("/rpc/{method:path}", self._guarded(self._rpc), methods=["POST"]),
            Route("/events/{topic:path}", self._guarded(self._events), methods=["GET"]),
            Route("/schema/{name}", self._guarded(self._schema), methods=["GET"]),
            Route("/api/files", self._guarded(self._upload), methods=["POST"]),
            Route("/api/files/{ref}", self._guarded(self._download), methods=["GET"]),
        ]
        for op in self._dispatcher.registry:
            if op.rest:
                method, _, path = op.rest.partition(" ")
                for at in sorted({path, path.rstrip("/")}):  # a path that ends in a slash is served without it too
                    routes.append(Route(at, self._guarded(self._rest(op)), methods=[method]))
        for route in self.plugin_routes:
            method, _, path = route.partition(" ")
            routes.append(Route(path, self._guarded(self._plugin_route(route)), methods=[method]))
        allowed: dict[str, set[str]] = {}
        for known in routes:
            if isinstance(known, Route):
                allowed.setdefault(known.path, set()).update(known.methods or ())
        for path, methods in allowed.items():  # else the page, which lies below everything, would say 404
            if others := sorted({*CHANGING, "GET"} - methods):
                routes.append(Route(path, self._guarded(_no_method(methods)), methods=others, name="no method"))
        for path, given in self.mounts.items():
            mounted = _Mounted(given, path, self._guard, self.mounts, self._closing)
            routes += [Route(path, mounted), Route(f"{path}/{{rest:path}}", mounted)][: 1 + given.below]
        for name in ("kiosk", "voice", "chat"):
            folder = frontend / name
            if (folder / "index.html").is_file():
                routes.append(
                    Mount("/" if name == "chat" else f"/{name}", GZipMiddleware(_Page(folder), minimum_size=1024))
                )
        if not (frontend / "chat" / "index.html").is_file():
            routes.append(Route("/", self._guarded(_no_page), methods=["GET"]))
        return routes

    def close(self) -> None:
        """End the event streams, and tell what is mounted that its clients are gone."""
        self._closing.set()
        for follower in list(self._followers):
            follower.ended(follower.topic, "restart")

    # what all of them pass

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            try:
                headers = request.scope["headers"]
                self._guard.check_host(headers)
                if request.method in CHANGING:
                    self._guard.check_origin(headers)
                if b"token=" in request.scope["query_string"]:
                    raise Fault("request.bad", "A token does not belong in a URL; send it as a header.")
                return await answer(request)
            except ClientDisconnect:  # while its body was read
                return Response(status_code=499)
            except Exception as e:
                return fault_response(e, f"{request.method} {request.url.path}")

        return guarded

    async def _call(self, request: Request) -> Call:
        user, _, _ = await self._guard.user_of(request.scope["headers"])
        client = request.headers.get("sag-client", "")
        key = request.headers.get("idempotency-key")
        return Call(user, client, begin=self._dispatcher.begin, key=key)

    async def _body(self, request: Request, limit: int) -> bytes:
        """The body, bounded in size and in how slowly it may come."""
        slow_s = self._hub.settings.body_ms / 1000
        size, chunks, window, late = 0, list[bytes](), 0, asyncio.get_running_loop().time() + slow_s
        stream = request.stream()
        while True:
            now = asyncio.get_running_loop().time()
            if now >= late:
                if window < SLOWEST * slow_s:
                    raise Fault("body.timeout")
                window, late = 0, now + slow_s
            try:
                async with asyncio.timeout(late - now):
                    chunk = await anext(stream)
            except TimeoutError:
                raise Fault("body.timeout") from None
            except StopAsyncIteration:
                break
            size += len(chunk)
            window += len(chunk)
            if size > limit:
                raise Fault("frame.large", f"The body is larger than {limit} bytes.")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _json_body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Fault("media.type")
        return await self._body(request, self._hub.limits.frame)

    # operations

    async def _rpc(self, request: Request) -> Response:
        method = request.path_params["method"]
        op = self._dispatcher.registry.get(method)
        call = await self._call(request)
        self._dispatcher.admit(call, op)
        body = await self._json_body(request) if op.changes or request.headers.get("content-type") else b""
        return await self._answer(call, op, body)

    def _rest(self, op: Operation) -> Answer:
        lists = list_members(op.params)

        async def answer(request: Request) -> Response:
            call = await self._call(request)
            self._dispatcher.admit(call, op)
            query = request.query_params
            values: dict[str, Any] = {k: _split(query.getlist(k)) if k in lists else v for k, v in query.items()}
            values |= request.path_params
            if request.method in CHANGING and (request.method != "DELETE" or request.headers.get("content-type")):
                body = await self._json_body(request)
                try:
                    given = msgspec.json.decode(body or b"{}")
                except DECODE_ERRORS as e:
                    raise Fault("rpc.parse", str(e)) from None
                if not isinstance(given, dict):
                    raise Fault("rpc.params", "The body is a JSON object.", path="$")
                values = {**given, **values}
            try:
                params = msgspec.convert(values, op.params, strict=False)
            except DECODE_ERRORS as e:
                raise params_fault(e) from None
            return await self._answer(call, op, encode(params))

        return answer

    async def _answer(self, call: Call, op: Operation, raw: bytes) -> Response:
        _, result = await self._dispatcher.call(call, op, raw)
        return Response(result, media_type="application/json", headers={"cache-control": "no-store"})

    # routes of plugins

    def _plugin_route(self, route: str) -> Answer:
        async def answer(request: Request) -> Response:
            given = self.plugin_routes.get(route)
            if given is None:
                raise Fault("plugin.failed")
            try:
                result = await self._ask_plugin(given, request)
            except Exception as e:
                if given.failed is None:
                    raise
                result = given.failed(error_body(e, route)[0])
            if isinstance(result, Stream):
                headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
                check = partial(self._guard.user_of, request.scope["headers"], any_key=given.any_key)
                return StreamingResponse(
                    self._sent(result.events, check), media_type="text/event-stream", headers=headers
                )
            if not isinstance(result, Reply):
                result = Reply(encode(result))
            headers = {"cache-control": "no-store", "x-content-type-options": "nosniff", **result.headers}
            return Response(result.body, result.status, headers, media_type=result.mime)

        return answer

    async def _ask_plugin(self, route: PluginRoute, request: Request) -> Any:
        self._guard.check_origin(request.scope["headers"])  # for reading too: nobody knows what it does
        user, _, _ = await self._guard.user_of(request.scope["headers"], any_key=route.any_key)
        if user is None:
            raise Fault("auth.required")
        if request.method in CHANGING and self._dispatcher.draining:
            raise Fault("draining", after_ms=1000)
        limits = self._hub.limits
        return await route.function(
            RouteRequest(
                user,
                request.headers.get("sag-client", ""),
                request.path_params,
                dict(request.query_params),
                dict(request.headers),
                request.client.host if request.client else "",
                lambda large: self._body(request, limits.body if large else limits.frame),
                lambda: _gone(request),
            )
        )

    async def _sent(self, events: AsyncIterator[Sent], check: Callable[[], Awaitable[object]]) -> AsyncIterator[bytes]:
        """Events as text, with comments while there are none, until they end or the credentials are revoked.

        When the hub goes down, what is left to say is still said, as far as it comes within `FAREWELL_S`.

        Args:
            events: What is sent.
            check: Raises a fault once the reader's credentials hold no longer.
        """
        loop = asyncio.get_running_loop()
        checked = loop.time()
        closing = asyncio.ensure_future(self._closing.wait())
        until: float | None = None
        upcoming: asyncio.Future[Sent] | None = None
        try:
            while True:
                upcoming = upcoming or asyncio.ensure_future(anext(events))
                both: set[asyncio.Future[Any]] = {upcoming, closing}
                await asyncio.wait(both, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    until = until or loop.time() + FAREWELL_S
                    await asyncio.wait({upcoming}, timeout=max(0.0, until - loop.time()))
                    if not upcoming.done() or loop.time() >= until:
                        return
                if loop.time() >= checked + KEEPALIVE_S:
                    checked = loop.time()
                    try:
                        await check()
                    except Fault:
                        return
                if not upcoming.done():
                    yield b":\n\n"
                    continue
                try:
                    sent, upcoming = upcoming.result(), None
                except StopAsyncIteration:
                    return
                yield _sse(sent)
        finally:
            closing.cancel()
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait({upcoming})
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    # topics

    async def _events(self, request: Request) -> Response:
        user, _, _ = await self._guard.user_of(request.scope["headers"])
        if user is None:
            raise Fault("auth.required")
        topic = await resolve(self._hub.topics, user, request.path_params["topic"])
        gen, off = request.query_params.get("gen"), request.query_params.get("off")
        if last := request.headers.get("last-event-id"):
            gen, _, off = last.rpartition(":")
        if off is not None and not off.isdigit():
            raise Fault("rpc.params", "`off` is a whole number.", path="$.off")
        position = Position(gen, None if off is None else int(off))
        subscribed = await place(topic, position, self._hub.limits.frame)
        follower = Follower(self._hub.topics, topic, subscribed.off)
        self._followers.add(follower)
        loop = asyncio.get_running_loop()

        async def stream() -> AsyncIterator[bytes]:
            try:
                yield b"event: topic\nid: %b:%d\ndata: %b\n\n" % (
                    topic.gen.encode(),
                    subscribed.off,
                    encode(subscribed),
                )
                checked = loop.time()
                while follower.reason is None:
                    async for text in _batches(follower, subscribed.head):
                        yield text
                    if not await follower.woken(COMMENT_S):
                        yield b":\n\n"
                    if loop.time() >= checked + COMMENT_S:
                        checked = loop.time()
                        await self._guard.user_of(request.scope["headers"])  # a revoked token ends the stream
                yield b"event: topic.closed\ndata: %b\n\n" % encode({"reason": follower.reason})
            except Fault as e:
                reason = "denied" if e.status in (401, 403) else "behind"
                yield b"event: topic.closed\ndata: %b\n\n" % encode({"reason": reason})
            finally:
                self._followers.discard(follower)
                follower.close()

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    # the rest

    async def _health_answer(self, request: Request) -> Response:
        health = self._health()
        return Response(encode(health), 200 if health["status"] == "ok" else 503, media_type="application/json")

    async def _schema(self, request: Request) -> Response:
        text = self._schemas(request.path_params["name"])
        if text is None:
            raise Fault("route.unknown")
        return Response(text, media_type="application/json")

    async def _upload(self, request: Request) -> Response:
        call = await self._call(request)
        if self._dispatcher.draining:
            raise Fault("draining", after_ms=1000)
        data = await self._body(request, self._hub.limits.body)
        mime = request.headers.get("content-type", "application/octet-stream")[:200]
        name = request.query_params.get("name", "")[:200]
        kept = await self._blobs.put(call.me.id, data, mime, name)
        return Response(encode(kept), media_type="application/json")

    async def _download(self, request: Request) -> Response:
        call = await self._call(request)
        kept, data = await self._blobs.get(call.me.id, request.path_params["ref"])
        headers = {
            "content-disposition": "attachment",
            "content-security-policy": "sandbox; default-src 'none'",
            "x-content-type-options": "nosniff",
            "cache-control": "private, max-age=31536000, immutable",
        }
        return Response(data, media_type=kept.mime, headers=headers)


def list_members(params: type[Struct]) -> frozenset[str]:
    """The members of params that are lists: in a query they come repeated, or separated by commas."""
    info = msgspec.inspect.type_info(params)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(f.encode_name for f in info.fields if _is_list(f.type))


def _is_list(info: msgspec.inspect.Type) -> bool:
    options = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return any(isinstance(option, msgspec.inspect.ListType) for option in options)


def _split(values: list[str]) -> list[str]:
    return [piece for value in values for piece in value.split(",") if piece]


async def _batches(follower: Follower, replay_to: int) -> AsyncIterator[bytes]:
    while entries := await follower.next():
        after = follower.cursor
        follower.cursor = entries[-1].off
        gen = follower.topic.gen.encode()
        for object, off in zip(*_objects(entries, after, entries[-1].off <= replay_to), strict=True):
            yield b"id: %b:%d\ndata: {%b\n\n" % (gen, off, object)


def _objects(entries: list[Any], after: int, replay: bool) -> tuple[list[bytes], list[int]]:
    objects = tails(entries, after, replay=replay)
    return objects, [int(o[4 : o.index(b",")]) for o in objects]


def fault_response(e: Exception, what: str) -> Response:
    """The answer for an exception."""
    fault, body = error_body(e, what)
    headers = {"cache-control": "no-store"}
    if fault.after_ms is not None:
        headers["retry-after"] = str(max(1, -(-fault.after_ms // 1000)))
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encode({"error": body}), fault.status, headers, media_type="application/json")


def _no_method(allowed: set[str]) -> Answer:
    async def answer(request: Request) -> Response:
        response = fault_response(Fault("method.denied"), f"{request.method} {request.url.path}")
        response.headers["allow"] = ", ".join(sorted(allowed))
        return response

    return answer


async def _gone(request: Request) -> None:
    """Wait until the client has gone away; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sse(sent: Sent) -> bytes:
    """An event as it is sent; no line of it can begin another."""
    lines = [f": {line}" for line in (sent.comment or "").splitlines()]
    lines += [f"id: {_one_line(sent.id)}"] if sent.id is not None else []
    lines += [f"event: {_one_line(sent.name)}"] if sent.name is not None else []
    if sent.comment is None:
        text = sent.data if isinstance(sent.data, str) else encode(sent.data).decode()
        lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", text)]
    return ("\n".join(lines) + "\n\n").encode()


def _one_line(text: str) -> str:
    return " ".join(text.split())


async def _no_page(request: Request) -> Response:
    text = "The hub runs, but its pages are not built. Run scripts/build, or install the sag-hub wheel.\n"
    return Response(text, 200, media_type="text/plain")


class _Mounted:
    """A plugin's application behind the hub's own checks; they hold for reading too, for nobody knows what it does."""

    def __init__(
        self, app: MountedApp, path: str, guard: Guard, mounts: Mapping[str, MountedApp], closing: asyncio.Event
    ) -> None:
        self._app, self._path, self._guard, self._mounts, self._closing = app, path, guard, mounts, closing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = ended = False

        async def tell(message: Any) -> None:
            nonlocal begun, ended
            begun = begun or message["type"] == "http.response.start"
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def hear() -> Any:
            """What the client sends; that it is gone once the hub goes down, for a stream ends by nothing else."""
            message, closing = asyncio.ensure_future(receive()), asyncio.ensure_future(self._closing.wait())
            try:
                await asyncio.wait({message, closing}, return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                closing.cancel()

        try:
            headers = scope["headers"]
            self._guard.check_host(headers)
            self._guard.check_origin(headers)
            if b"token=" in scope["query_string"]:
                raise Fault("request.bad", "A token does not belong in a URL; send it as a header.")
            if self._mounts.get(self._path) is not self._app:
                raise Fault("plugin.failed")
            user, _, _ = await self._guard.user_of(headers)
            if user is None:
                raise Fault("auth.required")
            client = next((v.decode("latin-1") for k, v in headers if k == b"sag-client"), "")
            state = {**scope.get("state", {}), "user": user, "client": client}
            await self._app.app({**scope, "state": state}, hear, tell)
            if not ended and self._closing.is_set():  # it believes its client gone, which is there
                if not begun:
                    raise Fault("draining", after_ms=1000)
                await send({"type": "http.response.body", "body": b""})
        except Exception as e:
            if begun:
                raise
            await fault_response(e, f"{scope['method']} {scope['path']}")(scope, receive, send)


class _Page(StaticFiles):
    """A built frontend: hashed files are kept by browsers, the page itself is asked for again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before accept: refused with 403
            return
        await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        hashed = path.startswith("assets/")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if hashed else "no-cache"
        response.headers["content-security-policy"] = _CSP
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        return response
