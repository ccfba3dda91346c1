"""Tools of MCP servers that others wrote, through the chat page in a real browser; asserted by static/chat/e2e."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sag.testing.upstream import FakeUpstream
from tests.harness import Hub
from tests.journeys.test_browser import CHROMIUM, NODE, ROOT, skip_without_browser

SERVERS = ROOT / "tests" / "mcp" / "node_modules" / "@modelcontextprotocol"
PEERS = Path(os.environ.get("SAG_PEERS_PYTHON") or ROOT / ".venv" / "peers" / "bin" / "python").parent
LOOPBACK = ROOT / "tests" / "mcp" / "loopback.cjs"


def skip_without_servers() -> None:
    skip_without_browser()
    there = (SERVERS / "server-everything").is_dir() and (PEERS / "mcp-server-time").exists()
    if not there and os.environ.get("CI"):
        pytest.fail("scripts/peers has not installed the MCP servers")
    if not there:
        pytest.skip("scripts/peers installs the MCP servers of others")


def everything(*args: str) -> list[str]:
    return [NODE, "-r", str(LOOPBACK), str(SERVERS / "server-everything" / "dist" / "index.js"), *args]


@asynccontextmanager
async def everything_over_http() -> AsyncIterator[str]:
    """Server-everything on loopback, by its address."""
    from benchmarks.process import free_port

    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *everything("streamableHttp"), env=os.environ | {"PORT": str(port)}, stdout=PIPE, stderr=STDOUT
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"listening" not in (line := await process.stdout.readline()):
                assert line, "it ended"
        drain = asyncio.create_task(process.stdout.read())
        yield f"http://127.0.0.1:{port}/mcp"
        drain.cancel()
    finally:
        process.kill()
        await process.wait()


async def walk(script: str, *args: str) -> Process:
    """Start a walk through the page."""
    return await asyncio.create_subprocess_exec(
        NODE, f"e2e/{script}.mjs", *args, cwd=ROOT / "static" / "chat", stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )  # fmt: skip


def toml(command: list[str], **more: Any) -> str:
    return "\n".join([f"command = {json.dumps(command)}", *(f"{k} = {json.dumps(v)}" for k, v in more.items())])


@pytest.mark.browser
@pytest.mark.timeout(240)
async def test_each_server_is_used_through_the_page(tmp_path: Path, make_hub: Callable[..., Hub]) -> None:
    skip_without_servers()
    folder = tmp_path / "folder"
    folder.mkdir()
    shots = Path(os.environ.get("SAG_SHOTS", tmp_path / "shots"))
    shots.mkdir(exist_ok=True)
    git = ["git", "-C", str(folder), "-c", "user.name=sag", "-c", "user.email=sag@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first of all"], check=True)
    files = [NODE, str(SERVERS / "server-filesystem" / "dist" / "index.js"), str(folder)]
    config = "\n".join(
        [
            '[probe]\nenabled = false\n[models."openai/fake"]\ncontext = 200000',  # five servers' tools are long
            f"[mcp.servers.everything]\n{toml(everything('stdio'), roots=[str(folder)])}",
            f"[mcp.servers.files]\n{toml(files)}",
            f"[mcp.servers.clock]\n{toml([str(PEERS / 'mcp-server-time')])}",
            f"[mcp.servers.git]\n{toml([str(PEERS / 'mcp-server-git')])}",
        ]
    )
    async with FakeUpstream() as upstream, everything_over_http() as address:
        hub = make_hub(config, LLM_PROVIDER="openai", LLM_BASE_URL=upstream.url, LLM_MODEL="fake")
        process = await walk("tools", hub.url, str(shots), CHROMIUM, str(folder), address)
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 200)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "done", output.decode()


@pytest.mark.browser
@pytest.mark.timeout(180)
async def test_a_question_is_asked_on_two_devices_and_outlives_a_restart(
    tmp_path: Path, make_hub: Callable[..., Hub]
) -> None:
    skip_without_servers()
    shots = Path(os.environ.get("SAG_SHOTS", tmp_path / "shots"))
    shots.mkdir(exist_ok=True)
    config = f"[probe]\nenabled = false\n[mcp.servers.everything]\n{toml(everything('stdio'))}\n"
    async with FakeUpstream() as upstream:
        hub = make_hub(config, LLM_PROVIDER="openai", LLM_BASE_URL=upstream.url, LLM_MODEL="fake", SAG_DRAIN_S="1")
        process = await walk("devices", hub.url, str(shots), CHROMIUM)
        assert process.stdout is not None
        assert process.stdin is not None
        said: list[str] = []
        try:
            async with asyncio.timeout(150):
                while line := (await process.stdout.readline()).decode().strip():
                    said.append(line)
                    if line == "restart":
                        hub.stop()
                        hub.start()
                        process.stdin.write(b"restarted\n")
                        await process.stdin.drain()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, "\n".join(said)
    assert said[-1] == "done", "\n".join(said)
