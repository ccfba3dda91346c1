"""What is known of an MCP server before it is connected to: from plugins.toml, or from whoever connected it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from sag.plugin import Policy, Secret

Json = dict[str, Any]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class ServerSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """A table `[mcp.servers.<name>]` of plugins.toml. Either `command` or `url` is needed.

    Attributes:
        title: What people call it; its own title where left out.
        command: The program and its arguments, for a server that speaks over its standard input and output.
        env: Its environment, besides PATH, HOME and their like; nothing else of the hub's reaches it.
        cwd: The folder that it starts in; a relative one counts from the hub's working folder.
        url: Its address, for a server that is reached over HTTP.
        transport: `http` (streamable HTTP), `sse` (the older way), or `auto`, which tries them in this order.
        headers: Sent with each request.
        client_id, client_secret: Of this hub at the server's authorization server, where it was registered there by
            hand; else it registers by itself.
        enabled: Whether it is connected to at all.
        lazy: Start it when a run needs it; its tools are known from the last time.
        era: `auto`; `handshake` for servers that answer the newer protocol wrongly; `stateless` for none but that.
        policy: What becomes of calls of its tools unless a person decided otherwise; by their risk where left out.
        tools: Which of its tools are offered, by name; one that is not named is.
        risks: The risk of tools, by name, in place of what the server says of them.
        roots: Folders (`file://` URIs, or paths) that it is told it may work in.
        sampling: Whether it may ask the run's model, with a person's leave.
        connect_s: How long connecting may take.
        call_s: How long a call may take without a sign of life.
        longest_s: How long a call may take at all.
        idle_s: A lazy server that nobody called for so long is stopped.
    """

    title: str = ""
    command: Annotated[list[str], Meta(min_length=1)] | None = None
    env: dict[str, Secret] = field(default_factory=dict)
    cwd: str = ""
    url: str | None = None
    transport: Literal["auto", "http", "sse"] = "auto"
    headers: dict[str, Secret] = field(default_factory=dict)
    client_id: str = ""
    client_secret: Secret | None = None
    enabled: bool = True
    lazy: bool = False
    era: Literal["auto", "handshake", "stateless"] = "auto"
    policy: Policy | None = None
    tools: dict[str, bool] = field(default_factory=dict)
    risks: dict[str, Literal["read", "write", "danger"]] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    sampling: bool = True
    connect_s: Seconds = 15.0
    call_s: Seconds = 60.0
    longest_s: Seconds = 300.0
    idle_s: Seconds = 600.0
