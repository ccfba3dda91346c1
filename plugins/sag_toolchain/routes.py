"""The route `POST /api/toolchain`: one stage, answered when it is over or as server-sent events.

Each request is a run of its own, in a conversation of its own, which every device of the user sees. Its caller is its
only reader here, so the run is cancelled when the caller goes away.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import count
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from sag.plugin import Fault, Hub, Request, Sent, Stream, User
from sag_toolchain.calls import ONLY, SYNTHESIS, calls_of, result_of, words

Json = dict[str, Any]

_STAGE = re.compile("[A-Za-z0-9_-]{1,64}")
_FINISH = {"stop": "stop", "tools": "tool_calls", "length": "length", "refused": "content_filter"}
_GONE = ("run.closed", "run.unknown", "draining")  # faults of who cancels a run that needs it no more

Temperatures = Annotated[list[Annotated[float, Meta(ge=0, le=2)] | None], Meta(max_length=2)]
Lengths = Annotated[list[Annotated[int, Meta(ge=1, le=1_000_000)] | None], Meta(max_length=2)]


class Asked(Struct):
    """The body of `POST /api/toolchain`.

    Attributes:
        user_prompt: What the model picks tools for.
        model_name: `provider/model`, or the model's own name where the provider is known by its address.
        stage_id: Comes back with all that is answered.
        base_url: Of a configured provider.
        stream: Whether the answer is server-sent events.
        synthesis: Whether the results are summed up.
        system_prompt: Of both phases; left out, the device's.
        temperature, max_tokens: Of the first phase and of the synthesis; null, or left out, is the vendor's own.
    """

    user_prompt: Annotated[str, Meta(min_length=1)]
    model_name: Annotated[str, Meta(min_length=1, max_length=200)]
    stage_id: Annotated[str, Meta(min_length=1, max_length=200)] | int = ONLY
    base_url: Annotated[str, Meta(max_length=2000)] | None = None
    stream: bool = False
    synthesis: bool = True
    system_prompt: Annotated[str, Meta(max_length=100_000)] | None = None
    temperature: Temperatures = []
    max_tokens: Lengths = []


class Route:
    """The route.

    Args:
        hub: The plugin's hub.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub

    async def answer(self, request: Request) -> Json | Stream:
        """Start the run; answer its outcome, or the stream of its events.

        Raises:
            Fault: rpc.params, provider.unknown, model.unknown, and what `run.start` refuses. What goes wrong in the run
                is part of the answer.
        """
        asked = await request.json(Asked)
        exchange = Exchange(self._hub, request.user, asked)
        await exchange.start(request.client or "toolchain")
        if asked.stream:
            return Stream(exchange.events())
        outcome = asyncio.ensure_future(exchange.outcome())
        gone = asyncio.ensure_future(request.gone())
        try:
            await asyncio.wait({outcome, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not outcome.done():
                raise Fault("request.cancelled")
            return outcome.result()
        finally:
            outcome.cancel()
            gone.cancel()
            await asyncio.wait({outcome, gone})


class Exchange:
    """A request and its run.

    Args:
        hub: The plugin's hub.
        user: Who asks.
        asked: For what.
    """

    def __init__(self, hub: Hub[Any], user: User, asked: Asked) -> None:
        self._hub, self._user, self._asked = hub, user, asked
        self._name = str(asked.stage_id) if _STAGE.fullmatch(str(asked.stage_id)) else ONLY
        self._topic = self._run = ""
        self._begin = 0

    async def start(self, client: str) -> None:
        """Start the run.

        Raises:
            Fault: provider.unknown, model.unknown, config.invalid, input.invalid and the like.
        """
        asked = self._asked
        phases = ("tool", "synthesis")
        stage = {
            "synthesis": asked.synthesis,
            "stream": asked.stream,
            "temperature": dict(zip(phases, asked.temperature, strict=False)),
            "max_tokens": dict(zip(phases, asked.max_tokens, strict=False)),
        }
        if asked.system_prompt is not None:
            stage["system"] = asked.system_prompt
        params = {
            "kind": "toolchain",
            "input": [{"kind": "text", "text": asked.user_prompt}],
            "config": {"model": await self._find_model(), "stages": {self._name: stage}},
        }
        started = await self._hub.call(self._user, "run.start", params, client=client)
        self._run, self._topic = started["run"], f"conv:{started['conv']}"
        self._begin = started["at"][self._topic] - 1

    async def _find_model(self) -> str:
        """The model's full name: one that is listed, else the name as it stands, else that of the provider's own model.

        Raises:
            Fault: provider.unknown, model.unknown.
        """
        name, wanted = self._asked.model_name, self._asked.base_url
        places = [p for p, url in self._hub.providers.items() if not wanted or (url and _plain(url) == _plain(wanted))]
        if not places:
            raise Fault("provider.unknown")
        listed = await self._hub.call(self._user, "model.list", {"q": name})
        for model in listed["models"]:  # the default is the first
            if model["model"] in [f"{place}/{name}" for place in places]:
                return str(model["model"])
        if wanted and name.partition("/")[0] not in places:
            return f"{places[0]}/{name}"
        self._hub.where(name)
        return name

    async def outcome(self) -> Json:
        """Wait for the run's end: `{stage_id, type: "tool_results" | "text" | "error", …}`."""
        stage = {"stage_id": self._asked.stage_id}
        async with aclosing(self.events()) as events:
            async for sent in events:
                if sent.name in ("cancel", "error"):
                    message = sent.data.get("error", "run.cancelled: The run was cancelled.")
                    return {**stage, "type": "error", "message": message}
        state = await self._state()
        if self._asked.synthesis:
            last = self._newest(state, self._name + SYNTHESIS)
            return {**stage, "type": "text", "text": words(last) if last else ""}
        return {**stage, "type": "tool_results", "tool_results": self._results(state)}

    async def events(self) -> AsyncGenerator[Sent, None]:
        """The run's events as the route tells them, to its end; whoever stops reading before it cancels the run."""
        chunks = Chunks(self._run, self._name, self._asked.stage_id)
        stage = {"stage_id": self._asked.stage_id}
        over = False
        try:
            follow = self._hub.subscribe(self._user.id, self._topic, after=self._begin)
            async with aclosing(follow) as events:  # type: ignore[type-var]
                async for name, d in events:
                    for sent in chunks.take(name, d):
                        yield sent
                    if name == "agent.close" and (d["run"], d["agent"]) == (self._run, self._name):
                        results = self._results(await self._state())
                        if results and all(result["status"] == "ok" for result in results):
                            yield Sent({**stage, "tool_results": results}, "tool_summary")
                    elif name == "run.close" and d["run"] == self._run:
                        over = True
                        yield _end(stage, d)
                        return
            over = True
            yield Sent({**stage, "error": "conv.unknown: The conversation was deleted."}, "error")
        finally:
            if not over:
                self._hub.spawn(self._cancel())

    async def _cancel(self) -> None:
        try:
            await self._hub.call(self._user, "run.cancel", {"run": self._run})
        except Fault as e:
            if e.kind not in _GONE:
                raise

    async def _state(self) -> Json:
        return await self._hub.state(self._user.id, self._topic)

    def _newest(self, state: Json, agent: str) -> Json | None:
        own = (m for m in reversed(state["messages"]) if m.get("run") == self._run)
        return next((m for m in own if m.get("agent") == agent), None)

    def _results(self, state: Json) -> list[Json]:
        """What the calls of the newest round gave."""
        last = self._newest(state, self._name)
        calls = ({"call": id, **call} for id, call in state["tools"].items() if call["run"] == self._run)
        return [result_of(call) for call in calls_of(calls, last)] if last else []


class Chunks:
    """Writes what the agents of a stage say as chunks of OpenAI's chat completions.

    An `id` stands for one answer: where a model's answer is void and it is asked again, the next id begins.

    Args:
        run: Which run.
        stage: The stage's name, which is the first agent's.
        stage_id: As the caller calls it.
    """

    def __init__(self, run: str, stage: str, stage_id: str | int) -> None:
        self._run, self._stage_id = run, stage_id
        self._numbers = {
            stage: (f"{stage_id}-chunk-", count()),
            stage + SYNTHESIS: (f"{stage_id}-chunk-integ-", count()),
        }
        self._step: Json | None = None  # the open one
        self._attempt = 0
        self._begun = False
        self._calls: dict[str, int] = {}  # their indexes
        self._parts: dict[int, int | None] = {}  # of text, or the index of the call that they are of

    def take(self, name: str, d: Any) -> Iterator[Sent]:
        """The chunks that an event of the conversation makes."""
        step = self._step
        match name:
            case "step.open" if d["run"] == self._run and d.get("agent") in self._numbers:
                self._step = d
                self._restart()
            case "part.open" if step is not None and (d["run"], d.get("agent")) == (self._run, step["agent"]):
                if d["kind"] == "text":
                    self._parts[d["part"]] = None
                elif d["kind"] == "tool_args":
                    if (call := d["call"]) not in self._calls:
                        self._calls[call] = len(self._calls)
                        function = {"name": d.get("name") or "", "arguments": ""}
                        made = {"index": self._calls[call], "id": call, "type": "function", "function": function}
                        yield from self._write({"tool_calls": [made]})
                    self._parts[d["part"]] = self._calls[call]
            case "delta" if step is not None:
                for part, text in zip(d[::2], d[1::2], strict=True):
                    if part in self._parts:
                        index = self._parts[part]
                        more = [{"index": index, "function": {"arguments": text}}]
                        yield from self._write({"content": text} if index is None else {"tool_calls": more})
            case "part.drop" if step is not None and d["part"] in self._parts:
                self._restart()
            case "step.close" if step is not None and (d["run"], d["step"]) == (self._run, step["step"]):
                if d["finish"] in _FINISH:
                    yield from self._write({}, _FINISH[d["finish"]])
                self._step = None

    def _restart(self) -> None:
        self._attempt += 1
        self._begun = False
        self._calls, self._parts = {}, {}

    def _write(self, delta: Json, finish: str | None = None) -> Iterator[Sent]:
        step = self._step or {}
        if not self._begun:
            self._begun = True
            yield from self._write({"role": "assistant", "content": ""})
        chunk = {
            "id": f"chatcmpl-{self._run}-{self._attempt}",
            "object": "chat.completion.chunk",
            "created": (step.get("ts") or 0) // 1000,
            "model": step["model"].partition("/")[2],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        prefix, numbers = self._numbers[step["agent"]]
        data = {"stage_id": self._stage_id, "chunk": chunk}
        yield Sent(data, "tool_completion_chunk", f"{prefix}{next(numbers)}")


def _end(stage: Json, close: Json) -> Sent:
    """The last event, by how the run ended; what went wrong is told as its kind and its words."""
    if close["status"] == "done":
        return Sent(stage, "done")
    if close["status"] == "cancelled":
        return Sent(stage, "cancel")
    error = close.get("error") or {"kind": f"run.{close['status']}", "message": "The run did not come to its end."}
    return Sent({**stage, "error": f"{error['kind']}: {error['message']}"}, "error")


def _plain(url: str) -> tuple[str, str, int | None, str]:
    """What tells addresses apart: not a slash or `/v1` at the end, the usual port, or capitals in the host's name."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url, "", None, ""
    return parts.scheme, parts.hostname or "", port, parts.path.rstrip("/").removesuffix("/v1")
