"""`sag chat`, `sag token` and `sag doctor` as a person or a script starts them: processes, a terminal, a real hub."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sag import doctor_cli
from sag.address import find, own_hub
from sag.chat_cli import Chat
from sag.cli import main
from sag.client import Topic
from sag.errors import Fault
from sag.terminal import Form, Screen, bar, clean, keys
from sag.topics.reducers import ConvReducer
from tests.harness import Hub, until

WAIT_S = 15.0


def environment(home: Path, **more: str) -> dict[str, str]:
    ours = ("SAG_", "LLM_", "OPENAI", "VLLM", "NO_COLOR")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**clean, "HOME": str(home), "XDG_DATA_HOME": str(home), "TERM": "xterm", **more}


def sag(home: Path, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `sag` without a terminal."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sag.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
        cwd=home,
        env=environment(home, **env),
        check=False,
    )


class Terminal:
    """A person at a terminal: types, and waits for what is shown."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self._fd, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "sag.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env=environment(home, **env),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(slave)
        self._new = ""

    def see(self, text: str) -> str:
        """Wait for a text; gives all that was shown before it since the last such wait."""
        deadline = time.monotonic() + WAIT_S
        while text not in self._new:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"not shown within {WAIT_S:g} s: {text!r} in {self._new!r}")
            try:
                self._new += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended without {text!r}: {self._new!r}") from None
        before, _, self._new = self._new.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Wait for the process's end; gives its exit status."""
        deadline = time.monotonic() + WAIT_S
        with contextlib.suppress(OSError):
            while select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                if not os.read(self._fd, 65536):
                    break
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self._fd)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Any]:
    """Sit down at a terminal."""
    made: list[Terminal] = []

    def sit(*arguments: str, **env: str) -> Terminal:
        made.append(Terminal(tmp_path, *arguments, **env))
        return made[-1]

    yield sit
    for terminal in made:
        terminal.close()


# --- sag chat with a message ---


def test_a_message_on_the_command_line_prints_the_answer_alone(common: Hub, tmp_path):
    done = sag(tmp_path, "chat", "--data", str(common.data), "good", "words")
    assert done.stdout == "You said: good words (temperature None)\n"
    assert done.stderr == ""
    assert done.returncode == 0


def test_tools_are_told_on_stderr_and_leave_the_answer_clean(common: Hub, tmp_path):
    done = sag(tmp_path, "chat", "--data", str(common.data), 'call probe_slow {"id": "x1", "ms": 100}')
    assert done.returncode == 0
    assert "slow x1" in done.stdout
    assert "probe_slow" not in done.stdout
    assert "probe_slow [" in done.stderr
    assert "probe_slow: ok" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr


def test_a_run_that_fails_is_exit_status_1_and_its_reason_is_on_stderr(common: Hub, tmp_path):
    done = sag(tmp_path, "chat", "--url", common.url, "fail", "now")
    assert done.returncode == 1
    assert "[failed]" in done.stderr
    assert "[failed]" not in done.stdout


def test_nobody_there_to_answer_an_ask_means_no(common: Hub, tmp_path):
    done = sag(tmp_path, "chat", "--data", str(common.data), 'call probe_danger {"id": "d1"}')
    assert done.returncode == 0
    assert "nobody is here to answer: deny" in done.stderr
    assert "denied" in done.stderr
    assert not common.journal("tool danger d1")


def test_a_conversation_is_gone_on_with(common: Hub, tmp_path):
    listed = sag(tmp_path, "chat", "--data", str(common.data), stdin="first words\n/list\n")
    conv = re.search(r"first words  \((c\w+)\)", listed.stdout)
    assert conv is not None
    done = sag(tmp_path, "chat", "--data", str(common.data), "--conv", conv[1], "more")
    assert "You said: more" in done.stdout
    nobody = sag(tmp_path, "chat", "--data", str(common.data), "--conv", "nobody", "more")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.count("\n") == 1


def test_without_a_hub_one_line_says_what_to_do(tmp_path):
    done = sag(tmp_path, "chat", "--url", "http://127.0.0.1:9", "hello")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "sag serve" in done.stderr


