"""Ollama's OpenAI-compatible side: whole tool calls, reasoning, errors of few types, no tool choice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sag.testing.upstream.chat import ChatFormat, ChatWriter
from sag.testing.upstream.flavor import CREATED, Flavor
from sag.testing.upstream.request import File, Request, refuse
from sag.testing.upstream.script import Calls, Fail, Json, Think

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


class OllamaWriter(ChatWriter):
    """Writes Ollama's chunks: a call whole in one fragment, the reason to finish in a chunk of its own."""

    head: ClassVar[Json] = {"system_fingerprint": "fp_ollama"}
    choice: ClassVar[Json] = {}
    first: ClassVar[Json] = {"role": "assistant", "content": ""}

    def is_whole(self, step: Calls) -> bool:
        return True

    def write_thought(self, step: Think, tokens: list[str]) -> list[bytes]:
        # Content stands beside what is thought, empty.
        pieces = super().write_thought(step, tokens)
        return [piece.replace(b'"delta":{', b'"delta":{"content":"",', 1) for piece in pieces]


class OllamaFormat(ChatFormat):
    """Ollama's chat."""

    writes: ClassVar[type[ChatWriter]] = OllamaWriter
    urls: ClassVar[bool] = False
    shows: ClassVar[bool] = True
    ignores: ClassVar[bool] = True
    choices: ClassVar[bool] = False

    def reads_effort(self, body: Json) -> bool:
        inner = body.get("reasoning") or {}
        effort = body.get("reasoning_effort") or inner.get("effort")
        if effort not in (None, "none", "low", "medium", "high", "max"):
            refuse(f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")')
        return effort not in (None, "none")

    def read_image(self, url: Any, at: str) -> File:
        if isinstance(url, str) and not url.startswith("data:"):
            refuse("invalid image input")
        return super().read_image(url, at)


class Ollama(Flavor):
    """Ollama. It wants no key and ignores any."""

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self.add_format("/v1/chat/completions", OllamaFormat(self))
        self.add("GET", "/v1/models", self.list_models)
        self.add("GET", "/api/version", lambda request, match: {"version": "0.13.3"})

    def check(self, request: Request, path: str) -> None:
        pass

    def miss_model(self, model: str) -> NoReturn:
        refuse(f'model "{model}" not found, try pulling it first', 404)

    def write_error(self, fail: Fail) -> Json:
        kind = fail.type or _TYPES.get(fail.status, "api_error")
        return {"error": {"message": fail.message, "type": kind, "param": None, "code": None, **fail.members}}

    def list_models(self, request: Request, match: re.Match[str]) -> Json:
        each = {"object": "model", "created": CREATED, "owned_by": "library"}
        return {"object": "list", "data": [{"id": id, **each, **more} for id, more in self.server.models.items()]}
