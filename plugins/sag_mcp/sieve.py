"""What stands between a server's messages and the SDK, whichever transport they come by.

The SDK makes models of all that it is given and a task of every notification, checks results with the server's own
regular expressions, and refuses a whole list of tools for one bad entry. So a sieve keeps from it what need not reach
it: progress, logging and changed lists are told to their listeners at once, results are set aside as the JSON that
they are, late and unknown answers are dropped, and what comes too often is counted instead of passed on. It does no
I/O and never waits. Above: transports feed it (`sag_mcp.stdio`, `sag_mcp.remote`). Below: requests of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

from sag_mcp.ends import Broken

Json = dict[str, Any]
Id = int | str
What = Literal["tools", "prompts", "resources"]

MAX_MESSAGE = 4 << 20  # bytes
MAX_MINUTE = 64 << 20
MAX_TOOLS = 512
PASSED_A_SECOND = 100.0  # notifications and requests of a server that reach the SDK
LOGGED_A_SECOND = 50.0
MAX_ASKED = 32  # requests of a server's that are unanswered
MAX_ABANDONED = 32  # requests of ours that were cancelled and may still hold a connection

# Where a result keeps what may be large, and what the SDK is given in its place.
LARGE: dict[str, str] = {
    "tools/call": "content",
    "tools/list": "tools",
    "prompts/list": "prompts",
    "prompts/get": "messages",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "resources/read": "contents",
}
CHANGES: dict[str, What] = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"  # one for each that we ask for


class Request:
    """Something that is asked of a server; in the context of the task that asks it (`REQUEST`).

    Attributes:
        method: The protocol's.
        result: The server's answer as it came.
        status: The HTTP status of the newest response, where there is one.
        broken: Why its answer was not taken.
        cut: Why it, or its answer, did not get through.
        unsent: Whether it certainly did not reach the server.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.result: Json | None = None
        self.status: int | None = None
        self.broken: Broken | None = None
        self.cut: str | None = None
        self.unsent = False

    def progressed(self, done: float, total: float | None, text: str | None) -> None:
        """The server says how far it is."""

    def logged(self, level: str, text: str) -> bool:
        """The server logs something on behalf of it; whether it was taken."""
        return False


REQUEST: ContextVar[Request | None] = ContextVar("mcp_request", default=None)


