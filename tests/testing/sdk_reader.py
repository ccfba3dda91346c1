"""Speaks to a server with the official SDKs and tells what they read: jobs as lines of JSON in, answers out.

Run by the interpreter that has the SDKs (see test_sdks.py). A job has:

    client: the SDK's class, with what it is made of
    api: `chat`, `responses`, `messages`, or `models`, `count`
    stream: whether the SDK's own accumulator of streams is used
    request: what the call is given
    results: what the tools answer, by their order; then the SDK's own objects go back with them, and the second
        answer is what is told

An answer has text, thought, calls, usage and finish in words of no vendor, or `error` with the exception's class.
"""

# The SDKs are not in the environment that types are checked in.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import openai

Json = dict[str, Any]

# The SDKs' own HTTP clients, made once: each loads the certificates of the whole world.
OPENAI, ANTHROPIC = openai.DefaultHttpxClient(), anthropic.DefaultHttpxClient()
CLASSES = {
    "OpenAI": (openai.OpenAI, OPENAI),
    "AzureOpenAI": (openai.AzureOpenAI, OPENAI),
    "Anthropic": (anthropic.Anthropic, ANTHROPIC),
}


def run(job: Json) -> Json:
    """Do a job."""
    given = dict(job["client"])
    make, http = CLASSES[given.pop("class")]
    client = make(**given, http_client=http)
    try:
        return APIS[job["api"]](client, job)
    except Exception as e:
        return {
            "error": type(e).__name__,
            "status": getattr(e, "status_code", None),
            "code": getattr(e, "code", None),
            "message": str(e),
            "request_id": getattr(e, "request_id", None),
        }


def call(name: str, id: str, arguments: str | Json) -> Json:
    return {"name": name, "id": id, "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}


def dump(given: Any) -> Json:
    whole: Json = given.model_dump(mode="json", exclude_unset=True)
    whole.pop("parsed", None)
    return whole


def chat(client: Any, job: Json) -> Json:
    request = job["request"]
    if job["stream"]:
        with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
            kinds = [event.type for event in stream]
            answer = stream.get_final_completion()
    else:
        kinds = []
        answer = client.chat.completions.create(**request)
    [choice] = answer.choices
    message = choice.message
    made = message.tool_calls or []
    if "results" in job:
        tools = [
            {"role": "tool", "tool_call_id": one.id, "content": result}
            for one, result in zip(made, job["results"], strict=True)
        ]
        replay = dump(message)
        for one in replay["tool_calls"]:
            one.pop("index", None)
            one["function"].pop("parsed_arguments", None)
        return chat(client, again(job, "messages", [replay, *tools]))
    usage = answer.usage
    return {
        "text": message.content or "",
        "thought": (message.model_extra or {}).get("reasoning") or "",
        "refusal": message.refusal or "",
        "calls": [call(one.function.name, one.id, one.function.arguments) for one in made],
        "finish": choice.finish_reason,
        "sent": usage.prompt_tokens,
        "written": usage.completion_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
        "reasoning": usage.completion_tokens_details.reasoning_tokens,
        "extra": usage.model_extra,
        "kinds": kinds,
    }


def responses(client: Any, job: Json) -> Json:
    request = job["request"]
    if job["stream"]:
        with client.responses.stream(**request) as stream:
            events = list(stream)
            kinds = [event.type for event in events]
            # The SDK gives a final response only where that is complete.
            answer = stream.get_final_response() if kinds[-1] == "response.completed" else events[-1].response
    else:
        kinds = []
        answer = client.responses.create(**request)
    made = [item for item in answer.output if item.type == "function_call"]
    thoughts = [item for item in answer.output if item.type == "reasoning"]
    if "results" in job:
        replay = [dump(item) for item in answer.output]
        for item in replay:
            item.pop("parsed_arguments", None)
        outputs = [
            {"type": "function_call_output", "call_id": one.call_id, "output": result}
            for one, result in zip(made, job["results"], strict=True)
        ]
        return responses(client, again(job, "input", [*replay, *outputs]))
    usage = answer.usage
    return {
        "text": answer.output_text,
        "thought": "".join(part.text for item in thoughts for part in item.summary),
        "sealed": [item.encrypted_content for item in thoughts],
        "calls": [call(one.name, one.call_id, one.arguments) for one in made],
        "finish": answer.incomplete_details.reason if answer.incomplete_details else answer.status,
        "sent": usage.input_tokens,
        "written": usage.output_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
        "kinds": kinds,
    }


def messages(client: Any, job: Json) -> Json:
    request = job["request"]
    if job["stream"]:
        with client.messages.stream(**request) as stream:
            kinds = [event.type for event in stream]
            answer = stream.get_final_message()
    else:
        kinds = []
        answer = client.messages.create(**request)
    made = [block for block in answer.content if block.type == "tool_use"]
    thoughts = [block for block in answer.content if block.type == "thinking"]
    if "results" in job:
        results = [
            {"type": "tool_result", "tool_use_id": one.id, "content": result}
            for one, result in zip(made, job["results"], strict=True)
        ]
        replay = {"role": "assistant", "content": answer.content}
        return messages(client, again(job, "messages", [replay, {"role": "user", "content": results}]))
    usage = answer.usage
    return {
        "text": "".join(block.text for block in answer.content if block.type == "text"),
        "thought": "".join(block.thinking for block in thoughts),
        "sealed": [block.signature for block in thoughts],
        "calls": [call(one.name, one.id, one.input) for one in made],
        "finish": answer.stop_reason,
        "details": dump(answer.stop_details) if answer.stop_details else None,
        "sent": usage.input_tokens,
        "written": usage.output_tokens,
        "cached": usage.cache_read_input_tokens,
        "cache_write": usage.cache_creation_input_tokens,
        "reasoning": usage.output_tokens_details.thinking_tokens,
        "types": [block.type for block in answer.content],
        "kinds": kinds,
    }


def again(job: Json, member: str, more: list[Any]) -> Json:
    """The job of the second round."""
    request = {**job["request"], member: [*job["request"][member], *more]}
    return {name: value for name, value in job.items() if name != "results"} | {"request": request}


def models(client: Any, job: Json) -> Json:
    return {"ids": [model.id for model in client.models.list(**job["request"])]}


def count(client: Any, job: Json) -> Json:
    return {"tokens": client.messages.count_tokens(**job["request"]).input_tokens}


APIS: dict[str, Callable[[Any, Json], Json]] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "models": models,
    "count": count,
}

if __name__ == "__main__":
    print(json.dumps({"openai": openai.__version__, "anthropic": anthropic.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
