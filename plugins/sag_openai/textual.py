"""Tool calls that a model writes as text, for servers that have no parser for their model or the wrong one.

Knows the forms and nothing of the wire: it stands between a decoder and the transport. What is no call of an offered
tool stays text, to the byte.

Tagged forms count anywhere outside of thinking, whatever text stands around them:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>       Hermes, Qwen2.5, Qwen3, xLAM; several or an array, too
    <tool_call><function=f><parameter=x>…</parameter></function></tool_call>   Qwen3-Coder, which may forget <tool_call>
    <tools>{"name": …, "arguments": {…}}</tools>               Qwen2.5-Coder; several or an array, too
    [TOOL_CALLS][{"name": …, "arguments": {…}}]                Mistral, xLAM; a single object, too
    [TOOL_CALLS]f{…}   [TOOL_CALLS]f[ARGS]{…}                  newer Mistral
    <function_calls>f(a='x')⏎g(b=2)</function_calls>           Olmo 3
    <start_function_call>call:f{a:<escape>x<escape>,b:2}<end_function_call>    FunctionGemma

Bare forms count only if the message holds nothing else but blanks and, before it, thoughts:

    {"name": …, "parameters": {…}}                             Llama 3; several, too, with ; or , between
    [{"name": …, "arguments": {…}}]                            xLAM; this and the one above also in one ```json fence
    [f(a='x'), g(b=2)]                                         Llama 3.2 and 4, ToolACE

What goes for all of JSON: arguments are under `arguments`, `parameters` or `args`, as an object or as text that holds
one; without any they are {}. Single quotes, a comma before the end and Python's constants are tolerated.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    Decoder,
    Finish,
    ProviderError,
    Text,
    ToolSpec,
    UsageChunk,
    to_unicode,
)

Json = dict[str, Any]
T = TypeVar("T")
Reading = Generator[None, None, T]  # yields where it needs more text

LIMIT = 1 << 18  # characters that are held back at most
REREAD = 4 * LIMIT  # characters of failed calls that are searched for other calls; keeps the work linear
DEPTH = 64

_ARGUMENTS = ("arguments", "parameters", "args")
_MEMBERS = {"name", "id", "type", "index", *_ARGUMENTS}
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}

_BLANKS = re.compile(r"[ \t\r\n]*")
_SOLID = re.compile(r"\S")
_NAME = re.compile(r"[A-Za-z0-9_-]*")
_KEY = re.compile(r"[\w$@.-]*")
_PARAMETER = re.compile(r"[^<>\r\n]*")
_WORD = re.compile(r"[\w.+-]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_STOPS = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_ESCAPES = re.compile(r"\\.|\"", re.DOTALL)
_NOTHING = object()


class _NoCallError(Exception):
    """What is read is no call of an offered tool."""


class _Reader:
    """Reads calls, as far as text has come, and finds out at the earliest character that there are none.

    All reading methods are generators, so that the text may be cut anywhere. Written here and not left to `json` and
    `ast`: these see an error only when all is there, take no parameters named `from` and no tools with a dash.

    Args:
        tools: The offered tools by name.
        form: The reading method to begin with.
    """

    def __init__(self, tools: Mapping[str, ToolSpec], form: Callable[[_Reader], Reading[list[CallRequest]]]) -> None:
        self._tools = tools
        self._steps = form(self)
        self._text = ""
        self._begin = self._at = self._end = 0
        self._past = 0
        self._ended = False
        self._true_end: int | None = None
        self._bare = self._python = self._gemma = False

    def read(self, text: str, begin: int = 0, at: int = 0) -> list[CallRequest] | None:
        """More text.

        Args:
            text: It; may hold more than the calls.
            begin: Where in it the form begins or goes on.
            at: Up to where it is read already: behind an opening tag.

        Returns:
            The calls, or none if it holds none; None while that is not known.
        """
        self._text, self._begin, self._at = text, begin, at
        self._end = min(len(text), begin + LIMIT - self._past)
        calls = self._step()
        if calls is not None:
            return calls
        if self._end < len(text):
            return []
        self._past += len(text) - begin
        self._text, self._begin, self._at, self._end = "", 0, 0, 0
        return None

    def close(self) -> list[CallRequest]:
        """The calls at the end of the message, where closing tags may be missing."""
        self._ended = True
        return self._step() or []

    @property
    def size(self) -> int:
        """How many characters were read, from the beginning of the form."""
        return self._past + self._at - self._begin if self._true_end is None else self._true_end

    def _step(self) -> list[CallRequest] | None:
        try:
            next(self._steps)
        except StopIteration as e:
            calls: list[CallRequest] = e.value
            return calls
        except _NoCallError:
            return []
        return None

    # forms

    def tool_call(self) -> Reading[list[CallRequest]]:
        """Behind `<tool_call>`."""
        if (yield from self._skip()) != "<":
            calls = yield from self._fenced()
            yield from self._close("</tool_call>")
            return calls
        calls = []
        while True:
            yield from self._skip()
            yield from self._expect("<", or_end=bool(calls))
            if calls and (yield from self._peek()) != "f":
                yield from self._expect("/tool_call>", or_end=True)
                return calls
            yield from self._expect("function=")
            calls.append((yield from self._function()))

    def function(self) -> Reading[list[CallRequest]]:
        """Behind `<function=` without `<tool_call>` before it; the tag that closes that often comes nevertheless."""
        call = yield from self._function()
        size = self.size
        try:
            yield from self._skip()
            yield from self._expect("</tool_call>")
        except _NoCallError:
            self._true_end = size
        return [call]

    def tools(self) -> Reading[list[CallRequest]]:
        """Behind `<tools>`."""
        calls = yield from self._fenced()
        yield from self._close("</tools>")
        return calls

    def mistral(self) -> Reading[list[CallRequest]]:
        """Behind `[TOOL_CALLS]`."""
        sign = yield from self._skip()
        if sign == "[":
            self._at += 1
            return (yield from self._array())
        if sign == "{":
            return [(yield from self._call())]
        name = yield from self._name()
        if (yield from self._skip()) == "[":
            yield from self._expect("[ARGS]")
            yield from self._skip()
        return [self._make(name, (yield from self._object()))]

    def lines(self) -> Reading[list[CallRequest]]:
        """Behind `<function_calls>`."""
        if (yield from self._skip()) == "[":
            self._at += 1
            calls = yield from self._pythonic()
        else:
            calls = []
            while (yield from self._skip()) not in ("<", ""):
                calls.append((yield from self._python_call()))
        yield from self._close("</function_calls>")
        return calls

    def gemma(self) -> Reading[list[CallRequest]]:
        """Behind `<start_function_call>`."""
        self._gemma = True
        yield from self._skip()
        yield from self._expect("call:")
        name = yield from self._name()
        call = self._make(name, (yield from self._object()))
        yield from self._close("<end_function_call>")
        return [call]

    def bare(self) -> Reading[list[CallRequest]]:
        """The whole message."""
        self._bare = True
        calls = yield from self._fenced()
        while (sign := (yield from self._peek())).isspace():
            self._at += 1
        if sign:
            raise _NoCallError
        return calls

    # JSON

    def _fenced(self) -> Reading[list[CallRequest]]:
        if (yield from self._skip()) != "`":
            return (yield from self._json())
        yield from self._expect("```")
        if (yield from self._run(_NAME)).lower() not in ("", "json"):
            raise _NoCallError
        calls = yield from self._json(fence=True)
        yield from self._close("```")
        return calls

    def _json(self, *, fence: bool = False) -> Reading[list[CallRequest]]:
        calls: list[CallRequest] = []
        while True:
            sign = yield from self._skip()
            if sign == "{":
                calls.append((yield from self._call()))
            elif sign == "[":
                self._at += 1
                if self._bare and not fence and not calls and (yield from self._skip()) != "{":
                    return (yield from self._pythonic())
                calls += yield from self._array()
            elif calls:
                return calls
            else:
                raise _NoCallError
            if (yield from self._skip()) in (",", ";"):
                self._at += 1

    def _array(self) -> Reading[list[CallRequest]]:
        calls = []
        while (yield from self._skip()) != "]":
            calls.append((yield from self._call()))
            yield from self._part("]")
        self._at += 1
        if not calls:
            raise _NoCallError
        return calls

    def _call(self) -> Reading[CallRequest]:
        members = yield from self._object(call=True)
        name = members.get("name")
        key = next((key for key in _ARGUMENTS if key in members), None)
        if key is None and not members.keys() <= _MEMBERS:
            raise _NoCallError
        given = members[key] if key else None
        arguments = _read_literal(given) if isinstance(given, str) else {} if given is None else given
        if not isinstance(arguments, dict) or (key == "parameters" and "description" in members):
            raise _NoCallError
        return self._make(name, arguments)

    def _make(self, name: Any, arguments: Json) -> CallRequest:
        tool = self._tool(name)
        is_schema = arguments.get("type") == "object" and isinstance(arguments.get("properties"), dict)
        if is_schema and "properties" not in _dict(tool.input.get("properties")):
            raise _NoCallError  # the definition of a tool, quoted
        written = to_unicode(json.dumps(arguments, ensure_ascii=False))
        return CallRequest(f"call_{secrets.token_hex(8)}", tool.name, written)

    def _tool(self, name: Any) -> ToolSpec:
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            raise _NoCallError
        return tool

    def _object(self, depth: int = 0, *, call: bool = False) -> Reading[Json]:
        """An object; that of a call is given up as soon as it is none."""
        yield from self._expect("{")
        members: Json = {}
        while (sign := (yield from self._skip())) != "}":
            if sign in ('"', "'"):
                key = yield from self._string()
            elif self._gemma:
                key = yield from self._run(_KEY)
            else:
                raise _NoCallError
            if call and self._bare and "name" not in members and key not in _MEMBERS:
                raise _NoCallError
            yield from self._skip()
            yield from self._expect(":")
            members[key] = yield from self._value(depth + 1)
            if call and key == "name":
                self._tool(members[key])
            yield from self._part("}")
        self._at += 1
        return members

    def _value(self, depth: int = 0) -> Reading[Any]:
        if depth > DEPTH:
            raise _NoCallError
        sign = yield from self._skip()
        if sign in ('"', "'"):
            return (yield from self._string())
        if sign == "{":
            return (yield from self._object(depth))
        if sign == "[" or (sign == "(" and self._python):
            return (yield from self._list(depth, "]" if sign == "[" else ")"))
        if sign == "<" and self._gemma:
            yield from self._expect("<escape>")
            return (yield from self._until("<escape>"))
        return _read_word((yield from self._run(_WORD, 400)))

    def _list(self, depth: int, end: str) -> Reading[Any]:
        self._at += 1
        values = []
        comma = False
        while (yield from self._skip()) != end:
            values.append((yield from self._value(depth + 1)))
            comma = yield from self._part(end)
        self._at += 1
        return values[0] if end == ")" and len(values) == 1 and not comma else values

    def _part(self, end: str) -> Reading[bool]:
        """A comma, or the end that comes next."""
        sign = yield from self._skip()
        if sign == ",":
            self._at += 1
        elif sign != end:
            raise _NoCallError
        return sign == ","

    def _string(self) -> Reading[str]:
        quote = yield from self._peek()
        self._at += 1
        long = False
        if self._python and (yield from self._peek()) == quote:
            self._at += 1
            if (yield from self._peek()) != quote:
                return ""
            self._at += 1
            long = True
        stop = _STOPS[quote]
        pieces = []
        while True:
            found = stop.search(self._text, self._at, self._end)
            if found is None:
                pieces.append(self._text[self._at : self._end])
                self._at = self._end
                if not (yield from self._peek()):
                    raise _NoCallError
                continue
            pieces.append(self._text[self._at : found.start()])
            self._at = found.end()
            if found[0] == "\\":
                pieces.append("\\" + (yield from self._peek()))
                self._at += 1
                continue
            count = 1
            while long and count < 3 and (yield from self._peek()) == quote:
                self._at += 1
                count += 1
            if not long or count == 3:
                break
            pieces.append(quote * count)
        return (_unquote_python if self._python else _unquote)("".join(pieces), quote)

    # Python

    def _pythonic(self) -> Reading[list[CallRequest]]:
        calls = []
        while (yield from self._skip()) != "]":
            calls.append((yield from self._python_call()))
            yield from self._part("]")
        self._at += 1
        if not calls:
            raise _NoCallError
        return calls

    def _python_call(self) -> Reading[CallRequest]:
        self._python = True
        name = yield from self._name()
        yield from self._expect("(")
        arguments: Json = {}
        while (yield from self._skip()) != ")":
            key = yield from self._run(_KEY)
            yield from self._skip()
            yield from self._expect("=")
            if not key or key in arguments:
                raise _NoCallError
            arguments[key] = yield from self._value()
            yield from self._part(")")
        self._at += 1
        return self._make(name, arguments)

    # Qwen's tags

    def _function(self) -> Reading[CallRequest]:
        """Behind `<function=`."""
        name = yield from self._name()
        yield from self._expect(">")
        schema = self._tool(name).input
        arguments: Json = {}
        while True:
            yield from self._skip()
            yield from self._expect("<", or_end=bool(arguments))
            if (yield from self._peek()) != "p":
                yield from self._expect("/function>", or_end=bool(arguments))
                return self._make(name, arguments)
            yield from self._expect("parameter=")
            key = yield from self._run(_PARAMETER)
            yield from self._expect(">")
            value = yield from self._until("</parameter>")
            if "<parameter=" in value or "<function=" in value:
                raise _NoCallError  # a closing tag was forgotten, and nobody knows where
            arguments[key] = _cast(value.removeprefix("\n").removesuffix("\n"), key, schema)

    # signs

    def _peek(self) -> Reading[str]:
        """The next character; empty at the end of the message."""
        while self._at >= self._end:
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def _skip(self) -> Reading[str]:
        """The next character behind blanks; empty at the end of the message."""
        while True:
            blanks = _BLANKS.match(self._text, self._at, self._end)
            self._at = blanks.end() if blanks else self._at
            if self._at < self._end or self._ended:
                return self._text[self._at : self._at + 1]
            yield

    def _expect(self, mark: str, *, or_end: bool = False) -> Reading[None]:
        for expected in mark:
            sign = yield from self._peek()
            if not sign and or_end:
                return
            if sign != expected:
                raise _NoCallError
            self._at += 1

    def _close(self, tag: str) -> Reading[None]:
        yield from self._skip()
        yield from self._expect(tag, or_end=True)

    def _run(self, signs: re.Pattern[str], limit: int = 200) -> Reading[str]:
        word = ""
        while True:
            found = signs.match(self._text, self._at, min(self._end, self._at + limit + 1))
            if found:
                word += found[0]
                self._at = found.end()
            if len(word) > limit:
                raise _NoCallError
            if self._at < self._end or self._ended:
                return word
            yield

    def _name(self) -> Reading[str]:
        name = yield from self._run(_NAME)
        self._tool(name)
        return name

    def _until(self, mark: str) -> Reading[str]:
        """What stands before a mark, which is read too."""
        pieces = []
        rest = ""
        while True:
            text = rest + self._text[self._at : self._end]
            found = text.find(mark)
            if found >= 0:
                self._at += found + len(mark) - len(rest)
                pieces.append(text[:found])
                return "".join(pieces)
            self._at = self._end
            if self._ended:
                raise _NoCallError
            rest = text[1 - len(mark) :]
            pieces.append(text[: len(text) - len(rest)])
            yield


def _read_literal(text: str) -> Any:
    """The value that a text holds, read as leniently as calls are; `_NOTHING` if it holds none."""
    found: list[Any] = [_NOTHING]

    def read(reader: _Reader) -> Reading[list[CallRequest]]:
        value = yield from reader._value()
        if not (yield from reader._skip()):
            found[0] = value
        return []

    reader = _Reader({}, read)
    if reader.read(text) is None:
        reader.close()
    return found[0]


def _read_word(word: str) -> Any:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    number = _NUMBER.fullmatch(word)
    if number is None:
        raise _NoCallError
    if not number[1] and not number[2]:
        return int(word)
    value = float(word)
    if value in (float("inf"), float("-inf")):
        raise _NoCallError
    return value


def _unquote(raw: str, quote: str) -> str:
    if quote == "'" or "\\'" in raw:
        raw = _ESCAPES.sub(lambda found: {"\\'": "'", '"': '\\"'}.get(found[0], found[0]), raw)
    try:
        text: str = json.loads(f'"{raw}"', strict=False)
    except ValueError:
        raise _NoCallError from None
    return text


def _unquote_python(raw: str, quote: str) -> str:
    # In three quotes, since models write line ends as they are.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that Python does not know
            text: str = ast.literal_eval(f"{quote * 3}{raw}{quote * 3}")
    except (ValueError, SyntaxError):
        raise _NoCallError from None
    return text


def _cast(text: str, key: str, schema: Json) -> Any:
    """The value that a text stands for, by the JSON Schema of a tool's input; the text itself where that says nothing.

    Where a type does not fit, the text stays, so that the model is told by the check of the arguments.
    """
    member = _dict(schema.get("properties")).get(key, schema.get("additionalProperties"))
    kinds = _kinds(member, schema)
    if not kinds - {"string"}:
        return text
    value = _read_literal(text)
    if isinstance(value, float) and value.is_integer() and "number" not in kinds:
        value = int(value)
    return value if _kind(value) & kinds else text


def _kind(value: Any) -> set[str]:
    """The types of JSON Schema that a value has, but string."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    return {"array"} if isinstance(value, list) else {"object"} if isinstance(value, dict) else set()


