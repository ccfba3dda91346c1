"""A hub with tools of all sorts, and hosts of both eras that use it over `/mcp`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

import mcp.types as t
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from sag.plugin import (
    BlobContent,
    Content,
    Health,
    LinkContent,
    Prompt,
    PromptArgument,
    PromptMessage,
    Resource,
    Result,
    SampleMessage,
    TableContent,
    TextContent,
    Tool,
    ToolContext,
    ToolError,
    tool,
)
from sag.testing.hub import RunningHub

Json = dict[str, Any]
FORM = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]}


@pytest.fixture(params=["legacy", "auto"])
def era(request: Any) -> str:
    """How the SDK's client connects: by the handshake, or statelessly."""
    return str(request.param)


class Host:
    """What another host's user and model answer, and what the host was told.

    Attributes:
        answers: One for each question, in order; then it is declined.
        asked, logged, progress, messages: What came.
    """

    def __init__(self, *answers: t.ElicitResult) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.logged: list[tuple[str, Any]] = []
        self.progress: list[tuple[float, float | None, str | None]] = []
        self.messages: list[str] = []
        self.news = asyncio.Event()

    async def elicit(self, context: Any, params: Any) -> t.ElicitResult:
        self.asked.append(params)
        return self.answers.pop(0) if self.answers else t.ElicitResult(action="decline")

    async def sample(self, context: Any, params: Any) -> t.CreateMessageResult:
        self.asked.append(params)
        blocks = [b for m in params.messages for b in m.content_as_list]
        said = " ".join(b.text if isinstance(b, t.TextContent) else b.type for b in blocks)
        content = t.TextContent(type="text", text=said.upper())
        return t.CreateMessageResult(role="assistant", content=content, model="their/model", stop_reason="maxTokens")

    async def roots(self, context: Any) -> t.ListRootsResult:
        return t.ListRootsResult(roots=[t.Root(uri="file:///home/ana")])  # type: ignore[arg-type]

    async def log(self, params: t.LoggingMessageNotificationParams) -> None:
        self.logged.append((params.level, params.data))

    async def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))
        self.news.set()

    async def on_message(self, message: Any) -> None:
        self.messages.append(type(message).__name__)
        self.news.set()

    @contextlib.asynccontextmanager
    async def connect(
        self, hub: RunningHub, mode: str, *, asks: bool = True, token: str | None = None, **given: Any
    ) -> AsyncIterator[Client]:
        """Use a hub, with or without the means to answer questions."""
        able: Json = {}
        if asks:
            able = {
                "elicitation_callback": self.elicit,
                "sampling_callback": self.sample,
                "list_roots_callback": self.roots,
            }
        headers = {"authorization": f"Bearer {token}"} if token else None
        async with create_mcp_http_client(headers=headers) as http:
            transport = streamable_http_client(f"{hub.url}/mcp", http_client=http)
            async with Client(
                transport, mode=mode, logging_callback=self.log, message_handler=self.on_message, **able, **given
            ) as client:
                yield client


def accept(**content: Any) -> t.ElicitResult:
    return t.ElicitResult(action="accept", content=content)


def text_of(result: t.CallToolResult) -> str:
    return "\n".join(item.text for item in result.content if isinstance(item, t.TextContent))


# tools


@tool(risk="read", idempotent=True)
async def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}."


@tool(risk="danger")
async def open_gate() -> str:
    """Open the gate."""
    return "It is open."


@tool(risk="write")
async def fail(how: Literal["told", "crash", "slow"]) -> str:
    """Fail."""
    if how == "told":
        raise ToolError("The gate is stuck.")
    if how == "slow":
        await asyncio.sleep(60)
    raise RuntimeError("a secret")


fail.timeout_s = 0.3


@tool(risk="read")
async def work(steps: int, *, ctx: ToolContext) -> str:
    """Tell of progress and write log."""
    ctx.log.debug("a detail")
    for i in range(steps):
        await ctx.progress(i, steps, f"step {i}")
        await asyncio.sleep(0.1)
    await ctx.progress(0, None, "nearly")
    ctx.log.warning("look %s", "here")
    await asyncio.to_thread(ctx.log.error, "from a thread")
    await ctx.output("what it writes")
    return "done"


work.timeout_s = 0.25


@tool(risk="read")
async def ask_day(*, ctx: ToolContext) -> str:
    """Ask for a day, then for a choice."""
    choice, data = await ctx.ask("Which day?", schema=FORM)
    return f"{choice} {data} {await ctx.ask('Really?', options=['yes', 'no'])}"


