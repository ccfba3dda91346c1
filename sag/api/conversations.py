"""Operations on conversations and their messages."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sag.engine.engine import Engine
from sag.errors import Fault
from sag.ops.dispatch import Call
from sag.ops.operation import Change, Params, operation
from sag.topics.journal import Journal
from sag.topics.merge import encode
from sag.topics.snapshot import newest
from sag.topics.topic import Topic

Json = dict[str, Any]
ANSWER_ROOM = 1024  # bytes of a frame around a result


class ConversationList(Params):
    """How many, the last changed first."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ConversationInfo(Struct):
    """A conversation as it is listed. Times in Unix ms."""

    conv: str
    title: str
    created: int
    updated: int


class ConversationListed(Struct):
    """Conversations, the last changed first."""

    conversations: list[ConversationInfo]


class ConversationRef(Params):
    """Which conversation."""

    conv: str


class ConversationView(Struct):
    """A conversation's state at an offset of its topic, as 'Writing a client' explains it."""

    conv: str
    gen: str
    off: int
    snap: Json


class ConversationCreate(Change):
    """Its title; left out, the start of its first message becomes it."""

    title: Annotated[str, Meta(max_length=200)] = ""


class ConversationCreated(Struct):
    """A conversation in which nothing has been said; `at` says from which offset of its topic it is there."""

    conv: str
    at: dict[str, int]


class ConversationUpdate(Change):
    """A new title."""

    conv: str
    title: Annotated[str, Meta(min_length=1, max_length=200)]


class ConversationDelete(Change):
    """Which conversation."""

    conv: str


class Changed(Struct):
    """Done; `at` says from which offset of which topic it is visible."""

    at: dict[str, int]


class MessageList(Params):
    """The messages before one, the newest that fit."""

    conv: str
    before: str | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class MessageListed(Struct, omit_defaults=True):
    """Messages in order with what belongs to them; `before` is the oldest included, where there are more."""

    messages: list[Json]
    runs: Json
    tools: Json
    before: str | None = None


class Conversations:
    """Operations on conversations."""

    def __init__(self, engine: Engine, journal: Journal, frame: int) -> None:
        self._engine, self._journal, self._frame = engine, journal, frame

    @operation("conversation.list", who="user", rest="GET /api/conversations")
    async def list(self, call: Call, params: ConversationList) -> ConversationListed:
        """The user's conversations."""
        rows = await self._journal.rows("conversation", {"owner": call.me.id}, order="-updated", limit=params.limit)
        return ConversationListed([ConversationInfo(r["id"], r["title"], r["created"], r["updated"]) for r in rows])

    @operation("conversation.get", who="user", rest="GET /api/conversations/{conv}")
    async def get(self, call: Call, params: ConversationRef) -> ConversationView:
        """A conversation as it is now."""
        topic = await self._engine.topic(call.me, params.conv)
        off, text = await topic.shown(lambda: (topic.tip, encode(topic.state)))
        return ConversationView(params.conv, topic.gen, off, msgspec.json.decode(text))

    @operation("conversation.create", who="user", rest="POST /api/conversations")
    async def create(self, call: Call, params: ConversationCreate) -> ConversationCreated:
        """Make a conversation before anything is said in it; `run.start` without one makes it along with its run."""
        conv, at = await self._engine.create(call, params.title)
        return ConversationCreated(conv, {f"conv:{conv}": at})

    @operation("conversation.update", who="user", rest="PATCH /api/conversations/{conv}")
    async def update(self, call: Call, params: ConversationUpdate) -> Changed:
        """Rename a conversation."""
        at = await self._engine.rename(call, params.conv, {"title": params.title})
        return Changed({f"conv:{params.conv}": at})

    @operation("conversation.delete", who="user", rest="DELETE /api/conversations/{conv}")
    async def delete(self, call: Call, params: ConversationDelete) -> Changed:
        """Delete a conversation with all that is in it; its runs end first."""
        return Changed({"user:me": await self._engine.delete(call, params.conv)})

    @operation("message.list", who="user", rest="GET /api/conversations/{conv}/messages")
    async def messages(self, call: Call, params: MessageList) -> MessageListed:
        """Older messages of a conversation."""
        topic = await self._engine.topic(call.me, params.conv)
        text = await topic.shown(lambda: encode(self._page(topic, params)))
        return msgspec.json.decode(text, type=MessageListed)

    def _page(self, topic: Topic, params: MessageList) -> MessageListed:
        messages = topic.state["messages"]
        if params.before is not None:
            at = next((i for i, m in enumerate(messages) if m["msg"] == params.before), None)
            if at is None:
                raise Fault("message.unknown")
            messages = messages[:at]
        chosen = messages[-params.limit :]
        view = newest(topic.state, chosen, self._frame - ANSWER_ROOM)
        if view is None:
            return MessageListed([], {}, {})
        if len(chosen) < len(messages) and view["messages"]:
            view.setdefault("before", view["messages"][0]["msg"])
        return MessageListed(view["messages"], view["runs"], view["tools"], view.get("before"))
