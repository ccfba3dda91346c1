"""A fake of an OpenAI-compatible server: on loopback, scripted, and able to do everything that real ones do wrong.

For tests of providers, of the hub and of what is built on it, and for benchmarks. Plain asyncio on a socket, because
no server library would send what this has to. Nothing reaches beyond loopback.

In a test:

    async with FakeUpstream() as up:
        up.script(say("Hello"), fail(429, code="rate_limit_exceeded", headers={"retry-after": "2"}))
        ...                                     # base URL: up.url
        assert up.requests[0].json["model"] == "fake"

By itself: `python -m sag.testing.upstream --port 0` prints its base URL.

What is not scripted is answered by default: the user's last message comes back word by word. When tools are offered
and that message holds `call NAME {json}` (several are possible), they are called; once their answers are there, the
model repeats them.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

Json = dict[str, Any]
Ending = Literal["open", "done", "cut", "client"]

_HEAD = 64 << 10
_BODY = 64 << 20
_BATCH = 16 << 10
_encode = msgspec.json.Encoder().encode

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CALL = re.compile(r"\bcall ([a-zA-Z0-9_-]{1,64})\s*")
_PARAMS = frozenset(
    {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "reasoning_effort",
        "verbosity",
        "response_format",
        "stop",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "metadata",
        "user",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    }
)
_ROLES = ("developer", "system", "user", "assistant", "tool")


# --- what an answer is made of ---


class Say(Struct):
    """Text of the answer; a string is sent word by word, a list token by token."""

    text: str | list[str]


class Think(Struct):
    """Reasoning; `member` is `reasoning` (vLLM, Ollama, OpenRouter) or `reasoning_content` (DeepSeek, older vLLM)."""

    text: str | list[str]
    member: str = "reasoning"


class ToolCall(Struct):
    """A call; arguments given as text are sent as they are, valid or not."""

    name: str
    arguments: Json | str = field(default_factory=dict)
    id: str | None = None


class Calls(Struct):
    """Tool calls in parallel.

    Attributes:
        calls: The calls.
        chars: Characters of arguments per fragment; 3 cuts inside of escapes.
        interleaved: The fragments of all calls come in turn, told apart by index, else one call after the other.
        whole: Each call comes in one fragment, all under index 0, as from older Ollama.
    """

    calls: list[ToolCall]
    chars: int = 3
    interleaved: bool = True
    whole: bool = False


class Emit(Struct):
    """Any object as an event: an error after 200, Azure's first chunk, a chunk of another vendor."""

    data: Any


class Raw(Struct):
    """Bytes of the body, as they are."""

    data: bytes


class Comment(Struct):
    """Comments, such as OpenRouter's keep-alives; without a count until the client leaves."""

    text: str = "OPENROUTER PROCESSING"
    count: int | None = 1
    every_s: float = 0.0


class LongLine(Struct):
    """One line of so many bytes."""

    size: int


class Wait(Struct):
    """A pause in seconds."""

    seconds: float


class Hang(Struct):
    """Nothing more; the connection stays open until the client leaves."""


class Cut(Struct):
    """The connection ends here: by FIN in the middle of a chunk, or by RST."""

    how: Literal["fin", "rst"] = "fin"


Step = Say | Think | Calls | Emit | Raw | Comment | LongLine | Wait | Hang | Cut


class Script(Struct):
    """One answer.

    Attributes:
        steps: What is streamed, in order.
        status: The HTTP status.
        headers: Further headers; they win over the usual ones.
        body: A whole body instead of a stream.
        before_s: How long nothing happens before the head is sent, as while a model is loaded.
        head: Instead of an HTTP answer: nothing at all, FIN, RST, or bytes that are no HTTP.
        tokens_per_s: The pace; the server's own where it is left out.
        role: Whether a chunk with the role alone comes first.
        finish: The finish_reason; by default `tool_calls` after calls, else `stop`; "" leaves it out.
        usage: Whether the usage chunk comes (if the client asked for it), or the numbers themselves.
        done: Whether `[DONE]` comes.
        newline: The line end of events.
        bom: Whether the body begins with a byte order mark.
        segment: Bytes per write, for bodies that are cut anywhere; 0 for whole events.
        framing: `chunked`, or `close`: the body ends with the connection.
    """

    steps: list[Step] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    before_s: float = 0.0
    head: Literal["send", "hang", "fin", "rst", "garbage"] = "send"
    tokens_per_s: float | None = None
    role: bool = True
    finish: str | None = None
    usage: bool | Json = True
    done: bool = True
    newline: str = "\n"
    bom: bool = False
    segment: int = 0
    framing: Literal["chunked", "close"] = "chunked"


