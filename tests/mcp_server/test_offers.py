"""Prompts and resources of connectors, and what hosts are told when offers change."""

from __future__ import annotations

import asyncio
from typing import Any

import mcp.types as t
import pytest
from mcp import MCPError

from sag.testing.hub import running_hub
from tests.mcp_server.conftest import Host, Shelf


async def test_prompts_are_offered_under_names_that_do_not_clash(era: str):
    async with running_hub() as hub, Host().connect(hub, era) as client:
        for name in ("left", "right"):
            hub.app.extensions.connectors.add("test", Shelf(name))
        await asyncio.sleep(0.05)
        prompts = {p.name: p for p in (await client.list_prompts(cache_mode="refresh")).prompts}
        assert prompts.keys() == {"left__brief", "only_left", "right__brief", "only_right"}
        assert prompts["left__brief"].title == "Brief"
        (argument,) = prompts["left__brief"].arguments or []
        assert (argument.name, argument.required) == ("topic", True)
        got = await client.get_prompt("right__brief", {"topic": "vans"})
        assert got.messages[0].content == t.TextContent(text="right: vans")
        assert isinstance(got.messages[1].content, t.ImageContent)
        for name, arguments, why in (
            ("brief", {}, "Unknown prompt: brief"),
            ("left__brief", {}, "Missing arguments: topic"),
            ("left__brief", {"topic": "nothing"}, "There is nothing to say."),
        ):
            with pytest.raises(MCPError, match=why):
                await client.get_prompt(name, arguments)
        values = await client.complete(t.PromptReference(name="right__brief"), {"name": "topic", "value": "v"})
        assert values.completion.values[:2] == ["right prompt brief topic v0", "right prompt brief topic v1"]
        assert (len(values.completion.values), values.completion.total, values.completion.has_more) == (100, 120, True)
        values = await client.complete(
            t.ResourceTemplateReference(uri="left://week/{week}"), {"name": "week", "value": "1"}
        )
        assert values.completion.values[0] == "left resource left://week/{week} week 10"


async def test_resources_are_read_where_they_are(era: str):
    async with running_hub() as hub, Host().connect(hub, era) as client:
        for name in ("left", "my_right"):
            hub.app.extensions.connectors.add("test", Shelf(name))
        await asyncio.sleep(0.05)
        resources = {r.uri: r for r in (await client.list_resources(cache_mode="refresh")).resources}
        assert resources.keys() == {"left+shelf://plan", "my.right+shelf://plan"}
        assert (resources["left+shelf://plan"].size, resources["left+shelf://plan"].mime_type) == (3, "text/markdown")
        templates = (await client.list_resource_templates(cache_mode="refresh")).resource_templates
        assert {r.uri_template for r in templates} == {"left://week/{week}", "my_right://week/{week}"}
        for uri, text, mime in (
            ("my.right+shelf://plan", "my_right has shelf://plan", "text/markdown"),
            ("left://week/12", "left has left://week/12", "text/plain"),
            ("shelf://hidden", "left has shelf://hidden", "text/plain"),  # in no list: each is asked
        ):
            read, image = (await client.read_resource(uri)).contents
            assert isinstance(read, t.TextResourceContents)
            assert (read.uri, read.text, read.mime_type) == (uri, text, mime)
            assert isinstance(image, t.BlobResourceContents)
        with pytest.raises(MCPError) as raised:
            await client.read_resource("shelf://gone")
        assert (raised.value.code, raised.value.data) == (t.INVALID_PARAMS, {"uri": "shelf://gone"})


@pytest.mark.filterwarnings("ignore:resources:mcp.MCPDeprecationWarning")  # sessions still have it
async def test_a_session_is_told_of_changes():
    host, shelf = Host(), Shelf("left")
    async with running_hub() as hub, host.connect(hub, "legacy") as client:
        hub.app.extensions.connectors.add("test", shelf)
        await client.subscribe_resource("shelf://plan")
        await client.subscribe_resource("shelf://other")
        await client.unsubscribe_resource("shelf://other")
        async with asyncio.timeout(5):
            while "ToolListChangedNotification" not in host.messages:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert "ResourceUpdatedNotification" in host.messages  # it has appeared
            host.messages.clear()
            shelf.sizes |= {"shelf://plan": 4, "shelf://other": 1}
            shelf.names.append("sort")
            shelf.change()
            while "ResourceUpdatedNotification" not in host.messages:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sorted(host.messages) == [
            "ResourceListChangedNotification",
            "ResourceUpdatedNotification",
            "ToolListChangedNotification",
        ]


async def test_a_stateless_host_is_told_of_what_it_listens_to():
    shelf, heard = Shelf("left"), list[Any]()
    async with running_hub() as hub, Host().connect(hub, "auto") as client:
        hub.app.extensions.connectors.add("test", shelf)
        await client.list_tools()
        await asyncio.sleep(0.1)
        async with client.listen(tools_list_changed=True, resource_subscriptions=["shelf://plan"]) as events:
            shelf.names.append("sort")
            shelf.sizes["shelf://plan"] = 5
            shelf.change()
            async with asyncio.timeout(5):
                async for event in events:
                    heard.append(event)
                    if len(heard) == 2:
                        break
    assert sorted(type(event).__name__ for event in heard) == ["ResourceUpdated", "ToolsListChanged"]


async def test_a_connector_that_raises_hides_nothing_of_the_others(era: str):
    class Broken(Shelf):
        def prompts(self) -> Any:
            raise RuntimeError("no")

    async with running_hub() as hub, Host().connect(hub, era) as client:
        for connector in (Broken("broken"), Shelf("left")):
            hub.app.extensions.connectors.add("test", connector)
        await asyncio.sleep(0.05)
        assert {p.name for p in (await client.list_prompts(cache_mode="refresh")).prompts} == {"brief", "only_left"}
