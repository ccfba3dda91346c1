"""The time anywhere, and a countdown."""

from __future__ import annotations

import asyncio
import difflib
import functools
import time
import zoneinfo
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import Meta

from sag.plugin import ToolContext, ToolError, tool

STEP_S = 0.25


class Clock:
    """Tells the time.

    Args:
        zone: The zone where none is asked for; the machine's own where it is empty.
        now: Gives the present moment, with a zone.
    """

    def __init__(self, zone: str = "", now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._zone, self._now = zone, now

    def tell(
        self,
        zone: Annotated[
            str,
            Meta(
                max_length=64,
                description="An IANA time zone such as Europe/Paris, or the city that names one, such as Paris. "
                "Leave it out for the user's own zone.",
            ),
        ]
        | None = None,
    ) -> dict[str, Any]:
        """Tell the current date and time, in the user's time zone or in another one.

        Use it whenever an answer depends on what day or time it is; do not guess.
        """
        name = zone or self._zone
        now = self._now().astimezone(find_zone(name) if name else None)
        offset = now.strftime("%z")
        return {
            "zone": str(now.tzinfo),
            "time": now.isoformat(timespec="seconds"),
            "weekday": now.strftime("%A"),
            "week": now.isocalendar().week,
            "utc_offset": f"{offset[:3]}:{offset[3:5]}",
        }


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """A time zone by its name or by its city.

    Raises:
        ToolError: There is none, or there are several; the text names what was perhaps meant.
    """
    names, cities = _zones()
    wanted = name.strip().replace(" ", "_").lower()
    if found := names.get(wanted):
        return zoneinfo.ZoneInfo(found)
    of_city = cities.get(wanted, [])
    if len(of_city) == 1:
        return zoneinfo.ZoneInfo(of_city[0])
    if not names:
        raise ToolError("This machine has no time zone data; install the package tzdata.")
    close = of_city or [names[n] for n in difflib.get_close_matches(wanted, names, 3, 0.7)]
    if not close:
        close = [cities[c][0] for c in difflib.get_close_matches(wanted, cities, 3, 0.7)]
    hint = f"did you mean {', '.join(close)}?" if close else "give an IANA name such as Europe/Paris or Asia/Tokyo."
    raise ToolError(f"There is no time zone {name!r}; {hint}")


@functools.cache
def _zones() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The zones by their names, and by the cities that end them, in lower case. Reading them takes some 20 ms."""
    # The system's `posix/`, `right/` and `Etc/` trees repeat zones under other names, or reverse the offset's sign.
    names = sorted(n for n in zoneinfo.available_timezones() if not n.startswith(("posix", "right", "SystemV")))
    cities: dict[str, list[str]] = {}
    for name in names:
        if "/" in name and not name.startswith("Etc/"):
            cities.setdefault(name.rpartition("/")[2].lower(), []).append(name)
    return {name.lower(): name for name in names}, cities


@tool(risk="read", timeout_s=3700)
async def countdown(
    seconds: Annotated[int, Meta(ge=1, le=3600, description="How many seconds to count, 1 to 3600.")],
    *,
    ctx: ToolContext,
) -> str:
    """Count down a number of seconds, shown live to the user, and return when the time is up.

    The conversation waits meanwhile, and the user can stop it.
    """
    return await count(seconds, ctx)


async def count(
    seconds: float,
    ctx: ToolContext,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> str:
    """Count, telling progress at least every quarter of a second.

    Raises:
        ToolError: The call was cancelled.
    """
    start = clock()
    while (done := clock() - start) < seconds:
        if ctx.cancelled:
            raise ToolError("The countdown was stopped.")
        left = seconds - done
        await ctx.progress(round(done, 2), seconds, f"{_in_words(left)} left")
        await sleep(min(STEP_S, left))
    await ctx.progress(seconds, seconds, "time is up")
    return f"The countdown of {_in_words(seconds)} is over."


def _in_words(seconds: float) -> str:
    whole = max(1, round(seconds + 0.49)) if seconds > 0 else 0
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