def say(text: str | list[str], **given: Any) -> Script:
    """An answer of text alone; `given` are further members of `Script`."""
    return Script([Say(text)], **given)


def call(name: str, arguments: Json | str | None = None, **given: Any) -> Script:
    """An answer that calls one tool."""
    return Script([Calls([ToolCall(name, arguments if arguments is not None else {})])], **given)


def fail(
    status: int,
    message: str = "It failed.",
    *,
    type: str = "invalid_request_error",
    code: str | int | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Script:
    """An error before the stream, with OpenAI's body."""
    body = {"error": {"message": message, "type": type, "param": param, "code": code}}
    return Script(status=status, headers={"content-type": "application/json", **(headers or {})}, body=_encode(body))


def gzip_bomb(size: int = 50 << 20) -> Script:
    """A small compressed body that becomes `size` bytes."""
    body = gzip.compress(b"data: " + b"0" * size, 9)
    return Script(body=body, headers={"content-type": "text/event-stream", "content-encoding": "gzip"})


class Request:
    """A request as it came.

    Attributes:
        method, path, headers, body: As sent; names of headers in lower case.
        at: When, on the loop's clock.
        ended: `open`, `done` (answered to the end), `cut` (the script cut it), `client` (the client left).
        tokens: How many pieces of text and arguments were sent.
    """

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.at = time.monotonic()
        self.ended: Ending = "open"
        self.tokens = 0
        self._end = asyncio.Event()

    @property
    def json(self) -> Any:
        """The body decoded; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    async def wait_ended(self, timeout: float = 5.0) -> Ending:
        """Wait until the answer has ended.

        Raises:
            TimeoutError: It did not in time (seconds).
        """
        async with asyncio.timeout(timeout):
            await self._end.wait()
        return self.ended

    def _close(self, how: Ending) -> None:
        if self.ended == "open":
            self.ended = how
            self._end.set()


Answer = Callable[[Request], Script | None]


class FakeUpstream:
    """The server.

    Args:
        host, port: Where it listens; port 0 is a free one.
        api_key: If given, other keys get 401.
        models: What `/v1/models` lists; if `strict`, other models get 404.
        strict: Unknown parameters get 400, as from OpenAI; else they are ignored, as by vLLM.
        tokens_per_s: The pace of each stream; None is as fast as the client reads.
        tool_parser: False answers tools with 400, as vLLM does without a parser.
        max_model_len: The context that `/v1/models` tells, as vLLM does; None leaves it out.
        answer: Decides on each chat request; None falls back to the scripts that wait and then to the default.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "",
        models: Sequence[str] = ("fake",),
        strict: bool = False,
        tokens_per_s: float | None = None,
        tool_parser: bool = True,
        max_model_len: int | None = 8192,
        answer: Answer | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.api_key = api_key
        self.models = list(models)
        self.strict = strict
        self.tokens_per_s = tokens_per_s
        self.tool_parser = tool_parser
        self.max_model_len = max_model_len
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.keep_requests = True
        self._scripts: dict[str | None, deque[Script]] = {}
        self._open: set[_Connection] = set()
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._number = 0

    @property
    def url(self) -> str:
        """The base URL, with `/v1`."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def chats(self) -> list[Request]:
        """The chat requests among those that came."""
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    def script(self, *scripts: Script, model: str | None = None) -> None:
        """Queue answers, for one model or for all; each is used once, in order."""
        self._scripts.setdefault(model, deque()).extend(scripts)

    async def wait_requests(self, count: int, timeout: float = 5.0) -> list[Request]:
        """Wait until so many chat requests have come.

        Raises:
            TimeoutError: They did not in time (seconds).
        """
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.chats) >= count)
        return self.chats

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in list(self._open) if (task := connection.drop()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> FakeUpstream:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _choose(self, request: Request) -> Script:
        """What a request is answered with."""
        if self.keep_requests:
            self.requests.append(request)
            async with self._arrived:
                self._arrived.notify_all()
        path = request.path.partition("?")[0]
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return fail(401, "Incorrect API key provided.", code="invalid_api_key")
        if path == "/v1/models" and request.method == "GET":
            return _answer_json(self._list_models())
        if path != "/v1/chat/completions":
            return fail(404, f"Unknown request URL: {request.method} {path}.", code="unknown_url")
        if request.method != "POST":
            return fail(405, "Only POST is allowed.", code="method_not_supported")
        body = request.json
        refusal = self._refuse(request, body)
        if refusal is not None:
            return refusal
        given = self.answer(request) if self.answer is not None else None
        for model in (body["model"], None):
            if given is None and self._scripts.get(model):
                given = self._scripts[model].popleft()
        return given or _answer_default(body)

    def _list_models(self) -> Json:
        extra = {} if self.max_model_len is None else {"max_model_len": self.max_model_len}
        each = {"object": "model", "created": 1_790_000_000, "owned_by": "fake", **extra}
        data = [{"id": model, **each} for model in self.models]
        return {"object": "list", "data": data}

    def _refuse(self, request: Request, body: Any) -> Script | None:
        """The error of a request that breaks the contract, as the real server words it."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return fail(400, "Send application/json.")
        if not isinstance(body, dict):
            return fail(400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str) or not body["model"]:
            return fail(400, "you must provide a model parameter")
        if self.strict and body["model"] not in self.models:
            return fail(404, f"The model `{body['model']}` does not exist.", code="model_not_found")
        if self.strict and (unknown := sorted(set(body) - _PARAMS)):
            return fail(400, f"Unknown parameter: '{unknown[0]}'.", code="unknown_parameter", param=unknown[0])
        if body.get("stream_options") and not body.get("stream"):
            return fail(400, "'stream_options' is only allowed when 'stream' is enabled.", param="stream_options")
        return self._refuse_tools(body) or _refuse_messages(body.get("messages"))

    def _refuse_tools(self, body: Json) -> Script | None:
        tools = body.get("tools")
        if tools is None:
            return None
        if not isinstance(tools, list) or not tools:
            return fail(400, "[] is too short - 'tools'", param="tools", code="empty_array")
        if not self.tool_parser and body.get("tool_choice", "auto") == "auto":
            text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return fail(400, text, type="BadRequestError", code=400)
        for i, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict) or tool.get("type") != "function":
                return fail(400, f"Missing required parameter: 'tools[{i}].function'.", param=f"tools[{i}].function")
            if not _TOOL_NAME.fullmatch(str(function.get("name", ""))):
                where = f"tools[{i}].function.name"
                text = f"Invalid '{where}': string does not match pattern."
                return fail(400, text, code="invalid_value", param=where)
        return None


