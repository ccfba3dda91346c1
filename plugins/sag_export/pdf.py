"""A story as PDF, set by Typst: shaping and both directions of writing are its own, and fonts are embedded.

Runs in a process of its own (`sag_export.press`), and imports what is heavy. Typst gets the text as data and a template
that stands beside this file; nothing that people or models wrote is ever read as markup. Fonts are those of the
machine; characters that none of them has are named in a note, in the file and to whoever asked for it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import typst
from fontTools.ttLib import TTFont, TTLibError

from sag_export.prose import Prose, code, plain_tree, script
from sag_export.story import Story

Json = dict[str, Any]

TEXT = (
    "Noto Sans",
    "Inter",
    "Helvetica Neue",
    "Segoe UI",
    "Arial",
    "Liberation Sans",
    "DejaVu Sans",
    "Libertinus Serif",
)
MONO = ("Noto Sans Mono", "Menlo", "Consolas", "DejaVu Sans Mono")
"""What there is of them; Typst brings the last of both itself."""
EMOJI = ("Noto Color Emoji", "Apple Color Emoji", "Segoe UI Emoji")
ARABIC = ("Noto Naskh Arabic",)  # its ligatures are glyphs of single letters, so that readers find and copy the words
COMMON = ("Arabic", "Hebrew", "Devanagari", "Thai", "Bengali", "Tamil", "Armenian", "Georgian", "Ethiopic", "Khmer")
EAST = {
    "ja": ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic"),
    "ko": ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic"),
    "zh": ("Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei"),
}
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
MOST_PICTURES = 200
MOST = 6_000_000  # characters, and BLOCK for each block: about a minute and 3 GB in the worst case that was measured
BLOCK = 200
WIDEST = 12  # columns of a table; one with more stands as text
HIGHLIGHTED = 20_000  # characters of code that is coloured
LOOK_S = 15.0  # for looking into fonts
MARKS = 24  # upon one another
_LONG = re.compile(r"[!-~\u00a1-\u024f]{40,}|[^\s\u200b]{400,}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LANGUAGE = re.compile(r"[A-Za-z0-9+#-]{1,20}")


def render(story: Story, folders: list[str], system: bool) -> tuple[bytes, list[str]]:
    """The file, and notes on what it does not show.

    Args:
        story: What to show.
        folders: Where fonts lie besides.
        system: Whether the machine's own fonts are taken.
    """
    fonts = typst.Fonts(include_system_fonts=system, include_embedded_fonts=True, font_paths=folders)
    shown = _shown(story.items)
    cut = len(story.items) - shown
    plain = _Setter(msgspec.structs.replace(story, items=story.items[:shown])).plain()
    families = set(fonts.families())
    plain["fonts"] = _chosen(families)
    missing = _missing(_characters(plain), fonts.fonts(), plain["fonts"]["text"])
    notes = [_missing_note(missing)] if missing else []
    if cut:
        notes.append(f"The conversation is too long for a PDF: {cut} entries at its end are left out.")
    plain["notes"] = notes
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _lay_pictures(plain, story.files, place)
        shutil.copyfile(Path(__file__).parent / "transcript.typ", place / "transcript.typ")
        (place / "story.json").write_bytes(msgspec.json.encode(plain))
        data = typst.compile(str(place / "transcript.typ"), root=folder, font_paths=fonts, format="pdf")
    return data, notes


def _shown(items: list[Json]) -> int:
    """How many of the first items a PDF takes."""
    left = MOST
    for i, item in enumerate(items):
        left -= (
            sum(BLOCK + sum(len(v) for v in b.values() if isinstance(v, str)) for b in item.get("blocks", ())) + BLOCK
        )
        if left < 0:
            return i
    return len(items)


class _Setter:
    """Makes plain JSON of a story, its prose as trees."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._prose = Prose()

    def plain(self) -> Json:
        story = self._story
        usage = [[r.who, r.model, f"{r.steps:,}", f"{r.input:,}", f"{r.output:,}", r.cost] for r in story.usage]
        out: Json = _soft(
            {
                "title": story.title[:200],
                "rtl": script(story.title).get("rtl", False),
                "head": plain_tree(story.title),
                "facts": story.facts,
                "items": [self._item(item) for item in story.items],
                "usage": usage,
            }
        )
        return out

    def _item(self, item: Json) -> Json:
        if item["kind"] == "note":
            return {**item, "tree": plain_tree(item["text"])}
        if item["kind"] != "message":
            return item
        small = " · ".join(filter(None, (item["time"], item.get("model"))))
        return {**item, "small": small, "blocks": [self._block(block) for block in item["blocks"]]}

    def _block(self, block: Json) -> Json:
        kind = block["kind"]
        if kind == "prose":
            return {"kind": kind, "tree": [_fitting(node) for node in self._prose.tree(block["text"])]}
        if kind in ("plain", "thought", "note"):
            return {**block, "tree": plain_tree(block["text"])}
        if kind == "file":
            size = f", {block['size']:,} bytes" if block["size"] is not None else ""
            return {**block, "tree": plain_tree(f"File: {block['name']} ({block['mime'] or 'unknown'}{size})")}
        return {**block, **{name: code(block[name])["t"] for name in ("args", "result")}}


def _fitting(node: Json) -> Json:
    """A node as the template takes it."""
    if node["k"] == "table" and not 0 < node["columns"] <= WIDEST:
        rows = ("\t".join("".join(r["t"] for r in cell["runs"]) for cell in row) for row in node["rows"])
        return code("\n".join(rows))
    if node["k"] == "code" and (len(node["t"]) > HIGHLIGHTED or not _LANGUAGE.fullmatch(node.get("lang", ""))):
        return {k: v for k, v in node.items() if k != "lang"}
    if node["k"] == "list":
        return {**node, "items": [[_fitting(inner) for inner in item] for item in node["items"]]}
    if node["k"] == "quote":
        return {**node, "body": [_fitting(inner) for inner in node["body"]]}
    return node


