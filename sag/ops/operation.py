"""The declaration of an operation, and the registry of all of them.

One declaration gives the method of the socket, `POST /rpc/<method>`, an optional REST route, the schemas and the
generated types. Who may call it is a required part: no road has a check of its own (RELIABILITY, first defence).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Struct

from sag.errors import Fault

if TYPE_CHECKING:
    from sag.ops.dispatch import Call

Who = Literal["anyone", "user", "admin"]
Handler = Callable[["Call", Any], Awaitable[Any]]
TopicOf = Callable[["Call", Any], Awaitable[str | None]]
F = TypeVar("F", bound=Callable[..., Any])


class Params(Struct):
    """Params of an operation that only reads. Members that it does not know are ignored."""


class Change(Struct, kw_only=True):
    """Params of an operation that changes something; `key` makes sending it again harmless (protocol section 4)."""

    key: str | None = None


class Operation:
    """One thing a client can ask for.

    Attributes:
        method: `area.verb`, as on the socket.
        who: `anyone`, `user` (signed in, and sees what is its own alone) or `admin`.
        changes: Whether it changes something: such a call takes a key, and is refused while the hub goes down.
        rest: A REST route, `POST /api/runs/{run}/cancel`, or None. Path and query members are params.
        topic: `async (call, params)` gives the name of the topic that the socket subscribes the caller to before
            the operation begins, or None where the result's `conv` will tell.
        origin: The plugin that brought it; "" is the hub.
    """

    __slots__ = ("changes", "decode", "failed", "handler", "method", "origin", "params", "rest", "result", "text",
                 "topic", "who")  # fmt: skip

    def __init__(
        self,
        method: str,
        handler: Handler,
        params: type[Any],
        result: Any,
        *,
        who: Who,
        changes: bool,
        rest: str | None = None,
        topic: TopicOf | None = None,
        text: str = "",
        origin: str = "",
    ) -> None:
        self.method, self.handler, self.params, self.result = method, handler, params, result
        self.who, self.changes, self.rest, self.topic = who, changes, rest, topic
        self.text, self.origin = text, origin
        self.failed: str | None = None
        self.decode = msgspec.json.Decoder(params).decode


class _Declared:
    """What `operation` leaves on a function until it is bound to an object."""

    def __init__(self, method: str, who: Who, rest: str | None, topic: str | None) -> None:
        self.method, self.who, self.rest, self.topic = method, who, rest, topic


def operation(
    method: str,
    *,
    who: Who,
    rest: str | None = None,
    topic: str | None = None,
) -> Callable[[F], F]:
    """Declare `async def name(call, params: P) -> R` as an operation.

    P and R are msgspec structs; P a `Change` where something is changed, else a `Params`. The docstring is the
    operation's description in the reference. `topic` names the method beside it that is `Operation.topic`.
    """

    def declare(function: F) -> F:
        function.__operation__ = _Declared(method, who, rest, topic)  # type: ignore[attr-defined]
        return function

    return declare


def bind(function: Callable[..., Any], origin: str = "") -> Operation:
    """The operation of a declared function or bound method.

    Raises:
        TypeError: It is not declared, not async, or its params are no `Params` or `Change`.
    """
    declared = getattr(function, "__operation__", None)
    if not isinstance(declared, _Declared):
        raise TypeError(f"{function!r} is not declared with @operation")
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{declared.method}: has to be an async def")
    hints = get_type_hints(function, include_extras=True)
    names = [p for p in inspect.signature(function).parameters if p != "self"]
    params = hints.get(names[1]) if len(names) == 2 else None
    if not (isinstance(params, type) and issubclass(params, (Params, Change))):
        raise TypeError(f"{declared.method}: takes (call, params: a Params or Change struct)")
    return Operation(
        declared.method,
        function,
        params,
        hints.get("return", None),
        who=declared.who,
        changes=issubclass(params, Change),
        rest=declared.rest,
        topic=getattr(function.__self__, declared.topic) if declared.topic else None,  # type: ignore[attr-defined]
        text=inspect.getdoc(function) or "",
        origin=origin,
    )


class Registry:
    """All operations of the hub, by method."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}

    def add(self, op: Operation) -> None:
        """Register an operation.

        Raises:
            ValueError: The method or the route is taken.
        """
        taken = self._operations.get(op.method)
        if taken is None and op.rest:
            taken = next((o for o in self._operations.values() if o.rest == op.rest), None)
        if taken is not None:
            raise ValueError(f"{op.method}: taken by {taken.origin or 'the hub'} ({taken.method})")
        self._operations[op.method] = op

    def add_all(self, area: object) -> None:
        """Register every declared method of an object."""
        for name in dir(type(area)):
            function = getattr(type(area), name)
            if hasattr(function, "__operation__"):
                self.add(bind(getattr(area, name)))

    def get(self, method: str) -> Operation:
        """The operation of a method.

        Raises:
            Fault: rpc.method.
        """
        op = self._operations.get(method)
        if op is None:
            raise Fault("rpc.method", f"There is no method {method!r}.")
        return op

    def fail(self, origin: str, reason: str) -> None:
        """Switch off what a plugin brought; its operations answer 503 `plugin.failed` from now on."""
        for op in self._operations.values():
            if op.origin == origin:
                op.failed = reason

    def __iter__(self) -> Iterator[Operation]:
        return iter(sorted(self._operations.values(), key=lambda o: o.method))
