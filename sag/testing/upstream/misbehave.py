"""Faults to order, for a fake that runs by itself: who chats with it says in the message what is to go wrong.

`misbehave NAME` in the user's message has that go wrong each time, `misbehave NAME 2 times` only the first two times
that this very message comes; so a client can be watched while it waits and tries again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from sag.testing.upstream.request import Request
from sag.testing.upstream.script import (
    Calls,
    Comment,
    Cut,
    Fail,
    Hang,
    LongLine,
    Raw,
    Refusal,
    Say,
    Script,
    ToolCall,
    Wait,
    fail,
    gzip_bomb,
    say,
)

_HALF = "So far so good, but then "
_ORDER = re.compile(r"\bmisbehave ([a-z0-9-]+)(?: (\d+) times?)?")

FAULTS: dict[str, Callable[[], Script]] = {
    "400": lambda: fail(400, "Invalid value for a parameter."),
    "401": lambda: fail(401, "The key is not valid."),
    "403": lambda: fail(403, "This key may not do that."),
    "404": lambda: fail(404, "There is no such model."),
    "429": lambda: fail(429, "Too many requests.", headers={"retry-after": "3"}),
    "429-long": lambda: fail(429, "Come back tomorrow.", headers={"retry-after": "86400"}),
    "500": lambda: fail(500, "Something broke."),
    "503": lambda: fail(503, "Overloaded."),
    "529": lambda: fail(529, "Overloaded."),
    "context": lambda: fail(
        400, "This model's maximum context length is 8192 tokens: prompt is too long.", code="context_length_exceeded"
    ),
    "refuse": lambda: Script(head="rst"),
    "hang": lambda: Script(head="hang"),
    "garbage": lambda: Script(head="garbage"),
    "html": lambda: Script(body=b"<html><h1>Sign in</h1></html>", headers={"content-type": "text/html"}),
    "redirect": lambda: Script(status=302, headers={"location": "http://169.254.169.254/"}, body=b""),
    "slow": lambda: Script([Say("I take my time with every single word.")], before_s=5.0, tokens_per_s=1.0),
    "stall": lambda: Script([Say(_HALF), Hang()]),
    "pause": lambda: Script([Say(_HALF), Wait(10.0), Say("it goes on.")]),
    "comments": lambda: Script([Comment(count=None, every_s=1.0)]),
    "cut": lambda: Script([Say(_HALF), Cut()]),
    "reset": lambda: Script([Say(_HALF), Cut("rst")]),
    "truncate": lambda: say(_HALF, finish="", done=False, usage=False),
    "error": lambda: Script([Say(_HALF), Fail(500, "The backend went away.")]),
    "overload": lambda: Script([Say(_HALF), Fail(529, "Overloaded.")]),
    "broken-json": lambda: Script([Say(_HALF), Raw(b"data: {broken\n\n")]),
    "long-line": lambda: Script([LongLine(200 << 20)]),
    "gzip": gzip_bomb,
    "length": lambda: say(_HALF, finish="length"),
    "refusal": lambda: Script([Refusal()]),
    "bad-arguments": lambda: Script([Calls([ToolCall("time_now", '{"zone": "UT')])]),
    "unknown-tool": lambda: Script([Calls([ToolCall("no_such_tool", {})])]),
    "many-calls": lambda: Script([Calls([ToolCall("time_now", {}) for _ in range(1000)])]),
}


class Misbehaving:
    """Answers as ordered; without an order as by default."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, request: Request) -> Script | None:
        """The script for a request; None where nothing is ordered, or its times are over."""
        asked = request.asked
        order = _ORDER.search(asked.text) if asked is not None and not asked.answers else None
        if order is None or order[1] not in FAULTS:
            return None
        self._seen[order.string] += 1
        if order[2] is not None and self._seen[order.string] > int(order[2]):
            return None
        return FAULTS[order[1]]()
