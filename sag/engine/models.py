"""The models that runs can use: what providers say they have, what is known of each, which is the default."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from sag.engine.toolbox import Toolbox
from sag.errors import Fault
from sag.hooks.host import Extensions
from sag.hooks.kind import RunConfig
from sag.hooks.provider import LongPrice, Message, Model, ModelRequest, Price, Provider, ProviderError
from sag.outbound import Outbound
from sag.schema.events import Usage
from sag.settings import ModelOverride

log = logging.getLogger("sag.engine")
Json = dict[str, Any]

LIST_S = 20.0
REFRESH_S = 3600.0
AGAIN_S = (5.0, 300.0)


class Models:
    """All models, by their full name `provider/model`.

    Args:
        extensions: Where the providers are.
        outbound: How they ask their vendors.
        overrides: The table `[models]` of plugins.toml; a name may end in `*`.
        announce: Is called when the list has changed.
        named: The provider that `LLM_PROVIDER` names, if any: where it has not told its models yet, no other stands in.
    """

    def __init__(
        self,
        extensions: Extensions,
        outbound: Outbound,
        overrides: Mapping[str, ModelOverride],
        announce: Callable[[], None] = lambda: None,
        named: str = "",
    ) -> None:
        self._extensions = extensions
        self._outbound = outbound
        self._exact = {name: one for name, one in overrides.items() if not name.endswith("*")}
        self._patterns = {name[:-1]: one for name, one in overrides.items() if name.endswith("*")}
        self._announce = announce
        self._named = named.strip().lower()
        self._refusals: dict[str, ProviderError] = {}
        self._known: dict[str, Model] = {}
        self._default: str | None = None
        self._version = -1

    def all(self) -> Iterator[tuple[str, Provider, Model]]:
        """Every model that is known: its full name, its provider, what is known of it."""
        self._index()
        for name, model in self._known.items():
            provider = self._extensions.providers.get(name.partition("/")[0])
            if provider is not None:
                yield name, provider, model

    def info(self, name: str) -> Model | None:
        """What is known of a model, by its full name; an override alone is enough."""
        self._index()
        if found := self._known.get(name):
            return found
        return self._override(name, Model(name.partition("/")[2])) if self._find_override(name) else None

    def _index(self) -> None:
        if self._version == self._extensions.version:
            return
        self._version = self._extensions.version
        self._known = {}
        for provider in list(self._extensions.providers.values()):
            for model in self._extensions.models(provider):
                name = f"{provider.name}/{model.id}"
                self._known[name] = self._override(name, model)
        # Every run asks for it, and some vendors list hundreds.
        ranked = [
            (2 if model.demo else 0 if model.default else 1, name)
            for name, model in self._known.items()
            if self._named in ("", name.partition("/")[0])
        ]
        best = min((rank for rank, _ in ranked), default=None)
        self._default = next((name for rank, name in ranked if rank == best), None)

    def _find_override(self, name: str) -> ModelOverride | None:
        if found := self._exact.get(name):
            return found
        fitting = [prefix for prefix in self._patterns if name.startswith(prefix)]
        return self._patterns[max(fitting, key=len)] if fitting else None

    def _override(self, name: str, model: Model) -> Model:
        given = self._find_override(name)
        if given is None:
            return model
        members = {k: v for k, v in msgspec.structs.asdict(given).items() if v is not None}
        if given.price is not None:
            members["price"] = msgspec.convert(msgspec.to_builtins(given.price), Price)
        return msgspec.structs.replace(model, **members)

    def default(self) -> str | None:
        """The model of runs that name none: one that is called the default, else the first that is no demo."""
        self._index()
        return self._default

    def resolve(self, name: str | None) -> tuple[str, Provider, str]:
        """A model by its full name: that name, its provider, the vendor's name.

        A name need not be one that the provider lists: vendors have more models than they tell.

        Raises:
            Fault: model.unknown.
        """
        full = name or self.default()
        if full is None and self._named:
            raise Fault("model.unknown", f"The provider {self._named} tells of no model; set LLM_MODEL.")
        if full is None:
            raise Fault("model.unknown", "No model is configured; set LLM_PROVIDER and LLM_MODEL.")
        provider_name, _, model = full.partition("/")
        provider = self._extensions.providers.get(provider_name)
        if provider is None or not model:
            known = ", ".join(sorted(self._extensions.providers)) or "none"
            raise Fault("model.unknown", f"No provider for the model {full!r}; write provider/model, of {known}.")
        return full, provider, model

    def cost(self, name: str, usage: Usage) -> Usage:
        """The usage with its cost in US dollars: what the vendor told, else by the model's price, else none."""
        model = self.info(name)
        if usage.cost_usd is not None or model is None or model.price is None:
            return usage
        price: Price | LongPrice = model.price
        if model.price.long is not None and usage.input > model.price.long.above:
            price = model.price.long
        cached = price.input if price.cached is None else price.cached
        written = price.input if price.cache_write is None else price.cache_write
        fresh = max(0, usage.input - usage.cached - usage.cache_write)
        micros = fresh * price.input + usage.cached * cached + usage.cache_write * written
        micros += usage.output * price.output
        return msgspec.structs.replace(usage, cost_usd=round(micros / 1e6, 10))

    # what a vendor says

    async def refresh(self, provider: Provider) -> None:
        """Ask a vendor for its models.

        Raises:
            ProviderError: It does not tell.
        """
        ask = getattr(provider, "list_models", None)
        if ask is None:
            return
        try:
            async with asyncio.timeout(LIST_S):
                models = await ask(await self._outbound.warm_client(trusted=True))
            # What is no list of models would take those of all others from the hub.
            models = msgspec.json.decode(msgspec.json.encode(list(models)), type=list[Model])
        except ProviderError as e:
            if e.upstream == 401:
                self._refusals[provider.name] = e
            raise
        except TimeoutError:
            raise ProviderError("provider.timeout", f"No list of models within {LIST_S:g} s.") from None
        except (Exception, asyncio.CancelledError, SystemExit) as e:
            task = asyncio.current_task()
            if isinstance(e, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            text = f"The list of models cannot be had ({type(e).__name__})."
            raise ProviderError("provider.unreachable", text) from e
        self._refusals.pop(provider.name, None)
        self._extensions.set_models(provider.name, models)
        self._announce()

    async def keep_fresh(self, provider: Provider, note: Callable[[str], None]) -> None:
        """Ask a vendor for its models now and every hour; sooner again as long as it does not tell."""
        pause_s = AGAIN_S[0]
        said = ""
        while True:
            try:
                await self.refresh(provider)
                said, wait_s = "", REFRESH_S
                pause_s = AGAIN_S[0]
            except ProviderError as e:
                wait_s = pause_s
                pause_s = min(pause_s * 4, AGAIN_S[1])
                if e.message != said:
                    said = e.message
                    note(f"the models of {provider.name} could not be listed: {said}")
            await asyncio.sleep(wait_s)

    def check_now(self, name: str, config: RunConfig | None = None) -> None:
        """Refuse what is known not to work, without asking anybody.

        Raises:
            Fault: model.unknown.
            ProviderError: provider.auth if the vendor refused the key, or what the provider's own check says.
        """
        _, provider, model = self.resolve(name)
        if refusal := self._refusals.get(provider.name):
            raise refusal.with_traceback(None)  # else each time adds to it
        if (check := getattr(provider, "check", None)) is not None:
            try:
                check(make_request(model, [], None, config or RunConfig()))
            except Fault:
                raise
            except Exception as e:
                log.exception("provider %s: check() failed", provider.name)
                raise ProviderError("provider.protocol", f"The provider {provider.name} failed.") from e

    async def check(self, name: str, config: RunConfig | None = None) -> None:
        """Refuse what cannot work, after asking the vendor for its models.

        Raises:
            Fault: model.unknown.
            ProviderError: Why not.
        """
        _, provider, _ = self.resolve(name)
        await self.refresh(provider)
        self.check_now(name, config)

    async def generation(self, id: str, provider: str | None = None) -> Json:
        """What a vendor keeps of an answer, by the vendor's id.

        Raises:
            Fault: generation.unknown.
            ProviderError: The vendor does not tell.
        """
        failure: Fault = Fault("generation.unknown", "No provider keeps a record under this id.")
        for one in list(self._extensions.providers.values()):
            ask = getattr(one, "generation", None)
            if ask is None or provider not in (None, one.name):
                continue
            try:
                async with asyncio.timeout(LIST_S):
                    found: Json | None = await ask(await self._outbound.warm_client(trusted=True), id)
            except TimeoutError:
                failure = ProviderError("provider.timeout", f"{one.name} did not answer within {LIST_S:g} s.")
            except ProviderError as e:
                failure = e  # another may have it
            else:
                if found is not None:
                    return found
        raise failure


def make_request(model: str, messages: list[Message], box: Toolbox | None, config: RunConfig) -> ModelRequest:
    """What a config asks of a model."""
    return ModelRequest(
        model,
        messages,
        box.specs() if box is not None else [],
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop=config.stop,
        seed=config.seed,
        reasoning=config.reasoning,
        extra=config.extra,
    )
