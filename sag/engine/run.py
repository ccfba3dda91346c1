"""A run: what a run kind works on. Steps on a model, tools, asks and live config, all told on the conversation's topic.

What has been done is read from the topic's state and never from memory, so that a run kind can be started again on
a run that a restart left waiting, or that `run.resume` takes up, and goes on where the log ends. Above: run kinds
and the engine. Below: topics, the toolbox, the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from sag.engine import transcript
from sag.engine.approvals import Verdict
from sag.engine.attempts import Attempts
from sag.engine.config import defaults, layered, validate
from sag.engine.context import CallContext
from sag.engine.ends import RunEnded, RunLimit, ToolLost
from sag.engine.fitting import Count, count, fit_files, fit_length, less, room
from sag.engine.models import make_request
from sag.engine.toolbox import Toolbox, ToolSource, common_box, legal_name
from sag.engine.writer import Ear, PartWriter
from sag.errors import Fault
from sag.hooks.kind import RunConfig, RunKind
from sag.hooks.provider import (
    Message,
    ModelRequest,
    Provider,
    ProviderError,
    text_message,
)
from sag.hooks.tool import BlobContent, Content, Result, Sampled, SampleMessage, Tool, ToolError, plain_json
from sag.ops.dispatch import User
from sag.schema.events import (
    AskOpen,
    ConfigApplied,
    Event,
    InboxAskOpen,
    InboxRun,
    MessageAdd,
    RunError,
    RunPatch,
    StepClose,
    StepOpen,
    ToolClose,
    ToolOpen,
    ToolStatus,
    Usage,
)
from sag.schema.ids import new_id, now_ms
from sag.topics.topic import Transaction

if TYPE_CHECKING:
    from sag.engine.engine import Conversation, Engine

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

MAX_RESULT = 256 << 10
SAMPLE_TOKENS = 4096
TRIMS = 4
CONNECT_S = 3.0  # that a run waits for connectors that are just starting
APPROVAL = ["allow_once", "allow_run", "allow_always", "deny"]


class Answer(Struct):
    """How an ask was settled: the choice, None where nobody made one; a form's data; edited arguments."""

    choice: str | None
    data: Json | None = None
    args: Json | None = None
    by: str | None = None


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