def test_a_token_is_asked_for_and_taken_from_the_environment_or_from_hub_json(make_hub, tmp_path):
    hub = make_hub(SAG_AUTH="required")
    refused = sag(tmp_path, "chat", "--url", hub.url, "hello")
    assert refused.returncode == 1
    assert "Sign in" in refused.stderr
    token = sag(tmp_path, "token", "new", "--data", str(hub.data), "--user", "ada").stdout.strip()
    assert sag(tmp_path, "chat", "--url", hub.url, "--token", token, "hello").returncode == 0
    assert sag(tmp_path, "chat", "--url", hub.url, "hello", SAG_TOKEN=token).returncode == 0
    assert sag(tmp_path, "chat", "--data", str(hub.data), "hello").returncode == 0
    wrong = sag(tmp_path, "chat", "--url", hub.url, "hello", SAG_TOKEN="wrong")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1


# --- sag chat for a script ---


def test_lines_from_a_pipe_are_said_one_after_the_other(common: Hub, tmp_path):
    lines = "one\n/set temperature 0.5\n/set\ntwo\n/nonsense\n/help\n/models\n/tools\n"
    done = sag(tmp_path, "chat", "--data", str(common.data), stdin=lines)
    assert done.returncode == 0
    out = done.stdout
    assert (
        out.index("said: one")
        < out.index("this conversation: temperature = 0.5")
        < out.index("said: two (temperature 0.5)")
    )
    assert "temperature = 0.5\n" in out
    assert "There is no command /nonsense" in out
    assert "probe/script" in out
    assert "probe_danger  (probe, danger, asks)" in out
    assert "> " not in out
    assert common.journal("model two t=0.5")


def test_settings_before_the_first_message_hold_for_it_and_for_the_next(common: Hub, tmp_path):
    lines = "/set temperature 0.25\n/set extra.word bare text\nthird\nfourth\n"
    done = sag(tmp_path, "chat", "--data", str(common.data), stdin=lines)
    assert done.returncode == 0
    assert "temperature = 0.25 from the first message on" in done.stdout
    assert common.journal("model third t=0.25")
    assert common.journal("model fourth t=0.25")


def test_a_setting_that_does_not_fit_is_told_with_its_name(common: Hub, tmp_path):
    done = sag(tmp_path, "chat", "--data", str(common.data), stdin="one\n/set temperature hot\n/set nonsense 1\n")
    assert "$.temperature" in done.stdout
    assert "nonsense" in done.stdout
    assert done.returncode == 0


# --- sag chat at a terminal ---


def test_ctrl_c_stops_the_run_and_not_the_program(common: Hub, at):
    terminal = at("chat", "--data", str(common.data))
    terminal.see("> ")
    terminal.type("flood 100000 50\n")
    terminal.see("w3 ")
    terminal.type("\x03")
    terminal.see("[stopped]")
    terminal.see("> ")
    terminal.type("still here\n")
    terminal.see("said: still here")
    terminal.see("> ")
    terminal.type("\x03")
    terminal.see("press Ctrl-C again")
    terminal.type("/help\n")
    terminal.see("/steer")
    terminal.see("> ")
    terminal.type("\x03")
    terminal.see("press Ctrl-C again")
    terminal.type("\x03")
    assert terminal.end() == 0


