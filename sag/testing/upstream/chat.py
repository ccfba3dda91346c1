"""Chat completions, as OpenAI has them; the modules of other vendors change what is theirs."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from sag.testing.upstream.flavor import CREATED
from sag.testing.upstream.request import (
    Asked,
    File,
    check_types,
    count_tokens,
    quote,
    read_base64,
    read_data_url,
    refuse,
)
from sag.testing.upstream.script import Calls, Fail, Json, Refusal, Script, Think, Token, cut, join, split
from sag.testing.upstream.writer import Format, Writer, encode, write_arguments

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ROLES = ("developer", "system", "user", "assistant", "tool")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_PARTS = {
    "user": ("text", "image_url", "input_audio", "file"),
    "assistant": ("text", "refusal"),
    "tool": ("text",),
    "system": ("text",),
    "developer": ("text",),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "tools": (list,),
    "stream_options": (dict,),
    "reasoning": (dict,),
    "chat_template_kwargs": (dict,),
    "temperature": (int, float),
    "top_p": (int, float),
    "max_tokens": (int,),
    "max_completion_tokens": (int,),
}
_PARAMS = frozenset(
    """
    model messages tools tool_choice parallel_tool_calls stream stream_options temperature top_p max_tokens
    max_completion_tokens reasoning_effort verbosity response_format stop seed n logprobs top_logprobs prompt_cache_key
    prompt_cache_retention safety_identifier service_tier store metadata user presence_penalty frequency_penalty
    logit_bias prediction modalities audio web_search_options
    """.split()  # noqa: SIM905
)


class ChatWriter(Writer):
    """Writes chunks, the text ones from a template.

    Attributes:
        prefix: What ids begin with.
        reasoning: Where reasoning stands.
        head: Further members of each chunk.
        choice: Further members of each choice.
        first: The delta that comes first.
        always_usage: Usage is told whether it was asked for or not.
    """

    prefix: ClassVar[str] = "chatcmpl-"
    reasoning: ClassVar[str] = "reasoning"
    head: ClassVar[Json] = {"system_fingerprint": "fp_fake"}
    choice: ClassVar[Json] = {"logprobs": None}
    first: ClassVar[Json] = {"role": "assistant", "content": None, "refusal": None}
    always_usage: ClassVar[bool] = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        options = self.body.get("stream_options") or {}
        self._wants_usage = self.always_usage or bool(options.get("include_usage"))
        self.id = f"{self.prefix}{self.number}"
        null: Json = {"usage": None} if self._wants_usage and not self.always_usage else {}
        if self.flavor.server.strict and options.get("include_obfuscation", True):
            null["obfuscation"] = "hTq3Zx"
        self._envelope = {"id": self.id, "object": "chat.completion.chunk", "created": CREATED, "model": self.model}
        self._envelope |= self.head
        self._null = null
        self._ending = self.newline * 2
        self._before, self._after = self.delta({"X": 0}).split(b'{"X":0}')
        self._text: list[str] = []
        self.thought: dict[str, str] = {}
        self._refused = ""
        self._calls: list[Json] = []

    def event(self, data: Any) -> bytes:
        return b"data: " + encode(data) + self._ending

    def delta(self, delta: Json, finish: str | None = None, **more: Any) -> bytes:
        """A chunk."""
        choices = [{"index": 0, "delta": delta, **self.choice, "finish_reason": finish, **more}]
        return self.event({**self._envelope, "choices": choices, **self._null})

    def open(self) -> bytes:
        return self.delta(self.first) if self.script.role else b""

    def write(self, step: Token) -> list[bytes]:
        if isinstance(step, Calls):
            self.called = True
            return self.write_calls(step)
        tokens = split(step.text)
        self.tokens += len(tokens)
        if isinstance(step, Think):
            self.thoughts += len(tokens)
            return self.write_thought(step, tokens)
        if isinstance(step, Refusal):
            self._refused += step.text
            return self.write_text("refusal", tokens)
        self._text += tokens
        return self.write_text("content", tokens)

    def write_text(self, member: str, tokens: list[str]) -> list[bytes]:
        """A chunk for each token, under one member of the delta."""
        before = self._before + b'{"%b":' % member.encode()
        after = b"}" + self._after
        return [before + encode(token) + after for token in tokens]

    def write_thought(self, step: Think, tokens: list[str]) -> list[bytes]:
        """The chunks of a thought."""
        if step.redacted:
            return []
        member = step.member or self.reasoning
        self.thought[member] = self.thought.get(member, "") + join(step.text)
        return self.write_text(member, tokens)

    def write_calls(self, step: Calls) -> list[bytes]:
        """The fragments of calls; their indexes go on from those before."""
        rows: list[list[bytes]] = []
        for i, one in enumerate(step.calls, len(self._calls)):
            arguments = write_arguments(one)
            id = one.id or f"call_{self.number}_{i}"
            head = {"id": id, "type": "function"}
            self._calls.append({**head, "function": {"name": one.name, "arguments": arguments}})
            index = 0 if step.whole else i
            cuts = [arguments] if self.is_whole(step) else ["", *cut(arguments, step.chars)]
            rows.append([self._fragment(index, head, one.name, cuts[0])])
            rows[-1] += [self._fragment(index, {}, None, piece) for piece in cuts[1:]]
        longest = max(map(len, rows), default=0)
        if step.interleaved:
            pieces = [row[n] for n in range(longest) for row in rows if n < len(row)]
        else:
            pieces = [piece for row in rows for piece in row]
        self.tokens += len(pieces)
        return pieces

    def is_whole(self, step: Calls) -> bool:
        """Whether a call comes in one fragment."""
        return step.whole

    def _fragment(self, index: int, head: Json, name: str | None, arguments: str) -> bytes:
        function: Json = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
        return self.delta({"tool_calls": [{"index": index, **head, "function": function}]})

    def fail(self, fail: Fail) -> bytes:
        return self.event(self.flavor.write_error(fail))

    def close(self) -> bytes:
        out = self.delta({}, self.finish, **self.finished()) if self.finish else b""
        if self.script.usage and self._wants_usage:
            out += self.event({**self._envelope, "choices": [], "usage": self.write_usage()})
        if self.script.done:
            out += b"data: [DONE]" + self._ending
        return out

    def finished(self) -> Json:
        """Further members of the choice that finishes."""
        return {}

    def write_usage(self) -> Json:
        """Usage in the words of this format."""
        if isinstance(self.script.usage, dict):
            return self.script.usage
        usage = self.usage
        sent = usage.input + usage.cached + usage.cache_write
        cached = {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write, "audio_tokens": 0}
        return {
            "prompt_tokens": sent,
            "completion_tokens": usage.output,
            "total_tokens": sent + usage.output,
            "prompt_tokens_details": cached,
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": 0},
        }

    def whole(self) -> Json:
        choice = {"index": 0, "message": self.message(), **self.choice, "finish_reason": self.finish or None}
        answer = {**self._envelope, "object": "chat.completion", "choices": [choice | self.finished()]}
        if self.script.usage:
            answer["usage"] = self.write_usage()
        return answer

    def message(self) -> Json:
        """The assistant's message."""
        message: Json = {"role": "assistant", "content": "".join(self._text) or None, "refusal": self._refused or None}
        message |= self.thought
        if self._calls:
            message["tool_calls"] = self._calls
        return message


