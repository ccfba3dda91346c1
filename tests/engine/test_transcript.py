"""What a model is sent of a conversation."""

from __future__ import annotations

from typing import Any

from sag.engine.toolbox import Toolbox, legal_name
from sag.engine.transcript import CUT, build, content_text, result_text
from sag.hooks.tool import Tool


def _user(msg: str, run: str | None, text: str) -> dict[str, Any]:
    return {"msg": msg, "role": "user", "run": run, "parts": [{"kind": "text", "text": text, "open": False}]}


def _said(msg: str, run: str, *parts: dict[str, Any]) -> dict[str, Any]:
    numbered = [{"part": i, "kind": "text", "text": "", "open": False, **p} for i, p in enumerate(parts)]
    return {"msg": msg, "role": "assistant", "run": run, "parts": numbered}


def _state(messages: list[dict[str, Any]], runs: dict[str, int], tools: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"messages": messages, "runs": {r: {"begun": n} for r, n in runs.items()}, "tools": tools or {}, "asks": {}}


def _texts(state: dict[str, Any], run: str, system: str | None = None) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in build(state, run, system, legal_name)]


def test_a_run_sees_those_that_began_before_it_in_their_order_and_not_the_queue() -> None:
    state = _state(
        [
            _user("m1", "r1", "one"),
            _user("m2", "r2", "two"),
            _said("m3", "r1", {"text": "ONE"}),
            _user("m4", "r3", "three"),
        ],
        {"r1": 1, "r2": 2, "r3": 3},
    )
    assert _texts(state, "r1") == [("user", "one"), ("assistant", "ONE")]
    assert _texts(state, "r2", "be kind") == [
        ("system", "be kind"), ("user", "one"), ("assistant", "ONE"), ("user", "two"),
    ]  # fmt: skip


def test_a_steer_comes_after_the_last_tool_result() -> None:
    tools = {"k1": {"name": "a.b", "args": {"x": 1}, "status": "ok", "result": {"y": 2}}}
    state = _state(
        [
            _user("m1", "r1", "go"),
            _said("m2", "r1", {"kind": "tool_args", "call": "k1", "text": '{"x":1}'}),
            _user("m3", "r1", "wait"),
        ],
        {"r1": 1},
        tools,
    )
    messages = build(state, "r1", None, legal_name)
    assert [m.role for m in messages] == ["user", "assistant", "tool", "user"]
    assert messages[1].calls[0].name == legal_name("a.b")
    assert (messages[2].call, messages[2].text) == ("k1", '{"y":2}')


def test_a_cut_round_that_was_done_again_is_hidden_and_one_that_a_person_stopped_is_marked() -> None:
    again = _state(
        [
            _user("m1", "r1", "go"),
            _said("m2", "r1", {"text": "ha", "partial": True}),
            _said("m3", "r1", {"text": "half"}),
        ],
        {"r1": 1},
    )
    assert _texts(again, "r1") == [("user", "go"), ("assistant", "half")]
    stopped = _state(
        [_user("m1", "r1", "go"), _said("m2", "r1", {"text": "ha", "partial": True}), _user("m3", "r2", "and?")],
        {"r1": 1, "r2": 2},
    )
    assert _texts(stopped, "r2")[1] == ("assistant", f"ha\n{CUT}")


def test_every_call_has_its_answer_whatever_became_of_it() -> None:
    for status in ("denied", "cancelled", "lost", "timeout", "invalid", "error"):
        assert result_text({"status": status}).startswith(f"Error ({status}): ")
    assert result_text({"status": "invalid", "error": {"message": "no x"}}) == "Error (invalid): no x"
    assert content_text({"content": [{"kind": "text", "text": "shown"}]}) == "shown"
    assert content_text([1, "a"]) == '[1,"a"]'


async def _nothing(args: Any, ctx: Any) -> None:
    return None


def test_names_are_legal_and_unique_and_switched_tools_are_gone() -> None:
    tools = [Tool(n, "", {"type": "object"}, _nothing) for n in ("a.b", "a/b", "c", "d")]
    box = Toolbox(tools, {"c": False})
    dotted, slashed, plain = [s.name for s in box.specs()]
    assert (dotted[:4], slashed[:4], plain) == ("a_b_", "a_b_", "d")
    assert dotted != slashed
    found = box.find(slashed)
    assert found is not None
    assert found.name == "a/b"
    assert box.find("c") is None
