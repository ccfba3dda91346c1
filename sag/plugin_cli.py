"""`sag plugin new|list|install`: writing, showing and installing plugins without a running hub.

Above: `sag.cli`, which calls `add_parser` and `run`. Below: the plugin host, which `list` loads plugins with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sag.errors import StartError
from sag.hooks.host import Extensions, PluginHost, PluginInfo
from sag.ops.operation import Registry
from sag.settings import load
from sag.topics.reducers import FAMILIES

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_TAKEN = {"hub", *FAMILIES}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `plugin` to the command line of `sag`."""
    parser = subparsers.add_parser("plugin", help="write, list and install plugins")
    commands = parser.add_subparsers(dest="plugin_command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="write a package with a tool, or with a run kind, and its tests")
    new.add_argument("name", help="the plugin's name: lower case letters, digits and hyphens")
    new.add_argument("--path", default=".", metavar="DIR", help="where the folder sag-NAME is made (default: here)")
    new.add_argument("--kind", action="store_true", help="write a run kind rather than a tool")
    listing = commands.add_parser("list", help="show the installed plugins, what they provide and what is wrong")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.add_argument("--config", metavar="FILE", help="the plugins.toml to go by")
    listing.add_argument("-v", "--verbose", action="store_true", help="with the tracebacks of what failed")
    install = commands.add_parser("install", help="install packages into the environment that sag runs in")
    install.add_argument("packages", nargs="+", metavar="NAME", help="a package, a folder or a URL, as pip takes it")
    install.add_argument("-e", "--editable", action="store_true", help="of a folder: use it where it is")


def run(args: argparse.Namespace) -> int:
    """Run what was asked for; gives the process's exit status, 1 where a plugin has failed or nothing could be done."""
    try:
        match args.plugin_command:
            case "new":
                return _new(args.name, Path(args.path), args.kind)
            case "install":
                return _install(args.packages, args.editable)
            case _:
                return _list(args.config, args.json, args.verbose)
    except StartError as e:
        print(f"sag: {e}", file=sys.stderr)
        return e.code


# list


def _list(config: str | None, as_json: bool, verbose: bool) -> int:
    if not verbose:
        logging.getLogger("sag.hooks").setLevel(logging.CRITICAL)  # the table tells the same in a line each
    settings = load(config=config)
    host = PluginHost(settings, Registry(), Extensions(), dict(FAMILIES))
    host.load()
    if as_json:
        print(json.dumps({"plugins": msgspec.to_builtins(host.plugins), "problems": host.problems}, indent=2))
    else:
        print(table(host.plugins))
        for problem in host.problems:
            print(f"! {problem}")
    return int(any(info.status == "failed" for info in host.plugins))


def table(plugins: Sequence[PluginInfo]) -> str:
    """Plugins as a table, one line each, and below each what is wrong with it and what it says of itself."""
    if not plugins:
        return "There are no plugins."
    rows = [("NAME", "VERSION", "STATUS", "PROVIDES")]
    rows += [(p.name, p.version or "-", p.status, provided(p)) for p in plugins]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    ]
    out = lines[:1]
    for line, plugin in zip(lines[1:], plugins, strict=True):
        out.append(line)
        out += [f"    {plugin.reason}"] if plugin.reason else []
        out += [f"    ! {problem}" for problem in plugin.problems]
        out += [f"    {note}" for note in plugin.notes]
    return "\n".join(out)


def provided(plugin: PluginInfo) -> str:
    """What a plugin brings, in a line: `tools: roll; providers: demo`."""
    kinds = msgspec.structs.asdict(plugin.provides)
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


# install


def _install(packages: Sequence[str], editable: bool) -> int:
    command = install_command(packages, editable)
    if command is None:
        print(
            f"sag: there is neither pip in {sys.prefix} nor uv on the PATH.\n"
            f"Try: {sys.executable} -m ensurepip, or install the package as you installed sag "
            f"(pipx inject sag-hub {' '.join(packages)}).",
            file=sys.stderr,
        )
        return 1
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        print("Installed. `sag plugin list` shows it; a hub that runs takes it up when it is started again.")
    return status


