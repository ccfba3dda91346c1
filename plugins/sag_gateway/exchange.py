"""Runs as clients of other APIs have them: started or gone on with by a request, followed, cancelled when it is gone.

A run rests when nothing of it works and it waits for the client; the answer to the request ends then, and the client's
next request goes on with it. Above: the doors, which say it in their protocols. Below: the hub's operations.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from sag.plugin import Fault, Hub, User
from sag_gateway.completion import ANSWERED, KIND, ORIGIN, Given, find, key_of

Json = dict[str, Any]
T = TypeVar("T")

OPEN = frozenset({"queued", "running", "waiting", "paused"})
NO_ANSWER = "The client gave no answer."


class Heard(NamedTuple):
    """An event of a run: its members as `d`, a delta's text; of one about a part, what opened that."""

    name: str
    d: Any
    part: Json


class Reply(NamedTuple):
    """What a client answers to a call of one of its tools."""

    content: str
    failed: bool = False


class Trace(Struct):
    """What a run leaves behind: what its client sent, and its conversation where that is not to stay.

    Attributes:
        user, conv, run: Whose it is, and where.
        request: The key of what the client sent.
        stays: Whether the conversation does.
        until: When it goes, Unix seconds; None as long as that is not known.
    """

    user: str
    conv: str
    run: str
    request: str | None
    stays: bool
    until: float | None = None


class Exchange:
    """A request's part of a run, to be followed once.

    Args:
        hub: The plugin's hub.
        user, client: Whose run it is, and as which device.
        conv, run: Which.
        after: The offset behind which it is followed.
        state: What was at that offset, where the run went on already.
        patient: It rests for questions to the client alone, not for those to people.

    Attributes:
        calls: The client's calls that wait for it, with their names and arguments, in order.
        asks: The run's open questions, to whomever.
        titles: What people call the agents.
        usage: What the run took in this exchange, once it has ended or rests.
        closed: How the run was closed, if it was.
        rests: Whether the run rests.
        state: What there was before.
        answered: Whether the request answered something that the run waited for.
    """

    def __init__(
        self, hub: Hub[Any], user: User, client: str, conv: str, run: str, after: int, state: Json | None, patient: bool
    ) -> None:
        self._hub, self.user, self.client, self.conv, self.run = hub, user, client, conv, run
        self._after, self._patient = after, patient
        self.state: Json = state or {"runs": {}, "messages": []}
        self.calls: dict[str, Json] = {}
        self.asks: dict[str, Json] = {}
        self.titles: dict[str, str] = {}
        self.usage: Json = {}
        self.closed: Json | None = None
        self.rests = self.answered = False
        self._before: Json = {}
        self._known: set[str] = set()
        if state is not None:
            object = state["runs"][run]
            self._before = object["usage"]
            self.titles = dict(object.get("titles") or {})
            self.asks = {id: ask for id, ask in state["asks"].items() if ask["run"] == run}
            for call, tool in state["tools"].items():
                if tool["run"] == run:
                    self._known.add(call)
                    if tool["origin"] == ORIGIN and tool["status"] == "running":
                        self.calls[call] = tool

    def title(self, agent: str) -> str:
        """What people call an agent."""
        return self.titles.get(agent) or agent

    async def follow(self) -> AsyncIterator[Heard]:
        """What happens in the run, until it is closed or rests.

        Raises:
            Fault: run.unknown where the conversation is deleted.
        """
        if self.closed is not None or self.rests:
            return
        parts: dict[int, Json] = {}
        working = True
        feed = self._hub.subscribe(self.user.id, f"conv:{self.conv}", after=self._after)
        async with aclosing(feed) as events:  # type: ignore[type-var]
            async for name, d in events:
                if name == "delta":
                    for number, text in zip(d[::2], d[1::2], strict=True):
                        if number in parts:
                            yield Heard(name, text, parts[number])
                    continue
                if name == "part.open" and d["run"] == self.run:
                    parts[d["part"]] = d
                if not self._is_mine(name, d, parts):
                    continue
                yield Heard(name, d, parts.get(d.get("part"), {}))
                if name == "run.close":
                    self.closed = d
                    self.usage = self._since(d["usage"])
                    return
                if name == "run" and "status" in d["patch"]:  # one that tells `why` waits for a model
                    working = d["patch"]["status"] != "waiting" or bool(d["patch"].get("why"))
                if not working and self.waits():
                    state = await self._hub.state(self.user.id, f"conv:{self.conv}")
                    self.usage = self._since(state["runs"][self.run]["usage"])
                    asked = {ask.get("call") for ask in self.asks.values()}
                    self.calls = {call: d for call, d in self.calls.items() if call in asked}
                    self.rests = True
                    return
        raise Fault("run.unknown", "The conversation was deleted.")

    def waits(self) -> bool:
        """Whether a question is open that this client may answer."""
        return bool(self.asks) if not self._patient else any(a.get("call") in self.calls for a in self.asks.values())

    def _since(self, usage: Json) -> Json:
        return {k: v - (self._before.get(k) or 0) for k, v in usage.items() if v is not None}

    def _is_mine(self, name: str, d: Json, parts: Mapping[int, Json]) -> bool:
        """Whether an event is of the run; what it tells of calls, questions and agents is remembered."""
        if name in ("part.close", "part.drop"):
            return d["part"] in parts
        if name == "ask.close":
            return self.asks.pop(d["ask"], None) is not None
        if name in ("tool.progress", "tool.close"):
            if name == "tool.close":
                self.calls.pop(d["call"], None)
            return d["call"] in self._known
        if d.get("run") != self.run:
            return False
        if name == "ask.open":
            self.asks[d["ask"]] = d
        elif name == "agent.open" and d.get("title"):
            self.titles[d["agent"]] = d["title"]
        elif name == "tool.open":
            self._known.add(d["call"])
            if d["origin"] == ORIGIN:
                self.calls[d["call"]] = d
        return True


