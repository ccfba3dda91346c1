"""Calling an operation: who may, what the params are, the idempotency key, the commit, and errors.

This is the one place in which exceptions become error bodies, and the one in which a change is committed before
it is answered. Socket, HTTP facade and REST routes all come through `Dispatcher.call`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from sag.errors import Fault
from sag.ops.operation import Operation, Registry

log = logging.getLogger("sag.ops")
_encoder = msgspec.json.Encoder()
_digest_encoder = msgspec.json.Encoder(order="deterministic")
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeError)


class User(Struct, frozen=True):
    """Who calls. A user with the role `admin` may what `admin` operations do."""

    id: str
    name: str
    roles: tuple[str, ...] = ("user",)


class Tx(Protocol):
    """What the dispatcher needs of a transaction; `sag.topics.topic.Transaction` is one."""

    submitted: bool

    @property
    def empty(self) -> bool: ...

    def submit(self, crash: str | None = None) -> asyncio.Future[None]: ...


@runtime_checkable
class Secretive(Protocol):
    """A result with a secret that is told once and kept nowhere."""

    def kept(self) -> Any:
        """The result without it, as it is kept under the request's key."""


class Keys(Protocol):
    """Where idempotency keys are kept."""

    async def find(self, user: str, method: str, key: str) -> tuple[str, bytes] | None:
        """The digest of the params and the result that are kept under a key."""

    def keep(self, tx: Any, user: str, method: str, key: str, digest: str, result: bytes) -> None:
        """Keep a result with a transaction."""


class Call:
    """One request on its way through an operation.

    Attributes:
        user: Who calls; None before anybody signed in.
        client: The device or frontend, `chat`, `cli`, `hall-1`; "" over HTTP unless told.
        peer: The caller's session and connection on the socket, else None.
        key: An idempotency key that came beside the params (HTTP header).
    """

    __slots__ = ("_begin", "_keep", "_tx", "client", "committing", "key", "peer", "result", "user")

    def __init__(
        self, user: User | None, client: str = "", *, begin: Callable[[], Any], peer: Any = None, key: str | None = None
    ) -> None:
        self.user, self.client, self.peer, self.key = user, client, peer, key
        self._begin = begin
        self._tx: Any = None
        self._keep: Callable[[Any, bytes], None] | None = None
        self.result: bytes | None = None
        self.committing: asyncio.Future[None] | None = None

    @property
    def me(self) -> User:
        """The user.

        Raises:
            Fault: auth.required.
        """
        if self.user is None:
            raise Fault("auth.required")
        return self.user

    @property
    def tx(self) -> Any:
        """The transaction of this call; its commit carries the key too."""
        if self._tx is None:
            self._tx = self._begin()
        return self._tx

    def carry(self, tx: Any) -> None:
        """Make a transaction that was filled beforehand this call's, which has none yet."""
        self._tx = tx

    async def commit(self, result: Any, crash: str | None = None) -> None:
        """Commit what was appended, with the result under its key, before the handler goes on.

        A handler that only returns its result need not call this; the dispatcher does.
        """
        self.result = _encoder.encode(result)
        if self._keep is not None:
            kept = result.kept() if isinstance(result, Secretive) else None
            self._keep(self.tx, self.result if kept is None else _encoder.encode(kept))
        if self._tx is not None and not self._tx.empty and not self._tx.submitted:
            self.committing = self._tx.submit(crash)
            # Whoever asked under a key wants to know what came of it, even when the caller waits no longer.
            await (self.committing if self._keep is None else asyncio.shield(self.committing))


