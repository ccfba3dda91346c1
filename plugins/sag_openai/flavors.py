"""What kinds of servers there are and in what they differ, as data, and which kind an address is of.

Owns defaults of addresses, models and names of members. What is done with them is `sag_openai.provider`'s.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct, field

FlavorName = Literal["openai", "azure", "openrouter", "vllm", "ollama", "lmstudio", "compatible"]

DEFAULT_MODEL = "gpt-6.2-sol"


class Flavor(Struct, frozen=True):
    """A kind of server.

    Attributes:
        name: As the setting `flavor` names it.
        base_url: Where it is, unless it is told.
        model: What it is asked for, unless it is told.
        key, url: The variables that hold the vendor's key and address, where the vendor has any.
        hosts: The vendor's own domains: its key goes there.
        port: By which a server at another address is known.
        knows: The models are OpenAI's, so what the data file tells of a name holds.
        complete: A model that its list does not hold is not there.
        text_calls: Models may write tool calls as text, because the server may have no parser for them.
        max_tokens_name: The member that limits an answer.
        router: It speaks OpenRouter's additions: costs, replayed thoughts, records of answers.
        efforts: Efforts of reasoning that it has not, and what comes nearest.
        headers: Sent with every request.
    """

    name: FlavorName
    base_url: str = ""
    model: str = ""
    key: str = ""
    url: str = ""
    hosts: tuple[str, ...] = ()
    port: int = 0
    knows: bool = False
    complete: bool = False
    text_calls: bool = True
    max_tokens_name: str = "max_tokens"
    router: bool = False
    efforts: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


FLAVORS: dict[str, Flavor] = {
    flavor.name: flavor
    for flavor in (
        Flavor(
            "openai",
            "https://api.openai.com/v1",
            DEFAULT_MODEL,
            key="OPENAI_API_KEY",
            url="OPENAI_BASE_URL",
            hosts=("openai.com",),
            knows=True,
            complete=True,
            text_calls=False,
            max_tokens_name="max_completion_tokens",
        ),
        Flavor(
            "azure",
            model=DEFAULT_MODEL,  # the portal proposes the model's name for a deployment
            key="AZURE_OPENAI_API_KEY",
            url="AZURE_OPENAI_ENDPOINT",
            hosts=("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com", "openai.azure.us"),
            knows=True,
            text_calls=False,
            max_tokens_name="max_completion_tokens",
        ),
        Flavor(
            "openrouter",
            "https://openrouter.ai/api/v1",
            "openrouter/auto",
            key="OPENROUTER_API_KEY",
            hosts=("openrouter.ai",),
            text_calls=False,
            router=True,
            headers={"X-OpenRouter-Title": "sag"},
        ),
        Flavor("vllm", "http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B", complete=True),
        Flavor(
            "ollama",
            "http://127.0.0.1:11434/v1",
            "qwen3:8b",
            port=11434,
            complete=True,
            efforts={"minimal": "low", "xhigh": "high"},
        ),
        Flavor("lmstudio", "http://127.0.0.1:1234/v1", port=1234),
        Flavor("compatible"),
    )
}
COMPATIBLE = FLAVORS["compatible"]

_OWN_DOMAINS = ("localhost", "local", "internal", "lan", "home.arpa")


def guess(name: str, base_url: str) -> Flavor:
    """The kind of a server, by its address and then by the provider's name.

    The name `openai` alone does not make one OpenAI's: many servers are configured under it.
    """
    host, port = _address(base_url)
    for flavor in FLAVORS.values():
        if _within(host, flavor.hosts):
            return flavor
    if name in FLAVORS and (name != "openai" or not base_url):
        return FLAVORS[name]
    return next((flavor for flavor in FLAVORS.values() if port and flavor.port == port), COMPATIBLE)


def is_of(flavor: Flavor, base_url: str) -> bool:
    """Whether an address is the vendor's own."""
    return _within(_address(base_url)[0], flavor.hosts)


def is_near(base_url: str) -> bool:
    """Whether an address is of this machine or of the own network, by its look."""
    host, _ = _address(base_url)
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or _within(host, _OWN_DOMAINS)


@lru_cache(1024)
def is_deepseek(model: str, base_url: str) -> bool:
    """Whether a model is DeepSeek's, which wants its thoughts back."""
    return "deepseek" in model.lower() or _within(_address(base_url)[0], ("deepseek.com",))


@lru_cache(64)
def _address(base_url: str) -> tuple[str, int | None]:
    parts = urlsplit(base_url)
    return (parts.hostname or "").rstrip("."), parts.port


def _within(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
