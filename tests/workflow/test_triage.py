"""Triage: who is asked, with which prompt, model and tools, and how the floor goes from one to another."""

from __future__ import annotations

import asyncio
from typing import Any

from sag.plugin import ToolContext, tool
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider, call, say
from tests.harness import Client, check_state, until
from tests.workflow.play import SPECIALISTS, Play, asked, hand

Json = dict[str, Any]


@tool(risk="read")
async def find_invoice(number: int, *, ctx: ToolContext) -> str:
    """Find an invoice."""
    return f"Invoice {number} is about a trip."


@tool(risk="read")
async def weather(*, ctx: ToolContext) -> str:
    """Tell the weather."""
    return "Rain."


def hub_of(*models: ScriptedProvider, agents: Json = SPECIALISTS) -> Any:
    return running_hub(
        providers=models, tools=[find_invoice, weather], tables={"workflow": {"agents": agents}}, tick_ms=0
    )


def offers(request: Any) -> list[str]:
    return [spec.name for spec in request.tools]


async def test_a_request_goes_to_a_specialist_back_and_on_and_two_devices_see_the_same() -> None:
    goes_on = asyncio.Event()
    play = Play(
        {
            "triage": [call(hand("billing", "Invoice 7.")), call(hand("travel", "Change the trip."), text="On it.")],
            "billing": [
                [goes_on, *call(("find_invoice", {"number": 7}))],
                call(hand("triage", "It is a trip."), text="Invoice 7 is a trip."),
            ],
        }
    )
    other = Play({"travel": [say("The trip is ", "changed.")]}, name="other")
    async with hub_of(play, other) as hub, Client(hub.url, "desk") as desk:
        phone = Client(hub.url, "phone").keep()
        started, view = await desk.say("Change invoice 7", kind="triage", config={"system": "Be brief."})
        await phone.online.wait()
        seen = await phone.follow(view.topic)
        await until(lambda: play.of("billing"), "the specialist")
        phone.cut()
        await phone.closed()
        goes_on.set()
        await desk.done(view, started["run"])
        await until(lambda: seen.run(started["run"]).get("status") == "done", "the phone is back")
        assert phone.connects == 2
        state = await check_state(hub.url, view.topic, view, seen)
        told = [(e["e"], e["d"]["agent"]) for e in view.events if e["e"] in ("agent.open", "agent.close")]
        agents = ["triage", "billing", "triage", "travel"]
        assert told == [(e, agent) for agent in agents for e in ("agent.open", "agent.close")]
        object = state["runs"][started["run"]]
        assert object["agents"] == dict.fromkeys(agents, "closed")
        assert object["titles"] == {"triage": "Triage", "billing": "Billing", "travel": "Travel"}
        assert view.text(started["run"]).endswith("The trip is changed.")
        assert [m.get("agent") for m in state["messages"]] == [None, "triage", "billing", "billing", "triage", "travel"]
        assert [t["name"] for t in state["tools"].values()] == ["hand_over", "find_invoice", "hand_over", "hand_over"]
        await phone.close()
    first, back = play.of("triage")
    assert first.messages[0].text.startswith("Be brief.\n\nYou receive requests")
    assert "- billing (Billing): invoices" in first.messages[0].text
    assert offers(first) == ["hand_over"]
    assert [m.role for m in first.messages] == ["system", "user"]
    assert "Billing has handed this over to you, with the note: It is a trip." in back.messages[0].text
    assert back.messages[-1].text == "Billing: Invoice 7 is a trip."
    billing = play.of("billing")[0]
    assert sorted(offers(billing)) == ["find_invoice", "hand_over"]
    assert "Triage has handed this over to you, with the note: Invoice 7." in billing.messages[0].text
    (travel,) = other.requests
    assert "Trips are booked by train." in travel.messages[0].text
    assert {"find_invoice", "weather"} <= set(offers(travel)), "without a list it has all tools"
    assert [m.text for m in travel.messages[1:]] == [
        "Change invoice 7",
        "Billing: Invoice 7 is a trip.",
        "Triage: On it.",
    ]


async def test_without_specialists_triage_answers_with_all_tools() -> None:
    model = ScriptedProvider(call(("weather", {})), say("It rains."))
    async with hub_of(model, agents={}) as hub, Client(hub.url) as client:
        started, view = await client.say("How is the weather?", kind="triage")
        await client.done(view, started["run"])
        assert view.text(started["run"]) == "It rains."
        assert [d["agent"] for d in view.named("agent.open")] == ["triage"]
    assert "weather" in offers(model.requests[0])
    assert "hand_over" not in offers(model.requests[0])


