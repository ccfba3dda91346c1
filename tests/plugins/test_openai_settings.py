"""Which providers tables and environment describe, whom their variables speak to, and to whom a key may go."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sag_openai
from sag.hooks.hub import Hub
from sag.plugin import HttpProvider, ModelRequest, Secret, text_message
from sag_openai import ChatProvider, EntraProvider, Settings, make_providers
from sag_openai.flavors import DEFAULT_MODEL, guess, is_near

OPENAI, VLLM, ROUTER = "https://api.openai.com/v1", "http://127.0.0.1:8000/v1", "https://openrouter.ai/api/v1"
RESOURCE = "https://mine.openai.azure.com"


def settings(**table: Any) -> Settings:
    """A table as the hub decodes it."""
    return msgspec.convert(table, Settings, strict=False, dec_hook=lambda kind, value: Secret(value))


def sent(provider: ChatProvider, model: str = "m") -> dict[str, str]:
    return provider.prepare(ModelRequest(model, [text_message("user", "u")])).headers


def key_of(provider: ChatProvider) -> str:
    headers = sent(provider)
    return headers.get("api-key") or headers.get("Authorization", "").removeprefix("Bearer ")


def configured(env: dict[str, str] | None = None, **table: Any) -> dict[str, tuple[Any, ...]]:
    """By name: address, key, model, whether that is the default."""
    out = {}
    for provider in make_providers(settings(**table), env or {}):
        model = next(iter(provider.models()), None)
        told = (model.id, model.default) if model is not None else None
        out[provider.name] = (provider.base_url, key_of(provider), told)
    return out


def openai(base: str, key: str, model: str = DEFAULT_MODEL, default: bool = True):
    return {"openai": (base, key, (model, default) if model else None)}


@pytest.mark.parametrize(
    ("env", "table", "expected"),
    [
        ({}, {}, {}),
        ({"LLM_PROVIDER": "", "OPENAI_API_KEY": " "}, {}, {}),
        ({"LLM_MODEL": "m"}, {}, {}),
        ({"LLM_PROVIDER": "demo", "LLM_BASE_URL": "http://x", "LLM_API_KEY": "k", "LLM_MODEL": "m"}, {}, {}),
        ({"LLM_PROVIDER": "openai"}, {}, openai(OPENAI, "")),
        ({"LLM_PROVIDER": "OpenAI", "LLM_MODEL": "m"}, {}, openai(OPENAI, "", "m")),
        ({"OPENAI_API_KEY": "o"}, {}, openai(OPENAI, "o")),
        ({"OPENAI_API_KEY": "o", "LLM_API_KEY": "k"}, {}, openai(OPENAI, "k")),
        ({"OPENAI_API_KEY": "o", "LLM_API_KEY": ""}, {}, openai(OPENAI, "o")),
        ({"OPENAI_API_KEY": "o"}, {"api_key": "t"}, openai(OPENAI, "o")),
        ({"OPENAI_API_KEY": "o", "LLM_PROVIDER": "demo"}, {"model": "m"}, openai(OPENAI, "o", "m", False)),
        ({"LLM_API_KEY": "k"}, {}, openai(OPENAI, "k")),
        (
            {"LLM_BASE_URL": "http://e/v1", "LLM_MODEL": "e"},
            {"base_url": "http://b/v1", "model": "m"},
            openai("http://e/v1", "", "e"),
        ),
        ({"OPENAI_BASE_URL": "http://e/v1"}, {"base_url": "http://b/v1"}, openai("http://e/v1", "", "")),
        ({"LLM_BASE_URL": "http://e/v1", "OPENAI_BASE_URL": "http://o/v1"}, {}, openai("http://e/v1", "", "")),
    ],
)
def test_openai_is_described_by_its_table_and_the_environment(env, table, expected):
    assert configured(env, **table) == expected


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({"LLM_PROVIDER": "openai", "LLM_BASE_URL": "http://127.0.0.1:9/v1"}, "o"),
        ({"LLM_PROVIDER": "openai", "LLM_BASE_URL": "http://127.0.0.1:9/v1", "LLM_API_KEY": ""}, "o"),
        ({"LLM_PROVIDER": "openai", "LLM_BASE_URL": "http://127.0.0.1:9/v1", "LLM_API_KEY": "k"}, "k"),
        ({"LLM_BASE_URL": "http://10.0.0.7:9/v1"}, "o"),
        ({"LLM_BASE_URL": "http://litellm:4000/v1"}, "o"),
        ({"OPENAI_BASE_URL": "https://llm.example/v1/"}, "o"),
        ({"LLM_BASE_URL": "https://eu.api.openai.com/v1"}, "o"),
        ({"LLM_BASE_URL": "https://llm.example/v1"}, ""),
        ({"LLM_BASE_URL": "https://api.deepseek.com/v1"}, ""),
        ({"LLM_BASE_URL": "https://openrouter.ai/api/v1"}, ""),
        ({"LLM_BASE_URL": "https://openai.com.evil.example/v1"}, ""),
        ({"LLM_BASE_URL": "https://notopenai.com/v1"}, ""),
        ({"LLM_BASE_URL": "https://llm.example/v1", "OPENAI_BASE_URL": "https://other.example/v1"}, ""),
        ({"LLM_BASE_URL": "http://93.184.216.34/v1"}, ""),
    ],
)
def test_openais_key_goes_to_openai_and_the_own_network_but_to_no_other_vendor(env, key):
    assert configured({"OPENAI_API_KEY": "o", **env})["openai"][1] == key


def test_a_key_of_the_table_comes_before_the_vendors_for_another_server():
    assert configured({"OPENAI_API_KEY": "o"}, base_url="http://b/v1", api_key="t")["openai"][1] == "t"
    assert configured({"OPENAI_API_KEY": "o"}, base_url="http://b/v1")["openai"][1] == "o"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (VLLM, "", ("Qwen/Qwen3-8B", True))),
        ({"VLLM_MODEL": "q"}, (VLLM, "", ("q", True))),
        ({"VLLM_MODEL": "q", "LLM_MODEL": "m"}, (VLLM, "", ("m", True))),
        ({"LLM_API_KEY": "k", "LLM_BASE_URL": "http://b/v1/"}, ("http://b/v1", "k", ("Qwen/Qwen3-8B", True))),
        ({"OPENAI_API_KEY": "o", "LLM_BASE_URL": "http://127.0.0.1:9/v1"}, ("http://127.0.0.1:9/v1", "", None)),
    ],
)
def test_vllm_is_offered_where_it_is_named_and_never_gets_openais_key(env, expected):
    found = configured({"LLM_PROVIDER": "vllm", **env})["vllm"]
    assert found[:2] == expected[:2]
    assert expected[2] is None or found[2] == expected[2]


def test_a_vendors_own_variable_offers_it_besides_the_one_that_is_named():
    env = {
        "LLM_PROVIDER": "vllm",
        "LLM_API_KEY": "k",
        "OPENAI_API_KEY": "o",
        "OPENROUTER_API_KEY": "r",
        "AZURE_OPENAI_ENDPOINT": RESOURCE,
        "AZURE_OPENAI_API_KEY": "a",
    }
    assert configured(env) == {
        "vllm": (VLLM, "k", ("Qwen/Qwen3-8B", True)),
        **openai(OPENAI, "o", default=False),
        "azure": (RESOURCE, "a", (DEFAULT_MODEL, False)),
        "openrouter": (ROUTER, "r", ("openrouter/auto", False)),
    }
    assert configured({"AZURE_OPENAI_API_KEY": "a"}) == {}
    assert configured({"OPENROUTER_API_KEY": "r", "LLM_MODEL": "x/y"}) == {"openrouter": (ROUTER, "r", ("x/y", True))}


@pytest.mark.parametrize("name", ["openai", "openrouter", "vllm", "ollama", "lmstudio"])
def test_the_one_that_is_named_is_offered_without_a_key(name):
    [provider] = make_providers(Settings(), {"LLM_PROVIDER": name})
    assert (provider.name, provider.flavor.name, provider.default) == (name, name, True)
    assert isinstance(provider, HttpProvider)
    assert not {"Authorization", "api-key"} & sent(provider).keys()


def test_tables_of_further_providers():
    table = {
        "base_url": "http://b/v1",
        "providers": {
            "lab": {"base_url": "http://10.0.0.2:11434/v1", "model": "q"},
            "router": {"flavor": "openrouter", "api_key": "t", "routing": {"order": ["azure"]}},
            "ollama": {},
        },
    }
    found = configured({"LLM_MODEL": "m"}, **table)
    assert found == {
        "openai": ("http://b/v1", "", ("m", True)),
        "lab": ("http://10.0.0.2:11434/v1", "", ("q", False)),
        "router": (ROUTER, "t", ("openrouter/auto", False)),
        "ollama": ("http://127.0.0.1:11434/v1", "", ("qwen3:8b", False)),
    }
    chosen = configured({"LLM_PROVIDER": "lab", "LLM_MODEL": "m", "LLM_API_KEY": "k"}, **table)
    assert chosen["lab"] == ("http://10.0.0.2:11434/v1", "k", ("m", True))
    assert chosen["openai"] == ("http://b/v1", "", None)
    with pytest.raises(ValueError, match="another name"):
        configured(providers={"openai": {}})


@pytest.mark.parametrize(
    ("name", "url", "flavor"),
    [
        ("openai", "", "openai"),
        ("openai", "https://api.openai.com/v1", "openai"),
        ("openai", "https://llm.example/v1", "compatible"),
        ("openai", "http://localhost:11434/v1", "ollama"),
        ("openai", "http://localhost:1234/v1", "lmstudio"),
        ("vllm", "https://llm.example/v1", "vllm"),
        ("azure", "http://127.0.0.1:99", "azure"),
        ("lab", "https://x.openai.azure.com", "azure"),
        ("lab", "https://x.services.ai.azure.com", "azure"),
        ("vllm", "https://openrouter.ai/api/v1", "openrouter"),
        ("lab", "", "compatible"),
    ],
)
def test_what_kind_of_server_it_is_is_guessed_from_address_and_name(name, url, flavor):
    assert guess(name, url).name == flavor


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://localhost/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://192.168.1.4/v1", True),
        ("http://gpu:8000", True),
        ("http://gpu.local", True),
        ("http://host.docker.internal:8000", True),
        ("https://llm.example", False),
        ("http://8.8.8.8", False),
    ],
)
def test_what_the_own_network_is(url, near):
    assert is_near(url) == near


def test_the_organisation_and_the_project_are_openais_alone():
    env = {"OPENAI_API_KEY": "o", "OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1", "OPENROUTER_API_KEY": "r"}
    first, router = make_providers(settings(headers={"OpenAI-Organization": "org-0", "X-A": "b"}), env)
    headers = sent(first)
    assert (headers["OpenAI-Organization"], headers["OpenAI-Project"], headers["X-A"]) == ("org-1", "proj-1", "b")
    assert "OpenAI-Organization" not in sent(router)


def test_openrouter_is_told_who_asks_and_how_to_route():
    env = {"OPENROUTER_API_KEY": "r"}
    routing = {"order": ["azure"], "allow_fallbacks": False}
    table = {"openrouter": {"headers": {"HTTP-Referer": "https://home.example"}, "routing": routing}}
    [provider] = make_providers(settings(providers=table), env)
    given = provider.prepare(ModelRequest("a/b", [text_message("user", "u")], extra={"models": ["a/b", "c/d"]}))
    assert (given.url, given.headers["X-OpenRouter-Title"]) == (f"{ROUTER}/chat/completions", "sag")
    assert given.headers["HTTP-Referer"] == "https://home.example"
    body = msgspec.json.decode(given.body)
    assert (body["provider"], body["models"]) == (routing, ["a/b", "c/d"])


# Azure


def azure(env: dict[str, str] | None = None, **table: Any) -> ChatProvider:
    [provider] = make_providers(settings(providers={"azure": table} if table else {}), env or {})
    return provider


def asked(provider: ChatProvider, model: str = "") -> str:
    model = model or provider.models()[0].id
    return provider.prepare(ModelRequest(model, [text_message("user", "u")])).url


CLASSIC = f"{RESOURCE}/openai/deployments/d/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("endpoint", "version", "url"),
    [
        (RESOURCE, "", f"{RESOURCE}/openai/v1/chat/completions"),
        (f"{RESOURCE}/", "", f"{RESOURCE}/openai/v1/chat/completions"),
        (f"{RESOURCE}/openai", "", f"{RESOURCE}/openai/v1/chat/completions"),
        (f"{RESOURCE}/openai/v1/", "", f"{RESOURCE}/openai/v1/chat/completions"),
        (f"{RESOURCE}/openai/v1", "2024-10-21", f"{RESOURCE}/openai/v1/chat/completions"),
        (RESOURCE, "v1", f"{RESOURCE}/openai/v1/chat/completions"),
        (RESOURCE, "preview", f"{RESOURCE}/openai/v1/chat/completions?api-version=preview"),
        (RESOURCE, "2024-10-21", CLASSIC),
        (f"{RESOURCE}/openai/", "2024-10-21", CLASSIC),
        (f"{RESOURCE}?api-version=2024-10-21", "", CLASSIC),
        (f"{RESOURCE}/openai/deployments/other/chat/completions?api-version=2024-10-21", "", CLASSIC),
        ("http://127.0.0.1:9/v1", "", "http://127.0.0.1:9/v1/chat/completions"),
        ("https://gate.example/llm", "2024-10-21", CLASSIC.replace(RESOURCE, "https://gate.example/llm")),
    ],
)
def test_azure_is_asked_in_both_of_its_forms(endpoint, version, url):
    env = {"LLM_PROVIDER": "azure", "AZURE_OPENAI_ENDPOINT": endpoint, "OPENAI_API_VERSION": version}
    assert asked(azure(env), "d") == url
    assert asked(azure(base_url=endpoint, api_version=version), "d") == url


def test_a_deployments_name_is_quoted_in_the_path():
    url = asked(azure(base_url=RESOURCE, api_version="2024-10-21"), "a/b c")
    assert url == f"{RESOURCE}/openai/deployments/a%2Fb%20c/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("env", "table", "deployment", "label"),
    [
        ({}, {}, DEFAULT_MODEL, "GPT-6.2 Sol"),
        ({"LLM_MODEL": "m"}, {}, "m", ""),
        ({"AZURE_OPENAI_DEPLOYMENT": "d"}, {}, "d", ""),
        ({"AZURE_OPENAI_DEPLOYMENT": "d", "LLM_MODEL": "gpt-4o"}, {}, "d", "GPT-4o"),
        ({}, {"deployment": "d", "model": "gpt-4o"}, "d", "GPT-4o"),
        ({"LLM_MODEL": "gpt-4.1"}, {"deployment": "d", "model": "gpt-4o"}, "gpt-4.1", "GPT-4.1"),
        ({"AZURE_OPENAI_DEPLOYMENT": "e"}, {"deployment": "d", "model": "gpt-4o"}, "e", ""),
        ({"AZURE_OPENAI_DEPLOYMENT": "d"}, {"deployment": "d", "model": "gpt-4o"}, "d", "GPT-4o"),
    ],
)
def test_the_model_of_azure_is_a_deployment(env, table, deployment, label):
    env = {"LLM_PROVIDER": "azure", "AZURE_OPENAI_ENDPOINT": RESOURCE, **env}
    [model] = azure(env, **table).models()
    assert (model.id, model.label, model.default) == (deployment, label, True)


def test_the_deployment_of_a_whole_address_is_the_model():
    provider = azure(base_url=f"{RESOURCE}/openai/deployments/d/chat/completions?api-version=2024-10-21")
    assert [model.id for model in provider.models()] == ["d"]


def test_what_a_deployment_runs_decides_on_its_interface():
    provider = azure(base_url=RESOURCE, deployment="d", model="gpt-5.2")
    assert asked(provider) == f"{RESOURCE}/openai/v1/responses"
    assert asked(provider, "other") == f"{RESOURCE}/openai/v1/chat/completions"
    older = azure(base_url=RESOURCE, deployment="d", model="gpt-5.2", api_version="2025-04-01-preview")
    assert "/deployments/d/chat/completions?" in asked(older)
    forced = azure(base_url=RESOURCE, api_version="2025-04-01-preview", api="responses")
    assert asked(forced, "d") == f"{RESOURCE}/openai/responses?api-version=2025-04-01-preview"


def test_azure_takes_a_key_or_a_token():
    env = {"AZURE_OPENAI_ENDPOINT": RESOURCE}
    headers = sent(azure(env | {"AZURE_OPENAI_API_KEY": "k"}))
    assert headers["api-key"] == "k"
    assert "Authorization" not in headers
    headers = sent(azure(env | {"AZURE_OPENAI_AD_TOKEN": "t"}))
    assert headers["Authorization"] == "Bearer t"
    assert "api-key" not in headers
    both = sent(azure(env | {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_AD_TOKEN": "t"}))
    assert (both.get("api-key"), both.get("Authorization")) == ("k", None)
    fetched = azure(env | {"AZURE_OPENAI_API_KEY": "k"}, entra=True)
    assert isinstance(fetched, EntraProvider)
    assert not {"api-key", "Authorization"} & sent(fetched).keys()


def test_azures_secrets_go_to_azure_alone():
    env = {"LLM_PROVIDER": "azure", "AZURE_OPENAI_ENDPOINT": RESOURCE}
    secrets = {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_AD_TOKEN": "t"}
    elsewhere = azure(env | secrets | {"LLM_BASE_URL": "https://gate.example"})
    assert not {"api-key", "Authorization"} & sent(elsewhere).keys()
    gate = azure({"AZURE_OPENAI_ENDPOINT": "https://gate.example"} | secrets)
    assert sent(gate)["api-key"] == "k"


# faults


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://x/v1", "http://", "http://x/v1?key=1", "http://x/v1#a"])
def test_a_base_url_that_is_none_is_told(url):
    with pytest.raises(ValueError, match="base URL"):
        configured(base_url=url)


def test_a_server_without_an_address_is_told():
    with pytest.raises(ValueError, match="azure has no address; set its base_url or AZURE_OPENAI_ENDPOINT"):
        configured({"LLM_PROVIDER": "azure"})
    with pytest.raises(ValueError, match="lab has no address"):
        configured(providers={"lab": {}})


def test_keys_are_shown_nowhere():
    secrets = {
        name: f"{name}-0123456789" for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN")
    }
    table = settings(
        api_key="table-0123456789", providers={"lab": {"base_url": "http://b", "api_key": "lab-0123456789"}}
    )
    providers = make_providers(table, secrets | {"AZURE_OPENAI_ENDPOINT": RESOURCE})
    assert len(providers) == 3
    shown = repr(table) + "".join(f"{p!r}{vars(p)!r}" for p in providers)
    assert "0123456789" not in shown
    assert [key_of(p)[-4:] for p in providers] == ["6789"] * 3


# the documentation


def test_what_the_documentation_says_can_be_set():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "connect-a-model.md"
    tables = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)]
    names = [set(configured(**table["openai"])) for table in tables if "openai" in table]
    assert names == [{"openai", "lab", "ollama"}, {"azure"}, {"azure"}, {"openrouter"}]


# the hook


def register(env: dict[str, str], table: Settings | None = None) -> tuple[list[str], list[str]]:
    """Names of the providers that are added, and notes."""
    notes: list[str] = []
    hub = Hub("openai", table or Settings(), env, lambda kind, text: notes.append(f"{kind}: {text}"))
    sag_openai.register(hub)
    return [provider.name for provider in hub._seal("over").providers], notes


def test_what_is_configured_is_registered():
    assert register({"LLM_PROVIDER": "vllm", "OPENAI_API_KEY": "o"}) == (["vllm", "openai"], [])
    assert register({}) == ([], ["note: not configured: set LLM_PROVIDER or [openai]"])
