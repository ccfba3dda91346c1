"""Identifiers: a prefix that says the kind, then characters that sort by time and cannot be guessed in bulk."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_last_ms = 0
_random = b""


def new_id(prefix: str) -> str:
    """A new id such as `r1m5c3v8k2q7w9d`: 9 characters of time in ms (never going back), 6 random ones."""
    global _last_ms, _random
    _last_ms = max(_last_ms, time.time_ns() // 1_000_000)
    if not _random:
        _random = secrets.token_bytes(1024)  # asking the kernel gives the interpreter's lock away each time
    number, _random = int.from_bytes(_random[:4], "big"), _random[4:]
    ms, pairs = _last_ms, _PAIRS
    time_of = _ALPHABET[ms >> 40 & 31] + pairs[ms >> 30 & 1023] + pairs[ms >> 20 & 1023]
    time_of += pairs[ms >> 10 & 1023] + pairs[ms & 1023]
    return prefix + time_of + pairs[number >> 20 & 1023] + pairs[number >> 10 & 1023] + pairs[number & 1023]


def new_gen() -> str:
    """A generation for a topic's log (protocol section 3)."""
    return secrets.token_hex(4)


def new_secret() -> str:
    """A secret that nobody guesses: 256 random bits, safe in a URL and in a header."""
    return secrets.token_urlsafe(32)


def now_ms() -> int:
    """Wall-clock time in Unix milliseconds, as `ts` of events."""
    return time.time_ns() // 1_000_000
