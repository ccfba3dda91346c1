"""What a tool is given when another host calls it: its progress, words and questions go to that host.

Above: the service. Below: the exchange with the host, whatever revision it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import mcp_types as t
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from sag.plugin import Fault, Hub, Sampled, SampleMessage, ToolError, User, check_schema
from sag_mcp_server.content import sampling_blocks
from sag_mcp_server.exchange import CannotAsk, Context, Exchange, Note

Json = dict[str, Any]

CLIENT = "mcp"
"""The device that other hosts are, for settings, switches and policies."""

PROGRESS_S = 0.033  # of what comes faster the newest is told
MAX_OUTPUT = 1 << 20  # characters of what a call writes while it works
SAMPLE_TOKENS = 4096  # where a tool does not say how many it wants
LEVELS: Sequence[t.LoggingLevel] = (
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency",
)  # fmt: skip
_LOGGED: Sequence[tuple[int, t.LoggingLevel]] = (
    (logging.CRITICAL, "critical"), (logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"),
)  # fmt: skip
_FINISH = {"maxTokens": "length"}
_PRIMITIVE = frozenset({"string", "number", "integer", "boolean"})


class HostContext:
    """The `ToolContext` of a call from another host. No run is behind it and no conversation: their ids are empty.

    Args:
        hub: The plugin's side of the hub.
        exchange: The request that called.
        user: In whose name.
        name: What is called.
        origin: The plugin or connector that has it.
        timeout_s, longest_s: How long it may take, without and with progress.
    """

    def __init__(
        self,
        hub: Hub[Any],
        exchange: Exchange,
        user: User,
        name: str,
        origin: str,
        timeout_s: float = 60.0,
        longest_s: float = 300.0,
    ) -> None:
        self._hub, self._exchange, self._name = hub, exchange, name
        self.user, self.client, self.conv, self.run = user, CLIENT, "", ""
        self.call = f"k{secrets.token_hex(8)}"
        self.log = _logger(f"sag.plugin.{origin}" if origin else "sag.tool", exchange)
        self.limit: asyncio.Timeout | None = None
        self.limit_s = self._timeout_s = timeout_s
        self._longest_s = longest_s
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._waited_s = self._next_s = 0.0
        self._told = -math.inf
        self._written = 0
        self._late: Note | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def cancelled(self) -> bool:
        return self._exchange.cancelled

    @property
    def gone(self) -> bool:
        """Whether the host will not come back."""
        return self._exchange.over

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self._prolong()
        if done <= self._told:
            if text is None:
                return
            done = math.nextafter(self._told, math.inf)  # each has to be larger than the one before
        self._told = done
        self._late = lambda ctx: ctx.session.report_progress(done, total, text)
        if self._loop.time() >= self._next_s:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._next_s, self.flush)

    def flush(self) -> None:
        """Tell the progress that waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (late := self._late) is not None:
            self._late, self._next_s = None, self._loop.time() + PROGRESS_S
            self._exchange.tell(late)

    async def output(self, text: str) -> None:
        if text := text[: MAX_OUTPUT - self._written]:
            self._written += len(text)
            self._exchange.tell(lambda ctx: send_log(ctx, "info", self._name, text))

    async def patch(self, scope: str, patch: Json) -> Json:
        return await self._hub.patch(self.user, scope, patch)

    def _prolong(self) -> None:
        """A call that makes progress is given its time again, as far as `longest_s`."""
        if self.limit is not None and (when := self.limit.when()) is not None and not self.cancelled:
            latest = self._began + self._waited_s + self._longest_s
            if (until := min(self._loop.time() + self._timeout_s, latest)) > when:
                self.limit.reschedule(until)
                self.limit_s = self._timeout_s if until < latest else self._longest_s

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
        able = self._exchange.capabilities.elicitation
        given: t.ElicitRequestParams
        if url is not None:
            if able is None or able.url is None:
                needed = t.ElicitationCapability(url=t.UrlElicitationCapability())
                raise CannotAsk(f"The host cannot show an address: {title} {url}", _elicitation(needed))
            given = t.ElicitRequestURLParams(message=title, url=url, elicitation_id=secrets.token_hex(8))
        else:
            if able is None or (able.form is None and able.url is not None):
                raise CannotAsk(f"The host cannot ask its user: {title}", _elicitation(t.ElicitationCapability()))
            form = _form(schema) if schema is not None else _choice(options or ["yes", "no"])
            given = t.ElicitRequestFormParams(message=title, requested_schema=form)
        name = str((schema or {}).get("title") or title)
        answer = await self._answer(_slug(name), t.ElicitRequest(params=given), expires_s, t.ElicitResult)
        if answer is None or answer.action == "cancel":
            return None, None
        if schema is None and url is None:
            choice = (answer.content or {}).get("choice")
            return (choice if answer.action == "accept" and isinstance(choice, str) else None), None
        accept, decline = (options[0], options[-1]) if options else ("accept", "decline")
        if answer.action == "decline":
            return decline, None
        data: Json = dict(answer.content or {})
        if schema is not None:
            try:
                check_schema(schema, data)
            except Fault as e:
                raise ToolError(f"What the host answered does not fit: {e.message}") from None
        return accept, data if schema is not None else None

    async def sample(
        self,
        messages: Sequence[SampleMessage],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: list[str] | None = None,
    ) -> Sampled:
        if self._exchange.capabilities.sampling is None:
            needed = t.ClientCapabilities(sampling=t.SamplingCapability())
            raise CannotAsk("The host does not let tools ask its model.", needed)
        params = t.CreateMessageRequestParams(
            messages=[_message(m) for m in messages],
            system_prompt=system,
            max_tokens=max_tokens or SAMPLE_TOKENS,
            temperature=temperature,
            stop_sequences=stop,
        )
        answer = await self._answer(
            "model",
            t.CreateMessageRequest(params=params),
            None,
            t.CreateMessageResultWithTools,
            t.CreateMessageResult,
        )
        if answer is None:
            raise ToolError("The host did not come back with its model's answer.")
        blocks = answer.content if isinstance(answer.content, list) else [answer.content]
        text = "".join(b.text for b in blocks if isinstance(b, t.TextContent))
        return Sampled(text, answer.model, _FINISH.get(answer.stop_reason or "", "stop"))

    async def roots(self) -> list[str]:
        """The folders (`file://` URIs) that the host's user works in; hosts alone have them, so runs do not.

        Raises:
            ToolError: The host does not tell.
        """
        if self._exchange.capabilities.roots is None:
            raise CannotAsk("The host does not tell its folders.", t.ClientCapabilities(roots=t.RootsCapability()))
        answer = await self._answer("folders", t.ListRootsRequest(), None, t.ListRootsResult)
        if answer is None:
            raise ToolError("The host did not tell its folders.")
        return [str(root.uri) for root in answer.roots]

    async def _answer(self, name: str, request: t.InputRequest, expires_s: float | None, *kinds: type[Any]) -> Any:
        """What the host answers; None if it does not in time. That is not the tool's time."""
        self.flush()
        async with self._untimed():
            try:
                async with asyncio.timeout(expires_s):
                    return await self._exchange.ask(name, request, *kinds)
            except TimeoutError:
                return None

    @contextlib.asynccontextmanager
    async def _untimed(self) -> AsyncIterator[None]:
        began, left_s = self._loop.time(), None
        if self.limit is not None and (when := self.limit.when()) is not None:
            left_s = when - began
            self.limit.reschedule(None)
        try:
            yield
        finally:
            self._waited_s += self._loop.time() - began
            if self.limit is not None and left_s is not None and not self.cancelled:
                self.limit.reschedule(self._loop.time() + left_s)


