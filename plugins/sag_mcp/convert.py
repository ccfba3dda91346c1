"""From the protocol's JSON to what the hub knows, and back. Pure functions; nothing here trusts what it is given.

What a server says of itself is judged before anybody uses it: a tool with a name or a schema that models' vendors or
the hub could not take is left out with a note, and a form has no more than the protocol allows in one.
Above: connections and calls.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from sag.plugin import (
    BlobContent,
    Content,
    Fault,
    LinkContent,
    Prompt,
    PromptArgument,
    PromptMessage,
    Resource,
    Result,
    Sampled,
    SampleMessage,
    TextContent,
    Tool,
    ToolContext,
    ToolError,
    check_schema,
)
from sag_mcp.ends import Malformed
from sag_mcp.sieve import MAX_TOOLS
from sag_mcp.spec import ServerSettings

Json = dict[str, Any]
T = TypeVar("T")
ToolCall = Callable[[Tool, Json, ToolContext], Awaitable[Result]]

MAX_NAME = 128
MAX_TEXT = 8192  # characters of a description
MAX_SCHEMA = 64 << 10  # bytes
MAX_DEPTH = 64
MAX_OFFER = 1 << 20  # bytes of all tools: every device is told of them
MAX_LISTED = 512  # prompts, resources, templates
MAX_LISTED_BYTES = 256 << 10  # of each
MAX_BLOCKS = 1000
FIELD_TYPES = ("string", "integer", "number", "boolean", "array")


# --- tools ---


def usable_tools(given: Iterable[Any]) -> tuple[list[Json], list[str]]:
    """The tools of a list that can be used, and notes on the others. Slow for many: a thread's work."""
    found: dict[str, Json] = {}
    notes: list[str] = []
    left = MAX_OFFER
    for raw in given:
        tool, problem = _usable(raw)
        if tool is not None and tool["name"] in found:
            problem = "another one has its name"
        if tool is not None and problem is None:
            left -= len(msgspec.json.encode(tool))
            if left < 0 or len(found) == MAX_TOOLS:
                limit = f"{MAX_TOOLS} tools" if left >= 0 else f"{MAX_OFFER >> 20} MiB of tools"
                notes.append(f"There are more than {limit}; the rest is left out.")
                break
            found[tool["name"]] = tool
        elif len(notes) < 20:
            name = raw.get("name") if isinstance(raw, dict) else None
            notes.append(f"The tool {str(name)[:60]!r} is left out: {problem}.")
    return list(found.values()), notes


def _usable(raw: Any) -> tuple[Json | None, str | None]:
    if not isinstance(raw, dict):
        return None, "it is no object"
    name = raw.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        return None, "its name cannot be used"
    execution = raw.get("execution")
    if isinstance(execution, dict) and execution.get("taskSupport") == "required":
        return None, "it can be called as a task alone, and the SDK has no tasks"
    schema = raw.get("inputSchema")
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return None, "its arguments are no object"
    schema = {**schema, "type": "object"}
    if not isinstance(schema.setdefault("properties", {}), dict):
        return None, "its arguments have no properties"
    if problem := schema_problem(schema):
        return None, f"its schema {problem}"
    notes = raw.get("annotations")
    kept: Json = {"name": name, "description": _text(raw.get("description")), "inputSchema": schema}
    if title := _text(raw.get("title") or (notes.get("title") if isinstance(notes, dict) else None), 200):
        kept["title"] = title
    if isinstance(notes, dict):
        hints = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
        kept["annotations"] = {k: notes[k] for k in hints if isinstance(notes.get(k), bool)}
    output = raw.get("outputSchema")
    if isinstance(output, dict) and schema_problem(output) is None:
        kept["outputSchema"] = output
    return kept, None


