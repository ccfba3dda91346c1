"""Tool calls that a model writes as text: which are understood, what stays text, and when text is shown."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sag.engine.transport import Deadlines, Transport
from sag.outbound import Outbound
from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    Decoder,
    Finish,
    ModelRequest,
    ProviderError,
    Reasoning,
    Replay,
    Text,
    ToolSpec,
    Usage,
    UsageChunk,
    text_message,
)
from sag.testing.upstream import Cut, FakeUpstream, Hang, Say, Script
from sag_openai import textual
from sag_openai.decoder import ChatDecoder
from sag_openai.provider import ChatProvider
from sag_openai.textual import LIMIT, REREAD, TextualCalls

TYPED = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "size": {"type": "number"},
        "on": {"type": "boolean"},
        "list": {"type": "array"},
        "map": {"type": "object"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"type": ["string", "null"]},
        "level": {"enum": [1, 2]},
        "kind": {"enum": ["1", "2"]},
        "one": {"const": 1},
        "point": {"$ref": "#/$defs/Point"},
        "loop": {"$ref": "#/$defs/Loop"},
        "lost": {"$ref": "#/$defs/None"},
        "any": {},
    },
    "$defs": {"Point": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
}
TOOLS = [
    ToolSpec("f", "", {"type": "object"}),
    ToolSpec("read-file", "", {"type": "object"}),
    ToolSpec("typed", "", TYPED),
    ToolSpec("define", "", {"type": "object", "properties": {"type": {}, "properties": {}}}),
]


class Scripted:
    """A decoder that gives what it is told to, a step with each read; `behind` comes with the last, but behind it."""

    def __init__(
        self,
        *steps: Sequence[Chunk] | ProviderError,
        end: Sequence[Chunk] | ProviderError = (),
        behind: ProviderError | None = None,
    ) -> None:
        self._steps = list(steps)
        self._end = end
        self._behind = behind

    def feed(self, data: bytes) -> Sequence[Chunk]:
        if self._behind is not None and not self._steps:
            raise self._behind
        if not data:
            return ()
        step = self._steps.pop(0)
        if isinstance(step, ProviderError):
            raise step
        return step

    def finish(self) -> Sequence[Chunk]:
        if isinstance(self._end, ProviderError):
            raise self._end
        return self._end


def decode(*steps: Sequence[Chunk], tools: Sequence[ToolSpec] = TOOLS) -> list[Chunk]:
    decoder = TextualCalls(Scripted(*steps), tools)
    chunks: list[Chunk] = []
    for _ in steps:
        chunks += decoder.feed(b"x")
        assert not decoder.feed(b"")
    return [*chunks, *decoder.finish()]


def read(*pieces: str, reason: Any = "stop") -> tuple[str, list[tuple[str | None, Any]], str]:
    """What a message amounts to: its text, its calls, and why it ended."""
    chunks = decode(*([Text(piece)] for piece in pieces), [Finish(reason)])
    calls = [chunk for chunk in chunks if isinstance(chunk, CallFragment)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    assert isinstance(chunks[-1], Finish)
    return said(chunks), [(call.name, json.loads(call.arguments)) for call in calls], chunks[-1].reason


def said(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))


def cuts(text: str) -> list[list[str]]:
    """A text in every two pieces, and in pieces of several sizes."""
    halves = [[text[:i], text[i:]] for i in range(len(text) + 1)]
    return halves + [[text[i : i + size] for i in range(0, len(text), size)] for size in (1, 2, 3, 7)]


def chop(text: str, points: list[int]) -> list[str]:
    ends = [0, *sorted(point % (len(text) + 1) for point in points), len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


# forms

CALL = '{"name": "f", "arguments": {"a": "x"}}'
F = ("f", {"a": "x"})
CALLS = {
    # Hermes, Qwen, xLAM
    f"<tool_call>\n{CALL}\n</tool_call>": ("", [F]),
    f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n": ("", [F, F]),
    f"I look.\n<tool_call>{CALL}</tool_call> Wait.": ("I look.\n Wait.", [F]),
    f"\n\n<tool_call>{CALL}</tool_call>\n Wait.": ("\n\n\n Wait.", [F]),
    f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>": ("", [F, F]),
    f"<tool_call>[{CALL}, {CALL}]</tool_call>": ("", [F, F]),
    f"<tool_call>```json\n{CALL}\n```</tool_call>": ("", [F]),
    f"<tool_call>{CALL}": ("", [F]),
    f"<tool_call>{CALL}\n</tool_c": ("", [F]),
    '<tool_call>{"arguments": {"a": "</tool_call>"}, "name": "f"}</tool_call>': ("", [("f", {"a": "</tool_call>"})]),
    '<tool_call>{"thought": "so", "name": "f", "arguments": {}}</tool_call>': ("", [("f", {})]),
    # Qwen2.5-Coder
    f"<tools>\n{CALL}\n</tools>": ("", [F]),
    f"<tools>[{CALL}, {CALL}]</tools>": ("", [F, F]),
    # Qwen3-Coder
    "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>": ("", [F]),
    "<tool_call><function=f><parameter=a>x</parameter></function><function=f></function></tool_call>": (
        "",
        [F, ("f", {})],
    ),
    "<tool_call><function=f><parameter=a>x</parameter>": ("", [F]),
    "<tool_call><function=f><parameter=a>x</parameter></function>": ("", [F]),
    "<tool_call><function=f><parameter=a>x</parameter></fun": ("", [F]),
    "Ok.\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>": ("Ok.\n", [F]),
    "Ok.<function=f><parameter=a>x</parameter></function>\n": ("Ok.\n", [F]),
    "<function=f><parameter=a>x</parameter></function> </tool_box>": (" </tool_box>", [F]),
    "<function=f><parameter=a b>\n\n<x>&amp; \n\n</parameter></function>": ("", [("f", {"a b": "\n<x>&amp; \n"})]),
    # Mistral
    f"[TOOL_CALLS] [{CALL}, {CALL}]": ("", [F, F]),
    f"Ok [TOOL_CALLS]{CALL} there": ("Ok  there", [F]),
    '[TOOL_CALLS]f{"a": "x"}[TOOL_CALLS]f[ARGS]{"a": "x"}': ("", [F, F]),
    '[TOOL_CALLS][{"name": "f", "arguments": "{\\"a\\": \\"x\\"}", "id": "123456789"}]': ("", [F]),
    # Olmo
    "<function_calls>\nf(a='x')\nf(a='x')\n</function_calls>": ("", [F, F]),
    "<function_calls>[f(a='x'), f(a='x')]</function_calls>!": ("!", [F, F]),
    "<function_calls>f(a='x')": ("", [F]),
    # FunctionGemma
    '<start_function_call>call:f{a:<escape>{"},\n<escape>,b:[1,<escape>x<escape>],c:{d:true}}<end_function_call>': (
        "",
        [("f", {"a": '{"},\n', "b": [1, "x"], "c": {"d": True}})],
    ),
    "<start_function_call>call:f{}<end_function_call><start_function_call>call:f{}": ("", [("f", {}), ("f", {})]),
    # bare JSON
    CALL: ("", [F]),
    f" \n{CALL}\u00a0\n": ("", [F]),
    f"[{CALL},\n{CALL}]": ("", [F, F]),
    f"{CALL}; {CALL}\n{CALL},{CALL}": ("", [F, F, F, F]),
    f"```json\n{CALL}\n```\n": ("", [F]),
    f"```\n[{CALL}]\n```": ("", [F]),
    f"```JSON {CALL}": ("", [F]),
    '{"type": "function", "name": "f", "parameters": {"a": "x"}}': ("", [F]),
    '{"name": "f", "args": {"a": "x"}, "why": "so"}': ("", [F]),
    '{"name": "f"}': ("", [("f", {})]),
    '{"name": "f", "arguments": null}': ("", [("f", {})]),
    "{'name': 'f', 'arguments': {'a': 'it\\'s \"x\"', 'b': [True, None,],},}": (
        "",
        [("f", {"a": 'it\'s "x"', "b": [True, None]})],
    ),
    '{"name": "f", "arguments": {"a": "line\nend \\u00e9\\ud83d\\ude00\\/ it\\\'s"}}': (
        "",
        [("f", {"a": "line\nend é😀/ it's"})],
    ),
    '{"name": "f", "arguments": {"a": -1.5e3, "b": 10000000000000000000000}}': (
        "",
        [("f", {"a": -1500.0, "b": 10**22})],
    ),
    '{"name": "define", "parameters": {"type": "object", "properties": {}}}': (
        "",
        [("define", {"type": "object", "properties": {}})],
    ),
    # bare Python
    "[f(a='x'), read-file(path=\"/a\\tb\", from=-2.5)]": ("", [F, ("read-file", {"path": "/a\tb", "from": -2.5})]),
    "[ f( a = 'x', ), ]\n": ("", [F]),
    "[f(a=[1, {'k': (None, True)}], b=('x'), c=('x',), d='''it's''', e='')]": (
        "",
        [("f", {"a": [1, {"k": [None, True]}], "b": "x", "c": ["x"], "d": "it's", "e": ""})],
    ),
    r"[f(a='\d\x41\'\U0001F600')]": ("", [("f", {"a": "\\dA'😀"})]),
    "[f(a='one\ntwo')]": ("", [("f", {"a": "one\ntwo"})]),
    # after thoughts
    f"<think>\nHm: {CALL}\n</think>\n\n{CALL}": (f"<think>\nHm: {CALL}\n</think>\n\n", [F]),
    f"<think><tool_call>{CALL}</tool_call></think><tool_call>{CALL}</tool_call>": (
        f"<think><tool_call>{CALL}</tool_call></think>",
        [F],
    ),
    f"The template opened it.</think>\n[{CALL}]": ("The template opened it.</think>\n", [F]),
    # others around
    f"<tool_call><tool_call>{CALL}</tool_call>": ("<tool_call>", [F]),
    f'<tool_call>{{"name": "f", "arguments": {{"a": "x}}}}</tool_call>\n<tool_call>{CALL}</tool_call>': (
        '<tool_call>{"name": "f", "arguments": {"a": "x}}</tool_call>\n',
        [F],
    ),
    f"<tool_call>{{'name': 'other'}}</tool_call><tool_call>{CALL}</tool_call>": (
        "<tool_call>{'name': 'other'}</tool_call>",
        [F],
    ),
    f"`<tool_call>` is the tag: <tool_call>{CALL}</tool_call>": ("`<tool_call>` is the tag: ", [F]),
    f"[1] <b>x</b> <tool <tool_call>{CALL}</tool_call>": ("[1] <b>x</b> <tool ", [F]),
    f"{{<tool_call>{CALL}</tool_call>}}": ("{}", [F]),
}


@pytest.mark.parametrize("text", CALLS)
def test_every_form_is_read_wherever_it_is_cut(text):
    left, calls = CALLS[text]
    assert read(text) == (left, calls, "tools")
    for pieces in cuts(text):
        assert read(*pieces) == (left, calls, "tools"), pieces


TEXTS = [
    "",
    "\n \n",
    "Hello.",
    "{",
    "[",
    "`",
    "```",
    "<",
    "<tool",
    "<tool_call>",
    "[TOOL_CALLS]",
    "<think>",
    # prose
    f"You call it so: {CALL}",
    f"{CALL} is how you call it.",
    f"```json\n{CALL}\n```\nThis calls it.",
    f"Like this:\n```json\n{CALL}\n```",
    f"[{CALL}] and more",
    f"````\n```json\n{CALL}\n```\n````",
    f"```\n```json\n{CALL}\n```\n```",
    f"~~~json\n{CALL}\n~~~",
    f"`{CALL}`",
    f'"{CALL}"',
    f"```python\n{CALL}\n```",
    "```python\n[f(a='x')]\n```",
    "```\n[f(a='x')]\n```",
    "f(a='x')",
    "[f](https://example.org) and [^1] and [ ] to do",
    "[f(a='x')](https://example.org)",
    "[f(a='x')] calls it",
    "<p>Use <tool> or <tools> or <tooltip>, <function> and <function_calls>.</p>",
    "<think>not closed <tool_call>" + CALL + "</tool_call>",
    f"So </think> then {CALL}",
    f"<think>a</think> so </think> {CALL}",
    "<think>a</think> b " + CALL,
    # of no offered tool
    "{}",
    "[]",
    "[[]]",
    "[1, 2]",
    '{"name": "F", "arguments": {}}',
    '{"name": "f ", "arguments": {}}',
    '{"name": "\uff46", "arguments": {}}',
    "[\uff46(a='x')]",
    '{"name": ["f"], "arguments": {}}',
    '{"arguments": {"a": "x"}}',
    '{"function": {"name": "f", "arguments": {}}}',
    f'[{CALL}, {{"name": "other", "arguments": {{}}}}]',
    "[f(a='x'), other()]",
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
    "<tool_call><function=other><parameter=a>x</parameter></function></tool_call>",
    "<function=other></function></tool_call>",
    "<function_calls>other()</function_calls>",
    "<start_function_call>call:other{}<end_function_call>",
    "[TOOL_CALLS]other{}",
    "<tools></tools>",
    # definitions
    '{"name": "f", "description": "It does.", "parameters": {}}',
    '[{"name": "f", "parameters": {"type": "object", "properties": {}}}]',
    '<tools>[{"type": "function", "function": {"name": "f", "parameters": {}}}]</tools>',
    # arguments
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": 1}',
    '{"name": "f", "arguments": "x"}',
    '{"name": "f", "arguments": "[1]"}',
    '{"name": "f", "arguments": "{} {}"}',
    '{"name": "f", "a": "x"}',
    '{"name": "f", "arguments": {"a": NaN}}',
    '{"name": "f", "arguments": {"a": 1e999}}',
    '{"name": "f", "arguments": {"a": 01}}',
    '{"name": "f", "arguments": {"a": "\\d"}}',
    '{"name": "f", "arguments": {"a": "x"}',
    '{"name": "f", "arguments": {,}}',
    '{"name": "f", "arguments": {"a": 1,,}}',
    '{"name": "f", "arguments": {a: 1}}',
    '{"name": "f", "arguments": {"a": (1, 2)}}',
    '{"name": "f", "arguments": ' + '{"a":' * 100 + "1" + "}" * 101,
    "[f('x')]",
    "[f(x)]",
    "[f(a=x)]",
    "[f(a=1+1)]",
    "[f(a=g())]",
    "[f(a=f'x')]",
    "[f(a=b'x')]",
    "[f(a='x' 'y')]",
    "[f(a=1, a=2)]",
    "[f(**{'a': 1})]",
    "[f(a='\\N{no such sign}')]",
    "[f(a='\0')]",
    "[__import__('os').system('x')]",
    "[f(a=[x for x in 'x'])]",
    # not finished
    '<tool_call>{"name": "f", "arguments": {"a": "x',
    "<tool_call><function=f><parameter=a>x",
    "<tool_call><function=f>",
    "<function=f><parameter=a>x</parameter><param",
    "<function_calls>f(a='x'",
    '[TOOL_CALLS][{"name": "f"}',
    "<start_function_call>call:f{a:<escape>x",
    "<start_function_call>call:f{a:x}<end_function_call>",
    # tags in the wrong places
    f"<tool_call>{CALL} so</tool_call>",
    f"<tool_call>so {CALL}</tool_call>",
    f"<tool_call>{CALL}</tools>",
    "<tool_call><function=f><parameter=a>x\n<parameter=b>y</parameter></function></tool_call>",
    "<tool_call>[f(a='x')]</tool_call>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_of_an_offered_tool_stays_text_to_the_byte(text):
    assert read(text) == (text, [], "stop")
    for pieces in cuts(text):
        assert read(*pieces) == (text, [], "stop"), pieces


def test_without_tools_everything_is_text():
    steps = [[Text(text)] for text in CALLS]
    assert said(decode(*steps, [Finish("stop")], tools=[])) == "".join(CALLS)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("text", "", ""),
        ("count", " 5 ", 5),
        ("count", "5.0", 5),
        ("count", "5.5", "5.5"),
        ("count", "five", "five"),
        ("count", "true", "true"),
        ("size", "5", 5),
        ("size", "5.50", 5.5),
        ("on", "true", True),
        ("on", "False", False),
        ("on", "1", "1"),
        ("list", "[1, 'a',]", [1, "a"]),
        ("list", "{}", "{}"),
        ("map", '{"a": [null]}', {"a": [None]}),
        ("map", '{"a": 1} {"a": 2}', '{"a": 1} {"a": 2}'),
        ("map", "", ""),
        ("maybe", "null", None),
        ("maybe", "7", 7),
        ("maybe", "seven", "seven"),
        ("either", "None", None),
        ("either", "none", "none"),
        ("either", "7", "7"),
        ("level", "2", 2),
        ("kind", "2", "2"),
        ("one", "1", 1),
        ("point", '{"x": 1}', {"x": 1}),
        ("loop", "1", "1"),
        ("lost", "1", "1"),
        ("any", "1", "1"),
        ("unknown", "1", "1"),
    ],
)
def test_parameters_in_tags_get_the_type_of_the_schema(key, text, value):
    message = f"<tool_call><function=typed><parameter={key}>\n{text}\n</parameter></function></tool_call>"
    assert read(message) == ("", [("typed", {key: value})], "tools")


def test_parameters_that_the_schema_does_not_name_get_the_type_of_additional_properties():
    tool = ToolSpec("f", "", {"additionalProperties": {"type": "integer"}})
    chunks = decode([Text("<function=f><parameter=a>5</parameter></function>"), Finish("stop")], tools=[tool])
    assert [chunk.arguments for chunk in chunks if isinstance(chunk, CallFragment)] == ['{"a": 5}']


def test_a_schema_that_names_itself_many_times_takes_no_time():
    branches = [{"$ref": "#/properties/a"}, {"anyOf": [{"$ref": "#/properties/a"}] * 20}] * 20
    tool = ToolSpec("f", "", {"properties": {"a": {"anyOf": [*branches, {"type": "integer"}]}}})
    chunks = decode([Text("<function=f><parameter=a>5</parameter></function>"), Finish("stop")], tools=[tool])
    assert [chunk.arguments for chunk in chunks if isinstance(chunk, CallFragment)] == ['{"a": 5}']


# any content, any cut

KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MADE = st.lists(st.tuples(st.sampled_from(["f", "read-file"]), st.dictionaries(KEYS, VALUES, max_size=3)), min_size=1)
AROUND = st.lists(
    st.sampled_from(
        ["Sure. ", "\n", " ", "a < b ", "[1] ", "<b>", "<tool", "{", "}", "```", "[", "'", '"', "é😀\u2028"]
    ),
    max_size=4,
).map("".join)
POINTS = st.lists(st.integers(0, 1 << 20), max_size=12)

Made = list[tuple[str, dict[str, Any]]]


def objects(calls: Made, key: str = "arguments", ascii: bool = False) -> list[str]:
    return [json.dumps({"name": name, key: arguments}, ensure_ascii=ascii) for name, arguments in calls]


def python(calls: Made) -> list[str]:
    return [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls]


def gemma(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{gemma(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(gemma, value)) + "]"
    return f"<escape>{value}<escape>" if isinstance(value, str) else json.dumps(value)


TAGGED = {
    "hermes": lambda calls: "".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects(calls)),
    "array": lambda calls: f"<tool_call>[{', '.join(objects(calls, ascii=True))}]</tool_call>",
    "tools": lambda calls: f"<tools>{chr(10).join(objects(calls))}</tools>",
    "mistral": lambda calls: f"[TOOL_CALLS] [{','.join(objects(calls))}]",
    "arguments": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls),
    "olmo": lambda calls: "<function_calls>\n" + "\n".join(python(calls)) + "\n</function_calls>",
    "gemma": lambda calls: "".join(
        f"<start_function_call>call:{name}{gemma(given)}<end_function_call>" for name, given in calls
    ),
    "text": lambda calls: (
        f"<tool_call>{json.dumps([{'name': n, 'arguments': json.dumps(a)} for n, a in calls])}</tool_call>"
    ),
}
BARE = {
    "llama": lambda calls: "; ".join(objects(calls, "parameters")),
    "xlam": lambda calls: f"[{', '.join(objects(calls))}]",
    "fence": lambda calls: f"```json\n[{', '.join(objects(calls, 'args'))}]\n```",
    "pythonic": lambda calls: f"[{', '.join(python(calls))}]",
    "python's JSON": lambda calls: repr([{"name": name, "arguments": given} for name, given in calls]),
}


@given(st.data(), st.sampled_from(sorted(TAGGED)), MADE, AROUND, AROUND, POINTS)
def test_any_calls_in_tags_with_any_text_around_are_read_at_any_cut(data, form, calls, before, after, points):
    text = before + TAGGED[form](calls) + after
    left = before + after if (before + after).strip() else ""
    assert read(text) == (left, calls, "tools")
    assert read(*chop(text, points)) == (left, calls, "tools")


@given(st.sampled_from(sorted(BARE)), MADE, st.sampled_from(["", "\n", " \n\u00a0"]), POINTS)
def test_any_bare_calls_are_read_at_any_cut(form, calls, blank, points):
    written = BARE[form](calls)
    if form == "python's JSON" and any(mark in written for mark in ("\\x", "\\U")):
        written = BARE["xlam"](calls)  # an escape that JSON does not know
    text = blank + written + blank
    assert read(text) == ("", calls, "tools")
    assert read(*chop(text, points)) == ("", calls, "tools")


@given(
    st.dictionaries(KEYS, st.text(max_size=30), max_size=4), st.dictionaries(KEYS, VALUES, max_size=3), AROUND, POINTS
)
def test_any_parameters_in_tags_are_read_at_any_cut(strings, others, before, points):
    others = {key: value for key, value in others.items() if key not in strings and not isinstance(value, str)}
    kinds = {dict: "object", list: "array", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    properties = {key: {"type": kinds[type(value)]} for key, value in others.items()}
    tool = ToolSpec("f", "", {"properties": properties})
    written = strings | {key: json.dumps(value) for key, value in others.items()}
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in written.items())
    text = f"{before}<tool_call>\n<function=f>\n{inner}</function>\n</tool_call>"
    for pieces in ([text], chop(text, points)):
        chunks = decode(*([Text(piece)] for piece in pieces), [Finish("stop")], tools=[tool])
        [call] = [chunk for chunk in chunks if isinstance(chunk, CallFragment)]
        assert json.loads(call.arguments) == strings | others
        assert said(chunks) == (before if before.strip() else "")


SIGNS = [
    *("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<function_calls>", "</function_calls>", "[TOOL_CALLS]"),
    *("<function=", ">", "<parameter=a>", "</parameter>", "</function>", "<start_function_call>", "call:", "[ARGS]"),
    *("<end_function_call>", "<escape>", "<think>", "</think>", "{", "}", "[", "]", "(", ")", '"', "'", '"""', "\\"),
    *("```", "```json", "`", ",", ";", ":", "=", " ", "\n", "1", "true", "a", "é", "<", "/", "\u00a0", "\0", "\ud83d"),
    *('{"name":', '"arguments":', '"parameters":{', "other", "other(", '"other"', "'other'", "Text. "),
]
OFFERED = ['"f"', "f", "f(", "'f'", '"f",', "{}", CALL, CALL[:-1], f"<tool_call>{CALL}</tool_call>"]


