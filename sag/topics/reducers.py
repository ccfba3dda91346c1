"""Folds: from a topic's events to its state, which is the body of a snapshot (protocol sections 3 and 4).

Pure. A state is plain JSON, changed in place; the TypeScript client folds by the same rules, and the recorded
transcripts under tests/transcripts hold both to them. An event about something that is not there is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sag.schema.merge import merge_patch

State = dict[str, Any]

CHANGES = 200  # patches of a run that its object tells, the newest
ASKED = 200  # and questions


class Reducer(Protocol):
    """Folds events into a state."""

    state: State

    def fold(self, name: str, d: Any) -> None:
        """Apply one event."""

    def load(self, state: State) -> None:
        """Start from a state that was kept."""


class PlainReducer:
    """A fold that is one function; plugins' topics use it with a function of their own."""

    def __init__(self, state: State, apply: Callable[[State, str, Any], None]) -> None:
        self.state = state
        self._apply = apply

    def fold(self, name: str, d: Any) -> None:
        self._apply(self.state, name, d)

    def load(self, state: State) -> None:
        self.state = state


class ConvReducer:
    """The fold of `conv:<id>`.

    Beside the state it keeps where each message and each part is, so that a delta costs no search, and the
    highest part number ever used.
    """

    def __init__(self, conv: str) -> None:
        self.state: State = {
            "conv": {"id": conv, "config": {}, "rev": 1},
            "messages": [],
            "runs": {},
            "tools": {},
            "asks": {},
        }
        self.messages: dict[str, State] = {}
        self.parts: dict[int, tuple[State, State]] = {}
        self.last_part = 0

    def load(self, state: State) -> None:
        self.state = state
        self.last_part = state.pop("last_part", 0)
        self.messages = {m["msg"]: m for m in state["messages"]}
        self.parts = {p["part"]: (m, p) for m in state["messages"] for p in m["parts"] if "part" in p}
        self.last_part = max(self.last_part, *self.parts, 0)

    def dump(self) -> State:
        """The state as it is kept: with what the snapshot does not show."""
        return {**self.state, "last_part": self.last_part}

    def fold(self, name: str, d: Any) -> None:
        if name == "delta":
            parts = self.parts
            for i in range(0, len(d) - 1, 2):
                if found := parts.get(d[i]):
                    found[1]["text"] += d[i + 1]
            return
        if apply := _CONV.get(name):
            apply(self, d)

    def _message_add(self, d: State) -> None:
        message = {**d, "parts": [{**p, "open": False} for p in d["parts"]]}
        self.state["messages"].append(message)
        self.messages[d["msg"]] = message

    def _message_drop(self, d: State) -> None:
        if message := self.messages.pop(d["msg"], None):
            self.state["messages"].remove(message)
            for part in message["parts"]:
                self.parts.pop(part.get("part"), None)

    def _run_open(self, d: State) -> None:
        run = {**d, "step": 0, "usage": {"input": 0, "output": 0}}
        self.state["runs"][run.pop("run")] = run

    def _run(self, d: State) -> None:
        runs = self.state["runs"]
        if d["run"] in runs:
            runs[d["run"]] = merge_patch(runs[d["run"]], d["patch"])

    def _step_open(self, d: State) -> None:
        if run := self.state["runs"].get(d["run"]):
            run["step"] = d["step"]
            run["model"] = d["model"]
            run.setdefault("open_steps", {})[str(d["step"])] = {k: v for k, v in d.items() if k not in ("run", "step")}

    def _step_close(self, d: State) -> None:
        run = self.state["runs"].get(d["run"])
        if run is None:
            return
        opened = run.get("open_steps", {}).pop(str(d["step"]), {})
        if not run.get("open_steps"):
            run.pop("open_steps", None)
        if usage := d.get("usage"):
            run["usage"] = {**run["usage"], **{k: run["usage"].get(k, 0) + v for k, v in usage.items()}}
        for message in reversed(self.state["messages"]):
            if message.get("step") == d["step"] and message.get("run") == d["run"]:
                model = opened.get("model", run.get("model"))
                message.update({k: v for k, v in d.items() if k not in ("run", "step")}, model=model)
                break

    def _agent(self, d: State, state: str) -> None:
        if run := self.state["runs"].get(d["run"]):
            run.setdefault("agents", {})[d["agent"]] = state
            if d.get("title"):
                run.setdefault("titles", {})[d["agent"]] = d["title"]

    def _agent_open(self, d: State) -> None:
        self._agent(d, "open")

    def _agent_close(self, d: State) -> None:
        self._agent(d, "closed")

    def _part_open(self, d: State) -> None:
        self.last_part = max(self.last_part, d["part"])
        if message := self.messages.get(d["msg"]):
            part = {k: v for k, v in d.items() if k not in ("run", "msg")} | {"text": "", "open": True}
            message["parts"].append(part)
            self.parts[d["part"]] = (message, part)

    def _part_close(self, d: State) -> None:
        if found := self.parts.get(d["part"]):
            found[1]["open"] = False
            for member in ("partial", "ms", "replay"):
                if d.get(member) is not None:
                    found[1][member] = d[member]

    def _part_drop(self, d: State) -> None:
        if found := self.parts.pop(d["part"], None):
            found[0]["parts"].remove(found[1])

    def _tool_open(self, d: State) -> None:
        tool = {**d, "status": "running"}
        self.state["tools"][tool.pop("call")] = tool
        if lost := self.state["tools"].get(d.get("again")):
            lost["repeated"] = d["call"]

    def _tool_progress(self, d: State) -> None:
        if tool := self.state["tools"].get(d["call"]):
            tool["progress"] = {k: v for k, v in d.items() if k != "call"}

    def _tool_close(self, d: State) -> None:
        if tool := self.state["tools"].get(d["call"]):
            tool.update({k: v for k, v in d.items() if k != "call"})

    def _ask_open(self, d: State) -> None:
        ask = dict(d)
        self.state["asks"][ask.pop("ask")] = ask
        if run := self.state["runs"].get(d["run"]):
            asked = {k: d[k] for k in ("ask", "kind", "title", "name", "call", "ts") if d.get(k) is not None}
            run["asked"] = [*run.get("asked", ()), asked][-ASKED:]

    def _ask_close(self, d: State) -> None:
        ask = self.state["asks"].pop(d["ask"], None)
        if ask is None:
            return
        if d.get("args") is not None and (tool := self.state["tools"].get(ask.get("call"))):
            tool["args"] = d["args"]
        for asked in self.state["runs"].get(ask["run"], {}).get("asked", ()):
            if asked["ask"] == d["ask"]:
                asked |= {"choice": d["choice"], "by": d["by"]}

    def _config(self, d: State) -> None:
        kind, _, id = d["scope"].partition(":")
        holder = self.state["runs"].get(id) if kind == "run" else self.state["conv"]
        if holder is None:
            return
        holder["config"] = merge_patch(holder["config"], d["patch"])
        holder["rev"] = d["rev"]
        if kind == "run":
            change = {k: v for k, v in d.items() if k != "scope"} | {"step": holder["step"]}
            holder["changes"] = [*holder.get("changes", ()), change][-CHANGES:]

    def _config_applied(self, d: State) -> None:
        if run := self.state["runs"].get(d["scope"].partition(":")[2]):
            run["applied"] = {"rev": d["rev"], "step": d["step"]}

    def _run_close(self, d: State) -> None:
        if run := self.state["runs"].get(d["run"]):
            run["status"], run["usage"] = d["status"], d["usage"]
            for member in ("after_ms", "why", "error"):
                run.pop(member, None)
            if error := d.get("error"):
                run["error"] = error

    def _conv(self, d: State) -> None:
        self.state["conv"] = merge_patch(self.state["conv"], d["patch"])