class Bucket:
    """How often something may happen: `rate` a second, and `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.left, self.at = burst, clock()

    def take(self, amount: float = 1.0) -> bool:
        """Whether so much is allowed now."""
        now = self.clock()
        self.left, self.at = min(self.burst, self.left + (now - self.at) * self.rate), now
        if self.left < amount:
            return False
        self.left -= amount
        return True

    def charge(self, amount: float) -> float:
        """Take so much, allowed or not; gives the seconds to wait until it is paid for."""
        if self.take(amount):
            return 0.0
        self.left -= amount
        return -self.left / self.rate if self.left < 0 else 0.0


class Sieve:
    """One connection's.

    Args:
        changed: Told which list has changed.
        logged: Told what the server logs on nobody's behalf: a level, a text.

    Attributes:
        dropped: How much was not passed on, by sort.
        abandoned: Ids of requests that were cancelled and not answered since.
    """

    def __init__(
        self,
        changed: Callable[[What], None],
        logged: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed, self._logged = changed, logged
        self._passing = Bucket(PASSED_A_SECOND, 2 * PASSED_A_SECOND, clock)
        self._logging = Bucket(LOGGED_A_SECOND, 4 * LOGGED_A_SECOND, clock)
        self._pending: dict[Id, tuple[str, Request | None]] = {}
        self._tokens: dict[Id, Request] = {}
        self._asked: set[Id] = set()
        self.abandoned: set[Id] = set()
        self.dropped: dict[str, int] = {}

    # what we send

    def asks(self, id: Id, method: str, params: Json | None, request: Request | None) -> None:
        """A request of ours is being sent."""
        id = same(id)
        self._pending[id] = (method, request)
        token = ((params or {}).get("_meta") or {}).get("progressToken")
        if request is not None and token is not None:
            self._tokens[same(token)] = request

    def holder(self, token: Any) -> Request | None:
        """The request in flight that a progress token is of."""
        return self._tokens.get(same(token)) if isinstance(token, int | str) else None

    def answers(self, id: Id | None) -> None:
        """An answer of ours is being sent."""
        if id is not None:
            self._asked.discard(same(id))

    def cancels(self, params: Json | None) -> None:
        """A request of ours is being given up."""
        id = (params or {}).get("requestId")
        if id is not None and self._forget(same(id)) is not None and len(self.abandoned) < MAX_ABANDONED:
            self.abandoned.add(same(id))

    def _forget(self, id: Id) -> tuple[str, Request | None] | None:
        self._tokens.pop(id, None)  # the SDK's progress token is the request's id
        return self._pending.pop(id, None)

    # what comes; each says whether the SDK is to see it

    def request(self, id: Id, method: str) -> bool:
        """A request of the server's."""
        if len(self._asked) >= MAX_ASKED or not self._passing.take():
            return self._drop(method)
        self._asked.add(same(id))
        return True

    def notification(self, method: str, params: Json | None, request: Request | None = None) -> bool:
        """A notification, and the request that it came along with where that is known."""
        params = params or {}
        if method == "notifications/progress":
            self._progress(params)
            return False
        if method == "notifications/message":
            if not self._logging.take():
                return self._drop(method)
            level, text = str(params.get("level", "info")), _log_text(params)
            if request is None and len(calls := set(self._tokens.values())) == 1:
                request = next(iter(calls))  # nobody else it could be of
            if request is None or not request.logged(level, text):
                self._logged(level, text)
            return False
        if (what := CHANGES.get(method)) is not None:
            self._changed(what)
            return False
        if method == "notifications/cancelled" and (id := params.get("requestId")) is not None:
            self._asked.discard(same(id))
        return method == ACKNOWLEDGED or self._passing.take() or self._drop(method)

    def _progress(self, params: Json) -> None:
        token, done, total, text = (params.get(k) for k in ("progressToken", "progress", "total", "message"))
        if isinstance(done, int | float) and (request := self.holder(token)) is not None:
            request.progressed(
                float(done),
                float(total) if isinstance(total, int | float) else None,
                text if isinstance(text, str) else None,
            )

    def response(self, id: Id | None, result: Json | None) -> Json | None:
        """An answer: its result as the SDK is to see it, `{}` for an error, None where nobody waits for it."""
        if id is None or (found := self._forget(same(id))) is None:
            if id is not None:
                self.abandoned.discard(same(id))
            self._drop("answers that nobody waits for")
            return None
        method, request = found
        if result is None:
            return {}
        if method not in LARGE or result.get("resultType", "complete") != "complete":
            return result
        if request is not None and request.method == method:
            request.result = result
        return _small(method, result)

    def _drop(self, what: str) -> Literal[False]:
        self.dropped[what] = self.dropped.get(what, 0) + 1
        return False


def same(id: Id) -> Id:
    """Ids that are one and the same: 7 and "7", as the SDK has it."""
    if isinstance(id, str) and id.isdecimal() and len(id) < 16:
        return int(id)
    return id


def _small(method: str, result: Json) -> Json:
    """A result without what the SDK need not look at, and with what it wants though it may be left out."""
    result = {"resultType": "complete", **result}
    if method == "tools/call":  # an error, as the SDK checks the data of others
        kept = {k: v for k, v in result.items() if k in ("resultType", "_meta")}
        return {**kept, "content": [], "isError": True}
    key = LARGE[method]
    rest = {k: v for k, v in result.items() if k != "nextCursor" or isinstance(v, str)}
    given = result.get(key)
    if method != "tools/list" or not isinstance(given, list):
        return {**rest, key: []}
    # Of a tool it wants the arguments that go into HTTP headers.
    tools = [
        {"name": tool["name"], "inputSchema": {**tool["inputSchema"], "type": "object"}}
        for tool in given[: MAX_TOOLS + 1]
        if isinstance(tool, dict) and isinstance(tool.get("name"), str) and isinstance(tool.get("inputSchema"), dict)
    ]
    return {**rest, key: tools}


def _log_text(params: Json) -> str:
    data = params.get("data")
    if isinstance(data, dict) and isinstance(data.get("message"), str):
        data = data["message"]
    text = (data if isinstance(data, str) else str(data))[:4000]
    name = params.get("logger")
    return f"{name}: {text}" if isinstance(name, str) and name else text
