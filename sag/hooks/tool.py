"""Tools: what a model may call. From a function's signature to a JSON Schema, validation and the call.

Above: the plugin host registers them, the engine's toolbox calls them. Nothing here knows of runs or topics.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, get_type_hints, overload

import msgspec
from msgspec import Struct, field

from sag.hooks.schema import check_schema
from sag.ops.dispatch import DECODE_ERRORS, User, params_fault

Risk = Literal["read", "write", "danger"]
Policy = Literal["auto", "ask", "deny"]
Json = dict[str, Any]


class TextContent(Struct, tag="text", tag_field="kind"):
    """Text."""

    text: str


class BlobContent(Struct, tag="blob", tag_field="kind", omit_defaults=True):
    """Bytes: an image, sound, any file. The hub keeps them and tells devices a `ref`."""

    mime: str
    data: bytes
    name: str = ""


class LinkContent(Struct, tag="link", tag_field="kind", omit_defaults=True):
    """Something that can be had elsewhere."""

    uri: str
    name: str = ""
    title: str = ""
    description: str = ""
    mime: str = ""


class TableContent(Struct, tag="table", tag_field="kind", omit_defaults=True):
    """Rows of plain values."""

    columns: list[str]
    rows: list[list[Any]]
    title: str = ""


Content = TextContent | BlobContent | LinkContent | TableContent


class Result(Struct):
    """What a tool gives where text or plain JSON is not enough.

    Attributes:
        content: For people and for the model, in order.
        data: The same as JSON, where there is a form for it.
    """

    content: list[Content] = field(default_factory=list)
    data: Any = None


class SampleMessage(Struct):
    """A message of what a tool asks the model."""

    role: Literal["user", "assistant"]
    content: list[Content]


class Sampled(Struct):
    """What the model answered a tool.

    Attributes:
        text: The answer.
        model: Which model, `provider/model`.
        finish: stop, length or refused.
    """

    text: str
    model: str
    finish: str


class ToolError(Exception):
    """A tool failed in a way that the model is told; the text is what it gets to read.

    Attributes:
        kind: What programs tell it by, as in `tool.close`.
    """

    def __init__(self, message: str = "", *, kind: str = "tool.error") -> None:
        super().__init__(message)
        self.kind = kind


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

    async def output(self, text: str) -> None:
        """Show more of what the tool writes while it works, on every device; the model does not read it."""

    async def sample(
        self,
        messages: Sequence[SampleMessage],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: list[str] | None = None,
    ) -> Sampled:
        """Ask the run's model something, once a person has allowed it; it is a step of the run.

        Raises:
            ToolError: It was denied, or the model failed.
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
        timeout_s: How long a call may take; one that tells progress or asks may take up to `longest_s`.
        origin: The plugin or connector it comes from.
        connector: The same where it is a connector, else "".
        title: What people call it.
        output: JSON Schema of what it gives, where it is known.
        policy: What an administrator decided of it, whatever its risk; None leaves that to the risk.
        hint: What a system prompt may say of when and how it is used.
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
        connector: str = "",
        title: str = "",
        output: Json | None = None,
        policy: Policy | None = None,
        longest_s: float = 300.0,
        hint: str = "",
    ) -> None:
        self.name, self.description, self.input = name, description, input
        self.risk, self.idempotent, self.timeout_s, self.origin = risk, idempotent, timeout_s, origin or connector
        self.connector, self.title, self.output, self.policy = connector, title, output, policy
        self.longest_s = max(longest_s, timeout_s)
        self.hint = hint
        self._call = call
        self._check = check

    @property
    def key(self) -> str:
        """What tells it apart from all other tools: `connector/name`, or the name of a tool of no connector."""
        return f"{self.connector}/{self.name}" if self.connector else self.name

    @cached_property
    def definition(self) -> Json:
        """What a person who approves it approves: description, input and risk."""
        return {"description": self.description, "input": self.input, "risk": self.risk}

    @cached_property
    def fingerprint(self) -> str:
        """What tells this definition from a changed one."""
        return hashlib.sha256(msgspec.json.encode(self.definition, order="deterministic")).hexdigest()[:16]

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
    *,
    name: str | None = None,
    risk: Risk = "write",
    idempotent: bool = False,
    timeout_s: float = 60.0,
    hint: str = "",
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    risk: Risk = "write",
    idempotent: bool = False,
    timeout_s: float = 60.0,
    hint: str = "",
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

        return Tool(
            label, text, schema, call, check=check, risk=risk, idempotent=idempotent, timeout_s=timeout_s, hint=hint
        )

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


def plain_json(value: Any) -> Any:
    """A tool's value as plain JSON.

    Raises:
        ToolError: It is none.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=True)
        msgspec.json.encode(plain)
    except (TypeError, ValueError, RecursionError, UnicodeError) as e:
        raise ToolError(f"The tool's result cannot be shown: {e}") from None
    return plain
