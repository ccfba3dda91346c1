"""A step's model is asked in the task that makes the step: restarts, cancels and deadlines that meet in one round.

Whatever happens, a restart leaves no mark on the task, takes no cancel with it, and starts nothing again that is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sag.engine.agent import Agent
from sag.engine.run import Run, Turn
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import Chunk, Finish, HttpRequest, Model, ModelRequest, ProviderError, Text
from sag.hooks.tool import ToolError, tool
from sag.testing.provider import ScriptedProvider, call, say
from tests.engine.conftest import Bench, open_bench

Kind = Callable[[Run], Awaitable[None]]
FOREVER = 60.0


class Config(RunConfig):
    """Config of the kind here."""

    rounds: int = 30


class Scripts(ScriptedProvider):
    """A scripted provider that can be told other scripts."""

    def tell(self, *scripts: Any) -> None:
        self.requests.clear()
        self._scripts = list(scripts)


class Stage:
    """A hub that knows the kind `play`; one run after the other.

    Attributes:
        run: The run of that kind that began last.
        left: What `cancelling()` gave when its kind was over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kind: Kind
        self.hub: Bench
        self.run: Run
        self.left: int | None = None

    async def _play(self, run: Run) -> None:
        self.run = run
        try:
            await self._kind(run)
        finally:
            self.left = cancels()

    async def begin(self, kind: Kind, *scripts: Any, provider: Any = None, **config: Any) -> Any:
        """Begin a run of a kind, on scripts or a provider."""
        self._kind, self.left = kind, None
        if not hasattr(self, "hub"):
            kinds = [RunKind("play", Config, self._play)]
            self.hub = await open_bench(self._folder, provider or Scripts(), kinds=kinds)
        if isinstance(self.hub.provider, Scripts):
            self.hub.provider.tell(*scripts)
        started = await self.hub.start("go", kind="play", config=config)
        async with asyncio.timeout(2):
            while not hasattr(self, "run") or self.run.id != started["run"]:
                await asyncio.sleep(0)
        return started

    async def until_asked(self, times: int = 1) -> None:
        """Wait until a model was asked so many times, and is asked now."""
        async with asyncio.timeout(2):
            while len(self.hub.provider.requests) < times or not self.run.in_model_call:
                await asyncio.sleep(0.001)

    async def until_said(self, started: Any, *said: str) -> None:
        """Wait until these texts are what was said, in any order."""
        await self.hub.until(started["conv"], lambda s: sorted(texts(self.hub, s)) == sorted(said))

    async def patch(self, temperature: float = 0.1) -> str:
        """Patch the run for now; gives when that applies."""
        scope = f"run:{self.run.id}"
        answer = await self.hub.call("config.patch", scope=scope, patch={"temperature": temperature}, apply="now")
        return str(answer["applies"])

    async def end(self, started: Any, status: str = "done") -> dict[str, Any]:
        """The state once the run has closed, soon and as it should, with nothing left of it."""
        async with asyncio.timeout(3):
            state = await self.hub.end(started, status)
        assert self.run.task is not None
        await asyncio.wait({self.run.task}, timeout=1)
        assert self.run.task.done()
        assert not self.run._rounds
        assert self.run._active == 0
        return state

    async def closes(self, started: Any) -> list[str]:
        """How the steps ended, in order; each that was opened did, once, before the run."""
        events = await self.hub.events(started["conv"])
        opened = [d["step"] for n, d in events if n == "step.open"]
        closed = [d["step"] for n, d in events if n == "step.close"]
        assert sorted(opened) == sorted(set(closed)) == sorted(closed)
        assert max(i for i, (n, _) in enumerate(events) if n == "step.close") < [n for n, _ in events].index(
            "run.close"
        )
        return [d["finish"] for n, d in events if n == "step.close"]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.hub.app.engine.drain(0)
    await stage.hub.app.stop()


