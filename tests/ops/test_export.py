"""What is generated from the declarations: it is valid, it is what the hub really sends, and the files are current."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from sag import cli
from sag.app import App, declared
from sag.errors import KINDS
from sag.hub.connection import Connection
from sag.ops.export import document, print_document
from sag.ops.export.markdown import CLOSING_TEXT, SETTING_TEXT
from sag.ops.export.openapi import FILE
from sag.ops.export.schema import split_doc
from sag.ops.operation import Change, Operation, Params, Registry, bind, operation
from sag.schema.events import EVENTS, Event, event
from sag.settings import HubSettings, Limits, load
from sag.store.blobs import Blob
from sag.web.guard import LOCAL
from sag.wire import closing
from sag.wire.frames import websocket_payload

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
NAMES = ("jsonschema", "openapi", "asyncapi")


def made(name: str) -> Json:
    """A document of the hub's own declarations."""
    out: Json = json.loads(print_document(name, declared()))
    return out


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def at(doc: Json, pointer: str) -> Any:
    found: Any = doc
    for key in pointer.removeprefix("#/").split("/"):
        found = found[key.replace("~1", "/").replace("~0", "~")]
    return found


# --- the files ---


@pytest.mark.parametrize("path", cli.generated())
def test_a_generated_file_is_current(path: str) -> None:
    committed = (ROOT / path).read_text(encoding="utf-8")
    assert committed == cli.generated()[path], f"{path} is not what the declarations say: run scripts/generate"


@pytest.mark.parametrize("path", cli.generated())
def test_a_generated_file_says_by_what(path: str) -> None:
    assert "scripts/generate" in "".join((ROOT / path).read_text(encoding="utf-8").splitlines(keepends=True)[:3])


def test_links_between_pages_of_the_reference_lead_somewhere() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}
    anchors = {
        name: {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
        }
        for name, text in pages.items()
    }
    for name, text in pages.items():
        for page, anchor in re.findall(r"\]\(([\w-]+\.md)?(?:#([\w-]+))?\)", text):
            assert (page or name) in pages, f"{name} links to {page}"
            assert not anchor or anchor in anchors[page or name], f"{name} links to {page}#{anchor}"


def test_every_setting_and_close_code_is_explained() -> None:
    described = (
        set(split_doc(HubSettings.__doc__ or "")[1]) | set(split_doc(Limits.__doc__ or "")[1]) | set(SETTING_TEXT)
    )
    assert {*HubSettings.__struct_fields__, *Limits.__struct_fields__} - {"limits"} <= described
    assert {c.code for c in closing.ALL} == set(CLOSING_TEXT)


def test_reference_and_types_are_printed() -> None:
    assert print_document("reference", declared()).startswith("<!-- Generated")
    assert "'run.start': { params: RunStart;" in print_document("typescript", declared())


# --- the documents ---


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_of_a_document_leads_somewhere(name: str) -> None:
    doc = made(name)
    found = set(references(doc))
    assert found
    for ref in found:
        at(doc, ref)


def test_openapi_is_valid() -> None:
    OpenAPIV31SpecValidator(made("openapi")).validate()


def test_jsonschema_is_valid() -> None:
    doc = made("jsonschema")
    Draft202012Validator.check_schema(doc)
    for schema in doc["$defs"].values():
        Draft202012Validator.check_schema(schema)


def test_messages_of_asyncapi_have_valid_payloads_and_operations_name_the_messages_of_the_channel() -> None:
    doc = made("asyncapi")
    for message in doc["components"]["messages"].values():
        Draft202012Validator.check_schema(message["payload"])
    named = set(references(doc["operations"])) - {"#/channels/ws"}
    assert named == {f"#/channels/ws/messages/{name}" for name in doc["components"]["messages"]}


@pytest.mark.parametrize("name", NAMES)
def test_a_document_is_made_once_for_a_registry(name: str) -> None:
    registry = Registry()
    registry.add(dice())
    first = document(f"{name}.json", registry, "1")
    assert document(f"{name}.json", registry, "1") is first


