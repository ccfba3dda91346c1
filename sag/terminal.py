"""What a terminal takes and gives: text as it comes, lines, one that is redrawn, lines that are typed, questions.

Above: `sag chat`. It knows nothing of hubs; what is not a terminal gets plain lines, without colours or redrawing.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import msgspec

KEYS = {
    "allow_once": ("y", "allow once"),
    "allow_run": ("r", "for this run"),
    "allow_always": ("a", "always"),
    "deny": ("n", "deny"),
}
PLAIN_S = 1.0  # how often progress is told where a line cannot be redrawn
Json = dict[str, Any]
STYLES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33"}
BAR = 20
# C0 and C1 controls but tab and newline, and the signs that reorder text: a model or a tool may send them, and they
# could move the cursor or make an approval read as something else.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text without what would steer a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def bar(done: float, total: float | None, text: str = "") -> str:
    """How far something is, in a line."""
    if total:
        filled = round(BAR * min(max(done / total, 0.0), 1.0))
        return f"[{'#' * filled}{'-' * (BAR - filled)}] {done:g}/{total:g} {text}".rstrip()
    return f"{done:g} {text}".rstrip()


class Screen:
    """Writes to the terminal.

    Args:
        out: Where answers go.
        notes: Where everything else goes; may be the same.
        env: For NO_COLOR and TERM.
    """

    def __init__(self, out: TextIO, notes: TextIO, env: Mapping[str, str]) -> None:
        self._out, self._notes = out, notes
        self.tty = notes.isatty()
        self._out_tty = out.isatty()
        self._together = out is notes or (self.tty and self._out_tty)
        self._plain = bool(env.get("NO_COLOR")) or env.get("TERM") == "dumb"
        self._mid = False  # the answer's line has no end yet
        self._note_mid = False
        self._told = float("-inf")
        self._drawn = 0  # how wide the line is that may be redrawn

    def say(self, text: str, style: str = "") -> None:
        """Write a piece of an answer."""
        if not text:
            return
        self._erase()
        if self._together and self._note_mid:
            self._end_note()
        self._out.write(self._styled(clean(text) if self._out_tty else text, style, self._out_tty))
        self._out.flush()
        self._mid = not text.endswith("\n")

    def end_answer(self) -> None:
        """Let what follows begin on a line of its own."""
        if self._mid:
            self._out.write("\n")
            self._out.flush()
            self._mid = False

    def line(self, text: str, style: str = "") -> None:
        """Write a whole line, or several."""
        self._begin_note()
        self._notes.write(self._styled(clean(text), style, self.tty) + "\n")
        self._notes.flush()

    def status(self, text: str) -> None:
        """Write a line in place of the last such line; where that cannot be, a line more."""
        if not self.tty:
            if time.monotonic() - self._told >= PLAIN_S:
                self._told = time.monotonic()
                self.line(text)
            return
        text = " ".join(clean(text).split())[: max(10, shutil.get_terminal_size().columns - 1)]
        if not self._drawn:
            self._begin_note()
        self._notes.write("\r" + text.ljust(self._drawn))
        self._notes.flush()
        self._drawn = max(self._drawn, len(text))

    def prompt(self, text: str) -> None:
        """Ask for a line, where somebody sits who could type one."""
        if self.tty:
            self._begin_note()
            self._notes.write(self._styled(text, "bold", True))
            self._notes.flush()
            self._note_mid = True

    def typed(self) -> None:
        """The person pressed Enter, so the cursor is at the start of a line."""
        self._note_mid = False
        self._drawn = 0
        if self._together and self.tty:
            self._mid = False

    def close(self) -> None:
        """Leave the cursor at the start of a line, for the shell."""
        self._begin_note()
        self.end_answer()

    def _begin_note(self) -> None:
        self._erase()
        if self._note_mid:
            self._end_note()
        if self._mid and self._together:
            self.end_answer()

    def _end_note(self) -> None:
        self._notes.write("\n")
        self._notes.flush()
        self._note_mid = False

    def _erase(self) -> None:
        if self._drawn:
            self._notes.write("\r" + " " * self._drawn + "\r")
            self._notes.flush()
            self._drawn = 0

    def _styled(self, text: str, style: str, tty: bool) -> str:
        if not style or self._plain or not tty:
            return text
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def read_lines(fd: int, take: Callable[[str | None], None]) -> None:
    """Give each line that is typed, and None at the end, to the loop; reading goes on in a thread of its own.

    The descriptor is read past `sys.stdin`, whose lock would be held by a thread that waits when the program ends.
    """
    loop = asyncio.get_running_loop()

    def tell(line: str | None) -> None:
        try:
            loop.call_soon_threadsafe(take, line)
        except RuntimeError:
            pass  # the program ends

    def work() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        while True:
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            *lines, rest = (rest + decoder.decode(data)).split("\n")
            for line in lines:
                tell(line.rstrip("\r"))
            if not data:
                if rest:
                    tell(rest)
                tell(None)
                return

    threading.Thread(target=work, name="sag-input", daemon=True).start()


class Form:
    """Asks for the members of an object, one after the other (protocol section 5: kind `form`).

    Args:
        schema: JSON Schema of the object.
        given: What is there already; an empty answer keeps it.
    """

    def __init__(self, schema: Json, given: Json | None = None) -> None:
        self._fields: list[tuple[str, Json]] = [
            (name, field if isinstance(field, dict) else {}) for name, field in (schema.get("properties") or {}).items()
        ]
        self._required = set(schema.get("required") or ())
        self._defaults = {name: field["default"] for name, field in self._fields if "default" in field}
        self._defaults |= given or {}
        self.data: Json = dict(given or {})

    @property
    def prompt(self) -> str | None:
        """The next question; None when all are answered."""
        if not self._fields:
            return None
        name, schema = self._fields[0]
        about = [str(schema.get("title") or name), *([str(schema["description"])] if "description" in schema else [])]
        if choices := _choices(schema) or _choices(schema.get("items") or {}):
            said = [_shown(v) if t == _shown(v) else f"{_shown(v)} ({t})" for v, t in choices]
            about.append(" | ".join(said) + (", several with commas" if _type(schema) == "array" else ""))
        elif _type(schema) == "boolean":
            about.append("y/n")
        if name in self._defaults:
            about.append(f"[{_shown(self._defaults[name])}]")
        elif name not in self._required:
            about.append("(may be left out)")
        return "  ".join(about) + ": "

    def feed(self, line: str) -> str | None:
        """Take an answer; gives what is wrong with it."""
        name, schema = self._fields[0]
        text = line.strip()
        if not text:
            if name in self._required and name not in self._defaults:
                return "An answer is needed."
            if name in self._defaults:
                self.data[name] = self._defaults[name]
        else:
            try:
                self.data[name] = _typed(text, schema)
            except ValueError as e:
                return str(e)
        self._fields.pop(0)
        return None


def keys(options: list[str]) -> list[tuple[str, str, str]]:
    """For each option of an ask the key to type, its label and itself."""
    out: list[tuple[str, str, str]] = []
    for number, option in enumerate(options, 1):
        key, label = KEYS.get(option, (option[:1].lower(), option))
        taken = {k for k, _, _ in out}
        out.append((str(number) if not key or key in taken else key, label, option))
    return out


def _type(schema: Json) -> str:
    """The type of a form's member; of several the first that holds something."""
    kind = schema.get("type")
    return next((k for k in kind if k != "null"), "") if isinstance(kind, list) else str(kind or "")


