"""The MCP server: what hosts ask of it, and what they are told of by themselves. One object for all hosts.

The SDK speaks the protocol, the handshake revisions with their sessions and the stateless one of 2026-07-28 alike.
Above: the endpoint. Below: the catalogue, exchanges, and the context of calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import Any

import mcp_types as t
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from sag.plugin import Fault, Hub, Tool, ToolError, User
from sag_mcp_server import catalogue as offers
from sag_mcp_server.catalogue import Catalogue
from sag_mcp_server.chat import make_chat
from sag_mcp_server.content import block, call_result, error_result, resource_contents
from sag_mcp_server.context import CLIENT, HostContext, connection_of
from sag_mcp_server.exchange import CannotAsk, Context, Exchange, Exchanges

Json = dict[str, Any]

BODY = 16 << 20  # bytes of a request, as everywhere in the hub
LOOK_S = 10.0  # between two looks at what is offered: the topic `hub` does not tell every change
TOGETHER_S = 0.05  # changes within so long are told once
NOTIFY_S = 5.0  # for a host that does not read what it is told
INSTRUCTIONS = (
    "The tools, prompts and resources of a sag hub. Tools of connectors are named connector__tool. "
    "`chat` asks the hub's own assistant, which has these tools too."
)

logging.getLogger("mcp").setLevel(logging.WARNING)  # it tells the ids of sessions, which open them


class Service:
    """The server.

    Args:
        hub: The plugin's side of the hub.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub
        self._chat = make_chat(hub)
        self._catalogue = Catalogue(hub, [self._chat])
        self._exchanges = Exchanges(hub.settings.waiting_s)
        self._sessions: set[Connection] = set()
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self._manager = StreamableHTTPSessionManager(
            self._server(),
            session_idle_timeout=hub.settings.idle_s,
            max_sessions=hub.settings.sessions,
            max_request_body_size=BODY,
        )

    def _server(self) -> Server[Any]:
        server = _Server(
            "sag",
            title="sag",
            version=_version(),
            instructions=INSTRUCTIONS,
            get_tool_input_schema=lambda name: None,  # no tool wants arguments in headers
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen,
            on_completion=self._complete,
        )
        server.middleware.clear()  # nobody here reads traces
        # Given to the constructor it would warn, for 2026-07-28 has no such request.
        server.add_request_handler("logging/setLevel", t.SetLevelRequestParams, self._set_level)
        server.add_notification_handler("notifications/initialized", t.NotificationParams, self._initialized)
        return server

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while this is open. The same task has to leave it that entered it."""
        async with self._manager.run():
            watching = self._hub.spawn(self._watch())
            try:
                yield
            finally:
                watching.cancel()
                self._listen.close()
                await self._exchanges.close()

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request over HTTP; the hub has said whose it is."""
        user: User = scope["state"]["user"]
        owner = AuthenticatedUser(AccessToken(token="", client_id="sag", scopes=[], subject=user.id))
        headers = [(name, value.strip()) for name, value in scope["headers"]]  # which httptools leaves to others
        await self._manager.handle_request({**scope, "user": owner, "headers": headers}, receive, send)

    # tools

    async def _list_tools(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
        tools = await self._catalogue.tools_for(_user(ctx))
        return t.ListToolsResult(tools=[offers.tool_view(name, tool) for name, tool in tools.items()])

    async def _call_tool(
        self, ctx: Context, params: t.CallToolRequestParams
    ) -> t.CallToolResult | t.InputRequiredResult:
        user = _user(ctx)
        tool = (await self._catalogue.tools_for(user)).get(params.name)
        if tool is None:
            raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name}")

        async def work(exchange: Exchange) -> t.CallToolResult:
            return await self._call(exchange, user, tool, params.arguments or {})

        return await self._exchanges.serve(ctx, params, user.id, work)

    async def _call(self, exchange: Exchange, user: User, tool: Tool, args: Json) -> t.CallToolResult:
        context = HostContext(self._hub, exchange, user, tool.name, tool.origin, tool.timeout_s, tool.longest_s)
        try:
            checked = tool.check(args)
        except Fault as e:
            return error_result(f"The arguments do not fit: {e.message}")
        if (why := await self._refusal(context, user, tool, args)) is not None:
            return error_result(why)
        try:
            async with asyncio.timeout(tool.timeout_s) as limit:
                context.limit = limit
                return call_result(await tool.call(checked, context), tool.output)
        except TimeoutError:
            return error_result(
                f"No answer within {context.limit_s:g} s." if limit.expired() else "The tool timed out."
            )
        except CannotAsk as e:
            if exchange.stateless:
                raise _missing(e) from None
            return error_result(str(e))
        except (ToolError, Fault) as e:
            return error_result(_words(e))
        except Exception as e:
            self._hub.log.exception("tool %s failed", tool.key)
            return error_result(f"The tool failed ({type(e).__name__}).")
        finally:
            context.flush()

    async def _refusal(self, context: HostContext, user: User, tool: Tool, args: Json) -> str | None:
        """Why a call may not go ahead; None where it may, by the policies, or because the host's user says so."""
        policy = "auto" if tool is self._chat else await self._hub.decide(user, tool, client=CLIENT)
        if policy == "deny":
            return "A policy forbids this tool."
        if policy == "ask":
            shown = offers.shown(args)
            try:
                choice, _ = await context.ask(f"Allow {tool.title or tool.name}?\n{shown}", options=["allow", "deny"])
            except ToolError as e:
                return f"This tool needs a person's leave. {e}"
            if choice != "allow":
                return "The user denied this call."
        return None

    # prompts and resources

    async def _list_prompts(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListPromptsResult:
        prompts = self._catalogue.prompts()
        return t.ListPromptsResult(prompts=[offers.prompt_view(name, prompt) for name, (_, prompt) in prompts.items()])

    async def _get_prompt(
        self, ctx: Context, params: t.GetPromptRequestParams
    ) -> t.GetPromptResult | t.InputRequiredResult:
        connector, prompt = self._catalogue.prompts().get(params.name, (None, None))
        if connector is None or prompt is None:
            raise MCPError(t.INVALID_PARAMS, f"Unknown prompt: {params.name}")
        arguments = params.arguments or {}
        if missing := [a.name for a in prompt.arguments if a.required and a.name not in arguments]:
            raise MCPError(t.INVALID_PARAMS, f"Missing arguments: {', '.join(missing)}")
        user = _user(ctx)

        async def work(exchange: Exchange) -> t.GetPromptResult:
            context = HostContext(self._hub, exchange, user, prompt.name, connector.name)
            told = await self._asked(
                connector.get_prompt(prompt.name, arguments, **_given(connector.get_prompt, context))
            )
            content = [(m.role, block(item, at)) for m in told for at, item in enumerate(m.content)]
            messages = [t.PromptMessage(role=role, content=item) for role, item in content]
            return t.GetPromptResult(messages=messages, description=prompt.description or None)

        return await self._exchanges.serve(ctx, params, user.id, work)

    async def _list_resources(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListResourcesResult:
        known = self._catalogue.resources().items()
        return t.ListResourcesResult(resources=[offers.resource_view(u, r) for u, (_, r) in known if not r.template])

    async def _list_templates(
        self, ctx: Context, params: t.PaginatedRequestParams | None
    ) -> t.ListResourceTemplatesResult:
        known = self._catalogue.resources().items()
        return t.ListResourceTemplatesResult(
            resource_templates=[offers.template_view(u, r) for u, (_, r) in known if r.template]
        )

    async def _read_resource(
        self, ctx: Context, params: t.ReadResourceRequestParams
    ) -> t.ReadResourceResult | t.InputRequiredResult:
        user = _user(ctx)

        async def work(exchange: Exchange) -> t.ReadResourceResult:
            why = "Resource not found"
            for connector, uri, mime in self._catalogue.readers(params.uri):
                context = HostContext(self._hub, exchange, user, uri, connector.name)
                try:
                    content = await connector.read(uri, **_given(connector.read, context))
                except CannotAsk as e:
                    raise _missing(e) from None
                except (ToolError, Fault) as e:
                    why = _words(e)
                    continue
                if content:
                    return t.ReadResourceResult(contents=resource_contents(content, params.uri, mime))
            raise MCPError(t.INVALID_PARAMS, why, {"uri": params.uri})

        return await self._exchanges.serve(ctx, params, user.id, work)

    async def _complete(self, ctx: Context, params: t.CompleteRequestParams) -> t.CompleteResult:
        argument, ref = params.argument, params.ref
        if isinstance(ref, t.PromptReference):
            connector, prompt = self._catalogue.prompts().get(ref.name, (None, None))
            kind, name = "prompt", prompt.name if prompt is not None else ""
        else:
            connector, resource = self._catalogue.resources().get(ref.uri, (None, None))
            kind, name = "resource", resource.uri if resource is not None else ""
        if connector is None:
            raise MCPError(t.INVALID_PARAMS, "There is nothing of this name to complete.")
        values = await self._asked(connector.complete(kind, name, argument.name, argument.value))  # type: ignore[arg-type]
        return t.CompleteResult(
            completion=t.Completion(values=values[:100], total=len(values), has_more=len(values) > 100)
        )

    async def _asked(self, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except CannotAsk as e:
            raise _missing(e) from None
        except (ToolError, Fault) as e:
            raise MCPError(t.INTERNAL_ERROR, _words(e)) from None

    # what sessions want to be told

    async def _initialized(self, ctx: Context, params: t.NotificationParams) -> None:
        connection = connection_of(ctx)
        self._sessions.add(connection)
        connection.exit_stack.callback(self._sessions.discard, connection)

    async def _set_level(self, ctx: Context, params: t.SetLevelRequestParams) -> t.EmptyResult:
        connection_of(ctx).state["level"] = params.level
        return t.EmptyResult()

    async def _subscribe(self, ctx: Context, params: t.SubscribeRequestParams) -> t.EmptyResult:
        connection_of(ctx).state.setdefault("resources", set()).add(params.uri)
        return t.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: t.UnsubscribeRequestParams) -> t.EmptyResult:
        connection_of(ctx).state.get("resources", set()).discard(params.uri)
        return t.EmptyResult()

    async def _watch(self) -> None:
        """Tell of changes in what is offered."""
        woken = asyncio.Event()

        async def hear() -> None:
            async for _ in self._hub.subscribe("", "hub"):
                woken.set()

        hearing = self._hub.spawn(hear())
        try:
            seen = offers.marks(self._catalogue)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await woken.wait()
                await asyncio.sleep(TOGETHER_S)
                woken.clear()
                now = offers.marks(self._catalogue)
                await self._tell(seen, now)
                seen = now
        finally:
            hearing.cancel()

    async def _tell(self, seen: tuple[Json, Json, Json], now: tuple[Json, Json, Json]) -> None:
        lists: tuple[tuple[str, ServerEvent], ...] = (
            ("tools", ToolsListChanged()),
            ("prompts", PromptsListChanged()),
            ("resources", ResourcesListChanged()),
        )
        for (what, event), before, after in zip(lists, seen, now, strict=True):
            if before != after:
                await self._bus.publish(event)
                method = f"notifications/{what}/list_changed"
                await asyncio.gather(*(_notify(session, method) for session in self._sessions))
        before, after = seen[2], now[2]
        changed = {uri for uri in before.keys() | after.keys() if before.get(uri) != after.get(uri)}
        for uri in changed:
            await self._bus.publish(ResourceUpdated(uri))
        method = "notifications/resources/updated"
        for session in list(self._sessions):
            for uri in changed & session.state.get("resources", set()):
                await _notify(session, method, {"uri": uri})


class _Server(Server[Any]):
    """The SDK's server, which tells sessions that it will tell of changes."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, Json] | None = None,
        extensions: dict[str, Json] | None = None,
    ) -> InitializationOptions:
        told = notification_options or NotificationOptions(True, True, True)
        return super().create_initialization_options(told, experimental_capabilities, extensions)


async def _notify(session: Connection, method: str, params: Json | None = None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOTIFY_S):
            await session.notify(method, params)


def _user(ctx: Context) -> User:
    assert ctx.request is not None
    user: User = ctx.request.scope["state"]["user"]
    return user


def _given(function: Callable[..., Any], context: HostContext) -> Json:
    """A connector's prompt or resource that takes `ctx`, as tools do, can ask as they do."""
    return {"ctx": context} if "ctx" in inspect.signature(function).parameters else {}


def _missing(e: CannotAsk) -> MCPError:
    """The error of a request that needs what its host cannot."""
    needed = e.needed.model_dump(mode="json", by_alias=True, exclude_none=True)
    return MCPError(t.MISSING_REQUIRED_CLIENT_CAPABILITY, str(e), {"requiredCapabilities": needed})


def _words(e: ToolError | Fault) -> str:
    return e.message if isinstance(e, Fault) else str(e)


def _version() -> str:
    try:
        return metadata.version("sag-hub")
    except metadata.PackageNotFoundError:
        return "0"
