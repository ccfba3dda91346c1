"""Models of OpenAI and of every server that speaks its chat completions: vLLM, llama.cpp, Ollama, LM Studio, proxies.

Configured by the table `[openai]` of plugins.toml or by the environment (`LLM_PROVIDER`, `LLM_BASE_URL`, `LLM_MODEL`,
`LLM_API_KEY`, `OPENAI_API_KEY`, `VLLM_MODEL`), which wins. Where neither says anything, it offers nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from sag.plugin import Hub, Model, hookimpl
from sag_openai.provider import ChatProvider

BASES = {"openai": "https://api.openai.com/v1", "vllm": "http://127.0.0.1:8000/v1"}
LISTED = 500
LIST_BYTES = 8 << 20
LIST_S = 15.0

# What servers list besides models that chat; they do not say which is which.
_NO_CHAT = re.compile(r"embed|whisper|tts|dall-e|moderation|transcribe|realtime|image|audio|sora|rerank", re.I)

__all__ = ["ChatProvider", "Settings", "make_provider", "register", "startup"]


class Settings(Struct, forbid_unknown_fields=True):
    """The table `[openai]`.

    Attributes:
        base_url: Of the server, with its `/v1`; OpenAI's own where it is left out.
        api_key: Left out where the server wants none.
        model: The model to use where nobody chose another.
        name: The provider's name, the part of a model's id before the slash.
        headers: Sent with every request, such as `OpenAI-Organization`.
        max_tokens_name: The member that limits the answer's length, `max_tokens` or `max_completion_tokens`.
        reasoning_name: Send the model's thoughts back under this name (`reasoning_content`) in messages that call
            tools; not at all where it is empty.
    """

    base_url: str = ""
    api_key: str = ""
    model: str = ""
    name: str = "openai"
    headers: dict[str, str] = field(default_factory=dict)
    max_tokens_name: str = "max_tokens"
    reasoning_name: str = ""


class _Listed(Struct):
    id: str
    max_model_len: int | None = None


class _List(Struct):
    data: list[_Listed]


def make_provider(settings: Settings, env: Mapping[str, str]) -> ChatProvider | None:
    """The provider that table and environment describe, or None where they describe none.

    `LLM_…` speaks to this plugin if `LLM_PROVIDER` names it (`openai`, `vllm`) or nobody. Empty variables count as
    unset. OPENAI_API_KEY comes before the table's key for OpenAI itself and after it for another server, and never
    goes to vLLM.

    Raises:
        ValueError: The base URL is none.
    """

    def read(*names: str) -> str:
        return next((env[name].strip() for name in names if env.get(name, "").strip()), "")

    chosen = read("LLM_PROVIDER").lower()
    ours = chosen in ("", *BASES)
    vllm = chosen == "vllm"
    base = (read("LLM_BASE_URL") if ours else "") or settings.base_url
    key, openai_key = read("LLM_API_KEY") if ours else "", "" if vllm else read("OPENAI_API_KEY")
    if not (base or key or openai_key or settings.api_key or chosen in BASES):
        return None
    base = (base or BASES["vllm" if vllm else "openai"]).rstrip("/")
    parts = urlsplit(base)
    if base == BASES["openai"]:
        key = key or openai_key or settings.api_key
    else:
        key = key or settings.api_key or openai_key
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{base!r} is no base URL; it looks like https://llm.example/v1")
    model = (read(*(("LLM_MODEL", "VLLM_MODEL") if vllm else ("LLM_MODEL",))) if ours else "") or settings.model
    name = "vllm" if vllm else settings.name
    return ChatProvider(
        name,
        base,
        key,
        [Model(model, default=ours)] if model else [],
        default=ours,
        headers=settings.headers,
        max_tokens_name=settings.max_tokens_name,
        reasoning_name=settings.reasoning_name,
    )


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Offer the provider, if it is configured."""
    provider = make_provider(hub.settings, hub.env)
    if provider is None:
        hub.note("not configured: set LLM_PROVIDER or [openai]")
        return
    hub.add_provider(provider)


@hookimpl
async def startup(hub: Hub[Settings]) -> None:
    """Ask the server in the background which models it has."""
    provider = make_provider(hub.settings, hub.env)
    if provider is not None:
        hub.spawn(_list_models(hub, provider))


async def _list_models(hub: Hub[Settings], provider: ChatProvider) -> None:
    """Announce the server's models beside the configured one; that it cannot be asked is only noted."""
    url = f"{provider.base_url}/models"
    try:
        async with asyncio.timeout(LIST_S), hub.configured_http.stream("GET", url, headers=provider.headers) as answer:
            if answer.status_code != 200:
                raise provider.error(answer.status_code, answer.headers, b"")
            body = bytearray()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > LIST_BYTES:
                    raise ValueError("the list is too long")
        listed = msgspec.json.decode(bytes(body), type=_List).data
    except Exception as e:
        hub.note(f"the models of {provider.name} could not be listed: {e}"[:200])
        return
    hub.set_models(provider.name, _merge(provider, listed))


def _merge(provider: ChatProvider, listed: list[_Listed]) -> list[Model]:
    """The configured model first, then what the server lists; a server with a single model offers it by default."""
    context = {one.id: one.max_model_len for one in listed}
    models = [Model(m.id, context=context.get(m.id), default=m.default) for m in provider.models()]
    names = {model.id for model in models}
    chat = [one for one in listed if one.id not in names and not _NO_CHAT.search(one.id)][:LISTED]
    only = provider.default and not models and len(chat) == 1
    return models + [Model(one.id, context=one.max_model_len, default=only) for one in chat]
