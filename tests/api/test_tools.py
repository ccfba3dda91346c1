"""Operations on tools, over the socket and REST: lists, policies, presets, and what connectors offer to people."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest

from sag.api import tools as module
from sag.client import Client, ClientTool
from sag.errors import Fault
from sag.hooks.connector import Prompt, PromptArgument, PromptMessage, Resource
from sag.hooks.hub import Preset
from sag.hooks.tool import BlobContent, LinkContent, TextContent
from sag.hooks.tool import tool as make_plain
from tests.connectors import FakeConnector, make_tool

Json = dict[str, Any]


@make_plain(risk="danger")
async def wipe(what: str) -> str:
    """Wipe something."""
    return "wiped"


def files() -> FakeConnector:
    connector = FakeConnector(
        "files",
        make_tool("read", title="Read a file"),
        make_tool("write", risk="danger"),
        make_tool("rm", policy="deny"),
    )
    connector.prompted = [Prompt("sum", "Sum up", arguments=[PromptArgument("path", required=True)])]
    connector.readable = [
        Resource("file:///a", "a", mime="text/plain", size=3),
        Resource("file:///{x}", "x", template=True),
    ]
    return connector


async def with_connectors(house: Any, *connectors: FakeConnector) -> None:
    for connector in connectors:
        house.app.extensions.connectors.add("p", connector)
    house.app.extensions.tools["wipe"] = wipe
    await house.app.extensions.connectors.settle(5)


async def listed(of: Client, **params: Any) -> dict[str, Json]:
    tools = (await of.call("tool.list", params))["tools"]
    assert len({t["key"] for t in tools}) == len(tools)
    return {t["key"]: t for t in tools}


async def test_tools_are_listed_with_what_is_decided_of_each(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        await with_connectors(house, files(), FakeConnector("other", make_tool("read")))
        tools = await listed(client)
        assert {key for key in tools if "/" in key} == {"files/read", "files/write", "files/rm", "other/read"}
        assert tools["files/read"] == {
            "key": "files/read", "name": "read", "description": "Does read.", "origin": "files", "connector": "files",
            "input": {"type": "object"}, "enabled": True, "policy": "auto", "title": "Read a file", "risk": "read",
        }  # fmt: skip
        assert {key: tools[key]["policy"] for key in ("files/write", "files/rm", "wipe")} == {
            "files/write": "ask", "files/rm": "deny", "wipe": "ask",
        }  # fmt: skip
        assert tools["wipe"]["input"]["required"] == ["what"]
        assert list(await listed(client, origin="other")) == ["other/read"]
        assert await listed(client, origin="nobody") == {}
        status, body = await house.rest("/api/tools?origin=files")
        assert status == 200
        assert [t["key"] for t in body["tools"]] == ["files/read", "files/write", "files/rm"]


async def test_a_list_is_that_of_a_device_and_of_a_user(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client, house.enter("bob") as bob:
        await with_connectors(house, files())
        patch = {"tools": {"files": {"enabled": False}, "files/read": {"enabled": True, "policy": "ask"}}}
        await client.call("config.patch", {"scope": "client:kiosk", "patch": patch})
        mine, kiosk = await listed(client), await listed(client, client="kiosk")
        assert [mine[k]["enabled"] for k in ("files/read", "files/write")] == [True, True]
        assert [kiosk[k]["enabled"] for k in ("files/read", "files/write")] == [True, False]
        assert (mine["files/read"]["policy"], kiosk["files/read"]["policy"]) == ("auto", "ask")
        await client.call("tool.policy.set", {"tool": "files", "policy": "deny"})
        assert (await listed(client, client="nobody/at all"))["files/write"]["policy"] == "deny"
        theirs = await listed(bob, client="kiosk")
        assert [theirs[k]["enabled"] for k in ("files/read", "files/write")] == [True, True]
        assert theirs["files/write"]["policy"] == "ask"
        assert (await bob.call("tool.policy.list"))["policies"] == []


@pytest.mark.parametrize(
    "tools",
    [{"files": {"policy": "perhaps"}}, {"files": {"enabled": "yes"}}, {"files": {"color": 1}}, {"files": True}, []],
)
async def test_a_devices_switches_are_checked(open_house: Any, tools: Any) -> None:
    async with open_house() as house, house.enter() as client:
        with pytest.raises(Fault) as raised:
            await client.call("config.patch", {"scope": "client:kiosk", "patch": {"tools": tools}})
        assert raised.value.kind == "config.invalid"
        assert raised.value.data["path"].startswith("$.tools")


async def test_policies_are_set_listed_and_taken_back(open_house: Any) -> None:
    connector = files()
    async with open_house() as house, house.enter() as client:
        await with_connectors(house, connector)
        for tool, policy in (("files/read", "auto"), ("files", "ask"), ("wipe", "deny")):
            answer = await client.call("tool.policy.set", {"tool": tool, "policy": policy})
            assert answer == {"tool": tool, "policy": policy}
        policies = (await client.call("tool.policy.list"))["policies"]
        assert [(p["key"], p["policy"]) for p in policies] == [
            ("files", "ask"),
            ("files/read", "auto"),
            ("wipe", "deny"),
        ]
        assert all(p["ts"] > 0 and not p.get("changed") and not p.get("gone") for p in policies)
        connector.offered = [make_tool("read", description="Reads more.")]
        connector.tell()
        await asyncio.sleep(0)
        policies = {p["key"]: p for p in (await client.call("tool.policy.list"))["policies"]}
        assert policies["files/read"]["changed"]
        assert (await listed(client))["files/read"]["policy"] == "ask"
        assert (await listed(client))["files/read"]["changed"]
        await house.app.extensions.connectors.drop("files")
        policies = {p["key"]: p for p in (await client.call("tool.policy.list"))["policies"]}
        assert [policies[k].get("gone") for k in ("files", "files/read", "wipe")] == [True, True, None]
        await client.call("tool.policy.set", {"tool": "files", "policy": None})  # also of what is gone
        assert "files" not in {p["key"] for p in (await client.call("tool.policy.list"))["policies"]}


async def test_policies_have_routes_of_their_own(open_house: Any) -> None:
    async with open_house() as house:
        await with_connectors(house, files())
        async with httpx.AsyncClient(base_url=house.hub.url, trust_env=False) as http:
            put = await http.put("/api/tools/policies", json={"tool": "files/read", "policy": "deny"})
            assert (put.status_code, put.json()) == (200, {"tool": "files/read", "policy": "deny"})
            assert [p["key"] for p in (await http.get("/api/tools/policies")).json()["policies"]] == ["files/read"]
            assert (await http.put("/api/tools/policies", json={"tool": "files/read"})).json()["policy"] is None
            assert (await http.get("/api/tools/policies")).json() == {"policies": []}
            wrong = await http.put("/api/tools/policies", json={"tool": "none", "policy": "deny"})
            assert (wrong.status_code, wrong.json()["error"]["data"]["kind"]) == (404, "tool.unknown")
            wrong = await http.put("/api/tools/policies", json={"tool": "files", "policy": "perhaps"})
            assert wrong.status_code == 400
            foreign = {"origin": "http://evil.example"}
            wrong = await http.put("/api/tools/policies", json={"tool": "files", "policy": "auto"}, headers=foreign)
            assert wrong.status_code == 403
            plain = await http.put("/api/tools/policies", content='{"tool":"files","policy":"auto"}')
            assert plain.status_code == 415


async def test_nobody_decides_of_what_is_not_there(open_house: Any) -> None:
    async def show(args: Any, call: Any) -> str:
        return "shown"

    async with open_house() as house, house.hub.client("desk", tools=[ClientTool("show", show)]) as client:
        await with_connectors(house, files())
        for name in ("nobody", "files/none", "", "basics", "show"):
            with pytest.raises(Fault) as raised:
                await client.call("tool.policy.set", {"tool": name, "policy": "deny"})
            assert raised.value.kind == "tool.unknown"


async def test_presets_are_listed(open_house: Any) -> None:
    async with open_house() as house, house.enter("bob") as client:
        house.app.extensions.presets["plan"] = Preset("plan", "Planning", {"system": "Plan well."}, "For plans.")
        wanted = {"name": "plan", "title": "Planning", "config": {"system": "Plan well."}, "description": "For plans."}
        assert wanted in (await client.call("preset.list"))["presets"]
        started = await client.call("run.start", {"input": [{"kind": "text", "text": "x"}], "config": wanted["config"]})
        topic = await client.subscribe(f"conv:{started['conv']}")
        await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done")


# --- what connectors offer to people ---


async def test_a_prompt_is_filled_in_and_its_arguments_go_on(open_house: Any) -> None:
    connector = files()
    async with open_house() as house, house.enter("bob") as client:
        await with_connectors(house, connector)
        prompt = {"connector": "files", "name": "sum", "arguments": {"path": "a"}}
        got = await client.call("prompt.get", prompt)
        assert got == {"messages": [{"role": "user", "content": [{"kind": "text", "text": "sum {'path': 'a'}"}]}]}

        async def rich(name: str, arguments: Any) -> list[PromptMessage]:
            blobs = [BlobContent("image/png", b"\x89PNG", "x.png"), BlobContent("audio/wav", b"RIFF")]
            return [PromptMessage("assistant", [TextContent("see"), *blobs, LinkContent("file:///a", "a")])]

        connector.get_prompt = rich  # type: ignore[method-assign]
        (message,) = (await client.call("prompt.get", prompt))["messages"]
        text, image, sound, link = message["content"]
        assert (message["role"], text["text"], link["uri"]) == ("assistant", "see", "file:///a")
        assert (image["kind"], base64.b64decode(image["data"])) == ("image", b"\x89PNG")
        assert sound["kind"] == "file"
        complete = {"connector": "files", "kind": "prompt", "name": "sum", "argument": "path", "value": "a"}
        values = (await client.call("prompt.complete", complete))["values"]
        assert (len(values), values[:2]) == (100, ["a0", "a1"])


async def test_resources_are_listed_and_read_and_bytes_are_kept_as_files(open_house: Any) -> None:
    connector = files()
    async with open_house() as house, house.enter() as client:
        await with_connectors(house, connector, FakeConnector("other"))
        resources = (await client.call("resource.list"))["resources"]
        assert [(r["connector"], r["uri"], r.get("template", False)) for r in resources] == [
            ("files", "file:///a", False), ("files", "file:///{x}", True),
        ]  # fmt: skip
        assert (await client.call("resource.list", {"connector": "other"}))["resources"] == []
        assert (await house.rest("/api/resources?connector=files"))[1]["resources"] == resources
        read = {"connector": "files", "uri": "file:///a"}
        assert (await client.call("resource.read", read))["content"] == [
            {"kind": "text", "text": "what is at file:///a"}
        ]

        async def image(uri: str) -> list[Any]:
            return [BlobContent("image/png", b"\x89PNG", "a.png")]

        connector.read = image  # type: ignore[method-assign]
        (item,) = (await client.call("resource.read", read))["content"]
        assert (item["kind"], item["size"]) == ("image", 4)
        async with httpx.AsyncClient(base_url=house.hub.url, trust_env=False) as http:
            assert (await http.get(f"/api/files/{item['ref']}")).content == b"\x89PNG"
        assert (await house.rest(f"/api/files/{item['ref']}", "bob"))[0] == 404


ASKS: list[tuple[str, Json]] = [
    ("prompt.get", {"name": "sum"}),
    ("resource.read", {"uri": "file:///a"}),
    ("prompt.complete", {"kind": "prompt", "name": "sum", "argument": "path"}),
]
METHODS = {"prompt.get": "get_prompt", "resource.read": "read", "prompt.complete": "complete"}


@pytest.mark.parametrize(("method", "params"), ASKS, ids=lambda v: v if isinstance(v, str) else "")
async def test_what_goes_wrong_in_a_connector_is_its_fault_and_told(
    open_house: Any, monkeypatch: pytest.MonkeyPatch, method: str, params: Json
) -> None:
    connector = files()
    monkeypatch.setattr(module, "ASK_S", 0.2)

    def not_async(*_: Any) -> Any:
        raise RuntimeError("not even async")

    async def nonsense(*_: Any) -> Any:
        return 7

    async def odd_items(*_: Any) -> Any:
        return [object()]

    async with open_house() as house, house.enter() as client:
        await with_connectors(house, connector)
        with pytest.raises(Fault) as raised:
            await client.call(method, {"connector": "nobody", **params})
        assert (raised.value.kind, raised.value.code) == ("connector.unknown", 404)
        for wrong in (RuntimeError("secret detail"), asyncio.Event(), TimeoutError()):
            connector.wrong = {METHODS[method]: wrong}
            with pytest.raises(Fault) as raised:
                await client.call(method, {"connector": "files", **params})
            assert (raised.value.kind, raised.value.code) == ("connector.failed", 502)
            assert raised.value.message.startswith("files: ")
            assert "secret detail" not in raised.value.message
        for instead in (not_async, nonsense, *([odd_items] if method != "prompt.complete" else [])):
            setattr(connector, METHODS[method], instead)
            with pytest.raises(Fault) as raised:
                await client.call(method, {"connector": "files", **params})
            assert raised.value.kind == "connector.failed"


async def test_what_a_connector_does_not_have_is_told_in_its_words(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        await with_connectors(house, files())
        with pytest.raises(Fault, match="files: no prompt none"):
            await client.call("prompt.get", {"connector": "files", "name": "none"})
        with pytest.raises(Fault, match="files: nothing at file:///none"):
            await client.call("resource.read", {"connector": "files", "uri": "file:///none"})
        with pytest.raises(Fault):
            await client.call("resource.list", {"connector": "none"})
