"""Snapshots of conversations that are too long for a frame."""

from __future__ import annotations

from typing import Any

from sag.topics.merge import encode
from sag.topics.snapshot import newest


def _state(texts: list[list[str]]) -> dict[str, Any]:
    messages = [
        {
            "msg": f"m{i}",
            "role": "assistant",
            "run": f"r{i}",
            "parts": [{"part": i, "kind": "text", "text": t} for t in parts],
        }
        for i, parts in enumerate(texts)
    ]
    runs = {f"r{i}": {"status": "done"} for i in range(len(texts))} | {"r-open": {"status": "queued"}}
    return {"conv": {"id": "c"}, "messages": messages, "runs": runs, "tools": {}, "asks": {}}


def test_the_newest_messages_that_fit_come_with_their_runs_and_the_open_ones() -> None:
    state = _state([["x" * 400]] * 10)
    view = newest(state, state["messages"], 2500)
    assert view is not None
    shown = [m["msg"] for m in view["messages"]]
    assert 0 < len(shown) < 10
    assert shown == [f"m{i}" for i in range(10 - len(shown), 10)]
    assert view["before"] == shown[0]
    assert set(view["runs"]) == {m["run"] for m in view["messages"]} | {"r-open"}
    assert len(encode(view)) <= 2500 < len(encode(newest(state, state["messages"], 1 << 20)))


def test_a_message_that_does_not_fit_alone_shows_its_newest_parts() -> None:
    state = _state([["short"], ["a" * 900, "b" * 900, "c" * 900]])
    view = newest(state, state["messages"], 1600)
    assert view is not None
    (last,) = view["messages"]
    assert (last["msg"], last["cut"], [p["text"][0] for p in last["parts"]]) == ("m1", True, ["c"])
    assert view["before"] == "m1"


def test_nothing_fits_into_nothing() -> None:
    state = _state([["a" * 900]])
    assert newest(state, state["messages"], 100) is None


def test_questions_with_large_arguments_are_shown_without_them() -> None:
    state = _state([["short"]])
    subject = {"tool": "mail.send", "args": {"text": "x" * 5000}}
    state["asks"] = {
        f"a{i}": {"kind": "approval", "run": "r0", "subject": subject, "options": ["deny"]} for i in range(3)
    }
    view = newest(state, state["messages"], 4000)
    assert view is not None
    assert [ask["subject"] for ask in view["asks"].values()] == [{"tool": "mail.send"}] * 3
    assert view["asks"]["a0"]["options"] == ["deny"]
    assert state["asks"]["a0"]["subject"] == subject