def _kinds(member: Any, schema: Json) -> set[str]:
    """The types that a schema allows; none if it does not say."""
    kinds: set[str] = set()
    followed: set[str] = set()
    todo = [member]
    while todo:
        one = _dict(todo.pop())
        given = one.get("type")
        named = {kind for kind in (given if isinstance(given, list) else [given]) if isinstance(kind, str)}
        kinds |= named
        if named:
            continue
        for value in [*_list(one.get("enum")), *([one["const"]] if "const" in one else [])]:
            kinds |= {"string"} if isinstance(value, str) else _kind(value)
        for name in ("anyOf", "oneOf", "allOf"):
            todo += _list(one.get(name))
        reference = one.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/") and reference not in followed:
            followed.add(reference)
            found: Any = schema
            for step in reference[2:].split("/"):
                found = _dict(found).get(step.replace("~1", "/").replace("~0", "~"))
            todo.append(found)
    return kinds


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _dict(given: Any) -> Json:
    return given if isinstance(given, dict) else {}


_FORMS = {
    "<tool_call>": _Reader.tool_call,
    "<function=": _Reader.function,
    "<tools>": _Reader.tools,
    "[TOOL_CALLS]": _Reader.mistral,
    "<function_calls>": _Reader.lines,
    "<start_function_call>": _Reader.gemma,
}
_THINK, _THOUGHT = "<think>", "</think>"
_TAGS = (*_FORMS, _THINK, _THOUGHT)
_OPENING = re.compile("|".join(map(re.escape, _TAGS)))
_LONGEST = max(map(len, _TAGS))


