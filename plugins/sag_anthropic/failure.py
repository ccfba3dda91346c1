"""Names Anthropic's errors: which kind it is, whether trying again helps, and after how long.

The type within the body decides before the status, since an error may come within a stream and proxies change
statuses. Words decide only where Anthropic uses one type for several things: a request that is refused, a conversation
that is too long, an account that is empty.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from sag.plugin import ProviderError, load_json, read_wait

DAY_S = 86_400.0

_CONTEXT = re.compile(r"prompt is too long|exceeds? (the )?(model's )?context|context (window|limit|length)", re.I)
_UNPAID = re.compile(r"credit balance|usage limits?\b|spend(ing)? limit", re.I)
_LIMITS = ("requests", "tokens", "input-tokens", "output-tokens")


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error of an answer that is no stream.

    Args:
        status: The HTTP status, 200 where JSON with an error came instead of a stream.
        headers: Its headers.
        body: What there is of its body.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    return name_failure(load_json(body), status, lower)


def name_failure(given: Any, status: int = 0, headers: Mapping[str, str] | None = None) -> ProviderError:
    """The error that an error object stands for, within a stream (status 0) or as a body."""
    headers = headers or {}
    kind, text = _read(given)
    after_s = _wait(headers) if status in (408, 409, 429) or status >= 500 else None
    retry: bool | None = None

    if status == 413 or kind == "request_too_large" or (status in (0, 400, 422) and _CONTEXT.search(text)):
        name = "provider.context"
    elif status == 402 or kind == "billing_error" or (status in (0, 400, 403) and _UNPAID.search(text)):
        name, retry, after_s = "provider.rate_limit", False, None
    elif status in (401, 403) or kind in ("authentication_error", "permission_error"):
        name = "provider.auth"
    elif status in (503, 529) or kind == "overloaded_error":
        name = "provider.overloaded"
    elif status == 429 or kind == "rate_limit_error":
        name = "provider.rate_limit"
    elif status in (408, 504) or kind == "timeout_error":
        name = "provider.timeout"
    elif status >= 500 or status == 409 or kind in ("api_error", "conflict_error"):
        name, retry = "provider.overloaded", status not in (501, 505)
    elif 400 <= status < 500 or kind in ("invalid_request_error", "not_found_error"):
        name = "provider.refused"
    else:
        name = "provider.protocol"
    if headers.get("x-should-retry") in ("true", "false"):
        retry = headers["x-should-retry"] == "true"
    said = f"The model's server answers {status}" if status >= 400 else "The model's server reports an error"
    text = f"{said}: {text}" if text else f"{said}."
    return ProviderError(name, text, after_s=after_s, retry=retry, status=status or None)


def _read(given: Any) -> tuple[str, str]:
    """Type and message, of Anthropic's shape and of those of proxies."""
    if isinstance(given, dict) and given.get("error"):
        given = given["error"]
    if isinstance(given, str):
        return "", given
    if not isinstance(given, dict):
        return "", ""
    text = given.get("message") or given.get("detail") or ""
    kind = given.get("type")
    return kind if isinstance(kind, str) else "", text if isinstance(text, str) else json.dumps(text)


def _wait(headers: Mapping[str, str]) -> float | None:
    """How long to wait, from 0 s to a day: `retry-after`, else until the limit of which nothing remains is reset."""
    wait_s = read_wait(headers)
    if wait_s is not None:
        return wait_s
    try:
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        now = time.time()
    waits = []
    for limit in _LIMITS:
        if headers.get(f"anthropic-ratelimit-{limit}-remaining", "").strip() == "0":
            try:
                reset = datetime.fromisoformat(headers.get(f"anthropic-ratelimit-{limit}-reset", "").strip())
                waits.append(reset.timestamp() - now)
            except (ValueError, OverflowError):
                continue
    return min(max(0.0, *waits), DAY_S) if waits else None
