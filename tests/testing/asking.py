"""A client for tests of the fakes: it posts, and takes answers apart without knowing what they should hold."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from msgspec import Struct

from sag.testing.upstream import FakeUpstream, Json

PNG = "iVBORw0KGgo="
PDF = "JVBERi0xLjQ="
OBJECT = {"type": "object", "properties": {}}


class Got(Struct):
    """An answer.

    Attributes:
        status, headers, body: As they came; names of headers in lower case.
        events: The data of the stream's events, decoded; `[DONE]` is left out.
        names: The names of these events, where they have any.
        done: Whether `[DONE]` came.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    events: list[Any]
    names: list[str]
    done: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def types(self) -> list[str]:
        """The types of the events, each once in a row."""
        types = [event["type"] for event in self.events]
        return [one for i, one in enumerate(types) if not i or types[i - 1] != one]


async def send(
    up: FakeUpstream, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None
) -> Got:
    """One request, at a path below host and port; members of the body that are None are left out."""
    timeout = aiohttp.ClientTimeout(5)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        url = f"http://{up.host}:{up.port}{path}"
        given = None if body is None else {name: value for name, value in body.items() if value is not None}
        async with http.request(method, url, json=given, headers=headers) as answer:
            data = await answer.read()
            names, events, done = [], [], False
            for block in data.decode().split("\n\n") if "event-stream" in answer.headers["content-type"] else ():
                for line in block.split("\n"):
                    name, _, value = line.partition(": ")
                    if name == "event":
                        names.append(value)
                    elif line == "data: [DONE]":
                        done = True
                    elif name == "data":
                        events.append(json.loads(value))
            return Got(answer.status, {k.lower(): v for k, v in answer.headers.items()}, data, events, names, done)
