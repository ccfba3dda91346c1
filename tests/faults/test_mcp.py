"""MCP servers that go wrong, through a whole hub: they crash, hang, flood, garble, leave children, break off.

RELIABILITY F29 to F34. A model calls their tools, a client sees what becomes of it, and a second server is called all
the while to see that nobody else suffers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sag.plugin import Chunk, ModelRequest
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, call, say
from sag_mcp.connector import Pace
from tests.harness import Client, Hub, View, until
from tests.mcp.desk import FAST, bearers, lag, p99
from tests.mcp.scripted import HttpServer, command

Json = dict[str, Any]
eras = pytest.mark.parametrize("era", ["handshake", "stateless"])


def obey(request: ModelRequest) -> Sequence[Chunk]:
    """A model that makes the calls of the user's message, `TOOL JSON` a line, and then reads out what it got."""
    last = request.messages[-1]
    if last.role == "user":
        lines = [line.partition(" ") for line in last.text.splitlines()]
        return call(*((name, args or "{}") for name, _, args in lines))
    return say(last.text or "nothing")


class Bench:
    """A hub with MCP servers, and a client that has its model call their tools."""

    def __init__(self, hub: RunningHub, client: Client, model: ScriptedProvider) -> None:
        self.hub, self.client, self.model = hub, client, model
        self.view = client.views["hub"]

    def server(self, name: str = "bad") -> Json:
        found: Json = self.view.has["connectors"].get(name, {})
        return found

    async def is_(self, status: str, name: str = "bad", timeout_s: float = 10.0) -> Json:
        await until(lambda: self.server(name).get("status") == status, f"{status}: {self.server(name)}", timeout_s)
        return self.server(name)

    async def use(self, *lines: str, timeout_s: float = 20.0) -> list[Json]:
        """Have tools called in one round; gives the calls as the conversation has them."""
        started, view = await self.client.say("\n".join(lines))
        await self.client.done(view, started["run"], "done", timeout_s)
        return list(view.has["tools"].values())

    async def one(self, tool: str, **args: Any) -> Json:
        (found,) = await self.use(f"bad__{tool} {json.dumps(args)}")
        return found

    async def others_work(self) -> None:
        (found,) = await self.use('good__echo {"text": "fine"}', timeout_s=3.0)
        assert found["status"] == "ok"
        assert found["ms"] < 1000


@contextlib.asynccontextmanager
async def bench(bad: Json | None = None, **options: Any) -> AsyncIterator[Bench]:
    """A hub with the server `bad`, of options for the scripted server unless its table is given, and one more."""
    table = bad or {}
    if "url" not in table:
        table = {"command": command(**options), **table}
    table = {"policy": "auto", **table}
    model = ScriptedProvider(obey)
    good = {"command": command(), "policy": "auto"}
    async with running_hub(tables={"mcp": {"servers": {"bad": table, "good": good}}}, providers=[model]) as hub:
        async with Client(hub.url, topics=["hub"]) as client:
            made = Bench(hub, client, model)
            await made.is_("ready", "good")
            yield made
        began = time.monotonic()
    assert time.monotonic() - began < 9


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Pace:
    monkeypatch.setattr("sag_mcp.connector.PACE", FAST)
    return FAST


# --- F29: crash ---


@eras
async def test_a_crash_in_a_call_closes_the_call_and_the_server_is_back_in_five_seconds(era: str) -> None:
    async with bench(era=era) as made:
        await made.is_("ready")
        began = time.monotonic()
        crash, fine = await made.use("bad__crash", 'good__echo {"text": "fine"}')
        assert time.monotonic() - began < 2
        assert (crash["status"], crash["error"]["kind"]) == ("error", "mcp.closed")
        assert crash["ms"] < 1000
        assert fine["status"] == "ok"
        await made.is_("backoff")
        assert "status 3: about to crash" in made.server()["error"]
        await made.is_("ready", timeout_s=5.0)
        assert (await made.one("echo", text="back"))["status"] == "ok"


