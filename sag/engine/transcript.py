"""From a conversation's state to what a model is sent.

Pure. A run's transcript is the messages of runs that began before it, and its own (protocol section 4). What a step
that was cut left behind and another step did again is not shown to the model; what a person stopped is, marked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from sag.engine.agent import ASSISTANT, Agent
from sag.hooks.provider import CallRequest, FilePart, Message, Part, TextPart, ThoughtPart, text_message

Json = dict[str, Any]

CUT = "[the reply was interrupted here]"
GO_ON = "[nobody has said anything since; go on]"


def build(
    state: Json,
    run: str,
    system: str | None,
    legal: Callable[[str, str], str],
    provider: str = "",
    me: Agent = ASSISTANT,
    turn: Collection[str] = (),
) -> list[Message]:
    """The messages for the next step of a run. Files are in it by their `ref`, as `Attached`.

    Args:
        state: The conversation's snapshot.
        run: The run's id.
        system: The system prompt.
        legal: Makes of a tool's name and its connector a name that every vendor takes.
        provider: Whose thoughts go back as they were; those of others are words alone.
        me: Through whose eyes: its own words are the assistant's, those of others the user's.
        turn: The messages of the turn that it is in, which it is told even if it recalls none.
    """
    runs, tools = state["runs"], state["tools"]
    mine = runs[run].get("begun", 0)
    out = [text_message("system", system)] if system else []
    if me.brief is not None:
        out += [msgspec.structs.replace(m, parts=list(m.parts)) for m in me.brief]  # files are read into what is sent
        own = [m for m in state["messages"] if m.get("run") == run]
        heard = [m["msg"] for m in own if m["role"] == "user"][1:] if me.hears else ()
        told = {m["msg"] for m in own if me.recalls and _is_of(m, me.name)}.union(heard, turn)
        chosen = [m for m in own if m["msg"] in told]
    else:
        order: dict[str | None, int] = {None: -1, run: mine}
        for id, other in runs.items():
            if id != run and 0 < other.get("begun", 0) < mine:
                order[id] = other["begun"]
        chosen = [m for m in state["messages"] if m.get("run") in order]
        chosen.sort(key=lambda m: order[m.get("run")])  # stable: within a run, as they came
    last = {(m.get("run"), m.get("agent")): m["msg"] for m in chosen if m["role"] == "assistant"}
    for message in chosen:
        plain, agent = _plain(message["parts"]), message.get("agent")
        if plain and (message["role"] == "user" or agent == me.name):
            out.append(text_message(message["role"], plain))
            continue
        if message["role"] == "user":
            out.append(Message("user", _input(message["parts"])))
            continue
        cut = is_cut(message)
        of = message.get("run")
        if cut and (of == run or last[of, agent] != message["msg"]):
            continue
        if agent == me.name:
            out += _assistant(message, tools, legal, cut, provider)
        elif words := "".join(p["text"] for p in message["parts"] if p["kind"] == "text").strip():
            title = runs.get(of, {}).get("titles", {}).get(agent) or agent or "assistant"
            out.append(text_message("user", f"{title}: {words}" if me.marked else words))
    if me.name is not None and out and out[-1].role == "assistant":
        out.append(text_message("user", GO_ON))  # vendors refuse a request that ends with the model's own words
    return out


def _plain(parts: list[Json]) -> str:
    """The text of a message that is nothing but one text and whole, as nearly all are."""
    if len(parts) != 1:
        return ""
    (part,) = parts
    whole = part["kind"] == "text" and not part["open"] and not part.get("partial")
    return part["text"] if whole else ""


def _is_of(message: Json, agent: str | None) -> bool:
    return message["role"] == "assistant" and message.get("agent") == agent


class Attached(FilePart, tag="attached"):
    """A file whose bytes are still to be read."""

    ref: str = ""


def _input(parts: list[Json]) -> list[Part]:
    out: list[Part] = []
    for part in parts:
        if part["kind"] != "text":
            mime = part.get("mime") or ("image/*" if part["kind"] == "image" else "application/octet-stream")
            out.append(Attached(mime, part.get("name") or part["kind"], b"", part["ref"]))
        else:
            _add_text(out, part["text"], "\n")
    return out


def _add_text(out: list[Part], text: str, between: str) -> None:
    if not text:
        return
    if out and isinstance(out[-1], TextPart):
        out[-1].text += between + text
    else:
        out.append(TextPart(text))


def _assistant(message: Json, tools: Json, legal: Callable[[str, str], str], cut: bool, provider: str) -> list[Message]:
    out: list[Part] = []
    answers: list[Message] = []
    called: set[str] = set()
    thoughts = ""
    for part in message["parts"]:
        if part["kind"] == "reasoning":
            # A long thought goes on in the next part; what its vendor wants back stands with the last of them.
            thoughts += part["text"]
            replay = part.get("replay") or {}
            if replay.get("provider") == provider and not cut:
                out.append(ThoughtPart(thoughts, replay.get("data")))
                thoughts = ""
            continue
        if thoughts:
            out.append(ThoughtPart(thoughts))
            thoughts = ""
        if part["kind"] == "text":
            _add_text(out, part["text"], "")
        elif part["kind"] == "tool_args" and part["call"] not in called and (tool := newest(tools, part["call"])):
            called.add(part["call"])
            out.append(
                CallRequest(part["call"], legal(tool["name"], tool.get("connector") or ""), argument_text(tool["args"]))
            )
            failed = tool["status"] != "ok"
            answers.append(Message("tool", [TextPart(result_text(tool)), *_files(tool)], part["call"], failed))
    if thoughts:
        out.append(ThoughtPart(thoughts))
    if all(isinstance(part, ThoughtPart) for part in out):
        return []
    if cut and any(isinstance(part, TextPart) for part in out):
        _add_text(out, CUT, "\n")
    return [Message("assistant", out), *answers]


def newest(tools: Json, call: str) -> Json | None:
    """A call as it was made last: one that was lost may have been made again under another id."""
    tool: Json | None = tools.get(call)
    while tool is not None and (repeated := tool.get("repeated")) is not None:
        tool = tools[repeated]
    return tool


def is_cut(message: Json) -> bool:
    """Whether what the model said was cut; what a tool wrote while it worked is not the model's."""
    return any((part["open"] or part.get("partial")) and part["kind"] != "tool_output" for part in message["parts"])


