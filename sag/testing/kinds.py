"""What every run kind has to do, as tests: subclass `RunKindContract`, and a kind is tested as the bundled ones are.

    class TestDebate(RunKindContract):
        kind = "debate"
        config = {"judge": "Be brief."}

        def answer(self, request):
            return say("I have heard both.") if "judge" in request.messages[0].text else say("Yes!")

The tests need pytest and pytest-asyncio. Each plays runs of the kind through a whole hub, over its socket, with models
that answer what the subclass says. They hold the run wherever they want to: every piece of an answer and every call of
a tool is a moment at which it can be stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import random
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_origin

import msgspec
import pytest

from sag.client import Client, Topic
from sag.engine.config import defaults, validate
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import Chunk, Model, ModelRequest, ProviderError
from sag.hooks.tool import Tool
from sag.schema.events import Usage
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import Script, ScriptedProvider
from sag.topics.reducers import ConvReducer

Json = dict[str, Any]
Event = tuple[str, Any]

ENDS = ("done", "cancelled", "failed", "limit", "interrupted")
FINISHED = ("stop", "tools", "length", "refused")  # how a model round ends that is not made again
IDS = {"part": "part", "tool": "call", "ask": "ask", "step": "step", "agent": "agent"}
WAIT_S = 20.0
SEED = 20261121
ID = r"[a-z]\d[0-9a-z]{14}"  # sag.schema.ids


class Stage:
    """Where a kind plays: it counts the moments of a run, holds it at one of them, and remembers what was done.

    Attributes:
        moments: The moments so far: pieces of answers, and calls of tools that began.
        hold_at: The number of the moment at which to hold; 0 holds nowhere.
        held: Is set when the run is there.
        requests: What the models were asked.
        called: The tools that were called, by name.
        busy: The answers and tools in progress.
        pace_s: How long a moment lasts.
    """

    def __init__(self, hold_at: int = 0, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.begin(hold_at)

    def begin(self, hold_at: int = 0) -> None:
        """Forget what was, and hold at another moment."""
        self.moments, self.hold_at, self.busy = 0, hold_at, 0
        self.held, self._goes_on = asyncio.Event(), asyncio.Event()
        self.requests: list[ModelRequest] = []
        self.called: list[str] = []

    def release(self) -> None:
        """Let the run go on."""
        self._goes_on.set()

    async def moment(self) -> None:
        """One of the moments; waits where the run is held."""
        self.moments += 1
        if self.moments == self.hold_at:
            self.held.set()
            await self._goes_on.wait()
        await asyncio.sleep(self.pace_s)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Something is in progress."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


class StagedProvider(ScriptedProvider):
    """Models that answer by a function, moment by moment.

    Args:
        stage: Where the moments are counted.
        name, models: The provider's name, and those of its models; the very first is the hub's default.
        answer: What a model answers.
    """

    def __init__(
        self, stage: Stage, name: str, models: Sequence[str], answer: Callable[[ModelRequest], Script], *, first: bool
    ) -> None:
        super().__init__(answer, name=name)
        self._stage, self._models, self._first = stage, models, first

    def models(self) -> Sequence[Model]:
        return [Model(id, default=self._first and not n) for n, id in enumerate(self._models)]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Chunk]:
        self._stage.requests.append(copy.deepcopy(request))
        with self._stage.at_work():
            async with contextlib.aclosing(super().stream(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    await self._stage.moment()
                    yield chunk


def staged_tool(tool: Tool, stage: Stage) -> Tool:
    """A tool whose calls are counted."""

    async def call(args: Any, ctx: Any) -> Any:
        stage.called.append(tool.name)
        with stage.at_work():
            await stage.moment()
            return await tool.call(args, ctx)

    twin = copy.copy(tool)
    twin._call = call
    return twin


class Performance:
    """One run, as a client sees it that answers what is asked.

    Attributes:
        hub, client: Where, and through whom.
        conv, run: The conversation and the run.
        topic: The conversation's topic.
    """

    def __init__(self, hub: RunningHub, client: Client, topic: Topic, run: str) -> None:
        self.hub, self.client, self.topic, self.run = hub, client, topic, run
        self.conv = topic.name.removeprefix("conv:")

    @property
    def state(self) -> Json:
        """The conversation's state, as the client has folded it."""
        return self.topic.state

    @property
    def object(self) -> Json:
        """The run's object in it."""
        object: Json = self.topic.state["runs"].get(self.run) or {"status": ""}
        return object

    @property
    def messages(self) -> list[Json]:
        """The run's messages."""
        return [m for m in self.state["messages"] if m.get("run") == self.run]

    @property
    def tools(self) -> dict[str, Json]:
        """The run's tool calls by their ids."""
        return {id: t for id, t in self.state["tools"].items() if t["run"] == self.run}

    @property
    def finished(self) -> int:
        """How many model rounds came to their end."""
        return sum(m.get("finish") in FINISHED for m in self.messages)

    async def until(self, holds: Callable[[Json], Any], what: str) -> None:
        """Wait until something holds of the run's object."""
        try:
            await self.topic.until(lambda _: holds(self.object), WAIT_S)
        except TimeoutError:
            raise AssertionError(f"not within {WAIT_S:g} s: {what}; the run is {self.object}") from None

    async def ends(self, status: str = "done") -> Performance:
        """Wait until it has ended, as it should."""
        await self.until(lambda object: object["status"] in ENDS, "the run ends")
        assert self.object["status"] == status, f"the run is {self.object['status']}: {self.object.get('error')}"
        return self

    async def log(self) -> list[Event]:
        """The conversation's whole log; its offsets are contiguous from 1."""
        topic = await self.hub.app.topics.find(self.client.user["id"], self.topic.name)
        assert topic is not None
        await topic.settled()
        entries = await self.hub.app.journal.read(topic.tid, 0, topic.head, 1 << 30)
        assert [e.off for e in entries] == list(range(1, topic.head + 1)), "offsets are contiguous"
        return [(e.name, msgspec.json.decode(e.body)) for e in entries]


