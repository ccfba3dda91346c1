"""HTTP routes of plugins: what their functions are given, and what they may answer.

The hub checks Host, Origin and credentials before a function is called, bounds the body, and makes of what it
returns or raises an HTTP answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, field

from sag.errors import Fault
from sag.ops.dispatch import DECODE_ERRORS, User, params_fault

T = TypeVar("T")


class Request:
    """A request to a plugin's route.

    Attributes:
        user: Who asks.
        client: The client id that the request names in `Sag-Client`, else "".
        path: What stands for the braces of the route.
        query: The members of the query, the last of each name.
        headers: The headers, their names in lower case.
        address: Where the request comes from.
    """

    def __init__(
        self,
        user: User,
        client: str,
        path: Mapping[str, str],
        query: Mapping[str, str],
        headers: Mapping[str, str],
        address: str,
        read: Callable[[bool], Awaitable[bytes]],
        gone: Callable[[], Awaitable[None]],
    ) -> None:
        self.user, self.client, self.path, self.query, self.headers = user, client, path, query, headers
        self.address = address
        self._read, self._gone = read, gone

    async def json(self, type: type[T], *, large: bool = False) -> T:
        """The body as a struct.

        Args:
            type: The struct.
            large: Whether it may be as large as an uploaded file, for it holds such; else it is bounded as frames are.

        Raises:
            Fault: media.type, frame.large, body.timeout; rpc.params with the path of what does not fit.
        """
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Fault("media.type")
        try:
            return msgspec.json.decode(await self._read(large), type=type)
        except DECODE_ERRORS as e:
            raise params_fault(e) from None

    async def gone(self) -> None:
        """Wait until the client has gone away. Only once the body has been read."""
        await self._gone()


class Reply(Struct):
    """An answer that is no JSON, or of another status than 200."""

    body: bytes
    mime: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Sent(Struct):
    """A server-sent event: `data` as JSON, or as it is where it is text. One with a `comment` is nothing else."""

    data: Any = None
    name: str | None = None
    id: str | None = None
    comment: str | None = None


class Stream:
    """An answer that is a stream of server-sent events; a comment every 15 s keeps it alive.

    The iterator is closed when the client goes away. An exception ends the stream; what clients should hear of it is
    the iterator's to say.
    """

    def __init__(self, events: AsyncIterator[Sent]) -> None:
        self.events = events


RouteFunction = Callable[[Request], Awaitable[Any]]
"""Gives a `Reply`, a `Stream`, or what is sent as JSON."""


class PluginRoute(NamedTuple):
    """A route of a plugin; `Hub.add_route` explains the members."""

    function: RouteFunction
    any_key: bool = False
    failed: Callable[[Fault], Reply] | None = None
