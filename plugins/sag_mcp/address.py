"""Addresses of MCP servers: URLs in one spelling that every parser reads alike, hosts that may be private, names.

Pure. Whether an address may be connected to is decided by the hub's outbound client, on the socket; here is what an
administrator exempted from that. Above: the servers and what is asked of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from sag.plugin import Fault

MAX_URL = 2000
NAME = 24  # characters of a name that is made up: the model reads it before each tool's
PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?(?:#.*)?")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\.?")
_ENTRY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(?::(\d{1,5}))?")
_PLAIN = {"mcp", "www", "api", "app"}  # labels that tell nothing of whose server it is


class Address(NamedTuple):
    """An HTTP address.

    Attributes:
        scheme: `http` or `https`.
        host: Lower case and ASCII; an IPv6 address in brackets.
        port: A number, that of the scheme where none was given.
        path: `/mcp`; empty where there is none.
        query: What follows `?`; it may hold a key.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @property
    def origin(self) -> str:
        """`https://host`, with a port where it is not the scheme's."""
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")

    @property
    def url(self) -> str:
        """The whole of it."""
        return self.shown + (f"?{self.query}" if self.query else "")

    @property
    def shown(self) -> str:
        """Without the query, for everybody to see."""
        return self.origin + self.path


def parse_url(text: str, member: str = "url") -> Address:
    """Read a URL strictly: nothing in it may be understood differently by the next parser.

    Raises:
        Fault: rpc.params, with the member that it was given in; outbound.denied for another scheme than HTTP's.
    """

    def refuse(why: str) -> Fault:
        return Fault("rpc.params", f"{why} Give a URL such as https://mcp.example.org/mcp.", path=f"$.{member}")

    text = text.strip()
    if len(text) > MAX_URL or not text.isprintable() or re.search(r"[\s\\]", text):
        raise refuse("That is no URL.")
    match = _URL.fullmatch(text)
    if match is None:
        raise refuse("That is no URL.")
    scheme, authority, path, query = match[1].lower(), match[2], match[3] or "", match[4] or ""
    if scheme not in PORTS:
        raise Fault("outbound.denied", "Only http and https addresses can be connected to.")
    if "@" in authority:
        raise refuse("A URL with a user's name in it is not taken; send credentials as headers.")
    host, port = _split(authority)
    if host is None or port == 0:
        raise refuse("The host of that URL is none.")
    return Address(scheme, host, port or PORTS[scheme], path, query)


def _split(authority: str) -> tuple[str | None, int | None]:
    """Host and port; a host of None is none, a port of 0 is none that there is."""
    name, port = authority, None
    if match := re.fullmatch(r"(.*):(\d{0,5})", authority):
        name, port = match[1], int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65_536:
        return None, 0
    return _host(name), port


def _host(name: str) -> str | None:
    """A host in its one spelling, or None where it is none."""
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]" if name.endswith("]") and "%" not in name else None
        except ValueError:
            return None
    try:
        name = name.encode("idna").decode().lower()
    except UnicodeError:
        return None
    if len(name) > 253 or not _HOST.fullmatch(name):
        return None
    if re.fullmatch(r"\d+|0x[0-9a-f]*", name.rstrip(".").rpartition(".")[2]):  # what browsers read as a number
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            return None
    return name


class Hosts:
    """Hosts that may be connected to whatever their address is.

    Args:
        entries: `nas.home`, `10.0.0.5`, `[::1]`, with a port or without.

    Raises:
        ValueError: An entry is no host and no host with a port.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries: set[tuple[str, int | None]] = set()
        for entry in entries:
            match = _ENTRY.fullmatch(entry.strip())
            host = _host(match[1]) if match else None
            if match is None or host is None:
                raise ValueError(f"{entry!r} is no host and no host:port")
            self._entries.add((host, int(match[2]) if match[2] else None))

    def covers(self, address: Address) -> bool:
        """Whether an address is at one of them."""
        return not self._entries.isdisjoint({(address.host, None), (address.host, address.port)})

    def covers_host(self, host: str) -> bool:
        """Whether all ports of a host are."""
        return (host, None) in self._entries

    def covers_url(self, url: str) -> bool:
        """Whether a URL leads to one of them, if all parsers agree where it leads."""
        try:
            return self.covers(parse_url(url))
        except Fault:
            return False

    def __or__(self, other: Hosts) -> Hosts:
        both = Hosts()
        both._entries = self._entries | other._entries
        return both


def parse_ports(entries: Sequence[str | int]) -> list[int]:
    """Ports and ranges of ports, as one list.

    Raises:
        ValueError: An entry is neither a port nor a range.
    """
    ports: dict[int, None] = {}
    for entry in entries:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(entry).strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 65_536:
            raise ValueError(f"{entry!r} is neither a port nor a range of ports such as '8000-8010'")
        ports |= dict.fromkeys(range(first, last + 1))
    return list(ports)


def make_name(words: Iterable[str], address: Address, taken: Container[str]) -> str:
    """A connector's name that is free: of the first words that give one, else of the host.

    Args:
        words: What it is called, the best first; empty ones are passed over.
        address: Where it is.
        taken: Names that are not free.
    """
    labels = [] if re.fullmatch(r"[0-9.]+|\[.*", address.host) else address.host.split(".")
    own = next((label for label in labels[:-1] if label not in _PLAIN), "") or next(iter(labels), "")
    slugs = (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (*words, own))
    slug = next(filter(None, slugs), "server")
    if not slug[0].isalpha():
        slug = f"mcp-{slug}"
    slug = slug[:NAME].rstrip("-")
    return next(name for i in range(1, 10_000) if (name := slug if i == 1 else f"{slug}-{i}") not in taken)
