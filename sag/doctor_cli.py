"""`sag doctor`: looks at everything that a hub needs and says in a line each what is well and what is not.

It changes nothing: no folder is made, the database is opened for reading alone, and not at all while a hub has it.
Above: `sag.cli`. Below: settings, the plugin host, the journal's file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

import sag
from sag.address import Address, own_hub
from sag.engine.models import Models
from sag.errors import Fault, StartError
from sag.hooks.host import Extensions, PluginHost
from sag.ops.operation import Registry
from sag.outbound import Outbound
from sag.settings import Settings, load
from sag.topics.reducers import FAMILIES
from sag.topics.sqlite import MIGRATIONS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Json = dict[str, Any]
Status = Literal["ok", "warn", "fail"]
PYTHON = (3, 11)
SQLITE = (3, 51, 3)
LITTLE_BYTES, TOO_LITTLE_BYTES = 1 << 30, 64 << 20
BACK_S = 60.0
FRONTENDS = ("chat", "voice", "kiosk")


class Check(Struct):
    """What was looked at and what was found."""

    name: str
    status: Status
    text: str


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `doctor` to the command line of `sag`."""
    parser = subparsers.add_parser("doctor", help="check what the hub needs")
    parser.add_argument("--data", metavar="DIR", help="the hub's data folder")
    parser.add_argument("--config", metavar="FILE", help="the plugins.toml to go by")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Check; gives 1 where something fails."""
    logging.getLogger("sag.hooks").setLevel(logging.CRITICAL)  # the lines tell the same
    checks = list(examine(args.data, args.config))
    if args.json:
        print(json.dumps({"checks": msgspec.to_builtins(checks)}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.status:<4}  {check.name:<{width}}  {check.text}")
    return int(any(check.status == "fail" for check in checks))


def examine(data: str | None = None, config: str | None = None) -> Iterator[Check]:
    """All checks, in order."""
    yield _python()
    try:
        settings = load(data=data, config=config)
    except StartError as e:
        yield Check("settings", "fail", str(e))
        return
    yield Check("settings", "ok", settings.config_file or "no plugins.toml, which is well: none is needed")
    yield _data(settings.data)
    yield _sqlite()
    busy = in_use(settings.data)
    address = own_hub(settings.data) if busy else None
    health = _health(address) if address is not None else None
    newest: int | None = None
    tokens = 0
    if busy:
        yield _running(address, health)
    else:
        check, newest, tokens = _database(settings.data / "sag.db")
        yield check
    host = PluginHost(settings, Registry(), extensions := Extensions(), dict(FAMILIES))
    host.load()
    yield from _plugins(host)
    yield _frontends(Path(sag.__file__).parent / "frontend")
    yield _models(extensions, settings)
    if not busy:
        yield _port(settings)
        yield _access(settings, tokens)
    yield _clock(newest)


# one each


def _python() -> Check:
    version = sys.version.split()[0]
    if sys.version_info < PYTHON:
        return Check("python", "fail", f"{version}; sag needs {PYTHON[0]}.{PYTHON[1]} or newer")
    return Check("python", "ok", version)


def _data(folder: Path) -> Check:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as e:
        return Check("data folder", "fail", f"{folder}: cannot be written: {e.strerror or e}")
    told = f"{folder}{'' if there == folder else ', which the hub will make'}; {free / (1 << 30):.1f} GiB free"
    if free < TOO_LITTLE_BYTES:
        return Check("data folder", "fail", f"{told}: nothing can be kept when the disk is full")
    return Check("data folder", "warn" if free < LITTLE_BYTES else "ok", told)


def _sqlite() -> Check:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < SQLITE:
        why = "has a corruption bug with two writing connections; the hub writes with one alone, so that it is not met"
        return Check("sqlite", "warn", f"{version} {why}")
    return Check("sqlite", "ok", version)


def in_use(folder: Path) -> bool:
    """Whether a hub holds the data folder."""
    try:
        lock = os.open(folder / "sag.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _health(address: Address) -> Json | None:
    import httpx

    try:
        with httpx.Client(trust_env=False, verify=address.tls() or True, timeout=5) as http:
            told = http.get(f"{address.url}/health").json()
    except (httpx.HTTPError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _running(address: Address | None, health: Json | None) -> Check:
    if address is None or health is None:
        where = f" at {address.url}" if address else ""
        return Check("hub", "fail", f"a process holds the data folder, but no hub answers{where}")
    told = f"runs at {address.url}, version {health.get('version')}, {health.get('connections')} connections"
    if failed := (health.get("plugins") or {}).get("failed"):
        return Check("hub", "fail", f"{told}; failed plugins: {', '.join(failed)}")
    if health.get("status") != "ok":
        return Check("hub", "warn", f"{told}; it is {health.get('status')}")
    return Check("hub", "ok", f"{told}; it vouches for its database")


def _database(path: Path) -> tuple[Check, int | None, int]:
    """The database's soundness, the time of its newest event, and how many tokens it has."""
    name = "database"
    if not path.exists():
        return Check(name, "ok", "none yet; the hub makes one"), None, 0
    try:
        # After an orderly end there is no log beside the file, and reading it must not make one.
        how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=2)) as db:
            found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if found != ["ok"]:
                text = f"{path}: damaged: {'; '.join(found)[:300]}; restore it from a backup"
                return Check(name, "fail", text), None, 0
            if version == 0:
                return Check(name, "ok", f"{path}: empty"), None, 0
            if version > len(MIGRATIONS):
                return Check(name, "fail", f"{path}: made by a newer sag (schema {version}); update sag"), None, 0
            newest = db.execute("SELECT max(ts) FROM event").fetchone()[0]
            now = time.time() * 1000
            sql = "SELECT count(*) FROM token WHERE expires IS NULL OR expires > ?"
            tokens = db.execute(sql, (now,)).fetchone()[0]
    except sqlite3.Error as e:
        return Check(name, "fail", f"{path}: {e}"), None, 0
    return Check(name, "ok", f"{path}: sound, {path.stat().st_size / (1 << 20):.1f} MiB"), newest, tokens


