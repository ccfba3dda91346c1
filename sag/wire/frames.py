"""Frames: text to objects of the protocol and back, and the bytes that a WebSocket carries (protocol section 1)."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from sag.errors import Fault

Id = int | str
_NONE = Raw(b"")
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeError)


class Frame(Struct):
    """Any object that a client may send. Which kind it is, its members tell, in the order of `sag.wire.session`."""

    e: Raw = _NONE
    id: int | str | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw = _NONE
    result: Raw = _NONE
    error: Raw = _NONE
    ping: Raw = _NONE
    pong: Raw = _NONE


_decode_one = msgspec.json.Decoder(Frame).decode
_decode_many = msgspec.json.Decoder(list[Raw]).decode
encode = msgspec.json.Encoder().encode


def decode(text: str | bytes) -> list[Frame | Fault]:
    """The objects of a text frame; an array is a batch. An object that is no frame is given as its fault.

    Raises:
        Fault: rpc.parse, rpc.frame for the whole.
    """
    stripped = text.lstrip()
    if stripped[:1] not in ("[", b"["):
        return [_one(text)]
    try:
        raws = _decode_many(text)
    except DECODE_ERRORS as e:
        raise Fault("rpc.parse", _reason(e)) from None
    if not raws:
        raise Fault("rpc.frame", "An empty array holds no frame.")
    out: list[Frame | Fault] = []
    for raw in raws:
        try:
            out.append(_one(bytes(raw)))
        except Fault as fault:
            out.append(fault)
    return out


def _one(text: str | bytes) -> Frame:
    try:
        return _decode_one(text)
    except msgspec.ValidationError as e:
        raise Fault("rpc.frame", _reason(e)) from None
    except DECODE_ERRORS as e:
        raise Fault("rpc.parse", _reason(e)) from None


def _reason(e: Exception) -> str:
    return str(e) if isinstance(e, msgspec.MsgspecError) else "The text is nested too deeply or is not UTF-8."


def answer(id: Id | None, result: bytes) -> bytes:
    """A response whose result is JSON already."""
    return b'{"id":%b,"result":%b}' % (encode(id), result)


def failure(id: Id | None, body: dict[str, Any]) -> bytes:
    """An error response."""
    return encode({"id": id, "error": body})


def notification(method: str, params: dict[str, Any]) -> bytes:
    return encode({"method": method, "params": params})


def request(id: str, method: str, params: dict[str, Any]) -> bytes:
    return encode({"id": id, "method": method, "params": params})


def websocket_text(payload: bytes) -> bytes:
    """The WebSocket frame of a text from the server: unmasked, whole (RFC 6455 section 5.2)."""
    n = len(payload)
    if n < 126:
        return bytes((0x81, n)) + payload
    if n < 65536:
        return b"\x81\x7e" + n.to_bytes(2, "big") + payload
    return b"\x81\x7f" + n.to_bytes(8, "big") + payload


def websocket_payload(frame: bytes) -> bytes:
    """The text of a frame that `websocket_text` made."""
    n = frame[1]
    return frame[2:] if n < 126 else frame[4:] if n == 126 else frame[10:]
