"""The same with Starlette, uvicorn, aiohttp and msgspec: `python -m benchmarks.servers.bare UPSTREAM [PORT]`.

What a careful program on these libraries does, and nothing on top: no log, no offsets, no replay.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

if TYPE_CHECKING:
    import aiohttp

UPSTREAM = sys.argv[1] if len(sys.argv) > 1 else ""
subscribers: dict[WebSocket, None] = {}
clients: list[aiohttp.ClientSession] = []


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    try:
        while True:
            await ws.send_text(await ws.receive_text())
    except WebSocketDisconnect:
        pass


async def fanout(ws: WebSocket) -> None:
    await ws.accept()
    try:
        while True:
            text = await ws.receive_text()
            if text == "join":
                subscribers[ws] = None
                continue
            for subscriber in list(subscribers):
                await subscriber.send_text(text)
    except WebSocketDisconnect:
        subscribers.pop(ws, None)


async def relay(ws: WebSocket) -> None:
    import aiohttp

    from benchmarks.servers.openai import decode, encode

    await ws.accept()
    if not clients:
        clients.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    try:
        while True:
            messages = [{"role": "user", "content": await ws.receive_text()}]
            body = encode({"model": "fake", "stream": True, "messages": messages})
            headers = {"Content-Type": "application/json"}
            async with clients[0].post(f"{UPSTREAM}/v1/chat/completions", data=body, headers=headers) as answer:
                rest = b""
                async for data in answer.content.iter_any():
                    *events, rest = (rest + data).split(b"\n\n")
                    text = "".join(
                        [
                            choice.delta.content or ""
                            for event in events
                            if event != b"data: [DONE]"
                            for choice in decode(event[6:]).choices
                        ]
                    )
                    if text:
                        await ws.send_text('{"d":%s}' % encode(text).decode())  # noqa: UP031
            await ws.send_text('{"end":1}')
    except WebSocketDisconnect:
        pass


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


def main() -> None:
    app = Starlette(
        routes=[
            Route("/health", health),
            WebSocketRoute("/echo", echo),
            WebSocketRoute("/fanout", fanout),
            WebSocketRoute("/relay", relay),
        ]
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    sock.listen(2048)
    print(f"ready at :{sock.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, ws_per_message_deflate=False, ws_ping_interval=None, access_log=False, log_level="warning", lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
