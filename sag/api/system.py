"""Operations on the hub itself: who one is, plugins, tools, tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Meta, Struct

from sag.engine.engine import Engine
from sag.hooks.host import PluginInfo
from sag.ops.dispatch import Call, User
from sag.ops.operation import Change, Params, operation
from sag.schema.ids import now_ms
from sag.store.tokens import TokenInfo, Tokens

Json = dict[str, Any]


class Nothing(Params):
    """No params."""


class PluginListed(Struct):
    """All plugins that were found."""

    plugins: list[PluginInfo]


class TokenNew(Change):
    """For whom, with what label and roles, for how long."""

    user: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")] = "local"
    name: Annotated[str, Meta(max_length=100)] = ""
    admin: bool = False
    expires_s: Annotated[int, Meta(ge=1)] | None = None


class TokenMade(Struct):
    """The token's text, which is shown this once and empty where the answer is repeated, and its listing."""

    token: str
    info: TokenInfo

    def kept(self) -> TokenMade:
        return TokenMade("", self.info)


class TokenListed(Struct):
    """All tokens, without their texts."""

    tokens: list[TokenInfo]


class TokenDrop(Change):
    """Which token."""

    id: str


class System:
    """Operations on the hub itself."""

    def __init__(
        self,
        engine: Engine,
        tokens: Tokens,
        plugins: Callable[[], list[PluginInfo]],
        end_access: Callable[[str], None],
    ) -> None:
        self._engine, self._tokens, self._plugins, self._end_access = engine, tokens, plugins, end_access

    @operation("user.me", who="user", rest="GET /api/me")
    async def me(self, call: Call, params: Nothing) -> User:
        """Who the caller is."""
        return call.me

    @operation("plugin.list", who="user", rest="GET /api/plugins")
    async def plugins(self, call: Call, params: Nothing) -> PluginListed:
        """The plugins, what each brings, and what is wrong with it."""
        return PluginListed(self._plugins())

    @operation("token.new", who="admin", rest="POST /api/tokens")
    async def new_token(self, call: Call, params: TokenNew) -> TokenMade:
        """Make an API token; its text is shown here and never again."""
        expires = None if params.expires_s is None else now_ms() + params.expires_s * 1000
        roles = ["user", "admin"] if params.admin else ["user"]
        text, info = self._tokens.new(call.tx, params.user, params.name, roles, expires)
        return TokenMade(text, info)

    @operation("token.list", who="admin", rest="GET /api/tokens")
    async def list_tokens(self, call: Call, params: Nothing) -> TokenListed:
        """The API tokens."""
        return TokenListed(await self._tokens.list())

    @operation("token.drop", who="admin", rest="DELETE /api/tokens/{id}")
    async def drop_token(self, call: Call, params: TokenDrop) -> TokenInfo:
        """Revoke an API token; the connections that it opened end."""
        info = await self._tokens.drop(call.tx, params.id)
        call.tx.after(lambda: self._end_access(info.id))
        return info
