"""Models of OpenAI and of every server that speaks like it: Azure, OpenRouter, vLLM, Ollama, LM Studio, proxies.

Configured by the table `[openai]` of plugins.toml, by `[openai.providers.NAME]`, or by the environment, which wins
(`sag_openai.settings`). Where nothing says anything, it offers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from sag.plugin import Hub, hookimpl
from sag_openai.provider import ChatProvider, EntraProvider
from sag_openai.settings import ProviderSettings, Settings, configure

__all__ = ["ChatProvider", "EntraProvider", "ProviderSettings", "Settings", "make_providers", "register"]


def make_providers(settings: Settings, env: Mapping[str, str]) -> list[ChatProvider]:
    """The providers that tables and environment describe.

    Raises:
        ValueError: A base URL is none, or Azure's is missing.
    """
    providers = []
    for one in configure(settings, env):
        kind = EntraProvider if one.flavor.name == "azure" and one.settings.entra else ChatProvider
        url, key = one.settings.base_url, one.settings.api_key
        providers.append(kind(one.name, url, key, one.settings, flavor=one.flavor, told=one.told, default=one.default))
    return providers


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Offer the providers that are configured."""
    providers = make_providers(hub.settings, hub.env)
    for provider in providers:
        hub.add_provider(provider)
    if not providers:
        hub.note("not configured: set LLM_PROVIDER or [openai]")
