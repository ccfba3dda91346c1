"""What is answered where nothing is scripted, and tool calls as models write them into their text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from sag.testing.upstream.request import Asked
from sag.testing.upstream.script import Calls, Json, Say, Script, Step, Think, ToolCall, cut

THOUGHT = "Let me see what was said."

_CALL = re.compile(r"\bcall ([a-zA-Z0-9_-]{1,128})\s*")


def answer_default(asked: Asked, family: str | None = None) -> Script:
    """Answer: a thought if that is turned on, then calls, or what the tools said, or the user's own words.

    When tools are offered and the user's message holds `call NAME {json}`, they are called, unless the tool choice
    forbids it; where it demands a call and none is told, the first that will do is called without arguments. With a
    family the calls stand in the text (`write_calls`), whether tools are offered or not.
    """
    steps: list[Step] = [Think(THOUGHT, redacted=not asked.shows)] if asked.thinks else []
    if asked.answers:
        return Script([*steps, Say(" ".join(asked.answers))])
    calls: list[ToolCall] = []
    if family is not None and not asked.tools:
        # Told in the prompt alone, as it has to be where the server takes no tools.
        calls = find_calls(asked.text)
    elif asked.tools and asked.choice != "none":
        offered = asked.tools if asked.choice in ("auto", "required") else [asked.choice]
        calls = [one for one in find_calls(asked.text) if one.name in offered]
        if not calls and asked.choice != "auto":
            calls = [ToolCall(offered[0])]
    if calls and family is not None:
        return Script([*steps, Say(cut(write_calls(calls, family), 3))])
    return Script([*steps, Calls(calls, interleaved=False) if calls else Say(asked.text)])


def find_calls(text: str) -> list[ToolCall]:
    """Each `call NAME {json}` of a text; without an object the call has no arguments."""
    calls = []
    for match in _CALL.finditer(text):
        arguments: Json = {}
        with suppress(ValueError):
            given, _ = json.JSONDecoder().raw_decode(text, match.end())
            arguments = given if isinstance(given, dict) else {}
        calls.append(ToolCall(match[1], arguments))
    return calls


def write_calls(calls: Sequence[ToolCall], family: str = "hermes") -> str:
    """Tool calls as a model's own text, as it comes where the server has no parser for that model.

    Cut it, wrap it or leave its end out for what goes wrong: `Say([text[:7], text[7:]])`.

    Args:
        calls: The calls, with objects as arguments.
        family: One of `FAMILIES`: `hermes` (also Qwen2.5 and Qwen3), `qwen_coder`, `qwen3_coder`, `llama`, `pythonic`,
            `olmo`, `mistral`, `xlam`, `functiongemma`, or `fenced` for JSON in a code fence.

    Raises:
        ValueError: Arguments are text, or there is no such family.
    """
    told: list[_Call] = []
    for one in calls:
        if not isinstance(one.arguments, dict):
            raise ValueError(f"the arguments of {one.name!r} are text; give an object")
        told.append((one.name, one.arguments))
    if family not in _WRITERS:
        raise ValueError(f"{family!r} is no family; there are {', '.join(FAMILIES)}")
    return _WRITERS[family](told)


_Call = tuple[str, Json]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bare(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _escape(value: object) -> str:
    return f"<escape>{value}<escape>" if isinstance(value, str) else _json(value)


def _list(calls: list[_Call]) -> str:
    return _json([{"name": name, "arguments": given} for name, given in calls])


def _python(calls: list[_Call]) -> list[str]:
    return [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]


def _hermes(calls: list[_Call]) -> str:
    plain = [_json({"name": name, "arguments": given}) for name, given in calls]
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in plain)


def _qwen3_coder(calls: list[_Call]) -> str:
    out = []
    for name, given in calls:
        members = [f"<parameter={key}>\n{_bare(value)}\n</parameter>\n" for key, value in given.items()]
        out.append(f"<tool_call>\n<function={name}>\n{''.join(members)}</function>\n</tool_call>")
    return "\n".join(out)


def _llama(calls: list[_Call]) -> str:
    return "; ".join(_json({"name": name, "parameters": given}) for name, given in calls)


def _functiongemma(calls: list[_Call]) -> str:
    out = []
    for name, given in calls:
        members = ",".join(f"{key}:{_escape(value)}" for key, value in given.items())
        out.append(f"<start_function_call>call:{name}{{{members}}}<end_function_call>")
    return "".join(out)


def _fenced(calls: list[_Call]) -> str:
    plain = [{"name": name, "arguments": given} for name, given in calls]
    return f"```json\n{_json(plain[0] if len(plain) == 1 else plain)}\n```"


_WRITERS: dict[str, Callable[[list[_Call]], str]] = {
    "hermes": _hermes,
    "qwen_coder": lambda calls: f"<tools>\n{_list(calls)}\n</tools>",
    "qwen3_coder": _qwen3_coder,
    "llama": _llama,
    "pythonic": lambda calls: f"[{', '.join(_python(calls))}]",
    "olmo": lambda calls: "\n".join(["<function_calls>", *_python(calls), "</function_calls>"]),
    "mistral": lambda calls: f"[TOOL_CALLS]{_list(calls)}",
    "xlam": _list,
    "functiongemma": _functiongemma,
    "fenced": _fenced,
}
FAMILIES = tuple(_WRITERS)
