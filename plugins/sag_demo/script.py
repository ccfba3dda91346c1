"""What the demo says: from a request to a reply, by looking for words in the user's last message. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from sag.plugin import CallRequest, Message, ModelRequest

Json = dict[str, Any]
Match = re.Match[str]

FAILURES = {
    "rate": "provider.rate_limit",
    "auth": "provider.auth",
    "context": "provider.context",
    "refused": "provider.refused",
    "timeout": "provider.timeout",
    "unreachable": "provider.unreachable",
    "midway": "provider.disconnected",
}


class Reply(Struct):
    """One round of the script.

    Attributes:
        text: What is said.
        reasoning: What is thought aloud before.
        calls: Tools to call, by name with their arguments.
        error: The kind of error with which the round ends, after the text.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Json]] = field(default_factory=list)
    error: str | None = None


def answer(request: ModelRequest) -> Reply:
    """The reply to a request."""
    asked, answered = _last_turn(request.messages)
    offered = {spec.name for spec in request.tools}
    said = asked.strip()
    if answered:
        return _after_tools(said, answered, offered)
    for pattern, make in _SCRIPT:
        if (match := re.search(pattern, said, re.IGNORECASE)) is not None:
            reply = make(match, request)
            missing = [name for name, _ in reply.calls if name not in offered]
            if missing:
                return Reply(f"I would call the tool {_code(missing)} for that, but it is not offered in this run.")
            return reply
    return Reply(f"You said: {_quote(said)}\n\nI am a script, not a model, so I cannot do more with that. {_ABILITIES}")


def _last_turn(messages: list[Message]) -> tuple[str, list[tuple[CallRequest, str]]]:
    """The user's last message, and the tool calls made since with what came of them."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    asked = messages[last].text if last >= 0 else ""
    calls = {call.id: call for m in messages[last + 1 :] if m.role == "assistant" for call in m.calls}
    results = [(calls[m.call], m.text) for m in messages[last + 1 :] if m.role == "tool" and m.call in calls]
    return asked, results


# after tools


def _after_tools(said: str, answered: list[tuple[CallRequest, str]], offered: set[str]) -> Reply:
    call, text = answered[-1]
    wish = re.search(_DELETE, said, re.IGNORECASE)
    if wish and call.name == "note_list" and "note_delete" in offered:
        notes = _json(text).get("notes") or []
        if not notes:
            return Reply("There are no notes, so there is nothing to delete.")
        return Reply("I ask before I delete it.", calls=[("note_delete", {"id": notes[-1]["id"]})])
    told = answered[-1:] if wish else answered  # the list was only looked up to know which note is meant
    return Reply(" ".join(_in_words(call, text) for call, text in told))


def _in_words(call: CallRequest, text: str) -> str:
    """One tool's result in a sentence."""
    if failed := re.match(r"Error \((\w+)\): (.*)", text, re.DOTALL):
        if failed[1] == "denied":
            return f"You did not allow {_code(call.name)}, so I left it."
        return f"{_code(call.name)} did not work ({failed[1]}): {failed[2].strip()}"
    result = _json(text)
    match call.name:
        case "time_now" if "time" in result:
            return f"In {result.get('zone')} it is {result.get('weekday')}, {str(result['time']).replace('T', ' ')}."
        case "note_add" if "id" in result:
            return f"Noted as {_code(result['id'])}: {result.get('text')}"
        case "note_delete" if "deleted" in result:
            return f"The note {_code(result['deleted'])} is deleted: {result.get('text')}"
        case "note_list" if "notes" in result:
            lines = [f"- {_code(n.get('id'))} {n.get('text')}" for n in result["notes"]]
            return "Your notes:\n\n" + "\n".join(lines) + "\n" if lines else "There are no notes yet."
        case "calculate":
            return f"The result: **{text.strip()}**."
    return f"{_code(call.name)} says: {text.strip()[:500]}"


def _json(text: str) -> Json:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


# the script


def _greet(match: Match, request: ModelRequest) -> Reply:
    return Reply(f"Hello! I am the demo of this hub: a script without any model behind it. {_ABILITIES}")


