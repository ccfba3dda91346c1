"""Retries, waits, fallbacks, trimming and cost of model rounds."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from sag.engine import gate
from sag.errors import Fault
from sag.hooks.provider import (
    Finish,
    LongPrice,
    Model,
    ModelRequest,
    Price,
    ProviderError,
    Reasoning,
    Replay,
    Text,
    UsageChunk,
)
from sag.schema.events import Usage
from sag.settings import ModelOverride, PriceOverride
from sag.testing.provider import ScriptedProvider, call, say

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class Priced(ScriptedProvider):
    """A scripted provider whose model is known."""

    model = Model("m", context=2000, output=500, abilities=["tools"], price=Price(2.0, 10.0, cached=0.5), default=True)

    def models(self) -> list[Model]:
        return [self.model]


async def with_providers(bench: Any, *providers: ScriptedProvider) -> Any:
    hub = await bench()
    hub.app.extensions.drop_provider("script")
    for provider in providers:
        hub.app.extensions.add_provider(provider)
    return hub


def named(events: list[tuple[str, Any]], name: str) -> list[Any]:
    return [d for n, d in events if n == name]


def fail(kind: str, **given: Any) -> list[Any]:
    return [ProviderError(kind, f"it was {kind}", **given)]


async def test_a_wait_that_the_vendor_asks_for_is_told_and_kept(bench: Any) -> None:
    hub = await with_providers(bench, ScriptedProvider(fail("provider.rate_limit", after_s=0.3), say("ok")))
    started = await hub.start("go", config={"model": "script/m"})
    state = await hub.until(started["conv"], lambda s: s["runs"][started["run"]]["status"] == "waiting")
    run = state["runs"][started["run"]]
    assert 250 <= run["after_ms"] <= 400
    assert run["why"]["kind"] == "provider.rate_limit"
    assert (run["why"]["message"], run["why"]["attempt"], run["why"]["of"]) == ("it was provider.rate_limit", 2, 3)
    run = (await hub.end(started))["runs"][started["run"]]
    assert not {"after_ms", "why"} & run.keys()
    assert len(hub.app.extensions.providers["script"].requests) == 2


async def test_a_wait_of_more_than_a_minute_fails_at_once(bench: Any) -> None:
    hub = await with_providers(bench, ScriptedProvider(fail("provider.rate_limit", after_s=61)))
    started = await hub.start("go", config={"model": "script/m"})
    state = await hub.end(started, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "provider.rate_limit"
    assert len(hub.app.extensions.providers["script"].requests) == 1


async def test_what_does_not_come_right_is_not_tried_again(bench: Any) -> None:
    hub = await with_providers(bench, ScriptedProvider(fail("provider.auth")))
    await hub.end(await hub.start("go", config={"model": "script/m"}), "failed")
    assert len(hub.app.extensions.providers["script"].requests) == 1


async def test_the_usage_of_each_attempt_counts_once(bench: Any) -> None:
    cut: list[Any] = [
        Text("x"),
        UsageChunk(Usage(100, 1)),
        UsageChunk(Usage(100, 5)),
        *fail("provider.truncated", after_s=0.01),
    ]
    hub = await with_providers(bench, Priced(cut, [Text("y"), UsageChunk(Usage(100, 7, cached=40)), Finish("stop")]))
    started = await hub.start("go", config={"model": "script/m"})
    usage = (await hub.end(started))["runs"][started["run"]]["usage"]
    assert usage == {"input": 200, "output": 12, "cached": 40, "cost_usd": pytest.approx(0.00046)}
    closed = named(await hub.events(started["conv"]), "step.close")
    assert closed[0]["usage"] == usage
    assert closed[0]["ms"] >= 10


async def test_a_step_that_fails_counts_what_its_vendor_told(bench: Any) -> None:
    cut = [Text("x"), UsageChunk(Usage(1000, 1)), *fail("provider.refused")]
    hub = await with_providers(bench, Priced(cut))
    started = await hub.start("go", config={"model": "script/m"})
    state = await hub.end(started, "failed")
    assert state["runs"][started["run"]]["usage"] == {"input": 1000, "output": 1, "cost_usd": pytest.approx(0.00201)}
    assert named(await hub.events(started["conv"]), "step.close")[0]["usage"]["input"] == 1000


async def test_a_cancelled_step_counts_what_its_vendor_told(bench: Any) -> None:
    hub = await with_providers(bench, Priced([UsageChunk(Usage(1000, 1)), Text("x"), asyncio.Event()]))
    started = await hub.start("go", config={"model": "script/m"})
    await hub.until(started["conv"], lambda s: hub.texts(s) == ["x"])
    await hub.call("run.cancel", run=started["run"])
    state = await hub.end(started, "cancelled")
    assert state["runs"][started["run"]]["usage"] == {"input": 1000, "output": 1, "cost_usd": pytest.approx(0.00201)}


async def test_a_cost_that_the_vendor_tells_is_taken_and_an_unknown_one_is_left_out(bench: Any) -> None:
    told: list[Any] = [Text("x"), UsageChunk(Usage(10, 10, cost_usd=0.5)), Finish("stop")]
    hub = await with_providers(bench, Priced(told), ScriptedProvider(say("y"), name="free"))
    state = await hub.end(await hub.start("go", config={"model": "script/m"}))
    assert state["messages"][-1]["usage"]["cost_usd"] == 0.5
    state = await hub.end(await hub.start("go", config={"model": "free/m"}))
    assert "cost_usd" not in state["messages"][-1]["usage"]


async def test_rounds_that_send_very_much_may_cost_otherwise(bench: Any) -> None:
    class Tiered(Priced):
        model = Model("m", price=Price(1.0, 1.0, long=LongPrice(100, 10.0, 10.0)))

    scripts: list[Any] = [[Text("x"), UsageChunk(Usage(sent, 0)), Finish("stop")] for sent in (100, 101)]
    hub = await with_providers(bench, Tiered(*scripts))
    costs = []
    for _ in scripts:
        state = await hub.end(await hub.start("go", config={"model": "script/m"}))
        costs.append(state["messages"][-1]["usage"]["cost_usd"])
    assert costs == [pytest.approx(0.0001), pytest.approx(0.00101)]


async def test_attempts_are_priced_each_by_itself(bench: Any) -> None:
    class Tiered(Priced):
        model = Model("m", price=Price(1.0, 1.0, long=LongPrice(100, 10.0, 10.0)))

    cut: list[Any] = [Text("x"), UsageChunk(Usage(60, 0)), *fail("provider.truncated", after_s=0.01)]
    told: list[Any] = [Text("y"), UsageChunk(Usage(60, 0, cost_usd=0.5)), Finish("stop")]
    hub = await with_providers(bench, Tiered(cut, cut, told))
    started = await hub.start("go", config={"model": "script/m"})
    usage = (await hub.end(started))["runs"][started["run"]]["usage"]
    assert usage == {"input": 180, "output": 0, "cost_usd": pytest.approx(0.5 + 2 * 0.00006)}


async def test_prices_of_plugins_toml_win(bench: Any) -> None:
    hub = await with_providers(bench, Priced(say("y")))
    hub.app.models._patterns["script/"] = ModelOverride(price=PriceOverride(1000.0, 0.0))
    hub.app.extensions.version += 1
    state = await hub.end(await hub.start("go", config={"model": "script/m"}))
    assert state["messages"][-1]["usage"]["cost_usd"] == pytest.approx(0.001)


async def test_another_model_takes_over_in_a_step_of_its_own(bench: Any) -> None:
    broken = ScriptedProvider([Text("half"), *fail("provider.overloaded", retry=False)], name="a")
    spare = ScriptedProvider(call(("double", {"number": 2})), say("done"), name="b")
    hub = await with_providers(bench, broken, spare)
    started = await hub.start("go", config={"model": "a/m", "fallbacks": ["b/m"]})
    state = await hub.end(started)
    events = await hub.events(started["conv"])
    assert [d["model"] for d in named(events, "step.open")] == ["a/m", "b/m", "b/m"]
    assert [d["finish"] for d in named(events, "step.close")] == ["fallback", "tools", "stop"]
    assert named(events, "step.close")[0]["error"]["kind"] == "provider.overloaded"
    assert [d["why"] for d in named(events, "part.drop")] == ["fallback"]
    assert hub.texts(state) == ["", "", "done"]
    assert len(broken.requests) == 1, "a model that failed is not asked again in the same run"


async def test_a_run_fails_with_the_last_error_when_all_models_fail(bench: Any) -> None:
    models = [
        ScriptedProvider(fail(kind), name=name) for name, kind in (("a", "provider.auth"), ("b", "provider.refused"))
    ]
    hub = await with_providers(bench, *models)
    started = await hub.start("go", config={"model": "a/m", "fallbacks": ["b/m"]})
    state = await hub.end(started, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "provider.refused"
    assert [len(m.requests) for m in models] == [1, 1]


async def test_an_unknown_fallback_is_refused_where_it_is_set(bench: Any) -> None:
    hub = await bench()
    with pytest.raises(Fault) as raised:
        await hub.start("go", config={"fallbacks": ["script/m", "nobody/m"]})
    assert (raised.value.kind, raised.value.data["path"]) == ("config.invalid", "$.fallbacks[1]")


async def test_the_breaker_keeps_runs_from_a_dead_server(bench: Any) -> None:
    dead = ScriptedProvider(fail("provider.unreachable", after_s=0.0), name="a")
    spare = ScriptedProvider(say("ok"), name="b")
    hub = await with_providers(bench, dead, spare)
    for _ in range(gate.BREAK_AFTER + 3):
        await hub.end(await hub.start("go", config={"model": "a/m", "fallbacks": ["b/m"], "retries": 0}))
    assert len(dead.requests) == gate.BREAK_AFTER


async def test_a_long_conversation_is_trimmed_and_that_is_told(bench: Any) -> None:
    provider = Priced(say("ok"))
    hub = await with_providers(bench, provider)
    given: dict[str, Any] = {}
    for n in range(4):
        started = await hub.start(f"{n} " + "x" * 2000, config={"model": "script/m"}, **given)
        given = {"conv": started["conv"]}
        state = await hub.end(started)
    assert state["runs"][started["run"]]["trimmed"] == {"step": 1, "messages": 6, "context": 1500}
    assert [m.text[:1] for m in provider.requests[-1].messages] == ["3"]
    assert len(state["messages"]) == 8, "the conversation itself is whole"


async def test_who_does_not_want_it_trimmed_is_told_before_it_is_sent(bench: Any) -> None:
    provider = Priced(say("ok"))
    hub = await with_providers(bench, provider)
    started = await hub.start("x" * 8000, config={"model": "script/m", "trim": False})
    state = await hub.end(started, "failed")
    assert state["runs"][started["run"]]["error"]["kind"] == "provider.context"
    assert not provider.requests


async def test_a_vendor_that_finds_it_too_long_gets_less(bench: Any) -> None:
    def small(request: ModelRequest) -> list[Any]:
        too_long = sum(len(m.text) for m in request.messages) > 5000
        return fail("provider.context") if too_long else say("ok")

    provider = ScriptedProvider(small)
    hub = await with_providers(bench, provider)
    first = await hub.start("x" * 4000, config={"model": "script/m"})
    await hub.end(first)
    second = await hub.start("y" * 3000, conv=first["conv"])
    state = await hub.end(second)
    assert state["runs"][second["run"]]["trimmed"]["messages"] == 2
    assert len(provider.requests) == 3


async def test_thoughts_go_back_to_their_own_vendor_as_they_were(bench: Any) -> None:
    thinks = [Reasoning("hm"), Replay({"sig": "s1"}), Text("so"), *call(("double", {"number": 1}))]
    provider = ScriptedProvider(thinks, [Replay({"redacted": "zz"}), *say("done")])
    other = ScriptedProvider(say("other"), name="other")
    hub = await with_providers(bench, provider, other)
    started = await hub.start("go", config={"model": "script/m"})
    state = await hub.end(started)
    thought = provider.requests[1].messages[1].thoughts
    assert [(t.text, t.replay) for t in thought] == [("hm", {"sig": "s1"})]
    assert [type(p).__name__ for p in provider.requests[1].messages[1].parts] == [
        "ThoughtPart",
        "TextPart",
        "CallRequest",
    ]
    reasoning = [p for m in state["messages"] for p in m["parts"] if p["kind"] == "reasoning"]
    assert [p["text"] for p in reasoning] == ["hm", ""]
    assert all(isinstance(p["ms"], int) for p in reasoning)
    await hub.end(await hub.start("more", conv=started["conv"]))
    replays = [t.replay for m in provider.requests[2].messages for t in m.thoughts]
    assert replays == [{"sig": "s1"}, {"redacted": "zz"}]
    await hub.end(await hub.start("you?", conv=started["conv"], config={"model": "other/m"}))
    assert [t.replay for m in other.requests[0].messages for t in m.thoughts] == [None, None][:1]


async def test_files_reach_models_that_can_read_them(bench: Any) -> None:
    class Sees(ScriptedProvider):
        def models(self) -> list[Model]:
            return [Model("m", abilities=["images"])]

    sees, blind = Sees(say("a cat")), Priced(say("no idea"), name="blind")
    hub = await with_providers(bench, sees, blind)
    blob = await hub.app.blobs.put("ada", PNG, "image/png", "cat.png")
    parts = [
        {"kind": "text", "text": "what?"},
        {"kind": "image", "ref": blob.ref, "mime": "image/png", "name": "cat.png"},
    ]
    for provider in ("script", "blind"):
        await hub.end(await hub.call("run.start", input=parts, config={"model": f"{provider}/m"}))
    (file,) = sees.requests[0].messages[0].files
    assert (file.mime, file.name, file.data) == ("image/png", "cat.png", PNG)
    assert not blind.requests[0].messages[0].files
    assert "cat.png" in blind.requests[0].messages[0].text


async def test_calls_are_logged_without_the_prompt(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="sag")
    hub = await bench(say("ok"))
    await hub.end(await hub.start("secret plans " * 20))
    lines = [r for r in caplog.records if r.name == "sag.engine" and "script/m" in r.getMessage()]
    assert any(r.levelno == logging.INFO and "answered in" in r.getMessage() for r in lines)
    assert all("secret plans" not in r.getMessage() for r in lines if r.levelno > logging.DEBUG)
    assert all("secret plans " * 4 not in r.getMessage() for r in caplog.records)


async def test_a_key_that_the_vendor_refuses_is_told_before_a_run_starts(bench: Any) -> None:
    class Locked(ScriptedProvider):
        async def list_models(self, http: Any) -> list[Model]:
            raise ProviderError("provider.auth", "The key is refused.", status=401)

    provider = Locked(say("ok"), name="locked")
    hub = await with_providers(bench, provider)
    with pytest.raises(ProviderError):
        await hub.app.models.refresh(provider)
    with pytest.raises(Fault) as raised:
        await hub.start("go", config={"model": "locked/m"})
    assert raised.value.kind == "config.invalid"
    assert "refused" in raised.value.message
    assert not provider.requests


async def test_the_models_that_a_vendor_lists_are_told(bench: Any) -> None:
    class Lists(ScriptedProvider):
        async def list_models(self, http: Any) -> list[Model]:
            return [Model("one", context=1), Model("two")]

    hub = await with_providers(bench, provider := Lists())
    await hub.app.models.refresh(provider)
    assert [name for name, _, _ in hub.app.models.all()] == ["script/one", "script/two"]
    info = hub.app.models.info("script/one")
    assert info is not None
    assert info.context == 1


async def test_a_provider_may_refuse_a_model_before_a_run_starts(bench: Any) -> None:
    class Picky(ScriptedProvider):
        def check(self, request: ModelRequest) -> None:
            if request.model != "m":
                raise ProviderError("provider.refused", f"There is no {request.model}.")

    hub = await with_providers(bench, Picky(say("ok"), name="picky"))
    await hub.end(await hub.start("go", config={"model": "picky/m"}))
    with pytest.raises(Fault) as raised:
        await hub.start("go", config={"model": "picky/x"})
    assert raised.value.data["path"] == "$.model"
    assert msgspec.json.encode(raised.value.body())
