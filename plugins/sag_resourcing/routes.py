"""The routes of the resource-planning router that clients of it know: `/api/chat`, `/api/health`, `/api/config`.

A chat is a run like any other: devices that are signed in as the same user see it, its tool calls and its questions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from sag.plugin import Fault, Hub, Reply, Request, Sent, Stream, User

Json = dict[str, Any]

MAX_HISTORY = 60_000  # characters


class Said(Struct):
    """A message of a history that the client keeps."""

    role: str
    content: str


class ChatRequest(Struct):
    """The body of `POST /api/chat`.

    Attributes:
        message: What the user says.
        conversation_id: Which conversation goes on; one that the client made up begins a new one under that name.
        history: What was said before, where the client keeps it itself; used in a new conversation alone.
    """

    message: Annotated[str, Meta(min_length=1, max_length=100_000)]
    conversation_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    history: list[Said] = field(default_factory=list)


class Routes:
    """The three routes.

    Args:
        hub: The plugin's hub.
        version: The hub's version.
        prompt: The system prompt of new conversations.
    """

    def __init__(self, hub: Hub[Any], version: str, prompt: str) -> None:
        self._hub, self._version, self._prompt = hub, version, prompt

    async def chat(self, request: Request) -> Reply | Stream:
        """`POST /api/chat`: `{response, conversation_id, model}`, or events where the request accepts them.

        The events are `message` `{delta}`, `retract` `{why}` where what came is void, `tool` `{call, name, origin,
        status}`, and at last `done` with what the answer would have been, or `error` `{error, detail}`.
        """
        asked = await request.json(ChatRequest)
        events = self._run(request.user, request.client or "resourcing", asked)
        if "text/event-stream" in request.headers.get("accept", ""):
            return Stream(Sent(data, name) async for name, data in _begun(await anext(events), events))
        name, data = [event async for event in events][-1]
        return Reply(msgspec.json.encode(data), status=502 if name == "error" else 200)

    async def health(self, request: Request) -> Json:
        """`GET /api/health`: `{status, mcp_servers: {name: "running" | "exited(…)"}, llm}`."""
        servers = {}
        for name, connector in self._hub.connectors.items():
            health = connector.health()
            up = health.status in ("ready", "idle", "starting")
            servers[name] = "running" if up else f"exited({health.data.get('exit', health.error or health.status)})"
        status = "ok" if all(state == "running" for state in servers.values()) else "degraded"
        return {"status": status, "mcp_servers": servers, "llm": self._llm()}

    async def config(self, request: Request) -> Json:
        """`GET /api/config`: `{version, llm, available_tools}`, each tool with the connector that it is of."""
        tools = [{"name": t.name, "server": t.origin, "description": t.description} for t in self._hub.tools]
        return {"version": self._version, "llm": self._llm(), "available_tools": tools}

    def _llm(self, model: str | None = None) -> Json:
        try:
            return dict(msgspec.to_builtins(self._hub.where(model)))
        except Fault as e:
            return {"provider": None, "model": None, "base_url": None, "error": e.message}

    async def _run(self, user: User, client: str, asked: ChatRequest) -> AsyncIterator[tuple[str, Json]]:
        """A run, from its first word to `done` or `error`."""
        told = asked.conversation_id
        conv = await self._find(user, told)
        params: Json = {"input": [{"kind": "text", "text": asked.message}], "when": "queue"}
        if conv is not None:
            params["conv"] = conv
        else:
            params["config"] = {"system": _with_history(self._prompt, asked.history)}
        try:
            started = await self._hub.call(user, "run.start", params, client=client)
        except Fault as e:
            if not e.kind.startswith(("provider.", "model.")):
                raise
            yield "error", {"error": e.kind, "detail": e.message}
            return
        if conv is None:
            conv = started["conv"]
            await self._hub.call(user, "config.patch", {"scope": f"conv:{conv}", "patch": params["config"]})
            if told is not None:
                await self._hub.kv.put(_key(user, told), conv)
        run = started["run"]
        topic = f"conv:{conv}"
        async for name, data in self._follow(user, topic, started["at"][topic] - 1, run):
            yield name, data
        state = await self._hub.state(user.id, topic)
        closed = state["runs"][run]
        place = {"conversation_id": told or conv, "model": self._llm(closed.get("model"))}
        if closed["status"] == "done":
            yield "done", {"response": _answer_of(state, run), **place}
        else:
            error = closed.get("error") or {"kind": f"run.{closed['status']}", "message": "The run did not finish."}
            yield "error", {"error": error["kind"], "detail": error["message"], **place}

    async def _find(self, user: User, told: str | None) -> str | None:
        """The conversation that a client's id stands for: the hub's own id, or one that the client made up."""
        if told is None:
            return None
        kept = await self._hub.kv.get(_key(user, told))
        try:
            await self._hub.call(user, "conversation.get", {"conv": kept or told})
        except Fault as e:
            if e.kind != "conv.unknown":
                raise
            return None
        return str(kept or told)

    async def _follow(self, user: User, topic: str, after: int, run: str) -> AsyncIterator[tuple[str, Json]]:
        """Words and tool calls of a run, until it is closed."""
        parts: set[int] = set()
        calls: set[str] = set()
        async with aclosing(self._hub.subscribe(user.id, topic, after=after)) as events:  # type: ignore[type-var]
            async for name, d in events:
                match name:
                    case "part.open" if d["run"] == run and d["kind"] == "text":
                        parts.add(d["part"])
                    case "delta":
                        for part, text in zip(d[::2], d[1::2], strict=True):
                            if part in parts:
                                yield "message", {"delta": text}
                    case "part.drop" if d["part"] in parts:
                        yield "retract", {"why": d["why"]}
                    case "tool.open" if d["run"] == run:
                        calls.add(d["call"])
                        yield "tool", {"call": d["call"], "name": d["name"], "origin": d["origin"], "status": "running"}
                    case "tool.close" if d["call"] in calls:
                        yield "tool", {"call": d["call"], "status": d["status"]}
                    case "run.close" if d["run"] == run:
                        return


def _key(user: User, told: str) -> str:
    return f"conv {user.id} {told}"[:200]


def _with_history(prompt: str, history: list[Said]) -> str:
    if not history:
        return prompt
    lines = "\n\n".join(f"{'User' if said.role == 'user' else 'Assistant'}: {said.content}" for said in history)
    return f"{prompt}\n\nWhat was said before:\n\n{lines[-MAX_HISTORY:]}"


def _answer_of(state: Json, run: str) -> str:
    """What the model said last in a run."""
    said = [m for m in state["messages"] if m.get("run") == run and m["role"] == "assistant"]
    texts = ["".join(p["text"] for p in m["parts"] if p["kind"] == "text") for m in said]
    return next((text for text in reversed(texts) if text), "")


async def _begun(first: tuple[str, Json], rest: AsyncIterator[tuple[str, Json]]) -> AsyncIterator[tuple[str, Json]]:
    """All events; what went wrong before the first of them was answered with a status."""
    yield first
    async for event in rest:
        yield event
