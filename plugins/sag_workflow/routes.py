"""The routes of the operations chat that clients of it know: a message and its answer, and what is thought meanwhile.

A message begins an ordinary run, which other devices see as well. What is remembered beside it is which run a stream is
to tell of that comes a moment too late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from msgspec import Meta, Struct

from sag.plugin import Fault, Hub, Request, Sent, Stream

Json = dict[str, Any]

LATE_S = 10.0  # how long a run that is over waits for its stream
OVER = ("done", "cancelled", "failed", "limit", "interrupted")


class Said(Struct):
    """The body of `POST /api/conversations/{conv}/messages`."""

    message: Annotated[str, Meta(min_length=1, max_length=100_000)]


class Begun(Struct):
    """A run that `message` began: `at` is its first event's offset, `ended` a monotonic time."""

    run: str
    at: int
    ended: float | None = None


class Routes:
    """The two routes.

    Args:
        hub: The plugin's hub.
        kind: Of which kind the runs are.
    """

    def __init__(self, hub: Hub[Any], kind: str) -> None:
        self._hub, self._kind = hub, kind
        self._begun: dict[tuple[str, str], Begun] = {}  # the newest of a user's conversation
        self._streamed: deque[str] = deque(maxlen=1000)  # runs that a stream has told of

    async def message(self, request: Request) -> Json:
        """Say something and wait for the answer: `{user_message, assistant_message, title}`.

        A message is `{id, role, agent, content, created}`; `agent` is null for the user and for the assistant itself,
        `created` is Unix ms.

        Raises:
            Fault: conv.unknown; run.closed with its `status` where the run was stopped or met a limit; of a run that
                failed the kind of its error, as 502.
        """
        said = await request.json(Said)
        conv, user = request.path["conv"], request.user
        topic = f"conv:{conv}"
        asked: Json = {"conv": conv, "kind": self._kind, "input": [{"kind": "text", "text": said.message}]}
        if key := request.headers.get("idempotency-key"):
            asked["key"] = key
        started = await self._hub.call(user, "run.start", asked, client=request.client)
        begun = self._begin(user.id, conv, started["run"], started["at"][topic])
        try:
            async with aclosing(self._follow(user.id, topic, begun.at - 1)) as events:
                async for name, d in events:
                    if name == "run.close" and d["run"] == begun.run:
                        break
        finally:
            begun.ended = time.monotonic()
        state = (await self._hub.call(user, "conversation.get", {"conv": conv}))["snap"]
        run = state["runs"][begun.run]
        if (status := run["status"]) != "done":
            error = run.get("error") or {"message": f"The run ended as {status}."}
            if status == "failed":
                raise Fault(error["kind"], error["message"], code=502, retry=error["retry"])
            raise Fault("run.closed", error["message"], status=status)
        messages = [m for m in state["messages"] if m.get("run") == begun.run]
        return {
            "user_message": _shown(next(m for m in messages if m["msg"] == started["msg"])),
            "assistant_message": _shown(next(m for m in reversed(messages) if m["role"] == "assistant")),
            "title": state["conv"].get("title", ""),
        }

    def _begin(self, user: str, conv: str, run: str, at: int) -> Begun:
        now = time.monotonic()
        self._begun = {k: b for k, b in self._begun.items() if b.ended is None or b.ended > now - LATE_S}
        begun = self._begun[user, conv] = Begun(run, at)
        return begun

    async def thinking(self, request: Request) -> Stream:
        """What the agents of one run do, as server-sent events that end with it.

        That is the run which is open, else one that `message` began and that ended just now and was told to nobody yet,
        else the next one.

        Raises:
            Fault: conv.unknown.
        """
        conv, user = request.path["conv"], request.user
        view = await self._hub.call(user, "conversation.get", {"conv": conv})
        topic, head = f"conv:{conv}", view["off"]
        run, after = self._find(view["snap"]["runs"], self._begun.get((user.id, conv)))
        if after is None:
            after = head if run is None else await self._oldest(user.id, topic, head)
        return Stream(self._tell(user.id, topic, run, after))

    def _find(self, runs: Json, begun: Begun | None) -> tuple[str | None, int | None]:
        """The run to tell of now, if there is one, and the offset that it follows, where that is known."""
        opened = [id for id, run in runs.items() if run["status"] not in OVER]
        active = [id for id in opened if runs[id]["status"] != "queued"]
        run = next(iter([*active, *opened]), None)
        if run is None and begun is not None and begun.run not in self._streamed:
            is_late = begun.ended is not None and begun.ended < time.monotonic() - LATE_S
            run = None if is_late else begun.run
        if run is not None:
            self._streamed.append(run)
        return run, begun.at - 1 if begun is not None and begun.run == run else None

    async def _tell(self, user: str, topic: str, run: str | None, after: int) -> AsyncGenerator[Sent, None]:
        """The events of a run, or of the next one that begins."""
        yield Sent(comment="connected")
        calls: dict[str, str] = {}
        async with aclosing(self._follow(user, topic, after)) as events:
            async for name, d in events:
                if run is None and (name == "run.open" or (name == "run" and d["patch"].get("status") == "running")):
                    run = d["run"]
                    self._streamed.append(run)
                if name == "tool.close" and d["call"] in calls:
                    result = d.get("result") if d["status"] == "ok" else {"status": d["status"], **_error(d)}
                    yield Sent({"type": "function_end", "function": calls[d["call"]], "result": result})
                if name in ("delta", "tool.close") or run is None or d.get("run") != run:
                    continue
                if name in ("agent.open", "agent.close"):
                    what = "agent_invoked" if name == "agent.open" else "agent_finished"
                    yield Sent({"type": what, "agent": d["agent"]})
                elif name == "tool.open":
                    calls[d["call"]] = d["name"]
                    yield Sent({"type": "function_start", "function": d["name"], "arguments": d["args"]})
                elif name == "run.close" and not await self._goes_on(user, topic, run, d["status"]):
                    return

    async def _goes_on(self, user: str, topic: str, run: str, status: str) -> bool:
        """Whether a run that was closed has been resumed since."""
        if status != "interrupted":
            return False
        return (await self._hub.state(user, topic))["runs"][run]["status"] not in OVER

    async def _oldest(self, user: str, topic: str, head: int) -> int:
        """The offset after which the events that are kept begin."""
        gone, kept, probe = -1, head, 0
        while kept - gone > 1:
            try:
                async with aclosing(self._follow(user, topic, probe)) as events:
                    await anext(events, None)
            except Fault:
                gone = probe
            else:
                kept = probe
            probe = (gone + kept) // 2
        return kept

    def _follow(self, user: str, topic: str, after: int) -> AsyncGenerator[tuple[str, Any], None]:
        return self._hub.subscribe(user, topic, after=after)  # type: ignore[return-value]


def _shown(message: Json) -> Json:
    text = "".join(part.get("text") or "" for part in message["parts"] if part["kind"] == "text")
    agent = message.get("agent")
    return {"id": message["msg"], "role": message["role"], "agent": agent, "content": text, "created": message["ts"]}


def _error(closed: Json) -> Json:
    return {"error": closed["error"]} if closed.get("error") else {}
