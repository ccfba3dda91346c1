"""What the conformance suite wants a server to offer, as tools and a connector of a hub."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sag.plugin import (
    BlobContent,
    Content,
    Health,
    Prompt,
    PromptArgument,
    PromptMessage,
    Resource,
    Result,
    SampleMessage,
    TextContent,
    Tool,
    ToolContext,
    ToolError,
    tool,
)

Json = dict[str, Any]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
WAV = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x02\0\0\0\0\0"
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OK = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
JSON_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@tool(risk="read")
async def test_simple_text() -> str:
    """Give text."""
    return "This is a simple text response for testing."


@tool(risk="read")
async def test_image_content() -> Result:
    """Give an image."""
    return Result([BlobContent("image/png", PNG)])


@tool(risk="read")
async def test_audio_content() -> Result:
    """Give sound."""
    return Result([BlobContent("audio/wav", WAV)])


@tool(risk="read")
async def test_embedded_resource() -> Result:
    """Give a resource."""
    return Result([BlobContent("text/plain", b"This is an embedded resource content.", "test://embedded-resource")])


@tool(risk="read")
async def test_multiple_content_types() -> Result:
    """Give text, an image and a resource."""
    return Result(
        [
            TextContent("Multiple content types test:"),
            BlobContent("image/png", PNG),
            BlobContent("application/json", b'{"test":"data","value":123}', "test://mixed-content-resource"),
        ]
    )


@tool(risk="read")
async def test_tool_with_logging(*, ctx: ToolContext) -> str:
    """Log three lines."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        ctx.log.info(line)
        await asyncio.sleep(0.05)
    return "Logged."


@tool(risk="read", name="test_logging_tool")
async def test_logging_tool(*, ctx: ToolContext) -> str:
    """Log a line."""
    ctx.log.warning("A line of log.")
    return "Logged."


@tool(risk="read")
async def test_tool_with_progress(*, ctx: ToolContext) -> str:
    """Tell progress three times."""
    for done in (0, 50, 100):
        await ctx.progress(done, 100)
        await asyncio.sleep(0.05)
    return "Done."


@tool(risk="read")
async def test_error_handling() -> str:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


@tool(risk="read")
async def test_sampling(prompt: str, *, ctx: ToolContext) -> str:
    """Ask the model."""
    answer = await ctx.sample([SampleMessage("user", [TextContent(prompt)])], max_tokens=100)
    return f"LLM response: {answer.text}"


@tool(risk="read")
async def test_elicitation(message: str, *, ctx: ToolContext) -> str:
    """Ask the user for two texts."""
    texts = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    form = {"type": "object", "properties": texts, "required": ["username", "email"]}
    return f"User response: {await ctx.ask(message, schema=form)}"


@tool(risk="read")
async def test_elicitation_sep1034_defaults(*, ctx: ToolContext) -> str:
    """Ask by a form with defaults."""
    members = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    answer = await ctx.ask("Please check", schema={"type": "object", "properties": members})
    return f"Elicitation completed: {answer}"


@tool(risk="read")
async def test_elicitation_sep1330_enums(*, ctx: ToolContext) -> str:
    """Ask by a form with choices of all sorts."""
    titled = [{"const": f"value{i}", "title": title} for i, title in enumerate(("First", "Second", "Third"), 1)]
    plain = ["option1", "option2", "option3"]
    members = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    answer = await ctx.ask("Please choose", schema={"type": "object", "properties": members})
    return f"Elicitation completed: {answer}"


@tool(risk="read")
async def test_missing_capability(*, ctx: ToolContext) -> str:
    """Need a model."""
    return (await ctx.sample([SampleMessage("user", [TextContent("Hello")])])).text


@tool(risk="read")
async def test_streaming_elicitation(*, ctx: ToolContext) -> str:
    """Tell progress, then ask."""
    await ctx.progress(1, 2)
    return f"{await ctx.ask('Go on?', schema=OK)}"


# what is asked in rounds; a form's title is what the question is called


def _asking(name: str, ask: Callable[[ToolContext], Any]) -> Tool:
    async def call(args: Json, ctx: ToolContext) -> Any:
        return await ask(ctx)

    return Tool(f"test_input_required_result_{name}", "Ask in rounds.", {"type": "object"}, call, risk="read")


async def _greet(ctx: ToolContext) -> str:
    choice, data = await ctx.ask("What is your name?", schema={"title": "user_name", **NAME})
    return f"Hello, {(data or {}).get('name', choice)}!"


async def _capital(ctx: ToolContext) -> str:
    question = SampleMessage("user", [TextContent("What is the capital of France?")])
    return (await ctx.sample([question], max_tokens=100)).text


async def _folders(ctx: Any) -> str:
    return ", ".join(await ctx.roots())


async def _confirm(ctx: ToolContext) -> str:
    return f"state-ok {await ctx.ask('Please confirm', schema=OK)}"


async def _all_at_once(ctx: ToolContext) -> str:
    return str(await asyncio.gather(_greet(ctx), _capital(ctx), _folders(ctx)))


