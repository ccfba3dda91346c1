"""Runs the servers for tests: as processes over stdio with the SDK's own client, or in memory on a still clock."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent

from sag_resourcing.upstream import Upstream, Vendor
from tests.resourcing.fakes import Json, productive, smartsheet

ERAS = ("legacy", "2026-07-28")
WEEK = {"start": "2026-09-14", "end": "2026-09-18"}
SCRIPTS = Path(sys.executable).parent


def productive_env(url: str, **more: str) -> dict[str, str]:
    return {
        "PRODUCTIVE_API_TOKEN": productive.TOKEN,
        "PRODUCTIVE_ORG_ID": productive.ORGANIZATION,
        "PRODUCTIVE_BASE_URL": url,
    } | more


def smartsheet_env(url: str, **more: str) -> dict[str, str]:
    return {"SMARTSHEET_RM_API_TOKEN": smartsheet.TOKEN, "SMARTSHEET_RM_BASE_URL": url} | more


@asynccontextmanager
async def over_stdio(script: str, env: dict[str, str], mode: str, log: Path) -> AsyncIterator[Client]:
    """A server's process and a client of it. To be entered and left inside of a test, not in a fixture.

    Args:
        mode: Which revision the client speaks: `legacy` is the handshake, else a date.
        log: Where the server's stderr goes.
    """
    server = StdioServerParameters(command=str(SCRIPTS / script), env=env)
    with log.open("a") as errlog:
        async with Client(stdio_client(server, errlog=errlog), mode=mode, read_timeout_seconds=30) as client:
            yield client


class Clock:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 1_800_000_000.0, list[float]()

    def read(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds

    def connect(self, vendor: Vendor) -> Upstream:
        return Upstream(vendor, now=self.read, sleep=self.sleep)


async def ask(client: Client, tool: str, **arguments: Any) -> Json:
    """What a tool answers; that its text says the same is looked at here for all tests."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, said(result)
    found: Json | None = result.structured_content
    assert found is not None
    assert json.loads(said(result)) == found
    return found


async def fail(client: Client, tool: str, **arguments: Any) -> str:
    """What a tool says that fails."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    return said(result)


def said(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def hours(amounts: Json) -> tuple[float, ...]:
    """Capacity, holiday, absence, booked, tentative, free, overbooked; those left out are zero."""
    names = ("capacity", "holiday", "absence", "booked", "tentative", "free", "overbooked")
    return tuple(amounts.get(name, 0) for name in names)


def by_name(result: Json) -> dict[str, Json]:
    """The people of an availability."""
    return {person["name"]: person for person in result["people"]}
