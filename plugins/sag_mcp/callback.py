"""What the hub serves for signing in to servers: where it begins, and where the authorization server sends people back.

The hub has checked who it is before anything gets here. A sign-in is completed by the user alone who began it, so a
link with a `state` is of no use to anybody else. Above: the hub. Below: `servers`.
"""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sag.plugin import Fault, User
from sag_mcp.server import MOUNT
from sag_mcp.servers import Servers

_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:1.1rem/1.5 system-ui,sans-serif;margin:20vh auto;max-width:32rem;padding:0 1rem;
color-scheme:light dark}}</style><h1>{title}</h1><p>{text}</p>
"""
_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Callback:
    """The application at `/oauth/mcp`: `start/<server>` leads to the page to sign in at, `callback` comes from there.

    Args:
        servers: All servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        try:
            path = scope["path"].removeprefix(MOUNT)
            if scope["method"] != "GET":
                raise Fault("method.denied")
            user, query = scope["state"]["user"], parse_qs(scope["query_string"].decode("latin-1"))
            if path.startswith("/start/"):
                flow = await self._servers[path.removeprefix("/start/")].begin_sign_in(user)
                await _answer(send, 303, "Signing in", "", location=flow.url.result())
            elif path == "/callback":
                server = await self.complete(user, query)
                await _answer(send, 200, "Signed in", f"{server} can be used now. You may close this page.")
            else:
                raise Fault("route.unknown")
        except Fault as e:
            await _answer(send, e.status, "That did not work", e.message)

    async def complete_url(self, user: User, url: str) -> str:
        """The same for a browser that could not reach the hub: with the address that it ended up at."""
        return await self.complete(user, parse_qs(urlsplit(url.strip()).query))

    async def complete(self, user: User, query: dict[str, Any]) -> str:
        """Take what an authorization server sent back, and wait for the tokens.

        Returns:
            The server's title.

        Raises:
            Fault: request.bad: nobody of this name waits for that; connector.failed.
        """
        state = (query.get("state") or [""])[0]
        flow = self._servers.flows.get(state)
        if flow is None or flow.user.id != user.id:
            raise Fault("request.bad", "This sign-in is over, or somebody else began it. Begin it anew.")
        del self._servers.flows[state]
        await flow.finish(query)
        return self._servers[flow.sign_in.name].health().title


async def _answer(send: Any, status: int, title: str, text: str, *, location: str = "") -> None:
    body = _PAGE.format(title=html.escape(title), text=html.escape(text)).encode()
    headers = [*_HEADERS, *([(b"location", location.encode("latin-1"))] if location else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
