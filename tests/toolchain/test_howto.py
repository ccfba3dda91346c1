"""What the how-to about tool chains shows is so: its commands run as they stand there, its config is taken."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from sag.testing.upstream import say
from tests.toolchain.bench import bench, calls

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-tool-chains.md"
PICK = calls(("calculate", {"expression": "3 miles + 2 km to km"}))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


async def shell(command: str, url: str) -> str:
    """Run a command of the page; the hub's address and the model are those of the test."""
    command = command.replace("http://127.0.0.1:4100", url).replace("openai/gpt-6.2-sol", "openai/fake")
    assert url in command
    process = await asyncio.create_subprocess_shell(
        f"curl() {{ command curl --silent --show-error --noproxy '*' --max-time 20 \"$@\"; }}; {command}",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_the_commands_work_as_they_stand_there() -> None:
    start, once, streamed = blocks("sh")
    async with bench() as b:
        b.model.answer = lambda request: PICK if request.json.get("tools") else say("6.83 km.")
        started = json.loads(await shell(start, b.hub.url))
        topic = await b.client.subscribe(f"conv:{started['conv']}")
        await b.end(started["run"], topic)
        assert json.loads(await shell(once, b.hub.url)) == {"stage_id": "s1", "type": "text", "text": "6.83 km."}
        assert [b.model.chats[2].json[m] for m in ("temperature", "max_tokens")] == [0, 500]
        text = await shell(streamed, b.hub.url)
        names = re.findall(r"^event: (.*)$", text, re.M)
        assert list(dict.fromkeys(names)) == ["tool_completion_chunk", "tool_summary", "done"]
        assert "id: s1-chunk-0\n" in text
        assert "id: s1-chunk-integ-0\n" in text


async def test_the_config_and_the_shapes_are_what_the_hub_takes_and_gives() -> None:
    chain, results, *answers = (json.loads(text) for text in blocks("json"))
    config: dict[str, Any] = chain["config"] | {"model": "openai/fake"}
    async with bench() as b:
        b.model.script(PICK, say("6.83 km."), PICK)
        run, state = await b.do("Go.", **config)
        assert list(run["agents"]) == ["work_out", "work_out.synthesis", "compare"]
        assert b.offered(0) == ["calculate"]
        first = next(iter(state["tools"].values()))
        (shown,) = results
        assert (first["name"], first["args"], first["result"]) == (shown["name"], shown["arguments"], shown["result"])
    assert [answer["type"] for answer in answers] == ["text", "tool_results", "error"]
