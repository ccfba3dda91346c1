"""Snapshots that fit a frame: the whole state, or of a long conversation the newest part (protocol section 4). Pure."""

from __future__ import annotations

from typing import Any

from sag.errors import Fault
from sag.topics.merge import encode
from sag.topics.topic import Topic

Json = dict[str, Any]
OPEN = frozenset({"queued", "running", "waiting", "paused"})


def snapshot(topic: Topic, limit: int) -> bytes:
    """The state as JSON; of a conversation that is too long the newest messages and what belongs to them.

    Raises:
        Fault: topic.later.
    """
    text = encode(topic.state)
    if len(text) <= limit:
        return text
    if topic.name.startswith("conv:"):
        return _newest(topic.state, limit)
    raise Fault("topic.later")


def _newest(state: Json, limit: int) -> bytes:
    messages = state["messages"]
    low, high = 0, len(messages)
    text = b""
    while low < high:  # the fewest messages that have to go, by halving
        mid = (low + high) // 2
        candidate = encode(window(state, messages[mid:], mid > 0))
        if len(candidate) <= limit:
            high, text = mid, candidate
        else:
            low = mid + 1
    if low == len(messages) or not text:
        raise Fault("topic.later")
    return text


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
