"""What is known of models: the data file of OpenAI's own, and what servers' lists say.

Pure. The data file is `models.json`; it says of what day it is and where that stands. What it does not know is left
out rather than guessed, and the table `[models]` of plugins.toml wins over all of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from importlib import resources
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct, field

from sag.plugin import Ability, Model, Price, load_json, to_unicode
from sag_openai.flavors import Flavor

LISTED = 1000  # models of one server that are shown

# What servers list besides models that chat; most do not say which is which.
_NO_CHAT = re.compile(
    r"embed|whisper|tts|dall-e|moderation|transcribe|realtime|image|audio|sora|rerank|babbage|davinci|-live", re.I
)
# A dated snapshot, and a model that was tuned: the same model for what is known of it, but for its price.
_DATED = re.compile(r"-\d{4}(-\d{2}-\d{2})?$")
_TUNED = re.compile(r"^ft:([^:]+):")


T = TypeVar("T", "_Listed", "_Routed")


class Known(Struct, forbid_unknown_fields=True):
    """What the data file says of a model.

    Attributes:
        label, context, output, abilities, price: As in `sag.plugin.Model`.
        api: Which of OpenAI's interfaces it is better asked on.
        sampling: It takes `temperature` and `top_p` as long as it does not think; for one that always does, no.
        efforts: How much it can be told to think; none where it does not think.
        aliases: Other names of it.
    """

    label: str = ""
    context: int | None = None
    output: int | None = None
    abilities: list[Ability] | None = None
    price: Price | None = None
    api: Literal["chat", "responses"] = "chat"
    sampling: bool = True
    efforts: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def model(self, id: str, *, default: bool = False) -> Model:
        """It under one of its names."""
        price = None if _TUNED.match(id) else self.price
        return Model(id, self.label, self.context, self.output, self.abilities, price, default=default)


class _Data(Struct, forbid_unknown_fields=True):
    as_of: str
    source: str
    otherwise: Known
    models: dict[str, Known]


@cache
def data() -> _Data:
    """The data file."""
    return msgspec.json.decode((resources.files("sag_openai") / "models.json").read_bytes(), type=_Data)


@cache
def _names() -> dict[str, Known]:
    return {name: one for id, one in data().models.items() for name in (id, *one.aliases)}


@lru_cache(1024)
def find(id: str) -> Known | None:
    """What the data file knows of a model: by its name, or that of which it is a snapshot or a tuned form."""
    tuned = _TUNED.match(id)
    name = tuned[1] if tuned else id
    return _names().get(name) or _names().get(_DATED.sub("", name))


# what servers list


class _Listed(Struct):
    id: str
    created: float | None = None
    max_model_len: int | None = None
    shutdown_date: str | None = None


class _List(Struct):
    data: list[msgspec.Raw]


class _Modes(Struct):
    input_modalities: list[str] = field(default_factory=list)
    output_modalities: list[str] = field(default_factory=lambda: ["text"])


class _Limits(Struct):
    context_length: int | None = None
    max_completion_tokens: int | None = None


class _Routed(Struct):
    id: str
    name: str | None = None
    created: float | None = None
    context_length: int | None = None
    architecture: _Modes = field(default_factory=_Modes)
    pricing: dict[str, object] = field(default_factory=dict)
    top_provider: _Limits = field(default_factory=_Limits)
    supported_parameters: list[str] | None = None


def read_list(body: bytes, flavor: Flavor) -> tuple[list[Model], set[str]]:
    """What a server lists: the models that chat, and the names of all.

    Raises:
        msgspec.DecodeError: It is no list.
    """
    given = msgspec.json.decode(body, type=_List).data
    if flavor.router:
        routed = _read_all(given, _Routed)
        shown = [_read_routed(one) for one in routed if "text" in one.architecture.output_modalities]
        return shown, {one.id for one in routed}
    listed = _read_all(given, _Listed)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    alive = [one for one in listed if not one.shutdown_date or one.shutdown_date > today]
    models = [_describe(one, flavor) for one in alive if not _NO_CHAT.search(one.id)]
    return models, {one.id for one in listed}


def _read_all(given: Sequence[msgspec.Raw], kind: type[T]) -> list[T]:
    """The entries; one that is not as it should be is known by its name alone."""
    out = []
    for raw in given:
        try:
            out.append(msgspec.json.decode(raw, type=kind))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            loose = load_json(bytes(raw))
            if isinstance(loose, dict) and isinstance(id := loose.get("id"), str):
                out.append(kind(to_unicode(id)))
    return out


def _describe(one: _Listed, flavor: Flavor) -> Model:
    known = find(one.id) if flavor.knows else None
    model = known.model(one.id) if known else Model(one.id, context=one.max_model_len)
    model.created = _seconds(one.created)
    return model


def _read_routed(one: _Routed) -> Model:
    """A model of OpenRouter's list."""
    abilities: list[Ability] = []
    takes, reads = one.supported_parameters or (), one.architecture.input_modalities
    for ability, has in (
        ("tools", "tools" in takes),
        ("images", "image" in reads),
        ("files", "file" in reads),
        ("reasoning", "reasoning" in takes),
        ("json", "response_format" in takes or "structured_outputs" in takes),
    ):
        if has:
            abilities.append(ability)  # type: ignore[arg-type]
    return Model(
        one.id,
        one.name or "",
        one.context_length or one.top_provider.context_length,
        one.top_provider.max_completion_tokens,
        None if one.supported_parameters is None else abilities,
        read_price(one.pricing),
        author=one.id.partition("/")[0].lstrip("~"),
        created=_seconds(one.created),
    )


def read_price(pricing: dict[str, object]) -> Price | None:
    """A price that is given in US dollars a token, as decimal text; None where it varies, which `-1` says."""

    def per_million(name: str) -> float | None:
        given = pricing.get(name)
        try:
            price = Decimal(given) if isinstance(given, str) else None
        except InvalidOperation:
            return None
        return None if price is None or not price.is_finite() or price < 0 else float(price * 1_000_000)

    sent, written = per_million("prompt"), per_million("completion")
    if sent is None or written is None:
        return None
    return Price(sent, written, per_million("input_cache_read"), per_million("input_cache_write"))


def _seconds(given: float | None) -> int | None:
    return int(given) if given else None


def merge(configured: Sequence[Model], listed: Iterable[Model], *, first: bool) -> list[Model]:
    """The configured models first, with what the list says of them, then the others that chat.

    Args:
        first: The first one is the default where none is configured.
    """
    told = {model.id: model for model in listed}
    models = []
    for model in configured:
        other = told.pop(model.id, None)
        if other is not None and model.price is None and model.abilities is None:
            model = msgspec.structs.replace(other, default=model.default)
        models.append(model)
    models += list(told.values())[:LISTED]
    if first and models and not any(model.default for model in models):
        models[0] = msgspec.structs.replace(models[0], default=True)
    return models
