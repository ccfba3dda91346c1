"""The benchmarks run, with counts so small that their figures mean nothing."""

import os

import pytest

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("cores cannot be chosen here", allow_module_level=True)

from benchmarks.__main__ import main, rows
from benchmarks.figures import FIGURES, Figure, Size
from benchmarks.process import peers_python

TINY = Size(
    rounds=1,
    streams=2,
    asks=2,
    tokens=4,
    flood_tokens=40,
    flood_rounds=1,
    flood_replies=24,
    sockets=5,
    events=2,
    messages=320,
    starts=1,
    stall_s=0.2,
    settle_s=0.05,
)


@pytest.mark.timeout(180)  # LiteLLM's first start takes its time
@pytest.mark.parametrize("name", FIGURES)
async def test_each_figure_is_taken_from_the_hub_and_from_what_it_is_compared_with(name: str) -> None:
    for figure in await FIGURES[name](TINY):
        assert {"sag", figure.base or "sag"} <= set(figure.values)
        # Shared memory counts less once somebody else shares it too, so five sockets may seem to free some.
        least = -1024 if figure.unit == "KiB" else 0
        assert all(value >= least for values in figure.values.values() for value in values)
        assert figure.name in rows(figure)[0]
        if name == "flood" and peers_python():
            assert {"openai-sdk", "litellm"} <= set(figure.values)


def test_the_table_says_what_is_met_and_by_how_much() -> None:
    values = {"raw": [10.0], "bare": [30.0, 20.0, 40.0], "sag": [20.0, 25.0]}
    figure = Figure("relay", "µs", values, "raw", {"bare": 1}, 22)
    assert not figure.is_met
    lines = rows(figure)
    assert "2.25" in lines[0]
    assert lines[0].endswith("≤ bare and 22 µs: NOT MET")
    figure.limit = 23
    assert rows(figure)[0].endswith(": met")
    figure.within = {"raw": 2, "absent": 0.1}
    assert not figure.is_met
    figure.within, figure.note = {"raw": 2.25, "absent": 0.1}, "without absent"
    assert rows(figure)[0].endswith("≤ 2.25 × raw and 0.1 × absent and 23 µs: met")
    assert rows(figure)[-1] == "  (without absent)"


def test_an_unknown_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no figure 'speed'" in capsys.readouterr().err
