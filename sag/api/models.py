"""Operations on models: which there are, by what they can be picked, whether one works, what became of an answer."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from sag.engine.engine import Engine
from sag.errors import Fault
from sag.hooks.kind import RunConfig
from sag.hooks.provider import Ability, Price
from sag.ops.dispatch import Call
from sag.ops.operation import Params, operation

Record = Annotated[dict[str, Any], Meta(description="The record, as the vendor writes it.")]

SHOWN = 500  # models of the topic `hub`, whose state goes into one frame
CONTEXT_FROM = (0, 16_000, 32_000, 64_000, 128_000, 200_000, 1_000_000)
PRICE_TO = (0, 0.25, 1, 3, 10)


class ModelInfo(Struct, omit_defaults=True):
    """A model and what is known of it.

    Attributes:
        model: Its full name, `provider/model`.
        provider: Who serves it.
        label: For people.
        author: Who made it, where that is another than the provider.
        context: Tokens that fit.
        output: The most tokens of one answer.
        abilities: What it can do.
        price: What it costs.
        created: When it came out, Unix seconds.
        demo: It is scripted.
        default: It is used where nobody chose another.
    """

    model: str
    provider: str
    label: str
    author: str = ""
    context: int | None = None
    output: int | None = None
    abilities: list[Ability] | None = None
    price: Price | None = None
    created: int | None = None
    demo: bool = False
    default: bool = False


class ModelFilter(Params):
    """Which models. One of which something is not known does not fit where it is asked for.

    Attributes:
        q: Words that all stand in the name, the label or the author.
        provider: Who serves it.
        author: Who made it; the provider, where no other is known.
        ability: What it can do, all of it.
        min_context: Tokens that fit at least.
        max_price: The most that a million input tokens may cost, in US dollars.
        free: Whether it costs nothing.
    """

    q: Annotated[str, Meta(max_length=200)] = ""
    provider: str | None = None
    author: str | None = None
    ability: list[Ability] = []
    min_context: Annotated[int, Meta(ge=0)] | None = None
    max_price: Annotated[float, Meta(ge=0)] | None = None
    free: bool | None = None


class ModelList(ModelFilter):
    """Which models, in which order, how many.

    Attributes:
        q, provider, author, ability, min_context, max_price, free: As of `model.facets`.
        sort: By `name`, the lowest `price` of input, the largest `context` or the `newest` first, what is not known
            last; left out, the default comes first and the others as their providers list them.
        limit: How many at most.
        offset: How many to leave out before them.
    """

    sort: Literal["name", "price", "context", "newest"] | None = None
    limit: Annotated[int, Meta(ge=1, le=2000)] = 1000
    offset: Annotated[int, Meta(ge=0)] = 0


class ModelListed(Struct):
    """Models that runs can use; `total` is how many fit, with those that are not in this page."""

    models: list[ModelInfo]
    total: int


class ModelFacets(Struct):
    """How many of the models that fit have what.

    Attributes:
        total: How many fit.
        providers: By who serves them.
        authors: By who made them.
        abilities: By what they can do.
        context: By the tokens that fit: from the number that is the key to below the next one; or `unknown`.
        price: By the dollars for a million input tokens: up to the number that is the key, from above the one before;
            or `more`, or `unknown`.
    """

    total: int
    providers: dict[str, int]
    authors: dict[str, int]
    abilities: dict[str, int]
    context: dict[str, int]
    price: dict[str, int]


class ModelCheck(Params):
    """Which model, and the config that it is to run on."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    config: RunConfig | None = None


class ModelChecked(Struct, omit_defaults=True):
    """Whether runs on it can begin; else the kind of error and why, in words for a person."""

    ok: bool
    kind: str | None = None
    message: str | None = None