_CONV: dict[str, Callable[[ConvReducer, Any], None]] = {
    "message.add": ConvReducer._message_add,
    "message.drop": ConvReducer._message_drop,
    "run.open": ConvReducer._run_open,
    "run": ConvReducer._run,
    "step.open": ConvReducer._step_open,
    "step.close": ConvReducer._step_close,
    "agent.open": ConvReducer._agent_open,
    "agent.close": ConvReducer._agent_close,
    "part.open": ConvReducer._part_open,
    "part.close": ConvReducer._part_close,
    "part.drop": ConvReducer._part_drop,
    "tool.open": ConvReducer._tool_open,
    "tool.progress": ConvReducer._tool_progress,
    "tool.close": ConvReducer._tool_close,
    "ask.open": ConvReducer._ask_open,
    "ask.close": ConvReducer._ask_close,
    "config": ConvReducer._config,
    "config.applied": ConvReducer._config_applied,
    "run.close": ConvReducer._run_close,
    "conv": ConvReducer._conv,
}


def _fold_user(state: State, name: str, d: Any) -> None:
    match name:
        case "conv":
            state["convs"][d["conv"]] = merge_patch(state["convs"].get(d["conv"], {}), d["patch"])
        case "conv.drop":
            state["convs"].pop(d["conv"], None)
        case "run.open":
            state["runs"][d["run"]] = {k: v for k, v in d.items() if k != "run"}
        case "run":
            if d["run"] in state["runs"]:
                state["runs"][d["run"]] = merge_patch(state["runs"][d["run"]], d["patch"])
        case "run.close":
            state["runs"].pop(d["run"], None)
        case "ask.open":
            state["asks"][d["ask"]] = {k: v for k, v in d.items() if k != "ask"}
        case "ask.close":
            state["asks"].pop(d["ask"], None)


def _fold_client(state: State, name: str, d: Any) -> None:
    match name:
        case "config":
            state["config"] = merge_patch(state["config"], d["patch"])
            state["rev"] = d["rev"]
        case "client":
            state.update(merge_patch(state, d["patch"]))
            for gone in [k for k, v in d["patch"].items() if v is None]:
                state.pop(gone, None)


_HUB_MAPS = {"plugin": "plugins", "connector": "connectors", "model": "models"}


def _fold_hub(state: State, name: str, d: Any) -> None:
    if place := _HUB_MAPS.get(name):
        if d["patch"] is None:
            state[place].pop(d["id"], None)
        else:
            state[place][d["id"]] = merge_patch(state[place].get(d["id"], {}), d["patch"])


def user_reducer(_: str) -> Reducer:
    """The fold of `user:me`, the inbox."""
    return PlainReducer({"convs": {}, "runs": {}, "asks": {}}, _fold_user)


def client_reducer(_: str) -> Reducer:
    """The fold of `client:<id>`."""
    return PlainReducer({"config": {}, "rev": 1, "presets": {}, "ui": {}}, _fold_client)


def hub_reducer(_: str) -> Reducer:
    """The fold of `hub`."""
    return PlainReducer({"plugins": {}, "connectors": {}, "models": {}}, _fold_hub)


FAMILIES: dict[str, Callable[[str], Reducer]] = {
    "conv": ConvReducer,
    "user": user_reducer,
    "client": client_reducer,
    "hub": hub_reducer,
}
