"""Operations on config: models that nobody serves are refused wherever a config names them."""

from __future__ import annotations

import pytest

from sag.errors import Fault
from sag.testing.hub import running_hub
from sag.testing.provider import ScriptedProvider


async def test_a_model_that_nobody_serves_is_refused_in_any_depth() -> None:
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client:
        input = [{"kind": "text", "text": "hi"}]
        for config, path in (
            ({"model": "nobody/m"}, "$.model"),
            ({"fallbacks": ["script/m", "nobody/m"]}, "$.fallbacks[1]"),
            ({"bots": {"b0": {"model": "script/m"}, "b1": {"model": "nobody/m"}}}, "$.bots.b1.model"),
        ):
            with pytest.raises(Fault) as refused:
                await client.call("run.start", {"kind": "dialogue", "input": input, "config": config})
            assert (refused.value.kind, refused.value.data["path"]) == ("config.invalid", path)


async def test_what_goes_to_a_vendor_and_a_devices_other_sections_name_models_of_their_own() -> None:
    async with running_hub(providers=[ScriptedProvider()]) as hub, hub.client() as client:
        await client.call("config.patch", {"scope": "client:desk", "patch": {"tts": {"model": "nobody/m"}}})
        with pytest.raises(Fault, match="nobody"):
            await client.call("config.patch", {"scope": "client:desk", "patch": {"llm": {"model": "nobody/m"}}})
        input = [{"kind": "text", "text": "hi"}]
        started = await client.call("run.start", {"input": input, "config": {"extra": {"model": "nobody/m"}}})
        assert started["state"] == "running"
