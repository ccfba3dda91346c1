"""The relay with Starlette, uvicorn and OpenAI's own client: `python -m benchmarks.servers.sdk UPSTREAM`.

It runs in the environment that scripts/peers makes, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import socket
import sys

import uvicorn
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

clients: list[AsyncOpenAI] = []


async def relay(ws: WebSocket) -> None:
    await ws.accept()
    if not clients:
        clients.append(AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none"))
    try:
        while True:
            stream = await clients[0].chat.completions.create(
                model="fake", messages=[{"role": "user", "content": await ws.receive_text()}], stream=True
            )
            async for chunk in stream:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    await ws.send_text(json.dumps({"d": text}))
            await ws.send_text('{"end":1}')
    except WebSocketDisconnect:
        pass


def main() -> None:
    app = Starlette(routes=[WebSocketRoute("/relay", relay)])
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    print(f"ready at :{sock.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, ws_per_message_deflate=False, ws_ping_interval=None, access_log=False, log_level="warning", lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
