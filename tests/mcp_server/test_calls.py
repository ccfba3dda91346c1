"""Tools of the hub, called by hosts of both eras."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import mcp.types as t
import pytest
from mcp import MCPDeprecationWarning, MCPError

from sag.plugin import Tool
from sag.testing.hub import running_hub
from tests.mcp_server.conftest import Host, Shelf, accept, make_tools, text_of


async def test_tools_are_listed_with_what_hosts_want_to_know(era: str):
    async with running_hub(tools=make_tools()) as hub, Host().connect(hub, era) as host:
        hub.app.extensions.connectors.add("test", Shelf("left"))
        hub.app.extensions.connectors.add("test", Shelf("right"))
        await asyncio.sleep(0.05)
        told = {tool.name: tool for tool in (await host.list_tools(cache_mode="refresh")).tools}
        assert {"greet", "left__find", "right__find", "calculate"} <= told.keys()
        (other,) = (name for name in told if name.startswith("chat_"))
        assert told[other].description == "A tool that is called as the server's own."
        assert (told["chat"].title, told["show_all"].title) == ("Ask the assistant", "All there is")
        assert told["show_all"].output_schema == {
            "type": "object",
            "properties": {"free": {"type": "integer"}},
            "required": ["free"],
        }
        hints: Any = {name: told[name].annotations for name in ("greet", "fail", "open_gate")}
        assert [h.read_only_hint for h in hints.values()] == [True, False, False]
        assert [h.destructive_hint for h in hints.values()] == [None, False, True]
        property_alone = {"x-mcp-header": {"type": "string"}}
        assert told["left__find"].input_schema == {"type": "object", "properties": property_alone}
        assert text_of(await host.call_tool("right__find", {"x-mcp-header": "Ana"})) == "found by right"


async def test_results_of_all_sorts_arrive(era: str):
    async with running_hub(tools=make_tools()) as hub, Host().connect(hub, era) as host:
        await host.list_tools()
        result = await host.call_tool("show_all", {})
        text, image, sound, notes, plan, link, table = result.content
        assert result.structured_content == {"free": 3}
        assert isinstance(text, t.TextContent)
        assert text.text == "text"
        assert isinstance(image, t.ImageContent)
        assert (image.mime_type, image.data) == ("image/png", base64.b64encode(b"png").decode())
        assert isinstance(sound, t.AudioContent)
        assert isinstance(notes, t.EmbeddedResource)
        assert isinstance(notes.resource, t.TextResourceContents)
        assert (notes.resource.uri, notes.resource.text) == ("sag:/notes/a%20b.txt", "häh")
        assert isinstance(plan, t.EmbeddedResource)
        assert isinstance(plan.resource, t.BlobResourceContents)
        assert plan.resource.uri == "file:///plan.pdf"
        assert isinstance(link, t.ResourceLink)
        assert (link.name, link.mime_type) == ("plan", "text/html")
        assert isinstance(table, t.TextContent)
        assert table.text == "Week 12\n\n| who | free |\n| --- | --- |\n| Ana Berg | 3 |\n| a\\|b |  |"
        told = await host.call_tool("echo_json", {"value": {"a": [1, 2.5, None]}})
        assert (text_of(told), told.structured_content) == ('{"a":[1,2.5,null]}', {"a": [1, 2.5, None]})
        told = await host.call_tool("echo_json", {"value": [1, 2]})
        assert (text_of(told), told.structured_content) == ("[1,2]", None)


async def test_what_goes_wrong_is_told_to_the_model_and_no_secret(era: str):
    async with running_hub(tools=make_tools()) as hub, Host().connect(hub, era) as host:
        for args, said in (
            ({"how": "told"}, "The gate is stuck."),
            ({"how": "crash"}, "The tool failed (RuntimeError)."),
            ({"how": "slow"}, "No answer within 0.3 s."),
            ({"how": "oddly"}, "The arguments do not fit: Invalid enum value 'oddly'"),
            ({}, "The arguments do not fit: Object missing required field `how`"),
        ):
            result = await host.call_tool("fail", args)
            assert result.is_error
            assert text_of(result).startswith(said)
        with pytest.raises(MCPError) as raised:
            await host.call_tool("nothing", {})
        assert raised.value.code == t.INVALID_PARAMS


async def test_progress_and_log_go_to_who_called(era: str):
    host = Host()
    async with running_hub(tools=make_tools()) as hub, host.connect(hub, era) as client:
        if era == "legacy":
            with pytest.warns(MCPDeprecationWarning):
                await client.set_logging_level("error")
            meta: Any = None
        else:
            meta = {t.LOG_LEVEL_META_KEY: "error"}
        # 4 steps of 0.1 s, though 0.25 s are what it has: progress gives it its time again
        result = await client.call_tool("work", {"steps": 4}, progress_callback=host.on_progress, meta=meta)
        assert text_of(result) == "done"
        assert [p[1:] for p in host.progress] == [*((4.0, f"step {i}") for i in range(4)), (None, "nearly")]
        done = [p[0] for p in host.progress]
        assert done == sorted(set(done))
        assert host.logged == [("error", "from a thread")]
        host.logged.clear()
        wanted: Any = {t.LOG_LEVEL_META_KEY: "debug"} if meta else None
        await client.call_tool("work", {"steps": 0}, meta=wanted)
        if meta:
            assert [level for level, _ in host.logged] == ["debug", "warning", "error", "info"]
            host.logged.clear()
            await client.call_tool("work", {"steps": 0})
            assert host.logged == []


async def test_a_flood_of_progress_and_output_is_bounded(era: str):
    host, counts = Host(), list[int]()

    async def flood(args: Any, ctx: Any) -> str:
        for i in range(20_000):
            await ctx.progress(i, 20_000)
            await ctx.output("x" * 1000)
            if i % 200 == 0:
                await asyncio.sleep(0)
        return "done"

    tools = [Tool("flood", "Tell a lot.", {"type": "object"}, flood)]
    async with running_hub(tools=tools) as hub, host.connect(hub, era) as client:
        async with asyncio.timeout(20):
            wanted: Any = {t.LOG_LEVEL_META_KEY: "info"}
            assert text_of(await client.call_tool("flood", {}, progress_callback=host.on_progress, meta=wanted))
        await asyncio.sleep(0.1)
        counts += [len(host.progress), sum(len(data) for _, data in host.logged)]
    assert 1 < counts[0] < 500
    assert host.progress[-1][0] == 19_999
    assert 0 < counts[1] <= 1 << 20


async def test_a_tool_asks_the_hosts_user(era: str):
    host = Host(accept(day="Monday"), accept(choice="no"))
    async with running_hub(tools=make_tools()) as hub, host.connect(hub, era) as client:
        assert text_of(await client.call_tool("ask_day", {})) == "accept {'day': 'Monday'} ('no', None)"
        first, second = host.asked
        assert (first.message, first.requested_schema["properties"]) == ("Which day?", {"day": {"type": "string"}})
        assert second.requested_schema["properties"]["choice"]["enum"] == ["yes", "no"]
        host.answers = [t.ElicitResult(action="decline"), t.ElicitResult(action="cancel")]
        assert text_of(await client.call_tool("ask_day", {})) == "decline None (None, None)"
        host.answers = [accept(day=3)]
        result = await client.call_tool("ask_day", {})
        assert text_of(result).startswith("What the host answered does not fit: 3 is not of type 'string'")
        host.answers = [accept()]
        assert text_of(await client.call_tool("ask_url", {})) == "('accept', None)"
        assert host.asked[-1].url == "https://example.org/in"
        result = await client.call_tool("ask_nested", {})
        assert text_of(result) == "The host cannot ask for 'who': a form there has plain values alone."


async def test_a_tool_asks_the_hosts_model_and_folders(era: str):
    host = Host()
    async with running_hub(tools=make_tools()) as hub, host.connect(hub, era) as client:
        said = text_of(await client.call_tool("ask_model", {}))
        assert said == "SAY THIS IMAGE [HTTPS://EXAMPLE.ORG] their/model length"
        assert (host.asked[0].system_prompt, host.asked[0].max_tokens) == ("Be brief.", 7)
        assert text_of(await client.call_tool("ask_folders", {})) == "file:///home/ana"


async def test_a_host_that_cannot_be_asked_is_told_so(era: str):
    asking = ("ask_day", "elicitation"), ("ask_url", "elicitation"), ("ask_model", "sampling"), ("ask_folders", "roots")
    async with running_hub(tools=make_tools()) as hub, Host().connect(hub, era, asks=False) as client:
        for name, needed in asking:
            if era == "legacy":
                result = await client.call_tool(name, {})
                assert result.is_error
                assert "The host" in text_of(result)
            else:
                with pytest.raises(MCPError) as raised:
                    await client.call_tool(name, {})
                assert raised.value.code == t.MISSING_REQUIRED_CLIENT_CAPABILITY
                assert raised.value.data["requiredCapabilities"].keys() == {needed}


async def test_policies_hold(era: str):
    host = Host(accept(choice="allow"), accept(choice="deny"))
    async with running_hub(tools=make_tools()) as hub, hub.client() as device, host.connect(hub, era) as client:
        assert text_of(await client.call_tool("open_gate", {})) == "It is open."
        assert host.asked[0].message == "Allow open_gate?\n{}"
        for _ in range(2):  # denied, then not answered
            result = await client.call_tool("open_gate", {})
            assert (result.is_error, text_of(result)) == (True, "The user denied this call.")
        await device.call("tool.policy.set", {"tool": "greet", "policy": "deny"})
        result = await client.call_tool("greet", {"name": "Ana"})
        assert (result.is_error, text_of(result)) == (True, "A policy forbids this tool.")
        await device.call("config.patch", {"scope": "client:mcp", "patch": {"tools": {"greet": {"enabled": False}}}})
        assert "greet" not in {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}
        with pytest.raises(MCPError, match="Unknown tool: greet"):
            await client.call_tool("greet", {"name": "Ana"})
        async with Host().connect(hub, era, asks=False) as mute:
            result = await mute.call_tool("open_gate", {})
            assert result.is_error
            assert text_of(result).startswith("This tool needs a person's leave.")


async def test_a_call_that_its_host_gives_up_is_cancelled(era: str):
    began, ended = asyncio.Event(), asyncio.Event()
    contexts: list[Any] = []

    async def wait(args: Any, ctx: Any) -> None:
        contexts.append(ctx)
        began.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    slow = Tool("slow", "Wait.", {"type": "object"}, wait, risk="read")
    async with running_hub(tools=[slow]) as hub, Host().connect(hub, era) as client:
        call = asyncio.create_task(client.call_tool("slow", {}))
        async with asyncio.timeout(5):
            await began.wait()
            call.cancel()
            await ended.wait()
        assert contexts[0].cancelled
        assert (await client.list_tools()).tools