def _files(tool: Json) -> list[Part]:
    """The images of a result, for models that see."""
    result = tool.get("result")
    content = result.get("content") if isinstance(result, dict) else None
    if tool["status"] != "ok" or not isinstance(content, list):
        return []
    images = [c for c in content if isinstance(c, dict) and c.get("kind") == "image" and c.get("ref")]
    return [Attached(c.get("mime") or "image/*", c.get("name") or "image", b"", c["ref"]) for c in images]


def argument_text(args: Any) -> str:
    """Arguments as a model writes them; text that was not JSON goes back as an object that vendors accept."""
    return msgspec.json.encode(args if isinstance(args, dict) else {"arguments": args}).decode()


def result_text(tool: Json) -> str:
    """What the model reads of a call's outcome."""
    status = tool["status"]
    if status == "ok":
        return content_text(tool.get("result"))
    message = (tool.get("error") or {}).get("message", "")
    words = {
        "denied": "The user denied this call.",
        "cancelled": "The call was cancelled.",
        "lost": "The connection to the tool was lost; whether it did its work is not known.",
        "timeout": "The tool did not answer in time.",
        "running": "The call has not ended.",
    }
    return f"Error ({status}): {message or words.get(status, 'the tool failed.')}"


def content_text(result: Any) -> str:
    """A result as text: text as it is, content lists by their texts, all else as JSON."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict) and isinstance(result.get("content"), list):
        pieces = [_content_text(c) for c in result["content"] if isinstance(c, dict)]
        if not any(c.get("kind") in ("text", "table") for c in result["content"] if isinstance(c, dict)):
            pieces += [msgspec.json.encode(result["data"]).decode()] if result.get("data") is not None else []
        return "\n".join(pieces)
    return msgspec.json.encode(result).decode()


def _content_text(item: Json) -> str:
    if "text" in item:
        return str(item["text"])
    if item.get("kind") == "table":
        return msgspec.json.encode([item.get("columns"), *(item.get("rows") or [])]).decode()
    told = " ".join(str(item[m]) for m in ("name", "title", "uri", "description", "mime") if item.get(m))
    return f"[{item.get('kind', 'content')}{': ' if told else ''}{told}]"
