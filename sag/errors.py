"""Every error that a client can see: its stable kind, its code, and whether trying again helps.

Owns the table of kinds and the one exception that carries them. Turning an exception into a wire body is
`sag.ops.dispatch`'s work; nothing here knows of sockets or HTTP. Codes and their meaning: protocol section 8.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One stable kind of error.

    Attributes:
        code: A JSON-RPC code for protocol faults, else the HTTP status that both roads answer with.
        retry: Whether the same request may succeed later.
        text: What it means and what to do, for the reference.
    """

    code: int
    retry: bool
    text: str


KINDS: dict[str, Kind] = {
    "rpc.parse": Kind(-32700, False, "The frame or body is not JSON."),
    "rpc.frame": Kind(-32600, False, "The JSON is not a frame of the protocol."),
    "rpc.method": Kind(-32601, False, "No such method; the reference lists them."),
    "rpc.params": Kind(-32602, False, "The params do not fit; `path` names the member."),
    "rpc.internal": Kind(-32603, True, "A fault of the hub; its log has the details under `trace`."),
    "request.bad": Kind(400, False, "The request cannot be understood."),
    "auth.required": Kind(401, False, "Sign in: send a token."),
    "auth.invalid": Kind(401, False, "The credentials are wrong, expired or revoked."),
    "hello.first": Kind(401, False, "Send `hello` first and wait for its answer."),
    "hello.version": Kind(400, False, "The hub does not speak this version of the protocol."),
    "access.denied": Kind(403, False, "You may not do this."),
    "origin.denied": Kind(403, False, "The page's origin is not allowed; see SAG_ORIGINS."),
    "host.denied": Kind(403, False, "The Host header names no host of this hub; see SAG_ORIGINS."),
    "topic.unknown": Kind(404, False, "No such topic, or it is not yours."),
    "conv.unknown": Kind(404, False, "No such conversation, or it is not yours."),
    "run.unknown": Kind(404, False, "No such run, or it is not yours."),
    "ask.unknown": Kind(404, False, "No such question, or it is not yours."),
    "scope.unknown": Kind(404, False, "No such config scope, or it is not yours."),
    "message.unknown": Kind(404, False, "No such message in this conversation."),
    "kind.unknown": Kind(404, False, "No installed plugin offers this kind of run."),
    "model.unknown": Kind(404, False, "No installed provider offers this model."),
    "bot.unknown": Kind(404, False, "The run has no such bot."),
    "generation.unknown": Kind(404, False, "No provider knows an answer of this id."),
    "format.unknown": Kind(404, False, "No installed plugin exports in this format; `formats` lists those there are."),
    "tool.unknown": Kind(404, False, "No such tool."),
    "connector.unknown": Kind(404, False, "No such connector."),
    "file.unknown": Kind(404, False, "No such file, or it is not yours."),
    "token.unknown": Kind(404, False, "No such token."),
    "route.unknown": Kind(404, False, "Nothing is served here."),
    "method.denied": Kind(405, False, "The route is served under another HTTP method."),
    "request.timeout": Kind(408, True, "The request did not arrive in time."),
    "body.timeout": Kind(408, True, "The body came too slowly."),
    "connector.exists": Kind(409, False, "A connector of this name is there already."),
    "connector.fixed": Kind(409, False, "The connector stands in plugins.toml and is changed there."),
    "run.busy": Kind(409, True, "The conversation has a run already."),
    "run.closed": Kind(409, False, "The run has ended; `status` says how."),
    "run.state": Kind(409, False, "The run is not in the state that this needs."),
    "ask.closed": Kind(409, False, "The question was answered; `outcome` says how."),
    "config.conflict": Kind(409, False, "Somebody patched first; `rev` and `effective` are the current ones."),
    "key.mismatch": Kind(409, False, "The idempotency key was used with other params."),
    "call.closed": Kind(409, False, "The tool call is no longer open."),
    "frame.large": Kind(413, False, "Larger than the limit."),
    "topic.later": Kind(413, False, "The topic's state does not fit this answer; subscribe to it alone."),
    "import.large": Kind(413, False, "The document, or the part of it at `path`, is larger than the limit."),
    "media.type": Kind(415, False, "Send application/json."),
    "config.invalid": Kind(422, False, "The patched whole does not fit; `path` names the member."),
    "ask.invalid": Kind(422, False, "The answer does not fit the question; `path` names the member."),
    "input.invalid": Kind(422, False, "The input cannot be used."),
    "import.invalid": Kind(422, False, "The document is no export that can be taken in; `path` names the member."),
    "import.version": Kind(422, False, "The document is of a version that this hub does not know; update the hub."),
    "provider.unknown": Kind(422, False, "No configured provider has this base URL."),
    "toolchain.no_tool": Kind(422, False, "The model chose no tool."),
    "toolchain.invalid": Kind(422, False, "The model made a call that does not fit its tool; nothing was called."),
    "topic.limit": Kind(429, True, "Too many topics on this connection."),
    "run.rate": Kind(429, True, "Too many runs were started from this address; wait `after_ms`."),
    "run.queue": Kind(429, True, "Too many runs wait in this conversation."),
    "inflight.limit": Kind(429, True, "Too many requests of this connection are unanswered."),
    "connection.limit": Kind(429, True, "Too many connections."),
    "request.cancelled": Kind(499, False, "Cancelled by the caller."),
    "connector.failed": Kind(502, True, "The connector could not do it."),
    "provider.protocol": Kind(502, True, "The model's server answered something that is not its protocol."),
    "provider.disconnected": Kind(502, True, "The model's server dropped the connection in mid-answer."),
    "provider.truncated": Kind(502, True, "The model's answer ended without its end mark."),
    "provider.unreachable": Kind(502, True, "The model's server cannot be reached."),
    "provider.auth": Kind(502, False, "The model's server refuses the key."),
    "provider.rate_limit": Kind(502, True, "The model's server limits the rate."),
    "provider.overloaded": Kind(502, True, "The model's server is overloaded."),
    "provider.context": Kind(502, False, "The conversation is too long for the model."),
    "provider.refused": Kind(502, False, "The model's server refuses the request."),
    "provider.timeout": Kind(504, True, "The model's server did not answer in time."),
    "gateway.void": Kind(502, True, "A part of the answer that was told is void, for the model was asked anew."),
    "outbound.large": Kind(502, False, "What was fetched is larger than the limit."),
    "outbound.denied": Kind(403, False, "The address is not one that the hub may fetch."),
    "tool.error": Kind(502, False, "The tool failed."),
    "toolchain.tool_failed": Kind(502, False, "A tool of the chain failed; the calls of the run say how."),
    "draining": Kind(503, True, "The hub is going down; come back in a moment."),
    "plugin.failed": Kind(503, False, "The plugin that offers this is switched off; `plugin.list` says why."),
    "export.failed": Kind(503, False, "The file could not be made; the message says why."),
    "export.timeout": Kind(504, True, "The file could not be made in time."),
    "store.unavailable": Kind(503, True, "The store does not answer."),
    "store.busy": Kind(503, True, "The store is locked by another program."),
    "store.full": Kind(507, True, "The disk is full; nothing can be kept until there is room."),
}


