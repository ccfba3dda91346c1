"""The exported document: a conversation, or one run of it, as plain JSON that another hub can take in.

Owns the document's shape, declared once: what an export holds and what an import takes (`sag.engine.restore`). Pure: it
is made from a conversation's state, and knows neither hub nor clock. Above: the operations of `sag.api.export`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from sag.schema.events import PartKind, ToolStatus
from sag.secret import blot
from sag.topics.snapshot import OPEN

Json = dict[str, Any]

FORMAT = "sag.conversation"
VERSION = 1
MIME = r"^[\x20-\x7e]{0,200}$"
DEEPEST = 100  # levels of a document

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Name = Annotated[str, Meta(max_length=20_000)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Dollars = Annotated[float, Meta(ge=0)]

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET = re.compile(
    r"(^|[_-])(api_?-?key|key|token|secret|password|passphrase|credentials?|authorization|cookie)$", re.I
)


class _Strict(Struct, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ExportedConversation(_Strict):
    """The conversation itself; `config` is what is set at its scope."""

    id: Id
    title: Annotated[str, Meta(max_length=500)] = ""
    created: Count | None = None
    config: Json = {}
    rev: Annotated[int, Meta(ge=1, le=1 << 53)] = 1


class ExportedUsage(_Strict):
    """Tokens, and cost in US dollars where it is known."""

    input: Count
    output: Count
    reasoning: Count = 0
    cached: Count = 0
    cache_write: Count = 0
    cost_usd: Dollars | None = None


class ExportedError(_Strict):
    """Why a run or a step failed."""

    kind: Name
    message: Name
    retry: bool = False


class ExportedChange(_Strict):
    """A config patch; `step` is how many steps had begun when it came."""

    rev: Count
    patch: Json
    by: Name
    step: Count
    ts: Count | None = None


class ExportedRun(_Strict):
    """A run, as its object in the snapshot."""

    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    status: Literal["queued", "running", "waiting", "paused", "done", "cancelled", "failed", "limit", "interrupted"]
    ts: Count
    usage: ExportedUsage
    by: Name = ""
    client: Name = ""
    step: Count = 0
    model: Name | None = None
    config: Json = {}
    rev: Annotated[int, Meta(ge=1, le=1 << 53)] = 1
    base: Json | None = None
    begun: Count | None = None
    agents: dict[str, Literal["open", "closed"]] = {}
    titles: dict[str, Name] = {}
    changes: Annotated[list[ExportedChange], Meta(max_length=200)] = []
    applied: Json | None = None
    trimmed: Json | None = None
    data: Json | None = None
    answers: dict[str, Json] = {}
    error: ExportedError | None = None


class ExportedPart(_Strict):
    """A piece of a message; `call` names the tool call that it belongs to, `ref` a file."""

    kind: PartKind
    part: Annotated[int, Meta(ge=1, le=1 << 53)] | None = None
    text: str | None = None
    open: bool = False
    partial: bool = False
    call: Id | None = None
    name: Name | None = None
    agent: Name | None = None
    ts: Count | None = None
    ms: Count | None = None
    replay: Json | None = None
    ref: Id | None = None
    mime: Name | None = None


class ExportedMessage(_Strict):
    """A message, and of an assistant's what its step took."""

    msg: Id
    role: Literal["user", "assistant"]
    ts: Count
    parts: list[ExportedPart]
    run: Id | None = None
    agent: Name | None = None
    by: Name | None = None
    parent: Id | None = None
    step: Count | None = None
    model: Name | None = None
    usage: ExportedUsage | None = None
    finish: Name | None = None
    ms: Count | None = None
    request: Name | None = None
    error: ExportedError | None = None
    notes: list[Name] | None = None


class ExportedTool(_Strict):
    """A tool call."""

    run: Id
    name: Name
    status: ToolStatus | Literal["running"]
    ts: Count
    args: Any = None
    origin: Name = ""
    connector: Name | None = None
    title: Name | None = None
    agent: Name | None = None
    risk: Name = ""
    step: Count | None = None
    ends: bool | None = None
    again: Id | None = None
    repeated: Id | None = None
    progress: Json | None = None
    ms: Count | None = None
    result: Any = None
    error: Json | None = None
    ref: Id | None = None


class ExportedOutcome(_Strict):
    """How a question was settled; `by` is null where no person did it."""

    by: Name | None
    choice: Name | None
    client: Name | None = None
    why: Literal["expired", "run"] | None = None
    args: Json | None = None
    data: Json | None = None


class ExportedAsk(_Strict):
    """A question to a person; one without `outcome` is open. What was shown beside it is not exported."""

    run: Id
    kind: Literal["approval", "form", "url", "choice"]
    title: Name
    ts: Count
    options: Annotated[list[Name], Meta(max_length=1000)] = []
    expires_at: Count = 0
    on_expiry: Name = ""
    call: Id | None = None
    name: Name | None = None
    outcome: ExportedOutcome | None = None


class ExportedFile(_Strict):
    """A file that messages or results name; without `data`, in base64, where it is gone or did not fit."""

    mime: Annotated[str, Meta(pattern=MIME)] = ""
    name: Annotated[str, Meta(max_length=200)] = ""
    size: Count | None = None
    data: str | None = None


