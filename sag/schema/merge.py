"""JSON merge patch, RFC 7396: the one way in which documents are changed (config, properties, run objects)."""

from __future__ import annotations

from typing import Any


def merge_patch(target: Any, patch: Any) -> Any:
    """The document that `patch` makes of `target`: left out is unchanged, null removes, a value replaces."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value) if isinstance(value, dict) else value
    return out
