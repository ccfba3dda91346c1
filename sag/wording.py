"""What tools give and what they ask, in a few lines of plain text for a terminal.

Pure: JSON as topics hold it in, lines out. Above: `sag chat`. It never fails on JSON of another shape than expected,
for results are whatever tools give.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]

LINES, WIDTH, ROWS = 6, 160, 5  # of one thing that is shown


def plain(value: Any) -> str:
    """Text as it is, all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def brief(lines: list[str], limit: int = LINES) -> list[str]:
    """So many lines at most, none of them too wide; what is left out is told."""
    shown = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines[:limit]]
    return shown if len(lines) <= limit else [*shown, f"… {len(lines) - limit} more lines"]


def result(value: Any) -> list[str]:
    """A tool's result."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list):
        return brief(plain(value).splitlines())
    lines = [line for item in content for line in _item(item)]
    if isinstance(value, dict) and value.get("data") is not None and not any(_tells(item) for item in content):
        lines += plain(value["data"]).splitlines()
    return brief(lines)


def _tells(item: Any) -> bool:
    return isinstance(item, dict) and item.get("kind") in ("text", "table")


def _item(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return [plain(item)]
    match item.get("kind"):
        case "text":
            return plain(item.get("text", "")).splitlines()
        case "table":
            return table(item)
        case "image" | "file" as kind:
            size = item.get("size")
            told = [item.get("name"), item.get("mime"), in_bytes(size) if isinstance(size, int) else None]
            return [f"[{' '.join([kind, ', '.join(str(t) for t in told if t)]).rstrip()}]"]
        case "link":
            told = [item.get("title") or item.get("name"), item.get("uri")]
            return [f"[link {' '.join(str(t) for t in told if t)}]"]
        case _:
            return [plain(item)]


def table(item: Json) -> list[str]:
    """A table: its title, its columns and the first of its rows, each column as wide as it needs."""
    columns, rows = item.get("columns") or [], item.get("rows") or []
    grid = [[_cell(cell) for cell in row] for row in (columns, *rows[:ROWS]) if isinstance(row, list)]
    widths = [max(len(row[i]) for row in grid if i < len(row)) for i in range(max(map(len, grid), default=0))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in grid]
    more = [f"… {len(rows) - ROWS} more rows"] if len(rows) > ROWS else []
    return [*([str(item["title"])] if item.get("title") else []), *lines, *more]


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(plain(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def in_bytes(size: int) -> str:
    """A size: `812 B`, `12 kB`, `3.4 MB`."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


def changes(before: Any, after: Any) -> list[str]:
    """How a tool's definition has changed: `- risk: read`, `+ risk: danger`."""
    old, new = _flat(before), _flat(after)
    lines: list[str] = []
    for path in [*old, *(path for path in new if path not in old)]:
        was, now = old.get(path), new.get(path)
        if was != now:
            same = _same(was, now)
            lines += [] if was is None else [f"- {path}: {_from(was, same)}"]
            lines += [] if now is None else [f"+ {path}: {_from(now, same)}"]
    return brief(lines, 4 * LINES)


def _same(was: str | None, now: str | None) -> int:
    """How many characters two texts begin with in common."""
    if was is None or now is None:
        return 0
    return next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))


def _from(text: str, same: int) -> str:
    """A text from where it differs, so that a long one that begins as before does not hide what is new."""
    return text if same <= 40 else f"…{text[same - 20 :]}"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The members of a document by their paths."""
    if isinstance(value, dict) and value:
        parts = [_flat(each, f"{path}.{name}" if path else name) for name, each in value.items()]
        return {name: text for part in parts for name, text in part.items()}
    return {path.replace(".properties.", "."): " ".join(plain(value).split())}
