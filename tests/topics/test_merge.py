"""Merging, held to its promise: whatever is merged and cut, a reader that follows the rule folds to the same state."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sag.topics.merge import Entry, encode, frame, join_deltas, tails
from sag.topics.reducers import ConvReducer

NAMES = st.sampled_from(["delta", "delta", "delta", "tool.progress", "part.close", "tool.open"])


def _entries(kinds: list[tuple[str, int]]) -> list[Entry]:
    out = []
    for off, (name, n) in enumerate(kinds, 1):
        body: Any
        key = None
        if name == "delta":
            body = [n % 3 + 1, f"<{off}>"]
        elif name == "tool.progress":
            body, key = {"call": f"k{n % 2}", "done": off}, f"k{n % 2}"
        elif name == "tool.open":
            body = {"call": f"k{n % 2}", "run": "r1", "name": "x", "origin": "", "args": {}, "risk": "read", "ts": off}
        else:
            body = {"part": n % 3 + 1, "len": off}
        out.append(Entry(off, name, key, off, encode(body)))
    return out


def _start() -> ConvReducer:
    fold = ConvReducer("c1")
    fold.fold("message.add", {"msg": "m1", "role": "assistant", "ts": 0, "parts": []})
    for part in (1, 2, 3):
        fold.fold("part.open", {"part": part, "msg": "m1", "run": "r1", "kind": "text", "ts": 0})
    for call in ("k0", "k1"):
        fold.fold("tool.open", {"call": call, "run": "r1", "name": "x", "ts": 0})
    return fold


def _read(objects: list[dict[str, Any]], fold: ConvReducer, cursor: int) -> int:
    for o in objects:
        if o["o"] <= cursor:
            continue
        assert o.get("p", o["o"] - 1) == cursor, "a hole"
        fold.fold(o["e"], o["d"])
        cursor = o["o"]
    return cursor


@given(
    st.lists(st.tuples(NAMES, st.integers(0, 5)), min_size=1, max_size=60),
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.integers(1, 200),
)
def test_any_cut_and_merge_folds_to_the_same_state(kinds: list[tuple[str, int]], cuts: list[int], limit: int) -> None:
    entries = _entries(kinds)
    plain = _start()
    for entry in entries:
        plain.fold(entry.name, json.loads(entry.body))
    merged = _start()
    cursor = at = 0
    for cut in [*cuts, len(entries)]:
        chunk = entries[at : at + cut]
        if not chunk:
            break
        objects = [json.loads(b"{" + t) for t in tails(chunk, cursor, limit=limit)]
        cursor = _read(objects, merged, cursor)
        at += cut
        assert cursor == chunk[-1].off
    if at < len(entries):
        objects = [json.loads(b"{" + t) for t in tails(entries[at:], cursor, limit=limit)]
        cursor = _read(objects, merged, cursor)
    assert merged.state == plain.state


@given(st.lists(st.tuples(NAMES, st.integers(0, 5)), min_size=2, max_size=60))
def test_a_merged_delta_names_a_part_once_and_only_the_newest_state_is_told(kinds: list[tuple[str, int]]) -> None:
    objects = [json.loads(b"{" + t) for t in tails(_entries(kinds), 0)]
    for o in objects:
        if o["e"] == "delta":
            assert len(o["d"][::2]) == len(set(o["d"][::2]))
    keys = [o["d"]["call"] for o in objects if o["e"] == "tool.progress"]
    assert len(keys) == len(set(keys))


def test_join_keeps_the_order_of_first_texts() -> None:
    assert join_deltas([2, "a", 1, "b", 2, "c"]) == [2, "ac", 1, "b"]


def test_a_frame_is_an_object_or_an_array_under_one_handle() -> None:
    one = tails(_entries([("delta", 0)]), 0)
    assert json.loads(frame(7, one)) == {"t": 7, "o": 1, "e": "delta", "d": [1, "<1>"]}
    two = tails(_entries([("part.close", 0), ("part.close", 1)]), 0, replay=True)
    assert [o["t"] for o in json.loads(frame(3, two))] == [3, 3]
    assert all(o["r"] == 1 for o in json.loads(frame(3, two)))