def _plugins(host: PluginHost) -> Iterator[Check]:
    for plugin in host.plugins:
        told = " ".join(t for t in (plugin.version, plugin.reason) if t) or plugin.status
        name = f"plugin {plugin.name}"
        if plugin.status == "failed":
            yield Check(name, "fail", told)
        elif plugin.problems:
            yield Check(name, "warn", f"{told}: {'; '.join(plugin.problems)}")
        else:
            yield Check(name, "ok", told)
    for problem in host.problems:
        yield Check("plugins", "warn", problem)
    if not host.plugins:
        yield Check("plugins", "fail", "none found; is the package installed whole?")


def _frontends(folder: Path) -> Check:
    built = [name for name in FRONTENDS if (folder / name / "index.html").is_file()]
    if "chat" not in built:
        return Check("frontends", "warn", "not built: run scripts/build, or install the sag-hub wheel")
    return Check("frontends", "ok", ", ".join(built))


def _models(extensions: Extensions, settings: Settings) -> Check:
    named = settings.env.get("LLM_PROVIDER", "").strip().lower()
    if named and named not in extensions.providers:
        return Check("model", "fail", f"LLM_PROVIDER={named} names no provider; {_list(extensions.providers)}")
    outbound = Outbound()
    models = Models(extensions, outbound, settings.models, named=named)
    default = models.default()
    if default is None:
        return Check("model", "fail", "there is none: set LLM_PROVIDER, LLM_MODEL and the provider's key")
    demo = {name for name, _, model in models.all() if model.demo}
    if default in demo:
        text = f"{default}, the demo without a model: set LLM_PROVIDER, LLM_MODEL and the provider's key"
        return Check("model", "warn", text)
    try:
        asyncio.run(_ask(models, outbound, default))
    except Fault as e:
        return Check("model", "fail" if e.kind == "provider.auth" else "warn", f"{default}: {e.message}")
    return Check("model", "ok", f"{default} is the default")


async def _ask(models: Models, outbound: Outbound, name: str) -> None:
    """Have the vendor say whether it takes the key and has the model."""
    try:
        await models.check(name)
    finally:
        await outbound.close()


def _list(names: Iterable[str]) -> str:
    return f"there is {', '.join(sorted(names)) or 'none'}"


def _port(settings: Settings) -> Check:
    hub = settings.hub
    family = socket.AF_INET6 if ":" in hub.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((hub.host, hub.port))
        except OSError as e:
            return Check("port", "fail", f"{hub.host} port {hub.port} cannot be had: {e.strerror or e}")
    return Check("port", "ok", f"{hub.host} port {hub.port} is free; no hub runs on this data folder")


def _access(settings: Settings, tokens: int) -> Check:
    hub = settings.hub
    count = f"{tokens} token{'' if tokens == 1 else 's'}"
    if settings.loopback and hub.auth == "auto":
        return Check("access", "ok", f"{hub.host} is this machine alone: nobody has to sign in")
    if not tokens:
        status: Status = "warn" if settings.loopback else "fail"
        return Check("access", status, f"{hub.host} asks for a token and there is none: make one with `sag token new`")
    if not settings.loopback and not hub.tls_cert:
        return Check("access", "warn", f"{count}, but {hub.host} is served without TLS: others can read along")
    return Check("access", "ok", f"{count} may sign in")


def _clock(newest_ms: int | None) -> Check:
    now = time.time()
    told = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if time.gmtime(now).tm_year < 2025:
        return Check("clock", "fail", f"{told}: certificates and expiries cannot be checked by it")
    if newest_ms is not None and newest_ms / 1000 > now + BACK_S:
        back_s = newest_ms / 1000 - now
        return Check("clock", "warn", f"{told}: the newest event is from {back_s:.0f} s later; the clock went back")
    return Check("clock", "ok", told)
