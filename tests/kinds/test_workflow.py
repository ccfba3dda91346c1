"""The run kinds `triage` and `plan` do what every kind has to."""

from __future__ import annotations

import re

from sag.hooks.provider import ModelRequest
from sag.testing.provider import Script, call, say
from tests.kinds.plays import Play, answered, look_up, system, write_down


class TestTriage(Play):
    kind = "triage"
    text = "My bill is wrong, and the light blinks."
    config = {
        "agents": {
            "bills": {"title": "Bills", "description": "Money", "system": "You know bills.", "tools": ["look_up"]},
            "lights": {"title": "Lights", "description": "Lamps", "system": "You know lights."},
            "doors": {"title": "Doors", "description": "Doors", "system": "You know doors."},
        }
    }
    tools = (look_up, write_down)
    patch = {"agents": {"lights": {"temperature": 0.1}}}
    bad_patches = ({"agents": {"lights": {"temperature": "hot"}}}, {"agents": {"triage": {}}}, {"follow_up": "first"})

    def answer(self, request: ModelRequest) -> Script:
        if "You know bills." in system(request):
            if not answered(request):
                return call(("look_up", {"word": "bill"}), text="I look. ")
            return call(("hand_over", {"agent": "lights", "note": "The bill is mended."}))
        if "You know lights." in system(request):
            return say("The light ", "is mended too.")
        return call(("hand_over", {"agent": "bills", "note": "A bill and a light."}))


NEEDS = {"both": ("fox", "egg")}


def step(id: str, *needs: str) -> dict[str, object]:
    return {"id": id, "title": id.capitalize(), "task": f"Do {id}.", "needs": list(needs)}


class TestPlan(Play):
    kind = "plan"
    text = "Compare a fox and a hen."
    config = {"approve": True}
    tools = (look_up, write_down)
    patch = {"revisions": 2, "temperature": 0.1}
    bad_patches = ({"parallel": 0}, {"agents": {"x": {"nose": 1}}}, {"approve": "no"})

    def answer(self, request: ModelRequest) -> Script:
        prompt, task = system(request), request.messages[-1].text
        if "Answer the user from the results" in prompt:
            return say("They are ", "both words.")
        if "Here is the plan and what became of it" in prompt:
            left = [id for id in ("fox", "egg", "both") if not re.search(rf"^- {id} .*: done$", prompt, re.M)]
            return call(("revise_plan", {"steps": [step(id, *NEEDS.get(id, ())) for id in left]}))
        if "You plan the work" in prompt:
            return call(("make_plan", {"steps": [step("fox"), step("hen"), step("both", "fox", "hen")]}))
        if "Do hen." in task:
            return call(("give_up", {"reason": "There is no hen."}))
        if "Do fox." in task and not answered(request):
            return call(("look_up", {"word": "fox"}))
        return say("It is ", "done.")
