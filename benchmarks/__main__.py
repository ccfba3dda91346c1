"""The command line."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from benchmarks.figures import FIGURES, QUICK, Figure, Size
from benchmarks.process import CORES, LOAD_CORES

WIDTHS = (58, 8, 9, 9, 9, 8)


def line(*cells: str) -> str:
    first, *rest = cells
    return f"{first:<{WIDTHS[0]}}" + "".join(f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=True))


def rows(figure: Figure) -> list[str]:
    """A figure's lines of the table: the hub, then what it is compared with."""
    out: list[str] = []
    for server in sorted(figure.values, key=lambda name: name != "sag"):
        values = figure.values[server]
        ratio = f"{figure.middle(server) / figure.middle(figure.base):.2f}" if figure.base in figure.values else ""
        numbers = [f"{value:.3g}" for value in (figure.middle(server), min(values), max(values))]
        out.append(line(f"{figure.name} ({figure.unit})" if not out else "", server, *numbers, ratio))
    if figure.is_met is not None:
        limits = [f"{times:g} × {name}" if times != 1 else name for name, times in figure.within.items()]
        limits += [f"{figure.limit:g} {figure.unit}"] if figure.limit is not None else []
        out[0] += f"   ≤ {' and '.join(limits)}: {'met' if figure.is_met else 'NOT MET'}"
    if figure.note:
        out.append(f"  ({figure.note})")
    return out


async def measure(names: Sequence[str], size: Size) -> list[Figure]:
    """Take figures one after the other, and print each as soon as it is there."""
    gc.disable()
    print(line("figure", "server", "middle", "min", "max", "× base"))
    figures = []
    for name in names:
        for figure in await FIGURES[name](size):
            print("\n".join(rows(figure)), flush=True)
            figures.append(figure)
        gc.collect()
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the hub beside servers that do less."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; the ratios are rougher")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the values of all rounds there too")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(FIGURES):
        parser.error(f"there is no figure {unknown.pop()!r}; there are {', '.join(FIGURES)}")
    if len(CORES) < 2:
        print("one core only: load and server share it, so take the ratios with care", file=sys.stderr)
    os.sched_setaffinity(0, LOAD_CORES)
    figures = uvloop.run(measure(args.names or list(FIGURES), QUICK if args.quick else Size()))
    if args.json:
        machine = {"python": platform.python_version(), "cores": len(CORES), "machine": platform.machine()}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine, "figures": figures})))
    return 1 if any(figure.is_met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
