"""The generated pages of the reference on what lies above `ops`: the command line, hooks and what plugins are given.

Everything is read from the objects that are handed in; nothing of `sag` above this package is imported.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from sag.ops.export.markdown import HEAD, table
from sag.ops.export.schema import paragraphs, split_doc

ENGINE = {  # members of Run that are the engine's and no run kind's
    "answer",
    "in_model_call",
    "is_addressed",
    "listen",
    "open_ask",
    "pause",
    "restart_steps",
    "rested",
    "set_status",
    "stop",
    "tool",
    "used",
}
SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes")


# the command line


def cli(parser: argparse.ArgumentParser) -> str:
    """`cli.md`"""
    out = [HEAD, "# Command line\n", f"{parser.description}\n"]
    for command, help, sub in _commands(parser):
        out += [f"## {command}\n", f"{_sentence(help)}\n"]
        actions = [a for a in sub._actions if not isinstance(a, argparse._HelpAction | argparse._SubParsersAction)]
        words = [command, *(_usage(a) for a in actions)]
        out.append(f"```sh\n{' '.join(words)}\n```\n")
        if actions:
            rows = [(f"`{_name(a)}`", _sentence(_help(a, sub))) for a in actions]
            out.append(table(("Argument", "Meaning"), rows) + "\n")
    return "\n".join(out)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                below = list(_commands(sub))
                if not below:
                    yield f"{parser.prog} {name}", helps.get(name, ""), sub
                yield from below


def _usage(action: argparse.Action) -> str:
    word = _name(action)
    if not action.option_strings:
        return {"*": f"[{word} …]", "+": f"{word} …", "?": f"[{word}]"}.get(str(action.nargs), word)
    return word if action.required else f"[{word}]"


def _name(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(str(c) for c in action.choices) + "}"
    if not action.option_strings:
        return value
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%(prog)s", parser.prog)
    return text.replace("%%", "%")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", ")", "?")) else text + "."


# hooks and the hub that plugins are given


def hooks(spec: type[Any], classes: Sequence[type[Any]]) -> str:
    """`hooks.md`

    Args:
        spec: The class of hook specifications.
        classes: The hub that plugins are given, and what hangs from it.
    """
    hub, *others = classes
    out = [
        HEAD,
        "# Hooks\n",
        "A plugin is a module named by an entry point of the group `sag`. It implements hooks, marked with "
        "`@hookimpl`; each is called with the plugin's own `Hub`. A hook may leave `hub` out. Everything that a plugin "
        "needs is imported from `sag.plugin`.\n",
    ]
    for name, function in _public(spec):
        out += [f"## `{signature(name, function)}`\n", docstring(function)]
    adds = [(name, f) for name, f in _public(hub) if name.startswith("add_")]
    rest = [(name, f) for name, f in _public(hub) if not name.startswith("add_")]
    out += ["# What `register` adds\n", "These count only while `register` runs.\n"]
    for name, function in adds:
        out += [f"## `{signature('hub.' + name, function)}`\n", docstring(function)]
    out += ["# What works while the hub runs\n", "From `startup` on, unless it says otherwise.\n"]
    out += _members("hub", hub, rest)
    for cls in others:
        out += [f"# {cls.__name__}\n", f"{split_doc(cls.__doc__ or '')[0]}\n"]
        out += _members(cls.__name__, cls, [(name, f) for name, f in _public(cls) if name not in ENGINE])
    return "\n".join(out)


def _members(of: str, cls: type[Any], members: Sequence[tuple[str, Any]]) -> list[str]:
    """The attributes and properties of a class as a table, then its methods."""
    attributes = split_doc(cls.__doc__ or "")[1]
    rows = [(f"`{of}.{name}`", text) for name, text in attributes.items()]
    rows += [(f"`{of}.{name}`", paragraphs(f.__doc__ or "")) for name, f in members if isinstance(f, property)]
    out = [table(("Attribute", "Meaning"), rows) + "\n"] if rows else []
    for name, function in members:
        if not isinstance(function, property):
            out += [f"## `{signature(f'{of}.{name}', function)}`\n", docstring(function)]
    return out


def _public(cls: type[Any]) -> list[tuple[str, Any]]:
    """A class's own public methods and properties, in the order in which they stand."""
    return [
        (name, thing)
        for name, thing in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(thing) or isinstance(thing, property))
    ]


class _Verbatim:
    """An annotation that is shown as it is written."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def signature(name: str, function: Callable[..., Any]) -> str:
    """A function's signature as it is written, without self."""
    found = inspect.signature(function)
    given = [
        p.replace(annotation=_Verbatim(p.annotation)) if isinstance(p.annotation, str) else p
        for p in found.parameters.values()
        if p.name != "self"
    ]
    given = [
        p.replace(default=_Verbatim(f"{type(p.default).__name__}()")) if isinstance(p.default, Struct) else p
        for p in given
    ]
    answer = found.return_annotation
    told = found.replace(parameters=given, return_annotation=_Verbatim(answer) if isinstance(answer, str) else answer)
    word = "async " if inspect.iscoroutinefunction(function) else ""
    return f"{word}{name}{told}"


def docstring(function: Callable[..., Any]) -> str:
    """A Google-style docstring as Markdown."""
    text = inspect.cleandoc(function.__doc__ or "")
    pieces = re.split(rf"(?:^|\n)({'|'.join(SECTIONS)}):\n", text)
    out = [paragraphs(pieces[0]) + "\n"] if pieces[0].strip() else []
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        out += [f"**{title}**\n", "\n".join(_items(inspect.cleandoc("\n" + body))) + "\n"]
    return "\n".join(out)


def _items(body: str) -> list[str]:
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif match := re.match(r"([\w, *]+): (.*)", line):
            items.append(f"- `{match[1]}`: {match[2]}")
        elif line.strip() and items and not items[-1].startswith("- "):
            items[-1] += f" {line.strip()}"
        elif line.strip():
            items.append(line.strip())
    return items
