"""Markdown as models write it, rendered by one parser for all formats: to HTML, and to a tree that the PDF is set from.

Text is data here: HTML in it is shown and not taken, links go to web pages and mail addresses alone, and pictures from
elsewhere stand as links. What would take the parser too long stands as plain text.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

LONGEST = 100_000  # characters of one text that are parsed
BUDGET_S = 20.0  # for all texts of a document
DEEPEST = 6  # lists and quotes within one another
_LINK = re.compile(r"(https?://|mailto:)", re.I)
_BLOCKS = {"paragraph_open", "heading_open", "list_item_open", "td_open", "th_open"}
_FRAMES = {"bullet_list_open", "ordered_list_open", "blockquote_open", "table_open"}

Json = dict[str, Any]
Tree = list[Json]


class Prose:
    """Renders texts, as long as its budget of time lasts."""

    def __init__(self) -> None:
        self._parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}, renderer_cls=_Html)
        self._parser.enable(["table", "strikethrough"])
        self._parser.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
        self._left_s = BUDGET_S

    def html(self, text: str) -> str:
        """A text as HTML."""
        tokens = self._tokens(text)
        if tokens is None:
            return plain_html(text)
        return str(self._parser.renderer.render(tokens, self._parser.options, {}))

    def tree(self, text: str) -> Tree:
        """A text as a tree: nodes are objects with their kind as `k`."""
        tokens = self._tokens(text)
        if tokens is None:
            return plain_tree(text)
        return _Grower(tokens).blocks(0)

    def _tokens(self, text: str) -> list[Token] | None:
        if len(text) > LONGEST or self._left_s <= 0:
            return None
        began = time.monotonic()
        try:
            return self._parser.parse(text)
        finally:
            self._left_s -= time.monotonic() - began


class _Html(RendererHTML):
    """HTML in which each block finds its own direction, headings stand below the page's, and nothing is fetched."""

    def renderToken(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:  # noqa: N802
        token = tokens[idx]
        if token.type in _BLOCKS:
            token.attrSet("dir", "auto")
        elif token.type in _FRAMES:  # `auto` does not look into what has a direction of its own
            text = next((inner.content for inner in tokens[idx:] if inner.type == "inline"), "")
            token.attrSet("dir", "rtl" if script(text).get("rtl") else "ltr")
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        if token.type == "link_open":
            token.attrSet("rel", "noopener noreferrer nofollow")
        return str(super().renderToken(tokens, idx, options, env))

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        url = escape(str(token.attrGet("src") or ""))
        return f'<a href="{url}" rel="noopener noreferrer nofollow">{escape(_alt(token))}</a>'


def _alt(token: Token) -> str:
    return token.content or str(token.attrGet("src") or "picture")


def plain_html(text: str) -> str:
    """Text as it is."""
    return "".join(f'<p class="plain" dir="auto">{escape(p)}</p>' for p in re.split(r"\n{2,}", text.strip("\n")))


def plain_tree(text: str) -> Tree:
    """Text as it is, a paragraph for each line."""
    return [_paragraph([_run(line)]) for line in text.split("\n") if line.strip()]


def _run(text: str, **marks: Any) -> Json:
    return {"t": text, **marks}


def _paragraph(runs: Sequence[Json]) -> Json:
    return {"k": "p", "runs": list(runs), **script("".join(r["t"] for r in runs))}


def code(text: str) -> Json:
    """A node of text that stands as it was written."""
    return {"k": "code", "t": text.rstrip("\n").expandtabs(4)}


def script(text: str) -> Json:
    """In which direction a text runs (`rtl`), and of which East Asian language it looks (`lang`)."""
    out: Json = {}
    for c in text[:2000]:
        way = unicodedata.bidirectional(c)
        if way in ("L", "R", "AL"):
            out["rtl"] = way != "L"
            break
    for c in text[:2000]:
        if "\u3040" <= c <= "\u30ff":
            return out | {"lang": "ja"}
        if "\uac00" <= c <= "\ud7a3" or "\u1100" <= c <= "\u11ff":
            return out | {"lang": "ko"}
    if any("\u4e00" <= c <= "\u9fff" for c in text[:2000]):
        out["lang"] = "zh"
    return out


class _Grower:
    """Makes a tree of tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def blocks(self, depth: int, until: str = "") -> Tree:
        """The blocks up to the token that closes what they are in; too deep, they follow what they would be in."""
        out: Tree = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token.type == until:
                break
            out += self._block(token, depth)
        return out

    def _block(self, token: Token, depth: int) -> Iterator[Json]:
        kind = token.type
        if kind in ("paragraph_open", "heading_open"):
            runs = list(_runs(self._tokens[self._at].children or ()))
            self._at += 2
            node = _paragraph(runs)
            if kind == "heading_open":
                node |= {"k": "h", "level": int(token.tag[1])}
            yield node
        elif kind in ("fence", "code_block"):
            yield code(token.content) | {"lang": token.info.partition(" ")[0]}
        elif kind == "hr":
            yield {"k": "hr"}
        elif kind == "blockquote_open":
            inner = self.blocks(depth + 1, "blockquote_close")
            if depth < DEEPEST:
                yield {"k": "quote", "body": inner, **_way(inner)}
            else:
                yield from inner
        elif kind in ("bullet_list_open", "ordered_list_open"):
            items = self._items(depth, kind.replace("open", "close"))
            if depth < DEEPEST:
                start = token.attrGet("start")
                first = int(start) if start is not None else 1
                more = {"start": first} if kind.startswith("ordered") else {}
                yield {"k": "list", "items": items, **more, **_way(items[0])}
            else:
                for item in items:
                    yield from item
        elif kind == "table_open":
            yield self._table()
        elif token.content:
            yield _paragraph([_run(token.content)])

    def _items(self, depth: int, until: str) -> list[Tree]:
        out: list[Tree] = []
        while self._tokens[self._at].type != until:
            self._at += 1  # list_item_open
            out.append(self.blocks(depth + 1, "list_item_close"))
        self._at += 1
        return out

    def _table(self) -> Json:
        rows: list[list[Json]] = []
        heads = 0
        while (token := self._tokens[self._at]).type != "table_close":
            self._at += 1
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("th_open", "td_open"):
                heads += token.type == "th_open"
                cell = _paragraph(list(_runs(self._tokens[self._at].children or ())))
                rows[-1].append(cell | {"align": str(token.attrGet("style") or "").removeprefix("text-align:")})
        self._at += 1
        return {"k": "table", "columns": heads, "rows": rows, **_way(rows[0])}


def _way(nodes: Sequence[Json]) -> Json:
    """The direction of what holds nodes: that of the first."""
    return {"rtl": nodes[0]["rtl"]} if nodes and "rtl" in nodes[0] else {}


def _runs(tokens: Sequence[Token]) -> Iterator[Json]:
    marks: Json = {}
    for token in tokens:
        kind = token.type
        if kind == "text":
            yield _run(token.content, **marks)
        elif kind == "code_inline":
            yield _run(token.content, **marks, code=True)
        elif kind == "softbreak":
            yield _run(" ", **marks)
        elif kind == "hardbreak":
            yield _run("\n", **marks)
        elif kind == "image":
            yield _run(_alt(token), **{**marks, "href": str(token.attrGet("src") or "")})
        elif kind == "link_open":
            marks = {**marks, "href": str(token.attrGet("href") or "")}
        elif kind == "link_close":
            marks = {k: v for k, v in marks.items() if k != "href"}
        elif kind in _MARKS:
            marks = {**marks, _MARKS[kind]: True}
        elif kind.endswith("_close") and kind.replace("close", "open") in _MARKS:
            mark = _MARKS[kind.replace("close", "open")]
            marks = {k: v for k, v in marks.items() if k != mark}
        elif token.content:
            yield _run(token.content, **marks)


_MARKS = {"strong_open": "strong", "em_open": "em", "s_open": "strike"}
