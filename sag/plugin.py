"""All that a plugin author imports; nothing else of `sag` is public to plugins.

Re-exports alone. What leaves this module warns for one minor version first. How a plugin is made is told in the
tutorial; `sag plugin new NAME` writes one.
"""

from __future__ import annotations

from sag.engine.ends import RunEnded, RunLimit
from sag.engine.run import Answer, Run, Step
from sag.errors import Fault
from sag.hooks.hub import Hub, KeyValue, PluginTopic
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import (
    Ability,
    CallFragment,
    CallRequest,
    Chunk,
    Decoder,
    Effort,
    FilePart,
    Finish,
    HttpProvider,
    HttpRequest,
    LongPrice,
    Message,
    Model,
    ModelRequest,
    Part,
    Price,
    Provider,
    ProviderError,
    Reasoning,
    Replay,
    StreamProvider,
    Text,
    TextPart,
    ThoughtPart,
    ToolSpec,
    UsageChunk,
    printable,
    text_message,
)
from sag.hooks.spec import hookimpl
from sag.hooks.streams import SseDecoder, SseEvents, load_json, read_wait, to_unicode
from sag.hooks.tool import Tool, ToolContext, ToolError, tool
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change, Params, operation
from sag.schema.events import Event, Usage, event
from sag.secret import Secret

__all__ = [
    "Ability",
    "Answer",
    "Call",
    "CallFragment",
    "CallRequest",
    "Change",
    "Chunk",
    "Decoder",
    "Effort",
    "Event",
    "Fault",
    "FilePart",
    "Finish",
    "HttpProvider",
    "HttpRequest",
    "Hub",
    "KeyValue",
    "LongPrice",
    "Message",
    "Model",
    "ModelRequest",
    "Params",
    "Part",
    "PluginTopic",
    "Price",
    "Provider",
    "ProviderError",
    "Reasoning",
    "Replay",
    "Run",
    "RunConfig",
    "RunEnded",
    "RunKind",
    "RunLimit",
    "Secret",
    "SseDecoder",
    "SseEvents",
    "Step",
    "StreamProvider",
    "Text",
    "TextPart",
    "ThoughtPart",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolSpec",
    "Usage",
    "UsageChunk",
    "User",
    "event",
    "hookimpl",
    "load_json",
    "operation",
    "printable",
    "read_wait",
    "text_message",
    "to_unicode",
    "tool",
]
