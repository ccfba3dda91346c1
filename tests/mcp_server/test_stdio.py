"""`sag mcp`: a host that starts a program has the hub on its standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.harness import Hub, until
from tests.mcp_server.conftest import Host, accept, text_of

Json = dict[str, Any]
WAIT_S = 15.0


def environment(hub: Hub, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SAG_")}
    return {**clean, "HOME": str(hub.home), "SAG_DATA": str(hub.data), **more}


@asynccontextmanager
async def connected(hub: Hub, host: Host, mode: str, **env: str) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "sag.cli", "mcp"], env=environment(hub, **env), cwd=hub.home
    )
    async with Client(
        parameters,
        mode=mode,
        elicitation_callback=host.elicit,
        message_handler=host.on_message,
        logging_callback=host.log,
    ) as client:
        yield client


class Program:
    """`sag mcp`, by hand."""

    def __init__(self, hub: Hub, *arguments: str, **env: str) -> None:
        self._start = [sys.executable, "-W", "error", "-m", "sag.cli", "mcp", *arguments]
        self._env, self._home = environment(hub, **env), hub.home

    async def __aenter__(self) -> Program:
        pipe = subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self._start, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self._home, env=self._env, limit=32 << 20
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    def write(self, *messages: Json | str) -> None:
        assert self.process.stdin is not None
        for message in messages:
            text = message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", **message})
            self.process.stdin.write(text.encode() + b"\n")

    async def read(self) -> Json:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            line = await self.process.stdout.readline()
        assert line, await self.process.stderr.read() if self.process.stderr else b""
        return dict(json.loads(line))

    async def end(self) -> tuple[int, str]:
        """Close its input; gives its exit status and what it complained of."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(WAIT_S):
            _, complaint = await self.process.communicate()
        return self.process.returncode or 0, complaint.decode()