def _refuse_messages(messages: Any) -> Script | None:
    if not isinstance(messages, list) or not messages:
        return fail(400, "Invalid 'messages': empty array.", param="messages", code="empty_array")
    awaited: list[str] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            expected = ", ".join(repr(one) for one in _ROLES)
            text = f"Invalid value: '{role}'. Supported values are: {expected}."
            return fail(400, text, param=f"{where}.role", code="invalid_value")
        if role == "tool":
            if message.get("tool_call_id") not in awaited:
                text = "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
                return fail(400, f"Invalid parameter: {text}", param=f"{where}.role")
            awaited.remove(message["tool_call_id"])
            continue
        if awaited:
            break
        calls = message.get("tool_calls")
        if role == "assistant" and calls:
            awaited = [str(one.get("id")) for one in calls]
        elif not isinstance(message.get("content"), str | list):
            text = f"Invalid value for 'content': expected a string, got {message.get('content')!r}."
            return fail(400, text, param=f"{where}.content")
    if awaited:
        text = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(awaited)}"
        )
        return fail(400, text, param="messages")
    return None


def _answer_json(body: Json) -> Script:
    return Script(body=_encode(body), headers={"content-type": "application/json"})


def _answer_default(body: Json) -> Script:
    messages = body["messages"]
    answers = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        answers.append(_read_text(message))
    if answers:
        return say(" ".join(reversed(answers)))
    text = next((_read_text(m) for m in reversed(messages) if m["role"] == "user"), "")
    offered = {tool["function"]["name"] for tool in body.get("tools") or ()}
    calls = [one for one in _find_calls(text) if one.name in offered]
    return Script([Calls(calls)]) if calls else say(text)


