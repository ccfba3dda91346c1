"""Writes the events of the Responses API; text deltas from a template, because they are many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sag.testing.upstream.flavor import CREATED, Flavor
from sag.testing.upstream.request import Asked, seal
from sag.testing.upstream.script import Calls, Fail, Json, Refusal, Script, Think, Token, cut, join, split
from sag.testing.upstream.writer import Writer, encode, write_arguments

_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_p",
    "user",
)


class ResponsesWriter(Writer):
    """Writes one answer. One item is open at a time; steps of one kind in a row go on with it.

    Args:
        keep: Is told the answer once it is complete.
    """

    def __init__(
        self, flavor: Flavor, body: Json, asked: Asked, script: Script, number: int, keep: Callable[[Json], None]
    ) -> None:
        super().__init__(flavor, body, asked, script, number)
        self._keep = keep
        self._sequence = 0
        self._item: Json | None = None
        self._text: list[str] = []
        self._kind = ""
        padded = (body.get("stream_options") or {}).get("include_obfuscation", True)
        self._padding = {"obfuscation": "hTq3Zx"} if padded else {}
        self.response: Json = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": CREATED,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
            "service_tier": "default",
            "store": body.get("store") is not False,
            "text": body.get("text") or {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "truncation": body.get("truncation") or "disabled",
            "metadata": body.get("metadata") or {},
            "usage": None,
            **{name: body.get(name) for name in _ECHOED},
        }

    def event(self, data: Any) -> bytes:
        name = data.get("type", "message") if isinstance(data, dict) else "message"
        return b"event: %b%bdata: %b%b" % (str(name).encode(), self.newline, encode(data), self.newline * 2)

    def _event(self, kind: str, **members: Any) -> bytes:
        members = {"type": f"response.{kind}", "sequence_number": self._sequence, **members}
        self._sequence += 1
        return self.event(members)

    def open(self) -> bytes:
        if not self.script.role:
            return b""
        return b"".join(self._event(kind, response=self.response) for kind in ("created", "in_progress"))

    def write(self, step: Token) -> list[bytes]:
        if isinstance(step, Calls):
            return self._write_calls(step)
        tokens = split(step.text)
        self.tokens += len(tokens)
        if isinstance(step, Refusal):
            kind = "refusal"
        elif isinstance(step, Think):
            self.thoughts += len(tokens)
            kind = "content" if step.member == "reasoning_text" else "summary"
            if step.redacted or (kind == "summary" and not self.asked.shows):
                # The item comes, and nothing in it; what it hides is in its encrypted content.
                out = self._end() + self._begin("hidden")
                self._text.append(join(step.text))
                return [out + self._end()]
        else:
            kind = "text"
        before = b"" if kind == self._kind else self._end() + self._begin(kind)
        self._text += tokens
        pieces = self._write_deltas(tokens)
        return [before + pieces[0], *pieces[1:]] if pieces else [before]

    def _write_deltas(self, tokens: list[str]) -> list[bytes]:
        assert self._item is not None
        name, index, more = _DELTAS[self._kind]
        members = {"type": f"response.{name}.delta", "item_id": self._item["id"], "output_index": self._index, index: 0}
        members |= {"delta": "X", **more, **self._padding, "sequence_number": "Y"}
        before, _, rest = self.event(members).partition(b'"X"')
        between, _, after = rest.partition(b'"Y"')
        first = self._sequence
        self._sequence += len(tokens)
        return [b"%b%b%b%d%b" % (before, encode(one), between, i, after) for i, one in enumerate(tokens, first)]

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _begin(self, kind: str) -> bytes:
        """Open an item, and the part of it that is written to."""
        self._kind = kind
        if kind in ("text", "refusal"):
            item: Json = {
                "id": f"msg_{self.number}_{self._index}",
                "type": "message",
                "role": "assistant",
                "content": [],
            }
        else:
            item = {"id": f"rs_{self.number}_{self._index}", "type": "reasoning", "summary": []}
        self._item = item = {**item, "status": "in_progress"}
        return self._event("output_item.added", output_index=self._index, item=item) + self._write_part("added", "")

    def _end(self, status: str = "completed") -> bytes:
        """Close the item that is open."""
        item, kind = self._item, self._kind
        if item is None:
            return b""
        text = "".join(self._text)
        out = b""
        if kind != "hidden":
            name, index, more = _DELTAS[kind]
            place = {"item_id": item["id"], "output_index": self._index, index: 0}
            out = self._event(f"{name}.done", **place, **{"refusal" if kind == "refusal" else "text": text}, **more)
            out += self._write_part("done", text)
            item["summary" if kind == "summary" else "content"] = [_make_part(kind, text)]
        if item["type"] == "reasoning" and "reasoning.encrypted_content" in (self.body.get("include") or ()):
            item["encrypted_content"] = seal("encrypted", f"{item['id']} {text}")
        item["status"] = status
        out += self._event("output_item.done", output_index=self._index, item=item)
        self.response["output"].append(item)
        self._item, self._kind = None, ""
        self._text.clear()
        return out

    def _write_part(self, what: str, text: str) -> bytes:
        assert self._item is not None
        if self._kind == "hidden":
            return b""
        name = "reasoning_summary_part" if self._kind == "summary" else "content_part"
        place = {"item_id": self._item["id"], "output_index": self._index, _DELTAS[self._kind][1]: 0}
        return self._event(f"{name}.{what}", **place, part=_make_part(self._kind, text))

    def _write_calls(self, step: Calls) -> list[bytes]:
        self.called = True
        before = self._end()
        pieces = []
        for one in step.calls:
            index = self._index
            arguments = write_arguments(one)
            id = f"fc_{self.number}_{index}"
            last = step is self.script.steps[-1] and one is step.calls[-1]
            item = {
                "id": id,
                "type": "function_call",
                "status": "in_progress",
                "arguments": "",
                "call_id": one.id or f"call_{self.number}_{index}",
                "name": one.name,
            }
            pieces.append(before + self._event("output_item.added", output_index=index, item=item))
            before = b""
            place = {"item_id": id, "output_index": index}
            for fragment in cut(arguments, step.chars):
                pieces.append(self._event("function_call_arguments.delta", **place, delta=fragment))
            item |= {"status": self._last_status if last else "completed", "arguments": arguments}
            done = self._event("function_call_arguments.done", **place, name=one.name, arguments=arguments)
            pieces[-1] += done + self._event("output_item.done", output_index=index, item=item)
            self.response["output"].append(item)
        self.tokens += len(pieces)
        return pieces

    def fail(self, fail: Fail) -> bytes:
        """`error`, or `response.failed` where the script finishes with `failed`."""
        error = self.flavor.write_error(fail)["error"]
        if self.script.finish == "failed":
            self.response |= {"status": "failed", "error": {"code": error["code"], "message": error["message"]}}
            return self._event("failed", response=self.response)
        self._sequence += 1
        members = {name: error.get(name) for name in ("code", "message", "param")}
        return self.event({"type": "error", "sequence_number": self._sequence - 1, **members})

    def close(self) -> bytes:
        finish, status = self.finish, self._last_status
        out = self._end(status)
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": _INCOMPLETE[finish]}
        elif finish == "failed":
            status = "failed"
            self.response["error"] = {"code": "server_error", "message": "The model's answer failed."}
        self.response |= {"status": status, "completed_at": CREATED + 1 if status == "completed" else None}
        if self.script.usage:
            self.response["usage"] = self._write_usage()
        self._keep(self.response)
        return out + (self._event(status, response=self.response) if finish and self.script.done else b"")

    @property
    def _last_status(self) -> str:
        return "incomplete" if self.finish in _INCOMPLETE else "completed"

    def _write_usage(self) -> Json:
        if isinstance(self.script.usage, dict):
            return self.script.usage
        usage = self.usage
        sent = usage.input + usage.cached + usage.cache_write
        return {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": sent + usage.output,
        }

    def whole(self) -> Json:
        return self.response


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_DELTAS: dict[str, tuple[str, str, Json]] = {
    "text": ("output_text", "content_index", {"logprobs": []}),
    "refusal": ("refusal", "content_index", {}),
    "summary": ("reasoning_summary_text", "summary_index", {}),
    "content": ("reasoning_text", "content_index", {}),
}


def _make_part(kind: str, text: str) -> Json:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    if kind == "text":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "summary_text" if kind == "summary" else "reasoning_text", "text": text}
