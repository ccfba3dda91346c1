"""The ways in which a run, or a part of its work, ends otherwise than by being done."""

EXITS = (SystemExit, KeyboardInterrupt)
"""What a plugin may raise, and must not reach the edge of a task: there it would end the hub's loop."""


class RunLimit(Exception):
    """A cap was reached: rounds, calls in a step, size of arguments, a budget. The run ends with `limit`."""


class RunEnded(Exception):
    """The run was closed from outside; whatever still works for it stops."""


class ToolLost(Exception):
    """The way to a tool broke; whether it did its work is not known."""
