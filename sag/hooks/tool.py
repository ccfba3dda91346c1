"""Tools: what a model may call. From a function's signature to a JSON Schema, validation and the call.

Above: the plugin host registers them, the engine's toolbox calls them. Nothing here knows of runs or topics.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, get_type_hints, overload

import msgspec

from sag.errors import Fault
from sag.ops.dispatch import DECODE_ERRORS, User, params_fault

Risk = Literal["read", "write", "danger"]
Json = dict[str, Any]


class ToolError(Exception):
    """A tool failed in a way that the model is told; the text is what it gets to read."""


class ToolContext(Protocol):
    """What a tool is given as `ctx`.

    Attributes:
        user: Whose run it is.
        client: The device that started the run.
        conv: The conversation's id.
        run: The run's id.
        call: This call's id.
        log: A logger in the plugin's name.
    """

    user: User
    client: str
    conv: str
    run: str
    call: str
    log: logging.Logger

    @property
    def cancelled(self) -> bool:
        """Whether the call was cancelled; a tool that runs in a thread looks here."""

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Show how far the call is, on every device."""

    async def ask(
        self,
        title: str,
        *,
        schema: Json | None = None,
        url: str | None = None,
        options: list[str] | None = None,
        expires_s: float | None = None,
    ) -> tuple[str | None, Json | None]:
        """Ask a person: a form (`schema`), a URL to visit or a choice.

        Returns:
            The choice and, of a form, its data; the choice is None when nobody answered in time.
        """

    async def patch(self, scope: str, patch: Json) -> Json:
        """Patch config as the user could: `run:<id>`, `conv:<id>`, `client:<id>`; gives the effective config."""


class Tool:
    """Something a model may call.

    Attributes:
        name: As registered; the engine sees to a form that every vendor takes.
        description: What the model reads.
        input: JSON Schema of the arguments, an object.
        risk: read, write or danger; danger asks a person first.
        idempotent: Whether running it again after a cut does no harm.
        timeout_s: How long a call may take.
        origin: The plugin or connector it comes from.
    """

    def __init__(
        self,
        name: str,
        description: str,
        input: Json,
        call: Callable[[Any, ToolContext], Awaitable[Any]],
        *,
        check: Callable[[Any], Any] | None = None,
        risk: Risk = "write",
        idempotent: bool = False,
        timeout_s: float = 60.0,
        origin: str = "",
    ) -> None:
        self.name, self.description, self.input = name, description, input
        self.risk, self.idempotent, self.timeout_s, self.origin = risk, idempotent, timeout_s, origin
        self._call = call
        self._check = check

    def check(self, args: Any) -> Any:
        """The arguments as the tool takes them.

        Raises:
            Fault: rpc.params with the path of the fault; the model is told.
        """
        if self._check is not None:
            return self._check(args)
        return check_schema(self.input, args)

    async def call(self, args: Any, ctx: ToolContext) -> Any:
        """Run it on arguments that `check` gave."""
        return await self._call(args, ctx)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, risk: Risk = "write", idempotent: bool = False, timeout_s: float = 60.0
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    risk: Risk = "write",
    idempotent: bool = False,
    timeout_s: float = 60.0,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function; `async def` runs on the loop, `def` in a thread.

    The arguments come from the signature, their descriptions from `Annotated[…, Meta(description=…)]`, the tool's
    description from the docstring. A parameter named `ctx` is given the `ToolContext`.

    Raises:
        TypeError: A parameter has no annotation, or there is no docstring.
    """

    def make(function: Callable[..., Any]) -> Tool:
        text = inspect.getdoc(function)
        label = name or function.__name__
        if not text:
            raise TypeError(f"tool {label}: needs a docstring, which is what the model reads")
        struct, takes_ctx = _params_struct(function, label)
        schema = _plain_schema(struct)
        is_async = inspect.iscoroutinefunction(function)

        def check(args: Any) -> Any:
            try:
                return msgspec.convert(args, struct)
            except DECODE_ERRORS as e:
                raise params_fault(e) from None

        async def call(params: Any, ctx: ToolContext) -> Any:
            given = {field: getattr(params, field) for field in struct.__struct_fields__}
            if takes_ctx:
                given["ctx"] = ctx
            if is_async:
                return await function(**given)
            return await asyncio.to_thread(function, **given)

        return Tool(label, text, schema, call, check=check, risk=risk, idempotent=idempotent, timeout_s=timeout_s)

    return make if function is None else make(function)


def _params_struct(function: Callable[..., Any], label: str) -> tuple[type[msgspec.Struct], bool]:
    hints = get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    takes_ctx = False
    for param in inspect.signature(function).parameters.values():
        if param.name in ("ctx", "self"):
            takes_ctx = takes_ctx or param.name == "ctx"
            continue
        if param.name not in hints or param.kind in (param.VAR_POSITIONAL, param.VAR_KEYWORD, param.POSITIONAL_ONLY):
            raise TypeError(f"tool {label}: parameter {param.name} needs a name and an annotation")
        kind = hints[param.name]
        fields.append((param.name, kind) if param.default is param.empty else (param.name, kind, param.default))
    struct = msgspec.defstruct(label, fields, forbid_unknown_fields=True, kw_only=True)
    return struct, takes_ctx


def _plain_schema(struct: type[msgspec.Struct]) -> Json:
    """The object schema itself, with what it refers to beside it, as vendors want it."""
    schema = msgspec.json.schema(struct)
    defs = schema.pop("$defs", {})
    own = defs.pop(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else schema
    own = {k: v for k, v in own.items() if k != "title"}
    own.setdefault("properties", {})
    return {**own, "$defs": defs} if defs else own


def check_schema(schema: Json, value: Any, kind: str = "rpc.params") -> Any:
    """Hold a value against a JSON Schema and give it back.

    Raises:
        Fault: Of the kind given, with the path of the worst fault.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        raise Fault(kind, error.message[:500], path=error.json_path)
    return value
