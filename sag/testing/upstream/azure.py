"""Azure OpenAI: both generations of its address, its keys, its content filter, its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NoReturn

from sag.testing.upstream.chat import ChatFormat, ChatWriter
from sag.testing.upstream.flavor import CREATED, Flavor, Reply, read_query
from sag.testing.upstream.openai import write_error
from sag.testing.upstream.request import Request, refuse
from sag.testing.upstream.responses import ResponsesFormat
from sag.testing.upstream.script import Fail, Json

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_STREAM_OPTIONS = "2024-09-01-preview"  # the first version that takes them
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_KEY = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
    "active subscription and use a correct regional API endpoint for your resource."
)
_TOKEN = (
    "Unauthorized. Access token is missing, invalid, audience is incorrect (https://cognitiveservices.azure.com), or "
    "have expired."
)
_DEPLOYMENT = (
    "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, "
    "please wait a moment and try again."
)


class AzureWriter(ChatWriter):
    """Writes Azure's chunks: the filter's word on the prompt first, then one on each piece."""

    choice: ClassVar[Json] = {"logprobs": None, "content_filter_results": {}}
    first: ClassVar[Json] = {"role": "assistant", "content": "", "refusal": None}

    @property
    def _prompt(self) -> Json:
        return {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE}]}

    def open(self) -> bytes:
        if not self.script.role:
            return b""
        empty = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        return self.event({**empty, **self._prompt}) + super().open()

    def finished(self) -> Json:
        if self.finish != "content_filter":
            return {}
        return {"content_filter_results": _SAFE | {"hate": {"filtered": True, "severity": "high"}}}

    def whole(self) -> Json:
        return super().whole() | self._prompt


class AzureFormat(ChatFormat):
    """Azure's chat."""

    writes: ClassVar[type[ChatWriter]] = AzureWriter


class Azure(Flavor):
    """Azure OpenAI; the models are its deployments."""

    prefix: ClassVar[str] = ""

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self._chat = AzureFormat(self)
        self.add("POST", "/openai/deployments/{deployment}/chat/completions", self._ask_deployment)
        self.add_format("/openai/v1/chat/completions", self._chat)
        responses = ResponsesFormat(self)
        for base in ("/openai/v1", "/openai"):
            self.add_format(f"{base}/responses", responses)
            self.add("GET", f"{base}/responses/{{id}}", responses.fetch)
            self.add("GET", f"{base}/models", self.list_models)

    def check(self, request: Request, path: str) -> None:
        key, token = self.server.api_key, self.server.access_token
        current = path.startswith("/openai/v1/")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        sent = request.headers.get("api-key")
        if sent is None and not bearer:
            refuse(_KEY, 401)
        if key and sent is not None and sent != key:
            refuse(_KEY, 401)
        # On the newer address a key may come the way OpenAI's own does.
        taken = {token, key} if current else {token}
        if (key or token) and sent is None and bearer not in taken - {""}:
            refuse(_TOKEN, 401)
        if not current:
            version = read_query(request).get("api-version", "")
            if not _VERSION.fullmatch(version):
                refuse("Resource not found", 404)

    def miss(self, request: Request, path: str) -> NoReturn:
        refuse("Resource not found", 404)

    def miss_model(self, model: str) -> NoReturn:
        refuse(_DEPLOYMENT, 404, code="DeploymentNotFound")

    def headers(self, status: int, given: Mapping[str, str]) -> dict[str, str]:
        out = {
            "apim-request-id": f"00000000-0000-4000-8000-{self.server.number:012d}",
            "x-request-id": f"11111111-1111-4111-8111-{self.server.number:012d}",
            "x-ms-region": "Sweden Central",
            "x-ratelimit-remaining-requests": "0" if status == 429 else "99",
            "x-ratelimit-remaining-tokens": "0" if status == 429 else "99000",
        }
        wait = {name.lower(): value for name, value in given.items()}.get("retry-after", "")
        if re.fullmatch(r"\d+(\.\d+)?", wait):
            out["retry-after-ms"] = str(round(float(wait) * 1000))
        return out

    def write_error(self, fail: Fail) -> Json:
        if fail.code == "content_filter":
            filtered = _SAFE | {
                "hate": {"filtered": True, "severity": "high"},
                "jailbreak": {"filtered": False, "detected": False},
            }
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": filtered}
            error = {"message": fail.message, "type": None, "param": "prompt", "code": fail.code}
            return {"error": {**error, "status": fail.status, "innererror": inner, **fail.members}}
        if fail.status in (401, 404, 429):
            return {"error": {"code": str(fail.code or fail.status), "message": fail.message, **fail.members}}
        return write_error(fail)

    def list_models(self, request: Request, match: re.Match[str]) -> Json:
        each = {
            "object": "model",
            "status": "succeeded",
            "lifecycle_status": "generally-available",
            "capabilities": {"chat_completion": True, "inference": True, "fine_tune": False, "embeddings": False},
            "created_at": CREATED,
        }
        return {"object": "list", "data": [{"id": id, **each, **more} for id, more in self.server.models.items()]}

    def _ask_deployment(self, request: Request, match: re.Match[str]) -> Reply:
        version = read_query(request)["api-version"]
        if version < _STREAM_OPTIONS and "stream_options" in self.read_body(request):
            refuse("Unrecognized request argument supplied: stream_options")
        return self.ask(request, self._chat, model=match["deployment"])
