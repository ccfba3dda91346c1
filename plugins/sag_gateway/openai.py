"""The OpenAI API: `/openai/v1/models` and `/openai/v1/chat/completions`, for clients that speak it and nothing else.

A model's name stands for the run kind `completion` on that model; `sag/<kind>`, or `sag/<kind>:<model>`, for any other
run kind. Above: the hub, which has checked who asks. Below: `messages`, which reads requests, and `exchange`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

import msgspec

from sag.plugin import Fault, Hub, Reply, Request, Sent, Stream, User
from sag_gateway.answer import Answer
from sag_gateway.completion import KIND, Given
from sag_gateway.exchange import Exchange, Exchanges
from sag_gateway.exchange import Reply as ToolReply
from sag_gateway.files import fetch, input_of
from sag_gateway.messages import (
    CompletionRequest,
    check,
    config_of,
    digest,
    parts_of,
    retold,
    text_of,
    tools_of,
    transcript,
)
from sag_gateway.threads import Thread, Threads

Json = dict[str, Any]

CLIENT = "openai"
FIRST_S = 5.0  # that an error has to be an HTTP status; then the stream begins
_CALL = re.compile(r"(k[0-9a-z]{4,40})_(c[0-9a-z]{4,40})")
_FINISHES = {"stop": "stop", "tools": "stop", "length": "length", "refused": "content_filter"}

# What a fault is in OpenAI's words: status, type, code. All others: by their status.
_ERRORS: dict[str, tuple[int, str, str]] = {
    "model.unknown": (404, "invalid_request_error", "model_not_found"),
    "kind.unknown": (404, "invalid_request_error", "model_not_found"),
    "auth.required": (401, "invalid_request_error", "invalid_api_key"),
    "auth.invalid": (401, "invalid_request_error", "invalid_api_key"),
    "config.invalid": (400, "invalid_request_error", "invalid_value"),
    "provider.context": (400, "invalid_request_error", "context_length_exceeded"),
    "provider.refused": (400, "invalid_request_error", "provider.refused"),
    "provider.rate_limit": (429, "rate_limit_error", "rate_limit_exceeded"),
    "provider.overloaded": (503, "server_error", "provider.overloaded"),
    "run.limit": (429, "insufficient_quota", "insufficient_quota"),
}
_PARAMS = {"reasoning": "reasoning_effort"}  # of the config, as the API has them


class Target(NamedTuple):
    """What a model's name stands for."""

    kind: str
    model: str | None


