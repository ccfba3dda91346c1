"""A conversation in many scripts, as its state is: what exports are made of."""

from __future__ import annotations

import struct
import zlib
from typing import Any

Json = dict[str, Any]

TS = 1_795_190_000_000


def picture(width: int, height: int) -> bytes:
    """A PNG of one colour."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = (b"\0" + b"\x3b\x5b\xdb" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PICTURE = picture(240, 60)

SCRIPTS = {
    "Latin": "Grüße, naïve façade, Łódź, Đà Nẵng",
    "Greek": "Καλημέρα κόσμε, πώς είσαι;",
    "Cyrillic": "Съешь же ещё этих мягких булок",
    "Arabic": "مرحبا بالعالم، كيف حالك اليوم؟",
    "Hebrew": "שלום עולם, מה שלומך היום?",
    "Devanagari": "नमस्ते दुनिया, क्षत्रिय और ज्ञान",
    "Thai": "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง",
    "Chinese": "你好，世界。今天天气很好。",
    "Japanese": "こんにちは世界、カタカナと漢字",
    "Korean": "안녕하세요 세계, 오늘 날씨가 좋네요",
    "Emoji": "Ship it 🚀 👩‍🚀 👨‍👩‍👧‍👦 👍🏽 🇪🇺 ❤️ ✅",
}

MARKDOWN = (
    """## A plan in three steps