def request(id: Any, method: str, **params: Any) -> Json:
    """A request of 2026-07-28."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        **params.pop("_meta", {}),
    }
    return {"id": id, "method": method, "params": {**params, "_meta": meta}}


async def test_a_host_has_the_hub_over_pipes(hub: Hub, era: str):
    host = Host(accept(choice="allow"), accept(day="Monday"))
    async with connected(hub, host, era) as client:
        assert {"chat", "calculate", "probe_danger"} <= {tool.name for tool in (await client.list_tools()).tools}
        assert text_of(await client.call_tool("calculate", {"expression": "6 * 7"})) == "6 * 7 = 42"
        result = await client.call_tool("probe_danger", {"id": "x"})
        assert not result.is_error
        assert hub.journal("tool danger") == ["tool danger x"]
        talk: Any = await client.call_tool("chat", {"message": "Hi ü €  ."}, progress_callback=host.on_progress)
        assert "Hi ü €  ." in talk.structured_content["text"]
        assert host.progress


async def test_a_cancel_gets_through(hub: Hub, era: str):
    async with connected(hub, Host(), era) as client:
        call = asyncio.create_task(client.call_tool("chat", {"message": "hang"}))
        async with hub.http() as http:
            runs: list[Json] = []

            async def look() -> list[Json]:
                runs[:] = (await http.get("/api/runs")).json()["runs"]
                return runs

            async with asyncio.timeout(WAIT_S):
                while not await look():
                    await asyncio.sleep(0.02)
                call.cancel()
                while (await look())[0]["status"] in ("running", "queued"):
                    await asyncio.sleep(0.02)
        assert runs[0]["status"] == "cancelled"


async def test_a_hub_that_is_started_again_is_found_again(make_hub: Callable[..., Hub], era: str):
    hub, host = make_hub(SAG_DRAIN_S="0"), Host()
    async with connected(hub, host, era) as client:
        await client.call_tool("calculate", {"expression": "1 + 1"})
        hub.terminate()
        await hub.ended()
        call = asyncio.create_task(client.call_tool("calculate", {"expression": "2 + 2"}))  # while it is away
        await asyncio.sleep(0.3)
        await hub.restart()
        assert text_of(await call) == "2 + 2 = 4"
        if era == "legacy":  # it may be another hub by now
            await until(lambda: "ToolListChangedNotification" in host.messages)


async def test_it_ends_with_its_input_and_answers_what_was_asked_before(hub: Hub):
    async with Program(hub) as program:
        program.write(request(1, "tools/list"))
        await program.read()
        began = time.monotonic()
        program.write(
            request("a", "tools/call", name="calculate", arguments={"expression": "3 + 4"}),
            request(2, "tools/call", name="countdown", arguments={"seconds": 30}),
        )
        program.process.stdin.close()  # type: ignore[union-attr]
        answer = await program.read()
        assert (answer["id"], answer["result"]["content"][0]["text"]) == ("a", "3 + 4 = 7")
        assert await program.end() == (0, "")
        assert time.monotonic() - began < 5


async def test_what_is_no_message_and_what_the_hub_refuses_is_answered(hub: Hub):
    async with Program(hub) as program:
        program.write("{", "[]", '{"jsonrpc":"2.0","id":{},"method":"ping"}', "")
        codes = [(await program.read())["error"]["code"] for _ in range(3)]
        assert codes == [-32700, -32600, -32600]
        program.write({"id": 1, "method": "tools/list"})  # without a session
        assert (await program.read())["error"]["code"] in (-32600, -32000)
        program.write(request(2, "no/such"))
        answer = await program.read()
        assert (answer["id"], answer["error"]["code"]) == (2, -32601)
        big = 2**60 + 1
        program.write(request(big, "tools/call", name="time_now", arguments={"zone": "Europe/Oslo"}))
        assert (await program.read())["id"] == big
        # a name that no header could hold
        program.write(request(3, "tools/call", name="größe ", arguments={}))
        assert (await program.read())["error"]["message"] == "Unknown tool: größe "


async def test_a_large_message_passes(hub: Hub):
    async with Program(hub) as program:
        text = "x" * (3 << 20)
        program.write(request(1, "tools/call", name="note_add", arguments={"text": text}))
        assert (await program.read())["id"] == 1


async def test_without_a_hub_it_says_so(tmp_path: Path, hub: Hub):
    for arguments, env, said in (
        ([], {"SAG_DATA": str(tmp_path / "none"), "SAG_URL": "http://127.0.0.1:9"}, "start one with `sag serve`"),
        (["--token", "wrong"], {}, "The credentials are wrong, expired or revoked."),
    ):
        async with Program(hub, *arguments, **env) as program:
            status, complaint = await program.end()
            assert status == 1
            assert complaint.startswith("sag: ")
            assert said in complaint
            assert complaint.count("\n") == 1


async def test_an_address_and_a_token_may_come_from_the_environment(make_hub: Callable[..., Hub], tmp_path: Path):
    hub = make_hub()
    token = await hub.token("ana")
    env = {"SAG_DATA": str(tmp_path / "elsewhere"), "SAG_URL": f"{hub.url}/", "SAG_TOKEN": token}
    async with Program(hub, **env) as program:
        program.write(request(1, "tools/call", name="chat", arguments={"message": "Hello"}))
        assert "conversation" in (await program.read())["result"]["structuredContent"]
        assert await program.end() == (0, "")
    async with hub.http(token) as http:
        assert len((await http.get("/api/conversations")).json()["conversations"]) == 1


async def test_it_starts_fast(hub: Hub):
    times = []
    for _ in range(3):
        began = time.monotonic()
        async with Program(hub) as program:
            program.write(request(1, "ping"))
            await program.read()
            times.append(time.monotonic() - began)
    assert min(times) < 1.0, times


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_a_host_that_stops_reading_ends_it(hub: Hub):
    async with Program(hub) as program:
        program.write(request(1, "tools/list"))
        await program.read()
        program.process.stdout._transport.close()  # type: ignore[union-attr]
        program.write(request(2, "tools/list"))
        async with asyncio.timeout(WAIT_S):
            assert await program.process.wait() == 0
