"""A plugin for fault tests: tools that write down each call, and a model that does what the user's message says.

The journal (SAG_PROBE_JOURNAL) gets a line before each side effect, flushed, so that a killed hub leaves the truth.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import Struct

from sag.plugin import (
    Call,
    CallFragment,
    Chunk,
    Finish,
    Hub,
    Model,
    ModelRequest,
    Params,
    ProviderError,
    Text,
    ToolContext,
    Usage,
    UsageChunk,
    hookimpl,
    operation,
    tool,
)

JOURNAL = os.environ.get("SAG_PROBE_JOURNAL", "")


def note(line: str) -> None:
    """Write a line to the journal."""
    if JOURNAL:
        with open(JOURNAL, "a", encoding="utf-8") as file:
            file.write(line.replace("\n", " ") + "\n")


@tool(risk="write")
async def probe_mark(id: str, *, ms: int = 0, ctx: ToolContext) -> dict[str, Any]:
    """Do something once."""
    note(f"tool mark {id}")
    await asyncio.sleep(ms / 1000)
    return {"marked": id}


@tool(risk="danger")
async def probe_danger(id: str, *, ctx: ToolContext) -> dict[str, Any]:
    """Do something that needs approval."""
    note(f"tool danger {id}")
    return {"dared": id}


@tool(risk="read", idempotent=True)
async def probe_slow(id: str, *, ms: int = 1000, ctx: ToolContext) -> str:
    """Take some time, and tell how far it is."""
    note(f"tool slow {id}")
    steps = max(1, ms // 20)
    for step in range(steps):
        await ctx.progress(step, steps)
        await asyncio.sleep(0.02)
    await ctx.progress(steps, steps)
    return f"slow {id}"


@tool(risk="read", idempotent=True)
async def probe_form(id: str, *, seconds: float = 60.0, ctx: ToolContext) -> dict[str, Any]:
    """Ask for a form."""
    note(f"tool form {id}")
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    choice, data = await ctx.ask("Who?", schema=schema, expires_s=seconds)
    return {"choice": choice, "data": data}


@tool(risk="read")
async def probe_block(seconds: float, *, ctx: ToolContext) -> str:
    """Hold the event loop, as a bad plugin does."""
    time.sleep(seconds)
    return "blocked"


@tool(risk="read")
async def probe_thread(seconds: float, *, ctx: ToolContext) -> str:
    """Hold a thread, which nobody can cancel."""
    await asyncio.to_thread(time.sleep, seconds)
    return "slept"


@tool(risk="read")
async def probe_patch(scope: str, temperature: float, *, ctx: ToolContext) -> dict[str, Any]:
    """Patch config, as a tool may."""
    return await ctx.patch(scope.replace("RUN", ctx.run).replace("CONV", ctx.conv), {"temperature": temperature})


class Look(Params):
    """Whether to collect garbage before looking."""

    collect: bool = True


class Seen(Struct):
    """What the process holds: tasks by name without their numbers, objects by type."""

    tasks: dict[str, int]
    objects: dict[str, int]


@operation("probe.look", who="user")
async def look(call: Call, params: Look) -> Seen:
    """Look into the process from inside."""
    if params.collect:
        gc.collect()
    tasks = Counter(re.sub(r"\d.*|[ -].*", "", task.get_name()) for task in asyncio.all_tasks())
    objects = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    return Seen(dict(tasks), {name: n for name, n in objects.items() if name.startswith(("sag.", "uvicorn."))})


class ProbeModel:
    """A model that obeys: `flood COUNT RATE [PADDING]`, `loop ROUNDS MS`, `call NAME {…}`, `hang`, `deaf`, `fail`.

    All else is said back.
    """

    name = "probe"

    def models(self) -> Sequence[Model]:
        return [Model("script")]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        said = next((m.text for m in reversed(request.messages) if m.role == "user"), "")
        answered = [m.text for m in request.messages[_last_user(request) :] if m.role == "tool"]
        given = (request.temperature, request.max_tokens, request.top_p)
        note(f"model {said} t={request.temperature} given={given} answers={len(answered)}")
        usage = UsageChunk(Usage(input=len(request.messages), output=1))
        if (match := re.match(r"loop (\d+) (\d+)", said)) and len(answered) < int(match[1]):
            yield CallFragment(0, "c", "probe_slow", f'{{"id": "loop", "ms": {match[2]}}}')
            yield usage
            yield Finish("tools")
            return
        if answered:
            for word in ("Done:", *answered):
                yield Text(f"{word} ")
        elif calls := re.findall(r"call (\w+) (\{.*?\})", said):
            yield Text("I call. ")
            for index, (name, arguments) in enumerate(calls):
                yield CallFragment(index, f"c{index}", name, arguments[:5])
                yield CallFragment(index, arguments=arguments[5:])
            yield usage
            yield Finish("tools")
            return
        elif match := re.match(r"flood (\d+) ([\d.]+)(?: (\d+))?", said):
            async for text in _flood(int(match[1]), float(match[2]), "x" * int(match[3] or 0)):
                yield Text(text)
        elif said.startswith("fail"):
            yield Text("This breaks off ")
            raise ProviderError("provider.disconnected", "The probe was told to fail.")
        elif said.startswith("hang"):
            yield Text("I hang ")
            await asyncio.sleep(3600)
        elif said.startswith("deaf"):
            yield Text("I do not listen ")
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    continue
        else:
            for word in re.findall(r"\S+\s*", f"You said: {said} (temperature {request.temperature})"):
                yield Text(word)
                await asyncio.sleep(0)
        yield usage
        yield Finish("stop")


def _last_user(request: ModelRequest) -> int:
    return max((i for i, m in enumerate(request.messages) if m.role == "user"), default=0)


async def _flood(count: int, rate: float, padding: str) -> AsyncIterator[str]:
    """Numbered words at a rate per second, behind which it never falls for good."""
    began = time.monotonic()
    for n in range(count):
        yield f"w{n}{padding} "
        wait = began + (n + 1) / rate - time.monotonic() if rate else 0
        if wait > 0 or n % 50 == 0:
            await asyncio.sleep(max(0.0, wait))


@hookimpl
def register(hub: Hub[Any]) -> None:
    """Add everything; the model is used where a run's config names `probe/script`."""
    for one in (probe_mark, probe_danger, probe_slow, probe_form, probe_block, probe_thread, probe_patch):
        hub.add_tool(one)
    hub.add_operation(look)
    hub.add_provider(ProbeModel())