class ChatFormat(Format):
    """Chat completions: what is accepted, and what is refused in the words of the real server."""

    writes: ClassVar[type[ChatWriter]] = ChatWriter
    urls: ClassVar[bool] = True  # images may be given by their address
    shows: ClassVar[bool] = False  # OpenAI counts what is thought, and does not show it
    choices: ClassVar[bool] = True  # there is a tool choice
    ignores: ClassVar[bool] = False  # what is not known is ignored, however strict the server

    def read(self, body: Json) -> Asked:
        check_types(body, _TYPES, "Invalid type for '{name}': expected {types}.")
        server = self.flavor.server
        if server.strict and not self.ignores and (unknown := sorted(set(body) - _PARAMS)):
            refuse(f"Unknown parameter: '{unknown[0]}'.", code="unknown_parameter", param=unknown[0])
        if body.get("stream_options") and not body.get("stream"):
            refuse("'stream_options' is only allowed when 'stream' is enabled.", param="stream_options")
        if body["model"] in server.reasoning_models:
            self._refuse_sampling(body)
        asked = Asked(thinks=self.reads_effort(body), shows=self.shows)
        self._read_tools(body, asked)
        self._read_messages(body.get("messages"), asked)
        asked.transcript = body["messages"]
        asked.input = count_tokens(asked.transcript, body.get("tools")) + 3
        return asked

    def reads_effort(self, body: Json) -> bool:
        """Whether reasoning is turned on."""
        effort = body.get("reasoning_effort")
        if effort is not None and effort not in EFFORTS:
            text = f"Invalid value: '{effort}'. Supported values are: {quote(EFFORTS)}."
            refuse(text, param="reasoning_effort", code="invalid_value")
        return effort not in (None, "none")

    def writer(self, body: Json, asked: Asked, script: Script, number: int) -> Writer:
        return self.writes(self.flavor, body, asked, script, number)

    def _refuse_sampling(self, body: Json) -> None:
        if body.get("max_tokens") is not None:
            text = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            )
            refuse(text, param="max_tokens", code="unsupported_parameter")
        for name in ("temperature", "top_p"):
            if body.get(name) not in (None, 1):
                text = (
                    f"Unsupported value: '{name}' does not support {body[name]} with this model. Only 1 is supported."
                )
                refuse(text, param=name, code="unsupported_value")

    def _read_tools(self, body: Json, asked: Asked) -> None:
        tools = body.get("tools")
        if tools is None:
            for name in ("tool_choice", "parallel_tool_calls"):
                if body.get(name) not in (None, "none") and self.flavor.server.strict and not self.ignores:
                    refuse(f"'{name}' is only allowed when 'tools' are specified.", param=name)
            return
        if not tools:
            refuse("[] is too short - 'tools'", param="tools", code="empty_array")
        self.check_choice(body)
        for i, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict) or tool.get("type") != "function":
                refuse(f"Missing required parameter: 'tools[{i}].function'.", param=f"tools[{i}].function")
            if not _TOOL_NAME.fullmatch(str(function.get("name", ""))):
                where = f"tools[{i}].function.name"
                refuse(f"Invalid '{where}': string does not match pattern.", code="invalid_value", param=where)
            asked.tools.append(function["name"])
        if self.choices:
            asked.choice = self._read_choice(body.get("tool_choice"), asked.tools)

    def check_choice(self, body: Json) -> None:
        """Refuse tools that this server cannot offer a model."""
        if not self.flavor.server.tool_parser and body.get("tool_choice", "auto") == "auto":
            text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            refuse(text, type="BadRequestError", code=400)

    def _read_choice(self, choice: Any, tools: list[str]) -> str:
        if choice in (None, "auto", "none", "required"):
            return choice or "auto"
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in tools:
            refuse(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
        return str(name)

    def _read_messages(self, messages: Any, asked: Asked) -> None:
        if not messages:
            refuse("Invalid 'messages': empty array.", param="messages", code="empty_array")
        awaited: list[str] = []
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            role = message.get("role") if isinstance(message, dict) else None
            if role not in _ROLES:
                text = f"Invalid value: '{role}'. Supported values are: {quote(_ROLES)}."
                refuse(text, param=f"{where}.role", code="invalid_value")
            if role == "tool":
                if message.get("tool_call_id") not in awaited:
                    text = "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
                    refuse(f"Invalid parameter: {text}", param=f"{where}.role")
                awaited.remove(message["tool_call_id"])
                asked.answers.append(self._read_content(message, where, asked))
                continue
            if awaited:
                break
            asked.answers.clear()
            self.check_message(message, where)
            check_types(message, {"tool_calls": (list,)}, f"Invalid type for '{where}.{{name}}': expected {{types}}.")
            calls = message.get("tool_calls")
            if role == "assistant" and calls:
                awaited = [_read_call(one, f"{where}.tool_calls[{n}]") for n, one in enumerate(calls)]
                if message.get("content") is None:
                    continue
            if role == "assistant" and isinstance(message.get("refusal"), str):
                continue
            text = self._read_content(message, where, asked)
            if role == "user":
                asked.text = text
        if awaited:
            text = (
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(awaited)}"
            )
            refuse(text, param="messages")

    def check_message(self, message: Json, where: str) -> None:
        """Refuse what this vendor does not take in a message."""

    def _read_content(self, message: Json, where: str, asked: Asked) -> str:
        content = message.get("content")
        if isinstance(content, str):
            return content
        where = f"{where}.content"
        if not isinstance(content, list) or not content:
            refuse(f"Invalid value for 'content': expected a string, got {content!r}.", param=where)
        texts = []
        allowed = _PARTS[message["role"]]
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            at = f"{where}[{i}]"
            if kind not in allowed:
                text = f"Invalid value: '{kind}'. Supported values are: {quote(allowed)}."
                refuse(text, param=f"{at}.type", code="invalid_value")
            if kind in ("text", "refusal"):
                if not isinstance(part.get(kind), str):
                    refuse(f"Missing required parameter: '{at}.{kind}'.", param=f"{at}.{kind}")
                texts.append(part[kind])
                continue
            inner = part.get(kind)
            if not isinstance(inner, dict):
                refuse(f"Missing required parameter: '{at}.{kind}'.", param=f"{at}.{kind}")
            asked.files.append(self._read_file(str(kind), inner, f"{at}.{kind}"))
        return "".join(texts)

    def _read_file(self, kind: str, inner: Json, at: str) -> File:
        if kind == "image_url":
            return self.read_image(inner.get("url"), f"{at}.url")
        if kind == "input_audio":
            data = read_base64(inner.get("data"))
            if data is None or inner.get("format") not in ("wav", "mp3"):
                refuse(f"Invalid '{at}': expected base64 data and the format 'wav' or 'mp3'.", param=at)
            return File(f"audio/{inner['format']}", data)
        name = inner.get("filename")
        if isinstance(inner.get("file_id"), str):
            return File("", source=inner["file_id"])
        given = read_data_url(inner.get("file_data"))
        if given is None or not isinstance(name, str) or not name:
            text = f"Invalid '{at}': expected 'filename' and 'file_data' as a data URL with base64, or 'file_id'."
            refuse(text, param=f"{at}.file_data", code="invalid_value")
        return File(*given, name)

    def read_image(self, url: Any, at: str) -> File:
        """An image, from its data URL or its address."""
        given = read_data_url(url)
        if given is None and self.urls and isinstance(url, str) and url.startswith(("http://", "https://")):
            return File("", source=url)
        if given is None or not given[0].startswith("image/"):
            text = f"Invalid '{at}': expected a base64-encoded data URL with an image MIME type."
            refuse(text, param=at, code="invalid_image_url")
        return File(*given)


def _read_call(call: Any, at: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not call.get("id"):
        refuse(f"Missing required parameter: '{at}.function.name' or '{at}.id'.", param=at)
    if not isinstance(function.get("arguments"), str):
        refuse(f"Invalid type for '{at}.function.arguments': expected a string.", param=f"{at}.function.arguments")
    return str(call["id"])
