"""What a plugin gets: the `Hub` that its hooks are called with, and the services that stand behind it.

Owns the staging of what `register` adds, a plugin's own keys, topics and background work. It decides nothing: the
host applies what was staged, and `Services`, which the composition root supplies, does what touches the running hub.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from sag.errors import Fault
from sag.hooks.connector import Connector
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import HttpProvider, Model, Provider, StreamProvider
from sag.hooks.routes import PluginRoute, Reply, RouteFunction
from sag.hooks.tool import Policy, Tool
from sag.ops.dispatch import User
from sag.ops.operation import Operation, bind
from sag.schema.events import EVENTS, Event

if TYPE_CHECKING:
    import httpx

S = TypeVar("S")
Json = dict[str, Any]
Fold = Callable[[Json, str, Any], None]
When = Literal["queue", "steer", "interrupt", "reject"]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]
Report = Callable[[Literal["note", "problem"], str], None]

KEY_LENGTH = 200
CONNECTOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/([A-Za-z0-9._~-]|\{[a-z_]+\})+)+(/\{[a-z_]+:path\})?")


class Services(Protocol):
    """What the running hub does for plugins. Called on the event loop, from `startup` on.

    A topic is named in full here (`dice:table`), and owned by a user's id, or by "" when it is everybody's. `space`
    is the plugin's name. Every method but `follow`, `set_models` and `http` raises `Fault` (store.full and its like)
    when something could not be kept, and returns when it is committed.
    """

    async def kv_get(self, space: str, key: str) -> Any:
        """The value of a key, or None."""

    async def kv_put(self, space: str, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""

    async def kv_delete(self, space: str, key: str) -> None:
        """Forget a key; one that is not there is no error."""

    async def kv_list(self, space: str, prefix: str) -> dict[str, Any]:
        """Keys that begin so and their values, ordered by key."""

    async def publish(self, owner: str, topic: str, event: Event, space: str, keep: Mapping[str, Any]) -> int:
        """Append an event, and in the same commit put the keys of `keep` (None deletes).

        Returns:
            The event's offset; of one of class ephemeral, which is only passed on, the topic's head.
        """

    def follow(self, owner: str, topic: str, after: int | None) -> AsyncIterator[tuple[str, Any]]:
        """Events as (name, d) after an offset, or from now on, on a cursor: none is missed, however slow the reader.

        Raises:
            Fault: topic.unknown, at the first step.
        """

    async def patch(self, user: User, scope: str, patch: Json) -> Json:
        """Patch config as the user could, and give the effective config.

        Raises:
            Fault: scope.unknown, config.invalid.
        """

    async def start_run(self, user: User, params: Json) -> Json:
        """Start a run as the operation `run.start` does, and give its result."""

    async def call(self, user: User, client: str, method: str, params: Json) -> Any:
        """Call an operation in a user's name, as a client does, and give its result.

        Raises:
            Fault: What the operation raises; rpc.method where there is none.
        """

    async def state(self, owner: str, topic: str) -> Json:
        """A copy of a topic's committed state.

        Raises:
            Fault: topic.unknown.
        """

    async def export(self, user: User, id: str, format: str) -> ExportedFile:
        """A run or a conversation, by its id, as a file.

        Raises:
            Fault: conv.unknown, format.unknown, export.failed, export.timeout.
        """

    async def keep_file(self, owner: str, data: bytes, mime: str, name: str) -> str:
        """Keep a user's file and give its `ref`."""

    async def secret_get(self, space: str, key: str) -> str | None:
        """A secret of a plugin, or None."""

    async def secret_put(self, space: str, key: str, value: str | None) -> None:
        """Keep a secret, encrypted; None forgets it."""

    def add_connector(self, plugin: str, connector: Connector) -> None:
        """Start a connector while the hub runs.

        Raises:
            ValueError: Its name is taken.
        """

    async def drop_connector(self, plugin: str, name: str) -> None:
        """Stop a connector and forget it; one that is not there is no error."""

    def connectors(self) -> Mapping[str, Connector]:
        """All connectors by name, whoever brought them."""

    def tools(self) -> Sequence[Tool]:
        """All tools that runs are offered: those of plugins and of connectors."""

    async def decide(self, user: User, client: str, tool: Tool) -> Policy:
        """Whether a call of a tool goes ahead, asks a person first or is refused, by all policies that are in force."""

    def where(self, model: str | None) -> ModelPlace:
        """Where a model is reached; None stands for the default.

        Raises:
            Fault: model.unknown.
        """

    def providers(self) -> Mapping[str, str]:
        """The base URLs of all providers by name, "" of one that has none."""

    def set_models(self, provider: str, models: Sequence[Model]) -> None:
        """Replace what is known of a provider's models."""

    def url(self) -> str:
        """The hub's address as browsers see it."""

    def http(self, trusted: bool) -> httpx.AsyncClient:
        """The shared client, guarded unless it is for URLs that an administrator configured; not closed by plugins."""


