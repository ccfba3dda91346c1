"""The run kind `toolchain`: the model picks tools, they are called together, and what they gave is summed up.

A run goes through stages, and the output of one is the input of the next. In a stage's first phase the model picks
tools; none is called unless all of its calls fit. In the second, the synthesis, a model that is offered no tools is
told what they gave, and answers. Where a run stands is read from its finished rounds, so that it goes on there after
a restart, and on the config of now. `sag_toolchain.routes` serves it over HTTP.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from sag.plugin import Agent, Fault, Hub, Run, RunConfig, Tool, hookimpl, text_message
from sag_toolchain.calls import ONLY, SYNTHESIS, calls_of, result_of, words, written_calls
from sag_toolchain.routes import Route

Json = dict[str, Any]
T = TypeVar("T")

SHOWN = 300  # characters of what a model said instead of choosing a tool


class Phases(Struct, Generic[T], frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A setting of each phase.

    Attributes:
        tool, synthesis: Of that phase; left out means the config's.
    """

    tool: T | None = None
    synthesis: T | None = None


class Stage(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A stage. What it leaves out is the config's.

    Attributes:
        title: What people call it.
        model: `provider/model`.
        system: The system prompt of both phases.
        hints: Whether the prompt of the first phase goes on with what tools and connectors say of their use.
        tools: Which are offered, by key or connector: those that are true; where none is, all that are not false.
        parallel: Whether the calls of a round are made at once, rather than one after the other.
        synthesis: Whether there is a second phase; else the results are the output, as JSON.
        stream: Whether words and calls are told as they come, rather than when they are complete.
        temperature, max_tokens: Of each phase.
    """

    title: Annotated[str, Meta(max_length=100)] | None = None
    model: Annotated[str, Meta(max_length=200)] | None = None
    system: Annotated[str, Meta(max_length=100_000)] | None = None
    hints: bool | None = None
    tools: dict[str, bool] = {}
    parallel: bool | None = None
    synthesis: bool | None = None
    stream: bool | None = None
    temperature: Phases[Annotated[float, Meta(ge=0, le=2)]] = Phases()
    max_tokens: Phases[Annotated[int, Meta(ge=1, le=1_000_000)]] = Phases()

    def offers(self, tool: Tool) -> bool:
        """Whether a tool is offered."""
        chosen = self.tools.get(tool.key, self.tools.get(tool.connector) if tool.connector else None)
        return chosen if chosen is not None else True not in self.tools.values()

    def settings(self, phase: str) -> Json:
        """What it sets of the config of a phase, beside its model."""
        of_phase = {m: getattr(getattr(self, m), phase) for m in ("temperature", "max_tokens")}
        return {m: value for m, value in of_phase.items() if value is not None}


class ToolchainConfig(RunConfig, kw_only=True):
    """Config of a tool chain.

    Attributes:
        stages: The stages by their ids, in order; without any there is one, of the config itself.
        hints, parallel, synthesis, stream: As of a stage.
    """

    stages: Annotated[dict[Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")], Stage], Meta(max_length=16)] = {}
    hints: bool = True
    parallel: bool = True
    synthesis: bool = True
    stream: bool = True
    rounds: Annotated[int, Meta(ge=1, le=32)] = 32  # two for each stage

    def stage(self, id: str) -> Stage:
        """A stage with what it leaves out; one that a patch took away is the config's own."""
        stage = self.stages.get(id) or Stage()
        shared = ("model", "system", "hints", "parallel", "synthesis", "stream")
        return msgspec.structs.replace(stage, **{m: getattr(self, m) for m in shared if getattr(stage, m) is None})

    def phases(self) -> list[str]:
        """The names of the agents that have the phases, in order: the stage's id, and with `.synthesis`."""
        ids = self.stages or (ONLY,)
        return [name for id in ids for name in ([id, id + SYNTHESIS] if self.stage(id).synthesis else [id])]


async def toolchain(run: Run) -> None:
    """The model picks tools, they are called together, and what they gave is summed up; stage after stage."""
    while (name := next_phase(run)) is not None:
        if name.endswith(SYNTHESIS):
            await run.turn(partial(synthesizer, run, name))
        else:
            await pick(run, name)


def next_phase(run: Run) -> str | None:
    """Whose phase comes next. When all are over, what was said since begins them anew; else there is none."""
    phases: list[str] = run.config().phases()
    last = newest_round(run, *phases)
    if last is None:
        return phases[0]
    name: str = last["agent"]
    if not name.endswith(SYNTHESIS) and not is_done(run, last):
        return name
    if name != phases[-1]:
        return phases[phases.index(name) + 1]
    return None if run.messages()[-1] is last else phases[0]


async def pick(run: Run, id: str) -> None:
    """The first phase of a stage: all that the model asks for is called, or nothing is.

    Raises:
        Fault: toolchain.no_tool, toolchain.invalid, toolchain.tool_failed.
    """
    agent = partial(picker, run, id)
    async with run.acting(agent(run.config())):
        last = newest_round(run, id)
        if last is None or is_done(run, last):
            await run.step(agent)
        while not (calls := await make_calls(run, id, agent)):
            if not run.unread:  # what somebody said meanwhile may be what the model missed
                said = words(newest_round(run, id) or {"parts": []}).strip()
                raise Fault("toolchain.no_tool", f"The model chose no tool. It said: {said[:SHOWN] or 'nothing'}")
            await run.step(agent)
    for call in [c for c in calls if c["status"] == "invalid"] or [c for c in calls if c["status"] != "ok"]:
        kind = "toolchain.invalid" if call["status"] == "invalid" else "toolchain.tool_failed"
        why = (call.get("error") or {}).get("message") or f"the call ended with {call['status']!r}"
        raise Fault(kind, f"{call['name'][:100]}: {why}")


async def make_calls(run: Run, id: str, agent: Any) -> list[Json]:
    """Make the calls of a stage's newest round, those that stand as JSON in its words too."""
    parallel = run.config().stage(id).parallel
    calls = await run.tools(agent, strict=True, parallel=parallel)
    last = newest_round(run, id)
    if calls or last is None or not (written := written_calls(words(last))):
        return calls
    await run.add_calls(agent, written)
    return await run.tools(agent, strict=True, parallel=parallel)


def picker(run: Run, id: str, config: ToolchainConfig) -> Agent:
    """Who picks the tools of a stage. In the first it sees the conversation, in later ones what they are given."""
    stage, given = config.stage(id), input_of(run, config, id)
    agent = Agent(
        name=id,
        title=stage.title,
        model=stage.model,
        settings=stage.settings("tool"),
        brief=None if given is None else [text_message("user", given)],
        recalls=False,
        offered=stage.offers,
        whole=not stage.stream,
    )
    prompt = [stage.system or "", *(run.hints(agent) if stage.hints else [])]
    return msgspec.structs.replace(agent, system="\n\n".join(filter(None, prompt)))


def synthesizer(run: Run, name: str, config: ToolchainConfig) -> Agent:
    """Who answers from what the tools of a stage gave."""
    id = name.removesuffix(SYNTHESIS)
    stage, given = config.stage(id), input_of(run, config, id)
    asked = "\n\n".join(run.said()) if given is None else given
    told = f"{asked}\n\nThese tools were called for it, and this is what they gave:\n\n{output_of(run, id)}"
    return Agent(
        name=name,
        title=stage.title,
        system=stage.system or "",
        model=stage.model,
        settings=stage.settings("synthesis"),
        brief=[text_message("user", told)],
        recalls=False,
        offered=(),
        whole=not stage.stream,
    )


def input_of(run: Run, config: ToolchainConfig, id: str) -> str | None:
    """What a stage is given: the output of the one before it, and what was said since; None of the first."""
    phases = config.phases()
    before = phases[: phases.index(id)] if id in phases else []
    if not before or (last := newest_round(run, before[-1])) is None:
        return None
    messages = run.messages()
    since = [words(m) for m in messages[messages.index(last) + 1 :] if m["role"] == "user"]
    return "\n\n".join([output_of(run, before[-1]), *since])


def output_of(run: Run, name: str) -> str:
    """What a phase gave: the words of a synthesis, or what the tools gave as JSON."""
    last = newest_round(run, name)
    if last is None:
        return ""
    if name.endswith(SYNTHESIS):
        return words(last)
    return msgspec.json.encode([result_of(call) for call in calls_of(run.calls(), last)]).decode()


def newest_round(run: Run, *names: str) -> Json | None:
    """The newest finished round of some agents."""
    return next((m for m in reversed(run.rounds()) if m.get("agent") in names), None)


def is_done(run: Run, last: Json) -> bool:
    """Whether a round's calls were made, and all of them well."""
    calls = calls_of(run.calls(), last)
    return bool(calls) and all(call["status"] == "ok" for call in calls)


@hookimpl
def register(hub: Hub[None]) -> None:
    hub.add_run_kind("toolchain", ToolchainConfig, toolchain, title="Tool chain")
    hub.add_route("POST /api/toolchain", Route(hub).answer)
