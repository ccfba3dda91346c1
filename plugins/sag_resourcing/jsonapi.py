"""JSON:API documents as Productive sends them: records, and what they are related to.

A relationship tells an id only where the request named it in `include`; else it says `{"meta": {"included": false}}`
and that means "not asked for", never "there is none".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from sag_resourcing.upstream import read_number

Json = dict[str, Any]
Pool = Mapping[tuple[str, str], Json]


class Record:
    """One resource of a document.

    Attributes:
        id: Its id.
    """

    __slots__ = ("_data", "_pool", "id")

    def __init__(self, data: Json, pool: Pool) -> None:
        self._data, self._pool = data, pool
        self.id = str(data.get("id") or "")

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        attributes = self._data.get("attributes")
        return attributes.get(name) if isinstance(attributes, dict) else None

    def text(self, name: str) -> str:
        """An attribute as text; empty where there is none."""
        value = self.get(name)
        return "" if value is None else str(value).strip()

    def number(self, name: str) -> float | None:
        """An attribute as a number; None for what is none."""
        return read_number(self.get(name))

    def day(self, name: str) -> date | None:
        """An attribute as a day, its time of day left out; None for what is none."""
        try:
            return date.fromisoformat(self.text(name)[:10])
        except ValueError:
            return None

    def one(self, *path: str) -> Record | None:
        """The record at the end of a way along relationships; None where it ends before that.

        Of a record that is named and not included, the id alone is known.
        """
        record: Record = self
        for name in path:
            relations = record._data.get("relationships")
            relation = relations.get(name) if isinstance(relations, dict) else None
            named = relation.get("data") if isinstance(relation, dict) else None
            if not isinstance(named, dict) or not named.get("id"):
                return None
            record = Record(self._pool.get((str(named.get("type")), str(named["id"])), named), self._pool)
        return record


def read_records(document: Json) -> list[Record]:
    """The records of a collection, or the one of a single answer."""
    included = document.get("included")
    pool = {
        (str(item.get("type")), str(item.get("id"))): item
        for item in (included if isinstance(included, list) else [])
        if isinstance(item, dict)
    }
    data = document.get("data")
    items = data if isinstance(data, list) else [data]
    return [Record(item, pool) for item in items if isinstance(item, dict)]


def read_error(body: Any) -> tuple[str, str]:
    """Code and words of the first error of a body; empty where there is none.

    Its `status` is left alone: it may be a word, and another one than the answer's.
    """
    errors = body.get("errors") if isinstance(body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict):
        return "", ""
    words = [str(first[name]) for name in ("title", "detail") if first.get(name)]
    source = first.get("source")
    if isinstance(source, dict) and source.get("pointer"):
        words.append(f"({str(source['pointer']).lstrip('/')})")
    return str(first.get("code") or ""), " ".join(words)
