"""A scripted provider for tests: it answers what the test says, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from sag.hooks.provider import CallFragment, Chunk, Finish, Model, ModelRequest, Text, UsageChunk
from sag.schema.events import Usage

Script = Sequence[Chunk | BaseException | asyncio.Event | float]


class ScriptedProvider:
    """Answers one script after the other.

    A script's items are chunks to give, exceptions to raise, events to wait for, and seconds to sleep. When the
    scripts are used up the last one is given again; with none at all the answer is "ok".

    Attributes:
        requests: What it was asked, in order.
    """

    def __init__(self, *scripts: Script | Callable[[ModelRequest], Script], name: str = "script") -> None:
        self.name = name
        self.requests: list[ModelRequest] = []
        self._scripts = list(scripts)

    def models(self) -> Sequence[Model]:
        return [Model("m", default=True)]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        self.requests.append(copy.deepcopy(request))
        at = min(len(self.requests), len(self._scripts)) - 1
        script = self._scripts[at] if self._scripts else say("ok")
        for item in script(request) if callable(script) else script:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, asyncio.Event):
                await item.wait()
            elif isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield item


def say(*texts: str, tokens: int | None = None) -> list[Chunk]:
    """A script that says something and stops."""
    usage = Usage(1, len(texts) if tokens is None else tokens)
    return [*(Text(t) for t in texts), UsageChunk(usage), Finish("stop")]


def call(*calls: tuple[str, object], text: str = "") -> list[Chunk]:
    """A script that calls tools, each with its name and arguments; text as arguments is sent as it stands."""
    out: list[Chunk] = [Text(text)] if text else []
    for i, (name, args) in enumerate(calls):
        arguments = args if isinstance(args, str) else msgspec.json.encode(args).decode()
        half = len(arguments) // 2
        out.append(CallFragment(i, id=f"v{i}", name=name, arguments=arguments[:half]))
        out.append(CallFragment(i, arguments=arguments[half:]))
    return [*out, UsageChunk(Usage(1, 1)), Finish("tools")]
