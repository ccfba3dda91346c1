"""OpenRouter: its catalogue with prices, its records of what was answered, costs, and reasoning with details."""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sag.testing.upstream.chat import ChatFormat, ChatWriter
from sag.testing.upstream.flavor import CREATED, Flavor, read_query
from sag.testing.upstream.request import Request, refuse, seal, unseal
from sag.testing.upstream.script import Fail, Json, Think, join

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

KEPT = 1000  # records of answers
ROUTER = "openrouter/auto"  # its price depends on where it leads

_PROVIDER = "Fake"
_TYPES = {
    401: "authentication",
    402: "payment_required",
    403: "permission_denied",
    404: "not_found",
    408: "timeout",
    429: "rate_limit_exceeded",
    502: "provider_unavailable",
    503: "provider_overloaded",
    524: "timeout",
    529: "provider_overloaded",
}
_PRICES = {
    "prompt": "0.000003",
    "completion": "0.000015",
    "request": "0",
    "image": "0",
    "web_search": "0",
    "internal_reasoning": "0",
    "input_cache_read": "0.0000003",
    "input_cache_write": "0.00000375",
}
_UNKNOWN = dict.fromkeys(("prompt", "completion"), "-1")


class OpenRouterWriter(ChatWriter):
    """Writes OpenRouter's chunks."""

    prefix: ClassVar[str] = "gen-"
    head: ClassVar[Json] = {"provider": _PROVIDER}
    choice: ClassVar[Json] = {"logprobs": None, "native_finish_reason": None}
    first: ClassVar[Json] = {"role": "assistant", "content": ""}
    always_usage: ClassVar[bool] = True
    flavor: OpenRouter

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.failed = False
        self._details: list[Json] = []
        self._excludes = bool((self.body.get("reasoning") or {}).get("exclude"))

    def headers(self) -> dict[str, str]:
        return {"x-generation-id": self.id}

    def open(self) -> bytes:
        return b": OPENROUTER PROCESSING" + self.newline * 2 + super().open()

    def write_thought(self, step: Think, tokens: list[str]) -> list[bytes]:
        if self._excludes:
            return []
        text, place = join(step.text), {"format": "anthropic-claude-v1", "index": len(self._details)}
        if step.redacted:
            detail = {"type": "reasoning.encrypted", "data": seal("encrypted", text), **place}
            self._details.append(detail)
            return [self.delta({"reasoning_details": [detail]})]
        super().write_thought(step, tokens)
        signed = {"type": "reasoning.text", "signature": seal("thinking", text), **place}
        self._details.append({"text": text, **signed})
        told = [{"type": "reasoning.text", "text": one, **place} for one in tokens]
        pieces = [self.delta({"reasoning": one["text"], "reasoning_details": [one]}) for one in told]
        return [*pieces, self.delta({"reasoning_details": [signed]})]

    def finished(self) -> Json:
        return {"native_finish_reason": self.finish}

    def message(self) -> Json:
        return super().message() | ({"reasoning_details": self._details} if self._details else {})

    def fail(self, fail: Fail) -> bytes:
        self.failed = True
        chunk = json.loads(self.delta({"content": ""}, "error", native_finish_reason="error").partition(b" ")[2])
        return self.event({**chunk, **self.flavor.write_error(fail)})

    def fail_whole(self, fail: Fail) -> Json | None:
        if not self.tokens:
            return None
        self.failed = True
        answer = self.whole()
        answer["choices"][0] |= {"finish_reason": "error", **self.flavor.write_error(fail)}
        return answer

    def write_usage(self) -> Json:
        told = super().write_usage()
        sent, written = self._costs()
        costs = {
            "upstream_inference_cost": None,
            "upstream_inference_prompt_cost": float(sent),
            "upstream_inference_completions_cost": float(written),
        }
        return {"cost": float(sent + written), "is_byok": False, "cost_details": costs, **told}

    def _costs(self) -> tuple[Decimal, Decimal]:
        """What was sent and what was written, in US dollars."""
        told = self.flavor.describe(self.model)["pricing"]
        prices = {name: Decimal(price) for name, price in told.items() if isinstance(price, str)}
        usage, free = self.usage, Decimal(0)
        prompt, completion = prices.get("prompt", free), prices.get("completion", free)
        sent = usage.input * prompt + usage.cached * prices.get("input_cache_read", prompt)
        sent += usage.cache_write * prices.get("input_cache_write", prompt)
        return max(sent, free), max(usage.output * completion, free)

    def ended(self, request: Request) -> None:
        """Keep a record of the answer, of what was sent of it where it did not come to its end."""
        if request.ended != "done":
            self.tokens = request.tokens
        usage, cost = self.usage, float(sum(self._costs()))
        finish = "error" if self.failed else self.finish if request.ended == "done" else None
        took_ms = round((time.monotonic() - request.at) * 1000)
        self.flavor.keep(
            {
                "id": self.id,
                "model": self.model,
                "provider_name": _PROVIDER,
                "created_at": self.flavor.server.clock.write_rfc3339(),
                "streamed": bool(self.body.get("stream")),
                "cancelled": request.ended == "client",
                "latency": took_ms,
                "generation_time": took_ms,
                "moderation_latency": None,
                "finish_reason": finish,
                "native_finish_reason": finish,
                "tokens_prompt": usage.input + usage.cached + usage.cache_write,
                "tokens_completion": usage.output,
                "native_tokens_prompt": usage.input + usage.cached + usage.cache_write,
                "native_tokens_completion": usage.output,
                "native_tokens_reasoning": usage.reasoning,
                "native_tokens_cached": usage.cached,
                "num_media_prompt": len(self.asked.files),
                "usage": cost,
                "total_cost": cost,
                "upstream_inference_cost": 0,
                "cache_discount": None,
                "is_byok": False,
                "api_type": "completions",
                "app_id": None,
                "origin": request.headers.get("http-referer", ""),
                "upstream_id": None,
                "session_id": self.body.get("session_id"),
                "router": None,
                "service_tier": None,
                "provider_responses": [{"provider_name": _PROVIDER, "status": 200, "latency": took_ms}],
            }
        )


