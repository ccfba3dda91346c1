"""Which tool calls go ahead, ask a person first, or are refused.

What was decided is looked up from the nearest to the farthest: an administrator's refusal; the device's switch of the
tool; what the user remembered of the tool; the device's switch of its connector; what the user remembered of the
connector; an administrator's wish; the tool's risk. What was remembered for always holds for the definition that was
shown: a tool that has changed since asks again. What was allowed for a run takes the place of asking, not of a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from sag.hooks.tool import Policy, Tool
from sag.ops.dispatch import User
from sag.schema.ids import now_ms
from sag.store.kv import KeyValue
from sag.topics.topic import Transaction

Json = dict[str, Any]
SPACE = "sag.allow"


class Remembered(Struct, omit_defaults=True):
    """What a user decided of a tool or a connector, on all devices.

    Attributes:
        policy: auto, ask or deny.
        ts: When, Unix ms.
        fingerprint: Of the definition that it holds for; None holds for any.
        definition: What was shown.
    """

    policy: Policy
    ts: int = 0
    fingerprint: str | None = None
    definition: Json | None = None


class Verdict(Struct):
    """What becomes of a call.

    Attributes:
        policy: auto, ask or deny.
        always: Whether the answer may be remembered for always.
        changed: The definition that was approved before, where it is another now.
    """

    policy: Policy
    always: bool = True
    changed: Json | None = None


class Approvals:
    """What users have decided.

    Args:
        kv: Where it is kept.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self._kept: dict[tuple[str, str], Remembered] = {}

    async def load(self) -> None:
        """Read what is kept."""
        for key, value in (await self._kv.list(SPACE)).items():
            user, _, tool = key.partition(" ")
            # `true` is what was kept before definitions were.
            self._kept[user, tool] = Remembered("auto") if value is True else msgspec.convert(value, Remembered)

    def decide(self, user: User, tool: Tool, device: Json, allowed: Json) -> Verdict:
        """What becomes of a call.

        Args:
            user: Whose run it is.
            tool: Which tool.
            device: The section `tools` of the device's settings.
            allowed: What was allowed for the run: fingerprints by key.
        """
        verdict = self._decided(user, tool, device)
        if verdict.policy == "ask" and allowed.get(tool.key) == tool.fingerprint:
            return Verdict("auto")
        return verdict

    def _decided(self, user: User, tool: Tool, device: Json) -> Verdict:
        """What becomes of a call of which nothing was allowed for its run."""
        if tool.policy == "deny":
            return Verdict("deny")
        if (policy := _policy(device, tool.key)) is not None:
            return Verdict(policy, always=policy != "ask")
        if (kept := self._kept.get((user.id, tool.key))) is not None:
            if kept.policy == "auto" and kept.fingerprint not in (None, tool.fingerprint):
                return Verdict("ask", changed=kept.definition)
            return Verdict(kept.policy)
        if tool.connector:
            if (policy := _policy(device, tool.connector)) is not None:
                return Verdict(policy)
            if (kept := self._kept.get((user.id, tool.connector))) is not None:
                return Verdict(kept.policy)
        return Verdict(tool.policy or ("ask" if tool.risk == "danger" else "auto"))

    def remember(
        self,
        tx: Transaction,
        user: User,
        key: str,
        policy: Policy,
        fingerprint: str | None = None,
        definition: Json | None = None,
    ) -> None:
        """Keep a decision with a transaction; `auto` of a tool holds for the definition of this fingerprint."""
        kept = Remembered(policy, now_ms())
        if policy == "auto":
            kept.fingerprint, kept.definition = fingerprint, definition
        self._kv.write(tx, SPACE, f"{user.id} {key}", msgspec.to_builtins(kept))
        tx.after(lambda: self._kept.__setitem__((user.id, key), kept))

    def forget(self, tx: Transaction, user: User, key: str) -> bool:
        """Forget a decision with a transaction; gives whether there was one."""
        if (user.id, key) not in self._kept:
            return False
        self._kv.drop(tx, SPACE, f"{user.id} {key}")
        tx.after(lambda: self._kept.__delitem__((user.id, key)))
        return True

    def of(self, user: User) -> Iterator[tuple[str, Remembered]]:
        """What a user decided, by key."""
        return ((key, kept) for (owner, key), kept in self._kept.items() if owner == user.id)


def _policy(device: Json, key: str) -> Policy | None:
    switch = device.get(key)
    return switch.get("policy") if isinstance(switch, dict) else None
