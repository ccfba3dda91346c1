"""Where a hub is, how this machine's own is found, and one call to it over HTTP.

Above: the client and the command line. It reads hub.json, which a running hub leaves in its data folder, and decides
nothing about what is said to the hub.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from sag.errors import Fault, StartError
from sag.settings import HubSettings, Settings, default_data, load

Json = dict[str, Any]


class Address(NamedTuple):
    """Where a hub is and what opens it.

    Attributes:
        url: `http(s)://host:port`.
        token: A bearer token.
        own: Whether the hub itself told the address, in its data folder.
        data: That folder, where the token is the hub's own: both change when the hub is started again.
    """

    url: str
    token: str | None = None
    own: bool = False
    data: Path | None = None

    def now(self) -> Address:
        """The address as it is by now."""
        return (own_hub(self.data) if self.data is not None else None) or self

    def tls(self) -> ssl.SSLContext | None:
        """How to check the hub's certificate. That of this machine's own hub names a public name, not the address."""
        if not self.url.startswith(("https", "wss")):
            return None
        context = ssl.create_default_context()
        if self.own:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def own_hub(data: Path) -> Address | None:
    """The hub that serves a data folder, as it says in hub.json; None where none runs."""
    try:
        told = msgspec.json.decode((data / "hub.json").read_bytes())
        url, token, pid = str(told["url"]), str(told["token"]), int(told["pid"])
        parts = urlsplit(url)
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")
        if host:
            url = urlunsplit(parts._replace(netloc=f"{host}:{parts.port}"))
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None
    return Address(url, token, own=True, data=data) if _lives(pid) else None


def find(url: str | None, token: str | None, data: str | None) -> Address:
    """The hub that a command is for, and the token to open it with.

    Args:
        url: As given on the command line; else SAG_URL, else this machine's own hub, else the default address.
        token: As given; else SAG_TOKEN, else the own hub's, which no other hub is shown.
        data: The own hub's data folder, as given.
    """
    try:
        settings = load(data=data)
    except StartError:  # a plugins.toml that lacks its secrets here is the hub's matter alone
        settings = Settings(HubSettings(data=data or os.environ.get("SAG_DATA") or default_data(os.environ)))
        settings.env = dict(os.environ)
    token = token or settings.env.get("SAG_TOKEN") or None
    own = own_hub(settings.data)
    url = (url or settings.env.get("SAG_URL") or "").rstrip("/")
    if own is not None and url in ("", own.url):
        return own._replace(token=token, data=None) if token else own
    return Address(url or f"http://127.0.0.1:{HubSettings().port}", token)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # as another user
    except OSError:
        return False  # it was killed and left its file
    return True


def rpc(address: Address, method: str, params: Json) -> Json:
    """Call one operation over HTTP (protocol section 10), for commands that need no socket.

    Raises:
        Fault: What the hub answered; hub.unreachable.
    """
    import httpx

    headers = {"authorization": f"Bearer {address.token}"} if address.token else {}
    try:
        with httpx.Client(trust_env=False, verify=address.tls() or True, timeout=10) as http:
            answer = http.post(f"{address.url}/rpc/{method}", json=params, headers=headers)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as e:
        raise unreachable(address.url, e) from None
    if not isinstance(body, dict):
        raise unreachable(address.url, "what answers is no hub")
    if "error" in body:
        raise fault_of(body["error"])
    return body


def unreachable(url: str, why: object) -> Fault:
    """The error for a hub that cannot be reached."""
    return Fault("hub.unreachable", f"no hub answers at {url} ({_words(why)})", code=503, retry=True)


def fault_of(error: Json) -> Fault:
    """The error of an answer as an exception."""
    data = {k: v for k, v in (error.get("data") or {}).items() if k not in ("code", "message", "trace")}
    kind, retry, after_ms = str(data.pop("kind", "")), bool(data.pop("retry", False)), data.pop("after_ms", None)
    return Fault(kind, error.get("message"), code=error.get("code"), retry=retry, after_ms=after_ms, **data)


def _words(why: object) -> str:
    if isinstance(why, ConnectionRefusedError):
        return "connection refused"
    return str(why) or type(why).__name__
