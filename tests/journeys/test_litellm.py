"""An independent translator in the middle: what comes through LiteLLM's proxy is what comes without it.

The proxy speaks OpenAI to the hub's `openai` provider and Anthropic to a fake of Anthropic's server, which the hub also
asks directly. Where the two roads differ, the tests say so: signatures of thoughts come in members of LiteLLM's own, so
that thoughts are not sent back; the proxy asks for no prompt caching; and what a model costs behind it is not known.

It runs in the environment of `scripts/peers`, or in that of the interpreter that SAG_PEERS_PYTHON names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.client import Client
from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import Calls, FakeUpstream, Say, Script, Think, ToolCall, Usage, Wait, say

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SAG_PEERS_PYTHON") or ROOT / ".venv/peers/bin/python")
PROXY = PYTHON.with_name("litellm")
START_S = 100.0  # 6 s, and 20 s where nothing is compiled yet
MODEL = "claude-sonnet-4-5"  # one that the proxy knows, or it takes it for one that cannot think
KEY = "sk-ant-" + "k" * 12
PROXY_KEY = "sk-" + "0123456789abcdef" * 2
ROADS = {"anthropic": f"anthropic/{MODEL}", "litellm": f"litellm/{MODEL}"}

pytestmark = [
    pytest.mark.skipif(not PROXY.exists(), reason="no LiteLLM: run scripts/peers"),
    pytest.mark.timeout(180),
]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The proxy: its base URL, and the port at which it expects Anthropic's server."""
    home = tmp_path_factory.mktemp("litellm")
    port, upstream = _free_port(), _free_port()
    params = {"model": f"anthropic/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}", "api_key": KEY}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        # Clients of OpenAI's API have no way to give thoughts back; the proxy then goes on without thinking.
        "litellm_settings": {"telemetry": False, "modify_params": True},
    }
    (home / "config.yaml").write_text(json.dumps(settings))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LITELLM_MASTER_KEY": PROXY_KEY,
        "LITELLM_MODE": "PRODUCTION",  # reads no .env
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # Whatever else wants to leave the machine finds a door that is shut.
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [str(PROXY), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--telemetry", "False"], cwd=home, env=env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while not _is_up(port):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail("LiteLLM did not start: " + (home / "log").read_text()[-3000:])
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", upstream
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


class Roads:
    """A hub that asks the same server on both roads."""

    def __init__(self, up: FakeUpstream, hub: RunningHub, client: Client) -> None:
        self.up, self.hub, self.client = up, hub, client

    async def start(self, road: str, *scripts: Script, **config: Any) -> tuple[Any, Any]:
        """Begin a run; gives what was answered and the conversation's topic."""
        self.up.script(*scripts)
        params = {"input": [{"kind": "text", "text": "go"}], "config": {"model": ROADS[road], **config}}
        started = await self.client.call("run.start", params)
        return started, await self.client.subscribe(f"conv:{started['conv']}")

    async def run(self, road: str, *scripts: Script, **config: Any) -> dict[str, Any]:
        """A whole run, and what is told of it on both roads alike."""
        started, topic = await self.start(road, *scripts, **config)
        state = await topic.until(lambda s: s["runs"].get(started["run"], {}).get("status") in ("done", "failed"))
        run = state["runs"][started["run"]]
        assert run["status"] == "done", run.get("error")
        kept = await self.hub.app.topics.find("local", topic.name)
        assert kept is not None
        entries = await self.hub.app.journal.read(kept.tid, 0, kept.head, 1 << 20)
        answers = [message for message in state["messages"] if message["role"] == "assistant"]
        assert [message["model"] for message in answers] == [ROADS[road]] * len(answers)
        usage = [dict(message["usage"]) for message in answers]
        assert all(("cost_usd" in one) == (road == "anthropic") for one in usage), (road, usage)
        return {
            "events": [entry.name for entry in entries if entry.name != "delta"],
            "text": [[(p["kind"], p.get("name"), p["text"]) for p in m["parts"]] for m in answers],
            "finish": [message["finish"] for message in answers],
            "calls": [
                (t["name"], t["args"], t["status"], t.get("result"), t.get("error")) for t in state["tools"].values()
            ],
            "usage": [{k: v for k, v in one.items() if k != "cost_usd"} for one in usage],
        }

    async def compare(self, *scripts: Script, **config: Any) -> dict[str, Any]:
        """What came on both roads, if it is the same."""
        direct = await self.run("anthropic", *scripts, **config)
        assert await self.run("litellm", *scripts, **config) == direct
        return direct


@pytest.fixture
async def roads(proxy: tuple[str, int]) -> AsyncIterator[Roads]:
    url, port = proxy
    compatible = {"flavor": "compatible", "base_url": url, "api_key": PROXY_KEY}
    async with contextlib.AsyncExitStack() as stack:
        up = await stack.enter_async_context(FakeUpstream("anthropic", port=port, models=[MODEL], api_key=KEY))
        tables: dict[str, dict[str, Any]] = {
            "anthropic": {"base_url": up.url, "api_key": KEY},
            "openai": {"providers": {"litellm": compatible}},
        }
        hub = await stack.enter_async_context(running_hub(tables=tables, env={}))
        async with asyncio.timeout(10):
            while any(hub.app.models.info(name) is None for name in ROADS.values()):
                await asyncio.sleep(0.01)  # both lists of models are asked for
        yield Roads(up, hub, await stack.enter_async_context(hub.client()))


async def test_text_and_usage_come_through(roads: Roads) -> None:
    usage = Usage(input=40, output=7, cached=30, cache_write=20)
    came = await roads.compare(Script([Say('Grüße 🙂, "quoted"\nand\\or more.')], usage=usage))
    assert came["text"] == [[("text", None, 'Grüße 🙂, "quoted"\nand\\or more.')]]
    assert came["usage"] == [{"input": 90, "output": 7, "cached": 30, "cache_write": 20}]
    first, second = (request.body.decode() for request in roads.up.chats)
    assert "cache_control" in first
    assert "cache_control" not in second


@pytest.mark.parametrize("road", ROADS)
async def test_text_comes_while_the_model_writes(roads: Roads, road: str) -> None:
    started, topic = await roads.start(road, Script([Say("First "), Wait(1.0), Say("last")]))

    def is_half(state: dict[str, Any]) -> bool:
        run = state["runs"].get(started["run"], {})
        text = "".join(part["text"] for part in state["messages"][-1]["parts"]) if state["messages"] else ""
        return run.get("status") == "running" and text == "First "

    await topic.until(is_half)
    state = await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done")
    assert "".join(part["text"] for part in state["messages"][-1]["parts"]) == "First last"


async def test_parallel_tool_calls_come_through_and_their_answers_go_back(roads: Roads) -> None:
    calls = Calls([ToolCall("calculate", {"expression": "6*7"}), ToolCall("calculate", {"expression": '2 + "é"'})])
    came = await roads.compare(
        Script([Say("Let me see."), calls], usage=Usage(input=300, output=40)),
        say("It is 42.", usage=Usage(input=360, output=5)),
    )
    assert [[kind for kind, *_ in parts] for parts in came["text"]] == [["text", "tool_args", "tool_args"], ["text"]]
    assert [(name, args) for name, args, *_ in came["calls"]] == [
        ("calculate", {"expression": "6*7"}),
        ("calculate", {"expression": '2 + "é"'}),
    ]
    assert came["finish"] == ["tools", "stop"]
    assert came["usage"] == [{"input": 300, "output": 40}, {"input": 360, "output": 5}]
    answers = [_results(request.json) for request in roads.up.chats[1::2]]
    assert len(answers[0]) == 2
    assert answers[0] == answers[1]


async def test_thoughts_come_through_and_are_not_sent_back(roads: Roads) -> None:
    scripts = (
        Script([Think("a sum, so"), Calls([ToolCall("calculate", {"expression": "1+1"})])], usage=THOUGHT),
        say("2", usage=Usage(input=360, output=5)),
    )
    came = await roads.compare(*scripts, reasoning="low")
    assert came["text"][0][0] == ("reasoning", None, "a sum, so")
    assert came["usage"][0] == {"input": 300, "output": 40, "reasoning": 12}
    _, direct, _, through = (request.json for request in roads.up.chats)
    assert [block["type"] for block in direct["messages"][1]["content"]] == ["thinking", "tool_use"]
    assert [block["type"] for block in through["messages"][1]["content"]] == ["tool_use"]
    assert "thinking" in direct
    assert "thinking" not in through


THOUGHT = Usage(input=300, output=40, reasoning=12)


def _results(body: Any) -> list[str]:
    """The texts of the tools' answers in a request."""
    blocks = [block for block in body["messages"][-1]["content"] if block["type"] == "tool_result"]
    return ["".join(_text(part) for part in _list(block["content"])) for block in blocks]


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [content]


def _text(part: Any) -> str:
    return part if isinstance(part, str) else str(part["text"])