@given(st.lists(st.sampled_from(SIGNS)).map("".join) | st.text(), POINTS)
@settings(max_examples=500)
def test_any_text_without_an_offered_tool_passes_unchanged(text, points):
    for reason in ("stop", "tools", "length", "refused"):
        assert read(text, reason=reason) == (text, [], reason) == read(*chop(text, points), reason=reason)


@given(st.lists(st.sampled_from(SIGNS + OFFERED * 3)).map("".join), POINTS)
@settings(max_examples=500)
def test_any_text_is_read_the_same_at_any_cut(text, points):
    for reason in ("stop", "length"):
        whole = read(text, reason=reason)
        assert read(*chop(text, points), reason=reason) == whole
        if not whole[1]:
            assert whole[0] == text


# when text is shown


def shown(*pieces: str) -> list[str]:
    decoder = TextualCalls(Scripted(*([Text(piece)] for piece in pieces)), TOOLS)
    return [said(decoder.feed(b"x")) for _ in pieces]


@pytest.mark.parametrize(
    "pieces",
    {
        "plain": ["Hello", " there", "\n"],
        "a tag begins": ["a <", None, "b <tool", " b"],
        "an HTML tag": ["<", "p>", "<tools", "hed>"],
        "a tag in backticks": ["`<tool_call>", "` is a tag"],
        "a JSON answer": ["{", '"answer', '": "long'],
        "a JSON answer with a name": ['{"name": "Ann', 'a"', ', "age": 5'],
        "a list": ["[", '"', "a"],
        "a link": ["[", "link", "](https://"],
        "a code block": ["```", "python", "\n", "def"],
        "a fence around prose": ["```json", "\n", "x"],
        "of no offered tool": ["<tool_call>", '{"name": "oth', 'er"', ', "arguments": {'],
    }.items(),
    ids=lambda case: case[0],
)
def test_text_is_shown_as_soon_as_it_can_be_no_call(pieces):
    texts = [piece for piece in pieces[1] if piece]
    came = shown(*texts)
    assert "".join(came) == "".join(texts)
    assert came[-1], "the last piece decides"


