"""The MCP conformance suite against the hub, as a server at `/mcp` and as the client of connectors.

Each of its runs has a file in `expected/` of what fails, with the reasons. `scripts/peers` installs the suite.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from sag.testing.hub import running_hub
from tests.conformance.client import playing
from tests.conformance.fixtures import Fixtures, make_tools

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PEERS = ROOT / "tests" / "mcp"
WAIT_S = 55.0

RELEASES = {
    "0.1.16": ("conformance", ["--suite", "all"]),
    "2025-11-25": ("conformance-next", ["--requirements", "2025-11-25"]),
    "2026-07-28": ("conformance-next", ["--requirements", "2026-07-28"]),
}


def find_node() -> str | None:
    """A Node that the suite runs on."""
    own = Path(os.environ.get("SAG_PEERS_PYTHON") or ROOT / ".venv" / "peers" / "bin" / "python").with_name("node")
    for node in filter(None, (str(own), shutil.which("node"))):
        if Path(node).exists():
            told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
            if (match := re.match(r"v(\d+)", told)) and int(match[1]) >= 22:
                return node
    return None


@pytest.fixture(scope="module")
def node() -> str:
    found = find_node()
    if found is None or not (PEERS / "node_modules" / "conformance-next").is_dir():
        why = "scripts/peers installs the conformance suite"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    return found


async def run(node: str, what: str, release: str, place: Path, *target: str) -> dict[str, bool]:
    """Run the suite and hold it against what is expected; gives which scenarios passed.

    Args:
        node: The program.
        what: server or client.
        release: Of the suite, or the revision whose requirements are run.
        place: Where results are left.
        target: What is tested.
    """
    package, which = RELEASES[release]
    suite = PEERS / "node_modules" / package / "dist" / "index.js"
    arguments = [what, *target, *which, "--expected-failures", str(HERE / "expected" / f"{release}.yaml")]
    process = await asyncio.create_subprocess_exec(
        node, "--no-warnings", "-r", str(PEERS / "loopback.cjs"), str(suite), *arguments,
        stdout=PIPE, stderr=STDOUT, cwd=place,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WAIT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.decode())
    summary = text[text.rfind("SUMMARY") :]
    assert process.returncode == 0, f"{summary}\n\n{text[-20_000:]}"
    return {name: mark == "✓" for mark, name in re.findall(r"^([✓✗]) ([\w/.-]+):", summary, re.MULTILINE)}


@pytest.mark.parametrize("release", RELEASES)
async def test_as_a_server(node: str, release: str, tmp_path: Path):
    connector = Fixtures()
    async with running_hub(tools=make_tools(connector)) as hub:
        hub.app.extensions.connectors.add("test", connector)
        passed = await run(node, "server", release, tmp_path, "--url", f"{hub.url}/mcp")
    assert sum(passed.values()) >= 30
    assert passed["tools-call-with-progress"]


@pytest.mark.parametrize("release", RELEASES)
async def test_as_a_client(node: str, release: str, tmp_path: Path):
    async with playing() as player:
        passed = await run(node, "client", release, tmp_path, "--command", player.command)
    assert sum(passed.values()) >= 18
    assert passed["tools_call"]
    assert passed["auth/metadata-default"]
