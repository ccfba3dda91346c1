"""Tool chains through a running hub and its socket, on a fake model: phases, stages, the three failures, patches."""

from __future__ import annotations

from typing import Any

import pytest

from sag.client import Client
from sag.plugin import Fault, Health
from sag.testing.upstream import Hang, Say, Script, say
from tests.connectors import FakeConnector, make_tool
from tests.harness import until
from tests.toolchain.bench import CALLED, Bench, bench, calls, said, statuses

WEATHER = ("weather", {"city": "Oslo"})
ADD = ("add", {"a": 2, "b": 3})


async def failed(b: Bench, kind: str, **config: Any) -> dict[str, Any]:
    """Run a chain that fails; gives the error and the conversation's state."""
    run, state = await b.do("Do it.", "failed", **config)
    assert run["error"]["kind"] == kind
    return {"message": run["error"]["message"], "state": state}


# phases


async def test_what_the_tools_gave_is_summed_up_on_settings_of_its_own() -> None:
    async with bench() as b:
        b.model.script(calls(WEATHER), say("Clear skies."))
        stage = {
            "title": "The sky",
            "system": "Be brief.",
            "temperature": {"tool": 0.1, "synthesis": 0.9},
            "max_tokens": {"tool": 50, "synthesis": 60},
        }
        run, state = await b.do("How is Oslo?", stages={"sky": stage})
        assert said(state, "sky.synthesis") == ["Clear skies."]
        assert run["agents"] == {"sky": "closed", "sky.synthesis": "closed"}
        assert run["titles"]["sky"] == "The sky"
        first, second = (request.json for request in b.model.chats)
        assert (first["temperature"], first["max_tokens"]) == (0.1, 50)
        assert (second["temperature"], second["max_tokens"]) == (0.9, 60)
        assert {"weather", "add"} <= set(b.offered(0))
        assert "tools" not in second
        assert second["messages"][0] == {"role": "system", "content": "Be brief."}
        told = second["messages"][1]["content"]
        assert told.startswith("How is Oslo?\n\nThese tools were called for it")
        assert '"result":{"city":"Oslo","sky":"clear"}' in told
        assert len(second["messages"]) == 2


async def test_without_synthesis_the_results_are_all() -> None:
    async with bench() as b:
        b.model.script(calls(ADD))
        run, state = await b.do("2 + 3?", synthesis=False)
        assert len(b.model.chats) == 1
        assert [t["result"] for t in state["tools"].values()] == [5]
        assert run["agents"] == {"toolchain": "closed"}


@pytest.mark.parametrize("stream", [True, False])
async def test_words_are_told_as_they_come_only_where_that_is_wanted(stream: bool) -> None:
    async with bench() as b:
        b.model.script(calls(ADD), Script([Say("one two three"), Hang()]))
        run, topic = await b.start("2 + 3?", stream=stream)
        (_, asked) = await b.model.wait_requests(2)
        await until(lambda: asked.tokens == 3, "the words on their way")
        if stream:
            await topic.until(lambda state: said(state, "toolchain.synthesis") == ["one two three"])
        for _ in range(5):
            await b.client.call("run.get", {"run": run})
        await b.client.call("run.cancel", {"run": run})
        state = await b.end(run, topic, "cancelled")
        assert said(state, "toolchain.synthesis") == (["one two three"] if stream else [""])


async def test_calls_of_a_round_run_at_once() -> None:
    async with bench() as b:
        b.model.script(calls(("meet", {"name": "a"}), ("meet", {"name": "b"})), say("Met."))
        _, state = await b.do("Meet.")
        assert [t["result"] for t in state["tools"].values()] == ["a", "b"]


async def test_calls_run_one_after_the_other_where_that_is_wanted() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {}), ADD))
        run, topic = await b.start("Do it.", synthesis=False, parallel=False)
        await until(lambda: CALLED == ["hold"], "the first call")
        assert CALLED == ["hold"]
        b.gate.set()
        await b.end(run, topic)
        assert CALLED == ["hold", "add 2 3"]


# what tools say of themselves


