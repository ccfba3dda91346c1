"""The document `openapi.json`: the operations as they are had over HTTP, OpenAPI 3.1."""

from __future__ import annotations

import re
from typing import Any

from sag.errors import KINDS, Fault
from sag.ops.export.declared import Declared
from sag.ops.export.schema import Schemas, generated, paragraphs, prefixed
from sag.ops.operation import Operation

Json = dict[str, Any]

# Which statuses an operation may answer with, beside those that every one may.
ALWAYS = (400, 401, 404, 499, 500, 502, 503, 504)
CHANGING = (409, 413, 415, 422, 429, 507)
ADMIN = (403,)

FILE: Json = {
    "title": "File",
    "description": "An uploaded file: the `ref` that messages name, and what was told of it.",
    "type": "object",
    "properties": {
        "ref": {"type": "string"},
        "mime": {"type": "string"},
        "name": {"type": "string"},
        "size": {"type": "integer", "description": "Bytes."},
    },
    "required": ["ref", "mime", "name", "size"],
}
HEALTH: Json = {
    "title": "Health",
    "description": "How the hub is.",
    "type": "object",
    "properties": {"status": {"enum": ["ok", "draining"]}, "version": {"type": "string"}},
    "required": ["status", "version"],
}
PARAMETERS: Json = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Stands for `key`: the same user, operation and key get the first result again for 24 h.",
        "schema": {"type": "string", "maxLength": 200},
    },
    "SagClient": {
        "name": "Sag-Client",
        "in": "header",
        "description": "The device or frontend whose settings apply, as `client.id` in `hello`.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
}


def openapi(declared: Declared) -> Json:
    """The document."""
    schemas = Schemas(declared)
    paths: Json = {}
    for op in declared.operations:
        paths[f"/rpc/{op.method}"] = {"post": _rpc(schemas, op)}
        if op.rest:
            verb, _, path = op.rest.partition(" ")
            paths.setdefault(path, {})[verb.lower()] = _rest(schemas, op, verb, path)
    for route, text in declared.routes.items():
        verb, _, path = route.partition(" ")
        paths.setdefault(re.sub(r":\w+}", "}", path), {})[verb.lower()] = _of_plugin(route, text)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "sag",
            "version": declared.version,
            "description": "The operations of the hub over HTTP. Every operation is a POST of its params to "
            "`/rpc/<method>`; most have a route of their own besides. Live events come over the socket or as "
            "server-sent events.",
            "x-generated": generated("sag/ops/export"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": area} for area in _areas(declared)],
        "paths": {**paths, **_others()},
        "components": {
            "schemas": {**schemas.components, "File": FILE, "Health": HEALTH},
            "parameters": PARAMETERS,
            "responses": _failures(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token. On a loopback address without further configuration none is needed.",
                }
            },
        },
        "x-errors": {name: kind._asdict() for name, kind in KINDS.items()},
    }
    out: Json = prefixed(document, "#/components/schemas/")
    return out


def _areas(declared: Declared) -> list[str]:
    return sorted({op.method.partition(".")[0] for op in declared.operations} | {"hub", "file", "topic", "route"})


def _operation(schemas: Schemas, op: Operation, id: str) -> Json:
    text = paragraphs(op.text)
    out: Json = {
        "operationId": id,
        "summary": text.partition("\n")[0],
        "tags": [op.method.partition(".")[0]],
        "x-method": op.method,
        "x-who": op.who,
        "x-changes": op.changes,
        "parameters": [{"$ref": "#/components/parameters/SagClient"}],
        "responses": {"200": _ok(schemas.of(op.result), schemas), **failures(op)},
    }
    if "\n" in text:
        out["description"] = text
    if op.origin:
        out["x-plugin"] = op.origin
    if op.changes:
        out["parameters"].append({"$ref": "#/components/parameters/IdempotencyKey"})
    if op.who == "anyone":
        out["security"] = []
    return out


def _ok(schema: Json, schemas: Schemas) -> Json:
    description = schemas.resolve(schema).get("description", "The result.")
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def failures(op: Operation) -> Json:
    """The error answers of an operation."""
    statuses = ALWAYS + (CHANGING if op.changes else ()) + (ADMIN if op.who == "admin" else ())
    return {str(s): {"$ref": f"#/components/responses/Error{s}"} for s in sorted(statuses)} | {
        "default": {"$ref": "#/components/responses/Error"}
    }


def _rpc(schemas: Schemas, op: Operation) -> Json:
    schema = schemas.of(op.params)
    required = bool(schemas.resolve(schema).get("required"))
    body = {"required": required or op.changes, "content": {"application/json": {"schema": schema}}}
    return {**_operation(schemas, op, f"rpc.{op.method}"), "requestBody": body}


