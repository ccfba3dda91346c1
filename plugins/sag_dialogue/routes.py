"""The routes that clients of older two-agent servers know: start, listen, change a bot, stop.

A run that is started here is one like any other: devices that are signed in as the same user see it and may steer it.
`GET /api/export/{id}.json` is the hub's. Above: the kind's module. Below: the hub's operations.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from sag.plugin import Fault, Hub, Request, Sent, Stream, User
from sag_dialogue.config import MOST_BOTS, MOST_TURNS, Name, Prompt, Temperature, numbered

Json = dict[str, Any]

STARTS, WINDOW_S = 10, 60.0


class BotGiven(Struct):
    """A bot of `POST /api/run`."""

    provider: Annotated[str, Meta(min_length=1, max_length=80)]
    model: Annotated[str, Meta(min_length=1, max_length=100)]
    prompt: Prompt = ""
    temperature: Temperature | None = None
    name: Name = ""


class RunGiven(Struct):
    """The body of `POST /api/run`; more turns than there may be are as many as there may be."""

    bots: Annotated[list[BotGiven], Meta(min_length=2, max_length=MOST_BOTS)]
    topic: Annotated[str, Meta(min_length=1, max_length=100_000)]
    max_turns: Annotated[int, Meta(ge=1)] = 10


class BotPatch(Struct, forbid_unknown_fields=True):
    """The body of `PATCH /api/run/{id}/bot/{index}`; null takes a member back."""

    prompt: Prompt | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET


class StartRate:
    """How often an address may start something: so many times in any window of time.

    Args:
        times, window_s: That.
        clock: Gives the time in seconds.
    """

    def __init__(self, times: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._times, self._window_s, self._clock = times, window_s, clock
        self._starts: dict[str, deque[float]] = {}

    def take(self, address: str) -> None:
        """Count a start.

        Raises:
            Fault: run.rate with the time to wait.
        """
        now = self._clock()
        self._starts = {who: at for who, at in self._starts.items() if at[-1] > now - self._window_s}
        starts = self._starts.get(address, deque())
        while starts and starts[0] <= now - self._window_s:
            starts.popleft()
        if len(starts) >= self._times:
            raise Fault("run.rate", after_ms=int((starts[0] + self._window_s - now) * 1000) + 1)
        starts.append(now)
        self._starts[address] = starts


class Routes:
    """The routes.

    Args:
        hub: The plugin's hub.

    Attributes:
        all: What serves each.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub
        self._rate = StartRate(STARTS, WINDOW_S)
        self.all = {
            "POST /api/run": self.start,
            "GET /api/stream/{id}": self.stream,
            "PATCH /api/run/{id}/bot/{index}": self.patch,
            "POST /api/run/{id}/stop": self.stop,
        }

    async def start(self, request: Request) -> Json:
        """`{id}` of a new dialogue in a conversation of its own.

        Raises:
            Fault: rpc.params, config.invalid, run.rate.
        """
        given = await request.json(RunGiven)
        bots = {f"b{i}": self._bot(i, bot) for i, bot in enumerate(given.bots)}
        self._rate.take(request.address)
        config = {"bots": bots, "max_turns": min(given.max_turns, MOST_TURNS)}
        params: Json = {"kind": "dialogue", "config": config, "input": [{"kind": "text", "text": given.topic}]}
        if (key := request.headers.get("idempotency-key")) is not None:
            params["key"] = key
        started = await self._hub.call(request.user, "run.start", params, client=request.client)
        return {"id": started["run"]}

    def _bot(self, i: int, given: BotGiven) -> Json:
        model = f"{given.provider}/{given.model}"
        try:
            known = self._hub.where(model).provider == given.provider
        except Fault:
            known = False
        if not known:
            message = f"There is no provider {given.provider!r} here; use one that is configured."
            raise Fault("config.invalid", message, path=f"$.bots[{i}].provider")
        bot = {"name": given.name or f"Bot {i + 1}", "model": model, "system": given.prompt}
        return bot if given.temperature is None else {**bot, "temperature": given.temperature}

    async def patch(self, request: Request) -> Json:
        """Change a bot from its next turn on; `{id, index, rev}`.

        Raises:
            Fault: run.unknown, bot.unknown, run.closed, rpc.params, config.invalid.
        """
        run, index = request.path["id"], request.path["index"]
        given = await request.json(BotPatch)
        data = (await self._find(request.user, run))["object"].get("data") or {}
        view = await self._hub.call(request.user, "config.get", {"scope": f"run:{run}"})
        bots = view["effective"]["bots"]
        numbers = {str(number): id for id, number in numbered(data.get("numbers", {}), bots).items()}
        if (bot := numbers.get(index)) not in bots:
            there = ", ".join(number for number, id in numbers.items() if id in bots)
            raise Fault("bot.unknown", f"There is no bot {index[:20]!r}; there are {there}.")
        members = {"prompt": "system", "temperature": "temperature"}
        change = {members[name]: value for name, value in structs.asdict(given).items() if value is not UNSET}
        if not change:
            raise Fault("rpc.params", "Send prompt or temperature, or both.", path="$")
        params = {"scope": f"run:{run}", "patch": {"bots": {bot: change}}}
        patched = await self._hub.call(request.user, "config.patch", params, client=request.client)
        return {"id": run, "index": int(index), "rev": patched["rev"]}

    async def stop(self, request: Request) -> Json:
        """End a dialogue at once; what was said stays. `{id, status}`.

        Raises:
            Fault: run.unknown, run.closed.
        """
        run = request.path["id"]
        await self._find(request.user, run)
        stopped = await self._hub.call(request.user, "run.cancel", {"run": run}, client=request.client)
        return {"id": run, "status": stopped["status"]}

    async def stream(self, request: Request) -> Stream:
        """What is said, from the first word on, whenever a client comes; it ends when the dialogue does.

        Raises:
            Fault: run.unknown.
        """
        run = request.path["id"]
        conv = (await self._find(request.user, run))["conv"]
        return Stream(self._tell(request.user, conv, run))

    async def _find(self, user: User, run: str) -> Json:
        found: Json = await self._hub.call(user, "run.get", {"run": run})
        if found["object"]["kind"] != "dialogue":
            raise Fault("run.unknown", "That run is no dialogue.")
        return found

    async def _tell(self, user: User, conv: str, run: str) -> AsyncIterator[Sent]:
        told = Told(run)
        error = "The conversation was deleted."
        try:
            async with aclosing(self._hub.subscribe(user.id, f"conv:{conv}", after=0)) as events:  # type: ignore[type-var]
                async for name, d in events:
                    for one in told.take(name, d):
                        yield Sent(one)
                    if name != "run.close" or d["run"] != run:
                        continue
                    if d["status"] == "interrupted" and await self._goes_on(user, run):
                        continue
                    if d["status"] in ("done", "cancelled"):
                        return
                    error = (d.get("error") or {}).get("message") or "The hub was restarted; the run can be resumed."
                    break
        except Fault as e:
            gone = f"How this dialogue began is told no longer; /api/export/{run}.json has what was said."
            error = gone if e.kind == "topic.unknown" else e.message
        yield Sent({"type": "error", "message": error})

    async def _goes_on(self, user: User, run: str) -> bool:
        """Whether a run that was interrupted has been resumed."""
        object = (await self._find(user, run))["object"]
        return bool(object["status"] != "interrupted")


