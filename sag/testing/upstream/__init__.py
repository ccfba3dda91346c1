"""Fakes of model servers: on loopback, scripted, and able to do everything that real ones do wrong.

For tests of providers, of the hub and of what is built on it, and for benchmarks. One server speaks the wire formats
of all vendors; a script says what happens, the format writes it. Nothing reaches beyond loopback.

In a test:

    async with FakeUpstream("anthropic") as up:
        up.script(say("Hello"), fail(429, headers={"retry-after": "2"}))
        ...                                     # base URL: up.url
        assert up.requests[0].json["model"] == "fake"

By itself: `python -m sag.testing.upstream --flavor anthropic --port 0` prints its base URL. There `misbehave cut` or
`misbehave 429 2 times` in a user's message has that go wrong; `--help` names all faults.

| flavor | serves below its base URL |
| --- | --- |
| openai | chat completions, Responses; lenient unless `strict` |
| vllm | chat completions with reasoning, its own errors |
| ollama | chat completions with whole tool calls |
| azure | chat completions and Responses, at both generations of its addresses |
| openrouter | chat completions with costs, the catalogue, `/generation`, `/key` |
| anthropic | Messages, the counting of tokens |

All of them list their models, and refuse requests that break the real contract with the real error.

What is not scripted is answered by default: the user's last message comes back word by word. When tools are offered
and that message holds `call NAME {json}` (several are possible), they are called; once their answers are there, the
model repeats them. Where the request turns reasoning on, a short thought comes first.
"""

from sag.testing.upstream.answer import FAMILIES, THOUGHT, write_calls
from sag.testing.upstream.clock import Clock
from sag.testing.upstream.request import Asked, File, Request
from sag.testing.upstream.script import (
    Calls,
    Comment,
    Cut,
    Emit,
    Fail,
    Hang,
    Json,
    LongLine,
    Raw,
    Refusal,
    Say,
    Script,
    Step,
    Think,
    ToolCall,
    Usage,
    Wait,
    call,
    fail,
    gzip_bomb,
    say,
)
from sag.testing.upstream.server import FLAVORS, Answer, FakeUpstream, FlavorName

__all__ = [
    "FAMILIES",
    "FLAVORS",
    "THOUGHT",
    "Answer",
    "Asked",
    "Calls",
    "Clock",
    "Comment",
    "Cut",
    "Emit",
    "Fail",
    "FakeUpstream",
    "File",
    "FlavorName",
    "Hang",
    "Json",
    "LongLine",
    "Raw",
    "Refusal",
    "Request",
    "Say",
    "Script",
    "Step",
    "Think",
    "ToolCall",
    "Usage",
    "Wait",
    "call",
    "fail",
    "gzip_bomb",
    "say",
    "write_calls",
]