def test_a_document_is_made_anew_when_an_operation_came() -> None:
    registry = Registry()
    before = document("openapi.json", registry, "1")
    registry.add(dice())
    after = document("openapi.json", registry, "1")
    assert before is not None
    assert after is not None
    assert b"dice.roll" not in before
    assert b"dice.roll" in after


def test_there_is_no_other_document() -> None:
    assert document("secrets.json", Registry(), "1") is None


class Roll(Change):
    """How many."""

    times: int
    sides: int = 6


class Rolled(Params):
    """What the dice show."""

    shown: list[int]


def dice() -> Operation:
    @operation("dice.roll", who="admin", rest="POST /api/dice/{times}")
    async def roll(call: Any, params: Roll) -> Rolled:
        """Roll dice."""
        raise AssertionError("it is only declared")

    return bind(roll, "dice")


def test_a_rest_route_has_its_path_its_body_and_its_header() -> None:
    registry = Registry()
    registry.add(dice())
    doc = json.loads(document("openapi", registry, "1") or b"")
    OpenAPIV31SpecValidator(doc).validate()
    post = doc["paths"]["/api/dice/{times}"]["post"]
    assert post["x-who"] == "admin"
    assert post["x-plugin"] == "dice"
    assert {"$ref": "#/components/parameters/IdempotencyKey"} in post["parameters"]
    assert {"name": "times", "in": "path", "required": True, "schema": {"type": "integer"}} in post["parameters"]
    assert list(post["requestBody"]["content"]["application/json"]["schema"]["properties"]) == ["sides", "key"]
    assert "403" in post["responses"]


def test_a_read_takes_its_members_in_the_query_and_no_key() -> None:
    get = made("openapi")["paths"]["/api/conversations/{conv}/messages"]["get"]
    named = [(p["in"], p["name"]) for p in get["parameters"] if "name" in p]
    assert named == [("path", "conv"), ("query", "before"), ("query", "limit")]
    assert {"$ref": "#/components/parameters/IdempotencyKey"} not in get["parameters"]


def test_each_kind_of_error_stands_in_the_answer_of_its_status() -> None:
    responses = made("openapi")["components"]["responses"]
    for name, kind in KINDS.items():
        status = kind.code if kind.code > 0 else {-32601: 404, -32603: 500}.get(kind.code, 400)
        assert f"`{name}`" in responses[f"Error{status}"]["description"]


def test_events_of_a_plugin_are_told_where_its_family_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENTS, "dice", {})

    @event("dice", "rolled", "ephemeral")
    class DiceRolled(Event):
        """Dice were rolled."""

        shown: list[int]

    doc = json.loads(document("asyncapi", Registry(), "1", families=["conv", "dice"]) or b"")
    message = doc["components"]["messages"]["dice.rolled"]
    assert message["x-class"] == "ephemeral"
    assert message["payload"]["required"] == ["t", "e", "d"]
    assert "dice.rolled" not in json.loads(document("asyncapi", Registry(), "1") or b"")["components"]["messages"]


def test_an_uploaded_file_is_described_as_it_is_answered() -> None:
    assert set(FILE["properties"]) == set(Blob.__struct_fields__)


# --- what the hub really sends ---


class Wire:
    """A socket that keeps what is written."""

    writable = True
    sink: Any = None

    def __init__(self) -> None:
        self.sent: list[Json] = []
        self.news = asyncio.Event()

    def write(self, *frames: bytes) -> None:
        for frame in frames:
            found = json.loads(websocket_payload(frame))
            self.sent += found if isinstance(found, list) else [found]
        self.news.set()

    def unsent(self) -> int:
        return 0

    async def close(self, code: int, reason: str) -> None:
        return

    def abort(self) -> None:
        return


