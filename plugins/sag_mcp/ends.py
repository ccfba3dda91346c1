"""The ways in which a connection, or what was asked on it, ends otherwise than well. Nothing else; no SDK."""

from __future__ import annotations


class Broken(Exception):
    """A server was given up for what it did.

    Attributes:
        kind: `mcp.too_big` or `mcp.closed`, as the calls that it had are told.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Down(Exception):
    """A connection is over, or was never made.

    Attributes:
        kind: `mcp.closed`, `mcp.too_big`, `mcp.timeout` or `mcp.auth`.
        stderr: The end of what a process wrote to standard error.
    """

    def __init__(self, kind: str, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.kind, self.stderr = kind, stderr


class Lost(Exception):
    """What was asked was cut.

    Attributes:
        kind: As in `Down`.
        sent: Whether the server may have got it, and done it.
    """

    def __init__(self, kind: str, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.kind, self.sent = kind, sent


class Malformed(Exception):
    """What a server sent is not of the protocol; the text says what."""


class Declined(Exception):
    """The server does not get what it asks for; the text tells it why."""
