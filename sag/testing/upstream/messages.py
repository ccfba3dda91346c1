"""Anthropic's Messages: what is accepted, and what is refused in the words of the real server."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any

from sag.testing.upstream.flavor import Flavor
from sag.testing.upstream.messages_writer import MessagesWriter
from sag.testing.upstream.request import Asked, File, check_types, count_tokens, quote, read_base64, refuse, unseal
from sag.testing.upstream.script import Json, Script, Usage
from sag.testing.upstream.writer import Format, Writer

KEPT = 1000  # prefixes and calls that are remembered
EFFORTS = ("low", "medium", "high", "xhigh", "max")

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_TYPES: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "system": (str, list),
    "tools": (list,),
    "thinking": (dict,),
    "tool_choice": (dict,),
    "output_config": (dict,),
    "max_tokens": (int,),
    "temperature": (int, float),
    "stop_sequences": (list,),
}
_PARAMS = frozenset(
    """
    model max_tokens messages system tools tool_choice stream temperature top_p top_k stop_sequences thinking
    output_config metadata service_tier cache_control container context_management mcp_servers inference_geo speed
    """.split()  # noqa: SIM905
)
_THOUGHTS = ("thinking", "redacted_thinking")


class MessagesFormat(Format):
    """Messages. Prefixes that were to be cached are remembered, and what was thought before calls."""

    def __init__(self, flavor: Flavor) -> None:
        super().__init__(flavor)
        self._cached: OrderedDict[str, None] = OrderedDict()
        self._thought: OrderedDict[str, list[Json]] = OrderedDict()

    def read(self, body: Json) -> Asked:
        if body.get("max_tokens") is None:
            refuse("max_tokens: Field required")
        check_types(body, _TYPES, "{name}: Input should be {types}")
        if body["max_tokens"] < 1:
            refuse("max_tokens: Input should be greater than or equal to 1")
        if unknown := sorted(set(body) - _PARAMS):
            refuse(f"{unknown[0]}: Extra inputs are not permitted")
        asked = self.read_prompt(body)
        self._check_sampling(body, asked)
        return asked

    def read_prompt(self, body: Json) -> Asked:
        """What is asked, by the members that count: system, messages, tools and thinking.

        Raises:
            Refused: They break the contract.
        """
        check_types(body, _TYPES, "{name}: Input should be {types}")
        asked = Asked()
        self._read_thinking(body, asked)
        self._read_system(body.get("system"))
        self._read_tools(body, asked)
        self._read_messages(body.get("messages"), asked)
        self._check_last_turn(asked.transcript, str((body.get("thinking") or {}).get("type")))
        found = sum(1 for one in _blocks(body) if one.get("cache_control"))
        if found > 4:
            refuse(f"A maximum of 4 blocks with cache_control may be provided. Found {found}.")
        asked.input = count_tokens(body.get("system"), body.get("messages"), body.get("tools")) + 3
        return asked

    def writer(self, body: Json, asked: Asked, script: Script, number: int) -> Writer:
        return MessagesWriter(self.flavor, body, asked, script, number, self._cache(body, asked), self._remember)

    def _remember(self, content: list[Json]) -> None:
        """Note what was thought before each call of an answer."""
        thoughts = [block for block in content if block["type"] in _THOUGHTS]
        for block in content:
            if block["type"] == "tool_use":
                self._thought[block["id"]] = thoughts
        while len(self._thought) > KEPT:
            self._thought.popitem(last=False)

    # --- options ---

    def _read_thinking(self, body: Json, asked: Asked) -> None:
        given = body.get("thinking") or {"type": "disabled"}
        kind = given.get("type")
        if kind not in ("enabled", "adaptive", "disabled", "between_tools"):
            refuse(f"thinking: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        if kind == "enabled":
            if body["model"] in self.flavor.server.reasoning_models:
                refuse('"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive".')
            budget = given.get("budget_tokens")
            if not isinstance(budget, int) or budget < 1024:
                refuse("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
            if budget >= body.get("max_tokens", budget + 1):
                refuse("`max_tokens` must be greater than `thinking.budget_tokens`.")
        effort = (body.get("output_config") or {}).get("effort")
        if effort is not None and effort not in EFFORTS:
            refuse(f"output_config.effort: Input should be {' or '.join(repr(one) for one in EFFORTS)}")
        asked.thinks = kind in ("enabled", "adaptive")
        if not asked.thinks and "thinking" in body and effort in ("xhigh", "max"):
            refuse(f"thinking.type: {kind} is not supported with effort {effort}.")

    def _check_sampling(self, body: Json, asked: Asked) -> None:
        for name in ("temperature", "top_p", "top_k"):
            if body.get(name) is None:
                continue
            if body["model"] in self.flavor.server.reasoning_models:
                refuse(f"{name}: this model does not support `{name}`. Remove it from your request.")
            if name == "temperature" and asked.thinks and body[name] != 1:
                refuse("`temperature` may only be set to 1 when thinking is enabled.")
            if name == "temperature" and not 0 <= body[name] <= 1:
                refuse("temperature: Input should be between 0 and 1")

    def _read_system(self, system: Any) -> None:
        if system is None or isinstance(system, str):
            return
        for i, block in enumerate(system):
            if not isinstance(block, dict) or block.get("type") != "text":
                refuse(f"system.{i}.type: Input should be 'text'")
            if not block.get("text"):
                refuse("system: text content blocks must be non-empty")

    def _read_tools(self, body: Json, asked: Asked) -> None:
        for i, tool in enumerate(body.get("tools") or ()):
            if not isinstance(tool, dict):
                refuse(f"tools.{i}: Input should be a valid dictionary")
            if not isinstance(tool.get("name"), str):
                refuse(f"tools.{i}.custom.name: Field required")
            if not _TOOL_NAME.fullmatch(tool["name"]):
                refuse(f"tools.{i}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
            if tool["name"] in asked.tools:
                refuse("tools: Tool names must be unique.")
            asked.tools.append(tool["name"])
            if tool.get("type", "custom") != "custom":
                continue
            schema = tool.get("input_schema")
            if not isinstance(schema, dict):
                refuse(f"tools.{i}.custom.input_schema: Field required")
            if schema.get("type") != "object":
                found = "Field required" if "type" not in schema else "Input should be 'object'"
                refuse(f"tools.{i}.custom.input_schema.type: {found}")
            for name in ("function", "parameters"):
                if name in tool:
                    refuse(f"tools.{i}.custom.{name}: Extra inputs are not permitted")
        choice = body.get("tool_choice")
        if choice is None:
            return
        kind = choice.get("type")
        if kind not in ("auto", "any", "none", "tool"):
            refuse(f"tool_choice: Input tag '{kind}' found using 'type' does not match any of the expected tags")
        if not asked.tools:
            refuse("tool_choice: tool_choice may only be specified while providing tools.")
        if kind == "tool" and choice.get("name") not in asked.tools:
            refuse(f"tool_choice.name: Tool '{choice.get('name')}' not found in provided tools")
        if kind in ("any", "tool") and asked.thinks:
            refuse("Thinking may not be enabled when tool_choice forces tool use.")
        asked.choice = "required" if kind == "any" else choice["name"] if kind == "tool" else kind

    # --- messages ---

    def _read_messages(self, messages: Any, asked: Asked) -> None:
        if not messages:
            refuse("messages: at least one message is required")
        merged = asked.transcript
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if role == "system":
                text = 'The Messages API accepts a top-level `system` parameter, not "system" as an input message role.'
                refuse(f'messages: Unexpected role "system". {text}')
            if role not in ("user", "assistant"):
                refuse(f"messages.{i}.role: Input should be 'user' or 'assistant'")
            content = message.get("content")
            if content is None:
                refuse(f"messages.{i}.content: Field required")
            if not content and (role == "user" or i < len(messages) - 1):
                refuse(
                    f"messages.{i}: all messages must have non-empty content except for the optional final "
                    "assistant message"
                )
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(blocks, list):
                refuse(f"messages.{i}.content: Input should be a valid list")
            for n, block in enumerate(blocks):
                self._read_block(block, f"messages.{i}.content.{n}", role, asked)
            # Neighbours of one role are one turn.
            if merged and merged[-1]["role"] == role:
                merged[-1]["content"] = [*merged[-1]["content"], *blocks]
            else:
                merged.append({"role": role, "content": blocks})
        if merged[0]["role"] != "user":
            refuse('messages: first message must use the "user" role')
        _check_results(merged)
        for turn in reversed(merged):
            results = [one for one in turn["content"] if one["type"] == "tool_result"]
            texts = [one["text"] for one in turn["content"] if one["type"] == "text"]
            if turn["role"] == "user" and results and not asked.answers and not asked.text:
                asked.answers = [_read_result(one) for one in results]
            if turn["role"] == "user" and texts and not asked.text:
                asked.text = "".join(texts)
                if not results:
                    break

    def _read_block(self, block: Any, where: str, role: str, asked: Asked) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        allowed = _BLOCKS[role]
        if kind not in allowed:
            words = f"does not match any of the expected tags: {quote(allowed)}"
            refuse(f"{where}: Input tag '{kind}' found using 'type' {words}")
        if kind == "text":
            if not isinstance(block.get("text"), str):
                refuse(f"{where}.text.text: Field required")
            if not block["text"]:
                refuse("messages: text content blocks must be non-empty")
        elif kind in ("image", "document"):
            asked.files.append(_read_source(block, f"{where}.{kind}.source", str(kind)))
        elif kind == "tool_use":
            if not isinstance(block.get("input"), dict):
                refuse(f"{where}.tool_use.input: Input should be a valid dictionary")
            for name in ("id", "name"):
                if not _TOOL_NAME.fullmatch(str(block.get(name, ""))):
                    refuse(f"{where}.tool_use.{name}: String should match pattern '^[a-zA-Z0-9_-]+$'")
        elif kind == "tool_result":
            inner = block.get("content")
            for n, one in enumerate(inner if isinstance(inner, list) else ()):
                self._read_block(one, f"{where}.tool_result.content.{n}", "result", asked)
        elif kind in _THOUGHTS:
            if "cache_control" in block:
                refuse(f"{where}.{kind}.cache_control: Extra inputs are not permitted")
            _check_thought(block, where)

    def _check_last_turn(self, turns: list[Json], thinking: str) -> None:
        """In a tool loop the thoughts of the last turn have to be there as they were given."""
        last = next((turn for turn in reversed(turns) if turn["role"] == "assistant"), None)
        if thinking not in ("enabled", "adaptive") or last is None:
            return
        called = [block["id"] for block in last["content"] if block["type"] == "tool_use"]
        at = turns.index(last)
        answered = any(one["type"] == "tool_result" for turn in turns[at + 1 :] for one in turn["content"])
        if not called or not answered:
            return
        first = last["content"][0]["type"]
        if thinking == "enabled" and first not in _THOUGHTS:
            refuse(
                f"messages.{at}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{first}`. When "
                "`thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the "
                "lastmost set of `tool_use` and `tool_result` blocks)."
            )
        told = [_bare(block) for block in last["content"] if block["type"] in _THOUGHTS]
        for id in called:
            if any(block not in told for block in self._thought.get(id, ())):
                refuse(
                    f"messages.{at}.content: `thinking` or `redacted_thinking` blocks in the latest assistant message "
                    "cannot be modified. These blocks must remain as they were in the original response."
                )

    def _cache(self, body: Json, asked: Asked) -> Usage:
        """What of a prompt was kept, what is kept from now on, and what is neither."""
        usage = Usage(input=asked.input)
        marked = 0
        hit = 0
        prefix: list[Any] = [body["model"]]
        blocks = _blocks(body)
        if not body.get("cache_control") and not any(block.get("cache_control") for block in blocks):
            return usage
        for i, block in enumerate(blocks):
            prefix.append({name: value for name, value in block.items() if name != "cache_control"})
            if not block.get("cache_control") and not (body.get("cache_control") and i == len(blocks) - 1):
                continue
            marked = count_tokens(prefix[1:])
            key = str(hash(json.dumps(prefix, sort_keys=True)))
            if key in self._cached:
                hit = marked
            self._cached[key] = None
        while len(self._cached) > KEPT:
            self._cached.popitem(last=False)
        marked = min(marked, asked.input)
        usage.cached = min(hit, marked)
        usage.cache_write = marked - usage.cached
        usage.input = asked.input - marked
        return usage


_BLOCKS = {
    "user": ("text", "image", "document", "tool_result"),
    "assistant": ("text", "tool_use", *_THOUGHTS),
    "result": ("text", "image", "document"),
}


def _check_results(turns: list[Json]) -> None:
    """Each call has its result at the beginning of the next turn, and each result its call in the last one."""
    called: list[str] = []
    for i, turn in enumerate(turns):
        leading: list[str] = []
        for n, block in enumerate(turn["content"]):
            if block["type"] != "tool_result":
                break
            id = block.get("tool_use_id")
            if id not in called:
                refuse(
                    f"messages.{i}.content.{n}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each "
                    "`tool_result` block must have a corresponding `tool_use` block in the previous message."
                )
            if id in leading:
                refuse(f"messages.{i}.content.{n}: each tool_use must have a single result. Found multiple: {id}")
            leading.append(str(id))
        missing = [id for id in called if id not in leading]
        if missing:
            refuse(
                f"messages.{i - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
                "next message."
            )
        for n, block in enumerate(turn["content"][len(leading) :], len(leading)):
            if block["type"] == "tool_result":
                refuse(
                    f"messages.{i}.content.{n}: unexpected `tool_use_id` found in `tool_result` blocks: "
                    f"{block.get('tool_use_id')}. `tool_result` blocks come first in a message."
                )
        called = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
        if len(set(called)) < len(called):
            refuse("messages: `tool_use` ids must be unique")
    if called:
        refuse(
            f"messages.{len(turns) - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(called)}."
        )


def _check_thought(block: Json, where: str) -> None:
    if block["type"] == "redacted_thinking":
        if unseal("redacted", block.get("data")) is None:
            refuse(f"{where}: Invalid `data` in `redacted_thinking` block")
    elif unseal("thinking", block.get("signature")) != block.get("thinking"):
        refuse(f"{where}: Invalid `signature` in `thinking` block")


def _bare(block: Json) -> Json:
    return {name: value for name, value in block.items() if name != "cache_control"}


def _blocks(body: Json) -> list[Json]:
    """All blocks of a prompt, in the order in which they are cached: tools, system, messages."""
    blocks = list(body.get("tools") or ())
    for content in (body.get("system"), *(message.get("content") for message in body.get("messages") or ())):
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    return blocks


def _read_result(block: Json) -> str:
    content = block.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(one["text"] for one in content if one["type"] == "text")


def _read_source(block: Json, where: str, kind: str) -> File:
    source = block.get("source")
    how = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or how not in ("base64", "url", "file", *(("text",) if kind == "document" else ())):
        refuse(f"{where}: Input tag '{how}' found using 'type' does not match any of the expected tags")
    name = str(block.get("title") or "")
    if how in ("url", "file"):
        member = "url" if how == "url" else "file_id"
        if not isinstance(source.get(member), str):
            refuse(f"{where}.{how}.{member}: Field required")
        return File("", name=name, source=source[member])
    mime = str(source.get("media_type"))
    allowed = _IMAGES if kind == "image" else ("application/pdf",) if how == "base64" else ("text/plain",)
    if mime not in allowed:
        refuse(f"{where}.{how}.media_type: Input should be {' or '.join(repr(one) for one in allowed)}")
    if how == "text":
        return File(mime, str(source.get("data") or "").encode(), name)
    data = read_base64(source.get("data"))
    if data is None:
        refuse(f"{where}.base64: invalid base64 data")
    return File(mime, data, name)
