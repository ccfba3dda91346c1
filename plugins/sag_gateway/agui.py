"""AG-UI: `POST /agui` and `POST /agui/{kind}`, which answer a `RunAgentInput` with the events of a run.

A thread is a conversation of the hub's, which keeps the transcript: what the client sends of it counts where the thread
is new. The client's tools and the run's questions end the answer, and the client's next request goes on with the run.
Above: the hub, which has checked who asks. Below: `telling` and `exchange`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from sag.plugin import Fault, Hub, Part, Request, Sent, Stream, TextPart, User, legal_name
from sag_gateway.completion import KIND, Given, client_tool
from sag_gateway.exchange import Exchange, Exchanges, Reply
from sag_gateway.files import decoded, fetch, input_of, refuse
from sag_gateway.messages import NAME, retold
from sag_gateway.telling import Telling
from sag_gateway.threads import Thread, Threads

Json = dict[str, Any]

CLIENT = "agui"
VERSION = "1.0"


class AguiTool(Struct):
    """A tool of the frontend's."""

    name: str
    description: str = ""
    parameters: Any = None


class AguiContext(Struct):
    """Something that the model is to know."""

    description: str
    value: str


class Resumed(Struct, rename="camel"):
    """The answer to an interrupt."""

    interrupt_id: str
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunInput(Struct, rename="camel"):
    """The body: AG-UI's `RunAgentInput`, as far as it is read.

    Attributes:
        forwarded_props: `model` is the model to use, `config` a patch on the config of the run kind.
    """

    thread_id: Annotated[str, Meta(min_length=1, max_length=1000)]
    run_id: str
    messages: list[Json]
    state: Any = None
    tools: list[AguiTool] | None = None
    context: list[AguiContext] | None = None
    forwarded_props: Any = None
    resume: list[Resumed] | None = None
    protocol_version: str | None = None


