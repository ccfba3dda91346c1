"""The plugin host: finds plugins, checks them, loads each in a thread with a time limit, and reports what became of it.

It owns what plugins have brought (`Extensions`) and each one's `PluginInfo`; a plugin that fails is told of with its
reason while the hub and the others go on. It must not let anything that a plugin raises, returns or withholds out of
here. Above: the composition root and `sag plugin`. Below: the hook specs and the operation registry.
"""

from __future__ import annotations

import asyncio
import copy
import difflib
import importlib.metadata
import inspect
import logging
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any, Literal

import msgspec
import pluggy
from msgspec import Struct, field

from sag.hooks.connectors import Connectors
from sag.hooks.hub import Exporter, Hub, MountedApp, Preset, Services, Staged, TopicFamily, one_line
from sag.hooks.kind import RunKind
from sag.hooks.provider import Model, Provider
from sag.hooks.routes import PluginRoute
from sag.hooks.spec import Hooks
from sag.hooks.tool import Tool
from sag.ops.dispatch import DECODE_ERRORS, params_fault
from sag.ops.operation import Registry
from sag.schema.events import EVENTS, Event
from sag.secret import Secret
from sag.settings import Settings
from sag.topics.reducers import FAMILIES, PlainReducer, Reducer, State

log = logging.getLogger("sag.hooks")

GROUP = "sag"
BUNDLED = "sag-hub"
REMARKS = 20
"""How many problems and how many notes of one plugin are kept; a timer that fails every second must not add up."""

_HOOKS = tuple(name for name in vars(Hooks) if not name.startswith("_"))
_ASYNC_HOOKS = ("startup", "shutdown")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_OWN_EVENTS: dict[str, dict[str, type[Event]]] = {family: dict(EVENTS.get(family, {})) for family in FAMILIES}
Status = Literal["on", "off", "failed"]
Families = dict[str, Callable[[str], Reducer]]


class Extensions:
    """What plugins have brought, by name: what the engine reads."""

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.providers: dict[str, Provider] = {}
        self.kinds: dict[str, RunKind] = {}
        self.connectors = Connectors()
        self.mounts: dict[str, MountedApp] = {}
        self.routes: dict[str, PluginRoute] = {}
        self.exporters: dict[str, Exporter] = {}
        self.presets: dict[str, Preset] = {}
        self.version = 0
        """Grows with each change of providers and models."""
        self._models: dict[str, list[Model]] = {}

    def offered(self) -> list[Tool]:
        """All tools of now: those of plugins, then those of connectors."""
        return [*self.tools.values(), *self.connectors.tools()]

    def models(self, provider: Provider) -> Sequence[Model]:
        """The models of a provider: those that it has told of since, else those that it knows without asking."""
        told = self._models.get(provider.name)
        if told is not None:
            return told
        try:
            return msgspec.json.decode(msgspec.json.encode(list(provider.models())), type=list[Model])
        except Exception:
            log.exception("provider %s: models() failed", provider.name)
            return []

    def set_models(self, provider: str, models: Sequence[Model]) -> None:
        """Replace what is known of a provider's models."""
        self._models[provider] = list(models)
        self.version += 1

    def add_provider(self, provider: Provider) -> None:
        """Offer a provider."""
        self.providers[provider.name] = provider
        self.version += 1

    def drop_provider(self, provider: str) -> None:
        """Forget a provider and its models."""
        self.providers.pop(provider, None)
        self._models.pop(provider, None)
        self.version += 1


class Provides(Struct, omit_defaults=True):
    """Names of what a plugin brings when it is loaded; `topics` holds its family, if it has one."""

    tools: list[str] = field(default_factory=list)
    providers: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    connectors: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    exporters: list[str] = field(default_factory=list)
    presets: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)


class PluginInfo(Struct):
    """What `plugin.list`, the `hub` topic and `sag plugin list` show of a plugin.

    Attributes:
        name: The entry point's; a second one of the same name is shown as `name@distribution`.
        dist, version: The package that it comes in.
        status: `on`, `off` (by plugins.toml) or `failed`.
        reason: Why it is off.
        problems: What is wrong with it while it is on.
        notes: What it says of itself.
        provides: What it brings; empty unless it is on.
    """

    name: str
    dist: str = ""
    version: str = ""
    status: Status = "failed"
    reason: str | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provides: Provides = field(default_factory=Provides)


