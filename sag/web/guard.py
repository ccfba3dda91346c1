"""What every request and every upgrade passes first: Host, Origin, and who it is (RELIABILITY rows 5, 6, 8, 10).

On a loopback address without any configuration there is one local user; elsewhere, and with `auth = "required"`,
a bearer token is needed. The Host check is what keeps a foreign page from reaching the local user by a name of its own.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from sag.errors import Fault
from sag.ops.dispatch import User
from sag.settings import LOOPBACK, Settings
from sag.store.tokens import PREFIX, Tokens

LOCAL = User("local", "You", ("user", "admin"))
Headers = Iterable[tuple[bytes, bytes]]


class Guard:
    """Checks before anything else is done.

    Args:
        settings: Where the hub is bound and which origins may come.
        tokens: Who bears a token.
        own_token: The token of this process's own command line, written beside its data.
    """

    def __init__(self, settings: Settings, tokens: Tokens, own_token: str) -> None:
        self._tokens = tokens
        self._own = own_token
        self._origins = frozenset(settings.hub.origins)
        self._local = settings.loopback and settings.hub.auth == "auto"
        hosts = {urlsplit(o).hostname or "" for o in self._origins}
        self._hosts = frozenset(hosts | LOOPBACK | {settings.hub.host}) if settings.loopback else None

    def check_host(self, headers: Headers) -> None:
        """Raises:
        Fault: request.bad, host.denied.
        """
        hosts = [v for k, v in headers if k == b"host"]
        if len(hosts) != 1:
            raise Fault("request.bad", "Send one Host header.")
        if self._hosts is not None and _hostname(hosts[0].decode("latin-1")) not in self._hosts:
            raise Fault("host.denied")

    def check_origin(self, headers: Headers) -> None:
        """Whether a page of this origin may: one that is absent, equals Host or is listed.

        Raises:
            Fault: origin.denied.
        """
        origins = [v.decode("latin-1").lower() for k, v in headers if k == b"origin"]
        if not origins:
            return
        host = next((v.decode("latin-1").lower() for k, v in headers if k == b"host"), "")
        origin = origins[0].rstrip("/")
        if len(origins) > 1 or not (origin in self._origins or (host and urlsplit(origin).netloc == host)):
            raise Fault("origin.denied")

    async def user_of(self, headers: Headers, *, any_key: bool = False) -> tuple[User | None, int | None, str | None]:
        """Who sends these headers: the user, when the token expires (Unix ms), its id.

        Args:
            headers: Of the request.
            any_key: Where no token is needed, one that is none of the hub's making counts as none: for clients of
                others, which cannot go without a key. Whoever leaves it out has the same rights.

        Raises:
            Fault: auth.invalid for credentials that are there and wrong.
        """
        given = [v.decode("latin-1") for k, v in headers if k == b"authorization"]
        if not given:
            return (LOCAL if self._local else None), None, None
        scheme, _, token = given[0].partition(" ")
        if scheme.lower() != "bearer" or len(given) > 1:
            raise Fault("auth.invalid", "Send `Authorization: Bearer <token>`.")
        token = token.strip()
        if any_key and self._local and not token.startswith(PREFIX) and not self._is_own(token):
            return LOCAL, None, None
        return await self.identify(token)

    def _is_own(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._own.encode())

    async def identify(self, token: str) -> tuple[User, int | None, str]:
        """Who bears a token.

        Raises:
            Fault: auth.invalid.
        """
        if self._is_own(token):
            return LOCAL, None, "own"
        user, info = await self._tokens.find(token)
        return user, info.expires, info.id


def _hostname(host: str) -> str:
    """The name of a Host header without its port, brackets removed."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