def _soft(value: Any) -> Any:
    """The same in texts that can be set; links whose address is too long are dropped."""
    if isinstance(value, str):
        text = _CONTROL.sub("", value)
        return _LONG.sub(_breakable, text if text.isascii() else _less_marked(text))
    if isinstance(value, dict):
        return {
            k: v if k in ("href", "ref", "mime") else _soft(v)
            for k, v in value.items()
            if k != "href" or len(v) <= 2000
        }
    return [_soft(v) for v in value] if isinstance(value, list | tuple) else value


def _breakable(word: re.Match[str]) -> str:
    """A word that is too long for a line, with places to break it."""
    return "\u200b".join(word[0][i : i + 20] for i in range(0, len(word[0]), 20))


def _less_marked(text: str) -> str:
    """Text without the marks that are piled up beyond what any language does."""
    out, marks = [], 0
    for c in text:
        marks = marks + 1 if unicodedata.category(c)[0] == "M" else 0
        if marks <= MARKS:
            out.append(c)
    return "".join(out)


# pictures


def _file_blocks(plain: Json) -> Iterator[Json]:
    for item in plain["items"]:
        for block in item.get("blocks", ()):
            if block["kind"] == "file":
                yield block


def _lay_pictures(plain: Json, files: Json, place: Path) -> None:
    """Write the pictures that blocks name to where the template finds them; what is none stays a file's name."""
    for number, block in enumerate(_file_blocks(plain)):
        data = files.get(block["ref"], {}).get("data")
        if not data or block["mime"] not in PICTURES or number >= MOST_PICTURES:
            continue
        name = f"picture-{number}.{PICTURES[block['mime']]}"
        (place / "picture.typ").write_text(f'#image("{name}")')
        with contextlib.suppress(binascii.Error, ValueError, RuntimeError):
            (place / name).write_bytes(base64.b64decode(data, validate=True))
            typst.compile(str(place / "picture.typ"), root=str(place), ignore_system_fonts=True, format="pdf")
            block["picture"] = name


# fonts


def _chosen(families: set[str]) -> Json:
    """Families by use, in the order in which a character is looked for; Typst goes on with all others by itself."""

    def there(names: Iterable[str]) -> list[str]:
        return [name for name in names if name in families]

    noto = sorted(f for f in families if f.startswith("Noto Sans ") and not any(w in f for w in ("CJK", "Mono", "UI")))
    symbols = [f for f in noto if "Symbols" in f or "Math" in f]
    east = there(name for names in EAST.values() for name in names)
    common = there([*ARABIC, *(f"Noto Sans {script}" for script in COMMON)])
    rest = list(dict.fromkeys([*there(EMOJI), *common, *(f for f in noto if f not in symbols), *east, *symbols]))
    head = there(TEXT)[:1]
    out: Json = {"text": [*head, *rest], "mono": [*there(MONO)[:1], *rest]}
    for lang, names in EAST.items():
        out[lang] = [*head, *there(names)[:1], *rest]
    return out


def _characters(plain: Json) -> set[str]:
    """The characters that need a glyph."""
    found = set(msgspec.json.encode(plain).decode())
    return {c for c in found if c > "~" and unicodedata.category(c)[0] not in "CZ" and not _varies(c)} | {
        c for c in found if unicodedata.category(c) in ("Co", "Cn")
    }


def _varies(c: str) -> bool:
    return "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"


def _missing(wanted: set[str], fonts: list[Any], first: list[str]) -> list[str]:
    """Characters that no font has, as far as fonts could be looked into in time."""
    until = time.monotonic() + LOOK_S
    order = {family: i for i, family in enumerate(first)}
    left = {ord(c) for c in wanted}
    seen: set[tuple[str, int]] = set()
    for font in sorted(fonts, key=lambda f: (order.get(f.family, len(order)), f.weight != 400)):
        if not left:
            return []
        if font.path is None:
            # The fonts that Typst brings, into which nobody can look: Latin, Greek, Cyrillic, Hebrew, Arabic, signs.
            left = {c for c in left if not (c < 0x530 or 0x590 <= c < 0x700 or 0x1E00 <= c < 0x2300)}
        elif (font.path, font.index) not in seen and time.monotonic() < until:
            seen.add((font.path, font.index))
            left -= _covered(font.path, font.index)
    return [chr(c) for c in sorted(left)]


def _covered(path: str, index: int) -> set[int]:
    try:
        with TTFont(path, fontNumber=index, lazy=True) as font:
            return set(font.getBestCmap() or ())
    except (OSError, TTLibError, KeyError, ValueError, AssertionError):
        return set()


def _missing_note(missing: list[str]) -> str:
    scripts = sorted({_script_name(c) for c in missing})
    shown = ", ".join(f"U+{ord(c):04X}" for c in missing[:8]) + (", …" if len(missing) > 8 else "")
    what = "1 character is shown as a box" if len(missing) == 1 else f"{len(missing)} characters are shown as boxes"
    why = f"for no font on this machine has what they need: {', '.join(scripts)} ({shown})"
    return f"{what}, {why}. The how-to “Export a conversation” says which fonts to install."


def _script_name(c: str) -> str:
    if 0x1F000 <= ord(c) < 0x1FB00:
        return "Emoji"
    if unicodedata.category(c)[0] in "SP":
        return "Signs"
    if unicodedata.category(c) == "Co":
        return "Private use"
    name = unicodedata.name(c, "Unassigned").split()[0]
    return name if name == "CJK" else name.capitalize()