def _find_calls(text: str) -> list[ToolCall]:
    calls = []
    for match in _CALL.finditer(text):
        arguments: Json = {}
        with suppress(ValueError):
            given, _ = json.JSONDecoder().raw_decode(text, match.end())
            arguments = given if isinstance(given, dict) else {}
        calls.append(ToolCall(match[1], arguments))
    return calls


def _read_text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return str(content)


def _split(text: str | list[str]) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or ([text] if text else []) if isinstance(text, str) else text


class _Envelope:
    """Writes the chunks of one stream, cheaply."""

    def __init__(self, number: int, model: str, newline: bytes, with_usage: bool) -> None:
        self._head: Json = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion.chunk",
            "created": 1_790_000_000,
            "model": model,
            "system_fingerprint": "fp_fake",
        }
        self._end = newline * 2
        self._number = number
        self._null = {"usage": None} if with_usage else {}
        sample = self.delta({"X": 0})
        before, after = sample.split(b'{"X":0}')
        self._before, self._after = before, after

    def event(self, data: Any) -> bytes:
        return b"data: " + _encode(data) + self._end

    def delta(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.event({**self._head, "choices": [choice], **self._null})

    def text(self, member: bytes, text: str) -> bytes:
        return b'%b{"%b":%b}%b' % (self._before, member, _encode(text), self._after)

    def usage(self, usage: Json) -> bytes:
        return self.event({**self._head, "choices": [], "usage": usage})

    def tokens(self, step: Say | Think | Calls, first: int) -> list[bytes]:
        """The chunks of a step; the indexes of calls begin at `first`."""
        if isinstance(step, Calls):
            return self._fragments(step, first)
        member = b"content" if isinstance(step, Say) else step.member.encode()
        return [self.text(member, token) for token in _split(step.text)]

    def _fragments(self, step: Calls, first: int) -> list[bytes]:
        rows: list[list[bytes]] = []
        for i, one in enumerate(step.calls, first):
            arguments = one.arguments if isinstance(one.arguments, str) else json.dumps(one.arguments)
            id = one.id or f"call_{self._number}_{i}"
            index = 0 if step.whole else i
            cuts = [arguments] if step.whole else ["", *_cut(arguments, step.chars)]
            row = []
            for n, cut in enumerate(cuts):
                function: Json = {"arguments": cut} if n else {"name": one.name, "arguments": cut}
                head = {} if n else {"id": id, "type": "function"}
                row.append(self.delta({"tool_calls": [{"index": index, **head, "function": function}]}))
            rows.append(row)
        if not step.interleaved:
            return [chunk for row in rows for chunk in row]
        longest = max(map(len, rows), default=0)
        return [row[n] for n in range(longest) for row in rows if n < len(row)]


def _cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


class _Gone(Exception):
    """The script ends the connection."""


class _Connection(asyncio.Protocol):
    """One connection: requests in turn, each answered by a task that ends when the client leaves."""

    def __init__(self, server: FakeUpstream) -> None:
        self._server = server
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._script = Script()
        self._held: list[bytes] = []
        self._held_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1
        self._server._open.add(self)

    def connection_lost(self, e: Exception | None) -> None:
        self._server._open.discard(self)
        if self._request is not None:
            self._request._close("client")
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.startswith(b"\x16\x03"):
            # A TLS client; it gets no further, as with any server that speaks plain HTTP.
            self._transport.abort()
            return
        if self._task is None:
            self._next()

    def drop(self) -> asyncio.Task[None] | None:
        """Close, and give the task that is ending."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _next(self) -> None:
        request = self._parse()
        if request is not None:
            self._request = request
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    def _parse(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD:
                self._transport.abort()
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, rest = first.partition(" ")
        size = int(headers.get("content-length", "0"))
        if size > _BODY or "transfer-encoding" in headers:
            self._transport.abort()
            return None
        if len(self._buffer) < end + 4 + size:
            return None
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        return Request(method, rest.rpartition(" ")[0], headers, body)

    async def _serve(self, request: Request) -> None:
        try:
            await self._answer(request, await self._server._choose(request))
            request._close("done")
        except _Gone:
            request._close("cut")
        except asyncio.CancelledError:
            request._close("client")
        except Exception:
            request._close("cut")
            self._transport.abort()
            raise
        finally:
            self._task = self._request = None
        if not self._transport.is_closing() and self._buffer:
            self._next()

    async def _answer(self, request: Request, script: Script) -> None:
        self._script = script
        if script.before_s:
            await asyncio.sleep(script.before_s)
        if script.head != "send":
            await self._misbehave(script.head)
        streams = script.body is None and bool(request.json.get("stream"))
        body = script.body
        if body is None and not streams:
            body = _encode(_complete(script, request.json))
        headers = {
            "date": "Sat, 21 Nov 2026 12:00:00 GMT",
            "content-type": "text/event-stream; charset=utf-8" if streams else "application/json",
            "x-request-id": f"req_{len(self._server.requests)}",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
            "x-ratelimit-reset-requests": "6ms",
        }
        if body is not None:
            headers["content-length"] = str(len(body))
        elif script.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        else:
            headers["connection"] = "close"
        headers |= {name.lower(): value for name, value in script.headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {script.status} Status\r\n{lines}\r\n".encode("latin-1", "replace")
        if body is not None:
            await self._write(head + body if len(body) < _BATCH else head)
            for i in range(0, len(body) if len(body) >= _BATCH else 0, _BATCH):
                await self._write(body[i : i + _BATCH])
            return
        self._transport.write(head)
        await self._stream(request, script)

    async def _misbehave(self, how: str) -> None:
        if how == "hang":
            await asyncio.Event().wait()
        if how == "garbage":
            self._transport.write(b"\x15\x03\x01\x00\x02\x02\x16 this is no HTTP\r\n\r\n")
        if how == "rst":
            self._reset()
        self._transport.close()
        raise _Gone

    async def _stream(self, request: Request, script: Script) -> None:
        body = request.json
        self._server._number += 1
        number = self._server._number
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        write = _Envelope(number, body["model"], script.newline.encode(), with_usage)
        if script.bom:
            await self._send(b"\xef\xbb\xbf")
        if script.role:
            await self._send(write.delta({"role": "assistant", "content": None, "refusal": None}))
        rate = script.tokens_per_s or self._server.tokens_per_s
        clock = asyncio.get_running_loop().time
        due = clock()
        calls = 0
        for step in script.steps:
            if not isinstance(step, Say | Think | Calls):
                await self._do(step, write)
                continue
            for chunk in write.tokens(step, calls):
                if rate:
                    await self._flush()
                    due += 1 / rate
                    if (wait := due - clock()) > 0:
                        await asyncio.sleep(wait)
                request.tokens += 1
                await self._send(chunk)
                if rate:
                    await self._flush()
            if isinstance(step, Calls):
                calls += len(step.calls)
        finish = script.finish if script.finish is not None else "tool_calls" if calls else "stop"
        if finish:
            await self._send(write.delta({}, finish))
        if script.usage and with_usage:
            given = script.usage if isinstance(script.usage, dict) else _count(body, request.tokens)
            await self._send(write.usage(given))
        if script.done:
            await self._send(b"data: [DONE]" + script.newline.encode() * 2)
        await self._flush()
        if script.framing == "chunked":
            self._transport.write(b"0\r\n\r\n")
        else:
            self._transport.close()

    async def _do(self, step: Emit | Raw | Comment | LongLine | Wait | Hang | Cut, write: _Envelope) -> None:
        if isinstance(step, Emit):
            await self._send(write.event(step.data))
        elif isinstance(step, Raw):
            await self._send(step.data)
        elif isinstance(step, Comment):
            sent = 0
            while step.count is None or sent < step.count:
                await self._send(b": " + step.text.encode() + self._script.newline.encode() * 2)
                await self._flush()
                await asyncio.sleep(step.every_s)
                sent += 1
        elif isinstance(step, LongLine):
            await self._send(b"data: ")
            for left in range(step.size, 0, -_BATCH):
                await self._send(b"x" * min(left, _BATCH))
        else:
            await self._flush()
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Hang):
                await asyncio.Event().wait()
            else:
                await self._cut(step)

    async def _cut(self, step: Cut) -> None:
        if step.how == "rst":
            self._reset()
        else:
            # A chunk is announced and half of it sent.
            self._transport.write(b"40\r\ndata: {" if self._script.framing == "chunked" else b"data: {")
            self._transport.close()
        raise _Gone

    def _reset(self) -> None:
        handle: socket.socket = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _send(self, data: bytes) -> None:
        """Send a piece of the body. As fast as may be, several go in one write."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= _BATCH:
            await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        if not data:
            return
        size = self._script.segment
        pieces = _pieces(data, size) if size else [data]
        for piece in pieces:
            await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._script.framing == "chunked" else piece)
            if size:
                await asyncio.sleep(0)

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise asyncio.CancelledError
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def _count(body: Json, tokens: int) -> Json:
    asked = sum(len(_read_text(message).split()) + 3 for message in body["messages"])
    return {
        "prompt_tokens": asked,
        "completion_tokens": tokens,
        "total_tokens": asked + tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _complete(script: Script, body: Json) -> Json:
    """The answer to a request that does not want a stream."""
    text = "".join("".join(_split(step.text)) for step in script.steps if isinstance(step, Say))
    calls = [
        {
            "id": one.id or f"call_{i}",
            "type": "function",
            "function": {
                "name": one.name,
                "arguments": one.arguments if isinstance(one.arguments, str) else json.dumps(one.arguments),
            },
        }
        for i, one in enumerate(one for step in script.steps if isinstance(step, Calls) for one in step.calls)
    ]
    message: Json = {"role": "assistant", "content": text or None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    finish = script.finish if script.finish is not None else "tool_calls" if calls else "stop"
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": _count(body, len(text.split())),
    }


async def _run(upstream: FakeUpstream) -> None:
    async with upstream:
        print(upstream.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sag.testing.upstream", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is a free one; the address is printed")
    parser.add_argument("--api-key", default="", help="refuse other keys")
    parser.add_argument("--model", action="append", help="a model to list; may be given several times")
    parser.add_argument("--strict", action="store_true", help="refuse unknown parameters and models")
    parser.add_argument("--tokens-per-s", type=float, default=None, help="of each stream; else as fast as may be")
    parser.add_argument("--tokens", type=int, default=None, help="answer everything with so many tokens")
    given = parser.parse_args()
    answer: Answer | None = None
    if given.tokens is not None:
        text = [f" tok{i % 10}" for i in range(given.tokens)]
        answer = lambda request: Script([Say(text)])  # noqa: E731
    upstream = FakeUpstream(
        host=given.host,
        port=given.port,
        api_key=given.api_key,
        models=given.model or ["fake"],
        strict=given.strict,
        tokens_per_s=given.tokens_per_s,
        answer=answer,
    )
    upstream.keep_requests = False
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(upstream))


if __name__ == "__main__":
    main()
