"""The run kind `dialogue` does what every kind has to: agents of two vendors, and some whom a moderator calls up."""

from __future__ import annotations

from sag.hooks.provider import ModelRequest
from sag.testing.provider import Script, call, say
from tests.kinds.plays import Play, answered, look_up, system


class TestDialogue(Play):
    kind = "dialogue"
    text = "Cats or dogs?"
    models = ("left/cat", "right/dog")
    config = {"max_turns": 3, "bots": {"b0": {"model": "left/cat"}, "b1": {"model": "right/dog", "tools": True}}}
    tools = (look_up,)
    patch = {"bots": {"b1": {"temperature": 0.1, "system": "Bark."}}}
    bad_patches = ({"bots": {"b1": {"temperature": "hot"}}}, {"bots": {"b1": {"nose": 1}}}, {"max_turns": 0})

    def answer(self, request: ModelRequest) -> Script:
        if request.model == "dog" and not answered(request):
            return call(("look_up", {"word": "dog"}), text="Wait. ")
        return say("I am ", f"a {request.model}. ")


class TestModerated(Play):
    kind = "dialogue"
    text = "Cats or dogs?"
    config = {"max_turns": 3, "next": "moderator"}
    patch = {"moderator": {"temperature": 0.1}}
    bad_patches = ({"moderator": {"temperature": 3}}, {"next": "nobody"})

    def answer(self, request: ModelRequest) -> Script:
        return call(("next_speaker", {"bot": "b1"})) if "You moderate" in system(request) else say("Woof.")