async def test_a_crash_at_the_start_is_tried_again_and_given_up_and_others_do_not_mind(
    fast: Pace, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    sick.touch()
    began = time.monotonic()
    async with bench(sick=str(sick)) as made:
        assert time.monotonic() - began < 8
        await made.is_("failed")
        assert made.server()["error"] == "The server ended with status 2: I am sick"
        assert made.server()["tools"] == {}
        await made.others_work()
        sick.unlink()
        await made.is_("ready", timeout_s=5.0)
        assert (await made.one("echo", text="well"))["status"] == "ok"


async def test_a_crash_in_every_call_opens_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sag_mcp.connector.PACE", FAST._replace(first_s=0.05, most_s=60.0))
    async with bench(every_call="crash") as made:
        await made.is_("ready")
        ids = []
        for _ in range(5):
            await made.is_("ready")
            found = await made.one("echo", text="x")
            assert (found["status"], found["error"]["kind"]) == ("error", "mcp.closed")
            assert found["ms"] < 1000
            ids.append(found["call"])
            await until(lambda: made.server()["status"] != "ready", "down")
        await made.is_("failed")
        assert len(set(ids)) == 5
        await made.others_work()
        # It is offered to no new run; those that began before are told at once.
        assert made.server()["tools"] == {}
        started, view = await made.client.say('bad__echo {"text": "x"}')
        await made.client.done(view, started["run"])
        (found,) = view.has["tools"].values()
        assert found["error"]["kind"] == "tool.unknown"


# --- F30: hang ---


async def test_a_server_that_hangs_at_its_start_holds_up_nobody(fast: Pace) -> None:
    began = time.monotonic()
    async with bench({"connect_s": 1.0}, start="hang") as made:
        assert time.monotonic() - began < 6
        await made.is_("backoff")
        assert made.server()["error"] == "No answer within 1 s."
        await made.others_work()


@eras
async def test_a_call_that_hangs_is_timed_out_and_the_server_is_told(era: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with bench({"call_s": 0.5}, era=era, journal=str(journal)) as made:
        await made.is_("ready")
        hang, fine = await made.use("bad__hang", 'good__echo {"text": "fine"}')
        assert hang["status"] == "timeout"
        assert hang["error"] == {"kind": "tool.timeout", "message": "No answer within 0.5 s."}
        assert 400 < hang["ms"] < 2000
        assert fine["status"] == "ok"
        await until(lambda: "hang cancelled" in journal.read_text(), "notifications/cancelled")
        assert (await made.one("echo", text="x"))["status"] == "ok"
        assert made.server()["status"] == "ready"


@eras
async def test_progress_without_end_does_not_keep_a_call_alive_for_ever(era: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with bench({"call_s": 0.4, "longest_s": 1.2}, era=era, journal=str(journal)) as made:
        await made.is_("ready")
        started, view = await made.client.say('bad__for_ever {"every": 0.002}')
        await made.client.done(view, started["run"])
        (found,) = view.has["tools"].values()
        assert (found["status"], found["error"]["message"]) == ("timeout", "No answer within 1.2 s.")
        assert 1000 < found["ms"] < 3000
        assert 5 < len(view.named("tool.progress")) <= found["ms"] / 33 + 3
        await until(lambda: "progress cancelled" in journal.read_text(), "notifications/cancelled")


# --- F31: floods ---


FLOODS: dict[str, tuple[str, Json, str | None]] = {
    "200k log lines": ("flood", {"method": "notifications/message", "n": 200_000, "params": {"data": "x"}}, None),
    "200k progress": ("flood", {"method": "notifications/progress", "n": 200_000}, None),
    "100k list changes": ("flood", {"method": "notifications/tools/list_changed", "n": 100_000}, None),
    "100k unknown": ("flood", {"method": "notifications/strange", "n": 100_000}, None),
    "64 MiB a minute": ("flood", {"method": "notifications/progress", "n": 2_000_000}, "mcp.too_big"),
    "a line of 50 MiB": ("long_line", {"mib": 50}, "mcp.too_big"),
    "a line without end": ("endless_line", {}, "mcp.too_big"),
    "20 MiB of stderr": ("stderr", {"mib": 20}, None),
}


async def test_floods_hold_up_nobody(fast: Pace) -> None:
    async with bench() as made:
        for flood, (tool, args, kind) in FLOODS.items():
            await made.is_("ready")
            async with lag() as late:
                found = await made.one(tool, **args)
                await made.others_work()
            print(f"{flood}: {found['ms']} ms, p99 of the lag {p99(late) * 1e3:.1f} ms, most {late[-1] * 1e3:.1f} ms")
            if kind is None:
                assert found["status"] == "ok", found
            else:
                assert (found["status"], found["error"]["kind"]) == ("error", kind)
                await until(lambda: made.server()["status"] != "ready", "the end of the server")
            assert p99(late) < 0.05, flood
        await made.is_("ready")
        assert (await made.one("echo", text="still there"))["status"] == "ok"


async def test_fifty_thousand_tools_and_pages_without_end_are_cut(fast: Pace) -> None:
    async with lag() as late, bench(tools=50_000, pages=20) as made:
        await made.is_("ready")
        assert len(made.server()["tools"]) == 512
        assert made.server()["notes"] == ["There are more than 512 tools; the rest is left out."]
    assert p99(late) < 0.05
    async with bench(pages=0) as made:
        await made.is_("ready")
        assert "64 pages" in made.server()["notes"][0]
        assert (await made.one("echo", text="x"))["status"] == "ok"


# --- F32: bad bytes ---


BAD_BYTES = (
    b"nonsense",
    b"\xff\xfe\xfd",
    b"[]",
    b'{"jsonrpc":"2.0","id":99999,"result":{}}',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"?"}}',
    b'{"jsonrpc":"2.0","method":7}',
    b"{" * 50_000,
)


@eras
async def test_bad_bytes_fail_no_more_than_their_own_call(era: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(era=era) as made:
        await made.is_("ready")
        lines = [base64.b64encode(line).decode() for line in BAD_BYTES]
        assert (await made.one("bytes", lines=lines))["status"] == "ok"
        cases = {"bad_utf8": "ok", "nan": "ok", "wrong_id": "ok", "twice": "ok"}
        cases |= {"bad_figures": "mcp.protocol", "bad_result": "mcp.protocol"}
        cases |= {"bad_type": "mcp.protocol"} if era == "stateless" else {}
        for tool, wanted in cases.items():
            found = await made.one(tool)
            assert found["ms"] < 1000
            assert wanted == (found["status"] if wanted == "ok" else found["error"]["kind"]), (tool, found)
        first = await made.one("twice")
        assert first["result"]["content"][0]["text"] == "first"
        await made.others_work()
        assert made.server()["status"] == "ready"
    assert "Group" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_an_answer_after_the_call_was_given_up_is_nobodys(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with bench({"call_s": 0.3}, journal=str(journal)) as made:
        await made.is_("ready")
        found = await made.one("hang", late=True)
        assert found["status"] == "timeout"
        await until(lambda: "hang cancelled" in journal.read_text(), "notifications/cancelled")
        await asyncio.sleep(0.2)
        assert (await made.one("echo", text="x"))["result"]["content"][0]["text"] == "x"


# --- F33: children ---


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9 in a call"])
async def test_nothing_is_left_of_a_server_when_the_hub_ends(how: str, make_hub: Callable[..., Hub]) -> None:
    canary = uuid.uuid4().hex
    words = json.dumps(command(stubborn=True, children=True))
    plain = json.dumps(command())
    hub = make_hub(
        f'[mcp.servers.bad]\ncommand = {words}\npolicy = "auto"\nenv = {{ CANARY = "{canary}" }}\n'
        f'[mcp.servers.good]\ncommand = {plain}\nenv = {{ CANARY = "{canary}" }}\n'
    )
    async with Client(hub.url, topics=["hub"]) as client:
        view = client.views["hub"]
        await until(lambda: {_status(view, n) for n in ("bad", "good")} == {"ready"}, f"both servers: {view.state}")
        await until(lambda: len(bearers(canary)) == 6, "two keepers, two servers and two children")
        if how != "SIGTERM":
            started, conv = await client.say('call bad__hang {"s": 60}')
            await until(lambda: conv.has["tools"], "the call")
    began = time.monotonic()
    if how == "SIGTERM":
        hub.terminate()
        await hub.ended()
        assert bearers(canary) == []
        assert time.monotonic() - began < 8
    else:
        hub.kill()
        await until(lambda: not bearers(canary), "what is left", 5.0)
    print(f"{how}: nobody after {time.monotonic() - began:.2f} s")


def _status(view: View, name: str) -> Any:
    return view.has["connectors"].get(name, {}).get("status")


async def test_a_server_that_is_dropped_goes_with_its_children(fast: Pace) -> None:
    canary = uuid.uuid4().hex
    async with bench({"env": {"CANARY": canary}}, stubborn=True, children=True) as made:
        await made.is_("ready")
        assert len(bearers(canary)) == 4
        began = time.monotonic()
        await made.hub.app.extensions.connectors.drop("bad")
        assert time.monotonic() - began < 5
        assert bearers(canary) == []
        await made.others_work()


# --- F34: HTTP ---


@eras
async def test_a_call_whose_answer_breaks_off_is_made_again_only_where_that_does_no_harm(
    era: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with HttpServer("cut", era=era, journal=str(journal)) as server:
        async with bench({"url": server.url}) as made:
            await made.is_("ready")
            lost = await made.one("figures")
            assert (lost["status"], lost["error"]["kind"]) == ("lost", "tool.lost")
            assert journal.read_text().splitlines() == ["cut figures"]
            server.cuts = 0
            again = await made.one("again")
            assert again["status"] == "ok"
            assert journal.read_text().splitlines()[1:] == ["cut again", "cut again", "call again"]


async def test_a_run_keeps_the_tools_that_it_began_with() -> None:
    with HttpServer(era="stateless") as server:
        async with bench({"url": server.url}) as made:
            await made.is_("ready")
            await made.one("change", n=2)
            await until(lambda: "new_1" in made.server()["tools"], "the change")
            rounds = [{spec.name for spec in request.tools} for request in made.model.requests]
            assert len(rounds) == 2
            assert rounds[0] == rounds[1]
            assert "bad__new_1" not in rounds[1]
            (found,) = await made.use("bad__new_0")
            assert found["status"] == "ok"
            assert "bad__new_1" in {spec.name for spec in made.model.requests[-1].tools}


async def test_a_server_that_always_says_401_is_asked_no_more() -> None:
    with HttpServer("unauthorized", era="handshake") as server:
        async with bench({"url": server.url, "headers": {"Authorization": "Bearer wrong-token"}}) as made:
            await made.is_("auth")
            count = len(server.requests)
            assert count <= 4
            await made.others_work()
            await asyncio.sleep(1.5)
            assert len(server.requests) == count


async def test_a_redirect_to_elsewhere_leads_nowhere(fast: Pace) -> None:
    with HttpServer(era="stateless") as other, HttpServer("redirect", era="stateless") as server:
        server.elsewhere = f"http://127.0.0.1:{other.port}"
        async with bench({"url": server.url}) as made:
            await until(lambda: made.server()["status"] in ("backoff", "failed"), "down")
            assert "not followed" in made.server()["error"]
            await made.others_work()
        assert other.requests == []


# --- and what is asked of people ---


async def test_a_question_is_on_every_device_until_one_answers() -> None:
    async with bench() as made, Client(made.hub.url, "phone") as phone:
        await made.is_("ready")
        started, view = await made.client.say('bad__ask {"who": "Ana"}')
        other = await phone.follow(view.topic)
        ask = await phone.asked(other)
        assert other.has["asks"][ask]["title"] == "Who are you, Ana?"
        assert list(view.has["asks"]) == [ask]
        await phone.call("ask.answer", ask=ask, choice="accept", data={"name": "Ana Berg"})
        await made.client.done(view, started["run"])
        assert view.has["asks"] == {}
        (found,) = view.has["tools"].values()
        answer = json.loads(found["result"]["content"][0]["text"])
        assert answer == {"action": "accept", "content": {"name": "Ana Berg", "size": "m"}}


async def test_the_time_that_a_person_takes_is_not_the_servers() -> None:
    async with bench({"call_s": 0.4, "longest_s": 0.6}, era="handshake") as made:
        await made.is_("ready")
        started, view = await made.client.say("bad__ask")
        ask = await made.client.asked(view)
        await asyncio.sleep(1.0)
        await made.client.call("ask.answer", ask=ask, choice="decline")
        await made.client.done(view, started["run"])
        (found,) = view.has["tools"].values()
        assert json.loads(found["result"]["content"][0]["text"]) == {"action": "decline"}
