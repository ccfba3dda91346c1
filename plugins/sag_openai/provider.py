"""The provider: whom a model round goes to, in which form, and what can be asked of the server besides.

The forms themselves are `sag_openai.chat` and `sag_openai.responses`, what servers differ in is `sag_openai.flavors`.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from sag.plugin import (
    CallRequest,
    Decoder,
    FilePart,
    HttpRequest,
    Message,
    Model,
    ModelRequest,
    ProviderError,
    Secret,
    TextPart,
    ThoughtPart,
    load_json,
    to_unicode,
)
from sag_openai import catalog, chat, responses
from sag_openai.azure import Endpoint, EntraToken
from sag_openai.catalog import Known
from sag_openai.decoder import ChatDecoder
from sag_openai.failure import read_error
from sag_openai.flavors import COMPATIBLE, Flavor, is_deepseek
from sag_openai.responses import ResponsesDecoder
from sag_openai.settings import ProviderSettings
from sag_openai.textual import TextualCalls

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]

LIST_BYTES = 16 << 20
RECORD_BYTES = 1 << 20
RECORD_PAUSES_S = (0.3, 0.7, 1.5)  # a record can be missing right after its answer
LEAST = 16  # tokens to which the Responses interface can limit an answer
IMAGE_TOKENS = 1_500
PAGE_BYTES = 100_000

_encode = msgspec.json.Encoder().encode
_PAGE = re.compile(rb"/Type\s*/Page\b(?!s)")


class ChatProvider:
    """Models of a server that speaks like OpenAI's (`sag.plugin.HttpProvider`).

    Args:
        name: The provider's name.
        base_url: With its `/v1`; of Azure the resource's endpoint.
        api_key: Empty where the server wants none.
        settings: Its table; `base_url` and `api_key` there do not count.
        flavor: What kind of server it is.
        told: Whether somebody said which model to use; else it is the flavor's, and gives way to what the server has.
        default: Whether its model is the one to use where nobody chose another.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: Secret | str = "",
        settings: ProviderSettings | None = None,
        *,
        flavor: Flavor = COMPATIBLE,
        told: bool = True,
        default: bool = False,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.flavor = flavor
        self.default = default
        self._key = api_key if isinstance(api_key, Secret) else Secret(api_key)
        self._settings = settings or ProviderSettings()
        self._told = told
        own = self._settings
        self._azure = Endpoint(base_url, own.api_version) if flavor.name == "azure" else None
        self._model = own.deployment or own.model
        self._listed: set[str] | None = None
        self._text_calls = flavor.text_calls if own.text_calls is None else own.text_calls

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.flavor.name} {self.base_url}>"

    # the round

    def prepare(self, request: ModelRequest) -> HttpRequest:
        """The request of one round; sampling members only where somebody set them.

        Members of the setting `extra_body` and of the run's `extra` come at the top; `extra_body` within `extra`, as
        SDKs have it, is no member but holds some.

        Raises:
            ProviderError: provider.refused; the model does not take a member that is set.
        """
        self._refuse_members(request)
        if self._on_responses(request.model):
            path = "responses"
            body = responses.write(request, reasons=self._reasons(request.model), remembers=self.flavor.knows)
        else:
            path = "chat/completions"
            body = self._write_chat(request)
        body |= self._settings.extra_body
        extra = dict(request.extra)
        inner = extra.pop("extra_body", None)
        body |= extra | (inner if isinstance(inner, dict) else {})
        try:
            data = _encode(body)
        except UnicodeEncodeError:
            # Half surrogates in a transcript.
            data = to_unicode(json.dumps(body, ensure_ascii=False, default=msgspec.json.decode)).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **self._headers()}
        return HttpRequest(self._url(path, request.model), data, headers)

    def decoder(self, request: ModelRequest) -> Decoder:
        """A decoder for one answer."""
        key = self._key.reveal()
        decoder: Decoder
        if self._on_responses(request.model):
            decoder = ResponsesDecoder(key)
        else:
            decoder = ChatDecoder(key, router=self.flavor.router)
        return TextualCalls(decoder, request.tools) if request.tools and self._text_calls else decoder

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error of an answer that is not 2xx, or of JSON with an error that came instead of a stream."""
        return read_error(status, headers, body, self._key.reveal())

    # what is known without asking

    def models(self) -> Sequence[Model]:
        """The model that is asked for where nobody chose another, if there is one."""
        if not self._model:
            return []
        known = self._known(self._model)
        return [known.model(self._model, default=self.default) if known else Model(self._model, default=self.default)]

    def check(self, request: ModelRequest) -> None:
        """Refuse what is known not to work.

        Raises:
            ProviderError: provider.refused; the server does not have the model, or it does not take a member.
        """
        model, listed = request.model, self._listed
        if listed is not None and self.flavor.complete and not self._lists(model, listed):
            close = difflib.get_close_matches(model, listed, 1)
            hint = f" Did you mean {close[0]}?" if close else f" It has {_first(listed)}."
            raise ProviderError("provider.refused", f"{self.name} has no model {model!r}.{hint}")
        self._refuse_members(request)

    def _lists(self, model: str, listed: set[str]) -> bool:
        # Ollama adds the tag; OpenAI leaves out some other names of a model.
        known = catalog.find(model) if self.flavor.knows else None
        return bool({model, f"{model}:latest"} & listed) or (known is not None and model in known.aliases)

    def count(self, request: ModelRequest) -> int:
        """About how many tokens a request takes.

        Four bytes of UTF-8 a token, for text, thoughts, tools and their calls; 4 tokens for each message, 8 for each
        call and 16 for each tool; 1,500 for an image and for each page of a PDF, of which 100 kB count as one at least.
        What a vendor wants back of thoughts is counted by its size, encrypted text being longer than what it holds.
        """
        tools = sum(16 + (_size(tool.description) + len(_encode(tool.input))) // 4 for tool in request.tools)
        return tools + sum(map(_count_message, request.messages))

    # what the server is asked besides

    async def list_models(self, http: httpx.AsyncClient) -> Sequence[Model]:
        """The configured model, then what the server lists.

        Azure lists what a resource could deploy and not what it has deployed, so its list only tries the key.

        Raises:
            ProviderError: provider.auth and its like.
        """
        if self.flavor.router and self._key:
            status, headers, body = await self._get(http, "key", RECORD_BYTES)  # the list itself wants no key
            if status == 401:
                raise self.error(status, headers, body)
        status, headers, body = await self._get(http, "models", LIST_BYTES)
        if status in (404, 405, 501) and not self.flavor.complete:
            return self.models()  # many a proxy has no list
        if status != 200:
            raise self.error(status, headers, body)
        if self._azure is not None:
            return self.models()
        try:
            listed, names = catalog.read_list(body, self.flavor)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ProviderError("provider.protocol", "The model's server answers with no list of models.") from None
        self._listed = names
        # A model that nobody asked for gives way where the server does not have it.
        keep = self._told or self._model in names
        return catalog.merge(self.models() if keep else [], listed, first=self.default)

    async def generation(self, http: httpx.AsyncClient, id: str) -> Json | None:
        """What OpenRouter keeps of an answer; None for other servers, and where it knows none of that id.

        Raises:
            ProviderError: It does not tell.
        """
        if not self.flavor.router:
            return None
        for pause_s in (*RECORD_PAUSES_S, None):
            status, headers, body = await self._get(http, f"generation?id={quote(id, safe='')}", RECORD_BYTES)
            if status == 200:
                given = load_json(body)
                data = given.get("data") if isinstance(given, dict) else None
                if not isinstance(data, dict):
                    raise ProviderError("provider.protocol", "The model's server answers with no record.")
                return data
            if status != 404:
                raise self.error(status, headers, body)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        return None

    async def _get(self, http: httpx.AsyncClient, path: str, limit: int) -> tuple[int, dict[str, str], bytes]:
        # Heavy, and not needed before something is asked.
        import aiohttp
        import httpx as library

        headers = {"Accept": "application/json", **self._headers(), **await self._fetched(http)}
        body = bytearray()
        try:
            async with http.stream("GET", self._url(path), headers=headers) as answer:
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > limit:
                        raise ProviderError("provider.protocol", "The model's server answers with too much.")
                return answer.status_code, dict(answer.headers), bytes(body)
        except library.ReadTimeout:
            raise ProviderError("provider.timeout", f"{self.name} did not answer in time.") from None
        except (library.TransportError, aiohttp.ClientError) as e:
            raise ProviderError("provider.unreachable", f"{self.name} cannot be reached.") from e

    async def _fetched(self, http: httpx.AsyncClient) -> Mapping[str, str]:
        return {}

    # how this server is spoken to

    def _url(self, path: str, model: str = "") -> str:
        return self._azure.url(path, model) if self._azure is not None else f"{self.base_url}/{path}"

    def _headers(self) -> dict[str, str]:
        """Made anew each time, so that no key stands in an attribute."""
        own = self._settings
        headers = {**self.flavor.headers, **own.headers}
        if own.entra and self._azure is not None:
            return headers
        if self._key and self._azure is not None:
            headers["api-key"] = self._key.reveal()
        elif secret := self._key or own.ad_token:
            headers["Authorization"] = f"Bearer {secret.reveal()}"
        return headers

    def _known(self, model: str) -> Known | None:
        """What the data file knows; of a deployment by the model that it is said to run."""
        if not self.flavor.knows:
            return None
        runs = self._settings.model if model == self._settings.deployment else ""
        return catalog.find(runs or model)

    def _described(self, model: str) -> Known | None:
        """As `_known`; what is not known of OpenAI's own server is taken for new."""
        known = self._known(model)
        return catalog.data().otherwise if known is None and self.flavor.name == "openai" else known

    def _on_responses(self, model: str) -> bool:
        own = self._settings.api
        if own != "auto":
            return own == "responses"
        described = self._described(model)
        if self._azure is not None and self._azure.version:
            return False
        return described is not None and described.api == "responses"

    def _reasons(self, model: str) -> bool:
        """Whether a model thinks, as far as that is known; new ones of OpenAI do."""
        known = self._known(model)
        return bool(known.efforts) if known is not None else self.flavor.knows

    def _write_chat(self, request: ModelRequest) -> Json:
        own, flavor = self._settings, self.flavor
        named = own.reasoning_name
        if named is None:
            local = not flavor.knows and not flavor.router
            named = "reasoning_content" if local and is_deepseek(request.model, self.base_url) else ""
        limit = own.max_tokens_name or flavor.max_tokens_name
        if not own.max_tokens_name and (known := catalog.find(request.model)) is not None and known.efforts:
            limit = "max_completion_tokens"  # OpenAI's models behind a proxy
        body = chat.write(request, max_tokens_name=limit, reasoning_name=named, router=flavor.router)
        if request.reasoning is not None:
            effort = flavor.efforts.get(request.reasoning, request.reasoning)
            body |= {"reasoning": {"effort": effort}} if flavor.router else {"reasoning_effort": effort}
        if own.routing:
            body["provider"] = own.routing
        return body

    def _refuse_members(self, request: ModelRequest) -> None:
        if text := self._complain(request):
            raise ProviderError("provider.refused", f"{request.model} {text}")

    def _complain(self, request: ModelRequest) -> str:
        """What is known to be wrong with a request's members, in words that follow the model's name."""
        known, limit = self._known(request.model), request.max_tokens
        if self._on_responses(request.model):
            for name in ("stop", "seed"):
                if getattr(request, name) is not None:
                    return f"takes no {name}. Leave it out of the config."
            if self.flavor.knows and limit is not None and limit < LEAST:
                return f"takes a max_tokens of {LEAST} at least; it is {limit}."
        if known is None:
            return ""
        if request.reasoning is not None and request.reasoning not in known.efforts:
            can = f"It takes {', '.join(known.efforts)}." if known.efforts else "It does not reason."
            return f"takes no reasoning of {request.reasoning!r}. {can}"
        if limit is not None and known.output is not None and limit > known.output:
            return f"writes at most {known.output} tokens; max_tokens is {limit}."
        if known.sampling if request.reasoning is None else request.reasoning == "none":
            return ""
        for name in ("temperature", "top_p"):
            if getattr(request, name) is not None:
                if "none" in known.efforts:
                    return f"takes {name} only with reasoning 'none'. Leave one of them out."
                return f"takes no {name}. Leave it out of the config."
        return ""