def _choices(schema: Json) -> list[tuple[Any, str]]:
    """The values that a member may have, each with what people call it; empty where it is free."""
    for titled in (schema.get("oneOf"), schema.get("anyOf")):
        if isinstance(titled, list) and titled and all(isinstance(o, dict) and "const" in o for o in titled):
            return [(o["const"], str(o.get("title") or _shown(o["const"]))) for o in titled]
    values, names = schema.get("enum") or [], schema.get("enumNames") or []
    return [(v, str(names[i]) if i < len(names) else _shown(v)) for i, v in enumerate(values)]


def _typed(text: str, schema: Json) -> Any:
    """What was typed as the type that a form's member has.

    Raises:
        ValueError: It is not of that type; the text says what is wanted.
    """
    if choices := _choices(schema):
        for value, title in choices:
            if text in (_shown(value), title):
                return value
        raise ValueError(f"Choose one of {', '.join(_shown(value) for value, _ in choices)}.")
    kind = _type(schema)
    try:
        match kind:
            case "boolean":
                return {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}[text.lower()]
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "array" if not text.startswith("["):
                return [_typed(item.strip(), schema.get("items") or {}) for item in text.split(",")]
            case "array" | "object":
                return msgspec.json.decode(text)
    except KeyError:
        raise ValueError(f"This has to be of type {kind}.") from None
    except ValueError as e:
        raise ValueError(str(e) if str(e).startswith("Choose") else f"This has to be of type {kind}.") from None
    return text


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