class Preset(Struct, omit_defaults=True):
    """Config that people choose by a name.

    Attributes:
        name: What tells it apart.
        title, description: For people.
        config: A patch on a conversation's config.
    """

    name: str
    title: str
    config: Json
    description: str = ""


class MountedApp(NamedTuple):
    """An ASGI application of a plugin, and whether what lies below its path is its own too."""

    app: Asgi
    below: bool


class ModelPlace(Struct):
    """Where a model is reached.

    Attributes:
        provider: Who serves it.
        model: As its vendor calls it.
        base_url: The vendor's address, "" where the provider has none.
    """

    provider: str
    model: str
    base_url: str


class TopicFamily:
    """A declared family of topics: the state they begin with, how events change it, and which events there are."""

    __slots__ = ("events", "fold", "state")

    def __init__(self, state: Json, fold: Fold, events: Sequence[type[Event]]) -> None:
        self.state, self.fold, self.events = state, fold, tuple(events)


class Rendered(NamedTuple):
    """A file that an exporter made; `notes` tell people what it does not show as it should."""

    data: bytes
    notes: Sequence[str] = ()


class Exporter(NamedTuple):
    """Makes a file of an exported conversation: the document in plain JSON goes in, the file's bytes come out."""

    format: str
    mime: str
    render: Callable[[Json], bytes | Rendered]


class ExportedFile(NamedTuple):
    """A run or a conversation as a file."""

    name: str
    mime: str
    data: bytes
    notes: list[str]


class Staged:
    """What `register` has added, in its order."""

    def __init__(self) -> None:
        self.tools: list[Tool] = []
        self.providers: list[Provider] = []
        self.kinds: list[RunKind] = []
        self.operations: list[Operation] = []
        self.connectors: list[Connector] = []
        self.mounts: list[tuple[str, MountedApp]] = []
        self.routes: list[tuple[str, PluginRoute]] = []
        self.exporters: list[Exporter] = []
        self.presets: list[Preset] = []
        self.topics: TopicFamily | None = None


class KeyValue:
    """A plugin's own durable keys. Values are JSON. Every method raises `Fault` when the store cannot do it."""

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub

    async def get(self, key: str) -> Any:
        """The value, or None where there is none."""
        return await self._hub._live.kv_get(self._hub.name, _check_key(key))

    async def put(self, key: str, value: Any) -> None:
        """Keep a value; it is durable when this returns.

        Raises:
            ValueError: The key is empty or longer than 200 characters.
        """
        await self._hub._live.kv_put(self._hub.name, _check_key(key), value)

    async def delete(self, key: str) -> None:
        """Forget a key; one that is not there is no error."""
        await self._hub._live.kv_delete(self._hub.name, _check_key(key))

    async def list(self, prefix: str = "") -> dict[str, Any]:
        """Keys that begin with `prefix`, and their values, ordered by key."""
        return await self._hub._live.kv_list(self._hub.name, prefix)


class Secrets:
    """A plugin's own secrets: encrypted where they are kept, and in no export, log or listing."""

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub

    async def get(self, key: str) -> str | None:
        """The secret, or None where there is none, or where the key that it was encrypted with is gone."""
        return await self._hub._live.secret_get(self._hub.name, _check_key(key))

    async def put(self, key: str, value: str) -> None:
        """Keep a secret; it is durable when this returns."""
        await self._hub._live.secret_put(self._hub.name, _check_key(key), value)

    async def delete(self, key: str) -> None:
        """Forget a secret; one that is not there is no error."""
        await self._hub._live.secret_put(self._hub.name, _check_key(key), None)


