"""What the hub is told from outside: the environment, `.env` and plugins.toml, read once at start.

Owns the one place where the environment is read. Everything else gets a `Settings`; nothing here acts on it.
Numbers are the protocol's own where it gives them (sections 1, 2, 3, 8) and can be changed under `[hub]`.
"""

from __future__ import annotations

import os
import re
import signal
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from dotenv import dotenv_values
from msgspec import Meta, Struct, field

from sag.errors import StartError
from sag.secret import remember, remember_env

PREFIX = "SAG_"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
S = TypeVar("S", bound=Struct)


class Limits(Struct, forbid_unknown_fields=True):
    """What one client may take of the hub. Sizes in bytes."""

    frame: int = 1 << 20
    inflight: int = 64
    topics: int = 128
    connections: int = 20_000
    connections_per_user: int = 10_000
    connections_per_address: int = 10_000
    frames_per_s: int = 500
    body: int = 16 << 20
    queue: int = 16
    part: int = 256 << 10
    outbox: int = 4 << 20


class HubSettings(Struct, forbid_unknown_fields=True):
    """The table `[hub]` of plugins.toml; each member can be given as `SAG_<NAME>` too. Times in ms or s as named."""

    host: str = "127.0.0.1"
    port: int = 4100
    data: str = ""
    origins: list[str] = field(default_factory=list)
    auth: Literal["auto", "required"] = "auto"
    tick_ms: float = 33.0
    ping_every_ms: int = 25_000
    ping_timeout_ms: int = 10_000
    hello_ms: int = 10_000
    head_ms: int = 15_000
    body_ms: int = 20_000
    keep_ms: int = 120_000
    stall_ms: int = 10_000
    drain_s: float = 20.0
    ask_s: float = 86_400.0
    key_s: float = 86_400.0
    sync: Literal["normal", "full"] = "normal"
    keep_s: float = 86_400.0
    keep_events: int = 10_000
    log: str = "info"
    tls_cert: str = ""
    tls_key: str = ""
    plugin_s: float = 5.0
    limits: Limits = field(default_factory=Limits)


Amount = Annotated[float, Meta(ge=0)]


class BudgetLimits(Struct, forbid_unknown_fields=True):
    """What a user's runs may take. None means that there is no limit, `inf` that there is none for this user.

    Attributes:
        day_usd: US dollars a day.
        month_usd: US dollars a calendar month.
        day_tokens: Tokens a day, those sent and those written together.
    """

    day_usd: Amount | None = None
    month_usd: Amount | None = None
    day_tokens: Amount | None = None


class Budget(BudgetLimits):
    """The table `[budget]` of plugins.toml: what each user's runs may take, days and months in UTC.

    Attributes:
        action: What happens where a budget is used up: the run ends with `limit` before its next step.
        users: Other limits for single users, by their id; what is left out here holds for them too.
    """

    action: Literal["limit"] = "limit"
    users: dict[str, BudgetLimits] = field(default_factory=dict)

    def of(self, user: str) -> BudgetLimits:
        """The limits of one user."""
        own = self.users.get(user, self)
        names = BudgetLimits.__struct_fields__
        given = {n: getattr(self, n) if getattr(own, n) is None else getattr(own, n) for n in names}
        return BudgetLimits(**{n: None if value == float("inf") else value for n, value in given.items()})


Dollars = Annotated[float, Meta(ge=0, le=1_000_000)]


class LongPriceOverride(Struct, forbid_unknown_fields=True):
    """What a round's tokens cost where more than `above` are sent."""

    above: Annotated[int, Meta(ge=1)]
    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    cache_write: Dollars | None = None


class PriceOverride(Struct, forbid_unknown_fields=True):
    """What a model's tokens cost, in US dollars per million; `sag.hooks.provider.Price` explains the members."""

    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    cache_write: Dollars | None = None
    long: LongPriceOverride | None = None


class ModelOverride(Struct, forbid_unknown_fields=True):
    """A table `[models."provider/model"]` of plugins.toml: what is known better than the provider says.

    Attributes:
        label: The model's name for people.
        context: Tokens that fit.
        output: The most tokens of one answer.
        abilities: What it can do: `tools`, `images`, `files`, `reasoning`, `json`.
        price: `{ input, output, cached, cache_write }`, in US dollars per million tokens; the last two may be left out.
    """

    label: Annotated[str, Meta(max_length=200)] | None = None
    context: Annotated[int, Meta(ge=1)] | None = None
    output: Annotated[int, Meta(ge=1)] | None = None
    abilities: list[Literal["tools", "images", "files", "reasoning", "json"]] | None = None
    price: PriceOverride | None = None


class Settings(Struct):
    """All settings of one hub.

    Attributes:
        hub: The hub's own.
        plugins: Each plugin's table of plugins.toml, as it stands, `${NAME}` replaced.
        env: The environment that was read, `.env` below the process's own.
        outbound: `allow` of the table `[outbound]`: hosts that may be fetched whatever their address is.
        budget: What users' runs may take.
        models: Overrides of what is known of models, by full name; a name may end in `*`.
        config_file: The plugins.toml that was read, if any.
    """

    hub: HubSettings
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    outbound: list[str] = field(default_factory=list)
    budget: Budget = field(default_factory=Budget)
    models: dict[str, ModelOverride] = field(default_factory=dict)
    config_file: str | None = None

    @property
    def data(self) -> Path:
        return Path(self.hub.data)

    @property
    def loopback(self) -> bool:
        """Whether the hub is bound to this machine alone."""
        return self.hub.host in LOOPBACK


def default_data(env: Mapping[str, str]) -> str:
    """The data folder where none is named: XDG's data home, as on other command line programs."""
    base = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".local" / "share")
    return str(Path(base) / "sag")


