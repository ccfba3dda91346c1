"""What the documentation says is so: its JSON is the protocol's, its links lead somewhere, its programs run.

Programs are taken out of the pages as they stand there. What is replaced is named where it is replaced: addresses
with free ports, and commands that would wait for a person.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
from websockets.asyncio.client import connect

from sag.api.config import Config
from sag.api.conversations import Conversations
from sag.api.runs import Runs
from sag.api.system import System
from sag.hub.connection import HelloParams, SubscribeParams
from sag.hub.subscription import Subscribed
from sag.ops.operation import Operation, Registry
from sag.schema.events import EVENTS, Delta
from sag.testing.hub import RunningHub, running_hub

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
WAIT_S = 20.0

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; those that stand in a list have its indentation taken away."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


# --- JSON ---


@pages
def test_every_json_block_parses(page):
    for text in blocks(page, "json"):
        json.loads(text)


def objects(page: Path) -> Iterator[Json]:
    for text in blocks(page, "json"):
        value = json.loads(text)
        yield from value if isinstance(value, list) else [value]


def fits(struct: type[msgspec.Struct], value: Json, *more: str) -> None:
    """The value decodes, and has no member that the declaration does not know."""
    msgspec.json.decode(json.dumps(value), type=struct)
    assert set(value) <= {*struct.__struct_encode_fields__, *more}, (struct.__name__, sorted(value))


def test_the_json_about_the_protocol_is_what_the_hub_declares():
    operations = _operations()
    asked: dict[Any, str] = {}
    checked = 0
    for thing in objects(DOCS / "writing-a-client.md"):
        checked += 1
        if "e" in thing:
            assert set(thing) <= {"t", "o", "p", "r", "e", "d"}
            if thing["e"] == Delta.NAME:
                assert len(thing["d"]) % 2 == 0
            else:
                fits(EVENTS["conv"][thing["e"]], thing["d"])
        elif thing.get("method") == "hello":
            fits(HelloParams, thing["params"])
            asked[thing["id"]] = "hello"
        elif thing.get("method") == "topic.subscribe":
            fits(SubscribeParams, thing["params"])
            asked[thing["id"]] = "topic.subscribe"
        elif thing.get("method") in operations:
            fits(operations[thing["method"]].params, thing["params"])
            asked[thing["id"]] = thing["method"]
        elif "result" in thing and thing["id"] in asked:
            method, result = asked[thing["id"]], thing["result"]
            if method == "topic.subscribe":
                fits(Subscribed, result)
            elif method != "hello":
                fits(operations[method].result, result, "topic")
        elif "error" in thing:
            assert set(thing["error"]) == {"code", "message", "data"}
            assert {"kind", "retry"} <= set(thing["error"]["data"])
        else:
            known = {"tool.call", "rpc.progress", "bye"}
            assert (
                thing.get("method") in known or "ping" in thing or "pong" in thing or {"conv", "ref", "id"} & set(thing)
            )
    assert checked > 40


def _operations() -> dict[str, Operation]:
    registry = Registry()
    for area in (Runs, Conversations, Config, System):
        registry.add_all(object.__new__(area))  # a declaration needs no parts behind it
    return {op.method: op for op in registry}


def test_the_fold_table_names_every_event_of_a_conversation():
    text = (DOCS / "writing-a-client.md").read_text(encoding="utf-8")
    table = text.partition("Fold by this table")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z.]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert set(EVENTS["conv"]) | {"delta"} <= named


# --- links ---


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    out: dict[str, int] = {}
    names: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M
    ):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        n = out.get(slug, 0)
        out[slug] = n + 1
        names.add(f"{slug}-{n}" if n else slug)
    return names


@pages
def test_every_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pages
def test_no_page_names_a_place_that_only_its_writer_has(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|work|Users)/", text)


# --- the client of 'Writing a client' ---


def _node() -> list[str]:
    """Node with a WebSocket of its own. Where there is none the test is skipped, but not where all has to run."""
    node = shutil.which("node") or (str(n) if (n := ROOT / ".venv" / "node" / "bin" / "node").exists() else None)
    for command in [] if node is None else [[node], [node, "--experimental-websocket"]]:
        probe = [*command, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return command
    if os.environ.get("CI"):
        pytest.fail("there is no Node with a WebSocket of its own")
    pytest.skip("there is no Node with a WebSocket of its own")


async def _talk_cut_thrice(program: Path, *arguments: str) -> tuple[str, str]:
    """Run a client that asks for something long, through a relay that breaks its connection three times in mid-answer.

    Each cut leaves nobody listening for a moment, so that a connect fails too. `URL` among the arguments stands for the
    relay's address. Gives what the client printed, and what the assistant said by the hub's own state.
    """
    node = _node()
    assert program.read_text(encoding="utf-8").count("\n") < 80
    async with running_hub() as hub, Relay(hub.app.settings.hub.port) as relay:
        process = await asyncio.create_subprocess_exec(
            *node,
            program,
            *(relay.url if argument == "URL" else argument for argument in arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            for _ in range(3):
                await _text_grows(hub)
                await relay.cut()
            async with asyncio.timeout(WAIT_S * 2):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        (state,) = _conversations(hub)
        assert relay.cuts == 3
        assert process.returncode == 0, out.decode()
        return out.decode(), _said(state)


class Relay:
    """Passes bytes between a client and the hub until it is told to cut.

    Attributes:
        cuts: How many times a connection that was there was cut.
    """

    def __init__(self, hub_port: int) -> None:
        self.cuts = 0
        self._hub_port = hub_port
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}/ws"

    async def __aenter__(self) -> Relay:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._break()

    async def cut(self) -> None:
        """Break what is connected, and refuse connects for a moment."""
        self.cuts += bool(self._writers)
        self._break()
        await asyncio.sleep(0.3)
        await self._listen()

    def _break(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", self._hub_port)
        pair = {writer, hub_writer}
        self._writers |= pair
        try:
            ways = [asyncio.ensure_future(w) for w in (_pass(reader, hub_writer), _pass(hub_reader, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            self._writers -= pair
            for each in pair:
                each.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def test_the_client_in_javascript_prints_the_answer_exactly_though_it_is_cut(tmp_path):
    (text,) = [text for text in blocks(DOCS / "writing-a-client.md", "js") if "chat.mjs" in text]
    (tmp_path / "chat.mjs").write_text(text, encoding="utf-8")
    out, said = await _talk_cut_thrice(tmp_path / "chat.mjs", "long", "URL")
    assert out == said + "\n[done]\n"


async def test_a_client_written_from_the_docs_alone_has_the_whole_text_though_it_is_cut():
    out, said = await _talk_cut_thrice(Path(__file__).with_name("plain_client.mjs"), "URL", "long")
    assert json.loads(out.splitlines()[-1]) == {"status": "done", "text": said}


def _said(state: Json) -> str:
    """What the assistant said in a conversation."""
    return "".join(p["text"] for m in state["messages"] if m["role"] == "assistant" for p in m["parts"])


def _conversations(hub: RunningHub) -> list[Json]:
    return [topic.state for topic in hub.app.topics.loaded() if topic.name.startswith("conv:")]


async def _text_grows(hub: RunningHub) -> None:
    """Wait until a client is there and some more of the answer."""

    def length() -> int:
        return sum(len(p["text"]) for s in _conversations(hub) for m in s["messages"] for p in m["parts"])

    before = length()
    async with asyncio.timeout(WAIT_S):
        while length() < before + 40 or not any(c.subscriptions for c in hub.app.hub.connections):
            await asyncio.sleep(0.01)


# --- the page of 'A chat in one HTML file' ---


class Browser:
    """A page in headless Chromium, by the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._id = socket, 0

    async def send(self, method: str, **params: Any) -> Json:
        self._id += 1
        await self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        async with asyncio.timeout(WAIT_S):
            while True:
                answer: Json = json.loads(await self._socket.recv())
                if answer.get("id") == self._id:
                    return answer

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer["result"], answer
        return answer["result"]["result"].get("value")

    async def until(self, script: str, what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not await self.run(script):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{what}: {await self.run('document.body.innerText')}") from None

    async def say(self, text: str) -> None:
        await self.run(
            f"document.querySelector('input').value = {json.dumps(text)};"
            "document.querySelector('form').requestSubmit(); true"
        )


@contextlib.asynccontextmanager
async def browser(folder: Path, url: str) -> AsyncIterator[Browser]:
    """Chromium with a page open."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    process = subprocess.Popen(
        [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        told = folder / "DevToolsActivePort"
        async with asyncio.timeout(WAIT_S):
            while not told.exists() or "\n" not in told.read_text():
                await asyncio.sleep(0.05)
        port = told.read_text().split()[0]
        listed = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_S).read())
        target = next(t for t in json.loads(listed) if t["type"] == "page")
        async with connect(target["webSocketDebuggerUrl"], max_size=None, compression=None) as devtools:
            page = Browser(devtools)
            await page.send("Page.enable")
            await page.send("Page.navigate", url=url)
            yield page
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """A folder over HTTP, as `python -m http.server` does it; gives the port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.browser
async def test_the_page_in_one_file_streams_and_comes_back_after_a_cut():
    steps = blocks(DOCS / "tutorial" / "browser-client.md", "html")
    assert len(steps) == 3
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "page").mkdir()
        with served(folder / "page") as port:
            origin = f"http://127.0.0.1:{port}"
            async with running_hub(origins=[origin]) as hub:
                address = hub.url.removeprefix("http://")
                for n in (1, 2, 3):
                    text = "\n".join(steps[:n]).replace("127.0.0.1:4100", address)
                    (folder / "page" / f"step{n}.html").write_text(text, encoding="utf-8")
                async with browser(folder / "profile", f"{origin}/step1.html") as page:
                    status = "document.getElementById('status')?.textContent"
                    await page.until(f"{status} === 'connected as You'", "the first step does not connect")
                    await page.send("Page.navigate", url=f"{origin}/step2.html")
                    await page.until(f"{status} === 'connected as You'", "the second step does not connect")
                    await page.say("Hello")
                    await page.until(f"{status} === 'the run is done'", "the second step does not come to its end")
                    await page.send("Page.navigate", url=f"{origin}/step3.html")
                    await page.until(f"{status} === 'connected as You'", "the third step does not connect")
                    await page.say("long")
                    await page.until("document.querySelectorAll('.assistant').length === 1", "nothing is answered")
                    for _ in range(2):
                        await _text_grows(hub)
                        for connection in list(hub.app.hub.connections):
                            connection.socket.abort()
                    await page.until(f"{status} === 'the run is done'", "it does not come back")
                    shown = await page.run("document.querySelector('.assistant').textContent")
                    state = _conversations(hub)[-1]
                    assert shown == _said(state)


