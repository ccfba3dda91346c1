"""The host: each fault of a plugin is told with its reason, and the others go on (RELIABILITY F43)."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import sys
import threading
import time
from importlib.metadata import EntryPoint

import pytest

from sag.errors import Fault
from sag.hooks.host import PluginInfo
from sag.ops.dispatch import Call, Dispatcher, User
from sag.schema.events import EVENTS
from tests.hooks.fakes import FakeServices

GOOD = """
@tool(risk="read")
async def roll() -> int:
    "Roll a die."
    return 4

@hookimpl
def register(hub):
    hub.add_tool(roll)
"""

FAULTS = {
    "an import that fails": ("import no_such_module_anywhere", "import: ModuleNotFoundError: No module named"),
    "a syntax error": ("def (", "import: SyntaxError"),
    "sys.exit at import": ("import sys\nsys.exit(3)", "import: SystemExit: 3"),
    "KeyboardInterrupt at import": ("raise KeyboardInterrupt", "import: KeyboardInterrupt"),
    "an exception whose text fails": (
        "class Evil(Exception):\n    def __str__(self): raise ValueError\nraise Evil",
        "import: Evil",
    ),
    "register raises": (
        "@hookimpl\ndef register(hub): raise ValueError('broken\\nin two lines')",
        "register: ValueError: broken in two lines",
    ),
    "register exits": ("import sys\n@hookimpl\ndef register(hub): sys.exit(1)", "register: SystemExit: 1"),
    "register cancels": (
        "import asyncio\n@hookimpl\ndef register(hub): raise asyncio.CancelledError",
        "register: CancelledError",
    ),
    "a misspelt hook": ("@hookimpl\ndef regster(hub): ...", "'regster' is no hook; did you mean 'register'?"),
    "an unknown hook": ("@hookimpl\ndef zzz(hub): ...", "'zzz' is no hook"),
    "a hook with other arguments": ("@hookimpl\ndef register(hbu): ...", "register takes (hub), not 'hbu'"),
    "a hook without its mark": ("def register(hub): ...", "register is not marked with @hookimpl"),
    "no hook at all": ("x = 1", "hooks: there is none in"),
    "an async register": ("@hookimpl\nasync def register(hub): ...", "register has to be a plain def"),
    "a startup that is not async": ("@hookimpl\ndef startup(hub): ...", "startup has to be an async def"),
    "a wrapper": ("@hookimpl(wrapper=True)\ndef register(hub): yield", "register is a wrapper"),
    "no tool": ("@hookimpl\ndef register(hub): hub.add_tool(print)", "register: TypeError: add_tool takes a Tool"),
    "no provider": ("@hookimpl\ndef register(hub): hub.add_provider(3)", "TypeError: add_provider takes an object"),
    "a run kind without its config": (
        "@hookimpl\ndef register(hub): hub.add_run_kind('x', dict, print)",
        "TypeError: run kind x: its config has to extend RunConfig",
    ),
    "an operation that is not declared": ("@hookimpl\ndef register(hub): hub.add_operation(print)", "is not declared"),
    "an event of another family": (
        "@event('conv', 'zap')\nclass Zap(Event): ...\n@hookimpl\ndef register(hub): hub.add_topic({}, print, [Zap])",
        "TypeError: Zap has to be declared with @event('bad', …)",
    ),
    "two families": (
        "@hookimpl\ndef register(hub):\n  for _ in 1, 2: hub.add_topic({}, print, [])",
        "ValueError: a plugin has one family",
    ),
    "a tool without a name": (
        "@tool(name='a b')\ndef f() -> int:\n  'Doc.'\n@hookimpl\ndef register(hub): hub.add_tool(f)",
        "ValueError: 'a b' is no name",
    ),
    "the running hub used too early": (
        "@hookimpl\ndef register(hub): hub.http",
        "RuntimeError: this needs the running",
    ),
    "a task begun too early": (
        "async def work(): ...\n@hookimpl\ndef register(hub): hub.spawn(work())",
        "RuntimeError: this needs the running hub",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_with_a_fault_is_off_with_the_reason_and_the_next_one_works(fault, plugin, make_host):
    source, reason = FAULTS[fault]
    host = make_host(plugin("bad", source), plugin("good", GOOD))
    bad, good = host.plugins
    assert (bad.name, bad.status) == ("bad", "failed")
    assert reason in (bad.reason or "")
    assert bad.provides.tools == []
    assert (good.status, good.provides.tools) == ("on", ["roll"])
    assert list(host.extensions.tools) == ["roll"]


def test_an_object_that_is_no_plugin_is_told_of(plugin, make_host):
    host = make_host(plugin("bad", "x = 3", attribute="x"), plugin("gone", "", attribute="nothing"))
    assert host.get("bad").reason == "hooks: there is none in 'int'"
    assert host.get("gone").reason.startswith("import: AttributeError")


HANGS = {
    "import": "import tests_gate\ntests_gate.gate.wait(60)",
    "register": "import tests_gate\n@hookimpl\ndef register(hub): tests_gate.gate.wait(60)",
    "settings": "import tests_gate\ndef __getattr__(name):\n    tests_gate.gate.wait(60)\n"
    "@hookimpl\ndef register(hub): ...",
}


@pytest.fixture
def gate(monkeypatch):
    """What hanging plugins wait at, so that their threads end with the test."""
    module = type(sys)("tests_gate")
    module.gate = threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_gate", module)
    before = set(threading.enumerate())
    yield module.gate
    module.gate.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("stage", HANGS)
def test_a_plugin_that_hangs_is_given_up_and_told_where_it_stands(stage, plugin, make_host, gate):
    began = time.monotonic()
    ep = plugin("bad", HANGS[stage])
    host = make_host(ep, plugin("good", GOOD), plugin_s=0.3)
    assert time.monotonic() - began < 2
    assert host.get("bad").status == "failed"
    assert f"took more than 0.3 s; it stands in {ep.module}, line" in host.get("bad").reason
    assert host.get("good").status == "on"


def test_many_that_hang_are_not_waited_for_one_after_the_other(plugin, make_host, gate):
    began = time.monotonic()
    host = make_host(*(plugin(f"bad{i}", HANGS["import"]) for i in range(6)), plugin_s=0.5)
    assert time.monotonic() - began < 1.5
    assert [info.status for info in host.plugins] == ["failed"] * 6


def test_what_a_thread_that_was_given_up_registers_later_is_refused(plugin, make_host, gate):
    seen: list[str] = []
    gate.seen = seen
    late = """
        import tests_gate
        @tool
        def late() -> int:
            "Late."
        @hookimpl
        def register(hub):
            tests_gate.gate.wait(60)
            try:
                hub.add_tool(late)
            except RuntimeError as e:
                tests_gate.gate.seen.append(str(e))
        """
    host = make_host(plugin("bad", late), plugin_s=0.2)
    thread = next(t for t in threading.enumerate() if t.name == "load bad")
    gate.set()
    thread.join(5)
    assert host.extensions.tools == {}
    assert seen == ["register was given 0.2 s and is over"]


def test_additions_after_register_are_refused(plugin, make_host):
    ep = plugin("a", "kept = []\n@tool\ndef f() -> int:\n  'Doc.'\n@hookimpl\ndef register(hub): kept.append(hub)")
    make_host(ep)
    module = sys.modules[ep.module]
    with pytest.raises(RuntimeError, match="while register runs"):
        module.kept[0].add_tool(module.f)


def test_a_name_that_is_taken_stays_with_the_first_and_the_rest_of_the_later_plugin_works(plugin, make_host):
    both = """
        class P:
            def __init__(self, name): self.name = name
            def models(self): return []
            async def stream(self, request): yield Text("x")
        class C(RunConfig): ...
        async def run(run): ...
        @operation("thing.get", who="user")
        async def get(call, params: Params) -> int:
            return 1
        @tool
        def roll() -> int:
            "Roll."
        @tool(name="own_NAME")
        def own() -> int:
            "Own."
        @hookimpl
        def register(hub):
            hub.add_tool(roll); hub.add_tool(own)
            hub.add_provider(P("p")); hub.add_provider(P("p_NAME"))
            hub.add_run_kind("k", C, run); hub.add_run_kind("k_NAME", C, run)
            hub.add_operation(get)
        """
    host = make_host(plugin("b", both.replace("NAME", "b")), plugin("a", both.replace("NAME", "a")))
    a, b = host.plugins
    assert a.problems == []
    assert b.status == "on"
    assert b.problems == [
        "tool 'roll' is left out: the name is taken by 'a'",
        "provider 'p' is left out: the name is taken by 'a'",
        "run kind 'k' is left out: the name is taken by 'a'",
        "operation thing.get: taken by a (thing.get)",
    ]
    assert (b.provides.tools, b.provides.providers, b.provides.kinds) == (["own_b"], ["p_b"], ["k_b"])
    assert host.extensions.tools["roll"].origin == "a"
    assert host.extensions.tools["own_b"].origin == "b"


def test_the_second_of_two_entry_points_of_one_name_is_reported(plugin, make_host):
    first, second = plugin("dice", GOOD), plugin("dice", GOOD)
    host = make_host(first, second)
    assert [info.status for info in host.plugins] == ["on", "failed"]
    assert host.plugins[1].name == f"dice@{second.value}"
    assert "the name 'dice' is taken" in host.plugins[1].reason


@pytest.mark.parametrize("name", ["hub", "conv", "Dice", "a b"])
def test_a_name_that_cannot_be_a_plugins_is_refused(name, plugin, make_host):
    host = make_host(plugin(name, GOOD))
    assert "cannot be a plugin's name" in host.plugins[0].reason


def test_the_bundled_plugins_come_first(plugin, make_host):
    found = importlib.metadata.entry_points(group="sag", name="basics")
    host = make_host(plugin("aaa", GOOD), *found, tables={"basics": {"enabled": False}})
    assert [info.name for info in host.plugins] == ["basics", "aaa"]
    assert host.plugins[0].dist == "sag-hub"
    assert host.plugins[0].version


def test_a_plugin_that_is_disabled_is_not_imported(plugin, make_host):
    host = make_host(plugin("bad", "raise ValueError"), tables={"bad": {"enabled": False}})
    assert (host.plugins[0].status, host.plugins[0].reason) == ("off", "some/plugins.toml: [bad] enabled = false")


def test_enabled_may_come_from_the_environment_as_text(plugin, make_host):
    host = make_host(
        plugin("a", GOOD), plugin("b", GOOD), tables={"a": {"enabled": "false"}, "b": {"enabled": "maybe"}}
    )
    assert host.get("a").status == "off"
    assert host.get("b").reason.startswith("some/plugins.toml: [b] enabled: ")


def test_a_table_of_no_plugin_is_told_with_what_was_perhaps_meant(plugin, make_host):
    host = make_host(plugin("dice", GOOD), tables={"dcie": {}})
    assert host.problems == ["some/plugins.toml: [dcie] names no installed plugin; did you mean 'dice'?"]


# settings

SETTINGS = """
class Inner(Struct, frozen=True):
    port: int = 1
