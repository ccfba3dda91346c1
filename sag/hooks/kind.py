"""Run kinds: how a run proceeds. A kind is a config struct and one coroutine on a `Run` (sag.engine.run)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from msgspec import Meta, Struct

from sag.hooks.provider import Effort


class RunConfig(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What every kind's config has, as far as it makes sense to it; a kind's own struct extends it.

    Attributes:
        model: `provider/model`; left out means the hub's default.
        temperature: Sampling temperature; left out means the vendor's own default.
        max_tokens: The most tokens of one answer.
        top_p: Nucleus sampling.
        stop: Texts at which the model stops.
        seed: For answers that can be had again, where the vendor can.
        reasoning: How much the model is to think, where it can.
        system: The system prompt.
        tools: Which tools are off or on, by name; one that is not named is on.
        rounds: How many model rounds a run may take before it ends with `limit`.
        fallbacks: Models that take over, in this order, when one fails.
        trim: Leave out the oldest messages where the conversation does not fit the model; else such a run fails.
        retries: How often a round is tried again after a broken answer.
        first_token_s, gap_s, total_s: Deadlines of one model round: to the first token, between two, for all.
        extra: Members for the vendor, sent as they are.
    """

    model: Annotated[str, Meta(max_length=200)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=4)] | None = None
    seed: int | None = None
    reasoning: Effort | None = None
    system: Annotated[str, Meta(max_length=100_000)] | None = None
    tools: dict[str, bool] = {}
    rounds: Annotated[int, Meta(ge=1, le=32)] = 5
    fallbacks: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=8)] = []
    trim: bool = True
    retries: Annotated[int, Meta(ge=0, le=5)] = 2
    first_token_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    gap_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    total_s: Annotated[float, Meta(gt=0, le=86400)] = 600.0
    extra: dict[str, Any] = {}

    @classmethod
    def opened(cls, config: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
        """What a run's own config is when it is accepted.

        For what has to be there and can yet be removed, member by member: that cannot be a default, for a patch that
        removes it would bring the default back.

        Args:
            config: What `run.start` says.
            below: What the device and the conversation say.
        """
        return config


class RunKind(Struct):
    """One way in which runs proceed.

    Attributes:
        name: `chat`, `toolchain` …
        config: Its config struct; its defaults are the lowest layer (protocol section 6).
        run: Does the work, on what the run's topic says has been done already.
        origin: The plugin that brought it.
        title, description: For people.
        listed: Whether people choose it; else programs alone name it.
        exported: Gives members that an export of a run has besides.
    """

    name: str
    config: type[RunConfig]
    run: Callable[[Any], Awaitable[None]]
    origin: str = ""
    title: str = ""
    description: str = ""
    exported: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    listed: bool = True
