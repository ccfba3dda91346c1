"""The hub's connections: who is there, how many may be, and how all are told to go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Coroutine
from typing import Any

from sag.errors import Fault
from sag.hub.connection import Connection
from sag.hub.session import Sessions
from sag.ops.dispatch import Dispatcher, User
from sag.settings import HubSettings
from sag.topics.topic import Topics
from sag.wire import closing

Identify = Callable[[str], Awaitable[tuple[User, int | None, str]]]


class Hub:
    """All connections.

    Args:
        settings: Times and limits.
        topics: What they follow.
        dispatcher: What they call.
        taken: Tells the names of the hub's own tools, which a client's tools may not take.
        identify: Who bears a token: the user, when it expires (Unix ms), the token's id.
        version: What `hello` tells.
    """

    def __init__(
        self,
        settings: HubSettings,
        topics: Topics,
        dispatcher: Dispatcher,
        taken: Callable[[], Container[str]],
        identify: Identify,
        version: str,
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.topics, self.dispatcher, self.taken, self.identify, self.version = (
            topics,
            dispatcher,
            taken,
            identify,
            version,
        )
        self.sessions = Sessions(settings.keep_ms)
        self.connections: set[Connection] = set()
        self.calls: Counter[str] = Counter()
        self._joined: set[Connection] = set()
        self._users: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count(self, method: str) -> None:
        self.calls[method] += 1

    def admit(self, address: str) -> None:
        """Whether another connection may be opened from an address, before it is accepted.

        Raises:
            Fault: draining, connection.limit.
        """
        if self.dispatcher.draining:
            raise Fault("draining", after_ms=1000)
        if len(self.connections) >= self.limits.connections:
            raise Fault("connection.limit", "The hub has as many connections as it takes.", code=503, after_ms=5000)
        if self._addresses[address] >= self.limits.connections_per_address:
            raise Fault("connection.limit", "Too many connections from this address.", after_ms=5000)

    def entered(self, connection: Connection) -> None:
        """A socket was accepted."""
        self.connections.add(connection)
        self._addresses[connection.address] += 1

    def joined(self, connection: Connection) -> None:
        """A connection has a user now.

        Raises:
            Fault: connection.limit.
        """
        assert connection.user is not None
        if self._users[connection.user.id] >= self.limits.connections_per_user:
            connection.user = None
            raise Fault("connection.limit", "Too many connections of this user.", after_ms=5000)
        self._joined.add(connection)
        self._users[connection.user.id] += 1

    def left(self, connection: Connection) -> None:
        """A connection is gone."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        _less(self._addresses, connection.address)
        if connection in self._joined and connection.user is not None:
            self._joined.discard(connection)
            _less(self._users, connection.user.id)

    def end_access(self, token: str) -> None:
        """A token was revoked: end the connections that it opened."""
        for connection in list(self.connections):
            if connection.token == token:
                connection.end(closing.ACCESS_ENDED)

    def say_goodbye(self, spread_s: float) -> None:
        """Tell every client that the hub goes down and when to come back, without closing yet."""
        for connection in list(self.connections):
            after_ms = round(random.uniform(0, spread_s) * 1000)
            connection.say_bye(closing.RESTART, after_ms)

    async def close(self) -> None:
        """Close every connection, those that take nothing at once."""
        for connection in list(self.connections):
            connection.end(closing.RESTART)
        self.sessions.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=3)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
