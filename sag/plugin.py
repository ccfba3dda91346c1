"""All that a plugin author imports; nothing else of `sag` is public to plugins.

Re-exports alone. What leaves this module warns for one minor version first. How a plugin is made is told in the
tutorial; `sag plugin new NAME` writes one.
"""

from __future__ import annotations

from sag.engine.run import Answer, Run, RunEnded, RunLimit, Step
from sag.errors import Fault
from sag.hooks.hub import Hub, KeyValue, PluginTopic
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import (
    CallFragment,
    CallRequest,
    Chunk,
    Decoder,
    Finish,
    HttpProvider,
    HttpRequest,
    Message,
    Model,
    ModelRequest,
    Provider,
    ProviderError,
    Reasoning,
    StreamProvider,
    Text,
    ToolSpec,
    UsageChunk,
    printable,
)
from sag.hooks.spec import hookimpl
from sag.hooks.tool import Tool, ToolContext, ToolError, tool
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change, Params, operation
from sag.schema.events import Event, Usage, event

__all__ = [
    "Answer",
    "Call",
    "CallFragment",
    "CallRequest",
    "Change",
    "Chunk",
    "Decoder",
    "Event",
    "Fault",
    "Finish",
    "HttpProvider",
    "HttpRequest",
    "Hub",
    "KeyValue",
    "Message",
    "Model",
    "ModelRequest",
    "Params",
    "PluginTopic",
    "Provider",
    "ProviderError",
    "Reasoning",
    "Run",
    "RunConfig",
    "RunEnded",
    "RunKind",
    "RunLimit",
    "Step",
    "StreamProvider",
    "Text",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolSpec",
    "Usage",
    "UsageChunk",
    "User",
    "event",
    "hookimpl",
    "operation",
    "printable",
    "tool",
]
