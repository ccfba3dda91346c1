"""The server: its journal, its scripts, and who answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal

from sag.testing.upstream.answer import answer_default
from sag.testing.upstream.anthropic import Anthropic
from sag.testing.upstream.azure import Azure
from sag.testing.upstream.clock import Clock
from sag.testing.upstream.connection import Connection
from sag.testing.upstream.flavor import Flavor, Reply
from sag.testing.upstream.ollama import Ollama
from sag.testing.upstream.openai import OpenAI
from sag.testing.upstream.openrouter import OpenRouter
from sag.testing.upstream.request import Request
from sag.testing.upstream.script import Fail, Json, Script
from sag.testing.upstream.vllm import Vllm

FlavorName = Literal["openai", "vllm", "ollama", "azure", "openrouter", "anthropic"]
FLAVORS: dict[FlavorName, type[Flavor]] = {
    "openai": OpenAI,
    "vllm": Vllm,
    "ollama": Ollama,
    "azure": Azure,
    "openrouter": OpenRouter,
    "anthropic": Anthropic,
}
Answer = Callable[[Request], Script | None]


class FakeUpstream:
    """The server.

    Args:
        flavor: Whose server it is.
        host, port: Where it listens; port 0 is a free one.
        api_key: If given, other keys get 401.
        access_token: With Azure and Anthropic, a token that is taken as `Authorization: Bearer` besides the key.
        models: What is listed, each by its id, or as an object with `id` and whatever else the list is to tell of it.
            Others get 404; from OpenAI's only if `strict`. With Azure they are the deployments.
        reasoning_models: Which of them take no sampling members, as the vendor's reasoning models: no `temperature`
            and `top_p`, with OpenAI no `max_tokens`, with Anthropic no `top_k` and no budget for thinking.
        strict: OpenAI's and Azure's refuse unknown parameters, as they really do, and OpenAI's also unknown models;
            else they ignore them, as those that are compatible with them do.
        tokens_per_s: The pace of each stream; None is as fast as the client reads.
        tool_parser: False answers tools with 400, as vLLM does without a parser.
        tool_text: Calls of the default answer stand in its text, in this form (one of `FAMILIES`), as where the server
            has no parser for that model.
        max_model_len: The context that the list of models tells; None leaves it out.
        clock: The time that it tells; by default one that stands still.
        answer: Decides on each request to a model; None falls back to the scripts that wait and then to the default.

    Attributes:
        requests: All that came, in order, while `keep_requests`.
        connections: How many were made.
        number: How many requests came.
    """

    def __init__(
        self,
        flavor: FlavorName = "openai",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "",
        access_token: str = "",
        models: Sequence[str | Json] = ("fake",),
        reasoning_models: Sequence[str] = (),
        strict: bool = False,
        tokens_per_s: float | None = None,
        tool_parser: bool = True,
        tool_text: str | None = None,
        max_model_len: int | None = 8192,
        clock: Clock | None = None,
        answer: Answer | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.api_key, self.access_token = api_key, access_token
        self.models = {
            one if isinstance(one, str) else one["id"]: {} if isinstance(one, str) else one for one in models
        }
        self.reasoning_models = set(reasoning_models)
        self.strict = strict
        self.tokens_per_s = tokens_per_s
        self.tool_parser = tool_parser
        self.tool_text = tool_text
        self.max_model_len = max_model_len
        self.clock = clock or Clock()
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.number = 0
        self.keep_requests = True
        self._scripts: dict[str | None, deque[Script]] = {}
        self._open: set[Connection] = set()
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._flavor = FLAVORS[flavor](self)

    @property
    def url(self) -> str:
        """The base URL that a provider of this flavor is configured with."""
        return f"http://{self.host}:{self.port}{self._flavor.prefix}"

    @property
    def chats(self) -> list[Request]:
        """The requests to a model among those that came, in whatever format."""
        return [request for request in self.requests if request.path.partition("?")[0].endswith(_MODEL_PATHS)]

    def script(self, *scripts: Script, model: str | None = None) -> None:
        """Queue answers, for one model or for all; each is used once, in order."""
        self._scripts.setdefault(model, deque()).extend(scripts)

    async def wait_requests(self, count: int, timeout: float = 5.0) -> list[Request]:
        """Wait until so many requests to a model have come.

        Raises:
            TimeoutError: They did not in time (seconds).
        """
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.chats) >= count)
        return self.chats

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in list(self._open) if (task := connection.drop()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> FakeUpstream:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- for connections and flavors ---

    def join(self, connection: Connection) -> None:
        """A connection was made."""
        self.connections += 1
        self._open.add(connection)

    def leave(self, connection: Connection) -> None:
        """A connection was lost."""
        self._open.discard(connection)

    async def reply(self, request: Request) -> Reply:
        """What a request is answered with."""
        self.number += 1
        if self.keep_requests:
            self.requests.append(request)
            async with self._arrived:
                self._arrived.notify_all()
        return self._flavor.answer(request)

    def choose(self, request: Request, model: str) -> Script:
        """The script for a request to a model."""
        given = self.answer(request) if self.answer is not None else None
        for name in (model, None):
            if given is None and self._scripts.get(name):
                given = self._scripts[name].popleft()
        if given is None:
            assert request.asked is not None
            given = answer_default(request.asked, self.tool_text)
        return given

    def headers(self, status: int, given: Mapping[str, str]) -> dict[str, str]:
        """Headers of every answer; `given` are the script's, which win."""
        return {"date": self.clock.write_http(), **self._flavor.headers(status, given)}

    def write_error(self, fail: Fail) -> Json:
        """The body of an error."""
        return self._flavor.write_error(fail)


_MODEL_PATHS = ("/chat/completions", "/responses", "/messages")
