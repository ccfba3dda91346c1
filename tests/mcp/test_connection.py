"""One connection, by each transport and in both eras: what goes over it, and what a server may ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sag.plugin import RunEnded, Sampled, SampleMessage, TextContent, ToolError, ToolLost
from sag_mcp.spec import ServerSettings
from tests.mcp.desk import Context, Desk, desk, lag, p99, until
from tests.mcp.scripted import HttpServer

Open = Callable[..., contextlib.AbstractAsyncContextManager[Desk]]

WAYS = ["stdio handshake", "http handshake", "http stateless", "stdio stateless", "sse handshake"]
STATELESS = ("stdio stateless", "http stateless")


def opener(way: str) -> Open:
    """Opens a desk by a transport, in an era; options of the scripted server and members of the settings are told
    apart."""
    transport, era = way.split()

    @contextlib.asynccontextmanager
    async def opened(**given: Any) -> AsyncIterator[Desk]:
        if transport == "stdio":
            async with desk(era=era, **given) as made:
                yield made
            return
        members = {k: given.pop(k) for k in list(given) if k in ServerSettings.__struct_fields__ and k != "tools"}
        own = {k: given.pop(k) for k in ("wait", "pace", "cached") if k in given}
        faults = ["sse"] if transport == "sse" else []
        with HttpServer(*faults, era=era, **given) as server:
            async with desk(ServerSettings(url=server.url, **members), **own) as made:
                yield made

    return opened


@pytest.fixture(params=WAYS[:3])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WAYS)
def any_way(request: pytest.FixtureRequest) -> str:
    """Each era over a pipe too, and the older transport for HTTP."""
    return str(request.param)


def words(result: Any) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


# --- who is there ---


async def test_it_knows_whom_it_talks_to_and_what_there_is(any_way: str) -> None:
    async with opener(any_way)() as made:
        health = made.health
        assert (health.title, health.version, health.kind) == ("Scripted", "1", "mcp")
        assert health.instructions == "Use it with care."
        assert health.data["transport"] == any_way.split()[0]
        assert health.data["protocol"] == ("2026-07-28" if any_way in STATELESS else "2025-11-25")
        assert made.states == ["starting", "ready"]
        tools = made.tools
        assert (tools["echo"].title, tools["echo"].risk, tools["destroy"].risk) == ("Echo", "read", "danger")
        assert tools["figures"].output is not None
        assert [(p.name, p.arguments[0].required) for p in made.connector.prompts()] == [("greet", True)]
        assert [(r.uri, r.template) for r in made.connector.resources()] == [
            ("note://one", False),
            ("note://{name}", True),
        ]
        assert [len(offer.tools) for offer in made.offers] == [len(tools)]


async def test_prompts_resources_and_completion(way: str) -> None:
    async with opener(way)() as made:
        connector = made.connector
        (message,) = await connector.get_prompt("greet", {"style": "Ana"})
        assert (message.role, message.content) == ("user", [TextContent("Hello, Ana")])
        assert (await connector.read("note://x"))[0] == TextContent("abc")
        assert await connector.complete("prompt", "greet", "style", "fo") == ["formal"]
        assert await connector.complete("resource", "note://{name}", "name", "z") == []
        with pytest.raises(ToolError, match="no such prompt"):
            await connector.get_prompt("other", {})
        with pytest.raises(ToolError, match="no such resource"):
            await connector.read("file:///etc/passwd")


# --- calls ---


async def test_calls_and_their_failures(any_way: str) -> None:
    async with opener(any_way)() as made:
        assert words(await made.call("echo", text="hi")) == "hi"
        figures = await made.call("figures")
        assert figures.data == {"sum": 4}
        assert len((await made.call("media")).content) == 8
        for tool, text, kind in (
            ("fail", "no milk", "tool.error"),
            ("refuse", "not like this", "tool.error"),
            ("bad_figures", "schema", "mcp.protocol"),
            ("bad_result", "no list of contents", "mcp.protocol"),
        ):
            with pytest.raises(ToolError, match=text) as told:
                await made.call(tool)
            assert told.value.kind == kind
        if any_way in STATELESS:
            with pytest.raises(ToolError, match="not of the protocol"):
                await made.call("bad_type")
        both = await asyncio.gather(*(made.call("echo", text=str(n)) for n in range(50)))
        assert [words(result) for result in both] == [str(n) for n in range(50)]


async def test_progress_is_told_in_order_and_the_newest_alone(any_way: str) -> None:
    async with opener(any_way)() as made:
        ctx = Context()
        await made.call("progress", ctx, n=40, delay=0.005)
        done = [told[0] for told in ctx.told]
        assert done == sorted(done)
        assert ctx.told[-1] == (40.0, 40.0, "step 40")
        assert 3 <= len(done) <= 20


async def test_what_a_server_logs_is_output_of_the_call(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context()
        await made.call("log", ctx)
        assert "".join(ctx.outputs) == "x: line one\nx: line two\n"


async def test_the_server_is_told_when_a_call_is_cancelled(any_way: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with opener(any_way)(journal=str(journal)) as made:
        task = asyncio.create_task(made.call("slow", s=20))
        await until(lambda: journal.exists() and "call slow" in journal.read_text())
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1
        assert words(await made.call("echo", text="still there")) == "still there"
        if any_way != "http stateless":  # there the end of the response is the sign
            await until(lambda: "cancelled" in journal.read_text())


async def test_a_late_answer_is_nobodys(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with desk(era="handshake", journal=str(journal)) as made:
        task = asyncio.create_task(made.call("hang", late=True))
        await until(lambda: journal.exists() and "call hang" in journal.read_text())
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: "hang cancelled" in journal.read_text())
        await asyncio.sleep(0.15)
        assert words(await made.call("echo", text="x")) == "x"


async def test_a_call_ends_when_its_run_does(way: str) -> None:
    class Ended(Context):
        async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
            raise RunEnded

    async with opener(way)() as made:
        with pytest.raises(RunEnded):
            await asyncio.wait_for(made.call("for_ever", Ended()), 5)
        assert words(await made.call("echo", text="x")) == "x"


# --- what a server asks ---


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (
            ("accept", {"name": "Ana", "count": 2}),
            {"action": "accept", "content": {"name": "Ana", "count": 2, "size": "m"}},
        ),
        (("decline", None), {"action": "decline"}),
        ((None, None), {"action": "cancel"}),
    ],
)
async def test_a_form_is_asked_of_the_calls_own_person(any_way: str, given: Any, answer: Any) -> None:
    async with opener(any_way)() as made:
        ctx = Context(given)
        assert json.loads(words(await made.call("ask", ctx, who="Ana"))) == answer
        (asked,) = ctx.asked
        assert asked["title"] == "Who are you, Ana?"
        assert list(asked["schema"]["properties"]) == ["name", "size", "count"]


async def test_an_address_is_visited(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context(("accept", None))
        assert json.loads(words(await made.call("visit", ctx))) == {"action": "accept"}
        assert ctx.asked == [{"title": "Go there", "url": "https://example.com/sign"}]
        ctx = Context(("accept", None))
        assert json.loads(words(await made.call("visit", ctx, url="javascript:alert(1)"))) == {"action": "decline"}
        assert ctx.asked == []


async def test_a_call_that_needs_an_address_visited_first_is_made_again(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context(("accept", None))
        assert words(await made.call("visit_first", ctx)) == "visited"
        assert ctx.asked == [{"title": "First this", "url": "https://example.com/first"}]


async def test_one_that_is_declined_is_not(way: str) -> None:
    async with opener(way)() as made:
        with pytest.raises(ToolError, match="did not visit"):
            await made.call("visit_first", Context(("decline", None)))


async def test_the_model_is_asked_through_the_run(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context()
        answer = json.loads(words(await made.call("sample", ctx)))
        assert answer["content"] == {"type": "text", "text": "a pixel"}
        assert (answer["model"], answer["stopReason"]) == ("p/m", "endTurn")
        ((messages, given),) = ctx.sampled
        assert isinstance(messages[0], SampleMessage)
        assert (given["system"], given["max_tokens"]) == ("Be short.", 50)


async def test_what_the_model_may_not_be_asked_is_refused(way: str) -> None:
    def deny(_: Any) -> Sampled:
        raise ToolError("The user did not let the tool ask the model.")

    async with opener(way)() as made:
        ctx = Context()
        ctx.model = deny
        if way in STATELESS:
            with pytest.raises(ToolError, match="did not let"):
                await made.call("sample", ctx)
        else:
            assert "did not let" in words(await made.call("sample", ctx))
    async with opener(way)(sampling=False) as made:
        ctx = Context()
        if way in STATELESS:
            with pytest.raises(ToolError, match="not supported"):
                await made.call("sample", ctx)
        else:
            assert "not supported" in words(await made.call("sample", ctx))
        assert ctx.sampled == []


async def test_roots_are_those_of_the_settings(way: str) -> None:
    async with opener(way)(roots=["/tmp/a b", "file:///c"]) as made:
        roots = json.loads(words(await made.call("roots")))["roots"]
        assert [root["uri"] for root in roots] == ["file:///tmp/a%20b", "file:///c"]


async def test_a_question_goes_to_the_call_that_it_came_along_with(any_way: str) -> None:
    """Over HTTP, and in the stateless protocol, it is known; by a single pipe it is the newest call's."""
    async with opener(any_way)() as made:
        first, second = Context(("accept", {"name": "first"})), Context(("accept", {"name": "second"}))
        slow = asyncio.create_task(made.call("slow", second, s=20))
        await asyncio.sleep(0.05)
        if any_way in ("stdio handshake", "sse handshake"):
            first, second = second, first
            first.answers, second.answers = [("accept", {"name": "first"})], []
            slow2 = asyncio.create_task(made.call("ask", first))
        else:
            slow2 = asyncio.create_task(made.call("ask", first))
            await asyncio.sleep(0)
        assert "first" in words(await slow2)
        assert len(first.asked) == 1
        assert second.asked == []
        slow.cancel()
        await asyncio.wait({slow})


