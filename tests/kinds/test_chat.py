"""The run kind `chat` does what every kind has to."""

from __future__ import annotations

from sag.hooks.provider import ModelRequest
from sag.testing.provider import Script, call, say
from tests.kinds.plays import Play, answered, look_up, write_down


class TestChat(Play):
    kind = "chat"
    text = "What are a fox and a hen?"
    tools = (look_up, write_down)
    patch = {"system": "Be brief."}

    def answer(self, request: ModelRequest) -> Script:
        if answered(request) < 2:
            return call(("look_up", {"word": "fox"}), ("look_up", {"word": "hen"}), text="I look. ")
        if answered(request) == 2:
            return call(("write_down", {"word": "fox"}))
        return say("A fox ", "and ", "a hen.")