class Document(Struct, kw_only=True):
    """What an export holds.

    Attributes:
        format, version: `sag.conversation`, 1.
        exported_at: Unix ms.
        conversation, messages, runs, tools: As in the snapshot of `conv:<id>` (protocol section 4).
        asks: Questions: those that are open, and those of which the topic's log still tells.
        files: By the `ref` that names them.
        id: The run's, where one run was exported; there are then `status`, `error_message` and members of the run's
            kind besides.
    """

    format: Literal["sag.conversation"]
    version: Literal[1]
    conversation: ExportedConversation
    messages: list[ExportedMessage]
    runs: dict[Id, ExportedRun]
    tools: dict[Id, ExportedTool] = {}
    files: dict[Id, ExportedFile] = {}
    asks: dict[Id, ExportedAsk] = {}
    exported_at: Count = 0
    id: str | None = None


OUTSIDE = {
    **dict.fromkeys(OPEN, "running"),
    "done": "completed",
    "cancelled": "cancelled",
    "failed": "error",
    "limit": "error",
    "interrupted": "error",
}
"""A run's status in outside words."""


def make_document(state: Json, now: int, run: str | None = None, settled: Json | None = None) -> Json:
    """The document of a conversation, without its files.

    Args:
        state: The conversation's state; the document shares nothing with it that it changes.
        now: Unix ms.
        run: Leave out what does not belong to this run.
        settled: Questions that are closed, by id, as they were opened and with their `outcome`.
    """
    state = _clean(state)
    asks: Json = _clean(settled or {}) | state["asks"]
    messages = [m for m in state["messages"] if run is None or m.get("run") == run]
    kept = {m["msg"] for m in messages}
    out: Json = {
        "format": FORMAT,
        "version": VERSION,
        "exported_at": now,
        "conversation": _redacted(_known(state["conv"], ExportedConversation), "config"),
        "runs": {id: _run(r) for id, r in state["runs"].items() if run in (None, id)},
        "messages": [_message(m, kept) for m in messages],
        "tools": {id: _known(t, ExportedTool) for id, t in state["tools"].items() if run in (None, t["run"])},
        "asks": {id: _known(a, ExportedAsk) for id, a in asks.items() if run in (None, a["run"])},
    }
    if run is not None:
        object = state["runs"][run]
        out = {"id": run, "status": OUTSIDE[object["status"]], "error_message": _why(object), **out}
    return out


def _known(thing: Json, struct: type[Struct]) -> Json:
    return {k: v for k, v in thing.items() if k in struct.__struct_fields__}


def _run(object: Json) -> Json:
    out = _redacted(_known(object, ExportedRun), "config", "base")
    if "changes" in out:
        out["changes"] = [_redacted(_known(change, ExportedChange), "patch") for change in out["changes"]]
    return out


def _message(message: Json, kept: set[str]) -> Json:
    out = _known(message, ExportedMessage)
    out["parts"] = [_known(part, ExportedPart) for part in out["parts"]]
    if out.get("parent") not in kept:
        out.pop("parent", None)
    return out


def _why(object: Json) -> str | None:
    if error := object.get("error"):
        return str(error["message"])
    return "The run was interrupted; it can be resumed." if object["status"] == "interrupted" else None


def _redacted(thing: Json, *members: str) -> Json:
    return {k: redact(v) if k in members else v for k, v in thing.items()}


def redact(config: Any) -> Any:
    """Config without what is secret by its name; it stands as `{"set": true}` (protocol section 6)."""
    if isinstance(config, dict):
        return {
            k: {"set": True} if _SECRET.search(_HUMP.sub("_", k)) and isinstance(v, str | dict | list) else redact(v)
            for k, v in config.items()
        }
    return [redact(v) for v in config] if isinstance(config, list) else config


def _clean(value: Any, depth: int = 0) -> Any:
    """A copy of plain JSON without the secrets that are known; what is nested too deeply is left out."""
    if isinstance(value, str):
        return blot(value)
    if not isinstance(value, dict | list):
        return value
    if depth == DEEPEST:
        return "[nested too deeply]"
    if isinstance(value, dict):
        return {k: _clean(v, depth + 1) for k, v in value.items()}
    return [_clean(v, depth + 1) for v in value]


def file_refs(document: Json) -> dict[str, Json]:
    """The files that a document names: by ref, what is said of them where they are named."""
    out: dict[str, Json] = {}
    for message in document["messages"]:
        for part in message["parts"]:
            if part.get("ref"):
                out.setdefault(part["ref"], {k: part[k] for k in ("mime", "name") if part.get(k)})
    for tool in document["tools"].values():
        for item in content_refs(tool.get("result")):
            out.setdefault(item["ref"], {k: item[k] for k in ("mime", "name") if isinstance(item.get(k), str)})
        if tool.get("ref"):
            out.setdefault(tool["ref"], {})
    return out


def content_refs(result: Any) -> Iterator[Json]:
    """The items of a tool's result that are files."""
    content = result.get("content") if isinstance(result, dict) else None
    for item in content if isinstance(content, list) else ():
        if isinstance(item, dict) and isinstance(item.get("ref"), str):
            yield item