async def test_older_calls_get_their_own_questions_where_that_is_known() -> None:
    for way in ("http handshake", "http stateless", "stdio stateless"):
        async with opener(way)() as made:
            people = [Context(("accept", {"name": str(n)})) for n in range(5)]
            for person in people:
                person.thinking_s = 0.05
            results = await asyncio.gather(*(made.call("ask", p, who=str(n)) for n, p in enumerate(people)))
            assert [json.loads(words(r))["content"]["name"] for r in results] == list("01234")
            assert [p.asked[0]["title"] for p in people] == [f"Who are you, {n}?" for n in range(5)]


@pytest.mark.parametrize("way", ["stdio stateless", "http stateless"])
async def test_a_question_that_belongs_to_no_call_is_declined_whatever_else_is_called(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context()
        slow = asyncio.create_task(made.call("slow", ctx, s=20))
        await asyncio.sleep(0.05)
        (message,) = await made.connector.get_prompt("greet", {"style": "ask"})
        assert message.content == [TextContent('Hello, {"action": "decline"}')]
        assert ctx.asked == []
        slow.cancel()
        await asyncio.wait({slow})


async def test_a_question_that_the_server_takes_back_is_given_up() -> None:
    async with desk(era="handshake") as made:
        ctx = Context()
        assert words(await made.call("withdraw", ctx)) == "withdrawn 0"
        assert (len(ctx.asked), ctx.withdrawn) == (1, 1)


async def test_a_question_is_given_up_with_its_call(way: str) -> None:
    async with opener(way)() as made:
        ctx = Context()
        task = asyncio.create_task(made.call("ask", ctx))
        await until(lambda: bool(ctx.asked))
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: ctx.withdrawn == 1)


