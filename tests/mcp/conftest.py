"""Fixtures for tests of servers over HTTP: the plugin as an installed one, and a record of what connects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mcp.loopback import WIRE, Wire, install


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin as an installed one."""
    install(monkeypatch)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A record of this test's doings."""
    WIRE.resolved, WIRE.connected, WIRE.started = [], [], []
    WIRE.is_on = True
    yield WIRE
    WIRE.is_on = False
