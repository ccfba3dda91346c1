"""Work that several agents share: the run kinds `triage` and `plan`, and the routes of a chat that is built on them."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from sag.plugin import Hub, RunConfig, hookimpl
from sag_workflow.plan import PlanConfig, exported, plan
from sag_workflow.routes import Routes
from sag_workflow.specialist import Specialists
from sag_workflow.triage import TriageConfig, triage

C = TypeVar("C", bound=RunConfig)


class Settings(Struct):
    """The table `[workflow]` of plugins.toml.

    Attributes:
        agents: The specialists by name, `[workflow.agents.NAME]`; the default of `agents` in a run's config.
    """

    agents: Specialists = {}


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Add both kinds and the routes; DYNAMIC_PLAN in the environment decides which of the kinds the routes start."""
    agents = hub.settings.agents
    hub.add_run_kind("triage", _with_agents(TriageConfig, agents), triage)
    hub.add_run_kind("plan", _with_agents(PlanConfig, agents), plan, exported=exported)
    routes = Routes(hub, "plan" if _is_on(hub.env.get("DYNAMIC_PLAN", "")) else "triage")
    hub.add_route("GET /api/conversations/{conv}/thinking", routes.thinking)
    hub.add_route("POST /api/conversations/{conv}/messages", routes.message)


def _is_on(text: str) -> bool:
    """Whether a variable of the environment says yes."""
    return text.strip().lower() in ("1", "true", "yes", "on")


def _with_agents(config: type[C], agents: Specialists) -> type[C]:
    """A kind's config whose specialists are by default those of plugins.toml."""
    field = ("agents", Specialists, msgspec.field(default_factory=agents.copy))
    return msgspec.defstruct(  # type: ignore[return-value]
        config.__name__, [field], bases=(config,), forbid_unknown_fields=True, omit_defaults=True, kw_only=True,
        module=config.__module__, namespace={"__doc__": config.__doc__},
    )  # fmt: skip
