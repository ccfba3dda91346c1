"""Requests: what came, what it asks for in words of no vendor, and how one is refused."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

from msgspec import Struct, field

from sag.testing.upstream.script import Fail, Json

Ending = Literal["open", "done", "cut", "client"]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.-]+)*;base64,")


class File(Struct):
    """A file or an image that came with a request.

    Attributes:
        mime: Its media type; empty where only its address or its id came.
        data: Its bytes.
        name: Its name.
        source: Its address or its id, where it did not come itself.
    """

    mime: str
    data: bytes = b""
    name: str = ""
    source: str = ""


class Asked(Struct):
    """What a model is asked, whichever format it came in.

    Attributes:
        text: The user's last message.
        answers: What the tools answered to the last calls; empty where nothing is called or somebody spoke since.
        tools: The names of what may be called.
        choice: `auto`, `none`, `required`, or the name of the tool that has to be called.
        thinks: Whether reasoning is turned on.
        shows: Whether what is thought is to be shown.
        files: Files and images of all messages, in order.
        transcript: The messages or items; with `previous_response_id` those that were kept come first.
        input: About how many tokens that is.
    """

    text: str = ""
    answers: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    choice: str = "auto"
    thinks: bool = False
    shows: bool = True
    files: list[File] = field(default_factory=list)
    transcript: list[Json] = field(default_factory=list)
    input: int = 0


class Request:
    """A request as it came.

    Attributes:
        method, path, headers, body: As sent, the path with its query; names of headers in lower case.
        at: When, on the loop's clock.
        asked: What it asks of a model; None where it asks nothing or was refused.
        ended: `open`, `done` (answered to the end), `cut` (the script cut it), `client` (the client left).
        tokens: How many pieces of text and arguments were sent.
    """

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.at = time.monotonic()
        self.asked: Asked | None = None
        self.ended: Ending = "open"
        self.tokens = 0
        self._json: Any = None
        self._end = asyncio.Event()

    @property
    def json(self) -> Any:
        """The body decoded; None where it is no JSON."""
        if self._json is None:
            try:
                self._json = json.loads(self.body)
            except (ValueError, RecursionError):
                return None
        return self._json

    async def wait_ended(self, timeout: float = 5.0) -> Ending:
        """Wait until the answer has ended.

        Raises:
            TimeoutError: It did not in time (seconds).
        """
        async with asyncio.timeout(timeout):
            await self._end.wait()
        return self.ended

    def close(self, how: Ending) -> None:
        """Note how its answer ended; the first counts."""
        if self.ended == "open":
            self.ended = how
            self._end.set()


class Refused(Exception):
    """A request breaks the contract; the flavor writes the error."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail.message)
        self.fail = fail


def refuse(message: str, status: int = 400, **given: Any) -> NoReturn:
    """Refuse a request; `given` are further members of `Fail`."""
    raise Refused(Fail(status, message, **given))


def check_types(body: Json, types: Mapping[str, tuple[type, ...]], words: str) -> None:
    """Refuse members that are of another type; those that are null or left out pass.

    Args:
        body: Whose members.
        types: What each may be.
        words: What is said, with `{name}` and `{types}`.
    """
    for name, allowed in types.items():
        if body.get(name) is not None and not isinstance(body[name], allowed):
            expected = " or ".join(_TYPE_NAMES[one] for one in allowed)
            refuse(words.format(name=name, types=expected), param=name, code="invalid_type")


_TYPE_NAMES = {str: "a string", list: "an array", dict: "an object", int: "an integer", float: "a number"}


def quote(values: Iterable[str]) -> str:
    """Values as errors list them, `'a', 'b'`."""
    return ", ".join(f"'{one}'" for one in values)


def read_base64(data: Any) -> bytes | None:
    """Bytes; None where it is no base64 or holds nothing."""
    try:
        return base64.b64decode(data, validate=True) or None if isinstance(data, str) else None
    except (binascii.Error, ValueError):
        return None


def read_data_url(url: Any) -> tuple[str, bytes] | None:
    """Media type and bytes of `data:image/png;base64,…`; None where it is none."""
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    data = read_base64(url[match.end() :]) if match is not None else None
    return None if match is None or data is None else (match[1] or "text/plain", data)


def count_tokens(*parts: Any) -> int:
    """About how many tokens texts have, wherever they stand in JSON: one for each word."""
    count = 0
    for part in parts:
        if isinstance(part, str):
            count += len(part.split())
        elif isinstance(part, dict):
            count += count_tokens(*part.values())
        elif isinstance(part, list):
            count += count_tokens(*part)
    return count


def seal(kind: str, text: str) -> str:
    """A token that only this fake makes, for what a vendor signs or encrypts."""
    data = text.encode()
    return base64.b64encode(_sign(kind, data) + data).decode()


def unseal(kind: str, token: Any) -> str | None:
    """What a token holds; None where it was not made here or was changed."""
    data = read_base64(token) or b""
    return data[16:].decode() if len(data) >= 16 and _sign(kind, data[16:]) == data[:16] else None


def _sign(kind: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, person=kind.encode()).digest()