def cancels() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def new_or(*old: Any) -> Callable[[ModelRequest], Any]:
    """Answers "new" on the patched config, and else as it is told."""
    return lambda request: say("new") if request.temperature is not None else old


def texts(hub: Bench, state: dict[str, Any]) -> list[str]:
    return [text for text in hub.texts(state) if text]


async def turns(run: Run) -> None:
    while run.wants_step:
        await run.turn()


RETRIES = ProviderError("provider.disconnected", "gone", after_s=FOREVER)
LIMITED = ProviderError("provider.rate_limit", "slow down", after_s=0.1)
HANGS = [Text("old"), FOREVER]


# restarts at any moment of a round


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ([FOREVER], "running"),
        ([Text("o"), FOREVER], "running"),
        ([Text("o"), Text("l"), Text("d"), FOREVER, Finish("stop")], "running"),
        ([*say("old"), FOREVER], "running"),
        ([RETRIES], "waiting"),
        ([Text("o"), RETRIES], "waiting"),
        ([LIMITED], "waiting"),
    ],
    ids=["before", "between", "late", "after the last chunk", "retry", "retry of a half", "limiter"],
)
async def test_a_patch_for_now_restarts_the_round_wherever_it_is(stage: Stage, script: list[Any], status: str) -> None:
    started = await stage.begin(turns, new_or(*script))
    await stage.until_asked()
    await stage.hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == status)
    if status == "running" and (shown := "".join(item.text for item in script if isinstance(item, Text))):
        await stage.until_said(started, shown)
    assert await stage.patch() == "now"
    state = await stage.end(started)
    assert texts(stage.hub, state) == ["new"]
    assert await stage.closes(started) == ["config", "stop"]
    assert stage.left == 0
    assert "why" not in state["runs"][started["run"]]


async def test_a_patch_that_comes_after_any_number_of_turns_is_taken_up_and_leaves_no_mark(stage: Stage) -> None:
    seen = set()
    for n in range(20):
        wait, pause_s = n % 5 * 8, n // 5 * 0.002
        started = await stage.begin(turns, new_or(*(x for t in "abc" for x in (Text(t), pause_s)), Finish("stop")))
        while not stage.run.in_model_call:
            await asyncio.sleep(0)
        for _ in range(wait):
            await asyncio.sleep(0)
        applies = "never"
        with contextlib.suppress(Fault):  # it is over
            applies = await stage.patch()
        state = await stage.end(started)
        closes = await stage.closes(started)
        assert (texts(stage.hub, state)[-1:], closes) in ((["new"], ["config", "stop"]), (["abc"], ["stop"])), n
        assert applies == "now" or closes == ["stop"]
        assert stage.left == 0
        seen.add(closes[0])
    assert "config" in seen


class Ending:
    """A provider that calls something at a moment of its end."""

    name = "script"

    def __init__(self, moment: str, act: Callable[[], None]) -> None:
        self.moment, self.act = moment, act
        self.asked = 0

    def models(self) -> Sequence[Model]:
        return [Model("m", default=True)]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        self.asked += 1
        first = self.asked == 1
        try:
            yield Text("old" if first else "new")
            if first and self.moment == "before":
                self.act()
            yield Finish("stop")
            if first and self.moment == "behind":
                self.act()
        finally:
            if first and self.moment == "cleanup":
                self.act()
            if first and self.moment == "slow cleanup":
                asyncio.get_running_loop().call_soon(self.act)
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("moment", ["before", "behind", "cleanup", "slow cleanup"])
async def test_a_restart_at_the_very_end_of_an_answer_drops_it_or_lets_it_be(stage: Stage, moment: str) -> None:
    provider = Ending(moment, lambda: stage.run.restart_steps())
    started = await stage.begin(turns, provider=provider)
    state = await stage.end(started)
    closes = await stage.closes(started)
    assert (texts(stage.hub, state), closes) in ((["new"], ["config", "stop"]), (["old"], ["stop"]))
    assert provider.asked == len(closes)
    assert stage.left == 0