class OpenAI:
    """The routes.

    Args:
        hub: The plugin's hub.
        exchanges: What begins runs.
        threads: Which conversations clients name.
        answer_s: How long a run waits for a client that was given a tool's call.
    """

    def __init__(self, hub: Hub[Any], exchanges: Exchanges, threads: Threads, answer_s: float) -> None:
        self._hub, self._exchanges, self._threads, self._answer_s = hub, exchanges, threads, answer_s
        self._fetch = partial(fetch, hub)

    # models

    async def models(self, request: Request) -> Json:
        """`GET /openai/v1/models`: the hub's models, and a name for each run kind."""
        return {"object": "list", "data": await self._list(request.user)}

    async def model(self, request: Request) -> Json:
        """`GET /openai/v1/models/{id}`."""
        wanted = request.path["id"]
        for one in await self._list(request.user):
            if one["id"] == wanted:
                return one
        raise Fault("model.unknown", f"There is no model {wanted!r}.")

    async def _list(self, user: User) -> list[Json]:
        models = (await self._hub.call(user, "model.list", {"limit": 2000}))["models"]
        kinds = [kind["name"] for kind in (await self._hub.call(user, "kind.list"))["kinds"]]
        listed = [_model(one["model"], one["provider"], one.get("created") or 0) for one in models]
        return listed + [_model(f"sag/{name}", "sag", 0) for name in kinds if name != KIND]

    async def _target(self, user: User, name: str) -> Target:
        """What a model's name stands for.

        Raises:
            Fault: model.unknown, kind.unknown.
        """
        if name.startswith("sag/"):
            kind, _, model = name[4:].partition(":")
            if not kind:
                raise Fault("kind.unknown", f"There is no model {name!r}.")
            return Target(KIND if kind == "chat" else kind, model or None)
        if "/" not in name:  # clients that know the vendor's names alone
            listed = [one["id"] for one in await self._list(user)]
            name = next((id for id in listed if id.partition("/")[2] == name and not id.startswith("sag/")), name)
        if not name:  # which to the hub is its default
            raise Fault("model.unknown", "The request names no model.")
        self._hub.where(name)
        return Target(KIND, name)

    # completions

    async def complete(self, request: Request) -> Any:
        """`POST /openai/v1/chat/completions`."""
        asked = await request.json(CompletionRequest, large=True)
        check(asked)
        told = self._told(request, asked)
        first = asyncio.ensure_future(anext(told))
        gone = asyncio.ensure_future(request.gone())
        try:
            # What fails at once is an HTTP error for streams too; an answer that is not streamed is waited for.
            limit = FIRST_S if asked.stream else None
            await asyncio.wait({first, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise Fault("request.cancelled")
            whole = first.result() if first.done() else None
        except BaseException:
            await _end(first, told)
            raise
        finally:
            gone.cancel()
        if asked.stream:
            return Stream(_events(first, told))
        await _end(first, told)
        return whole

    async def _told(self, request: Request, asked: CompletionRequest) -> AsyncGenerator[Json]:
        """The answer: chunks of it where it is streamed, else the whole of it as one.

        Raises:
            Fault: The run cannot begin, or has failed.
        """
        user, client = request.user, request.client or CLIENT
        name = request.headers.get("sag-conversation") or None
        exchange = await self._exchanges.hold(self._begin(user, client, asked, name))
        answer = Answer(exchange)
        made = {"id": f"chatcmpl-{exchange.run}", "created": int(time.time()), "model": asked.model}
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        begun = False
        try:
            async with aclosing(exchange.follow()) as events:  # type: ignore[type-var]
                async for heard in events:
                    for member, text in answer.take(heard):
                        if asked.stream:
                            delta = {member: text} if begun else {"role": "assistant", member: text}
                            begun = True
                            yield _chunk(made, usage, delta)
                    if answer.void and asked.stream:
                        raise Fault("gateway.void")
            finish = _finish(exchange, answer)
            calls = [_call(id, call, exchange.conv) for id, call in exchange.calls.items()] if exchange.rests else []
            if not asked.stream:
                yield _completion(made, answer, calls, finish, _usage(exchange.usage))
                return
            if calls or not begun:
                last: Json = {} if begun else {"role": "assistant"}
                last |= {"tool_calls": [{"index": i, **c} for i, c in enumerate(calls)]} if calls else {"content": ""}
                yield _chunk(made, usage, last)
            yield _chunk(made, usage, {}, finish)
            if usage:
                yield {**_chunk(made, usage, {}), "choices": [], "usage": _usage(exchange.usage)}
        finally:
            self._exchanges.leave(exchange)

    async def _begin(self, user: User, client: str, asked: CompletionRequest, name: str | None) -> Exchange:
        """Go on with the run that waits for the tools' answers in a request, or start one."""
        target = await self._target(user, asked.model)
        if (going := await self._go_on(user, client, asked)) is not None:
            return going
        config = config_of(asked) | ({"model": target.model} if target.model else {})
        if name is None:
            return await self._start(user, client, asked, target, config, None, stray=not asked.store)
        async with self._threads.lock(user, name):  # two requests may begin with one name
            conv = (await self._threads.find(user, name)).conv
            exchange = await self._start(user, client, asked, target, config, conv, named=True)
            await self._threads.keep(user, name, Thread(exchange.conv))
        return exchange

    async def _start(
        self,
        user: User,
        client: str,
        asked: CompletionRequest,
        target: Target,
        config: Json,
        conv: str | None,
        *,
        named: bool = False,
        stray: bool = False,
    ) -> Exchange:
        """Start a run: one that sees what the request holds, or in a named conversation what that holds."""
        system = "\n\n".join(text_of(one) for one in asked.messages if one.role in ("system", "developer"))
        last = len(asked.messages) - 1
        while last > 0 and asked.messages[last].role != "user":
            last -= 1
        spoken = [(one.role, text_of(one) if one.role in _SPOKEN else "") for one in asked.messages]
        given = Given(
            tools=tools_of(asked),
            calls=asked.tool_choice != "none",
            parallel=asked.parallel_tool_calls is not False,
            answer_s=self._answer_s,
            count=len(asked.messages),
            digest=digest(asked, len(asked.messages)),
        )
        said = await parts_of(asked.messages[last], f"messages[{last}]", self._fetch)
        if not named and target.kind == KIND:
            given.messages = await transcript(asked.messages, self._fetch)
            # For people, and for whoever goes on with the conversation there: the model is told the messages.
            input = [{"kind": "text", "text": text_of(asked.messages[last]) or "…"}]
            if not stray and (text := retold(spoken[:last])):
                input.append({"kind": "text", "text": text})
        else:
            if given.tools and target.kind != KIND:
                raise Fault("request.bad", "Only models take tools of the client's, not run kinds.", path="$.tools")
            input = await input_of(self._hub, user, said)
            if text := retold((spoken[:last] if conv is None else []) + spoken[last + 1 :]):
                input.append({"kind": "text", "text": text})
            if system:
                config = {"system": system, **config}
        return await self._exchanges.begin(
            user, client, target.kind, input, config, given=given, conv=conv, stray=stray, patient=True
        )

    async def _go_on(self, user: User, client: str, asked: CompletionRequest) -> Exchange | None:
        """The run that waits for the answers with which a request ends; None if there is none that fits it."""
        replies: dict[str, ToolReply] = {}
        conv = first = ""
        at = len(asked.messages)
        while at and asked.messages[at - 1].role in ("tool", "user"):
            at -= 1
            said = asked.messages[at]
            if said.role == "tool" and (named := _CALL.fullmatch(said.tool_call_id or "")):
                first, conv = named[1], named[2]
                replies[first] = ToolReply(text_of(said))
        found = await self._exchanges.given(user, conv, first) if replies else None
        if found is None:
            return None
        run, given = found
        if given is None or digest(asked, given.count) != given.digest:
            await self._exchanges.cancel(user, run)  # the client tells its story anew
            return None
        said_besides = [one for one in asked.messages[at:] if one.role == "user"]
        parts = [part for one in said_besides for part in await parts_of(one, "messages", self._fetch)]
        input = await input_of(self._hub, user, parts)
        return await self._exchanges.go_on(user, client, conv, run, replies, said=input, patient=True)


_SPOKEN = frozenset({"user", "assistant", "tool"})


async def _end(first: asyncio.Future[Json], told: AsyncGenerator[Json]) -> None:
    """End what makes an answer, wherever it is."""
    first.cancel()
    await asyncio.wait({first})
    await told.aclose()


async def _events(first: asyncio.Future[Json], told: AsyncGenerator[Json]) -> AsyncIterator[Sent]:
    """The chunks as they are sent; a fault in their midst is the last of them."""
    try:
        yield Sent(await first)
        async for chunk in told:
            yield Sent(chunk)
        yield Sent("[DONE]")
    except Fault as e:
        yield Sent({"error": error_of(e)[1]})
    except Exception:
        yield Sent({"error": error_of(Fault("rpc.internal"))[1]})
        raise
    finally:
        await _end(first, told)


def _finish(exchange: Exchange, answer: Answer) -> str:
    """Why an exchange ended, in the API's words.

    Raises:
        Fault: It failed.
    """
    if exchange.rests:
        return "tool_calls"
    closed = exchange.closed or {}
    if closed.get("status") == "done":
        return _FINISHES.get(answer.finish, "stop")
    error = closed.get("error") or {}
    if closed.get("status") == "limit" and answer.text("text"):
        return "length"
    kind = error.get("kind") or f"run.{closed.get('status')}"
    message = error.get("message") or f"The run was {closed.get('status')}."
    raise Fault(kind, message, retry=error.get("retry"), code=None if kind.startswith("provider.") else 502)


def _chunk(made: Json, usage: bool, delta: Json, finish: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**made, "object": "chat.completion.chunk", "choices": [choice]} | ({"usage": None} if usage else {})


def _completion(made: Json, answer: Answer, calls: list[Json], finish: str, usage: Json) -> Json:
    text = answer.text("text")
    message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if thought := answer.text("reasoning"):
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**made, "object": "chat.completion", "choices": [choice], "usage": usage}


def _call(id: str, call: Json, conv: str) -> Json:
    """A call of the client's; its id says where its answer goes."""
    arguments = msgspec.json.encode(call["args"]).decode()
    return {"id": f"{id}_{conv}", "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _usage(usage: Json) -> Json:
    sent, written = usage.get("input", 0), usage.get("output", 0)
    return {
        "prompt_tokens": sent,
        "completion_tokens": written,
        "total_tokens": sent + written,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached", 0)},
        "completion_tokens_details": {"reasoning_tokens": usage.get("reasoning", 0)},
    }


def _model(id: str, owner: str, created: int) -> Json:
    return {"id": id, "object": "model", "created": created, "owned_by": owner}


def error_of(fault: Fault) -> tuple[int, Json]:
    """A fault as the API tells it: the HTTP status, and `error`."""
    kind, path = fault.kind, str(fault.data.get("path") or "")
    if (kind, path) == ("config.invalid", "$.model"):
        kind = "model.unknown"  # to a provider that has others
    status, type, code = _ERRORS.get(kind, (fault.status, "", kind))
    if not type:
        status = 400 if status == 422 else status
        type = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    if fault.data.get("unsupported"):
        code = "unsupported_value"
    param = path.removeprefix("$").removeprefix(".") or None
    if kind in ("model.unknown", "kind.unknown"):
        param = "model"
    elif param is not None:
        param = _PARAMS.get(param, param)
    return status, {"message": fault.message, "type": type, "param": param, "code": code}


def failed(fault: Fault) -> Reply:
    """The answer to a fault. Whether trying again helps is told as the SDKs understand it."""
    status, error = error_of(fault)
    headers = {"cache-control": "no-store", "x-should-retry": "true" if fault.retry else "false"}
    if fault.after_ms is not None:
        headers["retry-after"] = str(max(1, -(-fault.after_ms // 1000)))
    return Reply(msgspec.json.encode({"error": error}), status=status, headers=headers)
