"""The contract of run kinds finds what is wrong with a kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sag.engine.agent import Agent
from sag.engine.run import Run
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import ModelRequest, ProviderError, text_message
from sag.hooks.tool import tool
from sag.testing.kinds import RunKindContract, check_log, spread, undocumented
from sag.testing.provider import Script, call, say
from tests.kinds.plays import look_up


class Documented(RunConfig):
    """A config.

    Attributes:
        pace, place: Both told at once.
    """

    pace: int = 1
    place: str = ""


class Undocumented(Documented):
    """One with a member more."""

    secret: int = 1


def contract_of(
    run: Callable[[Run], Awaitable[None]], config: type[RunConfig] = Documented, **more: Any
) -> RunKindContract:
    """The contract of a kind that is made of a function."""

    class Contract(RunKindContract):
        kind = RunKind("broken", config, run)
        tools = (look_up,)

        def answer(self, request: ModelRequest) -> Script:
            return say("Yes.")

    for name, value in more.items():
        setattr(Contract, name, value)
    return Contract()


async def two_turns(run: Run) -> None:
    """As it should be: it looks at what is done."""
    while len(run.turns()) < 2 or run.unread:
        await run.turn(Agent(name=f"a{len(run.turns())}"))


async def test_a_kind_that_does_what_it_should_passes(tmp_path: Path) -> None:
    contract = contract_of(two_turns)
    await contract.test_a_kill_after_any_commit_and_a_resume_do_nothing_twice(tmp_path)
    await contract.test_a_cancel_at_any_moment_closes_everything_at_once()
    await contract.test_what_a_person_says_meanwhile_is_read("first")
    await contract.test_what_a_person_says_meanwhile_is_read("last")
    await contract.test_a_patch_in_the_middle_takes_hold_at_a_step("now")


async def test_a_kind_that_begins_anew_after_a_kill_is_found(tmp_path: Path) -> None:
    async def forgetful(run: Run) -> None:
        for n in range(2):
            await run.turn(Agent(name=f"a{n}"))

    with pytest.raises(AssertionError, match="rounds instead of 2"):
        await contract_of(forgetful).test_a_kill_after_any_commit_and_a_resume_do_nothing_twice(tmp_path)


async def test_a_kind_that_takes_itself_to_be_over_after_a_kill_is_found(tmp_path: Path) -> None:
    async def hasty(run: Run) -> None:
        if run.data.get("begun"):
            return
        await run.update({"begun": True})
        await run.turn()

    with pytest.raises(AssertionError, match="0 rounds instead of 1"):
        await contract_of(hasty).test_a_kill_after_any_commit_and_a_resume_do_nothing_twice(tmp_path)


async def test_a_kind_that_leaves_something_running_is_found() -> None:
    left: list[asyncio.Task[Any]] = []

    async def messy(run: Run) -> None:
        left.append(asyncio.create_task(asyncio.sleep(30), name=f"left by {run.id}"))
        await run.turn()

    try:
        with pytest.raises(AssertionError, match="goes on after the run's end"):
            await contract_of(messy).test_a_cancel_at_any_moment_closes_everything_at_once()
    finally:
        for task in left:
            task.cancel()


async def test_a_kind_that_swallows_failures_is_found() -> None:
    async def mild(run: Run) -> None:
        try:
            await run.turn()
        except ProviderError:
            return

    with pytest.raises(AssertionError, match="the run is done"):
        await contract_of(mild).test_a_model_that_fails_fails_the_run_with_its_kind()


async def test_a_kind_that_does_not_listen_is_found() -> None:
    async def deaf(run: Run) -> None:
        await run.turn(Agent(name="a", brief=[text_message("user", "Talk.")]))

    with pytest.raises(AssertionError, match="no model was told"):
        await contract_of(deaf).test_what_a_person_says_meanwhile_is_read("first")
    await contract_of(deaf, listens=False).test_what_a_person_says_meanwhile_is_read("first")


async def test_a_kind_that_is_deaf_to_what_is_said_at_its_very_end_is_found() -> None:
    async def deaf_at_last(run: Run) -> None:
        while len(run.turns()) < 2:
            await run.turn(Agent(name=f"a{len(run.turns())}"))

    contract = contract_of(deaf_at_last)
    await contract.test_what_a_person_says_meanwhile_is_read("first")
    with pytest.raises(AssertionError, match="what the person said at the last moment"):
        await contract.test_what_a_person_says_meanwhile_is_read("last")
    await contract_of(deaf_at_last, listens=False).test_what_a_person_says_meanwhile_is_read("last")


async def test_a_kind_that_reads_its_config_once_is_found() -> None:
    def agent(config: Documented) -> Agent:
        return Agent(system=f"Talk in {config.place}.")

    async def frozen(run: Run) -> None:
        me = agent(run.config())
        while run.wants_step:
            await run.turn(me)

    async def awake(run: Run) -> None:
        while run.wants_step:
            await run.turn(agent)

    patch = {"place": "Rome"}
    with pytest.raises(AssertionError, match="the patch made no difference"):
        await contract_of(frozen, patch=patch).test_a_patch_in_the_middle_takes_hold_at_a_step("now")
    await contract_of(awake, patch=patch).test_a_patch_in_the_middle_takes_hold_at_a_step("now")


@pytest.mark.parametrize("risk", ["write", "danger"])
async def test_a_kind_whose_decisions_ask_a_person_is_found(risk: Any) -> None:
    @tool(risk=risk)
    async def decide(yes: bool) -> str:
        """Decide."""
        return "It is decided."

    async def careful(run: Run) -> None:
        await run.turn(Agent(name="judge", own=[decide], ends={"decide"}))

    contract = contract_of(careful, answer=lambda self, request: call(("decide", {"yes": True})))
    with pytest.raises(AssertionError, match="a decision asks nobody"):
        await contract.test_a_call_that_ends_a_turn_does_no_more_than_take_a_decision_down()


async def test_a_config_without_words_is_found() -> None:
    assert undocumented(Documented) == []
    with pytest.raises(AssertionError, match=r"Undocumented\.secret"):
        await contract_of(two_turns, Undocumented).test_its_config_has_defaults_and_each_member_is_documented()


def part(number: int, how: str, **more: Any) -> tuple[str, Any]:
    return f"part.{how}", {"part": number, "run": "r", **more}


OPEN = ("run.open", {"run": "r"})
CLOSE = ("run.close", {"run": "r", "usage": {"input": 0, "output": 0}})


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([OPEN], "has no close"),
        ([OPEN, part(1, "open"), CLOSE], "open when the run closes"),
        ([OPEN, part(1, "open"), part(1, "close", len=0), part(1, "close", len=0), CLOSE], "was not open"),
        ([OPEN, part(1, "open"), part(1, "close", len=0), part(1, "open"), CLOSE], "used twice"),
        ([OPEN, part(1, "open"), ("delta", [1, "é"]), part(1, "close", len=2), CLOSE], "1 code points, not 2"),
        ([OPEN, CLOSE, part(1, "open")], "after the run's close"),
        ([OPEN, ("step.open", {"step": 1}), ("agent.close", {"agent": "a"}), CLOSE], "was not open"),
    ],
)
def test_a_log_that_breaks_a_rule_is_found(events: list[Any], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_log(events, "r")


def test_the_numbers_that_are_chosen_are_spread_and_the_same_each_time() -> None:
    assert spread(3, 8) == [1, 2, 3]
    chosen = spread(100, 8)
    assert (len(chosen), chosen[0], chosen[-1]) == (8, 1, 100)
    assert chosen == spread(100, 8)
