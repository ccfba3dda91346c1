"""`sag chat`: the terminal as a frontend on the same socket as every other.

What is shown is read from the topic's state, so that a cut, a replay or a fresh snapshot need nothing of their own:
`shown` says how much of each part is on the screen. Above: `sag.cli`. Below: the client and the terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from sag.address import find
from sag.client import Client, Topic
from sag.errors import Fault
from sag.schema.merge import merge_patch
from sag.terminal import Form, Screen, bar, keys, read_lines
from sag.wording import brief, changes, plain, result

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Json = dict[str, Any]
OPEN = frozenset({"queued", "running", "waiting", "paused"})
HISTORY = 10
PATIENCE_S = 1.0
HELP = """\
/set NAME VALUE   change a setting of the run that goes on, else of the conversation (temperature 0.2, system …)
/set              show the settings              /model NAME   choose a model
/models           which there are                /stop         stop the run (as Ctrl-C does)
/steer TEXT       say something to the run       /resume       go on with an interrupted run
/pause, /continue hold the run before its next step, let it go on
/kind NAME        how the next runs proceed      /kinds        which ways there are
/new              begin a new conversation       /list, /open ID   the others
/tools            the tools, and what is decided of each
/tools NAME auto  let calls of a tool or a connector go ahead (auto), ask first (ask) or refuse them (deny); forget
/help             this                           /quit         leave (as Ctrl-D does)"""
POLICIES = {"auto": "goes ahead", "ask": "asks", "deny": "refused"}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `chat` to the command line of `sag`."""
    parser = subparsers.add_parser("chat", help="talk to the hub in the terminal")
    parser.add_argument("message", nargs="*", help="say this, print the answer and end; else a conversation begins")
    parser.add_argument("--url", help="the hub's address (default: the one that runs on this machine)")
    parser.add_argument("--token", help="a token (default: SAG_TOKEN, else the running hub's own)")
    parser.add_argument("--data", metavar="DIR", help="the data folder of the hub on this machine")
    parser.add_argument(
        "--kind", metavar="NAME", help="how the run proceeds: chat, plan … (default: as the last, else chat)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--conv", metavar="ID", help="go on with a conversation")
    which.add_argument("--new", action="store_true", help="begin a new conversation (the default)")


def run(args: argparse.Namespace) -> int:
    """Talk; gives the process's exit status."""
    try:
        return asyncio.run(_main(args))
    except Fault as fault:
        hint = "; start one with `sag serve`" if fault.kind == "hub.unreachable" else ""
        print(f"sag: {fault.message}{hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on
        return 1


async def _main(args: argparse.Namespace) -> int:
    address = find(args.url, args.token, args.data)
    message = " ".join(args.message)
    screen = Screen(sys.stdout, sys.stderr if message else sys.stdout, os.environ)
    chat = Chat(screen, person=sys.stdin.isatty() and screen.tty, talking=not message)
    async with Client(address, "cli", caps={"ask": ["approval", "form", "url"]}, on_status=chat.status) as client:
        chat.client, chat.kind = client, args.kind
        with contextlib.suppress(NotImplementedError):  # where loops take no signal handlers, Ctrl-C ends the program
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, chat.interrupted)
        if args.conv:
            await chat.open(args.conv)
        if chat.person or not message:
            read_lines(sys.stdin.fileno(), chat.lines.put_nowait)
        return await chat.work(chat.once(message) if message else chat.talk())


