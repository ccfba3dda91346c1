"""OpenAI's own server: chat completions, Responses, models. What calls itself compatible with it is a subclass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from sag.testing.upstream.chat import ChatFormat
from sag.testing.upstream.flavor import Flavor
from sag.testing.upstream.responses import ResponsesFormat
from sag.testing.upstream.script import Fail, Json

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_TYPES = {429: "requests", 503: "service_unavailable_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def write_error(fail: Fail) -> Json:
    """The error object as OpenAI has it."""
    code = fail.code if fail.code is not None else _CODES.get(fail.status)
    kind = fail.type or _TYPES.get(fail.status, "server_error" if fail.status >= 500 else "invalid_request_error")
    if not fail.type and code == "insufficient_quota":
        kind = "insufficient_quota"
    return {"error": {"message": fail.message, "type": kind, "param": fail.param, "code": code, **fail.members}}


class OpenAI(Flavor):
    """OpenAI. Unless the server is strict it is as lenient as those that are compatible with it."""

    knows_models: ClassVar[bool] = False

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self.add_format("/v1/chat/completions", ChatFormat(self))
        self.add("GET", "/v1/models", self.list_models)
        responses = ResponsesFormat(self)
        self.add_format("/v1/responses", responses)
        self.add("GET", "/v1/responses/{id}", responses.fetch)

    def headers(self, status: int, given: Mapping[str, str]) -> dict[str, str]:
        left = "0" if status == 429 else "9999"
        tokens = "0" if status == 429 else "149000"
        return {
            "x-request-id": f"req_{self.server.number}",
            "openai-processing-ms": "12",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-requests": left,
            "x-ratelimit-remaining-tokens": tokens,
            "x-ratelimit-reset-requests": "6ms",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    def write_error(self, fail: Fail) -> Json:
        return write_error(fail)
