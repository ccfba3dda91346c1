"""Operations on runs and asks."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from sag.engine.config import defaults, layered
from sag.engine.engine import Engine, RunStart, RunStarted
from sag.errors import Fault
from sag.hooks.kind import RunKind
from sag.ops.dispatch import Call
from sag.ops.operation import Change, Params, operation
from sag.topics.journal import Journal
from sag.topics.topic import Topic

Json = dict[str, Any]


class RunRef(Params):
    """Which run."""

    run: str


class RunCancel(Change):
    """Which run, and whether at once or when its step is over."""

    run: str
    mode: Literal["now", "after_step"] = "now"


class RunCancelled(Struct):
    """The run's status, and from which offset it is visible."""

    run: str
    status: str
    at: dict[str, int]


class RunPause(Change):
    """Which run."""

    run: str


class RunPaused(Struct):
    """The run's status, and from which offset the change is visible."""

    run: str
    status: str
    at: dict[str, int]


class RunResume(Change):
    """Which run."""

    run: str
    subscribe: bool = True


class RunList(Params):
    """Which runs: of one conversation or of all, the newest first."""

    conv: str | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class RunInfo(Struct):
    """A run as it is listed; `ts` is when it was accepted, Unix ms."""

    run: str
    conv: str
    kind: str
    status: str
    ts: int


class RunListed(Struct):
    """Runs, the newest first."""

    runs: list[RunInfo]


class RunView(Struct):
    """A run's object of the snapshot, and where it is."""

    run: str
    conv: str
    object: Json


class KindList(Params):
    """All run kinds."""


class KindInfo(Struct):
    """A run kind: what it is called, the config of a run that says nothing, and the config's JSON Schema."""

    name: str
    title: str
    description: str
    origin: str
    defaults: Json
    schema: Json


class KindListed(Struct):
    """The run kinds, `chat` first."""

    kinds: list[KindInfo]


class AskAnswer(Change):
    """An answer to an ask: a choice of its options, and the data of a form or edited arguments (`data.args`)."""

    ask: str
    choice: str
    data: Json | None = None


class AskAnswered(Struct):
    """How the ask was settled, and from which offset it is visible."""

    ask: str
    outcome: Json
    at: dict[str, int]


class Runs:
    """Operations on runs and asks."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self._engine, self._journal = engine, journal

    async def topic_of_start(self, call: Call, params: RunStart) -> str | None:
        """Where the run will be told; of a new conversation the result tells."""
        return f"conv:{params.conv}" if params.subscribe and params.conv else None

    async def topic_of_run(self, call: Call, params: RunResume) -> str | None:
        """Where the run is told."""
        return (await self._engine.run_topic(call.me, params.run)).name if params.subscribe else None

    @operation("run.start", who="user", rest="POST /api/runs", topic="topic_of_start")
    async def start(self, call: Call, params: RunStart) -> RunStarted:
        """Give input to a conversation: begin a run, queue it, or join the active one."""
        return await self._engine.start(call, params)

    @operation("run.cancel", who="user", rest="POST /api/runs/{run}/cancel")
    async def cancel(self, call: Call, params: RunCancel) -> RunCancelled:
        """End a run; what came stays."""
        return msgspec.convert(await self._engine.cancel(call, params.run, params.mode), RunCancelled)

    @operation("run.resume", who="user", rest="POST /api/runs/{run}/resume", topic="topic_of_run")
    async def resume(self, call: Call, params: RunResume) -> RunStarted:
        """Go on with an interrupted run; what was finished is not done again."""
        return await self._engine.resume(call, params.run)

    @operation("run.pause", who="user", rest="POST /api/runs/{run}/pause")
    async def pause(self, call: Call, params: RunPause) -> RunPaused:
        """Hold a run before its next step; it is `paused` once nothing works any more."""
        return msgspec.convert(await self._engine.pause(call, params.run, True), RunPaused)

    @operation("run.continue", who="user", rest="POST /api/runs/{run}/continue")
    async def go_on(self, call: Call, params: RunPause) -> RunPaused:
        """Let a paused run go on."""
        return msgspec.convert(await self._engine.pause(call, params.run, False), RunPaused)

    @operation("kind.list", who="user", rest="GET /api/kinds")
    async def kinds(self, call: Call, params: KindList) -> KindListed:
        """The run kinds that plugins offer."""
        kinds = sorted(self._engine.extensions.kinds.values(), key=lambda kind: (kind.name != "chat", kind.name))
        return KindListed([_kind(kind) for kind in kinds if kind.listed])

    @operation("run.get", who="user", rest="GET /api/runs/{run}")
    async def get(self, call: Call, params: RunRef) -> RunView:
        """A run's object."""
        topic = await self._engine.run_topic(call.me, params.run)
        return await topic.shown(lambda: RunView(params.run, topic.name[5:], copy.deepcopy(_run(topic, params.run))))

    @operation("run.list", who="user", rest="GET /api/runs")
    async def list(self, call: Call, params: RunList) -> RunListed:
        """The user's runs."""
        where = {"owner": call.me.id} | ({"conv": params.conv} if params.conv else {})
        rows = await self._journal.rows("run", where, order="-ts", limit=params.limit)
        return RunListed([RunInfo(r["id"], r["conv"], r["kind"], r["status"], r["ts"]) for r in rows])

    @operation("ask.answer", who="user", rest="POST /api/asks/{ask}")
    async def answer(self, call: Call, params: AskAnswer) -> AskAnswered:
        """Settle an ask; the first valid answer wins."""
        return msgspec.convert(
            await self._engine.asks.answer(call, params.ask, params.choice, params.data), AskAnswered
        )


def _kind(kind: RunKind) -> KindInfo:
    schema = msgspec.json.schema(kind.config)
    begun = layered(defaults(kind.config), kind.config.opened({}, {}))
    return KindInfo(kind.name, kind.title, kind.description, kind.origin, begun, schema)


def _run(topic: Topic, run: str) -> Json:
    object: Json | None = topic.state["runs"].get(run)
    if object is None:
        raise Fault("run.unknown")
    return object
