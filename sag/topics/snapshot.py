"""Snapshots that fit a frame: the whole state, or of a long conversation the newest part (protocol section 4). Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sag.errors import Fault
from sag.topics.merge import encode
from sag.topics.topic import Topic

Json = dict[str, Any]
OPEN = frozenset({"queued", "running", "waiting", "paused"})
LARGE = 4 << 10


def snapshot(topic: Topic, limit: int) -> bytes:
    """The state as JSON; of a conversation that is too long the newest messages and what belongs to them.

    Raises:
        Fault: topic.later.
    """
    text = encode(topic.state)
    if len(text) <= limit:
        return text
    if topic.name.startswith("conv:"):
        view = newest(topic.state, topic.state["messages"], limit)
        if view is not None:
            return encode(view)
    raise Fault("topic.later")


def newest(state: Json, messages: list[Json], limit: int) -> Json | None:
    """A snapshot with as many of the newest messages as fit.

    Where not even the last one fits it is shown with its newest parts, marked `cut`, and large arguments and results
    of its tools and its questions are left out; None where that does not fit either.
    """
    view = _most(len(messages), lambda first: window(state, messages[first:], first > 0), limit)
    if view is not None or not messages:
        return view
    last = messages[-1]

    def shortened(first: int) -> Json:
        short = {**last, "parts": last["parts"][first:], "cut": True}
        light = window(state, [short], len(messages) > 1)
        light["tools"] = {id: _lighten(tool) for id, tool in light["tools"].items()}
        light["asks"] = {
            id: {**_lighten(ask), "subject": _lighten(ask.get("subject") or {})} for id, ask in light["asks"].items()
        }
        return light

    return _most(len(last["parts"]), shortened, limit)


def _lighten(thing: Json) -> Json:
    return {k: v for k, v in thing.items() if not _is_large(v)}


def _is_large(value: Any) -> bool:
    return isinstance(value, str | dict | list) and len(encode(value)) > LARGE


def _most(count: int, make: Callable[[int], Json], limit: int) -> Json | None:
    """The view that leaves out the fewest of the first things, found by halving; None where none fits."""
    low, high = 0, count
    best: Json | None = None
    while low < high:
        mid = (low + high) // 2
        view = make(mid)
        if len(encode(view)) <= limit:
            high, best = mid, view
        else:
            low = mid + 1
    return best


def window(state: Json, messages: list[Json], more: bool) -> Json:
    """A snapshot with some messages: of runs and tools those that they name and those that are open."""
    named = {m.get("run") for m in messages}
    called = {p.get("call") for m in messages for p in m["parts"]}
    out = {
        "conv": state["conv"],
        "messages": messages,
        "runs": {id: r for id, r in state["runs"].items() if id in named or r["status"] in OPEN},
        "tools": {id: t for id, t in state["tools"].items() if id in called or t["status"] == "running"},
        "asks": state["asks"],
    }
    if more and messages:
        out["before"] = messages[0]["msg"]
    return out