def install_command(packages: Sequence[str], editable: bool = False) -> list[str] | None:
    """The command that installs into this interpreter's environment; None where there is no installer."""
    wanted = [arg for package in packages for arg in ("-e", package)] if editable else ["--", *packages]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", *wanted]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--python", sys.executable, *wanted]
    return None


# new


def _new(name: str, path: Path, kind: bool) -> int:
    name = name.removeprefix("sag-")
    if not _NAME.fullmatch(name) or name in _TAKEN or len(name) > 40:
        print(f"sag: {name!r} cannot be a plugin's name; take lower case letters, digits and hyphens", file=sys.stderr)
        return 1
    folder = path / f"sag-{name}"
    if folder.exists():
        print(f"sag: {folder} is there already", file=sys.stderr)
        return 1
    try:
        write_package(name, folder, kind)
    except OSError as e:
        print(f"sag: {e}", file=sys.stderr)
        return 1
    print(f"Wrote {folder}. Next:\n  sag plugin install -e {folder}\n  sag plugin list")
    return 0


def write_package(name: str, folder: Path, kind: bool = False) -> None:
    """Write the package of a new plugin.

    Args:
        name: The plugin's name, and that of its run kind.
        folder: Is made; must not exist.
        kind: Whether it brings a run kind rather than a tool.

    Raises:
        OSError: It exists, or cannot be written.
    """
    words = {
        "@TEST@": '"pytest", "pytest-asyncio>=1"' if kind else '"pytest"',
        "@PYTEST@": _PYTEST if kind else "",
        "@SETTINGS@": "" if kind else _SETTINGS,
        "@BRINGS@": "run kind `@NAME@`" if kind else "tool `@TOOL@`",
        "@NAME@": name,
        "@MODULE@": f"sag_{name.replace('-', '_')}",
        "@TOOL@": f"{name.replace('-', '_')}_roll",
    }
    files = {**_FILES, **_KIND_FILES} if kind else _FILES
    for path, text in files.items():
        for word, value in words.items():
            path, text = path.replace(word, value), text.replace(word, value)
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip("\n"), encoding="utf-8")


_FILES = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sag-@NAME@"
version = "0.1.0"
description = "A plugin for sag: @NAME@"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["sag-hub>=0.1,<1"]

[project.optional-dependencies]
test = [@TEST@]

[project.entry-points.sag]
@NAME@ = "@MODULE@"

[tool.hatch.build.targets.wheel]
packages = ["@MODULE@"]
@PYTEST@""",
    "@MODULE@/__init__.py": '''
"""The sag plugin @NAME@: a tool that rolls dice, to be made into your own."""

from __future__ import annotations

import asyncio
import random
from typing import Annotated

from msgspec import Meta, Struct
from sag.plugin import Hub, ToolContext, hookimpl, tool


class Settings(Struct):
    """The table `[@NAME@]` of plugins.toml, decoded and checked."""

    sides: Annotated[int, Meta(ge=2, le=1000)] = 6


class Dice:
    """Holds the settings for its tools."""

    def __init__(self, sides: int) -> None:
        self.sides = sides

    async def roll(
        self,
        times: Annotated[int, Meta(ge=1, le=100, description="How many dice to roll.")] = 1,
        *,
        ctx: ToolContext,
    ) -> list[int]:
        """Roll dice and give what each shows. (This is what the model reads.)"""
        shown: list[int] = []
        for _ in range(times):
            shown.append(random.randint(1, self.sides))
            await ctx.progress(done=len(shown), total=times)
            await asyncio.sleep(0.05)
        return shown


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Called once at start, with this plugin's own hub."""
    dice = Dice(hub.settings.sides)
    hub.add_tool(tool(name="@TOOL@", risk="read")(dice.roll))
''',
    "@MODULE@/py.typed": "",
    "tests/test_@MODULE@.py": '''
"""What the plugin does, tried on its tool and without a hub."""

import asyncio

