"""Config in layers: the kind's defaults < the client's section `llm` < the conversation < the run (protocol section 6).

Pure. A scope holds a sparse document; a patch is a merge patch on it; the patched whole is held against the run
kind's struct before anything changes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import Struct

from sag.errors import Fault
from sag.hooks.kind import RunConfig
from sag.hooks.tool import Policy
from sag.ops.dispatch import DECODE_ERRORS, params_fault
from sag.schema.merge import merge_patch

Json = dict[str, Any]

MAX_DOCUMENT = 256 << 10


class ToolSwitch(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a device decides of a tool or a connector: whether runs are offered it, and whether calls ask first."""

    enabled: bool | None = None
    policy: Policy | None = None


class ClientSettings(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a device may set. `llm` is the lowest layer of its runs, `tools` holds switches by tool's key or connector.

    The others belong to frontends and plugins.
    """

    llm: RunConfig | None = None
    tools: dict[str, ToolSwitch] = {}
    tts: Json = {}
    stt: Json = {}
    ui: Json = {}


class ConfigView(Struct):
    """A scope's config.

    Attributes:
        rev: The scope's revision, from 1.
        config: The sparse document that is set at the scope.
        effective: What follows of it and the layers below.
        schema: JSON Schema of the document.
    """

    rev: int
    config: Json
    effective: Json
    schema: Json


class Patched(Struct):
    """The answer to an accepted patch; `at` says from which offset of which topic it is visible."""

    rev: int
    effective: Json
    applies: Literal["next_step", "now"]
    at: dict[str, int]


@lru_cache(256)
def defaults(struct: type[Struct]) -> Json:
    """A struct's defaults, members that default to None left out; not to be changed."""
    values = msgspec.structs.asdict(struct())
    return {k: msgspec.to_builtins(v) for k, v in values.items() if v is not None}


def fitting(document: Json, struct: type[Struct]) -> Json:
    """The members of a document that a struct has: a device's settings serve kinds that know only some of them."""
    return {k: v for k, v in document.items() if k in struct.__struct_fields__}


def layered(*documents: Json) -> Json:
    """The merge of layers, the lowest first."""
    out: Json = {}
    for document in documents:
        if document:
            out = merge_patch(out, document)
    return out


def validate(document: Json, struct: type[Any]) -> Any:
    """The document as a struct.

    Raises:
        Fault: config.invalid with the path of the fault.
    """
    try:
        return msgspec.convert(document, struct)
    except DECODE_ERRORS as e:
        raise params_fault(e, "config.invalid") from None


def patched(document: Json, patch: Any, struct: type[Any], *below: Json) -> Json:
    """The document that a patch makes, once it is known to fit together with the layers below.

    Raises:
        Fault: config.invalid.
    """
    if not isinstance(patch, dict):
        raise Fault("config.invalid", "A patch is an object.", path="$")
    if not patch and not document and not any(below):
        return {}  # as nearly every run begins; defaults fit
    out: Json = merge_patch(document, patch)
    validate(out, struct)
    validate(layered(*below, out), struct)
    if len(msgspec.json.encode(out)) > MAX_DOCUMENT:
        raise Fault("config.invalid", f"The config is larger than {MAX_DOCUMENT} bytes.", path="$")
    return out


def compare(given: int | None, rev: int, effective: Json) -> None:
    """Compare-and-set.

    Raises:
        Fault: config.conflict with the current rev and effective config.
    """
    if given is not None and given != rev:
        raise Fault("config.conflict", rev=rev, effective=effective)
