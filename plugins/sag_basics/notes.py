"""Notes, each user's own: tools for models, an operation and a topic for frontends.

The plugin's keys are the truth; the topic `basics:notes` follows them within the same commit.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any
from urllib.parse import quote

from msgspec import Meta, Struct

from sag.plugin import Call, Event, Hub, Params, ToolContext, ToolError, User, event, operation

MAX_NOTES = 1_000
MAX_TEXT = 4_000


@event("basics", "note.add")
class NoteAdd(Event):
    """A note was written. `ts` is Unix time in milliseconds."""

    id: str
    text: str
    ts: int


@event("basics", "note.drop")
class NoteDrop(Event):
    """A note was deleted."""

    id: str


def fold(state: dict[str, Any], name: str, d: dict[str, Any]) -> None:
    """The fold of `basics:notes`; its state is `{notes: {id: {text, ts}}}`."""
    if name == "note.add":
        state["notes"][d["id"]] = {"text": d["text"], "ts": d["ts"]}
    elif name == "note.drop":
        state["notes"].pop(d["id"], None)


class Note(Struct):
    """A note. `ts` is when it was written, Unix time in milliseconds."""

    id: str
    text: str
    ts: int


class NoteList(Struct):
    """A user's notes, the oldest first."""

    notes: list[Note]


class Notes:
    """The notes of all users.

    Args:
        hub: The plugin's hub.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._kv, self._topic = hub.kv, hub.topic("notes")

    async def add(
        self,
        text: Annotated[
            str, Meta(min_length=1, max_length=MAX_TEXT, description="What to remember, in the user's own words.")
        ],
        *,
        ctx: ToolContext,
    ) -> dict[str, Any]:
        """Write a note that the user keeps across conversations; gives the note's id.

        Use it when the user asks to note, remember or write down something.
        """
        notes = await self._of(ctx.user)
        if len(notes) >= MAX_NOTES:
            raise ToolError(f"There are {MAX_NOTES} notes already; delete some first.")
        taken = {note.id for note in notes}
        id = next(id for id in iter(lambda: secrets.token_hex(2), None) if id not in taken)
        # Notes of one millisecond, or from before the clock was set back, keep their order.
        note = Note(id, text, max(time.time_ns() // 1_000_000, notes[-1].ts + 1 if notes else 0))
        value = {"text": text, "ts": note.ts}
        await self._topic.publish(ctx.user.id, NoteAdd(id, text, note.ts), keep={_key(ctx.user, id): value})
        return {"id": id, "text": text}

    async def list_all(self, *, ctx: ToolContext) -> dict[str, Any]:
        """List the user's notes with their ids, the oldest first."""
        return {"notes": [{"id": n.id, "text": n.text, "written": _iso(n.ts)} for n in await self._of(ctx.user)]}

    async def delete(
        self,
        id: Annotated[str, Meta(max_length=40, description="The note's id, as note_list or note_add gave it.")],
        *,
        ctx: ToolContext,
    ) -> dict[str, Any]:
        """Delete one of the user's notes for good. The user is asked before it happens."""
        notes = {note.id: note for note in await self._of(ctx.user)}
        if id not in notes:
            known = f"the ids are {', '.join(list(notes)[-20:])}." if notes else "there are no notes."
            raise ToolError(f"There is no note {id!r}; {known}")
        await self._topic.publish(ctx.user.id, NoteDrop(id), keep={_key(ctx.user, id): None})
        return {"deleted": id, "text": notes[id].text}

    @operation("note.list", who="user", rest="GET /api/notes")
    async def answer_list(self, call: Call, params: Params) -> NoteList:
        """The caller's notes, the oldest first."""
        return NoteList(await self._of(call.me))

    async def _of(self, user: User) -> list[Note]:
        prefix = _key(user, "")
        found = await self._kv.list(prefix)
        notes = [Note(key.removeprefix(prefix), value["text"], value["ts"]) for key, value in found.items()]
        return sorted(notes, key=lambda note: (note.ts, note.id))


def _key(user: User, id: str) -> str:
    return f"{quote(user.id, safe='@')}/{id}"  # a user's id may come from elsewhere and hold a slash


def _iso(ts: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ts / 1000))
