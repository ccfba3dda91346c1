"""A run: what a run kind works on. Steps on a model, tools, asks and live config, all told on the conversation's topic.

What has been done is read from the topic's state and never from memory, so that a run kind can be started again on
a run that a restart left waiting, or that `run.resume` takes up, and goes on where the log ends. Above: run kinds
and the engine. Below: topics, the toolbox, the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from sag.engine import transcript
from sag.engine.agent import ASSISTANT, Agent, Speaker
from sag.engine.asks import Answer
from sag.engine.attempts import Attempts
from sag.engine.calls import Calls
from sag.engine.config import defaults, layered, validate
from sag.engine.ends import EXITS, RunEnded, RunLimit
from sag.engine.fitting import Count, count, fit_files, fit_length, less, room
from sag.engine.models import make_request
from sag.engine.toolbox import Toolbox, ToolSource, common_box, legal_name
from sag.engine.writer import Ear, PartWriter
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import CallFragment, ModelRequest, Provider, ProviderError
from sag.hooks.tool import Tool
from sag.ops.dispatch import User
from sag.schema.events import (
    AgentClose,
    AgentOpen,
    ConfigApplied,
    Event,
    InboxRun,
    MessageAdd,
    RunError,
    RunPatch,
    StepClose,
    StepOpen,
    Usage,
)
from sag.schema.ids import new_id, now_ms
from sag.topics.topic import Transaction

if TYPE_CHECKING:
    from sag.engine.engine import Conversation, Engine

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

TRIMS = 4
CONNECT_S = 3.0  # that a run waits for connectors that are just starting


class Step(Struct):
    """One model round that is over.

    Attributes:
        number: The step's number in the run.
        msg: The assistant's message.
        text: Its text.
        finish: stop, tools, length or refused.
        usage: What it took, where the provider said so.
    """

    number: int
    msg: str
    text: str
    finish: str
    usage: Usage | None


class Turn(Struct):
    """What an agent said and did in a turn that is over.

    Attributes:
        agent: Who, None for the assistant.
        msg: The message that ended it.
        text: Its text.
        calls: The calls of the turn's rounds as the state has them, with their ids as `call`; of one that was lost and
            made again, the newest.
    """

    agent: str | None
    msg: str
    text: str
    calls: list[Json]


class _Round:
    """A model call, made by whatever task makes the step."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels = task.cancelling()
        self._restarts = 0
        self.in_flight = False

    def restart(self) -> None:
        """Drop what is in flight."""
        self._restarts += 1
        self._task.cancel()

    def gives_way(self) -> bool:
        """Whether the task was cancelled for `restart` alone; of that nothing is left then."""
        restarts, self._restarts = self._restarts, 0
        for _ in range(restarts):
            self._task.uncancel()
        return restarts > 0 and self._task.cancelling() <= self._cancels


