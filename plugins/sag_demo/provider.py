"""The provider `demo`: it streams what the script says, at the pace that is set, within the request's limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from sag.plugin import (
    CallFragment,
    Chunk,
    Finish,
    Model,
    ModelRequest,
    ProviderError,
    Reasoning,
    Text,
    Usage,
    UsageChunk,
)
from sag_demo.script import Reply, answer


class Settings(Struct):
    """The table `[demo]` of plugins.toml.

    Attributes:
        token_ms: How long each word takes; 0 streams as fast as the hub takes it.
    """

    token_ms: Annotated[float, Meta(ge=0, le=10_000)] = 18.0


class DemoProvider:
    """Scripted replies.

    Args:
        token_ms: How long each word takes.
    """

    name = "demo"

    def __init__(self, token_ms: float = 18.0) -> None:
        self._delay_s = token_ms / 1000

    def models(self) -> Sequence[Model]:
        return [Model("scripted", "Demo (scripted, offline)", demo=True)]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        """One round. Tokens are words here.

        Raises:
            ProviderError: The user asked for a failure.
        """
        reply = answer(request)
        if reply.error is not None and not reply.text:
            raise _error(reply.error)
        spoken = sum(len(message.text.split()) for message in request.messages)
        thought = said = 0
        for word in words(reply.reasoning):
            thought += 1
            yield Reasoning(word)
            await asyncio.sleep(self._delay_s)
        limit = request.max_tokens
        finish = Finish("stop")
        for word in words(until_stop(reply.text, request.stop)):
            if limit is not None and thought + said >= limit:
                finish = Finish("length")
                break
            said += 1
            yield Text(word)
            await asyncio.sleep(self._delay_s)
        if reply.error is not None:
            raise _error(reply.error)
        if finish.reason == "stop" and reply.calls:
            for fragment in fragments(reply, len(request.messages)):
                yield fragment
                await asyncio.sleep(self._delay_s)
            finish = Finish("tools")
        yield UsageChunk(Usage(input=spoken, output=thought + said, reasoning=thought))
        yield finish


def words(text: str) -> list[str]:
    """A text cut so that each piece is a word with the space before it."""
    return re.findall(r"\s*\S+|\s+$", text)


def until_stop(text: str, stop: list[str] | None) -> str:
    """A text up to the first of the stop sequences."""
    cuts = [i for s in stop or () if s and (i := text.find(s)) >= 0]
    return text[: min(cuts, default=len(text))]


def fragments(reply: Reply, turn: int) -> list[CallFragment]:
    """The calls as a model streams them: begun one after the other, their arguments in two pieces each."""
    out: list[CallFragment] = []
    for index, (name, arguments) in enumerate(reply.calls):
        text = msgspec.json.encode(arguments).decode()
        half = len(text) // 2
        out.append(CallFragment(index, f"demo_{turn}_{index}", name, text[:half]))
        out.append(CallFragment(index, arguments=text[half:]))
    return out


def _error(kind: str) -> ProviderError:
    after_s = 1.0 if kind == "provider.rate_limit" else None
    return ProviderError(kind, f"The demo was asked to fail with {kind}.", after_s=after_s)
