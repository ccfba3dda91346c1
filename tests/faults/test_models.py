"""Model servers that go wrong, through a whole hub: they cannot be reached, fall silent, break off, send rubbish.

RELIABILITY F22 to F26. What the hub itself does meanwhile is in test_models_limits.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sag.engine.gate import BREAK_AFTER
from sag.errors import KINDS
from sag.hooks.tool import tool
from sag.testing.upstream import (
    Calls,
    Comment,
    Cut,
    Emit,
    Fail,
    FakeUpstream,
    FlavorName,
    Hang,
    LongLine,
    Raw,
    Say,
    Script,
    Think,
    ToolCall,
    Wait,
    gzip_bomb,
    say,
)
from tests.faults.upstreams import BRIEF, FLAVORS, Told, bench, certificate, delta, free_port, listener
from tests.harness import Client, Hub, fresh, until

Json = dict[str, Any]
PREFIX = {"openai": "/v1", "anthropic": ""}
flavors = pytest.mark.parametrize("flavor", FLAVORS)


@tool(risk="read")
async def echo(text: str) -> str:
    """Say something back."""
    return text


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- F22: it cannot be reached ---


@flavors
async def test_a_server_that_cannot_be_reached_is_tried_three_times_and_then_given_up(
    flavor: FlavorName, tmp_path: Path
) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(full.getsockname())
        fillers.append(filler)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    context = certificate(tmp_path)

    async def encrypted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(context)

    try:
        async with (
            listener(plain) as (plain_port, plain_calls),
            listener(encrypted) as (tls_port, tls_calls),
            listener() as (mute_port, mute_calls),
            FakeUpstream(flavor) as up,
        ):
            urls = {
                "refused": f"http://127.0.0.1:{free_port()}",
                "unresolved": "http://no-such-host.invalid",
                "unresolvable": f"http://{'a' * 64}.test",
                "plain": f"https://127.0.0.1:{plain_port}",
                "untrusted": f"https://127.0.0.1:{tls_port}",
                "full": f"http://127.0.0.1:{full.getsockname()[1]}",
                "mute": f"http://127.0.0.1:{mute_port}",
            }
            async with bench(flavor, {**urls, "well": up.url}) as b:
                for calls in (plain_calls, tls_calls, mute_calls):
                    await until(partial(bool, calls), "the list of models was asked for")
                    calls.clear()
                await b.check(await b.ask("well"))
                before, began = fds(), time.monotonic()
                told = await b.all(lambda name: b.begin(name, first_token_s=0.6), urls)
                assert (await b.ask("well", "hello", "done")).text == "hello"
                assert time.monotonic() - began < 1.5, "a server that is well has nothing to do with it"
                for name, one in told.items():
                    await one.ends("failed", 30)
                    assert one.kind == ("provider.timeout" if name == "mute" else "provider.unreachable"), name
                    assert one.text == ""
                    assert [(w["why"]["kind"], w["why"]["attempt"], w["why"]["of"]) for w in one.waits] == [
                        (one.kind, n, 3) for n in (2, 3)
                    ], name
                    first, second = (w["after_ms"] for w in one.waits)
                    assert 375 <= first <= 500, name
                    assert 750 <= second <= 1000, name
                    assert len(one.named("run.close")) == 1, name
                assert len({w["after_ms"] for one in told.values() for w in one.waits}) > len(told), "waits differ"
                assert time.monotonic() - began < 30
                assert KINDS["provider.unreachable"].code == 502
                assert KINDS["provider.timeout"].code == 504
                assert [len(mute_calls), len(plain_calls), len(tls_calls)] == [3, 3, 3]
                b.idle()
                await b.check(*told.values())
                await until(lambda: fds() <= before, "what was opened is closed")
    finally:
        for sock in (full, *fillers):
            sock.close()


@flavors
async def test_the_breaker_opens_after_five_failures_and_closes_when_the_server_is_back(flavor: FlavorName) -> None:
    port = free_port()
    async with (
        FakeUpstream(flavor) as other,
        bench(flavor, {"a": f"http://127.0.0.1:{port}{PREFIX[flavor]}", "b": other.url}) as b,
    ):
        async with listener(port=port) as (_, calls):
            for _ in range(BREAK_AFTER):
                one = await b.ask("a", status="failed", **{**BRIEF, "first_token_s": 0.05})
                assert one.kind == "provider.timeout"
            asked = len(calls)
            refused = await b.ask("a", status="failed", **BRIEF)
            assert refused.kind == "provider.unreachable"
            assert refused.error["retry"] is True
            assert len(calls) == asked, "nobody asks while it is open"
            assert (await b.ask("b", "hello", "done")).text == "hello"
            assert (await b.ask("a", "hello", "done", fallbacks=["b/fake"], **BRIEF)).text == "hello"
            assert len(calls) == asked
        async with FakeUpstream(flavor, port=port) as up:
            back = await b.ask("a", "back", "done")
            assert back.text == "back"
            assert len(up.chats) == 1
            for text in ("and", "again"):
                assert (await b.ask("a", text, "done", **BRIEF)).text == text
        b.idle()


@flavors
async def test_a_server_that_was_dead_for_fifty_runs_is_soon_asked_again(
    flavor: FlavorName,
) -> None:
    port = free_port()
    async with bench(flavor, {"a": f"http://127.0.0.1:{port}{PREFIX[flavor]}"}) as b:
        async with listener(port=port):
            runs = [await b.begin("a", **{**BRIEF, "first_token_s": 0.5}) for _ in range(20)]
            for one in runs:
                await one.ends("failed")
        async with FakeUpstream(flavor, port=port):
            began = time.monotonic()
            assert (await b.ask("a", "back", "done")).text == "back"
            assert time.monotonic() - began < 3
        b.idle()


# --- F23: it stalls ---

PINGS: list[Any] = [Emit({"type": "ping"}), Wait(0.05)]
STALLS: dict[str, Script] = {
    "silence": Script(head="hang"),
    "no-byte": Script([Hang()], role=False),
    "no-token": Script([Hang()]),
    "comments": Script([Comment(count=None, every_s=0.02)]),
    "pings": Script(PINGS * 40),
    "stall": Script([Say("some text"), Hang()]),
    "then-comments": Script([Say("some text"), Comment(count=None, every_s=0.02)]),
    "then-pings": Script([Say("some text"), *PINGS * 40]),
    "slow": Script([Say(["t"] * 60)], tokens_per_s=20),
}


@flavors
async def test_silence_ends_with_a_timeout_and_comments_are_silence(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, dict.fromkeys(STALLS, up.url)) as b:
        told = {}
        for name, script in STALLS.items():
            up.script(script)
            chats = len(up.chats)
            told[name] = await b.begin(name, **BRIEF, total_s=1.0)
            await up.wait_requests(chats + 1)
        for name, one in told.items():
            await one.ends("failed")
            assert one.kind == "provider.timeout", name
            text = "some text" if name in ("stall", "then-comments", "then-pings") else ""
            assert one.text.startswith("ttt") if name == "slow" else one.text == text, name
            assert all(part["partial"] is True and not part["open"] for part in one.parts), name
            assert one.waits == [], name
        for request in up.chats:
            await request.wait_ended()
        assert {request.ended for request in up.chats} == {"client"}, "the hub hangs up"
        b.idle()
        await b.check(*told.values())


@flavors
async def test_one_token_in_each_interval_is_no_silence_however_long_it_takes(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}) as b:
        up.script(Script([Say([f"{n} " for n in range(12)])], tokens_per_s=8))
        one = await b.ask("a", status="done", **BRIEF)
        assert one.text == "".join(f"{n} " for n in range(12))
        assert one.named("step.close")[0]["ms"] > 1200


# --- F24: it breaks off ---

BREAKS: dict[str, tuple[Script, str]] = {
    "before": (Script(head="rst"), "provider.disconnected"),
    "fin": (Script([Say("half of "), Cut("fin")]), "provider.disconnected"),
    "rst": (Script([Say("half of "), Wait(0.05), Cut("rst")]), "provider.disconnected"),
    "clean": (Script([Say("half of ")], finish="", done=False, usage=False), "provider.truncated"),
    "closed": (
        Script([Say("half of ")], finish="", done=False, usage=False, framing="close"),
        "provider.truncated",
    ),
    "thought": (Script([Think("hm hm"), Cut("fin")]), "provider.disconnected"),
    "call": (
        Script([Say("half of "), Calls([ToolCall("echo", {"text": "x" * 40})]), Cut("fin")]),
        "provider.disconnected",
    ),
    "call-clean": (
        Script([Say("half of "), Calls([ToolCall("echo", {"text": "x"})])], finish="", done=False, usage=False),
        "provider.truncated",
    ),
}


@flavors
async def test_what_breaks_off_is_kept_as_partial_and_never_done(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, dict.fromkeys(BREAKS, up.url)) as b:
        for name, (script, kind) in BREAKS.items():
            up.script(script)
            one = await b.ask(name, status="failed", **BRIEF)
            assert one.kind == kind, name
            assert one.text == ("" if name in ("thought", "before") else "half of "), name
            assert bool(one.parts) == (name != "before")
            assert all(not part["open"] for part in one.parts), name
            assert all(part.get("partial") for part in one.parts[-1:]), name
            assert one.named("tool.open") == [], "a call that did not come to its end is not made"
            assert len(one.named("run.close")) == 1
            await b.check(one)
        assert len(up.chats) == len(BREAKS)


@flavors
async def test_a_retry_drops_what_came_and_says_so(flavor: FlavorName) -> None:
    names = ("fin", "thought", "call")
    async with FakeUpstream(flavor, models=names) as up, bench(flavor, {"a": up.url}) as b:
        for name in names:
            up.script(BREAKS[name][0], BREAKS[name][0], say("all of it"), model=name)
        told = await b.all(lambda name: b.begin(f"a/{name}"), names)
        for name, one in told.items():
            await one.ends("done")
            assert one.text == "all of it"
            opened = [d["part"] for d in one.named("part.open")]
            assert [d["part"] for d in one.named("part.drop")] == opened[:-1]
            assert {d["why"] for d in one.named("part.drop")} == {"provider_retry"}
            assert [p["text"] for p in one.parts] == ["all of it"]
            assert [w["why"]["kind"] for w in one.waits] == [BREAKS[name][1]] * 2
            assert [d["finish"] for d in one.named("step.close")] == ["stop"]
        await b.check(*told.values())
        b.idle()


# --- F25: rubbish ---

LOREM = "VENDOR\x1b[31m\u202e\u200b " * 2000
STREAM = {"content-type": "text/event-stream"}


def rubbish(flavor: FlavorName) -> dict[str, Script]:
    """Answers that are no answers of the vendor's protocol."""
    begun: Json = {"finish": "", "usage": False, "done": False}
    return {
        "html": Script(body=b"<html>" + LOREM.encode(), headers={"content-type": "text/html"}),
        "html-as-stream": Script(body=b"<html>\n" + LOREM.encode(), headers=STREAM),
        "json": Script(body=b'{"id": "x", "words": "VENDOR"}'),
        "no-type": Script(body=LOREM.encode(), headers={"content-type": ""}),
        "pdf": Script(body=b"%PDF-1.7", headers={"content-type": "application/pdf"}),
        "empty": Script(body=b"", headers=STREAM),
        "broken-line": Script([Say("a"), Raw(b'data: {"VENDOR\n\n')]),
        "no-object": Script([Say("a"), Raw(b"event: x\ndata: [1, 2]\n\n")]),
        "long-line": Script([Say("a"), LongLine(4 << 20)]),
        "gzip": gzip_bomb(4 << 20),
        "long-head": Script(headers={"x-long": "VENDOR" * 170_000}),
        "no-http": Script(head="garbage"),
        "redirect": Script(status=302, headers={"location": "http://169.254.169.254/latest"}, body=LOREM.encode()),
        "permanent": Script(status=308, headers={"location": "http://169.254.169.254/latest"}, body=b""),
        "not-modified": Script(status=304, body=b""),
        "no-content": Script(status=204, body=b""),
        "text-before": Script([Raw(b"VENDOR says\n"), Raw(b"this is it\n\n")], role=False, **begun),
    }


