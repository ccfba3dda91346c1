"""The scripted provider: what it says to what, that it calls only offered tools, and that it owns to being a script."""

from __future__ import annotations

import time
from importlib.metadata import entry_points
from typing import Any

import msgspec
import pytest

from sag.hooks.host import Extensions, PluginHost
from sag.hooks.provider import (
    CallFragment,
    CallRequest,
    Finish,
    Message,
    ModelRequest,
    ProviderError,
    Reasoning,
    StreamProvider,
    Text,
    TextPart,
    ToolSpec,
    UsageChunk,
    text_message,
)
from sag.ops.operation import Registry
from sag.settings import HubSettings, Settings
from sag.topics.reducers import FAMILIES
from sag_demo.provider import DemoProvider, words
from sag_demo.script import _LONG, answer

TOOLS = ["time_now", "calculate", "countdown", "note_add", "note_list", "note_delete"]


def request(*said: str | Message, tools: list[str] | None = None, **given: Any) -> ModelRequest:
    messages = [text_message("user", m) if isinstance(m, str) else m for m in said]
    specs = [ToolSpec(name, "", {}) for name in (TOOLS if tools is None else tools)]
    return ModelRequest("scripted", messages, specs, **given)


async def run(asked: ModelRequest) -> list[Any]:
    return [chunk async for chunk in DemoProvider(0).stream(asked)]


def text_of(chunks: list[Any]) -> str:
    return "".join(c.text for c in chunks if isinstance(c, Text))


def calls_of(chunks: list[Any]) -> list[tuple[str, Any]]:
    """Calls as the engine puts them together."""
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for c in chunks:
        if isinstance(c, CallFragment):
            if c.index not in names:
                assert c.id
                assert c.name
                names[c.index] = c.name
            texts[c.index] = texts.get(c.index, "") + c.arguments
    return [(names[i], msgspec.json.decode(texts[i])) for i in names]


def after(asked: str, *results: tuple[str, str]) -> ModelRequest:
    """The request that follows once tools have answered."""
    calls = [CallRequest(f"c{i}", name, "{}") for i, (name, _) in enumerate(results)]
    answers = [Message("tool", [TextPart(text)], f"c{i}") for i, (_, text) in enumerate(results)]
    return request(asked, Message("assistant", [*calls]), *answers)


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ("count down from 5", [("countdown", {"seconds": 5})]),
        ("Countdown 99999", [("countdown", {"seconds": 3600})]),
        ("time in Europe/Paris", [("time_now", {"zone": "Europe/Paris"})]),
        ("What time is it in New York?", [("time_now", {"zone": "New York"})]),
        ("what time is it?", [("time_now", {})]),
        ("What is 12 * 7?", [("calculate", {"expression": "12 * 7"})]),
        ("what is 15% of 80", [("calculate", {"expression": "15% of 80"})]),
        ("convert 5 miles to km please", [("calculate", {"expression": "5 miles to km"})]),
        ("20 degC to degF", [("calculate", {"expression": "20 degC to degF"})]),
        ("two tools", [("time_now", {}), ("calculate", {"expression": "6 * 7"})]),
        ("time and calculate", [("time_now", {}), ("calculate", {"expression": "6 * 7"})]),
        ("note: buy milk", [("note_add", {"text": "buy milk"})]),
        ("Add a note buy 12 * 7 eggs", [("note_add", {"text": "buy 12 * 7 eggs"})]),
        ("list notes", [("note_list", {})]),
        ("delete note a3f1", [("note_delete", {"id": "a3f1"})]),
        ("delete note last", [("note_list", {})]),
        ("delete the last note", [("note_list", {})]),
    ],
)
async def test_a_wish_calls_its_tool_with_arguments_in_pieces(said, calls):
    chunks = await run(request(said))
    assert calls_of(chunks) == calls
    assert chunks[-1] == Finish("tools")


@pytest.mark.parametrize("said", ["count down from 5", "two tools", "note: x", "delete note last"])
async def test_a_tool_that_is_not_offered_is_not_called(said):
    chunks = await run(request(said, tools=["time_now"]))
    assert calls_of(chunks) == []
    assert "not offered" in text_of(chunks)
    assert chunks[-1] == Finish("stop")