class GenerationRef(Params):
    """The vendor's id of an answer (`request` of `step.close`), and whose it is; else all providers are asked."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    provider: str | None = None


class Catalogue:
    """Operations on models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @operation("model.list", who="user", rest="GET /api/models")
    async def list(self, call: Call, params: ModelList) -> ModelListed:
        """The models that runs can use."""
        found = [m for m in model_infos(self._engine) if _fits(m, params)]
        if params.sort is not None:
            found.sort(key=_ORDERS[params.sort])
        return ModelListed(found[params.offset : params.offset + params.limit], len(found))

    @operation("model.facets", who="user", rest="GET /api/models/metadata")
    async def facets(self, call: Call, params: ModelFilter) -> ModelFacets:
        """How many of the models there are by what they can be picked."""
        found = [m for m in model_infos(self._engine) if _fits(m, params)]
        context, price = Counter(map(_context_key, found)), Counter(map(_price_key, found))
        return ModelFacets(
            len(found),
            _counted(m.provider for m in found),
            _counted(_author(m) for m in found),
            _counted(ability for m in found for ability in m.abilities or ()),
            {key: context[key] for key in [*map(str, CONTEXT_FROM), "unknown"]},
            {key: price[key] for key in [*map(str, PRICE_TO), "more", "unknown"]},
        )

    @operation("model.check", who="user", rest="POST /api/models/check")
    async def check(self, call: Call, params: ModelCheck) -> ModelChecked:
        """Whether a model works: its provider takes the key, and the model is there and takes the config."""
        try:
            await self._engine.models.check(params.model, params.config)
        except Fault as e:
            return ModelChecked(False, e.kind, e.message)
        return ModelChecked(True)

    @operation("model.generation", who="user", rest="GET /api/chat/generation/{id}")
    async def generation(self, call: Call, params: GenerationRef) -> Record:
        """What a vendor keeps of an answer."""
        return await self._engine.models.generation(params.id, params.provider)


def model_infos(engine: Engine) -> list[ModelInfo]:
    """All models, the one that is used where nobody chose first and with `default`."""
    chosen = engine.models.default()
    out = []
    for name, provider, m in engine.models.all():
        known = (m.author, m.context, m.output, m.abilities, m.price, m.created, m.demo)
        out.append(ModelInfo(name, provider.name, m.label or m.id, *known, name == chosen))
    out.sort(key=lambda info: not info.default)
    return out


def shown_models(engine: Engine, configured: Iterable[str]) -> list[ModelInfo]:
    """The models for the topic `hub`: all, or where there are too many the default, those that settings name, and of
    each provider about as many as of the others.
    """
    infos = model_infos(engine)
    if len(infos) <= SHOWN:
        return infos
    named = set(configured)
    seen: Counter[str] = Counter()
    ranked: list[tuple[bool, bool, int, int]] = []
    for at, info in enumerate(infos):
        ranked.append((not info.default, info.model not in named, seen[info.provider], at))
        seen[info.provider] += 1
    return [infos[at] for at in sorted(rank[-1] for rank in sorted(ranked)[:SHOWN])]


def _author(m: ModelInfo) -> str:
    return m.author or m.provider


def _fits(m: ModelInfo, f: ModelFilter) -> bool:
    text = f"{m.model} {m.label} {m.author}".casefold()
    return (
        all(word in text for word in f.q.casefold().split())
        and f.provider in (None, m.provider)
        and f.author in (None, _author(m))
        and set(f.ability) <= set(m.abilities or ())
        and (f.min_context is None or (m.context is not None and m.context >= f.min_context))
        and (f.max_price is None or (m.price is not None and m.price.input <= f.max_price))
        and (f.free is None or (m.price is not None and (m.price.input == m.price.output == 0) is f.free))
    )


_ORDERS: dict[str, Callable[[ModelInfo], Any]] = {
    "name": lambda m: (m.label.casefold(), m.model),
    "price": lambda m: (m.price is None, m.price.input if m.price else 0, m.price.output if m.price else 0, m.model),
    "context": lambda m: (-(m.context or 0), m.model),
    "newest": lambda m: (-(m.created or 0), m.model),
}


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each is there, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _context_key(m: ModelInfo) -> str:
    return "unknown" if m.context is None else str(CONTEXT_FROM[bisect_right(CONTEXT_FROM, m.context) - 1])


def _price_key(m: ModelInfo) -> str:
    if m.price is None:
        return "unknown"
    at = bisect_left(PRICE_TO, m.price.input)
    return str(PRICE_TO[at]) if at < len(PRICE_TO) else "more"
