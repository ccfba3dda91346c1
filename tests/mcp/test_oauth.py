"""Signing in to MCP servers: an authorization server and a protected one on loopback, and a person with a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from sag.client import Client, Topic
from sag.plugin import Fault
from sag.testing.provider import ScriptedProvider, call, say
from sag.topics.reducers import State
from tests.mcp.loopback import AuthorizationSite, House, Json, McpSite, ProtectedSite, Reply, house, until


@pytest.fixture
async def auth():
    auth = AuthorizationSite()
    async with auth.serve():
        yield auth


@pytest.fixture
async def site(auth):
    site = ProtectedSite(auth)
    async with site.serve():
        yield site


@contextlib.asynccontextmanager
async def home_at(port: int | None = None, table: Json | None = None, **given: Any) -> AsyncIterator[House]:
    """A hub that knows its address as browsers see it."""
    if port is None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
    table = {"allow": ["127.0.0.1"], "url": f"http://127.0.0.1:{port}", **(table or {})}
    async with house(table, port=port, **given) as home:
        yield home


async def visit(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """What a browser does with a link: it follows it wherever it leads."""
    async with httpx.AsyncClient(follow_redirects=True, trust_env=False, verify=False, headers=headers) as browser:
        return await browser.get(url)


async def stop_before(url: str, place: str) -> str:
    """Follow a link up to an address that begins so, and give it."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        for _ in range(5):
            url = (await browser.get(url)).headers["location"]
            if url.startswith(place):
                return url
    raise AssertionError(url)


async def connect(client: Client, site: McpSite) -> Json:
    made: Json = await client.call("mcp.server.connect", {"url": f"{site.url}/mcp", "name": "vault"})
    return made


