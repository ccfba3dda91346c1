"""The run kind `triage`: a request is handed to the specialist that it is for, who may hand it on or back.

Who has the floor is read from the hand-overs in the run's log, and kept nowhere beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from sag.plugin import Agent, Run, RunConfig, RunLimit, Tool
from sag_workflow.specialist import Specialist, Specialists, joined, listing

Json = dict[str, Any]

TRIAGE: Final = "triage"
ROUTE = """You receive requests and hand each to the specialist who is best for it, by calling hand_over. The note says
what is wanted and what is known. Do not answer what a specialist is for. When something comes back to you, hand it on,
or answer with what was found. Greetings, and what no specialist is for, you answer yourself.

The specialists:
"""
WORK = """You are {title}, one of several specialists. Answer what is asked if it is your field. If it is not, or if
somebody else has to go on, call hand_over with a note of what was found and what is still wanted.

The others:
- triage: knows who is for what
"""


class TriageConfig(RunConfig):
    """Config of a triage.

    Attributes:
        agents: The specialists by name.
        max_handovers: How often a run may be handed over before it ends with `limit`.
        follow_up: Who hears the next message of the conversation first: `triage`, or the `last` who spoke in it.
        rounds: How many model rounds a run may take, whoever takes them.
    """

    agents: Specialists = {}
    max_handovers: Annotated[int, Meta(ge=0, le=50)] = 6
    follow_up: Literal["triage", "last"] = TRIAGE
    rounds: Annotated[int, Meta(ge=1, le=500)] = 40


async def triage(run: Run) -> None:
    """Hand the request to the specialist who is best for it, as often as it takes, until one has answered."""
    while not _is_answered(run):
        handed, most = _handed(run), run.config().max_handovers
        if len(handed) > most:
            raise RunLimit(f"The run was handed over more than {most} times.")
        floor = handed[-1]["args"]["agent"] if handed else _first(run)
        note = _told(run.config(), handed[-1]) if handed else ""
        await run.turn(partial(_speaker, floor, note))


def _handed(run: Run) -> list[Json]:
    """The hand-overs so far."""
    return [call for call in run.calls("hand_over") if call.get("ends") and call["status"] == "ok"]


def _is_answered(run: Run) -> bool:
    """Whether the newest turn ended with an answer, and nothing was said since."""
    handed = _handed(run)
    return not run.wants_step and not (handed and handed[-1].get("step") == run.messages()[-1].get("step"))


def _first(run: Run) -> str:
    """Who hears the request first."""
    config = run.config()
    spoke = (m.get("agent") for m in reversed(run.state["messages"]) if m["role"] == "assistant")
    last = next(spoke, None) if config.follow_up == "last" else None
    return last if last is not None and last in config.agents else TRIAGE


def _told(config: TriageConfig, handed: Json) -> str:
    """The note of a hand-over, for whoever has the floor by it."""
    return f"{_title(config, handed['agent'])} has handed this over to you, with the note: {handed['args']['note']}"


def _title(config: TriageConfig, name: str) -> str:
    return "Triage" if name == TRIAGE else (config.agents.get(name) or Specialist()).title or name


def _speaker(name: str, note: str, config: TriageConfig) -> Agent:
    """Who has the floor, as the config has it now."""
    title = _title(config, name)
    if name == TRIAGE and not config.agents:
        return Agent(name=name, title=title, system=joined(config.system, note))
    others = {other: agent for other, agent in config.agents.items() if other != name}
    if name == TRIAGE:
        me, task, to = Specialist(tools=[]), ROUTE, [*others]
    else:
        me, task, to = config.agents.get(name) or Specialist(tools=[]), WORK.format(title=title), [TRIAGE, *others]
    return Agent(
        name=name,
        title=title,
        system=joined(config.system, me.system, task + listing(others), note),
        model=me.model,
        settings=me.settings,
        offered=me.tools,
        own=[_hand_over(to)],
        ends={"hand_over"},
    )


def _hand_over(to: list[str]) -> Tool:
    """The tool that gives the floor to another."""
    schema = {
        "type": "object",
        "properties": {
            "agent": {"type": "string", "enum": to, "description": "who goes on"},
            "note": {"type": "string", "maxLength": 10_000, "description": "what is wanted, and what is known"},
        },
        "required": ["agent", "note"],
        "additionalProperties": False,
    }

    async def hand_over(args: Json, ctx: Any) -> str:
        return f"{args['agent']} goes on."

    text = "Let somebody else go on. This ends your turn."
    return Tool("hand_over", text, schema, hand_over, risk="read")