@flavors
async def test_rubbish_is_a_protocol_error_and_little_of_it_is_shown(
    flavor: FlavorName, caplog: pytest.LogCaptureFixture
) -> None:
    cases = rubbish(flavor)
    async with FakeUpstream(flavor) as up, listener() as (port, elsewhere):
        for status in (301, 303, 307):
            cases[f"to-{status}"] = Script(status=status, headers={"location": f"http://127.0.0.1:{port}/"}, body=b"")
        async with bench(flavor, dict.fromkeys(cases, up.url)) as b:
            for name, script in cases.items():
                up.script(script)
                began = time.monotonic()
                one = await b.ask(name, status="failed", retries=0)
                assert time.monotonic() - began < 3, name
                wanted = ("provider.truncated",) if name in ("empty",) else ("provider.protocol",)
                assert one.kind in wanted, (name, one.error)
                message = one.error["message"]
                assert len(message) <= 200, name
                assert message.isprintable(), name
                assert all(part["partial"] for part in one.parts), name
                told = json.dumps([e["d"] for e in one.view.events])
                assert told.count("VENDOR") <= 200 / len("VENDOR"), name
                await b.check(one)
            assert len(up.chats) == len(cases)
            assert not elsewhere, "redirects are not followed"
            b.idle()
    for line in caplog.messages:
        assert line.count("VENDOR") <= 200 / len("VENDOR")


