"""The tools that a run is offered, and the names under which a model knows them.

A session's tools are offered to the runs that it started, while it lives (protocol section 7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from sag.hooks.provider import ToolSpec
from sag.hooks.tool import Tool


class ToolSource(Protocol):
    """Whoever brings tools of its own to the runs it starts: a client's session."""

    id: str

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Its tools by name; empty once it is gone."""


@lru_cache(1024)
def legal_name(name: str) -> str:
    """A name that every vendor takes: `[a-zA-Z0-9_-]{1,64}`."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "_"


class Toolbox:
    """One run's tools.

    Args:
        tools: The hub's tools.
        source: The session that started the run, if it lives.
        switched: Which are off or on, by name; one that is not named is on.
    """

    def __init__(self, tools: Mapping[str, Tool], source: ToolSource | None, switched: Mapping[str, bool]) -> None:
        self._by_legal: dict[str, Tool] = {}
        self._legal: dict[str, str] = {}
        self._add(tools.values(), switched)
        if source is not None:
            self._add(source.tools.values(), switched)

    def _add(self, tools: Iterable[Tool], switched: Mapping[str, bool]) -> None:
        for tool in tools:
            if not switched.get(tool.name, True):
                continue
            base = legal = legal_name(tool.name)
            for n in range(2, 1000):
                if legal not in self._by_legal:
                    break
                legal = f"{base[:60]}_{n}"
            self._by_legal[legal] = tool
            self._legal[tool.name] = legal

    def specs(self) -> list[ToolSpec]:
        """What the model is offered."""
        return [ToolSpec(legal, t.description, t.input) for legal, t in self._by_legal.items()]

    def find(self, name: str) -> Tool | None:
        """A tool by the name that a model used, or by its own."""
        return self._by_legal.get(name) or self._by_legal.get(self._legal.get(name, ""))

    def legal(self, name: str) -> str:
        """The name under which the model knows a tool."""
        return self._legal.get(name) or legal_name(name)
