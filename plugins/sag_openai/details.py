"""OpenRouter's `reasoning_details`: thoughts of any vendor's model, which come in pieces and go back whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}


def merge(pieces: Iterable[Json]) -> list[Json]:
    """The details whole: pieces of one follow each other under one index; a signature comes with the last."""
    out: list[Json] = []
    texts: list[list[str]] = []  # joined at the end: there may be thousands of pieces
    for piece in pieces:
        name = _text_name(piece)
        last = out[-1] if out else {}
        if name and (last.get("type"), last.get("index")) == (piece["type"], piece.get("index")):
            last |= {key: value for key, value in piece.items() if value is not None}
        else:
            out.append(dict(piece))
            texts.append([])
        if name and isinstance(piece.get(name), str):
            texts[-1].append(piece[name])
    for detail, found in zip(out, texts, strict=True):
        if found:
            detail[_text_name(detail)] = "".join(found)
    return out


def text(pieces: Iterable[Json]) -> str:
    """What of them can be read."""
    found = (piece.get(_text_name(piece)) for piece in pieces)
    return "".join(one for one in found if isinstance(one, str))


def _text_name(piece: Json) -> str:
    kind = piece.get("type")
    return _TEXTS.get(kind, "") if isinstance(kind, str) else ""
