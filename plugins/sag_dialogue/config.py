"""The config of a dialogue: who takes part, for how long, and who chooses the next speaker.

Pure. Above: the kind and its routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from sag.plugin import RunConfig

Json = dict[str, Any]

PAIR: dict[str, Json] = {"b0": {"name": "Ada"}, "b1": {"name": "Ben"}}
MOST_BOTS, MOST_TURNS = 16, 1000

BotId = Annotated[str, Meta(pattern=r"^(?!moderator$)[A-Za-z0-9_-]{1,40}$")]
Model = Annotated[str, Meta(max_length=200)]
Prompt = Annotated[str, Meta(max_length=100_000)]
Name = Annotated[str, Meta(max_length=80, pattern=r"^[^\x00-\x1f]*$")]
Temperature = Annotated[float, Meta(ge=0, le=2)]


class Bot(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One who takes part. What is left out is the run's.

    Attributes:
        name: What people and the others call it; its id where it is empty.
        model: `provider/model`.
        system: Its prompt; left out means one that tells it who it is and with whom it talks.
        temperature: Sampling temperature.
        max_tokens: The most tokens of one answer.
        tools: Whether it may call tools.
    """

    name: Name = ""
    model: Model | None = None
    system: Prompt | None = None
    temperature: Temperature | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    tools: bool = False


class Moderator(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Who chooses the next speaker, where `next` says so. What is left out is the run's.

    Attributes:
        model: `provider/model`.
        system: How it is to choose; whom it can choose is told besides.
        temperature: Sampling temperature.
    """

    model: Model | None = None
    system: Prompt = "You moderate this talk. Choose who should speak next, so that it stays lively and gets somewhere."
    temperature: Temperature | None = None


class DialogueConfig(RunConfig):
    """Config of a dialogue: that of every kind, where `rounds` counts for one turn and not for the run, and these.

    Attributes:
        bots: Who takes part, by id, in the order in which they speak. Ada (`b0`) and Ben (`b1`) take part too unless
            there are two others or more.
        max_turns: After how many turns it is over; RUN_MAX_TURNS caps it.
        next: Who speaks next: whoever has been silent longest, or whom the moderator chooses.
        moderator: That one.
    """

    bots: Annotated[dict[BotId, Bot], Meta(max_length=MOST_BOTS)] = {}
    max_turns: Annotated[int, Meta(ge=1, le=MOST_TURNS)] = 10
    next: Literal["round_robin", "moderator"] = "round_robin"
    moderator: Moderator = field(default_factory=Moderator)

    @classmethod
    def opened(cls, config: Json, below: Json) -> Json:
        """With the pair that takes part where nobody named others: the run's own, so that they can be removed."""
        under, bots = below.get("bots", {}), config.get("bots", {})
        named = {**under, **bots}
        if len(named) > 1 and not named.keys() & PAIR.keys():
            return config
        joining = {id: bot for id, bot in PAIR.items() if id not in under}
        return {**config, "bots": {id: {**joining.get(id, {}), **bots.get(id, {})} for id in {**joining, **bots}}}


def numbered(known: Mapping[str, int], bots: Iterable[str]) -> dict[str, int]:
    """The bots' numbers from 0: those that are known, and the next for the others, in their order."""
    new = (id for id in bots if id not in known)
    return {**known, **{id: number for number, id in enumerate(new, len(known))}}
