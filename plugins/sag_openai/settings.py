"""Which providers there are: the tables `[openai]` and `[openai.providers.NAME]`, and the environment, which wins.

Pure. Owns which variable speaks to whom, and to whom a key may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from sag.plugin import Secret
from sag_openai.azure import Endpoint
from sag_openai.flavors import COMPATIBLE, FLAVORS, Flavor, FlavorName, guess, is_near, is_of

SCOPE = "https://cognitiveservices.azure.com/.default"


class ProviderSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """One provider: the table `[openai]` or `[openai.providers.NAME]`.

    Attributes:
        flavor: What kind of server it is; by its address and name where it is left out.
        base_url: Of the server, with its `/v1`; of Azure the resource's endpoint.
        api_key: Left out where the server wants none.
        model: The model to use where nobody chose another.
        headers: Sent with every request.
        extra_body: Members of every request's body. Those of a run's `extra` win over them.
        max_tokens_name: The member that limits the answer's length, `max_tokens` or `max_completion_tokens`.
        reasoning_name: Send the model's thoughts back under this name in messages that call tools; "" for not at all.
            Left out, it is `reasoning_content` for DeepSeek's models.
        text_calls: Whether tool calls that the model writes as text are taken for calls.
        api: `responses`, `chat`, or `auto`: what the model does better on.
        deployment: Of Azure: the deployment to use; `model` then says which model it runs, where its name does not.
        api_version: Of Azure: the version of its older API; left out, it is the v1 API.
        ad_token: Of Azure: a token of Entra, in place of a key.
        entra: Of Azure: fetch tokens of Entra with the library azure-identity.
        entra_scope: What those tokens are for.
        routing: Of OpenRouter: its `provider` object, such as `{ order = ["azure"] }`.
    """

    flavor: FlavorName | None = None
    base_url: str = ""
    api_key: Secret = field(default_factory=Secret)
    model: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    extra_body: dict[str, Any] = field(default_factory=dict)
    max_tokens_name: str = ""
    reasoning_name: str | None = None
    text_calls: bool | None = None
    api: Literal["auto", "chat", "responses"] = "auto"
    deployment: str = ""
    api_version: str = ""
    ad_token: Secret = field(default_factory=Secret)
    entra: bool = False
    entra_scope: str = SCOPE
    routing: dict[str, Any] = field(default_factory=dict)


class Settings(ProviderSettings, kw_only=True):
    """The table `[openai]`: a provider of that name, and further ones.

    Attributes:
        providers: Further providers, by the name that stands before the slash in their models' names.
    """

    providers: dict[str, ProviderSettings] = field(default_factory=dict)


class Configured(Struct):
    """A provider as tables and environment describe it.

    Attributes:
        name: Its name.
        flavor: Its kind.
        settings: The table, with what the environment says instead.
        told: Whether somebody said which model to use; else it is the flavor's.
        default: Whether its model is the one to use where nobody chose another.
    """

    name: str
    flavor: Flavor
    settings: ProviderSettings
    told: bool
    default: bool


def configure(settings: Settings, env: Mapping[str, str]) -> list[Configured]:
    """The providers that are offered.

    `LLM_…` speaks of the provider that `LLM_PROVIDER` names; of `openai`, else of the first, where it names nobody.
    The one that it names is offered in any case, another one where a table or its vendor's variable describes it.
    Empty variables count as unset.

    Raises:
        ValueError: A base URL is none, or Azure's is missing.
    """
    env = {name: value.strip() for name, value in env.items() if value.strip()}
    if "openai" in settings.providers:
        raise ValueError("[openai.providers.openai] is the table [openai] itself; give it another name")
    tables = dict(settings.providers)
    if settings.base_url or settings.api_key or settings.flavor or settings.deployment:
        tables = {"openai": settings, **tables}
    chosen = env.get("LLM_PROVIDER", "").lower()
    offered = [name for name in ("openai", "azure", "openrouter") if _is_offered(FLAVORS[name], env)]
    if chosen in FLAVORS:
        offered.insert(0, chosen)
    elif not chosen and ("LLM_BASE_URL" in env or "LLM_API_KEY" in env):
        offered.insert(0, "openai")
    for name in offered:
        tables.setdefault(name, settings if name == "openai" else ProviderSettings())
    target = chosen or ("openai" if "openai" in tables else next(iter(tables), ""))
    return [_resolve(name, table, env, target) for name, table in tables.items()]


def _is_offered(flavor: Flavor, env: Mapping[str, str]) -> bool:
    """Whether the vendor's own variables are enough to describe it: Azure's key is nothing without its endpoint."""
    return (flavor.key if flavor.base_url else flavor.url) in env


def _resolve(name: str, table: ProviderSettings, env: Mapping[str, str], target: str) -> Configured:
    """A provider with what the environment says of it; variables of a vendor speak of the provider of that name."""
    targeted = name == target
    vendor = FLAVORS.get(name, COMPATIBLE)
    general = {key: value for key, value in env.items() if targeted and key.startswith("LLM_")}
    vendor_url = env.get(vendor.url, "")
    base_url = general.get("LLM_BASE_URL") or vendor_url or table.base_url
    flavor = FLAVORS[table.flavor] if table.flavor else guess(name, base_url)
    base_url = (base_url or env.get(flavor.url, "") or flavor.base_url).rstrip("/")
    _check_url(name, flavor, base_url)
    # A vendor's secrets go to the vendor, to the address that its own variable names, and to the own network.
    vendor = flavor if table.flavor or is_of(flavor, base_url) else vendor
    its_own = is_of(vendor, base_url) or (vendor.url in env and base_url == env[vendor.url].rstrip("/"))
    secrets = env if its_own or is_near(base_url) else {}
    key, given = secrets.get(vendor.key, ""), table.api_key.reveal()
    key = (key or given) if its_own and name == vendor.name else (given or key)
    key = general.get("LLM_API_KEY") or key
    merged = msgspec.structs.replace(table, base_url=base_url, api_key=Secret(key))
    merged.model = general.get("LLM_MODEL") or (env.get("VLLM_MODEL", "") if name == "vllm" else "") or table.model
    if flavor.name == "azure":
        own, other = secrets.get("AZURE_OPENAI_AD_TOKEN", ""), table.ad_token.reveal()
        merged.ad_token = Secret((own or other) if name == "azure" else (other or own))
        _resolve_azure(merged, env if name == "azure" else {}, asked=general.get("LLM_MODEL", ""))
    told = bool(merged.model or merged.deployment)
    if not told:
        merged.model = flavor.model
    if flavor.name == "openai":
        ids = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
        merged.headers = table.headers | {header: env[var] for header, var in ids.items() if var in env}
    return Configured(name, flavor, merged, told, targeted)


def _resolve_azure(merged: ProviderSettings, env: Mapping[str, str], *, asked: str) -> None:
    """What is Azure's own. A deployment that is named comes before a model; the model then says what it runs."""
    merged.api_version = env.get("OPENAI_API_VERSION", "") or merged.api_version
    if named := env.get("AZURE_OPENAI_DEPLOYMENT", ""):
        if not asked and merged.deployment not in ("", named):
            merged.model = ""  # that is of another deployment
        merged.deployment = named
    elif asked:
        merged.deployment = ""
    elif not merged.deployment and not merged.model:
        merged.deployment = Endpoint(merged.base_url).deployment


def _check_url(name: str, flavor: Flavor, base_url: str) -> None:
    if not base_url:
        more = " or AZURE_OPENAI_ENDPOINT" if flavor.name == "azure" else ""
        raise ValueError(f"the provider {name} has no address; set its base_url{more}")
    parts = urlsplit(base_url)
    query = parts.query and flavor.name != "azure"  # Azure's portal shows whole addresses, with their api-version
    if parts.scheme not in ("http", "https") or not parts.hostname or query or parts.fragment:
        raise ValueError(f"{base_url!r} is no base URL; it looks like https://llm.example/v1")
