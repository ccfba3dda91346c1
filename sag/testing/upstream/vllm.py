"""vLLM: OpenAI's chat with reasoning in it, its own errors, and the context in its list of models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, NoReturn

from sag.testing.upstream.chat import ChatFormat, ChatWriter
from sag.testing.upstream.flavor import CREATED, Flavor
from sag.testing.upstream.request import Request, refuse
from sag.testing.upstream.script import Fail, Json

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_TYPES = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}


class VllmWriter(ChatWriter):
    """Writes vLLM's chunks."""

    head: ClassVar[Json] = {}
    choice: ClassVar[Json] = {"logprobs": None, "stop_reason": None}
    first: ClassVar[Json] = {"role": "assistant", "content": ""}

    def fail(self, fail: Fail) -> bytes:
        return super().fail(fail) + b"data: [DONE]" + self.newline * 2


class VllmFormat(ChatFormat):
    """vLLM's chat: what it does not know it ignores."""

    writes: ClassVar[type[ChatWriter]] = VllmWriter
    shows: ClassVar[bool] = True
    ignores: ClassVar[bool] = True

    def reads_effort(self, body: Json) -> bool:
        template = body.get("chat_template_kwargs") or {}
        on = template.get("enable_thinking", template.get("thinking"))
        shown = body.get("include_reasoning") is not False
        return shown and (bool(on) if on is not None else super().reads_effort(body))


class Vllm(Flavor):
    """vLLM."""

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self.add_format("/v1/chat/completions", VllmFormat(self))
        self.add("GET", "/v1/models", self.list_models)
        self.add("GET", "/version", lambda request, match: {"version": "0.12.0"})

    def check(self, request: Request, path: str) -> None:
        if path.startswith("/v1"):
            super().check(request, path)

    def miss_model(self, model: str) -> NoReturn:
        refuse(f"The model `{model}` does not exist.", 404, param="model")

    def write_error(self, fail: Fail) -> Json:
        if fail.status == 401:
            return {"error": "Unauthorized"}
        kind = fail.type or _TYPES.get(fail.status, "InternalServerError" if fail.status >= 500 else "BadRequestError")
        error = {"message": fail.message, "type": kind, "param": fail.param, "code": fail.status, **fail.members}
        return {"error": error}

    def list_models(self, request: Request, match: re.Match[str]) -> Json:
        each = {
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "parent": None,
            "max_model_len": self.server.max_model_len,
            "permission": [{"id": "modelperm-1", "object": "model_permission", "allow_sampling": True}],
        }
        data = [{"id": id, "root": id, **each, **more} for id, more in self.server.models.items()]
        return {"object": "list", "data": data}