def test_ctrl_d_leaves(common: Hub, at):
    terminal = at("chat", "--data", str(common.data), NO_COLOR="1")
    assert "\x1b" not in terminal.see("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_what_is_typed_while_it_streams_is_queued_or_patches_the_run(common: Hub, at):
    terminal = at("chat", "--data", str(common.data))
    terminal.see("> ")
    terminal.type('call probe_slow {"id": "q1", "ms": 1500}\n')
    terminal.see("/75")
    terminal.type("/set temperature 0.75\n")
    terminal.see("this run: temperature = 0.75")
    terminal.type("the next one\n")
    terminal.see("queued")
    terminal.see("in effect from step 2")
    terminal.see("slow q1")
    terminal.see("said: the next one")
    terminal.see("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert common.journal("t=0.75")


def test_an_ask_is_answered_with_a_key(common: Hub, at):
    terminal = at("chat", "--data", str(common.data))
    terminal.see("> ")
    terminal.type('call probe_danger {"id": "yes1"}\n')
    terminal.see("[y] allow once")
    terminal.see("[n] deny")
    terminal.type("what?\n")
    terminal.see("[n] deny")
    terminal.type("y\n")
    terminal.see("probe_danger: ok")
    terminal.see("> ")
    assert common.journal("tool danger yes1")
    terminal.type('call probe_danger {"id": "no1"}\n')
    terminal.see("[n] deny")
    terminal.type("n\n")
    terminal.see("denied")
    terminal.see("> ")
    assert not common.journal("tool danger no1")
    terminal.type('call probe_danger {"id": "cut1"}\n')
    terminal.see("[n] deny")
    terminal.type("\x03")
    terminal.see("[stopped]")
    terminal.see("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_a_form_is_asked_for_field_by_field(common: Hub, at):
    terminal = at("chat", "--data", str(common.data))
    terminal.see("> ")
    terminal.type('call probe_form {"id": "f1"}\n')
    terminal.see("? Who?")
    terminal.see("name: ")
    terminal.type("\n")
    terminal.see("An answer is needed.")
    terminal.see("name: ")
    terminal.type("Ada\n")
    terminal.see('"name":"Ada"')
    terminal.see("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_a_message_at_a_terminal_can_be_asked_back_and_be_stopped(common: Hub, at):
    terminal = at("chat", "--data", str(common.data), 'call probe_danger {"id": "once1"}')
    terminal.see("[y] allow once")
    terminal.type("y\n")
    terminal.see("probe_danger: ok")
    assert terminal.end() == 0
    terminal = at("chat", "--data", str(common.data), "flood", "100000", "50")
    terminal.see("w3 ")
    terminal.type("\x03")
    terminal.see("[stopped]")
    assert terminal.end() == 1


def test_a_hub_that_dies_is_waited_for_and_the_chat_goes_on(make_hub, at):
    hub = make_hub()
    terminal = at("chat", "--data", str(hub.data))
    terminal.see("> ")
    terminal.type("flood 100000 50\n")
    terminal.see("w3 ")
    hub.kill()
    terminal.see("connection lost")
    hub.start()
    terminal.see("connected again")
    terminal.see("[interrupted]")
    terminal.see("> ")
    terminal.type("good to see you\n")
    terminal.see("said: good to see you")
    terminal.see("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_a_stop_that_does_not_get_through_leaves_at_the_second_ctrl_c(make_hub, at):
    hub = make_hub()
    terminal = at("chat", "--data", str(hub.data))
    terminal.see("> ")
    terminal.type("flood 100000 50\n")
    terminal.see("w3 ")
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        terminal.type("\x03")
        terminal.see("does not answer yet")
        terminal.type("\x03")
        assert terminal.end() == 0
    finally:
        os.kill(hub.pid, signal.SIGCONT)


async def test_what_comes_all_at_once_is_shown_in_its_order():
    out = io.StringIO()
    chat = Chat(Screen(out, out, {}), person=False, talking=True)
    topic = Topic("conv:c1", ConvReducer("c1"), {})
    await chat._follow(topic)
    events: list[tuple[str, Any]] = []
    for number, text in enumerate(("one", "two"), 1):
        run, msg = f"r{number}", f"m{number}"
        events += [
            ("run.open", {"run": run, "kind": "chat", "status": "running", "config": {}, "rev": 1}),
            (
                "message.add",
                {"msg": f"u{number}", "role": "user", "run": run, "parts": [{"kind": "text", "text": "?"}]},
            ),
            ("message.add", {"msg": msg, "role": "assistant", "run": run, "parts": []}),
            ("part.open", {"part": number, "run": run, "msg": msg, "kind": "text"}),
            ("delta", [number, text]),
            ("ask.open", {"ask": f"a{number}", "run": run, "kind": "choice", "title": "Well?", "options": ["yes"]}),
            ("ask.close", {"ask": f"a{number}", "by": None, "choice": None, "why": "run"}),
            ("run.close", {"run": run, "status": "done", "usage": {}}),
        ]
    for off, (name, d) in enumerate(events, 1):
        assert topic.receive({"o": off, "e": name, "d": d})
    await until(lambda: out.getvalue().endswith("two\n"))
    assert out.getvalue() == "you: ?\none\nyou: ?\ntwo\n"
    assert chat._follower is not None
    chat._follower.cancel()


# --- the terminal's parts ---


def test_text_cannot_steer_the_terminal():
    assert clean("a\x1b[31mb\x9b2Jc\u202ed\te\r\nf") == "a\ufffd[31mb\ufffd2Jc\ufffdd\te\nf"


def test_what_is_no_terminal_gets_the_text_as_it_is():
    out, notes = io.StringIO(), io.StringIO()
    screen = Screen(out, notes, {})
    screen.say("a\x1bb")
    screen.status("once")
    screen.status("too soon for a second line")
    screen.prompt("> ")
    screen.line("note", "red")
    screen.close()
    assert out.getvalue() == "a\x1bb\n"
    assert notes.getvalue() == "once\nnote\n"


def test_progress_is_a_bar_where_the_total_is_known():
    assert bar(40, 80, "rows") == "[##########----------] 40/80 rows"
    assert bar(7, None) == "7"


def test_a_form_takes_each_member_in_its_type():
    form = Form(
        {
            "properties": {
                "count": {"type": "integer", "description": "How many"},
                "when": {"enum": ["now", "later"]},
                "sure": {"type": "boolean", "default": True},
                "tags": {"type": "array", "items": {"type": "string"}},
                "note": {"type": "string"},
            },
            "required": ["count", "when"],
        }
    )
    assert form.prompt == "count  How many: "
    assert form.feed("many") == "This has to be of type integer."
    assert form.feed("3") is None
    assert form.feed("never") == "Choose one of now, later."
    assert form.feed("later") is None
    assert form.prompt == "sure  y/n  [true]: "
    for answer in ("", "a, b", ""):
        assert form.feed(answer) is None
    assert not form.prompt
    assert form.data == {"count": 3, "when": "later", "sure": True, "tags": ["a", "b"]}


def test_each_option_of_an_ask_has_a_key_of_its_own():
    assert [key for key, _, _ in keys(["allow_once", "allow_run", "allow_always", "deny"])] == ["y", "r", "a", "n"]
    assert [key for key, _, _ in keys(["accept", "also", "decline"])] == ["a", "2", "d"]


# --- where the hub is ---


def test_the_own_hubs_token_is_shown_to_no_other_hub(common: Hub, tmp_path, monkeypatch):
    monkeypatch.delenv("SAG_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    own = find(None, None, str(common.data))
    assert own.url == common.url
    assert own.token
    assert find(common.url + "/", None, str(common.data)) == own
    assert find("http://127.0.0.1:9", None, str(common.data)).token is None
    assert find(None, "given", str(common.data)).token == "given"


def test_a_hub_json_that_was_left_by_a_killed_hub_is_not_believed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    told = {"url": "http://127.0.0.1:1", "token": "t", "pid": gone.pid}
    (tmp_path / "hub.json").write_text(json.dumps(told))
    assert own_hub(tmp_path) is None


def test_a_hub_json_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "hub.json").write_text("{")
    assert own_hub(tmp_path) is None


def test_a_hub_on_all_addresses_is_spoken_to_on_loopback(tmp_path):
    (tmp_path / "hub.json").write_text(json.dumps({"url": "http://0.0.0.0:4100", "token": "t", "pid": os.getpid()}))
    own = own_hub(tmp_path)
    assert own is not None
    assert own.url == "http://127.0.0.1:4100"


# --- sag token ---


def test_the_first_token_is_made_before_a_hub_runs_and_opens_it_then(make_hub, tmp_path):
    hub = make_hub(start=False, SAG_AUTH="required")
    made = sag(tmp_path, "token", "new", "--data", str(hub.data), "--name", "first", "--admin", "--expires", "30d")
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"sag_\S{43}\n", made.stdout)
    assert "(first) of the user local, user and admin" in made.stderr
    hub.start()
    assert sag(tmp_path, "chat", "--url", hub.url, "--token", made.stdout.strip(), "hello").returncode == 0
    listed = sag(tmp_path, "token", "list", "--data", str(hub.data)).stdout
    assert "first" in listed
    assert made.stdout.strip() not in listed
    id = listed.splitlines()[1].split()[0]
    assert sag(tmp_path, "token", "drop", id, "--data", str(hub.data)).returncode == 0
    assert sag(tmp_path, "chat", "--url", hub.url, "--token", made.stdout.strip(), "hello").returncode == 1
    again = sag(tmp_path, "token", "drop", id, "--data", str(hub.data))
    assert (again.returncode, again.stderr) == (1, "sag: No such token.\n")


def test_tokens_are_made_the_same_way_after_a_hub_was_killed(make_hub, tmp_path):
    hub = make_hub()
    hub.kill()
    made = sag(tmp_path, "token", "new", "--data", str(hub.data))
    assert made.returncode == 0, made.stderr
    assert sag(tmp_path, "token", "list", "--data", str(hub.data)).stdout.count("\n") == 2


@pytest.mark.parametrize("arguments", [["--user", "a b"], ["--expires", "soon"], ["--expires", "0d"]])
def test_a_token_that_makes_no_sense_is_refused_in_both_ways(common: Hub, tmp_path, arguments):
    for data in (common.data, tmp_path / "none"):
        done = sag(tmp_path, "token", "new", "--data", str(data), *arguments)
        assert done.returncode in (1, 2)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


# --- sag doctor ---


def checks(data: Path, **given: Any) -> dict[str, doctor_cli.Check]:
    return {check.name: check for check in doctor_cli.examine(str(data), **given)}


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SAG_", "LLM_", "OPENAI", "VLLM")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SAG_PORT", "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("plain")
def test_the_doctor_finds_nothing_wrong_with_a_fresh_machine_and_makes_nothing(tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["doctor", "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("fail") for line in lines)
    assert any("none yet" in line for line in lines)
    assert not data.exists()
    found = checks(data)
    assert found["model"].status == "warn"
    assert found["access"].status == "ok"
    assert found["sqlite"].status == ("ok" if sqlite3.sqlite_version_info >= (3, 51, 3) else "warn")


@pytest.mark.usefixtures("plain")
def test_the_doctor_speaks_json(tmp_path, capsys):
    assert main(["doctor", "--data", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["checks"]
    assert {"name", "status", "text"} == set(told[0])


@pytest.mark.usefixtures("plain")
def test_the_doctor_asks_a_running_hub_and_leaves_its_database_alone(common: Hub):
    found = checks(common.data)
    assert found["hub"].status == "ok"
    assert common.url in found["hub"].text
    assert "database" not in found
    assert "port" not in found


@pytest.mark.usefixtures("plain")
def test_the_doctor_finds_a_damaged_database(tmp_path):
    data = tmp_path / "data"
    assert main(["token", "new", "--data", str(data)]) == 0
    before = sorted(p.name for p in data.iterdir())
    assert checks(data)["database"].status == "ok"
    assert sorted(p.name for p in data.iterdir()) == before
    file = data / "sag.db"
    text = bytearray(file.read_bytes())
    text[4096 * 2 : 4096 * 6] = b"\xff" * (4096 * 4)
    file.write_bytes(text)
    assert checks(data)["database"].status == "fail"
    assert main(["doctor", "--data", str(data)]) == 1


@pytest.mark.usefixtures("plain")
def test_the_doctor_finds_what_would_keep_the_hub_from_starting(tmp_path, monkeypatch):
    bad = tmp_path / "bad.toml"
    bad.write_text("[hub\n")
    assert checks(tmp_path, config=str(bad))["settings"].status == "fail"
    (tmp_path / "file").write_text("")
    assert checks(tmp_path / "file")["data folder"].status == "fail"
    newer = tmp_path / "newer"
    newer.mkdir()
    with contextlib.closing(sqlite3.connect(newer / "sag.db")) as db:
        db.execute("PRAGMA user_version=99")
    assert "newer" in checks(newer)["database"].text
    monkeypatch.setenv("SAG_HOST", "0.0.0.0")
    open_door = checks(tmp_path / "open")["access"]
    assert open_door.status == "fail"
    assert "sag token new" in open_door.text


@pytest.mark.usefixtures("plain")
def test_the_doctor_finds_a_port_that_is_taken_and_a_clock_that_went_back(common: Hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SAG_PORT", str(common.port))
    assert checks(tmp_path / "data")["port"].status == "fail"
    assert doctor_cli._clock(round((time.time() + 3600) * 1000)).status == "warn"


def test_what_a_hub_refuses_keeps_its_kind_over_http(common: Hub):
    from sag.address import Address, rpc

    with pytest.raises(Fault) as raised:
        rpc(Address(common.url), "run.get", {"run": "nobody"})
    assert raised.value.kind == "run.unknown"
    with pytest.raises(Fault) as raised:
        rpc(Address("http://127.0.0.1:9"), "user.me", {})
    assert raised.value.kind == "hub.unreachable"