def check_log(events: Sequence[Event], run: str) -> None:
    """Hold a run's events to the protocol.

    What was opened is closed exactly once before the run is; no number is used twice; the length of a part is that of
    its text; what the steps took is what the run took; and after its close nothing is told of the run, unless it was
    resumed.

    Raises:
        AssertionError: They do not keep to it.
    """
    is_open: Counter[tuple[str, Any]] = Counter()
    opened: Counter[tuple[str, Any]] = Counter()
    texts: dict[int, int] = {}
    used = Usage(0, 0)
    is_closed = True
    for name, d in events:
        what, _, how = name.partition(".")
        if name == "delta":
            for part, text in zip(d[::2], d[1::2], strict=True):
                assert is_open["part", part] or part not in texts, f"a delta of part {part}, which is closed"
                texts[part] = texts.get(part, 0) + len(text)
        elif name in ("run.open", "run") and d["run"] == run:
            is_closed = is_closed and (d.get("patch") or {"status": "running"}).get("status") != "running"
        elif what in IDS and how in ("open", "close", "drop"):
            id = (what, d[IDS[what]])
            assert not is_closed, f"{name} of {id} after the run's close"
            if how == "open":
                assert not is_open[id], f"{id} is opened twice"
                assert what == "agent" or not opened[id], f"the number of {id} is used twice"
                opened[id] += 1
            elif how == "close":
                assert is_open[id], f"{id} is closed, and was not open"
            is_open[id] = int(how == "open")
            if name == "part.open":
                texts.setdefault(d["part"], 0)
            elif name == "part.close":
                part, length = d["part"], d["len"]
                assert length == texts[part], f"part {part} has {texts[part]} code points, not {length}"
            elif name == "step.close" and d.get("usage"):
                used = used.plus(msgspec.convert(d["usage"], Usage))
        elif name == "run.close" and d["run"] == run:
            assert not +is_open, f"open when the run closes: {sorted(map(str, +is_open))}"
            told = msgspec.convert(d["usage"], Usage)
            assert (told.input, told.output) == (used.input, used.output), "the run took what its steps took"
            is_closed = True
    assert is_closed, "the run has no close"


