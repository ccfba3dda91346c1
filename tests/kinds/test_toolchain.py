"""The run kind `toolchain` does what every kind has to: with a synthesis and without, and with calls in words."""

from __future__ import annotations

from sag.hooks.provider import ModelRequest
from sag.testing.provider import Script, call, say
from tests.kinds.plays import Play, look_up


class TestToolchain(Play):
    kind = "toolchain"
    text = "What are a fox and a hen?"
    config = {"stages": {"find": {"system": "Find."}, "tell": {"system": "Tell.", "parallel": False}}}
    tools = (look_up,)
    patch = {"stages": {"tell": {"temperature": {"synthesis": 0.1}}}}
    bad_patches = ({"stages": {"tell": {"temperature": {"synthesis": 9}}}}, {"stages": {"a b": {}}}, {"stream": 1})

    def answer(self, request: ModelRequest) -> Script:
        if request.tools:
            return call(("look_up", {"word": "fox"}), ("look_up", {"word": "hen"}))
        return say("Both ", "are words.")


class TestWithoutSynthesis(Play):
    kind = "toolchain"
    config = {"synthesis": False, "stream": False}
    tools = (look_up,)

    def answer(self, request: ModelRequest) -> Script:
        return call(("look_up", {"word": "fox"}), text="I look.")


class TestWrittenCalls(Play):
    kind = "toolchain"
    tools = (look_up,)

    def answer(self, request: ModelRequest) -> Script:
        if request.tools:
            return say(
                '[{"name": "look_up", "arguments": {"word": "fox"}}, ',
                '{"name": "look_up", "arguments": {"word": "hen"}}]',
            )
        return say("Both are words.")
