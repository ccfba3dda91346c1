"""Specialists: agents with words, a model and tools of their own, to whom work is given by name.

Both kinds of run have them in their config as the map `agents`, whose defaults stand in plugins.toml, so that a run's
specialists can be patched one by one while it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^(?!triage$)[A-Za-z][A-Za-z0-9_-]{0,39}$")]


class Specialist(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Who can be given work.

    Attributes:
        title: What people call it; its name where it is left out.
        description: What it is for; whoever hands over reads this.
        system: Its system prompt, behind the run's.
        model: `provider/model`; left out means the run's.
        temperature: Sampling temperature; left out means the run's.
        tools: Keys of tools, or names of connectors for all of theirs; left out means all that the run has.
    """

    title: Annotated[str, Meta(max_length=200)] = ""
    description: Annotated[str, Meta(max_length=2000)] = ""
    system: Annotated[str, Meta(max_length=100_000)] = ""
    model: Annotated[str, Meta(max_length=200)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    tools: list[Annotated[str, Meta(max_length=200)]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What it has in place of the run's, beside its model."""
        return {} if self.temperature is None else {"temperature": self.temperature}


Specialists = dict[Name, Specialist]


def listing(agents: Mapping[str, Specialist]) -> str:
    """Specialists as whoever gives them work reads of them, one a line."""
    return "\n".join(f"- {name}{f' ({s.title})' if s.title else ''}: {s.description}" for name, s in agents.items())


def joined(*texts: str | None) -> str:
    """Pieces of a prompt, those that there are."""
    return "\n\n".join(text.strip() for text in texts if text and text.strip())
