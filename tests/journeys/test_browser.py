"""The chat page in a real browser against a real hub; each act is asserted by static/chat/e2e/journey.mjs."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Hub

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
NODE = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent)) or ""


def _missing() -> str:
    if not CHROMIUM:
        return "no Chromium is installed"
    if not NODE or not (ROOT / "static" / "node_modules" / "playwright-core").is_dir():
        return "the frontends' packages are not installed"
    return "" if (ROOT / "sag" / "frontend" / "chat" / "index.html").is_file() else "the frontends are not built"


def skip_without_browser() -> None:
    """Skip the test where it cannot be driven; in CI that is a failure."""
    reason = _missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.mark.browser
@pytest.mark.timeout(240)
async def test_a_person_chats_in_the_browser(tmp_path: Path, make_hub: Callable[..., Hub]) -> None:
    skip_without_browser()
    shots = Path(os.environ.get("SAG_SHOTS", tmp_path / "shots"))
    hub = make_hub("[probe]\nenabled = false\n", SAG_DEMO_TOKEN_MS="18")
    process = await asyncio.create_subprocess_exec(
        NODE, "e2e/journey.mjs", hub.url, str(shots), CHROMIUM,
        cwd=ROOT / "static" / "chat", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 200)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    assert output.decode().count("ok: ") == 11, output.decode()
    assert len(list(shots.glob("*.png"))) >= 8