async def send_log(ctx: Context, level: t.LoggingLevel, logger: str, data: str) -> None:
    """Send a line of log with a request, if its host wants lines of this level."""
    wanted = log_level(ctx)
    if wanted is not None and LEVELS.index(level) >= LEVELS.index(wanted):
        params = t.LoggingMessageNotificationParams(level=level, logger=logger, data=data)
        await ctx.session.send_notification(t.LoggingMessageNotification(params=params), ctx.request_id)


def log_level(ctx: Context) -> t.LoggingLevel | None:
    """From which level on a host wants log: as its session was told; since 2026-07-28, as the request says."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        told = (ctx.meta or {}).get(t.LOG_LEVEL_META_KEY)
    else:
        told = connection_of(ctx).state.get("level", "info")
    return next((level for level in LEVELS if level == told), None)


def connection_of(ctx: Context) -> Any:
    """The host's connection (`mcp.server.connection.Connection`): handlers are given it by no public name."""
    return ctx.session._connection


def _logger(name: str, exchange: Exchange) -> logging.Logger:
    """A logger whose records go to the hub's log, at its level, and to the host."""
    logger = logging.Logger(name, logging.DEBUG)
    logger.addHandler(_ToHost(logging.getLogger(name), exchange))
    return logger


class _ToHost(logging.Handler):
    def __init__(self, real: logging.Logger, exchange: Exchange) -> None:
        super().__init__()
        self._real, self._exchange, self._loop = real, exchange, asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        if self._real.isEnabledFor(record.levelno):
            self._real.handle(record)
        text = record.getMessage()
        level = next((level for number, level in _LOGGED if record.levelno >= number), LEVELS[0])
        with contextlib.suppress(RuntimeError):  # a thread that outlives the loop
            self._loop.call_soon_threadsafe(
                self._exchange.tell, lambda ctx: send_log(ctx, level, self._real.name, text)
            )


# forms


def _elicitation(needed: t.ElicitationCapability) -> t.ClientCapabilities:
    return t.ClientCapabilities(elicitation=needed)


def _form(schema: Json) -> Json:
    """A form as hosts show it: one level of plain values.

    Raises:
        ToolError: It has more.
    """
    for name, member in schema.get("properties", {}).items():
        several = member.get("type") == "array" and {"enum", "anyOf"} & set(member.get("items", {}))
        if member.get("type") not in _PRIMITIVE and not several:
            raise ToolError(f"The host cannot ask for {name!r}: a form there has plain values alone.")
    return {"type": "object", "properties": {}} | {
        k: v for k, v in schema.items() if k in ("$schema", "type", "properties", "required")
    }


def _choice(options: list[str]) -> Json:
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": options}},
        "required": ["choice"],
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "question"


def _message(message: SampleMessage) -> t.SamplingMessage:
    blocks = sampling_blocks(message.content)
    return t.SamplingMessage(role=message.role, content=blocks[0] if len(blocks) == 1 else blocks)
