"""A run goes on with another vendor's model in its middle, and takes everything along: calls, thoughts, images."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sag.client import Client
from sag.settings import ModelOverride
from sag.testing.contract import PNG
from sag.testing.hub import RunningHub, running_hub
from sag.testing.upstream import Calls, FakeUpstream, Say, Script, Think, ToolCall, Wait, say

_SEES = ModelOverride(abilities=["tools", "images", "files", "reasoning"])
VENDORS = ("chat", "responses", "anthropic")
PAIRS = [(a, b) for a in VENDORS for b in VENDORS if a != b]


@contextlib.asynccontextmanager
async def hub_of(first: str, second: str) -> AsyncIterator[tuple[RunningHub, dict[str, FakeUpstream]]]:
    """A hub with two vendors, each of which refuses what the real one refuses."""
    async with contextlib.AsyncExitStack() as stack:
        ups: dict[str, FakeUpstream] = {}
        openai: dict[str, Any] = {}
        tables: dict[str, dict[str, Any]] = {"openai": {"providers": openai}}
        for vendor in (first, second):
            up = FakeUpstream("anthropic" if vendor == "anthropic" else "openai", api_key="k" * 12, strict=True)
            ups[vendor] = await stack.enter_async_context(up)
            if vendor == "anthropic":
                tables["anthropic"] = {"base_url": up.url, "api_key": "k" * 12}
            else:
                openai[vendor] = {"flavor": "openai", "base_url": up.url, "api_key": "k" * 12, "api": vendor}
        hub = await stack.enter_async_context(running_hub(tables=tables, env={}))
        for vendor in (first, second):
            hub.app.models._exact[f"{vendor}/fake"] = _SEES
        hub.app.extensions.version += 1
        yield hub, ups


async def ended(client: Client, run: Any) -> dict[str, Any]:
    topic = await client.subscribe(f"conv:{run['conv']}")
    closed = ("done", "failed", "limit", "cancelled")
    state: dict[str, Any] = await topic.until(lambda s: s["runs"].get(run["run"], {}).get("status") in closed)
    assert state["runs"][run["run"]]["status"] == "done", state["runs"][run["run"]].get("error")
    return state


@pytest.mark.parametrize(("first", "second"), PAIRS)
async def test_the_next_step_runs_on_the_other_vendor_with_all_that_was(first: str, second: str) -> None:
    async with hub_of(first, second) as (hub, ups), hub.client() as client:
        blob = await hub.app.blobs.put("local", PNG, "image/png", "dot.png")
        call = Calls([ToolCall("calculate", {"expression": "6*7"}), ToolCall("time_now", {"zone": "UTC"})])
        thinks = [] if first == "chat" else [Think("first a sum")]
        ups[first].script(Script([*thinks, Say("Let me "), Wait(0.5), Say("see."), call]))
        ups[second].script(Script([Say("It is 42.")]))
        parts = [
            {"kind": "image", "ref": blob.ref, "mime": "image/png", "name": "dot.png"},
            {"kind": "text", "text": "what is this, and 6*7?"},
        ]
        config = {"model": f"{first}/fake", "system": "Be brief.", "reasoning": "low"}
        run = await client.call("run.start", {"input": parts, "config": config})
        topic = await client.subscribe(f"conv:{run['conv']}")
        await topic.until(lambda s: any(p["kind"] == "text" for m in s["messages"][1:] for p in m["parts"]))
        patch = {"model": f"{second}/fake"}
        patched = await client.call("config.patch", {"scope": f"run:{run['run']}", "patch": patch})
        assert patched["applies"] == "next_step"
        state = await ended(client, run)
        answers = [m for m in state["messages"] if m["role"] == "assistant"]
        assert [m["model"] for m in answers] == [f"{first}/fake", f"{second}/fake"]
        assert [t["status"] for t in state["tools"].values()] == ["ok", "ok"]
        assert "".join(p["text"] for p in answers[1]["parts"]) == "It is 42."

        (sent,) = ups[second].chats
        body = sent.body.decode()
        assert "iVBORw0KGgo" in body
        assert "Let me see." in body
        assert "Be brief." in body
        assert body.count("calculate") >= 2, "the tool's definition and its call"
        assert "6*7" in body
        assert "42" in body
        assert "first a sum" not in body, "thoughts are not another vendor's business"

        # and back: what the first vendor thought comes back to it, as it demands
        ups[first].script(say("As I thought."))
        again = await client.call(
            "run.start",
            {"conv": run["conv"], "input": [{"kind": "text", "text": "sure?"}], "config": config},
        )
        state = await ended(client, again)
        assert state["messages"][-1]["model"] == f"{first}/fake"
        body = ups[first].chats[-1].body.decode()
        assert "It is 42." in body
        if thinks:
            assert any(mark in body for mark in ("encrypted_content", "signature"))


async def test_another_vendor_takes_over_when_one_fails() -> None:
    async with hub_of("anthropic", "chat") as (hub, ups), hub.client() as client:
        ups["anthropic"].script(*(Script(head="rst") for _ in range(3)))
        ups["chat"].script(say("Here I am."))
        config = {"model": "anthropic/fake", "fallbacks": ["chat/fake"], "retries": 1}
        run = await client.call("run.start", {"input": [{"kind": "text", "text": "hello?"}], "config": config})
        state = await ended(client, run)
        answers = [m for m in state["messages"] if m["role"] == "assistant"]
        assert [m["finish"] for m in answers] == ["fallback", "stop"]
        assert answers[1]["model"] == "chat/fake"
