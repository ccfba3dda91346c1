"""The run kind `plan`: a plan is written, approved, done step by step, changed where a step fails, and answered.

The plan is kept with the run (`sag_workflow.checklist` tells its shape), and what agents have done is read from the
run's log. The planner is the agent `planner`, then `planner.2` and so on, a step the agent of its own id; each has one
turn. The asks are `plan REV` (approve, change, reject) and, for what is to be changed, `plan REV change`, a form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sag.plugin import Agent, Fault, ProviderError, Run, RunConfig, RunEnded, RunLimit, Tool, Turn, text_message, tool
from sag_workflow.checklist import PLANNER, Checklist, Draft, at
from sag_workflow.specialist import Specialist, Specialists, joined, listing

Json = dict[str, Any]

MISSES = 3  # plans of one turn that do not fit, before the run ends
SHOWN = 1000  # characters of a result in the plan
READ = 20_000  # and of one that another step builds on
TOOLS = 200  # that the planner reads of
COMMENT = {
    "type": "object",
    "properties": {"comment": {"type": "string", "title": "What should be different?", "minLength": 1}},
    "required": ["comment"],
}

PLAN = """You plan the work that the user wants done; others do it. Call make_plan with the fewest steps that it takes.
Whoever does a step sees its task and the results of the steps that it needs, so a task says all that has to be known.
Steps that do not need each other are done at once. The answer to the user is written from the results at the end, and
is no step. If the request needs no plan, answer it instead."""
CHANGE = """You plan the work that the user wants done; others do it. Here is the plan and what became of it:

{plan}

{why}

Call revise_plan with all steps that are still to be done: what is pending and not among them is dropped, what is done
stays done and may be needed. A step that failed may be given again under its id with another task, be replaced by
others or be left out. If nothing is left to do, give no steps."""
STEP = """You do one step of a larger plan. Do what the task says with the tools that you have, and answer with the
result alone, complete enough for those who build on it. If it cannot be done, call give_up and say why."""
ANSWER = """Answer the user from the results of the work that was done, which stand in the conversation under the titles
of its steps. Say what could not be done. This is what became of the plan:

{plan}"""


class PlanConfig(RunConfig):
    """Config of a plan.

    Attributes:
        agents: Specialists by name, to whom the planner may give steps.
        approve: Whether a person approves the plan, and each change that brings new steps, before anything of it runs.
        parallel: How many steps may run at once.
        revisions: How often the plan may be changed because a step failed; then the answer says what did.
        max_steps: How many steps a plan, or what a change leaves to do, may have.
        rounds: How many model rounds a run may take, whoever takes them.
    """

    agents: Specialists = {}
    approve: bool = False
    parallel: Annotated[int, Meta(ge=1, le=16)] = 4
    revisions: Annotated[int, Meta(ge=0, le=20)] = 3
    max_steps: Annotated[int, Meta(ge=1, le=50)] = 12
    rounds: Annotated[int, Meta(ge=1, le=500)] = 100


async def plan(run: Run) -> None:
    """Plan the work, do independent steps at once, change the plan where a step fails, and write the answer."""
    while True:
        plan = _plan(run)
        if plan.of("running"):  # what a restart cut is brought to its end before anything is changed
            await _work(run)
        elif _has_news(run):
            await _write(run)
        elif run.config().approve and plan.unapproved:
            await _ask(run)
        elif plan.of("pending"):
            await _work(run)
        else:
            break
    if plan.order and not _is_answered(run):
        await run.turn(partial(_writer, run))


def _plan(run: Run) -> Checklist:
    return Checklist(run.data.get("plan") or {})


async def _tell(run: Run, patch: Json) -> None:
    await run.update({"plan": patch})


def _has_news(run: Run) -> bool:
    """Whether there is no plan yet, or something has happened that it does not consider."""
    plan = _plan(run)
    return not plan.rev or len(run.said()) > plan.said or plan.comment is not None or bool(plan.failed)


def _is_answered(run: Run) -> bool:
    """Whether the newest turn was the assistant's, and nothing was said since."""
    return not run.wants_step and run.turns()[-1].agent is None


async def _once(run: Run, name: str, agent: Callable[[Any], Agent]) -> Turn:
    """The turn of an agent that has one in the run: the one that it had, or has now."""
    had = next((turn for turn in run.turns() if turn.agent == name), None)
    return had or await run.turn(agent)


def _ending(run: Run, agent: str, name: str) -> Json | None:
    """The arguments of the call that ended an agent's turn, if it was one of this tool."""
    calls = (c["args"] for c in run.calls(name) if c.get("agent") == agent and c.get("ends") and c["status"] == "ok")
    return next(calls, None)


# planning


async def _write(run: Run) -> None:
    """Have the plan written, or changed by what has happened; without a change, what can still be done stays."""
    plan = _plan(run)
    only_failed = plan.rev and plan.comment is None and len(run.said()) <= plan.said
    if only_failed and plan.mended >= run.config().revisions:
        await _tell(run, plan.reduced())
        return
    rev = plan.rev + 1
    name = PLANNER if rev == 1 else f"{PLANNER}.{rev}"
    turn = await _once(run, name, partial(_planner, run, name))
    messages = run.messages()
    seen = messages[: [m["msg"] for m in messages].index(turn.msg)]
    written = _ending(run, name, "make_plan" if rev == 1 else "revise_plan")
    change = plan.reduced() if written is None else plan.changed(rev, msgspec.convert(written["steps"], list[Draft]))
    said = sum(m["role"] == "user" for m in seen)
    await _tell(run, {**change, "rev": rev, "said": said, "mended": plan.mended + bool(plan.failed), "comment": None})