async def test_two_restarts_in_a_row_leave_no_mark(stage: Stage) -> None:
    for pause in (0, 1, 2, 3, 5, 8):
        started = await stage.begin(turns, HANGS, HANGS, say("new"))
        await stage.until_said(started, "old")
        stage.run.restart_steps()
        for _ in range(pause):
            await asyncio.sleep(0)
        stage.run.restart_steps()  # of the same round, or of none
        await stage.until_asked(2)
        stage.run.restart_steps()
        state = await stage.end(started)
        assert texts(stage.hub, state)[-1] == "new"
        assert (await stage.closes(started), stage.left) == (["config", "config", "stop"], 0)


async def test_patches_at_once_are_all_in_the_round_that_follows(stage: Stage) -> None:
    started = await stage.begin(turns, HANGS, say("new"), say("newer"), say("newest"))
    await stage.until_asked()
    assert await asyncio.gather(*(stage.patch(n / 10) for n in (1, 2, 3))) == ["now"] * 3
    await stage.end(started)
    assert stage.hub.provider.requests[-1].temperature == 0.3
    assert set((await stage.closes(started))[:-1]) == {"config"}
    assert stage.left == 0


async def test_what_is_over_or_not_begun_is_not_restarted(stage: Stage) -> None:
    seen: list[Any] = []

    async def kind(run: Run) -> None:
        run.restart_steps()
        await asyncio.sleep(0)
        step = await run.step()
        assert not run.in_model_call
        run.restart_steps()
        await asyncio.sleep(0)
        seen.append((step.text, cancels()))
        await run.tools()
        run.restart_steps()
        seen.append((await run.step()).text)
        run.restart_steps()

    await stage.end(await stage.begin(kind, call(("double", {"number": 1}), text="one"), say("two")))
    assert (seen, stage.left) == ([("one", 0), "two"], 0)
    assert len(stage.hub.provider.requests) == 2


# restarts and cancels in the same turn


@pytest.mark.parametrize(
    ("script", "orders"),
    [(HANGS, "rc cr rrc rcr crc crr"), ([FOREVER], "rc cr"), ([RETRIES], "rc cr rcr"), ([LIMITED], "rc")],
    ids=["hangs", "silent", "retries", "limited"],
)
async def test_a_cancel_is_not_lost_to_a_restart_in_the_same_turn(stage: Stage, script: Any, orders: str) -> None:
    for order in orders.split():
        started = await stage.begin(turns, script, say("again"))
        await stage.until_asked()
        await asyncio.sleep(0.01)
        assert stage.run.task is not None
        for what in order:
            if what == "r":
                stage.run.restart_steps()
            else:
                stage.run.task.cancel()
        await stage.end(started, "interrupted")
        assert await stage.closes(started) == ["cancelled"], order
        assert stage.left == order.count("c")
        assert len(stage.hub.provider.requests) == 1


async def test_a_cancel_a_few_turns_after_a_restart_is_not_lost(stage: Stage) -> None:
    for pause in (1, 2, 3, 4, 6, 10):
        started = await stage.begin(turns, HANGS)
        await stage.until_said(started, "old")
        assert stage.run.task is not None
        stage.run.restart_steps()
        for _ in range(pause):
            await asyncio.sleep(0)
        stage.run.task.cancel()
        await stage.end(started, "interrupted")
        assert stage.left == 1, pause
        assert set(await stage.closes(started)) <= {"config", "cancelled", "interrupted"}


async def test_a_run_that_is_ended_in_the_turn_of_a_restart_ends(stage: Stage) -> None:
    for end, status in (("now", "cancelled"), ("after_step", "cancelled"), ("drain", "interrupted")):
        for first in ("restart", "end"):
            started = await stage.begin(turns, HANGS, say("again"))
            await stage.until_said(started, "old")
            engine = stage.hub.app.engine
            ends = engine.drain(0) if end == "drain" else stage.hub.call("run.cancel", run=started["run"], mode=end)
            both: list[Any] = [ends, stage.patch()]
            await asyncio.gather(*(both if first == "end" else both[::-1]), return_exceptions=True)
            stage.run.restart_steps()
            await stage.end(started, status)
            assert len(stage.hub.provider.requests) == 1, (end, first)
            await stage.closes(started)
            engine.draining = False


