"""Several devices patch the same config at once, while a run works on it (RELIABILITY F20).

The log is the referee: revisions in it grow by one, so that it is one order of all accepted patches. Every answer,
conflict, step and state has to be what a plain dictionary says at its place in that order.
"""

from __future__ import annotations

import ast
import asyncio
import random
import time
from typing import Any

import pytest

from tests.harness import Client, Cut, Hub, Proxy, Refused, check_state, merge, new_key, times, until

Json = dict[str, Any]


class Patch:
    """One patch as a client saw it: what it sent, between which moments, and what it was told."""

    def __init__(self, patch: Json, rev: int | None) -> None:
        self.patch, self.rev = patch, rev
        self.began = self.ended = 0.0
        self.answer: Json | None = None
        self.refused: Refused | None = None


def draw(chance: random.Random, known: int) -> tuple[Json, int | None]:
    """A patch: the same member, another, null, nested, empty; with a revision, a stale one, or none."""
    choices: list[Json] = [
        {"temperature": chance.randint(0, 20) / 10},
        {"temperature": None},
        {"max_tokens": chance.randint(100, 200)},
        {"top_p": chance.randint(1, 10) / 10, "temperature": chance.randint(0, 20) / 10},
        {"tools": {f"t{chance.randint(0, 3)}": chance.choice([True, False, None])}},
        {"tools": None},
        {"extra": {"a": {"b": chance.randint(0, 9), "c": None}}},
        {},
    ]
    patch = chance.choice(choices)
    return patch, chance.choice([None, None, known, known, max(1, known - 1)])


async def patch_for_a_while(client: Client, scope: str, chance: random.Random, count: int) -> list[Patch]:
    out = []
    known = 1
    for _ in range(count):
        patch, rev = draw(chance, known)
        one = Patch(patch, rev)
        params: Json = {"scope": scope, "patch": patch, "key": new_key()} | ({} if rev is None else {"rev": rev})
        one.began = time.monotonic()
        try:
            one.answer = await client.sure("config.patch", **params)
            known = one.answer["rev"]
        except Refused as refused:
            one.refused = refused
            known = refused.data.get("rev", known)
        one.ended = time.monotonic()
        out.append(one)
        await asyncio.sleep(chance.uniform(0, 0.004))
    return out


def judge(patches: list[Patch], events: list[Json], base: Json, first: Json) -> dict[int, Json]:
    """Hold what everybody was told against the order in the log. Gives the document of each revision."""
    assert [d["rev"] for d in events] == list(range(2, len(events) + 2)), "every revision once, growing by one"
    documents: dict[int, Json] = {1: first}
    for d in events:
        documents[d["rev"]] = merge(documents[d["rev"] - 1], d["patch"])
    accepted = [p for p in patches if p.answer]
    assert sorted(p.answer["rev"] for p in accepted if p.answer) == [d["rev"] for d in events], "each accepted one once"
    by_rev = {d["rev"]: d for d in events}
    for p in accepted:
        assert p.answer is not None
        rev = p.answer["rev"]
        assert by_rev[rev]["patch"] == p.patch
        assert p.rev is None or p.rev == rev - 1, "compare-and-set held"
        wanted = merge(base, documents[rev])
        assert {k: p.answer["effective"].get(k) for k in wanted} == wanted
    for p in patches:
        if p.refused is not None:
            assert (p.refused.code, p.refused.kind) == (409, "config.conflict")
            assert p.rev is not None
            assert p.refused.data["rev"] != p.rev
            wanted = merge(base, documents[p.refused.data["rev"]])
            assert {k: p.refused.data["effective"].get(k) for k in wanted} == wanted
    order = sorted(accepted, key=lambda p: p.began)
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            if a.ended < b.began:
                assert a.answer is not None
                assert b.answer is not None
                assert a.answer["rev"] < b.answer["rev"], "the order is one that everybody could see"
    return documents


@pytest.mark.parametrize("seed", range(times(4, 40)))
async def test_patches_from_all_sides_are_one_order_and_steps_run_on_one_revision(common: Hub, seed: int) -> None:
    chance = random.Random(seed)
    said = f"loop 9 {20 + seed}"
    async with Proxy(common.port) as proxy, Client(common.url, "watch") as watcher:
        proxy.cuts = [Cut(chance.choice(["c2s", "s2c"]), chance.randint(3, 30), "rst") for _ in range(3)]
        cut = Client(proxy.url, "cut").keep()
        steady = [Client(common.url, f"steady{n}").keep() for n in range(2)]
        clients = [cut, *steady]
        try:
            for client in clients:
                await client.online.wait()
            before = len(common.journal(f"model {said} "))
            started, view = await watcher.say(said, config={"rounds": 30, "temperature": 1.0})
            scope = f"run:{started['run']}"
            for client in clients:
                await client.sure("topic.subscribe", topic=view.topic)
            results = await asyncio.gather(
                *(patch_for_a_while(c, scope, random.Random(seed * 10 + n), 14) for n, c in enumerate(clients))
            )
            await watcher.done(view, started["run"], timeout_s=20)
        finally:
            views = [c.views.get(f"conv:{started['conv']}") for c in clients]
            await asyncio.gather(*(c.close() for c in clients[1:]))
        patches = [p for result in results for p in result]
        closed = [p for p in patches if p.refused is not None and p.refused.kind == "run.closed"]
        patches = [p for p in patches if p not in closed]
        base = {"rounds": 5}
        documents = judge(patches, view.named("config"), base, {"rounds": 30, "temperature": 1.0})
        # each step ran on the newest revision of its beginning, whole
        rev, applied, steps = 1, 1, []
        for event in view.events:
            d = event["d"]
            if event["e"] == "config":
                rev = d["rev"]
            elif event["e"] == "step.open":
                steps.append(rev)
            elif event["e"] == "config.applied":
                assert (d["rev"], d["step"]) == (rev, len(steps)), "it names the newest, at its step"
                assert rev > applied
                applied = rev
        assert len(view.named("config.applied")) == len({r for r in steps if r > 1}), "once for each newer revision"
        calls = [line.partition("given=")[2].partition(" answers")[0] for line in common.journal(f"model {said} ")]
        given = [ast.literal_eval(c) for c in calls[before:]]
        names = ("temperature", "max_tokens", "top_p")
        assert given == [tuple(documents[r].get(n) for n in names) for r in steps]
        await check_state(common.url, view.topic, view, *[v for v in views if v is not None])
        await cut.close()


@pytest.mark.parametrize("scope", ["conv", "client"])
async def test_exactly_one_of_two_writers_with_the_same_revision_wins(common: Hub, scope: str) -> None:
    async with Client(common.url, "one") as one, Client(common.url, "two") as two:
        started, view = await one.say("hi")
        name = f"conv:{started['conv']}" if scope == "conv" else "client:shared"
        patch: Json = {"temperature": 0.5} if scope == "conv" else {"ui": {"a": 1}}
        rev = (await one.call("config.get", scope=name))["rev"]
        for _ in range(times(20, 300)):
            answers = await asyncio.gather(
                *(c.call("config.patch", scope=name, patch=patch, rev=rev) for c in (one, two)), return_exceptions=True
            )
            won = [a for a in answers if isinstance(a, dict)]
            lost = [a for a in answers if isinstance(a, Refused)]
            assert len(won) == len(lost) == 1
            assert won[0]["rev"] == lost[0].data["rev"] == rev + 1
            assert lost[0].data["effective"] == won[0]["effective"]
            rev += 1
        await until(lambda: view.has["runs"][started["run"]]["status"] == "done")
        await check_state(common.url, view.topic, view)
