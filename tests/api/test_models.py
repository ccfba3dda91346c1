"""Models as clients find, pick and check them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sag.api.models import SHOWN
from sag.app import differences
from sag.errors import Fault
from sag.hooks.provider import Model, ModelRequest, Price, ProviderError
from sag.schema.merge import merge_patch
from sag.testing.provider import ScriptedProvider
from tests.api.conftest import Shop


class Vendor(Shop):
    """A provider that can be asked, and that refuses a temperature."""

    async def list_models(self, http: Any) -> Sequence[Model]:
        return self.known

    def check(self, request: ModelRequest) -> None:
        if request.model not in [m.id for m in self.known]:
            raise ProviderError("provider.refused", f"There is no model {request.model}.")
        if request.temperature is not None:
            raise ProviderError("provider.refused", "This model takes no temperature.")

    async def generation(self, http: Any, id: str) -> dict[str, Any] | None:
        return {"id": id, "total_cost": 0.25} if id == "gen-1" else None


def no_demo(house: Any) -> None:
    """Leave the test's own providers alone."""
    for name in list(house.app.extensions.providers):
        if name not in ("shop", "store"):
            house.app.extensions.drop_provider(name)


async def names(house: Any, query: str = "", user: str = "") -> list[str]:
    status, found = await house.rest(f"/api/models?{query}", user)
    assert status == 200, found
    return [m["model"].partition("/")[2] for m in found["models"]]


async def test_a_model_is_listed_with_all_that_is_known_of_it(open_house: Any) -> None:
    async with open_house() as house, house.enter("ada") as ada:
        no_demo(house)
        found = await ada.call("model.list")
        assert (200, found) == await house.rest("/api/models", "ada")
        assert found["total"] == 5
        assert found["models"][0] == {
            "model": "shop/m", "provider": "shop", "label": "Middle", "context": 128_000,
            "abilities": ["tools", "images"], "price": {"input": 3, "output": 15}, "default": True,
        }  # fmt: skip
        assert found["models"][1] == {
            "model": "shop/small", "provider": "shop", "label": "small", "author": "Acme", "context": 8_000,
            "abilities": ["tools"], "price": {"input": 0.25, "output": 1}, "created": 100,
        }  # fmt: skip
        assert found["models"][4] == {"model": "shop/dark", "provider": "shop", "label": "dark"}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["m", "small", "gift", "huge", "dark"]),
        ("q=GIFT", ["gift"]),
        ("q=shop+acme", ["small", "gift"]),
        ("q=mid", ["m"]),
        ("q=nothing", []),
        ("provider=shop", ["m", "small", "gift", "huge", "dark"]),
        ("provider=other", []),
        ("author=Acme", ["small", "gift"]),
        ("author=shop", ["m", "huge", "dark"]),
        ("ability=tools", ["m", "small", "huge"]),
        ("ability=tools&ability=images", ["m"]),
        ("ability=tools,reasoning", ["huge"]),
        ("ability=", ["m", "small", "gift", "huge", "dark"]),
        ("min_context=32768", ["m", "gift", "huge"]),
        ("max_price=0.25", ["small", "gift"]),
        ("free=true", ["gift"]),
        ("free=false", ["m", "small", "huge"]),
        ("sort=name", ["gift", "dark", "huge", "m", "small"]),
        ("sort=price", ["gift", "small", "m", "huge", "dark"]),
        ("sort=context", ["huge", "m", "gift", "small", "dark"]),
        ("sort=newest", ["gift", "huge", "small", "dark", "m"]),
        ("sort=price&ability=tools&limit=1&offset=1", ["m"]),
        ("limit=2", ["m", "small"]),
        ("offset=4", ["dark"]),
        ("offset=9", []),
    ],
)
async def test_models_are_found_by_what_is_asked_for(open_house: Any, query: str, found: list[str]) -> None:
    async with open_house() as house:
        no_demo(house)
        assert await names(house, query) == found