async def test_hints_of_the_tools_that_are_offered_follow_the_prompt_of_the_first_phase_alone() -> None:
    async with bench() as b:
        server = FakeConnector("atlas", make_tool("find", connector="atlas"), make_tool("near", connector="atlas"))
        server.shown = Health("ready", instructions="The atlas knows every town.")
        b.hub.app.extensions.connectors.add("test", server)
        await until(lambda: b.hub.app.extensions.connectors["atlas"].tools, "the connector")
        b.model.script(calls(WEATHER), say("Clear."), calls(WEATHER), calls(ADD))
        await b.do("Oslo?", system="You know places.", stages={"a": {"tools": {"weather": True, "atlas": True}}})
        system = b.asked(0)[0]["content"]
        assert system == "You know places.\n\nUse weather for anything about the sky.\n\nThe atlas knows every town."
        assert b.asked(1)[0]["content"] == "You know places."
        assert b.offered(0) == ["weather", "atlas__find", "atlas__near"]
        await b.do("Oslo?", hints=False, synthesis=False, system="Plain.")
        assert b.asked(2)[0]["content"] == "Plain."
        await b.do("Oslo?", synthesis=False, stages={"a": {"tools": {"weather": False, "atlas": False}}})
        assert b.asked(3)[0] == {"role": "system", "content": "Use add for sums."}
        assert "weather" not in b.offered(3)


async def test_a_tool_that_the_stage_does_not_offer_cannot_be_called() -> None:
    async with bench() as b:
        b.model.script(calls(ADD))
        told = await failed(b, "toolchain.invalid", stages={"a": {"tools": {"weather": True}}})
        assert told["message"] == "add: There is no tool 'add'; use one of those that are offered."
        assert CALLED == []


# the three failures


async def test_a_model_that_chooses_no_tool_fails_the_run_with_its_words() -> None:
    async with bench() as b:
        b.model.script(say("I would rather talk. " + "x" * 500), say(""))
        told = await failed(b, "toolchain.no_tool")
        assert told["message"].startswith("The model chose no tool. It said: I would rather talk. xxx")
        assert len(told["message"]) < 400
        assert told["state"]["tools"] == {}
        assert (await failed(b, "toolchain.no_tool"))["message"] == "The model chose no tool. It said: nothing"


async def test_a_call_that_does_not_fit_calls_nothing() -> None:
    async with bench() as b:
        b.model.script(calls(WEATHER, ("add", {"a": 2, "b": "three"})))
        told = await failed(b, "toolchain.invalid")
        assert told["message"].startswith("add: The arguments do not fit: Expected `int`, got `str`")
        assert statuses(told["state"]) == {"weather": "cancelled", "add": "invalid"}
        assert CALLED == []


async def test_arguments_that_are_no_json_are_a_call_that_does_not_fit() -> None:
    async with bench() as b:
        b.model.script(calls(("add", '{"a": 2,')))
        told = await failed(b, "toolchain.invalid")
        assert "not JSON" in told["message"]


async def test_a_tool_that_fails_fails_the_run_once_the_others_have_ended() -> None:
    async with bench() as b:
        b.model.script(calls(("broken", {}), WEATHER))
        told = await failed(b, "toolchain.tool_failed")
        assert told["message"] == "broken: no bread"
        assert statuses(told["state"]) == {"broken": "error", "weather": "ok"}
        assert len(b.model.chats) == 1


async def test_a_call_that_a_person_denies_is_a_tool_that_failed() -> None:
    async with bench() as b:
        b.model.script(calls(("launch", {"what": "it"})))
        run, topic = await b.start("Launch.")
        state = await topic.until(lambda state: state["asks"])
        await b.client.call("ask.answer", {"ask": next(iter(state["asks"])), "choice": "deny"})
        state = await b.end(run, topic, "failed")
        assert state["runs"][run]["error"]["kind"] == "toolchain.tool_failed"
        assert CALLED == []


# calls as words

