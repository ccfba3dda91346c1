"""The composition root: makes the hub out of its parts, starts it, drains it and stops it. Nothing else wires parts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import logging.handlers
import os
import queue
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from sag import __version__
from sag.api.config import Config
from sag.api.conversations import Conversations
from sag.api.export import Exports
from sag.api.models import Catalogue, shown_models
from sag.api.runs import Runs
from sag.api.system import System
from sag.api.tools import Tools
from sag.api.usage import Usages
from sag.engine.budget import Budgets
from sag.engine.engine import Engine
from sag.engine.models import Models
from sag.engine.toolbox import legal_name
from sag.engine.transport import Transport
from sag.errors import Fault, StartError
from sag.hooks.connector import Connector
from sag.hooks.connectors import shown_tool
from sag.hooks.host import Extensions, PluginHost
from sag.hooks.hub import ExportedFile, ModelPlace, Services
from sag.hooks.provider import HttpProvider, Model, Provider
from sag.hooks.tool import Policy, Tool
from sag.hooks.watchdog import Watchdog
from sag.hub.connection import Auth, HelloParams, SubscribeParams, UnsubscribeParams
from sag.hub.hub import Hub
from sag.hub.subscription import Follower, Subscribed, resolve
from sag.ops.dispatch import Call, Dispatcher, User
from sag.ops.operation import Registry
from sag.outbound import Outbound
from sag.schema.events import Event, HubConnector, HubModel, HubPlugin
from sag.schema.ids import new_secret, now_ms
from sag.secret import blot
from sag.settings import Settings
from sag.store.blobs import Blobs
from sag.store.keys import KeyStore
from sag.store.kv import KeyValue
from sag.store.projections import project
from sag.store.secrets import Secrets
from sag.store.tokens import Tokens
from sag.topics.sqlite import SqliteJournal
from sag.topics.topic import Topic, Topics
from sag.web.guard import Guard
from sag.web.http import HttpFacade, fault_response
from sag.web.server import QuietFilter, Server, listen, uvicorn_config
from sag.web.socket import SocketEndpoint

if TYPE_CHECKING:
    import httpx

    from sag.ops.export import Declared

log = logging.getLogger("sag")
Json = dict[str, Any]
FRONTEND = Path(__file__).parent / "frontend"
RETENTION_S = 3600.0


class App:
    """One hub.

    Args:
        settings: All of its settings.

    Raises:
        StartError: It cannot start; the message says why and what to do.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        hub = settings.hub
        self.journal = SqliteJournal(settings.data, hub.sync)
        self.topics = Topics(self.journal, hub.tick_ms, project)
        self.tokens = Tokens(self.journal)
        self.kv = KeyValue(self.journal, self.topics)
        self.secrets = Secrets(settings.data, self.kv, settings.env.get("SAG_SECRET_KEY", ""))
        self.blobs = Blobs(settings.data / "blobs", self.journal, self.topics)
        self.keys = KeyStore(self.journal, hub.key_s)
        self.own_token = new_secret()
        self.outbound = Outbound(settings.outbound)
        self.registry = Registry()
        self.extensions = Extensions()
        self.dispatcher = Dispatcher(self.registry, self.keys, self.topics.begin)
        self.transport = Transport(self.outbound, self.topics.backlog)
        self.models = Models(
            self.extensions,
            self.outbound,
            settings.models,
            lambda: self._announce(),
            settings.env.get("LLM_PROVIDER", ""),
        )
        self.budgets = Budgets(self.journal, settings.budget)
        self.topics.kept = self.budgets.count
        self.engine = Engine(
            self.topics, self.extensions, self.transport, self.models, self.budgets, self.kv, self.blobs, settings
        )
        self.guard = Guard(settings, self.tokens, self.own_token)
        self.hub = Hub(hub, self.topics, self.dispatcher, self._tool_names, self.guard.identify, __version__)
        self.host = PluginHost(
            settings, self.registry, self.extensions, self.topics.families, on_change=lambda _: self._announce()
        )
        self.registry.add_all(Runs(self.engine, self.journal))
        self.registry.add_all(Conversations(self.engine, self.journal, hub.limits.frame))
        self.exports = Exports(self.engine, hub.limits)
        self.registry.add_all(self.exports)
        self.registry.add_all(Config(self.engine))
        self.registry.add_all(Catalogue(self.engine))
        self.registry.add_all(Usages(self.engine, self.journal))
        self.registry.add_all(Tools(self.engine))
        self.registry.add_all(System(self.engine, self.tokens, lambda: self.host.plugins, self.hub.end_access))
        self.host.load()
        self._check_provider()
        self.extensions.connectors.on_change = lambda: self._announce()
        self.http = HttpFacade(self.hub, self.dispatcher, self.guard, self.blobs, self.health, self.schema)
        self.http.mounts = self.extensions.mounts
        self.http.plugin_routes = self.extensions.routes
        self.watchdog = Watchdog(self.host.owner, self.host.stalled)
        self._announcing: asyncio.Task[None] | None = None
        self._again = False
        self._housekeeping: asyncio.Task[None] | None = None
        self._listing: list[asyncio.Task[None]] = []
        self._started = False

    def _check_provider(self) -> None:
        """`LLM_PROVIDER` has to name a provider that there is: a typing error must not run on another model.

        Raises:
            StartError: It does not.
        """
        name = self.settings.env.get("LLM_PROVIDER", "").strip().lower()
        if name and name not in self.extensions.providers:
            known = ", ".join(sorted(self.extensions.providers)) or "none is installed"
            why = "".join(
                f"; plugin {p.name} {p.status}: {p.reason}" for p in self.host.plugins if p.status == "failed"
            )
            raise StartError(f"LLM_PROVIDER={name} names no provider; there is {known}{why}")

    def asgi(self) -> Starlette:
        """The ASGI application."""
        routes = [WebSocketRoute("/ws", SocketEndpoint(self.hub, self.guard)), *self.http.routes(FRONTEND)]
        middleware = []
        if self.settings.hub.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=self.settings.hub.origins,
                    allow_methods=["*"],
                    allow_headers=["authorization", "content-type", "idempotency-key", "sag-client", "last-event-id"],
                )
            )
        handlers: Any = {404: _not_found, 405: _not_allowed}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    def server(self, ready: Callable[[], None], *, signals: bool = True) -> Server:
        """The server of this hub."""
        return Server(uvicorn_config(self.asgi(), self.settings.hub), ready, self.drain, signals=signals)

    # starting and stopping

    async def start(self) -> None:
        """Recover what was open, start the plugins, tell what there is."""
        self._started = True
        self.host.connect(PluginServices(self))
        await self.budgets.load()
        await self.engine.recover()
        await self.host.startup()
        await self._publish_hub()
        self.watchdog.start()
        self._housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        if any(isinstance(p, HttpProvider) for p in self.extensions.providers.values()):
            self.hub.spawn(self.outbound.warm())
        for provider in self.extensions.providers.values():
            if hasattr(provider, "list_models"):
                listing = self.models.keep_fresh(provider, self.host.noter(provider.name))
                self._listing.append(asyncio.create_task(listing, name=f"models of {provider.name}"))
        self._write_address()
        gc.collect()
        gc.freeze()  # measured: a full collection with 5,000 idle sockets stops the loop for 179 ms
        gc.set_threshold(50_000, 20, 100)

    def refuse_open_door(self, tokens: int) -> None:
        """Not on another address than loopback while nobody has to sign in.

        Raises:
            StartError: No authentication is configured.
        """
        if self.settings.loopback and self.settings.hub.auth == "required" and not tokens:
            log.warning("every client needs a token, and there is none yet: make one with `sag token new`")
        if not self.settings.loopback and not tokens:
            raise StartError(
                f"refusing to listen on {self.settings.hub.host} without authentication: make a token first "
                "with `sag token new`, or listen on 127.0.0.1"
            )

    async def drain(self, hurry: asyncio.Event) -> None:
        """Tell everybody, let runs end for `drain_s`, interrupt the rest, close all sockets."""
        self.dispatcher.draining = True
        self.hub.say_goodbye(10.0)
        draining = asyncio.ensure_future(self.engine.drain(self.settings.hub.drain_s))
        waiting = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({draining, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await self.engine.drain(0)
        waiting.cancel()
        self.http.close()
        await self.hub.close()

    async def stop(self) -> None:
        """End everything and close the journal."""
        self.watchdog.stop()
        for task in (self._housekeeping, self._announcing, *self._listing):
            if task is not None:
                task.cancel()
        await self.engine.stop()
        if self._started:
            await self.host.shutdown()
        self.transport.close()
        await self.outbound.close()
        with contextlib.suppress(OSError):
            (self.settings.data / "hub.json").unlink()
        await self.topics.close()

    def _write_address(self) -> None:
        """Leave the address and a token for this machine's own command line; readable by the hub's user alone."""
        path = self.settings.data / "hub.json"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode({"url": self.url, "token": self.own_token, "pid": os.getpid()}))

    @property
    def url(self) -> str:
        hub = self.settings.hub
        host = f"[{hub.host}]" if ":" in hub.host else hub.host
        return f"{'https' if hub.tls_cert else 'http'}://{host}:{hub.port}"

    # what the hub tells of itself

    def health(self) -> Json:
        """What `/health` answers."""
        failed = [p.name for p in self.host.plugins if p.status == "failed"]
        return {
            "status": "draining" if self.dispatcher.draining else "ok",
            "version": __version__,
            "connections": len(self.hub.connections),
            "plugins": {"on": sum(p.status == "on" for p in self.host.plugins), "failed": failed},
            "store": {"kind": "sqlite", "version": sqlite3.sqlite_version},
            "python": sys.version.split()[0],
        }

    def schema(self, name: str) -> bytes | None:
        """A generated schema document by name."""
        from sag.ops.export import document, socket_operations

        socket = socket_operations(HelloParams, SubscribeParams, UnsubscribeParams, Subscribed, Auth)
        routes = {route: inspect.getdoc(given.function) or "" for route, given in self.extensions.routes.items()}
        return document(name, self.registry, __version__, socket, self.topics.families, routes)

    def _announce(self) -> None:
        """What the hub offers has changed: tell it on `hub`, once for many changes."""
        if self._announcing is not None and not self._announcing.done():
            self._again = True
            return
        self._announcing = asyncio.ensure_future(self._publish_hub())

    async def _publish_hub(self) -> None:
        while True:
            self._again = False
            topic = await self.topics.get("", "hub")
            topic.pins = max(topic.pins, 1)
            tx = self.topics.begin()
            models = shown_models(self.engine, self.settings.models)
            for place, kind, wanted in (
                ("plugins", HubPlugin, {p.name: msgspec.to_builtins(p) for p in self.host.plugins}),
                ("connectors", HubConnector, self._connectors()),
                ("models", HubModel, {m.model: msgspec.to_builtins(m) for m in models}),
            ):
                for id, patch in differences(topic.state[place], wanted).items():
                    tx.append(topic, kind(id, patch))
            if not tx.empty:
                with contextlib.suppress(Fault):
                    await tx.submit()
            if not self._again:
                return

    def _connectors(self) -> Json:
        out: Json = {}
        for tool in self.extensions.tools.values():
            connector = out.setdefault(tool.origin, {"kind": "plugin", "status": "ready", "tools": {}})
            connector["tools"][tool.name] = shown_tool(tool)
        for name, entry in self.extensions.connectors.items():
            view = entry.view()
            if name in out:  # a plugin of the same name has tools of its own
                view["tools"] = out[name]["tools"] | view["tools"]
            out[name] = view
        return out

    def _tool_names(self) -> set[str]:
        """The names that the hub's tools are known by: to people, and to models."""
        return {name for t in self.extensions.offered() for name in (t.key, legal_name(t.name, t.connector))}

    # housekeeping

    async def _keep_house(self) -> None:
        """Now and then forget what is past its time."""
        while True:
            await asyncio.sleep(RETENTION_S)
            with contextlib.suppress(Fault):
                await self.forget_old()

    async def forget_old(self) -> None:
        """Trim topics to what is promised (at least `keep_s` and `keep_events`), and expire idempotency keys."""
        hub = self.settings.hub
        tx = self.topics.begin()
        self.keys.expire(tx)
        await tx.submit()
        for owner, name, upto in await self.journal.stale(hub.keep_events, now_ms() - round(hub.keep_s * 1000)):
            topic = await self.topics.find(owner, name)
            if topic is not None:
                await self.topics.trim(topic, upto)


def declared() -> Declared:
    """All that the hub itself declares, for documents that are made without a running hub."""
    from sag.ops import export

    registry = Registry()
    for area in (Runs, Conversations, Exports, Config, Catalogue, Usages, Tools, System):
        registry.add_all(object.__new__(area))  # a declaration needs no parts behind it
    socket = export.socket_operations(HelloParams, SubscribeParams, UnsubscribeParams, Subscribed, Auth)
    return export.declared(registry, __version__, socket)


class PluginServices(Services):
    """What plugins are given of the running hub."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def kv_get(self, space: str, key: str) -> Any:
        return await self._app.kv.get(space, key)

    async def kv_put(self, space: str, key: str, value: Any) -> None:
        await self._app.kv.put(space, key, value)

    async def kv_delete(self, space: str, key: str) -> None:
        await self._app.kv.delete(space, key)

    async def kv_list(self, space: str, prefix: str) -> dict[str, Any]:
        return await self._app.kv.list(space, prefix)

    async def publish(self, owner: str, topic: str, event: Event, space: str, keep: Mapping[str, Any]) -> int:
        topics = self._app.topics
        found = await topics.get(owner, topic)
        if event.CLASS == "ephemeral":
            topics.pass_by(found, event)
            return found.head
        tx = topics.begin()
        off = tx.append(found, event)
        for key, value in keep.items():
            if value is None:
                self._app.kv.drop(tx, space, key)
            else:
                self._app.kv.write(tx, space, key, value)
        await tx.submit()
        return off

    async def follow(self, owner: str, topic: str, after: int | None) -> AsyncIterator[tuple[str, Any]]:
        topics = self._app.topics
        found: Topic = await (resolve(topics, User(owner, owner), topic) if owner else topics.get("", topic))
        follower = Follower(topics, found, found.head if after is None else after)
        try:
            while follower.reason is None:
                while entries := await follower.next():
                    for entry in entries:
                        yield entry.name, msgspec.json.decode(entry.body)
                        follower.cursor = entry.off
                await follower.woken(60)
        finally:
            follower.close()

    async def state(self, owner: str, topic: str) -> Json:
        topics = self._app.topics
        found = await (resolve(topics, User(owner, owner), topic) if owner else topics.get("", topic))
        return dict(msgspec.json.decode(await found.shown(lambda: msgspec.json.encode(found.state))))

    async def patch(self, user: User, scope: str, patch: Json) -> Json:
        return await self._app.engine.scopes.patch_as(user, "", scope, patch)

    async def call(self, user: User, client: str, method: str, params: Json) -> Any:
        app = self._app
        call = Call(user, client, begin=app.topics.begin)
        op = app.registry.get(method)
        app.dispatcher.admit(call, op)
        _, result = await app.dispatcher.call(call, op, msgspec.json.encode(params))
        return msgspec.json.decode(result)

    async def start_run(self, user: User, params: Json) -> Json:
        return dict(await self.call(user, "", "run.start", params))

    async def export(self, user: User, id: str, format: str) -> ExportedFile:
        return await self._app.exports.make(user, id, format)

    async def keep_file(self, owner: str, data: bytes, mime: str, name: str) -> str:
        if len(data) > (most := self._app.settings.hub.limits.body):
            raise Fault("frame.large", f"The file is larger than {most} bytes.")
        return (await self._app.blobs.put(owner, data, mime, name)).ref

    async def secret_get(self, space: str, key: str) -> str | None:
        return await self._app.secrets.get(space, key)

    async def secret_put(self, space: str, key: str, value: str | None) -> None:
        await self._app.secrets.put(space, key, value)

    def add_connector(self, plugin: str, connector: Connector) -> None:
        self._app.extensions.connectors.add(plugin, connector)

    async def drop_connector(self, plugin: str, name: str) -> None:
        connectors = self._app.extensions.connectors
        if name in connectors.of(plugin):
            await connectors.drop(name)

    def connectors(self) -> Mapping[str, Connector]:
        return {name: entry.connector for name, entry in self._app.extensions.connectors.items()}

    def tools(self) -> Sequence[Tool]:
        return self._app.extensions.offered()

    async def decide(self, user: User, client: str, tool: Tool) -> Policy:
        return (await self._app.engine.scopes.verdict(user, client, tool)).policy

    def where(self, model: str | None) -> ModelPlace:
        _, provider, id = self._app.engine.models.resolve(model)
        return ModelPlace(provider.name, id, _address(provider))

    def providers(self) -> Mapping[str, str]:
        return {name: _address(provider) for name, provider in self._app.extensions.providers.items()}

    def set_models(self, provider: str, models: Sequence[Model]) -> None:
        self._app.extensions.set_models(provider, models)
        self._app._announce()

    def url(self) -> str:
        return next(iter(self._app.settings.hub.origins), self._app.url)

    def http(self, trusted: bool) -> httpx.AsyncClient:
        return self._app.outbound.client(trusted=trusted)


def _address(provider: Provider) -> str:
    """Where a provider's vendor is, without credentials; "" where it has no address."""
    url = urlsplit(str(getattr(provider, "base_url", "")))
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def differences(now: Json, wanted: Json) -> Json:
    """The patches that make one map of objects into another; None removes an entry."""
    out: Json = {id: None for id in now if id not in wanted}
    for id, value in wanted.items():
        old, new = now.get(id, {}), _without_nulls(value)
        if old != new:
            out[id] = _replacing(old, new)
    return out


def _replacing(old: Json, new: Json) -> Json:
    """The merge patch that leaves nothing of an object but what the new one has."""
    out: Json = {k: None for k in old if k not in new}
    for k, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(k), dict)
        out[k] = _replacing(old[k], value) if both else value
    return out


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


