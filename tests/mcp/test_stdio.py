"""Servers that are processes: what comes is bounded, what is garbled is skipped, and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification, JSONRPCRequest

from sag_mcp import stdio as module
from sag_mcp.ends import Broken
from sag_mcp.keeper import QUIT_S, TERM_S
from sag_mcp.sieve import Sieve
from sag_mcp.stdio import Lines, Stdio
from tests.mcp.desk import bearers, lag, p99, until
from tests.mcp.scripted import command

LOG = logging.getLogger("test.stdio")


class Opened:
    """A transport that was entered."""

    def __init__(self, transport: Stdio, read: Any, write: Any) -> None:
        self.transport, self.read, self.write = transport, read, write

    async def next(self) -> Any:
        """The next message, as JSON."""
        with anyio.fail_after(8):
            item = await self.read.receive()
        return item.message.model_dump(mode="json", exclude_unset=True)


@contextlib.asynccontextmanager
async def opened(*words: str, proven: bool = True, cwd: str | None = None, **env: str) -> AsyncIterator[Opened]:
    transport = Stdio(words, env, cwd, Sieve(lambda _: None, lambda *_: None), LOG, lambda: None)
    async with transport as (read, write):
        transport.proven = proven
        yield Opened(transport, read, write)


def python(body: str) -> tuple[str, ...]:
    return sys.executable, "-S", "-c", body


def request(method: str, id: int = 1, **params: Any) -> SessionMessage:
    return SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=id, method=method, params=params))


def answers(*lines: bytes) -> tuple[str, ...]:
    """A program that reads a line, and writes these."""
    return python(f"import sys,os; sys.stdin.readline(); os.write(1, {b''.join(lines)!r}); sys.stdin.read()")


GOOD = b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}\n'


# --- lines ---


def test_lines_come_whole_however_they_are_cut() -> None:
    text = b'{"a":1}\n\n  \r\n{"b":"\xc3\xa9"}\n{"c":3}'
    for size in range(1, len(text) + 1):
        lines = Lines()
        found = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
        assert found == [b'{"a":1}', b'{"b":"\xc3\xa9"}']
        assert list(lines.feed(b"\n")) == [b'{"c":3}']


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert [len(line) for line in Lines(10).feed(b"x" * 10 + b"\n")] == [10]
    lines = Lines(10)
    with pytest.raises(Broken) as told:
        for _ in range(3):
            assert not list(lines.feed(b"x" * 5))
    assert told.value.kind == "mcp.too_big"


def test_a_long_line_costs_no_more_than_its_length() -> None:
    began = time.perf_counter()
    lines = Lines(64 << 20)
    for _ in range(512):
        assert not list(lines.feed(b"x" * 65536))
    assert [len(line) for line in lines.feed(b"\n")] == [32 << 20]
    assert time.perf_counter() - began < 1.0


# --- what comes ---


async def test_a_message_goes_out_and_the_answer_comes_back() -> None:
    async with opened(*answers(GOOD)) as server:
        await server.write.send(request("x"))
        assert await server.next() == {"jsonrpc": "2.0", "id": 1, "result": {"a": 1}}


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\n",
        b"\xff\xfe\xfd\n",
        b"[]\n1\nnull\n{}\n",
        b'{"jsonrpc":"2.0","id":1}{"jsonrpc"\n',
        b"[" * 100_000 + b"\n",
        b'{"jsonrpc":"2.0","id":99,"result":{}}\n',
        b'{"jsonrpc":"2.0","id":[1],"result":{}}\n',
        b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"?"}}\n',
        b'{"jsonrpc":"2.0","id":true,"method":"ping"}\n',
    ],
)
async def test_a_bad_line_is_skipped_and_the_next_good_one_is_used(bad: bytes) -> None:
    async with opened(*answers(bad, GOOD, GOOD)) as server:
        await server.write.send(request("x"))
        assert (await server.next())["result"] == {"a": 1}


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"a":"caf\xe9"}}\n', {"a": "caf\ufffd"}),
        (b'{"jsonrpc":"2.0","id":1,"result":{"a":"\\ud83d"}}\n', {"a": "?"}),
        (b'{"jsonrpc":"2.0","id":1,"result":{"a":NaN,"b":-Infinity}}\n', {"a": None, "b": None}),
        (b'{"jsonrpc":"2.0","id":"1","result":{"a":2}}\n', {"a": 2}),
        (b'{"jsonrpc":"2.0","id":1.0,"result":{"a":3}}\n', {"a": 3}),
    ],
)
async def test_bytes_that_are_no_text_and_numbers_that_are_none_are_replaced(line: bytes, result: Any) -> None:
    async with opened(*answers(line)) as server:
        await server.write.send(request("x"))
        assert (await server.next())["result"] == result


@pytest.mark.parametrize("body", [b'"result":"text"', b'"result":null', b'"error":"text"', b'"error":{"code":"x"}'])
async def test_an_answer_that_is_neither_result_nor_error_is_an_error(body: bytes) -> None:
    async with opened(*answers(b'{"jsonrpc":"2.0","id":1,' + body + b"}\n")) as server:
        await server.write.send(request("x"))
        assert (await server.next())["error"]["code"] == -32603


async def test_garbage_is_logged_three_times_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, LOG.name):
        async with opened(*answers(b"junk \x1b[31m\n" * 500, GOOD)) as server:
            await server.write.send(request("x"))
            await server.next()
    assert len(caplog.records) == 3
    assert "\x1b" not in caplog.text


async def test_a_line_of_50_mib_ends_the_server_and_holds_up_nobody() -> None:
    body = "import os\nwhile True: os.write(1, b'x' * 65536)"
    async with opened(*python(body)) as server, lag() as late:
        await until(lambda: server.transport.broken is not None)
        assert server.transport.broken is not None
        assert server.transport.broken.kind == "mcp.too_big"
        await until(lambda: server.transport.status is not None, lambda: "the server is still there")
        with pytest.raises(anyio.EndOfStream):
            await server.read.receive()
    assert p99(late) < 0.05


async def test_more_bytes_in_a_minute_than_allowed_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MINUTE", 1 << 20)
    line = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"x": "x" * 1000}})
    async with opened(*python(f"while True: print({line!r})")) as server:
        await until(lambda: server.transport.broken is not None)
        assert server.transport.broken is not None
        assert (server.transport.broken.kind, "1 MiB" in str(server.transport.broken)) == ("mcp.too_big", True)


async def test_a_flood_is_read_in_slices() -> None:
    line = '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1}}\n'
    body = f"import os\nfor _ in range(200): os.write(1, {line!r}.encode() * 1000)\nos.write(1, {GOOD!r})\ninput()"
    async with opened(*python(body)) as server, lag() as late:
        await server.write.send(request("x"))
        assert (await server.next())["id"] == 1
    assert p99(late) < 0.05


async def test_the_end_of_standard_error_is_kept() -> None:
    body = "import os\nfor n in range(20): os.write(2, b'x' * (1 << 20))\nos.write(2, b'the end')\ninput()"
    async with opened(*python(body)) as server, lag() as late:
        await until(lambda: server.transport.stderr.endswith("the end"))
        assert len(server.transport.stderr) == 64 << 10
    assert p99(late) < 0.05


# --- what goes ---


async def test_a_server_that_reads_nothing_is_given_up_and_writing_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD", 1 << 20)
    async with opened(*python("import time; time.sleep(60)")) as server:
        with pytest.raises(anyio.BrokenResourceError):
            for id in range(100):
                began = time.perf_counter()
                await server.write.send(request("x", id, text="x" * 100_000))
                assert time.perf_counter() - began < 0.1
        await until(lambda: server.transport.status is not None)
        with pytest.raises(anyio.BrokenResourceError):
            await server.write.send(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="x")))


# --- the process ---


async def test_the_environment_is_what_was_given_and_six_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    body = "import os,json; print(json.dumps({'jsonrpc':'2.0','method':'notifications/x','params':dict(os.environ)}))"
    async with opened(*python(body), GIVEN="1") as server:
        found = (await server.next())["params"]
    expected = {n: os.environ[n] for n in ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER") if n in os.environ}
    expected["PATH"] += os.pathsep + os.path.dirname(sys.executable)
    found.pop("LC_CTYPE", None)  # Python's own doing, in a server that is written in it (PEP 538)
    assert found == {**expected, "GIVEN": "1"}


async def test_nothing_of_the_hub_is_open_in_the_server(tmp_path: Any) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(held, True)
    body = (
        "import os,json\ndef is_open(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
        "fds = [fd for fd in range(1024) if is_open(fd)]\n"
        "print(json.dumps({'jsonrpc':'2.0','method':'notifications/x','params':{'fds':fds}}))"
    )
    try:
        async with opened(*python(body)) as server:
            assert (await server.next())["params"] == {"fds": [0, 1, 2]}
    finally:
        os.close(held)


async def test_it_starts_in_its_folder(tmp_path: Any) -> None:
    body = (
        "import os,json; print(json.dumps({'jsonrpc':'2.0','method':'notifications/x','params':{'cwd':os.getcwd()}}))"
    )
    async with opened(*python(body), cwd=str(tmp_path)) as server:
        assert (await server.next())["params"] == {"cwd": str(tmp_path)}


async def test_a_program_that_is_not_there_is_told() -> None:
    async with opened("no-such-program", "x") as server:
        with pytest.raises(anyio.EndOfStream):
            await server.next()
        await until(lambda: server.transport.status == 127)
        assert server.transport.stderr == "no-such-program: No such file or directory\n"


async def test_the_status_is_the_servers_own() -> None:
    async with opened(*python("raise SystemExit(7)")) as server:
        await until(lambda: server.transport.status == 7)
    async with opened(*python("import os; os.kill(os.getpid(), 11)")) as server:
        await until(lambda: server.transport.status == 128 + 11)


async def test_a_server_that_heeds_nothing_is_gone_within_five_seconds_with_its_children() -> None:
    canary = uuid.uuid4().hex
    async with opened(*command(stubborn=True, children=True), CANARY=canary) as server:
        await server.write.send(request("initialize"))
        await server.next()
        assert len(bearers(canary)) == 4
        began = time.monotonic()
    took_s = time.monotonic() - began
    assert bearers(canary) == []
    assert QUIT_S + TERM_S <= took_s < 5


async def test_what_a_server_leaves_behind_goes_with_it() -> None:
    canary = uuid.uuid4().hex
    async with opened(*command(children=True), CANARY=canary) as server:
        await server.write.send(request("initialize"))
        await server.next()
        assert len(bearers(canary)) == 4
        began = time.monotonic()
    assert time.monotonic() - began < 1.5  # it ends when its input does, and the rest is killed
    assert bearers(canary) == []


async def test_a_child_that_holds_standard_output_does_not_hide_the_servers_end() -> None:
    canary = uuid.uuid4().hex
    body = "import subprocess,sys; subprocess.Popen([sys.executable,'-S','-c','import time; time.sleep(600)'])"
    async with opened(*python(body), CANARY=canary) as server:
        with pytest.raises(anyio.EndOfStream):
            await server.next()
    assert bearers(canary) == []


async def test_one_that_never_did_anything_gets_no_time_to_end() -> None:
    canary = uuid.uuid4().hex
    async with opened(*python("import time; time.sleep(600)"), proven=False, CANARY=canary):
        await until(lambda: len(bearers(canary)) == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert bearers(canary) == []


async def test_the_server_goes_when_its_keeper_is_killed() -> None:
    canary = uuid.uuid4().hex
    async with opened(*python("import time; time.sleep(600)"), CANARY=canary) as server:
        await until(lambda: len(bearers(canary)) == 2)
        assert server.transport._process is not None
        server.transport._process.kill()
        await until(lambda: not bearers(canary), within_s=2)


async def test_stopping_is_over_though_the_task_is_cancelled_again_and_again() -> None:
    canary = uuid.uuid4().hex

    async def hold() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with opened(*command(), CANARY=canary):
                await anyio.sleep(60)

    scopes: list[anyio.CancelScope] = []
    task = asyncio.create_task(hold())
    await until(lambda: len(bearers(canary)) == 2)
    scopes[0].cancel()
    await asyncio.sleep(0.01)
    scopes[0].cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    assert bearers(canary) == []