def schema_problem(schema: Json) -> str | None:
    """Why a JSON Schema cannot be used, or None."""
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, RecursionError):
        return "is no JSON"
    if size > MAX_SCHEMA:
        return f"has more than {MAX_SCHEMA >> 10} KiB"
    refs: list[str] = []
    anchors: set[str] = set()
    todo: list[tuple[Any, int]] = [(schema, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > MAX_DEPTH:
            return "is nested too deeply"
        if isinstance(value, dict):
            refs += [r for k in ("$ref", "$dynamicRef", "$recursiveRef") if isinstance(r := value.get(k), str)]
            anchors |= {f"#{a}" for k in ("$anchor", "$dynamicAnchor") if isinstance(a := value.get(k), str)}
            todo += [(v, depth + 1) for v in value.values()]
        elif isinstance(value, list):
            todo += [(v, depth + 1) for v in value]
    for ref in refs:
        if ref not in anchors and not _points(schema, ref):
            return f"refers to {ref[:80]!r}, which is not in it"
    return _fault(schema)


def _points(schema: Json, ref: str) -> bool:
    if not ref.startswith("#"):
        return False
    at: Any = schema
    for step in unquote(ref[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and step.isdecimal() and int(step) < len(at):
            at = at[int(step)]
        elif isinstance(at, dict) and step in at:
            at = at[step]
        else:
            return False
    return ref[1:2] in ("", "/")


def _fault(schema: Json) -> str | None:
    from jsonschema import Draft202012Validator, FormatChecker, SchemaError
    from jsonschema.validators import validator_for

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema, format_checker=FormatChecker(formats=()))  # type: ignore[call-arg]
    except SchemaError as e:
        return f"is none: {e.message[:200]}"
    except RecursionError:
        return "is nested too deeply"
    return None


def make_tool(raw: Json, settings: ServerSettings, connector: str, call: ToolCall) -> Tool:
    """A tool of a list that `usable_tools` gave."""
    name: str = raw["name"]
    hints = raw.get("annotations") or {}
    reads = hints.get("readOnlyHint") is True
    risk = settings.risks.get(name)
    if risk is None:
        risk = "read" if reads else "danger" if hints.get("destructiveHint") is True else "write"
    title = raw.get("title", "")
    tool = Tool(
        name,
        raw["description"] or title or name,
        raw["inputSchema"],
        lambda args, ctx: call(tool, args, ctx),
        risk=risk,
        idempotent=reads or hints.get("idempotentHint") is True,
        timeout_s=settings.call_s,
        longest_s=settings.longest_s,
        connector=connector,
        title=title,
        output=raw.get("outputSchema"),
        policy=settings.policy,
    )
    return tool


# --- results ---


def result_of(raw: Json, output: Json | None) -> Result:
    """What a tool gave.

    Raises:
        ToolError: The tool says that it failed; with its text.
        Malformed: It is no result, or not what the tool's own schema says.
    """
    blocks = raw.get("content", [])
    data = raw.get("structuredContent")
    if not isinstance(blocks, list):
        raise Malformed("The result has no list of contents.")
    content = contents(blocks)
    if raw.get("isError") is True:
        text = "\n".join(item.text for item in content if isinstance(item, TextContent))
        raise ToolError(text or (_json(data) if data is not None else "") or "The tool failed and did not say why.")
    if output is not None and data is not None:
        try:
            check_schema(output, data)
        except Fault as e:
            raise Malformed(f"The result is not what the tool's schema says: {e.message}") from None
    return Result(content, data)


def contents(blocks: Sequence[Any]) -> list[Content]:
    """Content blocks as the hub has them; those that it does not know are named."""
    found = [_content(block) for block in blocks[:MAX_BLOCKS]]
    if len(blocks) > MAX_BLOCKS:
        found.append(TextContent(f"[{len(blocks) - MAX_BLOCKS} more items were left out]"))
    return found


def _content(block: Any) -> Content:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return TextContent(block["text"])
    if kind in ("image", "audio"):
        return _blob(block.get("data"), block.get("mimeType"), kind, "")
    if kind == "resource" and isinstance(block.get("resource"), dict):
        return resource_content(block["resource"])
    if kind == "resource_link" and isinstance(block.get("uri"), str):
        name, title, about = (_text(block.get(k), 1000) for k in ("name", "title", "description"))
        return LinkContent(block["uri"], name, title, about, _text(block.get("mimeType"), 200))
    return TextContent(f"[{str(kind)[:40]}: content that cannot be shown]")


def resource_content(raw: Json) -> Content:
    """What a resource holds, or a part of it."""
    if isinstance(raw.get("text"), str):
        return TextContent(raw["text"])
    return _blob(raw.get("blob"), raw.get("mimeType"), "file", _file_name(raw.get("uri")))


def _blob(data: Any, mime: Any, kind: str, name: str) -> Content:
    try:
        if not isinstance(data, str):
            raise ValueError
        decoded = base64.b64decode("".join(data.split()), validate=True)
    except (ValueError, binascii.Error):
        return TextContent(f"[{kind}: its bytes cannot be decoded]")
    return BlobContent(mime if isinstance(mime, str) and "/" in mime else "application/octet-stream", decoded, name)


def _file_name(uri: Any) -> str:
    try:
        path = urlsplit(uri).path if isinstance(uri, str) else ""
    except ValueError:
        return ""
    return unquote(path.rstrip("/").rpartition("/")[2])[:200]


def resource_contents(raw: Json) -> list[Content]:
    """What was read.

    Raises:
        Malformed: It is no result.
    """
    given = raw.get("contents")
    if not isinstance(given, list):
        raise Malformed("The result has no contents.")
    return [resource_content(item) for item in given[:MAX_BLOCKS] if isinstance(item, dict)]


def prompt_messages(raw: Json) -> list[PromptMessage]:
    """A prompt that was filled in.

    Raises:
        Malformed: It is no result.
    """
    given = raw.get("messages")
    if not isinstance(given, list):
        raise Malformed("The prompt has no messages.")
    found = []
    for message in given[:MAX_BLOCKS]:
        if isinstance(message, dict) and message.get("role") in ("user", "assistant"):
            found.append(PromptMessage(message["role"], contents([message.get("content")])))
    return found


# --- prompts and resources ---


def prompts_of(given: Iterable[Any]) -> list[Prompt]:
    """Prompts of a list; what is none is left out."""
    found: dict[str, Prompt] = {}
    for raw in given:
        if not isinstance(raw, dict) or not _text(raw.get("name"), MAX_NAME):
            continue
        arguments = raw.get("arguments")
        name = _text(raw["name"], MAX_NAME)
        found[name] = Prompt(
            name,
            _text(raw.get("title"), 200),
            _text(raw.get("description"), 2000),
            [
                PromptArgument(_text(a["name"], MAX_NAME), _text(a.get("description"), 1000), a.get("required") is True)
                for a in (arguments if isinstance(arguments, list) else ())[:50]
                if isinstance(a, dict) and _text(a.get("name"), MAX_NAME)
            ],
        )
    return _within(found.values())


def _within(found: Iterable[T]) -> list[T]:
    """As many as may be kept."""
    kept: list[T] = []
    left = MAX_LISTED_BYTES
    for item in found:
        left -= len(msgspec.json.encode(item))
        if left < 0:
            break
        kept.append(item)
    return kept


def resources_of(given: Iterable[Any], *, template: bool) -> list[Resource]:
    """Resources, or templates, of a list; what is none is left out."""
    key = "uriTemplate" if template else "uri"
    found: dict[str, Resource] = {}
    for raw in given:
        if isinstance(raw, dict) and isinstance(uri := raw.get(key), str) and 0 < len(uri) <= 2000:
            size = raw.get("size")
            found[uri] = Resource(
                uri,
                _text(raw.get("name"), 200) or uri[:200],
                _text(raw.get("title"), 200),
                _text(raw.get("description"), 1000),
                _text(raw.get("mimeType"), 200),
                size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
                template,
            )
    return _within(found.values())


# --- what a server asks ---


def form_of(schema: Any) -> Json:
    """The form that a server wants filled in, with what the protocol allows in one alone: flat, primitive members."""
    given = schema.get("properties") if isinstance(schema, dict) else None
    properties = {
        str(name)[:200]: _field(member)
        for name, member in list((given if isinstance(given, dict) else {}).items())[:100]
        if isinstance(member, dict)
    }
    form: Json = {"type": "object", "properties": properties}
    required = schema.get("required") if isinstance(schema, dict) else None
    if isinstance(required, list) and (names := [n for n in required if n in properties]):
        form["required"] = names
    return form


def _field(member: Json) -> Json:
    kept: Json = {}
    for key in ("title", "description", "format"):
        if isinstance(member.get(key), str):
            kept[key] = member[key][:2000]
    for key in ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"):
        if isinstance(member.get(key), int | float) and not isinstance(member[key], bool):
            kept[key] = member[key]
    if member.get("type") in FIELD_TYPES:
        kept["type"] = member["type"]
    for key in ("enum", "enumNames"):
        if isinstance(member.get(key), list):
            kept[key] = [item for item in member[key][:500] if isinstance(item, str | int | float)]
    for key in ("oneOf", "anyOf"):
        if isinstance(member.get(key), list):
            options = [o for o in member[key][:500] if isinstance(o, dict) and "const" in o]
            kept[key] = [{"const": o["const"], "title": _text(o.get("title") or o["const"], 500)} for o in options]
    if isinstance(member.get("items"), dict):
        kept["items"] = _field({k: v for k, v in member["items"].items() if k != "items"})
    if isinstance(member.get("default"), str | int | float | bool | list):
        kept["default"] = member["default"]
    return kept


def answer_of(form: Json | None, data: Json) -> Json:
    """What a person filled in, with the form's defaults where nothing was."""
    properties: Json = (form or {}).get("properties") or {}
    defaults = {name: member["default"] for name, member in properties.items() if "default" in member}
    return {**defaults, **{name: value for name, value in data.items() if name in properties and _is_plain(value)}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def sample_messages(params: Json) -> list[SampleMessage]:
    """The messages of what a server asks the model."""
    found = []
    for message in params.get("messages") or ():
        content = message.get("content")
        blocks = content if isinstance(content, list) else [content]
        found.append(SampleMessage("assistant" if message.get("role") == "assistant" else "user", contents(blocks)))
    return found


def sampled_json(sampled: Sampled) -> Json:
    """What the model answered, as the protocol has it."""
    reason = "maxTokens" if sampled.finish == "length" else "endTurn"
    content = {"type": "text", "text": sampled.text}
    return {"role": "assistant", "content": content, "model": sampled.model, "stopReason": reason}


def root_uri(root: str) -> str:
    """A root of the settings as a URI."""
    return root if root.startswith("file://") else Path(root).expanduser().absolute().as_uri()


def _text(value: Any, limit: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        return ""
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
