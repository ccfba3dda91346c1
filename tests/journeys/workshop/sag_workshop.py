"""A plugin for the journey through connectors and tools: connectors in several states, tools that do what a card shows.

The demo model calls any tool when it is told `use NAME {json}`.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sag.plugin import (
    BlobContent,
    Content,
    Health,
    Hub,
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
    hookimpl,
)

Json = dict[str, Any]

BOOKINGS = [
    {"person": "Ana Berg", "project": "Harbour", "hours": 24, "from": "2026-03-02", "tentative": False},
    {"person": "Bo Lind", "project": "Harbour", "hours": 7.5, "from": "2026-03-03", "tentative": True},
    {"person": "Cleo Ruiz", "project": "Website", "hours": 40, "from": "2026-03-02", "tentative": False},
]
TEAMS = ["design", "delivery", "data", "support"]
FORGE: Json = {
    "type": "object",
    "required": ["item", "count"],
    "properties": {
        "item": {"type": "string", "enum": ["hinge", "hook", "nail"], "description": "What to make"},
        "count": {"type": "integer", "minimum": 1, "maximum": 100},
        "marks": {"type": "array", "items": {"type": "string"}},
        "finish": {
            "type": "object",
            "properties": {
                "colour": {"oneOf": [{"const": "#111", "title": "Black"}, {"const": "#ddd", "title": "Steel"}]},
                "polished": {"type": "boolean"},
            },
        },
    },
}
SURVEY: Json = {
    "type": "object",
    "required": ["name", "email", "team"],
    "properties": {
        "name": {"type": "string", "title": "Your name", "minLength": 2},
        "email": {"type": "string", "format": "email", "description": "Where the report goes"},
        "team": {"type": "string", "title": "Team", "enum": TEAMS, "enumNames": [team.title() for team in TEAMS]},
        "days": {
            "type": "array",
            "title": "Days",
            "minItems": 1,
            "items": {"anyOf": [{"const": "mon", "title": "Monday"}, {"const": "tue", "title": "Tuesday"}]},
        },
        "hours": {"type": "number", "minimum": 0, "maximum": 40, "default": 7.5},
        "start": {"type": "string", "format": "date"},
        "site": {"type": "string", "format": "uri"},
        "code": {"type": "string", "description": "Three capital letters", "pattern": "^[A-Z]{3}$"},
        "rooms": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "remind": {"type": "boolean", "title": "Remind me", "default": True},
    },
}


def picture(width: int = 240, height: int = 150) -> bytes:
    """A PNG with a gradient."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (40 + x * 180 // width, 110 + y * 100 // height, 120))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


async def forge(args: Json, ctx: ToolContext) -> Any:
    return f"Made {args['count']} × {args['item']}."


async def build(args: Json, ctx: ToolContext) -> Any:
    steps = int(args.get("steps", 30))
    for step in range(1, steps + 1):
        await ctx.progress(step, steps, f"Step {step}: {'compiling' if step % 2 else 'linking'}")
        await ctx.output(f"[{step:02}] part_{step}.c -> part_{step}.o\n")
        await asyncio.sleep(float(args.get("pause_s", 0.08)))
    return {"built": steps, "warnings": 0}


async def show(args: Json, ctx: ToolContext) -> Any:
    return Result(
        [
            TextContent("The plan of the week, with a picture."),
            BlobContent("image/png", picture(), "plan.png"),
            BlobContent("text/csv", b"person,hours\nAna Berg,24\n", "plan.csv"),
            TableContent(["Day", "Free hours"], [["Mon", 12], ["Tue", 6.5], ["Wed", None]], "Free hours"),
            LinkContent("https://example.org/plan", "The plan", description="on the web"),
            LinkContent("workshop://plan", "plan.md", description="in the workshop"),
        ],
        {"week": 10, "site": {"name": "Harbour", "open": True}, "people": ["Ana Berg", "Bo Lind"]},
    )


async def bookings(args: Json, ctx: ToolContext) -> Any:
    return {"bookings": BOOKINGS, "total": len(BOOKINGS)}


async def big(args: Json, ctx: ToolContext) -> Any:
    return {"lines": [f"line {i}" for i in range(40_000)]}


async def fail(args: Json, ctx: ToolContext) -> Any:
    raise ToolError("The forge is cold.\nLight it first, then try again.")


async def survey(args: Json, ctx: ToolContext) -> Any:
    choice, data = await ctx.ask("Plan the week", schema=SURVEY, expires_s=600)
    return {"choice": choice, "data": data}


async def login(args: Json, ctx: ToolContext) -> Any:
    choice, _ = await ctx.ask("Sign in to the workshop", url="https://login.example.org/authorize?client=sag")
    return {"choice": choice}


