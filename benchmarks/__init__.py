"""What the performance figures come from: `python -m benchmarks [names] [--quick] [--json FILE]`.

Every figure is taken from the hub and, in the same run and in turn with it, from servers that do the same thing with
less: `raw` (asyncio protocols without any framework, the limit of what Python can do) and `bare` (Starlette and uvicorn
with nothing on top). The server is pinned to one core, the load to another. What is compared is CPU seconds of the
server's process; absolute times differ from machine to machine, ratios in one run hardly do.
"""
