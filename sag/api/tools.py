"""Operations on tools: what is offered, what was decided of them, presets, and connectors' prompts and resources."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct, field

from sag.engine.engine import Engine
from sag.engine.toolbox import is_on
from sag.errors import Fault
from sag.hooks.connector import Connector
from sag.hooks.hub import Preset
from sag.hooks.tool import BlobContent, Content, Policy, Tool, ToolError
from sag.ops.dispatch import Call
from sag.ops.operation import Change, Params, operation

Json = dict[str, Any]
T = TypeVar("T")
log = logging.getLogger("sag.api")

ASK_S = 60.0


class ToolList(Params):
    """Whose tools: all, or those of one connector or plugin; `client` is the device that is asked for.

    `brief` leaves out the schemas, which of many tools do not fit a frame.
    """

    origin: str | None = None
    client: str | None = None
    brief: bool = False


class ToolView(Struct, omit_defaults=True):
    """A tool.

    Attributes:
        key: What tells it apart.
        name, title, description, origin, risk: Of its definition.
        connector: The same as `origin` where that is a connector.
        input: JSON Schema of its arguments; empty where it was not asked for.
        enabled: Whether runs of the device are offered it.
        policy: Whether calls from the device go ahead, ask first or are refused.
        changed: Its definition is another than the one that was allowed for always.
    """

    key: str
    name: str
    description: str
    origin: str
    risk: str
    input: Json
    enabled: bool
    policy: Policy
    title: str = ""
    connector: str = ""
    changed: bool = False


class ToolViews(Struct):
    """Tools, those of plugins first."""

    tools: list[ToolView]


class PolicyList(Params):
    """What the user decided."""


class PolicyView(Struct, omit_defaults=True):
    """What a user decided of a tool or a connector, on all devices.

    Attributes:
        key: The tool's key, or the connector's name.
        policy: auto, ask or deny.
        ts: When, Unix ms.
        changed: The tool's definition has changed since, so that it asks.
        gone: There is no such tool or connector now.
    """

    key: str
    policy: Policy
    ts: int
    changed: bool = False
    gone: bool = False


class PolicyViews(Struct):
    """What the user decided, by key."""

    policies: list[PolicyView]


class PolicySet(Change):
    """What to decide of a tool (its key) or a connector (its name); null takes it back."""

    tool: str
    policy: Policy | None = None


class PolicyAnswer(Struct):
    """What is decided now."""

    tool: str
    policy: Policy | None


class PresetList(Params):
    """All presets."""


class PresetViews(Struct):
    """Presets that plugins offer."""

    presets: list[Preset]


class PromptGet(Params):
    """Which prompt of which connector, with its arguments."""

    connector: str
    name: str
    arguments: dict[str, str] = field(default_factory=dict)


class PromptText(Struct):
    """A prompt that was filled in: messages of `role` and text, as the composer takes them."""

    messages: list[Json]


class ResourceList(Params):
    """Resources of one connector, or of all."""

    connector: str | None = None


class ResourceViews(Struct):
    """Resources and templates, each with its `connector`."""

    resources: list[Json]


class ResourceRead(Change):
    """Which resource of which connector. What is no text is kept as a file of the user's."""

    connector: str
    uri: str


class ResourceContent(Struct):
    """What a resource holds: items of kind `text`, `image`, `file` …"""

    content: list[Json]


class Complete(Params):
    """What to go on with: the prompt's or template's name, the argument, and what was typed of it."""

    connector: str
    kind: Literal["prompt", "resource"]
    name: str
    argument: str
    value: str = ""


class Completions(Struct):
    """What the argument may go on with."""

    values: list[str]