class Told:
    """What the events of a conversation say of one dialogue, in the words of the replaced system.

    Args:
        run: Which run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._roles: dict[str, str] = {}  # of the bots, by their numbers
        self._steps: set[int] = set()  # in which bots speak
        self._parts: dict[int, tuple[str, int]] = {}  # open ones: the role, and the length so far
        self._cut: list[tuple[str, int]] = []  # what a step left that will be done again
        self._turns = 0

    def take(self, name: str, d: Any) -> Iterator[Json]:
        """An event as what clients are told of it."""
        if name == "delta":
            for part, text in zip(d[::2], d[1::2], strict=True):
                if part in self._parts:
                    role, length = self._parts[part]
                    self._parts[part] = role, length + len(text)
                    yield {"type": "token", "role": role, "delta": text}
        elif name == "part.drop" and d["part"] in self._parts:
            yield from self._retract(*self._parts.pop(d["part"]))
        elif name == "part.close" and d.get("partial") and d["part"] in self._parts:
            self._cut.append(self._parts[d["part"]])
        elif not isinstance(d, dict) or d.get("run") != self._run:
            return
        elif name == "run":
            numbers = (d["patch"].get("data") or {}).get("numbers", {})
            self._roles |= {id: f"bot{number}" for id, number in numbers.items()}
        elif name == "step.open":
            while self._cut:
                yield from self._retract(*self._cut.pop())
            if d.get("agent") in self._roles:
                self._steps.add(d["step"])
        elif name == "part.open" and d["kind"] == "text" and d.get("agent") in self._roles:
            self._parts[d["part"]] = self._roles[d["agent"]], 0
        elif name == "step.close" and d["step"] in self._steps and d["finish"] in ("stop", "length", "refused"):
            self._turns += 1
            yield {"type": "turn_complete", "turn": self._turns}

    def _retract(self, role: str, length: int) -> Iterator[Json]:
        if length:
            yield {"type": "retract", "role": role, "length": length}
