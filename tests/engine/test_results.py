"""What tools give: what people see of it, what the model reads, what is kept as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from sag.errors import Fault
from sag.hooks.provider import FilePart, Model
from sag.hooks.tool import BlobContent, LinkContent, Result, TableContent, TextContent
from sag.ops.dispatch import User
from sag.testing.provider import ScriptedProvider, call, say
from tests.connectors import FakeConnector, make_tool
from tests.engine.conftest import ADA, open_bench

Json = dict[str, Any]
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
GIVE = call(("give__it", {}))


def giving(*results: Any) -> FakeConnector:
    """A connector whose tool gives one result after the other."""
    left = list(results)

    async def it(args: Any, ctx: Any) -> Any:
        result = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(result, BaseException):
            raise result
        return result

    return FakeConnector("give", make_tool("it", it))


async def outcome(bench: Any, result: Any, **hub: Any) -> tuple[Any, Json, Any]:
    """The bench, the call as the state has it, and what the model was told of it."""
    opened = await bench(GIVE, say("done"), connectors=[giving(result)], **hub)
    state = await opened.end(await opened.start("go"))
    (tool,) = state["tools"].values()
    return opened, tool, opened.provider.requests[1].messages[-1]


async def test_a_result_of_every_kind_is_kept_as_json_and_told_in_words(bench: Any) -> None:
    result = Result(
        [
            TextContent("Two people."),
            TableContent(["name", "free_h"], [["Ana Berg", 12.5], ["Jon Dahl", None]], "Free"),
            BlobContent("image/png", PNG, "plot.png"),
            BlobContent("audio/wav", b"RIFF....WAVE", "said.wav"),
            LinkContent("file:///log.txt", "log", "The log", "What was done", "text/plain"),
        ],
        {"people": 2},
    )
    hub, tool, told = await outcome(bench, result)
    text, table, image, sound, link = tool["result"]["content"]
    assert tool["result"]["data"] == {"people": 2}
    assert text == {"kind": "text", "text": "Two people."}
    rows = [["Ana Berg", 12.5], ["Jon Dahl", None]]
    assert table == {"kind": "table", "columns": ["name", "free_h"], "rows": rows, "title": "Free"}
    assert {k: v for k, v in image.items() if k != "ref"} == {
        "kind": "image", "mime": "image/png", "name": "plot.png", "size": len(PNG),
    }  # fmt: skip
    assert (sound["kind"], sound["mime"]) == ("file", "audio/wav")
    assert link["uri"] == "file:///log.txt"
    assert "ref" not in tool
    for kept, data in ((image, PNG), (sound, b"RIFF....WAVE")):
        blob, found = await hub.app.blobs.get(ADA.id, kept["ref"])
        assert (found, blob.name) == (data, kept["name"])
        with pytest.raises(Fault):
            await hub.app.blobs.get("bob", kept["ref"])
    for words in ("Two people.", '"Ana Berg",12.5', "plot.png", "said.wav", "The log", "file:///log.txt"):
        assert words in told.text
    assert str(PNG) not in told.text
    assert not told.failed


class Seeing(ScriptedProvider):
    """A provider whose model has these abilities."""

    def __init__(self, abilities: list[str] | None, *scripts: Any) -> None:
        super().__init__(*scripts)
        self._abilities = abilities

    def models(self) -> Sequence[Model]:
        return [Model("m", default=True, abilities=self._abilities)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("abilities", "sees"),
    [(["tools", "images"], True), (["tools"], False), (None, True)],
    ids=["sees", "blind", "unknown"],
)
async def test_an_image_reaches_a_model_that_sees_and_becomes_words_for_one_that_does_not(
    tmp_path: Any, abilities: list[str] | None, sees: bool
) -> None:
    provider = Seeing(abilities, GIVE, say("done"))
    result = Result([TextContent("Here."), BlobContent("image/png", PNG, "plot.png")])
    hub = await open_bench(tmp_path, provider, [giving(result)])
    try:
        await hub.end(await hub.start("go"))
        message = provider.requests[1].messages[-1]
        files = [p for p in message.parts if isinstance(p, FilePart)]
        assert message.role == "tool"
        assert [(f.mime, f.name, f.data) for f in files] == ([("image/png", "plot.png", PNG)] if sees else [])
        assert ("which this model cannot read" in message.text) is not sees
        assert "plot.png" in message.text
    finally:
        await hub.app.engine.drain(0)
        await hub.app.stop()


@pytest.mark.parametrize(
    ("given", "kept", "words"),
    [
        ("text", "text", "text"),
        ("", "", ""),
        (None, None, "null"),
        (7, 7, "7"),
        ([1, {"a": None}], [1, {"a": None}], '[1,{"a":null}]'),
        ({"content": 3}, {"content": 3}, '{"content":3}'),
        ({1: "key"}, {"1": "key"}, '{"1":"key"}'),
        ({"raw": b"ab"}, {"raw": "YWI="}, '{"raw":"YWI="}'),
        (math.inf, None, "null"),
        (Result(), {"content": []}, ""),
        (Result(data=[1]), {"content": [], "data": [1]}, "[1]"),
        (Result([TextContent("one")], [1]), {"content": [{"kind": "text", "text": "one"}], "data": [1]}, "one"),
    ],
)
async def test_a_plain_result_is_json_and_text_is_told_as_it_is(bench: Any, given: Any, kept: Any, words: str) -> None:
    hub, tool, told = await outcome(bench, given)
    assert tool["status"] == "ok"
    assert tool.get("result") == kept
    assert told.text == words
    msgspec.json.decode(msgspec.json.encode(tool))


@dataclass
class Point:
    x: int


async def test_what_is_no_json_is_an_error_and_a_dataclass_is_json(bench: Any) -> None:
    circle: list[Any] = []
    circle.append(circle)
    wrong = [
        object(),
        circle,
        {"a": {object()}},
        Result(data=object()),
        Result([TextContent("a")], {"b": circle}),
        "\ud800",
    ]
    count = len(wrong)
    hub = await bench(*[GIVE] * (count + 1), say("done"), connectors=[giving(*wrong, Point(3))])
    state = await hub.end(await hub.start("go", config={"rounds": count + 3}))
    tools = list(state["tools"].values())
    assert [t["status"] for t in tools] == ["error"] * count + ["ok"]
    assert all("cannot be shown" in t["error"]["message"] for t in tools[:count])
    assert tools[-1]["result"] == {"x": 3}


async def test_a_long_text_is_shown_cut_and_the_whole_is_kept(bench: Any) -> None:
    text = "ä" * 200_000
    hub, tool, told = await outcome(bench, text)
    assert tool["status"] == "ok"
    assert len(tool["result"]) < 70_000
    assert tool["result"].endswith("\n[cut: the result has 400000 bytes]")
    assert told.text == tool["result"]
    blob, data = await hub.app.blobs.get(ADA.id, tool["ref"])
    assert (data.decode(), blob.mime, blob.name) == (text, "text/plain", "it.txt")


async def test_long_json_is_shown_cut_and_the_whole_is_kept(bench: Any) -> None:
    rows = [{"n": n, "text": "x" * 100} for n in range(5000)]
    hub, tool, _ = await outcome(bench, rows)
    assert tool["result"].startswith('[{"n":0,')
    blob, data = await hub.app.blobs.get(ADA.id, tool["ref"])
    assert (msgspec.json.decode(data), blob.mime, blob.name) == (rows, "application/json", "it.json")


async def test_what_is_small_of_a_long_result_is_still_seen(bench: Any) -> None:
    result = Result(
        [TextContent("x" * 300_000), BlobContent("image/png", PNG, "plot.png"), TextContent("the end")],
        {"n": ["y" * 300_000]},
    )
    hub, tool, told = await outcome(bench, result)
    content = tool["result"]["content"]
    assert [c["kind"] for c in content] == ["text", "image", "text", "text"]
    assert content[0]["text"].startswith("xxx")
    assert content[2]["text"] == "the end"
    assert content[3]["text"].startswith("[cut: the result has ")
    assert len(msgspec.json.encode(tool["result"])) < 70_000
    assert [p.name for p in told.parts if isinstance(p, FilePart)] == ["plot.png"]
    _, data = await hub.app.blobs.get(ADA.id, tool["ref"])
    assert msgspec.json.decode(data)["data"] == {"n": ["y" * 300_000]}


async def test_long_content_of_any_shape_is_cut(bench: Any) -> None:
    odd = {"content": ["x" * 300_000, 7, {"kind": "new"}, {"kind": "text", "text": ["y" * 300_000]}, None]}
    _, tool, _ = await outcome(bench, odd)
    assert tool["result"]["content"][:-1] == [7, {"kind": "new"}, None]
    assert tool["ref"]


@pytest.mark.parametrize("what", ["text", "file"])
async def test_what_is_larger_than_a_file_may_be_is_an_error(bench: Any, what: str) -> None:
    hub = await bench(GIVE, say("done"), connectors=[giving("x" * 600_000 if what == "text" else
                      Result([BlobContent("image/png", PNG * 6000, "plot.png")]))])  # fmt: skip
    hub.app.engine.file_bytes = 500_000
    state = await hub.end(await hub.start("go"))
    (tool,) = state["tools"].values()
    assert tool["status"] == "error"
    assert "too large" in tool["error"]["message"]
    assert "too large" in hub.provider.requests[1].messages[-1].text


async def test_a_link_or_a_table_with_odd_values_harms_nothing(bench: Any) -> None:
    result = Result([LinkContent(""), TableContent([], []), TableContent(["a"], [[{"x": [1]}], []])])
    _, tool, told = await outcome(bench, result)
    assert [c["kind"] for c in tool["result"]["content"]] == ["link", "table", "table"]
    assert told.text == '[link]\n[[]]\n[["a"],[{"x":[1]}],[]]'


async def test_results_are_the_users_own(bench: Any) -> None:
    hub, tool, _ = await outcome(bench, Result([BlobContent("image/png", PNG)]))
    (image,) = tool["result"]["content"]
    assert image["name"] == ""
    with pytest.raises(Fault):
        await hub.app.blobs.get(User("bob", "Bob").id, image["ref"])


async def test_a_text_file_of_a_result_is_read_by_the_model(bench: Any) -> None:
    """Its bytes are kept as a file; the model is told its name at least."""
    _, tool, told = await outcome(bench, Result([BlobContent("text/csv", b"a,b\n1,2\n", "rows.csv")]))
    assert tool["result"]["content"][0]["kind"] == "file"
    assert "rows.csv" in told.text
