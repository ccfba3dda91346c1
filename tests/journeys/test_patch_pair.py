"""Two clients patch one run at once: what each is told, and what the model's server is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sag.client import Client
from sag.errors import Fault
from sag.testing.hub import running_hub
from sag.testing.upstream import FakeUpstream, Say, Script, Wait, call, say

OLD = {"temperature": 1.0, "system": "old"}


async def _patch(client: Client, run: str, name: str, temperature: float, apply: str) -> Any:
    params = {"scope": f"run:{run}", "rev": 1, "apply": apply, "patch": {"temperature": temperature, "system": name}}
    try:
        return await client.call("config.patch", params)
    except Fault as fault:
        return fault


def _sent(body: dict[str, Any]) -> tuple[float, str]:
    return body["temperature"], body["messages"][0]["content"]


@pytest.mark.parametrize("apply", ["next_step", "now"])
async def test_one_of_two_wins_and_no_request_carries_a_mixture(apply: str) -> None:
    async with FakeUpstream() as upstream:
        slow = Script([Say("Let me "), Wait(1.0), *call("time_now", {}).steps])
        upstream.script(slow, say("done"), say("done"))
        env = {"LLM_PROVIDER": "openai", "LLM_BASE_URL": upstream.url, "LLM_MODEL": "m"}
        async with running_hub(env=env) as hub, hub.client("desk") as desk, hub.client("phone") as phone:
            run = await desk.call("run.start", {"input": [{"kind": "text", "text": "go"}], "config": OLD})
            topic = await desk.subscribe(f"conv:{run['conv']}")
            await topic.until(lambda s: len(s["messages"]) == 2 and s["messages"][1]["parts"])
            answers = await asyncio.gather(
                _patch(desk, run["run"], "desk", 0.1, apply), _patch(phone, run["run"], "phone", 0.2, apply)
            )
            (won,) = [a for a in answers if not isinstance(a, Fault)]
            (lost,) = [a for a in answers if isinstance(a, Fault)]
            assert (won["rev"], won["applies"]) == (2, apply)
            assert (lost.code, lost.kind, lost.data["rev"]) == (409, "config.conflict", 2)
            new = (won["effective"]["temperature"], won["effective"]["system"])
            assert new in ((0.1, "desk"), (0.2, "phone"))
            assert (lost.data["effective"]["temperature"], lost.data["effective"]["system"]) == new
            await topic.until(lambda s: s["runs"][run["run"]]["status"] == "done")
            assert topic.state["runs"][run["run"]]["applied"] == {"rev": 2, "step": 2}
        assert [_sent(request.json) for request in upstream.chats] == [(1.0, "old"), new]
