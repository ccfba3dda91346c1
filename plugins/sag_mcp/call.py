"""One call of a tool while it runs: what the server shows of it, and what it asks for on its behalf.

Progress is told in order and the newest alone, what the server logs is shown as the call's output, and questions go to
the person, or the model, of the run that the call belongs to. Above: a connection. Below: the tool's context.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from sag.plugin import ToolContext, ToolError
from sag_mcp.convert import answer_of, sample_messages
from sag_mcp.ends import Declined
from sag_mcp.sieve import Request

Json = dict[str, Any]

TICK_S = 0.033
MAX_WAITING = 200  # lines of log between two ticks
MAX_ASKS = 8  # questions of one call that are open
LOUD = ("warning", "error", "critical", "alert", "emergency")


class Call(Request):
    """A call of a tool.

    Attributes:
        ctx: What the tool was given.
        failed: Holds what the run said when the call tried to show or ask something, such as that it is over.
    """

    def __init__(self, ctx: ToolContext) -> None:
        super().__init__("tools/call")
        self.ctx = ctx
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._progress: tuple[float, float | None, str | None] | None = None
        self._lines: list[str] = []
        self._news = asyncio.Event()
        self._teller = asyncio.create_task(self._keep_telling())
        self._asking: set[asyncio.Task[Any]] = set()
        self._over = False

    # what it shows

    def progressed(self, done: float, total: float | None, text: str | None) -> None:
        self._progress = (done, total, text)
        self._news.set()

    def logged(self, level: str, text: str) -> bool:
        log_line(self.ctx.log, level, text)
        if level != "debug" and len(self._lines) < MAX_WAITING:
            self._lines.append(f"{text}\n")
            self._news.set()
        return True

    async def _keep_telling(self) -> None:
        try:
            while True:
                await self._news.wait()
                await self._tell()
                await asyncio.sleep(TICK_S)
        except Exception as e:
            self._fail(e)

    async def _tell(self) -> None:
        self._news.clear()
        progress, self._progress = self._progress, None
        lines, self._lines = self._lines, []
        if lines:
            await self.ctx.output("".join(lines))
        if progress is not None:
            await self.ctx.progress(*progress)

    def _fail(self, e: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(e)

    async def end(self, told: bool) -> None:
        """It is over: give up what it asked, and show what was not yet shown if that is still wanted."""
        self._over = True
        self._teller.cancel()
        for task in self._asking:
            task.cancel()
        if told:
            await self._tell()
        if self.failed.done():
            self.failed.exception()  # seen
        self.failed.cancel()

    # what it asks

    async def _ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Ask in a task of its own, which ends with the call.

        Raises:
            Declined: It is over, or nothing more may be asked.
        """
        if self._over or len(self._asking) >= MAX_ASKS:
            work.close()
            raise Declined("The call is over." if self._over else "Too many questions at once.")
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Declined("The call is over.")
            return task.result()
        except (ToolError, Declined):
            raise
        except Exception as e:
            self._fail(e)
            raise Declined("The run is over.") from None
        finally:
            self._asking.discard(task)
            task.cancel()

    async def elicit(self, message: str, schema: Json | None, url: str | None) -> tuple[str, Json | None]:
        """Ask a person on behalf of the server.

        Returns:
            The protocol's word, accept, decline or cancel, and a form's content.

        Raises:
            Declined: It cannot be asked.
        """
        if url is not None and not is_web(url):
            raise Declined("Only web addresses can be visited.")
        choice, data = await self._ask(self.ctx.ask(message[:2000], schema=schema, url=url))
        if choice is None:
            return "cancel", None
        if choice != "accept":
            return "decline", None
        return "accept", answer_of(schema, data or {}) if url is None else None

    async def sample(self, params: Json) -> Any:
        """Ask the run's model on behalf of the server.

        Raises:
            Declined: It was not allowed, or failed.
        """
        ask = self.ctx.sample(
            sample_messages(params),
            system=params.get("systemPrompt"),
            max_tokens=params.get("maxTokens"),
            temperature=params.get("temperature"),
            stop=params.get("stopSequences"),
        )
        try:
            return await self._ask(ask)
        except ToolError as e:
            raise Declined(str(e)) from None


def log_line(log: logging.Logger, level: str, text: str) -> None:
    """What a server logs, in the hub's log: its trouble is not the hub's, so it stands lower there."""
    log.log(logging.INFO if level in LOUD else logging.DEBUG, "%s", " ".join(text.split())[:1000])


def is_web(url: Any) -> bool:
    """Whether a person may be sent to an address."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
