"""The tools that a run is offered, and the names under which a model knows them.

A connector's tool is known as `connector__tool`, whoever else is there, so that the name stays when other connectors
come and go; a plugin's own tool by its name. A session's tools are offered to the runs that it started, while it
lives (protocol section 7).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
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


@lru_cache(4096)
def legal_name(name: str, connector: str = "") -> str:
    """A name that every vendor takes, `[a-zA-Z0-9_-]{1,64}`.

    One that had to be changed, or that could be another connector's tool as well, ends in its own digest.
    """
    whole = _whole(name, connector)
    legal = plain_name(name, connector)
    parted = whole.find("__"), whole.rfind("__")  # once between connector and name, and nowhere else
    if legal == whole and 0 < len(legal) <= 64 and parted == ((len(connector),) * 2 if connector else (-1, -1)):
        return legal
    digest = hashlib.sha256(f"{connector}/{name}".encode() if connector else name.encode()).hexdigest()[:6]
    return f"{legal[:57]}_{digest}"


def _whole(name: str, connector: str) -> str:
    return f"{connector}__{name}" if connector else name


@lru_cache(4096)
def plain_name(name: str, connector: str = "") -> str:
    """A name of legal characters, which another tool may have too."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", _whole(name, connector))


def is_on(tool: Tool, switched: Mapping[str, bool]) -> bool:
    """Whether a tool is offered: by its own switch, else its connector's; one without any is on."""
    return switched.get(tool.key, switched.get(tool.connector, True) if tool.connector else True)


class Toolbox:
    """One run's tools.

    Args:
        tools: Those of the hub and of the session that started the run.
        switched: Which are off or on, by key or by connector; one that is not named is on.
        own: Tools of the run kind's; they are always on, and go before others of their names.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        switched: Mapping[str, bool],
        own: Sequence[Tool] = (),
    ) -> None:
        self._by_legal: dict[str, Tool] = {}
        self._by_key: dict[str, Tool] = {}
        self._by_plain: dict[str, Tool | None] = {}
        self._specs: list[ToolSpec] | None = None
        for tool in (*own, *tools):
            key = tool.key
            if key not in self._by_key and (tool in own or is_on(tool, switched)):
                self._by_legal.setdefault(legal_name(tool.name, tool.connector), tool)
                self._by_key[key] = tool
                plain = plain_name(tool.name, tool.connector)
                self._by_plain[plain] = None if plain in self._by_plain else tool

    @property
    def tools(self) -> list[Tool]:
        """The tools, each once."""
        return list(self._by_key.values())

    def specs(self) -> list[ToolSpec]:
        """What the model is offered."""
        if self._specs is None:
            self._specs = [ToolSpec(legal, t.description, t.input) for legal, t in self._by_legal.items()]
        return list(self._specs)

    def find(self, name: str) -> Tool | None:
        """A tool by the name that a model used, by its key, or by a name without the digest that is no other's."""
        return self._by_legal.get(name) or self._by_key.get(name) or self._by_plain.get(name)


@lru_cache(4)
def common_box(tools: tuple[Tool, ...], switched: tuple[tuple[str, bool], ...]) -> Toolbox:
    """The toolbox of a step whose run kind brings nothing: most have the same one, run after run."""
    return Toolbox(tools, dict(switched))
