"""What a run's log tells of rounds and their calls, and calls that a model wrote as words. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from sag.plugin import legal_name

Json = dict[str, Any]

ONLY = "toolchain"  # the stage of a config that names none
SYNTHESIS = ".synthesis"  # what the name of the agent of a second phase ends in
MISSES = 20  # that begin like JSON among words and are none; more is not read on

_FENCE = re.compile(r"```(?:\w+\s)?(.*?)```", re.DOTALL)
_BEGIN = re.compile(r"\{|\[\s*\{")
_BETWEEN = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder()
_ARGUMENTS = ("arguments", "parameters", "args")


def words(message: Json) -> str:
    """What was said in a message."""
    return "".join(part["text"] for part in message["parts"] if part["kind"] == "text")


def calls_of(calls: Iterable[Json], message: Json) -> list[Json]:
    """Those calls of a run that a round asked for; of one that was made again the newest."""
    whose = (message["agent"], message["step"])
    return [c for c in calls if (c.get("agent"), c.get("step")) == whose and not c.get("repeated")]


def result_of(call: Json) -> Json:
    """A call as models and callers of the route are told of it: `{id, name, arguments, status, result, ref?}`.

    `name` is the one that models know; `ref` is the file that holds the whole of a result that is shown cut.
    """
    name = legal_name(call["name"], call.get("connector") or "")
    told = {"id": call["call"], "name": name, "arguments": call["args"], "status": call["status"]}
    return told | {"result": call.get("result")} | ({"ref": call["ref"]} if call.get("ref") else {})


def written_calls(text: str) -> list[tuple[str, str]]:
    """Calls that a model wrote as JSON: `{"name": …, "arguments": {…}}`, one or several, in fences or among its words.

    They may stand in OpenAI's envelopes, `{"function": {…}}` and `{"tool_calls": […]}`. Gives their names, and their
    arguments as JSON; nothing where some of the JSON is no call.
    """
    blocks = _FENCE.findall(text)
    try:
        values = [value for block in blocks for value in _all_of(block)] if blocks else _all_among(text)
    except (ValueError, RecursionError):
        return []
    calls = [call for value in values if (call := _call(value)) is not None]
    return calls if len(calls) == len(values) else []


def _all_of(block: str) -> list[Any]:
    """The values of a text that is nothing but JSON.

    Raises:
        ValueError: It is something else.
    """
    values: list[Any] = []
    at = _skip(block, 0)
    while at < len(block):
        value, at = _DECODER.raw_decode(block, at)
        values += _flat(value)
        at = _skip(block, at)
    return values


def _all_among(text: str) -> list[Any]:
    """The objects, and lists of them, that stand among words.

    Raises:
        ValueError: Too much begins like one and is none.
    """
    values: list[Any] = []
    at = misses = 0
    while (begin := _BEGIN.search(text, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            at, misses = begin.start() + 1, misses + 1
            if misses > MISSES:
                raise ValueError("no JSON") from None
        else:
            values += _flat(value)
    return values


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.get("tool_calls", value)
    return value if isinstance(value, list) else [value]


def _call(value: Any) -> tuple[str, str] | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    given = next((value[member] for member in _ARGUMENTS if member in value), None)
    if given is None:
        return None
    return name, given if isinstance(given, str) else json.dumps(given)


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at