Some **bold**, some *emphasis*, ~~not this~~, `inline code` and a [link](https://example.org/a?b=c).

1. Book the vans
   - two for Friday
   - one for Saturday
2. Tell the *team*
3. Pay

> Nothing is agreed before everything is agreed.
> — a careful person

| Van | Seats | Price |
| --- | :---: | ---: |
| Red | 7 | €120.00 |
| نسخة زرقاء | 9 | €140.00 |
| 青い車 | 5 | €99.50 |

```python
def total(prices: list[float]) -> float:
    \"\"\"What it costs in all.\"\"\"
    return sum(prices)  # 合計
```

---

And a word that is too long for any line: """
    + "x1y2z3" * 40
    + "."
)


def text(number: int, words: str, kind: str = "text", **more: Any) -> Json:
    return {"part": number, "kind": kind, "ts": TS, "text": words, "open": False, **more}


ASKED: Json = {
    "a1": {
        "run": "r1", "kind": "approval", "title": "Allow mail_send?", "options": ["allow_once", "deny"], "ts": TS + 61,
        "expires_at": TS + 1000, "on_expiry": "deny", "call": "k3", "subject": {"tool": "mail_send"},
        "outcome": {"by": "u1", "choice": "deny", "client": "chat"},
    },
    "a2": {
        "run": "r1", "kind": "form", "title": "How many seats?", "options": ["accept", "decline"], "ts": TS + 66,
        "expires_at": TS + 1000, "on_expiry": "decline", "name": "seats", "schema": {"type": "object"},
        "outcome": {"by": "u1", "choice": "accept", "data": {"seats": 7}},
    },
}  # fmt: skip
"""Questions that were settled, as the log tells them."""


def dialogue() -> Json:
    """A run of two agents in every script, with tools, changes, a thought, a file and a cut."""
    state: Json = {
        "conv": {
            "id": "c1", "title": "Vans for Friday: 車両の手配 🚐", "created": TS, "rev": 3,
            "config": {"temperature": 0.2},
        },
        "messages": [],
        "runs": {
            "r1": {
                "kind": "dialogue",
                "by": "u1",
                "client": "chat",
                "config": {"bots": {"b1": {"temperature": 0.9}}},
                "rev": 3,
                "status": "done",
                "ts": TS,
                "base": {"temperature": 0.2},
                "begun": 1,
                "step": 3,
                "model": "demo/b",
                "usage": {"input": 2812, "output": 960, "cost_usd": 0.0421},
                "agents": {"b0": "closed", "b1": "closed"},
                "titles": {"b0": "Optimist", "b1": "Skeptic"},
                "changes": [
                    {"rev": 2, "patch": {"bots": {"b1": {"temperature": 0.9, "prompt": None}}}, "by": "u1",
                     "ts": TS + 50, "step": 1},
                    {"rev": 3, "patch": {"max_turns": 4}, "by": "u1", "ts": TS + 70, "step": 2},
                ],
                "applied": {"rev": 3, "step": 3},
                "data": {"asked": {"k1": "r1"}},
                "answers": {"plan": {"choice": "yes", "by": "u1"}},
            }
        },
        "tools": {
            "k1": {
                "run": "r1", "name": "find_bookings", "title": "Find bookings", "origin": "smartsheet", "risk": "read",
                "args": {"day": "Friday", "van": "赤いバン"}, "ts": TS + 20, "step": 1, "agent": "b0",
                "status": "lost", "ms": 40, "repeated": "k2",
            },
            "k2": {
                "run": "r1", "name": "find_bookings", "title": "Find bookings", "origin": "smartsheet", "risk": "read",
                "args": {"day": "Friday", "van": "赤いバン"}, "ts": TS + 30, "step": 1, "agent": "b0", "again": "k1",
                "status": "ok", "ms": 1240,
                "result": {"content": [
                    {"kind": "text", "text": "3 bookings: 09:00, 11:30, 15:00"},
                    {"kind": "table", "columns": ["van", "free"], "rows": [["red", True], ["blue", False]]},
                    {"kind": "image", "ref": "f1", "mime": "image/png", "name": "chart.png", "size": len(PICTURE)},
                ]},
            },
            "k3": {
                "run": "r1", "name": "mail_send", "origin": "mail", "risk": "danger",
                "args": {"to": ["team@example.org"]},
                "ts": TS + 60, "step": 2, "agent": "b1", "status": "denied", "ms": 900,
                "error": {"kind": "tool.denied", "message": "The user denied this call."},
            },
        },
        "asks": {},
    }  # fmt: skip
    usage = {"input": 900, "output": 320, "cost_usd": 0.014}
    every = "\n\n".join(f"{name}: {words}" for name, words in SCRIPTS.items())
    state["messages"] = [
        {"msg": "m1", "role": "user", "run": "r1", "by": "u1", "ts": TS, "parts": [
            {"kind": "text", "text": "Book two vans for Friday.\nמחר בבוקר, אם אפשר.", "open": False},
            {"kind": "image", "ref": "f1", "mime": "image/png", "name": "chart.png", "open": False},
        ]},
        {"msg": "m2", "role": "assistant", "run": "r1", "agent": "b0", "ts": TS + 10, "step": 1, "model": "demo/a",
         "usage": usage, "ms": 900, "finish": "tools", "parts": [
            text(1, "They want vans. Let me look at what is booked.", "reasoning", ms=300,
                 replay={"provider": "demo", "data": "b3BhcXVl"}, agent="b0"),
            text(2, "I look at the bookings first.", agent="b0"),
            text(3, '{"day":"Friday"}', "tool_args", call="k1", name="find_bookings", agent="b0"),
        ]},
        {"msg": "m3", "role": "assistant", "run": "r1", "agent": "b1", "ts": TS + 55, "step": 2, "model": "demo/b",
         "usage": usage, "ms": 800, "finish": "tools", "notes": ["decode"], "parts": [
            text(4, every, agent="b1"),
            text(5, "{}", "tool_args", call="k3", name="mail_send", agent="b1"),
        ]},
        {"msg": "m4", "role": "user", "run": "r1", "by": "u1", "ts": TS + 65, "parts": [
            {"kind": "text", "text": "No mail, please.", "open": False}]},
        {"msg": "m5", "role": "assistant", "run": "r1", "agent": "b0", "ts": TS + 80, "step": 3, "model": "demo/a",
         "usage": usage, "ms": 700, "finish": "cancelled", "parts": [
            text(6, MARKDOWN, agent="b0"),
            text(7, "And then we", agent="b0", partial=True),
        ]},
    ]  # fmt: skip
    return state
