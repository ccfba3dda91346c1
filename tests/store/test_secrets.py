"""Plugins' secrets: encrypted where they are kept, and gone without their key."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from sag.errors import Fault
from sag.secret import blot
from sag.store.secrets import FILE, SPACE, Secrets
from sag.testing.hub import running_hub


class Kept:
    """Keys and values in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Any] = {}

    async def get(self, space: str, key: str) -> Any:
        return self.rows.get((space, key))

    async def put(self, space: str, key: str, value: Any) -> None:
        self.rows[space, key] = value

    async def delete(self, space: str, key: str) -> None:
        self.rows.pop((space, key), None)


@pytest.fixture
def kept() -> Any:
    return Kept()


async def test_a_secret_is_kept_encrypted_and_had_again_by_the_next_process(tmp_path: Path, kept: Any) -> None:
    secrets = Secrets(tmp_path, kept)
    assert await secrets.get("mcp", "token") is None
    assert not (tmp_path / FILE).exists()  # nothing is made for nothing
    for value in ("geheim-geheim", "", "ä\n" * 10_000):
        await secrets.put("mcp", "token", value)
        assert await Secrets(tmp_path, kept).get("mcp", "token") == value
        if value:
            assert value not in str(kept.rows)
    assert await secrets.get("other", "token") is None
    assert await secrets.get("mcp", "other") is None
    await secrets.put("mcp", "token", None)
    await secrets.put("mcp", "token", None)
    assert await secrets.get("mcp", "token") is None
    assert kept.rows == {}


async def test_the_same_value_looks_different_each_time(tmp_path: Path, kept: Any) -> None:
    secrets = Secrets(tmp_path, kept)
    await secrets.put("a", "1", "same-same")
    await secrets.put("a", "2", "same-same")
    assert kept.rows[SPACE, "a 1"] != kept.rows[SPACE, "a 2"]


async def test_the_key_is_readable_by_its_user_alone_and_nothing_else_is_left(tmp_path: Path, kept: Any) -> None:
    await Secrets(tmp_path, kept).put("a", "b", "x")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


async def test_the_first_of_two_processes_makes_the_key(tmp_path: Path, kept: Any) -> None:
    one, two = Secrets(tmp_path, kept), Secrets(tmp_path, kept)
    await one.put("a", "b", "from one")
    await two.put("a", "c", "from two")
    assert await one.get("a", "c") == "from two"
    assert await two.get("a", "b") == "from one"


@pytest.mark.parametrize("how", ["gone", "another", "passphrase"])
async def test_without_its_key_a_secret_is_none_and_the_log_says_so(
    tmp_path: Path, kept: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    await Secrets(tmp_path, kept).put("mcp", "token", "geheim-geheim")
    (tmp_path / FILE).unlink()
    if how == "another":
        await Secrets(tmp_path, Kept()).put("x", "y", "z")  # type: ignore[arg-type]
    again = Secrets(tmp_path, kept, "a passphrase" if how == "passphrase" else "")
    assert await again.get("mcp", "token") is None
    assert "cannot be read" in caplog.text
    assert "geheim" not in caplog.text
    await again.put("mcp", "token", "new one")
    assert await again.get("mcp", "token") == "new one"


async def test_a_passphrase_stands_for_the_file(tmp_path: Path, kept: Any) -> None:
    await Secrets(tmp_path, kept, "open sesame").put("a", "b", "behind the door")
    assert not (tmp_path / FILE).exists()
    assert await Secrets(tmp_path / "elsewhere", kept, "open sesame").get("a", "b") == "behind the door"
    assert await Secrets(tmp_path, kept, "open Sesame").get("a", "b") is None


@pytest.mark.parametrize("text", [b"", b"short", b"\xff" * 44])
async def test_a_key_that_is_damaged_is_told_and_never_replaced(
    tmp_path: Path, kept: Any, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await Secrets(tmp_path, kept).put("a", "b", "old")
    (tmp_path / FILE).write_bytes(text)
    secrets = Secrets(tmp_path, kept)
    for work in (secrets.get("a", "b"), secrets.put("a", "b", "new")):
        with pytest.raises(Fault) as raised:
            await work
        assert raised.value.kind == "store.unavailable"
    assert (tmp_path / FILE).read_bytes() == text
    assert "cannot be used" in caplog.text


async def test_a_row_that_is_damaged_is_no_secret(tmp_path: Path, kept: Any) -> None:
    secrets = Secrets(tmp_path, kept)
    await secrets.put("a", "b", "whole")
    for wrong in ("", "gAAAA", kept.rows[SPACE, "a b"][:-10], "ü"):
        kept.rows[SPACE, "a b"] = wrong
        assert await secrets.get("a", "b") is None


async def test_a_file_system_without_links_will_do(tmp_path: Path, kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    await Secrets(tmp_path, kept).put("a", "b", "x")
    assert await Secrets(tmp_path, kept).get("a", "b") == "x"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, kept: Any) -> None:
    with pytest.raises(Fault) as raised:
        await Secrets(tmp_path / "nowhere", kept).put("a", "b", "x")
    assert raised.value.kind == "store.unavailable"
    assert str(tmp_path) not in raised.value.message


async def test_what_was_kept_or_had_is_hidden_from_logs(tmp_path: Path, kept: Any) -> None:
    await Secrets(tmp_path, kept).put("a", "b", "sk-very-much-hidden")
    assert blot("it is sk-very-much-hidden") == "it is …"


async def test_the_database_of_a_hub_holds_no_secret(tmp_path: Path) -> None:
    async with running_hub(data=tmp_path) as hub:
        await hub.app.secrets.put("mcp", "token", "sk-in-the-database")
        assert await hub.app.secrets.get("mcp", "token") == "sk-in-the-database"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"sk-in-the-database" not in path.read_bytes(), path
    async with running_hub(data=tmp_path) as hub:
        assert await hub.app.secrets.get("mcp", "token") == "sk-in-the-database"
