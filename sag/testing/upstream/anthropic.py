"""Anthropic's server: keys, headers, errors, the list of models and the counting of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NoReturn

from sag.testing.upstream.flavor import Flavor, read_query
from sag.testing.upstream.messages import EFFORTS, MessagesFormat
from sag.testing.upstream.request import Request, refuse
from sag.testing.upstream.script import Fail, Json

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_VERSION = re.compile(r"20\d\d-\d\d-\d\d")  # 2023-06-01 as written by hand, others from later SDKs
_LIMITS = {"requests": 4000, "tokens": 480_000, "input-tokens": 400_000, "output-tokens": 80_000}
_LIMIT_S = 60.0  # when the limits are full again


class Anthropic(Flavor):
    """Anthropic."""

    prefix: ClassVar[str] = ""

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self._messages = MessagesFormat(self)
        self.add_format("/v1/messages", self._messages)
        self.add("POST", "/v1/messages/count_tokens", self._count)
        self.add("GET", "/v1/models", self._list)
        self.add("GET", "/v1/models/{id}", self._show)

    def check(self, request: Request, path: str) -> None:
        key, token = self.server.api_key, self.server.access_token
        sent = request.headers.get("x-api-key")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if not sent and not (scheme.lower() == "bearer" and bearer):
            refuse("x-api-key header is required", 401)
        # A key may come either way: the SDK of version 2 sends it as a token.
        right = (key and key in (sent, bearer)) or (token and token == bearer)
        if (key or token) and not right:
            refuse("invalid x-api-key" if sent else "Invalid bearer token", 401)
        version = request.headers.get("anthropic-version")
        if version is None:
            refuse("anthropic-version: header is required")
        if not _VERSION.fullmatch(version):
            refuse(f'anthropic-version: "{version}" is not a valid version')

    def miss(self, request: Request, path: str) -> NoReturn:
        refuse("Not Found", 404)

    def check_model(self, body: Json) -> None:
        if not isinstance(body.get("model"), str):
            refuse("model: Field required")
        super().check_model(body)

    def miss_model(self, model: str) -> NoReturn:
        refuse(f"model: {model}", 404)

    def headers(self, status: int, given: Mapping[str, str]) -> dict[str, str]:
        out = {
            "request-id": f"req_{self.server.number}",
            "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
        }
        reset = self.server.clock.write_rfc3339(_LIMIT_S)
        for name, limit in _LIMITS.items():
            out[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            out[f"anthropic-ratelimit-{name}-remaining"] = str(0 if status == 429 else limit - 1)
            out[f"anthropic-ratelimit-{name}-reset"] = reset
        return out

    def write_error(self, fail: Fail) -> Json:
        kind = fail.type or _TYPES.get(fail.status, "api_error" if fail.status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": fail.message, **fail.members}
        return {"type": "error", "error": error, "request_id": f"req_{self.server.number}"}

    def _count(self, request: Request, match: re.Match[str]) -> Json:
        body = self.read_body(request)
        self.check_model(body)
        return {"input_tokens": self._messages.read_prompt(body).input}

    def _list(self, request: Request, match: re.Match[str]) -> Json:
        query = read_query(request)
        given = query.get("limit", "20")
        if not given.isdecimal() or not 1 <= int(given) <= 1000:
            refuse("limit: Input should be between 1 and 1000")
        limit = int(given)
        ids = list(self.server.models)
        for name in ("after_id", "before_id"):
            if name in query and query[name] not in ids:
                refuse(f"{name}: Invalid cursor")
        more = False
        if "before_id" in query:
            ids = ids[: ids.index(query["before_id"])]
            ids, more = ids[-limit:], len(ids) > limit
        else:
            if "after_id" in query:
                ids = ids[ids.index(query["after_id"]) + 1 :]
            ids, more = ids[:limit], len(ids) > limit
        data = [self._describe(id) for id in ids]
        return {
            "data": data,
            "has_more": more,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
        }

    def _show(self, request: Request, match: re.Match[str]) -> Json:
        if match["id"] not in self.server.models:
            self.miss_model(match["id"])
        return self._describe(match["id"])

    def _describe(self, id: str) -> Json:
        yes, no = {"supported": True}, {"supported": False}
        types = {"adaptive": yes, "between_tools": yes, "disabled": yes}
        types["enabled"] = no if id in self.server.reasoning_models else yes
        return {
            "type": "model",
            "id": id,
            "display_name": id.replace("-", " ").title(),
            "created_at": "2026-09-21T14:13:20Z",
            "lifecycle": "active",
            "max_input_tokens": self.server.max_model_len,
            "max_tokens": 64_000,
            "capabilities": {
                "effort": {**yes, **dict.fromkeys(EFFORTS, yes)},
                "image_input": yes,
                "pdf_input": yes,
                "structured_outputs": yes,
                "thinking": {**yes, "types": types},
            },
            **self.server.models[id],
        }
