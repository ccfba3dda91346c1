"""Runs that wait for a model, and models, providers and conversations that are odd (RELIABILITY F27 and its like).

Whatever is done to a run while it waits for a retry or for its turn: it ends once, nothing hangs, no place is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from sag.engine import models
from sag.engine.gate import WINDOW
from sag.errors import Fault
from sag.hooks.provider import Chunk, Model, ModelRequest, ProviderError
from sag.hooks.tool import tool
from sag.settings import Limits
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call
from sag.testing.provider import say as said
from sag.testing.upstream import FakeUpstream, FlavorName, Say, Script, fail
from sag.testing.upstream import call as calling
from tests.faults.upstreams import FLAVORS, Bench, Told, bench, free_port
from tests.harness import Client, Hub, until

Json = dict[str, Any]
flavors = pytest.mark.parametrize("flavor", FLAVORS)
statuses = pytest.mark.parametrize(("flavor", "status"), [("openai", 429), ("openai", 504), ("anthropic", 504)])
LIMITS = Limits(topics=300, inflight=300)
LONG = {"retry-after": "50"}


async def waiting(b: Bench, up: FakeUpstream, status: int = 429) -> Told:
    """A run that the server asks to wait for 50 s, after it told half of an answer.

    For 429 all wait in the limiter, for 504 the run by itself.
    """
    up.script(Script([Say("half")], finish="", usage=False, done=False), fail(status, headers=LONG))
    one = await b.begin("a")
    await until(lambda: len(one.waits) == 2 and one.object["status"] == "waiting", "the wait")
    assert one.object["why"]["kind"] == ("provider.rate_limit" if status == 429 else "provider.timeout")
    assert 49_000 <= one.object["after_ms"] <= 55_000
    return one


@statuses
async def test_a_run_that_waits_can_be_cancelled(flavor: FlavorName, status: int) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url, "b": up.url}) as b:
        one = await waiting(b, up, status)
        queued = [await b.begin("a") for _ in range(5 if status == 429 else 0)]
        await until(lambda: all(other.waits for other in queued), "the others wait, too")
        began = time.monotonic()
        for other in (one, *queued):
            await b.client.call("run.cancel", run=other.id)
            await other.ends("cancelled", 2)
        assert time.monotonic() - began < 2
        for other in (one, *queued):
            assert len(other.named("run.close")) == 1
            await b.check(other)
            object = (await b.client.call("run.get", run=other.id))["object"]
            assert not {"after_ms", "why"} & object.keys()
        b.idle()
        assert len(up.chats) == 2
        assert (await b.ask("b", "and?", "done")).text == "and?"


@statuses
async def test_a_patch_for_now_takes_a_waiting_run_to_another_model(flavor: FlavorName, status: int) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url, "b": up.url}) as b:
        one = await waiting(b, up, status)
        patch = {"model": "b/fake"}
        await b.client.call("config.patch", scope=f"run:{one.id}", patch=patch, apply="now")
        await one.ends("done", 3)
        assert one.text == "hi"
        assert [d["finish"] for d in one.named("step.close")] == ["config", "stop"]
        assert [d["model"] for d in one.named("step.open")] == ["a/fake", "b/fake"]
        assert not {"after_ms", "why"} & (await b.client.call("run.get", run=one.id))["object"].keys()
        b.idle()
        await b.check(one)


async def test_a_patch_for_the_next_step_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeUpstream() as up, bench("openai", {"a": up.url, "b": up.url}, tools=[]) as b:
        up.script(fail(429, headers={"retry-after": "1"}), calling("no_such_tool", {}))
        one = await b.begin("a")
        await until(lambda: one.waits, "the wait")
        await b.client.call("config.patch", scope=f"run:{one.id}", patch={"model": "b/fake"})
        await one.ends("done")
        assert [d["model"] for d in one.named("step.open")] == ["a/fake", "b/fake"]
        b.idle()


@flavors
async def test_a_deleted_conversation_waits_no_longer(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}) as b:
        one = await waiting(b, up)
        queued = await b.begin("a")
        await until(lambda: queued.waits, "the other waits, too")
        for other in (one, queued):
            await b.client.call("conversation.delete", conv=other.conv)
        await until(lambda: not b.hub.app.engine._homes, "the runs' ends")
        b.idle()


@flavors
async def test_a_drain_interrupts_a_waiting_run_which_can_be_resumed(flavor: FlavorName, tmp_path: Path) -> None:
    async with FakeUpstream(flavor) as up:
        async with bench(flavor, {"a": up.url}, data=tmp_path) as b:
            one = await waiting(b, up)
            queued = await b.begin("a", "queued")
            await until(lambda: queued.waits, "the other waits, too")
            began = time.monotonic()
        assert time.monotonic() - began < 3, "the wait holds nobody up"
        assert len(up.chats) == 2
        async with bench(flavor, {"a": up.url}, data=tmp_path) as b:
            for other, text in ((one, "hi"), (queued, "queued")):
                view = await b.client.follow(f"conv:{other.conv}")
                again = Told({"run": other.id, "conv": other.conv}, view)
                assert again.object["status"] == "interrupted"
                assert not {"after_ms", "why"} & again.object.keys()
                assert again.text == "", "what the broken answer had told was dropped before the wait"
                await b.client.call("run.resume", run=other.id)
                await again.ends("done")
                assert again.text == text
                await b.check(again)
            b.idle()


@flavors
async def test_a_waiting_run_that_a_kill_ends_can_be_resumed(flavor: FlavorName, make_hub: Callable[..., Hub]) -> None:
    async with FakeUpstream(flavor) as up:
        env = {"LLM_PROVIDER": flavor, "LLM_BASE_URL": up.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"}
        hub = make_hub(**env)
        client = Client(hub.url).keep()
        await client.online.wait()
        up.script(Script([Say("half")], finish="", usage=False, done=False), fail(429, headers=LONG))
        told = [Told(*await client.say("say it"))]
        await until(lambda: len(told[0].waits) == 2, "the wait")
        told.append(Told(*await client.say("say that")))
        await until(lambda: told[1].waits, "the other waits, too")
        hub.kill()
        await hub.restart()
        await client.online.wait()
        for one, text in zip(told, ("say it", "say that"), strict=True):
            await one.ends("interrupted")
            object = (await client.call("run.get", run=one.id))["object"]
            assert not {"after_ms", "why"} & object.keys()
            assert len(up.chats) == 2 + told.index(one), "the hub asks nobody by itself after a restart"
            await client.sure("run.resume", run=one.id)
            await until(partial(one.has, "done"), "the resumed run")
            assert one.text == text
        await client.close()


@flavors
async def test_two_hundred_runs_that_wait_for_their_turn_can_be_cancelled(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}, limits=LIMITS) as b:
        up.script(*(Script(head="hang") for _ in range(WINDOW)))
        told = [await b.begin("a", str(n)) for n in range(WINDOW + 200)]
        await until(lambda: all(one.waits for one in told[WINDOW:]), "all others wait")
        assert told[-1].waits[0]["why"]["kind"] == "provider.rate_limit"
        assert told[-1].waits[0].get("after_ms") is None
        gate = b.hub.app.engine.gates.gate("a/fake")
        assert (gate._out, len(gate._waiting)) == (WINDOW, 200)
        began = time.monotonic()
        await asyncio.gather(*(b.client.call("run.cancel", run=one.id) for one in told[WINDOW:]))
        for one in told[WINDOW:]:
            await one.ends("cancelled", 2)
        assert time.monotonic() - began < 3
        assert (gate._out, len(gate._waiting)) == (WINDOW, 0)
        last = await b.begin("a", "last")
        await until(lambda: last.waits, "it waits")
        await b.client.call("run.cancel", run=told[0].id)
        await last.ends("done")
        assert last.text == "last"
        for one in told[1:WINDOW]:
            await b.client.call("run.cancel", run=one.id)
        for one in told[1:WINDOW]:
            await one.ends("cancelled", 2)
        await until(lambda: gate._out == 0, "all places are free")
        b.idle()


async def test_a_store_that_fails_while_a_run_waits_costs_no_place() -> None:
    async with FakeUpstream() as up, bench("openai", {"a": up.url}) as b:
        up.script(fail(429, headers={"retry-after-ms": "300"}))
        one = await b.begin("a")
        await until(lambda: one.waits, "the wait")
        topic = await b.hub.app.topics.find("local", f"conv:{one.conv}")
        assert topic is not None
        topic.lost = Fault("store.full")
        await asyncio.sleep(0.4)
        topic.lost = None
        await one.ends("failed")
        assert one.kind == "store.full"
        b.idle()
        assert (await b.ask("a", "and?", "done")).text == "and?"


# --- fallbacks ---


@flavors
async def test_fallbacks_that_name_a_model_again_end_all_the_same(flavor: FlavorName) -> None:
    up = FakeUpstream(flavor, models=["m", "n"], answer=lambda _: fail(401))
    async with up, bench(flavor, {"a": up.url, "b": up.url}) as b:
        circle = ["a/m", "b/n", "a/m", "b/n", "b/m", "a/m"]
        one = await b.ask("a/m", status="failed", fallbacks=circle)
        assert one.kind == "provider.auth"
        assert [d["model"] for d in one.named("step.open")] == ["a/m", "b/n", "b/m"]
        assert len(up.chats) == 3
        one = await b.ask("a/m", status="failed", fallbacks=["a/m"])
        assert len(up.chats) == 4
        await b.check(one)
        b.idle()


# --- providers that are odd ---


class Good(ScriptedProvider):
    """Has one model, which works."""

    def models(self) -> list[Model]:
        return [Model("m", default=True)]


def raises(e: BaseException) -> Callable[..., Any]:
    async def list_models(self: Any, http: Any) -> Any:
        raise e

    return list_models


def gives(models: Any) -> Callable[..., Any]:
    async def list_models(self: Any, http: Any) -> Any:
        return models

    return list_models


async def hangs(self: Any, http: Any) -> Any:
    await asyncio.Event().wait()


LISTS: dict[str, Callable[..., Any]] = {
    "raises": raises(ValueError("no")),
    "cancelled": raises(asyncio.CancelledError()),
    "exit": raises(SystemExit(3)),
    "group": raises(ExceptionGroup("all", [OSError()])),
    "error": raises(ProviderError("provider.auth", "No.")),
    "hangs": hangs,
    "nothing": gives(None),
    "numbers": gives([1, 2]),
    "endless": gives(1.5),
    "no-id": gives([Model(None)]),  # type: ignore[arg-type]
    "types": gives([Model("m", context="8k", price=3)]),  # type: ignore[arg-type]
    "no-text": gives([Model("m\ud83d")]),
    "not-async": lambda self, http: [Model("m")],
}


async def test_a_list_of_models_that_is_none_costs_nobody_else_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LIST_S", 0.3)
    monkeypatch.setattr(models, "AGAIN_S", (0.1, 0.1))
    odd = [
        type("Odd", (Good,), {"list_models": given})(said("odd"), name=f"odd-{name}") for name, given in LISTS.items()
    ]
    lists = type("Lists", (Good,), {"list_models": gives(Model(id) for id in ("x", "y"))})(said("yes"), name="lists")
    async with running_hub(providers=[*odd, lists, Good(said("well"), name="good")]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        for provider in odd:
            answer = await client.call("model.check", model=f"{provider.name}/m")
            assert answer["ok"] is False, provider.name
            assert answer["kind"].startswith("provider."), provider.name
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert {f"models of {p.name}" for p in odd} <= tasks, "each is asked again later"
        listed = {m["model"] for m in (await client.call("model.list"))["models"]}
        assert {"good/m", "lists/x", "lists/y", *(f"{p.name}/m" for p in odd)} <= listed
        assert (await client.call("model.facets"))["total"] == len(listed)
        view = await client.follow("hub")
        await until(lambda: "lists/y" in view.has["models"], "the topic tells of it")
        assert (await b.ask("good/m", status="done")).text == "well"
        assert (await b.ask("odd-numbers/m", status="done")).text == "odd"


class Odd(Good):
    """Raises where it is asked something besides."""

    def count(self, request: ModelRequest) -> int:
        raise ZeroDivisionError

    def check(self, request: ModelRequest) -> None:
        if request.model == "bad":
            raise KeyError("x")

    def models(self) -> list[Model]:
        return [Model("m", context=50_000)]

    async def stream(self, request: ModelRequest) -> Any:
        if request.model == "exit":
            raise SystemExit(4)
        async for chunk in super().stream(request):
            yield chunk


class Knows(ScriptedProvider):
    """Knows models that are none."""

    known: Any = None

    def models(self) -> Any:
        return self.known


async def test_models_that_are_none_cost_nobody_else_a_model() -> None:
    odd = [Knows(said("odd"), name=f"odd{n}") for n in range(4)]
    for provider, known in zip(odd, ([1], None, [Model("m", context="8k")], [Model("m\ud83d")]), strict=True):  # type: ignore[arg-type]
        provider.known = known
    async with running_hub(providers=[*odd, Good(said("well"), name="good")]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        for name in ("good/m", *(f"{p.name}/m" for p in odd)):
            assert (await b.ask(name, status="done")).text == ("well" if name == "good/m" else "odd")
        listed = [m["model"] for m in (await client.call("model.list"))["models"]]
        assert "good/m" in listed
        assert (await client.call("model.facets"))["total"] == len(listed)


async def test_a_provider_that_raises_where_it_should_not_is_a_typed_error() -> None:
    async with running_hub(providers=[Odd(said("yes"), name="odd")]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        assert (await b.ask("odd/m", status="done")).text == "yes"
        refused = await client.refused("run.start", input=[{"kind": "text", "text": "x"}], config={"model": "odd/bad"})
        assert (refused.code, refused.kind) == (422, "config.invalid")
        assert "odd" in refused.message
        one = await b.begin("odd/m", "x")
        await one.ends()
        checked = await client.call("model.check", model="odd/bad")
        assert (checked["ok"], checked["kind"]) == (False, "provider.protocol")
        one = await b.ask("odd/exit", status="failed", retries=0)
        assert one.kind == "provider.protocol"
        assert (await b.ask("odd/m", status="done")).text == "yes"
        b.idle()


async def test_one_server_that_hangs_does_not_hide_what_another_keeps_of_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "LIST_S", 1.0)

    async def keeps(self: Any, http: Any, id: str) -> Json | None:
        return {"id": id} if id == "known" else None

    async def fails(self: Any, http: Any, id: str) -> Json | None:
        raise ProviderError("provider.unreachable", "No.")

    odd = [
        type("Odd", (Good,), {"generation": given})(name=name)
        for name, given in (("a", fails), ("b", lambda self, http, id: hangs(self, http)), ("c", keeps))
    ]
    async with running_hub(providers=odd) as hub, Client(hub.url) as client:
        assert await client.call("model.generation", id="known") == {"id": "known"}
        assert (await client.refused("model.generation", id="other")).kind == "provider.timeout"
        assert (await client.refused("model.generation", id="other", provider="c")).kind == "generation.unknown"


async def test_an_operation_that_needs_a_dead_server_answers_502() -> None:
    url = {"a": f"http://127.0.0.1:{free_port()}"}
    async with bench("openai", url, members={"flavor": "openrouter"}) as b:
        async with httpx.AsyncClient(base_url=b.hub.url, trust_env=False) as http:
            answer = await http.get("/api/chat/generation/x")
        assert answer.status_code == 502
        assert answer.json()["error"]["data"]["kind"] == "provider.unreachable"


# --- what is too long ---


class Small(Good):
    """Its model is small, or says that it is."""

    told = True

    def models(self) -> list[Model]:
        return [
            Model("m", context=4000 if self.told else None, output=500, abilities=["tools", "images"], default=True)
        ]


class Refuses(Small):
    """A server that refuses what is too long; nobody knows what that is."""

    told = False

    async def stream(self, request: ModelRequest) -> Any:
        self.requests.append(request)
        if sum(len(m.text) for m in request.messages) > 8000:
            raise ProviderError("provider.context", "maximum context length is 8000 characters", status=400)
        for chunk in said("fits"):
            yield chunk


GIANT = "x " * 20_000


@tool(risk="read")
async def giant() -> str:
    """Give a lot."""
    return GIANT


def calls(*names: str) -> list[Chunk]:
    return call(*((name, {}) for name in names))


async def test_a_giant_result_of_a_tool_fails_its_run_and_not_the_conversation() -> None:
    provider = Small(calls("giant"), said("next"), name="s")
    async with running_hub(providers=[provider], tools=[giant]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        one = await b.ask("s/m", "go", "failed")
        assert one.kind == "provider.context"
        assert len(one.named("tool.close")) == 1
        assert len(provider.requests) == 1, "it is not sent"
        two = await (await b.begin("s/m", "again", one.conv)).ends("done")
        assert two.text == "next"
        assert [m.text for m in provider.requests[1].messages] == ["again"]
        assert two.object["trimmed"]["messages"] > 0
        await b.check(two)


async def test_a_question_that_was_too_long_does_not_keep_later_ones_from_being_answered() -> None:
    provider = Refuses(name="s")
    async with running_hub(providers=[provider]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        one = await b.ask("s/m", GIANT, "failed")
        assert one.kind == "provider.context"
        assert "maximum context length is 8000 characters" in one.error["message"], "the server's words, no guess"
        assert "trimmed" not in one.object
        for n in range(4):
            two = await (await b.begin("s/m", f"{n}" + "y" * 3000, one.conv)).ends("done")
        assert two.object["trimmed"]["messages"] > 0


async def test_a_system_prompt_that_is_larger_than_the_model_is_refused_in_words() -> None:
    provider = Small(said("x"), name="s")
    async with running_hub(providers=[provider]) as hub, Client(hub.url) as client:
        b = Bench(hub, client)
        one = await b.ask("s/m", "hi", "failed", system="long " * 18_000)
        assert one.kind == "provider.context"
        assert "system prompt" in one.error["message"]
        assert not provider.requests
        two = await (await b.begin("s/m", "hi", one.conv, system="short")).ends("done")
        assert provider.requests[0].messages[0].role == "system"
        await b.check(two)


async def test_images_are_left_out_with_the_turns_that_hold_them() -> None:
    provider = Small(said("seen"), name="s")
    async with running_hub(providers=[provider]) as hub, Client(hub.url) as client:
        blob = await hub.app.blobs.put("local", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "image/png", "a.png")
        image = {"kind": "image", "ref": blob.ref, "mime": "image/png", "name": "a.png"}
        given: Json = {}
        for n in range(3):
            input = [{"kind": "text", "text": f"{n}"}, image]
            one = Told(*await client.say("", input=input, config={"model": "s/m"}, **given))
            given = {"conv": one.conv}
            await one.ends("done")
            assert sum(len(m.files) for m in provider.requests[-1].messages) <= 2
            assert provider.requests[-1].messages[-1].files[0].name == "a.png"
        assert one.object["trimmed"]["messages"] >= 2
        many = await client.say("", input=[{"kind": "text", "text": "x"}, *[image] * 5], config={"model": "s/m"})
        told = await Told(*many).ends("failed")
        assert told.kind == "provider.context"