ERRORS = {
    400: "provider.refused",
    404: "provider.refused",
    401: "provider.auth",
    500: "provider.overloaded",
    529: "provider.overloaded",
    418: "provider.refused",
}


@flavors
async def test_of_what_a_vendor_says_at_most_200_printable_characters_are_shown(flavor: FlavorName) -> None:
    secret = "sk-" + "s3cret" * 6
    async with FakeUpstream(flavor, api_key=secret) as up:
        urls = dict.fromkeys([f"e{status}" for status in (*ERRORS, 200)], up.url)
        async with bench(flavor, urls, members={"api_key": secret}, env={"X_TOKEN": secret}) as b:
            for status, kind in {**ERRORS, 200: "provider.overloaded"}.items():
                words = f"{secret} \x1b[2J\u202eVENDOR\u2028\x00" + LOREM
                given = Fail(status, words, type="overloaded_error" if status == 200 else "")
                up.script(Script([Say("a "), given]) if status == 200 else Script([given], status))
                one = await b.ask(f"e{status}", status="failed", retries=0)
                assert one.kind == kind, (status, one.error)
                assert len(one.error["message"]) <= 200
                assert one.error["message"].isprintable()
                assert "VENDOR" in one.error["message"], "and they are shown"
                assert "s3cret" not in json.dumps([e["d"] for e in one.view.events])
                assert one.text == ("a " if status == 200 else "")


