"""The engine: conversations with their queues of runs; starting, steering, cancelling, resuming; asks; config patches.

Every decision on a conversation (who goes first, the first answer, the next revision) is taken here between two
awaits on the state of its topic, and told by events in one commit. Runs are tasks of the hub, never of a socket.
Above: the operations of `sag.api`. Below: topics, hooks, the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from functools import partial
from itertools import chain, repeat
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from sag.engine.approvals import Approvals
from sag.engine.asks import Asks
from sag.engine.budget import Budgets
from sag.engine.config import (
    fitting,
    layered,
    patched,
)
from sag.engine.ends import EXITS, RunEnded, RunLimit
from sag.engine.gate import Gates
from sag.engine.models import Models
from sag.engine.run import Run
from sag.engine.scopes import Scopes, last_kind
from sag.engine.transcript import Attached
from sag.engine.transport import Transport
from sag.errors import Fault
from sag.hooks.host import Extensions
from sag.hooks.kind import RunKind
from sag.hooks.provider import FilePart, Message
from sag.hooks.tool import BlobContent, Content, ToolError, plain_json
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change
from sag.schema.events import (
    AgentClose,
    AskClose,
    ConvPatch,
    InboxConv,
    InboxConvDrop,
    InboxRun,
    InboxRunClose,
    InboxRunOpen,
    MessageAdd,
    PartClose,
    RunClose,
    RunEnd,
    RunError,
    RunOpen,
    RunPatch,
    StepClose,
    ToolClose,
    ToolStatus,
    Usage,
)
from sag.schema.ids import new_id, now_ms
from sag.settings import Settings
from sag.store.blobs import Blobs
from sag.store.kv import KeyValue
from sag.store.projections import forget
from sag.topics.snapshot import OPEN
from sag.topics.topic import Topic, Topics, Transaction

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

TITLE = 60
CLIENT_ID = r"^[A-Za-z0-9._-]{1,64}$"


class InputPart(Struct, omit_defaults=True):
    """A piece of a user's message: text, or a file that was uploaded (`ref`)."""

    kind: Literal["text", "image", "file"]
    text: str | None = None
    ref: str | None = None
    mime: str | None = None
    name: str | None = None


class RunStart(Change):
    """Params of `run.start`; only `input` is required."""

    input: Annotated[list[InputPart], Meta(min_length=1, max_length=64)]
    conv: str | None = None
    kind: str | None = None
    when: Literal["queue", "steer", "interrupt", "reject"] = "queue"
    config: Json = field(default_factory=dict)
    subscribe: bool = True


class RunStarted(Struct, omit_defaults=True):
    """The run was accepted; `at` says from which offset of which topic the effect is visible."""

    conv: str
    run: str
    state: Literal["running", "queued", "steered"]
    at: dict[str, int]
    msg: str | None = None


class Conversation:
    """A conversation that has runs which are not over: the active one and those that wait."""

    def __init__(self, id: str, topic: Topic, inbox: Topic) -> None:
        self.id, self.topic, self.inbox = id, topic, inbox
        self.active: Run | None = None
        self.queue: deque[Run] = deque()

    def may_begin(self, run: Run) -> bool:
        """Whether it is a waiting run's turn."""
        return self.active is None and bool(self.queue) and self.queue[0] is run and not run.closed


