"""`kill -9` in the middle of each kind of run, then `run.resume`: what was finished is not done again.

All kinds go through the same procedure, with the plays of tests/kinds. The fakes count: the upstream what its models
were asked, the probe's journal each call of a tool.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sag.hooks.provider import CallFragment, Chunk, ModelRequest, Text, ToolSpec, text_message
from sag.testing.kinds import FINISHED, RunKindContract, check_log
from sag.testing.upstream import Calls, FakeUpstream, Request, Say, Script, ToolCall
from tests.harness import Client, Hub, Refused, View, check_state, new_key, times, until
from tests.kinds import test_chat, test_dialogue, test_toolchain, test_workflow

Json = dict[str, Any]

KINDS: list[type[RunKindContract]] = [
    test_chat.TestChat,
    test_toolchain.TestToolchain,
    test_dialogue.TestDialogue,
    test_workflow.TestTriage,
    test_workflow.TestPlan,
]
PROBES = {"look_up": "probe_slow", "write_down": "probe_mark"}  # the tools of the plays, as the probe has them
LINES = {"probe_slow": "tool slow", "probe_mark": "tool mark"}
CALL_MS, LATER_MS = 20, 250  # what a call takes, and each further one of a round more
TOKENS_PER_S = 60.0


class Cast:
    """A play for a hub in a process of its own: its models are served by a fake, its tools are the probe's."""

    def __init__(self, play: RunKindContract) -> None:
        self.play = play
        self.upstream = FakeUpstream(answer=self._answer, tokens_per_s=TOKENS_PER_S)

    @property
    def toml(self) -> str:
        """The providers of its models."""
        table = '[openai.providers.{}]\nflavor = "compatible"\nbase_url = "{}"\nmodel = "{}"\n'
        return "\n".join(
            table.format(p, self.upstream.url, m) for p, _, m in (n.partition("/") for n in self.play.models)
        )

    @property
    def start(self) -> Json:
        """The params of `run.start`."""
        config = json.dumps({"model": self.play.models[0], **self.play.config})
        for name, probe in PROBES.items():
            config = config.replace(name, probe)
        input = [{"kind": "text", "text": self.play.text}]
        return {"kind": self.play.name, "config": json.loads(config), "input": input}

    def _answer(self, request: Request) -> Script:
        body = request.json
        messages = [text_message(m["role"], _words(m.get("content"))) for m in body["messages"]]
        tools = [ToolSpec(t["function"]["name"], "", {}) for t in body.get("tools", ())]
        return _script(list(self.play.answer(ModelRequest(body["model"], messages, tools=tools))))  # type: ignore[arg-type]


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _script(chunks: list[Chunk]) -> Script:
    """A script of chunks as the fake server's."""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        if isinstance(chunk, CallFragment):
            call = calls.setdefault(chunk.index, [chunk.name or "", ""])
            call[1] += chunk.arguments
    made = []
    for n, (name, text) in enumerate(calls.values()):
        args = json.loads(text)
        if name in PROBES:
            args = {"id": args["word"], "ms": CALL_MS + n * LATER_MS}
        made.append(ToolCall(PROBES.get(name, name), args))
    texts = [chunk.text for chunk in chunks if isinstance(chunk, Text)]
    return Script([*([Say(texts)] if texts else []), *([Calls(made, chars=20)] if made else [])])


class Seen:
    """What a client was shown of a run."""

    def __init__(self, view: View, run: str) -> None:
        tools = view.state["tools"] if view.state is not None else {}
        self.tools = {id: copy.deepcopy(t) for id, t in tools.items() if t["run"] == run}
        messages = view.state["messages"] if view.state is not None else []
        self.rounds = [m for m in messages if m.get("run") == run and _end_of(view, run, m) in FINISHED]

    def made(self, *, lost: bool) -> Counter[str]:
        """How often each tool was called; one whose call was lost may have been, or not."""
        ends = ("ok", "lost", "running") if lost else ("ok",)
        return Counter(t["name"] for t in self.tools.values() if t["name"] in LINES and t["status"] in ends)


def _end_of(view: View, run: str, message: Json) -> str | None:
    ends = [d["finish"] for d in view.named("step.close") if d["run"] == run and d["step"] == message.get("step")]
    return ends[0] if ends else None


