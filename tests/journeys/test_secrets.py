"""Keys of providers are shown nowhere: not in the log, an event, an error, an export, a config, a schema or a file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sag.client import Client
from sag.errors import Fault
from sag.testing.upstream import FakeUpstream, Raw, Say, Script, fail, say
from tests.harness import Hub

ENV_KEY, NAMED_KEY, FILE_KEY, WRONG_KEY = (f"sk-{name}-4f9a7c21d8" for name in ("env", "named", "file", "wrong"))
KEYS = (ENV_KEY, NAMED_KEY, FILE_KEY, WRONG_KEY)

CONFIG = """
[hub]
log = "debug"

[openai]
headers = { "X-Team" = "blue" }

[openai.providers.named]
flavor = "compatible"
base_url = "URL"
api_key = "${NAMED_KEY}"
model = "m"

[openai.providers.file]
flavor = "compatible"
base_url = "URL"
api_key = "${file:key.txt}"
model = "m"

[openai.providers.wrong]
flavor = "compatible"
base_url = "URL"
api_key = "WRONG"
model = "m"
"""


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as up:
        yield up


async def run(client: Client, model: str, text: str = "hello") -> Any:
    """The state of a conversation once its run has ended."""
    started = await client.call(
        "run.start", {"input": [{"kind": "text", "text": text}], "config": {"model": model, "retries": 0}}
    )
    topic = await client.subscribe(f"conv:{started['conv']}")
    closed = ("done", "failed")
    return started, await topic.until(lambda s: s["runs"].get(started["run"], {}).get("status") in closed)


async def test_keys_are_shown_nowhere(tmp_path: Path, upstream: FakeUpstream) -> None:
    leaks = [
        fail(401, f"Incorrect API key provided: {WRONG_KEY}. You can find your key …", code="invalid_api_key"),
        fail(
            400, f"header Authorization: Bearer {WRONG_KEY} is not what we expect", headers={"x-request-id": WRONG_KEY}
        ),
        Script([Say("so far"), Raw(f'data: {{"error":{{"message":"upstream said {WRONG_KEY}"}}}}\n\n'.encode())]),
        Script([Raw(f"{WRONG_KEY} is no event\n\n".encode())], finish="", done=False),
    ]
    hub = Hub(
        tmp_path / "data",
        CONFIG.replace("URL", upstream.url).replace("WRONG", WRONG_KEY),
        LLM_PROVIDER="openai",
        LLM_BASE_URL=upstream.url,
        LLM_MODEL="m",
        LLM_API_KEY=ENV_KEY,
        NAMED_KEY=NAMED_KEY,
    )
    (hub.home / "key.txt").write_text(f"{FILE_KEY}\n")
    shown: list[str] = []
    try:
        hub.start()
        async with Client(hub.url, client_id="test") as client:
            for model, key in (("openai/m", ENV_KEY), ("named/m", NAMED_KEY), ("file/m", FILE_KEY)):
                upstream.script(say("fine"))
                started, state = await run(client, model)
                assert state["runs"][started["run"]]["status"] == "done"
                assert upstream.chats[-1].headers["authorization"] == f"Bearer {key}", "the key does reach the vendor"
                shown.append(str(state))
            for leak in leaks:
                upstream.script(leak)
                started, state = await run(client, "wrong/m")
                assert state["runs"][started["run"]]["status"] == "failed"
                shown.append(str(state))
                for format in ("json", "md"):
                    shown.append(str(await client.call("run.export", {"run": started["run"], "format": format})))
            for method, params in (
                ("config.get", {"scope": f"run:{started['run']}"}),
                ("config.get", {"scope": f"conv:{started['conv']}"}),
                ("config.get", {"scope": "client:test"}),
                ("plugin.list", {}),
                ("model.list", {}),
                ("model.facets", {}),
                ("tool.list", {}),
                ("run.list", {}),
                ("usage.get", {"by": "model"}),
                ("model.check", {"model": "wrong/m"}),
                ("model.generation", {"id": WRONG_KEY[:6]}),
            ):
                try:
                    shown.append(str(await client.call(method, params)))
                except Fault as e:
                    shown.append(str(e.body()))
            for name in ("hub", "user:me", "client:test"):
                shown.append(str((await client.subscribe(name)).state))
        async with httpx.AsyncClient(base_url=hub.url) as http:
            for path in ("/health", "/schema/openapi.json", "/schema/jsonschema.json", "/schema/asyncapi.json"):
                shown.append((await http.get(path)).text)
    finally:
        hub.stop()
    for words in (["plugin", "list"], ["doctor"]):
        done = await asyncio.to_thread(  # the fake's loop is this one
            subprocess.run,
            [sys.executable, "-m", "sag.cli", *words, "--data", str(hub.data)],
            capture_output=True, text=True, cwd=hub.home, timeout=60,
            env={"PATH": "/usr/bin:/bin", "NAMED_KEY": NAMED_KEY, "LLM_API_KEY": ENV_KEY, "LLM_BASE_URL": upstream.url},
        )  # fmt: skip
        shown += [done.stdout, done.stderr]
    shown.append(hub.log())
    assert "run " in hub.log(), "the log has something to show"
    for key in KEYS:
        assert not [text[max(0, text.find(key) - 80) : text.find(key) + 80] for text in shown if key in text], key
        found = [f.name for f in hub.data.rglob("*") if f.is_file() and key.encode() in f.read_bytes()]
        assert not found, f"{key} lies in {found}"
    assert msgspec.json.encode(shown)
