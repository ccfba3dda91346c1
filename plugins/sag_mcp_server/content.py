"""From what the hub's tools, prompts and resources give to what MCP calls content, and back. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import mcp_types as t
import msgspec

from sag.plugin import BlobContent, Content, LinkContent, Result, TableContent, TextContent, plain_json

Json = dict[str, Any]


def call_result(given: Any, output: Json | None) -> t.CallToolResult:
    """What a tool gave, for a host.

    Args:
        given: Text, plain JSON or a `Result`.
        output: The schema that was told of it, if one was.

    Raises:
        ToolError: It cannot be shown.
    """
    if isinstance(given, Result):
        data = None if given.data is None else plain_json(given.data)
        content = [block(item, at) for at, item in enumerate(given.content)]
    elif isinstance(given, str):
        data, content = None, [t.TextContent(text=given)]
    else:
        data, content = plain_json(given), []
    if data is not None and not content:
        content = [t.TextContent(text=msgspec.json.encode(data).decode())]
    if output is None and not isinstance(data, dict):
        data = None  # only objects travel in all revisions, and nobody was told to expect anything else
    return t.CallToolResult(content=content, structured_content=data)


def error_result(why: str) -> t.CallToolResult:
    """A call that failed in a way that the model is told."""
    return t.CallToolResult(content=[t.TextContent(text=why)], is_error=True)


def block(item: Content, at: int = 0) -> t.ContentBlock:
    """One item of content; `at` tells files without a name apart.

    Raises:
        ToolError: It is no JSON.
    """
    match item:
        case TextContent():
            return t.TextContent(text=item.text)
        case BlobContent() if item.mime.startswith("image/"):
            return t.ImageContent(data=_base64(item.data), mime_type=item.mime)
        case BlobContent() if item.mime.startswith("audio/"):
            return t.AudioContent(data=_base64(item.data), mime_type=item.mime)
        case BlobContent():
            uri = item.name if "://" in item.name else f"sag:/{quote(item.name or f'file-{at}')}"
            return t.EmbeddedResource(resource=_contents(item, uri))
        case LinkContent():
            return t.ResourceLink(
                name=item.name or item.uri,
                uri=item.uri,
                title=item.title or None,
                description=item.description or None,
                mime_type=item.mime or None,
            )
        case TableContent():
            return t.TextContent(text=_table(item))


def sampling_blocks(content: Sequence[Content]) -> list[t.SamplingMessageContentBlock]:
    """A message's content for `sampling/createMessage`, which knows text, images and sound alone."""
    blocks: list[t.SamplingMessageContentBlock] = []
    for item in content:
        made = block(item)
        if not isinstance(made, t.TextContent | t.ImageContent | t.AudioContent):
            told = made.uri if isinstance(made, t.ResourceLink) else made.resource.uri
            made = t.TextContent(text=f"[{told}]")
        blocks.append(made)
    return blocks


def resource_contents(
    content: Sequence[Content], uri: str, mime: str
) -> list[t.TextResourceContents | t.BlobResourceContents]:
    """What a resource holds; `mime` is what it was listed with.

    Raises:
        ToolError: It is no JSON.
    """
    held: list[t.TextResourceContents | t.BlobResourceContents] = []
    for item in content:
        if isinstance(item, BlobContent):
            held.append(t.BlobResourceContents(uri=uri, mime_type=item.mime, blob=_base64(item.data)))
        else:
            text = item.uri if isinstance(item, LinkContent) else block(item).text  # type: ignore[union-attr]
            held.append(t.TextResourceContents(uri=uri, mime_type=mime or "text/plain", text=text))
    return held


def _contents(item: BlobContent, uri: str) -> t.TextResourceContents | t.BlobResourceContents:
    if item.mime.startswith("text/") or item.mime == "application/json":
        try:
            return t.TextResourceContents(uri=uri, mime_type=item.mime, text=item.data.decode())
        except UnicodeDecodeError:
            pass
    return t.BlobResourceContents(uri=uri, mime_type=item.mime or None, blob=_base64(item.data))


def _table(table: TableContent) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join([*([table.title, ""] if table.title else []), *lines])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else msgspec.json.encode(plain_json(value)).decode()
    return text.replace("|", "\\|").replace("\n", " ")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
