"""Asks: what the hub wants a person for is state of a conversation's topic (protocol section 5).

The first valid answer wins; the decision is taken between two awaits on the topic's state. Above: the engine and its
runs. Below: topics, approvals.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from sag.errors import Fault
from sag.hooks.schema import check_schema
from sag.hooks.tool import Tool
from sag.ops.dispatch import Call, User
from sag.schema.events import AskClose, AskOpen, InboxAskClose, InboxAskOpen, RunPatch
from sag.schema.ids import new_id, now_ms
from sag.topics.topic import Transaction

if TYPE_CHECKING:
    from sag.engine.engine import Conversation, Engine
    from sag.engine.run import Run

Json = dict[str, Any]


class Answer(Struct):
    """How an ask was settled: the choice, None where nobody made one; a form's data; edited arguments."""

    choice: str | None
    data: Json | None = None
    args: Json | None = None
    by: str | None = None


class Asks:
    """All open asks.

    Args:
        engine: Whose runs ask.
        wait_s: How long an ask stays open unless it says otherwise.
    """

    def __init__(self, engine: Engine, wait_s: float) -> None:
        self._engine = engine
        self._wait_s = wait_s
        self._futures: dict[str, asyncio.Future[Answer]] = {}
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def open(
        self,
        tx: Transaction,
        home: Conversation,
        run: str,
        kind: Literal["approval", "form", "url", "choice"],
        title: str,
        options: list[str],
        *,
        call: str | None = None,
        name: str | None = None,
        subject: Json | None = None,
        schema: Json | None = None,
        url: str | None = None,
        expires_s: float | None = None,
        on_expiry: str = "deny",
    ) -> str:
        """Open an ask with a transaction; `settled` waits for it once that is committed."""
        ask, now = new_id("a"), now_ms()
        expires_at = now + round((expires_s or self._wait_s) * 1000)
        opened = AskOpen(ask, run, kind, title, options, expires_at, on_expiry, now, call, subject, schema, url, name)
        tx.append(home.topic, opened)
        tx.append(home.inbox, InboxAskOpen(ask, home.id, run, kind, title))
        return ask

    async def settled(self, run: Run, ask: str) -> Answer:
        """Wait for the outcome of an open ask of a run."""
        future = self._futures.get(ask)
        if future is None:
            future = self._futures[ask] = asyncio.get_running_loop().create_future()
        if not future.done() and ask not in self._expiry and (opened := run.state["asks"].get(ask)):
            delay_s = max(0.0, (opened["expires_at"] - now_ms()) / 1000)
            loop = asyncio.get_running_loop()
            self._expiry[ask] = loop.call_later(min(delay_s, 86_400.0 * 20), self._expire, run.home, ask)
        try:
            return await future
        finally:
            self._futures.pop(ask, None)
            if timer := self._expiry.pop(ask, None):
                timer.cancel()

    def _expire(self, home: Conversation, ask: str) -> None:
        self._expiry.pop(ask, None)
        opened = home.topic.state["asks"].get(ask)
        if opened is None or home.topic.lost:
            return
        tx = self._engine.topics.begin()
        self.settle(tx, home, ask, AskClose(ask, None, opened["on_expiry"], why="expired"))
        tx.submit()

    def give_up(self, tx: Transaction, home: Conversation, ask: str) -> None:
        """Close an ask with a transaction, for whoever asked wants no answer any more."""
        self.settle(tx, home, ask, AskClose(ask, None, None, why="run"))

    def settle(self, tx: Transaction, home: Conversation, ask: str, close: AskClose) -> None:
        """Close an ask with a transaction. The outcome of one that a run kind named is kept with its run."""
        opened = home.topic.state["asks"][ask]
        tx.append(home.topic, close)
        if opened.get("name") and close.why != "run":
            outcome = {"choice": close.choice, "data": close.data, "by": close.by}
            tx.append(home.topic, RunPatch(opened["run"], {"answers": {opened["name"]: outcome}}))
        tx.append(home.inbox, InboxAskClose(ask, home.id))
        answer = Answer(close.choice, close.data, close.args, close.by)

        def tell() -> None:
            future = self._futures.setdefault(ask, asyncio.get_running_loop().create_future())
            if not future.done():
                future.set_result(answer)

        if close.why != "run":
            tx.after(tell)

    async def answer(self, call: Call, ask: str, choice: str, data: Json | None) -> Json:
        """Settle an ask. The first valid answer wins (protocol section 5).

        Raises:
            Fault: ask.unknown, ask.closed with the outcome, ask.invalid.
        """
        user = call.me
        topic = next((t for t in self._engine.live_topics(user) if ask in t.state["asks"]), None)
        if topic is None:
            raise await self._no_ask(user, ask)
        opened = topic.state["asks"][ask]
        if choice not in opened["options"]:
            raise Fault("ask.invalid", f"Choose one of {', '.join(opened['options'])}.", path="$.choice")
        home = self._engine.home_of(topic)
        tx: Transaction = call.tx
        close = AskClose(ask, user.id, choice, call.client or None)
        if opened["kind"] == "approval":
            subject = opened.get("subject") or {}
            key = str(subject.get("key") or subject.get("tool", ""))
            run = self._engine.find(topic, opened["run"])
            tool = run.tool(key, opened.get("call")) if run is not None else None
            if choice != "deny" and data and "args" in data:
                if "args" not in subject:
                    raise Fault("ask.invalid", "There are no arguments to edit.", path="$.data.args")
                close.args = _edited(tool, data["args"])
            # What was shown is what is allowed, whatever the tool has become meanwhile.
            if choice == "allow_run":
                tx.append(topic, RunPatch(opened["run"], {"allow": {key: subject.get("fingerprint", True)}}))
            if choice == "allow_always":
                definition = {"input": opened.get("schema"), "risk": subject.get("risk")}
                if tool is not None and tool.fingerprint == subject.get("fingerprint"):
                    definition = tool.definition
                self._engine.approvals.remember(tx, user, key, "auto", subject.get("fingerprint"), definition)
        elif opened["kind"] == "form" and choice == opened["options"][0]:
            close.data = check_schema(opened.get("schema") or {}, data if data is not None else {}, "ask.invalid")
        self.settle(tx, home, ask, close)
        outcome = {k: v for k, v in msgspec.to_builtins(close).items() if k != "ask"}
        return {"ask": ask, "outcome": outcome, "at": {topic.name: topic.tip}}

    async def _no_ask(self, user: User, ask: str) -> Fault:
        for topic in self._engine.live_topics(user):
            await topic.settled()
        rows = await self._engine.topics.journal.rows("ask", {"id": ask, "owner": user.id})
        if not rows:
            return Fault("ask.unknown")
        return Fault("ask.closed", outcome=msgspec.json.decode(rows[0]["outcome"] or b"null"))


def _edited(tool: Tool | None, args: Any) -> Json:
    if not isinstance(args, dict):
        raise Fault("ask.invalid", "Edited arguments are an object.", path="$.data.args")
    if tool is not None:
        try:
            tool.check(args)
        except Fault as e:
            path = str(e.data.get("path", "$")).replace("$", "$.data.args", 1)
            raise Fault("ask.invalid", e.message, path=path) from None
    return args