class OpenRouterFormat(ChatFormat):
    """OpenRouter's chat: parameters that a model does not know are dropped, not refused."""

    writes: ClassVar[type[ChatWriter]] = OpenRouterWriter
    shows: ClassVar[bool] = True
    ignores: ClassVar[bool] = True

    def reads_effort(self, body: Json) -> bool:
        given = body.get("reasoning")
        if not isinstance(given, dict):
            return super().reads_effort(body)
        if given.get("effort") is not None and given.get("max_tokens") is not None:
            refuse('Only one of "reasoning.effort" and "reasoning.max_tokens" can be specified')
        if isinstance(given.get("enabled"), bool):
            return bool(given["enabled"])
        return super().reads_effort({"reasoning_effort": given.get("effort")}) or bool(given.get("max_tokens"))

    def check_message(self, message: Json, where: str) -> None:
        """Reasoning that comes back has to be as it was given, in one piece or in those of the stream."""
        texts: dict[Any, str] = {}
        for one in message.get("reasoning_details") or ():
            if not isinstance(one, dict):
                refuse(f"{where}: reasoning_details have to be objects")
            index = one.get("index")
            texts[index] = texts.get(index, "") + (one.get("text") or "")
            signature = one.get("signature")
            hidden = one.get("type") == "reasoning.encrypted"
            if hidden and unseal("encrypted", one.get("data")) is None:
                _refuse_provider(f"{where}: Invalid `data` in `redacted_thinking` block")
            if signature is not None and unseal("thinking", signature) != texts[index]:
                _refuse_provider(f"{where}: Invalid `signature` in `thinking` block")


def _refuse_provider(raw: str) -> NoReturn:
    refuse("Provider returned error", members={"metadata": {"provider_name": _PROVIDER, "raw": raw}})


