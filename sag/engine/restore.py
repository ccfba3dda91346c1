"""From an exported document back to a conversation: checked strictly, then made into the events that tell it.

Pure. Ids are new and mapped wherever they stand; everything is closed, and a run that went on becomes `interrupted`.
What would give a document power over the hub (remembered approvals, figures that count against a budget) is not taken
from it. Above: the operations of `sag.api.export`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from sag.engine.export import (
    DEEPEST,
    FORMAT,
    VERSION,
    Document,
    ExportedAsk,
    ExportedError,
    ExportedMessage,
    ExportedPart,
    ExportedRun,
    ExportedTool,
    ExportedUsage,
    content_refs,
)
from sag.errors import Fault
from sag.ops.dispatch import DECODE_ERRORS, params_fault
from sag.schema.events import (
    AskClose,
    AskOpen,
    ConfigPatched,
    ConvPatch,
    Event,
    MessageAdd,
    PartClose,
    PartOpen,
    RunClose,
    RunEnd,
    RunError,
    RunOpen,
    RunPatch,
    ToolClose,
    ToolOpen,
    ToolProgress,
    ToolStatus,
    Usage,
)
from sag.schema.ids import new_id
from sag.topics.merge import encode
from sag.topics.snapshot import OPEN

Json = dict[str, Any]

MAX_EVENTS = 200_000
ROOM = 1024  # bytes of a frame around an event
INTEGERS = range(-(1 << 63), 1 << 64)  # that JSON of the hub can hold


class RestoredFile(NamedTuple):
    """A file to keep under a new ref."""

    ref: str
    mime: str
    name: str
    data: bytes


class Restored(NamedTuple):
    """A conversation to be told: its id, its listing, its events in order, its files."""

    conv: str
    title: str
    created: int
    config: Json
    kind: str
    events: list[Event | list[Any]]
    files: list[RestoredFile]


def parse(raw: Any) -> Document:
    """A document, held against its declaration.

    Args:
        raw: Plain JSON, or its text.

    Raises:
        Fault: import.invalid, import.version, with the path of the fault.
    """
    try:
        plain = msgspec.json.decode(raw) if isinstance(raw, bytes) else raw
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise Fault("import.invalid", f"The document's `format` is not {FORMAT!r}.", path="$.format")
        version = plain.get("version")
        if version != VERSION:
            raise Fault("import.version", f"The hub knows version {VERSION}, not {version!r:.40}.", path="$.version")
        _check_plain(plain)
        document = msgspec.convert(plain, Document)
    except DECODE_ERRORS as e:
        raise params_fault(e, "import.invalid") from None
    _check_names(document)
    return document


def _check_plain(value: Any) -> None:
    """Nothing nested too deeply, and no number that cannot be kept."""
    level = [("$", value)]
    for _ in range(DEEPEST + 10):
        deeper: list[tuple[str, Any]] = []
        for path, item in level:
            if isinstance(item, dict):
                deeper += [(path if path.count(".") > 2 else f"{path}.{k}", v) for k, v in item.items()]
            elif isinstance(item, list):
                deeper += [(path if path.count(".") > 2 else f"{path}[{i}]", v) for i, v in enumerate(item)]
            elif isinstance(item, int) and item not in INTEGERS:
                raise _invalid(path, "The number is too large.")
        if not deeper:
            return
        level = deeper
    raise _invalid(level[0][0], "It is nested too deeply.")


def _invalid(path: str, text: str) -> Fault:
    return Fault("import.invalid", text, path=path)


def _check_names(document: Document) -> None:
    """Every id that something names is there, and none stands twice.

    Raises:
        Fault: import.invalid.
    """
    places: dict[str, dict[str, Any]] = {
        "runs": document.runs,
        "tools": document.tools,
        "files": document.files,
        "asks": document.asks,
    }
    used = {document.conversation.id} | {message.msg for message in document.messages}
    for place, things in places.items():
        if twice := next((id for id in things if id in used), None):
            raise _invalid(f"$.{place}.{twice}", f"Something else has the id {twice!r}.")
        used |= things.keys()
    before: set[str] = set()
    for call, tool in document.tools.items():
        path = f"$.tools.{call}"
        _check_there(tool.run, document.runs, f"{path}.run")
        if tool.again is not None and tool.again not in before:
            raise _invalid(f"{path}.again", f"No call before it has the id {tool.again!r}.")
        for member in ("kind", "message"):
            if not isinstance((tool.error or {}).get(member, ""), str):
                raise _invalid(f"{path}.error.{member}", "It is no text.")
        if tool.ref is not None:
            _check_there(tool.ref, document.files, f"{path}.ref")
        for item in content_refs(tool.result):
            _check_there(item["ref"], document.files, f"{path}.result.content")
        before.add(call)
    for id, ask in document.asks.items():
        _check_there(ask.run, document.runs, f"$.asks.{id}.run")
        if ask.call is not None:
            _check_there(ask.call, document.tools, f"$.asks.{id}.call")
    seen: set[str] = set()
    parts: set[int] = set()
    for i, message in enumerate(document.messages):
        path = f"$.messages[{i}]"
        if message.msg in seen:
            raise _invalid(f"{path}.msg", f"Another message has the id {message.msg!r}.")
        if message.parent is not None and message.parent not in seen:
            raise _invalid(f"{path}.parent", f"No message before it has the id {message.parent!r}.")
        seen.add(message.msg)
        if message.run is not None:
            _check_there(message.run, document.runs, f"{path}.run")
        for j, part in enumerate(message.parts):
            _check_part(document, message, part, parts, f"{path}.parts[{j}]")


def _check_there(id: str, known: dict[str, Any], path: str) -> None:
    if id not in known:
        raise _invalid(path, f"The document has no {id!r}.")


def _check_part(document: Document, message: ExportedMessage, part: ExportedPart, seen: set[int], path: str) -> None:
    if part.part is not None:
        if part.part in seen:
            raise _invalid(f"{path}.part", f"Another part has the number {part.part}.")
        seen.add(part.part)
        if message.run is None:
            raise _invalid(f"{path}.part", "A part with a number belongs to a run.")
    if part.kind in ("image", "file"):
        if part.ref is None:
            raise _invalid(f"{path}.ref", "A file needs its ref.")
        _check_there(part.ref, document.files, f"{path}.ref")
    elif part.text is None:
        raise _invalid(f"{path}.text", "A part of this kind needs its text.")
    if part.kind == "tool_args" and part.call is None:
        raise _invalid(f"{path}.call", "The arguments of a call name it.")
    if part.kind == "tool_output":
        _check_there(part.call or "", document.tools, f"{path}.call")
    if part.kind == "tool_args" and part.call in document.tools and document.tools[part.call].run != message.run:
        raise _invalid(f"{path}.call", "The call is of another run.")


def restore(document: Document, user: str, now: int, frame: int) -> Restored:
    """The events that make a document's conversation, on a new topic of a user.

    Args:
        document: As `parse` gave it.
        user: The id of whose it becomes; everything in it counts as done by this user.
        now: Unix ms.
        frame: The most bytes of an event.

    Raises:
        Fault: import.invalid, import.large, with the path of the fault.
    """
    return _Telling(document, user, now, frame).tell()


class _Telling:
    def __init__(self, document: Document, user: str, now: int, frame: int) -> None:
        self._document, self._user, self._now, self._frame = document, user, now, frame
        self._conv = new_id("c")
        self._ids = {document.conversation.id: self._conv}
        for prefix, names in (("r", document.runs), ("k", document.tools), ("a", document.asks), ("f", document.files)):
            self._ids |= {id: new_id(prefix) for id in names}
        self._ids |= {message.msg: new_id("m") for message in document.messages}
        for message in document.messages:  # calls that a model wrote and nobody made
            for part in message.parts:
                if part.call is not None and part.call not in self._ids:
                    self._ids[part.call] = new_id("k")
        self._last_part = 0
        self._events: list[Event | list[Any]] = []

    def tell(self) -> Restored:
        document = self._document
        given = document.conversation
        created = self._now if given.created is None else given.created
        self._add("$.conversation", ConvPatch({"title": given.title, "created": created}))
        if given.config or given.rev != 1:
            scope = f"conv:{self._conv}"
            self._add("$.conversation.config", ConfigPatched(scope, given.rev, given.config, self._user, self._now))
        for id, run in document.runs.items():
            self._add(f"$.runs.{id}", *self._opened(id, run))
        for i, message in enumerate(document.messages):
            self._add(f"$.messages[{i}]", *self._said(message))
        for call, tool in document.tools.items():
            self._add(f"$.tools.{call}", *self._called(call, tool))
        for id, ask in document.asks.items():
            self._add(f"$.asks.{id}", *self._asked(id, ask))
        for id, run in document.runs.items():
            self._add(f"$.runs.{id}", *self._ended(id, run))
        kind = next(reversed(document.runs.values())).kind if document.runs else "chat"
        return Restored(self._conv, given.title, created, given.config, kind, self._events, list(self._files()))

    def _add(self, path: str, *events: Event | list[Any]) -> None:
        for event in events:
            most = self._frame // 4 if isinstance(event, list) else self._frame - ROOM
            if len(encode(event)) > most:
                raise Fault("import.large", f"It is larger than {most} bytes.", path=path)
        self._events += events
        if len(self._events) > MAX_EVENTS:
            raise Fault("import.large", f"The document takes more than {MAX_EVENTS} events.", path=path)

    def _new(self, id: str | None) -> str | None:
        return None if id is None else self._ids[id]

    def _mapped(self, value: Any) -> Any:
        """Free JSON with the ids that stand in it made new."""
        if isinstance(value, str):
            return self._ids.get(value, value)
        if isinstance(value, dict):
            return {self._ids.get(k, k): self._mapped(v) for k, v in value.items()}
        return [self._mapped(v) for v in value] if isinstance(value, list) else value

    # runs

    def _opened(self, id: str, run: ExportedRun) -> Iterator[Event]:
        yield RunOpen(
            self._ids[id], run.kind, self._user, run.client, run.config, run.rev, "running", run.ts, run.base, run.begun
        )

    def _ended(self, id: str, run: ExportedRun) -> Iterator[Event]:
        changes = [{**msgspec.to_builtins(change), "by": self._user} for change in run.changes]
        answers = {
            name: {**self._mapped(answer), **({"by": self._user} if answer.get("by") else {})}
            for name, answer in run.answers.items()
        }
        members: Json = {
            "step": run.step,
            "model": run.model,
            "agents": dict.fromkeys(run.agents, "closed"),
            "titles": run.titles,
            "applied": run.applied,
            "trimmed": run.trimmed,
            "answers": answers,
            "changes": changes,
            "data": self._mapped(run.data),
        }
        for member, value in members.items():  # one by one, for each has to fit a frame
            if value or (member == "data" and value is not None):
                yield RunPatch(self._ids[id], {member: value})
        status: RunEnd = "interrupted" if run.status in OPEN else run.status  # type: ignore[assignment]
        yield RunClose(self._ids[id], status, _usage(run.usage), self._now, _error(run.error))

    # messages

    def _said(self, message: ExportedMessage) -> Iterator[Event | list[Any]]:
        whole = all(part.part is None for part in message.parts)
        yield MessageAdd(
            self._ids[message.msg],
            message.role,
            message.ts,
            [self._plain(part) for part in message.parts] if whole else [],
            self._new(message.run),
            message.agent,
            self._user if message.by is not None else None,
            self._new(message.parent),
            message.step,
            message.model,
            _usage(message.usage) if message.usage is not None else None,
            message.finish,
            message.ms,
            message.request,
            _error(message.error),
            message.notes,
        )
        for part in () if whole else message.parts:
            yield from self._written(message, part)

    def _plain(self, part: ExportedPart) -> Json:
        out: Json = msgspec.to_builtins(part)
        for member in ("ref", "call"):
            if member in out:
                out[member] = self._ids[out[member]]
        out.pop("open", None)
        return out

    def _written(self, message: ExportedMessage, part: ExportedPart) -> Iterator[Event | list[Any]]:
        self._last_part = number = self._last_part + 1
        run = self._ids[message.run or ""]
        yield PartOpen(
            number, run, self._ids[message.msg], part.kind, message.ts if part.ts is None else part.ts,
            self._new(part.call), part.agent, part.name,
        )  # fmt: skip
        text = part.text or ""
        if text:
            yield [number, text]
        yield PartClose(number, len(text), part.partial or part.open, part.ms, part.replay)

    # tools

    def _called(self, call: str, tool: ExportedTool) -> Iterator[Event]:
        id = self._ids[call]
        yield ToolOpen(
            id, self._ids[tool.run], tool.name, tool.origin, self._mapped(tool.args), tool.risk, tool.ts, tool.step,
            tool.connector, tool.title, tool.agent, self._new(tool.again), tool.ends,
        )  # fmt: skip
        if tool.progress is not None:
            try:
                yield msgspec.convert({**tool.progress, "call": id}, ToolProgress)
            except msgspec.ValidationError as e:
                raise _invalid(f"$.tools.{call}.progress", str(e)) from None
        status: ToolStatus = "lost" if tool.status == "running" else tool.status
        yield ToolClose(
            id, status, tool.ms or 0, self._mapped(tool.result), self._mapped(tool.error), self._new(tool.ref)
        )

    # asks

    def _asked(self, id: str, ask: ExportedAsk) -> Iterator[Event]:
        run, call = self._ids[ask.run], self._new(ask.call)
        yield AskOpen(
            self._ids[id],
            run,
            ask.kind,
            ask.title,
            ask.options,
            ask.expires_at,
            ask.on_expiry,
            ask.ts,
            call,
            name=ask.name,
        )
        if (outcome := ask.outcome) is None:
            yield AskClose(self._ids[id], None, None, why="run")
            return
        by = self._user if outcome.by is not None else None
        args, data = self._mapped(outcome.args), self._mapped(outcome.data)
        yield AskClose(self._ids[id], by, outcome.choice, outcome.client, outcome.why, args, data)

    # files

    def _files(self) -> Iterator[RestoredFile]:
        for ref, file in self._document.files.items():
            if file.data is not None:
                try:
                    data = base64.b64decode(file.data, validate=True)
                except (binascii.Error, ValueError):
                    raise _invalid(f"$.files.{ref}.data", "The data are not base64.") from None
                yield RestoredFile(self._ids[ref], file.mime, file.name, data)


def _usage(usage: ExportedUsage) -> Usage:
    return msgspec.convert(msgspec.to_builtins(usage), Usage)


def _error(error: ExportedError | None) -> RunError | None:
    return None if error is None else RunError(error.kind, error.message, error.retry)
