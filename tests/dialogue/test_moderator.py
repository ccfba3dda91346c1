"""Who speaks next where a moderator chooses: its tool, what it hears, its mistakes, and that these are bounded."""

from __future__ import annotations

from typing import Any

from sag.testing.upstream import Calls, FakeUpstream, Say, Script, ToolCall, call, say
from tests.dialogue.stage import BOTS, Stage, events, heard, open_stage, prompt, slowly, stalls

MODERATED: dict[str, Any] = {
    "bots": {**BOTS, "b2": {"name": "Cem", "model": "openai/cem"}},
    "next": "moderator",
    "moderator": {"model": "openai/chair", "temperature": 0.1},
}


def choose(bot: Any) -> Script:
    return call("next_speaker", {"bot": bot})


def spoken(stage: Stage) -> list[str | None]:
    return [who for who, said in stage.words()[1:] if said and who != "moderator"]


def chairs(upstream: FakeUpstream) -> list[Any]:
    return [request for request in upstream.chats if request.json["model"] == "chair"]


async def test_the_moderator_chooses_who_speaks_and_hears_everybody_by_name() -> None:
    async with open_stage() as stage:
        stage.openai.script(choose("b2"), choose("Ben"), choose("b0"), model="chair")
        stage.openai.script(say("c"), model="cem")
        stage.openai.script(say("a"), model="fake")
        stage.anthropic.script(say("b"))
        await stage.start(**MODERATED, max_turns=3)
        await stage.end()
        assert spoken(stage) == ["b2", "b1", "b0"]
        *_, third = chairs(stage.openai)
        assert [text for role, text in heard(third) if role == "user"] == ["Tea or coffee?", "Cem: c", "Ben: b"]
        assert "Those who talk: b0 (Ada), b1 (Ben), b2 (Cem)." in prompt(third)
        assert third.json["temperature"] == 0.1
        assert [t["function"]["name"] for t in third.json["tools"]] == ["next_speaker"]
        last = next(r for r in stage.openai.chats if r.json["model"] == "fake")
        assert heard(last) == [("user", "Tea or coffee?"), ("user", "Cem: c"), ("user", "Ben: b")]
        assert "tools" not in last.json
        assert stage.run["titles"]["moderator"] == "Moderator"


async def test_one_who_is_called_up_twice_is_not_asked_to_go_on_from_its_own_words() -> None:
    async with open_stage() as stage:
        stage.openai.script(choose("b1"), choose("b1"), model="chair")
        stage.anthropic.script(say("b"), say("bb"))
        await stage.start(**MODERATED, max_turns=2)
        await stage.end()
        assert spoken(stage) == ["b1", "b1"]
        assert [role for role, _ in heard(stage.anthropic.chats[1])] == ["user", "assistant", "user"]


async def test_a_moderator_that_names_nobody_known_is_told_and_tries_again() -> None:
    async with open_stage() as stage:
        stage.openai.script(choose("Eve"), choose(None), choose("b1"), model="chair")
        await stage.start(**MODERATED, max_turns=1)
        await stage.end()
        assert spoken(stage) == ["b1"]
        tools = list(stage.topic.state["tools"].values())
        assert [tool["status"] for tool in tools] == ["error", "error", "ok"]
        assert tools[0]["error"]["message"] == "There is no such bot; choose one of b0, b1, b2."
        assert tools[2]["ends"] is True


async def test_where_it_does_not_choose_whoever_was_silent_longest_speaks() -> None:
    async with open_stage() as stage:
        wrong = [choose("Eve"), call("next_speaker", "{nonsense"), call("dance", {})]
        stage.openai.script(say("Let us all be kind."), choose("b0"), *wrong, choose("b2"), model="chair")
        await stage.start(**MODERATED, max_turns=4)
        await stage.end()
        assert spoken(stage) == ["b0", "b0", "b1", "b2"]
        assert len(chairs(stage.openai)) == 6, "three tries for a turn and no more"
        assert stage.run["agents"]["moderator"] == "closed"


async def test_it_may_choose_several_at_once_and_the_last_counts() -> None:
    async with open_stage() as stage:
        both = [ToolCall("next_speaker", {"bot": "b1"}), ToolCall("next_speaker", {"bot": "b2"})]
        stage.openai.script(Script([Say("Both!"), Calls(both)]), choose("b0"), model="chair")
        await stage.start(**MODERATED, max_turns=2)
        await stage.end()
        assert spoken(stage) == ["b2", "b0"]


async def test_a_moderator_may_take_over_and_leave_while_the_run_goes_on() -> None:
    async with open_stage() as stage:
        stage.openai.script(choose("b2"), model="chair")
        stage.openai.script(slowly("a"), model="fake")
        stage.openai.script(slowly("c"), model="cem")
        await stage.start(**{**MODERATED, "next": "round_robin"}, max_turns=3)
        await stage.hears("a ")
        await stage.patch({"next": "moderator"})
        await stage.hears("c ")
        await stage.patch({"next": "round_robin"})
        await stage.end()
        assert spoken(stage) == ["b0", "b2", "b1"]
        assert len(chairs(stage.openai)) == 1


async def test_what_the_moderator_says_is_neither_a_turn_nor_a_bots_in_the_old_stream() -> None:
    async with open_stage() as stage:
        stage.openai.script(Script([Say("Ben!"), *choose("b1").steps]), choose("b2"), model="chair")
        stage.anthropic.script(say("b"))
        stage.openai.script(say("c"), model="cem")
        run = await stage.start(**MODERATED, max_turns=2)
        await stage.end()
        assert [told async for told in events(stage.http, run)] == [
            {"type": "token", "role": "bot1", "delta": "b"},
            {"type": "turn_complete", "turn": 1},
            {"type": "token", "role": "bot2", "delta": "c"},
            {"type": "turn_complete", "turn": 2},
        ]


async def test_a_dialogue_can_be_cancelled_while_its_moderator_thinks() -> None:
    async with open_stage() as stage:
        stage.openai.script(choose("b1"), stalls("hm"), model="chair")
        run = await stage.start(**MODERATED)
        await stage.hears("hm ")
        await stage.client.call("run.cancel", {"run": run})
        await stage.end("cancelled")
        assert len(chairs(stage.openai)) == 2