PLAIN = '{"name": "add", "arguments": {"a": 2, "b": 3}}'


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"```json\n{PLAIN}\n```",
        f"I will add them:\n```\n{PLAIN}\n```\nThat will do.",
        f"[{PLAIN}]",
        '{"name": "add", "parameters": "{\\"a\\": 2, \\"b\\": 3}"}',
        f"I will {{add}} them: {PLAIN} That will do.",
        f'{{"type": "function", "function": {PLAIN}}}',
        f'{{"tool_calls": [{{"id": "1", "function": {PLAIN}}}]}}',
    ],
)
@pytest.mark.parametrize("flavor", ["anthropic", "openai"])
async def test_a_call_in_plain_json_is_a_call_with_every_provider(text: str, flavor: str) -> None:
    async with bench(flavor) as b:
        b.model.script(say(text), say("5."))
        _, state = await b.do("2 + 3?")
        assert [(t["name"], t["args"], t["result"]) for t in state["tools"].values()] == [("add", {"a": 2, "b": 3}, 5)]
        assert [t["agent"] for t in state["tools"].values()] == ["toolchain"]
        assert said(state, "toolchain.synthesis") == ["5."]
        drafts = [p for m in state["messages"] for p in m["parts"] if p["kind"] == "tool_args"]
        assert [p["call"] for p in drafts] == list(state["tools"])


async def test_several_calls_in_json_run_together() -> None:
    async with bench("anthropic") as b:
        b.model.script(say(PLAIN + '\n{"name": "weather", "arguments": {"city": "Oslo"}}'))
        _, state = await b.do("Both.", synthesis=False)
        assert statuses(state) == {"add": "ok", "weather": "ok"}


async def test_a_call_in_json_is_held_against_its_tool_as_any_other() -> None:
    async with bench("anthropic") as b:
        b.model.script(say('{"name": "add", "arguments": {"a": 2}}'), say('{"name": "sub", "arguments": {}}'))
        assert (await failed(b, "toolchain.invalid"))["message"].startswith("add: ")
        assert (await failed(b, "toolchain.invalid"))["message"].startswith("sub: There is no tool")


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        "[1, 2]",
        "```python\nadd(2, 3)\n```",
        "[" * 5000,
        '{"name": "add"',
        f'{PLAIN} gives {{"sum": 5}}',
        '{"a":' * 50_000,
        "{" * 30 + PLAIN,
    ],
    ids=range(8),
)
async def test_json_that_is_no_call_chooses_no_tool(text: str) -> None:
    async with bench("anthropic") as b:
        b.model.script(say(text))
        assert (await failed(b, "toolchain.no_tool"))["state"]["tools"] == {}


# stages


async def test_the_output_of_one_stage_is_the_input_of_the_next() -> None:
    async with bench() as b:
        b.model.script(calls(WEATHER), say("Oslo is clear."), calls(ADD), calls(WEATHER), say("All done."))
        stages = {"first": {}, "second": {"synthesis": False, "system": "Count."}, "third": {}}
        run, state = await b.do("How is Oslo?", stages=stages)
        assert list(run["agents"]) == ["first", "first.synthesis", "second", "third", "third.synthesis"]
        assert b.asked(2)[-1] == {"role": "user", "content": "Oslo is clear."}
        assert len(b.asked(2)) == 2
        third = b.asked(3)[-1]["content"]
        assert third.startswith('[{"id":"k')
        assert third.endswith('"name":"add","arguments":{"a":2,"b":3},"status":"ok","result":5}]')
        assert b.asked(4)[-1]["content"].startswith(third)
        assert said(state, "third.synthesis") == ["All done."]


async def test_a_stage_that_fails_ends_the_chain() -> None:
    async with bench() as b:
        b.model.script(calls(WEATHER), say("Clear."), say("No."))
        run, _ = await b.do("How is Oslo?", "failed", stages={"a": {}, "b": {}, "c": {}})
        assert run["error"]["kind"] == "toolchain.no_tool"
        assert len(b.model.chats) == 3


async def test_a_chain_of_as_many_stages_as_there_may_be_fits_its_rounds() -> None:
    async with bench() as b:
        b.model.answer = lambda request: calls(ADD) if request.json.get("tools") else say("Five.")
        run, _ = await b.do("Count.", stages={f"s{n}": {} for n in range(16)})
        assert run["step"] == 32


