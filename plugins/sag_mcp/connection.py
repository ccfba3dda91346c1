"""One connection to an MCP server, from its start to its end; whoever wants another makes another.

It speaks through the SDK's `Client`, which is entered and left by the one task that runs `Connection.run`; that task
is never cancelled from outside, it leaves by itself when it is asked to. Calls come from any task. Whatever the SDK
raises, groups of exceptions included, becomes `Down` (the connection is over), `Lost` (a call was cut) or `ToolError`.
Imports the SDK, so it is imported when a server is first connected to. Above: the connector, which supervises. Below:
the SDK, the transports (`sag_mcp.stdio`, `sag_mcp.remote`), calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import anyio
import httpx2
import mcp.types as t
from mcp import Client, MCPError
from mcp.client import ClientRequestContext
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION
from pydantic import ValidationError

from sag.plugin import ToolContext, ToolError
from sag_mcp import convert
from sag_mcp.call import Call, is_web, log_line
from sag_mcp.connector import Offer, Pace
from sag_mcp.convert import MAX_LISTED
from sag_mcp.ends import Declined, Down, Lost, Malformed
from sag_mcp.remote import Remote
from sag_mcp.sieve import LARGE, MAX_ABANDONED, MAX_TOOLS, REQUEST, Request, Sieve, What
from sag_mcp.spec import ServerSettings
from sag_mcp.stdio import Stdio

Json = dict[str, Any]
T = TypeVar("T")
Kind = Literal["stdio", "http", "sse"]

MAX_PAGES = 64
PROBE_S = 10.0
LISTEN_S = 10.0  # until a subscription has to be acknowledged
VISITS = 3  # rounds of addresses to visit before a call goes ahead
URL_ELICITATION_REQUIRED = -32042
EVERYTHING: tuple[What, ...] = ("tools", "prompts", "resources")

# The SDK logs with tracebacks what servers do wrong, and its HTTP client every URL; what matters of it is told here.
logging.getLogger("mcp.client").setLevel(logging.CRITICAL)
logging.getLogger("client").setLevel(logging.CRITICAL)
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Connection:
    """One connection.

    Args:
        settings: How the server is reached.
        kind: By what transport.
        mode: Which protocol to try, as the SDK names it: `auto`, `legacy` or a revision.
        make_client: Makes the HTTP client.
        pace: The times of things.
        log: The connector's.
        listed: Told what the server offers, each time that it was listed anew.

    Attributes:
        calls: Those in flight, oldest first.
        used_at: When one was last made (monotonic).
        handshake: Whether it speaks the older protocol.
    """

    def __init__(
        self,
        settings: ServerSettings,
        kind: Kind,
        mode: str,
        make_client: Callable[[], httpx2.AsyncClient] | None,
        pace: Pace,
        log: logging.Logger,
        listed: Callable[[Offer], None],
    ) -> None:
        self.settings, self.kind, self.mode, self.pace, self.log = settings, kind, mode, pace, log
        self.handshake = False
        self.calls: dict[Call, None] = {}
        self.used_at = time.monotonic()
        self._make_client, self._listed = make_client, listed
        self._sieve = Sieve(self._note_change, self._log_line)
        self._transport: Stdio | Remote | None = None
        self._client: Client | None = None
        self._scope = anyio.CancelScope()
        self._wake = asyncio.Event()
        self._lost = self._leaving = self._suspect = self._unauthorized = self._deaf = False
        self._reason = "The server closed the connection."
        self._changed: set[What] = set()
        self._listing = asyncio.Lock()
        self._offer = Offer()
        self._notes: dict[str, list[str]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def ready(self) -> bool:
        """Whether calls can be made."""
        return self._live() is not None

    # its life, in the one task

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Connect, and stay until `leave` is called.

        Raises:
            Down: It could not be made, or ended by itself.
        """
        raised: BaseException | None = None
        transport = self._transport = self._open()
        try:
            with self._scope as scope:
                scope.deadline = anyio.current_time() + self.settings.connect_s
                if self._leaving:
                    return
                async with Client(transport, mode=self._client_mode(), **self._callbacks()) as client:
                    await self._begin(client)
                    scope.deadline = float("inf")
                    self._client, self.used_at = client, time.monotonic()
                    if isinstance(transport, Stdio):
                        transport.proven = True
                    on_ready()
                    try:
                        await self._serve(client)
                    finally:
                        self._client = None
        except (Exception, BaseExceptionGroup) as e:
            raised = leaf(e)
        if not self._leaving:
            raise self._down(raised, timed_out=self._scope.cancelled_caught)

    def leave(self) -> None:
        """Ask it to end: what is polite is done, such as ending an HTTP session, unless `cut` is called."""
        self._leaving = True
        self._wake.set()
        if self._client is None:
            self._scope.cancel()

    def cut(self) -> None:
        """End it without being polite. A process is stopped all the same."""
        self._leaving = True
        self._scope.cancel()

    def _open(self) -> Stdio | Remote:
        settings = self.settings
        if self.kind == "stdio":
            assert settings.command is not None
            env = {name: value.reveal() for name, value in settings.env.items()}
            return Stdio(settings.command, env, settings.cwd or None, self._sieve, self.log, self._end)
        assert settings.url is not None
        return Remote(settings.url, self.kind, self._make_client or self._plain_client, self._sieve, self._end)

    def _plain_client(self) -> httpx2.AsyncClient:
        headers = {name: value.reveal() for name, value in self.settings.headers.items()}
        return httpx2.AsyncClient(headers=headers, trust_env=False)

    def _client_mode(self) -> str:
        return LATEST_MODERN_VERSION if self.settings.era == "stateless" else self.mode

    def _callbacks(self) -> Json:
        return {
            "elicitation_callback": self._on_elicit,
            "sampling_callback": self._on_sample if self.settings.sampling else None,
            "list_roots_callback": self._on_roots if self.settings.roots else None,
            "client_info": t.Implementation(name="sag", title="sag", version=version("sag-hub")),
            "log_level": "info",
            "cache": None,
        }

    async def _begin(self, client: Client) -> None:
        """What is done before calls may be made: read who the server is and what it offers."""
        if self.settings.era == "stateless":  # the SDK takes a revision that is named for granted
            raw = await client.session.send_discover(LATEST_MODERN_VERSION)
            client.session.adopt(t.DiscoverResult.model_validate(raw))
        self.handshake = client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS
        info = client.server_info
        self._offer = Offer(
            title=(info.title or info.name if info is not None else "")[:200],
            version=(info.version if info is not None else "")[:100],
            instructions=(client.instructions or "")[: convert.MAX_TEXT],
            protocol=client.protocol_version,
        )
        await self._list(client, set(EVERYTHING))

    async def _serve(self, client: Client) -> None:
        """Until it is lost or left: follow changes, and look now and then whether the server is still there."""
        async with anyio.create_task_group() as group:
            if not self.handshake:
                group.start_soon(self._listen, client)
            try:
                await self._watch(client)
            finally:
                self._lost = True
                group.cancel_scope.cancel()

    async def _watch(self, client: Client) -> None:
        silent = 0
        now = time.monotonic()
        idle_s = self.settings.idle_s if self.settings.lazy else float("inf")
        probe_at, relist_at, list_at = now + self.pace.probe_s, now + self.pace.relist_s, now
        while not (self._lost or self._leaving):
            self._wake.clear()
            now = time.monotonic()
            if not self.calls and now - self.used_at >= idle_s:
                self._leaving = True
                break
            if now >= relist_at and (self._deaf or (self.handshake and self.kind != "stdio")):
                self._changed.add("tools")  # whose changes nobody may have told
            if self._changed and now >= list_at:
                await anyio.sleep(self.pace.settle_s)  # servers tell several changes in a row
                what, self._changed = self._changed, set()
                try:
                    with anyio.fail_after(self.settings.connect_s):
                        await self._list(client, what)
                except (MCPError, Malformed, TimeoutError) as e:
                    self.log.warning("listing anew failed: %s", " ".join(str(e).split()) or "no answer")
                    self._suspect = True
                list_at = time.monotonic() + self.pace.relist_least_s
                relist_at = list_at + self.pace.relist_s
                continue
            if self._suspect or (now >= probe_at and not self.calls):
                self._suspect = False
                problem = await self._probe(client)
                silent = silent + 1 if problem == "timeout" else 0
                if problem == "gone" or silent > 1:
                    self._reason = "The server does not answer any more."
                    break
                probe_at = time.monotonic() + (1.0 if silent else self.pace.probe_s)
            if len(self._sieve.abandoned) >= MAX_ABANDONED and self.handshake and self.kind == "http":
                self._reason = "The server leaves too many cancelled calls open."
                break
            until = list_at if self._changed else min(probe_at, self.used_at + idle_s)
            with anyio.move_on_after(max(0.01, until - time.monotonic())):
                await self._wake.wait()

    async def _probe(self, client: Client) -> Literal["gone", "timeout"] | None:
        """Whether the server is still there."""
        try:
            with anyio.fail_after(PROBE_S):
                if self.handshake:
                    await client.session.send_ping()
                else:
                    await client.session.send_discover(client.protocol_version)
        except TimeoutError:
            return "timeout"
        except MCPError as e:
            if e.code == t.REQUEST_TIMEOUT and e.message.endswith("timed out"):  # a server may mean "no session" by it
                return "timeout"
            self._note_status()
            if self.kind == "stdio":
                return "gone" if self._lost else None
            return None if e.code == t.METHOD_NOT_FOUND and self.handshake else "gone"
        except ValidationError:
            return None
        return None

    async def _listen(self, client: Client) -> None:
        """Have changes told (the stateless protocol). What comes is for the sieve; here it is seen to that it comes."""
        able = client.server_capabilities
        wanted = {
            "tools_list_changed": bool(able.tools and able.tools.list_changed),
            "prompts_list_changed": bool(able.prompts and able.prompts.list_changed),
            "resources_list_changed": bool(able.resources and able.resources.list_changed),
        }
        delay_s = self.pace.first_s
        while any(wanted.values()):
            began = time.monotonic()
            try:
                with anyio.CancelScope() as scope:
                    scope.deadline = anyio.current_time() + LISTEN_S
                    async with client.listen(**wanted) as subscription:  # type: ignore[arg-type]
                        scope.deadline = float("inf")
                        self._note_changes()  # that came before anybody listened
                        async for _ in subscription:
                            pass
            except MCPError as e:
                if e.code in (t.METHOD_NOT_FOUND, t.INVALID_PARAMS, t.INVALID_REQUEST):
                    break
            except Exception as e:
                self.log.debug("listening ended: %s", leaf(e))
            if time.monotonic() - began > self.pace.healthy_s:
                delay_s = self.pace.first_s
            await anyio.sleep(delay_s)
            delay_s = min(delay_s * 2, self.pace.most_s)
            self._note_changes()
        self._deaf = True

    def _end(self) -> None:
        self._lost = True
        self._wake.set()

    def _note_change(self, what: What) -> None:
        self._changed.add(what)
        self._wake.set()

    def _note_changes(self) -> None:
        """Anything may have changed."""
        self._changed.update(EVERYTHING)
        self._wake.set()

    def _note_status(self) -> None:
        if isinstance(self._transport, Remote) and self._transport.status == 401:
            self._refuse()

    def _refuse(self) -> None:
        """The server wants somebody to sign in."""
        self._unauthorized = True
        self._end()

    def _log_line(self, level: str, text: str) -> None:
        log_line(self.log, level, text)

    def _down(self, e: BaseException | None, *, timed_out: bool) -> Down:
        """What to say of its end."""
        transport = self._transport
        stderr = transport.stderr if isinstance(transport, Stdio) else ""
        if transport is not None and transport.broken is not None:
            return Down(transport.broken.kind, str(transport.broken), stderr)
        if isinstance(transport, Remote) and (self._unauthorized or transport.refused):
            return Down("mcp.auth", "The server wants somebody to sign in.")
        if isinstance(transport, Stdio) and transport.exit is not None:
            status = transport.exit
            how = f"signal {status - 128}" if status > 128 else f"status {status}"
            last = stderr.strip().rpartition("\n")[2].strip()
            return Down("mcp.closed", f"The server ended with {how}{': ' if last else '.'}{last[:300]}", stderr)
        if timed_out:
            return Down("mcp.timeout", f"No answer within {self.settings.connect_s:g} s.", stderr)
        if e is None:
            return Down("mcp.closed", self._reason, stderr)
        return Down("mcp.closed", _words(e), stderr)

    @property
    def status(self) -> int | None:
        """The HTTP status of the newest response."""
        return self._transport.status if isinstance(self._transport, Remote) else None

    @property
    def dropped(self) -> dict[str, int]:
        """How much of what the server sent was not listened to, by sort."""
        return self._sieve.dropped

    # what the server offers

    async def relist(self) -> None:
        """Ask anew what there is.

        Raises:
            ToolError: It cannot be had.
        """
        client = self._client
        if client is None:
            raise ToolError("The server is not connected.", kind="mcp.closed")
        try:
            await self._list(client, set(EVERYTHING))
        except (MCPError, Malformed) as e:
            raise ToolError(_words(e)) from None

    async def _list(self, client: Client, what: set[What]) -> None:
        async with self._listing:
            await self._list_now(client, what)

    async def _list_now(self, client: Client, what: set[What]) -> None:
        able, offer = client.server_capabilities, self._offer
        silent = not (able.tools or able.prompts or able.resources)
        new = Offer(title=offer.title, version=offer.version, instructions=offer.instructions, protocol=offer.protocol)
        new.tools, new.prompts, new.resources = offer.tools, offer.prompts, offer.resources
        if "tools" in what and (able.tools or silent):
            given, notes = await self._pages("tools/list", client.list_tools, MAX_TOOLS)
            new.tools, more = await asyncio.to_thread(convert.usable_tools, given)
            self._notes["tools"] = notes + more
        if "prompts" in what and able.prompts:
            given, notes = await self._pages("prompts/list", client.list_prompts, MAX_LISTED)
            new.prompts, self._notes["prompts"] = convert.prompts_of(given), notes
        if "resources" in what and able.resources:
            given, notes = await self._pages("resources/list", client.list_resources, MAX_LISTED)
            new.resources, self._notes["resources"] = convert.resources_of(given, template=False), notes
            given, notes = await self._templates(client)
            new.resources += convert.resources_of(given, template=True)
            self._notes["resources"] += notes
        new.notes = [note for notes in self._notes.values() for note in notes]
        if new != offer or not self.ready:
            self._offer = new
            self._listed(new)

    async def _templates(self, client: Client) -> tuple[list[Any], list[str]]:
        try:
            return await self._pages("resources/templates/list", client.list_resource_templates, MAX_LISTED)
        except MCPError as e:
            if e.code != t.METHOD_NOT_FOUND:
                raise
            return [], []

    async def _pages(
        self, method: str, fetch: Callable[..., Awaitable[Any]], limit: int
    ) -> tuple[list[Any], list[str]]:
        """All of a list, and notes on what was not read of it.

        Raises:
            MCPError, Malformed: It cannot be had.
        """
        key = LARGE[method]
        found: list[Any] = []
        notes: list[str] = []
        cursor: str | None = None
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            request = Request(method)
            try:
                page = await self._ask(request, partial(fetch, cursor=cursor, cache_mode="bypass"))
            except ValidationError:
                raise Malformed(f"The server's answer to {method} is not of the protocol.") from None
            given = (request.result or {}).get(key)
            if not isinstance(given, list):
                raise Malformed(f"The server's answer to {method} has no list of {key}.")
            given = given[: limit + 1]
            if method == "tools/list" and not self.handshake:
                given, dropped = _kept(given, {tool.name for tool in page.tools})
                notes += dropped
            found += given
            cursor = page.next_cursor
            if not cursor or len(found) > limit:
                break
            if cursor in seen:
                notes.append(f"The list of {key} never ends; it was read as far as it repeats itself.")
                break
            seen.add(cursor)
        else:
            notes.append(f"The list of {key} has more than {MAX_PAGES} pages; the rest is left out.")
        if len(found) > limit and method != "tools/list":
            notes.append(f"There are more than {limit} {key}; the rest is left out.")
            del found[limit:]
        return found, notes

    # what is asked of the server, from any task

    async def complete(self, kind: Literal["prompt", "resource"], name: str, argument: str, value: str) -> list[str]:
        """What an argument may go on with.

        Raises:
            Lost, ToolError, Malformed: As `call`.
        """
        client = self._client
        if client is None or client.server_capabilities.completions is None:
            return []
        ref: t.PromptReference | t.ResourceTemplateReference
        if kind == "prompt":
            ref = t.PromptReference(type="ref/prompt", name=name)
        else:
            ref = t.ResourceTemplateReference(type="ref/resource", uri=name)
        work = partial(_complete, ref=ref, argument={"name": argument, "value": value})
        result, _ = await self.ask("completion/complete", work)
        return result.completion.values[:100]

    async def call(self, name: str, args: Json, ctx: ToolContext) -> Json:
        """Call a tool; gives its result as the protocol has it.

        Raises:
            Lost: It was cut.
            ToolError: The server refused it.
            Malformed: The answer is none.
        """
        call = Call(ctx)
        self.calls[call] = None
        self.used_at = time.monotonic()
        told = False
        try:
            for _ in range(VISITS):
                try:
                    await self._asked(call, lambda c: c.call_tool(name, args, progress_callback=_nothing), call.failed)
                    break
                except MCPError as e:
                    if e.code != URL_ELICITATION_REQUIRED or not await _visit(call, e.data):
                        raise ToolError(e.message) from None
            else:
                raise ToolError("The server goes on sending people to addresses.")
            told = True
        except (ToolError, Malformed, Lost):
            told = True
            raise
        finally:
            self.calls.pop(call, None)
            self.used_at = time.monotonic()
            self._wake.set()
            await call.end(told)
        if call.result is None:
            raise Malformed("The server's answer is not of the protocol.")
        return call.result

    async def ask(self, method: str, work: Callable[[Client], Awaitable[T]]) -> tuple[T, Json]:
        """Ask for anything else; gives what the SDK made of it, and the result as it came.

        Raises:
            Lost, ToolError: As `call`.
        """
        request = Request(method)
        self.used_at = time.monotonic()
        try:
            value = await self._asked(request, work)
        except MCPError as e:
            raise ToolError(e.message) from None
        return value, request.result or {}

    async def _asked(
        self,
        request: Request,
        work: Callable[[Client], Awaitable[T]],
        failed: asyncio.Future[None] | None = None,
    ) -> T:
        """Ask, with what the SDK raises told apart: its errors that are the server's own answers stay `MCPError`."""
        if (client := self._live()) is None:
            raise Lost("mcp.closed", "The server is not connected.", sent=False)
        try:
            return await self._ask(request, partial(work, client), failed)
        except MCPError as e:
            if request.broken is not None:
                raise ToolError(str(request.broken), kind=request.broken.kind) from None
            if request.cut is not None:
                # Where it was not sent somebody will try again, so it has to be known whether that makes sense.
                if not request.unsent:
                    self._suspect = True
                    self._wake.set()
                elif await self._probe(client) == "gone":
                    self._end()
                raise Lost("mcp.closed", request.cut, sent=not request.unsent) from None
            if request.status == 401:
                self._refuse()
                raise Lost("mcp.auth", "The server wants somebody to sign in.", sent=False) from None
            if e.code == t.CONNECTION_CLOSED and self._lost:
                broken = self._transport.broken if self._transport is not None else None
                text = str(broken) if broken is not None else "The server closed the connection."
                kind = broken.kind if broken is not None else "mcp.closed"
                raise Lost(kind, text, sent=True) from None
            if self.kind != "stdio":
                if e.code == t.CONNECTION_CLOSED and e.message.startswith("SSE stream"):
                    raise Lost("mcp.closed", "The server broke off its answer.", sent=True) from None
                if self.handshake and request.status in (400, 404) and await self._probe(client) == "gone":
                    # It was started anew and does not know the session, so it did nothing. Another connection is made
                    # at once.
                    self._leaving = True
                    self._end()
                    raise Lost("mcp.closed", "The server has forgotten the session.", sent=False) from None
            raise
        except ValidationError:
            raise Malformed("The server's answer is not of the protocol.") from None
        except (RuntimeError, BaseExceptionGroup) as e:
            inner = leaf(e)
            if isinstance(inner, MCPError):
                raise inner from None
            self.log.warning("%s failed: %s", request.method, _words(inner))
            raise Malformed(f"The call failed: {_words(inner)}") from None

    def _live(self) -> Client | None:
        return None if self._lost else self._client

    async def _ask(
        self, request: Request, work: Callable[[], Awaitable[T]], failed: asyncio.Future[None] | None = None
    ) -> T:
        """Ask in a task of its own. Whoever gives up waiting is free at once; the SDK tells the server meanwhile."""
        context = copy_context()
        context.run(REQUEST.set, request)
        task = asyncio.create_task(_run(work), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        try:
            waited: set[asyncio.Future[Any]] = {task} if failed is None else {task, failed}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if failed is not None and failed.done():
                failed.result()
            if task.cancelled():
                raise MCPError(t.CONNECTION_CLOSED, "Connection closed")
            return task.result()
        finally:
            task.cancel()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, by whoever waited if he still did

    # what the server asks of us

    def _call_of(self, context: ClientRequestContext) -> Call | None:
        """The call that a request of the server's belongs to, as far as can be told."""
        request = REQUEST.get() or self._sieve.holder((context.meta or {}).get("progress_token"))
        if request is None:
            return next(reversed(self.calls), None)
        return request if isinstance(request, Call) and request in self.calls else None

    async def _on_elicit(
        self, context: ClientRequestContext, params: t.ElicitRequestParams
    ) -> t.ElicitResult | t.ErrorData:
        call = self._call_of(context)
        if call is None:
            return t.ElicitResult(action="decline")
        try:
            if isinstance(params, t.ElicitRequestURLParams):
                action, data = await call.elicit(params.message, None, params.url)
            else:
                action, data = await call.elicit(params.message, convert.form_of(params.requested_schema), None)
        except (Declined, ToolError) as e:
            self.log.info("declined a question: %s", e)
            return t.ElicitResult(action="decline")
        return t.ElicitResult.model_validate({"action": action, "content": data})

    async def _on_sample(
        self, context: ClientRequestContext, params: t.CreateMessageRequestParams
    ) -> t.CreateMessageResult | t.ErrorData:
        call = self._call_of(context)
        if call is None:
            return t.ErrorData(code=-1, message="There is no call that this is for.")
        try:
            sampled = await call.sample(params.model_dump(by_alias=True, mode="json", exclude_none=True))
        except Declined as e:
            return t.ErrorData(code=-1, message=str(e))
        return t.CreateMessageResult.model_validate(convert.sampled_json(sampled))

    async def _on_roots(self, _: ClientRequestContext) -> t.ListRootsResult:
        roots = [{"uri": convert.root_uri(root)} for root in self.settings.roots]
        return t.ListRootsResult.model_validate({"roots": roots})


def _kept(given: list[Any], names: set[str]) -> tuple[list[Any], list[str]]:
    """The tools of a list that the SDK kept, and notes on those whose arguments cannot be sent as headers."""
    kept: list[Any] = []
    notes: list[str] = []
    for raw in given:
        if not isinstance(raw, dict) or not isinstance(raw.get("inputSchema"), dict) or raw.get("name") in names:
            kept.append(raw)
        else:
            notes.append(f"The tool {str(raw.get('name'))[:60]!r} is left out: its headers cannot be sent.")
    return kept, notes


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def _complete(client: Client, **given: Any) -> t.CompleteResult:
    return await client.complete(**given)


async def _nothing(progress: float, total: float | None, message: str | None) -> None:
    """Progress is taken by the sieve; that somebody listens makes the SDK ask for it."""


async def _visit(call: Call, data: Any) -> bool:
    """Send a person to the addresses that a server wants visited before a call; whether they were."""
    given = data.get("elicitations") if isinstance(data, dict) else None
    visits = [e for e in (given if isinstance(given, list) else ()) if isinstance(e, dict) and is_web(e.get("url"))]
    for visit in visits[:5]:
        try:
            text = str(visit.get("message") or "Visit this address to go on.")
            action, _ = await call.elicit(text, None, visit["url"])
        except Declined as e:
            raise ToolError(str(e)) from None
        if action != "accept":
            raise ToolError("The user did not visit the address that the server asked for.")
    return bool(visits)


def leaf(e: BaseException) -> BaseException:
    """The first exception of a group of groups."""
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    return e


def _words(e: BaseException) -> str:
    text = " ".join(str(e).split())[:300]
    if isinstance(e, MCPError | Malformed):
        return text
    if isinstance(e, httpx2.TransportError):
        return f"The server cannot be reached: {text or type(e).__name__}"
    if isinstance(e, OSError):
        return f"The server cannot be started: {text}"
    if isinstance(e, ValidationError):
        return "The server's answer is not of the protocol."
    return f"{type(e).__name__}: {text}" if text else type(e).__name__