@flavors
async def test_odd_forms_of_a_right_answer_are_read(flavor: FlavorName) -> None:
    forms: dict[str, dict[str, Any]] = {
        "bom": {"bom": True},
        "cr": {"newline": "\r"},
        "crlf": {"newline": "\r\n"},
        "cut": {"segment": 1},
        "cut-crlf": {"segment": 1, "newline": "\r\n", "bom": True},
        "cut-cr": {"segment": 7, "newline": "\r"},
        "close": {"framing": "close"},
        "no-type": {"headers": {"content-type": ""}},
        "typed": {"headers": {"content-type": "Text/Event-Stream"}},
    }
    text = "one\r\ntwo\n three\r four é€😀 "
    async with FakeUpstream(flavor) as up, bench(flavor, dict.fromkeys(forms, up.url)) as b:
        for name, given in forms.items():
            up.script(Script([Comment(), Say(text)], **given))
            one = await b.ask(name, status="done", retries=0)
            assert one.text == text, name
            await b.check(one)


@flavors
async def test_what_is_huge_takes_no_memory(flavor: FlavorName, make_hub: Callable[..., Hub]) -> None:
    body = b"".join(delta(flavor, json.dumps("x" * 60_000).encode()) for _ in range(40))
    huge = {
        "line": Script([LongLine(200 << 20)]),
        "bomb": gzip_bomb(100 << 20),
        "head": Script(headers={"x-long": "x" * (1 << 20)}),
        "comments": Script([Comment("x" * 60_000, count=2000)]),
        "error": Script([Fail(500, "x" * (20 << 20))], 500),
        "html": Script(body=b"x" * (20 << 20), headers={"content-type": "text/html"}),
        "text": Script([Raw(body)]),
    }
    async with FakeUpstream(flavor) as up:
        hub = make_hub(
            LLM_PROVIDER=flavor,
            LLM_BASE_URL=up.url,
            LLM_MODEL="fake",
            LLM_API_KEY="k",
        )
        async with Client(hub.url) as client:

            async def ask(script: Script) -> tuple[Told, int]:
                up.script(script)
                config = {"model": f"{flavor}/fake", "retries": 0, "gap_s": 5, "first_token_s": 5}
                one = Told(*await client.say("hi", config=config))
                peak = 0
                while one.object.get("status") not in ("failed", "done"):
                    peak = max(peak, hub.rss_kib())
                    await asyncio.sleep(0.002)
                await client.call("topic.unsubscribe", topic=one.view.topic)
                return one, peak

            for _ in range(2):  # what is imported and allocated once
                for step in (LongLine(4 << 20), Raw(body), Say("x")):
                    await ask(Script([step]))
            for name, script in huge.items():
                before = hub.rss_kib()
                one, peak = await ask(script)
                assert one.object["status"] == ("done" if name == "text" else "failed"), one.object
                assert name == "text" or peak - before <= 4 << 10, name