async def answer_asks(cast: Cast, client: Client) -> None:
    """Answer what is asked, whichever run asks."""
    replied: set[str] = set()
    while True:
        for view in list(client.views.values()):
            for id, ask in list(((view.state or {}).get("asks") or {}).items()):
                if id not in replied and client.online.is_set():
                    choice, data = cast.play.reply(ask)
                    try:
                        await client.sure("ask.answer", ask=id, choice=choice, data=data)
                        replied.add(id)
                    except Refused as refused:
                        assert refused.kind in ("ask.closed", "ask.unknown"), refused
                        replied.add(id)
        await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("play", KINDS, ids=lambda play: play().name)
async def test_a_kill_in_the_middle_and_a_resume_do_nothing_twice(
    make_hub: Callable[..., Hub], play: type[RunKindContract]
) -> None:
    cast = Cast(play())
    async with cast.upstream:
        hub = make_hub(cast.toml)
        client = Client(hub.url).keep()
        await client.online.wait()
        answering = asyncio.create_task(answer_asks(cast, client))
        try:
            began = time.monotonic()
            started = await client.sure("run.start", **cast.start)
            view = client.views[f"conv:{started['conv']}"]
            await client.done(view, started["run"])
            took_s = time.monotonic() - began
            whole = Seen(view, started["run"])
            assert len(cast.upstream.chats) == len(whole.rounds), "each round is one request"
            chance = random.Random(play.__name__)
            interrupted = 0
            kills = times(3, 25)
            for n in range(3 * kills):  # a machine with much else to do has another pace by now
                if n >= kills and interrupted > kills // 2:
                    break
                kill_s = (n % kills + chance.random()) / kills * took_s * 0.95
                interrupted += await kill_and_resume(hub, client, cast, whole, kill_s)
            assert interrupted > kills // 2, "the kills came too early or too late"
            assert not answering.done(), answering
        finally:
            answering.cancel()
            await client.close()


async def kill_and_resume(hub: Hub, client: Client, cast: Cast, whole: Seen, kill_s: float) -> bool:
    """Start a run, kill the hub after some seconds, and bring the run to its end; gives whether it was interrupted."""
    asked, lines = len(cast.upstream.chats), journaled(hub)
    started = await client.sure("run.start", **cast.start, key=new_key())
    run, view = started["run"], client.views[f"conv:{started['conv']}"]
    await asyncio.sleep(kill_s)
    hub.kill()
    shown = Seen(view, run)
    await hub.restart()
    await client.online.wait()
    left = (await hub.rpc("run.get", {"run": run}))["object"]["status"]  # the client may not have been told yet
    assert left in ("interrupted", "waiting", "running", "done"), left  # one that waited may have been answered
    was_interrupted = bool(left == "interrupted")
    if was_interrupted:
        await client.sure("run.resume", run=run)
    await until(lambda: view.run(run).get("status") == "done", f"the end of {run}, which was {left}")
    now = Seen(view, run)
    for id, tool in shown.tools.items():
        if tool["status"] not in ("running", "lost"):
            assert (now.tools[id]["status"], now.tools[id].get("result")) == (tool["status"], tool.get("result"))
            assert not [t for t in now.tools.values() if t.get("again") == id], f"{tool} was made again"
    told = [m["msg"] for m in now.rounds]
    assert [m["msg"] for m in shown.rounds] == [id for id in told if id in {m["msg"] for m in shown.rounds}]
    # What the fakes have counted is what the log tells.
    counted = journaled(hub) - lines
    for name in LINES:
        assert now.made(lost=False)[name] <= counted[name] <= now.made(lost=True)[name], (name, counted)
    requests = len(cast.upstream.chats) - asked
    steps = len([d for d in view.named("step.open") if d["run"] == run])
    assert len(now.rounds) <= requests <= steps
    if not any(t["status"] == "lost" and "repeated" not in t for t in now.tools.values()):
        assert len(now.rounds) == len(whole.rounds), "a finished round was asked for again"
        assert now.made(lost=False) == whole.made(lost=False)
    check_log([(event["e"], event["d"]) for event in view.events], run)
    await check_state(hub.url, view.topic, view)
    await client.sure("topic.unsubscribe", topic=view.topic)
    return was_interrupted


def journaled(hub: Hub) -> Counter[str]:
    """How often each tool has begun its work, as it wrote down itself."""
    return Counter({name: len(hub.journal(line)) for name, line in LINES.items()})