async def test_a_page_whose_origin_is_not_listed_is_refused():
    async with running_hub() as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.app.settings.hub.port)
        key = base64.b64encode(b"0123456789abcdef").decode()
        head = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nOrigin: http://127.0.0.1:8000\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(WAIT_S):
            assert b"403" in await reader.readline()
        writer.close()
        await writer.wait_closed()


# --- the programs of the guides ---


@pytest.mark.parametrize("page", ["test-a-plugin", "write-a-provider", "write-a-run-kind", "write-a-connector"])
def test_the_programs_of_a_guide_pass_their_tests(page, tmp_path):
    for text in blocks(DOCS / "how-to" / f"{page}.md", "python"):
        path = tmp_path / text.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backup_restored_as_told_has_everything_and_new_generations(tmp_path):
    commands = [text for text in blocks(DOCS / "how-to" / "back-up-and-upgrade.md", "sh") if "scripts/" not in text]
    assert len(commands) == 3

    async def main() -> tuple[str, str]:
        async with running_hub(data=tmp_path / ".local/share/sag") as hub, hub.client() as client:
            run = await client.call("run.start", {"input": [{"kind": "text", "text": "Hello"}]})
            topic = await client.subscribe(f"conv:{run['conv']}")
            await topic.until(lambda state: state["runs"][run["run"]]["status"] == "done")
            await asyncio.to_thread(_shell, commands[0], tmp_path)  # while it runs
            return str(topic.gen), topic.name

    gen, name = asyncio.run(main())
    shutil.rmtree(tmp_path / ".local")
    for command in commands[1:]:
        _shell(command, tmp_path)

    async def again() -> None:
        async with running_hub(data=tmp_path / ".local/share/sag") as hub, hub.client() as client:
            topic = await client.subscribe(name)
            assert topic.gen != gen
            assert [m["role"] for m in topic.state["messages"]] == ["user", "assistant"]

    asyncio.run(again())