def _planner(run: Run, name: str, config: PlanConfig) -> Agent:
    plan = _plan(run)
    call = "revise_plan" if plan.rev else "make_plan"
    misses = [c for c in run.calls(call) if c.get("agent") == name and c["status"] in ("error", "invalid")]
    if len(misses) > MISSES:
        raise RunLimit(f"The planner wrote {len(misses)} plans that do not fit.")
    task = CHANGE.format(plan=plan, why=_why(run, plan)) if plan.rev else PLAN
    tools = "\n".join(f"- {t.key}: {t.description.strip().splitlines()[0][:200]}" for t in run.offered()[:TOOLS])
    able = f"The tools that steps can use:\n{tools or 'none'}"
    if config.agents:
        able += f"\n\nSpecialists who can do a step, each with tools of its own:\n{listing(config.agents)}"
    system = joined(config.system, task, able)
    own = _plan_tool(call, plan, config)
    return Agent(name=name, title="Planner", system=system, offered=(), own=[own], ends={call})


def _why(run: Run, plan: Checklist) -> str:
    """What the planner is to consider."""
    out = [f"The step {id} failed: {plan.steps[id]['error']}" for id in plan.failed]
    if plan.comment is not None:
        out.append(f"The user wants this changed before the plan is done: {plan.comment}")
    if len(run.said()) > plan.said:
        out.append("The user has said something more, which stands in the conversation.")
    return "\n".join(out)


def _plan_tool(name: str, plan: Checklist, config: PlanConfig) -> Tool:
    """The tool that takes a plan, if it fits."""

    async def take(steps: list[Draft]) -> str:
        """Say what is to be done, in steps."""
        plan.check(steps, config.max_steps, config.agents)
        return "The plan is taken."

    return tool(name=name, risk="read")(take)


async def _ask(run: Run) -> None:
    """Have a person approve the plan, say what is to be different, or reject it, which cancels the run."""
    plan = _plan(run)
    shown = {"plan": plan.rev, "steps": [plan.steps[id] for id in plan.of("pending")]}
    options = ["approve", "change", "reject"]
    answer = await run.ask(f"plan {plan.rev}", "Go ahead with this plan?", options, subject=shown)
    if answer.choice == "change":
        options = ["change", "approve", "reject"]  # the first sends the form
        answer = await run.ask(f"plan {plan.rev} change", "What should be different?", options, schema=COMMENT)
    if answer.choice == "approve":
        await _tell(run, {"approved": plan.rev})
    elif answer.choice == "change" and answer.data:
        await _tell(run, {"comment": answer.data["comment"]})
    else:
        raise RunEnded


# doing


async def _work(run: Run) -> None:
    """Do the steps, each as soon as what it needs is done, until none is left or the plan has to be changed."""
    try:
        TopologicalSorter({id: step["needs"] for id, step in _plan(run).steps.items()}).prepare()
    except CycleError:  # no planner's: it came with a conversation that was taken in
        raise Fault("input.invalid", "Steps of the plan need each other, so none of them can begin.") from None
    slots = asyncio.Semaphore(run.config().parallel)
    over = {id: asyncio.Event() for id in _plan(run).of("running", "pending")}

    async def one(id: str) -> None:
        step = _plan(run).steps[id]
        for need in step["needs"]:
            if need in over:
                await over[need].wait()
        async with slots:
            if step["status"] == "running" or not _has_news(run):
                await _do(run, id)
        over[id].set()

    await run.together([one(id) for id in over])


async def _do(run: Run, id: str) -> None:
    """Do a step. What fails, be it the work or its model, is the planner's to mend; a refused key is nobody's."""
    step = _plan(run).steps[id]
    if step["status"] == "pending":
        tries = step["tries"] + 1
        begun = at("running", tries=tries, speaker=id if tries == 1 else f"{id}.{tries}")
        await _tell(run, {"steps": {id: begun}})
        step = {**step, **begun}
    try:
        turn = await _once(run, step["speaker"], partial(_worker, run, step))
    except ProviderError as e:
        if e.kind == "provider.auth":
            raise
        end = at("failed", error=e.message)
    else:
        gave_up = _ending(run, step["speaker"], "give_up")
        end = at("done", result=turn.text[:SHOWN]) if gave_up is None else at("failed", error=gave_up["reason"])
    await _tell(run, {"steps": {id: end}})


@tool(risk="read")
async def give_up(reason: Annotated[str, Meta(min_length=1, max_length=2000)]) -> str:
    """Say that the step cannot be done, and why. This ends your turn."""
    return "The planner is told."


def _worker(run: Run, step: Json, config: PlanConfig) -> Agent:
    who = config.agents.get(step["agent"], Specialist(tools=[])) if step.get("agent") else Specialist()
    plan, texts = _plan(run), {turn.agent: turn.text for turn in run.turns()}
    needs = [plan.steps[id] for id in step["needs"]]
    results = [f"Result of {n['title']}:\n{texts.get(n['speaker']) or n['result']}"[:READ] for n in needs]
    request = "\n\n".join(run.said()[: plan.said])
    brief = joined(f"What the user wants in all:\n{request}", *results, f"Your task:\n{step['task']}")
    return Agent(
        name=step["speaker"],
        title=step["title"],
        system=joined(config.system, who.system, STEP),
        model=who.model,
        settings=who.settings,
        brief=[text_message("user", brief)],
        offered=who.tools,
        own=[give_up],
        ends={"give_up"},
    )


def _writer(run: Run, config: PlanConfig) -> Agent:
    return Agent(system=joined(config.system, ANSWER.format(plan=_plan(run))), offered=())


def exported(object: Json, config: Json) -> Json:
    """The plan, for an export of the run."""
    plan = (object.get("data") or {}).get("plan")
    return {"plan": plan} if plan else {}