def _use(match: Match, request: ModelRequest) -> Reply:
    return Reply(f"I call {_code(match['name'])}.", calls=[(match["name"], _json(match["args"] or "{}"))])


def _settings(match: Match, request: ModelRequest) -> Reply:
    system = next((m.text for m in request.messages if m.role == "system"), None)
    lines = [
        f"temperature: {_given(request.temperature)}",
        f"max_tokens: {_given(request.max_tokens)}",
        f"top_p: {_given(request.top_p)}",
        f"tools: {', '.join(sorted(spec.name for spec in request.tools)) or 'none'}",
        f"system prompt: {_quote(system) if system else 'none'}",
    ]
    note = (
        "I keep to max_tokens, and a token is a word here. A script has no use for the others, but I was sent them so."
    )
    return Reply("This round was sent with\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n{note}")


def _given(value: object) -> str:
    return "not set" if value is None else str(value)


def _think(match: Match, request: ModelRequest) -> Reply:
    thoughts = (
        "The user wants to see me think. A script does not think; what I can show is how reasoning travels. "
        "It comes before the answer, in a part of its own, and a frontend may fold it away."
    )
    return Reply("That was my reasoning, told apart from this answer.", reasoning=thoughts)


def _fail(match: Match, request: ModelRequest) -> Reply:
    kind = FAILURES.get((match[1] or "").lower(), "provider.overloaded")
    return Reply("This answer breaks off in the" if kind == "provider.disconnected" else "", error=kind)


def _markdown(match: Match, request: ModelRequest) -> Reply:
    return Reply(_MARKDOWN)


def _long(match: Match, request: ModelRequest) -> Reply:
    temperature = (
        f" (The temperature is {_given(request.temperature)}.)" if "temperature" in match.string.lower() else ""
    )
    return Reply("\n\n".join(f"{paragraph}{temperature}" for paragraph in _LONG))


def _count_down(match: Match, request: ModelRequest) -> Reply:
    seconds = min(3600, max(1, int(match[1][:6])))
    return Reply(f"Counting down {seconds} s.", calls=[("countdown", {"seconds": seconds})])


def _two_tools(match: Match, request: ModelRequest) -> Reply:
    return Reply("Both at once.", calls=[("time_now", {}), ("calculate", {"expression": "6 * 7"})])


def _time(match: Match, request: ModelRequest) -> Reply:
    zone = match[1].strip(" ?!.") if match.lastindex else ""
    return Reply("Let me look at the clock.", calls=[("time_now", {"zone": zone} if zone else {})])


def _calculate(match: Match, request: ModelRequest) -> Reply:
    expression = re.sub(r"[\s?!.]*(please)?[\s?!.]*$", "", match["sum"], flags=re.IGNORECASE)
    return Reply("Let me work that out.", calls=[("calculate", {"expression": expression[:200]})])


def _note(match: Match, request: ModelRequest) -> Reply:
    return Reply("I write that down.", calls=[("note_add", {"text": match[1].strip()[:4000]})])


def _list_notes(match: Match, request: ModelRequest) -> Reply:
    return Reply(calls=[("note_list", {})])


def _delete_note(match: Match, request: ModelRequest) -> Reply:
    id = match[1].lower()
    if id == "last":
        return Reply("First I look which one is the last.", calls=[("note_list", {})])
    return Reply("I ask before I delete it.", calls=[("note_delete", {"id": id})])


def _code(names: object) -> str:
    listed = names if isinstance(names, list) else [names]
    return ", ".join(f"`{name}`" for name in listed)


def _quote(text: str) -> str:
    short = text if len(text) <= 300 else text[:300] + "…"
    return f"“{short}”"


