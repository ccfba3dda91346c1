"""Names the errors of OpenAI-style servers: which kind it is, whether trying again helps, and after how long.

OpenAI's own table, widened by what Azure, OpenRouter, vLLM, llama.cpp and proxies send. The status alone does not
decide: 429 stands for a busy minute and for an empty account alike.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from sag.plugin import ProviderError, load_json, read_wait

_CONTEXT = re.compile(r"context[_ ](length|window|size)|maximum context|too many tokens|prompt is too long", re.I)
_UNPAID = {
    "insufficient_quota",
    "credit_balance_exhausted",
    "billing_hard_limit_reached",
    "billing_not_active",
    "payment_required",
}
_OVERLOADED = {
    "server_is_overloaded",
    "service_unavailable_error",
    "overloaded_error",
    "engine_overloaded",
    "provider_overloaded",
    "provider_unavailable",
}
_LIMITED = {"rate_limit_exceeded", "rate_limit_error", "slow_down", "too_many_requests"}
_KEY = {"invalid_api_key", "authentication_error", "authentication", "permission_error", "permission_denied"}
_REFUSED = {
    "invalid_request_error",
    "model_not_found",
    "not_found",
    "content_filter",
    "content_policy_violation",
    "max_tokens_exceeded",
    "image_content_policy_violation",
}
_ASKED_WRONG = ("invalid_", "image_", "unsupported_", "failed_to_download_image")
# What OpenRouter says where the vendor's own words stand in `metadata`.
_EMPTY_WORDS = "provider returned error"


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
    answered = status or None
    words, text = _read(given)
    number = next((word for word in words if word.isdigit()), "")
    if not 400 <= status < 600 and number and 400 <= int(number) < 600:
        # vLLM and OpenRouter put the status there.
        status = int(number)
    if secret:
        text = text.replace(secret, "…")
    after_s = _read_wait(headers) if status in (408, 409, 429) or status >= 500 else None
    retry: bool | None = None

    if words & {"context_length_exceeded", "exceed_context_size_error"}:
        name = "provider.context"
    elif status == 402 or words & _UNPAID:
        name, retry, after_s = "provider.rate_limit", False, None
    elif words & {"content_filter", "content_policy_violation"}:
        name = "provider.refused"  # OpenRouter's moderation is a 403
    elif status in (401, 403) or words & _KEY:
        name = "provider.auth"
    elif status in (503, 529) or words & _OVERLOADED:
        name = "provider.overloaded"
    elif status == 429 or words & _LIMITED:
        name = "provider.rate_limit"
    elif status in (400, 413, 422) and _CONTEXT.search(text):
        name = "provider.context"
    elif status in (408, 504) or "timeout" in words:
        name = "provider.timeout"
    elif status >= 500 or status == 409 or words & {"server_error", "server"}:
        name, retry = "provider.overloaded", status not in (501, 505)
    elif 400 <= status < 500 or words & _REFUSED or any(word.startswith(_ASKED_WRONG) for word in words):
        name = "provider.refused"
    else:
        name = "provider.protocol"
    if headers.get("x-should-retry") in ("true", "false"):
        retry = headers["x-should-retry"] == "true"
    said = f"The model's server answers {status}" if status >= 400 else "The model's server reports an error"
    return ProviderError(name, f"{said}: {text}" if text else f"{said}.", after_s=after_s, retry=retry, status=answered)


def _read(given: Any) -> tuple[set[str], str]:
    """Codes and types, in lower case, and the message of whatever shape an error has."""
    if isinstance(given, list) and given:
        given = given[0]
    if isinstance(given, dict) and given.get("error"):
        given = given["error"]
    if isinstance(given, str):
        return set(), given
    if not isinstance(given, dict):
        return set(), ""
    text = given.get("message") or given.get("detail") or ""
    if not isinstance(text, str):
        text = json.dumps(text)
    words = {str(word).lower() for word in (given.get("code"), given.get("type")) if isinstance(word, str | int)}
    metadata = given.get("metadata")
    if isinstance(metadata, dict):
        if isinstance(kind := metadata.get("error_type"), str):
            words.add(kind.lower())
        if text.strip().rstrip(".").lower() in ("", _EMPTY_WORDS) and (raw := metadata.get("raw")):
            text = _read_raw(raw) or text
        if isinstance(provider := metadata.get("provider_name"), str) and provider:
            text = f"{provider}: {text}"
    return words, text


def _read_raw(raw: Any) -> str:
    """What the vendor behind OpenRouter said: its error as an object, as JSON in text, or as words."""
    if isinstance(raw, str) and isinstance(read := load_json(raw.encode("utf-8", "replace")), dict | list):
        raw = read
    return _read(raw)[1] if isinstance(raw, dict | list) else str(raw)


def _read_wait(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait; OpenRouter tells the moment, in milliseconds."""
    wait_s = read_wait(headers)
    reset = headers.get("x-ratelimit-reset", "")
    if wait_s is None and headers.get("x-ratelimit-remaining") == "0" and reset.isdigit() and len(reset) == 13:
        return max(0.0, int(reset) / 1000 - time.time())
    return wait_s