class OpenRouter(Flavor):
    """OpenRouter. Its list of models is public, and has its own router besides the server's models."""

    prefix: ClassVar[str] = "/api/v1"

    def __init__(self, server: FakeUpstream) -> None:
        super().__init__(server)
        self._records: OrderedDict[str, Json] = OrderedDict()
        self._missed: set[str] = set()
        self._spent = 0.0
        self.add_format("/api/v1/chat/completions", OpenRouterFormat(self))
        self.add("GET", "/api/v1/models", self.list_models)
        self.add("GET", "/api/v1/generation", self._fetch)
        self.add("GET", "/api/v1/key", self._show_key)
        self.add("GET", "/api/v1/credits", self._show_credits)

    def keep(self, record: Json) -> None:
        """Keep the record of an answer, and what it cost."""
        self._spent += record["total_cost"]
        self._records[record["id"]] = record
        if len(self._records) > KEPT:
            self._missed.discard(self._records.popitem(last=False)[0])

    def check(self, request: Request, path: str) -> None:
        if path == "/api/v1/models":
            return
        sent = request.headers.get("authorization", "")
        if not sent.startswith("Bearer "):
            refuse("No auth credentials found", 401)
        if self.server.api_key and sent != f"Bearer {self.server.api_key}":
            refuse("User not found.", 401)

    def check_model(self, body: Json) -> None:
        model = body.get("model")
        if not isinstance(model, str) or not model:
            refuse("No models provided")
        # Suffixes such as `:free` are variants of a model.
        if model not in (*self.server.models, ROUTER) and model.rpartition(":")[0] not in self.server.models:
            refuse(f"{model} is not a valid model ID")

    def write_error(self, fail: Fail) -> Json:
        code = fail.code if isinstance(fail.code, int) else fail.status
        kind = fail.code if isinstance(fail.code, str) else fail.type or _TYPES.get(fail.status)
        kind = kind or ("server" if fail.status >= 500 else "invalid_request")
        given = dict(fail.members)
        metadata = {"error_type": kind, **given.pop("metadata", {})}
        return {"error": {"code": code, "message": fail.message, "metadata": metadata, **given}}

    def describe(self, id: str) -> Json:
        """A model as the catalogue has it."""
        more = self.server.models.get(id) or self.server.models.get(id.rpartition(":")[0]) or {}
        entry = {
            "id": id,
            "canonical_slug": id,
            "hugging_face_id": None,
            "name": id.replace("/", ": ").replace("-", " ").title(),
            "created": CREATED,
            "description": "",
            "context_length": self.server.max_model_len,
            "architecture": {
                "modality": "text+image->text",
                "input_modalities": ["text", "image", "file"],
                "output_modalities": ["text"],
                "tokenizer": "Other",
                "instruct_type": None,
            },
            "pricing": _UNKNOWN if id == ROUTER else _PRICES,
            "top_provider": {
                "context_length": self.server.max_model_len,
                "max_completion_tokens": 4096,
                "is_moderated": False,
            },
            "per_request_limits": None,
            "supported_parameters": ["tools", "tool_choice", "max_tokens", "temperature", "reasoning"],
            "default_parameters": {},
            "supported_voices": None,
            "knowledge_cutoff": None,
            "expiration_date": None,
            "reasoning": {"supported_efforts": ["high", "medium", "low"], "default_enabled": False, "mandatory": False},
            "links": {"details": f"/api/v1/models/{id}/endpoints"},
        }
        return entry | more

    def list_models(self, request: Request, match: re.Match[str]) -> Json:
        query = read_query(request)
        data = [one for one in map(self.describe, (*self.server.models, ROUTER)) if _fits(one, query)]
        order = query.get("sort", "most-popular")
        if order not in _ORDERS:
            refuse(f"Invalid sort '{order}'; use one of {', '.join(_ORDERS)}")
        key = _ORDERS[order]
        if key is not None:
            data.sort(key=key)
        if "limit" not in query and "offset" not in query:
            return {"data": data}
        limit, offset = int(_read_number(query, "limit", 500)), int(_read_number(query, "offset", 0))
        if not 1 <= limit <= 1000:
            refuse("limit has to be between 1 and 1000")
        after = offset + limit
        links = {"next": f"/api/v1/models?offset={after}&limit={limit}" if after < len(data) else None}
        return {"data": data[offset:after], "total_count": len(data), "links": links}

    def _fetch(self, request: Request, match: re.Match[str]) -> Json:
        """The record of an answer; it is there only when it is asked for a second time."""
        id = read_query(request).get("id", "")
        record = self._records.get(id)
        if record is None or id not in self._missed:
            if record is not None:
                self._missed.add(id)
            refuse(f"Generation {id} not found", 404)
        return {"data": record}

    def _show_key(self, request: Request, match: re.Match[str]) -> Json:
        key = request.headers["authorization"].removeprefix("Bearer ")
        spent = self._spent
        data = {
            "label": f"{key[:8]}...{key[-3:]}",
            "limit": 100,
            "limit_remaining": 100 - spent,
            "limit_reset": None,
            "usage": spent,
            "usage_daily": spent,
            "usage_weekly": spent,
            "usage_monthly": spent,
            "byok_usage": 0,
            "is_free_tier": False,
            "expires_at": None,
        }
        return {"data": data}

    def _show_credits(self, request: Request, match: re.Match[str]) -> Json:
        return {"data": {"total_credits": 100, "total_usage": self._spent}}


def _price(entry: Json) -> Decimal:
    return Decimal(entry["pricing"]["prompt"])


_ORDERS: dict[str, Callable[[Json], Any] | None] = {
    "most-popular": None,
    "newest": lambda entry: -entry["created"],
    "pricing-low-to-high": _price,
    "pricing-high-to-low": lambda entry: -_price(entry),
    "context-high-to-low": lambda entry: -(entry["context_length"] or 0),
    "latency-low-to-high": None,
    "throughput-high-to-low": None,
}


def _fits(entry: Json, query: Mapping[str, str]) -> bool:
    """Whether a model passes the filters. Prices are told per million tokens there."""
    price = _price(entry) * 1_000_000
    words = query.get("q", "").lower().split()
    wanted = [
        (query.get("supported_parameters"), entry["supported_parameters"]),
        (query.get("input_modalities"), entry["architecture"]["input_modalities"]),
        (query.get("output_modalities"), entry["architecture"]["output_modalities"]),
    ]
    return (
        all(word in f"{entry['id']} {entry['name']}".lower() for word in words)
        and all(set(want.split(",")) <= set(has) for want, has in wanted if want)
        and (entry["context_length"] or 0) >= _read_number(query, "context", 0)
        and ("min_price" not in query or price >= _read_number(query, "min_price", 0))
        and ("max_price" not in query or 0 <= price <= _read_number(query, "max_price", 0))
    )


def _read_number(query: Mapping[str, str], name: str, default: int) -> Decimal:
    try:
        number = Decimal(query.get(name, default))
    except ArithmeticError:
        number = Decimal("nan")
    if not number.is_finite() or number < 0:
        refuse(f"{name} has to be a number")
    return number
