"""A hub whose models are fakes that go wrong, for tests/faults/test_models*.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import FlavorName
from tests.harness import Client, View, check_state, until

Json = dict[str, Any]

FLAVORS: tuple[FlavorName, ...] = ("openai", "anthropic")
BRIEF: Json = {"first_token_s": 0.4, "gap_s": 0.4, "retries": 0}


def tables(flavor: str, urls: Mapping[str, str], members: Json) -> dict[str, Json]:
    """Tables of plugins.toml: providers of a flavor by name, each with the model `fake`."""
    kind: Json = {"flavor": "compatible"} if flavor == "openai" else {"api_key": "k"}
    return {
        flavor: {
            "providers": {n: {**kind, "base_url": url, "model": "fake", **members} for n, url in urls.items()},
        }
    }


def delta(flavor: str, text: bytes) -> bytes:
    """An event with more text; the text is a JSON string, as it stands."""
    if flavor == "openai":
        return b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % text
    inner = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}' % text
    return b"event: content_block_delta\ndata: %b\n\n" % inner


class Told:
    """A run as a client was told of it.

    Attributes:
        id, conv: Which.
        view: Its conversation's topic.
    """

    def __init__(self, answer: Json, view: View) -> None:
        self.id, self.conv, self.view = str(answer["run"]), str(answer["conv"]), view

    @property
    def object(self) -> Json:
        return self.view.run(self.id)

    @property
    def error(self) -> Json:
        return dict(self.object.get("error") or {})

    @property
    def kind(self) -> str:
        return str(self.error.get("kind", ""))

    @property
    def text(self) -> str:
        return self.view.text(self.id)

    @property
    def parts(self) -> list[Json]:
        messages = [m for m in self.view.has["messages"] if m.get("run") == self.id and m["role"] == "assistant"]
        return [part for message in messages for part in message["parts"]]

    @property
    def waits(self) -> list[Json]:
        """What it was told to wait for, each with `after_ms` and `why`."""
        patches = [d["patch"] for d in self.named("run") if d["run"] == self.id]
        return [patch for patch in patches if patch.get("status") == "waiting"]

    def named(self, name: str) -> list[Any]:
        return self.view.named(name)

    def has(self, status: str) -> bool:
        return bool(self.object.get("status") == status)

    async def ends(self, status: str | None = "done", timeout_s: float = 15.0) -> Told:
        """Wait until it has closed."""
        ends = ("done", "cancelled", "failed", "limit", "interrupted")
        await until(lambda: self.object.get("status") in ends, f"the end of {self.object}", timeout_s)
        assert status is None or self.object["status"] == status, self.object
        assert not {"after_ms", "why"} & self.object.keys() or self.object["status"] != "done", self.object
        return self


class Bench:
    """A hub and a client."""

    def __init__(self, hub: RunningHub, client: Client) -> None:
        self.hub, self.client = hub, client

    async def begin(self, model: str, text: str = "hi", conv: str | None = None, **config: Any) -> Told:
        """Start a run on a model."""
        full = model if "/" in model else f"{model}/fake"
        return Told(*await self.client.say(text, conv, config={"model": full, **config}))

    async def ask(self, model: str, text: str = "hi", status: str | None = None, **config: Any) -> Told:
        """Start a run and wait for its end."""
        return await (await self.begin(model, text, **config)).ends(status)

    async def all(self, ask: Callable[[str], Awaitable[Told]], names: Any) -> dict[str, Told]:
        """Do the same for several models at once."""
        names = list(names)
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))

    async def check(self, *told: Told) -> None:
        """The log, the state and what the client folded are the same, and hold nothing that is no Unicode."""
        for one in told:
            state = await check_state(self.hub.url, f"conv:{one.conv}", one.view)
            json.dumps(state, ensure_ascii=False).encode()

    def idle(self) -> None:
        """Nobody holds a place in a limiter, and none waits there."""
        for gate in self.hub.app.engine.gates._gates.values():
            assert (gate._out, len(gate._waiting), len(gate._returning)) == (0, 0, 0)


@contextlib.asynccontextmanager
async def bench(flavor: str, urls: Mapping[str, str], **given: Any) -> AsyncIterator[Bench]:
    """A hub with providers of a flavor, by name and base URL; `given` goes to `running_hub`."""
    members = given.pop("members", {})
    async with running_hub(tables=tables(flavor, urls, members), **given) as hub, Client(hub.url) as client:
        yield Bench(hub, client)


@contextlib.asynccontextmanager
async def listener(answer: Callable[..., Any] | None = None, **given: Any) -> AsyncIterator[tuple[int, list[float]]]:
    """A server that accepts, and by default says nothing; gives its port and the times of its connections."""
    times: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        try:
            if answer is not None:
                await answer(reader, writer)
            else:
                while await reader.read(65536):
                    pass
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", given.pop("port", 0), **given)
    async with server:
        yield server.sockets[0].getsockname()[1], times


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody trusts."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
