"""The hooks that a plugin may implement. Each has its spec here; the host calls each implementation by itself."""

from __future__ import annotations

from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("sag")
hookimpl = pluggy.HookimplMarker("sag")


class Hooks:
    """Hook specifications."""

    @hookspec
    def register(self, hub: Any) -> None:
        """Called once at start, not async: `hub.add_tool`, `hub.add_provider` and their like."""

    @hookspec
    async def startup(self, hub: Any) -> None:
        """Called when the hub runs and before it serves, with a time limit."""

    @hookspec
    async def shutdown(self, hub: Any) -> None:
        """Called when the hub goes down, with a time limit."""
