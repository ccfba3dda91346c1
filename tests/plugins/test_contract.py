"""The bundled providers keep the contract of every provider."""

from __future__ import annotations

from sag.hooks.provider import HttpProvider
from sag.testing.contract import ProviderContract
from sag.testing.upstream import FakeUpstream
from sag_openai.provider import ChatProvider


class TestChat(ProviderContract):
    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream(api_key=self.key, strict=True)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return ChatProvider("openai", url, key)