def load(
    env: Mapping[str, str] | None = None,
    *,
    config: str | None = None,
    cwd: Path | None = None,
    **given: Any,
) -> Settings:
    """Read the environment, `.env` and plugins.toml.

    The order, strongest first: what the command line gives, the process's environment, `.env`, plugins.toml, defaults.

    Args:
        env: The process's environment.
        config: The path of plugins.toml; else it is looked for in the working and then the data folder.
        cwd: The working folder.
        given: Members of `HubSettings` from the command line; None means not given.

    Raises:
        StartError: A file cannot be read, or a value does not fit; the message names the file and the key.
    """
    cwd = cwd or Path.cwd()
    merged = {k: v for k, v in dotenv_values(cwd / ".env").items() if v is not None}
    merged |= dict(os.environ if env is None else env)
    remember_env(merged)

    values: dict[str, Any] = {}
    for name in HubSettings.__struct_fields__:
        value = merged.get(PREFIX + name.upper())
        if value and name != "limits":
            values[name] = value.split(",") if name == "origins" else value
    values |= {k: v for k, v in given.items() if v is not None}
    values["data"] = data = str(values.get("data") or default_data(merged))

    path = _find_config(config, cwd, Path(data))
    tables = _read_toml(path, merged) if path else {}
    hub_table = tables.pop("hub", {})
    outbound = tables.pop("outbound", {})
    budget = _budget(tables.pop("budget", {}), path)
    models = _models(tables.pop("models", {}), path)
    if not isinstance(hub_table, dict):
        raise StartError(f"{path}: [hub] has to be a table")
    try:
        hub = msgspec.convert({**hub_table, **values}, HubSettings, strict=False)
    except msgspec.ValidationError as e:
        where = path if set(hub_table) - set(values) else "environment"
        raise StartError(f"{where}: [hub] {e}") from None
    hub.origins = [o.strip().rstrip("/").lower() for o in hub.origins if o.strip()]
    allow = outbound.get("allow", []) if isinstance(outbound, dict) else None
    if not isinstance(allow, list) or not all(isinstance(host, str) for host in allow):
        raise StartError(f"{path}: [outbound] allow has to be a list of hosts")
    return Settings(hub, tables, merged, allow, budget, models, str(path) if path else None)


def _budget(table: Any, path: Path | None) -> Budget:
    if isinstance(table, dict) and isinstance(users := table.get("users"), dict):
        limits = {u: _decode(own, BudgetLimits, f"{path}: [budget.users.{_key(u)}]") for u, own in users.items()}
        table = {**table, "users": limits}
    return _decode(table, Budget, f"{path}: [budget]")


def _models(tables: Any, path: Path | None) -> dict[str, ModelOverride]:
    if not isinstance(tables, dict):
        raise StartError(f"{path}: [models] has to be a table")
    for name in tables:
        if "*" in name[:-1] or ("/" not in name and name != "*"):
            where = f"{path}: [models.{_key(name)}]"
            raise StartError(f"{where}: name it provider/model in quotes; a `*` may be its last character")
    return {name: _decode(table, ModelOverride, f"{path}: [models.{_key(name)}]") for name, table in tables.items()}


def _key(name: str) -> str:
    """A key as it is written in TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def _decode(table: Any, struct: type[S], where: str) -> S:
    """A table as a struct.

    Raises:
        StartError: It does not fit; the message names the file, the table, the key and what was expected.
    """
    if not isinstance(table, dict):
        raise StartError(f"{where} has to be a table")
    try:
        return msgspec.convert(table, struct, strict=False)
    except msgspec.ValidationError as e:
        text, _, path = str(e).partition(" - at `$")
        keys = [path.rstrip("`").removeprefix(".")]
        if unknown := re.search(r"unknown field `(.*?)`", text):
            keys, text = [*keys, unknown[1]], "there is no such setting"
        elif missing := re.search(r"missing required field `(.*?)`", text):
            keys, text = [*keys, missing[1]], "is required"
        raise StartError(f"{where} {'.'.join(filter(None, keys))}: {text}") from None


def _find_config(given: str | None, cwd: Path, data: Path) -> Path | None:
    if given:
        path = Path(given)
        if not path.is_file():
            raise StartError(f"{given}: no such file")
        return path
    return next((p for p in (cwd / "plugins.toml", data / "plugins.toml") if p.is_file()), None)


def _read_toml(path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise StartError(f"{path}: {e}") from None
    return {name: _expand(value, env, path.parent, f"{path}: [{name}]") for name, value in tables.items()}


def _expand(value: Any, env: Mapping[str, str], folder: Path, where: str) -> Any:
    """Replace `${NAME}` by the environment's value and `${file:path}` by a file's text, without its last line end."""
    if isinstance(value, dict):
        return {k: _expand(v, env, folder, f"{where} {k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, env, folder, where) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, file = match.groups()
        if file is not None:
            try:
                text = (folder / file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as e:
                raise StartError(f"{where}: {file} cannot be read: {getattr(e, 'strerror', None) or e}") from None
            remember(text)
            return text
        if name not in env:
            raise StartError(f"{where}: the environment has no {name}")
        return env[name]

    return re.sub(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)|file:([^}]+))\}", replace, value)


_CRASH_AT = os.environ.get("SAG_CRASH_AT", "")


def crash_at(point: str) -> None:
    """Kill this process at a named point, in tests of what a kill leaves behind (SAG_CRASH_AT=name or name:n)."""
    global _CRASH_AT
    if not _CRASH_AT:
        return
    name, _, count = _CRASH_AT.partition(":")
    if name != point:
        return
    left = int(count or 1) - 1
    if left > 0:
        _CRASH_AT = f"{name}:{left}"
        return
    os.kill(os.getpid(), signal.SIGKILL)
