"""What the composition root refuses and passes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sag.app import App
from sag.errors import StartError
from sag.settings import load


@pytest.mark.parametrize("name", ["opnai", "nobody"])
def test_a_provider_that_there_is_not_is_refused_at_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError) as raised:
        App(load({"SAG_DATA": str(tmp_path), "LLM_PROVIDER": name}, cwd=tmp_path))
    assert f"LLM_PROVIDER={name}" in str(raised.value)
    assert "demo" in str(raised.value)


def test_a_provider_that_lacks_its_address_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartError) as raised:
        App(load({"SAG_DATA": str(tmp_path), "LLM_PROVIDER": "azure"}, cwd=tmp_path))
    assert "AZURE_OPENAI_ENDPOINT" in str(raised.value)


@pytest.mark.parametrize("name", ["", " ", "openai", "OpenAI", "vllm", "anthropic", "demo"])
async def test_a_provider_that_is_bundled_is_taken_with_nothing_else_set(tmp_path: Path, name: str) -> None:
    app = App(load({"SAG_DATA": str(tmp_path), "LLM_PROVIDER": name}, cwd=tmp_path))
    assert not name.strip() or name.lower() in app.extensions.providers
    await app.stop()