@tool(risk="read")
async def ask_url(*, ctx: ToolContext) -> str:
    """Have an address visited."""
    return str(await ctx.ask("Sign in", url="https://example.org/in"))


@tool(risk="read")
async def ask_nested(*, ctx: ToolContext) -> str:
    """Ask for what no host can show."""
    form = {"type": "object", "properties": {"who": {"type": "object", "properties": {}}}}
    return str(await ctx.ask("Who?", schema=form))


@tool(risk="read")
async def ask_model(*, ctx: ToolContext) -> str:
    """Ask the model."""
    held: list[Content] = [
        TextContent("say this"),
        BlobContent("image/png", b"png"),
        LinkContent("https://example.org"),
    ]
    answer = await ctx.sample([SampleMessage("user", held)], system="Be brief.", max_tokens=7)
    return f"{answer.text} {answer.model} {answer.finish}"


@tool(risk="read")
async def ask_folders(*, ctx: Any) -> str:
    """Ask for the host's folders."""
    return ", ".join(await ctx.roots())


OBJECT = {"type": "object", "properties": {"free": {"type": "integer"}}, "required": ["free"]}


async def _all(args: Json, ctx: ToolContext) -> Result:
    return Result(
        [
            TextContent("text"),
            BlobContent("image/png", b"png"),
            BlobContent("audio/wav", b"wav"),
            BlobContent("text/plain", "häh".encode(), "notes/a b.txt"),
            BlobContent("application/pdf", b"%PDF", "file:///plan.pdf"),
            LinkContent("https://example.org/p", "plan", mime="text/html"),
            TableContent(["who", "free"], [["Ana Berg", 3], ["a|b", None]], "Week 12"),
        ],
        data={"free": 3},
    )


async def _json(args: Json, ctx: ToolContext) -> Any:
    return args["value"]


def make_tools() -> list[Tool]:
    """The tools of the hub."""
    any_json = {"type": "object", "properties": {"value": {}}, "required": ["value"]}
    own = [value for value in globals().values() if isinstance(value, Tool)]
    return [
        *own,
        Tool("show_all", "Show all.", {"type": "object"}, _all, risk="read", title="All there is", output=OBJECT),
        Tool("echo_json", "Give JSON.", any_json, _json, risk="read"),
        Tool("chat", "A tool that is called as the server's own.", {"type": "object"}, _json),
    ]


class Shelf:
    """A connector that brings tools, prompts and resources, which change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sizes = {"shelf://plan": 3}
        self.names = ["find"]
        self._changed: Callable[[], None] = lambda: None

    async def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def stop(self) -> None:
        pass

    def change(self) -> None:
        self._changed()

    def health(self) -> Health:
        return Health("ready", notes=self.names)  # as the topic `hub` shows it, so that a change is told at once

    def tools(self) -> Sequence[Tool]:
        header = {"type": "object", "properties": {"x-mcp-header": {"type": "string", "x-mcp-header": "Who"}}}

        async def find(args: Json, ctx: ToolContext) -> str:
            return f"found by {self.name}"

        return [Tool(name, "Find.", header, find, risk="read") for name in self.names]

    def prompts(self) -> Sequence[Prompt]:
        return [
            Prompt("brief", "Brief", "Write a brief.", [PromptArgument("topic", "Of what", required=True)]),
            Prompt(f"only_{self.name}"),
        ]

    def resources(self) -> Sequence[Resource]:
        return [
            *(Resource(uri, "plan", mime="text/markdown", size=size) for uri, size in self.sizes.items()),
            Resource(f"{self.name}://week/{{week}}", "week", template=True),
        ]

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        if arguments.get("topic") == "nothing":
            raise ToolError("There is nothing to say.")
        picture = BlobContent("image/png", b"png")
        return [PromptMessage("user", [TextContent(f"{self.name}: {arguments.get('topic')}"), picture])]

    async def read(self, uri: str) -> list[Content]:
        if uri.startswith((f"{self.name}://week/", "shelf://")) and not uri.endswith("gone"):
            return [TextContent(f"{self.name} has {uri}"), BlobContent("image/png", b"png")]
        raise ToolError(f"{self.name} has no {uri}")

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        return [f"{self.name} {kind} {name} {argument} {value}{i}" for i in range(120)]
