"""Names the errors of OpenAI-style servers: which kind it is, whether trying again helps, and after how long.

OpenAI's own table, widened by what vLLM, llama.cpp and proxies send. The status alone does not decide: 429 stands for
a busy minute and for an empty account alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sag.plugin import ProviderError, load_json, read_wait

_CONTEXT = re.compile(r"context[_ ](length|window|size)|maximum context|too many tokens|prompt is too long", re.I)
_UNPAID = ("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached", "billing_not_active")
_OVERLOADED = ("server_is_overloaded", "service_unavailable_error", "overloaded_error", "engine_overloaded")
_LIMITED = ("rate_limit_exceeded", "rate_limit_error", "slow_down", "too_many_requests")
_KEY = ("invalid_api_key", "authentication_error", "permission_error", "permission_denied")


def read_error(status: int, headers: Mapping[str, str], body: bytes, secret: str = "") -> ProviderError:
    """The error of an answer that is no stream.

    Args:
        status: The HTTP status, 200 where JSON with an error came instead of a stream.
        headers: Its headers.
        body: What there is of its body.
        secret: The key, which is blotted out.
    """
    given = load_json(body)
    lower = {name.lower(): value for name, value in headers.items()}
    return name_failure(given, secret, status, lower)


def name_failure(
    given: Any, secret: str = "", status: int = 0, headers: Mapping[str, str] | None = None
) -> ProviderError:
    """The error that an error object stands for, within a stream (status 0) or as a body."""
    headers = headers or {}
    code, kind, text = _read(given)
    if not 400 <= status < 600 and code.isdigit() and 400 <= int(code) < 600:
        # vLLM and OpenRouter put the status there.
        status = int(code)
    words = {code.lower(), kind.lower()}
    if secret:
        text = text.replace(secret, "…")
    after_s = read_wait(headers) if status in (408, 409, 429) or status >= 500 else None
    retry: bool | None = None

    if words & {"context_length_exceeded", "exceed_context_size_error"}:
        name = "provider.context"
    elif words & set(_UNPAID):
        name, retry, after_s = "provider.rate_limit", False, None
    elif status in (401, 403) or words & set(_KEY):
        name = "provider.auth"
    elif status in (503, 529) or words & set(_OVERLOADED):
        name = "provider.overloaded"
    elif status == 429 or words & set(_LIMITED):
        name = "provider.rate_limit"
    elif status in (400, 413, 422) and _CONTEXT.search(text):
        name = "provider.context"
    elif status in (408, 504):
        name = "provider.timeout"
    elif status >= 500 or status == 409 or "server_error" in words:
        name, retry = "provider.overloaded", status not in (501, 505)
    elif 400 <= status < 500 or words & {"invalid_request_error", "model_not_found", "content_filter"}:
        name = "provider.refused"
    else:
        name = "provider.protocol"
    if headers.get("x-should-retry") in ("true", "false"):
        retry = headers["x-should-retry"] == "true"
    said = f"The model's server answers {status}" if status >= 400 else "The model's server reports an error"
    return ProviderError(name, f"{said}: {text}" if text else f"{said}.", after_s=after_s, retry=retry)


def _read(given: Any) -> tuple[str, str, str]:
    """Code, type and message of whatever shape an error has."""
    if isinstance(given, list) and given:
        given = given[0]
    if isinstance(given, dict) and given.get("error"):
        given = given["error"]
    if isinstance(given, str):
        return "", "", given
    if not isinstance(given, dict):
        return "", "", ""
    text = given.get("message") or given.get("detail") or ""
    if not isinstance(text, str):
        text = json.dumps(text)
    code, kind = given.get("code"), given.get("type")
    return str(code) if code is not None else "", kind if isinstance(kind, str) else "", text
