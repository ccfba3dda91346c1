"""The provider: what is sent for a model round, to OpenAI and to servers that speak like it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sag.plugin import Decoder, HttpRequest, Message, Model, ModelRequest, ProviderError, to_unicode
from sag_openai.decoder import ChatDecoder
from sag_openai.failure import read_error

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode


class ChatProvider:
    """Chat completions over HTTP (`sag.plugin.HttpProvider`).

    Args:
        name: The provider's name.
        base_url: With its `/v1`, without a slash at the end.
        api_key: Empty where the server wants none; then no Authorization is sent.
        models: The models that are known without asking.
        default: Whether its model is the one to use where nobody chose another.
        headers: Sent with every request.
        max_tokens_name: The member that limits the answer; OpenAI's reasoning models want `max_completion_tokens`.
        reasoning_name: Send the model's thoughts back under this name with what called tools, as DeepSeek demands it
            (`reasoning_content`); empty for not at all.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str = "",
        models: Sequence[Model] = (),
        *,
        default: bool = False,
        headers: Mapping[str, str] | None = None,
        max_tokens_name: str = "max_tokens",
        reasoning_name: str = "",
    ) -> None:
        self.name = name
        self.base_url = base_url
        self.default = default
        self.headers = dict(headers or {})
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self._key = api_key
        self._models = list(models)
        self._max_tokens_name = max_tokens_name
        self._reasoning_name = reasoning_name

    def prepare(self, request: ModelRequest) -> HttpRequest:
        """The request of one round; sampling members only where somebody set them."""
        body: Json = {
            "model": request.model,
            "messages": [self._write(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.input},
                }
                for tool in request.tools
            ]
        members = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            self._max_tokens_name: request.max_tokens,
            "stop": request.stop,
            "seed": request.seed,
            "reasoning_effort": request.reasoning,
        }
        body |= {name: value for name, value in members.items() if value is not None}
        body |= request.extra
        try:
            data = _encode(body)
        except UnicodeEncodeError:
            # Half surrogates in a transcript.
            data = to_unicode(json.dumps(body, ensure_ascii=False)).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **self.headers}
        return HttpRequest(f"{self.base_url}/chat/completions", data, headers)

    def decoder(self, request: ModelRequest) -> Decoder:
        """A decoder for one answer."""
        return ChatDecoder(self._key)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error of an answer that is not 2xx, or of JSON with an error that came instead of a stream."""
        return read_error(status, headers, body, self._key)

    def models(self) -> Sequence[Model]:
        """The configured model, if there is one."""
        return self._models

    def _write(self, message: Message) -> Json:
        if message.role == "tool":
            return {"role": "tool", "tool_call_id": message.call, "content": message.text}
        if not message.calls:
            return {"role": message.role, "content": message.text}
        written: Json = {
            "role": message.role,
            "content": message.text or None,
            "tool_calls": [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
                for call in message.calls
            ],
        }
        if self._reasoning_name:
            written[self._reasoning_name] = "".join(thought.text for thought in message.thoughts)
        return written


def _json(arguments: str) -> str:
    """Arguments that are JSON: chat templates of several servers parse them, and refuse the whole conversation else."""
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return json.dumps({"invalid_json": arguments}, ensure_ascii=False)
    return arguments or "{}"
