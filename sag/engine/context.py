"""What a tool is given of the run that called it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sag.hooks.tool import Sampled, SampleMessage, Tool, ToolError
from sag.schema.events import PartClose, PartOpen, ToolProgress
from sag.schema.ids import now_ms

if TYPE_CHECKING:
    from sag.engine.asks import Answer
    from sag.engine.run import Run

Json = dict[str, Any]

PROGRESS_S = 0.033
MAX_OUTPUT = 1 << 20  # characters of what a call writes while it works
MAX_ASKS = 16  # that a call has open at once
MAX_SAMPLES = 64  # that a call takes of the model, whose time is not counted as the call's


class CallContext:
    """What a tool is given as `ctx` (sag.hooks.tool.ToolContext)."""

    def __init__(self, run: Run, call: str, tool: Tool, given: Answer | None) -> None:
        self._run, self._tool, self._given = run, tool, given
        self.user, self.client, self.conv, self.run, self.call = run.user, run.client, run.conv, run.id, call
        self.log = logging.getLogger(f"sag.plugin.{tool.origin}" if tool.origin else "sag.tool")
        self.cancelled = False
        self.limit: asyncio.Timeout | None = None
        self.limit_s = tool.timeout_s
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._waited_s = 0.0  # for a person, or for the model
        self._asks = self._waits = 0  # that are open
        self._paused_s = 0.0  # since when
        self._left_s: float | None = None
        self._samples = 0
        self._part: int | None = None
        self._part_size = self._written = 0
        self._next_s = 0.0
        self._waiting: ToolProgress | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self.report(ToolProgress(self.call, done, total, text))

    def report(self, progress: ToolProgress) -> None:
        """Tell progress now, or the newest at the next tick, so that a tool that tells much costs little.

        A call that makes progress is given its time again, as far as `longest_s`.
        """
        if self.cancelled:
            return
        now = self._loop.time()
        if self.limit is not None and (when := self.limit.when()) is not None:
            latest = self._began + self._waited_s + self._tool.longest_s
            if (until := min(now + self._tool.timeout_s, latest)) > when:
                self.limit.reschedule(until)
                self.limit_s = self._tool.timeout_s if until < latest else self._tool.longest_s
        if now >= self._next_s:
            self._next_s = now + PROGRESS_S
            self._run.emit(progress)
        else:
            self._waiting = progress
            if self._timer is None:
                self._timer = self._loop.call_at(self._next_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not self._run.closed and not self._run._topic.lost:
            self.report(waiting)

    def end(self) -> None:
        """The call is over: tell what waits, and no more."""
        self.limit = None  # which cannot be moved any more
        if self._timer is not None:
            self._timer.cancel()
            self._next_s = 0.0
            self._tick()
        self.cancelled = True
        if self._part is not None and not self._run.closed and not self._run._topic.lost:
            tx = self._run._begin()
            self._close_part(tx)
            tx.submit()

    # what it writes

    async def output(self, text: str) -> None:
        if not text or self.cancelled:
            return
        text = text[: MAX_OUTPUT - self._written]
        self._written += len(text)
        limit = self._run._engine.part_bytes // 6  # characters, each of them six bytes in JSON at worst
        while text:
            piece, text = text[:limit], text[limit:]
            self._write(piece, limit)

    def _write(self, text: str, limit: int) -> None:
        topics, topic = self._run._topics, self._run._topic
        if self._part is not None and self._part_size + len(text) > limit:
            tx = self._run._begin()
            self._close_part(tx)
            tx.submit()
        self._part_size += len(text)
        if self._part is not None:
            topics.delta(topic, self._part, text)
            return
        tools, first = self._run.state["tools"], self.call
        while (lost := tools[first].get("again")) is not None:
            first = lost
        msg = next((m["msg"] for m in self._run._newest() if _made(m, first)), None)
        if msg is None:  # of a run that was taken up elsewhere; there is no place for it
            return
        self._part = topic.fold.last_part + 1  # type: ignore[attr-defined]
        self._part_size = len(text)
        topics.open_part(
            topic, PartOpen(self._part, self._run.id, msg, "tool_output", now_ms(), self.call), self._part, text
        )

    def _close_part(self, tx: Any) -> None:
        assert self._part is not None
        topics, topic = self._run._topics, self._run._topic
        topics.flush_deltas(topic, tx)
        found = topic.fold.parts.get(self._part)  # type: ignore[attr-defined]
        tx.append(topic, PartClose(self._part, len(found[1]["text"]) if found else 0))
        topics.close_part(topic, self._part)
        self._part = None

    # what it asks

    async def ask(
        self,
        title: str,
        *,
        schema: Json | None = None,
        url: str | None = None,
        options: list[str] | None = None,
        expires_s: float | None = None,
    ) -> tuple[str | None, Json | None]:
        if self._given is not None:
            answer, self._given = self._given, None
            return answer.choice, answer.data
        self._check_open()
        if self._asks >= MAX_ASKS:
            raise ToolError("This call asks too much at once.")
        kind: Literal["form", "url", "choice"] = "form" if schema else "url" if url else "choice"
        choices = options or (["accept", "decline"] if kind != "choice" else ["yes", "no"])
        tx = self._run._begin()
        ask = self._run.open_ask(
            tx, kind, title, choices, call=self.call, schema=schema, url=url, expires_s=expires_s, on_expiry=choices[-1]
        )
        self._asks += 1
        try:
            await tx.submit("ask_open")
            self._run._mark(active=-1)
            try:
                async with self._untimed():
                    answer = await self._run.answer(ask)
            finally:
                self._run._mark(active=1)
        finally:
            self._asks -= 1
        return answer.choice, answer.data

    async def sample(
        self,
        messages: Sequence[SampleMessage],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: list[str] | None = None,
    ) -> Sampled:
        self._check_open()
        self._samples += 1
        if self._samples > MAX_SAMPLES:
            raise ToolError("This call has asked the model too often.")
        async with self._untimed():
            return await self._run.tool_calls.sample(
                self.call, self._tool, messages, system, max_tokens, temperature, stop
            )

    def _check_open(self) -> None:
        if self.cancelled:  # a task that the tool left behind
            raise ToolError("The call is over.")

    @contextlib.asynccontextmanager
    async def _untimed(self) -> AsyncIterator[None]:
        """What a person or the model takes is not the tool's time, from the first such wait to the end of the last."""
        self._waits += 1
        if self._waits == 1:
            self._paused_s = self._loop.time()
            if self.limit is not None and (when := self.limit.when()) is not None:
                self._left_s = when - self._paused_s
                self.limit.reschedule(None)
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                now = self._loop.time()
                self._waited_s += now - self._paused_s
                if self.limit is not None and self._left_s is not None and not self.cancelled:
                    self.limit.reschedule(now + self._left_s)

    async def patch(self, scope: str, patch: Json) -> Json:
        return await self._run._engine.scopes.patch_as(self.user, self.client, scope, patch)


def _made(message: Json, call: str) -> bool:
    return any(part.get("call") == call for part in message["parts"])
