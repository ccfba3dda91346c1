"""Makes a transcript fit a model: files that it cannot read become words, the oldest turns go where it is too long.

Pure. What was left out is told by who calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from sag.hooks.provider import (
    CallRequest,
    FilePart,
    Message,
    Model,
    ModelRequest,
    Part,
    ProviderError,
    TextPart,
)

FILES = 24 << 20  # bytes of all files of a request; vendors take 20 to 32 MB
IMAGE_TOKENS = 1_500
LEFT_OUT = "[left out, so that the conversation fits the model]"

_TEXTS = ("text/", "application/json", "application/xml", "application/yaml", "application/toml", "application/sql")
_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}

Count = Callable[[ModelRequest], int]


def fit_files(messages: Sequence[Message], model: Model | None) -> None:
    """Replace what a model cannot read by words, in place.

    Text files become text for every model. Images are left out only where the model is known not to see them; other
    files are sent only to models that are known to read them.
    """
    abilities = model.abilities if model is not None else None
    left = FILES
    for message in reversed(messages):  # the newest files matter most
        for i in range(len(message.parts) - 1, -1, -1):
            part = message.parts[i]
            if isinstance(part, FilePart):
                message.parts[i] = fitted = _fit_file(part, abilities, left)
                if isinstance(fitted, FilePart):
                    left -= len(fitted.data)


def _fit_file(file: FilePart, abilities: Sequence[str] | None, left: int) -> Part:
    if not file.data:
        return TextPart(f"[{file.name}: the file is no longer there]")
    mime = _sniff(file)
    if mime.startswith(_TEXTS):
        try:
            text = file.data.decode("utf-8")
            return TextPart(f"{file.name}:\n```\n{text}\n```")
        except UnicodeDecodeError:
            pass
    what = "image" if mime.startswith("image/") else "file"
    if len(file.data) > left:
        return TextPart(f"[{what}: {file.name}, left out because it is too large]")
    can = what == "image" if abilities is None else f"{what}s" in abilities
    if not can:
        return TextPart(f"[{what}: {file.name}, which this model cannot read]")
    return FilePart(mime, file.name, file.data)


def _sniff(file: FilePart) -> str:
    for magic, mime in _MAGIC.items():
        if file.data.startswith(magic):
            return mime
    if file.data[:4] == b"RIFF" and file.data[8:12] == b"WEBP":
        return "image/webp"
    return "application/pdf" if file.data.startswith(b"%PDF-") else file.mime


def count(request: ModelRequest) -> int:
    """About how many tokens a request takes: four bytes of text each, and a flat sum for an image."""
    return sum(map(_count_message, request.messages)) + sum(
        (len(tool.description) + len(msgspec.json.encode(tool.input))) // 4 + 16 for tool in request.tools
    )


def _count_message(message: Message) -> int:
    total = 4
    for part in message.parts:
        if isinstance(part, FilePart):
            total += IMAGE_TOKENS if part.is_image else len(part.data) // 8
        elif isinstance(part, CallRequest):
            total += len(part.name) // 4 + _size(part.arguments) // 4 + 8
        else:
            total += _size(part.text) // 4 + 1
    return total


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def fit_length(request: ModelRequest, limit: int, count: Count) -> int:
    """Leave out the oldest turns until a request takes at most `limit` tokens, in place.

    The system prompt and the newest turn stay. Where that alone is too long, results of its earlier tool rounds go, and
    then what the user had said in it before the last question.

    Returns:
        How many messages were left out or emptied.

    Raises:
        ProviderError: provider.context, if it cannot be made to fit.
    """
    left_out = 0
    over = count(request) - limit
    for leave_out in (_leave_out_turns, _leave_out_results, _leave_out_questions):
        going = leave_out(request.messages)
        more = True
        while over > 0 and more:
            estimate, more = over, False  # `count` looks at everything, so it is not asked for each message
            for gone in going:
                more = True
                left_out += len(gone)
                estimate -= sum(map(_count_message, gone))
                if estimate <= 0:
                    break
            over = count(request) - limit
    if over > 0:
        text = (
            f"The newest turn takes about {limit + over} tokens with the system prompt and the tools, "
            f"and the model takes {limit} beside its answer."
        )
        tools = count(msgspec.structs.replace(request, messages=[]))
        if tools > limit // 2:
            text += f" The {len(request.tools)} tools alone take about {tools}: switch some of them off."
        raise ProviderError("provider.context", text)
    return left_out


def _leave_out_turns(messages: list[Message]) -> Iterator[list[Message]]:
    """Leave out the turns before the newest, one after the other; gives what has gone."""
    while True:
        begin = _first(messages)
        later = range(begin + 1, len(messages))
        end = next((i for i in later if messages[i].role == "user" and messages[i - 1].role != "user"), None)
        if end is None:
            return
        gone = messages[begin:end]
        del messages[begin:end]
        yield gone


def _leave_out_results(messages: list[Message]) -> Iterator[list[Message]]:
    """Empty the results of tool rounds before the newest, one after the other; gives what has gone."""
    newest = max((i for i, m in enumerate(messages) if m.calls), default=0)
    for i, message in enumerate(messages[:newest]):
        emptied = msgspec.structs.replace(message, parts=[TextPart(LEFT_OUT)])
        if message.role == "tool" and _count_message(message) > _count_message(emptied):
            messages[i] = emptied
            yield [message]


def _leave_out_questions(messages: list[Message]) -> Iterator[list[Message]]:
    """Leave out all but the last of several questions in a row: those before it may have failed for their length."""
    begin = _first(messages)
    while [m.role for m in messages[begin : begin + 2]] == ["user", "user"]:
        yield [messages.pop(begin)]


def _first(messages: Sequence[Message]) -> int:
    """Where the conversation begins."""
    return next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))


def less(request: ModelRequest, count: Count) -> int:
    """A limit that leaves three fifths of a request's messages, for a vendor that found it too long."""
    tools = count(msgspec.structs.replace(request, messages=[]))
    return tools + round((count(request) - tools) * 0.6)


def room(model: Model | None, request: ModelRequest) -> int | None:
    """How many tokens a request may take, so that an answer fits beside it; None where the model's size is unknown."""
    if model is None or not model.context or model.context < 0:
        return None
    answer = request.max_tokens or min(model.output or 4096, model.context // 4)
    return max(model.context - answer, model.context // 8)
