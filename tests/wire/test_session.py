"""The session machine: what frames mean, in which phase."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sag.wire import frames
from sag.wire.closing import ALL, BAD_FRAME
from sag.wire.session import End, Hello, Notice, Phase, Ping, Pong, Refuse, Request, Response, SessionMachine


def _open() -> SessionMachine:
    machine = SessionMachine(inflight=2)
    machine.receive('{"id":1,"method":"hello","params":{}}')
    machine.greeted()
    return machine


def test_hello_comes_first_and_alone() -> None:
    machine = SessionMachine()
    (refused,) = machine.receive('{"id":5,"method":"run.start"}')
    assert isinstance(refused, Refuse)
    assert (refused.id, refused.fault.kind, refused.fault.code) == (5, "hello.first", 401)
    assert machine.receive('{"id":1,"method":"hello","params":{"v":1}}') == [Hello(1, b'{"v":1}')]
    (early,) = machine.receive('{"id":2,"method":"run.start"}')
    assert isinstance(early, Refuse)
    machine.greeted()
    assert machine.receive('{"id":2,"method":"run.start"}') == [Request(2, "run.start", b"")]
    (second,) = machine.receive('{"id":3,"method":"hello"}')
    assert isinstance(second, Refuse)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ('{"id":"a","method":"m","params":{"x":1}}', Request("a", "m", b'{"x":1}')),
        ('{"method":"rpc.cancel","params":{"id":1}}', Notice("rpc.cancel", b'{"id":1}')),
        ('{"id":"s1","result":{}}', Response("s1", b"{}", b"")),
        ('{"id":"s1","error":{"code":1}}', Response("s1", b"", b'{"code":1}')),
        ('{"pong":12}', Pong()),
        ('{"ping":12}', Ping(b"12")),
        ('{"jsonrpc":"2.0","method":"m","more":{}}', Notice("m", b"")),
    ],
)
def test_kinds_are_told_apart_by_their_members(text: str, meaning: object) -> None:
    assert _open().receive(text) == [meaning]


def test_an_array_is_a_batch_and_its_bad_objects_are_answered_one_by_one() -> None:
    acts = _open().receive('[{"pong":1},{"id":9,"method":"m"},{"x":1}]')
    assert acts[0] == Pong()
    assert acts[1] == Request(9, "m", b"")
    assert isinstance(acts[2], Refuse)
    assert acts[2].fault.code == -32600


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", -32700), ("nonsense", -32700), ("[]", -32600), ("5", -32600), ('{"id":1.5,"method":"m"}', -32600),
     ('{"id":null,"method":"m"}', -32600), ("[" * 5000 + "]" * 5000, -32700), ('{"a":NaN}', -32700)],
)  # fmt: skip
def test_bad_frames_are_answered_and_the_third_in_a_row_ends_it(text: str, code: int) -> None:
    machine = _open()
    for _ in range(2):
        (refused,) = machine.receive(text)
        assert isinstance(refused, Refuse)
        assert (refused.id, refused.fault.code) == (None, code)
    machine.receive('{"pong":1}')
    assert [len(machine.receive(text)) for _ in range(2)] == [1, 1]
    assert machine.receive(text)[-1] == End(BAD_FRAME)
    assert machine.phase is Phase.CLOSED
    assert machine.receive('{"pong":1}') == []


def test_requests_beyond_the_limit_and_used_ids_are_refused() -> None:
    machine = _open()
    assert machine.receive('[{"id":1,"method":"m"},{"id":2,"method":"m"}]') == [
        Request(1, "m", b""),
        Request(2, "m", b""),
    ]
    used, many = machine.receive('[{"id":1,"method":"m"},{"id":3,"method":"m"}]')
    assert isinstance(used, Refuse)
    assert isinstance(many, Refuse)
    assert many.fault.code == 429
    machine.answered(1)
    assert machine.receive('{"id":3,"method":"m"}') == [Request(3, "m", b"")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.sampled_from(["e", "id", "method", "params", "result", "error", "ping", "pong", "x"])


@given(st.lists(st.dictionaries(MEMBERS, JSON, max_size=4) | JSON, max_size=5), st.booleans())
def test_no_text_breaks_the_machine(objects: list[Any], many: bool) -> None:
    machine = _open()
    text = json.dumps(objects if many else (objects or [None])[0])
    for act in machine.receive(text):
        assert isinstance(act, Hello | Request | Notice | Response | Pong | Ping | Refuse | End)


@given(st.binary(max_size=200_000).map(lambda b: b * 3))
def test_a_websocket_frame_gives_its_payload_back(payload: bytes) -> None:
    assert frames.websocket_payload(frames.websocket_text(payload)) == payload


def test_close_codes_say_whether_to_come_back() -> None:
    assert {c.code for c in ALL} == {*range(4000, 4006), *range(4500, 4506)}
    assert all(c.reconnect == (c.code < 4500) for c in ALL)
