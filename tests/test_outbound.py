"""What the guard lets through, and what it does not; measured against servers on loopback that nobody may reach."""

import asyncio
import subprocess
import sys

import httpx
import pytest

from sag.errors import Fault
from sag.outbound import Outbound, is_public, read_body
from sag.testing.upstream import FakeUpstream, Script, gzip_bomb

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"]
OTHERS = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.1", "192.0.2.1"),
    *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::"),
    *("2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1"),
    *("not an address", ""),
]
SPELLINGS = [
    *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "①②⑦.0.0.1", "127。0。0。1"),
    *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "127.0.0.1."),
]


@pytest.fixture
async def up():
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def closing():
    made: list[Outbound] = []

    def make(*allow: str) -> Outbound:
        made.append(Outbound(allow))
        return made[-1]

    yield make
    for outbound in made:
        await outbound.close()


def page(body: bytes = b"hello", headers: dict[str, str] | None = None) -> Script:
    return Script(body=body, headers={"content-type": "text/plain", **(headers or {})})


async def post(outbound: Outbound, url: str, **given) -> httpx.Response:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    return await outbound.client(**given).post(url, json=body)


@pytest.mark.parametrize("address", PUBLIC)
def test_global_unicast_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", OTHERS)
def test_what_is_not_global_unicast_or_leads_elsewhere_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_loopback_is_reached_by_an_untrusted_client(up, closing, host):
    with pytest.raises((Fault, httpx.HTTPError, httpx.InvalidURL)) as caught:
        await closing().client().get(f"http://{host}:{up.port}/v1/models")
    if isinstance(caught.value, Fault):
        assert caught.value.kind == "outbound.denied"
    assert up.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refusal_says_that_it_is_one(up, closing, host):
    with pytest.raises(Fault) as caught:
        await closing().client().get(f"http://{host}:{up.port}/")
    assert (caught.value.kind, caught.value.code) == ("outbound.denied", 403)


@pytest.mark.parametrize("url", ["ftp://example.org/", "file:///etc/passwd", "http:///x", "unix:///run/x"])
async def test_only_http_is_fetched(closing, url):
    with pytest.raises((Fault, httpx.HTTPError)) as caught:
        await closing().client().get(url)
    assert not isinstance(caught.value, httpx.ConnectError)


async def test_a_listed_host_is_reached_whatever_its_address(up, closing):
    for allow in ("127.0.0.1", f"127.0.0.1:{up.port}"):
        answer = await closing(allow).client().get(f"{up.url}/models")
        assert answer.json()["data"][0]["id"] == "fake"


async def test_a_host_listed_with_a_port_opens_no_other_port(up, closing):
    with pytest.raises(Fault):
        await closing(f"127.0.0.1:{up.port + 1}").client().get(f"{up.url}/models")
    assert up.connections == 0


async def test_a_list_with_something_else_than_hosts_is_refused():
    for entry in ("http://x", "*", "*.home", "a/b", "", "a b"):
        with pytest.raises(ValueError, match="no host"):
            Outbound([entry])


async def test_each_redirect_is_checked_again(up, closing):
    outbound = closing(f"127.0.0.1:{up.port}")
    for target in ("http://169.254.169.254/latest/", f"http://localhost:{up.port}/v1/models", "http://[::1]/"):
        up.script(Script(status=307, headers={"location": target}, body=b""))
        with pytest.raises(Fault) as caught:
            await post(outbound, f"{up.url}/chat/completions")
        assert caught.value.kind == "outbound.denied"


async def test_redirects_are_followed_only_so_far(up, closing):
    outbound = closing("127.0.0.1")
    hop = Script(status=307, headers={"location": f"{up.url}/chat/completions"}, body=b"")
    up.script(*[hop] * 5, page(b"there"), *[hop] * 6)
    assert (await post(outbound, f"{up.url}/chat/completions")).text == "there"
    with pytest.raises(httpx.TooManyRedirects):
        await post(outbound, f"{up.url}/chat/completions")


async def test_a_trusted_client_reaches_loopback_and_follows_nothing(up, closing):
    up.script(Script(status=302, headers={"location": "http://169.254.169.254/"}, body=b""))
    answer = await post(closing(), f"{up.url}/chat/completions", trusted=True)
    assert answer.status_code == 302
    assert len(up.requests) == 1


async def test_cookies_are_not_kept_and_compression_is_not_asked_for(up, closing):
    outbound = closing("127.0.0.1")
    up.script(page(headers={"set-cookie": "a=b"}), page())
    for trusted in (False, True):
        await post(outbound, f"{up.url}/chat/completions", trusted=trusted)
    await post(outbound, f"{up.url}/chat/completions")
    assert all("cookie" not in request.headers for request in up.requests)
    assert {request.headers["accept-encoding"] for request in up.requests} == {"identity"}


async def test_the_environment_says_nothing_about_proxies(up, closing, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await closing().client(trusted=True).get(f"{up.url}/models")).status_code == 200


async def test_a_compressed_answer_is_refused_to_an_untrusted_client(up, closing):
    up.script(gzip_bomb(1 << 20))
    with pytest.raises(httpx.DecodingError):
        await post(closing("127.0.0.1"), f"{up.url}/chat/completions")


async def test_a_body_is_read_as_far_as_its_limit(up, closing):
    client = closing().client(trusted=True)
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    up.script(*[page(b"x" * 100_000)] * 3)
    for limit, cut, expected in ((100_000, False, 100_000), (50_000, True, 50_000), (99_999, False, None)):
        async with client.stream("POST", f"{up.url}/chat/completions", json=body) as answer:
            if expected is not None:
                assert len(await read_body(answer, limit, cut=cut)) == expected
            else:
                with pytest.raises(Fault) as caught:
                    await read_body(answer, limit)
                assert (caught.value.kind, caught.value.code) == ("outbound.large", 502)


async def test_clients_are_shared_and_closed_together(up):
    outbound = Outbound()
    assert outbound.client() is outbound.client()
    assert outbound.client() is not outbound.client(trusted=True)
    await outbound.client(trusted=True).get(f"{up.url}/models")
    await outbound.close()
    await outbound.close()
    with pytest.raises(RuntimeError):
        outbound.client()
    with pytest.raises(RuntimeError):
        await outbound.dial(asyncio.Protocol, "127.0.0.1", up.port, tls=False)


def test_importing_it_imports_no_http_library():
    code = "import sys, sag.outbound; sys.exit(any(m in sys.modules for m in ('httpx', 'aiohttp')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0
