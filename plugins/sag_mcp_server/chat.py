"""The tool `chat`: a host talks with the hub's assistant, in a conversation that every device of its user sees.

A run is started as from any device. What happens is read from its transcript, now and then, so that the host is told
what there is by now. What the run asks is asked in the host too, where that can; the first answer wins.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sag.plugin import Fault, Hub, Result, TextContent, Tool, ToolError, User, tool
from sag_mcp_server.context import CLIENT, HostContext

Json = dict[str, Any]

LOOK_S = 0.25  # between two looks at a run
QUIET_S = 2.0  # after which it is looked at, whatever was heard of it
SHOWN = 2000  # characters of the text so far
LONGEST_S = 86_400.0
_OPEN = frozenset({"queued", "running", "waiting", "paused"})
_MESSAGE = Meta(min_length=1, max_length=200_000, description="What to say to the assistant.")
_CONVERSATION = Meta(
    description="The conversation to go on with, as an earlier answer named it; a new one if left out."
)
_MODEL = Meta(max_length=200, description="The model to use, provider/model; the user's own if left out.")
_SYSTEM = Meta(max_length=100_000, description="A system prompt for this message.")


class Answer(Struct):
    """What the assistant answered.

    Attributes:
        text: The answer.
        conversation: To go on with.
        status: done, or limit where the run had no rounds left.
    """

    text: str
    conversation: str
    status: str


def make_chat(hub: Hub[Any]) -> Tool:
    """The tool."""

    @tool(risk="write", timeout_s=LONGEST_S)
    async def chat(
        message: Annotated[str, _MESSAGE],
        conversation: Annotated[str, _CONVERSATION] | None = None,
        model: Annotated[str, _MODEL] | None = None,
        system: Annotated[str, _SYSTEM] | None = None,
        *,
        ctx: HostContext,
    ) -> Result:
        """Ask the hub's assistant, which has models, tools and its user's conversations of its own."""
        config = {k: v for k, v in (("model", model), ("system", system)) if v is not None}
        params: Json = {"input": [{"kind": "text", "text": message}], "config": config}
        started = await hub.call(
            ctx.user,
            "run.start",
            params | ({"conv": conversation} if conversation is not None else {}),
            client=CLIENT,
        )
        talk = Talk(hub, ctx, str(started["conv"]), str(started["run"]))
        return await talk.follow()

    chat.title = "Ask the assistant"
    schema = msgspec.json.schema(Answer, ref_template="#/$defs/{name}")
    chat.output = {k: v for k, v in schema["$defs"]["Answer"].items() if k != "title"}
    return chat


class Talk:
    """One run, as the host that started it is told of it."""

    def __init__(self, hub: Hub[Any], ctx: HostContext, conv: str, run: str) -> None:
        self._hub, self._ctx, self._conv, self._run = hub, ctx, conv, run
        self._user: User = ctx.user
        self._woken, self._closed = asyncio.Event(), asyncio.Event()
        self._steps = 0
        self._shown = ""
        self._open: Json = {}
        self._news_of_asks = True
        self._asks: dict[str, asyncio.Task[None]] = {}

    async def follow(self) -> Result:
        """Wait for the answer.

        Raises:
            ToolError: The run ended without one.
        """
        hearing = asyncio.create_task(self._hear())
        try:
            while True:
                self._woken.clear()
                view = await self._look()
                if view["run"]["status"] not in _OPEN:
                    return self._answer(view)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_S):
                        await self._woken.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._closed.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(RuntimeError):  # the hub goes down, and ends its runs by itself
                self._hub.spawn(self._cancel())
            raise
        finally:
            for task in (hearing, *self._asks.values()):
                task.cancel()

    async def _hear(self) -> None:
        with contextlib.suppress(Fault):  # the conversation was deleted
            async for name, d in self._hub.subscribe(self._user.id, f"conv:{self._conv}"):
                if name == "run.close" and d["run"] == self._run:
                    self._closed.set()
                self._news_of_asks |= name in ("ask.open", "ask.close")
                self._woken.set()

    async def _cancel(self) -> None:
        with contextlib.suppress(Fault):  # it has ended meanwhile
            await self._hub.call(self._user, "run.cancel", {"run": self._run}, client=CLIENT)

    async def _look(self) -> Json:
        """Read the run, and tell what is new of it."""
        state = await self._hub.state(self._user.id, f"conv:{self._conv}")
        view: Json = {
            "run": state["runs"][self._run],
            "messages": [m for m in state["messages"] if m.get("run") == self._run],
            "tools": {id: tool for id, tool in state["tools"].items() if tool["run"] == self._run},
        }
        if self._news_of_asks or (view["run"]["status"] == "waiting" and not self._open):
            self._news_of_asks = False
            self._open = {id: ask for id, ask in state["asks"].items() if ask["run"] == self._run}
        await self._tell(view)
        for id in self._asks.keys() - self._open.keys():
            self._asks.pop(id).cancel()
        for id in self._open.keys() - self._asks.keys():
            self._asks[id] = asyncio.create_task(self._ask(id, self._open[id]))
        return view

    async def _tell(self, view: Json) -> None:
        busy = [tool.get("title") or tool["name"] for tool in view["tools"].values() if tool["status"] == "running"]
        words = [_text(view)[-SHOWN:], *(f"[{name} …]" for name in busy)]
        words += [f"[waits for an answer: {ask['title']}]" for ask in self._open.values()]
        if (shown := "\n".join(word for word in words if word)) != self._shown:
            self._shown, self._steps = shown, self._steps + 1
            await self._ctx.progress(self._steps, None, shown)

    async def _ask(self, id: str, ask: Json) -> None:
        """Ask what the run asks, in the host; where that cannot, the question waits on the user's devices."""
        title, subject = ask["title"], ask.get("subject") or {}
        if ask["kind"] == "approval" and "args" in subject:
            title = f"{title}\n{msgspec.json.encode(subject['args']).decode()[:SHOWN]}"
        try:
            choice, data = await self._ctx.ask(
                title,
                schema=ask.get("schema") if ask["kind"] == "form" else None,
                url=ask.get("url") if ask["kind"] == "url" else None,
                options=ask["options"],
            )
        except ToolError as e:
            self._ctx.log.info("%s", e)
            return
        if choice is None and self._ctx.gone:
            return
        answer = {"ask": id, "choice": choice if choice in ask["options"] else ask["on_expiry"]}
        with contextlib.suppress(Fault):  # somebody was faster
            await self._hub.call(
                self._user, "ask.answer", answer | ({"data": data} if data is not None else {}), client=CLIENT
            )

    def _answer(self, view: Json) -> Result:
        run, text = view["run"], _text(view)
        if run["status"] not in ("done", "limit"):
            why = (run.get("error") or {}).get("message") or f"The run was {run['status']}."
            raise ToolError(f"{why} (conversation {self._conv})")
        answer = Answer(text, self._conv, run["status"])
        return Result([TextContent(f"{text}\n\n[conversation {self._conv}]")], answer)


def _text(view: Json) -> str:
    """The newest that the assistant said in the run."""
    for message in reversed(view["messages"]):
        if message["role"] == "assistant":
            text = "".join(part["text"] for part in message["parts"] if part["kind"] == "text")
            if text:
                return text
    return ""
