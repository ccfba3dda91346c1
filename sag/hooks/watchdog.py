"""The watchdog: notices that the event loop stands still, and says in whose code (RELIABILITY F42).

A thread asks the loop for a sign of life again and again; where none comes in time it looks at the stack of the
loop's thread. It only tells: a plugin that spins cannot be stopped from outside without harm to the rest. Above: the
composition root. Below: nothing of the hub.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

log = logging.getLogger("sag.hooks.watchdog")

Owner = Callable[[str], str | None]
Report = Callable[[str | None, str], None]

SLACK_S = 0.5
"""How much later than asked a wait may end before the process, and not the loop alone, is taken to have stood still."""


class Watchdog:
    """Watches one event loop.

    Args:
        owner: The plugin that a module belongs to, or None (`PluginHost.owner`).
        report: Called in the watchdog's thread, once a stall, with the plugin, if one is on the stack, and a line
            that says how long and where (`PluginHost.stalled`).
        limit_s: How long the loop may leave a sign of life unanswered.
        every_s: How long to rest after an answer.
    """

    def __init__(self, owner: Owner, report: Report, *, limit_s: float = 1.0, every_s: float = 0.25) -> None:
        self._owner, self._report = owner, report
        self._limit_s, self._every_s = limit_s, every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch the running loop. Called in its thread."""
        args = (asyncio.get_running_loop(), threading.get_ident())
        self._thread = threading.Thread(target=self._watch, args=args, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; takes 0.05 s, or as long as a report takes."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._limit_s + 1)

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        while not self._stop.wait(self._every_s):
            answered = threading.Event()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop has closed
                return
            asked = time.monotonic()
            if self._wait(answered) or self._stop.is_set():
                continue
            # A machine that slept, or code that held the interpreter's lock, delays this thread as well. The loop is
            # given a second chance then, and nobody is blamed: the stack of that moment is gone.
            if time.monotonic() - asked > self._limit_s + SLACK_S and self._wait(answered):
                log.warning(
                    "the whole process stood still for %.1f s: it was suspended, or native code held the lock",
                    time.monotonic() - asked,
                )
                continue
            self._tell(sys._current_frames().get(ident), asked)
            while not answered.wait(self._every_s) and not self._stop.is_set():
                if loop.is_closed():
                    return
            log.warning("the event loop goes on after %.1f s", time.monotonic() - asked)

    def _wait(self, answered: threading.Event) -> bool:
        """Whether an answer comes in time; False too when the watchdog is to end."""
        until = time.monotonic() + self._limit_s
        while not self._stop.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return answered.is_set()
            if answered.wait(min(left, 0.05)):  # short, so that `stop`, called by the loop, need not wait long
                return True
        return False

    def _tell(self, frame: FrameType | None, asked: float) -> None:
        plugin, place = self._blame(frame)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(the stack is gone)\n"
        text = f"held the event loop for more than {self._limit_s:g} s{place}"
        log.error("%s %s\n%s", f"plugin {plugin}" if plugin else "something in the hub", text, stack)
        try:
            self._report(plugin, text)
        except Exception:
            log.exception("the report of a stall failed")

    def _blame(self, frame: FrameType | None) -> tuple[str | None, str]:
        """The plugin whose code is innermost on a stack, and where that is."""
        while frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            plugin = self._owner(module)
            if plugin is not None:
                return plugin, f" in {frame.f_code.co_qualname} ({module}, line {frame.f_lineno})"
            frame = frame.f_back
        return None, ""