class EntraProvider(ChatProvider):
    """A provider whose key is a token that has to be fetched."""

    @cached_property
    def _token(self) -> EntraToken:
        return EntraToken(self._settings.entra_scope)

    async def headers(self, http: httpx.AsyncClient) -> Mapping[str, str]:
        """The token.

        Raises:
            ProviderError: provider.auth; Entra gives none, or the library azure-identity is missing.
        """
        return {"Authorization": f"Bearer {await self._token.get()}"}

    async def _fetched(self, http: httpx.AsyncClient) -> Mapping[str, str]:
        return await self.headers(http)


def _first(names: set[str], count: int = 5) -> str:
    shown = ", ".join(sorted(names)[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown or "none"


def _count_message(message: Message) -> int:
    total = 4
    for part in message.parts:
        if isinstance(part, FilePart):
            pages = 1 if part.is_image else max(len(_PAGE.findall(part.data)), len(part.data) // PAGE_BYTES, 1)
            total += IMAGE_TOKENS * pages
        elif isinstance(part, CallRequest):
            total += 8 + (_size(part.name) + _size(part.arguments)) // 4
        elif isinstance(part, TextPart):
            total += _size(part.text) // 4 + 1
        elif isinstance(part, ThoughtPart):
            total += (len(_encode(part.replay)) // 6 if part.replay is not None else _size(part.text) // 4) + 1
    return total


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
