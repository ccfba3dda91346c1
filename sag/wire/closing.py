"""Why a connection ends: the close codes of protocol section 8 and whether a client is to come back."""

from __future__ import annotations

from typing import NamedTuple


class Closing(NamedTuple):
    """One close code.

    Attributes:
        code: On the WebSocket; 4000–4499 mean come back, 4500–4999 do not.
        reason: A word for the `bye` and the close frame.
    """

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        return self.code < 4500


RESTART = Closing(4000, "restart")
SLOW = Closing(4001, "slow")
NO_PONG = Closing(4002, "no pong")
REPLACED = Closing(4003, "replaced")
AUTH_EXPIRED = Closing(4004, "auth expired")
OVERLOADED = Closing(4005, "overloaded")
NOT_AUTHENTICATED = Closing(4500, "not authenticated")
BAD_FRAME = Closing(4501, "bad frame")
NO_HELLO = Closing(4502, "no hello")
BAD_VERSION = Closing(4503, "version")
ACCESS_ENDED = Closing(4504, "access ended")
LIMIT = Closing(4505, "limit")

ALL = (
    RESTART, SLOW, NO_PONG, REPLACED, AUTH_EXPIRED, OVERLOADED,
    NOT_AUTHENTICATED, BAD_FRAME, NO_HELLO, BAD_VERSION, ACCESS_ENDED, LIMIT,
)  # fmt: skip
