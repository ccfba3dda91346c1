"""Settings that must not be shown, and what keeps them out of whatever is.

A key can come back from anywhere: a vendor repeats it in an error, a plugin logs its settings, an exception holds a
URL. So those that are known are blotted out of the log and of providers' errors, besides not being put there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SHORTEST = 8  # shorter ones would blot out ordinary words
_NAMED = re.compile(r"(_|^)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PW|PW_HASH|PASSPHRASE|CREDENTIALS)$", re.I)
_known: set[str] = set()


class Secret:
    """A key or a password in a plugin's settings, shown nowhere by accident.

    Declare the member of `Settings` as `Secret`. `reveal` gives its text; whatever prints or formats it shows `…`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text
        remember(text)

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(…)" if self._text else "Secret()"

    def __str__(self) -> str:
        return "…" if self._text else ""


def remember(text: str) -> None:
    """Blot a text out from now on."""
    if len(text) >= SHORTEST:
        _known.add(text)


def remember_env(env: Mapping[str, str]) -> None:
    """Blot out the values of variables whose names say that they are secret: `OPENAI_API_KEY`, `SOME_TOKEN` …"""
    for name, value in env.items():
        if _NAMED.search(name):
            remember(value.strip())


def blot(text: str) -> str:
    """A text without the secrets that are known."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, "…")
    return text
