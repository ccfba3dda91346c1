"""Reads members whose types or whose Unicode are not as they should be: what fits is taken, the rest is left out."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from sag.plugin import to_unicode

Json = dict[str, Any]

NOTHING = msgspec.Raw()  # the default of members that are read later; `Raw | None` takes nothing but null


def text(given: Any) -> str | None:
    """Text, also that of content given as parts: `[{"type": "text", "text": …}]`."""
    if isinstance(given, str):
        return to_unicode(given)
    if isinstance(given, list):
        return "".join(text(part.get("text")) or "" for part in objects(given))
    return None


def objects(given: Any) -> list[Json]:
    """The objects of a list."""
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def number(given: Any) -> float | None:
    """A number, within what doubles hold exactly."""
    fits = isinstance(given, int | float) and given == given and abs(given) < 1 << 53
    return given if fits else None


def whole(given: Any) -> int | None:
    """A whole number, also where it is written as `1.0`."""
    found = number(given)
    return None if found is None else int(found)


def raw(given: Any) -> msgspec.Raw:
    """Anything, as clean JSON."""
    return msgspec.Raw(json.dumps(clean(given)).encode()) if given else NOTHING


def clean(given: Any) -> Any:
    """JSON whose texts are all Unicode."""
    if isinstance(given, str):
        return to_unicode(given)
    if isinstance(given, dict):
        return {to_unicode(str(k)): clean(v) for k, v in given.items()}
    if isinstance(given, list):
        return [clean(v) for v in given]
    return given
