"""The plan as it is kept and shown: its steps, what has become of them, and how it is changed. Pure.

It is `data.plan` of the run's object: a map of steps, as merge patches want it, and the order in which to show them.

    {"rev": 2, "order": ["find", "sum", "mail"], "said": 1, "mended": 0, "approved": 2,
     "steps": {"find": {"title": "Find the figures", "task": "…", "needs": [], "agent": "data", "status": "done",
                        "rev": 1, "tries": 1, "speaker": "find", "result": "…", "ts": 1795190100000}}}

`status` is `pending`, `running`, `done` (with the beginning of its `result`), `failed` (with its `error`, and `seen`
once the planner has considered it) or `dropped`, `ts` since when, Unix ms. `rev` counts the planner's turns: the plan's
and the one in which a step was written. `agent` names the specialist who does the step, if one does. `tries` counts the
attempts, and `speaker` is the agent of the newest one: `find`, then `find.2`. `said` is how many of the users' messages
the plan considers, `mended` how often it was changed after a failure, `approved` which `rev` a person approved, and
`comment` what a person wants changed. Left out is what does not apply; a plan without steps stands where the planner
answered by itself. In a run that is over, `running` and `pending` tell how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from msgspec import Meta, Struct

from sag.plugin import ToolError

Json = dict[str, Any]

PLANNER = "planner"


class Draft(Struct):
    """A step as the planner writes it."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$", description="a short name")]
    title: Annotated[str, Meta(min_length=1, max_length=200, description="what people read")]
    task: Annotated[str, Meta(min_length=1, max_length=5000, description="what is to be done, in full")]
    needs: Annotated[list[str], Meta(max_length=50, description="ids of steps whose results it builds on")] = []
    agent: Annotated[str, Meta(description="the specialist who does it, if one is to")] | None = None


class Checklist:
    """A plan.

    Args:
        plan: As it is kept, or nothing.

    Attributes:
        rev, said, mended, comment: As kept.
        steps: By id.
        order: Their ids.
    """

    def __init__(self, plan: Json) -> None:
        self.rev, self.said, self.mended = plan.get("rev", 0), plan.get("said", 0), plan.get("mended", 0)
        self.comment: str | None = plan.get("comment")
        self.steps: dict[str, Json] = plan.get("steps", {})
        self.order: list[str] = plan.get("order", [])
        self._approved = plan.get("approved", 0)

    def of(self, *status: str) -> list[str]:
        """The steps of some status."""
        return [id for id in self.order if self.steps[id]["status"] in status]

    @property
    def failed(self) -> list[str]:
        """The steps whose failure the planner has not considered yet."""
        return [id for id in self.of("failed") if not self.steps[id].get("seen")]

    @property
    def unapproved(self) -> bool:
        """Whether steps wait that were written since a person approved the plan."""
        return any(self.steps[id]["rev"] > self._approved for id in self.of("pending"))

    def check(self, drafts: Sequence[Draft], most: int, agents: Collection[str]) -> None:
        """Hold what the planner wrote against the plan.

        Raises:
            ToolError: It does not fit; the planner reads why.
        """
        ids, done = [draft.id for draft in drafts], set(self.of("done"))
        if not drafts and not self.rev:
            raise ToolError("A plan has at least one step; if none is needed, answer the user instead.")
        if len(drafts) > most:
            raise ToolError(f"{len(drafts)} steps are too many; at most {most} are possible.")
        if double := {id for id in ids if ids.count(id) > 1}:
            raise ToolError(f"Each step needs an id of its own: {', '.join(sorted(double))} stands for several.")
        if PLANNER in ids:
            raise ToolError(f"{PLANNER} is your own name; call the step otherwise.")
        if again := done & set(ids):
            raise ToolError(f"{', '.join(sorted(again))}: done already. Leave it out; it may be needed all the same.")
        for draft in drafts:
            if unknown := set(draft.needs) - done - set(ids):
                raise ToolError(f"{draft.id} needs {', '.join(sorted(unknown))}, which is no step of the plan.")
            if draft.agent and draft.agent not in agents:
                there = ", ".join(agents) or "none"
                raise ToolError(f"{draft.id}: there is no specialist {draft.agent!r}. There are: {there}.")
        try:
            TopologicalSorter({draft.id: draft.needs for draft in drafts}).prepare()
        except CycleError as e:
            raise ToolError(f"These steps need each other: {' → '.join(e.args[1])}.") from None

    # patches on it

    def changed(self, rev: int, drafts: Sequence[Draft]) -> Json:
        """The patch that makes drafts all that is still to be done."""
        out: Json = {id: {"seen": True} for id in self.failed} | {id: at("dropped") for id in self.of("pending")}
        for draft in drafts:
            written = {"title": draft.title, "task": draft.task, "needs": draft.needs, "agent": draft.agent or None}
            old = self.steps.get(draft.id, {})
            if old.get("status") == "pending" and all(old.get(member) == value for member, value in written.items()):
                del out[draft.id]  # it stays as it is, approved if it was
                continue
            gone = dict.fromkeys(("result", "error", "seen", "speaker"))
            out[draft.id] = at("pending", rev=rev, tries=old.get("tries", 0), **written, **gone)
        new = [draft.id for draft in drafts]
        return {"order": [id for id in self.order if id not in new] + new, "steps": out}

    def reduced(self) -> Json:
        """The patch that drops what needs steps that failed, with nothing in their place."""
        out: Json = {id: {"seen": True} for id in self.failed}
        lost = set(self.of("failed", "dropped"))
        for id in TopologicalSorter({id: step["needs"] for id, step in self.steps.items()}).static_order():
            if self.steps[id]["status"] == "pending" and lost & set(self.steps[id]["needs"]):
                lost.add(id)
                out[id] = at("dropped")
        return {"order": self.order, "steps": out}

    # as models read it

    def __str__(self) -> str:
        lines = []
        for id in self.order:
            step = self.steps[id]
            needs = f", needs {', '.join(step['needs'])}" if step["needs"] else ""
            lines.append(f"- {id} ({step['title']}{needs}): {step['status']}")
            if told := step["task"] if step["status"] == "pending" else step.get("error") or step.get("result"):
                lines.append(f"  {told}")
        return "\n".join(lines)


def at(status: str, **more: Any) -> Json:
    """A patch on a step whose status is another from now on."""
    return {"status": status, "ts": time.time_ns() // 1_000_000, **more}
