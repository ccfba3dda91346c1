"""A story as one HTML file that needs nothing else: no script, nothing fetched, light or dark as its reader prefers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from sag_export.prose import Prose, plain_html
from sag_export.story import Story

Json = dict[str, Any]

PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp"}
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1c2024; --soft: #60646c; --line: #e0e3e8; --box: #f6f7f9;
  --code: #f1f3f5; --bad: #b42318; --t0: #3b5bdb; --t1: #0c8599; --t2: #9c36b5; --t3: #c2590c; --t4: #2b8a3e;
  --t5: #a61e4d; }
@media (prefers-color-scheme: dark) { :root { --bg: #16181c; --fg: #e6e8eb; --soft: #9ba1a9; --line: #2d3138;
  --box: #1e2126; --code: #24282e; --bad: #ff8a80; --t0: #91a7ff; --t1: #66d9e8; --t2: #e599f7; --t3: #ffc078;
  --t4: #8ce99a; --t5: #faa2c1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
main { max-width: 50rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.5rem; margin-bottom: 2rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 1rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 1rem; }
h2 small { font-weight: 400; color: var(--soft); font-size: .85rem; margin-inline-start: .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
.m { margin: 0 0 1.75rem; padding-inline-start: 1rem; border-inline-start: 3px solid var(--tone); }
.m > .who { display: flex; flex-wrap: wrap; gap: .15rem .75rem; align-items: baseline; margin-bottom: .35rem; }
.m > .who b { color: var(--tone); }
.m > .who span { color: var(--soft); font-size: .8rem; }
.m.user { border: 1px solid var(--line); border-radius: .75rem; background: var(--box); padding: .9rem 1.1rem; }
.m.user > .who b { color: var(--fg); }
.plain { white-space: pre-wrap; unicode-bidi: plaintext; }
.m p, .m ul, .m ol, .m table, .m blockquote, .m pre { margin: 0 0 .8rem; } .m > :last-child { margin-bottom: 0; }
h3, h4, h5, h6 { margin: 1.2rem 0 .5rem; line-height: 1.3; font-size: 1.05rem; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", "DejaVu Sans Mono", monospace;
  font-size: .86em; }
code { background: var(--code); border-radius: .3rem; padding: .12em .35em; }
pre { background: var(--code); border-radius: .6rem; padding: .8rem 1rem; white-space: pre-wrap; }
pre code { background: none; padding: 0; font-size: 1em; }
blockquote { border-inline-start: 3px solid var(--line); padding-inline-start: .9rem; color: var(--soft); margin: 0; }
table { border-collapse: collapse; font-size: .92rem; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .35rem .7rem; text-align: start; vertical-align: top; }
th { background: var(--box); }
a { color: var(--t0); }
.call { border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 .8rem; background: var(--box); }
.call summary { cursor: pointer; padding: .5rem .9rem; font-size: .9rem; }
.call summary span { color: var(--soft); } .call.bad summary span { color: var(--bad); }
.call div { padding: 0 .9rem .8rem; font-size: .9rem; } .call h5 { margin: .2rem 0 .3rem; color: var(--soft);
  font-size: .78rem; font-weight: 500; }
.call pre { margin: 0 0 .6rem; max-height: 24rem; overflow: auto; }
details.thought { margin: 0 0 .8rem; color: var(--soft); font-size: .92rem; } .thought summary { cursor: pointer; }
.thought p { margin: .5rem 0; font-style: italic; }
.note { color: var(--soft); font-size: .88rem; margin: 0 0 1rem; } .note.error { color: var(--bad); }
.change { color: var(--soft); font-size: .85rem; border: 1px dashed var(--line); border-radius: .6rem;
  padding: .5rem .9rem; margin: 0 0 1.75rem; } .change ul { margin: .25rem 0 0; padding-inline-start: 1.1rem; }
figure { margin: 0 0 .8rem; } figure img { max-width: 100%; border-radius: .6rem; display: block; }
figcaption { color: var(--soft); font-size: .85rem; }
.usage td:nth-child(n+3), .usage th:nth-child(n+3) { text-align: end; font-variant-numeric: tabular-nums; }
.usage tr:last-child td { font-weight: 600; }
@media print { main { max-width: none; padding: 0; } .call pre { max-height: none; } }
"""