@pytest.mark.parametrize(
    "config",
    [
        {"stages": {"a.b": {}}},
        {"stages": {"": {}}},
        {"stages": {f"s{n}": {} for n in range(17)}},
        {"stages": {"a": {"temperature": {"tool": 3}}}},
        {"stages": {"a": {"temperature": {"tools": 1}}}},
        {"stages": {"a": {"max_tokens": {"synthesis": 0}}}},
        {"stages": {"a": {"colour": "red"}}},
        {"stages": []},
        {"synthesis": "no"},
    ],
)
async def test_config_that_does_not_fit_is_refused_before_anything_happens(config: dict[str, Any]) -> None:
    async with bench() as b:
        with pytest.raises(Fault) as refused:
            await b.start("Do it.", **config)
        assert refused.value.kind == "config.invalid"
        assert b.model.chats == []


# while it goes on


async def test_a_patch_of_a_stage_holds_from_the_next_step_on() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {})), say("One."), calls(ADD), say("Two."))
        stages = {"a": {"temperature": {"tool": 0.1, "synthesis": 0.2}}, "b": {"temperature": {"tool": 0.3}}}
        run, topic = await b.start("Go.", stages=stages)
        await until(lambda: CALLED == ["hold"], "the first call")
        patch = {"stages": {"a": {"temperature": {"synthesis": 0.7}}, "b": {"temperature": {"tool": 0.8}}}}
        await b.client.call("config.patch", {"scope": f"run:{run}", "patch": patch})
        b.gate.set()
        state = await b.end(run, topic)
        assert [request.json.get("temperature") for request in b.model.chats] == [0.1, 0.7, 0.8, None]
        assert state["runs"][run]["applied"] == {"rev": 2, "step": 2}


async def test_stages_can_be_taken_away_and_added_while_the_run_goes_on() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {})), say("One."), calls(ADD), say("Two."))
        run, topic = await b.start("Go.", stages={"a": {}, "b": {}})
        await until(lambda: CALLED == ["hold"], "the first call")
        patch = {"stages": {"b": None, "c": {"system": "New."}}}
        await b.client.call("config.patch", {"scope": f"run:{run}", "patch": patch})
        b.gate.set()
        state = await b.end(run, topic)
        assert list(state["runs"][run]["agents"]) == ["a", "a.synthesis", "c", "c.synthesis"]
        assert b.asked(2)[0]["content"].startswith("New.")


async def test_the_stage_at_work_can_be_taken_away() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {})), calls(ADD), say("Two."))
        run, topic = await b.start("Go.", stages={"a": {}, "b": {}})
        await until(lambda: CALLED == ["hold"], "the first call")
        await b.client.call("config.patch", {"scope": f"run:{run}", "patch": {"stages": {"a": None}}})
        b.gate.set()
        state = await b.end(run, topic)
        assert list(state["runs"][run]["agents"]) == ["a", "b", "b.synthesis"]


async def test_what_is_said_meanwhile_is_told_to_the_next_phase() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {})), say("One."), calls(ADD), say("Two."))
        run, topic = await b.start("Go.", stages={"a": {}, "b": {}})
        await until(lambda: CALLED == ["hold"], "the first call")
        await steer(b, topic.name, "And mind the wind.")
        b.gate.set()
        state = await b.end(run, topic)
        assert b.asked(1)[-1]["content"].startswith("Go.\n\nAnd mind the wind.\n\nThese tools")
        assert b.asked(2)[-1]["content"] == "One."
        assert len(b.model.chats) == 4
        assert said(state, "b.synthesis") == ["Two."]


async def test_what_is_said_during_a_synthesis_is_told_to_the_next_stage() -> None:
    async with bench(tokens_per_s=20) as b:
        b.model.script(calls(ADD), say("One two three four."), calls(ADD), say("Two."))
        run, topic = await b.start("Go.", stages={"a": {}, "b": {}})
        await topic.until(lambda state: any(said(state, "a.synthesis")))
        await steer(b, topic.name, "Stop at three.")
        await b.end(run, topic)
        assert b.asked(2)[-1]["content"] == "One two three four.\n\nStop at three."


async def test_what_is_said_at_the_end_begins_the_chain_anew() -> None:
    async with bench(tokens_per_s=20) as b:
        b.model.script(calls(ADD), say("It is five, I think."), calls(WEATHER), say("Clear."))
        run, topic = await b.start("2 + 3?")
        await topic.until(lambda state: any(said(state, "toolchain.synthesis")))
        await steer(b, topic.name, "And Oslo?")
        state = await b.end(run, topic)
        assert said(state, "toolchain.synthesis") == ["It is five, I think.", "Clear."]
        third = b.asked(2)
        assert [m["role"] for m in third] == ["system", "user", "assistant", "tool", "user", "user"]
        assert third[-1]["content"] == "And Oslo?"
        fourth = b.asked(3)[-1]["content"]
        assert "Oslo" in fourth
        assert '"result":5' not in fourth
        assert len(b.asked(3)) == 1


