"""`sag plugin`: what is written installs, passes its own tests and is listed with its tool."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sag import plugin_cli
from sag.hooks.host import PluginInfo, Provides


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plugin_cli.add_parser(parser.add_subparsers(dest="command"))
    return plugin_cli.run(parser.parse_args(["plugin", *arguments]))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("options", "passed", "table", "what", "names"),
    [
        ((), "3 passed", '[my-dice]\nsides = "20"\n', "tools", ["my_dice_roll"]),
        (("--kind",), "15 passed", "", "kinds", ["my-dice"]),
    ],
)
def test_a_new_plugin_installs_passes_its_tests_and_is_listed_with_what_it_brings(
    tmp_path, capsys, options, passed, table, what, names
):
    assert run("new", "my-dice", "--path", str(tmp_path), *options) == 0
    folder, site = tmp_path / "sag-my-dice", tmp_path / "site"
    assert str(folder) in capsys.readouterr().out

    def call(*command: str) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SAG_", "PYTEST_"))}
        done = subprocess.run(
            command,
            cwd=folder,
            env={**env, "PYTHONPATH": str(site), "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-W", "ignore", "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    call(*pip, "--no-deps", "--no-build-isolation", "--target", str(site), ".")
    warnings = ["-W", "error"] if options else []  # an asyncio plugin that is there warns where it is not set up
    assert passed in call(sys.executable, "-m", "pytest", "-q", *warnings, "-p", "no:cacheprovider")
    (tmp_path / "plugins.toml").write_text(table)
    code = (
        "import argparse, sys; from sag import plugin_cli; p = argparse.ArgumentParser(); "
        "plugin_cli.add_parser(p.add_subparsers()); plugin_cli.run(p.parse_args(sys.argv[1:]))"
    )
    listed = call(sys.executable, "-c", code, "plugin", "list", "--json", "--config", str(tmp_path / "plugins.toml"))
    (info,) = (p for p in json.loads(listed)["plugins"] if p["name"] == "my-dice")
    assert (info["status"], info["dist"], info["version"]) == ("on", "sag-my-dice", "0.1.0")
    assert info["provides"][what] == names
    assert info["problems"] == []


@pytest.mark.parametrize("kind", [False, True])
def test_what_is_written_is_free_of_placeholders_and_clean(tmp_path, kind):
    plugin_cli.write_package("dice", tmp_path / "sag-dice", kind)
    files = [p for p in (tmp_path / "sag-dice").rglob("*") if p.is_file()]
    assert len(files) == 5
    assert not [p for p in files if re.search("@[A-Z]+@", p.read_text())]
    for command in (["ruff", "check", "--line-length", "120", "--select", "E,F,I,B,UP,W"], ["mypy", "--strict"]):
        target = tmp_path / "sag-dice" / ("sag_dice" if command[0] == "mypy" else ".")
        done = subprocess.run(
            [sys.executable, "-m", *command, str(target)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dice", "a_b", "1a", "hub", "conv", "a--b", "x" * 41, "sag-"])
def test_a_name_that_cannot_be_is_refused(name, tmp_path, capsys):
    assert run("new", name, "--path", str(tmp_path)) == 1
    assert "cannot be a plugin's name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path / "sag-dice").mkdir()
    assert run("new", "sag-dice", "--path", str(tmp_path)) == 1
    assert "is there already" in capsys.readouterr().err
    assert list((tmp_path / "sag-dice").iterdir()) == []


def test_the_list_shows_the_bundled_plugins_and_their_tools(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("list")
    out = capsys.readouterr().out
    assert out.startswith("NAME")
    assert "time_now, calculate, countdown, note_add, note_list, note_delete" in out
    assert "providers: demo" in out


def test_a_config_that_is_not_there_is_told_in_a_line(tmp_path, capsys):
    assert run("list", "--config", str(tmp_path / "none.toml")) == 78
    assert "no such file" in capsys.readouterr().err


def test_a_table_tells_reasons_problems_and_notes():
    infos = [
        PluginInfo("dice", "sag-dice", "1.2", "on", None, ["odd"], ["rolls"], Provides(tools=["roll"])),
        PluginInfo("a-longer-one", "", "", "failed", "import: no"),
    ]
    assert plugin_cli.table(infos).splitlines() == [
        "NAME          VERSION  STATUS  PROVIDES",
        "dice          1.2      on      tools: roll",
        "    ! odd",
        "    rolls",
        "a-longer-one  -        failed",
        "    import: no",
    ]
    assert plugin_cli.table([]) == "There are no plugins."


def test_installing_uses_pip_of_this_environment_and_nothing_is_taken_for_an_option():
    command = plugin_cli.install_command(["sag-dice", "--index-url=x"])
    assert command == [sys.executable, "-m", "pip", "install", "--", "sag-dice", "--index-url=x"]
    assert plugin_cli.install_command(["."], editable=True) == [sys.executable, "-m", "pip", "install", "-e", "."]


def test_without_pip_uv_installs_and_without_both_the_way_out_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 0\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plugin_cli.install_command(["x"]) == [str(uv), "pip", "install", "--python", sys.executable, "--", "x"]
    assert run("install", "x") == 0
    assert "Installed." in capsys.readouterr().out
    Path(uv).unlink()
    assert run("install", "x") == 1
    assert "neither pip" in capsys.readouterr().err


def test_the_installers_exit_status_is_given_on(monkeypatch, capsys):
    monkeypatch.setattr(plugin_cli, "install_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    assert run("install", "x") == 3
