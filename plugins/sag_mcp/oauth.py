"""Signing in to an MCP server over HTTP: OAuth 2.1 as the specification wants it, and the tokens that come of it.

Finding the authorization server, registering, PKCE and the exchange of the code are the SDK's
(`mcp.client.auth.OAuthClientProvider`), driven here step by step so that a person may take their time without any
request waiting for them. Keeping and renewing tokens is ours: the SDK forgets on a restart when a token ends and where
it is renewed, and asks a person then. What is kept is one secret for each server.

A sign-in belongs to one user: its `state` is unguessable, works once, and only for that user. Above: `servers`, which
says who may. This module imports the SDK; import it when a server is connected to, not before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import msgspec
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.oauth2 import OAuthContext
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp_types.version import LATEST_HANDSHAKE_VERSION
from msgspec import Struct
from pydantic import AnyUrl, ValidationError

from sag.plugin import Fault, Hub, Secret, User, printable

Json = dict[str, Any]

EARLY_S = 30.0  # a token is renewed so long before it ends
FIND_S = 30.0  # for finding the authorization server and registering there
EXCHANGE_S = 30.0
PERSON_S = 3600.0  # how long a page to sign in at may stay open

# It writes a traceback for each sign-in that does not come about; whoever began it is told why.
logging.getLogger("mcp.client.auth.oauth2").setLevel(logging.CRITICAL)


class Kept(Struct, omit_defaults=True):
    """What is kept of a server's authorization, encrypted.

    Attributes:
        client: The registration of this hub (RFC 7591), as the SDK's model dumps it.
        access, refresh, scope: The tokens, empty where there are none.
        expires: When the access token ends, Unix seconds; 0 where that is not known.
        token_url: Where tokens are renewed.
        resource: What they are for (RFC 8707); empty where the server's revision has no such thing.
    """

    client: Json | None = None
    access: str = ""
    refresh: str = ""
    scope: str = ""
    expires: float = 0.0
    token_url: str = ""
    resource: str = ""


class Flow:
    """One sign-in of one user.

    Attributes:
        user: Whose.
        url: The page to visit, once it is known.
        answer: What that page's redirect brought.
        done: When the tokens are there, or why there are none (`Fault`).
    """

    def __init__(self, sign_in: SignIn, user: User) -> None:
        loop = asyncio.get_running_loop()
        self.sign_in, self.user, self.state = sign_in, user, ""
        self.url: asyncio.Future[str] = loop.create_future()
        self.answer: asyncio.Future[AuthorizationCodeResult] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        for future in (self.url, self.done):
            future.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody may be waiting
        self.task: asyncio.Task[None] | None = None

    def fail(self, why: str) -> None:
        """End it without tokens."""
        for future in (self.url, self.done):
            if not future.done():
                future.set_exception(Fault("connector.failed", why, retry=False))
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    async def finish(self, query: Json) -> None:
        """Take what the redirect brought, and wait for the tokens.

        Raises:
            Fault: connector.failed.
        """
        if (error := _one(query, "error")) is not None:
            self.fail(f"The sign-in was refused: {printable(_one(query, 'error_description') or error)}")
        elif not (code := _one(query, "code")):
            self.fail("The sign-in brought no code.")
        elif not self.answer.done():
            self.answer.set_result(AuthorizationCodeResult(code=code, state=self.state, iss=_one(query, "iss")))
        await self.wait(EXCHANGE_S)

    async def wait(self, seconds: float) -> bool:
        """Whether it came to its end in that time.

        Raises:
            Fault: It came to a bad one.
        """
        await asyncio.wait({self.done}, timeout=seconds)
        if self.done.done():
            self.done.result()
        return self.done.done()


class SignIn:
    """The authorization of one server. It is the `Signer` of its requests.

    Args:
        hub: For secrets and background work.
        name: The server's.
        url: The server's.
        make_client: Makes an HTTP client for requests of the sign-in.
        redirect_uri: Where the hub is told of the outcome, as browsers see it.
        flows: All sign-ins that are going on, by their state.
        on_refused: Called when somebody has to sign in.
        on_done: Called when somebody has.
        client_id, client_secret: Of a registration that was made by hand.

    Attributes:
        name: The server's.
        needed: Whether somebody has to sign in before anything works.
    """

    def __init__(
        self,
        hub: Hub[Any],
        name: str,
        url: str,
        make_client: Callable[[], httpx2.AsyncClient],
        redirect_uri: Callable[[], str],
        flows: MutableMapping[str, Flow],
        on_refused: Callable[[], None],
        on_done: Callable[[Flow], Awaitable[None]],
        client_id: str = "",
        client_secret: Secret | None = None,
    ) -> None:
        self.client_id, self.client_secret = client_id, client_secret
        self._hub, self.name, self._url, self._make_client = hub, name, url, make_client
        self._redirect_uri, self._flows, self._on_refused, self._on_done = redirect_uri, flows, on_refused, on_done
        self.needed = False
        self._status, self._challenge = 401, ""
        self._kept: Kept | None = None
        self._lock = asyncio.Lock()
        self._own: dict[str, Flow] = {}

    # signing requests

    async def token(self) -> str | None:
        """The token of now; one that is about to end is renewed first."""
        kept = await self._load()
        if kept.access and kept.expires and kept.expires - EARLY_S <= time.time():
            try:
                return await self.renew(kept.access)
            except httpx2.TransportError:
                if kept.expires <= time.time():
                    raise
        return kept.access or None

    async def renew(self, stale: str) -> str | None:
        """Another token than one that was refused or is about to end; None where a person has to sign in.

        Raises:
            httpx2.TransportError: The authorization server cannot be asked, or has a fault, at the moment.
        """
        async with self._lock:
            kept = await self._load()
            if kept.access != stale:
                return kept.access or None  # somebody else did it
            if not (kept.refresh and kept.token_url and kept.client):
                return None
            form = {
                "grant_type": "refresh_token",
                "refresh_token": kept.refresh,
                "client_id": str(kept.client.get("client_id")),
                **({"resource": kept.resource} if kept.resource else {}),
            }
            form, headers = self._context(kept).prepare_token_auth(form, {"Accept": "application/json"})
            async with self._make_client() as client:
                response = await client.post(kept.token_url, data=form, headers=headers, timeout=EXCHANGE_S)
            if response.status_code >= 500 or response.status_code in (408, 429):
                raise httpx2.ConnectError(f"the token could not be renewed: HTTP {response.status_code}")
            tokens = _tokens(response)
            if tokens is None:
                self._hub.log.info("server %s: its token is not renewed (HTTP %d)", self.name, response.status_code)
                await self._keep(Kept(client=kept.client))
                return None
            await self._keep(_with_tokens(kept, tokens))
            return tokens.access_token

    def refused(self, status: int, challenge: str) -> None:
        """Somebody has to sign in."""
        self.needed, self._status, self._challenge = True, status, challenge
        self._on_refused()

    # signing in

    async def begin(self, user: User) -> Flow:
        """Begin a sign-in, or give the user's own that is going on; its `url` is known then.

        Raises:
            Fault: connector.failed: there is no way to sign in.
        """
        flow = self._own.get(user.id)
        if flow is None or flow.done.done():
            flow = self._own[user.id] = Flow(self, user)
            flow.task = self._hub.spawn(self._run(flow))
        await asyncio.wait({flow.url}, timeout=FIND_S)
        if not flow.url.done():
            flow.fail("The authorization server does not answer.")
        flow.url.result()
        return flow

    def end(self) -> None:
        """End the sign-ins that are going on: the server is gone."""
        for flow in list(self._own.values()):
            flow.fail("The server was removed or changed.")

    async def _run(self, flow: Flow) -> None:
        try:
            async with asyncio.timeout(PERSON_S):
                await self._sign_in(flow)
        except TimeoutError:
            flow.fail("Nobody signed in in time.")
        except Fault as e:
            flow.fail(e.message)
        except Exception as e:
            self._hub.log.info("server %s: no sign-in: %s", self.name, type(e).__name__)
            flow.fail(f"There is no way to sign in: {printable(str(e) or type(e).__name__, 300)}")
        else:
            await self._on_done(flow)
            flow.done.set_result(None)
        finally:
            self._flows.pop(flow.state, None)
            if self._own.get(flow.user.id) is flow:
                del self._own[flow.user.id]
            if not flow.done.done():
                flow.fail("The sign-in was ended.")

    async def _sign_in(self, flow: Flow) -> None:
        """Drive the SDK's flow: it is shown the refusal that the server gave, and gives one request after the other."""

        async def show(url: str) -> None:
            flow.state = parse_qs(urlsplit(url).query)["state"][0]
            self._flows[flow.state] = flow
            flow.url.set_result(url)

        async def wait() -> AuthorizationCodeResult:
            return await flow.answer

        redirect = self._redirect_uri()
        storage = _Storage(self, redirect, step_up=self._status == 403)
        provider = OAuthClientProvider(
            self._url, _metadata(redirect), storage, redirect_handler=show, callback_handler=wait
        )
        storage.context = provider.context
        refused = httpx2.Request("POST", self._url, headers={"MCP-Protocol-Version": LATEST_HANDSHAKE_VERSION})
        answer = httpx2.Response(self._status, headers={"WWW-Authenticate": self._challenge}, request=refused)
        steps = provider.async_auth_flow(refused)
        try:
            async with self._make_client() as client:
                await anext(steps)
                # At last it gives the request that was refused once more, signed; the tokens are kept by then.
                while (request := await steps.asend(answer)) is not refused:
                    answer = await client.send(request)
        except Exception:
            if flow.answer.done():
                await self._forget_client()  # one that the authorization server forgot is made anew next time
            raise
        finally:
            await steps.aclose()
        context = provider.context
        assert context.current_tokens is not None
        assert context.client_info is not None
        found = context.oauth_metadata
        kept = Kept(
            client=_dumped(context.client_info),
            token_url=str(found.token_endpoint) if found else f"{context.get_authorization_base_url(self._url)}/token",
            resource=context.get_resource_url(),
        )
        async with self._lock:
            await self._keep(_with_tokens(kept, context.current_tokens))
        self.needed = False

    # what is kept

    @property
    def _key(self) -> str:
        return f"oauth/{self.name}"

    async def _load(self) -> Kept:
        if self._kept is None:
            text = await self._hub.secrets.get(self._key)
            try:
                self._kept = msgspec.json.decode(text, type=Kept) if text else Kept()
            except msgspec.MsgspecError:
                self._kept = Kept()
            _blot(self._kept)
        return self._kept

    async def _keep(self, kept: Kept) -> None:
        self._kept = kept
        _blot(kept)
        await self._hub.secrets.put(self._key, msgspec.json.encode(kept).decode())

    async def _forget_client(self) -> None:
        kept = await self._load()
        await self._keep(msgspec.structs.replace(kept, client=None))

    def _context(self, kept: Kept) -> OAuthContext:
        context = OAuthContext(
            self._url, _metadata(self._redirect_uri()), _Storage(self, "", step_up=False), None, None
        )
        context.client_info = OAuthClientInformationFull.model_validate(kept.client)
        return context


