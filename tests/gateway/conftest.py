"""A hub whose models are fakes of OpenAI's and Anthropic's, and the clients of others that speak to its doors."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.plugin import tool
from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import FakeUpstream

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("SAG_PEERS_PYTHON") or ROOT / ".venv/peers/bin/python")
NODE = next((str(p) for p in (ROOT / ".venv/peers/bin/node",) if p.exists()), shutil.which("node"))
MODEL = "lab/fake"
CALLED: list[str] = []


@tool(risk="read")
async def double(number: int) -> str:
    """Twice a number."""
    CALLED.append(f"double {number}")
    return str(2 * number)


@tool(risk="danger")
async def erase(name: str) -> str:
    """Erase something."""
    CALLED.append(f"erase {name}")
    return f"erased {name}"


class Gateway:
    """The hub, its model, and a client of plain HTTP."""

    def __init__(self, hub: RunningHub, up: FakeUpstream, http: httpx.AsyncClient) -> None:
        self.hub, self.up, self.http = hub, up, http
        self.url = f"{hub.url}/openai/v1"

    async def ask(self, text: str = "hi", **request: Any) -> httpx.Response:
        """A completion."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **request}
        return await self.http.post("/openai/v1/chat/completions", json=body)

    async def agui(self, path: str = "/agui", **given: Any) -> list[Json]:
        """The events of an AG-UI run."""
        body = {"threadId": "t1", "runId": "x1", "messages": [], "protocolVersion": "1.0", **given}
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return events_of(answer)

    async def rpc(self, method: str, **params: Any) -> Any:
        """An operation of the hub's."""
        answer = await self.http.post(f"/rpc/{method}", json=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def convs(self) -> list[str]:
        """The ids of the user's conversations, the newest first."""
        return [one["conv"] for one in (await self.rpc("conversation.list"))["conversations"]]

    async def state(self, conv: str) -> Json:
        """A conversation's state."""
        return dict((await self.rpc("conversation.get", conv=conv))["snap"])

    def files(self, at: int = -1) -> list[tuple[str, bytes]]:
        """The files of a request that the model got."""
        asked = self.up.chats[at].asked
        assert asked is not None
        return [(file.mime, file.data) for file in asked.files]

    def sent(self, at: int = -1) -> list[tuple[str, Any]]:
        """The messages of a request that the model got, as role and content."""
        return [(m["role"], m.get("content")) for m in self.up.chats[at].json["messages"]]


def events_of(answer: httpx.Response) -> list[Json]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def types(events: list[Json]) -> list[str]:
    return [event["type"] for event in events]


@pytest.fixture
def tables() -> Json:
    return {}


@pytest.fixture
async def gateway(tables: Json) -> AsyncIterator[Gateway]:
    CALLED.clear()
    async with FakeUpstream("vllm", models=["fake"]) as up:
        provider = {"flavor": "vllm", "base_url": up.url}
        given = {"openai": {"providers": {"lab": provider}}, "demo": {"enabled": False}, **tables}
        async with running_hub(tables=given, env={}, tools=[double, erase]) as hub:
            async with asyncio.timeout(10):
                while hub.app.engine.models.info(MODEL) is None:
                    await asyncio.sleep(0.01)
            async with httpx.AsyncClient(base_url=hub.url, timeout=30) as http:
                yield Gateway(hub, up, http)


class Sdk:
    """The process with the official SDK of OpenAI."""

    def __init__(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith("OPENAI")}
        self._process = subprocess.Popen(
            [str(PYTHON), str(HERE / "sdk.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process with the SDK has ended; its error is above"
        return json.loads(line)

    def _do(self, job: Json) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    async def do(self, gateway: Gateway, do: str, *, key: str = "sk-of-nobody", **given: Any) -> Any:
        """The answer to a job."""
        client = {"base_url": gateway.url, "api_key": key, "max_retries": 0}
        try:
            async with asyncio.timeout(30):
                return await asyncio.to_thread(self._do, {"client": client, "do": do, **given})
        except TimeoutError:
            self._process.kill()
            raise

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(scope="session")
def sdk() -> Iterator[Sdk]:
    if not PYTHON.exists():
        pytest.skip("no peers: run scripts/peers")
    made = Sdk()
    yield made
    made.close()


async def run_agent(gateway: Gateway, *turns: Json, path: str = "/agui", **job: Any) -> Json:
    """What AG-UI's own client makes of some turns on one thread."""
    if NODE is None or not (HERE / "node_modules/.installed").exists():
        pytest.skip("no peers: run scripts/peers")
    given = {"url": gateway.hub.url + path, "thread": "thread-1", "turns": turns, **job}
    env = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
    process = await asyncio.create_subprocess_exec(
        NODE, str(HERE / "agent.mjs"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    try:
        async with asyncio.timeout(40):
            out, _ = await process.communicate(json.dumps(given).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return dict(json.loads(out))