class Exchanges:
    """Begins exchanges, and forgets what they leave behind.

    Args:
        hub: The plugin's hub.
        keep_s: How long conversations stay that nobody asked for.
    """

    def __init__(self, hub: Hub[Any], keep_s: float) -> None:
        self._hub, self._keep_s = hub, keep_s
        self._followed: set[str] = set()  # runs

    async def hold(self, beginning: Coroutine[Any, Any, T]) -> T:
        """Begin an exchange to its end; if the client goes away meanwhile, it is left as soon as it has begun."""
        task = asyncio.ensure_future(beginning)

        def left(task: asyncio.Future[T]) -> None:
            if not task.cancelled() and task.exception() is None and isinstance(begun := task.result(), Exchange):
                self.leave(begun)

        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(left)
            raise

    async def begin(
        self,
        user: User,
        client: str,
        kind: str,
        input: Sequence[Json],
        config: Json,
        *,
        given: Given | None = None,
        conv: str | None = None,
        stray: bool = False,
        patient: bool = False,
    ) -> Exchange:
        """Start a run.

        Args:
            user, client: In whose name, as which device.
            kind, input, config: As of `run.start`.
            given: What the kind `completion` is to know besides.
            conv: In which conversation, a new one where it is left out.
            stray: Nobody asked for that new one: it goes some time after the run is over, unless a tool has changed
                something or somebody went on with it.
            patient: As of `Exchange`.

        Raises:
            Fault: What `run.start` raises.
        """
        request = None
        if kind == KIND and given is not None:
            request = secrets.token_hex(8)
            await self._hub.kv.put(key_of(user.id, request), msgspec.to_builtins(given))
            config = {**config, "request": request}
        params: Json = {"kind": kind, "input": list(input), "config": config}
        try:
            started = await self._hub.call(
                user, "run.start", params | ({"conv": conv} if conv is not None else {}), client=client
            )
        except BaseException:
            if request is not None:
                await self._hub.kv.delete(key_of(user.id, request))
            raise
        made, run = str(started["conv"]), str(started["run"])
        self._followed.add(run)
        if stray or request is not None:
            trace = Trace(user.id, made, run, request, not stray)
            await self._hub.kv.put(f"trace {run}", msgspec.to_builtins(trace))
        return Exchange(self._hub, user, client, made, run, started["at"][f"conv:{made}"] - 1, None, patient)

    async def go_on(
        self,
        user: User,
        client: str,
        conv: str,
        run: str,
        replies: Mapping[str, Reply],
        *,
        choices: Mapping[str, Json] | None = None,
        said: Sequence[Json] = (),
        patient: bool = False,
    ) -> Exchange | None:
        """Go on with a run that rests; None if there is nothing of it to go on with.

        Args:
            user, client, conv, run: As of `Exchange`.
            replies: What the client answers to calls of its tools; those that it leaves out it has not answered.
            choices: What it answers to other questions: their ids, and the params of `ask.answer`.
            said: What the user says besides.
            patient: As of `Exchange`.

        Raises:
            Fault: ask.invalid, or what `run.start` raises.
        """
        try:
            view = await self._hub.call(user, "conversation.get", {"conv": conv})
        except Fault as e:
            if e.kind != "conv.unknown":
                raise
            return None
        state = view["snap"]
        object = state["runs"].get(run)
        if object is None or object["status"] not in OPEN:
            return None
        exchange = Exchange(self._hub, user, client, conv, run, view["off"], state, patient)
        answers: dict[str, Json] = {}
        for id, ask in exchange.asks.items():
            if ask.get("call") in exchange.calls:
                reply = replies.get(ask["call"], Reply(NO_ANSWER, True))
                answers[id] = {"choice": ANSWERED, "data": {"content": reply.content, "failed": reply.failed}}
            elif choices and id in choices:
                answers[id] = choices[id]
        if said:
            steer = {"conv": conv, "when": "steer", "input": list(said)}
            await self._hub.call(user, "run.start", steer, client=client)
        for id, answer in answers.items():  # somebody else may be faster
            try:
                await self._hub.call(user, "ask.answer", {"ask": id, **answer}, client=client)
                exchange.answered = True
            except Fault as e:
                if e.kind not in ("ask.closed", "ask.unknown"):
                    raise
            del exchange.asks[id]
        waiting = object["status"] == "waiting" and not object.get("why")
        exchange.rests = waiting and not answers and exchange.waits()  # what is said besides moves no question
        self._followed.add(run)
        return exchange

    async def ended(self, user: User, client: str, conv: str, run: str) -> Exchange:
        """A run that ended while nobody followed it, as an exchange that is over.

        Raises:
            Fault: run.unknown, conv.unknown.
        """
        view = await self._hub.call(user, "conversation.get", {"conv": conv})
        if (object := view["snap"]["runs"].get(run)) is None:
            raise Fault("run.unknown")
        exchange = Exchange(self._hub, user, client, conv, run, view["off"], view["snap"], False)
        exchange.closed = object
        return exchange

    async def given(self, user: User, conv: str, call: str) -> tuple[str, Given | None] | None:
        """The run that rests for a call of a client's tool, and what its request held; None if there is none."""
        try:
            state = await self._hub.state(user.id, f"conv:{conv}")
        except Fault:
            return None
        tool = state["tools"].get(call)
        if tool is None or not any(ask.get("call") == call for ask in state["asks"].values()):
            return None
        config = state["runs"][tool["run"]]["config"]
        return tool["run"], await find(self._hub, user.id, config.get("request"))

    async def cancel(self, user: User, run: str) -> None:
        """End a run, if it has not ended."""
        with contextlib.suppress(Fault):
            await self._hub.call(user, "run.cancel", {"run": run})

    def leave(self, exchange: Exchange) -> None:
        """The exchange was followed to its end; or it was given up, and its run is cancelled."""
        with contextlib.suppress(RuntimeError):  # the hub goes down, and ends its runs by itself
            self._hub.spawn(self._leave(exchange))

    async def _leave(self, exchange: Exchange) -> None:
        if exchange.closed is None and not exchange.rests:
            await self.cancel(exchange.user, exchange.run)
        self._followed.discard(exchange.run)
        await self._tidy(exchange.run)

    async def sweep(self) -> None:
        """Forget what was left behind by runs that have ended."""
        for key in await self._hub.kv.list("trace "):
            await self._tidy(key.removeprefix("trace "))

    async def _tidy(self, run: str) -> None:
        kept = await self._hub.kv.get(f"trace {run}")
        if kept is None or run in self._followed:
            return
        trace = msgspec.convert(kept, Trace)
        with contextlib.suppress(Fault):  # a person deleted it
            state = await self._hub.state(trace.user, f"conv:{trace.conv}")
            if state["runs"][run]["status"] in OPEN | {"interrupted"}:
                return
            stays = trace.stays or len(state["runs"]) > 1 or any(t["risk"] != "read" for t in state["tools"].values())
            if not stays and trace.until is None and self._keep_s > 0:
                trace.until = time.time() + self._keep_s
                await self._hub.kv.put(f"trace {run}", msgspec.to_builtins(trace))
            if not stays and trace.until is not None and time.time() < trace.until:
                return
            if not stays:
                await self._hub.call(User(trace.user, trace.user), "conversation.delete", {"conv": trace.conv})
        if trace.request is not None:
            await self._hub.kv.delete(key_of(trace.user, trace.request))
        await self._hub.kv.delete(f"trace {run}")