class _Storage:
    """The SDK's view of what is kept: of tokens, those alone that are to be given more rights."""

    def __init__(self, sign_in: SignIn, redirect_uri: str, *, step_up: bool) -> None:
        self._sign_in, self._redirect_uri, self._step_up = sign_in, redirect_uri, step_up
        self.context: OAuthContext | None = None

    async def get_tokens(self) -> OAuthToken | None:
        kept = await self._sign_in._load()
        if not (self._step_up and kept.access):
            return None
        return OAuthToken(access_token=kept.access, scope=kept.scope or None)

    async def set_tokens(self, tokens: OAuthToken) -> None:
        pass  # kept by `_sign_in`, together with where they are renewed

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        if self._sign_in.client_id:
            secret = self._sign_in.client_secret
            return OAuthClientInformationFull(
                client_id=self._sign_in.client_id,
                client_secret=secret.reveal() if secret is not None else None,
                redirect_uris=[AnyUrl(self._redirect_uri)],
                token_endpoint_auth_method="client_secret_basic" if secret is not None else "none",
            )
        kept = await self._sign_in._load()
        try:
            client = OAuthClientInformationFull.model_validate(kept.client) if kept.client else None
        except ValidationError:
            return None
        if client is None or (client.client_secret_expires_at or time.time() + 1) <= time.time():
            return None
        fits = client.redirect_uris is None or AnyUrl(self._redirect_uri) in client.redirect_uris
        return client if fits else None  # the hub is reached at another address now

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        if client_info.client_secret and client_info.token_endpoint_auth_method is None:
            # A secret with no word on how it is sent goes by Basic (RFC 7591 section 2); the SDK would not send it.
            found = self.context.oauth_metadata if self.context is not None else None
            ways = (found.token_endpoint_auth_methods_supported if found else None) or ["client_secret_basic"]
            basic = "client_secret_basic" in ways or "client_secret_post" not in ways
            client_info.token_endpoint_auth_method = "client_secret_basic" if basic else "client_secret_post"
        kept = await self._sign_in._load()
        await self._sign_in._keep(msgspec.structs.replace(kept, client=_dumped(client_info)))


