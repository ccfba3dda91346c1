"""A provider without a model: replies from a script, offline, so that a fresh hub can be tried, shown and tested."""

from __future__ import annotations

from sag.plugin import Hub, hookimpl
from sag_demo.provider import DemoProvider, Settings


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Add the provider `demo`; SAG_DEMO_TOKEN_MS in the environment wins over plugins.toml."""
    token_ms = hub.settings.token_ms
    if text := hub.env.get("SAG_DEMO_TOKEN_MS"):
        try:
            token_ms = max(0.0, float(text))
        except ValueError:
            hub.note(f"SAG_DEMO_TOKEN_MS is no number: {text!r}")
    hub.add_provider(DemoProvider(token_ms))
