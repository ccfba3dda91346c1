"""What stands outside the hub in journeys and fault tests: a hub process, a client of the protocol, a faulty network.

The client knows the protocol's text alone (`websockets` and `json`, nothing of `sag`): the cursor rule of section 3,
a fold of section 4 of its own, resume and resending of section 2 and 4. Everything listens on loopback, and every
wait is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidState

Json = dict[str, Any]
Direction = Literal["c2s", "s2c"]

FULL = os.environ.get("SAG_TEST_FULL") == "1"
WAIT_S = 10.0
PROBE = Path(__file__).parent / "faults" / "probe"


def times(few: int, full: int) -> int:
    """How often to repeat: few by default, the full count with SAG_TEST_FULL=1."""
    return full if FULL else few


def new_key() -> str:
    return uuid.uuid4().hex


async def until(holds: Callable[[], Any], what: str = "", timeout_s: float = WAIT_S) -> Any:
    """Wait until something holds, and give it.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or holds}")
        await asyncio.sleep(0.005)
    return value


# --- the hub's process ---


class Hub:
    """A hub in a process of its own, with the plugin of `tests/faults/probe`.

    Args:
        data: The data folder; logs and the probe's journal lie beside it.
        config: The text of plugins.toml.
        env: Further environment; SAG_… are settings.
    """

    def __init__(self, data: Path, config: str = "", **env: str) -> None:
        self.data, self.env = data, env
        self.home = data.parent / f"{data.name}.home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.log_path, self.out_path = self.home / "stderr", self.home / "stdout"
        self.journal_path = self.home / "probe.journal"
        (self.home / "plugins.toml").write_text(config)
        info = self.home / "path" / "sag_probe-1.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sag-probe\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[sag]\nprobe = sag_probe\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.started_s = 0.0
        self.forgiven: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self, *, stderr: Any = None, prepare: Callable[[], None] | None = None, **env: str) -> None:
        """Start the process without waiting for it."""
        ours = ("SAG_", "LLM_", "OPENAI", "OPENROUTER", "ANTHROPIC", "AZURE", "VLLM")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        path = os.pathsep.join([str(self.home / "path"), str(PROBE), *filter(None, [clean.get("PYTHONPATH")])])
        clean |= {"PYTHONPATH": path, "HOME": str(self.home), "SAG_PROBE_JOURNAL": str(self.journal_path)}
        self.out_path.write_bytes(b"")
        with self.out_path.open("ab") as out, self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sag.cli", "serve", "--port", str(self.port), "--data", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=stderr if stderr is not None else log,
                cwd=self.home,
                env=clean | self.env | env,
                preexec_fn=prepare,
            )

    def start(self, *, timeout_s: float = 15.0, **given: Any) -> Hub:
        """Start it and wait until it says that it is ready."""
        began = time.monotonic()
        self.spawn(**given)
        while True:
            out = self.out_path.read_text()
            if "sag is ready at " in out and out.endswith("\n"):
                break
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the hub ended with {self.process.returncode}: {self.log()[-2000:]}")
            if time.monotonic() - began > timeout_s:
                self.kill()
                raise AssertionError(f"the hub is not ready after {timeout_s:g} s: {self.log()[-2000:]}")
            time.sleep(0.004)
        self.started_s = time.monotonic() - began
        self.port = int(out.strip().rpartition(":")[2])
        return self

    async def restart(self, **given: Any) -> Hub:
        """Start it again on the same port and folder; the process has ended."""
        return await asyncio.to_thread(lambda: self.start(**given))

    async def ended(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the process's end; gives its exit status."""
        assert self.process is not None
        process = self.process
        await until(lambda: process.poll() is not None, "the hub's end", timeout_s)
        return process.returncode

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        """kill -9, and wait for it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(10)

    def stop(self) -> None:
        """End it in order, or by force; for the end of tests."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        for wait_s in (0.1, 0.1, 8):  # the second signal hurries
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(wait_s)
                return
        self.process.kill()
        self.process.wait(10)
        raise AssertionError("the hub had to be killed")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def forgive(self, *texts: str) -> None:
        """Lines of the log that are no fault in this test."""
        self.forgiven += texts

    def faults(self) -> list[str]:
        """Lines of the log that tell of a fault of the hub's own."""
        marks = ("Traceback", " ERROR ", " CRITICAL ", "never retrieved", "was never awaited", "Exception")
        lines = self.log().splitlines()
        return [line for line in lines if any(m in line for m in marks) and not any(f in line for f in self.forgiven)]

    def journal(self, word: str = "") -> list[str]:
        """What the probe wrote down: `tool NAME ID`, `model TEXT`."""
        if not self.journal_path.exists():
            return []
        return [line for line in self.journal_path.read_text().splitlines() if word in line]

    # readings of the process

    def rss_kib(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self) -> int:
        """Open sockets of the process."""
        count = 0
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/{self.pid}/fd/{fd}").startswith("socket:")
        return count

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def limit(self, what: int, soft: int) -> None:
        """Set a soft resource limit of the running process."""
        _, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (soft, hard))

    def unlimit(self, what: int) -> None:
        _, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (hard, hard))

    # HTTP

    @contextlib.asynccontextmanager
    async def http(self, token: str | None = None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        given = {"authorization": f"Bearer {token}", **headers} if token else headers
        async with httpx.AsyncClient(base_url=self.url, headers=given, timeout=WAIT_S, trust_env=False) as client:
            yield client

    async def rpc(self, method: str, params: Json | None = None, token: str | None = None) -> Any:
        """Call an operation over HTTP; a refusal is raised."""
        async with self.http(token) as http:
            answer = await http.post(f"/rpc/{method}", json=params or {})
        body = answer.json()
        if answer.status_code != 200:
            raise Refused(body["error"])
        return body

    async def token(self, user: str, *, admin: bool = False) -> str:
        """A token of a user's."""
        made = await self.rpc("token.new", {"user": user, "admin": admin})
        return str(made["token"])


# --- the protocol ---


class Refused(Exception):
    """A request was answered with an error."""

    def __init__(self, error: Json) -> None:
        self.code: int = error["code"]
        self.message: str = error.get("message", "")
        self.data: Json = error.get("data") or {}
        self.kind: str = self.data.get("kind", "")
        super().__init__(f"{self.code} {self.kind}: {self.message}")


class Gone(Exception):
    """The connection ended before the answer."""


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396, as its section 2 words it."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def empty(topic: str) -> Json:
    """A topic's state before its first event."""
    family, _, id = topic.partition(":")
    states: dict[str, Json] = {
        "conv": {"conv": {"id": id, "config": {}, "rev": 1}, "messages": [], "runs": {}, "tools": {}, "asks": {}},
        "user": {"convs": {}, "runs": {}, "asks": {}},
        "client": {"config": {}, "rev": 1, "presets": {}, "ui": {}},
        "hub": {"plugins": {}, "connectors": {}, "models": {}},
    }
    return states[family]


def fold(topic: str, state: Json, e: str, d: Any) -> None:
    """Apply one event to a topic's state, by the tables of sections 3 and 4."""
    family = topic.partition(":")[0]
    if family == "conv":
        _fold_conv(state, e, d)
    elif family == "user":
        _fold_inbox(state, e, d)
    elif family == "client":
        if e == "config":
            state["config"], state["rev"] = merge(state["config"], d["patch"]), d["rev"]
        elif e == "client":
            merged = merge(state, d["patch"])
            state.clear()
            state.update(merged)
    elif family == "hub" and (place := {"plugin": "plugins", "connector": "connectors", "model": "models"}.get(e)):
        if d["patch"] is None:
            state[place].pop(d["id"], None)
        else:
            state[place][d["id"]] = merge(state[place].get(d["id"]), d["patch"])


def _fold_inbox(state: Json, e: str, d: Json) -> None:
    if e == "conv":
        state["convs"][d["conv"]] = merge(state["convs"].get(d["conv"]), d["patch"])
    elif e == "conv.drop":
        state["convs"].pop(d["conv"], None)
    elif e in ("run.open", "ask.open"):
        what = e[:3]
        state[f"{what}s"][d[what]] = {k: v for k, v in d.items() if k != what}
    elif e == "run" and d["run"] in state["runs"]:
        state["runs"][d["run"]] = merge(state["runs"][d["run"]], d["patch"])
    elif e in ("run.close", "ask.close"):
        what = e[:3]
        state[f"{what}s"].pop(d[what], None)


def _part(state: Json, number: int) -> tuple[Json, Json] | None:
    for message in reversed(state["messages"]):
        for part in message["parts"]:
            if part.get("part") == number:
                return message, part
    return None


def _fold_conv(state: Json, e: str, d: Any) -> None:
    runs, tools = state["runs"], state["tools"]
    if e == "delta":
        for number, text in zip(d[::2], d[1::2], strict=True):
            if found := _part(state, number):
                found[1]["text"] += text
    elif e == "message.add":
        state["messages"].append({**d, "parts": [{**p, "open": False} for p in d["parts"]]})
    elif e == "message.drop":
        state["messages"] = [m for m in state["messages"] if m["msg"] != d["msg"]]
    elif e == "run.open":
        runs[d["run"]] = {**d, "step": 0, "usage": {"input": 0, "output": 0}}
    elif e == "run":
        if d["run"] in runs:
            runs[d["run"]] = merge(runs[d["run"]], d["patch"])
    elif e == "run.close":
        if run := runs.get(d["run"]):
            run["status"], run["usage"] = d["status"], d["usage"]
            run.pop("error", None)
            if d.get("error"):
                run["error"] = d["error"]
    elif e == "step.open":
        if run := runs.get(d["run"]):
            run["step"] = d["step"]
    elif e == "step.close":
        if (run := runs.get(d["run"])) and d.get("usage"):
            used = run["usage"]
            run["usage"] = {**used, **{k: used.get(k, 0) + v for k, v in d["usage"].items() if v is not None}}
    elif e == "part.open":
        for message in state["messages"]:
            if message["msg"] == d["msg"]:
                message["parts"].append({**d, "text": "", "open": True})
    elif e == "part.close":
        if found := _part(state, d["part"]):
            found[1]["open"] = False
            if d.get("partial"):
                found[1]["partial"] = True
            assert len(found[1]["text"]) == d["len"], f"part {d['part']}: {len(found[1]['text'])} != {d['len']}"
    elif e == "part.drop":
        if found := _part(state, d["part"]):
            found[0]["parts"].remove(found[1])
    elif e == "tool.open":
        tools[d["call"]] = {**d, "status": "running"}
    elif e == "tool.progress":
        if tool := tools.get(d["call"]):
            tool["progress"] = {k: v for k, v in d.items() if k != "call"}
    elif e == "tool.close":
        if tool := tools.get(d["call"]):
            tool.update({k: v for k, v in d.items() if k != "call"})
    elif e == "ask.open":
        state["asks"][d["ask"]] = dict(d)
    elif e == "ask.close":
        ask = state["asks"].pop(d["ask"], None)
        if ask and d.get("args") is not None and ask.get("call") in tools:
            tools[ask["call"]]["args"] = d["args"]
    elif e == "config":
        kind, _, id = d["scope"].partition(":")
        holder = runs.get(id) if kind == "run" else state["conv"]
        if holder is not None:
            holder["config"], holder["rev"] = merge(holder["config"], d["patch"]), d["rev"]
    elif e == "conv":
        state["conv"] = merge(state["conv"], d["patch"])


_RUN = ("kind", "status", "step", "rev", "config", "usage", "error")
_TOOL = ("run", "name", "origin", "args", "risk", "status", "progress", "result", "error", "ms")
_PART = ("part", "kind", "text", "open", "partial", "call", "ref", "mime", "name")
_MESSAGE = ("msg", "role", "run", "agent")


def normal(topic: str, state: Json) -> Json:
    """A state reduced to the members that the protocol names; others may be added and are not compared."""
    if not topic.startswith("conv:"):
        return state

    def pick(thing: Json, names: Sequence[str]) -> Json:
        return {k: thing[k] for k in names if thing.get(k) is not None}

    return {
        "conv": state["conv"],
        "messages": [{**pick(m, _MESSAGE), "parts": [pick(p, _PART) for p in m["parts"]]} for m in state["messages"]],
        "runs": {id: pick(r, _RUN) for id, r in state["runs"].items()},
        "tools": {id: pick(t, _TOOL) for id, t in state["tools"].items()},
        "asks": {id: {k: v for k, v in a.items() if k != "ask" and v is not None} for id, a in state["asks"].items()},
    }


class View:
    """A topic as one client has it."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.t: int | None = None
        self.gen: str | None = None
        self.cur = 0
        self.state: Json | None = None
        self.events: list[Json] = []
        self.asking = False
        self.asked_again = 0
        self.dropped = 0
        self.modes: list[str] = []
        self.replayed = 0
        self.closed: str | None = None

    def adopt(self, answer: Json) -> None:
        """An answer to a subscriber."""
        self.asking, self.closed = False, None
        self.modes.append(answer["mode"])
        if answer["mode"] == "snapshot":
            self.state = json.loads(json.dumps(answer["snap"]))
        elif answer["off"] == 0:
            self.state = empty(self.topic)
        elif answer["gen"] != self.gen or answer["off"] != self.cur:
            self.state = None  # it asked for the head: what it has is no state any more
        self.t, self.gen, self.cur = answer["t"], answer["gen"], answer["off"]
        self.replayed = answer["head"]

    def take(self, event: Json) -> bool:
        """Apply the client's rule; False means: subscribe again."""
        if event.get("o") is None:
            self.events.append(event)
            return True
        o = event["o"]
        p = event.get("p", o - 1)
        assert p < o, event
        assert event.get("r", 0) in (0, 1)
        if self.asking or o <= self.cur:
            self.dropped += 1
            return True
        if p != self.cur:
            return False
        if "p" in event and event["e"] == "delta":
            assert len(set(event["d"][::2])) == len(event["d"][::2]), f"a part twice in one delta: {event}"
        self.cur = o
        self.events.append(event)
        if self.state is not None:
            fold(self.topic, self.state, event["e"], event["d"])
        return True

    async def reaches(self, head: int) -> None:
        """Wait until it stands at an offset."""
        await until(lambda: self.cur >= head, f"{self.topic}: {head} is not reached")

    def named(self, e: str) -> list[Any]:
        """The bodies of the events of a name."""
        return [event["d"] for event in self.events if event["e"] == e]

    @property
    def has(self) -> Json:
        assert self.state is not None
        return self.state

    def run(self, run: str) -> Json:
        found: Json = self.has["runs"].get(run, {})
        return found

    def text(self, run: str, role: str = "assistant") -> str:
        """The text of a run's messages."""
        messages = [m for m in self.has["messages"] if m.get("run") == run and m["role"] == role]
        return "".join(p["text"] for m in messages for p in m["parts"] if p["kind"] == "text")


ToolAnswer = Callable[[Json], Any]


class Client:
    """One device that speaks the protocol.

    Args:
        url: Of the hub or of a proxy before it.
        id: The device's id.
        token: Credentials for `hello`.
        topics: Followed from the start, without a position.
        tools: Declared in `hello`.
        answer: Answers `tool.call`: gives a result, raises, or returns None to leave it open.
    """

    def __init__(
        self,
        url: str,
        id: str = "test",
        *,
        token: str | None = None,
        topics: Sequence[str] = (),
        tools: list[Json] | None = None,
        answer: ToolAnswer | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.url, self.id, self.token, self.tools, self.answer = url, id, token, tools, answer
        self.headers = headers or {}
        self.views: dict[str, View] = {name: View(name) for name in topics}
        self.session: Json | None = None
        self.hello: Json = {}
        self.online = asyncio.Event()
        self.bye: Json | None = None
        self.code: int | None = None
        self.notices: list[Json] = []
        self.calls: list[Json] = []
        self.frames: list[Any] = []
        self.strays: list[Json] = []
        self.connects = 0
        self.broken: BaseException | None = None
        self._ws: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[str, Json, asyncio.Future[Any]]] = {}
        self._by_t: dict[int, View] = {}
        self._id = 0
        self._stopping = False
        self.pongs = True

    # connecting

    async def open(self) -> Client:
        """The upgrade alone."""
        self.bye = self.code = None
        self._by_t.clear()
        for view in self.views.values():
            view.t, view.asking = None, False
        self._ws = await connect(
            self.url.replace("http", "ws", 1) + "/ws",
            subprotocols=["sag.1.json"],  # type: ignore[list-item]
            additional_headers=self.headers,
            max_size=None,
            ping_interval=None,
            compression=None,
            open_timeout=WAIT_S,
            close_timeout=1,
            proxy=None,
        )
        self.connects += 1
        self._reader = asyncio.create_task(self._read(self._ws))
        return self

    def greeting(self, *, resume: bool = True) -> Json:
        """The params of `hello`."""
        params: Json = {"v": 1, "client": {"id": self.id}}
        if self.token:
            params["auth"] = {"scheme": "bearer", "token": self.token}
        positions = {}
        for name, view in self.views.items():
            has_position = view.gen is not None and view.state is not None
            positions[name] = {"gen": view.gen, "off": view.cur} if has_position else {}
        if positions:
            params["topics"] = positions
        if self.tools is not None:
            params["tools"] = self.tools
        if resume and self.session is not None:
            params["resume"] = {"session": self.session["id"], "secret": self.session["secret"]}
        return params

    async def connect(self, *, resume: bool = True) -> Json:
        """Open and greet; gives the answer to `hello`."""
        await self.open()
        return dict(await self.call("hello", **self.greeting(resume=resume)))

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def keep(self) -> Client:
        """Connect, and connect again whenever the connection ends, until `close`."""
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(
                OSError, InvalidHandshake, ConnectionClosed, Gone, TimeoutError, EOFError, Refused
            ):
                async with asyncio.timeout(WAIT_S):
                    await self.connect()
                assert self._reader is not None
                if not self._stopping:
                    await asyncio.wait({self._reader})
            if self._stopping:
                return
            if self.code is not None and 4500 <= self.code < 5000:
                return
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End in order."""
        self._stopping = True
        if self._ws is not None:
            await self._ws.close()
        if self._keeper is not None:
            await asyncio.wait({self._keeper}, timeout=WAIT_S + 1)
            assert self._ws is not None
            await self._ws.close()
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=WAIT_S)
        if self.broken is not None:
            raise self.broken

    def cut(self) -> None:
        """Drop the connection without a word."""
        assert self._ws is not None
        self._ws.transport.abort()

    async def cut_and_wait(self) -> None:
        self.cut()
        await self.closed()

    async def closed(self, timeout_s: float = WAIT_S) -> int | None:
        """Wait until the connection has ended; gives the close code."""
        assert self._reader is not None
        await asyncio.wait({self._reader}, timeout=timeout_s)
        assert self._reader.done(), "the connection is still open"
        return self.code

    # reading

    async def _read(self, ws: ClientConnection) -> None:
        try:
            async for message in ws:
                assert isinstance(message, str), "a binary frame"
                assert len(message.encode()) <= self.hello.get("limits", {}).get("frame", 1 << 20)
                frame = json.loads(message)
                for thing in frame if isinstance(frame, list) else [frame]:
                    self._take(thing)
        except ConnectionClosed:
            pass
        except Exception as e:
            self.broken = e
            ws.transport.abort()
        finally:
            self.code = ws.close_code
            self.online.clear()
            waiting, self._waiting = self._waiting, {}
            for _, _, future in waiting.values():
                if not future.done():
                    future.set_exception(Gone(f"closed with {self.code}"))
                    future.exception()

    def _take(self, thing: Json) -> None:
        self.frames.append(thing)
        if "e" in thing:
            self._event(thing)
        elif "method" in thing and "id" in thing:
            self._called(thing)
        elif "method" in thing:
            self._told(thing)
        elif "id" in thing:
            self._answered(thing)
        elif "ping" in thing:
            if self.pongs:
                self.send({"pong": thing["ping"]})
            for t, head in thing.get("heads", {}).items():
                view = self._by_t.get(int(t))
                if view is not None and not view.asking and view.cur < head:
                    self._subscribe_again(view)

    def _event(self, event: Json) -> None:
        view = self._by_t.get(event["t"])
        if view is None:
            self.strays.append(event)
        elif not view.take(event) and not view.asking:
            self._subscribe_again(view)

    def _subscribe_again(self, view: View) -> None:
        view.asking = True
        view.asked_again += 1
        params: Json = {"topic": view.topic}
        if view.gen is not None and view.state is not None:
            params |= {"gen": view.gen, "off": view.cur}
        self.begin("topic.subscribe", **params)

    def _called(self, thing: Json) -> None:
        assert str(thing["id"]).startswith("s")
        self.calls.append(thing)
        if self.answer is None:
            return
        try:
            result = self.answer(thing["params"])
        except Exception as e:
            self.send({"id": thing["id"], "error": {"code": 500, "message": str(e)}})
        else:
            if result is not None:
                self.send({"id": thing["id"], "result": result})

    def _told(self, thing: Json) -> None:
        self.notices.append(thing)
        if thing["method"] == "bye":
            self.bye = thing["params"]
        elif thing["method"] == "topic.closed":
            view = self._by_t.pop(thing["params"]["t"], None)
            if view is not None:
                view.closed = thing["params"]["reason"]
                if view.closed in ("gen", "behind"):
                    self._subscribe_again(view)

    def _answered(self, thing: Json) -> None:
        method, params, future = self._waiting.pop(thing["id"], ("", {}, None))
        if future is None:
            return  # the answer to something that was sent raw
        if "error" in thing:
            if method == "topic.subscribe" and (view := self.views.get(params["topic"])):
                view.asking = False
            future.set_exception(Refused(thing["error"]))
            future.exception()  # it may be left unawaited
            return
        result = thing["result"]
        if method == "hello":
            self.hello, self.session = result, result["session"]
            for name, answer in result["topics"].items():
                self._adopt(name, answer)
            self.online.set()
        elif method == "topic.subscribe":
            self._adopt(params["topic"], result)
        elif method == "topic.unsubscribe":
            self.views.pop(params["topic"], None)
        elif "topic" in result and method in ("run.start", "run.resume"):
            self._adopt(f"conv:{result['conv']}", result["topic"])
        if not future.done():
            future.set_result(result)

    def _adopt(self, name: str, answer: Json) -> None:
        view = self.views.setdefault(name, View(name))
        if "error" in answer:
            view.closed = answer["error"]["data"]["kind"]
            return
        assert answer["t"] not in self._by_t, "a handle was used twice"
        if view.t is not None:
            self._by_t.pop(view.t, None)
        view.adopt(answer)
        self._by_t[answer["t"]] = view

    # asking

    def send(self, thing: Any) -> None:
        """Send an object (or an array, or text as it is), without waiting."""
        text = thing if isinstance(thing, str | bytes) else json.dumps(thing)
        assert self._ws is not None
        with contextlib.suppress(ConnectionClosed, InvalidState):
            self._ws.protocol.send_text(text.encode()) if isinstance(text, str) else self._ws.protocol.send_binary(text)
            self._ws.send_data()

    def begin(self, method: str, **params: Any) -> asyncio.Future[Any]:
        """Send a request; gives the future of its answer."""
        self._id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._reader is None or self._reader.done():
            raise Gone("not connected")
        self._waiting[self._id] = (method, params, future)
        self.send({"id": self._id, "method": method, "params": params})
        return future

    @property
    def last_id(self) -> int:
        return self._id

    async def call(self, method: str, /, **params: Any) -> Any:
        """Ask and wait.

        Raises:
            Refused: It was refused.
            Gone: The connection ended first.
            TimeoutError: There was no answer in time.
        """
        async with asyncio.timeout(WAIT_S):
            return await self.begin(method, **params)

    async def sure(self, method: str, /, timeout_s: float = 30.0, **params: Any) -> Any:
        """Ask under a key, again after each cut, until there is an answer; for clients that `keep`."""
        params.setdefault("key", new_key())
        async with asyncio.timeout(timeout_s):
            while True:
                await self.online.wait()
                try:
                    return await self.begin(method, **params)
                except Gone:
                    await asyncio.sleep(0.005)

    async def refused(self, method: str, /, **params: Any) -> Refused:
        """Ask for what is refused."""
        try:
            answer = await self.call(method, **params)
        except Refused as refused:
            return refused
        raise AssertionError(f"{method} was not refused: {answer}")

    # what journeys do again and again

    async def follow(self, topic: str, **given: Any) -> View:
        """Subscribe."""
        await self.call("topic.subscribe", topic=topic, **given)
        return self.views[topic]

    async def say(self, text: str, conv: str | None = None, **given: Any) -> tuple[Json, View]:
        """Start a run; gives the answer and the conversation's view."""
        params: Json = {"input": [{"kind": "text", "text": text}], "key": new_key(), **given}
        if conv is not None:
            params["conv"] = conv
        answer = await self.call("run.start", **params)
        return answer, self.views[f"conv:{answer['conv']}"]

    async def done(self, view: View, run: str, status: str | None = "done", timeout_s: float = WAIT_S) -> Json:
        """Wait until a run has closed; gives its object."""
        ends = ("done", "cancelled", "failed", "limit", "interrupted")
        await until(lambda: view.run(run).get("status") in ends, f"the end of {run}: {view.state}", timeout_s)
        object = view.run(run)
        assert status is None or object["status"] == status, object
        return object

    async def asked(self, view: View) -> str:
        """Wait for an ask; gives its id."""
        return str(next(iter(await until(lambda: view.has["asks"], "an ask"))))


async def fresh(url: str, topic: str, token: str | None = None) -> tuple[Json, Json]:
    """A topic's state by a snapshot, and by folding its log from the beginning, where that is kept."""
    async with Client(url, "fresh", token=token) as client:
        view = await client.follow(topic)
        snap, gen, head = view.has, view.gen, view.cur
        assert view.modes == ["snapshot"]
        answer = await client.call("topic.subscribe", topic=topic, gen=gen, off=0)
        if answer["mode"] == "snapshot":
            return snap, answer["snap"]
        await until(lambda: view.cur >= head, f"the replay up to {head}, at {view.cur}")
        assert client.strays == []
        return snap, view.has


async def check_state(url: str, topic: str, *views: View, token: str | None = None) -> Json:
    """State plus events equals fresh state equals the fold of the log, for every view once it has come to the head."""
    async with Client(url, "fresh", token=token) as client:
        head = (await client.call("topic.subscribe", topic=topic, **{"from": "head"}))["head"]
    for view in views:
        await view.reaches(head)
    snap, replayed = await fresh(url, topic, token)
    wanted = normal(topic, snap)
    assert normal(topic, replayed) == wanted, f"{topic}: the fold of the log is not the snapshot"
    for view in views:
        assert normal(topic, view.has) == wanted, f"{topic}: state plus events is not the fresh state"
    return snap


# --- a faulty network ---


class Cut:
    """Where a proxied connection is cut: after the k-th frame of a direction, by FIN or by RST."""

    def __init__(self, direction: Direction, k: int, how: Literal["fin", "rst"]) -> None:
        self.direction, self.k, self.how = direction, k, how

    def __repr__(self) -> str:
        return f"{self.how} after frame {self.k} {self.direction}"


class Link:
    """One connection through a proxy."""

    def __init__(self) -> None:
        self.counts: dict[Direction, int] = {"c2s": 0, "s2c": 0}
        self.bytes: dict[Direction, int] = {"c2s": 0, "s2c": 0}
        self.client: socket.socket | None = None
        self.server: socket.socket | None = None
        self.ended = asyncio.Event()


class Proxy:
    """A TCP proxy before the hub that knows WebSocket frames and what goes wrong on the way.

    Attributes:
        cuts: For the first connections, in order, where each is cut; later ones pass.
        stalled: Directions in which nothing is read any more.
        rate: Bytes per second that are read from the hub, of connections made while it is set.
        rcvbuf: Receive buffer towards the hub, for readers that are slow.
    """

    def __init__(self, hub_port: int, *, rcvbuf: int | None = None) -> None:
        self._hub_port, self._rcvbuf = hub_port, rcvbuf
        self.cuts: list[Cut | None] = []
        self.stalled: set[Direction] = set()
        self.rate: int | None = None
        self.links: list[Link] = []
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=WAIT_S)
        assert self._listener is not None
        self._listener.close()
        for link in self.links:
            _close(link.client, link.server)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._spawn(self._serve(sock))

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        cut = self.cuts.pop(0) if self.cuts else None
        link = Link()
        self.links.append(link)
        server = socket.socket()
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._rcvbuf:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
        link.client, link.server = client, server
        try:
            await loop.sock_connect(server, ("127.0.0.1", self._hub_port))
        except OSError:
            _close(client, server)
            return
        ways = [
            asyncio.ensure_future(self._forward(link, "c2s", client, server, cut)),
            asyncio.ensure_future(self._forward(link, "s2c", server, client, cut)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            how = next((w.result() for w in done if not w.exception() and w.result()), None)
            if how == "rst":
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "fin":
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
                await asyncio.wait([asyncio.ensure_future(_drain(s)) for s in (client, server)], timeout=2)
            else:
                await asyncio.wait(ways, timeout=0.2)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            for way in ways:
                way.cancelled() or way.exception()
            _close(client, server)
            link.ended.set()

    async def _forward(
        self, link: Link, way: Direction, source: socket.socket, target: socket.socket, cut: Cut | None
    ) -> str | None:
        loop = asyncio.get_running_loop()
        head, buffer = True, b""
        rate = self.rate if way == "s2c" else None
        while True:
            while way in self.stalled:
                await asyncio.sleep(0.01)
            data = await loop.sock_recv(source, max(1, rate // 10) if rate else 65536)
            if not data:
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                return None
            link.bytes[way] += len(data)
            if rate:
                await asyncio.sleep(0.1)
            buffer += data
            if head:
                at = buffer.find(b"\r\n\r\n")
                if at < 0:
                    continue
                await loop.sock_sendall(target, buffer[: at + 4])
                buffer, head = buffer[at + 4 :], False
                if cut and cut.direction == way and cut.k == 0:
                    return cut.how
            while size := _frame_size(buffer):
                await loop.sock_sendall(target, buffer[:size])
                buffer = buffer[size:]
                link.counts[way] += 1
                if cut and cut.direction == way and cut.k == link.counts[way]:
                    return cut.how


def _frame_size(data: bytes) -> int:
    """The size of the WebSocket frame at the beginning of the data; 0 where it is not complete."""
    if len(data) < 2:
        return 0
    n, at = data[1] & 127, 2
    if n == 126:
        n, at = int.from_bytes(data[2:4], "big"), 4
    elif n == 127:
        n, at = int.from_bytes(data[2:10], "big"), 10
    at += 4 if data[1] & 128 else 0
    return at + n if len(data) >= at + n else 0


async def _drain(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(sock, 65536):
            pass


def _close(*socks: socket.socket | None) -> None:
    for sock in socks:
        if sock is not None:
            sock.close()


# --- sockets by hand ---


def upgrade_request(host: str = "127.0.0.1", **headers: str) -> bytes:
    """The bytes of an upgrade to `/ws`."""
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def copy_as_killed(home: Path, to: Path) -> None:
    """Copy a data folder at one moment, which is what a kill leaves: nothing is written into its database meanwhile."""
    with contextlib.closing(sqlite3.connect(home / "sag.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        shutil.copytree(home, to, ignore=shutil.ignore_patterns("sag.lock"))
        db.execute("ROLLBACK")
