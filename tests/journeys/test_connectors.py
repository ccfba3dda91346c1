"""Connectors, tool cards, questions and prompts in a real browser; asserted by static/chat/e2e/connectors.mjs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Hub
from tests.journeys.test_browser import CHROMIUM, NODE, ROOT, skip_without_browser

WORKSHOP = Path(__file__).parent / "workshop" / "sag_workshop.py"


@pytest.mark.browser
@pytest.mark.timeout(240)
async def test_connectors_and_tools_are_used_through_the_page(tmp_path: Path, make_hub: Callable[..., Hub]) -> None:
    skip_without_browser()
    shots = Path(os.environ.get("SAG_SHOTS", tmp_path / "shots"))
    shots.mkdir(exist_ok=True)
    hub = make_hub("[probe]\nenabled = false\n", start=False, SAG_DEMO_TOKEN_MS="1")
    _install(hub.home / "path")
    hub.start()
    process = await asyncio.create_subprocess_exec(
        NODE, "e2e/connectors.mjs", hub.url, str(shots), CHROMIUM,
        cwd=ROOT / "static" / "chat", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 200)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "done", output.decode()


def _install(path: Path) -> None:
    """Put the plugin of this journey where the hub finds it."""
    shutil.copy(WORKSHOP, path)
    info = path / "sag_workshop-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sag-workshop\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sag]\nworkshop = sag_workshop\n")
