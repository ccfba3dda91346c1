"""The generated pages of the reference on what clients see: operations, events, errors, settings, close codes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sag.errors import KINDS, Fault
from sag.ops.export.declared import NOTIFICATIONS, SERVER_REQUESTS, Declared, topic_name, who_may
from sag.ops.export.frames import OUTCOME
from sag.ops.export.schema import Schemas, generated, paragraphs, split_doc
from sag.ops.operation import Operation
from sag.schema.events import Delta
from sag.settings import PREFIX, Budget, BudgetLimits, HubSettings, Limits, ModelOverride
from sag.wire import closing

Json = dict[str, Any]
HEAD = f"<!-- {generated('scripts/generate')} -->\n"

FAMILY_TEXT = {
    "conv": "One conversation: its messages, runs, parts, tool calls, asks and config.",
    "user": "The user's inbox, under this name for everybody: conversations, open runs, open asks.",
    "client": "One device's settings, presets and what plugins show on it.",
    "hub": "What there is: plugins, connectors with their tools, models.",
}

CLOSING_TEXT = {
    4000: "The hub restarts or goes down. `after_ms` of the `bye` says when to come back.",
    4001: "The client reads more slowly than its answers come. A socket that takes nothing may see 1006 only.",
    4002: "No answer to a heartbeat.",
    4003: "Another connection resumed this session.",
    4004: "The token expired and was not replaced by `auth.refresh`.",
    4005: "The hub cannot serve this reader now.",
    4500: "The credentials are missing, wrong or revoked.",
    4501: "Three frames in a row that are none, or a `hello` that cannot be understood.",
    4502: "No `hello` in time.",
    4503: "`hello` asks for a version of the protocol that the hub does not speak.",
    4504: "The token that opened the connection was revoked.",
    4505: "More frames or connections than the limits allow.",
}

SETTING_TEXT = {
    "host": "The address to listen on.",
    "port": "The port; 0 takes a free one.",
    "data": "The data folder. Left out: `$XDG_DATA_HOME/sag`, else `~/.local/share/sag`.",
    "origins": "Origins of pages that may connect beside the hub's own; in the environment separated by commas.",
    "auth": "`auto` takes callers on a loopback address without a token for the local user; `required` never does.",
    "tick_ms": "How often text deltas are merged and sent; 0 is as fast as the journal commits.",
    "ping_every_ms": "How often a heartbeat is sent.",
    "ping_timeout_ms": "How long the answer to one may take.",
    "hello_ms": "How long a connection may take to say `hello`.",
    "head_ms": "How long the head of an HTTP request may take.",
    "body_ms": "Over what time a body has to come at 1 KiB a second on average.",
    "keep_ms": "How long a session, with its tools and their open calls, is kept after a cut.",
    "stall_ms": "How long a peer may take nothing of what waits for it before its connection is dropped.",
    "drain_s": "How long turns may take to end when the hub goes down; runs that are not over then are interrupted.",
    "ask_s": "How long an ask stays open where its asker says nothing else.",
    "key_s": "How long a result is kept under its idempotency key.",
    "sync": "`full` makes every commit survive a power loss; `normal` every crash of the process.",
    "keep_s": "How long events are kept at least.",
    "keep_events": "How many events of a topic are kept at least.",
    "log": "The level of the log: `debug`, `info`, `warning`, `error`.",
    "tls_cert": "A certificate in PEM form; the hub speaks TLS then.",
    "tls_key": "Its key.",
    "plugin_s": "How long a plugin may take to load, start or stop.",
    "frame": "Bytes of a frame and of a JSON body.",
    "inflight": "Requests of a connection that are not answered yet.",
    "topics": "Topics that a connection may follow.",
    "connections": "Connections of the hub.",
    "connections_per_user": "Connections of one user.",
    "connections_per_address": "Connections from one address.",
    "frames_per_s": "Frames a second that a connection may send; a burst of four seconds' worth is let through.",
    "body": "Bytes of an uploaded file.",
    "queue": "Runs that wait in a conversation.",
    "part": "Bytes of a part's text; what follows goes on in the next part.",
    "outbox": "Bytes that wait for a connection that takes none, before it is ended.",
}


def pages(what: Declared) -> dict[str, str]:
    """The pages by file name."""
    schemas = Schemas(what)
    return {
        "operations.md": operations(what, schemas),
        "events.md": events(what, schemas),
        "errors.md": errors(),
        "close-codes.md": close_codes(),
        "settings.md": settings(),
    }


# pieces


def wrapped(text: str, width: int = 120) -> str:
    """Markdown whose paragraphs are broken into lines; tables, headings, lists and code stay as they are."""
    lines: list[str] = []
    for line in text.splitlines():
        is_prose = len(line) > width and line[0] not in "|#<-"
        lines += textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) if is_prose else [line]
    return "\n".join(lines).rstrip("\n") + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with columns of one width, so that it reads well as text too."""
    cells = [list(head), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head) - 1)] + [3]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def members(schema: Json, schemas: Schemas) -> str:
    """A struct's members as a table; empty where it has none."""
    required = schema.get("required", ())
    rows = []
    for name, member in schema.get("properties", {}).items():
        default = "" if name in required else default_of(member)
        rows.append((f"`{name}`", type_of(member), default, member.get("description", "")))
    head = ("Member", "Type", "If left out", "Meaning")
    shown = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in shown], [[row[i] for i in shown] for row in rows]) if rows else ""