@pytest.mark.parametrize("said", ["my house is 2 km away", "it was on 2024-05-06", "I don't want to fail", "Hm, so?"])
async def test_anything_else_is_echoed_with_what_can_be_done(said):
    chunks = await run(request(said))
    assert said in text_of(chunks)
    assert "I am a script, not a model" in text_of(chunks)
    assert calls_of(chunks) == []


@pytest.mark.parametrize("said", ["hi", "Hello there", "who are you?", "", "help"])
async def test_a_greeting_says_that_it_is_no_model(said):
    assert "a script without any model behind it" in text_of(await run(request(said)))


async def test_every_round_ends_with_usage_and_finish_in_words():
    chunks = await run(request(text_message("system", "Be kind."), "hi"))
    assert chunks[-1] == Finish("stop")
    assert isinstance(chunks[-2], UsageChunk)
    said = [c for c in chunks if isinstance(c, Text)]
    assert chunks[-2].usage.input == 3
    assert chunks[-2].usage.output == len(said) == len(text_of(chunks).split())


async def test_markdown_has_headings_a_list_a_table_code_in_two_languages_a_link_and_a_quote():
    text = text_of(await run(request("show me markdown")))
    for piece in ("# ", "## ", "1. ", "- with", "| --- |", "```python", "```typescript", "](https://", "> "):
        assert piece in text


async def test_thinking_comes_before_the_answer():
    chunks = await run(request("think"))
    kinds = [type(c) for c in chunks if isinstance(c, Reasoning | Text)]
    assert kinds == sorted(kinds, key=lambda kind: kind is Text)
    assert {Reasoning, Text} == set(kinds)
    assert chunks[-2].usage.reasoning > 10


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("fail", "provider.overloaded"),
        ("fail rate", "provider.rate_limit"),
        ("fail auth", "provider.auth"),
        ("fail context", "provider.context"),
    ],
)
async def test_a_failure_on_wish_is_a_typed_error(said, kind):
    with pytest.raises(ProviderError) as raised:
        await run(request(said))
    assert raised.value.kind == kind
    assert (raised.value.after_ms == 1000) is (kind == "provider.rate_limit")


async def test_a_failure_midway_comes_after_some_text():
    chunks = []
    with pytest.raises(ProviderError) as raised:
        async for chunk in DemoProvider(0).stream(request("fail midway")):
            chunks.append(chunk)
    assert raised.value.kind == "provider.disconnected"
    assert text_of(chunks)


async def test_the_settings_are_told_as_they_were_sent():
    asked = request(text_message("system", "Talk like a pirate."), "settings", temperature=0.3, max_tokens=500)
    text = text_of(await run(asked))
    assert "temperature: 0.3" in text
    assert "max_tokens: 500" in text
    assert "Talk like a pirate." in text
    assert "temperature: not set" in text_of(await run(request("settings")))


async def test_a_long_reply_is_long_and_names_the_temperature_only_when_asked():
    text = text_of(await run(request("a long reply", temperature=0.7)))
    assert 380 <= len(text.split()) <= 450
    assert "0.7" not in text
    told = text_of(await run(request("long, with the temperature", temperature=0.7)))
    assert told.count("(The temperature is 0.7.)") == len(_LONG)


async def test_max_tokens_cuts_at_a_word_and_says_so():
    chunks = await run(request("long", max_tokens=7))
    assert len(text_of(chunks).split()) == 7
    assert chunks[-1] == Finish("length")
    assert chunks[-2].usage.output == 7


async def test_a_stop_sequence_ends_the_text():
    text = text_of(await run(request("long", stop=["hub", "never there"])))
    assert text
    assert "hub" not in text


# after tools