def _rest(schemas: Schemas, op: Operation, verb: str, path: str) -> Json:
    out = _operation(schemas, op, op.method)
    params = schemas.resolve(schemas.of(op.params))
    members: Json = dict(params.get("properties", {}))
    required = params.get("required", [])
    for name in re.findall(r"{(\w+)(?::\w+)?}", path):
        out["parameters"].append({"name": name, "in": "path", "required": True, "schema": members.pop(name)})
    if verb in ("GET", "DELETE"):
        members.pop("key", None)
        out["parameters"] += [
            {"name": name, "in": "query", "required": name in required, "schema": member}
            for name, member in members.items()
        ]
    else:
        needed = [name for name in required if name in members]
        schema = {"type": "object", "properties": members} | ({"required": needed} if needed else {})
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return out


def _of_plugin(route: str, text: str) -> Json:
    """A plugin's route, of which nothing is declared but its path and what it does."""
    text = paragraphs(text)
    named = re.findall(r"{(\w+)(?::\w+)?}", route)
    verb = route.partition(" ")[0]
    out: Json = {
        "operationId": re.sub(r"\W+", "_", route).strip("_"),
        "summary": text.partition("\n")[0] or route,
        "tags": ["route"],
        "parameters": [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in named],
        "responses": {"200": {"description": "The answer."}, "default": {"$ref": "#/components/responses/Error"}},
    }
    if "\n" in text:
        out["description"] = text
    if verb in ("POST", "PUT", "PATCH"):
        out["requestBody"] = {"content": {"application/json": {"schema": {"type": "object"}}}}
    return out


def _failures() -> Json:
    """One answer for each status, which lists the kinds that stand behind it."""
    by_status: dict[int, list[str]] = {}
    for name in KINDS:
        by_status.setdefault(Fault(name).status, []).append(name)
    out: Json = {"Error": _failure("An error of any kind; plugins have kinds of their own.")}
    for status, kinds in sorted(by_status.items()):
        rows = [f"| `{k}` | {KINDS[k].code} | {'yes' if KINDS[k].retry else 'no'} | {KINDS[k].text} |" for k in kinds]
        out[f"Error{status}"] = _failure("\n".join(["| kind | code | retry | meaning |", "|---|---|---|---|", *rows]))
    return out


def _failure(description: str) -> Json:
    schema = {"type": "object", "properties": {"error": {"$ref": "ErrorBody"}}, "required": ["error"]}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _others() -> Json:
    """What is no operation."""
    error: Json = {"default": {"$ref": "#/components/responses/Error"}}
    wrong: Json = {f"{s}": {"$ref": f"#/components/responses/Error{s}"} for s in (401, 404)} | error
    topic: Json = {
        "operationId": "topic.events",
        "summary": "A topic as server-sent events.",
        "description": "First `event: topic` with the subscribe answer without `t`, then each event of the topic as "
        "`{o, p?, e, d, r?}` with `id: <gen>:<off>`, at last `event: topic.closed` with `{reason}`. A comment line "
        "comes every 30 s. Events of class ephemeral are left out.",
        "tags": ["topic"],
        "parameters": [
            {
                "name": "topic",
                "in": "path",
                "required": True,
                "description": "`conv:<id>`, `client:<id>`, `user:me`, `hub` or a plugin's `<plugin>:<id>`.",
                "schema": {"type": "string"},
            },
            {"name": "gen", "in": "query", "description": "The generation of `off`.", "schema": {"type": "string"}},
            {
                "name": "off",
                "in": "query",
                "description": "The offset after which events are wanted.",
                "schema": {"type": "integer", "minimum": 0},
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "`<gen>:<off>`; wins over the query.",
                "schema": {"type": "string"},
            },
        ],
        "responses": {
            "200": {
                "description": "The stream.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **wrong,
        },
    }
    health = {"application/json": {"schema": {"$ref": "Health"}}}
    return {
        "/events/{topic}": {"get": topic},
        "/health": {
            "get": {
                "operationId": "hub.health",
                "summary": "How the hub is.",
                "tags": ["hub"],
                "security": [],
                "responses": {
                    "200": {"description": "It serves.", "content": health},
                    "503": {"description": "It is going down.", "content": health},
                },
            }
        },
        "/schema/{name}": {
            "get": {
                "operationId": "hub.schema",
                "summary": "A generated document.",
                "tags": ["hub"],
                "security": [],
                "parameters": [
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"enum": ["jsonschema.json", "openapi.json", "asyncapi.json"]},
                    }
                ],
                "responses": {
                    "200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}},
                    **error,
                },
            }
        },
        "/api/files": {
            "post": {
                "operationId": "file.upload",
                "summary": "Upload a file; messages name it by its `ref`.",
                "tags": ["file"],
                "parameters": [{"name": "name", "in": "query", "schema": {"type": "string", "maxLength": 200}}],
                "requestBody": {"required": True, "content": {"*/*": {}}},
                "responses": {
                    "200": {"description": "Kept.", "content": {"application/json": {"schema": {"$ref": "File"}}}},
                    "413": {"$ref": "#/components/responses/Error413"},
                    "507": {"$ref": "#/components/responses/Error507"},
                    **wrong,
                },
            }
        },
        "/api/files/{ref}": {
            "get": {
                "operationId": "file.download",
                "summary": "A file's content.",
                "tags": ["file"],
                "parameters": [{"name": "ref", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "The content.", "content": {"*/*": {}}}, **wrong},
            }
        },
    }
