"""What a vendor's server has of its own: routes, keys, headers, errors, models. Each flavor is a subclass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import parse_qsl

from msgspec import Struct

from sag.testing.upstream.request import Refused, Request, refuse
from sag.testing.upstream.script import Fail, Json, Script
from sag.testing.upstream.writer import Format, Writer, encode

if TYPE_CHECKING:
    from sag.testing.upstream.server import FakeUpstream

CREATED = 1_790_000_000  # when models and answers were made, where the format wants a time


class Reply(Struct):
    """What a request is answered with: a script, and who writes it; without a writer its body or its error."""

    script: Script
    writer: Writer | None = None
    streams: bool = False


Handler = Callable[[Request, re.Match[str]], Reply | Json]


class Flavor:
    """A vendor's server.

    Attributes:
        prefix: What the base URL has behind host and port.
        knows_models: Models that are not there are refused, else only if the server is strict.
    """

    prefix: ClassVar[str] = "/v1"
    knows_models: ClassVar[bool] = True

    def __init__(self, server: FakeUpstream) -> None:
        self.server = server
        self.routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Serve a path; `{name}` in it stands for anything but a slash."""
        pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
        self.routes.append((method, pattern, handler))

    def add_format(self, path: str, form: Format) -> None:
        """Serve a wire format."""
        self.add("POST", path, lambda request, match: self.ask(request, form))

    def answer(self, request: Request) -> Reply:
        """Answer a request."""
        try:
            reply = self._route(request)
        except Refused as e:
            reply = Reply(Script([e.fail], e.fail.status))
        return reply if isinstance(reply, Reply) else Reply(Script(body=encode(reply)))

    def _route(self, request: Request) -> Reply | Json:
        path = request.path.partition("?")[0]
        self.check(request, path)
        there = [(method, handler, match) for method, at, handler in self.routes if (match := at.fullmatch(path))]
        right = [(handler, match) for method, handler, match in there if method == request.method]
        if not there:
            self.miss(request, path)
        if not right:
            refuse("Only another method is allowed here.", 405, code="method_not_supported")
        handler, match = right[0]
        return handler(request, match)

    def ask(self, request: Request, form: Format, **members: Any) -> Reply:
        """Answer a request to a model; `members` replace those of its body."""
        body = self.read_body(request) | members if members else self.read_body(request)
        self.check_model(body)
        asked = request.asked = form.read(body)
        script = self.server.choose(request, str(body["model"]))
        failed = script.status >= 400 and bool(script.steps) and isinstance(script.steps[0], Fail)
        if failed or script.body is not None:
            return Reply(script)
        return Reply(script, form.writer(body, asked, script, self.server.number), bool(body.get("stream")))

    # --- what differs between vendors ---

    def check(self, request: Request, path: str) -> None:
        """Check the key.

        Raises:
            Refused: It is not the right one.
        """
        key = self.server.api_key
        if key and request.headers.get("authorization") != f"Bearer {key}":
            refuse("Incorrect API key provided.", 401, code="invalid_api_key")

    def miss(self, request: Request, path: str) -> NoReturn:
        """Nothing is served there."""
        refuse(f"Unknown request URL: {request.method} {path}.", 404, code="unknown_url")

    def read_body(self, request: Request) -> Json:
        """The body of a request to a model.

        Raises:
            Refused: It is no JSON object.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            refuse("Send application/json.")
        body = request.json
        if not isinstance(body, dict):
            refuse("We could not parse the JSON body of your request.")
        return body

    def check_model(self, body: Json) -> None:
        """Check that the model is there.

        Raises:
            Refused: It is not.
        """
        model = body.get("model")
        if not isinstance(model, str) or not model:
            refuse("you must provide a model parameter")
        if (self.server.strict or self.knows_models) and model not in self.server.models:
            self.miss_model(model)

    def miss_model(self, model: str) -> NoReturn:
        """There is no such model."""
        refuse(f"The model `{model}` does not exist.", 404, code="model_not_found")

    def headers(self, status: int, given: Mapping[str, str]) -> dict[str, str]:
        """Headers of every answer; `given` are the script's, which win."""
        return {}

    def write_error(self, fail: Fail) -> Json:
        """The body of an error."""
        error = {"message": fail.message, "type": fail.type, "param": fail.param, "code": fail.code, **fail.members}
        return {"error": error}

    def list_models(self, request: Request, match: re.Match[str]) -> Json:
        """The models, in OpenAI's form, and the context that compatible servers tell with it."""
        each: Json = {"object": "model", "created": CREATED, "owned_by": "fake"}
        if self.server.max_model_len is not None:
            each["max_model_len"] = self.server.max_model_len
        return {"object": "list", "data": [{"id": id, **each, **more} for id, more in self.server.models.items()]}


def read_query(request: Request) -> dict[str, str]:
    """The query of a request, by name."""
    return dict(parse_qsl(request.path.partition("?")[2], keep_blank_values=True))
