"""The tool `chat`: another host talks with the hub's assistant."""

from __future__ import annotations

import asyncio
from typing import Any

from sag.plugin import Finish, ProviderError, Text
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.mcp_server.conftest import Host, accept, make_tools, text_of


async def test_a_host_talks_and_goes_on_in_the_same_conversation(era: str):
    model = ScriptedProvider(say("Hello, Ana."), say("Still here."))
    async with running_hub(providers=[model]) as hub, hub.client() as device, Host().connect(hub, era) as client:
        first = await client.call_tool("chat", {"message": "Hi", "model": "script/m", "system": "Be brief."})
        told: Any = first.structured_content
        assert (told["text"], told["status"]) == ("Hello, Ana.", "done")
        assert text_of(first) == f"Hello, Ana.\n\n[conversation {told['conversation']}]"
        again = {"message": "And now?", "conversation": told["conversation"], "model": "script/m"}
        second: Any = (await client.call_tool("chat", again)).structured_content
        assert (second["text"], second["conversation"]) == ("Still here.", told["conversation"])
        assert [m.text for m in model.requests[0].messages] == ["Be brief.", "Hi"]
        assert [m.text for m in model.requests[1].messages] == ["Hi", "Hello, Ana.", "And now?"]
        topic = await device.subscribe(f"conv:{told['conversation']}")  # as every device sees it
        assert [m["role"] for m in topic.state["messages"]] == ["user", "assistant", "user", "assistant"]
        assert {run["client"] for run in topic.state["runs"].values()} == {"mcp"}


async def test_a_host_sees_the_text_grow_and_the_tools_at_work(era: str):
    go_on, host = asyncio.Event(), Host()
    model = ScriptedProvider(
        call(("work", {"steps": 6}), text="I look it up."), [Text("So far"), go_on, Finish("stop")]
    )
    async with running_hub(providers=[model], tools=make_tools()) as hub, host.connect(hub, era) as client:
        talk = asyncio.create_task(
            client.call_tool("chat", {"message": "Hi", "model": "script/m"}, progress_callback=host.on_progress)
        )
        async with asyncio.timeout(10):
            while not any(text == "So far" for _, _, text in host.progress):
                host.news.clear()
                await host.news.wait()
        go_on.set()
        result: Any = (await talk).structured_content
        assert result["text"] == "So far"
        assert "I look it up.\n[work …]" in [text for _, _, text in host.progress]


async def test_what_the_run_asks_is_asked_in_the_host_too(era: str):
    host = Host(accept(choice="allow_once"))
    model = ScriptedProvider(call(("open_gate", {})), call(("ask_day", {})), say("Done."))
    async with running_hub(providers=[model], tools=make_tools()) as hub, host.connect(hub, era) as client:
        host.answers += [accept(day="Friday"), accept(choice="yes")]
        result: Any = await client.call_tool("chat", {"message": "Hi", "model": "script/m"})
        assert result.structured_content["text"] == "Done."
        assert [params.message for params in host.asked] == ["Allow open_gate?\n{}", "Which day?", "Really?"]
        assert model.requests[2].messages[-1].text == "accept {'day': 'Friday'} ('yes', None)"


async def test_a_question_is_settled_by_whoever_is_faster(era: str):
    host = Host()
    never = asyncio.Event()

    async def wait(context: Any, params: Any) -> Any:
        host.asked.append(params)
        host.news.set()
        await never.wait()

    host.elicit = wait  # type: ignore[method-assign]
    model = ScriptedProvider(call(("open_gate", {})), say("Done."))
    async with (
        running_hub(providers=[model], tools=make_tools()) as hub,
        hub.client() as device,
        host.connect(hub, era) as client,
    ):
        inbox = await device.subscribe("user:me")
        talk = asyncio.create_task(client.call_tool("chat", {"message": "Hi", "model": "script/m"}))
        async with asyncio.timeout(10):
            await host.news.wait()
            (ask,) = (await inbox.until(lambda state: state["asks"]))["asks"]
            await device.call("ask.answer", {"ask": ask, "choice": "deny"})
            if era == "legacy":  # the question in the host is withdrawn; a stateless host has to answer first
                result: Any = await talk
                assert result.structured_content["text"] == "Done."
                assert "denied" in model.requests[1].messages[-1].text
                return
        talk.cancel()
        await inbox.until(lambda state: not state["runs"])


async def test_a_host_that_cannot_ask_is_told_that_the_run_waits(era: str):
    host = Host()
    model = ScriptedProvider(call(("open_gate", {})), say("Done."))
    async with (
        running_hub(providers=[model], tools=make_tools()) as hub,
        hub.client() as device,
        host.connect(hub, era, asks=False) as client,
    ):
        inbox = await device.subscribe("user:me")
        talk = asyncio.create_task(
            client.call_tool("chat", {"message": "Hi", "model": "script/m"}, progress_callback=host.on_progress)
        )
        async with asyncio.timeout(10):
            while not any("[waits for an answer: Allow open_gate?]" in str(text) for _, _, text in host.progress):
                host.news.clear()
                await host.news.wait()
        (ask,) = (await inbox.until(lambda state: state["asks"]))["asks"]
        await device.call("ask.answer", {"ask": ask, "choice": "allow_once"})
        result: Any = await talk
        assert result.structured_content["text"] == "Done."


async def test_giving_up_cancels_the_run(era: str):
    host = Host()
    model = ScriptedProvider([Text("For ever"), asyncio.Event()])
    async with running_hub(providers=[model]) as hub, hub.client() as device, host.connect(hub, era) as client:
        inbox = await device.subscribe("user:me")
        talk = asyncio.create_task(
            client.call_tool("chat", {"message": "Hi", "model": "script/m"}, progress_callback=host.on_progress)
        )
        async with asyncio.timeout(10):
            await host.news.wait()
            talk.cancel()
            await inbox.until(lambda state: not state["runs"])
        (run,) = (await device.call("run.list", {}))["runs"]
        assert run["status"] == "cancelled"


async def test_a_run_that_fails_and_a_conversation_that_is_not_there(era: str):
    model = ScriptedProvider([ProviderError("provider.auth", "The key is wrong.")])
    async with running_hub(providers=[model]) as hub, Host().connect(hub, era) as client:
        result = await client.call_tool("chat", {"message": "Hi", "model": "script/m"})
        assert result.is_error
        assert "The key is wrong." in text_of(result)
        assert "(conversation c" in text_of(result)
        result = await client.call_tool("chat", {"message": "Hi", "conversation": "c0"})
        assert result.is_error
        result = await client.call_tool("chat", {"message": ""})
        assert text_of(result).startswith("The arguments do not fit")
