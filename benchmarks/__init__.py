"""What the performance figures come from: `python -m benchmarks [names] [--quick] [--json FILE]`.

Every figure is taken from the hub and, in the same run and in turn with it, from servers that do the same thing with
less: `raw` (asyncio protocols without any framework, the limit of what Python can do) and `bare` (Starlette and uvicorn
with nothing on top). The server is pinned to one core, the load to another. What is compared is CPU seconds of the
server's process; absolute times differ from machine to machine, ratios in one run hardly do.

`flood` is also taken from what others build on, where `scripts/peers` has installed it: a relay with OpenAI's own
client (`openai-sdk`), and LiteLLM's proxy, whose answers are read as it gives them, over HTTP.
"""