def default_of(schema: Json) -> str:
    """What a member is where it is left out."""
    if schema.get("default") is None:
        return "–"
    return f"`{json.dumps(schema['default'], ensure_ascii=False)}`"


def type_of(schema: Json) -> str:
    """A schema in a few words, structs linked."""
    if "$ref" in schema:
        name = schema["$ref"]
        return f"[{name}](operations.md#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(option) for option in schema["anyOf"]))
    type = schema.get("type", "any JSON")
    if isinstance(type, list):
        return " or ".join(type)
    if type == "array":
        inner = type_of(schema.get("items", {}))
        return f"list of {inner}" if "items" in schema else "list"
    if type == "object" and schema.get("additionalProperties"):
        return f"map of {type_of(schema['additionalProperties'])}"
    return f"{type}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    """The limits of a number or text, in words."""
    words = [
        (("minimum",), "from {}"),
        (("exclusiveMinimum",), "more than {}"),
        (("maximum",), "to {}"),
        (("minLength",), "{} or more characters"),
        (("maxLength",), "at most {} characters"),
        (("pattern",), "`{}`"),
    ]
    found = [text.format(schema[key]) for (key,), text in words if key in schema]
    return f", {', '.join(found)}" if found else ""


def shape(schemas: Schemas, schema: Json) -> str:
    """A struct's text and members."""
    resolved = schemas.resolve(schema)
    return "\n\n".join(part for part in (resolved.get("description", ""), members(resolved, schemas)) if part)


# pages


