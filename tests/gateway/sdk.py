"""Speaks to the hub with the official SDK of OpenAI: jobs as lines of JSON in, answers out.

Run by the interpreter that has the SDK (see test_openai_sdk.py). A job has `client`, what the SDK's client is made of,
`do`, one of the functions below, and what that is given.
"""

# The SDK is not in the environment that types are checked in.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from typing import Any

import openai

Json = dict[str, Any]
HTTP = openai.DefaultHttpxClient()


def models(client: Any) -> Any:
    return [model.id for model in client.models.list()]


def retrieve(client: Any, id: str) -> Any:
    return client.models.retrieve(id).model_dump(mode="json")


def create(client: Any, request: Json) -> Any:
    return client.chat.completions.create(**request).model_dump(mode="json")


def chunks(client: Any, request: Json) -> Any:
    return [chunk.model_dump(mode="json") for chunk in client.chat.completions.create(**request, stream=True)]


def accumulate(client: Any, request: Json) -> Any:
    """The SDK's own accumulator of streams."""
    with client.chat.completions.stream(**request) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().model_dump(mode="json")


def leave(client: Any, request: Json) -> Any:
    """Close a stream at its first text."""
    with client.chat.completions.create(**request, stream=True) as stream:
        return next(chunk.choices[0].delta.content for chunk in stream)


def loop(client: Any, request: Json, results: list[list[str]], stream: bool) -> Any:
    """A tool loop with the SDK's own objects: each round's calls are answered by what is given for it."""
    messages, calls = list(request["messages"]), []
    for round in range(len(results) + 1):
        asked = {**request, "messages": messages}
        if stream:
            with client.chat.completions.stream(**asked) as told:
                for _ in told:
                    pass
                answer = told.get_final_completion()
        else:
            answer = client.chat.completions.create(**asked)
        [choice] = answer.choices
        made = choice.message.tool_calls or []
        calls.append([(one.function.name, json.loads(one.function.arguments)) for one in made])
        if choice.finish_reason != "tool_calls":
            return {"text": choice.message.content, "calls": calls, "finish": choice.finish_reason, "rounds": round + 1}
        messages.append(choice.message)
        for one, result in zip(made, results[round], strict=True):
            messages.append({"role": "tool", "tool_call_id": one.id, "content": result})
    return {"calls": calls, "finish": choice.finish_reason}


DO = {one.__name__: one for one in (models, retrieve, create, chunks, accumulate, leave, loop)}


def run(job: Json) -> Any:
    """Do a job."""
    client = openai.OpenAI(**job.pop("client"), http_client=HTTP)
    try:
        return DO[job.pop("do")](client, **job)
    except openai.APIError as e:
        return {
            "error": type(e).__name__,
            "status": getattr(e, "status_code", None),
            "code": e.code,
            "type": e.type,
            "param": e.param,
            "message": e.message,
        }


if __name__ == "__main__":
    print(json.dumps(openai.__version__), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
