"""`kill -9` in the middle of a turn, then `run.resume`: what was said is not asked for again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sag.testing.upstream import FakeUpstream, call, say
from tests.dialogue.stage import BOTS, events, heard, stalls
from tests.harness import Client, Hub, check_state, until

MODERATED = {"next": "moderator", "moderator": {"model": "openai/chair"}}


@pytest.mark.parametrize("config", [{}, MODERATED], ids=["round_robin", "moderator"])
async def test_a_dialogue_goes_on_where_it_was_killed(make_hub: Callable[..., Hub], config: dict[str, Any]) -> None:
    async with FakeUpstream() as openai, FakeUpstream("anthropic") as anthropic:
        openai.script(say("one"), stalls("thr"), say("three"), model="fake")
        openai.script(*[call("next_speaker", {"bot": bot}) for bot in ("b0", "b1", "b0", "b1")], model="chair")
        anthropic.script(say("two"), say("four"))
        hub = make_hub(
            f'[anthropic]\nbase_url = "{anthropic.url}"\napi_key = "k"\n',
            LLM_PROVIDER="openai",
            LLM_BASE_URL=openai.url,
            LLM_MODEL="fake",
            LLM_API_KEY="k",
        )
        client = Client(hub.url).keep()
        await client.online.wait()
        input = [{"kind": "text", "text": "Tea or coffee?"}]
        wanted = {"bots": BOTS, "max_turns": 4, **config}
        started = await client.sure("run.start", kind="dialogue", input=input, config=wanted)
        run, topic = started["run"], f"conv:{started['conv']}"
        if topic not in client.views:
            await client.sure("topic.subscribe", topic=topic)
        view = client.views[topic]
        await until(lambda: "thr" in view.text(run), "the third turn")
        hub.kill()
        await hub.restart()
        await client.done(view, run, "interrupted")
        async with hub.http() as http:
            told = [one async for one in events(http, run)]
        assert [one["turn"] for one in told if one["type"] == "turn_complete"] == [1, 2]
        assert told[-1]["type"] == "error"

        await client.sure("run.resume", run=run)
        await until(lambda: view.run(run)["status"] == "done", "the end")
        fakes = [request for request in openai.chats if request.json["model"] == "fake"]
        assert len(fakes) == 3, "turn 1 once, turn 3 twice"
        assert len(anthropic.chats) == 2, "turn 2 once, turn 4 once"
        assert len(openai.chats) - len(fakes) == (4 if config else 0), "who was chosen is not chosen again"
        assert heard(fakes[2]) == heard(fakes[1]), "what was cut short is not heard"
        async with hub.http() as http:
            told = [one async for one in events(http, run)]
        words = "".join(one.get("delta", "|") for one in told)
        assert words == "one|two|thr |three|four|", told
        assert {"type": "retract", "role": "bot0", "length": 4} in told
        await check_state(hub.url, topic, view)
        await client.close()
