"""`GET /ws`: the upgrade, then one loop that reads and never waits for work (protocol section 1)."""

from __future__ import annotations

from typing import Any

from sag.errors import Fault
from sag.hub.connection import Connection
from sag.hub.hub import Hub
from sag.ops.dispatch import error_body
from sag.topics.merge import encode
from sag.web.guard import Guard
from sag.web.server import AsgiSocket

SUBPROTOCOL = "sag.1.json"


class SocketEndpoint:
    """The ASGI application behind `/ws`."""

    def __init__(self, hub: Hub, guard: Guard) -> None:
        self._hub, self._guard = hub, guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        address = scope["client"][0] if scope.get("client") else ""
        try:
            headers = scope["headers"]
            self._guard.check_host(headers)
            self._guard.check_origin(headers)
            if b"token=" in scope.get("query_string", b""):
                raise Fault("request.bad", "A token does not belong in a URL; send it in hello or as a header.")
            offered = scope.get("subprotocols") or []
            if offered and SUBPROTOCOL not in offered:
                raise Fault("request.bad", f"Offer the subprotocol {SUBPROTOCOL}, or none.")
            self._hub.admit(address)
            user, expires, token = await self._guard.user_of(headers)
        except Fault as e:
            fault, body = error_body(e, "upgrade")
            await _deny(send, fault, encode({"error": body}))
            return
        accept: dict[str, Any] = {"type": "websocket.accept"}
        if offered:
            accept["subprotocol"] = SUBPROTOCOL
        await send(accept)
        socket = scope.get("extensions", {}).get("sag.socket") or AsgiSocket(send)
        connection = Connection(self._hub, socket, user, token, address)
        connection.expires = expires
        self._hub.entered(connection)
        scope["headers"] = []
        del scope, accept, headers, message
        try:
            while True:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    break
                connection.receive(message.get("text"), message.get("bytes"))
        finally:
            connection.shut()


async def _deny(send: Any, fault: Fault, body: bytes) -> None:
    """Refuse an upgrade with an HTTP answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if fault.after_ms is not None:
        headers.append((b"retry-after", str(max(1, fault.after_ms // 1000)).encode()))
    await send({"type": "websocket.http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
