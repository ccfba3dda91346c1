"""All that a plugin author imports; nothing else of `sag` is public to plugins.

Re-exports alone. What leaves this module warns for one minor version first. How a plugin is made is told in the
tutorial; `sag plugin new NAME` writes one.
"""

from __future__ import annotations

from sag.engine.agent import Agent, Speaker
from sag.engine.asks import Answer
from sag.engine.ends import RunEnded, RunLimit, ToolLost
from sag.engine.run import Run, Step, Turn
from sag.engine.toolbox import legal_name
from sag.errors import Fault
from sag.hooks.connector import Connector, Health, Prompt, PromptArgument, PromptMessage, Resource
from sag.hooks.hub import ExportedFile, Hub, KeyValue, ModelPlace, PluginTopic, Preset, Rendered, Secrets
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
from sag.hooks.routes import Reply, Request, Sent, Stream
from sag.hooks.schema import check_schema
from sag.hooks.spec import hookimpl
from sag.hooks.streams import SseDecoder, SseEvents, load_json, read_wait, to_unicode
from sag.hooks.tool import (
    BlobContent,
    Content,
    LinkContent,
    Policy,
    Result,
    Sampled,
    SampleMessage,
    TableContent,
    TextContent,
    Tool,
    ToolContext,
    ToolError,
    plain_json,
    tool,
)
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change, Params, operation
from sag.schema.events import Event, Usage, event
from sag.secret import Secret

__all__ = [
    "Ability",
    "Agent",
    "Answer",
    "BlobContent",
    "Call",
    "CallFragment",
    "CallRequest",
    "Change",
    "Chunk",
    "Connector",
    "Content",
    "Decoder",
    "Effort",
    "Event",
    "ExportedFile",
    "Fault",
    "FilePart",
    "Finish",
    "Health",
    "HttpProvider",
    "HttpRequest",
    "Hub",
    "KeyValue",
    "LinkContent",
    "LongPrice",
    "Message",
    "Model",
    "ModelPlace",
    "ModelRequest",
    "Params",
    "Part",
    "PluginTopic",
    "Policy",
    "Preset",
    "Price",
    "Prompt",
    "PromptArgument",
    "PromptMessage",
    "Provider",
    "ProviderError",
    "Reasoning",
    "Rendered",
    "Replay",
    "Reply",
    "Request",
    "Resource",
    "Result",
    "Run",
    "RunConfig",
    "RunEnded",
    "RunKind",
    "RunLimit",
    "SampleMessage",
    "Sampled",
    "Secret",
    "Secrets",
    "Sent",
    "Speaker",
    "SseDecoder",
    "SseEvents",
    "Step",
    "Stream",
    "StreamProvider",
    "TableContent",
    "Text",
    "TextContent",
    "TextPart",
    "ThoughtPart",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolLost",
    "ToolSpec",
    "Turn",
    "Usage",
    "UsageChunk",
    "User",
    "check_schema",
    "event",
    "hookimpl",
    "legal_name",
    "load_json",
    "operation",
    "plain_json",
    "printable",
    "read_wait",
    "text_message",
    "to_unicode",
    "tool",
]