class Chat:
    """A conversation in a terminal.

    Attributes:
        client: The connection.
        person: Whether somebody sits there who can answer.
        talking: Whether lines are read as messages; else one message was given on the command line.
        kind: Of which kind the next runs are; None leaves it to the conversation.
        lines: What was typed; None at the end of the input.
    """

    client: Client

    def __init__(self, screen: Screen, person: bool, talking: bool) -> None:
        self.screen, self.person, self.talking = screen, person, talking
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()
        self.kind: str | None = None
        self._topic: Topic | None = None
        self._follower: asyncio.Task[None] | None = None
        self._config: Json = {}  # for the first message of a new conversation
        self._carried: Json | None = None
        self._shown: dict[int, int] = {}
        self._seen: set[str] = set()  # messages, calls, asks and runs' ends that are on the screen
        self._speaking: tuple[Any, ...] = ()
        self._said: list[str] = []  # own messages that are on their way
        self._started: list[str] = []  # own runs that have not ended
        self._ends: dict[str, asyncio.Future[str]] = {}
        self._asks: dict[str, Json] = {}  # that wait for the person, the first one first
        self._form: Form | None = None
        self._edited: Json | None = None  # arguments of the call that is asked about
        self._listed: list[str] = []
        self._warned = False
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._unwanted = False  # Ctrl-C came before the hub had answered
        self._told_lost = False
        self._gone: Fault | None = None
        self._work: asyncio.Task[int] | None = None

    async def work(self, work: Coroutine[Any, Any, int]) -> int:
        """Do it until it is done, or the person or the hub ends it.

        Raises:
            Fault: The hub does not want to be spoken to any more.
        """
        self._work = asyncio.create_task(work)
        await asyncio.wait({self._work})
        self.screen.close()
        if not self._work.cancelled():
            return self._work.result()
        if self._gone is not None:
            raise self._gone
        return 0

    # the two ways to use it

    async def once(self, message: str) -> int:
        """Say one thing and wait for the answer; 0 when the run is done."""
        reading = asyncio.create_task(self._answer_asks()) if self.person else None
        try:
            status = await self._say(message)
        finally:
            if reading is not None:
                reading.cancel()
        return int(status != "done")

    async def _answer_asks(self) -> None:
        while (line := await self.lines.get()) is not None:
            self.screen.typed()
            self._warned = False
            if self._asks:
                await self._guarded(self._answer(line))

    async def talk(self) -> int:
        """Read lines until the end of the input."""
        failed = 0
        if self.person:
            hub = self.client.server
            self.screen.line(f"{hub.get('name')} {hub.get('version')} at {self.client.url}. /help tells more.", "dim")
        self._prompt()
        while (line := await self.lines.get()) is not None:
            if self.person:
                self.screen.typed()
            self._warned = False
            command = line[1:].partition(" ")[0] if line.startswith("/") else None
            if command in ("quit", "exit"):
                return failed
            if self._asks and command not in _COMMANDS:
                await self._guarded(self._answer(line))
            elif command is not None:
                await self._guarded(self._command(command, line[1:].partition(" ")[2]))
            elif line.strip():
                if self.person:
                    await self._guarded(self._start(line))
                else:  # a script's next line waits for the answer to this one
                    failed |= int(await self._say(line) != "done")
                    self.screen.end_answer()
            self._prompt()
        return failed

    async def _guarded(self, work: Awaitable[Any]) -> None:
        """Do what a line asks for; what goes wrong is told and ends nothing."""
        try:
            await work
        except TimeoutError:
            self.screen.line("The hub does not answer.", "red")
        except Fault as fault:
            self.screen.line(_told(fault), "red")

    # runs

    async def _say(self, text: str) -> str:
        """Start a run and wait for its end; gives how it ended."""
        run = await self._start(text)
        return await self._ends.setdefault(run, asyncio.get_running_loop().create_future())

    async def _start(self, text: str, when: str = "queue") -> str:
        params: Json = {"input": [{"kind": "text", "text": text}], "when": when}
        if self._topic is not None:
            params["conv"] = self._topic.name[5:]
        elif self._config:
            params["config"] = self._config
        if self.kind is not None:
            params["kind"] = self.kind
        self._said.append(text)
        try:
            started = await self.client.call("run.start", params)
        finally:
            self._said.remove(text)
            unwanted, self._unwanted = self._unwanted, False
        self._seen.add(started.get("msg", ""))
        if started["run"] not in self._started and f"end {started['run']}" not in self._seen:
            self._started.append(started["run"])
        if started["state"] == "queued":
            self.screen.line("· queued: it comes after the run that goes on", "dim")
        if self._topic is None:
            await self._follow(await self.client.subscribe(f"conv:{started['conv']}"))
            if self._config:  # a run's config is its own; the next ones are to have it too
                self._carried, self._config = self._config, {}
                await self.client.call("config.patch", {"scope": f"conv:{started['conv']}", "patch": self._carried})
        if unwanted:
            self._spawn(self._stop(started["run"]))
        return str(started["run"])

    def _open_runs(self) -> list[str]:
        """The runs that have not ended, the active one first."""
        runs = self._topic.state["runs"] if self._topic is not None else {}
        found = [id for id, r in runs.items() if r["status"] in OPEN]
        return sorted(found, key=lambda id: runs[id]["status"] == "queued")

    def _active(self) -> str | None:
        found = self._open_runs()
        return found[0] if found and self._topic and self._topic.state["runs"][found[0]]["status"] != "queued" else None

    def interrupted(self) -> None:
        """Ctrl-C: stops the run. Where none goes on, or stopping does not get through, a second one ends it all."""
        running = self._active() or next(iter(self._started), None)
        if running is not None and not self._stopping:
            self._stopping = True  # here, since a second signal may come before the task begins
            self._spawn(self._stop(running))
        elif self._said and not self._unwanted:
            self._unwanted = True
        elif self._warned or running is not None or not self.talking:
            self._leave(None if self.talking else Fault("request.cancelled", "interrupted"))
        else:
            self._warned = True
            self.screen.line("· press Ctrl-C again, or Ctrl-D, to leave", "dim")
            self._prompt()

    async def _stop(self, run: str) -> None:
        self._stopping = True
        loop, told = asyncio.get_running_loop(), "· the hub does not answer yet; press Ctrl-C again to leave"
        patience = loop.call_later(PATIENCE_S, self.screen.line, told, "dim")
        try:
            await self.client.call("run.cancel", {"run": run})
        finally:
            patience.cancel()
            self._stopping = False

    def _leave(self, why: Fault | None) -> None:
        self._gone = why
        if self._work is not None:
            self._work.cancel()

    def _spawn(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def status(self, name: str, details: Json) -> None:
        """What the client tells of its connection; it is no part of the conversation and goes to stderr."""
        match name:
            case "lost":
                print(f"\nsag: connection lost ({details['reason']}); trying again", file=sys.stderr)
                self._told_lost = True
            case "connected" if self._told_lost:
                self._told_lost = False
                print("sag: connected again", file=sys.stderr)
            case "bye" if details.get("reconnect"):
                print(f"\nsag: the hub goes away ({details.get('reason')})", file=sys.stderr)
            case "ended" if details["code"] != 499:
                self._leave(Fault("connection.ended", details["reason"], code=details["code"]))

    # commands

    async def _command(self, name: str, rest: str) -> None:
        command = _COMMANDS.get(name)
        if command is None:
            self.screen.line(f"There is no command /{name}; /help tells which there are.", "red")
        else:
            await command(self, rest.strip())

    async def _help(self, rest: str) -> None:
        self.screen.line(HELP)

    async def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        run, scope = self._active(), None
        if self._topic is not None:
            scope = f"run:{run}" if run else self._topic.name
        if not name:
            config = self._config
            if scope is not None:
                config = (await self.client.call("config.get", {"scope": scope}))["effective"]
            self.screen.line("\n".join(f"{k} = {plain(v)}" for k, v in config.items()) or "Nothing is set.")
            return
        if not text:
            self.screen.line("Write /set NAME VALUE; null takes a setting back.", "red")
            return
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            value = text
        await self._patch(scope, name, value)

    async def _patch(self, scope: str | None, name: str, value: Any) -> None:
        patch = value
        for member in reversed(name.split(".")):
            patch = {member: patch}
        if scope is None:
            self._config = merge_patch(self._config, patch)
            self.screen.line(f"· {name} = {plain(value)} from the first message on", "dim")
        else:
            await self.client.call("config.patch", {"scope": scope, "patch": patch})

    async def _model(self, name: str) -> None:
        names = [m["model"] for m in (await self.client.call("model.list"))["models"]]
        fitting = [n for n in names if n == name] or [n for n in names if n.partition("/")[2] == name]
        if not name or (not fitting and "/" not in name):
            self.screen.line(f"Write /model NAME, of: {', '.join(names) or 'none'}", "red")
            return
        run = self._active()
        scope = f"run:{run}" if run else self._topic.name if self._topic else None
        await self._patch(scope, "model", fitting[0] if fitting else name)

    async def _models(self, rest: str) -> None:
        for m in (await self.client.call("model.list"))["models"]:
            label = "" if m["model"].endswith(f"/{m['label']}") else m["label"]
            about = [label, "the default" if m.get("default") else ""]
            self.screen.line(f"{m['model']}  {', '.join(a for a in about if a)}".rstrip())

    async def _tools(self, rest: str) -> None:
        if rest:
            await self._decide(*rest.split())
            return
        for t in (await self.client.call("tool.list"))["tools"]:
            about = (t["description"].strip() or "-").splitlines()[0]
            decided = POLICIES[t["policy"]] + (", has changed" if t.get("changed") else "")
            told = [*([] if t.get("connector") else [t["origin"]]), t["risk"], decided if t["enabled"] else "off"]
            self.screen.line(f"{t['key']}  ({', '.join(told)})  {about}"[:200])
        hub = await self.client.subscribe("hub")
        for name, connector in hub.state["connectors"].items():
            status, error = connector.get("status"), connector.get("error") or ""
            if status not in ("ready", "idle"):
                self.screen.line(f"{name}  {status}  {error}".rstrip(), "yellow")

    async def _decide(self, name: str, policy: str = "", *rest: str) -> None:
        if policy not in (*POLICIES, "forget") or rest:
            self.screen.line(f"Write /tools NAME {'|'.join(POLICIES)}|forget.", "red")
            return
        await self.client.call("tool.policy.set", {"tool": name, "policy": None if policy == "forget" else policy})
        words = "nothing is decided of it any more" if policy == "forget" else POLICIES[policy]
        self.screen.line(f"· {name}: {words}, on all devices", "dim")

    async def _stop_command(self, rest: str) -> None:
        run = self._active()
        if run is None:
            self.screen.line("Nothing runs.")
        else:
            await self._stop(run)

    async def _steer(self, text: str) -> None:
        if text:
            await self._start(text, "steer")

    async def _resume(self, rest: str) -> None:
        runs = self._topic.state["runs"] if self._topic is not None else {}
        found = [id for id, r in runs.items() if r["status"] == "interrupted"]
        if not found:
            self.screen.line("No run of this conversation was interrupted.")
            return
        self._seen.discard(f"end {found[-1]}")
        await self.client.call("run.resume", {"run": found[-1]})

    async def _pause(self, rest: str) -> None:
        await self._hold("run.pause", "· it holds before its next step; /continue lets it go on")

    async def _continue(self, rest: str) -> None:
        await self._hold("run.continue", "· it goes on")

    async def _hold(self, method: str, told: str) -> None:
        run = self._active()
        if run is None:
            self.screen.line("Nothing runs.")
            return
        await self.client.call(method, {"run": run})
        self.screen.line(told, "dim")

    async def _choose_kind(self, name: str) -> None:
        kinds = [k["name"] for k in (await self.client.call("kind.list"))["kinds"]]
        if name not in kinds:
            self.screen.line(f"Write /kind NAME, of: {', '.join(kinds)}", "red")
            return
        self.kind = name
        self.screen.line(f"· the next runs are of kind {name}", "dim")

    async def _kinds(self, rest: str) -> None:
        for kind in (await self.client.call("kind.list"))["kinds"]:
            self.screen.line(f"{kind['name']}  {kind['description']}".rstrip())

    async def _new(self, rest: str) -> None:
        await self._unfollow()
        self.screen.line("· a new conversation", "dim")

    async def _list(self, rest: str) -> None:
        found = (await self.client.call("conversation.list", {"limit": 20}))["conversations"]
        self._listed = [c["conv"] for c in found]
        for number, c in enumerate(found, 1):
            when = datetime.fromtimestamp(c["updated"] / 1000).strftime("%Y-%m-%d %H:%M")
            self.screen.line(f"{number:>3}  {when}  {c['title']}  ({c['conv']})")
        if not found:
            self.screen.line("There are no conversations.")

    async def open(self, which: str) -> None:
        """Go on with a conversation, by its id or its number in the last list."""
        if which.isdigit() and 0 < int(which) <= len(self._listed):
            which = self._listed[int(which) - 1]
        if not which:
            self.screen.line("Write /open ID, or a number of /list.", "red")
            return
        topic = await self.client.subscribe(f"conv:{which.removeprefix('conv:')}")
        if topic is self._topic:
            return
        await self._unfollow()
        messages = topic.state["messages"]
        old = messages[:-HISTORY] if self.talking else messages
        self._pass_over(topic.state, old)
        if self.talking:
            self.screen.line(f"· {topic.state['conv'].get('title') or topic.name}", "dim")
        await self._follow(topic)

    # following

    async def _follow(self, topic: Topic) -> None:
        events = topic.events()
        self._topic = topic
        self._catch_up()

        async def follow() -> None:
            async for name, d in events:
                self._show(name, d)
            self.screen.line("· the conversation was deleted", "yellow")
            self._topic, self._started = None, []
            self._prompt()

        self._follower = asyncio.create_task(follow())
        self._follower.add_done_callback(self._followed)

    def _followed(self, task: asyncio.Task[None]) -> None:
        """A fault in showing must not be silent; the end of the connection is told by `status`."""
        if not task.cancelled() and (e := task.exception()) is not None and not isinstance(e, Fault):
            self._leave(Fault("rpc.internal", f"cannot show what came: {e!r}"))

    async def _unfollow(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            self._follower = None
        topic, self._topic = self._topic, None
        self._config, self._asks, self._form, self._shown, self._started = {}, {}, None, {}, []
        if topic is not None and topic.fault is None:
            await self.client.unsubscribe(topic.name)

    def _pass_over(self, state: State, messages: list[Json]) -> None:
        """Take what is old as shown."""
        self._seen |= {m["msg"] for m in messages} | {f"end {id}" for id, r in state["runs"].items() if _ended(r)}
        self._seen |= {id for id, t in state["tools"].items() if t["status"] != "running"}
        self._shown |= {p["part"]: len(p["text"]) for m in messages for p in m["parts"] if "part" in p}

    def _catch_up(self) -> None:
        """Show what the state has and the screen has not."""
        assert self._topic is not None
        state = self._topic.state
        for message in state["messages"]:
            self._message(message)
        for id in state["tools"]:
            self._tool(id)
        for id in state["asks"]:
            self._ask(id)
        if gone := [id for id in self._asks if id not in state["asks"]]:
            for id in gone:
                del self._asks[id]
            self._begin_ask()
            self._prompt()
        for id in state["runs"]:
            self._run_end(id)

    def _show(self, name: str, d: Any) -> None:
        """Show an event. The state has it already, and may have what follows it too."""
        assert self._topic is not None
        match name:
            case "delta":
                for part in d[::2]:
                    self._part(part)
            case "message.add" if d["role"] == "user":  # what an assistant's holds comes with its parts
                self._message(d)
            case "part.close":
                self._part(d["part"])
            case "part.drop":
                if self._shown.pop(d["part"], 0):
                    self.screen.line("· the answer begins anew", "dim")
                self._speaking = ()
            case "tool.open" | "tool.progress" | "tool.close":
                self._tool(d["call"])
            case "ask.open":
                self._ask(d["ask"])
            case "ask.close":
                self._ask_closed(d)
            case "config" if d["patch"] != self._carried:
                what = "this run" if d["scope"].startswith("run:") else "this conversation"
                self.screen.line(f"· {what}: {', '.join(_assignments(d['patch']))}", "dim")
            case "config.applied":
                self.screen.line(f"· in effect from step {d['step']} on", "dim")
            case "run" if d["patch"].get("after_ms"):
                self.screen.line(f"· trying again in {d['patch']['after_ms'] / 1000:.1f} s", "dim")
            case "run.close":
                self._run_end(d["run"])
            case "topic.snapshot":
                self._catch_up()

    def _message(self, message: Json) -> None:
        if message["role"] == "user":
            if message["msg"] not in self._seen:
                self._seen.add(message["msg"])
                text = " ".join(p.get("text") or f"[{p.get('name') or p['kind']}]" for p in message["parts"])
                if text not in self._said:
                    self.screen.line(f"you: {text}", "bold")
            return
        for part in message["parts"]:
            if part["kind"] != "tool_args":
                self._text(message, part)

    def _part(self, number: int) -> None:
        assert self._topic is not None
        for message in reversed(self._topic.state["messages"]):
            for part in message["parts"]:
                if part.get("part") == number:
                    if part["kind"] != "tool_args":
                        self._text(message, part)
                    return

    def _text(self, message: Json, part: Json) -> None:
        shown = self._shown.get(part["part"], 0)
        text = part["text"][shown:]
        assert self._topic is not None
        run = self._topic.state["runs"].get(message.get("run"), {})
        if part["kind"] == "tool_output" and part["open"]:  # whole lines, for several calls may write at once
            text = text[: text.rfind("\n") + 1]
        elif part["open"] and len(run.get("open_steps", ())) > 1:
            return  # several speak at once: each is shown when it has finished
        if not text:
            return
        self._shown[part["part"]] = shown + len(text)
        aside = part["kind"] != "text"
        if aside and not self.talking:
            return  # with a message on the command line the answer alone is printed
        if part["kind"] == "tool_output":
            self._speaking = ()
            name = _name(self._topic.state["tools"].get(part.get("call"), {}))
            self.screen.line("\n".join(f"  {name} | {line}" for line in text.splitlines()), "dim")
            return
        speaking = (message["msg"], part["part"])
        if self._speaking != speaking:
            self.screen.end_answer()
            agent = message.get("agent")
            if agent and self._speaking[:1] != speaking[:1]:
                self.screen.line(f"{run.get('titles', {}).get(agent) or agent}:", "bold")
            self._speaking = speaking
        self.screen.say(text, "dim" if aside else "")

    def _tool(self, call: str) -> None:
        assert self._topic is not None
        tool = self._topic.state["tools"].get(call)
        if tool is None or call in self._seen:
            return
        if f"open {call}" not in self._seen:
            self._seen.add(f"open {call}")
            self._speaking = ()
            self.screen.line(f"· {_name(tool)} {plain(tool['args'])[:200]}", "dim")
        if tool["status"] != "running":
            self._seen.add(call)
            ok = tool["status"] == "ok"
            why = (tool.get("error") or {}).get("message", "")
            text = f"· {_name(tool)}: {tool['status']} ({tool.get('ms', 0) / 1000:.1f} s) {why}".rstrip()
            self.screen.line(text, "green" if ok else "red")
            lines = result(tool["result"]) if ok and tool.get("result") is not None else []
            if tool.get("ref"):
                lines.append(f"all of it: {self._file(tool['ref'])}")
            if lines:
                self.screen.line("\n".join(f"  {line}" for line in lines), "dim")
        elif progress := tool.get("progress"):
            drawn = bar(progress["done"], progress.get("total"), progress.get("text") or "")
            self.screen.status(f"· {_name(tool)} {drawn}")

    def _run_end(self, id: str) -> None:
        assert self._topic is not None
        run = self._topic.state["runs"].get(id)
        if run is None or not _ended(run) or f"end {id}" in self._seen:
            return
        self._seen.add(f"end {id}")
        self._speaking = ()
        if run["status"] != "done":
            self.screen.end_answer()
            why = (run.get("error") or {}).get("message", "")
            hint = " /resume goes on with it." if run["status"] == "interrupted" and self.talking else ""
            self.screen.line(f"[{_ENDS.get(run['status'], run['status'])}]{' ' if why else ''}{why}{hint}", "yellow")
        elif self.talking:
            self.screen.end_answer()
        if id in self._started:
            self._started.remove(id)
        end = self._ends.setdefault(id, asyncio.get_running_loop().create_future())
        if not end.done():
            end.set_result(run["status"])
        self._prompt()

    def _prompt(self) -> None:
        """Invite to type, when it is the person's turn."""
        if not self.person:
            return
        if self._asks:
            self.screen.prompt(self._question())
        elif self.talking and not (self._open_runs() or self._started or self._said):
            self.screen.prompt("> ")

    def _file(self, ref: str) -> str:
        return f"{self.client.url.rstrip('/')}/api/files/{ref}"

    # asks

    def _ask(self, id: str) -> None:
        assert self._topic is not None
        ask = self._topic.state["asks"].get(id)
        if ask is None or id in self._seen:
            return
        self._seen.add(id)
        self._speaking = ()
        self.screen.end_answer()
        self.screen.line(f"? {ask['title']}", "yellow")
        for line in self._told_of(ask):
            self.screen.line(f"  {line}")
        if ask.get("url"):
            self.screen.line(f"  {ask['url']}")
        if not self.person:
            choice = _no(ask["options"])
            self.screen.line(f"  nobody is here to answer: {choice}", "yellow")
            self._spawn(self._send_answer(id, choice))
            return
        self._asks[id] = ask
        if len(self._asks) == 1:
            self._begin_ask()
            self._prompt()

    def _told_of(self, ask: Json) -> list[str]:
        """What an ask is about."""
        assert self._topic is not None
        subject = ask.get("subject") or {}
        if not subject:
            return []
        call = self._topic.state["tools"].get(ask.get("call")) or {}
        if "messages" in subject:  # a tool that wants to ask the model
            said = [*([("system", subject["system"])] if subject.get("system") else [])]
            said += [(m["role"], m["text"]) for m in subject["messages"]]
            return brief([f"{role}: {line}" for role, text in said for line in str(text).splitlines()], 12)
        lines = [f"{subject.get('key') or subject.get('tool', '')} {plain(call.get('args', subject.get('args')))}"]
        if changed := subject.get("changed"):
            lines.append("It has changed since you allowed it:")
            lines += changes(changed.get("before"), changed.get("after"))
        return lines

    def _begin_ask(self) -> None:
        ask = next(iter(self._asks.values()), {})
        self._edited = None
        self._form = Form(ask.get("schema") or {}) if ask.get("kind") == "form" else None

    def _question(self) -> str:
        if self._form is not None:
            return "  " + (self._form.prompt or "")
        ask = next(iter(self._asks.values()))
        choices = [f"[{key}] {label}" for key, label, _ in keys(ask["options"])]
        return "  " + "  ".join([*choices, *(["[e] edit"] if _editable(ask) else [])]) + "  "

    async def _answer(self, line: str) -> None:
        id, ask = next(iter(self._asks.items()))
        options = ask["options"]
        if self._form is None:
            said = line.strip().lower()
            choice = next((option for key, _, option in keys(options) if said in (key, option.lower())), None)
            if choice is not None:
                data = None if self._edited is None or choice == "deny" else {"args": self._edited}
                await self._send_answer(id, choice, data)
            elif said in ("e", "edit") and _editable(ask):
                args = ask["subject"]["args"] if self._edited is None else self._edited
                self._form = Form(ask["schema"], args)
            return
        if line.strip() and self._form.prompt is None:
            self._begin_ask()
        if self._form.prompt is not None and (wrong := self._form.feed(line)):
            self.screen.line(f"  {wrong}", "red")
        elif self._form.prompt is None and ask["kind"] == "approval":
            self._edited, self._form = self._form.data, None
            self.screen.line(f"  {ask['subject'].get('key', '')} {plain(self._edited)}")
        elif self._form.prompt is None:
            try:
                await self._send_answer(id, options[0], self._form.data)
            except Fault:
                self._begin_ask()
                raise

    async def _deny(self, rest: str) -> None:
        if not self._asks:
            self.screen.line("Nothing is asked.")
            return
        id, ask = next(iter(self._asks.items()))
        await self._send_answer(id, _no(ask["options"]))

    async def _send_answer(self, id: str, choice: str, data: Json | None = None) -> None:
        params: Json = {"ask": id, "choice": choice}
        if data is not None:
            params["data"] = data
        try:
            await self.client.call("ask.answer", params)
        except Fault as fault:
            if fault.kind != "ask.closed":  # somebody was faster, and `ask.close` tells
                raise

    def _ask_closed(self, d: Json) -> None:
        mine = d.get("by") is not None and d.get("client") == "cli"
        if not mine and d.get("why") != "run":
            self.screen.line(f"· answered: {d.get('choice')} ({d.get('why') or d.get('client') or 'elsewhere'})", "dim")
        if self._asks and next(iter(self._asks)) == d["ask"]:
            del self._asks[d["ask"]]
            self._begin_ask()
            if self._asks:
                self._prompt()
        else:
            self._asks.pop(d["ask"], None)


State = Json
_ENDS = {"cancelled": "stopped", "limit": "ended at the limit of rounds"}
_COMMANDS: dict[str, Callable[[Chat, str], Awaitable[None]]] = {
    "help": Chat._help,
    "set": Chat._set,
    "model": Chat._model,
    "models": Chat._models,
    "tools": Chat._tools,
    "stop": Chat._stop_command,
    "steer": Chat._steer,
    "resume": Chat._resume,
    "pause": Chat._pause,
    "continue": Chat._continue,
    "kind": Chat._choose_kind,
    "kinds": Chat._kinds,
    "new": Chat._new,
    "list": Chat._list,
    "open": Chat.open,
    "deny": Chat._deny,
}


def _ended(run: Json) -> bool:
    return run["status"] not in OPEN


def _told(fault: Fault) -> str:
    path = fault.data.get("path")
    return f"{fault.message} ({path})" if path not in (None, "$") and str(path) not in fault.message else fault.message


def _no(options: list[str]) -> str:
    """The option that refuses."""
    return next((option for option in ("deny", "decline") if option in options), options[-1])


def _editable(ask: Json) -> bool:
    """Whether the arguments of the call that is asked about can be changed here, member by member."""
    schema, subject = ask.get("schema") or {}, ask.get("subject") or {}
    return ask["kind"] == "approval" and bool(schema.get("properties")) and isinstance(subject.get("args"), dict)


def _name(tool: Json) -> str:
    """A tool as people know it."""
    name = str(tool.get("name", "tool"))
    return f"{tool['connector']}/{name}" if tool.get("connector") else name


def _assignments(patch: Json, prefix: str = "") -> list[str]:
    """A merge patch in words: `temperature = 0.2`."""
    out: list[str] = []
    for name, value in patch.items():
        if isinstance(value, dict) and value:
            out += _assignments(value, f"{prefix}{name}.")
        else:
            out.append(f"{prefix}{name} = {'(taken back)' if value is None else plain(value)}")
    return out