@pytest.mark.parametrize(
    ("asked", "results", "said"),
    [
        ("time in Rome", [("time_now", '{"zone":"Europe/Rome","time":"2026-07-01T14:00:00","weekday":"Wednesday"}')],
         "In Europe/Rome it is Wednesday, 2026-07-01 14:00:00."),
        ("1+1", [("calculate", "1+1 = 2")], "The result: **1+1 = 2**."),
        ("note: x", [("note_add", '{"id":"a1","text":"x"}')], "Noted as `a1`: x"),
        ("list notes", [("note_list", '{"notes":[]}')], "There are no notes yet."),
        ("list notes", [("note_list", '{"notes":[{"id":"a1","text":"x"}]}')], "Your notes:\n\n- `a1` x\n"),
        ("delete note a1", [("note_delete", "Error (denied): The user denied this call.")],
         "You did not allow `note_delete`, so I left it."),
        ("delete note a1", [("note_delete", "Error (error): There is no note 'a1'.")],
         "`note_delete` did not work (error): There is no note 'a1'."),
        ("delete note last", [("note_list", '{"notes":[]}')], "There are no notes, so there is nothing to delete."),
        ("count down from 1", [("countdown", "The countdown of 1 s is over.")],
         "`countdown` says: The countdown of 1 s is over."),
    ],
)  # fmt: skip
async def test_results_are_told_in_words(asked, results, said):
    chunks = await run(after(asked, *results))
    assert text_of(chunks) == said
    assert chunks[-1] == Finish("stop")


async def test_both_results_of_two_tools_are_told():
    text = text_of(
        await run(after("two tools", ("time_now", '{"zone":"UTC","time":"t"}'), ("calculate", "6 * 7 = 42")))
    )
    assert "In UTC it is" in text
    assert "6 * 7 = 42" in text


async def test_the_last_note_is_looked_up_and_then_deleted():
    chunks = await run(after("delete note last", ("note_list", '{"notes":[{"id":"a1"},{"id":"b2"}]}')))
    assert calls_of(chunks) == [("note_delete", {"id": "b2"})]
    done = request(
        "delete note last",
        Message("assistant", [CallRequest("c0", "note_list", "{}")]),
        Message("tool", [TextPart('{"notes":[{"id":"b2"}]}')], "c0"),
        Message("assistant", [CallRequest("c1", "note_delete", '{"id":"b2"}')]),
        Message("tool", [TextPart('{"deleted":"b2","text":"x"}')], "c1"),
    )
    assert "The note `b2` is deleted" in text_of(await run(done))


def test_results_of_an_earlier_turn_are_not_told_again():
    reply = answer(request(*after("1+1", ("calculate", "1+1 = 2")).messages, text_message("assistant", "2"), "hello"))
    assert reply.text.startswith("Hello!")


# the plugin


def load(table: dict[str, Any], env: dict[str, str]) -> tuple[PluginHost, Any]:
    host = PluginHost(
        Settings(HubSettings(), {"demo": table}, env),
        Registry(),
        Extensions(),
        dict(FAMILIES),
        entry_points(group="sag", name="demo"),
    )
    host.load()
    return host, host.extensions.providers.get("demo")


def test_the_provider_is_offered_as_a_demo_that_is_nobodys_default():
    host, provider = load({}, {})
    assert isinstance(provider, StreamProvider)
    (model,) = host.extensions.models(provider)
    assert (model.id, model.demo, model.default) == ("scripted", True, False)
    assert "offline" in model.label


async def pace(provider: Any) -> float:
    began = time.monotonic()
    chunks = [c async for c in provider.stream(request("zzz", max_tokens=5))]
    assert chunks
    return time.monotonic() - began


async def test_the_pace_is_a_setting_and_the_environment_wins():
    assert await pace(load({"token_ms": 40}, {})[1]) >= 0.19
    assert await pace(load({"token_ms": 1000}, {"SAG_DEMO_TOKEN_MS": "0"})[1]) < 0.19


def test_a_pace_that_is_none_is_told():
    host, _ = load({}, {"SAG_DEMO_TOKEN_MS": "fast"})
    assert host.plugins[0].notes == ["SAG_DEMO_TOKEN_MS is no number: 'fast'"]
    host, _ = load({"token_ms": -1}, {})
    assert "[demo] token_ms: Expected `float` >= 0.0" in (host.plugins[0].reason or "")


@pytest.mark.parametrize("text", ["", " ", "a", "a b\n\nc ", "\n- x\n"])
def test_words_join_to_the_text_again(text):
    assert "".join(words(text)) == text
