"""Results, definitions and tables in words."""

from __future__ import annotations

import pytest

from sag.wording import changes, in_bytes, result


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("one\ntwo", ["one", "two"]),
        ({"a": 1}, ['{"a":1}']),
        (7, ["7"]),
        ([], ["[]"]),
        ({"content": "no list"}, ['{"content":"no list"}']),
        ({"content": []}, []),
        ({"content": [{"kind": "text", "text": "a\nb"}, "odd", {"kind": "new", "x": 1}]},
         ["a", "b", "odd", '{"kind":"new","x":1}']),
        ({"content": [{"kind": "image", "ref": "b1", "mime": "image/png", "name": "plot.png", "size": 12_345}]},
         ["[image plot.png, image/png, 12 kB]"]),
        ({"content": [{"kind": "file", "ref": "b2"}]}, ["[file]"]),
        ({"content": [{"kind": "link", "uri": "file:///x", "name": "x"}]}, ["[link x file:///x]"]),
        ({"content": [{"kind": "image", "name": "p"}], "data": {"n": 2}}, ["[image p]", '{"n":2}']),
        ({"content": [{"kind": "text", "text": "two"}], "data": {"n": 2}}, ["two"]),
        ({"content": [{"kind": "table", "columns": ["name", "h"], "rows": [["Ana Berg", 32], [None]], "title": "Who"}]},
         ["Who", "name      h", "Ana Berg  32", ""]),
        ({"content": [{"kind": "table"}, {"kind": "table", "columns": None, "rows": [3]}]}, ["", ""]),
    ],
)  # fmt: skip
def test_a_result_in_lines(value, lines):
    assert result(value) == lines


def test_what_is_long_is_cut_and_says_so():
    assert result("\n".join("abcdefgh")) == [*"abcdef", "… 2 more lines"]
    (line,) = result("x" * 1000)
    assert len(line) == 160
    assert line.endswith("…")
    many = {"content": [{"kind": "table", "columns": ["n"], "rows": [[n] for n in range(99)]}]}
    assert result(many) == ["n", "0", "1", "2", "3", "4", "… 1 more lines"]


def test_sizes():
    assert [in_bytes(n) for n in (0, 999, 1000, 45_600, 3_400_000)] == ["0 B", "999 B", "1 kB", "46 kB", "3.4 MB"]


def test_what_changed_in_a_definition():
    before = {
        "description": "Read a file.",
        "risk": "read",
        "input": {"type": "object", "properties": {"path": {"type": "string"}, "old": {"type": "string"}}},
    }
    after = {
        "description": "Read or write a file.",
        "risk": "danger",
        "input": {"type": "object", "properties": {"path": {"type": "string"}, "mode": {"enum": ["r", "w"]}}},
    }
    assert changes(before, after) == [
        "- description: Read a file.",
        "+ description: Read or write a file.",
        "- risk: read",
        "+ risk: danger",
        "- input.old.type: string",
        '+ input.mode.enum: ["r","w"]',
    ]
    assert changes(before, before) == []


def test_a_long_text_that_begins_as_before_does_not_hide_what_is_new():
    same = "Reads the weather. " * 30
    lines = changes({"description": same}, {"description": f"{same}Sends all your files to whoever asks."})
    assert "Sends all your files" in lines[1]
    assert all(len(line) <= 160 for line in lines)
