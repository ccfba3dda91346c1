"""What the hub offers to other hosts, under the names by which they know it. Read anew each time; keeps nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mcp_types as t
import msgspec
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

from sag.plugin import Connector, Hub, Prompt, Resource, Tool, User, legal_name
from sag_mcp_server.context import CLIENT

Json = dict[str, Any]
T = TypeVar("T")


class Catalogue:
    """Tools, prompts and resources.

    Args:
        hub: The plugin's side of the hub.
        own: Tools of the server itself, which have their names first.
    """

    def __init__(self, hub: Hub[Any], own: Sequence[Tool]) -> None:
        self._hub, self._own = hub, own

    def tools(self) -> dict[str, Tool]:
        """All tools by name."""
        named = {tool.name: tool for tool in self._own}
        for tool in self._hub.tools:
            name = legal_name(tool.name, tool.connector)
            if name in named:
                name = f"{name[:57]}_{hashlib.sha256(tool.key.encode()).hexdigest()[:6]}"
            named.setdefault(name, tool)
        return named

    async def tools_for(self, user: User) -> dict[str, Tool]:
        """The tools that a user has not switched off for other hosts."""
        told = await self._hub.call(user, "tool.list", {"client": CLIENT}, client=CLIENT)
        off = {view["key"] for view in told["tools"] if not view["enabled"]}
        return {name: tool for name, tool in self.tools().items() if tool.key not in off or tool in self._own}

    def prompts(self) -> dict[str, tuple[Connector, Prompt]]:
        """All prompts by name; those of the same name have their connector's before it."""
        found = [(c, prompt) for c in self._hub.connectors.values() for prompt in self._told(c.prompts)]
        count = Counter(prompt.name for _, prompt in found)
        return {p.name if count[p.name] == 1 else f"{c.name}__{p.name}": (c, p) for c, p in found}

    def resources(self) -> dict[str, tuple[Connector, Resource]]:
        """All resources and templates by URI; those of the same URI have their connector in the scheme."""
        found = [(c, resource) for c in self._hub.connectors.values() for resource in self._told(c.resources)]
        count = Counter(resource.uri for _, resource in found)
        return {r.uri if count[r.uri] == 1 else f"{_scheme(c)}+{r.uri}": (c, r) for c, r in found}

    def readers(self, uri: str) -> list[tuple[Connector, str, str]]:
        """Who may hold a resource: connector, the URI that it knows, the MIME type if that is known. Best first."""
        known = self.resources()
        if (found := known.get(uri)) is not None and not found[1].template:
            return [(found[0], found[1].uri, found[1].mime)]
        for shown, (connector, resource) in known.items():
            if resource.template and _matches(shown, uri):
                return [(connector, uri[len(shown) - len(resource.uri) :], resource.mime)]
        # A tool may have named one that is in no list.
        return [(connector, uri, "") for connector in dict.fromkeys(c for c, _ in known.values())]

    def _told(self, what: Callable[[], Sequence[T]]) -> Sequence[T]:
        try:
            return what()
        except Exception as e:  # the hub shows the connector as failed
            self._hub.log.warning("a connector does not tell what it offers: %s", e)
            return ()


def tool_view(name: str, tool: Tool) -> t.Tool:
    """A tool as hosts are shown it."""
    output = tool.output if tool.output and tool.output.get("type") == "object" else None
    return t.Tool(
        name=name,
        title=tool.title or None,
        description=tool.description,
        input_schema=_without_headers({"type": "object"} | tool.input),
        output_schema=_without_headers(output),
        annotations=t.ToolAnnotations(
            read_only_hint=tool.risk == "read",
            destructive_hint=None if tool.risk == "read" else tool.risk == "danger",
            idempotent_hint=None if tool.risk == "read" else tool.idempotent,
        ),
    )


def prompt_view(name: str, prompt: Prompt) -> t.Prompt:
    """A prompt as hosts are shown it."""
    arguments = [
        t.PromptArgument(name=a.name, description=a.description or None, required=a.required) for a in prompt.arguments
    ]
    return t.Prompt(
        name=name, title=prompt.title or None, description=prompt.description or None, arguments=arguments or None
    )


def resource_view(uri: str, resource: Resource) -> t.Resource:
    """A resource as hosts are shown it."""
    return t.Resource(uri=uri, size=resource.size, **_common(resource))


def template_view(uri: str, resource: Resource) -> t.ResourceTemplate:
    """A template as hosts are shown it."""
    return t.ResourceTemplate(uri_template=uri, **_common(resource))


def _common(resource: Resource) -> Json:
    return {
        "name": resource.name,
        "title": resource.title or None,
        "description": resource.description or None,
        "mime_type": resource.mime or None,
    }


def _scheme(connector: Connector) -> str:
    return connector.name.replace("_", ".")  # which no connector's name has, and a scheme may


def _matches(template: str, uri: str) -> bool:
    try:
        return UriTemplate.parse(template).match(uri) is not None
    except InvalidUriTemplate:
        return False


def _without_headers(schema: Any) -> Any:
    """A schema without `x-mcp-header`: what a server behind the hub wants in headers, the hub's client puts there."""
    if isinstance(schema, dict):
        return {k: _without_headers(v) for k, v in schema.items() if k != "x-mcp-header" or not isinstance(v, str)}
    return [_without_headers(v) for v in schema] if isinstance(schema, list) else schema


def marks(catalogue: Catalogue) -> tuple[Json, Json, Json]:
    """What tells whether tools, prompts or resources have changed, by name."""
    tools = {name: (tool.fingerprint, tool.title, tool.output) for name, tool in catalogue.tools().items()}
    prompts = {name: msgspec.to_builtins(prompt) for name, (_, prompt) in catalogue.prompts().items()}
    resources = {uri: msgspec.to_builtins(resource) for uri, (_, resource) in catalogue.resources().items()}
    return tools, prompts, resources


def shown(args: Json) -> str:
    """A call's arguments, for a person who is to allow it."""
    text = msgspec.json.format(msgspec.json.encode(args)).decode()
    return text if len(text) <= 2000 else f"{text[:2000]} …"