class Tools:
    """Operations on tools."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @operation("tool.list", who="user", rest="GET /api/tools")
    async def list(self, call: Call, params: ToolList) -> ToolViews:
        """The tools that runs are offered, and what is decided of each."""
        client = params.client or call.client
        llm = await self._engine.scopes.of_device(call.me, client)
        views = []
        for tool in self._engine.extensions.offered():
            if params.origin not in (None, tool.origin):
                continue
            verdict = await self._engine.scopes.verdict(call.me, client, tool)
            view = _view(tool, is_on(tool, llm.get("tools", {})), verdict.policy, verdict.changed is not None)
            if params.brief:
                view.input = {}
            views.append(view)
        return ToolViews(views)

    @operation("tool.policy.list", who="user", rest="GET /api/tools/policies")
    async def policies(self, call: Call, params: PolicyList) -> PolicyViews:
        """What the user decided of tools, on all devices."""
        tools = {tool.key: tool for tool in self._engine.extensions.offered()}
        views = []
        for key, kept in self._engine.approvals.of(call.me):
            tool = tools.get(key)
            changed = tool is not None and kept.fingerprint not in (None, tool.fingerprint)
            gone = tool is None and key not in self._engine.extensions.connectors
            views.append(PolicyView(key, kept.policy, kept.ts, changed, gone))
        return PolicyViews(sorted(views, key=lambda view: view.key))

    @operation("tool.policy.set", who="user", rest="PUT /api/tools/policies")
    async def decide(self, call: Call, params: PolicySet) -> PolicyAnswer:
        """Decide on all devices whether calls of a tool or a connector go ahead, ask first or are refused."""
        approvals = self._engine.approvals
        if params.policy is None:
            approvals.forget(call.tx, call.me, params.tool)
            return PolicyAnswer(params.tool, None)
        tool = next((t for t in self._engine.extensions.offered() if t.key == params.tool), None)
        if tool is None and params.tool not in self._engine.extensions.connectors:
            raise Fault("tool.unknown", f"There is no tool and no connector {params.tool!r}.")
        shown = (tool.fingerprint, tool.definition) if tool is not None else (None, None)
        approvals.remember(call.tx, call.me, params.tool, params.policy, *shown)
        return PolicyAnswer(params.tool, params.policy)

    @operation("preset.list", who="user", rest="GET /api/presets")
    async def presets(self, call: Call, params: PresetList) -> PresetViews:
        """Presets: config of a conversation that people choose by a name."""
        return PresetViews(list(self._engine.extensions.presets.values()))

    @operation("prompt.get", who="user")
    async def prompt(self, call: Call, params: PromptGet) -> PromptText:
        """Fill in a prompt of a connector. The topic `hub` tells which there are."""
        connector = self._connector(params.connector)

        async def ask() -> list[Json]:
            messages = await connector.get_prompt(params.name, params.arguments)
            return [{"role": m.role, "content": [_shown(c) for c in m.content]} for m in messages]

        return PromptText(await _asked(connector, ask))

    @operation("resource.list", who="user", rest="GET /api/resources")
    async def resources(self, call: Call, params: ResourceList) -> ResourceViews:
        """Resources that connectors can read."""
        entries = self._engine.extensions.connectors
        if params.connector is not None:
            self._connector(params.connector)
        names = [params.connector] if params.connector is not None else list(entries)
        found = [{"connector": name, **msgspec.to_builtins(r)} for name in names for r in entries[name].resources]
        return ResourceViews(found)

    @operation("resource.read", who="user")
    async def read(self, call: Call, params: ResourceRead) -> ResourceContent:
        """Read a resource of a connector."""
        connector = self._connector(params.connector)

        async def ask() -> list[Json]:
            items = await connector.read(params.uri)
            return [await self._engine.keep_content(call.me, item) for item in items]

        return ResourceContent(await _asked(connector, ask))

    @operation("prompt.complete", who="user")
    async def complete(self, call: Call, params: Complete) -> Completions:
        """What an argument of a prompt or of a resource's template may go on with."""
        connector = self._connector(params.connector)

        async def ask() -> list[str]:
            values = await connector.complete(params.kind, params.name, params.argument, params.value)
            return [str(value) for value in values[:100]]

        return Completions(await _asked(connector, ask))

    def _connector(self, name: str) -> Connector:
        if (entry := self._engine.extensions.connectors.get(name)) is None:
            raise Fault("connector.unknown", f"There is no connector {name!r}.")
        return entry.connector


def _view(tool: Tool, enabled: bool, policy: Policy, changed: bool) -> ToolView:
    return ToolView(
        tool.key, tool.name, tool.description, tool.origin, tool.risk, tool.input, enabled, policy, tool.title,
        tool.connector, changed,
    )  # fmt: skip


def _shown(item: Content) -> Json:
    """An item as JSON; bytes in base64, for a prompt has few of them."""
    if isinstance(item, BlobContent):
        kind = "image" if item.mime.startswith("image/") else "file"
        return {"kind": kind, "mime": item.mime, "name": item.name, "data": base64.b64encode(item.data).decode()}
    shown: Json = msgspec.to_builtins(item)
    return shown


async def _asked(connector: Connector, ask: Callable[[], Awaitable[list[T]]]) -> list[T]:
    """What a connector gives; whatever it does instead is a fault of its own.

    Raises:
        Fault: connector.failed.
    """
    try:
        async with asyncio.timeout(ASK_S):
            return await ask()
    except ToolError as e:
        text = str(e)
    except TimeoutError:
        text = f"no answer within {ASK_S:g} s"
    except Fault:
        raise
    except Exception as e:
        log.exception("connector %s", connector.name)
        text = f"it failed ({type(e).__name__})"
    raise Fault("connector.failed", f"{connector.name}: {text}"[:2000]) from None
