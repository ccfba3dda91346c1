"""What a tool does while it works: it writes, tells progress, asks people and the model, and is stopped."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sag.engine import context as context_module
from sag.hooks.provider import ProviderError
from sag.hooks.tool import BlobContent, Content, SampleMessage, TextContent, ToolError
from sag.testing.provider import ScriptedProvider, call, say
from tests.connectors import FakeConnector, make_tool
from tests.engine.conftest import CALLED

Json = dict[str, Any]
WORK = call(("work__it", {}))


def working(do: Any, **given: Any) -> FakeConnector:
    return FakeConnector("work", make_tool("it", do, **given))


async def outcome(bench: Any, do: Any, *scripts: Any, **given: Any) -> tuple[Any, Any, Json, Json]:
    """The bench, what was started, the state at the end and the call in it."""
    hub = await bench(WORK, *(scripts or [say("done")]), connectors=[working(do, **given)])
    started = await hub.start("go")
    state = await hub.end(started)
    (tool,) = state["tools"].values()
    return hub, started, state, tool


async def asked(hub: Any, started: Any, count: int = 1) -> list[str]:
    state = await hub.until(started["conv"], lambda s: len(s["asks"]) == count)
    return list(state["asks"])


def written(state: Json) -> list[tuple[str, str, bool]]:
    """The parts that tools wrote: the call, the text, whether it is open."""
    parts = [p for m in state["messages"] for p in m["parts"] if p["kind"] == "tool_output"]
    return [(p["call"], p["text"], p["open"]) for p in parts]


# --- output ---


async def test_what_a_call_writes_is_a_part_of_its_message_and_not_told_to_the_model(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        for text in ("one\n", "", "two ", "\u00fc\0\n"):
            await ctx.output(text)
        await ctx.progress(1)
        return "result"

    hub, started, state, tool = await outcome(bench, do)
    ((call_id, text, is_open),) = written(state)
    assert (state["tools"][call_id], text, is_open) == (tool, "one\ntwo \u00fc\0\n", False)
    assert not any("two" in m.text for m in hub.provider.requests[1].messages)
    names = [name for name, _ in await hub.events(started["conv"])]
    assert names.index("tool.open") < names.index("part.open", names.index("tool.open")) < names.index("tool.close")
    assert hub.texts(state)[-1] == "done"
    assert state["messages"][1]["finish"] == "tools"


async def test_several_calls_write_at_once_each_into_its_own_part(bench: Any) -> None:
    here = asyncio.Barrier(3)

    async def do(args: Any, ctx: Any) -> str:
        for n in range(5):
            await here.wait()
            await ctx.output(f"{args['n']}{n} ")
        return "ok"

    hub = await bench(
        call(*(("work__it", {"n": n}) for n in "abc")), say("done"), connectors=[working(do, input={"type": "object"})]
    )
    state = await hub.end(await hub.start("go"))
    assert sorted(text for _, text, _ in written(state)) == [
        "a0 a1 a2 a3 a4 ", "b0 b1 b2 b3 b4 ", "c0 c1 c2 c3 c4 ",
    ]  # fmt: skip
    assert len({call_id for call_id, _, _ in written(state)}) == 3


async def test_much_output_goes_on_in_further_parts_and_ends_somewhere(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        await ctx.output("x" * 100_000)
        for _ in range(40):
            await ctx.output("\x01" * 50_000)
        return "ok"

    _, _, state, tool = await outcome(bench, do)
    assert tool["status"] == "ok"
    text = "".join(text for _, text, _ in written(state))
    assert text == "x" * 100_000 + "\x01" * ((1 << 20) - 100_000)
    assert all(len(text) * 6 <= 256 << 10 for _, text, _ in written(state) if text[0] == "\x01")
    assert not any(is_open for _, _, is_open in written(state))


async def test_what_is_written_after_the_end_is_dropped(bench: Any) -> None:
    contexts: list[Any] = []

    async def do(args: Any, ctx: Any) -> str:
        contexts.append(ctx)
        await ctx.output("in time")
        return "ok"

    hub, _, state, _ = await outcome(bench, do)
    assert contexts[0].cancelled
    await contexts[0].output("late")
    await contexts[0].progress(9)
    with pytest.raises(ToolError, match="over"):
        await contexts[0].ask("Late?")
    with pytest.raises(ToolError, match="over"):
        await contexts[0].sample([SampleMessage("user", [TextContent("?")])])
    assert [text for _, text, _ in written(state)] == ["in time"]
    assert "progress" not in next(iter(state["tools"].values()))
    assert len(hub.provider.requests) == 2


async def test_a_cancelled_run_closes_what_its_tools_wrote(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> None:
        await ctx.output("half a li")
        await asyncio.sleep(30)

    hub = await bench(WORK, connectors=[working(do)])
    started = await hub.start("go")
    await hub.until(started["conv"], written)
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    ((_, text, is_open),) = written(state)
    assert (text, is_open) == ("half a li", False)
    hub.provider._scripts = [say("further")]
    state = await hub.end(await hub.start("and?", conv=started["conv"]))  # the next run reads the transcript
    assert hub.texts(state)[-1] == "further"


# --- time ---


async def test_progress_gives_a_call_its_time_again_up_to_the_longest(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> None:
        while True:
            await ctx.progress(1)
            await asyncio.sleep(0.05)

    began = time.monotonic()
    _, _, _, tool = await outcome(bench, do, timeout_s=0.3, longest_s=0.9)
    assert tool["status"] == "timeout"
    assert tool["error"] == {"kind": "tool.timeout", "message": "No answer within 0.9 s."}
    assert 0.85 < time.monotonic() - began < 3
    assert 850 < tool["ms"] < 2500


async def test_the_newest_progress_is_told_at_the_end_of_a_call(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        for n in range(100):
            await ctx.progress(n, 100)
        return "ok"

    hub, started, _, tool = await outcome(bench, do)
    assert (tool["status"], tool["progress"]["done"]) == ("ok", 99)
    told = [d["done"] for name, d in await hub.events(started["conv"]) if name == "tool.progress"]
    assert told[0] == 0
    assert len(told) <= 5


async def test_a_call_that_falls_silent_after_progress_has_its_time_from_then_on(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> None:
        for _ in range(6):
            await ctx.progress(1)
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)

    _, _, _, tool = await outcome(bench, do, timeout_s=0.3, longest_s=20)
    assert (tool["status"], tool["error"]["message"]) == ("timeout", "No answer within 0.3 s.")
    assert 700 < tool["ms"] < 2500


async def test_a_timeout_within_a_tool_is_its_own_error(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    _, _, _, tool = await outcome(bench, do)
    assert (tool["status"], tool["error"]["message"]) == ("error", "The tool timed out.")


async def test_the_time_that_a_person_takes_is_not_the_tools(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        first, second = await asyncio.gather(ctx.ask("One?"), ctx.ask("Two?"))
        await asyncio.sleep(0.2)
        return f"{first[0]} {second[0]}"

    hub = await bench(WORK, say("done"), connectors=[working(do, timeout_s=0.4)])
    started = await hub.start("go")
    one, two = await asked(hub, started, 2)
    await asyncio.sleep(0.5)
    await hub.call("ask.answer", ask=one, choice="yes")
    await asyncio.sleep(0.5)  # the other one is open still
    await hub.call("ask.answer", ask=two, choice="no")
    state = await hub.end(started)
    (tool,) = state["tools"].values()
    assert (tool["status"], tool.get("result")) == ("ok", "yes no")


async def test_after_an_ask_the_rest_of_its_time_is_left(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> None:
        await asyncio.sleep(0.1)
        await ctx.ask("Well?")
        await asyncio.sleep(30)

    hub = await bench(WORK, say("done"), connectors=[working(do, timeout_s=0.3)])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="yes")
    answered = time.monotonic()
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["status"] == "timeout"
    assert time.monotonic() - answered < 1.5


async def test_a_question_that_its_tool_gave_up_is_closed_everywhere(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        asking = asyncio.ensure_future(ctx.ask("Which?", options=["a", "b"]))
        await asyncio.wait({asking}, timeout=0.2)
        asking.cancel()
        await asyncio.wait({asking})
        return "nobody said"

    hub, started, state, tool = await outcome(bench, do)
    assert (tool["status"], tool["result"], state["asks"]) == ("ok", "nobody said", {})
    told = [(name, d) for name, d in await hub.events(started["conv"]) if name in ("ask.close", "tool.close")]
    assert [name for name, _ in told] == ["ask.close", "tool.close"]
    assert (told[0][1]["why"], told[0][1]["choice"]) == ("run", None)


async def test_a_call_cannot_ask_without_end_at_once(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        answers = await asyncio.gather(*(ctx.ask(f"{n}?") for n in range(30)), return_exceptions=True)
        return str(sum(isinstance(a, ToolError) for a in answers))

    hub = await bench(WORK, say("done"), connectors=[working(do)])
    started = await hub.start("go")
    for ask in await asked(hub, started, context_module.MAX_ASKS):
        await hub.call("ask.answer", ask=ask, choice="yes")
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["result"] == str(30 - context_module.MAX_ASKS)


# --- the model ---


def thinking(texts: list[str], **given: Any) -> Any:
    """A tool that asks the model these, at once."""

    async def do(args: Any, ctx: Any) -> str:
        async def think(text: str) -> str:
            sampled = await ctx.sample([SampleMessage("user", [TextContent(text)])], **given)
            CALLED.append(sampled)
            return f"{text}: {sampled.text}"

        return "; ".join(await asyncio.gather(*map(think, texts)))

    return do


async def test_a_sample_is_an_approved_step_with_its_usage_and_no_message(bench: Any) -> None:
    hub = await bench(WORK, say("forty", "-two", tokens=7), say("done"), connectors=[working(thinking(["What?"]))])
    started = await hub.start("go", config={"temperature": 0.5, "max_tokens": 100, "system": "Be nice."})
    (ask,) = await asked(hub, started)
    opened = (await hub.state(started["conv"]))["asks"][ask]
    assert opened["kind"] == "approval"
    assert opened["options"] == ["allow_once", "allow_run", "deny"]
    assert opened["subject"]["messages"] == [{"role": "user", "text": "What?"}]
    assert opened["subject"]["key"] == "work/it#model"
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    assert len(hub.provider.requests) == 1
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["result"] == "What?: forty-two"
    (sampled,) = CALLED
    assert (sampled.text, sampled.model, sampled.finish) == ("forty-two", "script/m", "stop")
    request = hub.provider.requests[1]
    assert ([(m.role, m.text) for m in request.messages], request.tools) == ([("user", "What?")], [])
    assert (request.temperature, request.max_tokens) == (0.5, 100)
    assert state["runs"][started["run"]]["usage"] == {"input": 3, "output": 9}
    assert state["runs"][started["run"]]["step"] == 3
    events = await hub.events(started["conv"])
    steps = [(name, d["step"]) for name, d in events if name.startswith("step.")]
    assert steps == [(f"step.{what}", n) for n in (1, 2, 3) for what in ("open", "close")]
    assert [d.get("agent") for name, d in events if name == "step.open"] == [None, "work", None]
    assert "forty" not in str([m["parts"] for m in state["messages"] if m["role"] == "assistant" and m["step"] != 3])


async def test_what_a_sample_wants_is_bounded_by_the_runs_config(bench: Any) -> None:
    do = thinking(["?"], system="Be brief.", max_tokens=10_000_000, temperature=0.1, stop=list("abcdef"))
    hub = await bench(WORK, say("x"), say("done"), connectors=[working(do)])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    assert (await hub.state(started["conv"]))["asks"][ask]["subject"]["system"] == "Be brief."
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    await hub.end(started)
    request = hub.provider.requests[1]
    assert (request.max_tokens, request.temperature, request.stop) == (4096, 0.1, list("abcd"))
    assert [(m.role, m.text) for m in request.messages] == [("system", "Be brief."), ("user", "?")]


async def test_an_image_that_a_tool_shows_the_model_is_told_in_words(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        content: list[Content] = [
            TextContent("See"),
            BlobContent("image/png", b"\x89PNG", "x.png"),
            BlobContent("a/b", b""),
        ]
        sampled = await ctx.sample([SampleMessage("user", content), SampleMessage("assistant", [])])
        return str(sampled.text)

    hub = await bench(WORK, say("seen"), say("done"), connectors=[working(do)])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    await hub.end(started)
    assert [m.text for m in hub.provider.requests[1].messages] == ["See\n[image/png: x.png]\n[a/b]", ""]


@pytest.mark.parametrize("choice", ["deny", None])
async def test_a_sample_that_nobody_allows_asks_no_model(bench: Any, choice: str | None) -> None:
    hub = await bench(WORK, say("done"), connectors=[working(thinking(["?"]))], ask_s=0.3 if choice is None else 60)
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    if choice is not None:
        await hub.call("ask.answer", ask=ask, choice=choice)
    state = await hub.end(started)
    (tool,) = state["tools"].values()
    assert (tool["status"], tool["error"]["message"]) == ("error", "The user did not let the tool ask the model.")
    assert len(hub.provider.requests) == 2


async def test_samples_at_once_ask_each_and_come_one_after_the_other(bench: Any) -> None:
    busy = 0

    class Alone(ScriptedProvider):
        async def stream(self, request: Any) -> Any:
            nonlocal busy
            busy += 1
            assert busy == 1
            await asyncio.sleep(0.02)
            busy -= 1
            async for chunk in super().stream(request):
                yield chunk

    hub = await bench(WORK, connectors=[working(thinking(["a", "b", "c"]))])
    hub.app.extensions.providers["script"] = provider = Alone(WORK, say("1"), say("2"), say("3"), say("done"))
    started = await hub.start("go")
    for ask in await asked(hub, started, 3):
        await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    assert sorted(m.messages[0].text for m in provider.requests[1:4]) == ["a", "b", "c"]
    assert state["runs"][started["run"]]["step"] == 5
    steps = [(name, d["step"]) for name, d in await hub.events(started["conv"]) if name.startswith("step.")]
    assert steps == [(f"step.{what}", n) for n in range(1, 6) for what in ("open", "close")]


async def test_what_was_allowed_for_the_run_is_asked_once_and_not_in_the_next_run(bench: Any) -> None:
    scripts = [WORK, say("1"), WORK, say("2"), say("done"), WORK, say("3"), say("done")]
    hub = await bench(*scripts, connectors=[working(thinking(["?"]))])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_run")
    state = await hub.end(started)
    assert [t["result"] for t in state["tools"].values()] == ["?: 1", "?: 2"]
    started = await hub.start("again", conv=started["conv"])
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="deny")
    await hub.end(started)


async def test_a_call_cannot_ask_the_model_without_end(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def do(args: Any, ctx: Any) -> None:
        while True:
            await ctx.sample([SampleMessage("user", [TextContent("?")])])

    monkeypatch.setattr(context_module, "MAX_SAMPLES", 5)
    hub = await bench(WORK, *[say("x")] * 5, say("done"), connectors=[working(do)])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_run")
    state = await hub.end(started)
    assert "too often" in next(iter(state["tools"].values()))["error"]["message"]
    assert len(hub.provider.requests) == 7


async def test_a_model_that_fails_is_told_to_the_tool_and_the_run_goes_on(bench: Any) -> None:
    failure = [ProviderError("provider.refused", "Not that.")]
    hub = await bench(WORK, failure, say("done"), connectors=[working(thinking(["?"]))])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    (tool,) = state["tools"].values()
    assert (tool["status"], tool["error"]["message"]) == ("error", "The model failed: Not that.")
    (failed,) = [d for name, d in await hub.events(started["conv"]) if name == "step.close" and d["step"] == 2]
    assert (failed["finish"], failed["error"]["kind"]) == ("failed", "provider.refused")


async def test_a_broken_answer_to_a_sample_is_asked_for_again_and_its_text_comes_once(bench: Any) -> None:
    broken = [*say("half")[:1], ProviderError("provider.disconnected", "Gone.")]
    hub = await bench(WORK, broken, say("whole"), say("done"), connectors=[working(thinking(["?"]))])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["result"] == "?: whole"
    assert not any(name == "part.drop" for name, _ in await hub.events(started["conv"]))
    assert state["runs"][started["run"]]["status"] == "done"


async def test_a_tool_may_give_up_waiting_for_the_model_and_the_run_goes_on(bench: Any) -> None:
    async def do(args: Any, ctx: Any) -> str:
        try:
            async with asyncio.timeout(0.2):
                await ctx.sample([SampleMessage("user", [TextContent("?")])])
        except TimeoutError:
            return "did without"
        return "waited"

    hub = await bench(WORK, [60.0], say("done"), connectors=[working(do)])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started)
    assert next(iter(state["tools"].values()))["result"] == "did without"
    steps = [(name, d["step"], d.get("finish")) for name, d in await hub.events(started["conv"]) if "step." in name]
    assert steps[2:] == [
        ("step.open", 2, None), ("step.close", 2, "cancelled"), ("step.open", 3, None), ("step.close", 3, "stop"),
    ]  # fmt: skip


async def test_a_run_that_is_cancelled_in_a_sample_ends_with_every_figure_counted_once(bench: Any) -> None:
    script = [*say("half", tokens=5)[:1], 60.0]
    hub = await bench(WORK, script, connectors=[working(thinking(["?"]))])
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    await hub.until(started["conv"], lambda s: s["runs"][started["run"]].get("open_steps", {}).keys() == {"2"})
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    run = state["runs"][started["run"]]
    assert run["usage"] == {"input": 1, "output": 1}
    assert "open_steps" not in run
    names = [name for name, _ in await hub.events(started["conv"])]
    assert names.count("step.open") == names.count("step.close") == 2
    assert names[-1] == "run.close"
    assert next(iter(state["tools"].values()))["status"] == "cancelled"


async def test_a_cancel_while_a_sample_waits_for_a_person_closes_the_ask(bench: Any) -> None:
    hub = await bench(WORK, connectors=[working(thinking(["a", "b"]))])
    started = await hub.start("go")
    await asked(hub, started, 2)
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    assert state["asks"] == {}
    assert len(hub.provider.requests) == 1


async def test_a_budget_that_is_used_up_ends_the_run_at_a_sample(bench: Any) -> None:
    hub = await bench(WORK, say("never"), connectors=[working(thinking(["?"]))])
    hub.app.engine.budgets._settings.day_tokens = 1
    hub.app.engine.budgets.on = True
    started = await hub.start("go")
    (ask,) = await asked(hub, started)
    await hub.call("ask.answer", ask=ask, choice="allow_once")
    state = await hub.end(started, "limit")
    assert len(hub.provider.requests) == 1
    assert "budget" in state["runs"][started["run"]]["error"]["message"]
    assert next(iter(state["tools"].values()))["status"] == "cancelled"
