"""The run kind `dialogue`: agents talk with each other about a topic, turn by turn, while people listen and join in.

Owns who speaks next, on what config, and when it is over. What a turn is made of is the hub's work, and the routes of
the system that this replaces are in `sag_dialogue.routes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sag.plugin import Agent, Fault, Hub, Run, RunLimit, Tool, ToolContext, ToolError, hookimpl
from sag_dialogue.config import MOST_TURNS, Bot, DialogueConfig, numbered
from sag_dialogue.routes import Routes

Json = dict[str, Any]

MODERATOR = "moderator"
TRIES = 3  # rounds that a moderator may take to choose


class Removed(Exception):
    """The bot whose turn it is takes part no longer."""


class Dialogue:
    """The kind.

    Args:
        hub: The plugin's hub; its environment may hold RUN_MAX_TURNS.

    Raises:
        ValueError: RUN_MAX_TURNS is no whole number above 0.
    """

    def __init__(self, hub: Hub[Any]) -> None:
        self._hub = hub
        self._cap = read_cap(hub.env)

    async def talk(self, run: Run) -> None:
        """Agents talk with each other about a topic."""
        # One who is left alone has nobody to talk to; a person who said something at the end is answered.
        while len(run.config().bots) > 1 and (self._has_turns(run) or run.unread):
            id = await moderated(run) or silent_longest(run)
            await number(run)
            with suppress(Removed):
                await run.turn(partial(speaker, run, id, len(run.rounds())))

    def _has_turns(self, run: Run) -> bool:
        most: int = min(run.config().max_turns, self._cap)
        return sum(turn.agent != MODERATOR for turn in run.turns()) < most

    def exported(self, object: Json, config: Json) -> Json:
        """The bots as clients of the replaced system know them."""
        return {"bots": [self._export(id, bot, config) for id, bot in config.get("bots", {}).items()]}

    def _export(self, id: str, bot: Json, config: Json) -> Json:
        model = bot.get("model") or config.get("model")
        if model is None:
            with suppress(Fault):  # where there is no default either, nobody answered
                place = self._hub.where()
                model = f"{place.provider}/{place.model}"
        provider, _, name = (model or "").partition("/")
        prompt = bot.get("system") or config.get("system") or ""
        told = {"provider": provider, "model": name, "prompt": prompt}
        return told | {"temperature": bot.get("temperature", config.get("temperature")), "name": bot.get("name") or id}


async def number(run: Run) -> None:
    """Keep by which number clients know a bot; it stays the bot's own when others leave."""
    known = run.data.get("numbers", {})
    if (numbers := numbered(known, run.config().bots)) != known:
        await run.update({"numbers": numbers})


def silent_longest(run: Run) -> str:
    """Whose turn it is in a round: also where somebody joined, left, or was called up out of turn."""
    spoke = {turn.agent: n for n, turn in enumerate(run.turns())}
    return min(run.config().bots, key=lambda id: spoke.get(id, -1), default="")


async def moderated(run: Run) -> str | None:
    """Whom the moderator calls up; None where there is none, or it does not choose."""
    if run.config().next != "moderator":
        return None
    if chosen(run) is None:
        with suppress(RunLimit):  # it chose badly again and again; of other limits the next turn tells
            await run.turn(partial(moderator, len(run.rounds())))
    id = chosen(run)
    return id if id in run.config().bots else None


def chosen(run: Run) -> str | None:
    """Whom the moderator chose since somebody last spoke."""
    turns = {turn.msg for turn in run.turns() if turn.agent != MODERATOR}
    spoke = max((m["step"] for m in run.messages() if m["msg"] in turns), default=0)
    calls = run.calls("next_speaker")
    choices = [call for call in calls if call.get("agent") == MODERATOR and call["status"] == "ok"]
    return choices[-1]["result"] if choices and choices[-1]["step"] > spoke else None


def speaker(run: Run, id: str, rounds: int, config: DialogueConfig) -> Agent:
    """A bot as it is by a config.

    Raises:
        Removed: It is not there any more.
    """
    bot = config.bots.get(id)
    if bot is None:
        raise Removed(id)
    heard = {message.get("agent") for message in run.state["messages"] if message["role"] == "assistant"}
    return Agent(
        name=id,
        title=bot.name or id,
        system=next((text for text in (bot.system, config.system) if text is not None), introduction(id, config.bots)),
        model=bot.model,
        settings=settings(config, rounds, temperature=bot.temperature, max_tokens=bot.max_tokens),
        offered=None if bot.tools else (),
        marked=len(heard | config.bots.keys()) > 2,  # of two, what is not one's own is the other's
    )


def moderator(rounds: int, config: DialogueConfig) -> Agent:
    """The moderator as it is by a config: it hears everybody, and may do nothing but choose."""
    given, bots = config.moderator, config.bots
    known = {bot.name: id for id, bot in bots.items() if bot.name} | {id: id for id in bots}

    async def choose(args: Json, ctx: ToolContext) -> str:
        if (id := known.get(str(args.get("bot")))) is None:
            raise ToolError(f"There is no such bot; choose one of {', '.join(bots)}.")
        return id

    schema = {"type": "object", "properties": {"bot": {"type": "string", "enum": list(bots)}}, "required": ["bot"]}
    tool = Tool("next_speaker", "Say who speaks next.", schema, choose, check=dict, risk="read")
    present = ", ".join(f"{id} ({bot.name})" if bot.name else id for id, bot in bots.items())
    return Agent(
        name=MODERATOR,
        title="Moderator",
        system=f"{given.system}\n\nThose who talk: {present}. Call next_speaker with one of these ids and say no more.",
        model=given.model,
        settings=settings(config, rounds, TRIES, temperature=given.temperature),
        offered=(),
        own=[tool],
        ends={tool.name},
    )


def introduction(id: str, bots: Mapping[str, Bot]) -> str:
    """The prompt of a bot that has none."""
    names = {one: bot.name or one for one, bot in bots.items()}
    others = " and ".join(name for one, name in names.items() if one != id)
    return (
        f"You are {names[id]}. You talk with {others} about what the user brings up. Speak for yourself alone, in a "
        "few sentences. Answer what was said last, and bring in what is missing: a reason, an example, a doubt."
    )


def settings(config: DialogueConfig, rounds: int, tries: int | None = None, **own: Any) -> Json:
    """What of the config is a speaker's own; it has so many rounds from where its turn began."""
    return {k: v for k, v in own.items() if v is not None} | {"rounds": rounds + (tries or config.rounds)}


def read_cap(env: Mapping[str, str]) -> int:
    """The most turns that RUN_MAX_TURNS allows."""
    text = env.get("RUN_MAX_TURNS", "").strip() or str(MOST_TURNS)
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"RUN_MAX_TURNS is the most turns of a dialogue, a whole number from 1, not {text!r}")
    return int(text)


@hookimpl
def register(hub: Hub[None]) -> None:
    dialogue = Dialogue(hub)
    hub.add_run_kind("dialogue", DialogueConfig, dialogue.talk, title="Dialogue", exported=dialogue.exported)
    for route, function in Routes(hub).all.items():
        hub.add_route(route, function)