async def test_a_page_tells_how_many_there_are(open_house: Any) -> None:
    async with open_house() as house, house.enter() as client:
        no_demo(house)
        page = await client.call("model.list", {"ability": ["tools"], "limit": 2})
        assert ([m["model"] for m in page["models"]], page["total"]) == (["shop/m", "shop/small"], 3)


async def test_the_default_comes_first_unless_an_order_is_asked_for(open_house: Any) -> None:
    first = Shop(name="store", models=[Model("a"), Model("b")])
    async with open_house(first, Shop()) as house:
        no_demo(house)
        assert await names(house) == ["m", "a", "b", "small", "gift", "huge", "dark"]
        assert (await names(house, "sort=name"))[:3] == ["a", "gift", "b"]


@pytest.mark.parametrize("query", ["ability=flight", "sort=size", "limit=2001", "limit=0", "min_context=big", "free=5"])
async def test_a_filter_that_does_not_fit_is_refused(open_house: Any, query: str) -> None:
    async with open_house() as house:
        for path in ("/api/models", "/api/models/metadata"):
            if path == "/api/models" or query.partition("=")[0] not in ("sort", "limit"):
                status, told = await house.rest(f"{path}?{query}")
                assert (status, told["error"]["data"]["kind"]) == (400, "rpc.params")
                assert told["error"]["data"]["path"].startswith(f"$.{query.partition('=')[0]}")


async def test_facets_count_what_can_be_picked(open_house: Any) -> None:
    async with open_house() as house, house.enter("ada") as ada:
        no_demo(house)
        found = await ada.call("model.facets")
        assert (200, found) == await house.rest("/api/models/metadata", "ada")
        assert found == {
            "total": 5,
            "providers": {"shop": 5},
            "authors": {"shop": 3, "Acme": 2},
            "abilities": {"tools": 3, "images": 1, "reasoning": 1},
            "context": {
                "0": 1, "16000": 0, "32000": 1, "64000": 0, "128000": 1, "200000": 0, "1000000": 1, "unknown": 1
            },
            "price": {"0": 1, "0.25": 1, "1": 0, "3": 1, "10": 0, "more": 1, "unknown": 1},
        }  # fmt: skip
        _, some = await house.rest("/api/models/metadata?ability=tools&max_price=3")
        assert (some["total"], some["authors"]) == (2, {"Acme": 1, "shop": 1})
        assert sum(some["price"].values()) == sum(some["context"].values()) == 2


async def test_each_bucket_is_what_its_filter_finds(open_house: Any) -> None:
    async with open_house() as house:
        no_demo(house)
        _, facets = await house.rest("/api/models/metadata")
        lows = [k for k in facets["context"] if k != "unknown"]
        for i, low in enumerate(lows):
            assert len(await names(house, f"min_context={low}")) == sum(facets["context"][k] for k in lows[i:])
        highs = [k for k in facets["price"] if k not in ("more", "unknown")]
        for i, high in enumerate(highs):
            assert len(await names(house, f"max_price={high}")) == sum(facets["price"][k] for k in highs[: i + 1])


async def test_a_model_is_checked_with_its_config(open_house: Any) -> None:
    async with open_house(Vendor()) as house, house.enter("ada") as ada:
        assert await ada.call("model.check", {"model": "shop/m"}) == {"ok": True}
        unknown = await ada.call("model.check", {"model": "nobody/m"})
        assert (unknown["ok"], unknown["kind"]) == (False, "model.unknown")
        missing = await ada.call("model.check", {"model": "shop/no-such"})
        assert missing == {"ok": False, "kind": "provider.refused", "message": "There is no model no-such."}
        status, hot = await house.rest("/api/models/check", "ada", {"model": "shop/m", "config": {"temperature": 1}})
        assert (status, hot["message"]) == (200, "This model takes no temperature.")
        status, told = await house.rest("/api/models/check", "ada", {"model": "shop/m", "config": {"temperature": 9}})
        assert (status, told["error"]["data"]["path"]) == (400, "$.config.temperature")


