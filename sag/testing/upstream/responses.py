"""The Responses API: what is accepted, what is kept, and what is refused in the words of the real server."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from sag.testing.upstream.chat import EFFORTS
from sag.testing.upstream.flavor import Flavor
from sag.testing.upstream.request import (
    Asked,
    File,
    Request,
    check_types,
    count_tokens,
    quote,
    read_data_url,
    refuse,
    unseal,
)
from sag.testing.upstream.responses_writer import ResponsesWriter
from sag.testing.upstream.script import Json, Script
from sag.testing.upstream.writer import Format, Writer

KEPT = 1000  # answers that are remembered

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ROLES = ("user", "assistant", "system", "developer")
_BUILT_IN = (
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "mcp",
    "local_shell",
    "computer",
    "custom",
)
_INCLUDE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)
_TYPES: dict[str, tuple[type, ...]] = {
    "input": (str, list),
    "tools": (list,),
    "include": (list,),
    "reasoning": (dict,),
    "stream_options": (dict,),
    "text": (dict,),
    "max_output_tokens": (int,),
    "previous_response_id": (str,),
}
_PARAMS = frozenset(
    """
    model input instructions tools tool_choice parallel_tool_calls max_output_tokens max_tool_calls reasoning text
    previous_response_id conversation store stream stream_options include background truncation metadata temperature
    top_p top_logprobs user safety_identifier prompt_cache_key prompt_cache_retention service_tier prompt
    context_management
    """.split()  # noqa: SIM905
)


class Kept(Struct):
    """An answer that was given.

    Attributes:
        response: The object.
        items: What was asked and answered up to it, as input items.
    """

    response: Json
    items: list[Json]


class ResponsesFormat(Format):
    """Responses. Items that it gave are remembered, so that those that belong together come back together."""

    def __init__(self, flavor: Flavor) -> None:
        super().__init__(flavor)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: OrderedDict[str, Json] = OrderedDict()
        self._needs: OrderedDict[str, str] = OrderedDict()

    def keep(self, response: Json, asked: Sequence[Json], store: bool) -> None:
        """Remember an answer, and which of its items belong together."""
        thought = ""
        for item in response["output"]:
            if item["type"] == "reasoning":
                thought = item["id"]
            elif thought:
                for key in (item["id"], item.get("call_id")):
                    if key is not None:
                        _remember(self._needs, key, thought)
            if store:
                _remember(self._items, item["id"], item)
        if store:
            _remember(self._kept, response["id"], Kept(response, [*asked, *response["output"]]))

    def fetch(self, request: Request, match: re.Match[str]) -> Json:
        """A stored answer, by its id."""
        kept = self._kept.get(match["id"])
        if kept is None:
            refuse(f"Response with id '{match['id']}' not found.", 404)
        return kept.response

    def read(self, body: Json) -> Asked:
        check_types(body, _TYPES, "Invalid type for '{name}': expected {types}.")
        server = self.flavor.server
        if server.strict and (unknown := sorted(set(body) - _PARAMS)):
            refuse(f"Unknown parameter: '{unknown[0]}'.", code="unknown_parameter", param=unknown[0])
        least = body.get("max_output_tokens")
        if least is not None and least < 16:
            text = f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {least}."
            refuse(text, param="max_output_tokens", code="integer_below_min_value")
        for one in body.get("include") or ():
            if one not in _INCLUDE:
                text = f"Invalid value: '{one}'. Supported values are: {quote(_INCLUDE)}."
                refuse(text, param="include", code="invalid_value")
        for name in ("temperature", "top_p"):
            if body["model"] in server.reasoning_models and body.get(name) is not None:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                refuse(text, param=name, code="unsupported_parameter")
        options = set(body.get("stream_options") or ()) - {"include_obfuscation"}
        if server.strict and options:
            refuse(f"Unknown parameter: 'stream_options.{min(options)}'.", code="unknown_parameter")
        if body.get("conversation") is not None:
            refuse("Conversation with that id not found.", 404, param="conversation")
        if body.get("background"):
            refuse("Background mode is not available here.", param="background")
        asked = Asked(shows=False)
        self._read_reasoning(body, asked)
        self._read_tools(body, asked)
        self._read_items(body, asked)
        asked.input = count_tokens(body.get("instructions"), asked.transcript, body.get("tools")) + 3
        return asked

    def writer(self, body: Json, asked: Asked, script: Script, number: int) -> Writer:
        store = body.get("store") is not False

        def keep(response: Json) -> None:
            self.keep(response, asked.transcript, store)

        return ResponsesWriter(self.flavor, body, asked, script, number, keep)

    def _read_reasoning(self, body: Json, asked: Asked) -> None:
        given = body.get("reasoning") or {}
        effort = given.get("effort")
        if effort is not None and effort not in EFFORTS:
            text = f"Invalid value: '{effort}'. Supported values are: {quote(EFFORTS)}."
            refuse(text, param="reasoning.effort", code="invalid_value")
        asked.thinks = effort not in (None, "none")
        asked.shows = given.get("summary") is not None

    def _read_tools(self, body: Json, asked: Asked) -> None:
        for i, tool in enumerate(body.get("tools") or ()):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind != "function":
                if not str(kind).startswith(_BUILT_IN):
                    text = f"Invalid value: '{kind}'. Supported values are: {quote(('function', *_BUILT_IN))}."
                    refuse(text, param=f"tools[{i}].type", code="invalid_value")
                continue
            name = tool.get("name")
            if name is None:
                text = f"Missing required parameter: 'tools[{i}].name'."
                refuse(text, param=f"tools[{i}].name", code="missing_required_parameter")
            if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
                text = f"Invalid 'tools[{i}].name': string does not match pattern."
                refuse(text, param=f"tools[{i}].name", code="invalid_value")
            asked.tools.append(name)
        choice = body.get("tool_choice") or "auto"
        if isinstance(choice, dict) and choice.get("type") == "function":
            choice = choice.get("name")
            if choice not in asked.tools:
                refuse(f"Tool choice '{choice}' not found in 'tools' parameter.", param="tool_choice")
        if isinstance(choice, str):
            asked.choice = choice

    def _read_items(self, body: Json, asked: Asked) -> None:
        given = body.get("input")
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        if not given:
            refuse("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
        items = asked.transcript
        previous = body.get("previous_response_id")
        if previous is not None:
            kept = self._kept.get(previous)
            if kept is None:
                text = f"Previous response with id '{previous}' not found."
                refuse(text, param="previous_response_id", code="previous_response_not_found")
            items += kept.items
        fresh = len(items)
        items += [self._resolve(item, f"input[{i}]") for i, item in enumerate(given)]
        self._check_order(items)
        store = body.get("store") is not False
        for i, item in enumerate(items):
            self._read_item(item, f"input[{i - fresh}]", asked, known=i < fresh, store=store)

    def _resolve(self, item: Any, where: str) -> Json:
        if not isinstance(item, dict):
            refuse(f"Invalid type for '{where}': expected an object.", param=where, code="invalid_type")
        if item.get("type") == "item_reference":
            id = str(item.get("id"))
            if id not in self._items:
                refuse(f"Item with id '{id}' not found.", 404, param="input")
            return self._items[id]
        return item

    def _check_order(self, items: list[Json]) -> None:
        """Each call has its output, each output its call, and each item the thought that it came from."""
        called: list[str] = []
        answered: list[str] = []
        thoughts = set()
        for i, item in enumerate(items):
            kind = item.get("type")
            if kind == "reasoning":
                thoughts.add(item.get("id"))
                following = items[i + 1].get("type", "message") if i + 1 < len(items) else None
                if following not in ("message", "function_call", "reasoning"):
                    text = (
                        f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item."
                    )
                    refuse(text, param="input")
            needed = self._needs.get(str(item.get("call_id") if kind == "function_call" else item.get("id")))
            if needed is not None and kind != "function_call_output" and needed not in thoughts:
                text = (
                    f"Item '{item.get('id') or item.get('call_id')}' of type '{kind}' was provided without its "
                    f"required 'reasoning' item: '{needed}'."
                )
                refuse(text, param="input")
            if kind == "function_call":
                called.append(str(item.get("call_id")))
            elif kind == "function_call_output":
                if item.get("call_id") not in called:
                    text = f"No tool call found for function call output with call_id {item.get('call_id')}."
                    refuse(text, param="input")
                answered.append(str(item["call_id"]))
        for id in called:
            if id not in answered:
                refuse(f"No tool output found for function call {id}.", param="input")

    def _read_item(self, item: Json, where: str, asked: Asked, *, known: bool, store: bool) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            self._read_message(item, where, asked)
        elif kind == "function_call":
            asked.answers.clear()
            for name in ("call_id", "name", "arguments"):
                if not isinstance(item.get(name), str):
                    text = f"Missing required parameter: '{where}.{name}'."
                    refuse(text, param=f"{where}.{name}", code="missing_required_parameter")
        elif kind == "function_call_output":
            output = item.get("output")
            if not isinstance(output, str | list):
                text = f"Missing required parameter: '{where}.output'."
                refuse(text, param=f"{where}.output", code="missing_required_parameter")
            asked.answers.append(self._read_content(output, f"{where}.output", "user", asked))
        elif kind == "reasoning":
            if not known:
                self._check_thought(item, where, store)
        else:
            text = f"Invalid value: '{kind}'. Supported values are: 'message', 'function_call', 'reasoning'."
            refuse(text, param=f"{where}.type", code="invalid_value")

    def _check_thought(self, item: Json, where: str, store: bool) -> None:
        id = str(item.get("id"))
        if not isinstance(item.get("summary"), list):
            text = f"Missing required parameter: '{where}.summary'."
            refuse(text, param=f"{where}.summary", code="missing_required_parameter")
        sealed = item.get("encrypted_content")
        if sealed is not None:
            if (unseal("encrypted", sealed) or "").partition(" ")[0] != id:
                text = f"The encrypted content for item {id} could not be verified."
                refuse(text, code="invalid_encrypted_content")
        elif id not in self._items:
            why = "" if store else " Items are not persisted when `store` is set to false."
            text = f"Item with id '{id}' not found.{why} Remove this item from your input, or send it encrypted."
            refuse(text, 404, param="input")

    def _read_message(self, item: Json, where: str, asked: Asked) -> None:
        role = item.get("role")
        if role not in _ROLES:
            text = f"Invalid value: '{role}'. Supported values are: {quote(_ROLES)}."
            refuse(text, param=f"{where}.role", code="invalid_value")
        asked.answers.clear()
        text = self._read_content(item.get("content"), f"{where}.content", role, asked)
        if role == "user":
            asked.text = text

    def _read_content(self, content: Any, where: str, role: str, asked: Asked) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            refuse(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
        allowed = ("output_text", "refusal") if role == "assistant" else ("input_text", "input_image", "input_file")
        texts = []
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            at = f"{where}[{i}]"
            if kind not in allowed:
                text = f"Invalid value: '{kind}'. Supported values are: {quote(allowed)}."
                refuse(text, param=f"{at}.type", code="invalid_value")
            if kind == "input_image":
                asked.files.append(_read_image(part, at))
            elif kind == "input_file":
                asked.files.append(_read_file(part, at))
            else:
                member = "refusal" if kind == "refusal" else "text"
                if not isinstance(part.get(member), str):
                    text = f"Missing required parameter: '{at}.{member}'."
                    refuse(text, param=f"{at}.{member}", code="missing_required_parameter")
                texts.append(part[member])
        return "".join(texts)


def _read_image(part: Json, at: str) -> File:
    url = part.get("image_url")
    if url is None and isinstance(part.get("file_id"), str):
        return File("", source=part["file_id"])
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return File("", source=url)
    given = read_data_url(url)
    if given is None or not given[0].startswith("image/"):
        text = f"Invalid '{at}.image_url'. Expected a base64-encoded data URL with an image MIME type."
        refuse(text, param=f"{at}.image_url", code="invalid_value")
    return File(*given)


def _read_file(part: Json, at: str) -> File:
    for member in ("file_id", "file_url"):
        if isinstance(part.get(member), str):
            return File("", source=part[member])
    given = read_data_url(part.get("file_data"))
    name = part.get("filename")
    if given is None or not isinstance(name, str) or not name:
        text = f"Invalid '{at}.file_data'. Expected a base64-encoded data URL, and its 'filename'."
        refuse(text, param=f"{at}.file_data", code="invalid_value")
    return File(*given, name)


def _remember(store: OrderedDict[str, Any], key: str, value: Any) -> None:
    store[key] = value
    if len(store) > KEPT:
        store.popitem(last=False)