class Agui:
    """The routes.

    Args:
        hub: The plugin's hub.
        exchanges: What begins runs.
        threads: Which conversations clients name.
    """

    def __init__(self, hub: Hub[Any], exchanges: Exchanges, threads: Threads) -> None:
        self._hub, self._exchanges, self._threads = hub, exchanges, threads

    async def run(self, request: Request) -> Stream:
        """`POST /agui`, `POST /agui/{kind}`: the events of a run."""
        asked = await request.json(RunInput, large=True)
        for tool in asked.tools or ():
            if not NAME.fullmatch(tool.name):
                raise refuse("tools", f"{tool.name[:80]!r} is no name: 1 to 64 letters, digits, `_` or `-`.")
        kind = request.path.get("kind", "chat")
        events = self._events(request.user, request.client or CLIENT, asked, KIND if kind == "chat" else kind)
        first = await anext(events)  # what cannot begin is an HTTP error
        return Stream(_sent(first, events))

    async def _events(self, user: User, client: str, asked: RunInput, kind: str) -> AsyncGenerator[Json]:
        place = {"threadId": asked.thread_id, "runId": asked.run_id}
        modern = asked.protocol_version is not None
        exchange = await self._exchanges.hold(self._begin(user, client, asked, kind))
        if exchange is None:  # nothing was said, and nothing waits
            yield {"type": "RUN_STARTED", **place, **({"protocolVersion": VERSION} if modern else {})}
            yield {"type": "RUN_FINISHED", **place}
            return
        names = {legal_name(tool.name): tool.name for tool in asked.tools or ()}
        telling = Telling(exchange, asked.messages, names, asked.state, kind, modern)
        try:
            yield {"type": "RUN_STARTED", **place, **({"protocolVersion": VERSION} if modern else {})}
            if not exchange.answered:
                for event in telling.missed():
                    yield event
            async with aclosing(exchange.follow()) as heard:  # type: ignore[type-var]
                async for one in heard:
                    for event in telling.take(one):
                        yield event
            if exchange.rests:
                for event in telling.suspend():
                    yield event
                await self._threads.keep(user, asked.thread_id, Thread(exchange.conv, exchange.run, _heard(asked)))
            yield _end(exchange, place, telling, modern)
        except Fault as e:
            yield {"type": "RUN_ERROR", "message": e.message, "code": e.kind}
        except Exception:
            yield {"type": "RUN_ERROR", "message": Fault("rpc.internal").message, "code": "rpc.internal"}
            raise
        finally:
            self._exchanges.leave(exchange)

    async def _begin(self, user: User, client: str, asked: RunInput, kind: str) -> Exchange | None:
        """What a request has to do with its thread; None where that is nothing."""
        async with self._threads.lock(user, asked.thread_id):  # two requests may begin with one name
            thread = await self._threads.find(user, asked.thread_id)
            exchange = await self._start(user, client, asked, kind, thread)
            if exchange is None and thread.conv is not None and thread.run is not None:
                exchange = await self._exchanges.ended(user, client, thread.conv, thread.run)
            if exchange is not None:
                await self._threads.keep(user, asked.thread_id, Thread(exchange.conv, heard=_heard(asked)))
        return exchange

    async def _start(self, user: User, client: str, asked: RunInput, kind: str, thread: Thread) -> Exchange | None:
        """Go on with the run of a thread that rests, or start one; None where there is nothing to do.

        Raises:
            Fault: What does not fit, or cannot begin.
        """
        at = _behind(asked)
        last = asked.messages[at:]
        # A run before was told some of them, and gave no answer; where there is nothing else, it is to be tried again.
        anew = thread.run is None and all(m.get("role") == "user" and m.get("id") in thread.heard for m in last)
        replies: dict[str, Reply] = {}
        said: list[Part] = []
        for i, message in enumerate(last, at):
            if message.get("role") == "user":
                if message.get("id") in thread.heard and not anew:
                    continue
                said += await self._parts(message.get("content"), f"messages[{i}].content")
            else:
                replies[str(message.get("toolCallId"))] = _reply(message)
        patient = asked.protocol_version is None  # it knows of no interrupts
        if thread.conv is not None and thread.run is not None:
            input = await input_of(self._hub, user, said)
            choices = await self._choices(user, thread.conv, asked.resume or [])
            going = await self._exchanges.go_on(
                user, client, thread.conv, thread.run, replies, choices=choices, said=input, patient=patient
            )
            if going is not None:
                return going
        names = _names(asked.messages)
        words = [("tool", f"{names.get(call, call)}: {reply.content}") for call, reply in replies.items()]
        if thread.conv is None:
            words = [(str(m.get("role")), _text(m.get("content"))) for m in asked.messages[:at]] + words
            words = [(role, text) for role, text in words if role in ("user", "assistant", "tool")]
        input = await input_of(self._hub, user, said)
        if not input and not replies:
            return None
        if text := retold(words):
            input.append({"kind": "text", "text": text})
        tools = [client_tool(tool.name, tool.description, tool.parameters) for tool in asked.tools or ()]
        config = _config(asked)
        given = Given(tools=tools) if tools else None
        return await self._exchanges.begin(
            user, client, kind, input, config, given=given, conv=thread.conv, patient=patient
        )

    async def _choices(self, user: User, conv: str, resumed: list[Resumed]) -> dict[str, Json]:
        """What the answers to interrupts choose, as params of `ask.answer`."""
        if not resumed:
            return {}
        asks = (await self._hub.state(user.id, f"conv:{conv}"))["asks"]
        return {one.interrupt_id: _choice(asks[one.interrupt_id], one) for one in resumed if one.interrupt_id in asks}

    async def _parts(self, content: Any, path: str) -> list[Part]:
        """What a user's message consists of.

        Raises:
            Fault: request.bad, or what fetching raises.
        """
        if not isinstance(content, list):
            return [TextPart(content)] if isinstance(content, str) else []
        out: list[Part] = []
        for i, part in enumerate(content):
            at = f"{path}[{i}]"
            source = part.get("source") if isinstance(part, dict) else None
            match part:
                case {"type": "text", "text": str(text)}:
                    out.append(TextPart(text))
                case {"type": "image" | "document"} if isinstance(source, dict) and "value" in source:
                    value, mime = str(source["value"]), str(source.get("mimeType") or "application/octet-stream")
                    if source.get("type") == "data":
                        out.append(decoded(value, mime, "", at))
                    elif source.get("type") == "url" and part["type"] == "image":
                        out.append(await fetch(self._hub, value, at))
                    else:
                        raise refuse(at, "A file comes inline, a picture inline or by its URL.", unsupported=True)
                case {"type": "binary", "data": str(data), "mimeType": str(mime)}:
                    out.append(decoded(data, mime, str(part.get("filename") or ""), at))
                case _:
                    raise refuse(at, "Text, pictures and documents are all that is understood.", unsupported=True)
        return out


async def _sent(first: Json, events: AsyncGenerator[Json]) -> AsyncIterator[Sent]:
    async with aclosing(events):
        yield Sent(first)
        async for event in events:
            yield Sent(event)


def _behind(asked: RunInput) -> int:
    """Where the messages begin that stand behind the last answer."""
    at = len(asked.messages)
    while at and asked.messages[at - 1].get("role") in ("user", "tool"):
        at -= 1
    return at


