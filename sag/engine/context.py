"""What a tool is given of the run that called it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal

from sag.hooks.tool import Tool
from sag.schema.events import ToolProgress

if TYPE_CHECKING:
    from sag.engine.run import Answer, Run

Json = dict[str, Any]

PROGRESS_S = 0.033


class CallContext:
    """What a tool is given as `ctx` (sag.hooks.tool.ToolContext)."""

    def __init__(self, run: Run, call: str, tool: Tool, given: Answer | None) -> None:
        self._run, self._tool, self._given = run, tool, given
        self.user, self.client, self.conv, self.run, self.call = run.user, run.client, run.conv, run.id, call
        self.log = logging.getLogger(f"sag.plugin.{tool.origin}" if tool.origin else "sag.tool")
        self.cancelled = False
        self.limit: asyncio.Timeout | None = None
        self._loop = asyncio.get_running_loop()
        self._next_s = 0.0
        self._waiting: ToolProgress | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self.report(ToolProgress(self.call, done, total, text))

    def report(self, progress: ToolProgress) -> None:
        """Tell progress now, or the newest at the next tick, so that a tool that tells much costs little."""
        now = self._loop.time()
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
        if self._timer is not None:
            self._timer.cancel()
            self._next_s = 0.0
            self._tick()
        self.cancelled = True

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
        kind: Literal["form", "url", "choice"] = "form" if schema else "url" if url else "choice"
        choices = options or (["accept", "decline"] if kind != "choice" else ["yes", "no"])
        tx = self._run._begin()
        ask = self._run.open_ask(
            tx, kind, title, choices, call=self.call, schema=schema, url=url, expires_s=expires_s, on_expiry=choices[-1]
        )
        await tx.submit("ask_open")
        left_s = None
        if self.limit is not None and (when := self.limit.when()) is not None:
            left_s = when - self._loop.time()
            self.limit.reschedule(None)
        self._run._mark(active=-1)
        try:
            answer = await self._run.answer(ask)
        finally:
            self._run._mark(active=1)
            if self.limit is not None and left_s is not None:
                self.limit.reschedule(self._loop.time() + left_s)
        return answer.choice, answer.data

    async def patch(self, scope: str, patch: Json) -> Json:
        return await self._run._engine.patch_as(self.user, self.client, scope, patch)