def test_plain_text_passes_as_the_decoder_gave_it():
    steps: list[list[Chunk]] = [[Text("Hello ")], [Text("there "), Text("über "), Text(".\n")], [Text("{x} (y) `z`")]]
    decoder = TextualCalls(Scripted(*steps), TOOLS)
    decoder.feed(b"x")
    for step in steps[1:]:
        assert decoder.feed(b"x") is step


def test_text_before_a_call_is_shown_before_the_call_is_there():
    assert shown("I look <tool", f"_call>{CALL}</tool_ca", "ll> now") == ["I look ", "", " now"]


def test_a_call_comes_when_its_tag_closes():
    decoder = TextualCalls(Scripted([Text(f"<tool_call>{CALL}")], [Text("</tool_call>")]), TOOLS)
    assert not decoder.feed(b"x")
    [call] = decoder.feed(b"x")
    assert isinstance(call, CallFragment)
    assert (call.index, call.name, call.arguments) == (0, "f", '{"a": "x"}')
    assert call.id is not None
    assert call.id.startswith("call_")


def test_how_much_is_held_back_is_told():
    decoder = TextualCalls(Scripted([Text(" \n")], [Text("<tool")], [Text("_call>{")], [Text("x")]), TOOLS)
    held = []
    for _ in range(4):
        decoder.feed(b"x")
        held.append(decoder.held)
    assert held == [2, 7, 14, 0]