class Settings(Struct):
    key: str
    sides: int = 6
    inner: Inner = Inner()
seen = []
@hookimpl
def register(hub): seen.append((hub.settings, hub.env))
"""


def test_settings_arrive_decoded_and_text_from_the_environment_is_converted(plugin, make_host):
    ep = plugin("dice", SETTINGS)
    host = make_host(ep, tables={"dice": {"key": "k", "sides": "20", "inner": {"port": "8"}, "enabled": True}},
                     env={"X": "1"})  # fmt: skip
    assert host.plugins[0].status == "on"
    settings, env = sys.modules[ep.module].seen[0]
    assert (settings.key, settings.sides, settings.inner.port) == ("k", 20, 8)
    assert env == {"X": "1"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "some/plugins.toml: [dice] key: is required, str"),
        ({"key": "k", "sides": []}, "some/plugins.toml: [dice] sides: Expected `int`, got `array`"),
        ({"key": "k", "sides": "x"}, "some/plugins.toml: [dice] sides: Expected `int`, got `str`"),
        ({"key": "k", "inner": {"port": {}}}, "some/plugins.toml: [dice] inner.port: Expected `int`, got `object`"),
        ({"key": "k", "inner": 3}, "some/plugins.toml: [dice] inner: Expected `object`, got `int`"),
    ],
)
def test_a_fault_in_the_settings_names_the_file_the_key_and_what_was_expected(table, reason, plugin, make_host):
    host = make_host(plugin("dice", SETTINGS), tables={"dice": table})
    assert (host.plugins[0].status, host.plugins[0].reason) == ("failed", reason)


def test_a_table_that_is_none_is_told(plugin, make_host):
    host = make_host(plugin("dice", SETTINGS), tables={"dice": 3})
    assert host.plugins[0].reason == "some/plugins.toml: dice has to be a table, [dice]"


def test_a_setting_that_is_not_known_is_a_problem_with_a_suggestion(plugin, make_host):
    host = make_host(plugin("dice", SETTINGS), tables={"dice": {"key": "k", "sdies": 3}})
    assert host.plugins[0].status == "on"
    assert host.plugins[0].problems == [
        "some/plugins.toml: [dice] sdies: there is no such setting; did you mean 'sides'?"
    ]


def test_a_plugin_without_settings_is_given_its_table(plugin, make_host):
    ep = plugin("dice", "seen = []\n@hookimpl\ndef register(hub): seen.append(hub.settings)")
    make_host(ep, tables={"dice": {"a": 1, "enabled": True}})
    assert sys.modules[ep.module].seen == [{"a": 1}]


def test_what_register_returns_is_told_and_ignored(plugin, make_host):
    host = make_host(plugin("dice", GOOD + "    return 3\n"))
    assert (host.plugins[0].status, host.plugins[0].problems) == (
        "on",
        ["register returned int; nothing is done with it"],
    )


def test_an_optional_hook_that_this_hub_does_not_know_is_let_pass(plugin, make_host):
    host = make_host(plugin("dice", GOOD + "@hookimpl(optionalhook=True)\nasync def later(hub): ...\n"))
    assert host.plugins[0].status == "on"


def test_hooks_may_be_methods_of_an_object_and_leave_out_the_hub(plugin, make_host):
    source = """
        class Plugin:
            seen = 0
            @hookimpl
            def register(self): Plugin.seen += 1
        plugin = Plugin()
        """
    ep = plugin("dice", source, attribute="plugin")
    assert make_host(ep).plugins[0].status == "on"
    assert sys.modules[ep.module].Plugin.seen == 1


def test_the_hubs_own_events_cannot_be_replaced(plugin, make_host):
    own = EVENTS["conv"]["delta"] if "delta" in EVENTS["conv"] else EVENTS["conv"]["run.open"]
    host = make_host(
        plugin("dice", "@event('conv', 'run.open')\nclass Mine(Event): ...\n@hookimpl\ndef register(hub): ...")
    )
    assert EVENTS["conv"][own.NAME] is own
    assert host.plugins[0].problems == ["event 'run.open' is left out: 'conv' is a family of the hub's own"]


TOPIC = """
@event("dice", "rolled")
class Rolled(Event):
    sides: int
