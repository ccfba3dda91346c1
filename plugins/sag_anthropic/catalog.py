"""What is known of Anthropic's models: the data file `models.json`, and the vendor's own list, which wins."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from sag.plugin import Ability, Effort, Model, Price

Thinking = Literal["adaptive", "budget"]
Off = Literal["disabled", "between_tools"]

# What may follow an id and leaves the model the same: a date, a cloud's version.
_SAME = re.compile(r"(?:[-@]\d{8}|-latest|-v\d+|:\d+)*")
_CLOUD = re.compile(r"^.*[./](?=claude-)")  # `anthropic/claude-…` of a proxy, `eu.anthropic.claude-…` of a cloud


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """A model of the data file.

    Attributes:
        id: Anthropic's name of it, without a date.
        label: For people.
        context, output: Tokens that fit, and the most tokens of one answer, thoughts included.
        abilities: What it can do.
        thinking: How it is told to think: `adaptive` with an effort, or a `budget` of tokens; None if it cannot.
        off: How it is told not to; None if it always thinks.
        efforts: Those that it takes.
        sampling: Whether it takes temperature, top_p and top_k.
        bound: Its thoughts hold only as long as nothing before them has changed.
        bytes_per_token: About how much text makes a token.
        price: In US dollars; None where it is not known or more than one.
        released: When it came out.
        offered: Whether it is listed without asking; what is retired or about to be is not.
    """

    id: str
    label: str = ""
    context: int | None = None
    output: int | None = None
    abilities: list[Ability] | None = None
    thinking: Thinking | None = "adaptive"
    off: Off | None = "disabled"
    efforts: list[Effort] = field(default_factory=list)
    sampling: bool = True
    bound: bool = False
    bytes_per_token: float = 3.5
    price: Price | None = None
    released: date | None = None
    offered: bool = True

    def to_model(self, id: str = "", *, default: bool = False) -> Model:
        """The model as the hub shows it, under the id that it was asked for by."""
        day = self.released
        created = None if day is None else int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        return Model(
            id or self.id,
            label=self.label,
            context=self.context,
            output=self.output,
            abilities=self.abilities,
            price=self.price,
            created=created,
            default=default,
        )


class _File(Struct, forbid_unknown_fields=True):
    as_of: date
    sources: list[str]
    notes: list[str]
    models: list[Known]


FILE = msgspec.json.decode(Path(__file__).with_name("models.json").read_bytes(), type=_File)
CATALOG = {known.id: known for known in FILE.models}
NEWEST_SONNET = max(
    (known for known in FILE.models if "-sonnet-" in known.id and known.offered),
    key=lambda known: known.released or date.min,
).id


def find(model: str) -> Known:
    """What is known of a model: the entry with the longest id that its name begins with, a date or the like aside.

    One that is not in the file is taken for a newer Claude, and any other name for a model of another maker whose
    server speaks Anthropic's protocol as it was when thinking had a budget.
    """
    name = _CLOUD.sub("", model)
    fitting = [id for id in CATALOG if name.startswith(id) and _SAME.fullmatch(name, len(id))]
    if fitting:
        return CATALOG[max(fitting, key=len)]
    if name.startswith("claude-"):
        return Known(model, efforts=["low", "medium", "high", "xhigh", "max"])
    return Known(model, thinking="budget")


class _Support(Struct):
    supported: bool = False


class _Types(Struct):
    adaptive: _Support = field(default_factory=_Support)
    enabled: _Support = field(default_factory=_Support)


class _Thinking(Struct):
    supported: bool = False
    types: _Types = field(default_factory=_Types)


class _Capabilities(Struct):
    image_input: _Support = field(default_factory=_Support)
    pdf_input: _Support = field(default_factory=_Support)
    structured_outputs: _Support = field(default_factory=_Support)
    thinking: _Thinking = field(default_factory=_Thinking)
    effort: dict[str, bool | _Support | None] = field(default_factory=dict)


class Listed(Struct):
    """A model of the vendor's list; a proxy's has little more than the id."""

    id: str
    display_name: str | None = None
    created_at: datetime | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: _Capabilities | None = None


class Page(Struct):
    """A page of the vendor's list."""

    data: list[Listed]
    has_more: bool = False
    last_id: str | None = None


def learn(listed: Listed) -> Known:
    """What is known of a model that the vendor lists; what the list says wins over the file."""
    known = find(listed.id)
    released = known.released
    if released is None and listed.created_at is not None and listed.created_at.year > 2000:  # the epoch is «unknown»
        released = listed.created_at.date()
    known = msgspec.structs.replace(
        known,
        label=listed.display_name or known.label,
        context=listed.max_input_tokens or known.context,
        output=listed.max_tokens or known.output,
        released=released,
    )
    can = listed.capabilities
    if can is None:
        return known
    types = can.thinking.types
    thinking: Thinking | None = (
        "adaptive" if types.adaptive.supported else "budget" if types.enabled.supported else None
    )
    having: list[tuple[Ability, bool]] = [
        ("tools", True),
        ("images", can.image_input.supported),
        ("files", can.pdf_input.supported),
        ("reasoning", can.thinking.supported),
        ("json", can.structured_outputs.supported),
    ]
    order: list[Effort] = ["low", "medium", "high", "xhigh", "max"]
    efforts = [one for one in order if isinstance(level := can.effort.get(one), _Support) and level.supported]
    return msgspec.structs.replace(
        known,
        thinking=thinking,
        abilities=[ability for ability, there in having if there],
        efforts=efforts,
    )