class Engine:
    """Runs what runs.

    Args:
        topics: Where everything is told.
        extensions: The tools, providers and run kinds of the plugins.
        transport: The way to models over HTTP.
        models: The models, and what is known of them.
        budgets: What users may spend.
        kv: Where remembered approvals are kept.
        blobs: The files that messages name.
        settings: Limits and times.
    """

    def __init__(
        self,
        topics: Topics,
        extensions: Extensions,
        transport: Transport,
        models: Models,
        budgets: Budgets,
        kv: KeyValue,
        blobs: Blobs,
        settings: Settings,
    ) -> None:
        self.topics, self.extensions, self.transport = topics, extensions, transport
        self.models, self.budgets, self.gates = models, budgets, Gates()
        self.part_bytes = settings.hub.limits.part
        self.file_bytes = settings.hub.limits.body
        self._queue_limit = settings.hub.limits.queue
        self.approvals = Approvals(kv)
        self.asks = Asks(self, settings.hub.ask_s)
        self.scopes = Scopes(self)
        self.blobs = blobs
        self._homes: dict[tuple[str, str], Conversation] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.draining = False

    # finding things of a user

    async def topic(self, user: User, conv: str) -> Topic:
        """A conversation's topic.

        Raises:
            Fault: conv.unknown.
        """
        topic = await self.topics.find(user.id, f"conv:{conv}")
        if topic is None:
            raise Fault("conv.unknown")
        return topic

    async def run_topic(self, user: User, run: str) -> Topic:
        """The topic of a run's conversation.

        Raises:
            Fault: run.unknown.
        """
        for topic in self.live_topics(user):
            if run in topic.state["runs"]:
                return topic
        rows = await self.topics.journal.rows("run", {"id": run, "owner": user.id})
        found = await self.topics.find(user.id, f"conv:{rows[0]['conv']}") if rows else None
        if found is None or run not in found.state["runs"]:
            raise Fault("run.unknown")
        return found

    def live_topics(self, user: User) -> list[Topic]:
        """The topics of a user's conversations in which something runs."""
        return [home.topic for (owner, _), home in self._homes.items() if owner == user.id]

    async def _home(self, user: User, topic: Topic) -> Conversation:
        inbox = await self.topics.get(user.id, "user:me")
        key = (user.id, topic.name[5:])
        home = self._homes.get(key)
        if home is None:
            home = self._homes[key] = Conversation(key[1], topic, inbox)
            topic.pins += 1
            inbox.pins += 1
        return home

    def home_of(self, topic: Topic) -> Conversation:
        """The conversation of a topic that has a run which is not over."""
        return self._homes[topic.owner, topic.name[5:]]

    def _release(self, home: Conversation) -> None:
        key = (home.topic.owner, home.id)
        if home.active is None and not home.queue and self._homes.get(key) is home:
            del self._homes[key]
            home.topic.pins -= 1
            home.inbox.pins -= 1

    def kind(self, name: str) -> RunKind:
        """A run kind by name.

        Raises:
            Fault: kind.unknown.
        """
        kind = self.extensions.kinds.get(name)
        if kind is None:
            raise Fault("kind.unknown", f"No installed plugin offers runs of kind {name!r}.")
        return kind

    # starting

    async def start(self, call: Call, p: RunStart) -> RunStarted:
        """Accept input: begin a run, queue it, or join the active one (protocol section 4).

        Raises:
            Fault: conv.unknown, kind.unknown, config.invalid, input.invalid, model.unknown, run.busy, run.queue.
            ProviderError: The model's vendor refuses the key or the model, as far as that is known.
        """
        user = call.me
        _check_input(p.input)
        is_new = p.conv is None
        topic = self.topics.create(user.id, f"conv:{new_id('c')}") if is_new else await self.topic(user, p.conv or "")
        below = await self.scopes.of_device(user, call.client)
        home = await self._home(user, topic)
        # from here on nothing is awaited: this is one decision
        try:
            if p.when == "reject" and home.active:
                raise Fault("run.busy", run=home.active.id)
            if p.when == "steer" and home.active and not home.active.closed:
                return self._steer(call.tx, user, home, home.active, p)
            kind = self.kind(p.kind or last_kind(topic))
            base = layered(fitting(below, kind.config), fitting(topic.state["conv"]["config"], kind.config))
            config = kind.config.opened(patched({}, p.config, kind.config, base), base)
            self.scopes.check_model(config)
            self.scopes.check_effective(layered(base, config))
            if p.when == "queue" and len(home.queue) >= self._queue_limit:
                raise Fault("run.queue", f"{len(home.queue)} runs wait in this conversation already.", after_ms=5000)
        except Fault:
            self._release(home)
            await topic.settled()
            raise
        tx: Transaction = call.tx
        source = call.peer.tool_source if call.peer is not None else None
        run = Run(self, home, new_id("r"), kind, user, call.client, source)
        first: int | None = None
        if is_new or not topic.state["conv"].get("title"):
            made = {"created": now_ms()} if is_new else {}
            first = tx.append(topic, ConvPatch({"title": _title(p.input), **made}))
        if p.when == "interrupt" and home.active:
            self._close(tx, home.active, "cancelled")
            home.active = None
        begins = home.active is None
        at = tx.append(
            topic,
            RunOpen(
                run.id,
                kind.name,
                user.id,
                call.client,
                config,
                1,
                "running" if begins else "queued",
                now_ms(),
                base if begins else None,
                self._next_turn(topic) if begins else None,
            ),
        )
        msg = self._add_message(tx, user, home, run.id, p)
        tx.append(home.inbox, InboxConv(home.id, {**_listing(topic), "updated": now_ms()}))
        tx.append(home.inbox, InboxRunOpen(run.id, home.id, kind.name, "running" if begins else "queued"))
        if begins:
            home.active = run
            tx.handed(lambda: self._launch(run))  # so that its first step shares the commit
        else:
            home.queue.append(run)
        tx.undo(partial(self._withdraw, run))
        at = at if first is None else first
        return RunStarted(home.id, run.id, "running" if begins else "queued", {topic.name: at}, msg)

    def _steer(self, tx: Transaction, user: User, home: Conversation, run: Run, p: RunStart) -> RunStarted:
        at = home.topic.tip + 1
        msg = self._add_message(tx, user, home, run.id, p)
        return RunStarted(home.id, run.id, "steered", {home.topic.name: at}, msg)

    def _add_message(self, tx: Transaction, user: User, home: Conversation, run: str, p: RunStart) -> str:
        msg = new_id("m")
        parts = [msgspec.to_builtins(part) for part in p.input]
        tx.append(home.topic, MessageAdd(msg, "user", now_ms(), parts, run, by=user.id))
        return msg

    @staticmethod
    def _next_turn(topic: Topic) -> int:
        return 1 + max((run.get("begun", 0) for run in topic.state["runs"].values()), default=0)

    def _withdraw(self, run: Run) -> None:
        """A run could not be kept: it never was."""
        run.closed = True
        self._next(run.home, run)

    def _launch(self, run: Run) -> None:
        if run.closed or run.task is not None:
            return
        run.task = asyncio.create_task(self._drive(run), name=f"run {run.id}")
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)

    async def _drive(self, run: Run) -> None:
        """The life of a run, from its first step to its last event."""
        status: RunEnd = "done"
        error: RunError | None = None
        try:
            while True:
                made = run.object["step"]
                await run.kind.run(run)
                # A steer that came after the last look keeps the run going, where its kind reads what is said.
                if run.closed or not run.is_addressed or run.object["step"] == made:
                    break
        except RunLimit as e:
            status, error = "limit", RunError("run.limit", str(e))
        except RunEnded:
            status = "cancelled"
        except asyncio.CancelledError:
            status = "interrupted"
        except Fault as e:
            status, error = "failed", RunError(e.kind, e.message, e.retry)
        except (Exception, *EXITS) as e:
            log.exception("run %s of kind %s failed", run.id, run.kind.name)
            status, error = "failed", RunError("run.failed", f"The run kind failed ({type(e).__name__}).")
        if not run.closed:
            await self._finish(run, status, error)

    async def _finish(self, run: Run, status: RunEnd, error: RunError | None) -> None:
        """Close a run; where the store cannot take it, try until it can."""
        run.closed = True
        for delay_s in chain((0.1, 0.3), repeat(1.0, 86_400)):
            try:
                tx = self.topics.begin()
                self._closing_events(tx, run.home, run.id, status, error)
                await tx.submit()
                self._next(run.home, run)
                return
            except Fault as e:
                log.warning("run %s cannot be closed yet: %s", run.id, e.kind)
                if status == "done" and run.told is not None:
                    await asyncio.wait({run.told})
                    if run.told.exception() is not None:  # its last words were not kept
                        status, error = "failed", RunError(e.kind, e.message, e.retry)
                await asyncio.sleep(delay_s)

    # ending

    def _close(self, tx: Transaction, run: Run, status: RunEnd, error: RunError | None = None) -> None:
        """End a run with a transaction, and let the next one begin when it is committed."""
        run.closed = True
        home = run.home
        self._closing_events(tx, home, run.id, status, error)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        tx.after(lambda: self._next(home, run))
        tx.undo(lambda: self._spawn(self._finish(run, status, error)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closing_events(
        self, tx: Transaction, home: Conversation, run: str, status: RunEnd, error: RunError | None = None
    ) -> None:
        topic = home.topic
        if topic.lost:  # its state is ahead of what is kept: there the run may be closed already
            raise topic.lost
        object = topic.state["runs"].get(run)
        if object is None or object["status"] not in OPEN:
            return
        self.topics.flush_deltas(topic, tx)
        for message in topic.state["messages"]:
            if message.get("run") == run:
                for part in message["parts"]:
                    if part.get("open"):
                        tx.append(topic, PartClose(part["part"], len(part["text"]), True))
                        self.topics.close_part(topic, part["part"])
        for id, ask in list(topic.state["asks"].items()):
            if ask["run"] == run:
                self.asks.settle(tx, home, id, AskClose(id, None, None, why="run"))
        ended: dict[RunEnd, ToolStatus] = {"interrupted": "lost", "failed": "lost"}
        for call, tool in topic.state["tools"].items():
            if tool["run"] == run and tool["status"] == "running":
                tx.append(topic, ToolClose(call, ended.get(status, "cancelled"), max(0, now_ms() - tool["ts"])))
        for agent, state in object.get("agents", {}).items():
            if state == "open":
                tx.append(topic, AgentClose(run, agent))
        live = self.find(topic, run, closed=True)
        for step in map(int, list(object.get("open_steps", ()))):
            tx.append(topic, StepClose(run, step, status, live.used(step) if live is not None else None))
        usage = msgspec.convert(topic.state["runs"][run]["usage"], Usage)
        now = now_ms()
        tx.append(topic, RunClose(run, status, usage, now, error))
        tx.append(home.inbox, InboxRunClose(run, home.id, status))
        tx.append(home.inbox, InboxConv(home.id, {"updated": now}))

    def _next(self, home: Conversation, ended: Run) -> None:
        """After a run ended: begin the one that waits longest."""
        if ended in home.queue:
            home.queue.remove(ended)
        if home.active is ended:
            home.active = None
        if home.active is None and home.queue:
            self._spawn(self._begin_next(home))
        else:
            self._release(home)

    async def _begin_next(self, home: Conversation) -> None:
        if not home.queue:
            return
        run = home.queue[0]
        below = await self.scopes.of_device(run.user, run.client)
        if not home.may_begin(run):
            return
        home.active = home.queue.popleft()
        topic = home.topic
        try:
            base = layered(fitting(below, run.kind.config), fitting(topic.state["conv"]["config"], run.kind.config))
            tx = self.topics.begin()
            patch = {"status": "running", "base": base, "begun": self._next_turn(topic)}
            tx.append(topic, RunPatch(run.id, patch))
            tx.append(home.inbox, InboxRun(run.id, home.id, {"status": "running"}))
            await tx.submit()
        except Fault as e:
            await self._finish(run, "failed", RunError(e.kind, e.message, e.retry))
            return
        self._launch(run)

    def find(self, topic: Topic, run: str, *, closed: bool = False) -> Run | None:
        """A run that is not over; one that is closed but not yet gone too, if that is wanted."""
        home = self._homes.get((topic.owner, topic.name[5:]))
        candidates = [home.active, *home.queue] if home else []
        return next((c for c in candidates if c is not None and c.id == run and (closed or not c.closed)), None)

    async def closed(self, topic: Topic, run: str) -> Fault:
        """The fault of whoever wants something of a run that is over."""
        await topic.settled()
        return Fault("run.closed", status=topic.state["runs"][run]["status"])

    async def cancel(self, call: Call, run_id: str, mode: Literal["now", "after_step"]) -> Json:
        """End a run: at once, or when its step is over. What came stays.

        Raises:
            Fault: run.unknown, run.closed.
        """
        topic = await self.run_topic(call.me, run_id)
        run = self.find(topic, run_id)
        if run is None:
            raise await self.closed(topic, run_id)
        if mode == "after_step" and run.task is not None:
            run.stop()
            return {"run": run_id, "status": topic.state["runs"][run_id]["status"], "at": {topic.name: topic.head}}
        tx: Transaction = call.tx
        self._close(tx, run, "cancelled")
        return {"run": run_id, "status": "cancelled", "at": {topic.name: topic.tip}}

    async def pause(self, call: Call, run_id: str, paused: bool) -> Json:
        """Hold a run before its next step, or let it go on.

        Raises:
            Fault: run.unknown, run.closed.
        """
        topic = await self.run_topic(call.me, run_id)
        run = self.find(topic, run_id)
        if run is None:
            raise await self.closed(topic, run_id)
        tx: Transaction = call.tx
        run.pause(tx, paused)
        return {"run": run_id, "status": topic.state["runs"][run_id]["status"], "at": {topic.name: topic.tip}}

    async def resume(self, call: Call, run_id: str) -> RunStarted:
        """Go on with an interrupted run.

        Raises:
            Fault: run.unknown, run.state, run.busy, kind.unknown.
        """
        topic = await self.run_topic(call.me, run_id)
        home = await self._home(call.me, topic)
        try:
            object = topic.state["runs"][run_id]
            if object["status"] != "interrupted":
                raise Fault("run.state", f"The run is {object['status']}, not interrupted.", status=object["status"])
            if home.active is not None:
                raise Fault("run.busy", run=home.active.id)
            kind = self.kind(object["kind"])
        except Fault:
            self._release(home)
            raise
        source = call.peer.tool_source if call.peer is not None else None
        run = home.active = Run(self, home, run_id, kind, call.me, object["client"], source)
        tx: Transaction = call.tx
        patch: Json = {"status": "running", "error": None, "paused": None}
        if "begun" not in object:
            patch |= {"base": {}, "begun": self._next_turn(topic)}
        at = tx.append(topic, RunPatch(run_id, patch))
        tx.append(home.inbox, InboxRunOpen(run_id, home.id, kind.name, "running"))
        tx.after(lambda: self._launch(run))
        tx.undo(partial(self._withdraw, run))
        return RunStarted(home.id, run_id, "running", {topic.name: at})

    async def delete(self, call: Call, conv: str) -> int:
        """Delete a conversation; its runs end first. Gives the offset in the user's inbox.

        Raises:
            Fault: conv.unknown.
        """
        topic = await self.topic(call.me, conv)
        home = await self._home(call.me, topic)
        tx: Transaction = call.tx
        for run in [home.active, *home.queue]:
            if run is not None:
                self._close(tx, run, "cancelled")
        home.queue.clear()
        at = tx.append(home.inbox, InboxConvDrop(conv))
        tx.put(*forget(conv))
        self.topics.delete(tx, topic)
        self._release(home)
        return at

    async def create(self, call: Call, title: str) -> tuple[str, int]:
        """Make a conversation in which nothing has been said yet; gives its id and the offset."""
        inbox = await self.topics.get(call.me.id, "user:me")
        conv, now = new_id("c"), now_ms()
        topic = self.topics.create(call.me.id, f"conv:{conv}")
        tx: Transaction = call.tx
        at = tx.append(topic, ConvPatch({"title": title, "created": now}))
        tx.append(inbox, InboxConv(conv, {"title": title, "created": now, "updated": now}))
        return conv, at

    async def rename(self, call: Call, conv: str, patch: Json) -> int:
        """Patch a conversation's properties; gives the offset.

        Raises:
            Fault: conv.unknown.
        """
        topic = await self.topic(call.me, conv)
        inbox = await self.topics.get(call.me.id, "user:me")
        tx: Transaction = call.tx
        at = tx.append(topic, ConvPatch(patch))
        tx.append(inbox, InboxConv(conv, patch))
        return at

    # files

    async def load_files(self, user: User, messages: list[Message]) -> None:
        """Read the files that messages name, in place; one that is no longer there is empty."""
        for message in messages:
            for i, part in enumerate(message.parts):
                if isinstance(part, Attached):
                    try:
                        blob, data = await self.blobs.get(user.id, part.ref)
                    except Fault as e:
                        log.warning("file %s cannot be read: %s", part.ref, e.message)
                        message.parts[i] = FilePart(part.mime, part.name, b"")
                    else:
                        message.parts[i] = FilePart(blob.mime or part.mime, part.name, data)

    async def keep_content(self, user: User, item: Content) -> Json:
        """An item of a result as the log keeps it: plain JSON, its bytes as a file of the user's.

        Raises:
            ToolError: It is no JSON, or larger than a file may be.
            Fault: store.full and its like.
        """
        if not isinstance(item, BlobContent):
            plain: Json = plain_json(item)
            return plain
        if len(item.data) > self.file_bytes:
            raise ToolError(f"The result holds a file that is too large ({len(item.data)} bytes).")
        kept = await self.blobs.put(user.id, item.data, item.mime, item.name)
        kind = "image" if item.mime.startswith("image/") else "file"
        return {"kind": kind, "ref": kept.ref, "mime": item.mime, "name": item.name, "size": kept.size}

    # start and stop of the hub

    async def recover(self) -> None:
        """End what a kill left open; keep the runs whose only unfinished work is an open ask (protocol section 4)."""
        await self.approvals.load()
        for row in await self.topics.journal.rows("run", {"open": 1}, order="ts", limit=100_000):
            user = User(row["owner"], row["owner"])
            topic = await self.topics.find(user.id, f"conv:{row['conv']}")
            if topic is None or row["id"] not in topic.state["runs"]:
                continue
            home = await self._home(user, topic)
            object = topic.state["runs"][row["id"]]
            kind = self.extensions.kinds.get(object["kind"])
            tx = self.topics.begin()
            if kind is not None and home.active is None and _only_asks(topic.state, row["id"]):
                run = home.active = Run(self, home, row["id"], kind, user, object["client"], None)
                run.set_status(tx, {"status": "waiting"})
                tx.after(partial(self._launch, run))
            else:
                self._closing_events(tx, home, row["id"], "interrupted")
            if not tx.empty:
                await tx.submit()
            elif home.active is not None:
                self._launch(home.active)
            self._release(home)

    async def drain(self, seconds: float) -> None:
        """Let turns come to their end, then interrupt the runs that are not over; paused ones at once."""
        self.draining = True
        waiting = [h.active for h in self._homes.values() if h.active and _only_asks(h.topic.state, h.active.id)]
        idle = [
            *waiting,
            *(h.active for h in self._homes.values() if h.active and h.active.object["status"] == "paused"),
        ]
        active = [home.active for home in self._homes.values() if home.active and home.active not in idle]
        if ends := [asyncio.ensure_future(run.rested()) for run in active if run.task is not None and seconds > 0]:
            _, late = await asyncio.wait(ends, timeout=seconds)
            for end in late:
                end.cancel()
        for home in list(self._homes.values()):
            for run in [*home.queue, home.active]:
                if run is None or run.closed:
                    continue
                if run in waiting and _only_asks(home.topic.state, run.id):
                    run.closed = True  # its asks outlive the hub; it goes on at the next start
                    if run.task is not None:
                        run.task.cancel()
                    continue
                home.queue.clear()
                with contextlib.suppress(Fault):
                    tx = self.topics.begin()
                    self._close(tx, run, "interrupted")
                    await tx.submit()

    async def stop(self) -> None:
        """End every task; what they would have told was told by `drain`."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2)


def _only_asks(state: Json, run: str) -> bool:
    """Whether open asks are all that a run waits for: no open step or part, and each running call has its ask."""
    object = state["runs"][run]
    asked = {a.get("call") for a in state["asks"].values() if a["run"] == run}
    if not asked or object["status"] == "queued" or object.get("open_steps"):
        return False
    running = {call for call, t in state["tools"].items() if t["run"] == run and t["status"] == "running"}
    parts_open = any(p.get("open") for m in state["messages"] if m.get("run") == run for p in m["parts"])
    return running <= asked and not parts_open


def _check_input(parts: list[InputPart]) -> None:
    for i, part in enumerate(parts):
        if part.kind == "text" and not part.text:
            raise Fault("input.invalid", "A text part needs its text.", path=f"$.input[{i}].text")
        if part.kind != "text" and not part.ref:
            raise Fault("input.invalid", "Upload the file first and send its ref.", path=f"$.input[{i}].ref")


def _title(parts: list[InputPart]) -> str:
    """The start of the first message, in one line."""
    text = " ".join(" ".join(p.text or p.name or "" for p in parts).split())
    return text if len(text) <= TITLE else text[: TITLE - 1].rstrip() + "…"


def _listing(topic: Topic) -> Json:
    conv = topic.state["conv"]
    return {"title": conv.get("title", ""), "created": conv.get("created", now_ms())}


__all__ = ["Conversation", "Engine", "InputPart", "RunStart", "RunStarted"]