async def test_a_vendors_record_of_an_answer_is_told_as_it_is(open_house: Any) -> None:
    async with open_house(Vendor()) as house, house.enter("ada") as ada:
        record = {"id": "gen-1", "total_cost": 0.25}
        assert await ada.call("model.generation", {"id": "gen-1"}) == record
        assert await house.rest("/api/chat/generation/gen-1?provider=shop", "ada") == (200, record)
        for path in ("gen-2", "gen-1?provider=demo"):
            status, told = await house.rest(f"/api/chat/generation/{path}", "ada")
            assert (status, told["error"]["data"]["kind"]) == (404, "generation.unknown")


async def test_nobody_sees_models_before_signing_in(open_house: Any) -> None:
    async with open_house(auth="required") as house:
        for path in ("models", "models/metadata", "chat/generation/x", "usage"):
            status, told = await house.rest(f"/api/{path}")
            assert (status, told["error"]["data"]["kind"]) == (401, "auth.required")


async def test_the_hub_topic_holds_few_of_many_models_and_the_list_has_all(open_house: Any) -> None:
    many = [Model(f"m{n}", default=n == 1499) for n in range(1500)]
    config = '[models."shop/m1498"]\nlabel = "Mine"'
    store = Shop(name="store", models=[Model(f"s{n}") for n in range(100)])
    async with open_house(Shop(models=many), store, config=config) as house, house.enter() as client:
        no_demo(house)
        house.app._announce()
        topic = await client.subscribe("hub")
        await topic.until(lambda state: "shop/m0" in state["models"] and not any("demo" in m for m in state["models"]))
        shown = topic.state["models"]
        assert len(shown) == SHOWN
        assert shown["shop/m1499"]["default"] is True
        assert shown["shop/m1498"]["label"] == "Mine"
        assert sum(name.startswith("store/") for name in shown) == 100
        listed = await client.call("model.list", {"limit": 2000})
        assert (len(listed["models"]), listed["total"]) == (1600, 1600)
        assert (await client.call("model.list"))["total"] == 1600


async def test_what_is_no_longer_known_of_a_model_leaves_the_hub_topic(open_house: Any) -> None:
    shop = Shop(models=[Model("m", price=Price(1, 2, cached=0.5), context=5)])
    async with open_house(shop) as house, house.enter() as client:
        topic = await client.subscribe("hub")
        await topic.until(lambda state: state["models"].get("shop/m", {}).get("price", {}).get("cached") == 0.5)
        house.app.extensions.set_models("shop", [Model("m", price=Price(3, 4))])
        house.app._announce()
        await topic.until(lambda state: state["models"]["shop/m"].get("price") == {"input": 3, "output": 4})
        assert "context" not in topic.state["models"]["shop/m"]
        head = topic.off
        house.app._announce()
        await house.app._announcing
        assert (await house.app.topics.get("", "hub")).tip == head


def test_differences_leave_nothing_of_what_was() -> None:
    was = {"a": {"x": 1, "deep": {"p": 1, "q": 2}}, "b": {"x": 1}, "c": {"x": {"y": 1}}}
    wanted = {"a": {"x": 1, "deep": {"p": 3}}, "c": {"x": 5}, "d": {"x": None, "deep": {"n": None, "m": 1}}}
    made: Any = dict(was)
    for id, patch in differences(was, wanted).items():
        if patch is None:
            del made[id]
        else:
            made[id] = merge_patch(made.get(id, {}), patch)
    assert made == {"a": {"x": 1, "deep": {"p": 3}}, "c": {"x": 5}, "d": {"deep": {"m": 1}}}
    assert differences(made, wanted) == {}


async def test_a_provider_that_cannot_be_asked_is_no_fault_of_the_model(open_house: Any) -> None:
    async with open_house(ScriptedProvider()) as house, house.enter() as client:
        assert await client.call("model.check", {"model": "script/m"}) == {"ok": True}
        with pytest.raises(Fault, match="provider"):
            await client.call("model.generation", {"id": "gen-1"})
