"""Idempotency keys under faults (RELIABILITY F19): one effect and one answer, whatever became of the first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from tests.harness import Client, Cut, Hub, Proxy, Refused, check_state, new_key, times, until

Json = dict[str, Any]
HI = [{"kind": "text", "text": "hi"}]


def bare(answer: Json) -> Json:
    return {k: v for k, v in answer.items() if k != "topic"}


async def test_a_resend_after_a_cut_before_the_answer_and_after_a_kill_has_one_effect(hub: Hub) -> None:
    for how in ("fin", "rst", "kill"):
        key = new_key()
        params: Json = {"input": HI, "key": key}
        async with Proxy(hub.port) as proxy:
            proxy.cuts = [Cut("c2s", 2, "rst" if how == "rst" else "fin")]
            client = Client(proxy.url).keep()
            first = await client.sure("run.start", **params)
            if how == "kill":
                hub.kill()
                await hub.restart()
            again = await client.sure("run.start", **params)
            assert bare(first) == bare(again)
            async with hub.http() as http:
                web = (await http.post("/rpc/run.start", json=params)).json()
            assert web == bare(first)
            runs = (await client.sure("run.list", conv=first["conv"]))["runs"]
            assert [r["run"] for r in runs] == [first["run"]]
            await client.close()


async def test_all_roads_at_once_are_one_effect(common: Hub) -> None:
    async with Client(common.url) as one, Client(common.url) as two, common.http() as http:
        for n in range(times(10, 200)):
            params: Json = {"input": HI, "key": new_key()}
            async with asyncio.timeout(10):
                answers = await asyncio.gather(
                    one.call("run.start", **params),
                    two.call("run.start", **params),
                    http.post("/rpc/run.start", json=params),
                    http.post("/api/runs", json={"input": HI}, headers={"idempotency-key": params["key"]}),
                )
            given = [bare(a.json() if isinstance(a, httpx.Response) else a) for a in answers]
            assert given[0] == given[1] == given[2] == given[3], n
            view = one.views[f"conv:{given[0]['conv']}"]
            await one.done(view, given[0]["run"])
            assert len(view.has["runs"]) == 1
            assert len(view.has["messages"]) == 2
            await one.call("topic.unsubscribe", topic=view.topic)
            await two.call("topic.unsubscribe", topic=view.topic)


async def test_every_change_takes_a_key(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("hang")
        conv, run = started["conv"], started["run"]

        async def twice(method: str, **params: Any) -> Json:
            params["key"] = new_key()
            first = await client.call(method, **params)
            assert bare(await client.call(method, **params)) == bare(first), method
            return dict(first)

        await twice("config.patch", scope=f"run:{run}", patch={"temperature": 1})
        assert (await client.call("config.get", scope=f"run:{run}"))["rev"] == 2
        await twice("config.patch", scope=f"conv:{conv}", patch={"temperature": 1})
        await twice("config.patch", scope="client:keys", patch={"ui": {"a": 1}})
        await twice("run.start", conv=conv, input=HI)
        await twice("run.start", conv=conv, input=HI, when="steer")
        await twice("run.cancel", run=run)
        await twice("conversation.update", conv=conv, title="Twice")
        await until(lambda: all(r["status"] in ("done", "cancelled") for r in view.has["runs"].values()), "the end")
        asking, _ = await client.say('call probe_danger {"id": "keyed"}', conv)
        await twice("ask.answer", ask=await client.asked(view), choice="allow_once")
        await client.done(view, asking["run"])
        assert common.journal("tool danger keyed") == ["tool danger keyed"]
        await check_state(common.url, view.topic, view)
        await twice("conversation.delete", conv=conv)


async def test_other_params_under_a_key_are_a_mismatch_also_while_the_first_is_under_way(common: Hub) -> None:
    async with Client(common.url) as client:
        for _ in range(times(5, 50)):
            key = new_key()
            results = await asyncio.gather(
                client.call("run.start", input=HI, key=key),
                client.call("run.start", input=[{"kind": "text", "text": "other"}], key=key),
                return_exceptions=True,
            )
            refused = [r for r in results if isinstance(r, Refused)]
            assert len(refused) == 1
            assert (refused[0].code, refused[0].kind) == (409, "key.mismatch")
            answered = next(r for r in results if isinstance(r, dict))
            renamed = await client.call("conversation.update", conv=answered["conv"], title="x", key=key)
            assert renamed["at"], "a key belongs to a method"
        refused_long = await client.refused("run.start", input=HI, key="k" * 201)
        assert (refused_long.code, refused_long.data["path"]) == (-32602, "$.key")


async def test_a_failed_first_attempt_and_a_cancelled_one_are_not_kept(common: Hub) -> None:
    async with Client(common.url) as client:
        started, view = await client.say("hang")
        key = new_key()
        busy: Json = {"conv": started["conv"], "input": HI, "when": "reject", "key": key}
        assert (await client.refused("run.start", **busy)).kind == "run.busy"
        await client.call("run.cancel", run=started["run"])
        await client.done(view, started["run"], "cancelled")
        answer = await client.call("run.start", **busy)
        assert answer["state"] == "running"
        for _ in range(times(10, 200)):
            params: Json = {"scope": "client:cancelled", "patch": {"ui": {}}, "key": new_key()}
            future = client.begin("config.patch", **params)
            client.send({"method": "rpc.cancel", "params": {"id": client.last_id}})
            try:
                first = await asyncio.wait_for(future, 10)
            except Refused as refused:
                assert refused.code == 499
                first = None
            again = await client.call("config.patch", **params)
            once_more = await client.call("config.patch", **params)
            assert again == once_more
            assert first in (None, again)
        events = (await client.call("config.get", scope="client:cancelled"))["rev"] - 1
        assert events == times(10, 200), "each took effect once"


async def test_a_cancelled_first_attempt_does_not_take_the_second_with_it(common: Hub) -> None:
    async with Client(common.url) as one, Client(common.url) as two:
        for _ in range(times(10, 200)):
            params: Json = {"input": HI, "key": new_key()}
            first = one.begin("run.start", **params)
            one.send({"method": "rpc.cancel", "params": {"id": one.last_id}})
            second = two.begin("run.start", **params)
            answer = await asyncio.wait_for(second, 10)
            try:
                assert bare(await asyncio.wait_for(first, 10)) == bare(answer)
            except Refused as refused:
                assert refused.code == 499
            assert len((await two.call("run.list", conv=answer["conv"]))["runs"]) == 1


async def test_keys_of_users_are_apart_and_expire(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(SAG_KEY_S="1")
    token = await hub.token("other")
    async with Client(hub.url) as client, Client(hub.url, token=token) as other:
        params: Json = {"input": HI, "key": "the same"}
        first, foreign = await client.call("run.start", **params), await other.call("run.start", **params)
        assert first["run"] != foreign["run"]
        assert bare(await client.call("run.start", **params)) == bare(first)
        await asyncio.sleep(1.1)
        assert (await client.call("run.start", **params))["run"] != first["run"]


async def test_no_secret_is_kept_in_the_clear(hub: Hub) -> None:
    made = await hub.rpc("token.new", {"user": "ada", "key": new_key()})
    hub.terminate()
    assert await hub.ended() == 0
    for file in hub.data.rglob("*"):
        assert not file.is_file() or made["token"].encode() not in file.read_bytes(), file.name