async def consult(args: Json, ctx: ToolContext) -> Any:
    question = SampleMessage("user", [TextContent("Which of these tasks is urgent?\n- hinges\n- nails")])
    sampled = await ctx.sample([question], system="You plan a workshop. Be brief.", max_tokens=50)
    return sampled.text


class Workshop:
    """A connector that is ready; `change` gives the tool `forge` another definition."""

    name = "workshop"

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.revised = False

    async def start(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    async def stop(self) -> None:
        pass

    def health(self) -> Health:
        text = "Ask for bookings first. Prefer whole days, and never book anybody on a holiday."
        return Health(
            "ready", title="The workshop", kind="demo", version="2.1", instructions=text, notes=["One tool is new."]
        )

    def tools(self) -> Sequence[Tool]:
        empty: Json = {"type": "object", "properties": {}}
        about = "Make things of iron."
        schema = FORGE
        if self.revised:
            about = "Make things of iron, and send them to anybody."
            properties = {**FORGE["properties"], "recipient": {"type": "string", "format": "email"}}
            schema = {**FORGE, "properties": properties}
        numbers = {"steps": {"type": "integer"}, "pause_s": {"type": "number"}}
        return [
            Tool("forge", about, schema, forge, risk="danger", title="Forge"),
            Tool("build", "Build everything, slowly.", {"type": "object", "properties": numbers}, build),
            Tool("show", "Show the plan as text, picture, table and links.", empty, show, risk="read"),
            Tool("bookings", "List who is booked on what.", empty, bookings, risk="read", title="List bookings"),
            Tool("big", "Give more than anybody reads.", empty, big, risk="read"),
            Tool("fail", "Fail.", empty, fail),
            Tool("survey", "Ask how to plan the week.", empty, survey, risk="read"),
            Tool("login", "Have somebody sign in.", empty, login),
            Tool("consult", "Ask the model.", empty, consult),
            Tool("change", "Change what forge does.", empty, self.change),
        ]

    async def change(self, args: Json, ctx: ToolContext) -> Any:
        self.revised = True
        self.changed()
        return "Changed."

    def prompts(self) -> Sequence[Prompt]:
        arguments = [PromptArgument("team", "Whose week it is", True), PromptArgument("style", "Such as brief")]
        return [
            Prompt("weekly_report", "Weekly report", "A report on a team's week", arguments),
            Prompt("safety", "Safety rules"),
        ]

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("workshop://plan", "plan.md", description="The plan of the week", mime="text/markdown"),
            Resource("workshop://picture", "picture.png", mime="image/png"),
            Resource("workshop://notes/{team}", "notes", "Notes of a team", mime="text/plain", template=True),
        ]

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        if name == "safety":
            return [PromptMessage("user", [TextContent("Which safety rules hold in the workshop?")])]
        if arguments.get("team") not in TEAMS:
            raise ToolError(f"There is no team {arguments.get('team')!r}.")
        text = f"Write a {arguments.get('style', 'full')} report on the week of team {arguments['team']}."
        return [PromptMessage("user", [TextContent(text)])]

    async def read(self, uri: str) -> list[Content]:
        if uri == "workshop://picture":
            return [BlobContent("image/png", picture(), "picture.png")]
        if uri == "workshop://plan":
            return [TextContent("# Plan\n\nHinges first.\n")]
        if uri.startswith("workshop://notes/"):
            return [TextContent(f"Notes of team {uri.rpartition('/')[2]}.\n")]
        raise ToolError(f"There is nothing at {uri}.")

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        return [team for team in TEAMS if team.startswith(value)] if argument == "team" else []


class Broken:
    """A connector that is not well."""

    def __init__(self, name: str, health: Health) -> None:
        self.name, self._health = name, health

    async def start(self, changed: Callable[[], None]) -> None:
        pass

    async def stop(self) -> None:
        pass

    def health(self) -> Health:
        return self._health

    def tools(self) -> Sequence[Tool]:
        return []

    def prompts(self) -> Sequence[Prompt]:
        return []

    def resources(self) -> Sequence[Resource]:
        return []

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        raise ToolError("It is down.")

    async def read(self, uri: str) -> list[Content]:
        raise ToolError("It is down.")

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        return []


@hookimpl
def register(hub: Hub[Any]) -> None:
    """Add the connectors and a preset."""
    hub.add_connector(Workshop())
    hub.add_connector(Broken("cellar", Health("failed", "It ended with 1: no such cask.", title="Cellar", kind="demo")))
    hub.add_connector(Broken("attic", Health("backoff", "No answer within 15 s.", title="Attic", kind="demo")))
    config = {"system": "You plan the work of a workshop.", "temperature": 0.2, "tools": {"workshop/fail": False}}
    hub.add_preset("planning", "Resource planning", config, "Answers about people and bookings")