async def _not_found(request: Request, e: Exception) -> Response:
    return fault_response(Fault("route.unknown"), request.url.path)


async def _not_allowed(request: Request, e: Exception) -> Response:
    return fault_response(Fault("method.denied"), request.url.path)


# running


def run(settings: Settings, ready: Callable[[str], None]) -> int:
    """Run a hub until a signal ends it.

    Args:
        settings: All of its settings.
        ready: Called with the address once it serves.

    Returns:
        The process's exit status.

    Raises:
        StartError: It cannot start.
    """
    stop_logging = set_up_logging(settings.hub.log)
    sock = listen(settings.hub)
    settings.hub.port = sock.getsockname()[1]
    try:
        app = App(settings)
        code = _runner()(_serve(app, sock, ready, stop_logging))
    finally:
        sock.close()
        written = stop_logging()
    if not written or not _flushed():
        os._exit(
            code
        )  # the interpreter's own end would wait for a sink that takes nothing, or fail for one that is gone
    return code


def _flushed() -> bool:
    """Whether what was printed and logged could be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


def _runner() -> Callable[[Any], int]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _serve(app: App, sock: socket.socket, ready: Callable[[str], None], stop_logging: Callable[[], bool]) -> int:
    try:
        app.refuse_open_door(len(await app.tokens.list()))
        await app.start()
        await app.server(lambda: ready(app.url)).serve(sockets=[sock])
    finally:
        await app.stop()
    if left := await _stragglers():
        log.warning("left behind, because they do not end: %s", ", ".join(left))
        stop_logging()
        os._exit(0)  # all is committed and closed; the interpreter would wait for them for ever
    return 0


async def _stragglers() -> list[str]:
    """Cancel the tasks that are left, and name what does not end: a plugin's task or thread that heeds nothing."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    threads = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor(), name="a thread")
    _, left = await asyncio.wait({*tasks, threads}, timeout=1)
    return [task.get_name() for task in left]


def set_up_logging(level: str) -> Callable[[], bool]:
    """Log to stderr from a thread of its own, so that a sink that blocks costs the loop nothing (RELIABILITY F44).

    Returns:
        Ends it; gives whether the sink took everything in time.
    """
    records: queue.Queue[Any] = queue.Queue(10_000)
    handler = _DroppingHandler(records)
    handler.addFilter(QuietFilter())
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    listener = logging.handlers.QueueListener(records, out)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("httpx").setLevel("WARNING")
    logging.raiseExceptions = False
    listener.start()

    def stop() -> bool:
        thread = listener._thread
        with contextlib.suppress(queue.Full):
            records.put_nowait(None)
        if thread is not None:
            thread.join(1.0)
        return thread is None or not thread.is_alive()

    return stop


class _Formatter(logging.Formatter):
    """Writes records without the secrets that are known."""

    def format(self, record: logging.LogRecord) -> str:
        return blot(super().format(record))


class _DroppingHandler(logging.handlers.QueueHandler):
    """Queues records; where the sink does not keep up, drops them and says how many."""

    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            return
        if self.dropped:
            count, self.dropped = self.dropped, 0
            log.warning("%d log lines were dropped", count)
