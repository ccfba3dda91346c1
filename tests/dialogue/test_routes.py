"""The routes of the replaced system, by plain HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sag.errors import Fault
from sag.testing.upstream import Cut, Say, Script, fail, say
from sag_dialogue.routes import StartRate
from tests.dialogue.stage import Stage, events, open_stage, prompt, slowly, stalls

Json = dict[str, Any]

BODY: Json = {
    "bots": [
        {"provider": "openai", "model": "fake", "prompt": "You are one.", "temperature": 0.3, "name": "Uno"},
        {"provider": "anthropic", "model": "fake", "prompt": "You are two.", "temperature": 1},
    ],
    "max_turns": 3,
    "topic": "Tea or coffee?",
}


async def begin(stage: Stage, **more: Any) -> str:
    answer = await stage.http.post("/api/run", json={**BODY, **more})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["id"]
    return await stage.follow(answer.json()["id"])


def joined(told: list[Json]) -> list[Json]:
    """Events with the tokens of one turn in one."""
    out: list[Json] = []
    for one in told:
        if out and one["type"] == out[-1]["type"] == "token" and one["role"] == out[-1]["role"]:
            out[-1] = {**out[-1], "delta": out[-1]["delta"] + one["delta"]}
        else:
            out.append(one)
    return out


async def test_a_dialogue_from_start_to_end_is_told_as_it_was() -> None:
    async with open_stage() as stage:
        stage.openai.script(slowly("Tea.", "Green.", 0.3), say("Still tea."))
        stage.anthropic.script(say("Coffee."))
        run = await begin(stage)
        early = asyncio.create_task(_all(stage, run))
        await stage.hears("Still tea.")
        await stage.end()
        whole = [
            {"type": "token", "role": "bot0", "delta": "Tea. Green."},
            {"type": "turn_complete", "turn": 1},
            {"type": "token", "role": "bot1", "delta": "Coffee."},
            {"type": "turn_complete", "turn": 2},
            {"type": "token", "role": "bot0", "delta": "Still tea."},
            {"type": "turn_complete", "turn": 3},
        ]
        assert joined(await asyncio.wait_for(early, 5)) == whole
        assert joined(await _all(stage, run)) == whole, "who comes when it is over gets everything"
        asked = [(prompt(up.chats[0]), up.chats[0].json["temperature"]) for up in (stage.openai, stage.anthropic)]
        assert asked == [("You are one.", 0.3), ("You are two.", 1)]
        assert stage.run["titles"] == {"b0": "Uno", "b1": "Bot 2"}


async def _all(stage: Stage, run: str) -> list[Json]:
    return [told async for told in events(stage.http, run)]


async def test_who_comes_in_the_middle_gets_what_was_said_and_what_follows() -> None:
    async with open_stage() as stage:
        stage.anthropic.script(slowly("Coffee.", "Black."))
        run = await begin(stage, max_turns=2)
        await stage.hears("Coffee. ")
        told = joined(await _all(stage, run))
        assert told[1] == {"type": "turn_complete", "turn": 1}
        assert told[2:] == [
            {"type": "token", "role": "bot1", "delta": "Coffee. Black."},
            {"type": "turn_complete", "turn": 2},
        ]


async def test_what_is_void_is_taken_back_before_it_is_said_again() -> None:
    async with open_stage() as stage:
        stage.openai.script(Script([Say("half "), Cut()]), say("whole"))
        run = await begin(stage, max_turns=1)
        assert joined(await _all(stage, run)) == [
            {"type": "token", "role": "bot0", "delta": "half "},
            {"type": "retract", "role": "bot0", "length": 5},
            {"type": "token", "role": "bot0", "delta": "whole"},
            {"type": "turn_complete", "turn": 1},
        ]


async def test_a_bot_keeps_its_number_when_another_leaves() -> None:
    async with open_stage() as stage:
        stage.openai.script(slowly("Tea."), say("Cocoa."))
        stage.anthropic.script(slowly("Coffee."))
        run = await begin(stage, bots=[*BODY["bots"], {**BODY["bots"][0], "prompt": "You are three."}])
        early = asyncio.create_task(_all(stage, run))
        await stage.hears("Coffee. ")
        await stage.client.call("config.patch", {"scope": f"run:{run}", "patch": {"bots": {"b1": None}}})
        gone = await stage.http.patch(f"/api/run/{run}/bot/1", json={"temperature": 0})
        assert (gone.status_code, gone.json()["error"]["data"]["kind"]) == (404, "bot.unknown")
        assert "there are 0, 2" in gone.json()["error"]["message"]
        patched = await stage.http.patch(f"/api/run/{run}/bot/2", json={"temperature": 0.8})
        assert patched.json() == {"id": run, "index": 2, "rev": 3}
        await stage.end()
        assert [(prompt(r), r.json["temperature"]) for r in stage.openai.chats] == [
            ("You are one.", 0.3), ("You are three.", 0.8),
        ]  # fmt: skip
        for told in (await early, await _all(stage, run)):
            roles = [one["role"] for one in joined(told) if one["type"] == "token"]
            assert roles == ["bot0", "bot1", "bot2"]


async def test_a_hub_that_goes_down_tells_the_stream_so() -> None:
    async with open_stage() as stage:
        stage.openai.script(stalls("Tea."))
        run = await begin(stage)
        stream = asyncio.create_task(_all(stage, run))
        await stage.hears("Tea. ")
        hurry = asyncio.Event()
        hurry.set()
        await stage.hub.app.drain(hurry)
        *said, last = await asyncio.wait_for(stream, 5)
        assert joined(said) == [{"type": "token", "role": "bot0", "delta": "Tea. "}]
        assert last == {"type": "error", "message": "The hub was restarted; the run can be resumed."}


async def test_a_client_that_leaves_the_stream_stops_nothing() -> None:
    async with open_stage() as stage:
        stage.openai.script(slowly("Tea."))
        run = await begin(stage, max_turns=2)
        stream = events(stage.http, run)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        await stage.end()
        topic = await stage.hub.app.topics.find("local", stage.topic.name)
        assert topic is not None
        await asyncio.sleep(0)
        assert len(topic.readers) == 1, "only the client that follows the conversation reads on"


async def test_a_stopped_dialogue_ends_its_stream_and_cannot_be_stopped_or_changed_again() -> None:
    async with open_stage() as stage:
        stage.openai.script(stalls("Tea."))
        run = await begin(stage)
        stream = asyncio.create_task(_all(stage, run))
        await stage.hears("Tea. ")
        assert (await stage.http.post(f"/api/run/{run}/stop")).json() == {"id": run, "status": "cancelled"}
        assert joined(await asyncio.wait_for(stream, 5)) == [{"type": "token", "role": "bot0", "delta": "Tea. "}]
        for answer in (
            await stage.http.post(f"/api/run/{run}/stop"),
            await stage.http.patch(f"/api/run/{run}/bot/0", json={"temperature": 1}),
        ):
            assert answer.status_code == 409
            told = answer.json()["error"]["data"]
            assert (told["kind"], told["status"]) == ("run.closed", "cancelled")


async def test_a_prompt_that_is_taken_back_leaves_the_bot_its_introduction() -> None:
    async with open_stage() as stage:
        stage.openai.script(slowly("Tea."))
        run = await begin(stage, max_turns=2)
        await stage.hears("Tea. ")
        patched = await stage.http.patch(f"/api/run/{run}/bot/1", json={"prompt": None, "temperature": None})
        assert patched.json()["rev"] == 2
        await stage.end()
        (request,) = stage.anthropic.chats
        assert prompt(request).startswith("You are Bot 2. You talk with Uno about")
        assert "temperature" not in request.json


def without(member: str) -> Json:
    return {k: v for k, v in BODY.items() if k != member}


def with_bot(**members: Any) -> Json:
    return {**BODY, "bots": [BODY["bots"][0], {**BODY["bots"][1], **members}]}


MISFITS: list[tuple[Any, int, str]] = [
    (without("bots"), 400, "$"),
    (without("topic"), 400, "$"),
    ({**BODY, "topic": ""}, 400, "$.topic"),
    ({**BODY, "topic": "x" * 100_001}, 400, "$.topic"),
    ({**BODY, "bots": BODY["bots"][:1]}, 400, "$.bots"),
    ({**BODY, "bots": BODY["bots"] * 9}, 400, "$.bots"),
    ({**BODY, "max_turns": 0}, 400, "$.max_turns"),
    ({**BODY, "max_turns": "many"}, 400, "$.max_turns"),
    (with_bot(provider="nobody"), 422, "$.bots[1].provider"),
    (with_bot(provider="openai/x"), 422, "$.bots[1].provider"),
    (with_bot(provider=""), 400, "$.bots[1].provider"),
    (with_bot(model=""), 400, "$.bots[1].model"),
    (with_bot(temperature=9), 400, "$.bots[1].temperature"),
    (with_bot(temperature="hot"), 400, "$.bots[1].temperature"),
    (with_bot(name="a\nb"), 400, "$.bots[1].name"),
    ([], 400, "$"),
]


async def test_a_start_that_does_not_fit_is_refused_and_starts_nothing() -> None:
    async with open_stage() as stage:
        for body, status, path in MISFITS:
            answer = await stage.http.post("/api/run", json=body)
            assert answer.status_code == status, (path, answer.text)
            told = answer.json()["error"]["data"]
            assert (told["kind"], told["path"]) == ("rpc.params" if status == 400 else "config.invalid", path)
        assert (await stage.client.call("run.list"))["runs"] == []


async def test_a_body_that_is_no_json_is_refused() -> None:
    async with open_stage() as stage:
        headers = {"content-type": "application/json"}
        for body in (b"", b"{", b"\xff", b"[" * 5000):
            assert (await stage.http.post("/api/run", content=body, headers=headers)).status_code == 400
        assert (await stage.http.post("/api/run", content=b"{}")).status_code == 415


async def test_a_patch_that_does_not_fit_changes_nothing() -> None:
    async with open_stage() as stage:
        stage.openai.script(stalls("Tea."))
        run = await begin(stage)
        patches: list[tuple[str, Json, int, str]] = [
            ("2", {"prompt": "x"}, 404, "bot.unknown"),
            ("-1", {"prompt": "x"}, 404, "bot.unknown"),
            ("b1", {"prompt": "x"}, 404, "bot.unknown"),
            ("9" * 5000, {"prompt": "x"}, 404, "bot.unknown"),
            ("²", {"prompt": "x"}, 404, "bot.unknown"),
            ("1", {}, 400, "rpc.params"),
            ("1", {"promt": "x"}, 400, "rpc.params"),
            ("1", {"temperature": "x"}, 400, "rpc.params"),
            ("1", {"temperature": 9}, 400, "rpc.params"),
        ]
        for index, body, status, kind in patches:
            answer = await stage.http.patch(f"/api/run/{run}/bot/{index}", json=body)
            assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (status, kind), (index, body)
        assert stage.run["rev"] == 1


async def test_what_is_not_there_or_anothers_or_no_dialogue_is_not_found() -> None:
    async with open_stage() as stage:
        stage.openai.script(stalls("Tea."))
        run = await begin(stage)
        bob = (await stage.client.call("token.new", {"user": "bob"}))["token"]
        chat = await stage.client.call("run.start", {"input": [{"kind": "text", "text": "hi"}]})
        asked = [(run, {"authorization": f"Bearer {bob}"}), ("r404", {}), (chat["run"], {})]
        for id, headers in asked:
            for method, path in (("GET", f"stream/{id}"), ("POST", f"run/{id}/stop"), ("PATCH", f"run/{id}/bot/0")):
                body = {"prompt": "mine"} if method == "PATCH" else None
                answer = await stage.http.request(method, f"/api/{path}", headers=headers, json=body)
                assert (answer.status_code, answer.json()["error"]["data"]["kind"]) == (404, "run.unknown")
        assert (stage.run["status"], stage.run["rev"]) == ("running", 1)


async def test_the_eleventh_start_within_a_minute_has_to_wait() -> None:
    async with open_stage() as stage:
        for _ in range(3):  # what starts nothing does not count
            assert (await stage.http.post("/api/run", json=with_bot(provider="nobody"))).status_code == 422
        answers = await asyncio.gather(*[stage.http.post("/api/run", json={**BODY, "max_turns": 1}) for _ in range(12)])
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 2
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["data"]["kind"] == "run.rate"
        assert refused.json()["error"]["data"]["retry"] is True
        assert len((await stage.client.call("run.list"))["runs"]) == 10


def test_an_address_may_start_again_as_its_starts_grow_old_and_others_meanwhile() -> None:
    now = 100.0
    rate = StartRate(2, 60.0, lambda: now)
    rate.take("a")
    now += 20
    rate.take("a")
    with pytest.raises(Fault) as refused:
        rate.take("a")
    assert refused.value.after_ms == 40_001
    rate.take("b")
    now += 40.001
    rate.take("a")
    with pytest.raises(Fault):
        rate.take("a")
    now += 61
    rate.take("c")
    assert list(rate._starts) == ["c"], "addresses that start nothing are forgotten"


async def test_a_start_that_is_sent_again_with_its_key_starts_one_run() -> None:
    async with open_stage() as stage:
        headers = {"idempotency-key": "once"}
        sent = [await stage.http.post("/api/run", json=BODY, headers=headers) for _ in range(2)]
        assert sent[0].json() == sent[1].json()
        assert len((await stage.client.call("run.list"))["runs"]) == 1


async def test_a_conversation_that_is_deleted_ends_the_stream() -> None:
    async with open_stage() as stage:
        stage.openai.script(stalls("Tea."))
        run = await begin(stage)
        stream = asyncio.create_task(_all(stage, run))
        await stage.hears("Tea. ")
        await stage.client.call("conversation.delete", {"conv": stage.topic.name[5:]})
        assert (await asyncio.wait_for(stream, 5))[0] == {"type": "token", "role": "bot0", "delta": "Tea. "}


async def test_more_turns_than_there_may_be_are_as_many_as_there_may_be() -> None:
    async with open_stage(env={"RUN_MAX_TURNS": "2"}) as stage:
        run = await begin(stage, max_turns=10**9)
        await stage.end()
        assert sum(told["type"] == "turn_complete" for told in await _all(stage, run)) == 2
        assert stage.run["config"]["max_turns"] == 1000


async def test_a_beginning_that_is_no_longer_kept_is_told_as_an_error_that_says_where_it_is() -> None:
    async with open_stage() as stage:
        run = await begin(stage, max_turns=2)
        await stage.end()
        topic = await stage.hub.app.topics.find("local", stage.topic.name)
        assert topic is not None
        topic._ring.clear()
        await stage.hub.app.topics.trim(topic, topic.head - 1)
        (told,) = await _all(stage, run)
        assert told["type"] == "error"
        assert f"/api/export/{run}.json" in told["message"]


async def test_an_export_has_the_bots_as_they_were_given_and_what_was_said_so_far() -> None:
    async with open_stage() as stage:
        stage.openai.script(say("Tea."), stalls("Still"))
        stage.anthropic.script(say("Coffee."))
        run = await begin(stage)
        await stage.hears("Still ")
        await stage.http.patch(f"/api/run/{run}/bot/1", json={"prompt": "Give in."})
        document = await export(stage, run)
        assert (document["id"], document["status"], document["error_message"]) == (run, "running", None)
        assert document["bots"] == [
            {"provider": "openai", "model": "fake", "prompt": "You are one.", "temperature": 0.3, "name": "Uno"},
            {"provider": "anthropic", "model": "fake", "prompt": "Give in.", "temperature": 1, "name": "Bot 2"},
        ]
        said = [(m.get("agent"), "".join(p.get("text") or "" for p in m["parts"])) for m in document["messages"]]
        assert said == [(None, "Tea or coffee?"), ("b0", "Tea."), ("b1", "Coffee."), ("b0", "Still ")]
        await stage.http.post(f"/api/run/{run}/stop")
        assert (await export(stage, run))["status"] == "cancelled"

        finished = await begin(stage, max_turns=1)
        await stage.end()
        assert (await export(stage, finished))["status"] == "completed"
        stage.openai.script(fail(400, "No such thing."))
        failed = await begin(stage)
        await stage.end("failed")
        document = await export(stage, failed)
        assert (document["status"], "No such thing." in document["error_message"]) == ("error", True)


async def export(stage: Stage, run: str) -> Json:
    answer = await stage.http.get(f"/api/export/{run}.json")
    assert answer.status_code == 200, answer.text
    document: Json = answer.json()
    return document


async def test_bots_that_name_no_model_are_exported_with_the_one_that_answers() -> None:
    async with open_stage() as stage:
        run = await stage.start(bots={"ann": {}, "bob": {"model": "anthropic/fake"}}, max_turns=2, temperature=0.4)
        await stage.end()
        assert (await export(stage, run))["bots"] == [
            {"provider": "openai", "model": "fake", "prompt": "", "temperature": 0.4, "name": "ann"},
            {"provider": "anthropic", "model": "fake", "prompt": "", "temperature": 0.4, "name": "bob"},
        ]
        told = joined(await _all(stage, run))
        assert [one["role"] for one in told if one["type"] == "token"] == ["bot0", "bot1"]