def fold(state, name, d):
    state["all"].append(d["sides"] // (d["sides"] - 13))
@hookimpl
def register(hub): hub.add_topic({"all": []}, fold, [Rolled])
"""


def test_a_family_of_topics_folds_and_a_fold_that_raises_is_a_problem(plugin, make_host):
    host = make_host(plugin("dice", TOPIC))
    one, other = host.families["dice"]("a"), host.families["dice"]("b")
    one.fold("rolled", {"sides": 14})
    one.fold("rolled", {"sides": 13})
    assert (one.state, other.state) == ({"all": [14]}, {"all": []})
    assert host.plugins[0].problems == ["fold of 'rolled': ZeroDivisionError: integer division or modulo by zero"]
    assert list(EVENTS["dice"]) == ["rolled"]


# while the hub runs

LIVE = """
import asyncio
seen = []
@tool
def roll() -> int:
    "Roll."
@operation("dice.get", who="user")
async def get(call, params: Params) -> int:
    return 1
@hookimpl
def register(hub): hub.add_tool(roll); hub.add_operation(get)
@hookimpl
async def startup(hub):
    seen.append("up NAME")
    BODY
@hookimpl
async def shutdown(hub):
    seen.append("down NAME")
    BODY_DOWN
"""


def live(body: str = "...", down: str = "...", name: str = "") -> str:
    return LIVE.replace("BODY_DOWN", down).replace("BODY", body).replace("NAME", name)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no')", "startup: ValueError: no"),
        ("raise SystemExit(2)", "startup: SystemExit: 2"),
        ("raise KeyboardInterrupt", "startup: KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "startup: CancelledError"),
        ("await asyncio.Event().wait()", "startup took more than 0.2 s"),
        ("asyncio.current_task().cancel(); await asyncio.sleep(0)", "startup: CancelledError"),
    ],
)
async def test_a_startup_that_fails_withdraws_what_the_plugin_brought_and_the_others_run(
    body, reason, plugin, make_host
):
    told: list[PluginInfo] = []
    other = live().replace("def roll", "def other").replace("(roll)", "(other)").replace("dice.get", "other.get")
    host = make_host(plugin("dice", live(body)), plugin("other", other), plugin_s=0.2, on_change=told.append)
    host.connect(FakeServices())
    async with asyncio.timeout(5):
        await host.startup()
    info = host.get("dice")
    assert (info.status, info.reason) == ("failed", reason)
    assert list(host.extensions.tools) == ["other"]
    await asyncio.sleep(0)
    assert told == [info]
    dispatcher = Dispatcher(host.registry, None, lambda: None)  # type: ignore[arg-type]
    call = Call(User("u", "U"), begin=lambda: None)
    with pytest.raises(Fault) as raised:
        await dispatcher.call(call, host.registry.get("dice.get"), b"")
    assert (raised.value.kind, raised.value.status) == ("plugin.failed", 503)
    assert (await dispatcher.call(call, host.registry.get("other.get"), b""))[1] == b"1"
    await host.shutdown()


async def test_a_startup_that_catches_its_cancellation_is_abandoned(plugin, make_host):
    body = """
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0.5)
    """
    host = make_host(plugin("dice", live(body)), plugin_s=0.1)
    host.connect(FakeServices())
    async with asyncio.timeout(0.4):
        await host.startup()
    assert host.get("dice").reason == "startup took more than 0.1 s"


async def test_hooks_are_called_in_the_order_of_plugins_toml_and_backwards_at_the_end(plugin, make_host):
    eps = {name: plugin(name, live(name=name).replace("dice.get", f"{name}.get")) for name in ("a", "b", "c")}
    host = make_host(*eps.values(), tables={"c": {}, "a": {}})
    shared: list[str] = []
    for ep in eps.values():
        sys.modules[ep.module].seen = shared  # type: ignore[attr-defined]
    host.connect(FakeServices())
    await host.startup()
    await host.shutdown()
    assert shared == ["up c", "up a", "up b", "down b", "down a", "down c"]


async def test_a_shutdown_that_hangs_or_raises_does_not_hold_up_the_end(plugin, make_host):
    a = plugin("a", live(down="await asyncio.Event().wait()"))
    b = plugin("b", live(down="raise SystemExit").replace("dice.get", "b.get"))
    host = make_host(a, b, plugin_s=0.1)
    host.connect(FakeServices())
    await host.startup()
    async with asyncio.timeout(2):
        await host.shutdown()
    assert host.get("a").reason == "shutdown took more than 0.1 s"
    assert host.get("b").reason == "shutdown: SystemExit"


async def test_a_plugin_that_failed_can_use_the_hub_no_longer(plugin, make_host):
    ep = plugin("dice", "kept = []\n@hookimpl\ndef register(hub): kept.append(hub)")
    host = make_host(ep)
    host.connect(FakeServices())
    await host.startup()
    hub = sys.modules[ep.module].kept[0]
    task = hub.spawn(asyncio.Event().wait())
    host.fail("dice", "because")
    host.fail("dice", "again")
    with pytest.raises(RuntimeError, match="not after the plugin is off"):
        await hub.kv.get("x")
    await asyncio.wait([task], timeout=1)
    assert task.done()
    assert host.get("dice").reason == "because"


def test_every_fault_is_in_the_log(plugin, make_host, caplog):
    with caplog.at_level(logging.WARNING, "sag.hooks"):
        make_host(plugin("bad", "raise ValueError('why')"))
    assert "plugin bad is switched off: import: ValueError: why" in caplog.text


def test_the_installed_entry_points_are_found_where_none_are_given(make_host, monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [EntryPoint("dice", "no_such_plugin_x", group)]
    )
    host = make_host()
    host._entry_points = None
    host.load()
    assert host.get("dice").reason.startswith("import: ModuleNotFoundError")