async def test_a_hand_over_to_nobody_is_read_and_mended() -> None:
    play = Play(
        {"triage": [call(hand("nobody")), call(hand("triage")), call(hand("stock"))], "stock": [say("Five are left.")]}
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("How many?", kind="triage")
        await client.done(view, started["run"])
        assert [t["status"] for t in view.has["tools"].values()] == ["invalid", "invalid", "ok"]
    assert play.of("stock")[0].temperature == 0.1
    assert "nobody" in play.of("triage")[1].messages[-1].text


async def test_hand_overs_without_end_are_bounded() -> None:
    play = Play({"triage": [call(hand("stock"))] * 9, "stock": [call(hand("triage"))] * 9})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("Who?", kind="triage", config={"max_handovers": 3})
        object = await client.done(view, started["run"], "limit")
        assert object["error"] == {
            "kind": "run.limit",
            "message": "The run was handed over more than 3 times.",
            "retry": False,
        }
    assert [asked(request) for request in play.requests] == ["triage", "stock", "triage", "stock"]


async def test_the_next_message_goes_to_triage_unless_the_last_is_to_hear_it() -> None:
    play = Play(
        {
            "triage": [call(hand("stock")), say("Anything else?")],
            "stock": [say("Five."), say("Of wood.")],
        }
    )
    async with hub_of(play) as hub, Client(hub.url) as client:
        first, view = await client.say("How many?", kind="triage")
        await client.done(view, first["run"])
        last, _ = await client.say("Of what?", first["conv"], config={"follow_up": "last"})
        await client.done(view, last["run"])
        anew, _ = await client.say("Thanks", first["conv"])
        await client.done(view, anew["run"])
        texts = [view.text(run["run"]) for run in (first, last, anew)]
        assert texts == ["Five.", "Of wood.", "Anything else?"]
    assert [m.text for m in play.of("stock")[1].messages[1:]] == ["How many?", "Five.", "Of what?"]


async def test_a_model_that_is_patched_in_mid_run_is_asked_from_the_next_step_on() -> None:
    called = asyncio.Event()

    @tool(risk="read")
    async def slow(*, ctx: ToolContext) -> str:
        """Take some time."""
        called.set()
        await goes_on.wait()
        return "Done."

    goes_on = asyncio.Event()
    agents = {"stock": {"title": "Stock", "description": "what is in store", "tools": ["slow"]}}
    play = Play({"triage": [call(hand("stock"))], "stock": [call(("slow", {}))]})
    other = Play({"stock": [say("Five.")]}, name="other")
    async with (
        running_hub(providers=[play, other], tools=[slow], tables={"workflow": {"agents": agents}}) as hub,
        Client(hub.url) as client,
    ):
        started, view = await client.say("How many?", kind="triage")
        await called.wait()
        scope = f"run:{started['run']}"
        patch = {"agents": {"stock": {"model": "other/m", "temperature": 0.7, "system": "Count twice."}}}
        answer = await client.call("config.patch", scope=scope, patch=patch)
        assert answer["effective"]["agents"]["stock"] == {**agents["stock"], **patch["agents"]["stock"]}
        refused = await client.refused("config.patch", scope=scope, patch={"agents": {"stock": {"temperature": 3}}})
        assert (refused.kind, refused.data["path"]) == ("config.invalid", "$.agents[...].temperature")
        refused = await client.refused("config.patch", scope=scope, patch={"agents": {"triage": {}}})
        assert refused.kind == "config.invalid"
        goes_on.set()
        await client.done(view, started["run"])
        assert [d["model"] for d in view.named("step.open")] == ["script/m", "script/m", "other/m"]
    (last,) = other.requests
    assert last.temperature == 0.7
    assert "Count twice." in last.messages[0].text
    assert last.messages[-1].text == "Done."


async def test_a_specialist_that_is_patched_in_can_be_handed_to_and_one_of_the_file_stays() -> None:
    play = Play({"triage": [call(hand("legal"))], "legal": [say("It is allowed.")]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        config = {"agents": {"legal": {"title": "Legal", "description": "law"}, "stock": None}}
        started, view = await client.say("May I?", kind="triage", config=config)
        await client.done(view, started["run"])
    assert [spec.input["properties"]["agent"]["enum"] for spec in play.of("triage")[0].tools] == [
        ["billing", "stock", "travel", "legal"]
    ]


async def test_what_is_said_meanwhile_is_heard_by_whoever_has_the_floor() -> None:
    goes_on = asyncio.Event()
    play = Play({"triage": [call(hand("stock"))], "stock": [[*say("Five."), goes_on], say("Six with the new one.")]})
    async with hub_of(play) as hub, Client(hub.url) as client:
        started, view = await client.say("How many?", kind="triage")
        await until(lambda: "Five." in view.text(started["run"]), "the first answer")
        await client.say("One has just come", started["conv"], when="steer")
        goes_on.set()
        await client.done(view, started["run"])
        assert view.text(started["run"]) == "Five.Six with the new one."
    assert play.of("stock")[1].messages[-1].text == "One has just come"


async def test_a_specialist_with_a_name_that_is_taken_switches_the_plugin_off_with_the_reason() -> None:
    async with hub_of(Play({}), agents={"triage": {}}) as hub, Client(hub.url) as client:
        plugins = (await client.call("plugin.list"))["plugins"]
        (info,) = [info for info in plugins if info["name"] == "workflow"]
        assert info["status"] != "on"
        assert "[workflow]" in str(info)
