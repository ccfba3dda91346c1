"""A conversation given out and taken in again: the same but for ids and times, and nothing that it should not be."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from typing import Any

import msgspec
import pytest

from sag.engine.export import file_refs, make_document
from sag.engine.restore import Restored, parse, restore
from sag.errors import Fault
from sag.plugin import Call, Run, RunConfig, RunKind, ToolContext, User, tool
from sag.schema.events import AskClose, AskOpen, Event
from sag.testing.hub import RunningHub, running_hub
from sag.testing.provider import ScriptedProvider, say
from sag.testing.provider import call as tool_call
from sag.topics.merge import encode
from sag.topics.reducers import ConvReducer
from tests.export.samples import ASKED, PICTURE, TS, dialogue, text

Json = dict[str, Any]
FRAME = 1 << 20
CLOSED = ("done", "cancelled", "failed", "limit", "interrupted")


@tool(risk="read")
async def look(place: str, *, ctx: ToolContext) -> str:
    """Look at a place."""
    LOOKED.append(place)
    return f"{place} is fine"


LOOKED: list[str] = []


def sample() -> Json:
    """An exported document with its file."""
    document = make_document(dialogue(), TS + 1, settled=ASKED)
    data = base64.b64encode(PICTURE).decode()
    file = {"mime": "image/png", "name": "chart.png", "size": len(PICTURE), "data": data}
    document["files"] = dict.fromkeys(file_refs(document), file)
    return document


def normal(document: Json) -> Json:
    """A document with its ids in the order of their first appearance, and without the time at which it was made."""
    names: dict[str, str] = {}
    ids = [document["conversation"]["id"], *document["runs"], *(m["msg"] for m in document["messages"])]
    ids += [*document["tools"], *document["asks"], *document["files"]]
    ids += [p["call"] for m in document["messages"] for p in m["parts"] if "call" in p]
    for id in ids:
        names.setdefault(id, f"id{len(names)}")
    numbers: dict[int, int] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            out = {names.get(k, k): walk(v) for k, v in value.items()}
            if out.get("by"):
                out["by"] = "somebody"
            if isinstance(value.get("part"), int):
                out["part"] = numbers.setdefault(value["part"], len(numbers) + 1)
            return out
        if isinstance(value, list):
            return [walk(v) for v in value]
        return names.get(value, value) if isinstance(value, str) else value

    out: Json = walk({k: v for k, v in document.items() if k != "exported_at"})
    return out


def folded(document: Json, user: str = "u1") -> Json:
    """The state that all events of a restored document fold to."""
    return fold(restore(parse(document), user, TS + 5, FRAME)).state


def fold(made: Restored) -> ConvReducer:
    reducer = ConvReducer(made.conv)
    for event in made.events:
        reducer.fold(event.NAME if isinstance(event, Event) else "delta", json.loads(encode(event)))
    return reducer


def settled(made: Restored) -> Json:
    """The questions that the events of a restored document tell."""
    asks: Json = {}
    for event in made.events:
        d = json.loads(encode(event))
        if isinstance(event, AskOpen):
            asks[d.pop("ask")] = d
        elif isinstance(event, AskClose):
            asks[d.pop("ask")]["outcome"] = d
    return asks


# without a hub


def test_events_fold_to_what_the_document_says() -> None:
    document = sample()
    made = restore(parse(document), "u1", TS + 5, FRAME)
    again = make_document(fold(made).state, TS + 9, settled=settled(made))
    again["files"] = dict.fromkeys(file_refs(again), next(iter(document["files"].values())))
    assert normal(again) == normal(document)


def test_a_topic_that_is_loaded_goes_on_with_fresh_numbers() -> None:
    reducer = fold(restore(parse(sample()), "u1", TS, FRAME))
    numbers = [p["part"] for m in reducer.state["messages"] for p in m["parts"] if "part" in p]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert reducer.last_part == len(numbers)


@pytest.mark.parametrize("status", ["queued", "running", "waiting", "paused"])
def test_what_went_on_is_closed(status: str) -> None:
    document = sample()
    document["runs"]["r1"] |= {"status": status, "agents": {"b0": "open", "b1": "closed"}}
    document["messages"][-1]["parts"][-1] |= {"open": True}
    document["tools"]["k3"] = {k: v for k, v in document["tools"]["k3"].items() if k not in ("ms", "error")}
    document["tools"]["k3"]["status"] = "running"
    document["asks"]["a1"].pop("outcome")
    state = folded(document)
    (run,) = state["runs"].values()
    assert run["status"] == "interrupted"
    assert set(run["agents"].values()) == {"closed"}
    assert [t["status"] for t in state["tools"].values()] == ["lost", "ok", "lost"]
    assert state["asks"] == {}
    assert not any(p["open"] for m in state["messages"] for p in m["parts"])
    assert state["messages"][-1]["parts"][-1]["partial"] is True


def test_everything_in_it_counts_as_done_by_who_takes_it_in() -> None:
    text = msgspec.json.encode(folded(sample(), "bob")).decode()
    assert '"by":"bob"' in text
    assert "u1" not in text


def test_free_json_names_the_new_ids() -> None:
    state = folded(sample())
    (run,) = state["runs"]
    first, second, _ = state["tools"]
    assert state["runs"][run]["data"] == {"asked": {first: run}}
    assert (state["tools"][first]["repeated"], state["tools"][second]["again"]) == (second, first)


def broken(path: str, value: Any) -> Json:
    """The sample with one member replaced; `…` takes it out."""
    document = sample()
    *way, last = path.split("/")
    place: Any = document
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key: Any = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return document


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "value", "kind", "told"),
    [
        ("format", "other", "import.invalid", "$.format"),
        ("version", 2, "import.version", "$.version"),
        ("version", True, "import.invalid", "$.version"),
        ("messages", ..., "import.invalid", "$"),
        ("messages", {}, "import.invalid", "$.messages"),
        ("messages/1/role", "system", "import.invalid", "$.messages[1].role"),
        ("messages/1/msg", "m1", "import.invalid", "$.messages[1].msg"),
        ("messages/1/msg", "a b", "import.invalid", "$.messages[1].msg"),
        ("messages/1/run", "r7", "import.invalid", "$.messages[1].run"),
        ("messages/1/parent", "m5", "import.invalid", "$.messages[1].parent"),
        ("messages/1/surprise", 1, "import.invalid", "$.messages[1].surprise"),
        ("messages/1/parts/0/part", 2, "import.invalid", "$.messages[1].parts[1].part"),
        ("messages/1/parts/0/part", -1, "import.invalid", "$.messages[1].parts[0].part"),
        ("messages/1/parts/0/text", ..., "import.invalid", "$.messages[1].parts[0].text"),
        ("messages/1/parts/2/call", ..., "import.invalid", "$.messages[1].parts[2].call"),
        ("messages/0/parts/1/ref", "f9", "import.invalid", "$.messages[0].parts[1].ref"),
        ("messages/1/usage/input", -4, "import.invalid", "$.messages[1].usage.input"),
        ("runs/r1/status", "great", "import.invalid", "$.runs[...].status"),
        ("tools/k1/error", {"kind": "x", "message": {"a": 1}}, "import.invalid", "$.tools.k1.error.message"),
        ("runs/r1/allow", {"mail_send": True}, "import.invalid", "$.runs[...].allow"),
        ("runs/r1/usage", ..., "import.invalid", "$.runs[...]"),
        ("runs/r1/ts", 1 << 70, "import.invalid", "$.runs.r1.ts"),
        ("runs/r1/data/asked", deep(200), "import.invalid", "$.runs.r1"),
        ("runs/r1/data/n", -(1 << 70), "import.invalid", "$.runs.r1.data"),
        ("runs/r1/data/big", "x" * FRAME, "import.large", "$.runs.r1"),
        ("messages/1/parts/1/text", "x" * (FRAME // 2), "import.large", "$.messages[1]"),
        ("tools/k1/run", "r7", "import.invalid", "$.tools.k1.run"),
        ("tools/k1/again", "k2", "import.invalid", "$.tools.k1.again"),
        ("tools/k3/ref", "f9", "import.invalid", "$.tools.k3.ref"),
        ("tools/k2/result/content/2/ref", "f9", "import.invalid", "$.tools.k2.result.content"),
        ("tools/k2/progress", {"done": "much"}, "import.invalid", "$.tools.k2.progress"),
        ("messages/0/msg", "k1", "import.invalid", "$.tools.k1"),
        ("conversation/id", "f1", "import.invalid", "$.files.f1"),
        ("asks/a1/run", "r7", "import.invalid", "$.asks.a1.run"),
        ("asks/a1/call", "k7", "import.invalid", "$.asks.a1.call"),
        ("asks/a1/outcome/why", "bored", "import.invalid", "$.asks[...].outcome.why"),
        ("files/f1/data", "!!", "import.invalid", "$.files.f1.data"),
        ("files/f1/mime", "a/b\r\nx: y", "import.invalid", "$.files[...].mime"),
    ],
)  # fmt: skip
def test_a_document_with_a_fault_is_refused_with_its_path(path: str, value: Any, kind: str, told: str) -> None:
    with pytest.raises(Fault) as fault:
        restore(parse(broken(path, value)), "u1", TS, FRAME)
    assert (fault.value.kind, fault.value.data["path"][: len(told)]) == (kind, told), fault.value.message


@pytest.mark.parametrize("text", [b"", b"no json", b"[]", b"3", b'{"format": 1}', b"[" * 100_000, b'{"a":"\xff"}'])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(Fault) as fault:
        parse(text)
    assert fault.value.kind == "import.invalid"


def test_a_repeated_call_cannot_go_round_in_circles() -> None:
    document = sample()
    document["tools"]["k1"]["repeated"] = "k1"
    document["tools"]["k2"]["repeated"] = "k1"
    first, second, _ = folded(document)["tools"].values()
    assert "repeated" not in second
    assert first["repeated"] != second.get("again")


# in a hub


async def ran(hub: RunningHub, client: Any, text: str = "hi", **params: Any) -> Json:
    started: Json = await client.call("run.start", {"input": [{"kind": "text", "text": text}], **params})
    topic = await client.subscribe(f"conv:{started['conv']}")
    await topic.until(lambda state: state["runs"].get(started["run"], {}).get("status") in CLOSED)
    return started


async def exported(client: Any, conv: str) -> Json:
    document: Json = json.loads((await client.call("conversation.export", {"conv": conv}))["text"])
    return document


async def test_a_conversation_comes_back_as_it_was() -> None:
    script = ScriptedProvider(
        tool_call(("look", {"place": "Berlin"}), text="I look."), say("All is fine."), say("Again.")
    )
    async with running_hub(providers=[script], tools=[look]) as hub, hub.client() as client:
        started = await ran(hub, client, "Look around")
        await ran(hub, client, "Once more", conv=started["conv"], config={"temperature": 0.3})
        await client.call("config.patch", {"scope": f"conv:{started['conv']}", "patch": {"system": "Be brief."}})
        before = await exported(client, started["conv"])
        taken = await client.call("conversation.import", {"document": before})
        after = await exported(client, taken["conv"])
        assert normal(after) == normal(before)
        assert taken["conv"] != started["conv"]
        listed = (await client.call("conversation.list"))["conversations"]
        assert {c["conv"]: c["title"] for c in listed} == {started["conv"]: "Look around", taken["conv"]: "Look around"}
        view = await client.call("conversation.get", {"conv": taken["conv"]})
        assert taken["at"] == {f"conv:{taken['conv']}": view["off"]}
        old = (await client.call("conversation.get", {"conv": started["conv"]}))["snap"]["messages"]
        assert [m["model"] for m in view["snap"]["messages"] if m["role"] == "assistant"] == ["script/m"] * 3
        assert [m.get("usage") for m in view["snap"]["messages"]] == [m.get("usage") for m in old]


@tool(risk="danger")
async def send(to: str, *, ctx: ToolContext) -> str:
    """Send a mail."""
    return "sent"


async def test_how_a_question_was_answered_comes_along() -> None:
    script = ScriptedProvider(tool_call(("send", {"to": "all"})), say("Done."))
    async with running_hub(providers=[script], tools=[send]) as hub, hub.client() as client:
        started = await client.call("run.start", {"input": [{"kind": "text", "text": "Send"}]})
        topic = await client.subscribe(f"conv:{started['conv']}")
        await topic.until(lambda s: s["asks"])
        (ask,) = topic.state["asks"]
        waiting = await exported(client, started["conv"])
        assert "outcome" not in waiting["asks"][ask]
        data = {"args": {"to": "one"}}
        await client.call("ask.answer", {"ask": ask, "choice": "allow_once", "data": data})
        await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done")
        before = await exported(client, started["conv"])
        assert before["asks"][ask]["outcome"]["choice"] == "allow_once"
        assert [t["args"] for t in before["tools"].values()] == [{"to": "one"}]
        taken = await client.call("conversation.import", {"document": before})
        assert normal(await exported(client, taken["conv"])) == normal(before)
        taken = await client.call("conversation.import", {"document": waiting})
        back = await exported(client, taken["conv"])
        assert [a["outcome"]["why"] for a in back["asks"].values()] == ["run"]
        assert (await client.call("conversation.get", {"conv": taken["conv"]}))["snap"]["asks"] == {}


async def test_it_goes_on_from_there() -> None:
    script = ScriptedProvider(say("One."), say("Two."))
    async with running_hub(providers=[script]) as hub, hub.client() as client:
        started = await ran(hub, client, "First")
        taken = await client.call("conversation.import", {"document": await exported(client, started["conv"])})
        await ran(hub, client, "Second", conv=taken["conv"])
        assert [(m.role, m.text) for m in script.requests[-1].messages] == [
            ("user", "First"), ("assistant", "One."), ("user", "Second"),
        ]  # fmt: skip


async def test_it_survives_a_restart(tmp_path: Any) -> None:
    async with running_hub(data=tmp_path) as hub, hub.client() as client:
        taken = await client.call("conversation.import", {"document": sample()})
        before = await exported(client, taken["conv"])
    async with running_hub(data=tmp_path) as hub, hub.client() as client:
        assert normal(await exported(client, taken["conv"])) == normal(before)
        events = [(name, d) async for name, d in events_of(hub, taken["conv"])]
        reducer = ConvReducer(taken["conv"])
        for name, d in events:
            reducer.fold(name, d)
        assert reducer.state == (await client.call("conversation.get", {"conv": taken["conv"]}))["snap"]


async def events_of(hub: RunningHub, conv: str) -> Any:
    rows = await hub.app.journal.rows("topic", {"name": f"conv:{conv}"})
    topic = await hub.app.topics.find(rows[0]["owner"], f"conv:{conv}")
    assert topic is not None
    for entry in await hub.app.journal.read(topic.tid, 0, topic.head, 1 << 30):
        yield entry.name, json.loads(entry.body)


async def test_files_come_along_to_another_hub() -> None:
    async with running_hub() as hub, hub.client() as client:
        taken = await client.call("conversation.import", {"document": sample()})
        document = await exported(client, taken["conv"])
        (ref,) = document["files"]
        assert document["messages"][0]["parts"][1]["ref"] == ref != "f1"
        rows = await hub.app.journal.rows("blob", {"ref": ref})
        blob, data = await hub.app.blobs.get(rows[0]["owner"], ref)
        assert (data, blob.mime, blob.name) == (PICTURE, "image/png", "chart.png")
        assert normal(document)["files"] == normal(sample())["files"]


async def test_a_file_that_does_not_fit_is_named_without_its_data() -> None:
    async with running_hub() as hub, hub.client() as client:
        taken = await client.call("conversation.import", {"document": sample()})
        hub.app.settings.hub.limits.body = 10_000
        document = await exported(client, taken["conv"])
        (file,) = document["files"].values()
        assert file == {"mime": "image/png", "name": "chart.png", "size": len(PICTURE)}
        again = await client.call("conversation.import", {"document": document})
        (file,) = (await exported(client, again["conv"]))["files"].values()
        assert file == {"mime": "image/png", "name": "chart.png"}


async def test_a_large_document_goes_by_ref() -> None:
    document = sample()
    document["messages"][1]["parts"][1]["text"] = "x" * 200_000
    for i in range(20):
        message = copy.deepcopy(document["messages"][1])
        message["msg"] = f"m1{i}"
        message["parts"] = [text(100 + i, "y" * 100_000)]
        document["messages"].append(message)
    async with running_hub() as hub, hub.client() as client:
        me = (await client.call("user.me"))["id"]
        kept = await hub.app.blobs.put(me, msgspec.json.encode(document), "application/json", "c.json")
        taken = await client.call("conversation.import", {"ref": kept.ref})
        out = await client.call("conversation.export", {"conv": taken["conv"]})
        assert "text" not in out
        assert out["name"].endswith(".json")
        _, data = await hub.app.blobs.get(me, out["ref"])
        assert normal(json.loads(data)) == normal(document)


async def test_neither_or_both_ways_to_name_a_document_are_refused() -> None:
    async with running_hub() as hub, hub.client() as client:
        for params in ({}, {"document": sample(), "ref": "f1"}):
            with pytest.raises(Fault) as error:
                await client.call("conversation.import", params)
            assert error.value.kind == "rpc.params"
        with pytest.raises(Fault) as error:
            await client.call("conversation.import", {"ref": "f1"})
        assert error.value.kind == "file.unknown"


async def test_a_key_takes_it_in_once() -> None:
    async with running_hub() as hub, hub.client() as client:
        params = {"document": sample(), "key": "once"}
        first, second = await asyncio.gather(*(client.call("conversation.import", copy.deepcopy(params)) for _ in "ab"))
        assert first == second == await client.call("conversation.import", params)
        assert len((await client.call("conversation.list"))["conversations"]) == 1
        with pytest.raises(Fault) as error:
            await client.call("conversation.import", {"document": {**sample(), "exported_at": 1}, "key": "once"})
        assert error.value.kind == "key.mismatch"


async def test_a_refused_document_leaves_nothing_behind() -> None:
    async with running_hub() as hub, hub.client() as client:
        for path, value in (("runs/r1/status", "great"), ("conversation/config", {"temperature": "hot"})):
            with pytest.raises(Fault) as error:
                await client.call("conversation.import", {"document": broken(path, value)})
            assert error.value.kind == "import.invalid"
        assert error.value.data["path"] == "$.conversation.config.temperature"
        assert (await client.call("conversation.list"))["conversations"] == []
        assert await hub.app.journal.rows("blob", {}) == []
        assert await hub.app.journal.rows("topic", {"name": "conv"}) == []


async def test_what_it_cost_elsewhere_costs_nothing_here() -> None:
    async with running_hub() as hub, hub.client() as client:
        await client.call("conversation.import", {"document": sample()})
        assert await hub.app.journal.rows("usage", {}) == []


async def test_only_an_interrupted_run_can_be_resumed() -> None:
    script = ScriptedProvider(tool_call(("look", {"place": "Rome"})), say("Seen."))
    async with running_hub(providers=[script], tools=[look]) as hub, hub.client() as client:
        LOOKED.clear()
        started = await ran(hub, client, "Look")
        document = await exported(client, started["conv"])
        done = await client.call("conversation.import", {"document": document})
        (run,) = (await exported(client, done["conv"]))["runs"]
        with pytest.raises(Fault) as error:
            await client.call("run.resume", {"run": run})
        assert error.value.kind == "run.state"
        (only,) = document["runs"].values()
        only["status"] = "running"
        del document["messages"][-1]  # its last round was not made yet
        cut = await client.call("conversation.import", {"document": document})
        (run,) = (await exported(client, cut["conv"]))["runs"]
        await client.call("run.resume", {"run": run})
        topic = await client.subscribe(f"conv:{cut['conv']}")
        await topic.until(lambda state: state["runs"][run]["status"] == "done")
        assert LOOKED == ["Rome"], "a call that was finished is not made again"
        assert topic.state["messages"][-1]["parts"][0]["text"] == "Seen."


async def test_a_kind_that_is_not_here_is_shown_all_the_same() -> None:
    async with running_hub() as hub, hub.client() as client:
        document = broken("runs/r1/kind", "quiz")
        taken = await client.call("conversation.import", {"document": document})
        back = await exported(client, taken["conv"])
        assert [run["kind"] for run in back["runs"].values()] == ["quiz"]


async def test_members_of_the_kind_stand_in_a_runs_export_and_cannot_replace_the_documents() -> None:
    async def speak(run: Run) -> None:
        await run.turn()

    def told(object: Json, config: Json) -> Json:
        return {"bots": [{"model": config["model"], "api_key": "sk-9"}], "status": "mine", "steps": object["step"]}

    kind = RunKind("talk", RunConfig, speak, exported=told)
    bad = RunKind("bad", RunConfig, speak, exported=lambda object, config: {"x": 1 / 0})
    async with running_hub(providers=[ScriptedProvider(say("ok"))], kinds=[kind, bad]) as hub, hub.client() as client:
        started = await ran(hub, client, kind="talk", config={"model": "script/m"})
        document = json.loads((await client.call("run.export", {"run": started["run"]}))["text"])
        assert document["bots"] == [{"model": "script/m", "api_key": {"set": True}}]
        assert (document["status"], document["steps"], document["id"]) == ("completed", 1, started["run"])
        await client.call("conversation.import", {"document": document})
        started = await ran(hub, client, kind="bad")
        assert (await client.call("run.export", {"run": started["run"]}))["format"] == "json"


async def test_a_run_that_still_runs_is_given_out_so_far() -> None:
    more = asyncio.Event()
    script = ScriptedProvider([*say("The first half")[:1], more, *say(", and the second.")])
    async with running_hub(providers=[script]) as hub, hub.client() as client:
        started = await client.call("run.start", {"input": [{"kind": "text", "text": "Talk"}]})
        topic = await client.subscribe(f"conv:{started['conv']}")
        await topic.until(lambda s: any(m["role"] == "assistant" and m["parts"] for m in s["messages"]))
        document = json.loads((await client.call("run.export", {"run": started["run"]}))["text"])
        assert (document["status"], document["error_message"]) == ("running", None)
        assert document["messages"][-1]["parts"][0] | {"ts": 0} == {
            "part": 1, "kind": "text", "text": "The first half", "open": True, "ts": 0,
        }  # fmt: skip
        taken = await client.call("conversation.import", {"document": document})
        (run,) = (await exported(client, taken["conv"]))["runs"].values()
        assert run["status"] == "interrupted"
        more.set()
        await topic.until(lambda s: s["runs"][started["run"]]["status"] == "done")


async def test_an_import_that_is_given_up_in_the_middle_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sag.api.export.SLICE", 1)
    async with running_hub() as hub:
        app = hub.app
        call = Call(User("ada", "Ada"), begin=app.topics.begin)
        params = msgspec.json.encode({"document": sample(), "key": "once"})
        work = asyncio.create_task(app.dispatcher.call(call, app.registry.get("conversation.import"), params))

        def filling() -> bool:
            return any(t.name.startswith("conv:") and t.tip > 5 for t in app.topics.loaded())

        async with asyncio.timeout(10):
            while not filling():
                await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not filling()
        for table in ("conversation", "run", "blob"):
            assert await app.journal.rows(table, {}) == []
        again = Call(User("ada", "Ada"), begin=app.topics.begin)
        await app.dispatcher.call(again, app.registry.get("conversation.import"), params)
        assert len(await app.journal.rows("conversation", {})) == 1