async def signed_in(home: House, client: Client, site: McpSite, auth: AuthorizationSite) -> None:
    """A server that somebody has signed in to."""
    assert (await connect(client, site))["status"] == "auth"
    page = await visit((await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"])
    assert page.status_code == 200, page.text
    await until(lambda: home.connectors()["vault"]["status"] == "ready")


def run_params(**more: Any) -> Json:
    return {"input": [{"kind": "text", "text": "?"}], "config": {"model": "script/m"}, **more}


async def started(client: Client, **more: Any) -> tuple[str, Topic]:
    """Start a run; gives its id and the conversation's topic."""
    run = await client.call("run.start", run_params(**more))
    return run["run"], await client.subscribe(f"conv:{run['conv']}")


async def ended(topic: Topic, run: str) -> State:
    return await topic.until(lambda s: s["runs"][run]["status"] in ("done", "failed", "cancelled"))


# signing in


async def test_the_link_of_a_server_that_wants_a_sign_in_leads_there_and_back(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        hub = await client.subscribe("hub")
        made = await connect(client, site)
        assert (made["status"], made["tool_count"]) == ("auth", 0)
        shown = home.connectors()["vault"]["data"]["auth_url"]
        assert shown == made["auth_url"] == f"{home.url}/oauth/mcp/start/vault"
        assert auth.requests == []  # nothing is done until somebody wants to
        page = await visit(shown)
        assert page.status_code == 200
        assert "Signed in" in page.text
        await hub.until(lambda s: s["connectors"]["vault"]["status"] == "ready")
        assert "auth_url" not in hub.state["connectors"]["vault"]["data"]
        (view,) = (await client.call("mcp.server.list"))["servers"]
        assert (view["status"], view["tool_count"], "auth_url" in view) == ("ready", 2, False)
        assert auth.faults == []
        (registered,) = auth.clients.values()
        assert registered["redirect_uris"] == [f"{home.url}/oauth/mcp/callback"]
        assert registered["grant_types"] == ["authorization_code", "refresh_token"]


async def test_the_page_of_a_sign_in_can_be_asked_for_and_its_address_brought_back_by_hand(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await connect(client, site)
        first = await client.call("mcp.server.sign_in", {"id": "vault"})
        assert await client.call("mcp.server.sign_in", {"id": "vault"}) == first  # it is going on
        assert first["auth_url"].startswith(f"{auth.url}/authorize?")
        ended_up_at = await stop_before(first["auth_url"], home.url)
        done = await client.call("mcp.server.sign_in", {"id": "vault", "answer": ended_up_at})
        assert done == {"done": True}
        await until(lambda: home.connectors()["vault"]["status"] == "ready")
        assert auth.faults == []


async def test_a_state_works_once_and_for_the_user_alone_who_began(plugin, site, auth):
    async with home_at() as home, home.enter() as admin, home.enter("ada") as ada, home.enter("ben") as ben:
        await connect(ada, site)
        hers = (await ada.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        back = await stop_before(hers, home.url)
        # This machine's own user is an administrator, and still somebody else.
        assert (await visit(back)).status_code == 400
        for user in (admin, ben):
            with pytest.raises(Fault) as caught:
                await user.call("mcp.server.sign_in", {"id": "vault", "answer": back})
            assert caught.value.kind == "request.bad"
        guessed = back.replace(parse_qs(urlsplit(back).query)["state"][0], "x" * 43)
        with pytest.raises(Fault):
            await ada.call("mcp.server.sign_in", {"id": "vault", "answer": guessed})
        assert home.connectors()["vault"]["status"] == "auth"
        assert (await ada.call("mcp.server.sign_in", {"id": "vault", "answer": back}))["done"] is True
        with pytest.raises(Fault, match="is over"):
            await ada.call("mcp.server.sign_in", {"id": "vault", "answer": back})
        with pytest.raises(Fault) as caught:
            await ben.call("mcp.server.sign_in", {"id": "vault"})
        assert caught.value.kind == "access.denied"
        assert auth.faults == []


async def test_of_two_who_bring_the_same_state_at_once_one_is_let_in(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await connect(client, site)
        back = await stop_before((await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"], home.url)
        pages = await asyncio.gather(*(visit(back) for _ in range(4)))
        assert sorted(page.status_code for page in pages) == [200, 400, 400, 400]
        assert [r.path for r in auth.requests].count("/token") == 1


async def test_states_are_on_no_topic_and_in_no_list(plugin, site, auth):
    async with home_at() as home, home.enter("ada") as ada, home.enter("ben") as ben:
        hub = await ben.subscribe("hub")
        await connect(ada, site)
        url = (await ada.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        state = parse_qs(urlsplit(url).query)["state"][0]
        await hub.until(lambda s: s["connectors"].get("vault", {}).get("status") == "auth")
        assert state not in json.dumps([hub.state, await ben.call("mcp.server.list")])
        assert "auth_url" not in (await ben.call("mcp.server.list"))["servers"][0]


async def test_who_is_refused_there_is_told_and_may_try_again(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await connect(client, site)
        url = (await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        state = parse_qs(urlsplit(url).query)["state"][0]
        refusal = f"{home.url}/oauth/mcp/callback?state={state}&error=access_denied&error_description=No%3Cb%3Eway"
        page = await visit(refusal)
        assert page.status_code == 502
        assert "No&lt;b&gt;way" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        again = (await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        assert again != url
        assert (await visit(again)).status_code == 200
        assert len(auth.clients) == 1  # the registration was kept


@pytest.mark.parametrize("iss", ["", "https://other.example"])
async def test_an_answer_that_another_server_could_have_sent_is_refused(plugin, site, auth, iss):
    async with home_at() as home, home.enter() as client:
        await connect(client, site)
        back = await stop_before((await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"], home.url)
        query = {k: v[0] for k, v in parse_qs(urlsplit(back).query).items()} | {"iss": iss}
        url = httpx.URL(f"{home.url}/oauth/mcp/callback", params={k: v for k, v in query.items() if v})
        assert (await visit(str(url))).status_code == 502
        assert home.connectors()["vault"]["status"] == "auth"
        assert [r.path for r in auth.requests].count("/token") == 0


async def test_a_server_that_offers_no_way_to_sign_in_says_so(plugin, site, auth):
    auth.answer = lambda request: _reply(404)
    async with home_at() as home, home.enter() as client:
        await connect(client, site)
        with pytest.raises(Fault, match="There is no way to sign in") as caught:
            await client.call("mcp.server.sign_in", {"id": "vault"})
        assert caught.value.kind == "connector.failed"
        assert (await visit(f"{home.url}/oauth/mcp/start/vault")).status_code == 502
        assert (await visit(f"{home.url}/oauth/mcp/start/nobody")).status_code == 404
        assert (await visit(f"{home.url}/oauth/mcp/elsewhere")).status_code == 404


async def _reply(status: int) -> Reply:
    return Reply(status)


async def test_the_hubs_own_pages_need_who_is_signed_in_to_the_hub(plugin, site, auth):
    async with home_at(auth="required") as home:
        for path in ("start/vault", "callback?state=x&code=y"):
            assert (await visit(f"{home.url}/oauth/mcp/{path}")).status_code == 401


async def test_a_server_that_was_given_a_key_is_not_signed_in_to(plugin, site, auth):
    auth.valid.add("given-key-1")
    async with home_at() as home, home.enter() as client:
        given = {"url": f"{site.url}/mcp", "name": "vault", "headers": {"Authorization": "Bearer given-key-1"}}
        assert (await client.call("mcp.server.connect", given))["status"] == "ready"
        auth.valid.clear()
        view = await client.call("mcp.server.refresh", {"id": "vault"})
        assert (view["status"], "auth_url" in view) == ("auth", False)
        with pytest.raises(Fault, match="Nobody can sign in"):
            await client.call("mcp.server.sign_in", {"id": "vault"})


@pytest.mark.parametrize("way", ["client_secret_post", "client_secret_basic"])
async def test_a_secret_is_sent_in_a_way_that_the_authorization_server_takes(plugin, site, auth, way):
    auth.ways = [way]
    async with home_at() as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        assert (await client.call("mcp.server.refresh", {"id": "vault"}))["status"] == "ready"
        assert (auth.renewals, auth.faults) == (1, [])


async def test_a_hub_that_was_registered_by_hand_registers_no_more(plugin, site, auth):
    auth.ways = ["client_secret_basic"]
    server = {"url": f"{site.url}/mcp", "client_id": "by-hand", "client_secret": "hand-secret-1"}
    async with home_at(table={"servers": {"vault": server}}) as home:
        redirect = f"{home.url}/oauth/mcp/callback"
        auth.clients["by-hand"] = {"client_secret": "hand-secret-1", "redirect_uris": [redirect]}
        await until(lambda: home.connectors()["vault"]["status"] == "auth")
        assert (await visit(f"{home.url}/oauth/mcp/start/vault")).status_code == 200
        await until(lambda: home.connectors()["vault"]["status"] == "ready")
        assert (list(auth.clients), auth.faults) == (["by-hand"], [])


# tokens


async def test_a_token_is_renewed_before_it_ends_once_for_all_who_want_it(plugin, site, auth):
    auth.lasts_s = 1  # sooner than the hub renews
    script = call(*[("vault__forecast", {"city": f"c{i}"}) for i in range(5)])
    async with home_at(providers=[ScriptedProvider(script, say("ok"))]) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        before = auth.renewals
        run, topic = await started(client)
        state = await ended(topic, run)
        assert [t["status"] for t in state["tools"].values()] == ["ok"] * 5
        assert auth.renewals > before
        assert auth.faults == []  # no refresh token was used twice, and each time for the same resource


async def test_a_token_that_was_taken_back_is_renewed_without_asking_anybody(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        assert (await client.call("mcp.server.refresh", {"id": "vault"}))["status"] == "ready"
        assert (auth.renewals, auth.faults) == (1, [])


async def test_who_signed_in_stays_so_over_a_restart_even_if_the_token_ended_meanwhile(plugin, site, auth, tmp_path):
    async with home_at(data=tmp_path) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        port = home.hub.app.settings.hub.port
    auth.valid.clear()
    async with home_at(port, data=tmp_path) as home:
        await until(lambda: home.connectors()["vault"]["status"] == "ready")
        assert (auth.renewals, auth.faults) == (1, [])


async def test_an_authorization_server_that_is_down_is_waited_for_and_nobody_is_asked(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        auth.broken = 1000
        view = await client.call("mcp.server.refresh", {"id": "vault"})
        assert (view["status"], "503" in view["error"]) == ("backoff", True)
        auth.broken = 0
        assert (await client.call("mcp.server.refresh", {"id": "vault"}))["status"] == "ready"
        assert auth.faults == []


async def test_a_token_that_cannot_be_renewed_early_is_used_to_its_end(plugin, site, auth):
    auth.lasts_s = 20
    async with home_at() as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.broken = 1000
        assert (await client.call("mcp.server.refresh", {"id": "vault"}))["status"] == "ready"


async def test_tokens_are_kept_encrypted_and_told_nowhere(plugin, site, auth, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    async with home_at(data=tmp_path) as home, home.enter() as client:
        hub = await client.subscribe("hub")
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        await client.call("mcp.server.refresh", {"id": "vault"})
        told = json.dumps([hub.state, await client.call("mcp.server.list")])
        secrets = [*auth.refresh, *auth.used, *auth.valid, *(c["client_secret"] for c in auth.clients.values())]
    assert len(secrets) == 4
    with sqlite3.connect(tmp_path / "sag.db") as db:
        dump = "\n".join(db.iterdump()).upper()
    hub_log = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("sag"))
    for secret in secrets:
        assert secret not in told + hub_log
        assert secret.upper() not in dump
        assert secret.encode().hex().upper() not in dump


async def test_a_server_that_is_removed_takes_its_tokens_with_it(plugin, site, auth):
    async with home_at() as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        await client.call("mcp.server.remove", {"id": "vault"})
        assert await home.hub.app.kv.list("sag.secret") == {}
        assert (await connect(client, site))["status"] == "auth"
        url = (await client.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        await client.call("mcp.server.remove", {"id": "vault"})
        assert (await visit(url)).status_code == 400
        assert await home.hub.app.kv.list("sag.secret") == {}


# in a run


async def test_a_call_that_needs_a_sign_in_asks_for_it_and_goes_on_by_itself(plugin, site, auth):
    provider = ScriptedProvider(call(("vault__forecast", {"city": "Oslo"})), say("Sunny."))
    async with home_at(providers=[provider]) as home, home.enter() as client, home.enter(device="phone") as phone:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        auth.refresh.clear()
        run, topic = await started(client)
        seen = await phone.subscribe(topic.name)
        state = await seen.until(lambda s: s["asks"])
        (ask,) = state["asks"].values()
        assert (ask["kind"], ask["title"]) == ("url", "Sign in to Weather")
        assert ask["url"].startswith(f"{auth.url}/authorize?")
        assert (await visit(ask["url"])).status_code == 200
        state = await ended(topic, run)
        (tool,) = state["tools"].values()
        assert (tool["status"], tool["result"]["content"][0]["text"]) == ("ok", "Sunny in Oslo")
        assert state["asks"] == {}
        await seen.until(lambda s: not s["asks"])
        assert site.calls == [{"city": "Oslo"}]
        assert auth.faults == ["refresh_token"]  # the one that the authorization server had forgotten


async def test_many_calls_of_a_run_ask_once(plugin, site, auth):
    calls = [("vault__forecast", {"city": f"c{i}"}) for i in range(4)]
    provider = ScriptedProvider(call(*calls), call(*calls), say("ok"))
    async with home_at(providers=[provider]) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        auth.refresh.clear()
        asked = (await client.subscribe("user:me")).events()
        run, topic = await started(client)
        await topic.until(lambda s: s["asks"])
        await asyncio.sleep(0.2)
        (ask,) = topic.state["asks"].values()
        assert (await visit(ask["url"])).status_code == 200
        state = await ended(topic, run)
        told = [(await anext(asked))[0] for _ in range(asked.queue.qsize())]
        assert told.count("ask.open") == 1
        assert [t["status"] for t in state["tools"].values()] == ["ok"] * 8


async def test_who_declines_is_not_asked_again_in_that_run(plugin, site, auth):
    provider = ScriptedProvider(
        call(("vault__forecast", {})),
        call(("vault__forecast", {})),
        say("I cannot."),
        call(("vault__forecast", {})),
        say("x"),
    )
    async with home_at(providers=[provider]) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        auth.valid.clear()
        auth.refresh.clear()
        run, topic = await started(client)
        state = await topic.until(lambda s: s["asks"])
        (ask,) = state["asks"]
        url = state["asks"][ask]["url"]
        await client.call("ask.answer", {"ask": ask, "choice": "decline"})
        state = await ended(topic, run)
        assert [t["status"] for t in state["tools"].values()] == ["error", "error"]
        assert "declined" in json.dumps([t.get("error") for t in state["tools"].values()])
        assert (await visit(url)).status_code == 400  # that sign-in is over
        again = await client.call("run.start", run_params(conv=topic.name[5:]))
        state = await topic.until(lambda s: s["asks"])
        assert next(iter(state["asks"].values()))["run"] == again["run"]
        await client.call("run.cancel", {"run": again["run"]})


async def test_a_server_that_refuses_a_sign_in_that_was_made_is_not_signed_in_to_in_a_loop(plugin, site, auth):
    provider = ScriptedProvider(call(("vault__forecast", {})), say("No."))
    async with home_at(providers=[provider]) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        site.tokens = set()  # whatever token comes
        run, topic = await started(client)
        state = await topic.until(lambda s: s["asks"])
        (ask,) = state["asks"].values()
        await visit(ask["url"])
        state = await ended(topic, run)
        (tool,) = state["tools"].values()
        assert tool["status"] == "error"
        assert "refuses the sign-in" in json.dumps(tool["error"])
        count = len(site.requests) + len(auth.requests)
        await asyncio.sleep(0.5)
        assert len(site.requests) + len(auth.requests) == count
        assert home.connectors()["vault"]["status"] == "auth"


async def test_another_users_run_does_not_sign_in_for_everybody(plugin, site, auth):
    provider = ScriptedProvider(call(("vault__forecast", {})), say("No."))
    async with home_at(providers=[provider]) as home, home.enter("ada") as ada, home.enter("ben") as ben:
        await connect(ada, site)
        url = (await ada.call("mcp.server.sign_in", {"id": "vault"}))["auth_url"]
        back = await stop_before(url, home.url)
        await ada.call("mcp.server.sign_in", {"id": "vault", "answer": back})
        auth.valid.clear()
        auth.refresh.clear()
        run, topic = await started(ben)
        state = await ended(topic, run)
        (tool,) = state["tools"].values()
        assert (tool["status"], state["asks"]) == ("error", {})
        assert "who connected it, or an administrator" in json.dumps(tool["error"])


async def test_a_question_that_outlived_a_restart_is_asked_anew_with_a_page_that_works(plugin, site, auth, tmp_path):
    provider = ScriptedProvider(call(("vault__forecast", {"city": "Oslo"})), say("Sunny."))
    async with home_at(data=tmp_path, providers=[provider]) as home, home.enter() as client:
        await signed_in(home, client, site, auth)
        port = home.hub.app.settings.hub.port
        auth.valid.clear()
        auth.refresh.clear()
        run, topic = await started(client)
        state = await topic.until(lambda s: s["asks"])
        (old,) = state["asks"].values()
        conv = topic.name
    async with home_at(port, data=tmp_path, providers=[provider]) as home, home.enter() as client:
        await until(lambda: home.connectors()["vault"]["status"] == "auth")
        topic = await client.subscribe(conv)
        (ask,) = topic.state["asks"]
        assert (await visit(old["url"])).status_code == 400  # the hub that began it is gone
        await client.call("ask.answer", {"ask": ask, "choice": "accept"})
        state = await topic.until(lambda s: s["asks"] and ask not in s["asks"])
        (new,) = state["asks"].values()
        assert (await visit(new["url"])).status_code == 200
        state = await ended(topic, run)
        (tool,) = state["tools"].values()
        assert (tool["status"], tool["result"]["content"][0]["text"]) == ("ok", "Sunny in Oslo")
