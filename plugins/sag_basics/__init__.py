"""The tools that every assistant wants and no service is needed for: time, sums with units, a countdown, notes."""

from __future__ import annotations

from msgspec import Struct

from sag.plugin import Hub, hookimpl, tool
from sag_basics.calculator import calculate
from sag_basics.clock import Clock, countdown
from sag_basics.notes import NoteAdd, NoteDrop, Notes, fold


class Settings(Struct):
    """The table `[basics]` of plugins.toml.

    Attributes:
        zone: The time zone that `time_now` tells where none is asked for; the machine's own where it is empty.
    """

    zone: str = ""


@hookimpl
def register(hub: Hub[Settings]) -> None:
    """Add the tools, and the notes as an operation and a topic for frontends."""
    notes = Notes(hub)
    hub.add_tool(tool(name="time_now", risk="read", idempotent=True)(Clock(hub.settings.zone).tell))
    hub.add_tool(calculate)
    hub.add_tool(countdown)
    hub.add_tool(tool(name="note_add", risk="write")(notes.add))
    hub.add_tool(tool(name="note_list", risk="read", idempotent=True)(notes.list_all))
    hub.add_tool(tool(name="note_delete", risk="danger")(notes.delete))
    hub.add_operation(notes.answer_list)
    hub.add_topic({"notes": {}}, fold, [NoteAdd, NoteDrop])
