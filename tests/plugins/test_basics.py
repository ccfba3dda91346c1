"""The bundled tools: time, sums with units, a countdown, notes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sag.errors import Fault
from sag.hooks.host import Extensions, PluginHost
from sag.hooks.tool import ToolError
from sag.ops.dispatch import Call, User
from sag.ops.operation import Registry
from sag.settings import HubSettings, Settings
from sag.topics.reducers import FAMILIES
from sag_basics.calculator import calculate, evaluate
from sag_basics.clock import Clock, count, countdown, find_zone
from sag_basics.notes import fold
from tests.hooks.fakes import FakeServices

ADA, BOB = User("u1", "Ada"), User("u2", "Bob")


class Context:
    """What a tool is given; keeps the progress that it is told."""

    def __init__(self, user: User = ADA) -> None:
        self.user = user
        self.client, self.conv, self.run, self.call = "chat", "c1", "r1", "t1"
        self.log = logging.getLogger("test")
        self.cancelled = False
        self.told: list[tuple[float, float | None, str | None]] = []

    async def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        self.told.append((done, total, text))


@pytest.fixture
async def running():
    """The plugin, loaded by its entry point into a host, with services in memory."""
    host = PluginHost(
        Settings(HubSettings()), Registry(), Extensions(), dict(FAMILIES), entry_points(group="sag", name="basics")
    )
    host.load()
    services: Any = FakeServices()
    host.connect(services)
    await host.startup()
    yield host, services
    await host.shutdown()


async def use(host: PluginHost, name: str, args: dict[str, Any], ctx: Context | None = None) -> Any:
    tool = host.extensions.tools[name]
    return await tool.call(tool.check(args), ctx or Context())  # type: ignore[arg-type]


async def test_the_plugin_brings_its_tools_each_with_its_risk(running):
    host, _ = running
    info = host.get("basics")
    assert (info.status, info.problems) == ("on", [])
    assert {name: tool.risk for name, tool in host.extensions.tools.items()} == {
        "time_now": "read",
        "calculate": "read",
        "countdown": "read",
        "note_add": "write",
        "note_list": "read",
        "note_delete": "danger",
    }
    assert info.provides.operations == ["note.list"]
    for tool in host.extensions.tools.values():
        assert len(tool.description) > 40
        assert all(p.get("description") or p.get("anyOf") for p in tool.input["properties"].values())


# time

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("Europe/Paris", "2026-07-01T14:00:00+02:00"),
        ("europe/paris", "2026-07-01T14:00:00+02:00"),
        ("Tokyo", "2026-07-01T21:00:00+09:00"),
        ("new york", "2026-07-01T08:00:00-04:00"),
        ("UTC", "2026-07-01T12:00:00+00:00"),
    ],
)
def test_the_time_is_told_in_a_zone_or_in_a_city(zone, told):
    answer = Clock(now=lambda: NOON).tell(zone)
    assert answer["time"] == told
    assert answer["utc_offset"] == told[-6:]
    assert (answer["weekday"], answer["week"]) == ("Wednesday", 27)


def test_without_a_zone_the_one_of_the_settings_holds():
    assert Clock("Asia/Kolkata", lambda: NOON).tell()["utc_offset"] == "+05:30"
    assert Clock("", lambda: NOON).tell()["time"][:10] in ("2026-06-30", "2026-07-01", "2026-07-02")


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Pariss", "did you mean Europe/Paris"),
        ("Tokio", "Asia/Tokyo"),
        ("Xyzzy", "IANA name"),
        ("../../etc/passwd", "no time zone"),
        ("America", "no time zone"),
        ("", None),
    ],
)
def test_a_bad_zone_is_an_error_that_suggests(zone, hint):
    if hint is None:
        assert Clock(now=lambda: NOON).tell(zone)["time"]
        return
    with pytest.raises(ToolError, match="no time zone") as raised:
        find_zone(zone)
    assert hint in str(raised.value)


# sums


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 2.5", "17.5"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        ("-2^2", "-4"),
        ("2**-1", "0.5"),
        ("2^64", "18446744073709551616"),
        ("1,000 * 3", "3000"),
        ("5 × 3", "15"),
        ("12 * 7 =", "84"),
        ("15% of 80", "12"),
        ("100 + 10%", "100.1"),
        ("sqrt(16) + sqrt(2*(1+1))", "6"),
        ("pi*2", "6.28318530717959"),
        ("3 miles + 2 km to km", "6.828032 km"),
        ("20 degC to degF", "68 °F"),
        ("68 °F in °C", "20 °C"),
        ("90 km/h to m/s", "25 m/s"),
        ("100 km / 2 h to km/h", "50 km/h"),
        ("60 miles per 2 h to km/h", "48.28032 km/h"),
        ("1/2 mile to km", "0.804672 km"),
        ("2*3/4 m", "1.5 m"),
        ("5 ft 3 in to cm", "160.02 cm"),
        ("2 h 30 min to min", "150 min"),
        ("3 in * 2", "6 in"),
        ("3 in in cm", "7.62 cm"),
        ("2 m^2 to cm^2", "20000 cm²"),
        ("2 square meter to cm^2", "20000 cm²"),
        ("3 kg * 9.81 m/s^2 to N", "29.43 N"),
        ("0.5 to percent", "50 %"),
        ("3 GB to MiB", "2861.02294921875 MiB"),
        ("1e400", "1e+400"),
    ],
)
def test_what_can_be_worked_out(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9**9", "too large"),
        ("2**1e9", "too large"),
        ("1.0000001**1e9999", "too large"),
        ("1e99999999999 / 3", "too large"),
        ("meter**9**9**9", "too large"),
        ("5 m to m**9**9**9", "too large"),
        ("9**" * 60 + "9", "too large"),
        ("5!", "'!' means nothing"),
        ("[1,2]", "means nothing"),
        ("1,5", "',' means nothing"),
        ("a=1", "'=' means nothing"),
        ("__import__('os')", "means nothing"),
        ("().__class__", "cannot be understood|no unit"),
        ("7%3", "percent"),
        ("1 2", "side by side"),
        ("1/0", "divides by zero"),
        ("0**-1", "no finite value"),
        ("(-8)**0.5", "no value among the real numbers"),
        ("5 m + 2 s", "do not go together"),
        ("5 foo", "no unit 'foo'"),
        ("100 USD to EUR", "no unit 'USD'"),
        ("factorial(9)", "no unit 'factorial'"),
        ("20 degC + 5 degC", "scale"),
        ("sqrt(4", "not closed"),
        ("((((", "cannot be understood"),
        ("2 *", "cannot be understood"),
        (" ", "nothing to calculate"),
        ("1" * 201, "longer than 200"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(expression, reason):
    evaluate("1 m")
    began = time.monotonic()
    with pytest.raises(ToolError, match=reason):
        evaluate(expression)
    assert time.monotonic() - began < 1


PIECES = st.sampled_from(
    [*"0123456789.()+-*/^%, e", "**", "9**", "1e9", "m", " km ", " in ", " to ", "sqrt(", "pi", "degC"]
)


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=66).map("".join))
def test_whatever_is_given_ends_within_a_second_in_a_value_or_a_tool_error(expression):
    try:
        assert len(evaluate(expression)) < 400
    except ToolError:
        pass


async def test_the_loop_goes_on_while_a_sum_is_worked_out():
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    ctx: Any = Context()
    for expression in ["9**9**9**9", "1.0000001**1e9999", "(" * 90 + "1" + ")" * 90]:
        try:
            await calculate.call(calculate.check({"expression": expression}), ctx)
        except ToolError:
            pass
    ticking.cancel()
    assert max(gaps, default=0) < 0.5


def test_the_answer_repeats_the_question_and_a_long_one_is_refused_before_it_is_read():
    assert asyncio.run(calculate.call(calculate.check({"expression": " 6 * 7 "}), Context())) == "6 * 7 = 42"  # type: ignore[arg-type]
    with pytest.raises(Fault) as raised:
        calculate.check({"expression": "1" * 201})
    assert raised.value.data["path"] == "$.expression"


def test_pint_is_imported_on_first_use_alone():
    code = "import sys, sag_basics; print('pint' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"


# countdown


class FakeClock:
    """A clock that goes on by sleeping."""

    def __init__(self, ctx: Context | None = None, cancel_at: float = 1e9) -> None:
        self.now = 100.0
        self._ctx, self._cancel_at = ctx, 100.0 + cancel_at

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._ctx is not None and self.now >= self._cancel_at:
            self._ctx.cancelled = True


async def test_a_countdown_tells_progress_at_least_every_quarter_of_a_second():
    ctx, clock = Context(), FakeClock()
    assert await count(90, ctx, clock, clock.sleep) == "The countdown of 1 min 30 s is over."  # type: ignore[arg-type]
    assert clock.now == pytest.approx(190)
    done = [told[0] for told in ctx.told]
    assert done[0] == 0
    assert max(b - a for a, b in pairwise(done)) <= 0.2501
    assert (ctx.told[0], ctx.told[-1]) == ((0, 90, "1 min 30 s left"), (90, 90, "time is up"))
    assert ctx.told[-2][2] == "1 s left"


async def test_a_countdown_that_is_cancelled_stops():
    ctx = Context()
    clock = FakeClock(ctx, cancel_at=2)
    with pytest.raises(ToolError, match="stopped"):
        await count(3600, ctx, clock, clock.sleep)  # type: ignore[arg-type]
    assert clock.now < 103


async def test_the_real_countdown_takes_as_long_as_it_says():
    ctx: Any = Context()
    began = time.monotonic()
    await countdown.call(countdown.check({"seconds": 1}), ctx)
    assert 0.95 < time.monotonic() - began < 3
    assert len(ctx.told) >= 5
    assert countdown.timeout_s > 3600


@pytest.mark.parametrize("seconds", [0, 3601, "x", 1.5])
def test_a_countdown_of_no_or_too_long_a_time_is_refused(seconds):
    with pytest.raises(Fault):
        countdown.check({"seconds": seconds})


# notes


async def test_notes_are_kept_for_each_user_alone_and_the_topic_follows(running):
    host, services = running
    first = await use(host, "note_add", {"text": "buy milk"})
    second = await use(host, "note_add", {"text": "call Eve"})
    await use(host, "note_add", {"text": "Bob's"}, Context(BOB))
    listed = (await use(host, "note_list", {}))["notes"]
    assert [(n["id"], n["text"]) for n in listed] == [(first["id"], "buy milk"), (second["id"], "call Eve")]
    assert await use(host, "note_delete", {"id": first["id"]}) == {"deleted": first["id"], "text": "buy milk"}
    assert [n["id"] for n in (await use(host, "note_list", {}))["notes"]] == [second["id"]]
    assert [n["text"] for n in (await use(host, "note_list", {}, Context(BOB)))["notes"]] == ["Bob's"]

    reducer = host.families["basics"]("notes")
    for name, d in services.events["u1", "basics:notes"]:
        reducer.fold(name, d)
    kept = {key.removeprefix("u1/"): value for (_, key), value in services.keys.items() if key.startswith("u1/")}
    assert reducer.state == {"notes": kept}


async def test_another_users_note_cannot_be_deleted(running):
    host, services = running
    note = await use(host, "note_add", {"text": "mine"})
    with pytest.raises(ToolError, match=r"no note .*; there are no notes"):
        await use(host, "note_delete", {"id": note["id"]}, Context(BOB))
    assert len(services.keys) == 1


async def test_a_user_whose_id_holds_anothers_sees_its_own_notes_alone(running):
    host, _ = running
    await use(host, "note_add", {"text": "x"}, Context(User("u1/u9", "Mallory")))
    assert (await use(host, "note_list", {}, Context(ADA)))["notes"] == []


async def test_deleting_what_is_not_there_tells_the_ids(running):
    host, _ = running
    note = await use(host, "note_add", {"text": "x"})
    with pytest.raises(ToolError, match=f"the ids are {note['id']}"):
        await use(host, "note_delete", {"id": "zzz"})


async def test_the_operation_answers_the_callers_notes(running):
    host, _ = running
    await use(host, "note_add", {"text": "x"})
    op = host.registry.get("note.list")
    assert (op.rest, op.who, op.changes) == ("GET /api/notes", "user", False)
    answer = await op.handler(Call(ADA, begin=lambda: None), op.decode(b"{}"))
    assert [n.text for n in answer.notes] == ["x"]
    assert (await op.handler(Call(BOB, begin=lambda: None), op.decode(b"{}"))).notes == []


async def test_an_empty_or_huge_note_is_refused(running):
    host, _ = running
    for text in ("", "x" * 4001):
        with pytest.raises(Fault):
            await use(host, "note_add", {"text": text})


def test_the_fold_ignores_what_it_does_not_know():
    state: dict[str, Any] = {"notes": {}}
    fold(state, "note.drop", {"id": "none"})
    fold(state, "something.else", {})
    assert state == {"notes": {}}