def operations(what: Declared, schemas: Schemas) -> str:
    """`operations.md`"""
    out = [
        HEAD,
        "# Operations\n",
        "What a client can ask for: on the socket by its method, over HTTP as `POST /rpc/<method>` and, where a route "
        "is given, by that. Members that an operation does not know are ignored. A member with nothing under *If left "
        "out* is required in params and always there in results; where `–` stands there, it may be missing. How "
        "requests and answers travel: "
        "[protocol](protocol.md); what can go wrong: [errors](errors.md).\n",
    ]
    rows = []
    for op in what.operations:
        rows.append(
            (
                f"[`{op.method}`](#{_anchor(op.method)})",
                f"`{op.rest}`" if op.rest else "–",
                op.who,
                "yes" if op.changes else "no",
                paragraphs(op.text).partition("\n")[0],
            )
        )
    out.append(table(("Method", "Route", "Who", "Changes", "What it does"), rows) + "\n")
    out.append(
        "*Who*: `anyone`, `user` (signed in; sees what is its own alone) or `admin`. What *changes* something takes "
        "`key`, an idempotency key (over HTTP also the header `Idempotency-Key`): for 24 h the same user, method and "
        "key get the first result again.\n"
    )
    for op in what.operations:
        out += [f"## {op.method}\n", paragraphs(op.text) + "\n"]
        route = f"`{op.rest}`, " if op.rest else ""
        changes = " It takes an idempotency `key`." if op.changes else ""
        out.append(f"{route}`POST /rpc/{op.method}`. For {who_may(op.who)}.{changes}\n")
        out += _part("Params", schemas, schemas.of(op.params))
        out += _part("Result", schemas, _with_topic(op, schemas))
        if op.topic is not None:
            out.append(
                "`topic` comes on the socket alone, unless `subscribe` is false: what `topic.subscribe` "
                "would have answered, or `{error}`. It is absent where the topic was subscribed already.\n"
            )
    out += [
        "# On the socket alone\n",
        "These are about the connection; over HTTP they are unknown.\n",
    ]
    for s in what.socket:
        out += [f"## {s.method}\n", s.text + "\n"]
        out += _part("Params", schemas, schemas.of(s.params))
        out += _part("Result", schemas, schemas.of(s.result))
    out += ["# Requests of the hub\n", "What the hub asks a client for; it answers under the same id.\n"]
    for s in SERVER_REQUESTS:
        out += [f"## {s.method}\n", s.text + "\n"]
        out += _part("Params", schemas, schemas.of(s.params))
        out += _part("Result", schemas, schemas.of(s.result))
    out += ["# Notifications\n", "Messages that are not answered.\n"]
    for n in NOTIFICATIONS:
        sender = {"server": "The hub sends it.", "client": "A client sends it.", "both": "Both sides send it."}
        out += [f"## {n.method}\n", f"{split_doc(n.text)[0]} {sender[n.sender]}\n"]
        if text := members(schemas.resolve(schemas.of(n.params)), schemas):
            out.append(text + "\n")
    out += ["# Shapes\n", "Structs that stand inside of params, results and events.\n"]
    inner = _inner(what, schemas)
    for name, schema in schemas.components.items():
        if name in inner:
            text = shape(schemas, schema)
            if "anyOf" in schema:
                text += f"\n\n{type_of(schema)}."
            out += [f"## {name}\n", text + "\n"]
    return "\n".join(out)


def _with_topic(op: Operation, schemas: Schemas) -> Json:
    """The schema of a result, with the member that the socket adds where the caller is subscribed too."""
    schema = schemas.of(op.result)
    if op.topic is None:
        return schema
    resolved = schemas.resolve(schema)
    return {**resolved, "properties": {**resolved["properties"], "topic": {"$ref": OUTCOME}}}


def _part(title: str, schemas: Schemas, schema: Json) -> list[str]:
    resolved = schemas.resolve(schema)
    text = members(resolved, schemas)
    if "anyOf" in resolved or "title" not in resolved:
        text = type_of(resolved)
    note = resolved.get("description", "")
    if not text:
        return [f"**{title}**: none.\n"]
    return [f"**{title}.** {note}\n", text + "\n"]


