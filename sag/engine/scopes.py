"""Scopes of config: a run's, a conversation's, a device's; what is in force, and patches while runs go on.

`sag.engine.config` has the rules, which are pure; here they meet the topics (protocol section 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from sag.engine.approvals import Verdict
from sag.engine.config import ClientSettings, ConfigView, Patched, compare, defaults, fitting, layered, patched
from sag.errors import Fault
from sag.hooks.tool import Tool
from sag.ops.dispatch import Call, User
from sag.schema.events import ClientConfig, ConfigPatched
from sag.schema.ids import now_ms
from sag.topics.topic import Topic, Transaction

if TYPE_CHECKING:
    from sag.engine.engine import Engine

Json = dict[str, Any]


class Scopes:
    """Config by scope.

    Args:
        engine: Whose runs and conversations they are.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def _client_config(self, user: User, client: str) -> Json:
        topic = await self._engine.topics.find(user.id, f"client:{client}") if client else None
        config: Json = topic.state["config"] if topic is not None else {}
        return config

    async def of_device(self, user: User, client: str) -> Json:
        """The lowest layer of a device's runs: its section `llm`, with the switches of its section `tools`."""
        config = await self._client_config(user, client)
        llm: Json = config.get("llm", {})
        enabled = {key: s["enabled"] for key, s in config.get("tools", {}).items() if s.get("enabled") is not None}
        return {**llm, "tools": {**enabled, **llm.get("tools", {})}} if enabled else llm

    async def verdict(self, user: User, client: str, tool: Tool, allowed: Json | None = None) -> Verdict:
        """What becomes of a call of a tool, by all policies that are in force.

        Args:
            user, client: Whose call, from which device.
            tool: Which tool.
            allowed: What was allowed for the run.
        """
        device = (await self._client_config(user, client)).get("tools", {})
        return self._engine.approvals.decide(user, tool, device, allowed or {})

    async def _scope(self, call: Call, scope: str) -> tuple[str, str, Topic]:
        what, _, id = scope.partition(":")
        if what == "run":
            return what, id, await self._engine.run_topic(call.me, id)
        if what == "conv":
            return what, id, await self._engine.topic(call.me, id)
        if what == "client" and id and len(id) <= 64 and all(c.isalnum() or c in "._-" for c in id):
            return what, id, await self._engine.topics.get(call.me.id, f"client:{id}")
        raise Fault("scope.unknown", f"There is no scope {scope!r}: use run:<id>, conv:<id> or client:<id>.")

    async def _view(self, call: Call, what: str, id: str, topic: Topic) -> tuple[Json, list[Json], type[Struct], int]:
        """A scope's document, the layers below it, its struct and its rev."""
        if what == "run":
            object = topic.state["runs"][id]
            struct = self._engine.kind(object["kind"]).config
            return object["config"], [defaults(struct), object.get("base") or {}], struct, object["rev"]
        if what == "conv":
            struct = self._engine.kind(last_kind(topic)).config
            below = fitting(await self.of_device(call.me, call.client), struct)
            conv = topic.state["conv"]
            return conv["config"], [defaults(struct), below], struct, conv["rev"]
        llm = defaults(self._engine.kind("chat").config) if "chat" in self._engine.extensions.kinds else {}
        return topic.state["config"], [{"llm": llm}], self._client_struct(), topic.state["rev"]

    def _client_struct(self) -> type[Struct]:
        chat = self._engine.extensions.kinds.get("chat")
        if chat is None:
            return ClientSettings
        fields = [("llm", chat.config | None, None)]
        return msgspec.defstruct("Settings", fields, bases=(ClientSettings,), forbid_unknown_fields=True)

    async def view(self, call: Call, scope: str) -> ConfigView:
        """A scope's config.

        Raises:
            Fault: scope.unknown, run.unknown, conv.unknown.
        """
        what, id, topic = await self._scope(call, scope)
        if topic.lost:  # a commit that failed is being undone
            await topic.shown(lambda: None)
        document, below, struct, rev = await self._view(call, what, id, topic)
        effective = self._named(layered(*below, document), what)
        view = ConfigView(rev, document, effective, msgspec.json.schema(struct))
        await topic.settled()
        return view

    def _named(self, effective: Json, what: str) -> Json:
        """The effective config with the model that the default stands for."""
        if what != "client" and effective.get("model") is None and (model := self._engine.models.default()):
            return {**effective, "model": model}
        return effective

    async def patch(
        self, call: Call, scope: str, patch: Json, rev: int | None, apply: Literal["next_step", "now"]
    ) -> Patched:
        """Patch a scope's config (protocol section 6).

        Raises:
            Fault: scope.unknown, run.closed, config.conflict, config.invalid.
        """
        what, id, topic = await self._scope(call, scope)
        await self._view(call, what, id, topic)  # loads what the layers need, so that the next look awaits nothing
        document, below, struct, current = await self._view(call, what, id, topic)
        run = self._engine.find(topic, id) if what == "run" else None
        if what == "run" and run is None:
            raise await self._engine.closed(topic, id)
        try:
            compare(rev, current, self._named(layered(*below, document), what))
            fresh = patched(document, patch, struct, *below)
            self.check_model(patch if what != "client" else {"llm": patch.get("llm")})
        except Fault:
            await topic.settled()
            raise
        tx: Transaction = call.tx
        by = call.me.id
        told = ClientConfig if what == "client" else ConfigPatched
        at = tx.append(topic, told(scope, current + 1, patch, by, now_ms()))
        applies: Literal["next_step", "now"] = "next_step"
        if apply == "now" and run is not None and run.in_model_call:
            applies = "now"
            tx.after(run.restart_steps)
        effective = self._named(layered(*below, fresh), what)
        result = Patched(current + 1, effective, applies, {topic.name: at})
        await call.commit(result, "config_commit")
        return result

    def check_model(self, document: Json) -> None:
        """A model that nobody serves, or that its vendor lacks, is refused where it is set rather than by a step.

        Raises:
            Fault: config.invalid.
        """
        for at, name in _models(document, "$"):
            try:
                self._engine.models.check_now(name)
            except Fault as e:
                raise Fault("config.invalid", e.message, path=at) from None

    def check_effective(self, config: Json) -> None:
        """The model that a run will use; with fallbacks it may fail.

        Raises:
            Fault: model.unknown.
            ProviderError: Its vendor refuses it, as far as that is known.
        """
        name = config.get("model") or self._engine.models.default()
        if name is not None and not config.get("fallbacks"):
            self._engine.models.check_now(name)

    async def patch_as(self, user: User, client: str, scope: str, patch: Json) -> Json:
        """Patch for a plugin or a tool, by the same way as clients do; gives the effective config."""
        call = Call(user, client, begin=self._engine.topics.begin)
        result = await self.patch(call, scope, patch, None, "next_step")
        await call.commit(result)
        return result.effective


def _models(document: Json, path: str) -> Iterator[tuple[str, str]]:
    """The models that a config names, and where; what goes to a vendor as it is names none of the hub's."""
    for member, value in document.items():
        at = f"{path}.{member}"
        if member == "model" and isinstance(value, str):
            yield at, value
        elif member == "fallbacks" and isinstance(value, list):
            yield from ((f"{at}[{i}]", name) for i, name in enumerate(value) if isinstance(name, str))
        elif isinstance(value, dict) and member != "extra":
            yield from _models(value, at)


def last_kind(topic: Topic) -> str:
    """The kind of a conversation's newest run; `chat` where there is none."""
    runs = topic.state["runs"]
    return str(runs[next(reversed(runs))]["kind"]) if runs else "chat"