def _decode_secret(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")


class _Refused(Exception):
    """A plugin cannot be used; the text is the reason."""


class _Loading:
    """One plugin's import and `register`, in a thread of its own so that neither can hold up the hub."""

    def __init__(
        self, info: PluginInfo, ep: EntryPoint, settings: Settings, report: Callable[[str, str], None]
    ) -> None:
        self.info, self.ep, self.settings = info, ep, settings
        self.hub: Hub[Any] | None = None
        self.hooks: dict[str, Callable[..., Any]] = {}
        self.stage = "import"
        self.error: BaseException | None = None
        self.problems: list[str] = []
        self.done = threading.Event()
        self._report = report
        self._lock = threading.Lock()
        self._refusal = ""
        self.deadline = time.monotonic() + settings.hub.plugin_s
        self.thread = threading.Thread(target=self._run, name=f"load {ep.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as e:
            self.error = e
        finally:
            self.done.set()

    def _load(self) -> None:
        plugin = self.ep.load()
        self.stage = "hooks"
        self.hooks = _find_hooks(plugin)
        self.stage = "settings"
        values = self._decode(getattr(plugin, "Settings", None))
        hub = Hub(self.ep.name, values, self.settings.env, self._report)
        with self._lock:
            if self._refusal:
                hub._seal(self._refusal)
            self.hub = hub
        self.stage = "register"
        if register := self.hooks.get("register"):
            result = register(hub)
            if inspect.iscoroutine(result):
                result.close()
            if result is not None:
                self.problems.append(f"register returned {type(result).__name__}; nothing is done with it")

    def seal(self, refusal: str) -> Staged:
        """Take what is registered; later additions, of a thread that was given up too, are refused."""
        with self._lock:
            self._refusal = refusal
            return self.hub._seal(refusal) if self.hub else Staged()

    def place(self) -> str:
        """Where the thread stands in the plugin's own code, for a report of a hang."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        root = self.ep.module.partition(".")[0]
        while frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            if module.partition(".")[0] == root:
                return f"; it stands in {module}, line {frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _decode(self, struct: Any) -> Any:
        table = {k: v for k, v in self.settings.plugins.get(self.ep.name, {}).items() if k != "enabled"}
        where = f"{self.settings.config_file or 'plugins.toml'}: [{self.ep.name}]"
        if not (isinstance(struct, type) and issubclass(struct, Struct)):
            return table
        known = struct.__struct_encode_fields__
        for key in table:
            if key not in known:
                self.problems.append(f"{where} {key}: there is no such setting{_hint(key, known)}")
        try:
            return msgspec.convert(table, struct, strict=False, dec_hook=_decode_secret)
        except DECODE_ERRORS as e:
            fault = params_fault(e)
            path = str(fault.data["path"]).removeprefix("$").removeprefix(".")
            text = re.sub(r" - at `.*`$", "", fault.message)
            if missing := re.search(r"missing required field `(.*?)`", text):
                path = f"{path}.{missing[1]}".removeprefix(".")
                text = "is required" + _expected(struct, missing[1])
            raise _Refused(f"{where} {path}: {text}".replace("]  ", "] ")) from None


class PluginHost:
    """Loads plugins and keeps watch over them.

    `load` comes first; then `connect` once the hub's services are there, `startup`, and at the end `shutdown`.

    Args:
        settings: The hub's; `plugins` holds the tables and `hub.plugin_s` the time that each step of a plugin may take.
        registry: Where operations go.
        extensions: Where tools, providers and run kinds go.
        families: The topics' families.
        entry_points: The plugins; those of the group `sag` that are installed, where it is left out.
        on_change: Called on the event loop with what has changed, after `connect`.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        extensions: Extensions,
        families: Families,
        entry_points: Iterable[EntryPoint] | None = None,
        on_change: Callable[[PluginInfo], None] | None = None,
    ) -> None:
        self.settings, self.registry, self.extensions, self.families = settings, registry, extensions, families
        self.on_change = on_change
        self.problems: list[str] = []
        """What is wrong with no plugin in particular."""
        self.modules: dict[str, str] = {}
        """Which plugin a module belongs to, for the watchdog; what lies below a module goes with it."""
        self._entry_points = entry_points
        self._infos: dict[str, PluginInfo] = {}
        self._hubs: dict[str, Hub[Any]] = {}
        self._hooks: dict[str, dict[str, Callable[..., Any]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._dirty: set[str] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()

    @property
    def plugins(self) -> list[PluginInfo]:
        """All plugins: the bundled ones first, then by name."""
        return list(self._infos.values())

    def get(self, name: str) -> PluginInfo | None:
        """A plugin by name."""
        return self._infos.get(name)

    # loading

    def load(self) -> None:
        """Find and load all plugins. It blocks for at most about `plugin_s` in all, so call it before the loop serves.

        The next plugin waits for the one before a tenth of its time limit at most, so that many that hang are not
        waited for one after the other. What they registered is taken in their order all the same.
        """
        patience = self.settings.hub.plugin_s / 10
        loadings: list[_Loading] = []
        for info, ep in self._find():
            loading = _Loading(info, ep, self.settings, self._reporter(info))
            loading.done.wait(patience)
            loadings.append(loading)
        for loading in loadings:
            loading.done.wait(max(0.0, loading.deadline - time.monotonic()))
            self._take(loading)
        self._map_modules(loadings)
        self._guard_events()

    def _find(self) -> list[tuple[PluginInfo, EntryPoint]]:
        found = self._entry_points
        if found is None:
            found = importlib.metadata.entry_points(group=GROUP)
        tables = self.settings.plugins
        todo: list[tuple[PluginInfo, EntryPoint]] = []
        for ep in sorted(found, key=lambda ep: (_dist(ep)[0] != BUNDLED, ep.name, _dist(ep)[0])):
            dist, version = _dist(ep)
            info = PluginInfo(ep.name, dist, version)
            if (first := self._infos.get(ep.name)) is not None:
                info.name = _free_name(f"{ep.name}@{dist or ep.value}", self._infos)
                self._infos[info.name] = info
                self._refuse(info, f"the name {ep.name!r} is taken by the plugin of {first.dist or 'another package'}")
                continue
            self._infos[ep.name] = info
            table: object = tables.get(ep.name, {})
            if not _NAME.fullmatch(ep.name) or ep.name in FAMILIES:
                self._refuse(info, f"{ep.name!r} cannot be a plugin's name; use a letter, then letters, digits, - or _")
            elif not isinstance(table, dict):
                self._refuse(info, f"{self._file}: {ep.name} has to be a table, [{ep.name}]")
            else:
                try:
                    enabled = msgspec.convert(table.get("enabled", True), bool, strict=False)
                except msgspec.ValidationError as e:
                    self._refuse(info, f"{self._file}: [{ep.name}] enabled: {e}")
                    continue
                if enabled:
                    todo.append((info, ep))
                else:
                    info.status, info.reason = "off", f"{self._file}: [{ep.name}] enabled = false"
        for name in tables:
            if name not in self._infos:
                text = f"{self._file}: [{name}] names no installed plugin{_hint(name, self._infos)}"
                self.problems.append(text)
                log.warning("%s", text)
        return todo

    @property
    def _file(self) -> str:
        return self.settings.config_file or "plugins.toml"

    def _refuse(self, info: PluginInfo, reason: str, e: BaseException | None = None) -> None:
        info.status, info.reason = "failed", reason
        log.error("plugin %s is switched off: %s", info.name, reason, exc_info=e)

    def _take(self, loading: _Loading) -> None:
        info, limit = loading.info, self.settings.hub.plugin_s
        if not loading.done.is_set():
            place = loading.place()
            staged = loading.seal(f"register was given {limit:g} s and is over")
            self._refuse(info, f"{loading.stage} took more than {limit:g} s{place}")
            return
        staged = loading.seal("tools, providers, kinds, operations and topics are added while register runs")
        info.problems += loading.problems
        if loading.error is not None:
            own = isinstance(loading.error, _Refused)
            reason = str(loading.error) if own else f"{loading.stage}: {one_line(loading.error)}"
            self._refuse(info, reason, None if own else loading.error)
            return
        assert loading.hub is not None
        self._hubs[info.name] = loading.hub
        self._hooks[info.name] = loading.hooks
        info.status = "on"
        self._apply(info, staged)

    def _apply(self, info: PluginInfo, staged: Staged) -> None:
        ext, provides = self.extensions, info.provides
        for tool in staged.tools:
            if (taken := ext.tools.get(tool.name)) is not None:
                self._clash(info, "tool", tool.name, taken.origin)
            else:
                tool.origin = info.name
                ext.tools[tool.name] = tool
                provides.tools.append(tool.name)
        for provider in staged.providers:
            if provider.name in ext.providers:
                holder = next((i.name for i in self.plugins if provider.name in i.provides.providers), "")
                self._clash(info, "provider", provider.name, holder)
            else:
                ext.add_provider(provider)
                provides.providers.append(provider.name)
        for kind in staged.kinds:
            if (held := ext.kinds.get(kind.name)) is not None:
                self._clash(info, "run kind", kind.name, held.origin)
            else:
                ext.kinds[kind.name] = kind
                provides.kinds.append(kind.name)
        for op in staged.operations:
            try:
                self.registry.add(op)
            except ValueError as e:
                self._add(info.problems, info, f"operation {e}")
            else:
                provides.operations.append(op.method)
        for connector in staged.connectors:
            try:
                ext.connectors.add(info.name, connector)
            except ValueError as e:
                self._add(info.problems, info, str(e))
            else:
                provides.connectors.append(connector.name)
        for path, app in staged.mounts:
            if any(_overlap(path, app, *taken) for taken in ext.mounts.items()):
                self._add(info.problems, info, f"mount {path!r} is left out: the path is taken")
            else:
                ext.mounts[path] = app
                provides.mounts.append(path)
        for route, function in staged.routes:
            if any(re.sub(r"\{\w+", "{", route) == re.sub(r"\{\w+", "{", taken) for taken in ext.routes):
                self._add(info.problems, info, f"route {route!r} is left out: it is taken")
            else:
                ext.routes[route] = function
                provides.routes.append(route)
        for exporter in staged.exporters:
            if exporter.format in ext.exporters:
                self._clash(info, "exporter", exporter.format, "")
            else:
                ext.exporters[exporter.format] = exporter
                provides.exporters.append(exporter.format)
        for preset in staged.presets:
            if preset.name in ext.presets:
                self._clash(info, "preset", preset.name, "")
            else:
                ext.presets[preset.name] = preset
                provides.presets.append(preset.name)
        if staged.topics is not None:
            self.families[info.name] = self._family(info, staged.topics)
            EVENTS[info.name] = {cls.NAME: cls for cls in staged.topics.events}
            provides.topics.append(info.name)

    def _clash(self, info: PluginInfo, what: str, name: str, holder: str) -> None:
        self._add(info.problems, info, f"{what} {name!r} is left out: the name is taken by {holder or 'the hub'!r}")

    def _family(self, info: PluginInfo, family: TopicFamily) -> Callable[[str], Reducer]:
        def fold(state: State, name: str, d: Any) -> None:
            # A fold that raises would make its topic unreadable for good, since it is folded anew at each load.
            try:
                family.fold(state, name, d)
            except Exception as e:
                self._add(info.problems, info, f"fold of {name!r}: {one_line(e)}", e)

        return lambda id: PlainReducer(copy.deepcopy(family.state), fold)

    def _map_modules(self, loadings: list[_Loading]) -> None:
        roots: dict[str, set[str]] = {}
        for loading in loadings:
            self.modules[loading.ep.module] = loading.info.name
            roots.setdefault(loading.ep.module.partition(".")[0], set()).add(loading.info.name)
        for root, names in roots.items():
            if len(names) == 1 and root != "sag":
                self.modules.setdefault(root, *names)

    def _guard_events(self) -> None:
        """Undo what a plugin declared for the hub's own topics; their events are the protocol."""
        for family, own in _OWN_EVENTS.items():
            for name, cls in list(EVENTS.get(family, {}).items()):
                if own.get(name) is not cls:
                    plugin = self.owner(cls.__module__)
                    text = f"event {name!r} is left out: {family!r} is a family of the hub's own"
                    if (info := self._infos.get(plugin or "")) is not None:
                        self._add(info.problems, info, text)
                    EVENTS[family] = dict(own)

    def owner(self, module: str) -> str | None:
        """The plugin that a module belongs to."""
        while module:
            if (name := self.modules.get(module)) is not None:
                return name
            module = module.rpartition(".")[0]
        return None

    # running

    def connect(self, services: Services) -> None:
        """Give the plugins the running hub's services. Called on the event loop, before `startup`."""
        self._loop = asyncio.get_running_loop()
        for hub in self._hubs.values():
            hub._connect(services)

    async def startup(self) -> None:
        """Call `startup` of all plugins, each with its time limit; it never raises."""
        await self._call_all("startup", self._in_order())
        for name in self._in_order():
            self._hubs[name]._start_timers()
        self.extensions.connectors.start()

    async def shutdown(self) -> None:
        """Stop connectors, call `shutdown` of all plugins with a time limit each, end their work; it never raises."""
        await self.extensions.connectors.stop()
        names = self._in_order()[::-1]
        await self._call_all("shutdown", names)
        tasks = [task for name in names for task in self._hubs[name]._cut()]
        if tasks:
            await asyncio.wait(tasks, timeout=min(1.0, self.settings.hub.plugin_s))
        self._loop = None

    def _in_order(self) -> list[str]:
        """Plugins that are on, in the order of plugins.toml, then those without a table in the order of loading."""
        tables = list(self.settings.plugins)
        on = [name for name, info in self._infos.items() if info.status == "on"]
        return sorted(on, key=lambda name: tables.index(name) if name in tables else len(tables))

    async def _call_all(self, hook: str, names: list[str]) -> None:
        limit = self.settings.hub.plugin_s
        calls: dict[asyncio.Task[BaseException | None], str] = {}
        for name in names:
            if (function := self._hooks[name].get(hook)) is not None:
                calls[asyncio.create_task(_outcome(function, self._hubs[name]), name=f"{hook} {name}")] = name
        if not calls:
            return
        # Not wait_for: it waits for the cancelled call to end, which one that catches the cancel never does.
        done, late = await asyncio.wait(calls, timeout=limit)
        for task in done:
            error = None if task.cancelled() else task.result()
            if error is not None:
                self.fail(calls[task], f"{hook}: {one_line(error)}", error)
        for task in late:
            task.cancel()
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            self.fail(calls[task], f"{hook} took more than {limit:g} s")

    def fail(self, name: str, reason: str, e: BaseException | None = None) -> None:
        """Switch a plugin off while the hub runs. Called on the event loop.

        Its tools, providers and run kinds are withdrawn, its background work ends, and its operations answer 503
        `plugin.failed`. Its topics stay readable.

        Args:
            name: The plugin.
            reason: Why, for people.
            e: What it raised, for the log.
        """
        info = self._infos[name]
        if info.status != "on":
            return
        self._refuse(info, reason, e)
        for tool in info.provides.tools:
            self.extensions.tools.pop(tool, None)
        for provider in info.provides.providers:
            self.extensions.drop_provider(provider)
        for kind in info.provides.kinds:
            self.extensions.kinds.pop(kind, None)
        for path in info.provides.mounts:
            self.extensions.mounts.pop(path, None)
        for route in info.provides.routes:
            self.extensions.routes.pop(route, None)
        for format in info.provides.exporters:
            self.extensions.exporters.pop(format, None)
        for preset in info.provides.presets:
            self.extensions.presets.pop(preset, None)
        for connector in self.extensions.connectors.of(name):
            task = asyncio.ensure_future(self.extensions.connectors.drop(connector))
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
        info.provides = Provides()
        self.registry.fail(name, reason)
        self._hubs[name]._cut()
        self._changed(info)

    def stalled(self, plugin: str | None, text: str) -> None:
        """Take a report of the watchdog; may be called from any thread."""
        if (info := self._infos.get(plugin or "")) is not None:
            self._add(info.problems, info, text)

    # reporting

    def _reporter(self, info: PluginInfo) -> Callable[[str, str], None]:
        def report(kind: str, text: str) -> None:
            self._add(info.notes if kind == "note" else info.problems, info, str(text)[:500])

        return report

    def noter(self, provider: str) -> Callable[[str], None]:
        """Leaves remarks at the plugin that brought a provider."""
        info = next((info for info in self._infos.values() if provider in info.provides.providers), None)
        return (lambda text: self._add(info.notes, info, text[:500])) if info is not None else lambda text: None

    def _add(self, remarks: list[str], info: PluginInfo, text: str, e: BaseException | None = None) -> None:
        with self._lock:
            if text in remarks:
                return
            remarks.append(text)
            del remarks[:-REMARKS]
        if remarks is info.problems:
            log.warning("plugin %s: %s", info.name, text, exc_info=e)
        self._changed(info)

    def _changed(self, info: PluginInfo) -> None:
        """Tell of a change on the event loop; many in a row are told once."""
        loop = self._loop
        if loop is None or self.on_change is None:
            return
        with self._lock:
            if info.name in self._dirty:
                return
            self._dirty.add(info.name)
        try:
            loop.call_soon_threadsafe(self._tell, info)
        except RuntimeError:  # the loop has closed
            self._dirty.discard(info.name)

    def _tell(self, info: PluginInfo) -> None:
        with self._lock:
            self._dirty.discard(info.name)
        if self.on_change is not None:
            self.on_change(info)


async def _outcome(function: Callable[[Hub[Any]], Awaitable[None]], hub: Hub[Any]) -> BaseException | None:
    """What a hook raised. SystemExit and KeyboardInterrupt of a task would end the loop, so nothing gets out."""
    try:
        await function(hub)
    except BaseException as e:
        return e
    return None


def _find_hooks(plugin: object) -> dict[str, Callable[..., Any]]:
    """The hooks that a module or an object implements, checked against their specs.

    Raises:
        _Refused: It implements none, or one that is not known or does not fit.
    """
    manager = pluggy.PluginManager("sag")
    manager.add_hookspecs(Hooks)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as e:
        text = " ".join(str(e).split())
        match = re.search(r"for hook '(\w+)'.*Argument\(s\) \{(.*?)\}", text)
        takes = f"{match[1]} takes (hub), not {match[2]}" if match else text
        raise _Refused(f"hooks: {takes}") from None
    unknown = [
        name for name, caller in vars(manager.hook).items() if not name.startswith("_") and not caller.has_spec()
    ]
    unknown = [name for name in unknown if not all(i.optionalhook for i in getattr(manager.hook, name).get_hookimpls())]
    if unknown:
        told = ", ".join(f"{name!r} is no hook{_hint(name, _HOOKS)}" for name in sorted(unknown))
        raise _Refused(f"hooks: {told}")
    hooks: dict[str, Callable[..., Any]] = {}
    for name in _HOOKS:
        for impl in getattr(manager.hook, name).get_hookimpls():
            if impl.wrapper or impl.hookwrapper:
                raise _Refused(f"hooks: {name} is a wrapper, which no hook here may be")
            if inspect.iscoroutinefunction(impl.function) != (name in _ASYNC_HOOKS):
                raise _Refused(f"hooks: {name} has to be {'an async def' if name in _ASYNC_HOOKS else 'a plain def'}")
            hooks[name] = impl.function if impl.argnames else _without_hub(impl.function)
    if not hooks:
        bare = next((name for name in _HOOKS if callable(getattr(plugin, name, None))), None)
        if bare:
            raise _Refused(f"hooks: {bare} is not marked with @hookimpl")
        raise _Refused(f"hooks: there is none in {getattr(plugin, '__name__', type(plugin).__name__)!r}")
    return hooks


def _without_hub(function: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda hub: function()


def _overlap(path: str, app: MountedApp, taken: str, other: MountedApp) -> bool:
    over, under = f"{path}/".startswith(f"{taken}/"), f"{taken}/".startswith(f"{path}/")
    return path == taken or (over and other.below) or (under and app.below)


def _dist(ep: EntryPoint) -> tuple[str, str]:
    """An entry point's distribution, its name normalised, and version; empty where it is told neither."""
    if ep.dist is None:
        return "", ""
    return re.sub(r"[-_.]+", "-", ep.dist.name or "").lower(), ep.dist.version or ""


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for i in range(1, 10_000) if (n := name if i == 1 else f"{name}#{i}") not in taken)


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _expected(struct: type[Struct], name: str) -> str:
    """What a member is, in words, for a report that it is missing."""
    for member in msgspec.structs.fields(struct):
        if member.encode_name == name:
            return f", {getattr(member.type, '__name__', None) or member.type}"
    return ""
