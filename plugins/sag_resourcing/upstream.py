"""Reads JSON from one vendor over HTTP: limits kept, answers bounded, failures in words that say what to do.

It owns the connection, its time limits, the waiting at rate limits and the wording of what failed in general. What a
vendor's own refusals mean, and how its pages hang together, is told by `productive` and `smartsheet`. It only reads.
The token stands in a header and nowhere else: not in a URL, not in a message, not in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from mcp.server.mcpserver.exceptions import ToolError

log = logging.getLogger("sag_resourcing")

CALL_S = 50.0
"""How long one call of a tool may take in all, waiting included; many MCP hosts give up after 60 s."""
ANSWER_S = 30.0
CONNECT_S = 10.0
TRIES = 4
BODY_BYTES = 32_000_000
ITEMS = 10_000
"""How many items of one kind are read for one call."""

Params = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """An answer that is no success.

    Attributes:
        body: Its JSON, or None where it has none.
        path: What was asked for, without the query.
    """

    status: int
    body: Any
    path: str


class Refusal(ToolError):
    """A request that the vendor refuses, with what it answered."""

    def __init__(self, text: str, answer: Answer) -> None:
        super().__init__(text)
        self.answer = answer


@dataclass(frozen=True)
class Vendor:
    """What is particular to a vendor.

    Attributes:
        name: As people call it.
        base_url: Where its API begins.
        headers: Sent with every request; the token among them.
        secrets: What must not appear in any text.
        read_wait: Reads from the headers of a 429, and the present time in epoch seconds, how many seconds to wait;
            None where they do not say.
        default_wait_s: How long to wait where they do not.
        explain: Says what a refusal means and what to do about it.
        base_variable: The environment variable that sets the address.
    """

    name: str
    base_url: str
    headers: Mapping[str, str]
    secrets: Sequence[str]
    read_wait: Callable[[httpx.Headers, float], float | None]
    default_wait_s: float
    explain: Callable[[Answer], str]
    base_variable: str


class Upstream:
    """The connection to a vendor that all calls of one server share.

    Args:
        now: The time in epoch seconds.
        sleep: Waits.
    """

    def __init__(
        self,
        vendor: Vendor,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.vendor, self.now, self.sleep = vendor, now, sleep
        self.not_before = 0.0
        """Until when the vendor wants no request, in epoch seconds; found out by one call and kept by all."""
        self._http: httpx.AsyncClient | None = None

    @property
    def http(self) -> httpx.AsyncClient:
        """The client, made with the first request: loading the certificates takes a server's start 40 ms."""
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers={"Accept-Encoding": "identity", "User-Agent": "sag-mcp"} | dict(self.vendor.headers),
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
                limits=httpx.Limits(max_connections=8, max_keepalive_connections=4),
                follow_redirects=False,
                trust_env=False,
            )
        return self._http

    def open_call(self) -> Call:
        """The requests of one call of a tool, which together have 50 s."""
        return Call(self)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()


