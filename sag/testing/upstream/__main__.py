"""Serves a fake by itself: `python -m sag.testing.upstream --flavor anthropic --port 0`."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress

from sag.testing.upstream import FAMILIES, FLAVORS, Answer, Clock, FakeUpstream, Say, Script
from sag.testing.upstream.misbehave import FAULTS, Misbehaving

_EPILOG = f"""What is to go wrong is said in a user's message, `misbehave NAME` or `misbehave NAME 2 times`:
{", ".join(FAULTS)}."""


async def _run(upstream: FakeUpstream) -> None:
    async with upstream:
        print(upstream.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m sag.testing.upstream", description="A fake of a model server.", epilog=_EPILOG
    )
    parser.add_argument("--flavor", choices=list(FLAVORS), default="openai", help="whose server it is")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is a free one; the base URL is printed")
    parser.add_argument("--api-key", default="", help="refuse other keys")
    parser.add_argument("--model", action="append", help="a model to list; may be given several times")
    parser.add_argument("--strict", action="store_true", help="as OpenAI, refuse unknown parameters and models")
    parser.add_argument("--no-tool-parser", action="store_true", help="as vLLM without a parser, refuse tools")
    parser.add_argument("--tool-text", choices=list(FAMILIES), help="write tool calls into the text")
    parser.add_argument("--tokens-per-s", type=float, default=None, help="of each stream; else as fast as may be")
    parser.add_argument("--tokens", type=int, default=None, help="answer everything with so many tokens")
    given = parser.parse_args()
    answer: Answer = Misbehaving()
    if given.tokens is not None:
        script = Script([Say([f" tok{i % 10}" for i in range(given.tokens)])])
        answer = lambda request: script  # noqa: E731
    upstream = FakeUpstream(
        given.flavor,
        host=given.host,
        port=given.port,
        api_key=given.api_key,
        models=given.model or ["fake"],
        strict=given.strict,
        tokens_per_s=given.tokens_per_s,
        tool_parser=not given.no_tool_parser,
        tool_text=given.tool_text,
        clock=Clock(None),
        answer=answer,
    )
    upstream.keep_requests = False
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(upstream))


if __name__ == "__main__":
    main()
