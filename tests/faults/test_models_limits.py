"""Model servers that limit the rate or refuse, and calls of tools that are wrong (RELIABILITY F27, F28)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from sag.hooks.tool import tool
from sag.testing.upstream import (
    Calls,
    Cut,
    Emit,
    FakeUpstream,
    FlavorName,
    Raw,
    Request,
    Say,
    Script,
    ToolCall,
    Usage,
    call,
    fail,
    say,
)
from tests.faults.upstreams import FLAVORS, Told, bench
from tests.harness import Client, Hub

Json = dict[str, Any]
flavors = pytest.mark.parametrize("flavor", FLAVORS)


# --- F27: not now ---


NAMES = (
    "x-ratelimit-{}-requests",
    "x-ratelimit-{}-tokens",
    *(f"anthropic-ratelimit-{n}-{{}}" for n in ("requests", "tokens", "input-tokens", "output-tokens")),
)
SILENT = {name.format("remaining"): "9" for name in NAMES}  # the fakes tell how long to wait in these


def after(value: str, **more: str) -> dict[str, str]:
    return {"retry-after": value, **more}


NOW = 1_790_000_000
DATE = {"date": formatdate(NOW, usegmt=True)}
WAITS: dict[str, tuple[Script, float, float]] = {
    "seconds": (fail(429, headers=after("1")), 1.0, 1.1),
    "fraction": (fail(429, headers=after("0.5")), 0.5, 0.55),
    "date": (fail(429, headers=after(formatdate(NOW + 1, usegmt=True), **DATE)), 1.0, 1.1),
    "past": (fail(429, headers=after(formatdate(NOW - 1000, usegmt=True), **DATE)), 0.0, 0.01),
    "absent": (fail(429, headers=SILENT), 0.5, 0.55),
    "nonsense": (fail(429, headers=after("soon") | SILENT), 0.5, 0.55),
    "nan": (fail(429, headers=after("nan") | SILENT), 0.5, 0.55),
    "negative": (fail(429, headers=after("-5")), 0.0, 0.01),
    "ms": (fail(429, headers={"retry-after-ms": "700"}), 0.7, 0.77),
    "529": (fail(529), 0.5, 0.55),
    "503": (fail(503, headers=after("1")), 1.0, 1.1),
    "500": (fail(500), 0.5, 0.55),
}
FINAL: dict[str, tuple[Script, str]] = {
    "eternity": (fail(429, headers=after("1e9")), "provider.rate_limit"),
    "infinite": (fail(429, headers=after("inf")), "provider.rate_limit"),
    "61": (fail(529, headers=after("61")), "provider.overloaded"),
    "401": (fail(401, headers=after("1")), "provider.auth"),
    "403": (fail(403), "provider.auth"),
    "404": (fail(404), "provider.refused"),
    "context": (
        fail(400, "prompt is too long: 9 tokens > 8 maximum", code="context_length_exceeded"),
        "provider.context",
    ),
}


@flavors
async def test_a_wait_that_is_asked_for_is_kept_and_shown(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor, models=list(WAITS)) as up, bench(flavor, {"a": up.url}) as b:
        for name, (script, _, _) in WAITS.items():
            up.script(script, say("there"), model=name)
        told = await b.all(lambda name: b.begin(f"a/{name}"), WAITS)
        for name, one in told.items():
            await one.ends("done")
            assert one.text == "there"
            first, second = [request.at for request in up.chats if request.json["model"] == name]
            _, least, most = WAITS[name]
            assert least - 0.01 <= second - first <= most + 0.5, (name, second - first)
            if most > 0.1:
                (wait,) = one.waits
                assert least * 1000 - 50 <= wait["after_ms"] <= most * 1000, name
                assert wait["why"]["attempt"], wait["why"]["of"] == (2, 3)
                assert wait["why"]["kind"] in ("provider.rate_limit", "provider.overloaded")
                assert "It failed." in wait["why"]["message"]
            assert not {"after_ms", "why"} & one.object.keys()
        b.idle()
        await b.check(*told.values())


@flavors
async def test_what_waiting_does_not_help_fails_at_once(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor, models=list(FINAL)) as up, bench(flavor, {"a": up.url}) as b:
        for name, (script, kind) in FINAL.items():
            up.script(script, model=name)
            began = time.monotonic()
            one = await b.ask(f"a/{name}", status="failed", trim=False)
            assert time.monotonic() - began < 1, name
            assert one.kind == kind, (name, one.error)
            assert one.waits == [], name
        assert len(up.chats) == len(FINAL)
        b.idle()


class Limited:
    """Answers `allowed` requests in each span; the others get 429."""

    def __init__(self, allowed: int, span_s: float, headers: Callable[[float], dict[str, str]]) -> None:
        self.allowed, self.span_s, self.headers = allowed, span_s, headers
        self.began = 0.0
        self.spans: Counter[int] = Counter()

    def __call__(self, request: Request) -> Script | None:
        now = time.monotonic()
        self.began = self.began or now
        span = int((now - self.began) / self.span_s)
        self.spans[span] += 1
        if self.spans[span] <= self.allowed:
            return None
        return fail(429, headers=self.headers((span + 1) * self.span_s - (now - self.began)))


@pytest.mark.parametrize(("flavor", "tells"), [("openai", True), ("anthropic", True), ("openai", False)])
async def test_fifty_runs_do_not_stampede(flavor: FlavorName, tells: bool) -> None:
    vendor = Limited(10, 0.8, lambda left_s: {"retry-after-ms": f"{left_s * 1000:.0f}"} if tells else SILENT)
    async with FakeUpstream(flavor, answer=vendor) as up, bench(flavor, {"a": up.url}) as b:
        told = await asyncio.gather(*(b.begin("a", f"say {n}") for n in range(50)))
        for one in told:
            await one.ends("done", 40)
        calls = sum(vendor.spans.values())
        allowed = vendor.allowed * (max(vendor.spans) + 1)
        assert calls <= 1.5 * allowed
        assert calls == len(up.chats)
        b.idle()


@flavors
async def test_each_attempt_is_counted_and_paid_once(flavor: FlavorName, make_hub: Callable[..., Hub]) -> None:
    told = {"openai": {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 5}}}
    told["anthropic"] = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 100, "output_tokens": 5}}
    cut = Script([Say("half"), Emit(told[flavor]), Emit(told[flavor]), Cut("fin")])
    if flavor == "anthropic":
        cut.usage = Usage(input=100, output=5)
    price = f'[models."{flavor}/fake"]\nprice = {{ input = 1000.0, output = 10000.0, cached = 100.0 }}\n'
    async with FakeUpstream(flavor) as up:
        env = {"LLM_PROVIDER": flavor, "LLM_BASE_URL": up.url, "LLM_MODEL": "fake", "LLM_API_KEY": "k"}
        hub = make_hub(price, **env)
        up.script(fail(429, headers=after("0.1")), cut, cut, say("all", usage=Usage(input=50, output=7, cached=40)))
        async with Client(hub.url) as client:
            one = await Told(*await client.say("hi", config={"retries": 3})).ends()
            usage = {"input": 290, "output": 17, "cached": 40, "cost_usd": pytest.approx(0.25 + 0.004 + 0.17)}
            assert one.object["usage"] == usage
            (closed,) = one.named("step.close")
            assert closed["usage"] == usage
            (ended,) = one.named("run.close")
            assert ended["usage"] == usage
            answer = await client.call("usage.get")
            assert answer["total"]["cost_usd"] == usage["cost_usd"], answer
        assert len(up.chats) == 4


FIGURES = ("-1000", "9" * 25, "1e30", "NaN", "1e400", '"7"', "[]")


@flavors
async def test_figures_that_cannot_be_are_bounded(flavor: FlavorName) -> None:
    told = {
        "openai": '{"choices":[],"usage":{"prompt_tokens":N,"completion_tokens":N,"cost":N}}',
        "anthropic": '{"type":"message_delta","delta":{},"usage":{"input_tokens":N,"output_tokens":N}}',
    }
    kind = {"flavor": "openrouter"} if flavor == "openai" else {}
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}, members=kind) as b:
        for figure in FIGURES:
            event = f"data: {told[flavor].replace('N', figure)}\n\n"
            up.script(Script([Say("x"), Raw(event.encode())], usage=False))
            one = await b.ask("a", status="done", retries=0)
            usage, total = one.object["usage"], (await b.client.call("usage.get", conv=one.conv))["total"]
            assert 0 <= usage["input"] <= 10**12, figure
            assert 0 <= usage["output"] <= 10**12, figure
            assert usage.get("cost_usd", 0) >= 0, figure
            assert (usage["input"], usage["output"]) == (total["input"], total["output"]), figure
            assert usage.get("cost_usd") == total.get("cost_usd"), figure
            await b.check(one)


# --- F28: calls that are wrong ---

RUNS: list[str] = []


@tool(risk="read")
async def mark(id: str) -> str:
    """Write it down."""
    RUNS.append(id)
    return f"marked {id}"


def calls(*given: tuple[str, Any], **more: Any) -> Script:
    return Script([Calls([ToolCall(name, arguments) for name, arguments in given], **more)])


@pytest.fixture(autouse=True)
def fresh_runs() -> None:
    RUNS.clear()


def outcomes(one: Told) -> list[tuple[str, str]]:
    """Status and kind of error of each call, in order; each is closed exactly once."""
    opened = [d["call"] for d in one.named("tool.open")]
    closed = {d["call"]: (d["status"], (d.get("error") or {}).get("kind", "")) for d in one.named("tool.close")}
    assert len(opened) == len(set(opened)) == len(one.named("tool.close")), "each call is closed once"
    return [closed[call] for call in opened]


CALLS: dict[str, tuple[Script, list[tuple[str, str]]]] = {
    "interleaved": (calls(*(("mark", {"id": f"é😀{n}"}) for n in range(5)), chars=1), [("ok", "")] * 5),
    "broken": (calls(("mark", '{"id": "x"'), ("mark", "{oops}"), ("mark", "[1]")), [("invalid", "tool.args")] * 3),
    "truncated": (
        Script([Calls([ToolCall("mark", '{"id": "x')])], finish="length"),
        [("invalid", "tool.args")],
    ),
    "types": (
        calls(("mark", {"id": 5}), ("mark", {}), ("mark", {"id": "a", "more": 1})),
        [("invalid", "tool.args")] * 3,
    ),
    "deep": (calls(("mark", '{"id":' + "[" * 400 + "]" * 400 + "}")), [("invalid", "tool.args")]),
    "long-name": (calls(("n" * 500_000, {"id": "x"}), ("mark\r\n\x00", {})), [("invalid", "tool.unknown")] * 2),
    "unknown": (
        calls(("no_such_tool", {"x": 1}), ("", {}), ("mark", {"id": "y"})),
        [("invalid", "tool.unknown")] * 2 + [("ok", "")],
    ),
    "same-id": (
        Script([Calls([ToolCall("mark", {"id": f"s{n}"}, id="same") for n in range(3)])]),
        [("ok", "")] * 3,
    ),
    "no-arguments": (calls(("mark", "")), [("invalid", "tool.args")]),
    "most": (calls(*(("mark", {"id": f"m{n}"}) for n in range(64))), [("ok", "")] * 64),
}


@flavors
async def test_each_call_is_closed_once_and_errors_go_back_to_the_model(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}, tools=[mark]) as b:
        for name, (script, wanted) in CALLS.items():
            RUNS.clear()
            up.script(script, say("I see"))
            one = await b.ask("a", status="done", retries=0)
            assert outcomes(one) == wanted, (name, [d.get("error") for d in one.named("tool.close")])
            assert one.text == "I see"
            assert len(RUNS) == len(set(RUNS)) == sum(status == "ok" for status, _ in wanted), name
            assert max(len(d["name"]) for d in one.named("tool.open")) <= 200
            answers = up.chats[-1].asked
            assert answers is not None
            assert len(answers.answers) == len(wanted), "the model reads what became of each"
            for text, (status, _) in zip(answers.answers, wanted, strict=True):
                assert text.startswith("Error (invalid)" if status == "invalid" else "marked "), name
            await b.check(one)


@flavors
async def test_caps_end_a_run_with_limit(flavor: FlavorName) -> None:
    cases = {
        "calls": calls(*(("mark", {"id": f"t{n}"}) for n in range(1000)), interleaved=False),
        "arguments": calls(("mark", {"id": "x" * (5 << 20)}), chars=1 << 16),
        "fragment": calls(("mark", {"id": "x" * 900_000}), chars=1 << 20),
        "whole": calls(("mark", {"id": "x" * 900_000}), whole=True),
        "escapes": calls(("mark", {"id": '"' * 150_000 + "x" * 400_000}), chars=1 << 20),
    }
    async with FakeUpstream(flavor) as up, bench(flavor, dict.fromkeys(cases, up.url), tools=[mark]) as b:
        for name, script in cases.items():
            up.script(script)
            one = await b.ask(name, status="limit", retries=0)
            assert one.kind == "run.limit", name
            assert not RUNS, "a step that was not finished calls nothing"
            assert outcomes(one) == []
            assert max((len(p["text"]) for p in one.parts), default=0) <= 256 << 10, name
            assert all(not p["open"] for p in one.parts)
            await b.check(one)
        b.idle()


@flavors
async def test_a_model_that_never_stops_calling_is_stopped(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor, answer=lambda r: call("mark", {"id": f"n{len(RUNS)}"})) as up:
        async with bench(flavor, {"a": up.url}, tools=[mark]) as b:
            one = await b.ask("a", status="limit")
            assert (len(up.chats), len(RUNS)) == (5, 5)
            assert outcomes(one) == [("ok", "")] * 5
            one = await b.ask("a", status="limit", rounds=32)
            assert len(up.chats) == 37
            await b.check(one)
        text = "config.invalid"
        async with bench(flavor, {"a": up.url}) as b:
            refused = await b.client.refused("run.start", input=[{"kind": "text", "text": "x"}], config={"rounds": 33})
            assert refused.kind == text


async def test_calls_that_qwen_writes_as_text_are_calls() -> None:
    forms = [
        '<tool_call>\n{"name": "mark", "arguments": {"id": "q"}}\n</tool_call>',
        'Let me see. <tool_call>{"name": "mark", "arguments": {"id": "q"}}</tool_call>',
        '{"name": "mark", "arguments": {"id": "q"}}',
        "<tool_call><function=mark><parameter=id>q</parameter></function></tool_call>",
    ]
    async with FakeUpstream() as up, bench("openai", {"a": up.url}, tools=[mark]) as b:
        for form in forms:
            RUNS.clear()
            up.script(Script([Say(list(form))]), say("done"))
            one = await b.ask("a", status="done")
            assert outcomes(one) == [("ok", "")], form
            assert RUNS == ["q"]
            assert "tool_call" not in one.text
            await b.check(one)
        large = '<tool_call>{"name": "mark", "arguments": {"id": "%s"}}</tool_call>' % ("x" * (5 << 20))
        up.script(Script([Say([large[i : i + 50_000] for i in range(0, len(large), 50_000)])]), say("done"))
        one = await b.ask("a", retries=0)
        assert one.object["status"] in ("limit", "done")
        assert RUNS == ["q"]
