"""An MCP server that does what a test wants, misbehaving included: JSON-RPC by hand, on the standard library alone.

As a program it speaks over standard input and output; `HttpServer` serves the same over HTTP on loopback. It knows the
handshake protocol (2025-11-25) and the stateless one (2026-07-28). Its tools are functions `tool_NAME` of `Tools`; what
it does at its start is told by arguments.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import http.server
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Send = Callable[[Json], None]

OLD, NEW = "2025-11-25", "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n pixel").decode()
ANY: Json = {"type": "object", "properties": {}}
FORM: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "minLength": 1},
        "size": {"type": "string", "enum": ["s", "m"], "default": "m"},
        "count": {"type": "integer", "minimum": 1},
    },
    "required": ["name"],
}


def text(*words: Any) -> Json:
    return {"content": [{"type": "text", "text": " ".join(str(w) for w in words)}]}


class Refusal(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error: Json = {"code": code, "message": message} | ({"data": data} if data is not None else {})


class InputRequired(Exception):
    """The stateless way to ask: answer with what is wanted."""

    def __init__(self, requests: Json) -> None:
        super().__init__()
        self.requests = requests


class Options:
    """What a server is to be like."""

    def __init__(self, **given: Any) -> None:
        self.era = "both"  # handshake, stateless
        self.journal = ""
        self.tools = 0  # further ones
        self.pages = 1  # 0: without end
        self.start = ""  # crash, hang, endless
        self.sick = ""  # a file; while it is there the server crashes at its start
        self.every_call = ""  # crash
        self.stubborn = False  # ignores SIGTERM and the end of its input
        self.children = False  # leaves one that ignores SIGTERM and holds standard output, and one in another session
        self.bad_tools = False
        self.listed = True  # tells that its lists change
        self.ping = True
        self.touchy = False  # dies of the newer protocol
        self.__dict__.update(given)


class Call:
    """A request that is being worked on."""

    def __init__(self, server: Server, message: Json, send: Send) -> None:
        self.server, self.send, self.id = server, send, message["id"]
        self.params: Json = message.get("params") or {}
        self.meta: Json = self.params.get("_meta") or {}
        self.stateless = f"{PREFIX}protocolVersion" in self.meta
        self.cancelled = threading.Event()

    def notify(self, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        extra = {"total": total} if total is not None else {}
        extra |= {"message": message} if message is not None else {}  # type: ignore[dict-item]
        self.notify("notifications/progress", progressToken=self.meta["progressToken"], progress=done, **extra)

    def ask(self, method: str, params: Json, key: str = "q") -> Json:
        """Ask the client for something; gives the result."""
        if self.stateless:
            answers = self.params.get("inputResponses") or {}
            if key not in answers:
                raise InputRequired({key: {"method": method, "params": params}})
            return dict(answers[key])
        return self.server.request(method, params, self.send)


class Tools:
    """Tools by name, `tool_NAME(call, args)`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.extra: list[Json] = []
        self.visited = False

    def listed(self) -> list[Json]:
        names = sorted(name[5:] for name in dir(self) if name.startswith("tool_"))
        tools: list[Json] = [{"name": name, "description": f"Does {name}.", "inputSchema": ANY} for name in names]
        by_name = {tool["name"]: tool for tool in tools}
        by_name["echo"] |= {
            "title": "Echo",
            "annotations": {"readOnlyHint": True},
            "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        }
        by_name["destroy"]["annotations"] = {"destructiveHint": True}
        by_name["again"]["annotations"] = {"idempotentHint": True}
        figures = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
        by_name["figures"]["outputSchema"] = by_name["bad_figures"]["outputSchema"] = figures
        tools += [
            {"name": f"more_{n}", "description": "One of many.", "inputSchema": ANY}
            for n in range(self.server.options.tools)
        ]
        if self.server.options.bad_tools:
            tools += [
                {"name": "", "inputSchema": ANY},
                {"name": "no_schema"},
                {"name": "array", "inputSchema": {"type": "array"}},
                {"name": "broken", "inputSchema": {"type": "object", "properties": {"a": {"type": "strange"}}}},
                {"name": "remote", "inputSchema": {"type": "object", "$ref": "http://127.0.0.1:1/schema"}},
                {"name": "dangling", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}},
                {"name": "echo", "description": "Another.", "inputSchema": ANY},
                "nonsense",  # type: ignore[list-item]
                {"name": "dotted.name/x", "description": "Fine.", "inputSchema": {"properties": {}}},
            ]
        return tools + self.extra

    def tool_echo(self, call: Call, args: Json) -> Json:
        return text(args["text"])

    def tool_env(self, call: Call, args: Json) -> Json:
        return text(json.dumps(dict(os.environ), sort_keys=True), os.getcwd())

    def tool_destroy(self, call: Call, args: Json) -> Json:
        return text("gone")

    def tool_again(self, call: Call, args: Json) -> Json:
        return text("once more")

    def tool_figures(self, call: Call, args: Json) -> Json:
        return text("4") | {"structuredContent": {"sum": 4}}

    def tool_bad_figures(self, call: Call, args: Json) -> Json:
        return text("four") | {"structuredContent": {"sum": "four"}}

    def tool_bad_result(self, call: Call, args: Json) -> Json:
        return {"content": "no list"}

    def tool_bad_type(self, call: Call, args: Json) -> Json:
        return {"resultType": "strange", "content": []}

    def tool_fail(self, call: Call, args: Json) -> Json:
        return text("no milk") | {"isError": True}

    def tool_refuse(self, call: Call, args: Json) -> Json:
        raise Refusal(-32602, "not like this")

    def tool_media(self, call: Call, args: Json) -> Json:
        return {
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "data": PIXEL, "mimeType": "image/png"},
                {"type": "audio", "data": PIXEL, "mimeType": "audio/wav"},
                {"type": "resource", "resource": {"uri": "file:///a/note.txt", "text": "a note"}},
                {
                    "type": "resource",
                    "resource": {"uri": "file:///a/b.pdf", "blob": PIXEL, "mimeType": "application/pdf"},
                },
                {"type": "resource_link", "uri": "https://example.com/x", "name": "x", "title": "X"},
                {"type": "image", "data": "%%%", "mimeType": "image/png"},
                {"type": "hologram"},
            ]
        }

    def tool_progress(self, call: Call, args: Json) -> Json:
        for n in range(args.get("n", 5)):
            call.progress(n + 1, args.get("n", 5), f"step {n + 1}")
            time.sleep(args.get("delay", 0.0))
        return text("done")

    def tool_log(self, call: Call, args: Json) -> Json:
        for level, data in (("debug", "small"), ("info", "line one"), ("error", {"message": "line two"})):
            call.notify("notifications/message", level=level, logger="x", data=data)
        return text("logged")

    def tool_slow(self, call: Call, args: Json) -> Json:
        cancelled = call.cancelled.wait(args.get("s", 30))
        self.server.note("cancelled" if cancelled else "finished")
        return text("slept")

    def reply(self, call: Call, result: Json) -> None:
        """An answer besides the one that the tool gives."""
        self.server.raw(
            json.dumps({"jsonrpc": "2.0", "id": call.id, "result": {"resultType": "complete"} | result}).encode()
        )

    def tool_hang(self, call: Call, args: Json) -> Json:
        call.cancelled.wait(args.get("s", 600))
        self.server.note("hang cancelled" if call.cancelled.is_set() else "hang over")
        if args.get("late"):
            time.sleep(0.1)
            self.reply(call, text("late"))
        raise SystemExit  # no answer

    def tool_for_ever(self, call: Call, args: Json) -> Json:
        done = 0
        while not call.cancelled.wait(args.get("every", 0.02)):
            done += 1
            call.progress(done)
        self.server.note("progress cancelled")
        return text("never")

    def tool_crash(self, call: Call, args: Json) -> Json:
        print("about to crash", file=sys.stderr, flush=True)
        os._exit(3)

    def tool_close(self, call: Call, args: Json) -> Json:
        os.close(1)
        time.sleep(args.get("s", 30))
        return text("closed")

    def tool_ask(self, call: Call, args: Json) -> Json:
        form = {"message": f"Who are you, {args.get('who', 'friend')}?", "mode": "form", "requestedSchema": FORM}
        answer = call.ask("elicitation/create", form)
        return text(json.dumps(answer, sort_keys=True))

    def tool_withdraw(self, call: Call, args: Json) -> Json:
        """Ask, and take the question back."""
        server = self.server
        id, answers = server.begin_request(
            "elicitation/create", {"message": "Never mind", "mode": "form", "requestedSchema": FORM}, call.send
        )
        time.sleep(args.get("s", 0.3))
        call.notify("notifications/cancelled", requestId=id, reason="withdrawn")
        time.sleep(0.1)
        return text("withdrawn", answers.qsize())

    def tool_visit(self, call: Call, args: Json) -> Json:
        url = args.get("url", "https://example.com/sign")
        answer = call.ask(
            "elicitation/create", {"mode": "url", "message": "Go there", "url": url, "elicitationId": "e1"}
        )
        return text(json.dumps(answer))

    def tool_visit_first(self, call: Call, args: Json) -> Json:
        if not self.visited:
            self.visited = True
            wanted = {"mode": "url", "message": "First this", "url": "https://example.com/first", "elicitationId": "e2"}
            raise Refusal(-32042, "visit first", {"elicitations": [wanted]})
        return text("visited")

    def tool_sample(self, call: Call, args: Json) -> Json:
        contents: list[Json] = [
            {"type": "text", "text": "What is this?"},
            {"type": "image", "data": PIXEL, "mimeType": "image/png"},
        ]
        messages = [{"role": "user", "content": content} for content in contents]
        asked = {"messages": messages, "maxTokens": 50, "systemPrompt": "Be short."}
        return text(json.dumps(call.ask("sampling/createMessage", asked), sort_keys=True))

    def tool_roots(self, call: Call, args: Json) -> Json:
        return text(json.dumps(call.ask("roots/list", {})))

    def tool_change(self, call: Call, args: Json) -> Json:
        """Change what is offered, and say so several times."""
        self.extra = [{"name": f"new_{n}", "description": "New.", "inputSchema": ANY} for n in range(args.get("n", 1))]
        for _ in range(5):
            self.server.changed("tools")
        return text("changed")

    def tool_new_0(self, call: Call, args: Json) -> Json:
        return text("new")

    # floods

    def tool_flood(self, call: Call, args: Json) -> Json:
        """Many notifications of a method, as fast as can be written."""
        method, params = args["method"], dict(args.get("params", {}))
        if method == "notifications/progress":
            params |= {"progressToken": call.meta["progressToken"], "progress": 1}
        line = json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode() + b"\n"
        left = args["n"]
        while left > 0 and not self.server.piped:
            call.send({"jsonrpc": "2.0", "method": method, "params": params})
            left -= 1
        while left > 0:
            self.server.raw((line * min(left, 1000))[:-1])
            left -= 1000
        return text("flooded")

    def tool_long_line(self, call: Call, args: Json) -> Json:
        self.server.raw(b'{"jsonrpc":"2.0","x":"' + b"x" * (args["mib"] << 20) + b'"}')
        return text("long")

    def tool_endless_line(self, call: Call, args: Json) -> Json:
        while True:
            os.write(1, b"x" * 65536)

    def tool_stderr(self, call: Call, args: Json) -> Json:
        for n in range(args["mib"]):
            os.write(2, bytes([65 + n % 26]) * (1 << 20))
        return text("wrote")

    # bad bytes

    def tool_bytes(self, call: Call, args: Json) -> Json:
        """Lines before the answer, base64."""
        for line in args["lines"]:
            self.server.raw(base64.b64decode(line))
        return text("after")

    def tool_bad_utf8(self, call: Call, args: Json) -> Json:
        body = json.dumps(
            {"jsonrpc": "2.0", "id": call.id, "result": {"resultType": "complete"} | text("caf\xe9")},
            ensure_ascii=False,
        )
        self.server.raw(body.encode("latin-1"))
        raise SystemExit

    def tool_nan(self, call: Call, args: Json) -> Json:
        return text("nan") | {"structuredContent": {"value": float("nan")}}

    def tool_wrong_id(self, call: Call, args: Json) -> Json:
        self.server.raw(json.dumps({"jsonrpc": "2.0", "id": 99_999, "result": text("wrong")}).encode())
        return text("right")

    def tool_twice(self, call: Call, args: Json) -> Json:
        self.reply(call, text("first"))
        return text("second")


