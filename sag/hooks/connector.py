"""Connectors: sources of tools that come and go while the hub runs, such as an MCP server.

The host starts each one, reads what it offers whenever it says that something changed, and stops it. A connector
looks after its own connection; nothing that it raises reaches the hub. Above: the plugin host and the engine. Here
is the contract alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Struct, field

from sag.hooks.tool import Content, Tool

Json = dict[str, Any]
ConnectorState = Literal["starting", "ready", "idle", "auth", "backoff", "failed", "off"]


class Health(Struct, omit_defaults=True):
    """How a connector is, as the topic `hub` shows it.

    Attributes:
        status: `starting`; `ready`; `idle` (starts when it is needed, and what it offers is known from last time);
            `auth` (somebody has to sign in); `backoff` (down, tried again); `failed` (given up until it is
            refreshed); `off`.
        error: Why it is down, for people.
        title: What people call it.
        kind: Its sort: `mcp` …
        version: Of what it connects to.
        instructions: What it tells models of itself.
        notes: What else is worth knowing, such as tools that were left out.
        data: More of its sort's own.
    """

    status: ConnectorState = "starting"
    error: str | None = None
    title: str = ""
    kind: str = ""
    version: str = ""
    instructions: str = ""
    notes: list[str] = field(default_factory=list)
    data: Json = field(default_factory=dict)


class PromptArgument(Struct, omit_defaults=True):
    """An argument of a prompt."""

    name: str
    description: str = ""
    required: bool = False


class Prompt(Struct, omit_defaults=True):
    """A prompt that a connector offers to people."""

    name: str
    title: str = ""
    description: str = ""
    arguments: list[PromptArgument] = field(default_factory=list)


class PromptMessage(Struct):
    """A message of a prompt that was filled in."""

    role: Literal["user", "assistant"]
    content: list[Content]


class Resource(Struct, omit_defaults=True):
    """Something that a connector can read. `uri` is a template (RFC 6570) where `template` is true."""

    uri: str
    name: str
    title: str = ""
    description: str = ""
    mime: str = ""
    size: int | None = None
    template: bool = False


@runtime_checkable
class Connector(Protocol):
    """A changing source of tools, and of prompts and resources where it has them.

    Attributes:
        name: What tells it apart; the `origin` of its tools. A letter, then letters, digits, `_`, `-`; 40 at most.
    """

    name: str

    async def start(self, changed: Callable[[], None]) -> None:
        """Begin; connecting goes on in the background. `changed` is called when `health` or what it offers is new."""

    async def stop(self) -> None:
        """End all that was begun, child processes included."""

    def health(self) -> Health:
        """How it is now."""

    def tools(self) -> Sequence[Tool]:
        """The tools of now; a run keeps those that it began with, so they have to find the connection by themselves."""

    def prompts(self) -> Sequence[Prompt]:
        """The prompts of now."""

    def resources(self) -> Sequence[Resource]:
        """The resources and templates of now."""

    async def get_prompt(self, name: str, arguments: dict[str, str]) -> list[PromptMessage]:
        """Fill in a prompt.

        Raises:
            ToolError: It cannot be had; the text says why.
        """

    async def read(self, uri: str) -> list[Content]:
        """Read a resource.

        Raises:
            ToolError: It cannot be had; the text says why.
        """

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        """What an argument of a prompt, or of a resource's template, may go on with; empty where that is not known."""