@pytest.mark.parametrize("size", [1 << 12, 1 << 30])
def test_no_more_than_the_limit_is_held_back(size):
    begin, end = '<tool_call>{"name":"f","arguments":{"a":"', '"}}</tool_call>'
    fits = LIMIT - len(begin) - len(end)
    for count, is_call in ((fits, True), (fits + 1, False)):
        text = begin + "x" * count + end
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert read(*pieces) == (("", [("f", {"a": "x" * count})], "tools") if is_call else (text, [], "stop"))
    blank = " " * (LIMIT + 1)
    assert "".join(shown(*[blank[i : i + size] for i in range(0, len(blank), size)])) == blank


@pytest.mark.parametrize("size", [64, 1 << 30])
@pytest.mark.parametrize(
    "part",
    [
        "<",
        "[",
        "`",
        " ",
        "<tool_call>",
        '<tool_call>{"a":"',
        '<tool_call>{"name":"f","arguments":{"a":"',
        "<function=f><parameter=a>",
        "<start_function_call>call:f{a:<escape>",
        "<function_calls>f(a='",
        "[TOOL_CALLS][",
        '<tool_call>{"name":"f"}</tool_call>',
        "<think>",
    ],
)
def test_the_work_grows_with_the_text_and_no_faster(part, size, monkeypatch):
    work = 0

    class Counting(textual._Reader):
        def read(self, text: str, begin: int = 0, at: int = 0) -> list[CallRequest] | None:
            nonlocal work
            work -= self._past
            calls = super().read(text, begin, at)
            work += self.size
            return calls

    monkeypatch.setattr(textual, "_Reader", Counting)
    text = part * ((1 << 19) // len(part))
    begin = time.process_time()
    left, calls, _ = read(*[text[i : i + size] for i in range(0, len(text), size)])
    assert calls or left == text
    assert work <= len(text) + REREAD + LIMIT
    assert time.process_time() - begin < 20  # a second or less; grown with its square it would be minutes


def test_deep_nesting_is_text():
    for text in ('{"name":"f","arguments":' + '{"a":' * 100_000, "[f(a=" + "[" * 100_000, "[f(a=" + "(" * 100_000):
        assert read(text) == (text, [], "stop")


# beside other chunks


def test_calls_are_only_those_outside_of_thoughts():
    call = Reasoning(f"<tool_call>{CALL}</tool_call>")
    chunks: list[Chunk] = [call, Replay({"signature": "x"}), Text("Hi."), call, Finish("stop")]
    assert decode(chunks) == chunks


def test_what_is_held_back_is_shown_before_thoughts_and_native_calls():
    for other in (Reasoning("hm"), Replay("x"), CallFragment(0, "a", "f", "{}")):
        chunks = decode([Text("\n")], [other], [Text("a <tool_call>{")], [other], [Text("}")], [Finish("stop")])
        assert chunks == [Text("\n"), other, Text("a "), Text("<tool_call>{"), other, Text("}"), Finish("stop")]


@pytest.mark.parametrize("text", ["<tool", "[TOOL", "{", "`", "<think></th"])
def test_what_began_before_a_thought_does_not_go_on_behind_it(text):
    chunks = decode([Text(text)], [Reasoning("hm")], [Text(CALL)], [Finish("stop")])
    thought = chunks.index(Reasoning("hm"))
    assert said(chunks[:thought]) == text
    assert chunks[thought + 1 :] == [Text(CALL), Finish("stop")]


def test_blanks_beside_a_call_are_dropped_though_thoughts_come_between():
    call = Text(f"<tool_call>{CALL}</tool_call>")
    chunks = decode([call, Text("\n")], [Reasoning("hm")], [Text("\n"), call], [Finish("stop")])
    assert not said(chunks)
    assert [type(chunk) for chunk in chunks] == [CallFragment, Reasoning, CallFragment, Finish]


def test_usage_does_not_disturb_a_call():
    usage = UsageChunk(Usage(1, 2))
    steps: list[list[Chunk]] = [[Text(sign), usage] for sign in f"Ok <tool_call>{CALL}</tool_call>"]
    chunks = decode(*steps, [Finish("stop"), usage])
    assert said(chunks) == "Ok "
    assert [chunk.name for chunk in chunks if isinstance(chunk, CallFragment)] == ["f"]
    assert chunks.count(usage) == len(steps) + 1
    assert chunks[-2:] == [Finish("tools"), usage]


def test_native_and_textual_calls_have_indexes_of_their_own():
    textual = Text(f"<tool_call>{CALL}</tool_call>")
    chunks = decode(
        [CallFragment(0, "a", "n0")],
        [textual],
        [CallFragment(1, "b", "n1")],
        [CallFragment(0, arguments="{}"), CallFragment(1, arguments="[]")],
        [textual, CallFragment(7, "c", "n7"), CallFragment(4, "d", "n4"), textual],
        [Finish("tools")],
    )
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in chunks:
        if isinstance(chunk, CallFragment):
            assert chunk.name is None or chunk.index not in names
            names[chunk.index] = names.get(chunk.index) or chunk.name or ""
            arguments[chunk.index] = arguments.get(chunk.index, "") + chunk.arguments
    assert sorted(names.values()) == ["f", "f", "f", "n0", "n1", "n4", "n7"]
    found = {names[index]: arguments[index] for index in names}
    assert found == {"n0": "{}", "n1": "[]", "n4": "", "n7": "", "f": '{"a": "x"}'}
    assert chunks[-1] == Finish("tools")


def test_native_calls_pass_as_they_are():
    chunks: list[Chunk] = [Text("\n\n"), CallFragment(3, "a", "f"), CallFragment(3, arguments="{}"), Finish("tools")]
    assert decode(chunks) == chunks
    assert decode(*([chunk] for chunk in chunks)) == chunks


def test_only_a_stop_becomes_a_tool_stop():
    text = f"<tool_call>{CALL}</tool_call>"
    for reason, becomes in (("stop", "tools"), ("tools", "tools"), ("length", "length"), ("refused", "refused")):
        assert read(text, reason=reason) == ("", [F], becomes)


@pytest.mark.parametrize("reason", ["length", "refused"])
@pytest.mark.parametrize(
    "text", [CALL, f"<tool_call>{CALL}", "<tool_call><function=f><parameter=a>x</parameter>", " <t"]
)
def test_what_the_limit_of_tokens_cuts_is_text(text, reason):
    for pieces in cuts(text):
        assert read(*pieces, reason=reason) == (text, [], reason)


# errors and ends

BROKEN = ProviderError("provider.overloaded", "Too much.")


def fails(decoder: Decoder) -> list[Chunk]:
    """The chunks before the error, as the transport takes them."""
    chunks: list[Chunk] = []
    with pytest.raises(ProviderError) as caught:
        while True:
            batch = decoder.feed(b"x")
            chunks += batch
            if batch:
                decoder.feed(b"")
    assert caught.value is BROKEN
    return chunks


@pytest.mark.parametrize("text", ["\n", "a <tool_", f"<tool_call>{CALL}", "{", "plain"])
def test_what_is_held_back_is_shown_before_an_error(text):
    assert said(fails(TextualCalls(Scripted([Text(text)], BROKEN), TOOLS))) == text


@pytest.mark.parametrize("text", ["\n", "a <tool_", f"<tool_call>{CALL}", "{", "plain"])
def test_what_is_held_back_is_shown_before_an_error_that_the_decoder_keeps_behind_it(text):
    assert said(fails(TextualCalls(Scripted([Text(text)], behind=BROKEN), TOOLS))) == text


def test_an_error_without_anything_held_back_is_raised_at_once():
    with pytest.raises(ProviderError):
        TextualCalls(Scripted(BROKEN), TOOLS).feed(b"x")
    with pytest.raises(ProviderError):
        TextualCalls(Scripted(end=BROKEN), TOOLS).finish()


def test_what_is_held_back_is_shown_before_an_error_at_the_end():
    decoder = TextualCalls(Scripted([Text(f"<tool_call>{CALL}")], end=BROKEN), TOOLS)
    assert not decoder.feed(b"x")
    assert decoder.finish() == [Text(f"<tool_call>{CALL}")]
    with pytest.raises(ProviderError):
        decoder.feed(b"")


def test_what_comes_with_the_end_of_the_body_is_read_too():
    decoder = TextualCalls(Scripted([Text("<tool_call>")], end=[Text(CALL), Finish("stop")]), TOOLS)
    assert not decoder.feed(b"x")
    [call, finish] = decoder.finish()
    assert isinstance(call, CallFragment)
    assert finish == Finish("tools")


def test_an_answer_that_is_not_finished_makes_no_call_of_what_is_open():
    decoder = TextualCalls(Scripted([Text(CALL)]), TOOLS)
    assert not decoder.feed(b"x")
    assert decoder.finish() == [Text(CALL)]


# over the wire


def event(**members: Any) -> bytes:
    return f"data: {json.dumps(members, ensure_ascii=False)}\n\n".encode()


def test_a_stream_may_be_cut_at_every_byte():
    words = [
        "Ich schaue, ",
        "über\n<to",
        "ol_call>\n",
        '{"name": "f", "argu',
        'ments": {"a": "é😀',
        '"}}\n</tool',
        "_call>",
    ]
    body = b"".join(event(choices=[{"delta": {"content": word}}]) for word in words)
    body += event(choices=[{"delta": {}, "finish_reason": "stop"}]) + b"data: [DONE]\n\n"
    for i in range(len(body) + 1):
        decoder = TextualCalls(ChatDecoder(), TOOLS)
        chunks = [*decoder.feed(body[:i]), *decoder.feed(body[i:]), *decoder.finish()]
        [call] = [chunk for chunk in chunks if isinstance(chunk, CallFragment)]
        assert said(chunks) == "Ich schaue, über\n"
        assert json.loads(call.arguments) == {"a": "é😀"}
        assert chunks[-1] == Finish("tools")


class Provider(ChatProvider):
    def decoder(self, request: ModelRequest) -> Decoder:
        return TextualCalls(ChatDecoder(), TOOLS)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script([Say("Look: <tool_call>{")], finish="", done=False), "provider.truncated"),
        (Script([Say("Look: <tool_call>{"), Cut()]), "provider.disconnected"),
        (Script([Say("Look: <tool_call>{"), Hang()]), "provider.timeout"),
    ],
)
async def test_an_answer_that_breaks_off_shows_what_was_held_back(script, kind):
    outbound = Outbound()
    transport = Transport(outbound)
    chunks: list[Chunk] = []
    async with FakeUpstream() as up:
        up.script(script)
        with pytest.raises(ProviderError) as caught:
            request = ModelRequest("fake", [text_message("user", "hi")])
            await transport.run(
                Provider("openai", up.url), request, Deadlines(first_token_s=0.3, gap_s=0.3), chunks.extend
            )
    transport.close()
    await outbound.close()
    assert caught.value.kind == kind
    assert said(chunks) == "Look: <tool_call>{"