class Client:
    """Speaks the protocol over a `Wire`, and remembers which request and which topic an answer belongs to."""

    def __init__(self, app: App) -> None:
        self.wire = Wire()
        self.connection = Connection(app.hub, self.wire, LOCAL, None, "127.0.0.1")
        app.hub.entered(self.connection)
        self.asked: dict[int, str] = {}

    def send(self, **frame: Any) -> None:
        self.connection.receive(json.dumps(frame))

    async def until(self, holds: Callable[[Json], object]) -> Json:
        """The first frame of which something holds, once it came."""
        async with asyncio.timeout(15):
            while (found := next((f for f in self.wire.sent if holds(f)), None)) is None:
                self.wire.news.clear()
                await self.wire.news.wait()
        return found

    async def ask(self, method: str, **params: Any) -> Json:
        id = len(self.asked) + 1
        self.asked[id] = method
        self.send(id=id, method=method, params=params)
        return await self.until(lambda f: f.get("id") == id and "method" not in f)

    async def run(self, text: str, **params: Any) -> Json:
        """A run, until it is over; asks are allowed."""
        input = [{"kind": "text", "text": text}]
        started = (await self.ask("run.start", input=input, config={"model": "demo/scripted"}, **params))["result"]
        run = started["run"]
        answered: set[str] = set()

        def over_or_asks(frame: Json) -> bool:
            d: Any = frame.get("d")
            asks = frame.get("e") == "ask.open" and d["run"] == run and d["ask"] not in answered
            return asks or (frame.get("e") == "run.close" and d["run"] == run and "usage" in d)

        while (frame := await self.until(over_or_asks))["e"] == "ask.open":
            answered.add(frame["d"]["ask"])
            await self.ask("ask.answer", ask=frame["d"]["ask"], choice="allow_once")
        return dict(started)

    def topics(self) -> dict[int, str]:
        """The family of the topic of each number that an answer gave."""
        out: dict[int, str] = {}
        for frame in self.wire.sent:
            result = frame.get("result")
            if not isinstance(result, dict):
                continue
            method = self.asked.get(frame["id"], "")
            if method == "hello":
                out |= {a["t"]: name.partition(":")[0] for name, a in result["topics"].items() if "t" in a}
            elif "t" in (result.get("topic") or {}):
                out[result["topic"]["t"]] = "conv"
        return out


@pytest.fixture(scope="module")
def schema() -> Json:
    """The document, made strict: what is not declared is a fault, so that nothing is sent that it does not know."""
    doc = copy.deepcopy(made("jsonschema"))
    for name, component in doc["$defs"].items():
        if component.get("type") == "object" and name not in ("ErrorData", "ToolAnswer"):
            component["additionalProperties"] = False
    return doc


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    settings = load({"SAG_DATA": str(tmp_path / "data"), "SAG_DEMO_TOKEN_MS": "0"}, cwd=tmp_path)
    app = App(settings)
    await app.start()
    yield app
    await app.hub.close()
    await app.stop()


async def record(app: App) -> Client:
    """A client that has done a bit of everything."""
    client = Client(app)
    tool = {"name": "screen.show", "input": {"type": "object"}}
    topics: Json = {"user:me": {}, "hub": {}, "client:hall-1": {}, "conv:none": {}}
    await client.ask("hello", v=1, client={"id": "hall-1"}, topics=topics, tools=[tool, {"name": "no name"}])
    await client.ask("config.patch", scope="client:hall-1", patch={"ui": {"theme": "dark"}})
    await client.ask("config.patch", scope="client:hall-1", patch={"llm": {"temperature": 9}})
    started = await client.run("think")
    conv = started["conv"]
    await client.ask("conversation.create", title="Empty")
    for text in ("two tools", "count down from 2", "note: milk", "delete note last", "fail auth"):
        await client.run(text, conv=conv)
    await client.ask("config.patch", scope=f"conv:{conv}", patch={"temperature": 0.5})
    input = [{"kind": "text", "text": "count down from 2"}]
    long = (await client.ask("run.start", conv=conv, input=input, subscribe=False))["result"]
    for method in ("run.pause", "run.continue"):
        await client.ask(method, run=long["run"])
    await client.ask("config.get", scope=f"conv:{conv}")
    for method in ("user.me", "plugin.list", "model.list", "tool.list", "token.list", "conversation.list", "run.list"):
        await client.ask(method)
    for method in (
        "model.facets",
        "usage.get",
        "tool.policy.list",
        "preset.list",
        "resource.list",
        "kind.list",
        "export.formats",
    ):
        await client.ask(method)
    await client.ask("model.check", model="demo/scripted")
    await client.ask("tool.policy.set", tool="note_delete", policy="ask")
    await client.ask("conversation.get", conv=conv)
    await client.ask("conversation.update", conv=conv, title="Dice")
    await client.ask("message.list", conv=conv)
    await client.ask("run.get", run=started["run"])
    await client.ask("run.export", run=started["run"], format="md")
    exported = (await client.ask("conversation.export", conv=conv))["result"]
    await client.ask("conversation.import", document=json.loads(exported["text"]))
    await client.ask("token.new", name="hall", expires_s=3600)
    await client.ask("topic.subscribe", topic="hub")
    await client.ask("topic.unsubscribe", topic="hub")
    await client.ask("run.cancel", run="none")
    await client.ask("no.such")
    await client.ask("conversation.delete", conv=conv)
    client.send(ping=1)
    client.connection._ping()
    app.hub.say_goodbye(1)
    await client.until(lambda f: f.get("method") == "bye")
    return client


