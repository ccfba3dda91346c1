"""The plugin as the hub sees it, and what its servers must not do: bring the hub with them, or write to stdout."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sag.hooks.host import Extensions, PluginHost
from sag.ops.operation import Registry
from sag.settings import HubSettings, Settings
from sag.topics.reducers import FAMILIES
from sag_resourcing.prompt import SYSTEM_PROMPT

SCRIPTS = Path(sys.executable).parent
ENTRY_POINT = EntryPoint("resourcing", "sag_resourcing", "sag")


def load(**table: object) -> tuple[PluginHost, Extensions]:
    extensions = Extensions()
    settings = Settings(HubSettings(), plugins={"resourcing": table})
    host = PluginHost(settings, Registry(), extensions, dict(FAMILIES), [ENTRY_POINT])
    host.load()
    return host, extensions


def test_the_plugin_offers_a_preset_with_its_prompt():
    host, extensions = load()
    info = host.get("resourcing")
    assert info is not None
    assert (info.status, info.problems) == ("on", [])
    assert extensions.presets["resourcing"].config == {"system": SYSTEM_PROMPT}


def test_rules_of_the_house_are_added_to_the_prompt():
    _, extensions = load(rules="The team Oslo is Ana Berg and Ben Dahl.")
    system = extensions.presets["resourcing"].config["system"]
    assert system.startswith(SYSTEM_PROMPT)
    assert system.endswith("The team Oslo is Ana Berg and Ben Dahl.\n")


def test_the_prompt_names_what_the_servers_really_offer():
    offered = "list_people list_users list_projects get_time_entries get_availability get_user_availability"
    assert all(name in SYSTEM_PROMPT for name in offered.split())
    assert "`productive`" in SYSTEM_PROMPT
    assert "`smartsheet`" in SYSTEM_PROMPT


@pytest.mark.parametrize("module", ["productive", "smartsheet"])
def test_the_servers_import_nothing_of_the_hub(module):
    code = f"import sys, sag_resourcing.{module}; print([m for m in sys.modules if m.partition('.')[0] == 'sag'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("script", "variable"),
    [("sag-mcp-productive", "PRODUCTIVE_API_TOKEN"), ("sag-mcp-smartsheet", "SMARTSHEET_RM_API_TOKEN")],
)
def test_help_names_the_variables_and_the_end_of_stdin_ends_the_server(script, variable):
    told = subprocess.run([SCRIPTS / script, "--help"], capture_output=True, text=True, check=True, timeout=30)
    assert variable in told.stdout
    ended = subprocess.run([SCRIPTS / script], input=b"", capture_output=True, check=True, timeout=30, env={})
    assert ended.stdout == b""
