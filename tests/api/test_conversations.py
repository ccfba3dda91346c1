"""Conversations that are made before anything is said in them."""

from __future__ import annotations

from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, say
from tests.harness import Client, check_state, until


async def test_an_empty_conversation_is_listed_and_named_by_its_first_message() -> None:
    async with running_hub(providers=[ScriptedProvider(say("Hi."))]) as hub, Client(hub.url) as client:
        inbox = await client.follow("user:me")
        made = await client.call("conversation.create", key="once")
        assert await client.call("conversation.create", key="once") == made
        conv = made["conv"]
        listed = (await client.call("conversation.list"))["conversations"]
        assert [(one["conv"], one["title"]) for one in listed] == [(conv, "")]
        view = await client.follow(f"conv:{conv}")
        assert view.has["messages"] == []
        started, _ = await client.say("How  are\nyou?", conv)
        await client.done(view, started["run"])
        assert view.has["conv"]["title"] == "How are you?"
        await until(lambda: inbox.has["convs"][conv]["title"] == "How are you?", "the inbox")
        again, _ = await client.say("And now?", conv)
        await client.done(view, again["run"])
        assert view.has["conv"]["title"] == "How are you?"
        await check_state(hub.url, view.topic, view)


async def test_a_title_that_was_given_stays() -> None:
    async with running_hub(providers=[ScriptedProvider(say("Hi."))]) as hub, Client(hub.url) as client:
        conv = (await client.call("conversation.create", title="Chairs"))["conv"]
        started, view = await client.say("Hello", conv)
        await client.done(view, started["run"])
        assert view.has["conv"]["title"] == "Chairs"
        refused = await client.refused("conversation.create", title="x" * 201)
        assert refused.code == -32602
