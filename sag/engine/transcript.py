"""From a conversation's state to what a model is sent.

Pure. A run's transcript is the messages of runs that began before it, and its own (protocol section 4). What a step
that was cut left behind and another step did again is not shown to the model; what a person stopped is, marked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sag.hooks.provider import CallRequest, Message

Json = dict[str, Any]

CUT = "[the reply was interrupted here]"


def build(state: Json, run: str, system: str | None, legal: Callable[[str], str]) -> list[Message]:
    """The messages for the next step of a run.

    Args:
        state: The conversation's snapshot.
        run: The run's id.
        system: The system prompt.
        legal: Makes a tool's name one that every vendor takes.
    """
    runs, tools = state["runs"], state["tools"]
    mine = runs[run].get("begun", 0)
    order: dict[str | None, int] = {None: -1, run: mine}
    for id, other in runs.items():
        if id != run and 0 < other.get("begun", 0) < mine:
            order[id] = other["begun"]
    chosen = [m for m in state["messages"] if m.get("run") in order]
    chosen.sort(key=lambda m: order[m.get("run")])  # stable: within a run, as they came
    out = [Message("system", system)] if system else []
    last_of_run = {m.get("run"): m["msg"] for m in chosen if m["role"] == "assistant"}
    for message in chosen:
        if message["role"] == "user":
            out.append(Message("user", _input_text(message["parts"])))
        else:
            cut = any(p.get("partial") or p["open"] for p in message["parts"])
            of = message.get("run")
            if not cut or (of != run and last_of_run[of] == message["msg"]):
                out += _assistant(message, tools, legal, cut)
    return out


def _input_text(parts: list[Json]) -> str:
    return "\n".join(
        p["text"] if p["kind"] == "text" else f"[{p['kind']}: {p.get('name') or p.get('ref')}]" for p in parts
    )


def _assistant(message: Json, tools: Json, legal: Callable[[str], str], cut: bool) -> list[Message]:
    text = "".join(p["text"] for p in message["parts"] if p["kind"] == "text")
    reasoning = "".join(p["text"] for p in message["parts"] if p["kind"] == "reasoning")
    called = list(dict.fromkeys(p["call"] for p in message["parts"] if p["kind"] == "tool_args"))
    calls = [(id, tools[id]) for id in called if id in tools]
    if cut and text:
        text += f"\n{CUT}"
    if not text and not calls:
        return []
    requests = [CallRequest(id, legal(tool["name"]), argument_text(tool["args"])) for id, tool in calls]
    answers = [Message("tool", result_text(tool), call=id) for id, tool in calls]
    return [Message("assistant", text, calls=requests, reasoning=reasoning or None), *answers]


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
        pieces = [c.get("text") or f"[{c.get('kind', 'content')}]" for c in result["content"] if isinstance(c, dict)]
        return "\n".join(pieces)
    return msgspec.json.encode(result).decode()
