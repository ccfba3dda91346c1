"""Models of Anthropic, and of proxies and other servers that speak its Messages API.

Configured by the table `[anthropic]` of plugins.toml or by the environment (`LLM_PROVIDER=anthropic` with `LLM_MODEL`,
`LLM_BASE_URL`, `LLM_API_KEY`; `ANTHROPIC_API_KEY`, `ANTHROPIC_AUTH_TOKEN`, `ANTHROPIC_BASE_URL`), which wins. Where
neither says anything, it offers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, field

from sag.plugin import Hub, Secret, hookimpl
from sag_anthropic.provider import HOST, MessagesProvider

NAME = "anthropic"

__all__ = ["Account", "MessagesProvider", "Settings", "make_providers", "register"]


class Account(Struct, forbid_unknown_fields=True):
    """One way to models: an address and a key.

    Attributes:
        base_url: Of the server, with or without its `/v1`; Anthropic's own where it is left out.
        api_key: Left out where the server wants none.
        model: The model to use where nobody chose another; the newest Sonnet where it is left out.
        headers: Sent with every request.
        beta: Names of betas, sent as `anthropic-beta`.
        cache: Have the vendor keep the conversation for the next round, which makes that cheaper.
        extra_body: Members that are sent with every request as they are.
    """

    base_url: str = ""
    api_key: Secret = Secret()
    model: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    beta: list[str] = field(default_factory=list)
    cache: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)


class Settings(Account):
    """The table `[anthropic]`: the members of `Account`, and these.

    Attributes:
        providers: Further ones by name, each with a table of its own, `[anthropic.providers.NAME]`.
    """

    providers: dict[str, Account] = field(default_factory=dict)


def make_providers(settings: Settings, env: Mapping[str, str]) -> list[MessagesProvider]:
    """The providers that table and environment describe.

    `LLM_…` speaks to the one that `LLM_PROVIDER` names, ANTHROPIC_… to that of the table `[anthropic]`. Empty variables
    count as unset. ANTHROPIC_API_KEY and ANTHROPIC_AUTH_TOKEN come before the table's key, but after it for a server
    that the table or LLM_BASE_URL names.

    Raises:
        ValueError: A base URL is none, or a further provider has the name of the first.
    """

    def read(name: str) -> str:
        return env.get(name, "").strip()

    chosen = read("LLM_PROVIDER").lower()
    theirs = {NAME: ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")}
    if NAME in settings.providers:
        raise ValueError(f"providers.{NAME}: that is the name of [anthropic] itself; choose another")
    accounts: dict[str, Account] = {NAME: settings, **settings.providers}
    made = []
    for name, account in accounts.items():
        ours = name.lower() == chosen
        key, url, model = (read(one) if ours else "" for one in ("LLM_API_KEY", "LLM_BASE_URL", "LLM_MODEL"))
        vendor_url, vendor_key, vendor_token = (read(one) for one in theirs.get(name, ("", "", "")))
        table_key = account.api_key.reveal()
        if account is settings and not (
            ours or vendor_url or vendor_key or vendor_token or table_key or settings.base_url
        ):
            continue
        base = _normalize(url or vendor_url or account.base_url or HOST)
        if url or (account.base_url and not vendor_url and base != HOST):
            key = key or table_key or vendor_key
        else:
            key = key or vendor_key or ("" if vendor_token else table_key)
        default = ours or bool(not chosen and account.model and account is settings and not read("LLM_MODEL"))
        made.append(
            MessagesProvider(
                name,
                base,
                Secret(key),
                Secret(vendor_token),
                model=model or account.model,
                default=default,
                headers=account.headers,
                beta=account.beta,
                cache=account.cache,
                extra=account.extra_body,
            )
        )
    return made


def _normalize(url: str) -> str:
    """A base URL without its `/v1`."""
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no base URL; it looks like {HOST}")
    return base


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Offer the providers that are configured. The hub asks them for their models by itself."""
    providers = make_providers(hub.settings, hub.env)
    if not providers:
        hub.note("not configured: set ANTHROPIC_API_KEY or [anthropic]")
    for provider in providers:
        hub.add_provider(provider)
