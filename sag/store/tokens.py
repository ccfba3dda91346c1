"""API tokens: who a bearer is. Only digests are kept; a token is shown once, when it is made."""

from __future__ import annotations

import hashlib
from typing import Any

from msgspec import Struct

from sag.errors import Fault
from sag.ops.dispatch import User
from sag.schema.ids import new_id, new_secret, now_ms
from sag.topics.journal import Drop, Journal, Put

PREFIX = "sag_"


class TokenInfo(Struct, omit_defaults=True):
    """A token as it is listed. Times in Unix ms."""

    id: str
    user: str
    name: str
    roles: list[str]
    created: int
    expires: int | None = None


def digest(token: str) -> str:
    """What is kept of a token. It is 256 random bits, so that a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The hub's API tokens."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def new(self, tx: Any, user: str, name: str, roles: list[str], expires: int | None = None) -> tuple[str, TokenInfo]:
        """Make a token with a transaction; the text is given here and never again."""
        text = PREFIX + new_secret()
        info = TokenInfo(new_id("t"), user, name, roles, now_ms(), expires)
        tx.put(
            Put(
                "token",
                {
                    "id": info.id,
                    "digest": digest(text),
                    "user": user,
                    "name": name,
                    "roles": ",".join(roles),
                    "created": info.created,
                    "expires": expires,
                },
            )
        )
        return text, info

    async def list(self) -> list[TokenInfo]:
        rows = await self._journal.rows("token", {}, order="created")
        return [_info(row) for row in rows]

    async def find(self, text: str) -> tuple[User, TokenInfo]:
        """Who bears a token.

        Raises:
            Fault: auth.invalid.
        """
        rows = await self._journal.rows("token", {"digest": digest(text)})
        if not rows or (rows[0]["expires"] is not None and rows[0]["expires"] <= now_ms()):
            raise Fault("auth.invalid")
        info = _info(rows[0])
        return User(info.user, info.user, tuple(info.roles)), info

    async def drop(self, tx: Any, id: str) -> TokenInfo:
        """Revoke a token.

        Raises:
            Fault: token.unknown.
        """
        rows = await self._journal.rows("token", {"id": id})
        if not rows:
            raise Fault("token.unknown")
        tx.put(Drop("token", {"id": id}))
        return _info(rows[0])


def _info(row: dict[str, Any]) -> TokenInfo:
    return TokenInfo(row["id"], row["user"], row["name"], row["roles"].split(","), row["created"], row["expires"])
