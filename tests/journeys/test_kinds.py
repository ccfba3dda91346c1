"""A dialogue, a triage and a plan on the chat page, each watched by two devices; asserted by static/chat/e2e."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from sag.hooks.provider import CallFragment, Chunk, Finish, Model, ModelRequest, Text, UsageChunk
from sag.plugin import ToolContext, tool
from sag.schema.events import Usage
from sag.testing.hub import RunningHub, running_hub
from tests.journeys.test_browser import CHROMIUM, skip_without_browser
from tests.journeys.test_tools import walk

Json = dict[str, Any]

AGENTS = {
    "billing": {"title": "Billing", "description": "invoices and payments", "model": "troupe/sage"},
    "shipping": {"title": "Shipping", "description": "parcels and where they are"},
    "repairs": {"title": "Repairs", "description": "what is broken"},
}
STEPS = [
    {
        "id": "trains",
        "title": "Find trains to Vienna",
        "task": "Look up trains to Vienna on Friday.",
        "agent": "shipping",
    },
    {"id": "rooms", "title": "Find rooms in Vienna", "task": "Look up rooms in Vienna for one night."},
    {
        "id": "cost",
        "title": "Add up the cost",
        "task": "Add up what it costs.",
        "needs": ["trains", "rooms"],
        "agent": "billing",
    },
    {"id": "book", "title": "Write the booking", "task": "Write the booking.", "needs": ["cost"]},
    {"id": "mail", "title": "Draft the mail to the team", "task": "Draft a mail.", "needs": ["book"]},
]
REST = [
    {
        "id": "cost",
        "title": "Estimate the cost",
        "task": "Estimate what it costs from list prices.",
        "needs": ["trains", "rooms"],
    },
    *STEPS[3:],
]
TALK = [
    "A city without cars gives its streets back: **quieter**, safer, and cheaper to keep. Where would you begin?",
    "With deliveries. Whoever bans the car learns on Monday what is missing there:\n\n1. bread\n2. medicine\n3. ice",
    "Then we allow all three, by the hour. Most streets stand still at night anyway, and cargo bikes do the last mile.",
    "Agreed, as long as somebody pays for the bikes. Who does?",
]


class Troupe:
    """Plays everybody: each answers by what its prompt tells that it is.

    Args:
        word_s: The time that a word takes.

    Attributes:
        gates: What is waited for at some points, by name.
        heard: The requests, in order.
    """

    name = "troupe"

    def __init__(self, word_s: float = 0.012) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.heard: list[ModelRequest] = []
        self._word_s = word_s
        self._turns = 0

    def models(self) -> Sequence[Model]:
        return [Model("muse", label="Muse 2", default=True), Model("sage", label="Sage Large")]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        self.heard.append(request)
        system, last = request.messages[0].text, request.messages[-1]
        said: str | tuple[str, Json]
        if "You talk with" in system or "in this talk" in system:
            self._turns += 1
            said = TALK[(self._turns - 1) % len(TALK)]
            gate = f"turn {self._turns}"
        elif "You receive requests" in system:
            said, gate = (
                ("hand_over", {"agent": "billing", "note": "asks for invoice 17 and where its parcel is"}),
                "triage",
            )
        elif found := re.search(r"You are (\w+), one of several", system):
            said, gate = self._specialist(found[1], last.role == "tool"), found[1]
        elif "You plan the work" in system:
            said = ("revise_plan", {"steps": REST}) if "failed" in system else ("make_plan", {"steps": STEPS})
            gate = "revise" if "failed" in system else "plan"
        elif "You do one step" in system:
            said, gate = self._step(request, last.role == "tool")
        else:
            said, gate = "You leave on **Friday at 9:12** and sleep near the opera. It costs about 240 €.", "answer"
        if (event := self.gates.get(gate)) is not None:
            await event.wait()
        async for chunk in self._say(said):
            yield chunk

    @staticmethod
    def _specialist(who: str, knows: bool) -> str | tuple[str, Json]:
        if not knows:
            return "look_up", {"what": "invoice 17" if who == "Billing" else "parcel of invoice 17"}
        if who == "Billing":
            return "hand_over", {"agent": "shipping", "note": "invoice 17 is paid; where is its parcel?"}
        return "Invoice 17 is paid, and its parcel is **in the van**: it arrives tomorrow before noon."

    @staticmethod
    def _step(request: ModelRequest, knows: bool) -> tuple[str | tuple[str, Json], str]:
        brief = next(m.text for m in request.messages if m.role == "user")
        task = brief.rpartition("Your task:\n")[2]
        if task.startswith("Add up"):
            return ("give_up", {"reason": "The rooms have no price."}), "cost"
        gate = next((word for word in ("trains", "rooms") if word in task), "")
        if gate and not knows:
            return ("look_up", {"what": task[8:-1]}), gate
        return f"Done: {task} There are three that fit; the second is the best of them.", gate

    async def _say(self, said: str | tuple[str, Json]) -> AsyncIterator[Chunk]:
        if isinstance(said, tuple):
            yield CallFragment(0, id="v0", name=said[0], arguments=msgspec.json.encode(said[1]).decode())
            yield UsageChunk(Usage(420, 38, cost_usd=0.0011))
            yield Finish("tools")
            return
        for word in re.findall(r"\S+\s*", said):
            yield Text(word)
            await asyncio.sleep(self._word_s)
        yield UsageChunk(Usage(380, len(said) // 4, cost_usd=0.0009))
        yield Finish("stop")


@tool(risk="read")
async def look_up(what: Annotated[str, Meta(description="what to look for")], *, ctx: ToolContext) -> str:
    """Look something up."""
    for done in range(4):
        await ctx.progress(done=done, total=4)
        await asyncio.sleep(0.15)
    return f"3 entries about {what}"


def stage(troupe: Troupe) -> AbstractAsyncContextManager[RunningHub]:
    """A hub with the troupe."""
    return running_hub(providers=[troupe], tools=[look_up], tables={"workflow": {"agents": AGENTS}})


async def watch(script: str, tmp_path: Path, *gates: str) -> Troupe:
    """Walk through the page; a line `open GATE` of the walk lets the troupe go on there."""
    skip_without_browser()
    shots = Path(os.environ.get("SAG_SHOTS", tmp_path / "shots"))
    shots.mkdir(exist_ok=True)
    troupe = Troupe()
    troupe.gates = {gate: asyncio.Event() for gate in gates}
    said: list[str] = []
    async with stage(troupe) as hub:
        process = await walk(script, hub.url, str(shots), CHROMIUM, *(["pdf"] if find_spec("typst") else []))
        assert process.stdout is not None
        try:
            async with asyncio.timeout(150):
                while raw := await process.stdout.readline():
                    line = raw.decode().rstrip()
                    said.append(line)
                    if line.startswith("open "):
                        troupe.gates[line[5:]].set()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, "\n".join(said)
    assert said[-1] == "done", "\n".join(said)
    return troupe


@pytest.mark.browser
@pytest.mark.timeout(180)
async def test_two_agents_talk_on_two_devices_and_a_knob_takes_hold_at_the_next_turn(tmp_path: Path) -> None:
    troupe = await watch("dialogue", tmp_path, "turn 3", "turn 5")
    asked = [(r.model, r.temperature, "Be brief" in r.messages[0].text) for r in troupe.heard]
    assert asked[1] == ("sage", 0.9, False)
    assert asked[2] == ("muse", None, False)
    assert asked[3] == ("sage", 0.2, True)


@pytest.mark.browser
@pytest.mark.timeout(180)
async def test_a_triage_and_a_plan_are_the_same_on_two_devices_one_of_which_reloads(tmp_path: Path) -> None:
    troupe = await watch("workflow", tmp_path, "Billing", "trains", "rooms", "revise")
    assert sum("You plan the work" in r.messages[0].text for r in troupe.heard) == 2
