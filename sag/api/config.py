"""Operations on config."""

from __future__ import annotations

from typing import Any, Literal

from sag.engine.config import ConfigView, Patched
from sag.engine.engine import Engine
from sag.ops.dispatch import Call
from sag.ops.operation import Change, Params, operation

Json = dict[str, Any]


class ConfigGet(Params):
    """Which scope: `run:<id>`, `conv:<id>` or `client:<id>`."""

    scope: str


class ConfigPatch(Change):
    """A merge patch on a scope; `rev` makes it compare-and-set, `apply` says when a run takes it up."""

    scope: str
    patch: Json
    rev: int | None = None
    apply: Literal["next_step", "now"] = "next_step"


class Config:
    """Operations on config."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @operation("config.get", who="user", rest="GET /api/config/{scope}")
    async def get(self, call: Call, params: ConfigGet) -> ConfigView:
        """A scope's config, what follows of it, and its schema."""
        return await self._engine.scopes.view(call, params.scope)

    @operation("config.patch", who="user", rest="PATCH /api/config/{scope}")
    async def patch(self, call: Call, params: ConfigPatch) -> Patched:
        """Patch a scope's config; a run takes it up at its next step, or at once."""
        return await self._engine.scopes.patch(call, params.scope, params.patch, params.rev, params.apply)