_DELETE = r"\bdelete (?:the |my )?(?:note )?(last|(?<=note )\S+?)(?: note)?[.!]?$"
_UNITS = r"°?[A-Za-zµ]+(?:/[A-Za-z]+)?\d?"
_SCRIPT: list[tuple[str, Callable[[Match, ModelRequest], Reply]]] = [
    (r"^(?:add (?:a )?note|note|remember)(?: that|:|,)?\s+(.+)", _note),
    (r"^use (?P<name>[\w.:/-]+)\s*(?P<args>\{.*\})?\s*$", _use),
    (r"^fail\b\s*(\w+)?", _fail),
    (_DELETE, _delete_note),
    (r"\b(?:list|show|what are) (?:all |me )*(?:my |the )?notes\b", _list_notes),
    (r"\b(?:two tools|time and calculate)\b", _two_tools),
    (r"\bcount\s?down (?:from )?(\d+)", _count_down),
    (r"\btime (?:is it )?in ([\w/ +-]+)", _time),
    (r"\b(?:what time|the time|time is it)\b", _time),
    (r"\bsettings\b", _settings),
    (r"\bmarkdown\b", _markdown),
    (r"\bthink\b", _think),
    (r"\blong\b", _long),
    (r"^(?:please )?(?:calculate|compute|convert|work out)\s+(?P<sum>.+)", _calculate),
    (rf"(?P<sum>[\d(][\d.,]*\s*{_UNITS}\s+(?:to|in|into)\s+{_UNITS})\W*$", _calculate),
    (r"(?<![\d-])(?P<sum>(?!\d{4}-\d\d-)[\d(][^?!]*(?:[-+*/^×÷]|% of)\s*[\d(][^?!]*)", _calculate),
    (r"^\W*$|^(?:hi|hello|hey|hallo|good (?:morning|evening|day)|who are you|what (?:are|can) you|help)\b", _greet),
]

_ABILITIES = (
    "Try *markdown*, *long*, *think*, *settings*, *count down from 5*, *time in Tokyo*, *what is 12 * 7*, "
    "*20 degC to degF*, *two tools*, *note: buy milk*, *list notes*, *delete note last*, *fail* "
    "or, for any tool, *use NAME {json}*. For real answers, "
    "set up a model provider and choose its model."
)

_MARKDOWN = """# What a reply may hold

Some **bold**, some *italics*, `inline code` and a [link](https://www.example.com/).

## A list

1. First
2. Second
   - with a point of its own
   - and another

## A table

| Part | Carries | Kept |
| --- | --- | :-: |
| text | the answer | yes |
| reasoning | thoughts | yes |
| progress | how far a tool is | newest |

## Code in two languages

```python
def greet(name: str) -> str:
    return f"Hello, {name}!"
```

```typescript
const greet = (name: string): string => `Hello, ${name}!`;
```

> A quote, to end with.
"""

_LONG = [
    "This is a long reply, so that there is time to try what a hub has to be good at. Close the tab while it "
    "runs, open it again, and the text goes on where it was, because the run belongs to the hub and not to the "
    "page. Nothing is asked for a second time, and no word comes twice.",
    "Open the same conversation on a second device. Both follow the same log of events, each at its own pace, and "
    "both stand at the same word in the end. A device that was asleep does not hold up the others; it reads "
    "forward from where it was, in fewer and larger pieces, until it has caught up.",
    "Press stop in the middle of a sentence. What has been said stays, marked as cut, and the next message finds "
    "it in the transcript. The run ends as cancelled on every device, since that is an event like any other and "
    "not a private matter of the page that was clicked on.",
    "Change a setting while this goes on, the temperature for instance. The change is checked, kept and shown at "
    "once, and it takes hold at the next step of the run, never in the middle of one. Ask for the settings "
    "afterwards, and the reply tells what was really sent, so there is no need to take anybody's word for it.",
    "Send another message before this one has ended. It waits in a queue, or it steers this run, or it takes its "
    "place, as you choose. Nothing is lost on the way, and each message is answered once, even when the "
    "connection breaks at the worst moment and the page sends it again to be sure.",
    "Kill the hub's process, if you like. What was shown had been written down before it was shown, so after the "
    "start everything that anybody saw is there. Runs that were cut say that they were, and can be taken up "
    "again. The words that you are reading now are no different: they lie in the log already.",
    "None of this depends on the model, and there is none here: these paragraphs come from a script, one word "
    "after the other, at a pace that can be set. It is a dull companion but an honest one, and it costs nothing. "
    "When you have seen enough, choose a real model, and everything that was said here holds for it as well. That "
    "is all.",
]