async def test_an_answer_to_a_model_that_asks_back_gives_it_another_try() -> None:
    async with bench(tokens_per_s=20) as b:
        b.model.script(say("Which city do you mean?"), calls(WEATHER), say("Clear."))
        run, topic = await b.start("The weather?")
        await topic.until(lambda state: any(said(state, "toolchain")))
        await steer(b, topic.name, "Oslo.")
        state = await b.end(run, topic)
        assert said(state, "toolchain.synthesis") == ["Clear."]
        assert [m["content"] for m in b.asked(1)[1:]] == ["The weather?", "Which city do you mean?", "Oslo."]


async def steer(b: Bench, topic: str, text: str) -> None:
    input = [{"kind": "text", "text": text}]
    started = await b.client.call("run.start", {"conv": topic[5:], "input": input, "when": "steer"})
    assert started["state"] == "steered"


async def test_a_run_of_the_same_conversation_sees_the_one_before() -> None:
    async with bench() as b:
        b.model.script(calls(ADD), say("Five."), calls(ADD), say("Still five."))
        run, topic = await b.start("2 + 3?")
        await b.end(run, topic)
        params = {"conv": topic.name[5:], "input": [{"kind": "text", "text": "Again?"}]}
        again = (await b.client.call("run.start", params))["run"]
        await b.end(again, topic)
        assert [m["role"] for m in b.asked(2)] == ["system", "user", "assistant", "tool", "user", "user"]
        assert b.asked(3)[-1]["content"].startswith("Again?\n\nThese tools")


@pytest.mark.parametrize("phase", ["model", "tool", "synthesis"])
async def test_a_cancel_ends_the_run_in_every_phase(phase: str) -> None:
    async with bench() as b:
        scripts = {
            "model": [Script([Hang()])],
            "tool": [calls(("hold", {}), ADD)],
            "synthesis": [calls(ADD), Script([Say("Well"), Hang()])],
        }
        b.model.script(*scripts[phase])
        run, topic = await b.start("Go.")
        at = {
            "model": lambda: b.model.chats,
            "tool": lambda: "hold" in CALLED and "add 2 3" in CALLED,
            "synthesis": lambda: any(said(topic.state, "toolchain.synthesis")),
        }
        await until(at[phase], phase)
        await b.client.call("run.cancel", {"run": run})
        state = await b.end(run, topic, "cancelled")
        assert set(state["runs"][run]["agents"].values()) == {"closed"}
        if phase == "tool":
            assert statuses(state)["hold"] == "cancelled"


async def test_a_pause_holds_the_run_between_its_phases() -> None:
    async with bench() as b:
        b.model.script(calls(("hold", {})), say("Done."))
        run, topic = await b.start("Go.")
        await until(lambda: CALLED == ["hold"], "the call")
        await b.client.call("run.pause", {"run": run})
        b.gate.set()
        await topic.until(lambda state: state["runs"][run]["status"] == "paused")
        assert len(b.model.chats) == 1
        await b.client.call("run.continue", {"run": run})
        await b.end(run, topic)
        assert CALLED == ["hold"]


async def test_tools_of_a_client_are_offered_to_the_first_phase_alone() -> None:
    async with bench() as b:
        kiosk = Client(b.hub.url, client_id="kiosk")

        @kiosk.tool()
        async def show(text: str) -> str:
            """Show a text."""
            return f"shown {text}"

        async with kiosk:
            b.model.script(calls(("show", {"text": "hi"})), say("Shown."))
            config = {"stages": {"a": {"tools": {"show": True}}}}
            params = {"kind": "toolchain", "input": [{"kind": "text", "text": "Show hi."}], "config": config}
            started = await kiosk.call("run.start", params)
            topic = await kiosk.subscribe(f"conv:{started['conv']}")
            await b.end(started["run"], topic)
            assert b.offered(0) == ["show"]
            assert b.offered(1) == []
