"""Hubs for journeys and fault tests; each is looked at when its test is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Hub


@pytest.fixture
def make_hub(tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Start hubs, each in its own folder unless `data` names one."""
    made: list[Hub] = []
    numbers = itertools.count(1)

    def make(config: str = "", *, data: Path | None = None, start: bool = True, **env: str) -> Hub:
        hub = Hub(data or tmp_path / f"hub{next(numbers)}", config, **env)
        made.append(hub)
        return hub.start() if start else hub

    yield make
    _end(made)


@pytest.fixture
def hub(make_hub: Callable[..., Hub]) -> Hub:
    """A hub of the test's own."""
    return make_hub()


@pytest.fixture(scope="module")
def common(tmp_path_factory: Any) -> Iterator[Hub]:
    """A hub that the tests of a module share."""
    hub = Hub(tmp_path_factory.mktemp("common") / "hub").start()
    yield hub
    _end([hub])


def _end(hubs: list[Hub]) -> None:
    problems: list[str] = []
    for hub in hubs:
        try:
            hub.stop()
        except AssertionError as e:
            problems.append(f"{e}: {hub.log()[-3000:]}")
        if faults := hub.faults():
            problems.append("the log tells of faults: " + "\n".join(faults[:5]) + "\n" + hub.log()[-3000:])
    assert not problems, "\n".join(problems)