class Dispatcher:
    """Calls operations.

    Args:
        registry: What can be called.
        keys: Where results are kept under their keys.
        begin: Begins a transaction.
    """

    def __init__(self, registry: Registry, keys: Keys, begin: Callable[[], Any]) -> None:
        self.registry = registry
        self.begin = begin
        self.draining = False
        self._keys = keys
        self._first: dict[tuple[str, str, str], asyncio.Future[tuple[str, bytes] | None]] = {}

    async def call(self, call: Call, op: Operation, raw: bytes, decoded: Any = None) -> tuple[Any, bytes]:
        """Call an operation.

        Args:
            call: Who and from where.
            op: What.
            raw: The params as JSON; empty means none.
            decoded: The params, if whoever calls has them already.

        Returns:
            The decoded params, and the result as JSON.

        Raises:
            Fault: Whatever went wrong, in the form that the caller is told.
        """
        self.admit(call, op)
        params = decode_params(op, raw) if decoded is None else decoded
        if not op.changes:
            return params, _encoder.encode(await op.handler(call, params))
        key = params.key or call.key
        if key is None:
            return params, await self._run(call, op, params)
        if len(key) > 200:
            raise Fault("rpc.params", "The key is longer than 200 characters.", path="$.key")
        return params, await self._run_once(call, op, params, key)

    def admit(self, call: Call, op: Operation) -> None:
        """Whether the caller may, now.

        Raises:
            Fault: auth.required, access.denied, plugin.failed, draining.
        """
        if op.who != "anyone" and call.user is None:
            raise Fault("auth.required")
        if op.who == "admin" and "admin" not in call.me.roles:
            raise Fault("access.denied", f"{op.method} is for administrators.")
        if op.failed is not None:
            raise Fault("plugin.failed", f"The plugin {op.origin!r} is switched off: {op.failed}")
        if self.draining and op.changes:
            raise Fault("draining", after_ms=1000)

    async def _run(self, call: Call, op: Operation, params: Any) -> bytes:
        try:
            result = await op.handler(call, params)
            if call.result is None:
                await call.commit(result, "key_store")
        except BaseException:
            tx = call._tx
            if tx is not None and not tx.empty and not tx.submitted:
                tx.submit()  # what was appended is part of the topic's state already, so the log has to have it
            raise
        assert call.result is not None
        return call.result

    async def _run_once(self, call: Call, op: Operation, params: Any, key: str) -> bytes:
        user = call.me.id
        slot = (user, op.method, key)
        params.key = None
        digest = hashlib.sha256(_digest_encoder.encode(params)).hexdigest()
        while (first := self._first.get(slot)) is not None:
            kept = await asyncio.shield(first)
            if kept is not None:
                return _same(kept, digest)
        mine: asyncio.Future[tuple[str, bytes] | None] = asyncio.get_running_loop().create_future()
        self._first[slot] = mine
        outcome: tuple[str, bytes] | None = None
        try:
            kept = await self._keys.find(user, op.method, key)
            if kept is not None:
                outcome = kept
                return _same(kept, digest)
            call._keep = lambda tx, result: self._keys.keep(tx, user, op.method, key, digest, result)
            outcome = (digest, await self._run(call, op, params))
            return outcome[1]
        finally:

            def settle(commit: asyncio.Future[None] | None) -> None:
                if outcome is None and commit is not None and call.result is not None and not commit.exception():
                    mine.set_result((digest, call.result))
                else:
                    mine.set_result(outcome)
                if self._first.get(slot) is mine:
                    del self._first[slot]

            commit = call.committing
            if outcome is None and commit is not None and not commit.done():
                commit.add_done_callback(settle)  # the caller waits no longer, but what was accepted goes on
            else:
                settle(commit)


def _same(kept: tuple[str, bytes], digest: str) -> bytes:
    if kept[0] != digest:
        raise Fault("key.mismatch")
    return kept[1]


def decode_params(op: Operation, raw: bytes) -> Any:
    """The params struct.

    Raises:
        Fault: rpc.params with the path of the fault; rpc.parse where a body is no JSON at all.
    """
    try:
        return op.decode(raw or b"{}")
    except msgspec.ValidationError as e:
        raise params_fault(e) from None
    except DECODE_ERRORS as e:
        raise Fault("rpc.parse", params_fault(e).message) from None


def params_fault(e: Exception, kind: str = "rpc.params") -> Fault:
    """The error for a document that does not fit, with the path that msgspec found."""
    text = str(e) if isinstance(e, msgspec.MsgspecError) else "The text is nested too deeply or is not UTF-8."
    match = re.search(r" - at `(?:key` in `)?([^`]*)`$", text)
    path = match[1] if match else "$"
    if unknown := re.search(r"unknown field `(.*?)`", text):
        path += f".{unknown[1]}"
    return Fault(kind, text, path=path)


def error_body(e: BaseException, what: str) -> tuple[Fault, dict[str, Any]]:
    """What a caller is told of an exception: faults as they are, cancels as 499, all else as ours with a trace."""
    trace = secrets.token_hex(6)
    if isinstance(e, asyncio.CancelledError):
        e = Fault("request.cancelled")
    if isinstance(e, Fault):
        if e.code == -32603:
            log.error("%s failed, trace %s: %s", what, trace, e.message)
        return e, e.body(trace)
    log.error("%s failed, trace %s", what, trace, exc_info=e)
    fault = Fault("rpc.internal")
    return fault, fault.body(trace)