def _shell(command: str, folder: Path, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | {"HOME": str(folder)} | env,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# --- 'Your first plugin' ---


def test_the_commands_of_the_first_plugin_work(tmp_path):
    """In an environment of its own, which sees the packages of this one, so that nothing is installed into this one."""
    page = DOCS / "tutorial" / "first-plugin.md"
    folder = tmp_path / "dice"
    folder.mkdir()
    env = _environment(tmp_path / "env")
    shells = blocks(page, "sh")
    ran: list[str] = []
    talk = ""
    port, upstream_port = _free_port(), _free_port()
    running: list[subprocess.Popen[bytes]] = []

    def begin(command: str, url: str) -> None:
        running.append(
            subprocess.Popen(
                ["bash", "-c", f"exec env {command}"], cwd=folder, env=os.environ | env, stdout=subprocess.DEVNULL
            )
        )
        _wait_for(url)

    try:
        for shell in shells:
            shell = shell.replace("8001", str(upstream_port))
            if "activate" in shell:
                continue
            ran.append(shell)
            if "uninstall" in shell:
                module = folder / "sag-dice" / "sag_dice" / "__init__.py"
                (more,) = blocks(page, "python")
                module.write_text(module.read_text(encoding="utf-8") + more.partition("\n")[2], encoding="utf-8")
                assert "tools: dice_roll, dice_burn" in _shell("sag plugin list", folder, **env)
            if "sag.testing.upstream" in shell:
                begin(shell, f"http://127.0.0.1:{upstream_port}/v1/models")
            elif "sag serve" in shell:
                begin(f"{shell.strip()} --port {port} --data {tmp_path / 'data'}", f"http://127.0.0.1:{port}/health")
            elif "sag chat" in shell:
                talk = _shell(f"{shell.strip()} --data {tmp_path / 'data'}", folder, **env)
            else:
                try:
                    out = _shell(shell, folder, **env)
                except AssertionError as e:
                    if "sag plugin install" in shell and re.search("hatchling|Connection|Network|index", str(e)):
                        pytest.skip("pip cannot fetch what builds packages here")
                    raise
                if "sag plugin install" in shell:
                    assert re.search(r"^dice +0\.1\.0 +on +tools: dice_roll$", out, re.M), out
                if "sides = 1\\n" in shell:
                    assert "[dice] sides: Expected `int` >= 2" in out
                if "side = 20" in shell:
                    assert "did you mean 'sides'?" in out
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(10)
    assert len(ran) >= 8
    assert re.search(r"\[\d,\s*\d,\s*\d\]", talk), talk
    assert "uninstall" in ran[-1]
    assert "dice" not in _shell("sag plugin list", folder, **env)


def _environment(folder: Path) -> dict[str, str]:
    """A virtual environment below this one, with a `sag` of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=30)
    (packages,) = folder.glob("lib/python*/site-packages")
    mine = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "below.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in mine))
    script = folder / "bin" / "sag"
    script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m sag.cli "$@"\n')
    script.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "VIRTUAL_ENV": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HOME": str(folder)}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(url: str, get: Callable[[str], Any] = urlopen) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            get(url).close()
            return
        except OSError:
            assert time.monotonic() < until, url
            time.sleep(0.05)
