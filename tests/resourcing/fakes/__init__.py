"""Fakes of the planning systems, each a small server on loopback that refuses what the real one refuses.

What both have stands here: a journal of requests, answers scripted for a path, and how one is run: within a test by
`run`, or by itself by `python -m tests.resourcing.fakes.productive`.
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Json = dict[str, Any]
WAIT_S = 10.0


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    at: float

    def get(self, name: str) -> str | None:
        """A parameter of the query; the first of its name."""
        return next((value for key, value in self.query if key == name), None)


@dataclass
class Scripted:
    """An answer that is given `times` times instead of the real one. Headers may depend on the time they are sent."""

    status: int
    headers: dict[str, str] | Callable[[], dict[str, str]] = field(default_factory=dict)
    body: bytes = b""
    times: int = 1


class Fake:
    """A fake API.

    Args:
        root: The path it stands under.
        page_cap: The most items of a page, whatever is asked for.
    """

    media_type = "application/json"

    def __init__(self, root: str, page_cap: int) -> None:
        self.root, self.page_cap = root, page_cap
        self.journal: list[Asked] = []
        self.scripts: dict[str, list[Scripted]] = {}
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        self.app = Starlette(routes=[Route("/{rest:path}", self._serve, methods=methods)])

    def script(self, path: str, *answers: Scripted) -> None:
        """Give these answers first at a path below the root."""
        self.scripts.setdefault(path, []).extend(answers)

    def reset(self) -> None:
        """Forget the requests and the scripts."""
        self.journal.clear()
        self.scripts.clear()

    def asked(self, path: str) -> list[Asked]:
        """The requests for a path below the root."""
        return [asked for asked in self.journal if asked.path == self.root + path]

    def limit(self) -> Scripted:
        """The 429 of this API, with the shortest wait that it can tell of."""
        raise NotImplementedError

    def answer(self, asked: Asked, path: str) -> Response:
        """The real answer.

        Args:
            path: Below the root.
        """
        raise NotImplementedError

    def json(self, body: Json, status: int = 200) -> Response:
        """An answer of JSON."""
        return Response(json.dumps(body), status, media_type=self.media_type)

    async def _serve(self, request: Request) -> Response:
        asked = Asked(
            request.method, request.url.path, request.query_params.multi_items(), dict(request.headers), time.time()
        )
        self.journal.append(asked)
        path = asked.path.removeprefix(self.root)
        if path == asked.path:
            return Response(status_code=404)
        for scripted in self.scripts.get(path, []):
            if scripted.times > 0:
                scripted.times -= 1
                headers = scripted.headers() if callable(scripted.headers) else scripted.headers
                return Response(scripted.body, scripted.status, headers, media_type=self.media_type)
        return self.answer(asked, path)


@contextmanager
def run(fake: Fake) -> Iterator[str]:
    """Serve on a free port of loopback; gives the address with its root."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(fake.app, log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not server.started:
        assert thread.is_alive(), "the fake did not start"
        assert time.monotonic() < deadline, "the fake did not start in time"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}{fake.root}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        sock.close()
        assert not thread.is_alive(), "the fake did not stop"


def main(make: Callable[[int], Fake]) -> None:
    """Serve until Ctrl-C; the address is the first line on stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--page-cap", type=int, default=1000, help="the most items of a page")
    parser.add_argument("--limit-once", action="append", default=[], metavar="PATH", help="answer 429 there, once")
    given = parser.parse_args()
    fake = make(given.page_cap)
    for path in given.limit_once:
        fake.script(path, fake.limit())
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", given.port))
    print(f"http://127.0.0.1:{sock.getsockname()[1]}{fake.root}", flush=True)
    uvicorn.Server(uvicorn.Config(fake.app, log_level="info", ws="none", lifespan="off")).run([sock])