# --- changes ---


async def test_a_changed_list_is_read_once_for_many_signs(any_way: str) -> None:
    async with opener(any_way)() as made:
        before = made.tools["echo"]
        await made.call("change", n=3)
        await until(lambda: "new_2" in made.tools)
        assert words(await made.call("new_0")) == "new"
        await asyncio.sleep(0.15)
        assert len(made.offers) == 2
        assert words(await before.call({"text": "as it was"}, Context())) == "as it was"


async def test_lists_are_read_page_by_page_as_far_as_is_reasonable(way: str) -> None:
    async with opener(way)(pages=4) as made:
        assert "wrong_id" in made.tools
        assert made.health.notes == []
    async with opener(way)(pages=0) as made:
        assert "more than 64 pages" in made.health.notes[0]
        assert "echo" in made.tools
    async with opener(way)(tools=1000, pages=2) as made:
        assert len(made.tools) == 512
        assert made.health.notes == ["There are more than 512 tools; the rest is left out."]


async def test_fifty_thousand_tools_hold_up_nobody() -> None:
    async with lag() as late, desk(tools=50_000, pages=20) as made:
        assert len(made.tools) == 512
    assert p99(late) < 0.05


async def test_bad_tools_are_left_out_with_a_note(way: str) -> None:
    async with opener(way)(bad_tools=True) as made:
        names = {"", "no_schema", "array", "broken", "remote", "dangling", "echo", "None"}
        assert {note.split("'")[1] for note in made.health.notes if "left out" in note} == names
        assert "dotted.name/x" in made.tools
        assert not names & (set(made.tools) - {"echo"})


