"""A hub that is the host of another: our client and our server speak with each other."""

from __future__ import annotations

from typing import Any

import pytest

from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.mcp_server.conftest import make_tools


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_what_the_inner_hub_asks_is_asked_on_the_devices_of_the_outer(era: str):
    inner_model = ScriptedProvider(call(("open_gate", {})), say("The gate is open."))
    outer_model = ScriptedProvider(
        call(("inner__chat", {"message": "Open it", "model": "script/m"}), ("inner__ask_day", {})), say("Done.")
    )
    async with running_hub(providers=[inner_model], tools=make_tools()) as inner:
        server = {"url": f"{inner.url}/mcp", "era": era}
        tables = {"mcp": {"servers": {"inner": server}}}
        async with running_hub(providers=[outer_model], tables=tables) as outer, outer.client() as person:
            hub = await person.subscribe("hub")
            await hub.until(lambda state: state["connectors"].get("inner", {}).get("status") == "ready")
            started = await person.call(
                "run.start", {"input": [{"kind": "text", "text": "Go"}], "config": {"model": "script/m"}}
            )
            topic = await person.subscribe(f"conv:{started['conv']}")
            answered: dict[str, Any] = {}
            while len(answered) < 3:
                state = await topic.until(lambda state: state["asks"].keys() - answered)
                for id in state["asks"].keys() - answered:
                    ask = answered[id] = state["asks"][id]
                    wanted = ask["schema"]["properties"]
                    data = {"day": "Friday"} if "day" in wanted else {"choice": wanted["choice"]["enum"][0]}
                    await person.call("ask.answer", {"ask": id, "choice": "accept", "data": data})
            state = await topic.until(lambda state: state["runs"][started["run"]]["status"] == "done")
            chat, day = state["tools"].values()
            assert chat["result"]["data"]["text"] == "The gate is open."
            assert day["result"]["content"][0]["text"] == "accept {'day': 'Friday'} ('yes', None)"
            assert sorted(ask["title"].partition("\n")[0] for ask in answered.values()) == [
                "Allow open_gate?",
                "Really?",
                "Which day?",
            ]
