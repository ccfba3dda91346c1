"""What both servers are made of: parameters of tools, how a tool is called, and how a server runs over stdio.

It owns the checking of dates and ids, the sharing of one connection, and the log, which goes to stderr because stdout
is the protocol. It knows no vendor. Each server is a process of its own that any MCP host can start; nothing of the hub
is imported here.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools.base import Tool
from mcp.types import ToolAnnotations
from pydantic import BeforeValidator, Field

from sag_resourcing.availability import Window
from sag_resourcing.results import By
from sag_resourcing.upstream import Call, Upstream, Vendor

LONGEST_DAYS = 366

Build = Callable[[Mapping[str, str]], MCPServer[None]]


def _read_day(given: object) -> object:
    if isinstance(given, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", given.strip()):
        return given.strip()
    raise ValueError("give a day as YYYY-MM-DD, such as 2026-09-14")


# Without the check a day such as "20260914" would be taken for seconds since 1970.
Start = Annotated[date, BeforeValidator(_read_day), Field(description="First day, YYYY-MM-DD, included")]
End = Annotated[date, BeforeValidator(_read_day), Field(description="Last day, YYYY-MM-DD, included")]
Id = Annotated[str, Field(pattern=r"^[0-9]{1,18}$", coerce_numbers_to_str=True)]
Ids = Annotated[list[Id] | None, Field(min_length=1, max_length=50)]
Limit = Annotated[int, Field(ge=1, le=1000, description="How many are listed at most; sums are over all")]
Query = Annotated[str | None, Field(max_length=200)]
ByWhat = Annotated[By, Field(description="`day`, `week` (Monday to Sunday), or `auto`: by day up to 14 days")]
MinFree = Annotated[float, Field(ge=0, description="Leave out people with fewer free hours in the window")]

READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True)


def read_window(start: date, end: date) -> Window:
    """The window of two days.

    Raises:
        ToolError: It ends before it starts, is longer than 366 days, or lies in another century.
    """
    if not 2000 <= start.year <= end.year <= 2100 and start <= end:
        raise ToolError(f"{start} to {end} is outside of the years 2000 to 2100.")
    if end < start:
        raise ToolError(f"end ({end}) is before start ({start}). Swap them.")
    if (end - start).days >= LONGEST_DAYS:
        raise ToolError(f"{start} to {end} is longer than {LONGEST_DAYS} days. Ask for a part at a time.")
    return Window(start, end)


class Connection:
    """Opens calls to a vendor, or says what is missing for that.

    Args:
        vendor: The vendor, or the text of what is wrong with its settings: the server runs all the same, so that a
            host can list its tools, and every call of a tool answers with that text.
        connect: Makes the connection.
    """

    def __init__(self, vendor: Vendor | str, connect: Callable[[Vendor], Upstream] = Upstream) -> None:
        self._fault = vendor if isinstance(vendor, str) else None
        self._upstream = None if isinstance(vendor, str) else connect(vendor)

    def open_call(self) -> Call:
        """The requests of one call of a tool.

        Raises:
            ToolError: Settings are missing or wrong.
        """
        if self._upstream is None:
            raise ToolError(self._fault or "")
        return self._upstream.open_call()

    @asynccontextmanager
    async def keep(self, _: MCPServer[None]) -> AsyncIterator[None]:
        """Close the connection when the server ends."""
        try:
            yield
        finally:
            if self._upstream is not None:
                await self._upstream.aclose()


def make_server(
    name: str, title: str, instructions: str, connection: Connection, tools: Mapping[str, Callable[..., Awaitable[Any]]]
) -> MCPServer[None]:
    """A server with read-only tools.

    Args:
        tools: By title; the name and the description are the function's, whose docstring is what a model reads.
    """
    return MCPServer(
        name,
        title,
        instructions=instructions,
        version=_version(),
        tools=[_make_tool(tool_title, function) for tool_title, function in tools.items()],
        log_level="INFO",
        lifespan=connection.keep,
    )


def _make_tool(title: str, function: Callable[..., Awaitable[Any]]) -> Tool:
    tool = Tool.from_function(
        function,
        title=title,
        description=inspect.getdoc(function),
        annotations=READ_ONLY,
        structured_output=True,
    )
    # By default an argument that the tool does not know is passed over; a misspelt filter would then not filter.
    accepted = tool.fn_metadata.arg_model
    tool.fn_metadata.arg_model = type(accepted.__name__, (accepted,), {"model_config": {"extra": "forbid"}})
    tool.parameters = tool.fn_metadata.arg_model.model_json_schema(by_alias=True)
    return tool


def serve(build: Build, description: str) -> None:
    """Run a server over stdio until stdin ends: what the console scripts do.

    Args:
        build: Makes the server from the environment.
        description: Says what is to be set, for `--help`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=_version())
    parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if sys.stdin.isatty():
        print("This is an MCP server: a host starts it and speaks with it over stdin. See --help.", file=sys.stderr)
    try:
        build(os.environ).run()
    except KeyboardInterrupt:
        sys.exit(130)


def _version() -> str:
    try:
        return version("sag-hub")
    except PackageNotFoundError:
        return "0"