def _inner(what: Declared, schemas: Schemas) -> set[str]:
    """Names of components that stand inside of what is declared, however deep."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            name = value.get("$ref")
            if isinstance(name, str) and name not in found:
                found.add(name)
                walk(schemas.components[name])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    types = [t for op in [*what.requests(), *SERVER_REQUESTS] for t in (op.params, op.result)]
    types += [n.params for n in NOTIFICATIONS] + [cls for _, _, cls in what.events()]
    for type in types:
        walk(schemas.resolve(schemas.of(type)))
    return found


def events(what: Declared, schemas: Schemas) -> str:
    """`events.md`"""
    out = [
        HEAD,
        "# Events\n",
        "What the topics tell. A frame is `{t, o, p?, e, d, r?}`: `e` is the name below and `d` the members. Frames, "
        "offsets and how to follow a topic: [protocol](protocol.md).\n",
        "*Class*: `durable` is kept in the journal; of `state` the newest of a key wins when frames are merged; "
        "`ephemeral` is passed on and not kept. `ts` and other times are Unix ms. Members that are optional may be "
        "left out or null.\n",
    ]
    for family in what.families:
        own = [(name, cls) for f, name, cls in what.events() if f == family]
        out += [f"## {topic_name(family)}\n", FAMILY_TEXT.get(family, "A plugin's topics.") + "\n"]
        rows = []
        for name, cls in own:
            klass = f"{cls.CLASS}, key `{cls.KEY}`" if cls.KEY else cls.CLASS
            if cls is Delta:
                klass = "durable, mergeable"
            rows.append((f"`{name}`", klass, split_doc(cls.__doc__ or "")[0]))
        out.append(table(("Event", "Class", "What it tells"), rows) + "\n")
        for name, cls in own:
            out += [f"### {family}: {name}\n"]
            resolved = schemas.resolve(schemas.of(cls))
            if cls is Delta:
                out.append("`d` is an array, `[part, text, part, text, …]`. A merged one names each part once.\n")
            else:
                out.append(members(resolved, schemas) + "\n")
    return "\n".join(out)


def errors() -> str:
    """`errors.md`"""
    out = [
        HEAD,
        "# Errors\n",
        'An error is `{"code", "message", "data": {"kind", "retry", "trace", …}}`, on the socket under the id of the '
        "request and over HTTP as `{error}`. Go by `kind`, which is stable; `message` is for people. `retry` says "
        "whether the same request may succeed later, `after_ms` how long to wait. Plugins have kinds of their own, "
        "which begin with their name.\n",
    ]
    rows = []
    for name, kind in KINDS.items():
        rows.append((f"`{name}`", str(kind.code), str(Fault(name).status), "yes" if kind.retry else "no", kind.text))
    out.append(table(("Kind", "Code", "HTTP", "Retry", "Meaning"), rows) + "\n")
    return "\n".join(out)


def close_codes() -> str:
    """`close-codes.md`"""
    rows = []
    for c in closing.ALL:
        rows.append((str(c.code), c.reason, "yes" if c.reconnect else "no", CLOSING_TEXT[c.code]))
    return "\n".join(
        [
            HEAD,
            "# Close codes\n",
            "Why the hub ends a connection. The notification `bye {code, reason, reconnect, after_ms}` goes before "
            "every planned close. Codes 4000 to 4499 mean come back, 4500 to 4999 do not.\n",
            table(("Code", "Reason", "Come back", "Meaning"), rows) + "\n",
        ]
    )


def settings() -> str:
    """`settings.md`"""
    out = [
        HEAD,
        "# Settings\n",
        "Nothing has to be set. What is set is taken, strongest first, from the command line, the environment, `.env` "
        "in the working folder, and the table `[hub]` of plugins.toml, which is looked for in the working folder and "
        "then in the data folder unless `--config` names it. In plugins.toml `${NAME}` in a text is replaced from the "
        "environment.\n",
        "## [hub]\n",
        _settings_table(HubSettings, PREFIX),
        "## [hub.limits]\n",
        "What one client may take of the hub. Only in plugins.toml.\n",
        _settings_table(Limits, ""),
        "## [outbound]\n",
        "`allow` is a list of hosts, with a port or without, that may be fetched whatever their address is; others "
        "only where it is public. Only in plugins.toml.\n",
        "## [budget]\n",
        "What each user's runs may take; days and months are those of UTC. A table `[budget.users.NAME]` has other "
        "limits for one user; `inf` there means none. Only in plugins.toml.\n",
        _attributes(Budget, BudgetLimits),
        '## [models."provider/model"]\n',
        "What is known of a model better than its provider says. The name may end in `*`; a name in full wins, then "
        "the longest. Only in plugins.toml.\n",
        _attributes(ModelOverride),
        "## Plugins\n",
        "Each plugin has a table of its own name; what is in it, its documentation says. `enabled = false` switches a "
        "plugin off.\n",
    ]
    return "\n".join(out)


def _attributes(*structs: type[Any]) -> str:
    """The members of structs, as their docstrings explain them; those of the last struct first."""
    docs = [item for struct in reversed(structs) for item in split_doc(struct.__doc__ or "")[1].items()]
    return table(("Setting", "Meaning"), [(f"`{name}`", text) for name, text in docs if name != "users"]) + "\n"


def _settings_table(struct: type[Any], prefix: str) -> str:
    document = msgspec.json.schema_components([struct], ref_template="{name}")[1][struct.__name__]
    docs = split_doc(struct.__doc__ or "")[1]
    rows = []
    for name, member in document["properties"].items():
        if name == "limits":
            continue
        default = json.dumps(member.get("default", []))
        text = docs.get(name) or SETTING_TEXT[name]
        row = [f"`{name}`", f"`{prefix}{name.upper()}`", type_of(member), f"`{default}`", text]
        rows.append(row if prefix else [row[0], *row[2:]])
    head = ["Setting", "Environment", "Type", "Default", "Meaning"]
    return table(head if prefix else [head[0], *head[2:]], rows) + "\n"


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")