class Fault(Exception):
    """An error that a client is told.

    Args:
        kind: One of `KINDS`, or a plugin's own (`dice.loaded`) together with `code`.
        message: What is wrong and what to do, in words for a person, without internals.
        code: Only for kinds that are not in the table.
        after_ms: How long to wait before trying again.
        data: Further members of the error's `data`.
    """

    def __init__(
        self,
        kind: str,
        message: str | None = None,
        *,
        code: int | None = None,
        retry: bool | None = None,
        after_ms: int | None = None,
        **data: Any,
    ) -> None:
        known = KINDS.get(kind)
        self.kind = kind
        self.code = code if code is not None else known.code if known else 400
        self.retry = retry if retry is not None else known.retry if known else False
        self.message = message or (known.text if known else kind)
        self.after_ms = after_ms
        self.data = data
        super().__init__(self.message)

    @property
    def status(self) -> int:
        """The HTTP status that stands for this error on the facade (protocol section 10)."""
        if self.code > 0:
            return self.code
        return {-32601: 404, -32603: 500}.get(self.code, 400)

    def body(self, trace: str | None = None) -> dict[str, Any]:
        """The `error` object of an answer."""
        data: dict[str, Any] = {"kind": self.kind, "retry": self.retry, **self.data}
        if self.after_ms is not None:
            data["after_ms"] = self.after_ms
        if trace is not None:
            data["trace"] = trace
        return {"code": self.code, "message": self.message, "data": data}


class StartError(Exception):
    """The hub cannot start.

    Args:
        message: One line that says why and what to do.
        code: The process's exit status, from sysexits.h: 78 configuration, 74 input or output.
    """

    def __init__(self, message: str, code: int = 78) -> None:
        super().__init__(message)
        self.code = code
