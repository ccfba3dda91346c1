"""Servers on loopback that stand for MCP servers elsewhere, a hub with the plugin, and a record of what connects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib.metadata
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx
import pytest
import uvicorn

from sag.client import Client
from sag.plugin import Fault
from sag.testing.hub import RunningHub, running_hub

Json = dict[str, Any]
Answer = Callable[["Request"], Awaitable["Reply"]]


# servers


class Request:
    """A request that a site was sent."""

    def __init__(self, scope: Any, body: bytes) -> None:
        self.method, self.path, self.body = scope["method"], scope["path"], body
        self.query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        self.headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")

    @property
    def form(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(self.body.decode()).items()}


class Reply:
    """What a site answers: JSON, text, or pieces that `stream()` gives."""

    def __init__(
        self, status: int = 200, body: Any = b"", headers: dict[str, str] | None = None, stream: Any = None
    ) -> None:
        self.status, self.headers, self.stream = status, dict(headers or {}), stream
        if not isinstance(body, bytes | str):
            self.headers.setdefault("content-type", "application/json")
            body = json.dumps(body)
        self.body = body.encode() if isinstance(body, str) else body


class Site:
    """A web server on loopback.

    Attributes:
        requests: What it was sent.
        gone: How many clients left before an answer was over.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gone = 0
        self.url = ""
        self.port = 0

    async def answer(self, request: Request) -> Reply:
        return Reply(404)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        sock = socket.socket()
        sock.bind(("127.0.0.1", self.port))
        sock.listen()
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self._app, log_config=None, lifespan="off", ws="none", interface="asgi3")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            async with asyncio.timeout(10):
                while not server.started:
                    await asyncio.sleep(0.005)
            yield
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.wait({serving}, timeout=5)
            sock.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = Request(scope, body)
        self.requests.append(request)
        reply = await self.answer(request)
        headers = [(k.encode(), v.encode()) for k, v in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if reply.stream is None:
            await send({"type": "http.response.body", "body": reply.body})
            return
        left = asyncio.ensure_future(receive())
        pieces = reply.stream()
        try:
            while True:
                piece = asyncio.ensure_future(anext(pieces, None))
                await asyncio.wait({piece, left}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    self.gone += 1
                    piece.cancel()
                    return
                if piece.result() is None:
                    break
                await send({"type": "http.response.body", "body": piece.result(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()


def event(message: Any, name: str = "message") -> bytes:
    text = message if isinstance(message, str) else json.dumps(message)
    return f"event: {name}\ndata: {text}\n\n".encode()


class McpSite(Site):
    """An MCP server of the handshake era: `initialize`, two tools, no session.

    Attributes:
        path: Where it answers.
        tools: What it offers.
        token: The bearer token that it wants, if it wants one.
        challenge: What it says to who has none.
        over: Takes requests before it does.
    """

    def __init__(self, path: str = "/mcp", title: str = "Weather") -> None:
        super().__init__()
        self.path, self.title = path, title
        self.tools = [self.tool("forecast", {"readOnlyHint": True}), self.tool("wipe", {"destructiveHint": True})]
        self.tokens: set[str] | None = None
        self.challenge = 'Bearer error="invalid_token"'
        self.over: Callable[[Request], Reply | None] = lambda request: None
        self.calls: list[Json] = []

    @staticmethod
    def tool(name: str, annotations: Json) -> Json:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        return {"name": name, "description": f"To {name}.", "inputSchema": schema, "annotations": annotations}

    async def answer(self, request: Request) -> Reply:
        if (reply := self.over(request)) is not None:
            return reply
        if request.path != self.path:
            return Reply(404, "Not Found")
        if self.tokens is not None and request.headers.get("authorization", "")[7:] not in self.tokens:
            return Reply(401, headers={"www-authenticate": self.challenge})
        if request.method == "DELETE":
            return Reply(204)
        if request.method != "POST":
            return Reply(405, headers={"allow": "POST"})
        message = request.json
        if "id" not in message:
            return Reply(202)
        return Reply(body={"jsonrpc": "2.0", "id": message["id"], **self.respond(message)})

    def respond(self, message: Json) -> Json:
        match message["method"]:
            case "initialize":
                info = {"name": self.title.lower(), "title": self.title, "version": "1.2"}
                version = message["params"]["protocolVersion"]
                return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
            case "tools/list":
                return {"result": {"tools": self.tools}}
            case "tools/call":
                self.calls.append(message["params"].get("arguments", {}))
                city = self.calls[-1].get("city", "?")
                return {"result": {"content": [{"type": "text", "text": f"Sunny in {city}"}]}}
            case "ping":
                return {"result": {}}
        return {"error": {"code": -32601, "message": "Method not found"}}


class AuthorizationSite(Site):
    """An authorization server that does what OAuth 2.1 says, and remembers who did not.

    It registers clients, shows no page but sends the browser back at once, gives a code that works once, and rotates
    refresh tokens: one that is used twice ends all that came of it.

    Attributes:
        valid: Access tokens that the resource takes; shared with it.
        lasts_s: How long a token lasts, as it says.
        ways: How clients may send their secrets.
        faults: What clients did wrong.
        renewals: How often a token was renewed.
        broken: So many requests for tokens more are answered with a fault of its own.
    """

    def __init__(self, resource: str = "") -> None:
        super().__init__()
        self.resource = resource
        self.valid: set[str] = set()
        self.lasts_s = 3600
        self.ways = ["client_secret_post"]
        self.faults: list[str] = []
        self.clients: dict[str, Json] = {}
        self.codes: dict[str, Json] = {}
        self.refresh: dict[str, str] = {}
        self.used: set[str] = set()
        self.renewals = 0
        self.broken = 0

    async def answer(self, request: Request) -> Reply:
        match request.method, request.path:
            case "GET", "/.well-known/oauth-authorization-server":
                return Reply(
                    body={
                        "issuer": self.url,
                        "authorization_endpoint": f"{self.url}/authorize",
                        "token_endpoint": f"{self.url}/token",
                        "registration_endpoint": f"{self.url}/register",
                        "response_types_supported": ["code"],
                        "code_challenge_methods_supported": ["S256"],
                        "token_endpoint_auth_methods_supported": self.ways,
                        "authorization_response_iss_parameter_supported": True,
                    }
                )
            case "POST", "/register":
                return self._register(request.json)
            case "GET", "/authorize":
                return self._authorize(request.query)
            case "POST", "/token":
                return self._token(request.form, request.headers.get("authorization", ""))
        return Reply(404)

    def _register(self, wanted: Json) -> Reply:
        client = {**wanted, "client_id": f"c{len(self.clients)}", "client_secret": secrets.token_hex(16)}
        self.clients[client["client_id"]] = client
        return Reply(201, client)

    def _authorize(self, query: dict[str, str]) -> Reply:
        client = self.clients.get(query.get("client_id", ""), {})
        if query.get("redirect_uri") not in client.get("redirect_uris", []):
            self.faults.append("redirect_uri")
            return Reply(400, "that is no address of this client")
        if query.get("code_challenge_method") != "S256" or len(query.get("code_challenge", "")) != 43:
            self.faults.append("code_challenge")
        if query.get("resource") != self.resource:
            self.faults.append(f"resource {query.get('resource')}")
        if len(query.get("state", "")) < 20:
            self.faults.append("state")
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        back = urlencode({"code": code, "state": query["state"], "iss": self.url})
        return Reply(302, headers={"location": f"{query['redirect_uri']}?{back}"})

    def _token(self, form: dict[str, str], basic: str) -> Reply:
        if self.broken:
            self.broken -= 1
            return Reply(503)
        client_id, secret = form.get("client_id", ""), form.get("client_secret")
        if basic and "client_secret_basic" in self.ways:
            client_id, _, secret = base64.b64decode(basic.removeprefix("Basic ")).decode().partition(":")
        client = self.clients.get(client_id)
        if client is None or secret != client["client_secret"]:
            return Reply(401, {"error": "invalid_client"})
        if form.get("resource") != self.resource:
            self.faults.append(f"resource {form.get('resource')}")
        if form["grant_type"] == "authorization_code":
            asked = self.codes.pop(form.get("code", ""), None)
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
                self.faults.append("code")
                return Reply(400, {"error": "invalid_grant"})
        elif form["grant_type"] == "refresh_token":
            token = form.get("refresh_token", "")
            if token in self.used or token not in self.refresh:
                self.faults.append("refresh_token")
                self.valid.clear()
                self.refresh.clear()
                return Reply(400, {"error": "invalid_grant"})
            self.used.add(token)
            self.valid.discard(self.refresh.pop(token))
            self.renewals += 1
        access, refresh = f"at-{secrets.token_hex(12)}", f"rt-{secrets.token_hex(12)}"
        self.valid.add(access)
        self.refresh[refresh] = access
        return Reply(
            body={
                "access_token": access, "token_type": "bearer", "expires_in": self.lasts_s, "refresh_token": refresh
            }
        )  # fmt: skip


class ProtectedSite(McpSite):
    """An MCP server that wants a token of an authorization server, and says of which."""

    def __init__(self, auth: AuthorizationSite) -> None:
        super().__init__()
        self.auth = auth
        self.tokens = auth.valid

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with super().serve():
            self.auth.resource = f"{self.url}{self.path}"
            self.challenge = f'Bearer resource_metadata="{self.url}/.well-known/oauth-protected-resource{self.path}"'
            yield

    async def answer(self, request: Request) -> Reply:
        if request.path == f"/.well-known/oauth-protected-resource{self.path}":
            return Reply(body={"resource": f"{self.url}{self.path}", "authorization_servers": [self.auth.url]})
        return await super().answer(request)


# the hub


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub find the plugin, whether or not this environment was installed since it is there."""
    real = importlib.metadata.entry_points

    def found(**select: Any) -> list[EntryPoint]:
        points: list[EntryPoint] = list(real(**select))  # type: ignore[arg-type]
        own = EntryPoint("mcp", "sag_mcp", "sag")
        missing = select.get("group") == "sag" and all(ep.name != "mcp" for ep in points)
        return [*points, own] if missing else points

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


class House:
    """A hub, and who comes to it."""

    def __init__(self, hub: RunningHub, stack: contextlib.AsyncExitStack, browser: httpx.AsyncClient) -> None:
        self.hub, self.url = hub, hub.url
        self._stack, self._browser = stack, browser
        self._tokens: dict[str, str] = {}
        self._clients: dict[str, Client] = {}

    @contextlib.asynccontextmanager
    async def enter(self, user: str = "", device: str = "desk") -> AsyncIterator[Client]:
        """A client of a user; "" is the administrator of this machine."""
        async with self.hub.client(device, token=await self._token(user)) as client:
            yield client

    async def _token(self, user: str) -> str | None:
        if user and user not in self._tokens:
            async with self.hub.client() as client:
                self._tokens[user] = (await client.call("token.new", {"user": user}))["token"]
        return self._tokens.get(user)

    async def http(self, method: str, path: str, body: Any = None, user: str = "", **headers: str) -> httpx.Response:
        """A request over HTTP."""
        if token := await self._token(user):
            headers["authorization"] = f"Bearer {token}"
        return await self._browser.request(method, path, json=body, headers=headers)

    async def on_every_road(self, method: str, rest: tuple[str, str], params: Json, user: str = "") -> list[Json]:
        """Ask the same over the socket, `/rpc` and the REST route; gives the three results or errors."""
        if user not in self._clients:
            self._clients[user] = await self._stack.enter_async_context(self.enter(user, "roads"))
        outcomes: list[Json] = []
        try:
            outcomes.append(await self._clients[user].call(method, params))
        except Fault as e:
            outcomes.append({"error": {"code": e.code, "data": {"kind": e.kind}, "message": e.message}})
        for verb, path in (("POST", f"/rpc/{method}"), rest):
            outcomes.append((await self.http(verb, path, params, user)).json())
        return outcomes

    def connectors(self) -> Json:
        """What the topic `hub` shows of connectors."""
        return {name: entry.view() for name, entry in self.hub.app.extensions.connectors.items()}


@contextlib.asynccontextmanager
async def house(table: Json | None = None, *, data: Path | None = None, **given: Any) -> AsyncIterator[House]:
    """A hub with the table `[mcp]`."""
    async with running_hub(tables={"mcp": table or {}}, data=data, **given) as hub:
        info = hub.app.host.get("mcp")
        assert info is not None
        assert info.status == "on", info.reason
        async with contextlib.AsyncExitStack() as stack:
            browser = httpx.AsyncClient(base_url=hub.url, trust_env=False, verify=False, timeout=30)
            yield House(hub, stack, await stack.enter_async_context(browser))
        assert info.problems == []


async def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something to be true; gives it."""
    async with asyncio.timeout(seconds):
        while not (found := true()):
            await asyncio.sleep(0.005)
    return found


def kinds(outcomes: Sequence[Json]) -> list[str]:
    """The kinds of errors."""
    return [outcome["error"]["data"]["kind"] for outcome in outcomes]


# what connects


class Wire:
    """What is resolved, connected to and started in this process.

    Attributes:
        resolved: Names that were looked up.
        connected: Addresses that a socket was to be connected to.
        started: Programs that were started.
    """

    def __init__(self) -> None:
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.started: list[str] = []
        self.is_on = False

    def hook(self, name: str, args: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if name == "socket.getaddrinfo":
            self.resolved.append(args[0].decode() if isinstance(args[0], bytes) else str(args[0]))
        elif name == "socket.connect" and isinstance(args[1], tuple):
            self.connected.append((args[1][0], args[1][1]))
        elif name in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "os.system"):
            self.started.append(name)

    def beside(self, *urls: str) -> list[tuple[str, int]]:
        """Connections to other places than these."""
        own = {int(url.rpartition(":")[2]) for url in urls}
        return [place for place in self.connected if place[1] not in own]


WIRE = Wire()
sys.addaudithook(WIRE.hook)  # CPython tells of each call before it is made (PEP 578); a hook is never taken away
