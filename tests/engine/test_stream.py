"""HTTP/1.1 as servers speak it, on raw sockets: framing, connections that are kept, TLS; and how requests look."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sag.engine import stream
from sag.engine.stream import Headers, write_request
from sag.engine.transport import Deadlines, Transport
from sag.hooks.provider import Chunk, Finish, HttpRequest, ModelRequest, ProviderError, Text, text_message
from sag.outbound import Outbound

OK = b"HTTP/1.1 200 OK\r\n"
SHORT = Deadlines(connect_s=1, first_token_s=1, gap_s=1, total_s=5)


class Server:
    """Answers each request with the next script: bytes to send, or None to close."""

    def __init__(self) -> None:
        self.answers: list[list[bytes | float | None]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.scheme, self.port = "http", 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/v1/chat"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                for step in self.answers.pop(0) if self.answers else [whole()]:
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    elif step is None:
                        return
                    else:
                        writer.write(step)
                        await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def whole(text: bytes = b"ok") -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n%b" % (len(text), text)


def chunked(*texts: bytes) -> bytes:
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(t), t) for t in (*texts, b""))


class Plain:
    """A provider whose answer is text as it comes; with `cut` it always misses its end mark."""

    name = "plain"

    def __init__(self, url: str, body: bytes = b"{}", *, cut: bool = False) -> None:
        self.request = HttpRequest(url, body)
        self.cut = cut

    def prepare(self, request: ModelRequest) -> HttpRequest:
        return self.request

    def decoder(self, request) -> Any:
        def finish() -> list[Chunk]:
            if self.cut:
                raise ProviderError("provider.truncated", "cut")
            return [Finish("stop")]

        return SimpleNamespace(feed=lambda data: [Text(data.decode())] if data else [], finish=finish)

    def error(self, status: int, headers: Any, body: bytes) -> ProviderError:
        return ProviderError("provider.refused", f"{status} {headers.get('X-Why')} {body.decode()}")

    def models(self) -> list[Any]:
        return []


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    yield made
    listener.close()


@pytest.fixture
async def ask() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    outbound = Outbound()
    transport = Transport(outbound)

    async def run(provider: Any, deadlines: Deadlines = SHORT) -> str:
        chunks: list[Chunk] = []
        await transport.run(provider, ModelRequest("m", [text_message("user", "x")]), deadlines, chunks.extend)
        return "".join(chunk.text for chunk in chunks if isinstance(chunk, Text))

    yield run
    transport.close()
    await outbound.close()
    await asyncio.sleep(0.01)


FRAMES: dict[str, tuple[list[bytes | float | None], str, int]] = {
    "length": ([whole(b"abc")], "abc", 1),
    "no body": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "", 1),
    "chunks": ([chunked(b"a", b"bc")], "abc", 1),
    "chunks cut anywhere": ([bytes([b]) for b in chunked(b"a", b"bc")], "abc", 1),
    "trailers and extensions": (
        [OK + b"transfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n"],
        "abc",
        1,
    ),
    "early hints": ([b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", 0.01, whole(b"abc")], "abc", 1),
    "the end of the connection": ([OK + b"\r\nab", 0.01, b"c", None], "abc", 2),
    "http 1.0": ([b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"], "abc", 2),
    "connection: close": ([OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"], "abc", 2),
    "more than was asked for": ([whole(b"abc") + whole(b"evil")], "abc", 2),
    "more than was asked for, later": ([whole(b"abc"), 0.02, whole(b"evil")], "abc", 2),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_each_framing_is_read_and_only_what_is_clean_is_used_again(server, ask, name):
    steps, text, connections = FRAMES[name]
    server.answers = [steps]
    assert await ask(Plain(server.url)) == text
    await asyncio.sleep(0.05)
    assert await ask(Plain(server.url)) == "ok"
    assert server.connections == connections


FAULTS: dict[str, tuple[list[bytes | float | None], str]] = {
    "cut in a length": ([OK + b"Content-Length: 9\r\n\r\nabc", None], "provider.disconnected"),
    "cut in chunks": ([chunked(b"abc")[:-5], None], "provider.disconnected"),
    "cut in the head": ([OK, None], "provider.disconnected"),
    "garbage in chunks": ([OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], "provider.protocol"),
    "another protocol": ([b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], "provider.protocol"),
    "a head without end": ([OK, *[b"X: " + b"a" * 1000 + b"\r\n"] * 200], "provider.protocol"),
    "trailers without end": ([chunked(b"abc")[:-2], *[b"X: " + b"a" * 1000 + b"\r\n"] * 200], "provider.protocol"),
    "a status": ([b"HTTP/1.1 404 No\r\nx-why: y\r\nContent-Length: 2\r\n\r\nno"], "provider.refused"),
    "a status whose body is cut": ([b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\nno", None], "provider.refused"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_of_framing_has_its_kind(server, ask, name):
    steps, kind = FAULTS[name]
    server.answers = [steps]
    with pytest.raises(ProviderError) as caught:
        await ask(Plain(server.url, cut=True))
    assert caught.value.kind == kind
    if name == "a status":
        assert caught.value.message == "404 y no"


async def test_an_error_whose_body_does_not_come_is_told_all_the_same(server, ask, monkeypatch):
    monkeypatch.setattr("sag.engine.transport.ERROR_BODY_S", 0.1)
    server.answers = [[b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nno", 10.0]]
    async with asyncio.timeout(2):
        with pytest.raises(ProviderError, match="500 None no"):
            await ask(Plain(server.url), Deadlines())


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced_once(server, ask):
    server.answers = [[whole()], [None], [whole(b"again")]]
    assert await ask(Plain(server.url)) == "ok"
    assert await ask(Plain(server.url)) == "again"
    assert (server.connections, len(server.requests)) == (2, 3)
    server.answers = [[None], [None], [whole()]]
    with pytest.raises(ProviderError) as caught:
        await ask(Plain(server.url))
    assert caught.value.kind == "provider.disconnected"
    assert len(server.requests) == 5


async def test_a_kept_connection_that_answers_and_then_closes_is_not_asked_again(server, ask):
    server.answers = [[whole()], [b"HTTP/1.1 2", None], [whole()]]
    await ask(Plain(server.url))
    with pytest.raises(ProviderError) as caught:
        await ask(Plain(server.url))
    assert caught.value.kind == "provider.disconnected"
    assert len(server.requests) == 2


async def test_a_connection_is_not_kept_for_ever(server, ask, monkeypatch):
    monkeypatch.setattr(stream, "KEEPALIVE_S", 0.05)
    for expected in (1, 2):
        await ask(Plain(server.url))
        assert server.connections == expected
        await asyncio.sleep(0.1)


async def test_rounds_at_once_have_connections_of_their_own(server, ask):
    server.answers = [[0.1, whole()]] * 5
    assert await asyncio.gather(*(ask(Plain(server.url)) for _ in range(5))) == ["ok"] * 5
    assert server.connections == 5
    await ask(Plain(server.url))
    assert server.connections == 5


async def test_https_is_spoken_to_those_whose_certificate_is_trusted(server, ask, tmp_path, monkeypatch):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.scheme, server.port = "https", listener.sockets[0].getsockname()[1]

    with pytest.raises(ProviderError, match="not trusted") as caught:
        await ask(Plain(server.url))
    assert caught.value.kind == "provider.unreachable"

    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    outbound = Outbound()
    transport = Transport(outbound)
    chunks: list[Chunk] = []
    server.answers = [[chunked(b"x" * 100_000)], [whole(b"y")]]
    before = server.connections
    for body in (b"{}", b" " * 1_000_000):
        await transport.run(Plain(server.url, body), ModelRequest("m", []), SHORT, chunks.extend)
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Text)) == "x" * 100_000 + "y"
    assert server.connections == before + 1

    # Another name than that of the certificate.
    with pytest.raises(ProviderError, match="not trusted"):
        await transport.run(Plain(server.url.replace("localhost", "127.0.0.1")), ModelRequest("m", []), SHORT, print)
    transport.close()
    await outbound.close()
    listener.close()
    await asyncio.sleep(0.05)


def test_a_request_is_written_with_its_host_and_without_compression():
    origin, head = write_request(
        HttpRequest("https://Hub.Example/v1/ä b?q=é&r=%20#x", b"12", {"X-Key": "ü", "accept": "a/b"})
    )
    assert origin == (True, "hub.example", 443)
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/%C3%A4%20b?q=%C3%A9&r=%20 HTTP/1.1"
    assert {"Host: hub.example", "X-Key: ü", "accept: a/b", "Accept-Encoding: identity"} < set(lines)
    assert lines[-3:] == ["Content-Length: 2", "", ""]
    assert sum(line.lower().startswith("accept:") for line in lines) == 1


def test_addresses_with_a_port_a_login_or_of_ipv6_are_understood():
    origin, head = write_request(HttpRequest("http://ada:s%40x@[::1]:8080", b""))
    assert origin == (False, "::1", 8080)
    assert b"POST / HTTP/1.1\r\nHost: [::1]:8080\r\n" in head
    assert b"Authorization: Basic YWRhOnNAeA==\r\n" in head
    assert write_request(HttpRequest("http://bücher.example/", b""))[0].host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "url", ["ftp://x/", "http://", "http:///x", "x", "http://x:port/", "http://[::1/", "http://x:99999/"]
)
def test_what_is_no_address_is_unreachable(url):
    with pytest.raises(ProviderError) as caught:
        write_request(HttpRequest(url, b""))
    assert (caught.value.kind, caught.value.retry) == ("provider.unreachable", False)


@pytest.mark.parametrize("header", [("X", "a\r\nEvil: 1"), ("X", "a\0"), ("X: a\r\nY", "b"), ("", "x"), ("ä", "x")])
def test_a_header_cannot_break_out_of_its_line(header):
    with pytest.raises(ProviderError) as caught:
        write_request(HttpRequest("http://x/", b"", dict([header])))
    assert caught.value.kind == "provider.protocol"


def test_headers_are_found_in_any_case_and_the_first_counts():
    headers = Headers()
    for value in (b" 1 ", b"2"):
        headers.add(b"Retry-After", value)
    assert (headers["retry-AFTER"], headers.get("Retry-After"), dict(headers)) == ("1", "1", {"retry-after": "1"})
    assert headers.get("x") is None
