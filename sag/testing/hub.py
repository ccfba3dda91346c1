"""A whole hub inside a test: real sockets on loopback, its own data folder, the plugins that are installed."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sag.app import App
from sag.client import Client
from sag.hooks.kind import RunKind
from sag.hooks.provider import Provider
from sag.hooks.tool import Tool
from sag.settings import load
from sag.web.server import listen


class RunningHub:
    """A hub that serves.

    Attributes:
        url: Its address, `http://127.0.0.1:PORT`.
        app: Its parts, for tests that look inside.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.url = app.url

    @contextlib.asynccontextmanager
    async def client(self, client_id: str = "test", **options: Any) -> AsyncIterator[Client]:
        """A connected client; options are those of `sag.client.Client`."""
        async with Client(self.url, client_id=client_id, **options) as client:
            yield client


@contextlib.asynccontextmanager
async def running_hub(
    *,
    env: Mapping[str, str] | None = None,
    tables: Mapping[str, dict[str, Any]] | None = None,
    data: Path | None = None,
    providers: Sequence[Provider] = (),
    tools: Sequence[Tool] = (),
    kinds: Sequence[RunKind] = (),
    **hub: Any,
) -> AsyncIterator[RunningHub]:
    """Run a hub for a test.

    Args:
        env: The environment that the hub and its plugins see; that of the test's process is not read.
        tables: Tables of plugins.toml, by plugin.
        data: The data folder; by default a fresh one that goes with the hub.
        providers, tools, kinds: Added to what the installed plugins bring.
        hub: Members of the table `[hub]`, such as `tick_ms=0`.

    Yields:
        The hub; it is drained at once and stopped at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = load({**(env or {}), "SAG_DATA": str(data or folder), "SAG_PORT": "0"}, cwd=Path(folder))
        chosen.plugins |= tables or {}
        for name, value in hub.items():
            setattr(chosen.hub, name, value)
        sock = listen(chosen.hub)
        chosen.hub.port = sock.getsockname()[1]
        app = App(chosen)
        app.extensions.providers |= {p.name: p for p in providers}
        app.extensions.tools |= {t.name: t for t in tools}
        app.extensions.kinds |= {k.name: k for k in kinds}
        ready = asyncio.Event()
        serving: asyncio.Task[None] | None = None
        try:
            await app.start()
            server = app.server(ready.set, signals=False)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            async with asyncio.timeout(10):
                await ready.wait()
            yield RunningHub(app)
            chosen.hub.drain_s = 0
            server.should_exit = True
            async with asyncio.timeout(20):
                await serving
        finally:
            if serving is not None:
                serving.cancel()
            await app.stop()
            sock.close()