class Run:
    """One run.

    Attributes:
        id: Which.
        conv: The conversation that it is in.
        user: Whose.
        client: From which device.
        kind: How it proceeds.
    """

    def __init__(
        self,
        engine: Engine,
        home: Conversation,
        id: str,
        kind: RunKind,
        user: User,
        client: str,
        source: ToolSource | None,
    ) -> None:
        self.id, self.kind, self.user, self.client = id, kind, user, client
        self.home = home
        self.conv = home.id
        self.source = source
        self.task: asyncio.Task[None] | None = None
        self.closed = False
        self.stop_after_step = False
        self.told: asyncio.Future[None] | None = None  # the end of the newest step
        self._engine = engine
        self._topics = engine.topics
        self._topic = home.topic
        self._rounds: dict[int, _Round] = {}  # by step
        self._writers: dict[int, PartWriter | Ear] = {}  # of the steps that are open
        self._config: tuple[tuple[int, bool], Any] | None = None  # and the revision that it is of
        self._failed: set[str] = set()  # models
        self._active = 0
        self._asking = 0
        self._held = 0
        self._turning = 0
        self._rests, self._calm = asyncio.Event(), asyncio.Event()
        self._goes_on, self._quiet = asyncio.Event(), asyncio.Event()
        self._quiet.set()
        self._offered: list[Tool] | None = None
        self.tool_calls = Calls(self)

    # what the run is like now

    @property
    def state(self) -> Json:
        """The conversation's state (protocol section 4)."""
        return self._topic.state

    @property
    def object(self) -> Json:
        """The run's object in the state."""
        object: Json = self._topic.state["runs"][self.id]
        return object

    def effective(self) -> Json:
        """The config in force: the kind's defaults, what lies below the run, the run's own."""
        object = self.object
        return layered(defaults(self.kind.config), object.get("base") or {}, object["config"])

    def config(self) -> Any:
        """The config in force as the kind's struct. A step reads it once, at its start."""
        object = self.object
        of = (object["rev"], object.get("base") is not None)
        if self._config is None or self._config[0] != of:
            self._config = (of, validate(self.effective(), self.kind.config))
        return self._config[1]

    def messages(self) -> list[Json]:
        """The run's own messages, in order."""
        return [m for m in self.state["messages"] if m.get("run") == self.id]

    def _newest(self) -> Iterator[Json]:
        """The run's own messages, the last one first; in a long conversation it stands near the end."""
        return (m for m in reversed(self.state["messages"]) if m.get("run") == self.id)

    def _last_words(self, agent: str | None) -> Json | None:
        """An agent's newest message, if the round that wrote it came to its end."""
        last = next((m for m in self._newest() if m["role"] == "assistant" and m.get("agent") == agent), None)
        return None if last is None or _is_cut(last) else last

    def _is_over(self, message: Json) -> bool:
        """Whether an agent's turn ended with a message: it called nothing, or what ends its turn."""
        if not _called(message):
            return True
        return any(call.get("ends") and call["status"] == "ok" for call in self._calls_of([message]))

    def _turn(self, msg: str) -> Turn:
        """The turn that a message ended."""
        newest = self._newest()
        last = next((m for m in newest if m["msg"] == msg), None)
        if last is None:
            raise RunEnded  # its message is gone
        agent = last.get("agent")
        return Turn(agent, msg, _text(last), self._calls_of([*self._unfinished(agent, newest), last]))

    def _unfinished(self, agent: str | None, newest: Iterator[Json] | None = None) -> list[Json]:
        """The rounds that an agent has had of a turn that is not over, or was not before the message that is next."""
        begun: list[Json] = []
        for message in newest or self._newest():
            if message["role"] == "assistant" and message.get("agent") == agent and not _is_cut(message):
                if self._is_over(message):
                    break
                begun.append(message)
        return begun[::-1]

    def _calls_of(self, rounds: Sequence[Json]) -> list[Json]:
        """The calls that rounds asked for, each as it was made last."""
        tools = self.state["tools"]
        calls: list[Json] = []
        for call in (call for message in rounds for call in _called(message)):
            while call in tools and (repeated := tools[call].get("repeated")) is not None:
                call = repeated
            if call in tools:
                calls.append({"call": call, **tools[call]})
        return calls

    @property
    def unread(self) -> bool:
        """Whether the newest message is a user's. A round that was cut has read nothing."""
        opened = self.object.get("open_steps", {})
        last = next((m for m in self._newest() if not _is_cut(m) or str(m.get("step")) in opened), None)
        return last is not None and last["role"] == "user"

    @property
    def is_addressed(self) -> bool:
        """Whether a user's message came after all rounds, those that were cut too."""
        last = next(self._newest(), None)
        return last is not None and last["role"] == "user"

    @property
    def wants_step(self) -> bool:
        """Whether the model's turn is next: something is unread, a tool answered, or a round was cut."""
        last = next(self._newest(), None)
        return last is not None and (last["role"] == "user" or _is_cut(last) or not self._is_over(last))

    def said(self) -> list[str]:
        """What users said in the run, in order."""
        return [_text(m) for m in self.messages() if m["role"] == "user"]

    def rounds(self) -> list[Json]:
        """The messages of the model rounds that came to their end, in order, whoever had them."""
        return [m for m in self.messages() if m["role"] == "assistant" and not _is_cut(m)]

    def turns(self) -> list[Turn]:
        """The turns that are over, in order, whoever had them."""
        turns: list[Turn] = []
        begun: dict[str | None, list[Json]] = {}
        for message in self.rounds():
            agent = message.get("agent")
            begun.setdefault(agent, []).append(message)
            if self._is_over(message):
                turns.append(Turn(agent, message["msg"], _text(message), self._calls_of(begun.pop(agent))))
        return turns

    def calls(self, *names: str) -> list[Json]:
        """The run's tool calls as its state has them, with their ids as `call`; those of some tools, or all."""
        tools = self.state["tools"].items()
        return [{"call": id, **t} for id, t in tools if t["run"] == self.id and (not names or t["name"] in names)]

    @property
    def data(self) -> Json:
        """What the run kind keeps with the run (`update`)."""
        data: Json = self.object.get("data") or {}
        return data

    # telling

    def _begin(self) -> Transaction:
        if self.closed:
            raise RunEnded
        return self._topics.begin()

    def emit(self, *events: Event, crash: str | None = None) -> asyncio.Future[None]:
        """Append events to the conversation in one commit; await the future before acting on them.

        Raises:
            RunEnded: The run was closed.
        """
        tx = self._begin()
        for event in events:
            tx.append(self._topic, event)
        return tx.submit(crash)

    def set_status(self, tx: Transaction, patch: Json) -> None:
        """Tell a change of `status`, `after_ms` or `why` with a transaction."""
        object = self.object
        if all(object.get(member) == value for member, value in patch.items()):
            return
        tx.append(self._topic, RunPatch(self.id, patch))
        if object["status"] != patch["status"]:
            tx.append(self.home.inbox, InboxRun(self.id, self.conv, {"status": patch["status"]}))

    async def update(self, patch: Json) -> None:
        """Keep what the run kind wants to know and show: a merge patch on the run's `data`, told to everybody."""
        await self.emit(RunPatch(self.id, {"data": patch}))

    async def together(self, work: Sequence[Awaitable[Any]]) -> None:
        """Do several things at once; the first that fails ends the others."""
        tasks = [asyncio.ensure_future(_contained(w)) for w in work]
        try:
            for task in asyncio.as_completed(tasks):
                await task
        finally:
            for one in tasks:
                one.cancel()
            if tasks:
                ended, _ = await asyncio.wait(tasks, timeout=5)
                for one in ended:
                    if not one.cancelled():
                        one.exception()  # the first was told, the others are known

    def _mark(self, active: int = 0, asking: int = 0, held: int = 0) -> None:
        """Count what works, waits for a person, and is held; a run in which nothing works is `waiting` or `paused`."""
        self._active += active
        if self._active:
            self._quiet.clear()
        else:
            self._quiet.set()
        self._asking += asking
        self._held += held
        idle = "waiting" if self._asking else "paused" if self._held else "running"
        status = "running" if self._active else idle
        if not self.closed and not self._topic.lost and self.object["status"] != status:
            tx = self._topics.begin()
            self.set_status(tx, {"status": status})
            tx.submit()

    # pause

    def pause(self, tx: Transaction, paused: bool) -> None:
        """Hold the run before its next step, or let it go on."""
        tx.append(self._topic, RunPatch(self.id, {"paused": True if paused else None}))
        if not paused:
            tx.after(self._goes_on.set)

    def stop(self) -> None:
        """End the run when its step is over; one that is held makes no further step."""
        self.stop_after_step = True
        self._goes_on.set()

    async def _heed_stop(self) -> None:
        """End the run where that is wanted, as soon as the steps and calls of others are over too."""
        if self.stop_after_step:
            await self._quiet.wait()
            raise RunEnded

    async def _hold(self) -> None:
        """Wait as long as the run is paused."""
        while self.object.get("paused") and not self.stop_after_step:
            self._goes_on.clear()
            self._mark(held=1)
            try:
                await self._goes_on.wait()
            finally:
                self._mark(held=-1)

    # steps

    async def turn(self, agent: Speaker = ASSISTANT, *, strict: bool = False, parallel: bool = True) -> Turn:
        """An agent's turn: rounds and their tool calls, until it has answered. One that was cut goes on where it was.

        Args:
            agent: Who, or what makes the agent of the config that each step runs on.
            strict, parallel: As of `tools`.

        Raises:
            RunLimit, ProviderError: As `step`.
        """
        if self._engine.draining:
            self._rests.set()
            await asyncio.get_running_loop().create_future()  # until the run is interrupted, to be resumed later
        self._turning += 1
        try:
            who = self._agent(agent)
            if not isinstance(agent, Agent):  # whatever a patch makes of its name, the turn is this one's
                make = agent

                def agent(config: Any) -> Agent:
                    return msgspec.structs.replace(make(config), name=who.name)

            async with self.acting(who) if who.name is not None else contextlib.nullcontext():
                last = self._last_words(who.name)
                if last is None or self._is_over(last):
                    await self._step(agent, in_turn=True)
                while (last := self._last_words(who.name)) is not None:
                    await self.tools(agent, strict=strict, parallel=parallel)
                    if self._is_over(last):
                        return self._turn(last["msg"])
                    await self._step(agent, in_turn=True)
                raise RunEnded  # its message is gone
        finally:
            self._turning -= 1
            if not self._turning:
                self._calm.set()

    async def rested(self) -> None:
        """Wait until the run is over, or would begin another turn, which none does while the hub goes down."""
        assert self.task is not None
        rests = asyncio.ensure_future(self._rests.wait())
        try:
            await asyncio.wait({self.task, rests}, return_when=asyncio.FIRST_COMPLETED)
            while self._turning and not self.task.done():
                self._calm.clear()
                await self._calm.wait()
        finally:
            rests.cancel()

    @contextlib.asynccontextmanager
    async def acting(self, agent: Agent) -> AsyncIterator[None]:
        """Tell that an agent acts, as long as the context lasts; a turn tells it by itself."""
        if agent.name is not None and self.object.get("agents", {}).get(agent.name) != "open":
            await self.emit(AgentOpen(self.id, agent.name, agent.title, now_ms()))
        try:
            yield
        finally:
            if agent.name is not None and not self.closed and not self._topic.lost:
                self.emit(AgentClose(self.id, agent.name))

    def _agent(self, agent: Speaker) -> Agent:
        return agent if isinstance(agent, Agent) else agent(self.config())

    async def step(self, agent: Speaker = ASSISTANT) -> Step:
        """One model round on the config of this moment.

        Where its model fails and the config names others, the step ends with `fallback` and the next model takes over
        in a step of its own; one that failed is not asked again in this run as long as there is another.

        Its last commit is not waited for: what is told after it is kept after it or not at all.

        Args:
            agent: Who, or what makes the agent of the config that the step runs on.

        Raises:
            RunLimit: The rounds or a budget are used up, or the model asked for more than the caps allow.
            ProviderError: The model failed, after the retries that the config allows, and so did the fallbacks.
        """
        return await self._step(agent)

    async def _step(self, agent: Speaker, in_turn: bool = False) -> Step:
        while True:
            await self._hold()
            await self._heed_stop()
            await self._engine.budgets.check(self.user.id)
            await self._offer()
            # From here to the first event nothing is awaited: a step reads config once.
            config = self.config()
            who = agent if isinstance(agent, Agent) else agent(config)
            if who.settings or who.model is not None:
                own = who.settings if who.model is None else {**who.settings, "model": who.model}
                config = msgspec.structs.replace(config, **own)
            # Each round took a step, so they need not be counted before as many steps were made.
            if self.object["step"] >= config.rounds and self._count_rounds() >= config.rounds:
                raise RunLimit(f"The run has used its {config.rounds} model rounds.")
            name, provider, model = self._choose(config)
            number = self.object["step"] + 1
            msg = new_id("m")
            now = now_ms()
            events: list[Event] = [StepOpen(self.id, number, name, who.name, now)]
            rev = self.object["rev"]
            if rev > self.object.get("applied", {}).get("rev", 1):
                events.append(ConfigApplied(f"run:{self.id}", rev, number))
            prompt = who.system if who.system is not None else config.system
            turn = [m["msg"] for m in self._unfinished(who.name)] if in_turn and not who.recalls else ()
            messages = transcript.build(self.state, self.id, prompt, legal_name, provider.name, who, turn)
            request = make_request(model, messages, self._box(who, config), config)
            events.append(MessageAdd(msg, "assistant", now, [], self.id, who.name, step=number))
            writer = PartWriter(self, msg, who.name, provider.name, name, whole=who.whole)
            self.listen(number, writer)
            round = self._rounds[number] = _Round()
            self._mark(active=1)
            try:
                await self.emit(*events)
                round.in_flight = True
                try:
                    return await self._round(number, msg, writer, name, provider, request, config)
                finally:
                    round.in_flight = False
            except asyncio.CancelledError:
                if not round.gives_way() or self.closed:
                    self._cut(number, writer, "cancelled")
                    raise
                await self._give_up(number, writer, "config")
            except ProviderError as e:
                why = RunError(e.kind, e.message, e.retry)
                self._failed.add(name)
                if self.closed or self._choose(config)[0] in self._failed:
                    self._cut(number, writer, "failed", why)
                    raise
                log.info("run %s step %d: %s gives way: %s", self.id, number, name, e.message)
                await self._give_up(number, writer, "fallback", why)
            except RunLimit:
                self._cut(number, writer, "limit")
                raise
            finally:
                round.gives_way()  # a provider may have swallowed it
                del self._rounds[number]
                self._mark(active=-1)

    def listen(self, step: int, writer: PartWriter | Ear) -> None:
        """Remember who hears what the model says in a step, for what it took."""
        opened = self.object.get("open_steps", {})
        self._writers = {n: w for n, w in self._writers.items() if str(n) in opened} | {step: writer}

    def used(self, step: int) -> Usage | None:
        """What a step took that is open, as far as its vendor said so."""
        writer = self._writers.get(step)
        return writer.usage if writer is not None else None

    def _choose(self, config: RunConfig) -> tuple[str, Provider, str]:
        """The model of a step: the config's, or the first of its fallbacks where that failed; the config's if all did.

        Raises:
            Fault: model.unknown, of the config's own model.
        """
        first = self._engine.models.resolve(config.model)
        if first[0] in self._failed:
            for fallback in config.fallbacks:
                with contextlib.suppress(Fault):
                    other = self._engine.models.resolve(fallback)
                    if other[0] not in self._failed:
                        return other
        return first

    async def _offer(self) -> None:
        """Take what runs are offered now; it stays the same for this one."""
        if self._offered is None:
            await self._engine.extensions.connectors.settle(CONNECT_S)
            self._offered = self._engine.extensions.offered()

    def _box(self, agent: Agent, config: RunConfig) -> Toolbox:
        """Of the tools that there were when the run began, those that are switched on and meant for an agent."""
        offered = [*(self._offered or ()), *(self.source.tools.values() if self.source is not None else ())]
        if agent.offered is not None:
            offered = [tool for tool in offered if agent.may_call(tool)]
        switched = agent.settings.get("tools", config.tools)
        if agent.own:
            return Toolbox(offered, switched, agent.own)
        return common_box(tuple(offered), tuple(switched.items()))

    def hints(self, agent: Agent) -> list[str]:
        """What a system prompt may say of the tools that an agent is offered, each text once.

        A tool's own hint, else what its connector tells models of itself. What is offered is known from the run's first
        step on: ask where the agent is made of the step's config.
        """
        connectors = self._engine.extensions.connectors
        told: dict[str, None] = {}
        for tool in self._box(agent, self.config()).tools:
            entry = connectors.get(tool.connector)
            told[(tool.hint or (entry.health.instructions if entry is not None else "")).strip()] = None
        return [text for text in told if text]

    async def _toolbox(self, agent: Agent) -> Toolbox:
        await self._offer()
        return self._box(agent, self.config())

    def offered(self) -> list[Tool]:
        """The tools that the run is offered and its config has on; known from its first step on."""
        return self._box(ASSISTANT, self.config()).tools

    def tool(self, key: str, call: str | None = None) -> Tool | None:
        """A tool that the run is offered, switched on or not, by its key; that of a call which waits for a person."""
        if call is not None and (asked := self.tool_calls.asked.get(call)) is not None:
            return asked
        if self.source is not None and (own := self.source.tools.get(key)) is not None:
            return own
        return next((tool for tool in self._offered or () if tool.key == key), None)

    def _cut(self, number: int, writer: PartWriter, finish: str, error: RunError | None = None) -> None:
        """End a step that came to no good end, for its run may go on; what came of it stays."""
        if self.closed or self._topic.lost or str(number) not in self.object.get("open_steps", {}):
            return
        tx = self._begin()
        writer.cut(tx)
        tx.append(self._topic, StepClose(self.id, number, finish, writer.usage, error=error))
        tx.submit()

    async def _give_up(
        self,
        number: int,
        writer: PartWriter,
        finish: Literal["config", "fallback"],
        error: RunError | None = None,
    ) -> None:
        """End a step whose answer is void."""
        tx = self._begin()
        writer.drop(tx, finish)
        tx.append(self._topic, StepClose(self.id, number, finish, writer.usage, error=error))
        self.set_status(tx, {"status": "running", "after_ms": None, "why": None})
        await tx.submit()

    def _count_rounds(self) -> int:
        return sum(1 for m in self.messages() if m["role"] == "assistant" and m["parts"] and not _is_cut(m))

    def _in_flight(self) -> list[_Round]:
        """The model calls in flight; one whose step is closed, if not yet committed, is none any more."""
        opened = self.object.get("open_steps", {})
        return [r for n, r in self._rounds.items() if r.in_flight and str(n) in opened]

    @property
    def in_model_call(self) -> bool:
        """Whether a model call is in flight."""
        return bool(self._in_flight())

    def restart_steps(self) -> None:
        """Drop the model calls in flight, if any, so that their steps start again on the config of now."""
        for round in self._in_flight():
            round.restart()

    async def _round(
        self,
        number: int,
        msg: str,
        writer: PartWriter,
        name: str,
        provider: Provider,
        request: ModelRequest,
        config: RunConfig,
    ) -> Step:
        began = asyncio.get_running_loop().time()
        model = self._engine.models.info(name)
        await self._engine.load_files(self.user, request.messages)
        fit_files(request.messages, model)
        count_tokens = _counter(provider)
        limit = room(model, request)
        refusal: ProviderError | None = None
        for _ in range(TRIMS):
            try:
                if limit is not None:
                    self._fit(number, request, limit, count_tokens, config)
            except ProviderError:
                if refusal is not None:  # its vendor knows the limit, and here it is a guess
                    raise refusal from None
                raise
            try:
                exchange = await Attempts(self, number, name, provider, request, config, writer).run()
                break
            except ProviderError as e:
                # The size that the hub knows is an estimate, and often it knows none.
                if e.kind != "provider.context" or not config.trim or writer.parts:
                    raise
                limit, refusal = less(request, count_tokens), e
        else:
            raise ProviderError(
                "provider.context", "The conversation is too long for the model, however much is left out."
            )
        writer.tell()
        tx = self._begin()
        text = writer.close(tx)
        finish = "tools" if writer.calls else writer.finish
        ms = round((asyncio.get_running_loop().time() - began) * 1000)
        usage = writer.usage
        tx.append(self._topic, StepClose(self.id, number, finish, usage, ms, exchange.request, notes=writer.notes))
        self.told = tx.submit()
        return Step(number, msg, text, finish, usage)

    def _fit(self, number: int, request: ModelRequest, limit: int, count_tokens: Count, config: RunConfig) -> None:
        """Leave out the oldest messages of a request that is too long, and tell it.

        Raises:
            ProviderError: provider.context, if that does not help or is not wanted.
        """
        if not config.trim:
            if (size := count_tokens(request)) > limit:
                text = f"The conversation takes about {size} tokens, and the model takes {limit} beside its answer."
                raise ProviderError("provider.context", text)
            return
        left_out = fit_length(request, limit, count_tokens)
        if left_out:
            trimmed = {"step": number, "messages": left_out, "context": limit}
            self.emit(RunPatch(self.id, {"trimmed": trimmed}))

    # tools

    async def tools(self, agent: Speaker = ASSISTANT, *, strict: bool = False, parallel: bool = True) -> list[Json]:
        """Run the calls that an agent's newest round asked for, and wait until each is closed.

        A call that a restart left with an open ask goes on with its answer; one that was lost is made again if that
        does no harm. Without calls this does nothing.

        Args:
            agent: Whose.
            strict: Call nothing if one of the calls does not fit its tool.
            parallel: Call all at once, else one after the other.

        Returns:
            The calls as the state has them, with their ids as `call`.
        """
        who = self._agent(agent)
        last = self._last_words(who.name)
        if last is None:
            return []
        ids = await self.tool_calls.settle(who, last, strict=strict, parallel=parallel)
        await self._heed_stop()
        tools = self.state["tools"]
        return [{"call": id, **tools[id]} for id in ids]

    async def add_calls(self, agent: Speaker, calls: Sequence[tuple[str, str]]) -> None:
        """Add calls to an agent's newest round as if its model had asked for them; `tools` makes them.

        Args:
            agent: Whose.
            calls: Name and arguments, as JSON, of at least one.

        Raises:
            RunLimit: They are more, or larger, than the caps allow.
        """
        last = self._last_words(self._agent(agent).name)
        if last is None:
            raise RunEnded  # its message is gone
        writer = PartWriter(self, last["msg"], last.get("agent"), "", "")
        writer.take([CallFragment(i, name=name, arguments=text) for i, (name, text) in enumerate(calls)])
        tx = self._begin()
        writer.close(tx)
        await tx.submit()

    # asks

    async def ask(
        self,
        name: str,
        title: str,
        options: list[str] | None = None,
        *,
        schema: Json | None = None,
        subject: Json | None = None,
        expires_s: float | None = None,
    ) -> Answer:
        """Ask a person on the run kind's behalf: a choice, or a form. A run that goes on gets the answer that it had.

        Args:
            name: What tells the question from others of the run.
            title: What is asked.
            options: The choices, the last of which stands if nobody answers in time; of a form the first sends it.
            schema: JSON Schema of a form.
            subject: What the page may show beside it.
        """
        if (given := self.object.get("answers", {}).get(name)) is not None:
            return Answer(given.get("choice"), given.get("data"), by=given.get("by"))
        ask = next((id for id, a in self.state["asks"].items() if a["run"] == self.id and a.get("name") == name), None)
        if ask is None:
            choices = options or (["accept", "decline"] if schema else ["yes", "no"])
            tx = self._begin()
            ask = self.open_ask(
                tx, "form" if schema else "choice", title, choices, name=name, schema=schema, subject=subject,
                expires_s=expires_s, on_expiry=choices[-1],
            )  # fmt: skip
            await tx.submit("ask_open")
        return await self.answer(ask)

    def open_ask(self, tx: Transaction, kind: Any, title: str, options: list[str], **more: Any) -> str:
        """Open an ask with a transaction; `answer` waits for it once that is committed (`Asks.open`)."""
        return self._engine.asks.open(tx, self.home, self.id, kind, title, options, **more)

    async def answer(self, ask: str) -> Answer:
        """Wait until an ask is settled; if whoever waits gives it up while the run goes on, it is closed."""
        self._mark(asking=1)
        try:
            return await self._engine.asks.settled(self, ask)
        except asyncio.CancelledError:
            if not self.closed and not self._topic.lost and ask in self.state["asks"]:
                tx = self._begin()
                self._engine.asks.give_up(tx, self.home, ask)
                tx.submit()
            raise
        finally:
            self._mark(asking=-1)


def _called(message: Json) -> list[str]:
    """The ids of the calls that a round asked for, each once; a call that is long stands in several parts."""
    return list(dict.fromkeys(p["call"] for p in message["parts"] if p["kind"] == "tool_args"))


def _text(message: Json) -> str:
    """The words of a message."""
    return "".join(p.get("text") or "" for p in message["parts"] if p["kind"] == "text")


async def _contained(work: Awaitable[Any]) -> Any:
    """Do a plugin's work in a task of its own, where SystemExit would end the whole hub."""
    try:
        return await work
    except EXITS as e:
        raise RuntimeError(f"{type(e).__name__} was raised in a run") from e


def _counter(provider: Provider) -> Count:
    """A provider's own count of tokens; the hub's where it has none or fails."""
    own = getattr(provider, "count", None)

    def counted(request: ModelRequest) -> int:
        try:
            return int(own(request))  # type: ignore[misc]
        except (Exception, *EXITS):
            log.exception("provider %s: count() failed", provider.name)
            return count(request)

    return counted if own is not None else count


def _is_cut(message: Json) -> bool:
    """Whether the round that wrote a message did not come to its end (a message that was emptied counts)."""
    return message["role"] == "assistant" and (not message["parts"] or transcript.is_cut(message))
