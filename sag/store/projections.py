"""Listings made from events, in the commit of the event that changes them; the logs remain the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from sag.store.usage import step_row
from sag.topics.journal import Drop, Put
from sag.topics.topic import Topic

_SHOWN = frozenset({"conv", "run.open", "run", "run.close", "ask.open", "ask.close", "step.close"})


def project(topic: Topic, name: str, d: Any, ts: int) -> Iterable[Put | Drop]:
    """The rows that an event changes. The topic's state is that after the event."""
    return _rows(topic, name, d, ts) if name in _SHOWN and topic.name.startswith("conv:") else ()


def _rows(topic: Topic, name: str, d: Any, ts: int) -> Iterator[Put | Drop]:
    id = topic.name[5:]
    if name in ("conv", "run.open", "run.close"):
        conv = topic.state["conv"]
        row = {"id": id, "owner": topic.owner, "title": conv.get("title", ""), "created": conv.get("created", ts)}
        yield Put("conversation", {**row, "updated": ts})
    if name in ("run.open", "run", "run.close") and (run := topic.state["runs"].get(d["run"])):
        row = {"id": d["run"], "owner": topic.owner, "conv": id, "kind": run["kind"], "status": run["status"]}
        is_open = name != "run.close" and run["status"] in ("queued", "running", "waiting", "paused")
        yield Put("run", {**row, "open": int(is_open), "ts": run["ts"]})
    elif name == "ask.open":
        yield Put("ask", {"id": d["ask"], "owner": topic.owner, "conv": id, "outcome": None})
    elif name == "ask.close":
        outcome = {k: v for k, v in d.items() if k != "ask"}
        yield Put("ask", {"id": d["ask"], "owner": topic.owner, "conv": id, "outcome": msgspec.json.encode(outcome)})
    elif name == "step.close" and (put := step_row(topic, d, ts)):
        yield put


def forget(conv: str) -> Iterator[Drop]:
    """The rows that go with a conversation; what it cost stays."""
    yield Drop("conversation", {"id": conv})
    yield Drop("run", {"conv": conv})
    yield Drop("ask", {"conv": conv})