async def _two_rounds(ctx: ToolContext) -> str:
    color = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}
    first = await ctx.ask("Step 1: What is your name?", schema=NAME)
    return str([first, await ctx.ask("Step 2: What is your favorite color?", schema=color)])


async def _what_is_possible(ctx: ToolContext) -> str:
    return str(await asyncio.gather(_greet(ctx), _capital(ctx), return_exceptions=True))


# what changes, and what a connector brings


class Fixtures:
    """A connector with the prompts and resources of the suite."""

    name = "fixtures"

    def __init__(self) -> None:
        self._changed: Callable[[], None] = lambda: None
        self._more = 0

    async def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def stop(self) -> None:
        pass

    def health(self) -> Health:
        return Health("ready")

    def tools(self) -> Sequence[Tool]:
        async def call(args: Json, ctx: ToolContext) -> str:
            return "There I am."

        return [Tool(f"appeared_{i}", "Appeared.", {"type": "object"}, call, risk="read") for i in range(self._more)]

    def prompts(self) -> Sequence[Prompt]:
        uri = PromptArgument("resourceUri", "What to embed", required=True)
        two = [PromptArgument(f"arg{i}", "For testing", required=True) for i in (1, 2)]
        return [
            Prompt("test_simple_prompt", description="A simple prompt"),
            Prompt("test_prompt_with_arguments", description="A prompt with arguments", arguments=two),
            Prompt("test_prompt_with_embedded_resource", description="A prompt with a resource", arguments=[uri]),
            Prompt("test_prompt_with_image", description="A prompt with an image"),
            Prompt("test_input_required_result_prompt", description="A prompt that asks"),
            *(Prompt(f"appeared_{i}", description="Appeared.") for i in range(self._more)),
        ]

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("test://static-text", "text", description="Text", mime="text/plain"),
            Resource("test://static-binary", "binary", description="An image", mime="image/png"),
            Resource("test://watched-resource", "watched", description="Watched", mime="text/plain"),
            Resource(
                "test://template/{id}/data", "template", description="Any", mime="application/json", template=True
            ),
        ]

    async def get_prompt(
        self, name: str, arguments: dict[str, str], ctx: ToolContext | None = None
    ) -> list[PromptMessage]:
        def said(*content: Content) -> list[PromptMessage]:
            return [PromptMessage("user", [item]) for item in content]

        match name:
            case "test_prompt_with_arguments":
                one, two = arguments["arg1"], arguments["arg2"]
                return said(TextContent(f"Prompt with arguments: arg1='{one}', arg2='{two}'"))
            case "test_prompt_with_embedded_resource":
                held = BlobContent("text/plain", b"Embedded resource content for testing.", arguments["resourceUri"])
                return said(held, TextContent("Please process the embedded resource above."))
            case "test_prompt_with_image":
                return said(BlobContent("image/png", PNG), TextContent("Please analyze the image above."))
            case "test_input_required_result_prompt" if ctx is not None:
                form = {"type": "object", "properties": {"context": {"type": "string"}}, "required": ["context"]}
                _, data = await ctx.ask("What context should the prompt use?", schema={"title": "user_context", **form})
                return said(TextContent(f"In this context: {(data or {}).get('context')}"))
        return said(TextContent("This is a simple prompt for testing."))

    async def read(self, uri: str) -> list[Content]:
        if uri == "test://static-binary":
            return [BlobContent("image/png", PNG)]
        if uri.startswith("test://template/"):
            id = uri.split("/")[3]
            return [TextContent(f'{{"id":"{id}","templateTest":true,"data":"Data for ID: {id}"}}')]
        if uri in ("test://static-text", "test://watched-resource"):
            return [TextContent("This is the content of the static text resource.")]
        raise ToolError("Resource not found")

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        return [f"{value}1", f"{value}2"]

    def change(self) -> None:
        """Offer one more tool and prompt."""
        self._more += 1
        self._changed()


def make_tools(connector: Fixtures) -> list[Tool]:
    """The tools of the suite."""

    async def change(args: Json, ctx: ToolContext) -> str:
        connector.change()
        return "Changed."

    async def give_back(args: Json, ctx: ToolContext) -> Any:
        return args

    return [
        *(value for value in globals().values() if isinstance(value, Tool)),
        _asking("elicitation", _greet),
        _asking("sampling", _capital),
        _asking("list_roots", _folders),
        _asking("request_state", _confirm),
        _asking("multiple_inputs", _all_at_once),
        _asking("multi_round", _two_rounds),
        _asking("tampered_state", _confirm),
        _asking("capabilities", _what_is_possible),
        Tool("test_trigger_tool_change", "Change the list of tools.", {"type": "object"}, change),
        Tool("test_trigger_prompt_change", "Change the list of prompts.", {"type": "object"}, change),
        Tool("json_schema_2020_12_tool", "A tool with a schema of all sorts.", JSON_SCHEMA, give_back, risk="read"),
    ]