def _heard(asked: RunInput) -> list[str]:
    """The ids of what the user said behind the last answer."""
    return [str(one["id"]) for one in asked.messages[_behind(asked) :] if one.get("role") == "user" and one.get("id")]


def _config(asked: RunInput) -> Json:
    """The config of a run: the instructions that a request holds, what it forwards."""
    given = asked.forwarded_props if isinstance(asked.forwarded_props, dict) else {}
    rules = [_text(m.get("content")) for m in asked.messages if m.get("role") in ("system", "developer")]
    rules += [f"{one.description}: {one.value}" for one in asked.context or ()]
    config: Json = {"system": "\n\n".join(rules)} if rules else {}
    if isinstance(given.get("model"), str):
        config["model"] = given["model"]
    return config | (given["config"] if isinstance(given.get("config"), dict) else {})


def _names(messages: list[Json]) -> dict[str, str]:
    """The names of the tools that messages call, by the calls' ids."""
    out: dict[str, str] = {}
    for message in messages:
        calls = message.get("toolCalls")
        for call in calls if isinstance(calls, list) else ():
            match call:
                case {"id": str(id), "function": {"name": str(name)}}:
                    out[id] = name
    return out


def _text(content: Any) -> str:
    """The words of a message."""
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def _reply(message: Json) -> Reply:
    error = message.get("error")
    return Reply(_text(message.get("content")) or str(error or ""), bool(error))


def _choice(ask: Json, given: Resumed) -> Json:
    """What the answer to an interrupt chooses; the payload is `{approved, editedArgs}`, `{choice}` or a form's data.

    Raises:
        Fault: request.bad: it does not say yes or no; nothing is allowed by a guess.
    """
    options, payload = ask["options"], given.payload
    if given.status == "cancelled" or payload is False:
        return {"choice": options[-1]}
    if ask["kind"] == "url" and payload is None:  # it was visited
        return {"choice": options[0]}
    fields: Mapping[str, Any] = payload if isinstance(payload, dict) else {"approved": payload}
    if ask["kind"] == "form" and isinstance(payload, dict):
        return {"choice": options[0], "data": dict(payload)}
    args = fields.get("editedArgs")
    edited = {"data": {"args": args}} if isinstance(args, dict) else {}
    if "choice" in fields:
        return {"choice": fields["choice"], **edited}
    approved = fields.get("approved", True if edited else None)
    if not isinstance(approved, bool):
        raise refuse("resume", "Answer with `approved`, true or false, with `choice`, or with the data of the form.")
    return {"choice": options[0], **edited} if approved else {"choice": options[-1]}


def _interrupt(id: str, ask: Json) -> Json:
    """A question as an interrupt."""
    schema: Json = {"properties": {"choice": {"enum": ask["options"]}}, "required": ["choice"]}
    if ask["kind"] == "approval":
        schema = {"properties": {"approved": {"type": "boolean"}, "editedArgs": {"type": "object"}}}
    elif ask["kind"] == "form":
        schema = ask.get("schema") or {}
    expires = datetime.fromtimestamp(ask["expires_at"] / 1000, UTC).isoformat().replace("+00:00", "Z")
    more = {k: ask[k] for k in ("options", "subject", "url") if ask.get(k) is not None}
    out = {"id": id, "reason": ask["kind"], "message": ask["title"], "responseSchema": {"type": "object", **schema}}
    return out | {"expiresAt": expires, "metadata": more} | ({"toolCallId": ask["call"]} if ask.get("call") else {})


def _end(exchange: Exchange, place: Json, telling: Telling, modern: bool) -> Json:
    """The last event."""
    closed = exchange.closed or {}
    status = closed.get("status")
    if not exchange.rests and status not in ("done", "cancelled"):
        error = closed.get("error") or {}
        code, words = error.get("kind") or f"run.{status}", error.get("message") or f"The run was {status}."
        return {"type": "RUN_ERROR", "message": words, "code": code} | ({"usage": telling.usage} if modern else {})
    finished: Json = {"type": "RUN_FINISHED", **place}
    if not modern:
        return finished
    asked = {id: ask for id, ask in exchange.asks.items() if ask.get("call") not in exchange.calls}
    if status == "cancelled":
        outcome: Json = {"type": "cancelled"}
    elif asked:
        outcome = {"type": "interrupt", "interrupts": [_interrupt(id, ask) for id, ask in asked.items()]}
    else:
        outcome = {"type": "success"} | ({"pendingToolCallIds": list(exchange.calls)} if exchange.rests else {})
    return {**finished, "outcome": outcome, "usage": telling.usage}
