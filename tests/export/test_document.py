"""What an export says, made from a state alone."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from sag.engine.export import DEEPEST, Document, file_refs, make_document
from sag.secret import remember
from tests.export.samples import TS, dialogue

Json = dict[str, Any]


def test_a_run_is_told_with_its_place_in_the_world_outside() -> None:
    document = make_document(dialogue(), TS + 1, "r1")
    assert (document["id"], document["status"], document["error_message"]) == ("r1", "completed", None)
    assert document["exported_at"] == TS + 1
    assert [m["msg"] for m in document["messages"]] == ["m1", "m2", "m3", "m4", "m5"]
    assert set(document["tools"]) == {"k1", "k2", "k3"}
    assert document["runs"]["r1"]["titles"] == {"b0": "Optimist", "b1": "Skeptic"}
    assert [change["step"] for change in document["runs"]["r1"]["changes"]] == [1, 2]
    assert document["conversation"] == {
        **dialogue()["conv"], "created": TS, "config": {"temperature": 0.2}, "rev": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "outside"),
    [("queued", "running"), ("running", "running"), ("waiting", "running"), ("paused", "running"),
     ("done", "completed"),
     ("cancelled", "cancelled"), ("failed", "error"), ("limit", "error"), ("interrupted", "error")],
)  # fmt: skip
def test_a_status_has_outside_words(status: str, outside: str) -> None:
    state = dialogue()
    state["runs"]["r1"]["status"] = status
    if status in ("failed", "limit"):
        state["runs"]["r1"]["error"] = {"kind": "run.limit", "message": "Enough.", "retry": False}
    document = make_document(state, TS, "r1")
    assert document["status"] == outside
    assert (document["error_message"] is not None) == (outside == "error")


def test_a_run_leaves_out_what_is_of_others() -> None:
    state = dialogue()
    state["runs"]["r2"] = {**state["runs"]["r1"]}
    state["messages"].append({"msg": "m9", "role": "user", "run": "r2", "ts": TS, "parent": "m1", "parts": []})
    state["tools"]["k9"] = {**state["tools"]["k3"], "run": "r2"}
    document = make_document(state, TS, "r2")
    assert (set(document["runs"]), set(document["tools"])) == ({"r2"}, {"k9"})
    assert [m["msg"] for m in document["messages"]] == ["m9"]
    assert "parent" not in document["messages"][0], "what it names is not there"


def test_a_document_fits_its_declaration() -> None:
    document = make_document(dialogue(), TS)
    document["files"] = file_refs(document)
    assert set(document["files"]) == {"f1"}
    msgspec.convert(document, Document)


def test_members_that_are_secret_by_their_name_do_not_appear() -> None:
    state = dialogue()
    secret = {
        "extra": {"api_key": "sk-1234", "clientSecret": "s", "maxTokens": 3, "headers": {"Authorization": "Bearer x"}},
        "max_tokens": 7,
    }
    state["conv"]["config"] = copy.deepcopy(secret)
    state["runs"]["r1"] |= {"config": copy.deepcopy(secret), "base": copy.deepcopy(secret)}
    state["runs"]["r1"]["changes"][0]["patch"] = copy.deepcopy(secret)
    document = make_document(state, TS, "r1")
    text = msgspec.json.encode(document).decode()
    assert "sk-1234" not in text
    assert "Bearer" not in text
    assert document["runs"]["r1"]["config"] == {
        "extra": {
            "api_key": {"set": True},
            "clientSecret": {"set": True},
            "maxTokens": 3,
            "headers": {"Authorization": {"set": True}},
        },
        "max_tokens": 7,
    }


def test_a_secret_that_the_hub_knows_is_blotted_out_wherever_it_stands() -> None:
    remember("planted-secret-4711")
    state = dialogue()
    state["tools"]["k2"]["result"] = {"data": {"echo": ["planted-secret-4711"]}}
    state["messages"][0]["parts"][0]["text"] = "it is planted-secret-4711!"
    assert "4711" not in msgspec.json.encode(make_document(state, TS)).decode()


def test_what_was_allowed_for_a_run_is_not_given_out() -> None:
    state = dialogue()
    state["runs"]["r1"]["allow"] = {"mail_send": True}
    assert "allow" not in make_document(state, TS)["runs"]["r1"]


def test_what_is_nested_too_deeply_is_left_out() -> None:
    state = dialogue()
    deep: Any = "end"
    for _ in range(700):
        deep = [deep]
    state["tools"]["k2"]["result"] = deep
    document = make_document(state, TS)
    msgspec.json.encode(document)
    levels, value = 0, document["tools"]["k2"]["result"]
    while isinstance(value, list):
        levels, value = levels + 1, value[0]
    assert value == "[nested too deeply]"
    assert levels < DEEPEST
