"""What the servers compared with read of a streamed chat completion."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Delta(Struct, gc=False):
    content: str | None = None


class Choice(Struct, gc=False):
    delta: Delta


class Chunk(Struct, gc=False):
    choices: list[Choice]


decode = msgspec.json.Decoder(Chunk).decode
encode = msgspec.json.Encoder().encode
