"""Faults that are ordered from a fake in a message."""

from __future__ import annotations

import pytest

from sag.engine.transport import Deadlines, Transport
from sag.hooks.provider import Chunk, ModelRequest, ProviderError, Text, text_message
from sag.outbound import Outbound
from sag.testing.upstream import FakeUpstream
from sag.testing.upstream.misbehave import FAULTS, Misbehaving
from sag_openai.provider import ChatProvider

FINE = {"slow", "pause", "length", "refusal", "bad-arguments", "unknown-tool", "many-calls"}
SHORT = Deadlines(connect_s=1.0, first_token_s=0.3, gap_s=0.3, total_s=2.0)


async def ask(up: FakeUpstream, text: str) -> str:
    outbound = Outbound()
    transport = Transport(outbound)
    chunks: list[Chunk] = []
    try:
        provider = ChatProvider("fake", up.url)
        await transport.run(provider, ModelRequest("fake", [text_message("user", text)]), SHORT, chunks.extend)
    finally:
        transport.close()
        await outbound.close()
    return "".join(c.text for c in chunks if isinstance(c, Text))


@pytest.mark.parametrize("name", sorted(set(FAULTS) - FINE))
async def test_each_fault_is_one(name: str) -> None:
    async with FakeUpstream(answer=Misbehaving()) as up:
        with pytest.raises(ProviderError):
            await ask(up, f"please misbehave {name}")


async def test_a_fault_may_be_over_after_some_times() -> None:
    async with FakeUpstream(answer=Misbehaving()) as up:
        for _ in range(2):
            with pytest.raises(ProviderError):
                await ask(up, "misbehave 500 2 times")
        assert await ask(up, "misbehave 500 2 times") == "misbehave 500 2 times"


async def test_without_an_order_the_message_comes_back() -> None:
    async with FakeUpstream(answer=Misbehaving()) as up:
        assert await ask(up, "please misbehave nicely") == "please misbehave nicely"
