"""Operations that give runs and conversations out as files, and take conversations in.

`json` is the document itself (`sag.engine.export`); other formats are plugins' (`hub.add_exporter`). What takes long is
done in threads, and no one waits for it longer than `RENDER_S`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from sag.engine.config import defaults, fitting, layered, validate
from sag.engine.ends import EXITS
from sag.engine.engine import Engine
from sag.engine.export import MIME, file_refs, make_document, redact
from sag.engine.restore import Restored, parse, restore
from sag.errors import Fault
from sag.hooks.hub import ExportedFile, Rendered
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change, Params, operation
from sag.schema.events import Event, InboxConv
from sag.schema.ids import now_ms
from sag.settings import Limits
from sag.topics.merge import encode
from sag.topics.topic import Topic, Transaction

log = logging.getLogger("sag.api")
Json = dict[str, Any]
T = TypeVar("T")

RENDER_S = 120.0
THREADS = 2
JSON = "application/json"
ANSWER_ROOM = 2048  # bytes of a frame around a result
FILE_ROOM = 1024  # bytes of a document around a file's data
NAME = 60
READ = 1 << 20  # bytes of a log at a time
SLICE = 500  # events between which others have their turn, some 5 ms


class RunExport(Params):
    """Which run, in which format: `json`, or one that a plugin offers."""

    run: str
    format: str = "json"


class ConversationExport(Params):
    """Which conversation, in which format: `json`, or one that a plugin offers."""

    conv: str
    format: str = "json"


class ExportFormat(Struct):
    """A format: how it is named, which is how names of such files end, and its media type."""

    format: str
    mime: str


class ExportFormats(Struct):
    """The formats of the hub: `json`, and those that plugins offer, by name."""

    formats: list[ExportFormat]


class RunExported(Struct, omit_defaults=True):
    """A run as a file called `name`: its `text`, or where that is no text or too long, the `ref` of the kept file.

    `notes` say what the file does not show as it should.
    """

    run: str
    format: str
    mime: str
    name: str
    text: str | None = None
    ref: str | None = None
    notes: list[str] = []


class ConversationExported(Struct, omit_defaults=True):
    """A conversation as a file; as of a run."""

    conv: str
    format: str
    mime: str
    name: str
    text: str | None = None
    ref: str | None = None
    notes: list[str] = []


class ConversationImport(Change):
    """An exported document, or the `ref` of an uploaded file that holds one."""

    document: Json | None = None
    ref: str | None = None


class ConversationImported(Struct):
    """The new conversation, and from which offset it is visible whole."""

    conv: str
    at: dict[str, int]


class Exports:
    """Operations on exported files.

    Args:
        engine: Whose conversations they are.
        limits: How large a frame and a body may be.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._slots = asyncio.Semaphore(THREADS)

    @operation("export.formats", who="user", rest="GET /api/export")
    async def formats(self, call: Call, params: Params) -> ExportFormats:
        """The formats in which runs and conversations can be had."""
        offered = self._engine.extensions.exporters
        known = [ExportFormat(name, offered[name].mime) for name in sorted(offered)]
        return ExportFormats([ExportFormat("json", JSON), *known])

    @operation("run.export", who="user", rest="GET /api/runs/{run}/export")
    async def run(self, call: Call, params: RunExport) -> RunExported:
        """A run as a file: the transcript so far, with its agents, tool calls, config changes and usage."""
        topic = await self._engine.run_topic(call.me, params.run)
        made = await self._make(call.me, topic, params.run, params.format)
        text, ref = await self._place(call.me, made)
        return RunExported(params.run, params.format, made.mime, made.name, text, ref, made.notes)

    @operation("conversation.export", who="user", rest="GET /api/conversations/{conv}/export")
    async def conversation(self, call: Call, params: ConversationExport) -> ConversationExported:
        """A conversation as a file; in the format `json` an import gives it back."""
        topic = await self._engine.topic(call.me, params.conv)
        made = await self._make(call.me, topic, None, params.format)
        text, ref = await self._place(call.me, made)
        return ConversationExported(params.conv, params.format, made.mime, made.name, text, ref, made.notes)

    async def make(self, user: User, id: str, format: str) -> ExportedFile:
        """A run or a conversation, by its id, as a file that is not kept.

        Raises:
            Fault: conv.unknown, format.unknown, export.failed, export.timeout.
        """
        try:
            topic = await self._engine.run_topic(user, id)
        except Fault as e:
            if e.kind != "run.unknown":
                raise
            return await self._make(user, await self._engine.topic(user, id), None, format)
        return await self._make(user, topic, id, format)

    async def _make(self, user: User, topic: Topic, run: str | None, format: str) -> ExportedFile:
        exporter = self._engine.extensions.exporters.get(format)
        if exporter is None and format != "json":
            known = ["json", *sorted(self._engine.extensions.exporters)]
            raise Fault("format.unknown", f"There is no format {format!r:.40}; use {', '.join(known)}.", formats=known)
        document = await self._document(user, topic, run)
        name = f"{_slug(document['conversation'].get('title', ''))}.{format}"
        if exporter is None:
            text = await self._in_thread(lambda: msgspec.json.format(encode(document)))
            return ExportedFile(name, JSON, text, [])
        try:
            rendered = await self._in_thread(lambda: exporter.render(document))
        except Fault:
            raise
        except Exception as e:
            log.exception("exporter %s failed", format)
            raise Fault("export.failed", f"The format {format!r} failed ({type(e).__name__}).") from None
        made = rendered if isinstance(rendered, Rendered) else Rendered(rendered)
        for note in made.notes:
            log.warning("export of %s as %s: %s", run or topic.name, format, note)
        return ExportedFile(name, exporter.mime, made.data, list(made.notes))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Work in a thread, few at a time; it cannot be ended, but nobody waits for it longer than `RENDER_S`.

        Raises:
            Fault: export.timeout.
        """

        def over(future: asyncio.Future[T]) -> None:
            self._slots.release()
            future.exception()  # whoever waited may be gone

        try:
            async with asyncio.timeout(RENDER_S):
                await self._slots.acquire()
                future = asyncio.get_running_loop().run_in_executor(None, work)
                future.add_done_callback(over)
                return await asyncio.shield(future)
        except TimeoutError:
            raise Fault("export.timeout") from None

    # the document

    async def _document(self, user: User, topic: Topic, run: str | None) -> Json:
        off, text = await topic.shown(lambda: (topic.tip, encode(topic.state)))
        settled = await self._settled(topic, off)
        document = await self._in_thread(lambda: make_document(msgspec.json.decode(text), now_ms(), run, settled))
        if run is not None:
            document = {**self._of_kind(document["runs"][run]), **document}
        document["files"] = await self._files(user, document)
        return document

    async def _settled(self, topic: Topic, upto: int) -> Json:
        """The questions that are closed, as far as the topic's log still has them; the state has none of them."""
        opened: Json = {}
        settled: Json = {}
        after = topic.first - 1
        while after < upto and (entries := await self._engine.topics.journal.read(topic.tid, after, upto, READ)):
            after = entries[-1].off
            for entry in entries:
                if entry.name in ("ask.open", "ask.close"):
                    d = msgspec.json.decode(entry.body)
                    ask = d.pop("ask")
                    if entry.name == "ask.open":
                        opened[ask] = d
                    elif ask in opened:
                        settled[ask] = {**opened[ask], "outcome": d}
        return settled

    def _of_kind(self, object: Json) -> Json:
        """What the run's kind adds to its export."""
        kind = self._engine.extensions.kinds.get(object["kind"])
        if kind is None or kind.exported is None:
            return {}
        effective = layered(defaults(kind.config), object.get("base") or {}, object.get("config") or {})
        try:
            members: Json = redact(msgspec.to_builtins(kind.exported(object, effective)))
        except (Exception, *EXITS):
            log.exception("run kind %s: exported() failed", kind.name)
            return {}
        return members

    async def _files(self, user: User, document: Json) -> Json:
        """The files that a document names, with their data as long as it all fits a body."""
        files: Json = {}
        refs = file_refs(document)
        if not refs:
            return files
        room = self._limits.body - await self._in_thread(lambda: len(msgspec.json.format(encode(document))))
        for ref, told in refs.items():
            room -= FILE_ROOM
            try:
                blob = await self._engine.blobs.info(user.id, ref)
                mime = blob.mime if re.search(MIME, blob.mime) else "application/octet-stream"
                files[ref] = {"mime": mime, "name": blob.name[:200], "size": blob.size}
                if (size := -(-blob.size // 3) * 4) <= room:
                    _, data = await self._engine.blobs.get(user.id, ref)
                    files[ref]["data"] = base64.b64encode(data).decode()
                    room -= size
            except Fault as e:
                log.warning("file %s is left out of an export: %s", ref, e.message)
                files.setdefault(ref, {k: v[:200] for k, v in told.items() if k == "name" or re.search(MIME, v)})
        return files

    async def _place(self, user: User, made: ExportedFile) -> tuple[str | None, str | None]:
        """The file as text that fits an answer, else the ref of a kept one."""
        if made.mime.partition(";")[0] in (JSON, "text/markdown", "text/html", "text/plain"):
            text = made.data.decode()
            if len(encode(text)) + len(encode(made.notes)) <= self._limits.frame - ANSWER_ROOM:
                return text, None
        kept = await self._engine.blobs.put(user.id, made.data, made.mime, made.name)
        return None, kept.ref

    # import

    @operation("conversation.import", who="user", rest="POST /api/conversations/import")
    async def take_in(self, call: Call, params: ConversationImport) -> ConversationImported:
        """Make a conversation of an exported one: the same messages, runs, tool calls and files under new ids.

        Everything in it is closed; a run that went on is `interrupted`.
        """
        if (params.document is None) == (params.ref is None):
            raise Fault("rpc.params", "Give either `document` or `ref`.", path="$.document")
        raw: Any = params.document
        if params.ref is not None:
            _, raw = await self._engine.blobs.get(call.me.id, params.ref)
        now, user = now_ms(), call.me
        made = await self._in_thread(lambda: restore(parse(raw), user.id, now, self._limits.frame))
        self._check_config(made)
        rows = [(await self._engine.blobs.write(user.id, f.data, f.mime, f.name, f.ref))[1] for f in made.files]
        inbox = await self._engine.topics.get(user.id, "user:me")
        tx, topic = await self._fill(user, made)
        tx.append(inbox, InboxConv(made.conv, {"title": made.title, "created": made.created, "updated": now}))
        tx.put(*rows)
        call.carry(tx)
        return ConversationImported(made.conv, {topic.name: topic.tip})

    async def _fill(self, user: User, made: Restored) -> tuple[Transaction, Topic]:
        """A transaction with all events. Nobody knows the topic yet, so others may have their turn in between."""
        topics = self._engine.topics
        topic = topics.create(user.id, f"conv:{made.conv}")
        tx = topics.begin()
        try:
            for i, event in enumerate(made.events, 1):
                if isinstance(event, Event):
                    tx.append(topic, event)
                else:
                    tx.add_deltas(topic, event)
                if i % SLICE == 0:
                    await asyncio.sleep(0)
        except BaseException:
            topics.discard(topic)
            raise
        return tx, topic

    def _check_config(self, made: Restored) -> None:
        """A conversation's config is a layer of its next run.

        Raises:
            Fault: import.invalid.
        """
        kind = self._engine.extensions.kinds.get(made.kind)
        if kind is not None:
            try:
                validate(fitting(made.config, kind.config), kind.config)
            except Fault as e:
                path = str(e.data.get("path", "$")).replace("$", "$.conversation.config", 1)
                raise Fault("import.invalid", e.message, path=path) from None


def _slug(title: str) -> str:
    """A title as the name of a file, in letters and digits of any script."""
    words = re.sub(r"[\W_]+", "-", title)[:NAME].strip("-")
    return words or "conversation"