class RunKindContract(ABC):
    """What every run kind has to do. A subclass says which kind, on which input, and what the models answer.

    It has `kind` and the method `answer`; all else can be left out. The method `reply` says what a person answers who
    is asked.

    Attributes:
        kind: The kind: its name where a plugin is installed that brings it, else a `RunKind`.
        text: What the user says.
        config: The run's config.
        models: The models by their full names; the first is the default.
        tools: Tools that the hub has beside those of plugins. Their calls are counted, so those that the answers call
            should be here; what they do must be quick.
        patch: A config patch that fits, and makes a difference to what some model is asked later. Take members of the
            kind's own, such as an agent's prompt; of one that is left alone nothing is known.
        bad_patches: Some that do not fit.
        listens: Whether what a person says while the run goes on, be it during its last round, comes to a model of it.
        env, tables: The environment, and tables of plugins.toml by plugin.
        cancels, kills: At how many moments a run is cancelled, and after how many commits it is killed; they are spread
            over all that there are.
        closes_s: Within how many seconds a cancelled run is closed.
    """

    pytestmark = pytest.mark.asyncio

    kind: ClassVar[str | RunKind]
    text: ClassVar[str] = "Hello"
    config: ClassVar[Json] = {}
    models: ClassVar[Sequence[str]] = ("script/m",)
    tools: ClassVar[Sequence[Tool]] = ()
    patch: ClassVar[Json] = {"temperature": 0.3}
    bad_patches: ClassVar[Sequence[Json]] = ({"no_such_member": 1}, {"temperature": "hot"}, {"rounds": 0})
    listens: ClassVar[bool] = True
    env: ClassVar[Mapping[str, str]] = {}
    tables: ClassVar[Mapping[str, Json]] = {}
    cancels: ClassVar[int] = 8
    kills: ClassVar[int] = 12
    closes_s: ClassVar[float] = 0.2

    _whole: ClassVar[tuple[Stage, Performance]]

    @abstractmethod
    def answer(self, request: ModelRequest) -> Script:
        """What a model answers: a script, as of `ScriptedProvider`.

        It is to follow from the request alone, since a run that was killed is taken up by another hub.
        """

    def reply(self, ask: Json) -> tuple[str, Json | None]:
        """What a person answers who is asked: a choice, and the data of a form. By default the first option."""
        return ask["options"][0], None

    # how it is played

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind if isinstance(self.kind, str) else self.kind.name

    @contextlib.asynccontextmanager
    async def hub(self, stage: Stage, data: Path | None = None, **settings: Any) -> AsyncIterator[RunningHub]:
        """A hub with the kind, its models and its tools."""
        names: dict[str, list[str]] = {}
        for model in self.models:
            provider, _, id = model.partition("/")
            names.setdefault(provider, []).append(id)
        providers = [
            StagedProvider(stage, name, ids, self.answer, first=not n) for n, (name, ids) in enumerate(names.items())
        ]
        kinds = [] if isinstance(self.kind, str) else [self.kind]
        tools = [staged_tool(tool, stage) for tool in self.tools]
        async with running_hub(
            env=self.env, tables=self.tables, data=data, providers=providers, tools=tools, kinds=kinds, **settings
        ) as hub:
            yield hub

    @contextlib.asynccontextmanager
    async def started(self, hub: RunningHub, client: Client) -> AsyncIterator[Performance]:
        """A run that was just started."""
        config = {"model": self.models[0], **self.config}
        params = {"kind": self.name, "config": config, "input": [{"kind": "text", "text": self.text}]}
        accepted = await client.call("run.start", params)
        async with self.watched(hub, client, accepted["conv"], accepted["run"]) as play:
            yield play

    @contextlib.asynccontextmanager
    async def watched(self, hub: RunningHub, client: Client, conv: str, run: str) -> AsyncIterator[Performance]:
        """A run whose questions are answered."""
        play = Performance(hub, client, await client.subscribe(f"conv:{conv}"), run)
        replying = asyncio.create_task(self._reply(play))
        try:
            yield play
            assert not replying.done(), f"the answers ended: {replying.exception()!r}"
        finally:
            replying.cancel()

    async def _reply(self, play: Performance) -> None:
        replied: set[str] = set()
        events = play.topic.events()
        while True:
            for id, ask in list(play.state["asks"].items()):
                if ask["run"] == play.run and id not in replied:
                    replied.add(id)
                    choice, data = self.reply(ask)
                    try:
                        await play.client.call("ask.answer", {"ask": id, "choice": choice, "data": data})
                    except Fault as e:
                        if e.kind != "ask.closed":  # its run was ended in this moment
                            raise
            await anext(events)

    @contextlib.asynccontextmanager
    async def playing(self, hold_at: int = 0) -> AsyncIterator[tuple[Stage, Performance]]:
        """A run in a hub of its own; held at a moment unless that is 0."""
        stage = Stage(hold_at)
        async with self.hub(stage) as hub, hub.client() as client, self.started(hub, client) as play:
            if hold_at:
                await self._until_held(stage, play)
            yield stage, play

    async def whole(self) -> tuple[Stage, Performance]:
        """A run from start to end of which nobody took notice, as it was left; played once for all tests of a class."""
        if "_whole" not in vars(type(self)):
            async with self.playing() as (stage, play):
                await play.ends()
            type(self)._whole = (stage, play)
        return type(self)._whole

    async def _until_held(self, stage: Stage, play: Performance) -> None:
        """Wait until the run is held, or has ended before."""
        ended = asyncio.ensure_future(play.until(lambda object: object["status"] in ENDS, "the run is held or ends"))
        held = asyncio.ensure_future(stage.held.wait())
        await asyncio.wait({ended, held}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, held):
            task.cancel()
        assert stage.held.is_set(), f"the run ended before moment {stage.hold_at}: {play.object}"

    # the kind and its config

    async def test_it_is_listed_with_words_for_people(self) -> None:
        async with self.hub(Stage()) as hub, hub.client() as client:
            listed = {kind["name"]: kind for kind in (await client.call("kind.list"))["kinds"]}
            is_listed = hub.app.extensions.kinds[self.name].listed
        assert (self.name in listed) == is_listed
        if is_listed and isinstance(self.kind, str):  # others have no plugin that says it
            assert listed[self.name]["title"]
            assert listed[self.name]["description"], "the docstring of the kind's coroutine describes it"

    async def test_its_config_has_defaults_and_each_member_is_documented(self) -> None:
        async with self.hub(Stage()) as hub:
            config = hub.app.extensions.kinds[self.name].config
        assert issubclass(config, RunConfig)
        validate(defaults(config), config)
        missing = [f"{s.__name__}.{name}" for s in structs_in(config) for name in undocumented(s)]
        assert not missing, f"no word under Attributes of the docstring: {', '.join(missing)}"

    async def test_a_patch_that_does_not_fit_is_refused_with_its_path_and_changes_nothing(self) -> None:
        async with self.playing(hold_at=1) as (stage, play):
            scope = f"run:{play.run}"
            before = await play.client.call("config.get", {"scope": scope})
            for patch in self.bad_patches:
                with pytest.raises(Fault) as refused:
                    await play.client.call("config.patch", {"scope": scope, "patch": patch})
                assert (refused.value.kind, refused.value.code) == ("config.invalid", 422)
                assert str(refused.value.data["path"]).startswith("$.")
            assert await play.client.call("config.get", {"scope": scope}) == before
            stage.release()
            await play.ends()
            assert not [d for name, d in await play.log() if name == "config"]

    @pytest.mark.parametrize("apply", ["next_step", "now"])
    async def test_a_patch_in_the_middle_takes_hold_at_a_step(self, apply: str) -> None:
        async with self.playing(hold_at=1) as (stage, play):
            params = {"scope": f"run:{play.run}", "patch": self.patch, "rev": 1, "apply": apply}
            patched = await play.client.call("config.patch", params)
            assert (patched["rev"], patched["applies"]) == (2, apply)
            assert merged(patched["effective"], self.patch) == patched["effective"]
            stage.release()
            await play.ends()
            log = await play.log()
        check_log(log, play.run)
        names = [name for name, _ in log]
        steps = [d["step"] for name, d in log[names.index("config") :] if name == "step.open"]
        applied = [d for name, d in log if name == "config.applied"]
        assert applied == [{"scope": f"run:{play.run}", "rev": 2, "step": step} for step in steps[:1]]
        assert steps or apply == "next_step", "for now means that the step starts again"
        assert [change["patch"] for change in play.object["changes"]] == [self.patch]
        if apply == "now":
            whole, _ = await self.whole()
            usual = [_asked(request) for request in whole.requests]
            assert any(_asked(request) not in usual for request in stage.requests), "the patch made no difference"

    # a run from start to end

    async def test_a_run_is_done_and_everybody_has_the_same(self) -> None:
        stage = Stage()
        async with self.hub(stage) as hub, hub.client() as client, hub.client("other") as other:
            async with self.started(hub, client) as play:
                same = await other.subscribe(play.topic.name)
                await play.ends()
                log = await play.log()
                await same.until(lambda _: same.off == play.topic.off)
            async with hub.client("late") as late:
                fresh = await late.subscribe(play.topic.name)
                assert fresh.state == play.state == same.state
        assert stage.requests, "the models were asked nothing"
        check_log(log, play.run)
        fold = ConvReducer(play.conv)
        for name, d in log:
            fold.fold(name, d)
        assert fold.state == play.state, "folding the log gives the snapshot"
        assert play.object["usage"]["output"] > 0

    async def test_an_export_has_everything(self) -> None:
        async with self.playing(hold_at=1) as (stage, play):
            await play.client.call("config.patch", {"scope": f"run:{play.run}", "patch": self.patch})
            stage.release()
            await play.ends()
            exported = await play.client.call("run.export", {"run": play.run, "format": "json"})
            document = msgspec.json.decode(exported["text"])
        run = document["runs"][play.run]
        assert (run["kind"], run["status"], run["usage"]) == (self.name, "done", play.object["usage"])
        assert [change["patch"] for change in run["changes"]] == [self.patch]
        assert run.get("agents", {}) == play.object.get("agents", {})
        assert run.get("data") == play.object.get("data")
        assert [_texts(m) for m in document["messages"]] == [_texts(m) for m in play.messages]
        shown = ("name", "status", "args", "result")
        assert {id: [t.get(m) for m in shown] for id, t in document.get("tools", {}).items()} == {
            id: [t.get(m) for m in shown] for id, t in play.tools.items()
        }

    async def test_a_call_that_ends_a_turn_does_no_more_than_take_a_decision_down(self) -> None:
        _, play = await self.whole()
        risks = {tool["name"]: tool["risk"] for tool in play.tools.values() if tool.get("ends")}
        assert set(risks.values()) <= {"read"}, f"a decision asks nobody and may be taken again: {risks}"

    async def test_a_model_that_fails_fails_the_run_with_its_kind(self) -> None:
        class Failing(type(self)):  # type: ignore[misc]
            def answer(self, request: ModelRequest) -> Script:
                return [ProviderError("provider.auth", "The key was refused.")]

        async with Failing().playing() as (_, play):
            await play.ends("failed")
            assert play.object["error"]["kind"] == "provider.auth"
            check_log(await play.log(), play.run)

    # what people do meanwhile

    async def test_a_paused_run_goes_on_where_it_was(self) -> None:
        rounds = len((await self.whole())[0].requests)
        async with self.playing(hold_at=1) as (stage, play):
            await play.client.call("run.pause", {"run": play.run})
            stage.release()
            await play.until(lambda object: object["status"] in ("paused", *ENDS), "the run is paused")
            if play.object["status"] == "paused":
                asked = len(stage.requests)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert (len(stage.requests), stage.busy) == (asked, 0), "a paused run does nothing"
                await play.client.call("run.continue", {"run": play.run})
            else:
                assert len(stage.requests) == rounds == play.finished, "the run did not pause"
            await play.ends()
            assert len(stage.requests) == rounds
            check_log(await play.log(), play.run)

    @pytest.mark.parametrize("moment", ["first", "last"])
    async def test_what_a_person_says_meanwhile_is_read(self, moment: str) -> None:
        word = "By the way, mind the gap."
        whole, _ = await self.whole()
        async with self.playing(hold_at=1 if moment == "first" else whole.moments) as (stage, play):
            input = [{"kind": "text", "text": word}]
            steered = await play.client.call("run.start", {"conv": play.conv, "when": "steer", "input": input})
            assert (steered["state"], steered["run"]) == ("steered", play.run)
            stage.release()
            await play.ends()
            check_log(await play.log(), play.run)
        heard = any(word in m.text for request in stage.requests for m in request.messages)
        assert heard or not self.listens, f"no model was told what the person said at the {moment} moment"

    async def test_a_cancel_at_any_moment_closes_everything_at_once(self) -> None:
        whole, _ = await self.whole()
        stage = Stage()
        async with self.hub(stage) as hub, hub.client() as client:
            for moment in spread(whole.moments, self.cancels):
                for _ in range(3):  # the machine may be busy with something else
                    took_s = await self._cancel(hub, client, stage, moment)
                    if took_s <= self.closes_s:
                        break
                assert took_s <= self.closes_s, f"cancelled at moment {moment}, it took {took_s:.3f} s"

    async def _cancel(self, hub: RunningHub, client: Client, stage: Stage, moment: int) -> float:
        """Cancel a run at a moment; gives after how many seconds it was closed."""
        clock = asyncio.get_running_loop().time
        stage.begin(hold_at=moment)
        async with self.started(hub, client) as play:
            await self._until_held(stage, play)
            began = clock()
            await client.call("run.cancel", {"run": play.run})
            await play.ends("cancelled")
            took_s = clock() - began
            check_log(await play.log(), play.run)
            await self._nothing_runs(stage, play)
        return took_s

    async def _nothing_runs(self, stage: Stage, play: Performance) -> None:
        """Nothing of a run that is over goes on: no answer, no tool, no task."""

        def left() -> list[str]:
            tasks = [t.get_name() for t in asyncio.all_tasks() if play.run in t.get_name() and not t.done()]
            return tasks + ["an answer or a tool"] * stage.busy

        for _ in range(200):
            if not left():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"this goes on after the run's end: {left()}")

    async def test_a_client_that_comes_back_has_the_same(self) -> None:
        whole, _ = await self.whole()
        stage = Stage((whole.moments + 1) // 2)
        async with self.hub(stage) as hub, hub.client() as client, self.started(hub, client) as play:
            await self._until_held(stage, play)
            for connection in list(hub.app.hub.connections):
                connection.socket.abort()
            stage.release()
            await play.ends()
            async with hub.client("fresh") as fresh:
                assert (await fresh.subscribe(play.topic.name)).state == play.state
            check_log(await play.log(), play.run)

    # what a kill leaves

    async def test_a_kill_after_any_commit_and_a_resume_do_nothing_twice(self, tmp_path: Path) -> None:
        stage = Stage(pace_s=0.005)  # so that each piece has a commit of its own
        copies: list[Path] = []

        leave = shutil.ignore_patterns("sag.lock", "*-shm", "*.json")

        def keep() -> None:
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(tmp_path / "whole", copies[-1], ignore=leave)

        async with self.hub(stage, tmp_path / "whole", tick_ms=0) as hub, hub.client() as client:
            hub.app.journal.after_commit = keep
            async with self.started(hub, client) as play:
                await play.ends()
            hub.app.journal.after_commit = lambda: None
        rounds = play.finished
        went_on = 0
        for number in spread(len(copies), self.kills):
            went_on += await self._go_on(copies[number - 1], play.conv, play.run, rounds, f"commit {number}")
        assert went_on, "no commit left a run to go on with"

    async def _go_on(self, data: Path, conv: str, run: str, rounds: int, where: str) -> bool:
        """Take up the run that a kill left, and see that what was finished is not done again."""
        stage = Stage()
        async with self.hub(stage, data) as hub, hub.client() as client:
            try:
                topic = await client.subscribe(f"conv:{conv}")
            except Fault:
                return False  # it had not begun
            if topic.state["runs"].get(run, {}).get("status") not in ("interrupted", "waiting"):
                return False  # it had not begun, or was over
            before = Performance(hub, client, topic, run)
            finished = before.finished
            done = {id: tool for id, tool in before.tools.items() if tool["status"] not in ("running", "lost")}
            done = copy.deepcopy(done)
            if before.object["status"] == "interrupted":
                assert stage.requests == [], "a hub asks no model by itself"
                check_log(await before.log(), run)
                await client.call("run.resume", {"run": run})
            async with self.watched(hub, client, conv, run) as play:
                await play.until(lambda object: object["status"] not in ("interrupted", ""), "the run goes on")
                await play.ends()
                log = await play.log()
        check_log(log, run)
        after = play.tools
        again = [id for id, tool in done.items() if after[id] != tool]
        assert not again, f"{where}: calls that were finished were made again: {again}"
        watched = {tool.name for tool in self.tools}
        made = [t for id, t in after.items() if id not in done and t["name"] in watched]
        made = [t for t in made if t["status"] in ("ok", "error", "timeout")]
        assert sorted(stage.called) == sorted(t["name"] for t in made), f"{where}: a call without its events"
        assert len(stage.requests) == play.finished - finished, f"{where}: a finished round was asked for again"
        if not any(t["status"] == "lost" and "repeated" not in t for t in after.values()):
            assert play.finished == rounds, f"{where}: {play.finished} rounds instead of {rounds}"
        return True


def spread(count: int, few: int) -> list[int]:
    """Some of the numbers from 1 to `count`: the first, the last, and others from all over, the same each time."""
    if count <= few:
        return list(range(1, count + 1))
    return sorted({1, count, *random.Random(SEED).sample(range(2, count), max(0, few - 2))})


def merged(document: Any, patch: Any) -> Any:
    """A merge patch applied (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = merged(out.get(name), value)
    return out


def structs_in(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """A struct, and those that its members are made of."""
    found: list[type[msgspec.Struct]] = []

    def look(type: Any) -> None:
        if isinstance(type, msgspec.inspect.StructType):
            cls = get_origin(type.cls) or type.cls
            if cls in found:
                return
            found.append(cls)
            for field in type.fields:
                look(field.type)
        elif isinstance(type, msgspec.inspect.Type):
            for member in type.__struct_fields__:
                value = getattr(type, member)
                for one in value if isinstance(value, tuple) else (value,):
                    look(one)

    look(msgspec.inspect.type_info(struct))
    return found


def undocumented(struct: type[msgspec.Struct]) -> list[str]:
    """The members of a struct of which its docstring, or that of one that it extends, has no word."""
    told: set[str] = set()
    for base in struct.__mro__:
        section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")[2]
        for names in re.findall(r"^ {4}([\w, ]+):", section, re.M):
            told |= {name.strip() for name in names.split(",")}
    return [name for name in struct.__struct_fields__ if name not in told]


def _asked(request: ModelRequest) -> str:
    """What a model is asked, without ids, which differ from run to run."""
    return re.sub(ID, "", msgspec.json.encode(request).decode())


def _texts(message: Json) -> list[tuple[str, str]]:
    return [(part["kind"], part.get("text") or "") for part in message["parts"]]
