"""What is mounted: an ASGI application that brings in the server with the first request.

Above: the hub, which has checked Host, Origin and who it is. Below: `service`, which needs the SDK.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sag.plugin import Hub
    from sag_mcp_server.service import Service


class Endpoint:
    """The MCP endpoint.

    Args:
        hub: The plugin's side of the hub.
        path: Where it is mounted; there is nothing below.
    """

    def __init__(self, hub: Hub[Any], path: str) -> None:
        self._hub, self._path = hub, path
        self._service: asyncio.Future[Service] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != self._path:
            await _refuse(send, 404, "There is nothing here.")
            return
        if self._service is None or (self._service.done() and self._service.exception() is not None):
            self._service = asyncio.get_running_loop().create_future()
            self._hub.spawn(self._serve(self._service))
        service = await asyncio.shield(self._service)
        await service.handle(scope, receive, send)

    async def _serve(self, ready: asyncio.Future[Service]) -> None:
        """Serve until the hub ends this task: the SDK's scopes have to be left by the task that entered them."""
        try:
            module = await asyncio.to_thread(importlib.import_module, "sag_mcp_server.service")
            service = module.Service(self._hub)
            async with service.running():
                ready.set_result(service)
                await asyncio.Event().wait()
        except BaseException as e:
            if not ready.done():
                ready.set_exception(RuntimeError("the MCP server does not start") if _is_ending(e) else e)
                ready.exception()
            raise


def _is_ending(e: BaseException) -> bool:
    return not isinstance(e, Exception)


async def _refuse(send: Any, status: int, why: str) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": why}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
