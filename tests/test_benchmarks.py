"""The benchmarks run, with counts so small that their figures mean nothing."""

import os

import pytest

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("cores cannot be chosen here", allow_module_level=True)

from benchmarks.__main__ import main, rows
from benchmarks.figures import FIGURES, Figure, Size

TINY = Size(
    rounds=1, streams=2, asks=2, tokens=4, sockets=5, events=2, messages=320, starts=1, stall_s=0.2, settle_s=0.05
)


@pytest.mark.parametrize("name", FIGURES)
async def test_each_figure_is_taken_from_the_hub_and_from_what_it_is_compared_with(name: str) -> None:
    for figure in await FIGURES[name](TINY):
        assert {"sag", figure.base or "sag"} <= set(figure.values)
        assert all(value >= 0 for values in figure.values.values() for value in values)
        assert figure.name in rows(figure)[0]


def test_the_table_says_what_is_met_and_by_how_much() -> None:
    figure = Figure("relay", "µs", {"raw": [10.0], "bare": [30.0, 20.0, 40.0], "sag": [20.0, 25.0]}, "raw", "bare", 22)
    assert not figure.is_met
    lines = rows(figure)
    assert "2.25" in lines[0]
    assert lines[0].endswith("≤ bare and 22 µs: NOT MET")
    figure.limit = 23
    assert rows(figure)[0].endswith(": met")


def test_an_unknown_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no figure 'speed'" in capsys.readouterr().err
