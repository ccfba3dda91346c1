"""The models that runs can use: what providers say they have, which is the default, who serves a name."""

from __future__ import annotations

from collections.abc import Iterator

from sag.errors import Fault
from sag.hooks.host import Extensions
from sag.hooks.provider import Model, Provider


class Models:
    """All models, by their full name `provider/model`.

    Args:
        extensions: Where the providers are.
    """

    def __init__(self, extensions: Extensions) -> None:
        self._extensions = extensions

    def all(self) -> Iterator[tuple[str, Provider, Model]]:
        """Every model that is known: its full name, its provider, what is known of it."""
        for provider in self._extensions.providers.values():
            for model in self._extensions.models(provider):
                yield f"{provider.name}/{model.id}", provider, model

    def default(self) -> str | None:
        """The model of runs that name none: one that is called the default, else the first that is no demo."""
        ranked = [(2 if m.demo else 0 if m.default else 1, name) for name, _, m in self.all()]
        best = min((rank for rank, _ in ranked), default=None)
        return next((name for rank, name in ranked if rank == best), None)

    def resolve(self, name: str | None) -> tuple[str, Provider, str]:
        """A model by its full name: that name, its provider, the vendor's name.

        A name need not be one that the provider lists: vendors have more models than they tell.

        Raises:
            Fault: model.unknown.
        """
        full = name or self.default()
        if full is None:
            raise Fault("model.unknown", "No model is configured; set LLM_PROVIDER and LLM_MODEL.")
        provider_name, _, model = full.partition("/")
        provider = self._extensions.providers.get(provider_name)
        if provider is None or not model:
            known = ", ".join(sorted(self._extensions.providers)) or "none"
            raise Fault("model.unknown", f"No provider for the model {full!r}; write provider/model, of {known}.")
        return full, provider, model