async def test_a_stop_in_the_turn_of_a_restart_ends_the_run_without_another_round(stage: Stage) -> None:
    started = await stage.begin(turns, HANGS, say("again"))
    await stage.until_said(started, "old")
    stage.run.restart_steps()
    stage.run.stop()
    await stage.end(started, "cancelled")
    assert await stage.closes(started) == ["config"]
    assert (stage.left, len(stage.hub.provider.requests)) == (0, 1)


async def test_a_hub_that_stops_in_the_turn_of_a_restart_is_not_held_up(stage: Stage) -> None:
    started = await stage.begin(turns, HANGS)
    await stage.until_said(started, "old")
    stage.run.restart_steps()
    async with asyncio.timeout(2):
        await stage.hub.app.engine.stop()
    assert stage.run.task is not None
    assert stage.run.task.done()
    assert stage.left == 1


# several at once


def by_name(request: ModelRequest) -> str:
    return next((m.text for m in request.messages if m.role == "system"), "")


def agents(names: str) -> list[Agent]:
    return [Agent(name=name, system=name) for name in names]


async def in_together(run: Run, work: list[Any]) -> None:
    await run.together(work)


async def in_group(run: Run, work: list[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)


async def in_group_and_body(run: Run, work: list[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work[1:]:
            group.create_task(one)
        await work[0]


async def in_gather(run: Run, work: list[Any]) -> None:
    await asyncio.gather(*work)


async def test_a_restart_while_several_step_restarts_each_and_marks_none(stage: Stage) -> None:
    way: Any
    for way in (in_together, in_group, in_group_and_body, in_gather):
        left: list[int] = []

        async def kind(run: Run, way: Any = way, left: list[int] = left) -> None:
            async def one(agent: Agent) -> None:
                await run.turn(agent)
                left.append(cancels())

            await way(run, [one(agent) for agent in agents("abc")])

        started = await stage.begin(kind, new_or(*HANGS))
        await stage.until_said(started, *["old"] * 3)
        assert await stage.patch() == "now"
        state = await stage.end(started)
        assert texts(stage.hub, state)[-3:] == ["new"] * 3
        assert await stage.closes(started) == [*["config"] * 3, *["stop"] * 3]
        assert (left, stage.left) == ([0] * 3, 0), way


async def test_a_failure_of_one_in_the_turn_of_a_restart_ends_the_others(stage: Stage) -> None:
    way: Any
    for way in (in_together, in_group, in_group_and_body):
        fails = asyncio.Event()
        seen: list[int] = []

        async def kind(run: Run, way: Any = way, fails: asyncio.Event = fails, seen: list[int] = seen) -> None:
            async def fail(when: asyncio.Event) -> None:
                await when.wait()
                run.restart_steps()
                raise ToolError("no")

            async def failing(when: asyncio.Event, *work: Any) -> None:
                before = cancels()
                try:
                    await way(run, [*work, fail(when)])
                except* ToolError as group:
                    seen.append(len(group.exceptions))
                seen.append(cancels() - before)

            now = asyncio.Event()
            now.set()
            await failing(now, asyncio.sleep(FOREVER))  # up to 3.12 a TaskGroup itself may leave a mark
            await failing(fails, *(run.turn(agent) for agent in agents("ab")))

        started = await stage.begin(kind, lambda r: [Text(by_name(r)), FOREVER])
        await stage.until_said(started, "a", "b")
        fails.set()
        await stage.end(started)
        assert seen[0] == 1
        assert seen[2:] == seen[:2], way
        assert len(stage.hub.provider.requests) == 2
        assert await stage.closes(started) == ["cancelled"] * 2


# run kinds with deadlines of their own


async def by_timeout(work: Any, after: float) -> Any:
    async with asyncio.timeout(after):
        return await work


async def by_wait_for(work: Any, after: float) -> Any:
    return await asyncio.wait_for(work, after)


async def test_a_deadline_of_the_kinds_own_holds_over_restarts(stage: Stage) -> None:
    limited: Any
    for limited in (by_timeout, by_wait_for):
        seen: list[Any] = []

        async def kind(run: Run, limited: Any = limited, seen: list[Any] = seen) -> None:
            with pytest.raises(TimeoutError):
                await limited(run.step(), 0.1)
            seen.append(cancels())
            seen.append((await limited(run.step(), 5)).text)
            with pytest.raises(TimeoutError):
                await limited(asyncio.sleep(5), 0.01)
            seen.append(cancels())

        started = await stage.begin(kind, HANGS, HANGS, HANGS, say("in time"))
        for n in (1, 2):
            await stage.until_asked(n)
            stage.run.restart_steps()
        await stage.end(started)
        assert (seen, stage.left) == ([0, "in time", 0], 0)
        assert await stage.closes(started) == ["config", "config", "cancelled", "stop"]


async def test_a_deadline_in_the_turn_of_a_restart_is_a_timeout(stage: Stage) -> None:
    for order in ("restart", "deadline"):
        seen: list[Any] = []
        deadline = asyncio.timeout(None)

        async def kind(run: Run, deadline: asyncio.Timeout = deadline, seen: list[Any] = seen) -> None:
            with pytest.raises(TimeoutError):
                async with deadline:
                    await run.step()
            seen.append(cancels())
            seen.append((await run.step()).text)

        started = await stage.begin(kind, HANGS, say("next"))
        await stage.until_said(started, "old")
        if order == "restart":
            stage.run.restart_steps()
        deadline.reschedule(asyncio.get_running_loop().time() - 1)
        if order == "deadline":
            stage.run.restart_steps()
        await stage.end(started)
        assert (seen, stage.left) == ([0, "next"], 0), order
        assert await stage.closes(started) == ["cancelled", "stop"]


async def test_a_kind_that_took_a_cancel_for_itself_can_still_be_restarted_and_cancelled(stage: Stage) -> None:
    async def kind(run: Run) -> None:
        try:
            await run.step()
        except asyncio.CancelledError:  # and it stays marked
            await turns(run)

    started = await stage.begin(kind, [Text("one"), FOREVER], HANGS, HANGS)
    await stage.until_said(started, "one")
    assert stage.run.task is not None
    stage.run.task.cancel()
    await stage.until_asked(2)
    stage.run.restart_steps()
    await stage.until_asked(3)
    assert stage.run.task.cancelling() == 1
    stage.run.restart_steps()
    stage.run.task.cancel()
    await stage.end(started, "interrupted")
    assert stage.left == 2
    assert await stage.closes(started) == ["cancelled", "config", "cancelled"]


# what a provider may raise and swallow


class Keyed:
    """A provider over HTTP whose headers have to be fetched, as told."""

    name = "script"

    def __init__(self, *fetch: Callable[[], Awaitable[None]]) -> None:
        self.fetch = list(fetch)
        self.asked = 0

    def models(self) -> Sequence[Model]:
        return [Model("m", default=True)]

    def prepare(self, request: ModelRequest) -> HttpRequest:
        return HttpRequest("http://127.0.0.1:1/", b"{}")

    async def headers(self, http: httpx.AsyncClient) -> Mapping[str, str]:
        self.asked += 1
        await self.fetch[min(self.asked, len(self.fetch)) - 1]()
        return {}

    def decoder(self, request: ModelRequest) -> Any:
        raise NotImplementedError

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        raise NotImplementedError


async def refuse() -> None:
    raise ProviderError("provider.auth", "No key.")


async def hang() -> None:
    await asyncio.sleep(FOREVER)


async def swallow() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        raise ProviderError("provider.auth", "No key.") from None


async def swallow_once() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        await hang()


async def asked(provider: Keyed) -> None:
    async with asyncio.timeout(2):
        while not provider.asked:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("deadline", [False, True])
async def test_a_restart_that_a_provider_swallowed_leaves_no_mark(stage: Stage, deadline: bool) -> None:
    seen: list[Any] = []

    async def kind(run: Run) -> None:
        async with asyncio.timeout(0.2 if deadline else None):
            try:
                await run.step()
            except ProviderError as e:
                seen.append(e.kind)
            seen.append(cancels())
            if deadline:
                await asyncio.sleep(FOREVER)

    provider = Keyed(swallow)
    started = await stage.begin(kind, provider=provider)
    await asked(provider)
    stage.run.restart_steps()
    await stage.end(started, "failed" if deadline else "done")  # of the kind's own timeout, and not "interrupted"
    assert (seen, stage.left) == (["provider.auth", 0], 0)


async def test_a_restart_after_one_that_a_provider_swallowed_is_a_restart(stage: Stage) -> None:
    provider = Keyed(swallow_once, refuse)
    started = await stage.begin(turns, provider=provider)
    await asked(provider)
    for _ in range(2):
        stage.run.restart_steps()
        await asyncio.sleep(0.02)
    await stage.end(started, "failed")
    assert (await stage.closes(started), stage.left) == (["config", "failed"], 0)


async def test_a_cancel_after_a_restart_that_a_provider_swallowed_is_not_lost(stage: Stage) -> None:
    provider = Keyed(swallow_once, refuse)
    started = await stage.begin(turns, provider=provider)
    await asked(provider)
    stage.run.restart_steps()
    await asyncio.sleep(0.02)
    assert stage.run.task is not None
    stage.run.task.cancel()
    await stage.end(started, "interrupted")
    assert (stage.left, provider.asked) == (1, 1)


@pytest.mark.parametrize("where", ["stream", "headers", "prepare"])
async def test_an_exit_that_a_provider_raises_ends_its_run_and_not_the_hub(stage: Stage, where: str) -> None:
    async def alone(run: Run) -> None:
        await run.turn()

    async def beside(run: Run) -> None:
        await run.together([run.turn(agent) for agent in agents("ab")])

    async def leave() -> None:
        raise SystemExit(3)

    provider = None if where == "stream" else Keyed(leave)
    if provider is not None and where == "prepare":

        def prepare(request: ModelRequest) -> HttpRequest:
            raise SystemExit(3)

        provider.prepare = prepare  # type: ignore[method-assign]
    for kind in (alone, beside, alone):  # it still takes runs
        started = await stage.begin(kind, [SystemExit(3)], provider=provider, retries=0)
        state = await stage.end(started, "failed")
        why = "provider.protocol" if where == "stream" else "run.failed"
        assert state["runs"][started["run"]]["error"]["kind"] == why
        assert set(await stage.closes(started)) <= {"failed", "cancelled"}
        assert stage.left == 0


async def test_a_fallback_follows_a_round_that_was_restarted(stage: Stage) -> None:
    class Two(Scripts):
        def models(self) -> Sequence[Model]:
            return [Model("m", default=True), Model("n")]

    failure = ProviderError("provider.auth", "No key.")
    started = await stage.begin(turns, HANGS, [failure], say("other"), provider=Two(), fallbacks=["script/n"])
    await stage.until_said(started, "old")
    stage.run.restart_steps()
    state = await stage.end(started)
    assert texts(stage.hub, state) == ["other"]
    assert (await stage.closes(started), stage.left) == (["config", "fallback", "stop"], 0)


# turns


async def test_a_turn_is_the_one_of_all_turns_with_agents_failed_calls_and_cut_rounds(stage: Stage) -> None:
    told: list[Turn] = []
    times: dict[str, int] = {}

    @tool(name="finish", risk="read")
    async def finish(number: int) -> int:
        """Finish."""
        return number

    async def kind(run: Run) -> None:
        async def act(name: str) -> None:
            agent = Agent(name=name or None, system=name or "none", own=[finish], ends={"finish"})
            for _ in range(3):
                turn = await run.turn(agent)
                assert [t for t in run.turns() if t.agent == turn.agent][-1] == turn
                told.append(turn)

        await run.together([act(name) for name in ("a", "b", "")])
        assert sorted(map(repr, run.turns())) == sorted(map(repr, told))

    def answer(request: ModelRequest) -> Any:
        name = by_name(request)
        n = times[name] = times.get(name, 0) + 1
        scripts: list[Any] = [
            call(("double", {"number": n}), ("double", {"number": "x"}), text="both"),
            [Text("cut"), 0.03, *say("late")],
            call(("finish", {"number": "x"}), ("grumble", {})),
            call(("finish", {"number": n}), ("double", {"number": n})),
            say("words"),
        ]
        return scripts[(n - 1) % len(scripts)]

    started = await stage.begin(kind, answer)
    for _ in range(6):
        await asyncio.sleep(0.01)
        stage.run.restart_steps()
    await stage.end(started)
    assert len(told) == 9
    assert {"config", "tools", "stop"} <= set(await stage.closes(started))
    assert stage.left == 0


def random_state(chance: random.Random) -> dict[str, Any]:
    """Messages of some agents in two runs, with calls that were lost, repeated, unknown, and rounds that were cut."""
    state: dict[str, Any] = {"messages": [], "tools": {}, "runs": {"r": {}}}
    tools = state["tools"]
    for i in range(chance.randint(0, 14)):
        message: dict[str, Any] = {"msg": f"m{i}", "run": chance.choice("rrrq"), "parts": [], "step": i}
        message["role"] = chance.choice(("user", "assistant", "assistant", "assistant", "assistant"))
        if message["role"] == "assistant" and (agent := chance.choice((None, "a", "b"))):
            message["agent"] = agent
        if message["role"] == "user" or chance.random() < 0.7:
            message["parts"].append({"kind": "text", "text": f"t{i} ", "open": False})
        for n in range(chance.choice((0, 0, 1, 2))):
            id = f"c{i}.{n}"
            message["parts"] += [{"kind": "tool_args", "text": "{}", "open": False, "call": id}] * chance.randint(1, 2)
            for again in range(chance.choice((0, 1, 1, 1, 2, 3))):
                newer = f"{id}x" if again else id
                if again:
                    tools[id]["status"], tools[id]["repeated"] = "lost", newer
                id = newer
                status = chance.choice(("ok", "ok", "error", "lost", "running"))
                tools[id] = {"run": message["run"], "name": "n", "status": status, "ends": chance.random() < 0.4}
        if chance.random() < 0.1:
            message["parts"].append({"kind": "text", "text": "cut", "open": False, "partial": True})
        if chance.random() < 0.05:
            message["parts"].append({"kind": "text", "text": "open", "open": True})
        state["messages"].append(message)
    return state


def test_each_turn_is_found_by_its_message_as_all_of_them_are() -> None:
    chance = random.Random(3)
    seen = 0
    for _ in range(1000):
        state = random_state(chance)
        run: Any = object.__new__(Run)
        run.id, run._topic = "r", SimpleNamespace(state=state)
        over = run.turns()
        seen += len(over)
        for turn in over:
            assert run._turn(turn.msg) == turn
        ended = {t.msg for t in over}
        for agent in (None, "a", "b"):
            mine = [m for m in run.rounds() if m.get("agent") == agent]
            last = max((i for i, m in enumerate(mine) if m["msg"] in ended), default=-1)
            assert run._unfinished(agent) == mine[last + 1 :]
    assert seen > 1000