def _metadata(redirect_uri: str) -> OAuthClientMetadata:
    parts = urlsplit(redirect_uri)
    native = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    return OAuthClientMetadata(
        client_name="sag",
        redirect_uris=[AnyUrl(redirect_uri)],
        application_type="native" if native else "web",
    )


def _dumped(client: OAuthClientInformationFull) -> Json:
    return client.model_dump(mode="json", exclude_none=True)


def _with_tokens(kept: Kept, tokens: OAuthToken) -> Kept:
    """The same with new tokens; what an answer leaves out stays (RFC 6749 section 6)."""
    return msgspec.structs.replace(
        kept,
        access=tokens.access_token,
        refresh=tokens.refresh_token or kept.refresh,
        scope=tokens.scope or kept.scope,
        expires=time.time() + tokens.expires_in if tokens.expires_in else 0.0,
    )


def _tokens(response: httpx2.Response) -> OAuthToken | None:
    if response.status_code != 200:
        return None
    try:
        return OAuthToken.model_validate_json(response.content)
    except ValidationError:
        return None


def _blot(kept: Kept) -> None:
    """Keep tokens out of logs."""
    for text in (kept.access, kept.refresh, str((kept.client or {}).get("client_secret") or "")):
        Secret(text)


def _one(query: Json, name: str) -> str | None:
    values = query.get(name)
    return str(values[0]) if values else None