class TextualCalls:
    """Makes calls of those that a model writes as text (`sag.plugin.Decoder`).

    Text is held back while it may be the beginning of a call, and while a message is blank so far. Usage does not wait
    for it; thoughts and calls of the server end it, and it is text then.

    Args:
        decoder: Decodes the answer.
        tools: The tools that the request offers; calls of others are text.
    """

    def __init__(self, decoder: Decoder, tools: Sequence[ToolSpec]) -> None:
        self._decoder = decoder
        self._tools = {tool.name: tool for tool in tools}
        self._failure: ProviderError | None = None
        # Nothing is held back, and only a tag can change that.
        self._flowing = False
        # Nothing but blanks and thoughts came, so that the message may be a bare form.
        self._fresh = True
        self._thinking = self._thought = False
        self._shown = False
        self._blanks: list[str] = []
        self._blank = 0
        # What is held back behind the blanks: the beginning of a tag, or what the reader has read.
        self._held: list[str] = []
        self._reader: _Reader | None = None
        self._reread = REREAD
        self._found = False
        self._native: dict[int, int] = {}
        self._indexes: set[int] = set()
        self._next = 0

    @property
    def held(self) -> int:
        """How many characters are held back; where it grows, the answer goes on though no chunks come of it."""
        return self._blank + (self._reader.size if self._reader else sum(map(len, self._held)))

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """The chunks that are complete now.

        Raises:
            ProviderError: What the decoder raises, after what was held back.
        """
        if self._failure is not None:
            raise self._failure
        try:
            chunks = self._decoder.feed(data)
        except ProviderError as e:
            return self._fail(e, [])
        if self._flowing:
            for chunk in chunks:
                if type(chunk) is not Text or "<" in chunk.text or "[" in chunk.text:
                    break
            else:
                return chunks
        out: list[Chunk] = []
        self._take(chunks, out)
        if chunks and not self._flowing:
            # Nobody asks for the error behind these chunks where they are held back.
            try:
                self._decoder.feed(b"")
            except ProviderError as e:
                return self._fail(e, out)
        return out

    def finish(self) -> Sequence[Chunk]:
        """What remains at the end of the body.

        An error behind what was held back waits for `feed(b"")`, as one behind good chunks does.

        Raises:
            ProviderError: What the decoder raises.
        """
        if self._failure is not None:
            raise self._failure
        out: list[Chunk] = []
        try:
            self._take(self._decoder.finish(), out)
        except ProviderError as e:
            return self._fail(e, out)
        self._release(out)
        return out

    def _fail(self, failure: ProviderError, out: list[Chunk]) -> Sequence[Chunk]:
        self._release(out)
        if not out:
            raise failure
        self._failure = failure
        return out

    def _take(self, chunks: Sequence[Chunk], out: list[Chunk]) -> None:
        for chunk in chunks:
            if isinstance(chunk, Text):
                self._read(chunk.text, out)
            elif isinstance(chunk, UsageChunk):
                out.append(chunk)
            elif isinstance(chunk, Finish):
                out.append(self._close(chunk, out))
            else:
                self._release(out)
                out.append(self._number(chunk) if isinstance(chunk, CallFragment) else chunk)
        self._flowing = self._shown and not self._held and (self._thinking or not self._fresh)

    def _read(self, text: str, out: list[Chunk]) -> None:
        if self._reader is None:
            text = "".join(self._held) + text
            self._held.clear()
            self._scan(text, 0, 0, out)
            return
        calls = self._reader.read(text)
        if calls is None:
            self._held.append(text)
        else:
            self._settle(self._reader, calls, text, out)

    def _settle(self, reader: _Reader, calls: list[CallRequest], text: str, out: list[Chunk]) -> None:
        """Go on behind what was held back for the reader, which knows now."""
        self._reader = None
        text = "".join(self._held) + text
        self._held.clear()
        self._scan(text, *self._pass(reader, calls, text, 0, 0, out), out)

    def _scan(self, text: str, begin: int, at: int, out: list[Chunk]) -> None:
        """Show text from `begin` and search it for calls from `at`."""
        while True:
            start, at, form = self._find(text, at)
            if form is None:
                break
            reader = _Reader(self._tools, form)
            calls = reader.read(text, start, at)
            if calls is None:
                self._reader = reader
                break
            begin, at = self._pass(reader, calls, text, begin, start, out)
        self._show(text[begin:start], out)
        if start < len(text):
            self._held.append(text[start:])

    def _pass(
        self, reader: _Reader, calls: list[CallRequest], text: str, begin: int, start: int, out: list[Chunk]
    ) -> tuple[int, int]:
        """Give the calls of a reader that began at `start`; where to show on and where to search on."""
        size = reader.size
        if calls:
            self._show(text[begin:start], out)
            self._found = True
            for call in calls:
                out.append(CallFragment(self._new_index(), call.id, call.name, call.arguments))
            return start + size, start + size
        # Its text may hold others, or their beginning.
        if self._reread >= size:
            self._reread -= size
            size = 1
        return begin, start + max(size, 1)

    def _find(self, text: str, at: int) -> tuple[int, int, Callable[[_Reader], Reading[list[CallRequest]]] | None]:
        """The next form that may be a call: where it begins, where it is to be read from, and its reader.

        Without one: from where text has to be held back, since a tag may begin there.
        """
        while True:
            if self._thinking:
                end = text.find(_THOUGHT, at)
                if end < 0:
                    return _hold(text, at, (_THOUGHT,)), 0, None
                self._thinking = False
                at = end + len(_THOUGHT)
                continue
            if self._fresh:
                solid = _SOLID.search(text, at)
                if solid is None:
                    return len(text), 0, None
                at = solid.start()
                tag = _OPENING.match(text, at)
                if tag is None and _hold(text, at, _TAGS) == at:
                    return at, 0, None
                if tag is None:
                    self._fresh = False
                    if text[at] in "{[`":
                        return at, at, _Reader.bare
                    continue
            else:
                tag = _OPENING.search(text, at)
                if tag is None:
                    return _hold(text, at, _TAGS), 0, None
            at = tag.end()
            if tag[0] == _THINK:
                self._thinking = self._thought = True
            elif tag[0] == _THOUGHT:
                # Some templates open the thoughts in the prompt.
                self._fresh = not self._thought and not self._found
                self._thought = True
            else:
                self._fresh = False
                return tag.start(), at, _FORMS[tag[0]]

    def _show(self, text: str, out: list[Chunk]) -> None:
        if not text:
            return
        if not self._shown:
            self._blanks.append(text)
            self._blank += len(text)
            if text.isspace() and self._blank <= LIMIT:
                return
            self._shown = True
            text = "".join(self._blanks)
            self._blanks.clear()
            self._blank = 0
        out.append(Text(text))

    def _release(self, out: list[Chunk]) -> None:
        """What is held back is text, but for blanks beside calls."""
        if self._held:
            text = "".join(self._held)
            self._held.clear()
            self._reader = None
            self._fresh = self._fresh and self._thinking
            self._show(text, out)
        elif self._blanks and not self._found:
            out.append(Text("".join(self._blanks)))
            self._blanks.clear()
            self._blank = 0

    def _close(self, finish: Finish, out: list[Chunk]) -> Finish:
        """The end of the message."""
        if finish.reason in ("stop", "tools"):
            while self._reader is not None:
                self._settle(self._reader, self._reader.close(), "", out)
        self._release(out)
        return Finish("tools") if self._found and finish.reason == "stop" else finish

    def _number(self, fragment: CallFragment) -> CallFragment:
        """A fragment of the server's own call, under an index that no other call has."""
        given = fragment.index
        index = self._native.get(given)
        if index is None:
            index = self._native[given] = self._new_index(given)
        return fragment if index == given else CallFragment(index, fragment.id, fragment.name, fragment.arguments)

    def _new_index(self, wanted: int | None = None) -> int:
        index = self._next if wanted is None or wanted in self._indexes else wanted
        self._indexes.add(index)
        self._next = max(self._next, index + 1)
        return index


def _hold(text: str, at: int, tags: Sequence[str]) -> int:
    """From where the end of a text is the beginning of a tag; its length if it is none."""
    begin = max(text.rfind("<", at), text.rfind("[", at))
    if begin >= 0 and len(text) - begin < _LONGEST:
        end = text[begin:]
        if any(tag.startswith(end) for tag in tags):
            return begin
    return len(text)