import pytest
from sag.plugin import Fault, Tool, tool
from @MODULE@ import Dice, Settings


class Context:
    """Stands for what the hub gives a tool as `ctx`, and keeps the progress that it is told."""

    def __init__(self):
        self.told = []

    async def progress(self, done, total=None, text=None):
        self.told.append((done, total))


@pytest.fixture
def roll() -> Tool:
    return tool(name="@TOOL@", risk="read")(Dice(Settings().sides).roll)


def test_each_die_shows_one_of_its_sides_and_progress_is_told(roll):
    context = Context()
    shown = asyncio.run(roll.call(roll.check({"times": 3}), context))
    assert len(shown) == 3
    assert all(1 <= side <= 6 for side in shown)
    assert context.told == [(1, 3), (2, 3), (3, 3)]


def test_too_many_dice_are_refused_with_the_path(roll):
    with pytest.raises(Fault) as raised:
        roll.check({"times": 101})
    assert raised.value.data["path"] == "$.times"


def test_the_model_reads_what_the_tool_is_for(roll):
    assert roll.description.startswith("Roll dice")
    assert roll.input["properties"]["times"]["description"] == "How many dice to roll."
''',
    "README.md": """
# sag-@NAME@

A plugin for [sag](https://pypi.org/project/sag-hub/). It brings the @BRINGS@.

```sh
sag plugin install sag-@NAME@     # or, from this folder: sag plugin install -e .
sag plugin list                   # shows it
```
@SETTINGS@
To work on it:

```sh
pip install -e '.[test]'
pytest
```
""",
}

_PYTEST = """
[tool.pytest.ini_options]
asyncio_default_fixture_loop_scope = "function"
"""

_SETTINGS = """
Settings, in plugins.toml:

```toml
[@NAME@]
sides = 20
```
"""

_KIND_FILES = {
    "@MODULE@/__init__.py": '''
"""The sag plugin @NAME@: a run kind in which one writes and another improves it, to be made into your own."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from sag.plugin import Agent, Hub, Run, RunConfig, hookimpl


class Config(RunConfig):
    """Config of a run. A patch of it takes hold at the next step.

    Attributes:
        writer, editor: What each is told.
        rounds: How many model rounds the run may take, whoever takes them.
    """

    writer: Annotated[str, Meta(max_length=10_000)] = "Write what the user asks for."
    editor: Annotated[str, Meta(max_length=10_000)] = "Write the writer's newest text again, and better."
    rounds: Annotated[int, Meta(ge=1, le=100)] = 20


def writer(config: Config) -> Agent:
    """Who writes, as the config is when a step begins."""
    return Agent(name="writer", title="Writer", system=config.writer, offered=())


def editor(config: Config) -> Agent:
    """Who improves it."""
    return Agent(name="editor", title="Editor", system=config.editor, offered=())


async def proceed(run: Run) -> None:
    """One writes, and another improves it. (This is what people read.)"""
    while True:  # what is next follows from the run's state alone, so that a kill may come at any moment
        if run.unread:
            await run.turn(writer)
        elif run.turns()[-1].agent == "writer":
            await run.turn(editor)
        else:
            break


@hookimpl
def register(hub: Hub[None]) -> None:
    """Called once at start, with this plugin's own hub."""
    hub.add_run_kind("@NAME@", Config, proceed, title="@NAME@")
''',
    "tests/test_@MODULE@.py": '''
"""The run kind, played through a whole hub: killed, cancelled, patched, paused, cut, and told something meanwhile."""

from sag.testing.kinds import RunKindContract
from sag.testing.provider import say


class TestKind(RunKindContract):
    kind = "@NAME@"  # the plugin has to be installed
    text = "A slogan for a bakery"
    patch = {"editor": "Make it rhyme."}
    bad_patches = ({"editor": 1}, {"no_such_member": 1})

    def answer(self, request):
        editing = "again" in request.messages[0].text  # the system prompt
        return say("Fresher ", "bread.") if editing else say("Fresh ", "bread.")
''',
}