def render(story: Story) -> bytes:
    """The file, UTF-8."""
    return "".join(_page(story)).encode(errors="replace")


def _page(story: Story) -> Iterator[str]:
    title = escape(story.title)
    yield (
        '<!doctype html>\n<html><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f'<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n<header><h1 dir="auto">{title}</h1><dl>'
    )
    for name, value in story.facts:
        yield f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
    yield "</dl></header>\n"
    prose = Prose()
    for item in story.items:
        yield from _item(item, prose, story.files)
    if story.usage:
        yield '<h2>Usage</h2>\n<table class="usage"><tr>'
        yield "".join(f"<th>{name}</th>" for name in ("Who", "Model", "Steps", "Input", "Output", "Cost"))
        yield "</tr>\n"
        for r in story.usage:
            cells = (r.who, r.model, f"{r.steps:,}", f"{r.input:,}", f"{r.output:,}", r.cost)
            yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n"
        yield "</table>\n"
    yield "</main></body></html>\n"


def _item(item: Json, prose: Prose, files: Json) -> Iterator[str]:
    kind = item["kind"]
    if kind == "heading":
        yield f"<h2>{escape(item['text'])}<small>{escape(item['small'])}</small></h2>\n"
    elif kind == "note":
        yield _note(item)
    elif kind == "change":
        lines = "".join(f"<li><code>{escape(line)}</code></li>" for line in item["lines"])
        when = f" · {escape(item['time'])}" if item["time"] else ""
        yield f'<div class="change">Config changed{when}<ul>{lines}</ul></div>\n'
    else:
        tone = "var(--line)" if item["side"] == "user" else f"var(--t{item['tone'] % 6})"
        small = "".join(f"<span>{escape(text)}</span>" for text in (item["time"], item.get("model")) if text)
        yield f'<article class="m {item["side"]}" style="--tone: {tone}"><div class="who">'
        yield f"<b>{escape(item['who'])}</b>{small}</div>\n"
        for block in item["blocks"]:
            yield from _block(block, prose, files)
        yield "</article>\n"


def _block(block: Json, prose: Prose, files: Json) -> Iterator[str]:
    kind = block["kind"]
    if kind == "prose":
        yield prose.html(block["text"])
    elif kind == "plain":
        yield plain_html(block["text"])
    elif kind == "thought":
        yield f'<details class="thought"><summary>Thought</summary>{plain_html(block["text"])}</details>\n'
    elif kind == "note":
        yield _note(block)
    elif kind == "file":
        yield _file(block, files)
    else:
        yield f'<details class="call{"" if block["good"] else " bad"}" open><summary><b>{escape(block["name"])}</b> '
        yield f"<span>{escape(block['status'])}</span></summary><div>"
        for name, text in (("Arguments", block["args"]), ("Result", block["result"])):
            if text:
                yield f'<h5>{name}</h5><pre dir="auto">{escape(text)}</pre>'
        yield "</div></details>\n"


def _note(note: Json) -> str:
    return f'<p class="note {note["level"]}" dir="auto">{escape(note["text"])}</p>\n'


def _file(block: Json, files: Json) -> str:
    data = files.get(block["ref"], {}).get("data")
    name = escape(block["name"])
    if block["mime"] in PICTURES and data and _BASE64.fullmatch(data):
        src = f"data:{block['mime']};base64,{data}"
        return f'<figure><img src="{src}" alt="{name}"><figcaption>{name}</figcaption></figure>\n'
    size = f", {block['size']:,} bytes" if block["size"] is not None else ""
    return f'<p class="note info">File: {name} ({escape(block["mime"] or "unknown")}{size})</p>\n'