class PluginTopic:
    """One topic of a plugin's family, to publish to."""

    def __init__(self, hub: Hub[Any], id: str) -> None:
        self._hub = hub
        self.name = f"{hub.name}:{id}"

    async def publish(self, owner: str, event: Event, *, keep: Mapping[str, Any] | None = None) -> int:
        """Append an event to a user's topic; it is committed when this returns.

        Args:
            owner: The user's id; "" is the topic that everybody reads.
            event: One of the structs that were given to `add_topic`.
            keep: Keys of `hub.kv` to put in the same commit, so that both hold or neither; None deletes a key.

        Returns:
            The event's offset.

        Raises:
            TypeError: The event was not declared.
            Fault: It could not be kept.
        """
        family = self._hub._staged.topics
        if family is None or type(event) not in family.events:
            raise TypeError(f"{type(event).__name__} is no event that {self._hub.name!r} gave to add_topic")
        for key in keep or ():
            _check_key(key)
        return await self._hub._live.publish(owner, self.name, event, self._hub.name, keep or {})


class Hub(Generic[S]):
    """A plugin's side of the hub, given to its hooks.

    What is added counts only while `register` runs, connectors excepted. What needs the running hub (`kv`, `secrets`,
    `http`, `spawn`, `topic`, `subscribe`, `state`, `call`, `start_run`, `tools` …) works from `startup` on, and
    raises RuntimeError before.

    Attributes:
        name: The plugin's name, that of its entry point.
        settings: Its table of plugins.toml as its `Settings` struct, or as a dict where it has none.
        env: The environment, `.env` included.
        log: Its logger, `sag.plugin.<name>`.
        kv: Its own durable keys.
        secrets: Its own secrets.
    """

    def __init__(
        self, name: str, settings: S, env: Mapping[str, str], report: Report = lambda kind, text: None
    ) -> None:
        self.name = name
        self.settings = settings
        self.env = env
        self.log = logging.getLogger(f"sag.plugin.{name}")
        self.kv = KeyValue(self)
        self.secrets = Secrets(self)
        self._report = report
        self._staged = Staged()
        self._refusal = ""
        self._lock = threading.Lock()
        self._services: Services | None = None
        self._ended = False
        self._timers: list[tuple[float, Callable[[], Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # what register adds

    def add_tool(self, tool: Tool) -> None:
        """Offer a tool to models.

        Raises:
            TypeError: It is not made with `@tool` or `Tool`.
            ValueError: Its name does not begin with a letter, or has other characters than letters, digits, `_.-`.
        """
        given: object = tool
        if not isinstance(given, Tool):
            raise TypeError(f"add_tool takes a Tool, not {_what(given)}; declare the function with @tool")
        self._stage(self._staged.tools, tool, tool.name)

    def add_provider(self, provider: Provider) -> None:
        """Offer access to models.

        Raises:
            TypeError: It is neither an `HttpProvider` nor a `StreamProvider`.
        """
        given: object = provider
        if isinstance(given, type) or not isinstance(given, HttpProvider | StreamProvider):
            raise TypeError(
                f"add_provider takes an object with name, models and either stream or prepare, decoder and error, "
                f"not {_what(given)}"
            )
        self._stage(self._staged.providers, provider, provider.name)

    def add_run_kind(
        self,
        name: str,
        config: type[RunConfig],
        run: Callable[[Any], Awaitable[None]],
        *,
        title: str = "",
        exported: Callable[[Json, Json], Json] | None = None,
        listed: bool = True,
    ) -> None:
        """Offer a way in which runs proceed.

        Args:
            name: As `run.start` names it.
            config: Its config struct, with defaults for all members.
            run: `async def run(run: Run)`; the first line of its docstring describes the kind.
            title: What people call it.
            exported: `exported(object, config)` gives members that an export of a run has besides, from the run's
                object of the snapshot and its effective config.
            listed: Whether people choose it (`kind.list`); else programs alone name it.

        Raises:
            TypeError: The config is no subclass of `RunConfig`, a member has no default, or `run` is not async.
        """
        given: object = config
        if not (isinstance(given, type) and issubclass(given, RunConfig)):
            raise TypeError(f"run kind {name}: its config has to extend RunConfig")
        if not inspect.iscoroutinefunction(run) and not inspect.iscoroutinefunction(getattr(run, "__call__", None)):  # noqa: B004
            raise TypeError(f"run kind {name}: run has to be an async def")
        try:
            config()
        except TypeError as e:
            raise TypeError(f"run kind {name}: every member of its config needs a default ({e})") from None
        description = (inspect.getdoc(run) or "").partition("\n")[0]
        kind = RunKind(name, config, run, self.name, title or name.capitalize(), description, exported, listed)
        self._stage(self._staged.kinds, kind, name)

    def add_operation(self, function: Callable[..., Awaitable[Any]]) -> None:
        """Offer an operation, declared with `@operation`, to clients.

        Raises:
            TypeError: It is not declared, not async, or its params are no `Params` or `Change`.
        """
        op = bind(function, self.name)
        self._stage(self._staged.operations, op, op.method)

    def add_connector(self, connector: Connector) -> None:
        """Add a source of tools that comes and goes. In `register` it is started after `startup`, later at once.

        Raises:
            TypeError: It is no `Connector`.
            ValueError: Its name is none that a connector can have, or is taken.
        """
        given: object = connector
        if isinstance(given, type) or not isinstance(given, Connector):
            raise TypeError(f"add_connector takes a Connector, not {_what(given)}")
        if not CONNECTOR_NAME.fullmatch(connector.name):
            raise ValueError(
                f"{connector.name!r} is no connector's name: a letter, then at most 39 letters, digits, _ or -"
            )
        if self._services is not None:
            self._services.add_connector(self.name, connector)
            return
        with self._lock:
            self._check_open()
            self._staged.connectors.append(connector)

    def add_mount(self, path: str, app: Asgi, *, below: bool = True) -> None:
        """Serve an ASGI application at a path, and below it unless that is not wanted.

        The hub checks Host, Origin and credentials first; `scope["state"]["user"]` is the `User`, `["client"]` the
        client id that the request names. Lifespan events are not passed on.

        Raises:
            ValueError: The path is not made of slashes, each with letters, digits, `.`, `_`, `~` or `-` behind it.
        """
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no path to mount at")
        with self._lock:
            self._check_open()
            self._staged.mounts.append((path, MountedApp(app, below)))

    def add_route(
        self,
        route: str,
        function: RouteFunction,
        *,
        any_key: bool = False,
        failed: Callable[[Fault], Reply] | None = None,
    ) -> None:
        """Serve an HTTP route: `GET /api/dice/{id}`, with an `async def function(request: Request)`.

        What it returns is sent as JSON, unless it is a `Reply` or a `Stream`; a `Fault` is answered with its status.

        Args:
            route: Method and path; a last `{name:path}` stands for all that is left, slashes too.
            function: What answers.
            any_key: For clients that always send a key: where the hub needs no token, one that is none of its own
                making counts as none.
            failed: Makes the answer to a fault, that of a wrong token included, where clients expect another form.

        Raises:
            TypeError: The function is not async.
            ValueError: The route is no method and path.
        """
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"route {route}: its function has to be an async def")
        if not _ROUTE.fullmatch(route):
            raise ValueError(f"{route!r} is no route: a method, a space, and a path such as /api/dice/{{id}}")
        with self._lock:
            self._check_open()
            self._staged.routes.append((route, PluginRoute(function, any_key, failed)))

    def add_exporter(self, format: str, mime: str, render: Callable[[Json], bytes | Rendered]) -> None:
        """Offer a format in which runs and conversations are exported.

        Args:
            format: As `run.export` names it, and the end of the file's name.
            mime: The file's media type.
            render: Makes the file of the exported document (how-to 'Export a conversation'); runs in a thread. Gives
                its bytes, or a `Rendered` with notes on what it does not show as it should.
        """
        self._stage(self._staged.exporters, Exporter(format, mime, render), format)

    def add_preset(self, name: str, title: str, config: Json, description: str = "") -> None:
        """Offer a conversation's config under a name, such as a system prompt for a kind of work."""
        self._stage(self._staged.presets, Preset(name, title, config, description), name)

    def add_topic(self, state: Json, fold: Fold, events: Sequence[type[Event]]) -> None:
        """Declare the plugin's topics, `<plugin>:<id>`; a plugin has one family.

        Args:
            state: The state of a topic without events, plain JSON.
            fold: `fold(state, name, d)` changes the state in place; pure, and an event that it does not know, or
                about something that is not there, is ignored.
            events: Structs declared with `@event("<plugin>", "<name>")`.

        Raises:
            TypeError: An event is declared for another family or not at all.
            ValueError: A family was declared already.
        """
        given: Sequence[object] = events
        for cls in given:
            if not (isinstance(cls, type) and issubclass(cls, Event)):
                raise TypeError(f"add_topic takes subclasses of Event, not {_what(cls)}")
            if EVENTS.get(self.name, {}).get(cls.NAME) is not cls:
                raise TypeError(f"{cls.__name__} has to be declared with @event({self.name!r}, …)")
        with self._lock:
            self._check_open()
            if self._staged.topics is not None:
                raise ValueError("a plugin has one family of topics; tell them apart by what follows the colon")
            self._staged.topics = TopicFamily(state, fold, events)

    # what works while the hub runs

    @property
    def url(self) -> str:
        """The hub's address as browsers see it: the first of its origins, else its own."""
        return self._live.url()

    @property
    def http(self) -> httpx.AsyncClient:
        """The guarded HTTP client: it refuses addresses that the hub may not fetch (Fault outbound.denied)."""
        return self._live.http(False)

    @property
    def configured_http(self) -> httpx.AsyncClient:
        """A client without that guard, for URLs that stand in this plugin's settings and for no others."""
        return self._live.http(True)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        """Run a coroutine in the background until it ends or the hub goes down.

        An exception is logged and listed among the plugin's problems.
        """
        try:
            self._live  # noqa: B018 - raises before the hub runs
            task = asyncio.get_running_loop().create_task(
                self._supervise(work), name=f"plugin {self.name}: {getattr(work, '__qualname__', 'task')}"
            )
        except RuntimeError:
            work.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # of one that was cancelled before it began
        return task

    def every(self, seconds: float, call: Callable[[], Any]) -> None:
        """Call a function again and again, the first time after `seconds`; calls do not overlap.

        `async def` runs on the loop, `def` in a thread. An exception is logged and listed, and the calls go on. May
        be used in `register`; it begins after `startup`.

        Raises:
            ValueError: `seconds` is not positive.
        """
        if not seconds > 0:
            raise ValueError("every needs a positive number of seconds")
        with self._lock:
            if self._services is None and not self._ended:
                self._timers.append((seconds, call))
                return
        self.spawn(self._repeat(seconds, call))

    def topic(self, id: str) -> PluginTopic:
        """The plugin's topic `<plugin>:<id>`, to publish to."""
        return PluginTopic(self, id)

    def subscribe(self, owner: str, name: str, *, after: int | None = None) -> AsyncIterator[tuple[str, Any]]:
        """Events of any topic as (name, d), on a cursor; none is missed, however slowly they are read.

        Args:
            owner: The user's id; "" for a topic that is everybody's (`hub`).
            name: The topic's full name, `conv:c7`, `user:me`.
            after: From which offset on, such as one before the `at` that an operation answered; left out means now.

        Raises:
            Fault: topic.unknown, at the first step.
        """
        return self._live.follow(owner, name, after)

    async def patch(self, user: User, scope: str, patch: Json) -> Json:
        """Patch config (`run:<id>`, `conv:<id>`, `client:<id>`) as the user could; gives the effective config.

        Raises:
            Fault: scope.unknown, config.invalid.
        """
        return await self._live.patch(user, scope, patch)

    async def start_run(
        self,
        user: User,
        input: str | list[Json],
        *,
        conv: str | None = None,
        kind: str | None = None,
        config: Json | None = None,
        when: When | None = None,
        key: str | None = None,
    ) -> Json:
        """Start a run in a user's name, as the operation `run.start` does.

        Args:
            user: In whose name.
            input: Text, or parts as `run.start` takes them.
            conv: The conversation; a new one where it is left out.
            kind: The kind; the conversation's last, else `chat`.
            config: A patch on the kind's config.
            when: What happens if the conversation has a run already; `queue` where it is left out.
            key: An idempotency key.

        Returns:
            The result of `run.start`: `conv`, `run`, `state` …

        Raises:
            Fault: conv.unknown, kind.unknown, config.invalid, run.busy, run.queue, draining.
        """
        given = {"conv": conv, "kind": kind, "config": config, "when": when, "key": key}
        parts = [{"kind": "text", "text": input}] if isinstance(input, str) else input
        return await self._live.start_run(user, {"input": parts} | {k: v for k, v in given.items() if v is not None})

    async def call(self, user: User, method: str, params: Json | None = None, *, client: str = "") -> Any:
        """Call an operation in a user's name, as a client does, and give its result.

        Raises:
            Fault: What the operation raises; rpc.method where there is none.
        """
        return await self._live.call(user, client, method, params or {})

    async def export(self, user: User, id: str, format: str) -> ExportedFile:
        """A user's run or conversation, by its id, as a file in a format; it is not kept.

        Raises:
            Fault: conv.unknown, format.unknown, export.failed, export.timeout.
        """
        return await self._live.export(user, id, format)

    async def state(self, owner: str, name: str) -> Json:
        """A copy of a topic's committed state; owner and name as in `subscribe`.

        Raises:
            Fault: topic.unknown.
        """
        return await self._live.state(owner, name)

    async def keep_file(self, user: User, data: bytes, mime: str, name: str = "") -> str:
        """Keep a file of a user's, as an upload does, and give the `ref` that input names it by.

        Raises:
            Fault: frame.large, store.full, store.unavailable.
        """
        return await self._live.keep_file(user.id, data, mime, name)

    async def drop_connector(self, name: str) -> None:
        """Stop one of this plugin's connectors and forget it; one that is not there is no error."""
        await self._live.drop_connector(self.name, name)

    @property
    def connectors(self) -> Mapping[str, Connector]:
        """All connectors by name, whoever brought them."""
        return self._live.connectors()

    @property
    def tools(self) -> Sequence[Tool]:
        """All tools that runs are offered: those of plugins and of connectors."""
        return self._live.tools()

    async def decide(self, user: User, tool: Tool, *, client: str = "") -> Policy:
        """Whether a call of a tool goes ahead, asks a person first or is refused, by all policies that are in force."""
        return await self._live.decide(user, client, tool)

    @property
    def providers(self) -> Mapping[str, str]:
        """The base URLs of all providers by name, "" of one that has none."""
        return self._live.providers()

    def where(self, model: str | None = None) -> ModelPlace:
        """Where a model is reached, by its full name; None stands for the hub's default.

        Raises:
            Fault: model.unknown.
        """
        return self._live.where(model)

    def set_models(self, provider: str, models: Sequence[Model]) -> None:
        """Replace what is known of the models of one of this plugin's providers.

        Raises:
            ValueError: The plugin has no provider of that name.
        """
        if all(p.name != provider for p in self._staged.providers):
            raise ValueError(f"{self.name!r} has no provider {provider!r}")
        self._live.set_models(provider, models)

    def note(self, text: str) -> None:
        """Leave a remark that `plugin.list` and `sag plugin list` show; may be called anywhere."""
        self._report("note", text)

    # the host's side

    def _seal(self, refusal: str) -> Staged:
        """Take what was staged; whatever is added from now on is refused."""
        with self._lock:
            self._refusal = refusal
            return self._staged

    def _connect(self, services: Services) -> None:
        with self._lock:
            self._services = services

    def _start_timers(self) -> None:
        timers, self._timers = self._timers, []
        for seconds, call in timers:
            self.spawn(self._repeat(seconds, call))

    def _cut(self) -> list[asyncio.Task[None]]:
        """End the background work and take the services away; gives the tasks that are ending."""
        with self._lock:
            self._services = None
            self._ended = True
            self._timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    @property
    def _live(self) -> Services:
        if self._services is None:
            raise RuntimeError("this needs the running hub: use it from startup on, and not after the plugin is off")
        return self._services

    def _check_open(self) -> None:
        if self._refusal:
            raise RuntimeError(self._refusal)

    def _stage(self, place: list[Any], thing: Any, name: object) -> None:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(f"{name!r} is no name: a letter, then at most 63 letters, digits, '_', '.' or '-'")
        with self._lock:
            self._check_open()
            place.append(thing)

    async def _supervise(self, work: Coroutine[Any, Any, Any]) -> None:
        # SystemExit and KeyboardInterrupt of a task would end the whole loop, so they are caught here too.
        try:
            await work
        except asyncio.CancelledError:
            if not _is_cancelling():
                self._trouble(work, "CancelledError")
        except BaseException as e:
            self._trouble(work, one_line(e), e)

    async def _repeat(self, seconds: float, call: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                if inspect.iscoroutinefunction(call):
                    await call()
                else:
                    result = await asyncio.to_thread(call)
                    if inspect.isawaitable(result):
                        await result
            except asyncio.CancelledError:
                if _is_cancelling():
                    raise
                self._trouble(call, "CancelledError")
            except BaseException as e:
                self._trouble(call, one_line(e), e)

    def _trouble(self, work: Any, text: str, e: BaseException | None = None) -> None:
        where = getattr(work, "__qualname__", None) or type(work).__name__
        self.log.error("%s failed: %s", where, text, exc_info=e)
        self._report("problem", f"{where}: {text}")


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _check_key(key: str) -> str:
    if not 0 < len(key) <= KEY_LENGTH:
        raise ValueError(f"a key is text of 1 to {KEY_LENGTH} characters")
    return key


def _what(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def one_line(e: BaseException, limit: int = 300) -> str:
    """An exception in one line; an exception whose text cannot be made is named all the same."""
    try:
        text = " ".join(str(e).split())
    except Exception:
        text = ""
    return (f"{type(e).__name__}: {text}" if text else type(e).__name__)[:limit]
