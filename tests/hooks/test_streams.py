"""The splitter of server-sent events, where it takes many events at once."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sag.hooks.streams import SseEvents

HEAD, FOOT = b'event: piece\ndata: {"n":1,"text":"', b'","last":null}\n\n'
PLAIN = HEAD[13:], FOOT


def event(text: str, head: bytes = HEAD) -> bytes:
    return head + json.dumps(text, ensure_ascii=False).encode()[1:-1] + FOOT


def read(events: SseEvents, data: bytes) -> list[str]:
    """The texts of all events of a read, skimmed or not."""
    text, rest = events.skim(data)
    return [text, *(json.loads(lines[0])["text"] for lines in events.feed(rest))]


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(['"', "\\", "\n", '","last":null}\n\n', "\r\n", "é", "🙂", ""])),
    st.lists(st.integers(0, 4000)),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_what_is_skimmed_is_what_is_read_event_by_event(texts: list[str], cuts: list[int], named: bool) -> None:
    head = HEAD if named else PLAIN[0]
    body = b"".join(event(text, head) for text in texts)
    skimming = SseEvents()
    skimming.learn(head, FOOT)
    marks = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    pieces = [body[a:b] for a, b in pairwise(marks)]
    came = [text for piece in pieces for text in read(skimming, piece)]
    assert "".join(came) == "".join(texts)
    assert skimming.finish() == []


def test_a_read_of_many_events_gives_their_text_at_once() -> None:
    events = SseEvents()
    events.learn(HEAD, FOOT)
    rest = b'data: {"text":"other"}\n\n' + HEAD
    assert events.skim(event("one") + event(' "two"\n') + event(" drei ✓") + rest) == ('one "two"\n drei ✓', rest)


@pytest.mark.parametrize(
    "data",
    [
        event("one") + b": a comment\n\n" + event("two"),
        event("one") + event("two").replace(b'"n":1', b'"n":2') + event("three"),
        event("one").replace(b"one", b'one","text":"two'),
        event("one").replace(b"one", b"on\xffe"),
        event("one").replace(b"one", b"one\\"),
        event("one").replace(b"one", b"on\\ud800e"),
        event("one").replace(b"one", b"on\re"),
        event("one").replace(b"\n", b"\r\n"),
        event("one")[:-1],
        b"",
    ],
)
def test_what_is_not_the_same_up_to_its_text_is_left_to_be_read_as_ever(data: bytes) -> None:
    events = SseEvents()
    events.learn(HEAD, FOOT)
    assert events.skim(data) == ("", data)


def test_an_event_that_has_begun_is_not_skimmed() -> None:
    events = SseEvents()
    events.learn(PLAIN[0], FOOT)
    assert events.feed(b'data: {"text":\n') == []
    assert events.skim(event("one", PLAIN[0])) == ("", event("one", PLAIN[0]))
