"""The run kind `completion` does what every kind has to."""

from __future__ import annotations

from sag.hooks.provider import ModelRequest
from sag.testing.provider import Script, call, say
from tests.kinds.plays import Play, answered, look_up


class TestCompletion(Play):
    kind = "completion"
    tools = (look_up,)

    def answer(self, request: ModelRequest) -> Script:
        return say("A ", "word.") if answered(request) else call(("look_up", {"word": "fox"}))
