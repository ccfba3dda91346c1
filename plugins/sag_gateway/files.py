"""Pictures and files that clients of other APIs send: from `data:` URLs, from the net, and to a run's input."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

import httpx

from sag.plugin import Fault, FilePart, Hub, Part, TextPart, User

Json = dict[str, Any]

MOST_BYTES = 16 << 20
FETCH_S = 20.0
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,(.*)", re.DOTALL)


def refuse(param: str, message: str, *, unsupported: bool = False) -> Fault:
    """The fault of a request's member; one that is right and cannot be had is `unsupported`."""
    return Fault("request.bad", message, path=f"$.{param}", unsupported=unsupported)


def inline(url: str, name: str, path: str) -> FilePart:
    """The file that a `data:` URL holds.

    Raises:
        Fault: request.bad.
    """
    if (found := _DATA.fullmatch(url)) is None:
        raise refuse(path, "This is no `data:` URL in base64.")
    return decoded(found[2], found[1] or "application/octet-stream", name, path)


def decoded(text: str, mime: str, name: str, path: str) -> FilePart:
    """The file that a text in base64 holds.

    Raises:
        Fault: request.bad.
    """
    try:
        return FilePart(mime, name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise refuse(path, "This is no base64.") from None


async def fetch(hub: Hub[Any], url: str, path: str = "messages") -> FilePart:
    """A picture that a request names by its URL, through the guarded client.

    Raises:
        Fault: request.bad, outbound.denied, outbound.large.
    """
    if not url.startswith(("https://", "http://")):
        raise refuse(path, "A picture is a `data:` URL or one of http and https.")
    data = b""
    try:
        async with hub.http.stream("GET", url, timeout=FETCH_S) as response:
            mime = response.headers.get("content-type", "").partition(";")[0].strip()
            if response.status_code != 200 or not mime.startswith("image/"):
                raise refuse(path, f"There is no picture at {url[:200]}.")
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MOST_BYTES:
                    raise Fault("outbound.large")
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise refuse(path, f"The picture cannot be fetched ({type(e).__name__}).") from e
    return FilePart(mime, "", data)


async def input_of(hub: Hub[Any], user: User, parts: Sequence[Part]) -> list[Json]:
    """What somebody says as input of a run, pictures and files kept as uploaded ones are."""
    out: list[Json] = []
    for part in parts:
        if isinstance(part, TextPart) and part.text:
            out.append({"kind": "text", "text": part.text})
        elif isinstance(part, FilePart):
            ref = await hub.keep_file(user, part.data, part.mime, part.name)
            kind = "image" if part.is_image else "file"
            out.append({"kind": kind, "ref": ref, "mime": part.mime, "name": part.name or kind})
    return out
