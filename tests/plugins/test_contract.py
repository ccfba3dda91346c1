"""The bundled providers keep the contract of every provider, each against the server that it is for."""

from __future__ import annotations

from sag.hooks.provider import HttpProvider
from sag.secret import Secret
from sag.testing.contract import ProviderContract
from sag.testing.upstream import FakeUpstream
from sag_anthropic.provider import MessagesProvider
from sag_openai.flavors import FLAVORS
from sag_openai.provider import ChatProvider
from sag_openai.settings import ProviderSettings


def make(flavor: str, url: str, key: str, **settings: object) -> ChatProvider:
    return ChatProvider(flavor, url, key, ProviderSettings(**settings), flavor=FLAVORS[flavor])  # type: ignore[arg-type]


class TestOpenAiChat(ProviderContract):
    thinks = False  # its chat completions do not tell

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream(api_key=self.key, strict=True)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("openai", url, key, api="chat")


class TestOpenAiResponses(ProviderContract):
    replays = True

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream(api_key=self.key, strict=True)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("openai", url, key, api="responses")


class TestVllm(ProviderContract):
    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("vllm", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("vllm", url, key)


class TestOllama(ProviderContract):
    keyed = False

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("ollama", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("ollama", url, key)


class TestOpenRouter(ProviderContract):
    replays = True

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("openrouter", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("openrouter", url, key)


class TestAzure(ProviderContract):
    thinks = False

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("azure", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("azure", url, key, api="chat")


class TestAzureClassic(TestAzure):
    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("azure", url, key, api_version="2024-10-21")


class TestAnthropic(ProviderContract):
    replays = True
    overloaded = 529

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("anthropic", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return MessagesProvider("anthropic", url, Secret(key))