class Call:
    """The requests of one call of a tool."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream, self._vendor = upstream, upstream.vendor
        self._deadline = upstream.now() + CALL_S

    async def get(self, path: str, params: Params = ()) -> Any:
        """The JSON of a path below the vendor's address, or of an absolute URL.

        429 and failures that pass by themselves are tried again, as long as the call's time allows it.

        Raises:
            ToolError: It could not be had; the text says why and what to do.
        """
        url = path if path.startswith(("http://", "https://")) else self._vendor.base_url + path
        for tried in range(1, TRIES + 1):
            await self._wait_for_leave()
            try:
                status, headers, body = await self._request(url, params)
            except httpx.RequestError as e:
                if tried == TRIES or not await self._pause(tried):
                    raise ToolError(self._describe(e)) from None
                continue
            if status == 429:
                self._note_limit(headers)
                continue
            if status in (500, 502, 503, 504) and tried < TRIES and await self._pause(tried):
                continue
            return self._read(status, body, url)
        raise self._limited()

    async def _request(self, url: str, params: Params) -> tuple[int, httpx.Headers, bytes]:
        http, left_s = self._upstream.http, self._deadline - self._upstream.now()
        try:
            async with asyncio.timeout(max(0.0, min(ANSWER_S, left_s))):
                async with http.stream("GET", url, params=list(params) or None) as answer:
                    body = bytearray()
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if len(body) > BODY_BYTES:
                            raise ToolError(
                                f"{self._vendor.name} answers more than {BODY_BYTES // 1_000_000} MB at once. "
                                "Ask for less: fewer people, a shorter window."
                            )
                    return answer.status_code, answer.headers, bytes(body)
        except TimeoutError:
            raise httpx.ReadTimeout("") from None

    async def _wait_for_leave(self) -> None:
        """Wait until the vendor wants requests again, if that is soon enough."""
        up = self._upstream
        for _ in range(TRIES):
            wait_s = up.not_before - up.now()
            if wait_s <= 0:
                return
            if up.not_before > self._deadline:
                break
            log.info("%s: rate limit, waiting %.1f s", self._vendor.name, wait_s)
            await up.sleep(wait_s)
        raise self._limited()

    def _note_limit(self, headers: httpx.Headers) -> None:
        up = self._upstream
        wait_s = self._vendor.read_wait(headers, up.now())
        if wait_s is None or wait_s < 0:
            wait_s = self._vendor.default_wait_s
        up.not_before = max(up.not_before, up.now() + wait_s)

    def _limited(self) -> ToolError:
        up = self._upstream
        wait_s = max(1, math.ceil(up.not_before - up.now()))
        at = datetime.fromtimestamp(up.now() + wait_s, UTC)
        return ToolError(
            f"{self._vendor.name}'s rate limit is reached. Try again in {wait_s} s, at {at:%H:%M:%S} UTC, or ask for "
            "less: fewer people, a shorter window."
        )

    async def _pause(self, tried: int) -> bool:
        """Wait a little before the next try; gives False where no time is left for one."""
        pause_s = 0.5 * 2 ** (tried - 1)
        if self._upstream.now() + pause_s > self._deadline:
            return False
        await self._upstream.sleep(pause_s)
        return True

    def _describe(self, e: httpx.RequestError) -> str:
        vendor = self._vendor
        host = httpx.URL(vendor.base_url).netloc.decode()
        if isinstance(e, httpx.TimeoutException):
            return f"{vendor.name} ({host}) does not answer in time. Try again later, or ask for less."
        return (
            f"{vendor.name} ({host}) cannot be reached: {self._clean(str(e)) or type(e).__name__}. Look whether this "
            f"machine is online and whether {vendor.base_variable} is right."
        )

    def _read(self, status: int, body: bytes, url: str) -> Any:
        vendor = self._vendor
        try:
            value = json.loads(body) if body else None
        except (ValueError, RecursionError):
            value = None
        if 200 <= status < 300:
            if isinstance(value, dict):
                return value
            raise ToolError(
                f"{vendor.name} answers {status} without the JSON that was expected. Look whether "
                f"{vendor.base_variable} is the API's address; it is {vendor.base_url}"
            )
        if status >= 500:
            text = f"{vendor.name} fails at the moment (HTTP {status}). Try again in a minute."
        elif status < 400:
            text = f"{vendor.name} redirects (HTTP {status}); {vendor.base_variable} has to be the API's own address."
        else:
            refused = Answer(status, value, httpx.URL(url).path)
            raise Refusal(self._clean(vendor.explain(refused)), refused)
        raise ToolError(text)

    def _clean(self, text: str) -> str:
        """A text on one line, of bounded length, and without secrets that a vendor may have repeated."""
        for secret in self._vendor.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"\s+", " ", text).strip()[:1000]


def too_many(name: str, what: str, total: int | None = None) -> ToolError:
    """The error for more items than are read for one call; figures from a part of them would be wrong."""
    found = f"{total:,}" if total else f"more than {ITEMS:,}"
    return ToolError(
        f"{name} has {found} {what} for this, and at most {ITEMS:,} are read at once. Ask for less: a shorter window, "
        "fewer people, or one project."
    )


def read_retry_after(headers: httpx.Headers, now: float) -> float | None:
    """`Retry-After` in seconds, from seconds or an HTTP date; None where there is none that can be read."""
    given = headers.get("retry-after", "").strip()
    if (seconds := read_number(given)) is not None:
        return seconds
    at = read_http_date(given)
    return None if at is None else max(0.0, at - now)


def read_http_date(text: str) -> float | None:
    """An HTTP date as epoch seconds; None for what is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def read_number(given: Any) -> float | None:
    """A number that JSON, a header or a setting gives; None for what is none."""
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def find_setting(env: Mapping[str, str], *names: str) -> str:
    """The value of the first of these variables that is set; empty where none is.

    One that still reads `${NAME}` was meant to be filled in by the host and was not, so it counts as not set.
    """
    for name in names:
        value = env.get(name, "").strip()
        if value and not re.fullmatch(r"\$\{?\w+\}?", value):
            return value
    return ""


def find_fault(base_url: str, base_variable: str, token: str, token_variable: str) -> str | None:
    """What is wrong with an address or a token before they are used; None where nothing is."""
    if not token:
        return f"{token_variable} is not set. Set it in this server's environment and restart the server."
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        return f"{token_variable} holds characters that no token has, such as a space or a line break within it."
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        return f"{base_variable} has to be an address such as https://api.example.com/v1, without name or query."
    return None