# --- over HTTP ---


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_a_server_that_was_started_anew_is_found_again(era: str) -> None:
    server = HttpServer(era=era)
    try:
        async with desk(ServerSettings(url=server.url)) as made:
            server.stop()
            server = HttpServer(era=era, port=server.port)
            assert words(await made.call("destroy")) == "gone"
            server.stop()
            with pytest.raises(ToolError, match="not connected") as told:
                await made.call("destroy")
            assert told.value.kind == "mcp.closed"
            server = HttpServer(era=era, port=server.port)
            await made.is_("ready")
            assert words(await made.call("destroy")) == "gone"
    finally:
        server.stop()


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_an_answer_that_breaks_off_is_lost_unless_the_tool_may_be_called_again(era: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with HttpServer("cut", era=era, journal=str(journal)) as server:
        async with desk(ServerSettings(url=server.url)) as made:
            with pytest.raises(ToolLost, match="broke off"):
                await made.call("destroy")
            assert journal.read_text().split("\n") == ["cut destroy", ""]
            server.cuts = 0
            assert words(await made.call("again")) == "once more"
            assert journal.read_text().split("\n")[1:] == ["cut again", "cut again", "call again", ""]
            assert made.states == ["starting", "ready"]


@pytest.mark.parametrize("era", ["handshake", "stateless"])
@pytest.mark.parametrize("fault", ["drop", "half"])
async def test_a_request_that_does_not_get_through_is_no_end_of_the_others(era: str, fault: str) -> None:
    with HttpServer(fault, era=era) as server:
        async with desk(ServerSettings(url=server.url)) as made:
            slow = asyncio.create_task(made.call("slow", s=0.5))
            await asyncio.sleep(0.05)
            with pytest.raises(ToolLost, match="cannot be reached"):
                await made.call("destroy")
            assert words(await slow) == "slept"
            assert made.states == ["starting", "ready"]


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_who_has_to_sign_in_is_asked_once(era: str) -> None:
    with HttpServer("unauthorized", era=era) as server:
        async with desk(ServerSettings(url=server.url), wait="auth") as made:
            await asyncio.sleep(0.5)
            assert (made.auths, len(server.requests)) == (1, 2)  # each protocol was tried
            server.faults.clear()
            await made.connector.refresh()
            assert made.health.status == "ready"
            server.faults.add("unauthorized")
            for _ in range(3):
                with pytest.raises(ToolError, match="sign in") as told:
                    await made.call("echo", text="x")
                assert told.value.kind == "mcp.auth"
            await made.is_("auth")
            assert made.auths == 2


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_a_redirect_to_elsewhere_is_not_followed(era: str) -> None:
    with HttpServer(era=era) as other, HttpServer("redirect", era=era) as server:
        server.elsewhere = f"http://127.0.0.1:{other.port}"
        async with desk(ServerSettings(url=server.url), wait="backoff") as made:
            assert "not followed" in (made.health.error or "")
        assert other.requests == []


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_an_answer_that_is_too_large_fails_its_call_alone(era: str) -> None:
    with HttpServer("large", era=era) as server:
        async with desk(ServerSettings(url=server.url)) as made:
            with pytest.raises(ToolError, match="4 MiB") as told:
                await made.call("echo", text="x")
            assert told.value.kind == "mcp.too_big"
            server.faults.clear()
            assert words(await made.call("echo", text="x")) == "x"
            assert made.states == ["starting", "ready"]


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_a_flood_over_http_holds_up_nobody_and_ends_at_the_limit(
    era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood: dict[str, Any] = {"method": "notifications/progress", "n": 5000}
    with HttpServer(era=era) as server:
        async with desk(ServerSettings(url=server.url)) as made:
            async with lag() as late:
                assert words(await made.call("flood", **flood)) == "flooded"
            assert p99(late) < 0.05
        monkeypatch.setattr("sag_mcp.remote.MAX_MINUTE", 200_000)
        async with desk(ServerSettings(url=server.url)) as made:
            with pytest.raises(ToolError, match="in a minute") as told:
                await made.call("flood", **flood)
            assert told.value.kind == "mcp.too_big"
            await made.is_("backoff")
            assert (await made.call("echo", text="x")).content == [TextContent("x")]


async def test_nothing_compressed_is_unpacked() -> None:
    with HttpServer("zipped") as server:
        async with desk(ServerSettings(url=server.url), wait="backoff") as made:
            assert "compresses" in (made.health.error or "")
