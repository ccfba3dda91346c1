"""The document `asyncapi.json`: the socket, AsyncAPI 3.0, told from the hub's side."""

from __future__ import annotations

from typing import Any

from sag.errors import KINDS
from sag.ops.export.declared import (
    NOTIFICATIONS,
    SERVER_REQUESTS,
    Declared,
    Direction,
    SocketOperation,
    topic_name,
)
from sag.ops.export.schema import (
    Schemas,
    event_class,
    event_schema,
    generated,
    paragraphs,
    prefixed,
    result_schema,
    split_doc,
)
from sag.ops.operation import Operation

Json = dict[str, Any]
CHANNEL = "#/channels/ws"
ID: Json = {"type": ["integer", "string"]}


class _Document:
    """Messages and operations as they are gathered."""

    def __init__(self, schemas: Schemas) -> None:
        self.schemas = schemas
        self.messages: Json = {}
        self.operations: Json = {}

    def message(self, name: str, title: str, text: str, payload: Json, **more: Any) -> Json:
        """Add a message; gives the reference that operations use."""
        self.messages[name] = {"name": name, "title": title, "summary": text, "payload": payload, **more}
        return {"$ref": f"{CHANNEL}/messages/{name}"}

    def operation(self, name: str, action: str, text: str, messages: list[Json], **more: Any) -> None:
        """Add an operation: `receive` is what the hub takes, `send` what it sends."""
        self.operations[name] = {
            "action": action,
            "channel": {"$ref": CHANNEL},
            "summary": text,
            "messages": messages,
            **more,
        }

    def request(self, op: Operation | SocketOperation, result: Json, action: str, error: Json, **more: Any) -> None:
        """A request with its answer."""
        text = paragraphs(op.text).partition("\n")[0]
        asked = self.message(
            f"{op.method}.request",
            op.method,
            text,
            _object(id=ID, method={"const": op.method}, params=self.schemas.of(op.params)),
        )
        answered = self.message(
            f"{op.method}.result", f"{op.method}: result", "The answer.", _object(id=ID, result=result)
        )
        reply = {"channel": {"$ref": CHANNEL}, "messages": [answered, error]}
        self.operations[op.method] = {
            "action": action,
            "channel": {"$ref": CHANNEL},
            "summary": text,
            "messages": [asked],
            "reply": reply,
            **more,
        }


def asyncapi(declared: Declared) -> Json:
    """The document."""
    schemas = Schemas(declared)
    doc = _Document(schemas)
    error = doc.message("error", "error", "The answer to a request that was not fulfilled.", {"$ref": "ErrorFrame"})
    for socket in declared.socket:
        doc.request(socket, schemas.of(socket.result), "receive", error)
    for op in declared.operations:
        more = {"x-who": op.who, "x-changes": op.changes} | ({"x-plugin": op.origin} if op.origin else {})
        doc.request(op, result_schema(schemas, op), "receive", error, **more)
    for request in SERVER_REQUESTS:
        doc.request(request, schemas.of(request.result), "send", error)
    actions: dict[Direction, tuple[str, ...]] = {
        "server": ("send",),
        "client": ("receive",),
        "both": ("send", "receive"),
    }
    for n in NOTIFICATIONS:
        text = split_doc(n.text)[0]
        payload = _object(method={"const": n.method}, params=schemas.of(n.params))
        told = doc.message(n.method, n.method, text, payload)
        for action in actions[n.sender]:
            doc.operation(n.method if n.sender != "both" else f"{n.method}.{action}", action, text, [told])
    ping = doc.message("ping", "ping", "A heartbeat.", {"$ref": "PingFrame"})
    pong = doc.message("pong", "pong", "The answer to a heartbeat.", {"$ref": "PongFrame"})
    for action in ("send", "receive"):
        reply = {"channel": {"$ref": CHANNEL}, "messages": [pong]}
        doc.operation(f"ping.{action}", action, "A heartbeat.", [ping], reply=reply)
    _add_events(doc, declared)
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "sag.1",
            "version": declared.version,
            "description": "One WebSocket carries requests and answers, events of many topics, and calls of tools "
            "that the client provides. A text frame is one of these messages or an array of them.",
            "license": {"name": "MIT"},
            "x-generated": generated("sag/ops/export"),
        },
        "defaultContentType": "application/json",
        "servers": {
            "hub": {
                "host": "127.0.0.1:4100",
                "protocol": "ws",
                "description": "The hub where nothing else was configured.",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {
            "ws": {
                "address": "/ws",
                "title": "The socket",
                "description": "WebSocket subprotocol `sag.1.json`. The first message is `hello`.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in doc.messages},
            }
        },
        "operations": doc.operations,
        "components": {
            "schemas": schemas.components,
            "messages": doc.messages,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token, in the upgrade's Authorization header or in `hello`.",
                }
            },
        },
        "x-errors": {name: kind._asdict() for name, kind in KINDS.items()},
    }
    out: Json = prefixed(document, "#/components/schemas/")
    return out


def _add_events(doc: _Document, declared: Declared) -> None:
    for family in declared.families:
        refs = []
        for _, name, cls in (e for e in declared.events() if e[0] == family):
            refs.append(
                doc.message(
                    f"{family}.{name}",
                    name,
                    split_doc(cls.__doc__ or "")[0].partition("\n")[0],
                    event_schema(doc.schemas, name, cls),
                    **{f"x-{k}": v for k, v in event_class(cls).items()},
                )
            )
        doc.operation(f"events.{family}", "send", f"Events of `{topic_name(family)}`.", refs)


def _object(**members: Json) -> Json:
    return {"type": "object", "properties": members, "required": list(members)}
