"""From an exported document to what a reader is shown, in order: who said what, what was called, what was changed.

Pure. The result is plain JSON that knows no format; Markdown, HTML and PDF are made of it. Times are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

Json = dict[str, Any]

LONGEST = 20_000  # characters shown of a call's arguments or result; the document has them whole
CHANGES = 50  # values shown of one patch
STATUS = {
    "queued": "queued",
    "running": "running",
    "waiting": "waiting for an answer",
    "paused": "paused",
    "done": "completed",
    "cancelled": "cancelled",
    "failed": "failed",
    "limit": "stopped at a limit",
    "interrupted": "interrupted",
}
CALLS = {
    "running": "running",
    "ok": "done",
    "error": "failed",
    "denied": "denied",
    "invalid": "not made: the arguments do not fit",
    "timeout": "no answer in time",
    "cancelled": "cancelled",
    "lost": "lost",
    "": "not made",
}


class UsageRow(Struct):
    """What an agent took on a model."""

    who: str
    model: str
    steps: int
    input: int
    output: int
    cost: str


class Story(Struct):
    """What a reader is shown.

    Attributes:
        title: The conversation's.
        facts: Names and values for the head.
        items: `message`, `change`, `heading` and `note`, each with its `kind`; a message has `blocks`: `prose`
            (Markdown), `plain`, `thought`, `call`, `file` and `note`.
        usage: What each agent took; the last row is the sum.
        files: The files that blocks name by `ref`.
    """

    title: str
    facts: list[tuple[str, str]]
    items: list[Json]
    usage: list[UsageRow]
    files: Json


def tell(document: Json) -> Story:
    """The story of a document."""
    return _Teller(document).story()


class _Teller:
    def __init__(self, document: Json) -> None:
        self._document = document
        self._runs: Json = document["runs"]
        self._tools: Json = document["tools"]
        self._tones: dict[str, int] = {}
        self._told: set[str] = set()

    def story(self) -> Story:
        document = self._document
        dated = list(self._dated())
        dated.sort(key=lambda entry: entry[0])
        title = document["conversation"].get("title") or "Conversation"
        return Story(title, self._facts(), [item for _, item in dated], self._usage(), document.get("files", {}))

    def _dated(self) -> Iterator[tuple[tuple[int, int], Json]]:
        """Everything with its place: the number of the message that it belongs to, and where about it."""
        messages: Sequence[Json] = self._document["messages"]
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, message in enumerate(messages):
            run = message.get("run")
            if run is not None:
                first.setdefault(run, i)
                last[run] = i
            yield (i, 2), self._message(message)
        end = len(messages)
        for number, (id, run) in enumerate(self._runs.items(), 1):
            if len(self._runs) > 1:
                yield (first.get(id, end), 0), self._heading(number, run)
            for change in run.get("changes", ()):
                at = next((i for i, m in enumerate(messages) if m.get("run") == id and _is_after(m, change)), None)
                yield (last.get(id, end), 3) if at is None else (at, 1), _change(change)
            for call, tool in self._tools.items():
                if tool["run"] == id and call not in self._told:
                    who = self._who(id, tool.get("agent"))
                    blocks = list(self._calls(call))
                    yield (
                        (last.get(id, end), 4),
                        {"kind": "message", **who, "time": _time(tool["ts"]), "blocks": blocks},
                    )
            for ask in self._document.get("asks", {}).values():
                if ask["run"] == id and "outcome" in ask and ask.get("call") not in self._tools:
                    at = max((i for i, m in enumerate(messages) if m["ts"] <= ask["ts"]), default=end)
                    yield (at, 3), _note(f"{ask['title']} — {_answer(ask['outcome'])}")
            for text in self._ending(id, run):
                yield (last.get(id, end), 5), text

    # who

    def _who(self, run: str | None, agent: str | None) -> Json:
        titles = self._runs[run].get("titles", {}) if run in self._runs else {}
        name = titles.get(agent) or agent or "Assistant"
        return {"who": name, "side": "agent", "tone": self._tones.setdefault(name, len(self._tones))}

    def _facts(self) -> list[tuple[str, str]]:
        document, runs = self._document, list(self._runs.values())
        conversation = document["conversation"]
        kinds = list(dict.fromkeys(run["kind"].capitalize() for run in runs))
        out = [("Kind", ", ".join(kinds))] if kinds else []
        if "status" in document and runs:
            out.append(("Status", STATUS[runs[0]["status"]]))
        if created := conversation.get("created") or (runs[0]["ts"] if runs else None):
            out.append(("Begun", _time(created)))
        out.append(("Exported", _time(document["exported_at"])))
        if self._tones:
            out.append(("Speakers", ", ".join(self._tones)))
        models = list(dict.fromkeys(m["model"] for m in document["messages"] if m.get("model")))
        if models:
            out.append(("Models", ", ".join(models)))
        return out

    # messages

    def _message(self, message: Json) -> Json:
        if message["role"] == "user":
            who: Json = {"who": "User", "side": "user", "tone": 0}
        else:
            who = self._who(message.get("run"), message.get("agent"))
        blocks = list(self._blocks(message))
        if "decode" in message.get("notes", ()):
            blocks.append(_note("Some bytes of the answer were no text; they stand as \N{REPLACEMENT CHARACTER}."))
        if error := message.get("error"):
            blocks.append(_note(f"{error['message']} Another model took over.", "error"))
        return {
            "kind": "message",
            **who,
            "time": _time(message["ts"]),
            "model": message.get("model") or "",
            "blocks": blocks,
        }

    def _blocks(self, message: Json) -> Iterator[Json]:
        outputs: dict[str, str] = {}
        for part in message["parts"]:
            if part["kind"] == "tool_output":
                outputs[part["call"]] = outputs.get(part["call"], "") + part["text"]
        waiting: list[Json] = []
        for part in message["parts"]:
            kind = part["kind"]
            if kind in ("text", "reasoning"):
                shown = "thought" if kind == "reasoning" else "prose" if message["role"] == "assistant" else "plain"
                if waiting and waiting[-1]["kind"] == shown and message["role"] == "assistant":
                    waiting[-1]["text"] += part["text"]  # a long text goes on in the next part
                elif part["text"]:
                    yield from waiting
                    waiting = [{"kind": shown, "text": part["text"]}]
            elif kind == "tool_args":
                yield from waiting
                waiting = []
                if part["call"] not in self._told:
                    yield from self._calls(part["call"], part, outputs.get(part["call"], ""))
            elif kind != "tool_output":
                yield from waiting
                waiting = [self._file(part)]
            if part.get("partial") or part.get("open"):
                yield from waiting
                still = part.get("open")
                waiting = [_note("This is still being written." if still else "This was cut here.")]
        yield from waiting

    def _file(self, item: Json) -> Json:
        kept = self._document.get("files", {}).get(item["ref"], {})
        name = item.get("name") or kept.get("name") or item["kind"]
        return {
            "kind": "file",
            "ref": item["ref"],
            "name": name,
            "mime": kept.get("mime") or item.get("mime") or "",
            "size": kept.get("size"),
        }

    # calls

    def _calls(self, call: str, part: Json | None = None, output: str = "") -> Iterator[Json]:
        """A call, and those that repeat it."""
        part = part or {}
        tool = self._tools.get(call)
        if tool is None:
            self._told.add(call)
            yield {
                "kind": "call", "name": part.get("name") or "tool", "status": CALLS[""], "good": False,
                "args": _shortened(part.get("text", "")), "result": "", "time": "",
            }  # fmt: skip
            return
        while call not in self._told:
            self._told.add(call)
            took = f", {tool['ms'] / 1000:.1f} s" if tool.get("ms") else ""
            error = (tool.get("error") or {}).get("message") or ""
            result = tool.get("result")
            yield {
                "kind": "call",
                "name": tool.get("title") or tool["name"],
                "status": CALLS[tool["status"]] + took,
                "good": tool["status"] in ("ok", "running"),
                "args": _shortened(_arguments(tool.get("args"))),
                "result": _shortened(error or _result(result) or output),
                "time": _time(tool["ts"]),
            }
            for ask in self._document.get("asks", {}).values():
                if ask.get("call") == call and "outcome" in ask:
                    yield _note(f"{ask['title']} — {_answer(ask['outcome'])}")
            content = result.get("content") if isinstance(result, dict) else None
            for item in content if isinstance(content, list) else ():
                if isinstance(item, dict) and isinstance(item.get("ref"), str):
                    yield self._file({"kind": "file", **item})
            if (again := tool.get("repeated")) not in self._tools:
                return
            call, tool = again, self._tools[again]

    # runs

    def _heading(self, number: int, run: Json) -> Json:
        return {
            "kind": "heading",
            "text": f"{number}. {run['kind'].capitalize()}",
            "small": f"{STATUS[run['status']]} · {_time(run['ts'])}",
        }

    def _ending(self, id: str, run: Json) -> Iterator[Json]:
        asks = [ask for ask in self._document.get("asks", {}).values() if ask["run"] == id]
        for name, answer in run.get("answers", {}).items():
            if all(ask.get("name") != name for ask in asks):
                yield _note(f"Answer to “{name}”: {_answer(answer)}")
        for ask in asks:
            if "outcome" not in ask:
                yield _note(f"Waits for an answer: {ask['title']}")
        if error := run.get("error"):
            yield _note(f"The run {STATUS[run['status']]}: {error['message']}", "error")
        elif run["status"] != "done":
            yield _note(f"The run is {STATUS[run['status']]}.")

    def _usage(self) -> list[UsageRow]:
        rows: dict[tuple[str, str], list[Any]] = {}
        for message in self._document["messages"]:
            if usage := message.get("usage"):
                who = self._who(message.get("run"), message.get("agent"))["who"]
                _count(rows.setdefault((who, message.get("model") or ""), [0, 0, 0, None]), usage)
        total: list[Any] = [sum(row[0] for row in rows.values()), 0, 0, None]
        for run in self._runs.values():
            _count(total, run["usage"], 0)
        if not total[1] and not total[2]:
            return []
        return [*(_row(*key, row) for key, row in rows.items()), _row("All", "", total)]


def _count(row: list[Any], usage: Json, steps: int = 1) -> None:
    row[0] += steps
    row[1] += usage.get("input", 0)
    row[2] += usage.get("output", 0)
    if (cost := usage.get("cost_usd")) is not None:
        row[3] = (row[3] or 0.0) + cost


def _row(who: str, model: str, row: list[Any]) -> UsageRow:
    steps, sent, written, cost = row
    return UsageRow(who, model, steps, sent, written, "" if cost is None else f"${cost:,.4f}")


def _is_after(message: Json, change: Json) -> bool:
    """Whether a message came after a patch."""
    if message.get("step") is not None:
        return bool(message["step"] > change["step"])
    return bool(change.get("ts") and message["ts"] > change["ts"])


def _change(change: Json) -> Json:
    lines = [f"{path} = {value}" for path, value in _values("", change["patch"])]
    more = len(lines) - CHANGES
    lines = lines[:CHANGES] + ([f"… and {more} more"] if more > 0 else [])
    return {"kind": "change", "time": _time(change["ts"]) if change.get("ts") else "", "lines": lines}


def _values(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and value != {"set": True}:
        for key, inner in value.items():
            yield from _values(f"{path}.{key}" if path else key, inner)
    elif path:
        shown = "removed" if value is None else "(secret)" if value == {"set": True} else _plain(value)
        yield path, _shortened(shown, 300)


def _answer(outcome: Json) -> str:
    """How a question was settled."""
    if outcome.get("data"):
        return _shortened(_plain(outcome["data"]))
    words = str(outcome.get("choice") or "not answered").replace("_", " ")
    return words + (", for nobody answered in time" if outcome.get("why") == "expired" else "")


def _note(text: str, level: str = "info") -> Json:
    return {"kind": "note", "text": text, "level": level}


def _time(ts: int) -> str:
    try:
        return datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def _shortened(text: str, limit: int = LONGEST) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit} more characters]"


def _arguments(args: Any) -> str:
    return "" if args in (None, {}) else _plain(args)


def _plain(value: Any) -> str:
    """A value as it is read best: text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _result(result: Any) -> str:
    """A result as text; its files are shown beside it."""
    content = result.get("content") if isinstance(result, dict) else None
    if not isinstance(content, list):
        return "" if result is None else _plain(result)
    pieces = []
    for item in content:
        if not isinstance(item, dict) or item.get("ref"):
            continue
        if isinstance(item.get("text"), str):
            pieces.append(item["text"])
        elif item.get("kind") == "table":
            rows = [item.get("columns"), *(item.get("rows") or [])]
            pieces.append("\n".join(" | ".join(map(_plain, row)) for row in rows if isinstance(row, list)))
        else:
            pieces.append(_plain(item))
    if not pieces and result.get("data") is not None:
        pieces.append(_plain(result["data"]))
    return "\n".join(pieces)
