"""A story as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sag_export.story import Story

Json = dict[str, Any]


def render(story: Story) -> bytes:
    """The file, UTF-8."""
    return ("\n\n".join(_pieces(story)) + "\n").encode()


def _pieces(story: Story) -> Iterator[str]:
    yield f"# {_line(story.title)}"
    yield "\n".join(f"- {name}: {_line(value)}" for name, value in story.facts)
    for item in story.items:
        kind = item["kind"]
        if kind == "heading":
            yield f"## {_line(item['text'])}\n\n*{item['small']}*"
        elif kind == "note":
            yield _quoted(item["text"])
        elif kind == "change":
            yield _quoted(
                "Config changed" + (f", {item['time']}" if item["time"] else "") + ":\n" + _listed(item["lines"])
            )
        else:
            small = " · ".join(filter(None, (item["time"], item.get("model"))))
            yield f"### {_line(item['who'])}\n\n*{small}*"
            for block in item["blocks"]:
                yield from _block(block)
    if story.usage:
        yield "## Usage"
        head = ["| Who | Model | Steps | Input | Output | Cost |", "| --- | --- | ---: | ---: | ---: | ---: |"]
        rows = [
            f"| {_cell(r.who)} | {_cell(r.model)} | {r.steps} | {r.input} | {r.output} | {r.cost} |"
            for r in story.usage
        ]
        yield "\n".join([*head, *rows])


def _block(block: Json) -> Iterator[str]:
    kind = block["kind"]
    if kind in ("prose", "plain"):
        yield block["text"].strip("\n")
    elif kind == "thought":
        yield _quoted("*Thought*\n\n" + block["text"])
    elif kind == "note":
        yield _quoted(block["text"])
    elif kind == "file":
        yield f"*File:* {_line(block['name'])}" + (f" ({block['mime']})" if block["mime"] else "")
    else:
        yield f"**Tool: {_line(block['name'])}** — {block['status']}"
        if block["args"]:
            yield _fenced(block["args"])
        if block["result"]:
            yield _fenced(block["result"])


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {_code(_line(line))}" for line in lines)


def _code(text: str) -> str:
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _fenced(text: str) -> str:
    """Text between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
