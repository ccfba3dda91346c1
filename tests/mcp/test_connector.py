"""A server that is supervised: it is there again after whatever happened, and nobody waits for one that is not."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sag.plugin import Connector, Secret, TextContent, ToolError
from sag_mcp.connector import McpConnector, Offer
from sag_mcp.spec import ServerSettings
from tests.mcp.desk import FAST, Context, Desk, desk, until
from tests.mcp.scripted import HttpServer, command


async def fails(made: Desk, tool: str, kind: str, ctx: Context | None = None, **args: Any) -> str:
    with pytest.raises(ToolError) as told:
        await made.call(tool, ctx, **args)
    assert told.value.kind == kind
    return str(told.value)


def test_it_is_a_connector() -> None:
    made = Desk(ServerSettings(command=["x"]))
    assert isinstance(made.connector, Connector)
    assert isinstance(made.connector, McpConnector)


# --- it fails, and is there again ---


async def test_a_call_that_a_crash_cut_is_told_and_the_next_one_finds_it_again() -> None:
    async with desk() as made:
        began = time.monotonic()
        assert await fails(made, "crash", "mcp.closed") == "The server closed the connection."
        assert time.monotonic() - began < 1
        assert (await made.call("echo", text="back")).content == [TextContent("back")]
        assert made.states == ["starting", "ready", "backoff", "ready"]
        assert made.health.data["restarts"] == 1
        assert made.health.error is None


async def test_all_calls_of_a_server_end_with_it() -> None:
    async with desk() as made:
        slow = [asyncio.create_task(made.call("slow", s=30)) for _ in range(5)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await fails(made, "crash", "mcp.closed")
        done, _ = await asyncio.wait(slow, timeout=2)
        assert time.monotonic() - began < 1
        assert [getattr(task.exception(), "kind", None) for task in done] == ["mcp.closed"] * 5


async def test_a_server_that_closes_its_output_and_stays_is_ended_and_started_anew() -> None:
    async with desk() as made:
        await fails(made, "close", "mcp.closed")
        await made.is_("backoff")
        assert (await made.call("echo", text="back")).content == [TextContent("back")]


async def test_after_five_failures_in_a_row_it_is_given_up_until_somebody_asks(tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    sick.touch()
    pace = FAST._replace(first_s=0.02, most_s=60.0)
    async with desk(sick=str(sick), wait="failed", pace=pace) as made:
        assert made.states == ["starting", "backoff", "failed"]
        assert made.health.error == "The server ended with status 2: I am sick"
        assert made.health.data["stderr"] == "I am sick\n"
        assert made.tools == {}
        sick.unlink()
        await asyncio.sleep(0.3)
        assert made.states[-1] == "failed"
        await made.connector.refresh()
        assert made.states[-2:] == ["starting", "ready"]
        assert "echo" in made.tools


async def test_one_that_was_given_up_is_looked_at_now_and_then(tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    sick.touch()
    async with desk(sick=str(sick), wait="failed", pace=FAST._replace(first_s=0.02)) as made:
        sick.unlink()
        await made.is_("ready", 2)


async def test_nobody_waits_for_one_that_was_given_up() -> None:
    async with desk(every_call="crash", pace=FAST._replace(most_s=60.0)) as made:
        tool = made.tools["echo"]
        for _ in range(5):
            with pytest.raises(ToolError, match="closed the connection"):
                await tool.call({"text": "x"}, Context())
        await made.is_("failed")
        began = time.monotonic()
        with pytest.raises(ToolError, match="not connected: The server ended with status 4") as told:
            await tool.call({"text": "x"}, Context())
        assert told.value.kind == "mcp.closed"
        assert time.monotonic() - began < 0.1


async def test_attempts_come_later_and_later() -> None:
    pace = FAST._replace(first_s=0.1, most_s=10.0)
    async with desk(start="crash", wait="", pace=pace) as made:
        starts: list[float] = []

        def look() -> bool:
            if made.connector._attempt > len(starts):
                starts.append(time.monotonic())
            return made.health.status == "failed"

        await until(look)
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert len(starts) == 5
        for gap, wanted in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True):
            assert 0.8 * wanted <= gap < 1.2 * wanted + 0.5


async def test_a_connection_that_lasted_ends_a_row_of_failures() -> None:
    async with desk(pace=FAST._replace(healthy_s=0.05)) as made:
        for _ in range(6):
            await asyncio.sleep(0.06)
            await fails(made, "crash", "mcp.closed")
            await until(lambda: made.health.status == "backoff")
            await made.is_("ready")
        assert "failed" not in made.states


async def test_a_server_that_says_nothing_at_its_start_is_not_waited_for() -> None:
    began = time.monotonic()
    async with desk(start="hang", connect_s=0.5, wait="backoff") as made:
        assert 0.4 < time.monotonic() - began < 2.5
        assert made.health.error == "No answer within 0.5 s."


async def test_a_server_that_floods_at_its_start_is_given_up() -> None:
    async with desk(start="endless", wait="backoff") as made:
        assert "4 MiB" in (made.health.error or "")


async def test_a_program_that_is_not_there_is_told() -> None:
    async with desk(ServerSettings(command=["no-such-program"]), wait="backoff") as made:
        assert made.health.error == "The server ended with status 127: no-such-program: No such file or directory"


async def test_a_folder_that_is_not_there_is_told() -> None:
    async with desk(ServerSettings(command=["true"], cwd="/no/such/folder"), wait="backoff") as made:
        assert "No such file or directory" in (made.health.error or "")


async def test_a_server_that_dies_of_the_newer_protocol_is_spoken_to_in_the_older_one() -> None:
    async with desk(touchy=True) as made:
        assert made.health.data["protocol"] == "2025-11-25"
        assert made.states == ["starting", "backoff", "ready"]


@pytest.mark.parametrize(("era", "protocol"), [("handshake", "2025-11-25"), ("stateless", "2026-07-28")])
async def test_the_settings_name_the_era(era: str, protocol: str, tmp_path: Path) -> None:
    settings = ServerSettings(command=command(), era=era)  # type: ignore[arg-type]
    async with desk(settings) as made:
        assert made.health.data["protocol"] == protocol
        assert made.health.instructions == "Use it with care."
        assert (await made.call("echo", text="x")).content == [TextContent("x")]


async def test_a_server_that_speaks_the_other_era_alone_is_told() -> None:
    other = ServerSettings(command=command(era="handshake"), era="stateless")
    async with desk(other, wait="backoff") as made:
        assert made.health.error == "Method not found"


async def test_an_idle_server_that_stopped_answering_is_started_anew() -> None:
    async with desk(ServerSettings(command=command(era="handshake"))) as made:
        connection = made.connector._connection
        assert connection is not None
        calls = 0

        async def silent(client: Any) -> str:
            nonlocal calls
            calls += 1
            return "timeout"

        connection._probe = silent  # type: ignore[method-assign, assignment]
        await until(lambda: made.states == ["starting", "ready", "backoff", "ready"], lambda: str(made.states))
        assert calls == 2


async def test_a_server_that_knows_no_ping_is_alive_all_the_same() -> None:
    async with desk(era="handshake", ping=False, pace=FAST._replace(probe_s=0.05)) as made:
        await asyncio.sleep(0.4)
        assert made.states == ["starting", "ready"]


# --- lazy ---


async def test_a_lazy_server_is_started_when_it_is_needed_and_stopped_when_it_is_not() -> None:
    async with desk() as made:
        offer = msgspec.json.decode(msgspec.json.encode(made.offers[0]), type=Offer)
    async with desk(lazy=True, idle_s=0.3, cached=offer, wait="idle") as made:
        assert made.health.title == "Scripted"
        assert "echo" in made.tools
        assert len(made.connector.prompts()) == 1
        assert made.connector._connection is None
        both = await asyncio.gather(made.call("echo", text="a"), made.call("echo", text="b"))
        assert [r.content for r in both] == [[TextContent("a")], [TextContent("b")]]
        assert made.health.status == "ready"
        await made.is_("idle")
        assert (await made.call("echo", text="c")).content == [TextContent("c")]
        assert made.offers == []  # nothing new
        assert await made.connector.complete("prompt", "greet", "style", "fr") == ["friendly"]


async def test_a_lazy_server_that_is_not_known_is_started_once_to_be() -> None:
    async with desk(lazy=True, idle_s=0.1) as made:
        await made.is_("idle")
        assert "echo" in made.tools
        assert len(made.offers) == 1


async def test_a_lazy_server_that_is_busy_is_not_stopped() -> None:
    async with desk(lazy=True, idle_s=0.1) as made:
        await made.call("slow", s=0.5)
        assert "idle" not in made.states


async def test_what_is_known_is_offered_while_a_server_is_being_reached() -> None:
    known = Offer(tools=[{"name": "echo", "description": "Echoes.", "inputSchema": {"type": "object"}}], title="Known")
    async with desk(cached=known, wait="") as made:
        assert list(made.tools) == ["echo"]
        assert (await made.call("echo", text="x")).content == [TextContent("x")]
        assert len(made.tools) > 1


# --- settings ---


async def test_settings_choose_tools_while_it_runs() -> None:
    settings = ServerSettings(command=command(), tools={"echo": False, "ecoh": True})
    async with desk(settings) as made:
        assert "echo" not in made.tools
        assert "The settings name a tool that is not there: ecoh." in made.health.notes
        settings.tools = {}
        settings.policy = "deny"
        assert made.tools["echo"].policy == "deny"
        assert made.tools["echo"] is made.tools["echo"]


async def test_one_that_is_off_is_off() -> None:
    async with desk(ServerSettings(command=command(), enabled=False), wait="off") as made:
        assert made.tools == {}
        await made.connector.refresh()
        assert made.health.status == "off"
        with pytest.raises(ToolError, match="not connected"):
            await made.connector.read("note://x")


async def test_secrets_are_not_told() -> None:
    body = "import os,sys; sys.stderr.write('key=' + os.environ['KEY']); sys.exit(1)"
    settings = ServerSettings(command=["python3", "-S", "-c", body], env={"KEY": Secret("s3cret-canary")})
    async with desk(settings, wait="backoff") as made:
        assert made.health.error == "The server ended with status 1: key=…"
        assert made.health.data["stderr"] == "key=…"


async def test_what_is_asked_for_anew_is_read_at_once() -> None:
    with HttpServer(listed=False) as server:
        async with desk(ServerSettings(url=server.url)) as made:
            await made.call("change", n=2)
            await asyncio.sleep(0.2)
            assert "new_1" not in made.tools
            await made.connector.refresh()
            assert "new_1" in made.tools


async def test_stopping_takes_no_time_when_nothing_is_there_to_stop() -> None:
    for options in ({"start": "crash"}, {"start": "hang"}, {}):
        made = await Desk(ServerSettings(command=command(**options))).start()
        await asyncio.sleep(0.15)
        began = time.monotonic()
        await made.connector.stop()
        assert time.monotonic() - began < 1.5
        assert made.health.status == "off"
        assert made.connector._task is not None
        assert made.connector._task.done()


async def test_many_servers_are_stopped_at_the_same_time() -> None:
    made = [await Desk(ServerSettings(command=command(stubborn=True)), name=f"s{n}").start() for n in range(4)]
    for each in made:
        await each.is_("ready")
    began = time.monotonic()
    await asyncio.gather(*(each.connector.stop() for each in made))
    assert time.monotonic() - began < 5.5
