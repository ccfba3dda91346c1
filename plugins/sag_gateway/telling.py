"""A run's events in the words of AG-UI 1.0, so that each thing is opened before it goes on and closed before the end.

Pure. Above: `agui`. Below: what an exchange hears.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from sag_gateway.completion import ORIGIN
from sag_gateway.exchange import Exchange, Heard

Json = dict[str, Any]


class Open(Struct):
    """A part that is being told: the id of its message or call, and what of it was told."""

    id: str
    text: list[str] = field(default_factory=list)


class Telling:
    """Makes AG-UI events of what is heard.

    Args:
        exchange: Whose events are heard.
        said: The messages that the client sent.
        names: The client's names of tools, by those that models know.
        state: The client's state; what the run keeps stands in it under the kind's name.
        kind: The run kind.
        modern: Whether the client told a version of the protocol, and so knows of agents below the run.
    """

    def __init__(
        self, exchange: Exchange, said: Sequence[Json], names: Mapping[str, str], state: Any, kind: str, modern: bool
    ) -> None:
        self._exchange, self._said, self._names = exchange, said, names
        self._state, self._kind, self._modern = state if isinstance(state, dict) else {}, kind, modern
        self._data: Json = exchange.state["runs"].get(exchange.run, {}).get("data") or {}
        self._parts: dict[int, Open] = {}
        self._told: dict[str, Json] = {}  # messages by their ids, as the client has them
        self._of: dict[str, str] = {}  # the message that holds a call
        self._theirs: set[str] = set(exchange.calls)
        self._agents: dict[str, str] = {}  # that are at work: their invocations
        self._steps: dict[int, str] = {}  # that are open: their models
        self._usage: dict[str, Json] = {}

    def take(self, heard: Heard) -> Iterator[Json]:
        """The events that tell it."""
        name, d = heard.name, heard.d
        match name:
            case "step.open":
                self._steps[d["step"]] = d["model"]
                yield {"type": "STEP_STARTED", "stepName": f"step {d['step']}"}
            case "step.close" if d["step"] in self._steps:
                self._count(self._steps.pop(d["step"]), d.get("usage") or {})
                yield {"type": "STEP_FINISHED", "stepName": f"step {d['step']}"}
            case "agent.open" if self._modern and d["agent"] not in self._agents:
                self._agents[d["agent"]] = id = f"{d['run']}-{d['agent']}-{d.get('ts')}"
                yield {"type": "SUBAGENT_STARTED", "subagentRunId": id, "name": self._exchange.title(d["agent"])}
            case "agent.close" if d["agent"] in self._agents:
                yield {"type": "SUBAGENT_FINISHED", "subagentRunId": self._agents.pop(d["agent"])}
            case "delta" if heard.d:
                yield from self._say(heard.part, d)
            case "part.open" if heard.part["kind"] == "tool_args":
                yield from self._begin(heard.part)
            case "part.close":
                yield from self._end(heard.part)
            case "part.drop":
                yield from self._end(heard.part)
                yield from self._forget(heard.part)
            case "tool.open":
                if d["origin"] == ORIGIN:
                    self._theirs.add(d["call"])
                if d["call"] not in self._of:  # nobody wrote its arguments
                    made = {"part": -1, "kind": "tool_args", "msg": d["call"], "call": d["call"], "name": d["name"]}
                    yield from self._begin(made)
                    yield from self._say(made, msgspec.json.encode(d["args"]).decode())
                    yield from self._end(made)
            case "tool.progress":
                yield {"type": "CUSTOM", "name": "tool.progress", "value": d}
            case "tool.close" if d["call"] not in self._theirs:
                yield self._result(d)
            case "run" if "data" in d["patch"]:
                self._data = _merge(self._data, d["patch"]["data"])
                yield {"type": "STATE_SNAPSHOT", "snapshot": {**self._state, self._kind: self._data}}

    def missed(self) -> Iterator[Json]:
        """What the assistant has said in the run before, and the client has not heard."""
        known = {str(one.get("id")).partition("-")[0] for one in self._said}
        for message in self._exchange.state["messages"]:
            mine = message.get("run") == self._exchange.run and message["role"] == "assistant"
            if mine and message["msg"] not in known:
                for part in message["parts"]:
                    if part["kind"] == "text" and part["text"] and not part["open"]:
                        opened = {**part, "msg": message["msg"], "agent": message.get("agent")}
                        yield from self._say(opened, part["text"])
                        yield from self._end(opened)

    def suspend(self) -> Iterator[Json]:
        """The run rests: agents that are at work are not done."""
        for id in self._agents.values():
            yield {"type": "SUBAGENT_FINISHED", "subagentRunId": id, "outcome": {"type": "suspended"}}

    @property
    def usage(self) -> list[Json]:
        """What the run took in this exchange, by model."""
        return list(self._usage.values())

    # parts

    def _say(self, part: Json, text: str) -> Iterator[Json]:
        if (said := self._parts.get(part["part"])) is None:
            if part["kind"] not in ("text", "reasoning"):
                return
            yield from self._begin(part)
            said = self._parts[part["part"]]
        said.text.append(text)
        match part["kind"]:
            case "text":
                self._told[said.id]["content"] += text
                yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": said.id, "delta": text}
            case "reasoning":
                self._told[said.id]["content"] += text
                yield {"type": "REASONING_MESSAGE_CONTENT", "messageId": said.id, "delta": text}
            case _:
                self._call(said.id)["function"]["arguments"] += text
                yield {"type": "TOOL_CALL_ARGS", "toolCallId": said.id, "delta": text}

    def _begin(self, part: Json) -> Iterator[Json]:
        msg, agent = part["msg"], part.get("agent")
        tag = {"subagentRunId": self._agents[agent]} if agent in self._agents else {}
        match part["kind"]:
            case "text":
                id = msg if msg not in self._told else f"{msg}-{part['part']}"
                named = {"name": self._exchange.title(agent)} if agent else {}
                self._told[id] = {"id": id, "role": "assistant", **named, "content": ""}
                yield {"type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant", **named, **tag}
            case "reasoning":
                id = f"{msg}-{part['part']}"
                self._told[id] = {"id": id, "role": "reasoning", "content": ""}
                yield {"type": "REASONING_START", "messageId": id, **tag}
                yield {"type": "REASONING_MESSAGE_START", "messageId": id, "role": "reasoning", **tag}
            case _:
                id, name = part["call"], self._names.get(part.get("name", ""), part.get("name", ""))
                self._of[id] = msg
                holder = self._told.setdefault(msg, {"id": msg, "role": "assistant"})
                calls = holder.setdefault("toolCalls", [])
                if all(call["id"] != id for call in calls):
                    calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": ""}})
                yield {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": msg, **tag}
        self._parts[part["part"]] = Open(id)

    def _end(self, part: Json) -> Iterator[Json]:
        said = self._parts.pop(part["part"], None)
        if said is None:
            return
        match part["kind"]:
            case "text":
                yield {"type": "TEXT_MESSAGE_END", "messageId": said.id}
            case "reasoning":
                yield {"type": "REASONING_MESSAGE_END", "messageId": said.id}
                yield {"type": "REASONING_END", "messageId": said.id}
            case _:
                yield {"type": "TOOL_CALL_END", "toolCallId": said.id}

    def _forget(self, part: Json) -> Iterator[Json]:
        """A part is void: the messages are told anew without it."""
        msg = part["msg"]
        gone = [id for id in self._told if id == msg or id.startswith(f"{msg}-")]
        for id in gone:  # all parts of an answer are dropped together
            del self._told[id]
        if gone:
            yield {"type": "MESSAGES_SNAPSHOT", "messages": [*self._said, *self._told.values()]}

    def _call(self, id: str) -> Json:
        calls: list[Json] = self._told[self._of[id]]["toolCalls"]
        return next(call for call in calls if call["id"] == id)

    def _result(self, d: Json) -> Json:
        id, told = f"{d['call']}-result", {"role": "tool", "toolCallId": d["call"], "content": result_text(d)}
        self._told[id] = {"id": id, **told}
        return {"type": "TOOL_CALL_RESULT", "messageId": id, **told}

    def _count(self, model: str, usage: Json) -> None:
        if not usage:
            return
        provider, _, id = model.partition("/")
        sum = self._usage.setdefault(model, {"provider": provider, "model": id})
        counts = {
            "inputTokens": usage["input"],
            "outputTokens": usage["output"],
            "totalTokens": usage["input"] + usage["output"],
            "reasoningTokens": usage.get("reasoning", 0),
            "cachedInputTokens": usage.get("cached", 0),
            "cacheWriteInputTokens": usage.get("cache_write", 0),
        }
        for name, count in counts.items():
            sum[name] = sum.get(name, 0) + count


def result_text(closed: Json) -> str:
    """What a call gave, or why it failed, as text."""
    if closed["status"] != "ok":
        words = (closed.get("error") or {}).get("message") or "The call did not come to its end."
        return f"Error ({closed['status']}): {words}"
    result = closed.get("result")
    if isinstance(result, str):
        return result
    content = result.get("content") if isinstance(result, dict) else None
    if isinstance(content, list) and content and all(isinstance(one, dict) and "text" in one for one in content):
        return "\n".join(str(one["text"]) for one in content)
    return msgspec.json.encode(result).decode()


def _merge(whole: Any, patch: Any) -> Any:
    """A merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    out = dict(whole) if isinstance(whole, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = _merge(out.get(name), value)
    return out