# --- F26: text that is no text ---

ODD = "a\u2028b\u2029c\u0085d\u000be\u000cf\u0000g\u001eh\u202eRTL\u202c\u200bi\u200d\ufeffj"
ODD += "é€😀👩‍👩‍👧 \U0010ffff\r\nk\tl\x1b[0m\x7f"
TEXTS: dict[str, tuple[bytes, str]] = {
    "raw": (json.dumps(ODD, ensure_ascii=False).encode(), ODD),
    "escaped": (json.dumps(ODD).encode(), ODD),
    "invalid": (b'"a\xffb\xc3(c\xe2\x82"', "a\ufffdb\ufffd(c\ufffd"),
    "overlong": (b'"a\xc0\x80b"', "a\ufffd\ufffdb"),
    "surrogate-bytes": (b'"a\xed\xa0\xbdb"', "a\ufffd\ufffd\ufffdb"),
    "lone-high": (b'"a\\ud83db"', "a\ufffdb"),
    "lone-low": (b'"a\\ude00b"', "a\ufffdb"),
    "wrong-order": (b'"a\\ude00\\ud83db"', "a\ufffd\ufffdb"),
    "control": (b'"a\x01b\x0bc\x00d"', "a\x01b\x0bc\x00d"),
}


@flavors
async def test_every_text_arrives_as_it_was_and_what_is_none_is_replaced(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, dict.fromkeys(TEXTS, up.url)) as b:
        for name, (data, text) in TEXTS.items():
            for segment in (0, 1):
                up.script(Script([Say("["), Raw(delta(flavor, data)), Say("]")], segment=segment))
                one = await b.ask(name, status="done", retries=0)
                assert one.text == f"[{text}]", (name, segment)
                await b.check(one)
                snap, replayed = await fresh(b.hub.url, f"conv:{one.conv}")
                for state in (snap, replayed):
                    assert state["messages"][-1]["parts"][-1]["text"] == f"[{text}]"
                assert (snap["messages"][-1].get("notes") == ["decode"]) == ("\ufffd" in text)
                listed = await b.client.call("message.list", conv=one.conv)
                assert listed["messages"][-1]["parts"][-1]["text"] == f"[{text}]"
                again = await b.begin(name, "and?", one.conv)
                await again.ends("done")
                assert "\ud83d" not in up.chats[-1].body.decode(), "what goes back is Unicode, too"


async def test_a_text_that_is_six_times_as_long_within_json_can_be_subscribed_to() -> None:
    texts = ["\x01" * 90_000, '"' * 300_000, "\x02" * 150_000, "é" * 200_000]
    async with FakeUpstream() as up, bench("openai", {"a": up.url}) as b:
        raw = [json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False) for text in texts]
        up.script(Script([Raw(f"data: {one}\n\n".encode()) for one in raw]))
        one = await b.ask("a", status="done")
        assert one.text == "".join(texts)
        assert all(len(json.dumps(part["text"])) <= 256 << 10 for part in one.parts if "é" not in part["text"])
        async with asyncio.timeout(5), b.hub.client("newcomer") as client:
            topic = await client.subscribe(f"conv:{one.conv}")
            assert topic.state["messages"][-1]["parts"][-1]["text"] == one.parts[-1]["text"]


@flavors
async def test_names_and_arguments_that_are_no_text_do_not_fail_a_run(flavor: FlavorName) -> None:
    async with FakeUpstream(flavor) as up, bench(flavor, {"a": up.url}, tools=[echo]) as b:
        for arguments in ('{"text": "a\\ud83db"}', '{"text": "é€😀\u2028\\u0000"}', '{"text": "a\\ude00"'):
            both = Calls([ToolCall("echo", arguments), ToolCall("ec\u2028ho\x00", "{}")], chars=1)
            up.script(Script([Think("\u2028😀"), both], segment=1), say("done"))
            one = await b.ask("a", status="done", retries=0)
            assert len(one.named("tool.close")) == 2
            await b.check(one)
