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

_FENCE = re.compile(r"```(?:\w+\s)?(.*?)```", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;]*")
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
    """Calls that a model wrote as JSON: `{"name": …, "arguments": {…}}`, one or several, as all it said or in fences.

    Gives their names, and their arguments as JSON; nothing where some of the JSON is no call.
    """
    values: list[Any] = []
    try:
        for block in _FENCE.findall(text) or [text]:
            at, decoder = _skip(block, 0), json.JSONDecoder()
            while at < len(block):
                value, at = decoder.raw_decode(block, at)
                values += value if isinstance(value, list) else [value]
                at = _skip(block, at)
    except (ValueError, RecursionError):
        return []
    calls = [call for value in values if (call := _call(value)) is not None]
    return calls if len(calls) == len(values) else []


def _call(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    given = next((value[member] for member in _ARGUMENTS if member in value), None)
    if given is None:
        return None
    return name, given if isinstance(given, str) else json.dumps(given)


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at
