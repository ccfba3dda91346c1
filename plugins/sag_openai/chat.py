"""What is sent for a model round as chat completions, to OpenAI and to all servers that speak like it.

Pure. Owns the form of messages; which members a server takes is `sag_openai.provider`'s business.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from sag.plugin import FilePart, Message, ModelRequest, TextPart, ToolSpec
from sag_openai import details

Json = dict[str, Any]

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PDF = "application/pdf"
TOOLS = 1000  # whose JSON is kept


def write(request: ModelRequest, *, max_tokens_name: str, reasoning_name: str = "", router: bool = False) -> Json:
    """The body of a request; sampling members only where somebody set them.

    Args:
        request: What is asked.
        max_tokens_name: The member that limits the answer.
        reasoning_name: Send thoughts back under this name with what called tools; empty for not at all.
        router: It goes to OpenRouter, which wants thoughts back as `reasoning_details`.
    """
    body: Json = {
        "model": request.model,
        "messages": _write_all(request.messages, reasoning_name, router),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_write_tool(tool) for tool in request.tools]
    members = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        max_tokens_name: request.max_tokens,
        "stop": request.stop,
        "seed": request.seed,
    }
    return body | {name: value for name, value in members.items() if value is not None}


_written: dict[int, tuple[ToolSpec, msgspec.Raw]] = {}  # by `id`; the tool is kept along, so that no other has it


def _write_tool(tool: ToolSpec) -> Json | msgspec.Raw:
    """A tool, as JSON already: steps mostly offer the same ones, and their schemas are most of a short request."""
    kept = _written.get(id(tool))
    if kept is None:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.input}
        form = {"type": "function", "function": function}
        try:
            kept = tool, msgspec.Raw(msgspec.json.encode(form))
        except UnicodeEncodeError:
            return form
        if len(_written) >= TOOLS:
            _written.clear()
        _written[id(tool)] = kept
    return kept[1]


def _write_all(messages: Sequence[Message], reasoning_name: str, router: bool) -> list[Json]:
    out: list[Json] = []
    files: list[FilePart] = []  # of tools' results
    for message in messages:
        if message.role == "tool":
            out.append({"role": "tool", "tool_call_id": message.call, "content": message.text})
            files += message.files
            continue
        if files:
            out.append(_give_files(files))
            files = []
        out.append(_write(message, reasoning_name, router))
    if files:
        out.append(_give_files(files))
    return out


def _give_files(files: Sequence[FilePart]) -> Json:
    """Only a user's message takes files, so those of the results follow in one."""
    text: Json = {"type": "text", "text": "Files of the results above:"}
    return {"role": "user", "content": [text, *map(write_file, files)]}


def _write(message: Message, reasoning_name: str, router: bool) -> Json:
    if len(message.parts) == 1 and isinstance(part := message.parts[0], TextPart):  # as nearly all are
        return {"role": message.role, "content": part.text}
    if message.role != "assistant":
        return {"role": message.role, "content": _write_content(message)}
    written: Json = {"role": "assistant", "content": message.text or (None if message.calls else "")}
    if message.calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": write_arguments(call.arguments)},
            }
            for call in message.calls
        ]
        if reasoning_name:
            written[reasoning_name] = "".join(thought.text for thought in message.thoughts)
    if router:
        kept = [thought.replay for thought in message.thoughts if isinstance(thought.replay, list)]
        if kept:
            written["reasoning_details"] = details.merge(one for replay in kept for one in replay)
    return written


def _write_content(message: Message) -> str | list[Json]:
    if not message.files:
        return message.text
    parts: list[Json] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, FilePart):
            parts.append(write_file(part))
    return parts


def write_file(file: FilePart) -> Json:
    """An image or a PDF; of other files only that they are there, which is better than a refused conversation."""
    if file.mime in IMAGES:
        return {"type": "image_url", "image_url": {"url": data_url(file)}}
    if file.mime == PDF:
        return {"type": "file", "file": {"filename": file.name, "file_data": data_url(file)}}
    return {"type": "text", "text": unreadable(file)}


def data_url(file: FilePart) -> str:
    """A file's bytes within a URL."""
    return f"data:{file.mime};base64,{base64.b64encode(file.data).decode()}"


def unreadable(file: FilePart) -> str:
    """What stands for a file that cannot be sent."""
    return f"[{'image' if file.is_image else 'file'}: {file.name}, which this model cannot read]"


def write_arguments(arguments: str) -> str:
    """Arguments that are JSON: chat templates of several servers parse them, and refuse the whole conversation else."""
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return json.dumps({"invalid_json": arguments}, ensure_ascii=False)
    return arguments or "{}"
