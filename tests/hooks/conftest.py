"""Plugins written to a folder for one test each, and a host that loads them."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from sag.hooks.host import Extensions, PluginHost
from sag.ops.operation import Registry
from sag.schema.events import EVENTS
from sag.settings import HubSettings, Settings
from sag.topics.reducers import FAMILIES

_numbers = itertools.count(1)
HEAD = "from sag.plugin import *\nfrom msgspec import Struct\n"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EntryPoint]]:
    """Write a plugin's module and give its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = {family: dict(events) for family, events in EVENTS.items()}
    made: list[str] = []

    def write(name: str, source: str, attribute: str = "") -> EntryPoint:
        module = f"plugin_in_test_{next(_numbers)}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(HEAD + textwrap.dedent(source))
        return EntryPoint(name, f"{module}:{attribute}" if attribute else module, "sag")

    yield write
    for module in made:
        sys.modules.pop(module, None)
    EVENTS.clear()
    EVENTS.update(known)


@pytest.fixture
def make_host() -> Callable[..., PluginHost]:
    """Make and load a host of the entry points given."""

    def make(*entry_points: EntryPoint, tables: dict[str, Any] | None = None, **given: Any) -> PluginHost:
        env = given.pop("env", {})
        settings = Settings(
            HubSettings(plugin_s=given.pop("plugin_s", 2.0)), tables or {}, env, config_file="some/plugins.toml"
        )
        host = PluginHost(settings, Registry(), Extensions(), dict(FAMILIES), entry_points, **given)
        host.load()
        return host

    return make
