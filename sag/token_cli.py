"""`sag token new|list|drop`: who may speak to the hub, through the one that runs or, where none does, on its data.

The second way is there so that the first token can be made before the hub listens on an address of the network.
Above: `sag.cli`. Below: the token operations, whose params are checked by the same structs in both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from sag.address import own_hub, rpc
from sag.api.system import TokenListed, TokenMade, TokenNew
from sag.errors import Fault
from sag.ops.dispatch import params_fault
from sag.schema.ids import now_ms
from sag.settings import Settings, load
from sag.store.tokens import TokenInfo, Tokens
from sag.topics.sqlite import SqliteJournal
from sag.topics.topic import Topics

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Json = dict[str, Any]
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `token` to the command line of `sag`."""
    parser = subparsers.add_parser("token", help="make, list and revoke tokens")
    commands = parser.add_subparsers(dest="token_command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a token and print it; it is shown this once")
    new.add_argument("--user", default="local", metavar="NAME", help="whose token it is (default: local)")
    new.add_argument("--name", default="", metavar="LABEL", help="what it is for, to tell it from others")
    new.add_argument("--admin", action="store_true", help="it may administer the hub")
    new.add_argument("--expires", type=seconds, metavar="TIME", help="how long it holds: 30d, 12h, 90m (default: ever)")
    listing = commands.add_parser("list", help="show the tokens, without their texts")
    drop = commands.add_parser("drop", help="revoke a token; the connections that it opened end")
    drop.add_argument("id", metavar="ID", help="as `sag token list` shows it")
    for command in (new, listing, drop):
        command.add_argument("--data", metavar="DIR", help="the hub's data folder")


def seconds(text: str) -> int:
    """A span of time, `30d`, in seconds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; write 30d, 12h or 90m")
    return int(match[1]) * UNITS_S[match[2]]


def run(args: argparse.Namespace) -> int:
    """Run what was asked for; gives the process's exit status."""
    settings = load(data=args.data)
    match args.token_command:
        case "new":
            params: Json = {"user": args.user, "name": args.name, "admin": args.admin, "expires_s": args.expires}
            made = msgspec.convert(_call(settings, "token.new", params), TokenMade)
            print(_described(made.info), file=sys.stderr)
            print(made.token)
        case "drop":
            dropped = msgspec.convert(_call(settings, "token.drop", {"id": args.id}), TokenInfo)
            print(f"Revoked. It was: {_described(dropped)}", file=sys.stderr)
        case _:
            print(table(msgspec.convert(_call(settings, "token.list", {}), TokenListed).tokens))
    return 0


def _call(settings: Settings, method: str, params: Json) -> Json:
    """Ask the hub that runs; else do it on the data folder, which no hub has then.

    Raises:
        Fault: What it was refused for.
        StartError: The data folder cannot be used, or a hub holds it that cannot be reached.
    """
    hub = own_hub(settings.data)
    if hub is not None:
        try:
            return rpc(hub, method, params)
        except Fault as fault:
            if fault.kind != "hub.unreachable":
                raise  # else hub.json is stale, which the journal's lock decides
    answer: Json = msgspec.to_builtins(asyncio.run(_directly(settings, method, params)))
    return answer


async def _directly(settings: Settings, method: str, params: Json) -> Any:
    journal = SqliteJournal(settings.data, settings.hub.sync)
    topics = Topics(journal)
    try:
        tokens, tx = Tokens(journal), topics.begin()
        result: Any
        match method:
            case "token.new":
                try:
                    p = msgspec.convert(params, TokenNew)
                except msgspec.ValidationError as e:
                    raise params_fault(e) from None
                expires = None if p.expires_s is None else now_ms() + p.expires_s * 1000
                roles = ["user", "admin"] if p.admin else ["user"]
                result = TokenMade(*tokens.new(tx, p.user, p.name, roles, expires))
            case "token.drop":
                result = await tokens.drop(tx, params["id"])
            case _:
                return TokenListed(await tokens.list())
        await tx.submit()
        return result
    finally:
        await topics.close()


def table(tokens: list[TokenInfo]) -> str:
    """Tokens as a table."""
    if not tokens:
        return "There are no tokens."
    rows = [("ID", "USER", "ROLES", "MADE", "EXPIRES", "NAME")]
    rows += [(t.id, t.user, ",".join(t.roles), _day(t.created), _expiry(t), t.name) for t in tokens]
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _described(info: TokenInfo) -> str:
    name = f" ({info.name})" if info.name else ""
    return f"Token {info.id}{name} of the user {info.user}, {' and '.join(info.roles)}, expires: {_expiry(info)}."


def _expiry(info: TokenInfo) -> str:
    if info.expires is None:
        return "never"
    return _day(info.expires) if info.expires > now_ms() else "expired"


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M")