class Run:
    """One run.

    Attributes:
        id, conv, user, client: Which, where, whose, from which device.
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
        self._model_call: asyncio.Task[Step] | None = None
        self._restart = False
        self._config: tuple[tuple[int, bool], Any] | None = None  # and the revision that it is of
        self.writer: PartWriter | Ear | None = None  # of the newest step
        self._failed: set[str] = set()  # models
        self._active = 0
        self._asking = 0
        self._offered: list[Tool] | None = None
        self._sampling = asyncio.Lock()

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

    def _last_round(self) -> Json | None:
        """The newest assistant's message, if the round that wrote it came to its end."""
        last = next((m for m in self._newest() if m["role"] == "assistant"), None)
        return None if last is None or _is_cut(last) else last

    @property
    def wants_step(self) -> bool:
        """Whether the model's turn is next: something is unread, a tool answered, or a round was cut."""
        last = next(self._newest(), None)
        if last is None:
            return False
        if last["role"] == "user" or _is_cut(last):
            return True
        return any(p["kind"] == "tool_args" for p in last["parts"])

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

    def _mark(self, active: int = 0, asking: int = 0) -> None:
        """Count what works and what waits for a person; a run in which only the latter is left is `waiting`."""
        self._active += active
        self._asking += asking
        status = "waiting" if self._asking and not self._active else "running"
        if not self.closed and not self._topic.lost and self.object["status"] != status:
            tx = self._topics.begin()
            self.set_status(tx, {"status": status})
            tx.submit()

    # steps

    async def step(self, *, agent: str | None = None, system: str | None = None) -> Step:
        """One model round on the config of this moment.

        Where its model fails and the config names others, the step ends with `fallback` and the next model takes over
        in a step of its own; one that failed is not asked again in this run as long as there is another.

        Its last commit is not waited for: what is told after it is kept after it or not at all.

        Args:
            agent: On whose behalf.
            system: A system prompt in place of the config's.

        Raises:
            RunLimit: The rounds or a budget are used up, or the model asked for more than the caps allow.
            ProviderError: The model failed, after the retries that the config allows, and so did the fallbacks.
        """
        while True:
            if self.stop_after_step:
                raise RunEnded
            await self._engine.budgets.check(self.user.id)
            config = self.config()
            # Each round took a step, so they need not be counted before as many steps were made.
            if self.object["step"] >= config.rounds and self._rounds() >= config.rounds:
                raise RunLimit(f"The run has used its {config.rounds} model rounds.")
            name, provider, model = self._choose(config)
            box = await self._toolbox()
            number = self.object["step"] + 1
            msg = new_id("m")
            events: list[Event] = [StepOpen(self.id, number, name, agent)]
            rev = self.object["rev"]
            if rev > self.object.get("applied", {}).get("rev", 1):
                events.append(ConfigApplied(f"run:{self.id}", rev, number))
            prompt = system if system is not None else config.system
            request = make_request(model, self._transcript(prompt, provider), box, config)
            events.append(MessageAdd(msg, "assistant", now_ms(), [], self.id, agent, step=number))
            writer = self.writer = PartWriter(self, msg, agent, provider.name)
            self._mark(active=1)
            try:
                await self.emit(*events)
                self._restart = False
                work = self._round(number, msg, writer, name, provider, request, config)
                self._model_call = asyncio.create_task(work)
                try:
                    return await self._model_call
                finally:
                    self._model_call.cancel()
                    self._model_call = None
            except asyncio.CancelledError:
                if not self._restart or self.closed:
                    raise
                await self._give_up(number, writer, "config")
            except ProviderError as e:
                self._failed.add(name)
                if self.closed or self._choose(config)[0] in self._failed:
                    raise
                log.info("run %s step %d: %s gives way: %s", self.id, number, name, e.message)
                await self._give_up(number, writer, "fallback", RunError(e.kind, e.message, e.retry))
            finally:
                self._mark(active=-1)

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

    def _transcript(self, prompt: str | None, provider: Provider) -> list[Message]:
        return transcript.build(self.state, self.id, prompt, legal_name, provider.name)

    async def _toolbox(self) -> Toolbox:
        """What the run is offered now: of the tools that there were when it began, those that are switched on."""
        if self._offered is None:
            await self._engine.extensions.connectors.settle(CONNECT_S)
            self._offered = self._engine.extensions.offered()
        switched = self.config().tools
        if self.source is None or not self.source.tools:
            return common_box(tuple(self._offered), tuple(switched.items()))
        return Toolbox(self._offered, self.source, switched)

    def tool(self, key: str) -> Tool | None:
        """A tool that the run is offered, switched on or not, by its key."""
        if self.source is not None and (own := self.source.tools.get(key)) is not None:
            return own
        return next((tool for tool in self._offered or () if tool.key == key), None)

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

    def _rounds(self) -> int:
        return sum(1 for m in self.messages() if m["role"] == "assistant" and m["parts"] and not _is_cut(m))

    @property
    def in_model_call(self) -> bool:
        """Whether a model call is in flight; one whose step is closed, if not yet committed, is none any more."""
        task = self._model_call
        return task is not None and not task.done() and self.object.get("open_step") is not None

    def restart_step(self) -> None:
        """Drop the model call in flight, if any, so that the step starts again on the config of now."""
        if self._model_call is not None and self.in_model_call:
            self._restart = True
            self._model_call.cancel()

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

    async def tools(self) -> None:
        """Run the calls that the newest round asked for, all at once, and wait until each is closed.

        A call that a restart left with an open ask goes on with its answer. Without calls this does nothing.
        """
        last = self._last_round()
        if last is None:
            return
        drafts: dict[str, tuple[str, str]] = {}
        for part in last["parts"]:
            if part["kind"] == "tool_args":
                name, text = drafts.get(part["call"], (part.get("name", ""), ""))
                drafts[part["call"]] = (name, text + part["text"])
        if not drafts and not self.stop_after_step:
            return
        known = self.state["tools"]
        # Before anything is waited for: an ask that is answered meanwhile is in the state no longer.
        waiting = {a["call"]: (id, a) for id, a in self.state["asks"].items() if a.get("call") in drafts}
        box = await self._toolbox()
        work: list[Coroutine[Any, Any, None]] = []
        fresh = {call: draft for call, draft in drafts.items() if call not in known}
        if fresh:
            wanted = {tool.key: tool for name, _ in fresh.values() if (tool := box.find(name)) is not None}
            allowed = self.object.get("allow", {})
            verdicts = {
                key: await self._engine.verdict(self.user, self.client, tool, allowed) for key, tool in wanted.items()
            }
            tx = self._begin()
            for call, (name, text) in fresh.items():
                if todo := self._open_call(tx, box, verdicts, last.get("step"), call, name, text):
                    work.append(todo)
            self._topics.flush_deltas(self._topic, tx)
            try:
                await tx.submit("ask_open")
            except BaseException:
                for todo in work:
                    todo.close()
                raise
        for call in drafts:
            if call in known and call not in fresh and known[call]["status"] == "running":
                # It was waiting for a person when the hub stopped.
                work.append(self._after_restart(call, *waiting[call]) if call in waiting else self._lose(call))
        await self._all(work)
        if self.stop_after_step:
            raise RunEnded

    async def _all(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.ensure_future(w) for w in work]
        try:
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=5)

    def _open_call(
        self,
        tx: Transaction,
        box: Toolbox,
        verdicts: Mapping[str, Verdict],
        step: int | None,
        call: str,
        name: str,
        text: str,
    ) -> Coroutine[Any, Any, None] | None:
        """Open a call with a transaction; gives what remains to be done once that is committed."""
        tool = box.find(name)
        args: Any = None
        fault: Fault | None = None
        try:
            args = msgspec.json.decode(text) if text.strip() else {}
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            args, fault = text, Fault("tool.args", "The arguments are not JSON; send one JSON object.", code=422)
        if fault is None and not isinstance(args, dict):
            fault = Fault("tool.args", "The arguments have to be a JSON object.", code=422)
        if tool is None:
            fault = Fault("tool.unknown", f"There is no tool {name!r}; use one of those that are offered.")
        params: Any = None
        if tool is not None and fault is None:
            try:
                params = tool.check(args)
            except Fault as e:
                fault = Fault("tool.args", f"The arguments do not fit: {e.message}", code=422, path=e.data.get("path"))
        if tool is None:
            tx.append(self._topic, ToolOpen(call, self.id, name, "", args, "write", now_ms(), step))
        else:
            tx.append(
                self._topic,
                ToolOpen(
                    call, self.id, tool.name, tool.origin, args, tool.risk, now_ms(), step,
                    tool.connector or None, tool.title or None,
                ),
            )  # fmt: skip
        if fault is not None:
            error = {"kind": fault.kind, "message": fault.message, **fault.data}
            tx.append(self._topic, ToolClose(call, "invalid", 0, error=error))
            return None
        assert tool is not None
        verdict = verdicts[tool.key]
        if verdict.policy == "deny":
            error = {"kind": "tool.denied", "message": "A policy forbids this tool."}
            tx.append(self._topic, ToolClose(call, "denied", 0, error=error))
            return None
        if verdict.policy == "ask":
            subject = {
                "tool": tool.name,
                "key": tool.key,
                "origin": tool.origin,
                "args": args,
                "risk": tool.risk,
                "fingerprint": tool.fingerprint,
            }
            if verdict.changed is not None:
                subject["changed"] = {"before": verdict.changed, "after": tool.definition}
            whose = f" of {tool.connector}" if tool.connector else ""
            title = f"Allow {tool.title or tool.name}{whose}?"
            options = APPROVAL if verdict.always else [o for o in APPROVAL if o != "allow_always"]
            ask = self.open_ask(tx, "approval", title, options, call=call, subject=subject, schema=tool.input)
            return self._after_approval(call, tool, params, ask)
        return self._execute(call, tool, params)

    async def _after_approval(self, call: str, tool: Tool, params: Any, ask: str) -> None:
        answer = await self.answer(ask)
        if not await self._denied(call, answer):
            await self._execute(call, tool, params if answer.args is None else tool.check(answer.args))

    async def _denied(self, call: str, answer: Answer) -> bool:
        """Whether an approval was not given; the call is closed then."""
        if answer.choice in ("allow_once", "allow_run", "allow_always"):
            return False
        nobody = answer.choice is None or answer.by is None
        why = "Nobody answered in time." if nobody else "The user denied this call."
        await self._close_call(call, "denied", 0, error={"kind": "tool.denied", "message": why})
        return True

    async def _lose(self, call: str) -> None:
        await self._close_call(call, "lost", 0)

    async def _after_restart(self, call: str, ask: str, asked: Json) -> None:
        """Run an approved call, if its tool is the one that was shown; any other one again, if that does no harm."""
        opened = self.state["tools"][call]
        key = f"{opened['connector']}/{opened['name']}" if opened.get("connector") else opened["name"]
        subject = asked.get("subject") or {}
        approved = asked["kind"] == "approval" and subject.get("key", subject.get("tool")) == key
        answer = await self.answer(ask)
        if approved and await self._denied(call, answer):
            return
        tool = (await self._toolbox()).find(key)
        if tool is None:  # its connector may be slower than the hub was
            self._offered = None
            tool = (await self._toolbox()).find(key)
        if tool is None or not (approved or tool.idempotent):
            await self._lose(call)
        elif approved and subject.get("fingerprint", tool.fingerprint) != tool.fingerprint:
            error = {"kind": "tool.lost", "message": "The tool has changed since it was asked about."}
            await self._close_call(call, "lost", 0, error=error)
        else:
            try:
                params = tool.check(opened["args"] if answer.args is None else answer.args)
            except Fault as e:  # while the tool was not there, edited arguments could not be checked
                error = {"kind": "tool.args", "message": f"The arguments do not fit: {e.message}"}
                await self._close_call(call, "invalid", 0, error=error)
            else:
                await self._execute(call, tool, params, answer if asked["kind"] != "approval" else None)

    async def _execute(self, call: str, tool: Tool, params: Any, given: Answer | None = None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        status: ToolStatus = "error"
        result: Any = None
        ref: str | None = None
        error: Json | None = None
        context = CallContext(self, call, tool, given)
        self._mark(active=1)
        try:
            async with asyncio.timeout(tool.timeout_s) as limit:
                context.limit = limit
                given_back = await tool.call(params, context)
            result, ref = await self._keep_result(given_back, tool)
            status = "ok"
        except TimeoutError:
            timed_out = limit.expired()
            status = "timeout" if timed_out else "error"
            message = f"No answer within {context.limit_s:g} s." if timed_out else "The tool timed out."
            error = {"kind": "tool.timeout", "message": message}
        except ToolError as e:
            error = {"kind": e.kind, "message": str(e)[:10_000]}
        except ToolLost as e:
            status, error = "lost", {"kind": "tool.lost", "message": str(e)}
        except Fault as e:
            error = {"kind": e.kind, "message": e.message}
        except (asyncio.CancelledError, RunEnded, RunLimit):
            context.cancelled = True
            raise
        except Exception as e:
            log.exception("run %s: tool %s failed", self.id, tool.name)
            error = {"kind": "tool.error", "message": f"The tool failed ({type(e).__name__})."}
        finally:
            context.end()
            self._mark(active=-1)
        ms = round((loop.time() - began) * 1000)
        await self._close_call(call, status, ms, result=result, error=error, ref=ref)

    async def _close_call(
        self,
        call: str,
        status: ToolStatus,
        ms: int,
        *,
        result: Any = None,
        error: Json | None = None,
        ref: str | None = None,
    ) -> None:
        await self.emit(ToolClose(call, status, ms, result, error, ref), crash="tool_done_before_commit")

    async def _keep_result(self, given: Any, tool: Tool) -> tuple[Any, str | None]:
        """A tool's result as plain JSON, its bytes as files of the user; and the file of one that is shown cut.

        Raises:
            ToolError: It is no JSON, or larger than a file may be.
            Fault: store.full and its like.
        """
        if isinstance(given, Result):
            plain: Any = {"content": [await self._engine.keep_content(self.user, item) for item in given.content]}
            if given.data is not None:
                plain["data"] = plain_json(given.data)
        else:
            plain = plain_json(given)
        body = msgspec.json.encode(plain)
        if len(body) <= MAX_RESULT:
            return plain, None
        whole, mime = (plain.encode(), "text/plain") if isinstance(plain, str) else (body, "application/json")
        if len(whole) > self._engine.file_bytes:
            raise ToolError(f"The tool's result is too large ({len(whole)} bytes).")
        name = f"{tool.name}.{'txt' if isinstance(plain, str) else 'json'}"
        kept = await self._engine.blobs.put(self.user.id, whole, mime, name)
        note = f"[cut: the result has {len(whole)} bytes]"
        if isinstance(plain, dict) and isinstance(plain.get("content"), list):
            shown = _shortened(plain["content"], MAX_RESULT // 4)
            return {"content": [*shown, {"kind": "text", "text": note}]}, kept.ref
        return f"{whole[: MAX_RESULT // 4].decode(errors='ignore')}\n{note}", kept.ref

    # what a tool asks the model

    async def sample(
        self,
        call: str,
        tool: Tool,
        messages: Sequence[SampleMessage],
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        stop: list[str] | None,
    ) -> Sampled:
        """Ask the run's model what a tool wants to know, once a person has allowed it, in a step of its own.

        Raises:
            ToolError: It was denied, or the model failed.
            RunLimit: A budget is used up.
        """
        key = f"{tool.key}#model"
        asked = [text_message(m.role, "\n".join(_content_words(c) for c in m.content)) for m in messages]
        if key not in self.object.get("allow", {}):
            tx = self._begin()
            shown = [{"role": m.role, "text": m.text[:2000]} for m in asked]
            subject = {"tool": tool.name, "key": key, "origin": tool.origin, "system": system, "messages": shown}
            title = f"Let {tool.title or tool.name} ask the model?"
            ask = self.open_ask(
                tx, "approval", title, [o for o in APPROVAL if o != "allow_always"], call=call, subject=subject
            )
            await tx.submit("ask_open")
            self._mark(active=-1)
            try:
                answer = await self.answer(ask)
            finally:
                self._mark(active=1)
            if answer.choice not in ("allow_once", "allow_run"):
                raise ToolError("The user did not let the tool ask the model.")
        async with self._sampling:  # a run has one step at a time
            return await self._sample(tool, asked, system, max_tokens, temperature, stop)

    async def _sample(
        self,
        tool: Tool,
        asked: list[Message],
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        stop: list[str] | None,
    ) -> Sampled:
        await self._engine.budgets.check(self.user.id)
        config = self.config()
        name, provider, model = self._choose(config)
        number = self.object["step"] + 1
        ear = self.writer = Ear(self)
        await self.emit(StepOpen(self.id, number, name, tool.origin))
        began = asyncio.get_running_loop().time()
        wanted = msgspec.structs.replace(
            config,
            max_tokens=min(max_tokens or SAMPLE_TOKENS, config.max_tokens or SAMPLE_TOKENS),
            temperature=config.temperature if temperature is None else temperature,
            stop=stop[:4] if stop else None,
        )
        messages = [*([text_message("system", system)] if system else []), *asked]
        request = make_request(model, messages, Toolbox((), None, {}), wanted)
        try:
            exchange = await Attempts(self, number, name, provider, request, wanted, ear).run()
        except ProviderError as e:
            self.emit(StepClose(self.id, number, "failed", ear.usage, error=RunError(e.kind, e.message, e.retry)))
            raise ToolError(f"The model failed: {e.message}") from None
        except BaseException:  # the tool may have given up waiting, and its run goes on
            if not self.closed and not self._topic.lost:
                self.emit(StepClose(self.id, number, "cancelled", ear.usage))
            raise
        ms = round((asyncio.get_running_loop().time() - began) * 1000)
        await self.emit(StepClose(self.id, number, ear.finish, ear.usage, ms, exchange.request))
        return Sampled(ear.text, name, ear.finish)

    # asks

    def open_ask(
        self,
        tx: Transaction,
        kind: Literal["approval", "form", "url", "choice"],
        title: str,
        options: list[str],
        *,
        call: str | None = None,
        subject: Json | None = None,
        schema: Json | None = None,
        url: str | None = None,
        expires_s: float | None = None,
        on_expiry: str = "deny",
    ) -> str:
        """Open an ask with a transaction; `answer` waits for it once that is committed."""
        ask, now = new_id("a"), now_ms()
        expires_at = now + round((expires_s or self._engine.ask_s) * 1000)
        tx.append(
            self._topic,
            AskOpen(ask, self.id, kind, title, options, expires_at, on_expiry, now, call, subject, schema, url),
        )
        tx.append(self.home.inbox, InboxAskOpen(ask, self.conv, self.id, kind, title))
        return ask

    async def answer(self, ask: str) -> Answer:
        """Wait until an ask is settled; if whoever waits gives it up while the run goes on, it is closed."""
        self._mark(asking=1)
        try:
            return await self._engine.settled(self, ask)
        except asyncio.CancelledError:
            if not self.closed and not self._topic.lost and ask in self.state["asks"]:
                tx = self._begin()
                self._engine.give_up(tx, self.home, ask)
                tx.submit()
            raise
        finally:
            self._mark(asking=-1)


def _shortened(content: list[Any], limit: int) -> list[Any]:
    """Content that is too long: as many of its items as fit, the small ones first, and a text as far as it fits."""
    sizes = [len(msgspec.json.encode(item)) for item in content]
    out: dict[int, Any] = {}
    for i in sorted(range(len(content)), key=sizes.__getitem__):
        item = content[i]
        if sizes[i] <= limit:
            out[i] = item
            limit -= sizes[i]
        elif isinstance(item, dict) and isinstance(text := item.get("text"), str):
            out[i] = {**item, "text": text.encode()[:limit].decode(errors="ignore")}
            break
    return [out[i] for i in sorted(out)]


def _content_words(item: Content) -> str:
    """An item as words: what a tool asks the model is text."""
    if isinstance(item, BlobContent):
        return f"[{item.mime}{': ' if item.name else ''}{item.name}]"
    return transcript.content_text({"content": [plain_json(item)]})


def _counter(provider: Provider) -> Count:
    """A provider's own count of tokens; the hub's where it has none or fails."""
    own = getattr(provider, "count", None)

    def counted(request: ModelRequest) -> int:
        try:
            return int(own(request))  # type: ignore[misc]
        except Exception:
            log.exception("provider %s: count() failed", provider.name)
            return count(request)

    return counted if own is not None else count


def _is_cut(message: Json) -> bool:
    """Whether the round that wrote a message did not come to its end (a message that was emptied counts)."""
    return message["role"] == "assistant" and (not message["parts"] or transcript.is_cut(message))
