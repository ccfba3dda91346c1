"""The kinds of servers, against their fakes: lists of models, what is refused before a run, records, tokens."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import date
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from sag.engine.transport import Deadlines, Transport
from sag.hooks.provider import HttpProvider
from sag.outbound import Outbound
from sag.plugin import (
    CallFragment,
    CallRequest,
    Chunk,
    FilePart,
    Finish,
    Message,
    Model,
    ModelRequest,
    Price,
    ProviderError,
    Replay,
    Secret,
    TextPart,
    ThoughtPart,
    ToolSpec,
    UsageChunk,
    text_message,
)
from sag.testing.contract import ProviderContract
from sag.testing.upstream import Calls, FakeUpstream, Say, Script, Think, ToolCall, fail, say
from sag_openai import ChatProvider, EntraProvider, ProviderSettings, azure, catalog
from sag_openai.decoder import ChatDecoder
from sag_openai.flavors import DEFAULT_MODEL, FLAVORS
from sag_openai.textual import TextualCalls

KEY = "sk-0123456789"


def make(flavor: str, url: str, key: str = KEY, default: bool = True, told: bool = True, **table: Any) -> ChatProvider:
    table.setdefault("model", "fake")
    settings = ProviderSettings(**table)
    kind = EntraProvider if settings.entra else ChatProvider
    return kind(flavor, url, key, settings, flavor=FLAVORS[flavor], default=default, told=told)


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    outbound = Outbound()
    yield outbound
    await outbound.close()


@pytest.fixture
def http(outbound: Outbound) -> httpx.AsyncClient:
    return outbound.client(trusted=True)


@pytest.fixture
def ask(outbound: Outbound) -> Callable[..., Any]:
    async def ask(provider: ChatProvider, *messages: str | Message, model: str = "fake", **given: Any) -> list[Chunk]:
        whole = [text_message("user", m) if isinstance(m, str) else m for m in messages or ("hi",)]
        chunks: list[Chunk] = []
        transport = Transport(outbound)
        await transport.run(provider, ModelRequest(model, whole, **given), Deadlines(), chunks.extend)
        transport.close()
        return chunks

    return ask


# the contract of every provider, where a deployment is told to run a model that thinks


class TestAzureResponses(ProviderContract):
    replays = True

    def make_upstream(self) -> FakeUpstream:
        return FakeUpstream("azure", api_key=self.key)

    def make_provider(self, url: str, key: str) -> HttpProvider:
        return make("azure", url, key, deployment="fake", model="gpt-5.1")


# lists of models


async def test_openais_list_is_merged_with_what_is_known(http):
    models = ["gpt-4o-2024-08-06", "gpt-5.2", "text-embedding-3-small", "gpt-99", "gpt-realtime-2", "tts-1"]
    gone = {"id": "gpt-old", "shutdown_date": "2024-01-04"}
    soon = {"id": "gpt-5", "shutdown_date": f"{date.today().year + 1}-01-01"}
    async with FakeUpstream("openai", models=[*models, gone, soon], api_key=KEY, max_model_len=None) as up:
        provider = make("openai", up.url, model="gpt-5.2")
        found = {model.id: model for model in await provider.list_models(http)}
    assert list(found) == ["gpt-5.2", "gpt-4o-2024-08-06", "gpt-99", "gpt-5"]
    first, dated, unknown, _ = found.values()
    assert (first.label, first.context, first.output, first.default) == ("GPT-5.2", 400_000, 128_000, True)
    assert first.price == Price(1.75, 14.0, 0.175)
    assert first.abilities == ["tools", "images", "files", "reasoning", "json"]
    assert (dated.label, dated.context, dated.default) == ("GPT-4o", 128_000, False)
    assert unknown == Model("gpt-99", created=unknown.created)
    assert unknown.created


async def test_vllm_tells_the_context_and_its_first_model_is_the_default(http):
    async with FakeUpstream("vllm", models=["a", "b"], api_key=KEY, max_model_len=4096) as up:
        first, second = await make("vllm", up.url, told=False, model="not-there").list_models(http)
        assert (first.id, first.context, first.default) == ("a", 4096, True)
        assert (second.id, second.default) == ("b", False)
        chosen = await make("vllm", up.url, model="b").list_models(http)
        assert [(m.id, m.context, m.default) for m in chosen] == [("b", 4096, True), ("a", 4096, False)]
        other = await make("vllm", up.url, default=False, told=False, model="not-there").list_models(http)
        assert [m.default for m in other] == [False, False]


async def test_openrouter_tells_prices_abilities_and_authors(http):
    priced = {
        "id": "acme/chat-1",
        "pricing": {"prompt": "0.0000001", "completion": "0.0000007"},
        "name": "Acme: Chat 1",
    }
    odd = {"id": "acme/odd", "pricing": {"prompt": "-1", "completion": "-1"}, "supported_parameters": []}
    draws = {"id": "acme/draws", "architecture": {"input_modalities": ["text"], "output_modalities": ["image"]}}
    broken = {"id": "acme/broken", "name": 5, "created": "yesterday"}
    async with FakeUpstream("openrouter", models=["a/b", priced, odd, draws, broken], api_key=KEY) as up:
        models = await make("openrouter", up.url, model="openrouter/auto").list_models(http)
    auto, plain, cheap, strange, bare = models
    assert bare == Model("acme/broken", author="acme")
    assert plain == Model(
        "a/b",
        "A: B",
        8192,
        4096,
        ["tools", "images", "files", "reasoning"],
        Price(3.0, 15.0, 0.3, 3.75),
        author="a",
        created=plain.created,
    )
    assert (cheap.label, cheap.author, cheap.price) == ("Acme: Chat 1", "acme", Price(0.1, 0.7))
    assert (strange.price, strange.abilities) == (None, ["images", "files"])
    assert (auto.id, auto.default, auto.price) == ("openrouter/auto", True, None)


@pytest.mark.parametrize(
    ("pricing", "price"),
    [
        ({"prompt": "0.000003", "completion": "0.000015"}, Price(3.0, 15.0)),
        (
            {"prompt": "0.00000125", "completion": "0.00001", "input_cache_read": "0.000000125"},
            Price(1.25, 10.0, 0.125),
        ),
        ({"prompt": "0", "completion": "0"}, Price(0.0, 0.0)),
        ({"prompt": "-1", "completion": "-1"}, None),
        ({"prompt": "0.1", "completion": "nan"}, None),
        ({"prompt": "much", "completion": 5}, None),
        ({"prompt": "0.1"}, None),
        ({}, None),
    ],
)
def test_prices_are_decimal_text(pricing, price):
    assert catalog.read_price(pricing) == price


async def test_azures_list_only_tries_the_key(http):
    for version in ("", "2024-10-21"):
        async with FakeUpstream("azure", models=["d", "gpt-4o"], api_key=KEY) as up:
            [model] = await make("azure", up.url, model="d", api_version=version).list_models(http)
            assert (model.id, model.default) == ("d", True)
            with pytest.raises(ProviderError) as caught:
                await make("azure", up.url, "wrong", api_version=version).list_models(http)
            assert (caught.value.kind, caught.value.upstream) == ("provider.auth", 401)


@pytest.mark.parametrize("flavor", ["openai", "vllm", "openrouter"])
async def test_a_wrong_key_is_told_by_the_list(flavor, http):
    async with FakeUpstream(flavor, api_key=KEY) as up:
        with pytest.raises(ProviderError) as caught:
            await make(flavor, up.url, "wrong-0123456789").list_models(http)
    assert (caught.value.kind, caught.value.upstream) == ("provider.auth", 401)


async def test_a_server_without_a_list_has_the_configured_model(http):
    async with FakeUpstream("azure") as up:  # serves nothing below /v1
        assert await make("compatible", f"{up.url}/v1").list_models(http) == [Model("fake", default=True)]
        with pytest.raises(ProviderError) as caught:
            await make("vllm", f"{up.url}/v1").list_models(http)
    assert caught.value.upstream == 404


async def test_a_list_that_cannot_be_had_is_an_error(http):
    answers = [b"6\r\n\r\n<html>", b'16\r\n\r\n{"data": "none"}', b'999\r\n\r\n{"data": []}']

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: " + answers.pop(0))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    for kind in ("provider.protocol", "provider.protocol", "provider.unreachable"):
        with pytest.raises(ProviderError) as caught:
            await make("vllm", url).list_models(http)
        assert caught.value.kind == kind
    server.close()
    await server.wait_closed()
    with pytest.raises(ProviderError) as caught:
        await make("vllm", url).list_models(http)
    assert caught.value.kind == "provider.unreachable"


# what is refused before a run


def refusal(provider: ChatProvider, model: str = "fake", **given: Any) -> str:
    try:
        provider.check(ModelRequest(model, [], **given))
    except ProviderError as e:
        assert e.kind == "provider.refused"
        assert not e.retry
        return e.message
    return ""


async def test_a_model_that_a_complete_list_lacks_is_refused(http):
    async with FakeUpstream("vllm", models=["qwen", "llama:latest"]) as up:
        for flavor in ("vllm", "ollama"):
            provider = make(flavor, up.url)
            assert not refusal(provider, "other")  # nothing is known yet
            await provider.list_models(http)
            assert "It has llama:latest, qwen." in refusal(provider, "other")
            assert "Did you mean qwen?" in refusal(provider, "qwem")
            assert not refusal(provider, "qwen")
            assert not refusal(provider, "llama")
        loose = make("compatible", up.url)
        await loose.list_models(http)
        assert not refusal(loose, "other")
    async with FakeUpstream("openai", models=["gpt-5.6-sol", "text-embedding-3-small"]) as up:
        provider = make("openai", up.url)
        await provider.list_models(http)
        assert "has no model 'gpt-4o'" in refusal(provider, "gpt-4o")
        assert not refusal(provider, "gpt-5.6")  # another name of it
        assert not refusal(provider, "text-embedding-3-small")
    async with FakeUpstream("openrouter") as up:
        provider = make("openrouter", up.url)
        await provider.list_models(http)
        assert not refusal(provider, "a/b:free")


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ("gpt-6.2-sol", {"temperature": 0.0}, "takes no temperature"),
        ("gpt-6.2-sol", {"top_p": 0.5}, "takes no top_p"),
        ("gpt-6.2-sol", {"stop": ["x"]}, "takes no stop"),
        ("gpt-6.2-sol", {"seed": 0}, "takes no seed"),
        ("gpt-6.2-sol", {"reasoning": "none"}, "takes no reasoning of 'none'. It takes low, medium"),
        ("gpt-6.2-sol", {"max_tokens": 200_000}, "at most 128000"),
        ("gpt-6.2-sol", {"max_tokens": 15}, "of 16 at least"),
        ("gpt-6.2-sol", {"max_tokens": 128_000, "reasoning": "max"}, ""),
        ("gpt-4o", {"max_tokens": 1}, ""),
        ("gpt-6-luna", {"temperature": 0.5}, "only with reasoning 'none'"),
        ("gpt-6-luna", {"temperature": 0.5, "reasoning": "none"}, ""),
        ("gpt-5.2", {"temperature": 0.5}, ""),
        ("gpt-5.2", {"temperature": 0.5, "reasoning": "low"}, "only with reasoning 'none'"),
        ("gpt-5-2025-08-07", {"temperature": 0.5}, "takes no temperature"),
        ("gpt-4o", {"temperature": 0.5, "top_p": 1.0, "stop": ["x"], "seed": 1}, ""),
        ("gpt-4o", {"reasoning": "low"}, "It does not reason."),
        ("gpt-99", {"temperature": 0.5, "reasoning": "max"}, ""),
    ],
)
def test_what_a_model_is_known_not_to_take_is_refused(model, given, words):
    provider = make("openai", "http://x/v1")
    assert words in (said := refusal(provider, model, **given))
    assert bool(said) == bool(words)
    request = ModelRequest(model, [text_message("user", "u")], **given)
    if words:  # a run's config may change while it goes on
        with pytest.raises(ProviderError):
            provider.prepare(request)
    else:
        assert provider.prepare(request).body
    assert not refusal(make("compatible", "http://x/v1"), model, **given)


# how long a request is


def test_a_requests_length_is_estimated():
    provider = make("openai", "http://x/v1")

    def count(*parts: Any, role: Any = "user", **given: Any) -> int:
        return provider.count(ModelRequest("m", [Message(role, list(parts))], **given))

    assert count() == 4
    assert count(TextPart("x" * 400)) == 105
    assert count(TextPart("é" * 200)) == 105
    assert count(FilePart("image/png", "a", b"x" * 1_000_000)) == 1504
    assert count(FilePart("application/pdf", "a", b"/Type /Pages /Type /Page /Type/Page")) == 3004
    assert count(FilePart("application/pdf", "a", b"x" * 300_000)) == 4504
    assert count(CallRequest("a", "f" * 4, "x" * 40), role="assistant") == 23
    assert count(ThoughtPart("x" * 400), role="assistant") == 105
    assert count(ThoughtPart("x" * 400, {"encrypted_content": "y" * 577}), role="assistant") == 105
    assert count(tools=[ToolSpec("f", "x" * 40, {"type": "object"})]) == 34


# tool calls as text


def test_calls_as_text_are_looked_for_where_a_server_may_not_parse_them():
    request = ModelRequest("m", [], [ToolSpec("f", "", {})])
    for flavor, wanted in [("openai", False), ("azure", False), ("openrouter", False)]:
        assert isinstance(make(flavor, "http://x/v1").decoder(request), TextualCalls) == wanted
    for flavor in ("vllm", "ollama", "lmstudio", "compatible"):
        assert isinstance(make(flavor, "http://x/v1").decoder(request), TextualCalls)
        assert isinstance(make(flavor, "http://x/v1", text_calls=False).decoder(request), ChatDecoder)
        assert isinstance(make(flavor, "http://x/v1").decoder(ModelRequest("m", [])), ChatDecoder)
    assert isinstance(make("openrouter", "http://x/v1", text_calls=True).decoder(request), TextualCalls)


async def test_a_call_that_the_server_did_not_parse_is_a_call(ask):
    async with FakeUpstream("vllm", tool_text="hermes") as up:
        tools = [ToolSpec("f", "", {"type": "object"})]
        chunks = await ask(make("vllm", up.url), 'call f {"x": 1}', tools=tools)
    fragments = [chunk for chunk in chunks if isinstance(chunk, CallFragment)]
    assert fragments[0].name == "f"
    assert json.loads("".join(fragment.arguments for fragment in fragments)) == {"x": 1}
    assert Finish("tools") in chunks


# OpenRouter


async def test_the_cost_is_the_one_that_openrouter_tells(ask):
    async with FakeUpstream("openrouter", api_key=KEY) as up:
        up.script(say("one two"))
        [usage] = [c.usage for c in await ask(make("openrouter", up.url)) if isinstance(c, UsageChunk)]
    assert usage.cost_usd == pytest.approx(usage.input * 3e-6 + usage.output * 15e-6)


async def test_hidden_and_signed_thoughts_go_back_as_they_came(ask):
    tools = [ToolSpec("f", "", {"type": "object"})]
    async with FakeUpstream("openrouter", api_key=KEY) as up:
        provider = make("openrouter", up.url)
        up.script(Script([Think("let me see"), Think("hidden", redacted=True), Say("so"), Calls([ToolCall("f", {})])]))
        chunks = await ask(provider, tools=tools, reasoning="high")
        kept = [chunk.data for chunk in chunks if isinstance(chunk, Replay)]
        [call] = [chunk for chunk in chunks if isinstance(chunk, CallFragment) and chunk.id]
        thoughts = [ThoughtPart("", data) for data in kept]
        answer = Message("assistant", [*thoughts, TextPart("so"), CallRequest(call.id or "", "f", "{}")])
        result = Message("tool", [TextPart("r")], call.id)
        up.script(say("done"))
        again = await ask(provider, "hi", answer, result, tools=tools, reasoning="high")
        assert Finish("stop") in again
        sent = up.requests[-1].json["messages"][1]["reasoning_details"]
    assert [one["type"] for one in sent] == ["reasoning.text", "reasoning.encrypted"]
    assert sent[0]["text"] == "let me see"
    assert sent[0]["signature"]


async def test_the_record_of_an_answer_is_waited_for(http, ask):
    async with FakeUpstream("openrouter", api_key=KEY) as up:
        provider = make("openrouter", up.url)
        await ask(provider)
        id = next(iter(up._flavor._records))  # type: ignore[attr-defined]
        record = await provider.generation(http, id)
        asked = [request for request in up.requests if "/generation?" in request.path]
        assert record is not None
        assert (record["id"], record["model"]) == (id, "fake")
        assert len(asked) == 2  # the first answer is a 404
        with pytest.raises(ProviderError) as caught:
            await make("openrouter", up.url, "wrong-0123456789").generation(http, id)
        assert caught.value.kind == "provider.auth"


async def test_a_record_that_nobody_has_is_none(http, monkeypatch):
    monkeypatch.setattr("sag_openai.provider.RECORD_PAUSES_S", (0.0, 0.0))
    async with FakeUpstream("openrouter", api_key=KEY) as up:
        assert await make("openrouter", up.url).generation(http, "gen-1&x=2") is None
        assert [request.path for request in up.requests] == ["/api/v1/generation?id=gen-1%26x%3D2"] * 3
    assert await make("vllm", "http://127.0.0.1:9/v1").generation(http, "x") is None


# Azure


async def test_a_deployment_that_is_not_there_is_refused(ask):
    async with FakeUpstream("azure", api_key=KEY) as up:
        for version in ("", "2024-10-21"):
            with pytest.raises(ProviderError) as caught:
                await ask(make("azure", up.url, api_version=version), model="gone")
            assert caught.value.kind == "provider.refused"
            assert "deployment" in caught.value.message


async def test_a_prompt_that_is_filtered_is_refused(ask):
    async with FakeUpstream("azure", api_key=KEY) as up:
        up.script(fail(400, "The response was filtered.", code="content_filter"))
        with pytest.raises(ProviderError) as caught:
            await ask(make("azure", up.url))
    assert (caught.value.kind, caught.value.retry) == ("provider.refused", False)


async def test_azure_takes_a_token_that_stands_in_the_environment(ask, http):
    async with FakeUpstream("azure", api_key=KEY, access_token="token-0123456789") as up:
        for version in ("", "2024-10-21"):
            provider = make("azure", up.url, "", ad_token=Secret("token-0123456789"), api_version=version)
            assert Finish("stop") in await ask(provider)
            assert [model.id for model in await provider.list_models(http)] == ["fake"]


class Identity(ModuleType):
    """Stands in for `azure.identity`: each credential gives one token after the other."""

    def __init__(self, life_s: float = 3600.0) -> None:
        super().__init__("azure.identity")
        self.life_s = life_s
        self.scopes: list[str] = []
        self.failure: Exception | None = None

    def DefaultAzureCredential(self) -> Any:  # noqa: N802
        def get_token(scope: str) -> Any:
            self.scopes.append(scope)
            if self.failure is not None:
                raise self.failure
            return SimpleNamespace(token=f"token-{len(self.scopes)}", expires_on=time.time() + self.life_s)

        return SimpleNamespace(get_token=get_token)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Identity:
    identity = Identity()
    monkeypatch.setitem(sys.modules, "azure", ModuleType("azure"))
    monkeypatch.setitem(sys.modules, "azure.identity", identity)
    return identity


async def test_a_token_of_entra_is_fetched_once_and_sent(ask, http, identity):
    async with FakeUpstream("azure", access_token="token-1") as up:
        provider = make("azure", up.url, "", entra=True)
        assert all(Finish("stop") in chunks for chunks in await asyncio.gather(*(ask(provider) for _ in range(5))))
        await provider.list_models(http)
        assert {request.headers["authorization"] for request in up.requests} == {"Bearer token-1"}
        assert not any("api-key" in request.headers for request in up.requests)
    assert identity.scopes == ["https://cognitiveservices.azure.com/.default"]


async def test_a_token_is_fetched_anew_shortly_before_it_expires(http, identity, monkeypatch):
    provider = make("azure", "http://127.0.0.1:9", "", entra=True, entra_scope="https://ai.azure.com/.default")
    assert isinstance(provider, EntraProvider)
    assert await provider.headers(http) == {"Authorization": "Bearer token-1"}
    now = time.time()
    monkeypatch.setattr("sag_openai.azure.time.time", lambda: now + 3600 - azure.EARLY_S - 5)
    assert await provider.headers(http) == {"Authorization": "Bearer token-1"}
    monkeypatch.setattr("sag_openai.azure.time.time", lambda: now + 3600 - azure.EARLY_S + 5)
    assert await provider.headers(http) == {"Authorization": "Bearer token-2"}
    assert set(identity.scopes) == {"https://ai.azure.com/.default"}


async def test_a_token_that_cannot_be_had_is_told_and_asked_for_again(http, identity):
    provider = make("azure", "http://127.0.0.1:9", "", entra=True)
    assert isinstance(provider, EntraProvider)
    identity.failure = ValueError("no\n  credential\n" + "x" * 500)
    with pytest.raises(ProviderError) as caught:
        await provider.headers(http)
    assert caught.value.kind == "provider.auth"
    assert "Entra gives no token (ValueError): no credential x" in caught.value.message
    identity.failure = None
    assert await provider.headers(http) == {"Authorization": "Bearer token-2"}


async def test_without_the_library_the_reason_is_clear(http, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure", None)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    provider = make("azure", "http://127.0.0.1:9", "", entra=True)
    assert isinstance(provider, EntraProvider)
    with pytest.raises(ProviderError, match=r"install sag-hub\[azure\]"):
        await provider.headers(http)


async def test_the_library_itself_fetches_a_token_of_a_managed_identity(http, monkeypatch):
    pytest.importorskip("azure.identity", reason="the extra `azure` is not installed")
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        token = {
            "access_token": "managed-0123456789",
            "expires_on": str(int(time.time()) + 3600),
            "token_type": "Bearer",
        }
        body = json.dumps(token | {"resource": "https://cognitiveservices.azure.com"}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "MSI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{port}/token")
    monkeypatch.setenv("IDENTITY_HEADER", "secret-header")
    provider = make("azure", "http://127.0.0.1:9", "", entra=True)
    assert isinstance(provider, EntraProvider)
    for _ in range(2):
        assert await provider.headers(http) == {"Authorization": "Bearer managed-0123456789"}
    server.close()
    await server.wait_closed()
    assert len(asked) == 1
    assert b"resource=https" in asked[0]
    assert b"secret-header" in asked[0]


# the data file


def test_the_data_file_is_complete_and_says_of_when_it_is():
    data = catalog.data()
    assert date(2026, 1, 1) < date.fromisoformat(data.as_of)
    assert data.source
    assert DEFAULT_MODEL in data.models
    names = [*data.models, *(alias for one in data.models.values() for alias in one.aliases)]
    assert len(set(names)) == len(names)
    for id, one in data.models.items():
        assert one.label, id
        assert one.abilities is not None
        assert one.price is not None
        assert 0 < one.price.input < one.price.output, id
        assert one.price.cached is None or one.price.cached < one.price.input, id
        long = one.price.long
        assert long is None or (long.input > one.price.input and long.output > one.price.output), id
        assert 0 < (one.output or 0) < (one.context or 0), id
        assert ("reasoning" in one.abilities) == bool(one.efforts) == (one.api == "responses"), id
        assert one.sampling or one.efforts, id


@pytest.mark.parametrize(
    ("id", "label"),
    [
        ("gpt-4o", "GPT-4o"),
        ("gpt-4o-2024-08-06", "GPT-4o"),
        ("gpt-4o-mini-2024-07-18", "GPT-4o mini"),
        ("gpt-5.6", "GPT-5.6 Sol"),
        ("ft:gpt-4.1-mini-2025-04-14:org:name:id", "GPT-4.1 mini"),
        ("gpt-4o-audio-preview", None),
        ("gpt-5.9-sol", None),
        ("gpt-5.2-pro", None),
        ("gpt", None),
        ("", None),
    ],
)
def test_a_model_is_known_by_its_name_its_date_and_what_it_was_tuned_from(id, label):
    known = catalog.find(id)
    assert (known.label if known else None) == label


def test_what_a_tuned_model_costs_is_not_known():
    known = catalog.find("ft:gpt-4o:org")
    assert known is not None
    assert known.model("ft:gpt-4o:org").price is None
    assert known.model("gpt-4o").price is not None
