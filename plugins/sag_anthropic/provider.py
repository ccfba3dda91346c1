"""The provider: what is sent for a model round to Anthropic's Messages API and to servers that speak it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sag.plugin import (
    CallRequest,
    Decoder,
    Effort,
    FilePart,
    HttpRequest,
    Message,
    Model,
    ModelRequest,
    ProviderError,
    Secret,
    TextPart,
    ThoughtPart,
    to_unicode,
)
from sag_anthropic.catalog import CATALOG, NEWEST_SONNET, Known, Page, find, learn
from sag_anthropic.decoder import MessagesDecoder
from sag_anthropic.failure import read_error

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]

HOST = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
BINDING = "thinking-binding-controls-2026-08-01"
BEGIN, GO_ON = "Begin.", "Go on."

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
TEXTS = ("text/", "application/json", "application/xml", "application/yaml", "application/toml", "application/sql")
IMAGE_TOKENS = 1_500
PDF_BYTES = 20  # for a token: a page of 60 KB makes about 3,000
PDF_TOKENS = 300_000  # at most, since smaller models take a hundred pages

BUDGETS: dict[Effort, int] = {
    "minimal": 1_024,
    "low": 4_096,
    "medium": 8_192,
    "high": 16_384,
    "xhigh": 24_576,
    "max": 32_768,
}
LEAST_BUDGET = 1_024

_SAMPLING = ("temperature", "top_p", "top_k")
_THOUGHTS = ("thinking", "redacted_thinking")
PAGES = 10
LIST_BYTES = 8 << 20
ERROR_BYTES = 64 << 10

_encode = msgspec.json.Encoder().encode


class MessagesProvider:
    """Anthropic's Messages API over HTTP (`sag.plugin.HttpProvider`).

    Args:
        name: The provider's name.
        base_url: Without `/v1` and without a slash at the end.
        key: Sent as `x-api-key`.
        token: Sent as `Authorization: Bearer`, where there is no key.
        model: The model to use where nobody chose another; the newest Sonnet where it is empty.
        default: Whether that is so for the whole hub.
        headers: Sent with every request; they win.
        beta: Names of betas, for `anthropic-beta`.
        cache: Mark what the vendor is to keep for the next rounds.
        extra: Members sent with every request, below those of the request's own `extra`.
    """

    def __init__(
        self,
        name: str = "anthropic",
        base_url: str = HOST,
        key: Secret | None = None,
        token: Secret | None = None,
        *,
        model: str = "",
        default: bool = False,
        headers: Mapping[str, str] | None = None,
        beta: Sequence[str] = (),
        cache: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.base_url = base_url
        self.default = default
        self._model = model
        self._cache = cache
        self._extra = dict(extra or {})
        self._beta = list(beta)
        self._key, self._token = key or Secret(), token or Secret()
        self._own_headers = {name.lower(): value for name, value in (headers or {}).items()}
        if more := self._own_headers.pop("anthropic-beta", ""):
            self._beta += [one.strip() for one in more.split(",")]
        self._learned: dict[str, Known] = {}

    def prepare(self, request: ModelRequest) -> HttpRequest:
        """The request of one round; sampling members only where somebody set them."""
        known = self._known(request.model)
        given = {**self._extra, **request.extra}
        max_tokens = self._max_tokens(request, known)
        system, messages = self._convert(request)
        body: Json = {"model": request.model, "max_tokens": max_tokens, "messages": messages, "stream": True}
        if system:
            body["system"] = [{"type": "text", "text": system}]
        tools = [_write_tool(tool.name, tool.description, tool.input) for tool in request.tools]
        if not tools and (called := {call.name for message in request.messages for call in message.calls}):
            # A transcript with calls needs their tools, though none is offered any more.
            tools = [_write_tool(name, "", {}) for name in sorted(called)]
            body["tool_choice"] = {"type": "none"}
        if tools:
            body["tools"] = tools
        members = {"temperature": request.temperature, "top_p": request.top_p, "stop_sequences": request.stop}
        body |= {name: value for name, value in members.items() if value is not None}
        beta = self._think(request.reasoning, known, max_tokens, body)
        if self._cache and "cache_control" not in given:
            _mark(body)
        if isinstance(given.get("output_config"), dict):
            given["output_config"] = {**body.get("output_config", {}), **given["output_config"]}
        body |= given
        try:
            data = _encode(body)
        except (UnicodeEncodeError, OverflowError):
            # Half surrogates in a transcript, or an integer of more than 64 bits in a call.
            data = to_unicode(json.dumps(body, ensure_ascii=False)).encode()
        headers = self._write_headers("text/event-stream", beta) | {"content-type": "application/json"}
        return HttpRequest(f"{self.base_url}/v1/messages", data, headers)

    def decoder(self, request: ModelRequest) -> Decoder:
        """A decoder for one answer."""
        return MessagesDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error of an answer that is not 2xx, or of JSON with an error that came instead of a stream."""
        return read_error(status, headers, body)

    def models(self) -> Sequence[Model]:
        """The configured model, and Anthropic's own as the data file has them."""
        offered = [id for id, known in CATALOG.items() if known.offered]
        return self._offer(offered if self.base_url == HOST else [NEWEST_SONNET] * (not self._model))

    async def list_models(self, http: httpx.AsyncClient) -> Sequence[Model]:
        """The models that the vendor lists, the one to use by default first.

        What the list says of a model, such as how it thinks, holds for later requests.

        Raises:
            ProviderError: The list cannot be had; provider.auth without a key.
        """
        self._check_key()
        learned: dict[str, Known] = {}
        after = ""
        for _ in range(PAGES):
            params = {"limit": "1000"} | ({"after_id": after} if after else {})
            page = await self._get(http, f"{self.base_url}/v1/models", params)
            learned |= {listed.id: learn(listed) for listed in page.data}
            after = page.last_id or ""
            if not page.has_more or not after:
                break
        self._learned = learned
        return self._offer(list(learned))

    def count(self, request: ModelRequest) -> int:
        """About how many tokens a request takes.

        Text counts 3.5 bytes a token, 2.7 for models from 4.7 on; an image 1,500; a PDF a token for 20 bytes, at most
        300,000.
        """
        per_token = self._known(request.model).bytes_per_token
        files = sum(_count_file(file, per_token) for message in request.messages for file in message.files)
        text = sum(_size(part) for message in request.messages for part in message.parts)
        tools = sum(len(tool.description) + len(_encode(tool.input)) + 64 for tool in request.tools)
        return round((text + tools) / per_token) + files + 4 * len(request.messages)

    def check(self, request: ModelRequest) -> None:
        """Refuse what Anthropic is known to refuse.

        Raises:
            ProviderError: provider.auth without a key, provider.refused for a member that the model does not take.
        """
        self._check_key()
        known = self._known(request.model)
        model, effort = request.model, request.reasoning
        claude = "claude" in model  # others who speak like Anthropic have rules of their own
        members = {"temperature": request.temperature, "top_p": request.top_p, **self._extra, **request.extra}
        sampling = {name: members[name] for name in _SAMPLING if members.get(name) is not None}
        temperature = sampling.get("temperature")
        why = ""
        if request.seed is not None:
            why = "takes no seed"
        elif sampling and not known.sampling:
            why = f"takes no {' and no '.join(sampling)}"
        elif claude and "temperature" in sampling and "top_p" in sampling:
            why = "takes either temperature or top_p, not both"
        elif claude and isinstance(temperature, int | float) and temperature > 1:
            why = "takes a temperature from 0 to 1"
        elif request.max_tokens is not None and known.output is not None and request.max_tokens > known.output:
            why = f"writes at most {known.output} tokens; lower max_tokens"
        elif effort == "none" and known.thinking is not None and known.off is None:
            why = "always thinks; choose low for little"
        elif effort not in (None, "none"):
            if known.thinking is None:
                why = "does not think; leave reasoning out"
            elif claude and temperature not in (None, 1):
                why = "takes no temperature while it thinks; leave out temperature or reasoning"
            elif known.thinking == "budget" and request.max_tokens is not None and request.max_tokens <= LEAST_BUDGET:
                why = f"needs max_tokens above {LEAST_BUDGET} to think"
        if why:
            raise ProviderError("provider.refused", f"{model} {why}.")

    # of a request

    def _known(self, model: str) -> Known:
        return self._learned.get(model) or find(model)

    def _max_tokens(self, request: ModelRequest, known: Known) -> int:
        """What was set, else as much as the model writes; less where prompt and answer would not fit together."""
        if request.max_tokens is not None:
            return request.max_tokens
        most = known.output or MAX_TOKENS
        if known.context is None:
            return most
        return min(most, max(known.context - self.count(request), known.context // 4))

    def _think(self, effort: Effort | None, known: Known, max_tokens: int, body: Json) -> list[str]:
        """Set how much the model is to think, where somebody set it; gives the betas that this needs."""
        if effort == "none":
            body["thinking"] = {"type": known.off or "disabled"}
            return []
        if effort is not None and known.thinking == "budget":
            budget = max(LEAST_BUDGET, min(BUDGETS[effort], max_tokens // 2))
            body["thinking"] = {"type": "enabled", "budget_tokens": budget}
        elif effort is not None:
            # Newer models keep their thoughts to themselves unless they are asked.
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
            if known.efforts:
                body["output_config"] = {"effort": _nearest(effort, known.efforts)}
        if not known.bound or self.base_url != HOST:
            return []
        # The system prompt, the tools and the oldest turns may change in a conversation. These models take no thought
        # of before that, and refuse the request unless they are told to leave it out. To think adaptively is their
        # default.
        binding = {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}
        body["thinking"] = {"type": "adaptive", **body.get("thinking", {}), **binding}
        return [BINDING]

    def _convert(self, request: ModelRequest) -> tuple[str, list[Json]]:
        """System prompt and messages: roles in turn, a user's first and last, results before all else."""
        system: list[str] = []
        out: list[Json] = []
        thinks = request.reasoning != "none"
        for message in request.messages:
            if message.role == "system":
                system.append(message.text)
                continue
            role = "assistant" if message.role == "assistant" else "user"
            blocks = _write_result(message) if message.role == "tool" else _write_parts(message.parts, thinks)
            if role == "assistant" and all(block["type"] in _THOUGHTS for block in blocks):
                continue
            if not blocks:
                continue
            if not out or out[-1]["role"] != role:
                out.append({"role": role, "content": []})
            content = out[-1]["content"]
            if message.role == "tool":
                at = sum(1 for block in content if block["type"] == "tool_result")
                content[at:at] = blocks[:1]
                content += blocks[1:]
            else:
                content += blocks
        if not out or out[0]["role"] != "user":
            out.insert(0, {"role": "user", "content": [_text(BEGIN)]})
        if out[-1]["role"] != "user":
            out.append({"role": "user", "content": [_text(GO_ON)]})
        return "\n\n".join(text for text in system if text.strip()), out

    # of the list

    def _check_key(self) -> None:
        if self.base_url == HOST and not self._write_headers("").keys() & {"x-api-key", "authorization"}:
            raise ProviderError("provider.auth", f"The provider {self.name} has no key; set ANTHROPIC_API_KEY.")

    def _write_headers(self, accept: str, beta: Sequence[str] = ()) -> dict[str, str]:
        headers = {"accept": accept, "anthropic-version": VERSION}
        if betas := [*self._beta, *beta]:
            headers["anthropic-beta"] = ",".join(dict.fromkeys(betas))
        if self._key:
            headers["x-api-key"] = self._key.reveal()
        elif self._token:
            headers["authorization"] = f"Bearer {self._token.reveal()}"
        return headers | self._own_headers

    async def _get(self, http: httpx.AsyncClient, url: str, params: Mapping[str, str]) -> Page:
        import httpx as library  # heavy, and not needed before something is asked

        body = bytearray()
        try:
            headers = self._write_headers("application/json")
            async with http.stream("GET", url, params=params, headers=headers) as answer:
                good = answer.status_code == 200
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > (LIST_BYTES if good else ERROR_BYTES):
                        break
        except library.TimeoutException as e:
            raise ProviderError("provider.timeout", "The model's server did not list its models in time.") from e
        except library.HTTPError as e:
            raise ProviderError("provider.unreachable", "The model's server cannot be reached.") from e
        if not good:
            raise self.error(answer.status_code, answer.headers, bytes(body[:ERROR_BYTES]))
        try:
            return msgspec.json.decode(bytes(body), type=Page, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ProviderError("provider.protocol", "The model's server lists its models in another form.") from e

    def _offer(self, ids: list[str]) -> list[Model]:
        """The models by id, the default first: the configured one, else the newest Sonnet."""
        first = self._model or NEWEST_SONNET
        if not self._model and NEWEST_SONNET not in ids:
            first = next((id for id in ids if "sonnet" in id), ids[0] if ids else "")
        ids = list(dict.fromkeys([first, *ids])) if first else []
        return [self._known(id).to_model(id, default=self.default and id == first) for id in ids]


def _write_parts(parts: Sequence[TextPart | FilePart | ThoughtPart | CallRequest], thinks: bool) -> list[Json]:
    """The content blocks of parts; none for blank text, which is refused, and for thoughts without their replay."""
    blocks: list[Json] = []
    for part in parts:
        if isinstance(part, TextPart):
            if part.text.strip():
                blocks.append(_text(part.text))
        elif isinstance(part, ThoughtPart):
            if thinks and isinstance(part.replay, dict) and part.replay.get("type") in _THOUGHTS:
                blocks.append(part.replay)
        elif isinstance(part, CallRequest):
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": _read_input(part.arguments)})
        else:
            blocks.append(_write_file(part))
    return blocks


def _write_result(message: Message) -> list[Json]:
    """A tool's result, and behind it the files of one that failed, since such a result may hold text alone."""
    blocks = _write_parts(message.parts, thinks=False)
    result: Json = {"type": "tool_result", "tool_use_id": message.call}
    after: list[Json] = []
    if message.failed:
        result["is_error"] = True
        after = [block for block in blocks if block["type"] != "text"]
        blocks = [block for block in blocks if block["type"] == "text"]
    if blocks:
        result["content"] = blocks
    return [result, *after]


def _write_file(file: FilePart) -> Json:
    mime = file.mime.partition(";")[0].strip().lower()
    if file.data and (mime in IMAGES or mime == "application/pdf"):
        data = base64.b64encode(file.data).decode()
        block: Json = {
            "type": "image" if mime in IMAGES else "document",
            "source": {"type": "base64", "media_type": mime, "data": data},
        }
    elif mime.startswith(TEXTS) and (text := file.data.decode("utf-8", "replace")).strip():
        block = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}
    else:
        return _text(f"[file: {file.name} ({mime}), which this model cannot read]")
    if block["type"] == "document" and file.name:
        block["title"] = file.name[:500]
    return block


def _write_tool(name: str, description: str, input: Json) -> Json:
    tool: Json = {"name": name, "input_schema": {**input, "type": "object"}}
    return tool | ({"description": description} if description else {})


def _read_input(arguments: str) -> Json:
    """A call's arguments as an object, which is all that is taken."""
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {"invalid_json": arguments}


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _mark(body: Json) -> None:
    """Mark what the vendor is to keep: tools, system prompt, and the user's two newest messages.

    The next round finds the newest of this one as its newest but one, however much came in between. Four marks are all
    that are taken.
    """
    users = [message["content"] for message in body["messages"] if message["role"] == "user"]
    for blocks in (body.get("tools"), body.get("system"), *users[-2:]):
        if blocks:
            blocks[-1]["cache_control"] = {"type": "ephemeral"}


def _nearest(effort: Effort, taken: Sequence[Effort]) -> Effort:
    """The effort itself if the model takes it, else the next lower one, else the lowest."""
    order = list(BUDGETS)
    return max((one for one in taken if order.index(one) <= order.index(effort)), key=order.index, default=taken[0])


def _size(part: TextPart | FilePart | ThoughtPart | CallRequest) -> int:
    if isinstance(part, FilePart):
        return 0
    if isinstance(part, CallRequest):
        return len(part.name) + _bytes(part.arguments) + 64
    if isinstance(part, ThoughtPart):
        return len(json.dumps(part.replay)) if part.replay is not None else 0
    return _bytes(part.text)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _count_file(file: FilePart, per_token: float) -> int:
    if file.is_image:
        return IMAGE_TOKENS
    if file.mime.startswith("application/pdf"):
        return min(len(file.data) // PDF_BYTES, PDF_TOKENS)
    return round(len(file.data) / per_token) if file.mime.startswith(TEXTS) else 16