async def test_what_the_hub_sends_is_what_the_schema_says(app: App, schema: Json) -> None:
    client = await record(app)
    families = client.topics()

    def check(value: Any, pointer: Json, what: object) -> None:
        faults = [e.message for e in Draft202012Validator({**pointer, "$defs": schema["$defs"]}).iter_errors(value)]
        assert not faults, f"{what}: {faults[0]}"

    told: set[tuple[str, str]] = set()
    for frame in client.wire.sent:
        check(frame, {"$ref": "#/$defs/ServerFrame"}, frame)
        if "e" in frame:
            family = families[frame["t"]]
            check(frame["d"], schema["x-events"][family][frame["e"]]["d"], (family, frame))
            told.add((family, frame["e"]))
        elif "result" in frame:
            method = client.asked[frame["id"]]
            result = dict(frame["result"])
            expected = schema["x-operations"][method]["result"]
            if "allOf" in expected:
                expected = expected["allOf"][0]
                if "topic" in result:
                    check(result.pop("topic"), {"$ref": "#/$defs/SubscribeOutcome"}, method)
            check(result, expected, method)
        elif "method" in frame and "id" not in frame:
            check(frame["params"], schema["x-notifications"][frame["method"]]["params"], frame)
    expected_events = {
        "message.add", "run.open", "run", "step.open", "step.close", "part.open", "delta", "part.close", "tool.open",
        "tool.progress", "tool.close", "ask.open", "ask.close", "run.close", "config",
    }  # fmt: skip
    assert expected_events <= {name for family, name in told if family == "conv"}
    assert {"conv", "run.open", "run.close", "ask.open", "ask.close"} <= {n for f, n in told if f == "user"}
    assert ("client", "config") in told
    answered = {client.asked[f["id"]] for f in client.wire.sent if "result" in f}
    left = set(schema["x-operations"]) - answered
    of_connectors = {"prompt.get", "prompt.complete", "resource.read"}
    assert left == of_connectors | {"run.cancel", "run.resume", "token.drop", "auth.refresh", "model.generation"}, left


async def test_the_hub_serves_its_own_documents_with_what_plugins_brought(app: App) -> None:
    served = {name: app.schema(f"{name}.json") for name in NAMES}
    openapi = json.loads(served["openapi"] or b"")
    OpenAPIV31SpecValidator(openapi).validate()
    assert any("x-plugin" in post["post"] for path, post in openapi["paths"].items() if path.startswith("/rpc/"))
    assert "events.basics" in json.loads(served["asyncapi"] or b"")["operations"]


async def test_every_route_stands_in_openapi(app: App) -> None:
    paths = msgspec.json.decode(app.schema("openapi.json") or b"")["paths"]
    served = set()
    for route in app.asgi().routes:
        if isinstance(route, Route) and route.path not in ("/", "/rpc/{method:path}"):
            if route.name == "no method":
                continue
            methods = (route.methods or set()) - {"HEAD"}
            served |= {(re.sub(r":\w+}", "}", route.path), method.lower()) for method in methods}
    served |= {(f"/rpc/{op.method}", "post") for op in app.registry}
    told = {(path, verb) for path, item in paths.items() for verb in item}
    short = {(path.rstrip("/"), verb) for path, verb in told if path.endswith("/")}  # is served as well
    assert told | short == served