class Server:
    """The protocol, whichever way messages come and go."""

    def __init__(self, options: Options, send: Send) -> None:
        self.options, self.send = options, send
        self.tools = Tools(self)
        self.calls: dict[Any, Call] = {}
        self.waiting: dict[Any, queue.Queue[Json]] = {}
        self.listeners: dict[Any, Send] = {}
        self.count = 0
        self.asked: list[str] = []
        self.raw: Callable[[bytes], None] = lambda line: send(json.loads(line))
        self.piped = False

    def note(self, line: str) -> None:
        if self.options.journal:
            with open(self.options.journal, "a") as file:
                file.write(f"{line}\n")

    def begin_request(self, method: str, params: Json, send: Send | None = None) -> tuple[str, queue.Queue[Json]]:
        self.count += 1
        id = f"s{self.count}"
        answers = self.waiting[id] = queue.Queue()
        (send or self.send)({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        return id, answers

    def request(self, method: str, params: Json, send: Send | None = None) -> Json:
        _, answers = self.begin_request(method, params, send)
        answer = answers.get(timeout=60)
        return dict(answer["result"]) if "result" in answer else {"error": answer["error"]}

    def changed(self, what: str) -> None:
        message = {"jsonrpc": "2.0", "method": f"notifications/{what}/list_changed"}
        for id, send in self.listeners.items():
            send(message | {"params": {"_meta": {f"{PREFIX}subscriptionId": id}}})
        if not self.listeners:
            self.send(message)

    def take(self, message: Json, send: Send) -> None:
        """A message of the client's; whatever has to be said is sent."""
        method, id = message.get("method"), message.get("id")
        if method is None:
            if (waiting := self.waiting.pop(id, None)) is not None:
                waiting.put(message)
            return
        if id is None:
            if method == "notifications/cancelled":
                found = self.calls.get((message.get("params") or {}).get("requestId"))
                if found is not None:
                    found.cancelled.set()
            return
        call = self.calls[id] = Call(self, message, send)
        answer: Json = {"jsonrpc": "2.0", "id": id}
        try:
            result = self.answer(method, call)
            if call.stateless:
                result = {"resultType": "complete"} | result
                if "list" in method or method in ("resources/read", "server/discover"):
                    result = {"ttlMs": 0, "cacheScope": "private"} | result
            answer["result"] = result
        except InputRequired as e:
            answer["result"] = {"resultType": "input_required", "inputRequests": e.requests, "requestState": "state"}
        except Refusal as e:
            answer["error"] = e.error
        except SystemExit:
            return
        finally:
            self.calls.pop(id, None)
        send(answer)

    def answer(self, method: str, call: Call) -> Json:
        self.asked.append(method)
        params = call.params
        if method == "initialize" and self.options.era != "stateless":
            return {
                "protocolVersion": OLD,
                "capabilities": self.capabilities(),
                "serverInfo": {"name": "scripted", "version": "1", "title": "Scripted"},
                "instructions": "Use it with care.",
            }
        if method == "server/discover" and self.options.touchy:
            os._exit(5)
        if method == "server/discover" and self.options.era != "handshake":
            return {
                "supportedVersions": [NEW],
                "capabilities": self.capabilities(),
                "instructions": "Use it with care.",
                "_meta": {f"{PREFIX}serverInfo": {"name": "scripted", "version": "1", "title": "Scripted"}},
            }
        if method == "ping" and self.options.ping:
            return {}
        if method == "tools/list":
            return self.page(self.tools.listed(), params)
        if method == "tools/call":
            if self.options.every_call == "crash":
                os._exit(4)
            tool = getattr(self.tools, f"tool_{params['name']}", None)
            if tool is None:
                raise Refusal(-32602, f"no tool {params['name']}")
            self.note(f"call {params['name']}")
            result: Json = tool(call, params.get("arguments") or {})
            return result
        if method == "prompts/list":
            arguments = [{"name": "style", "description": "How.", "required": True}]
            return {"prompts": [{"name": "greet", "title": "Greet", "description": "Greets.", "arguments": arguments}]}
        if method == "prompts/get":
            if params["name"] != "greet":
                raise Refusal(-32602, "no such prompt")
            style = params["arguments"]["style"]
            if style == "ask":
                form = {"message": "For a prompt?", "mode": "form", "requestedSchema": FORM}
                style = json.dumps(call.ask("elicitation/create", form))
            said = {"type": "text", "text": f"Hello, {style}"}
            return {"messages": [{"role": "user", "content": said}]}
        if method == "resources/list":
            return {"resources": [{"uri": "note://one", "name": "one", "mimeType": "text/plain", "size": 3}]}
        if method == "resources/templates/list":
            return {"resourceTemplates": [{"uriTemplate": "note://{name}", "name": "notes"}]}
        if method == "resources/read":
            if not params["uri"].startswith("note://"):
                raise Refusal(-32602, "no such resource")
            return {"contents": [{"uri": params["uri"], "text": "abc"}, {"uri": "note://b.png", "blob": PIXEL}]}
        if method == "completion/complete":
            value = params["argument"]["value"]
            return {"completion": {"values": [w for w in ("formal", "friendly") if w.startswith(value)]}}
        if method == "subscriptions/listen" and self.options.listed:
            wanted = params["notifications"]
            note = {"notifications": wanted, "_meta": {f"{PREFIX}subscriptionId": call.id}}
            call.notify("notifications/subscriptions/acknowledged", **note)
            self.listeners[call.id] = call.send
            try:
                call.cancelled.wait(600)
            finally:
                self.listeners.pop(call.id, None)
            raise SystemExit
        raise Refusal(-32601, "Method not found")

    def page(self, tools: list[Json], params: Json) -> Json:
        if self.options.pages == 0:
            at = int(params.get("cursor") or 0)
            return {"tools": tools if at == 0 else [], "nextCursor": str(at + 1)}
        size = -(-len(tools) // self.options.pages)
        at = int(params.get("cursor") or 0)
        rest = {"nextCursor": str(at + size)} if at + size < len(tools) else {}
        return {"tools": tools[at : at + size]} | rest

    def capabilities(self) -> Json:
        told = {"listChanged": self.options.listed}
        return {"tools": told, "prompts": told, "resources": told, "logging": {}, "completions": {}}


# --- over standard input and output ---


def main() -> None:
    options = parse()
    lock = threading.Lock()

    def raw(line: bytes) -> None:
        left = memoryview(line + b"\n")
        with lock:
            while left:
                left = left[os.write(1, left) :]

    def send(message: Json) -> None:
        raw(json.dumps(message).encode())

    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.children:
        body = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-S", "-c", body])
        subprocess.Popen([sys.executable, "-S", "-c", body], start_new_session=True)
    if options.start == "crash" or (options.sick and os.path.exists(options.sick)):
        print("I am sick", file=sys.stderr, flush=True)
        os._exit(2)
    if options.start == "hang":
        time.sleep(600)
    while options.start == "endless":
        os.write(1, b"x" * 65536)
    server = Server(options, send)
    server.raw, server.piped = raw, True
    server.note("start")
    for line in sys.stdin.buffer:
        threading.Thread(target=server.take, args=(json.loads(line), send), daemon=True).start()
    while options.stubborn:
        time.sleep(1)


def parse() -> Options:
    parser = argparse.ArgumentParser()
    for name, default in vars(Options()).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", type=json.loads, default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return Options(**vars(parser.parse_args()))


def command(**options: Any) -> list[str]:
    """The command line of a server with such options."""
    words = [f"--{name}={json.dumps(v) if isinstance(v, bool) else v}" for name, v in options.items()]
    return [sys.executable, "-S", __file__, *words]


# --- over HTTP ---


class HttpServer:
    """The same over HTTP on loopback, with what can go wrong there.

    Args:
        faults: `unauthorized` (401 to all), `cut` (the answer to a call breaks off), `redirect` (to another origin),
            `sse` (the older transport alone), `large` (an answer of 5 MiB), `zipped` (compressed, unasked),
            `drop` (no answer at all to a call of `destroy`), `half` (the half of one).
    """

    def __init__(self, *faults: str, port: int = 0, **options: Any) -> None:
        self.faults = set(faults)
        self.options = Options(**options)
        self.sessions: dict[str, Server] = {}
        self.streams: dict[str, queue.Queue[Json | None]] = {}
        self.requests: list[tuple[str, str]] = []
        self.elsewhere = ""
        self.cuts = 0
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = _Http(("127.0.0.1", port), handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{'sse' if 'sse' in self.faults else 'mcp'}"

    def stop(self) -> None:
        for stream in list(self.streams.values()):
            stream.put(None)
        self.http.shutdown()
        self.http.server_close()
        for taken in self.http.taken:  # a process that ends keeps no connection either
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Http(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.taken: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.taken.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go as they please."""


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: HttpServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or else each answer waits 40 ms for an acknowledgement

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if "zipped" in self.owner.faults:
            data = gzip.compress(data)
            self.send_header("content-encoding", "gzip")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if body is not None:
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        owner = self.owner
        owner.requests.append((self.command, self.path))
        if "unauthorized" in owner.faults:
            self.reply(401, **{"www-authenticate": "Bearer"})
        elif "redirect" in owner.faults:
            self.reply(307, location=f"{owner.elsewhere}/mcp")
        elif "sse" in owner.faults and self.path == "/sse" and self.command == "POST":
            self.reply(405)
        else:
            return False
        return True

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.refused():
            return
        owner = self.owner
        if self.path.startswith("/messages"):
            session = self.path.partition("=")[2]
            stream = owner.streams[session]
            self.reply(202)
            threading.Thread(target=owner.sessions[session].take, args=(message, stream.put), daemon=True).start()
            return
        meta = (message.get("params") or {}).get("_meta") or {}
        stateless = f"{PREFIX}protocolVersion" in meta
        if stateless:
            server = owner.sessions.setdefault("", Server(owner.options, lambda _: None))
            session = ""
        elif message.get("method") == "initialize":
            session = f"x{len(owner.sessions) + 1}-{time.monotonic_ns()}"
            server = owner.sessions[session] = Server(owner.options, lambda m: owner.streams[session].put(m))
            owner.streams[session] = queue.Queue()
        else:
            session = self.headers.get("mcp-session-id", "")
            if session not in owner.sessions or not session:
                self.reply(
                    404, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Session not found"}}
                )
                return
            server = owner.sessions[session]
        if message.get("id") is None or "method" not in message:
            self.reply(202)
            server.take(message, lambda _: None)
            return
        method = message["method"]
        headers = {"mcp-session-id": session} if session else {}
        if {"drop", "half"} & owner.faults and method == "tools/call" and message["params"]["name"] == "destroy":
            self.close_connection = True
            if "half" in owner.faults:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"jsonrpc"')
            return
        if "large" in owner.faults and method == "tools/call":
            self.reply(200, {"jsonrpc": "2.0", "id": message["id"], "result": text("x" * (5 << 20))}, **headers)
            return
        if method not in ("tools/call", "subscriptions/listen"):
            answers: list[Json] = []
            server.take(message, answers.append)
            status = 404 if answers and answers[0].get("error", {}).get("code") == -32601 and stateless else 200
            self.reply(status, answers[0], **headers)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if "cut" in owner.faults and method == "tools/call":
            owner.cuts += 1
            server.note(f"cut {message['params']['name']}")
            self.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "…"}})
            if owner.cuts == 1:
                return
        with contextlib.suppress(OSError):
            server.take(message, self.event)

    def event(self, message: Json) -> None:
        self.wfile.write(f"event: message\ndata: {json.dumps(message)}\n\n".encode())
        self.wfile.flush()

    def do_GET(self) -> None:
        if self.refused():
            return
        owner = self.owner
        session = self.headers.get("mcp-session-id", "")
        if self.path == "/sse":
            session = f"y{len(owner.sessions) + 1}"
            owner.streams[session] = queue.Queue()
            owner.sessions[session] = Server(owner.options, owner.streams[session].put)
        elif session not in owner.streams:
            self.reply(405)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            if self.path == "/sse":
                self.wfile.write(f"event: endpoint\ndata: /messages?session={session}\n\n".encode())
                self.wfile.flush()
            while (message := owner.streams[session].get()) is not None:
                self.event(message)

    def do_DELETE(self) -> None:
        if self.refused():
            return
        session = self.headers.get("mcp-session-id", "")
        self.owner.sessions.pop(session, None)
        if (stream := self.owner.streams.pop(session, None)) is not None:
            stream.put(None)
        self.reply(200)


if __name__ == "__main__":
    main()
