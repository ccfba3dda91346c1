"""The tables of plugins.toml that the hub reads itself: what they mean, and what is said of those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sag.errors import StartError
from sag.hooks.provider import Ability, Price
from sag.settings import BudgetLimits, ModelOverride, PriceOverride, Settings, load

INF = float("inf")


def settings(folder: Path, text: str, **env: str) -> Settings:
    (folder / "plugins.toml").write_text(text)
    return load(env, cwd=folder)


def test_without_tables_there_is_no_budget_and_no_override(tmp_path: Path) -> None:
    made = settings(tmp_path, "")
    assert made.budget.of("ada") == BudgetLimits()
    assert made.models == {}


def test_a_users_own_limits_win_and_what_they_leave_out_holds_for_them_too(tmp_path: Path) -> None:
    made = settings(
        tmp_path,
        """
        [budget]
        day_usd = 5
        month_usd = "${MONTH}"
        [budget.users.ada]
        day_usd = 50.5
        month_usd = inf
        [budget.users."bob@example.org"]
        day_tokens = 1000
        """,
        MONTH="100",
    ).budget
    assert made.of("eve") == BudgetLimits(day_usd=5, month_usd=100)
    assert made.of("ada") == BudgetLimits(day_usd=50.5)
    assert made.of("bob@example.org") == BudgetLimits(day_usd=5, month_usd=100, day_tokens=1000)


def test_models_are_overridden_by_name_and_by_pattern(tmp_path: Path) -> None:
    made = settings(
        tmp_path,
        """
        [models."openai/*"]
        abilities = ["tools", "images"]
        [models."openai/big"]
        context = 200_000
        output = 64_000
        label = "Big"
        price = { input = 3, output = 15.5, cached = 0.3 }
        """,
    ).models
    assert made == {
        "openai/*": ModelOverride(abilities=["tools", "images"]),
        "openai/big": ModelOverride("Big", 200_000, 64_000, price=PriceOverride(3, 15.5, 0.3)),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budget = 5", "[budget] has to be a table"),
        ("[budget]\nday_usd = -1", "[budget] day_usd: Expected `float` >= 0"),
        ("[budget]\nday_usd = nan", "[budget] day_usd: Expected `float` >= 0"),
        ("[budget]\nyear_usd = 1", "[budget] year_usd: there is no such setting"),
        ('[budget]\naction = "warn"', "[budget] action: Invalid enum value 'warn'"),
        ("[budget]\nusers = 3", "[budget] users: Expected `object`"),
        ("[budget.users]\nada = 3", "[budget.users.ada] has to be a table"),
        ('[budget.users."a@b.c"]\nday_usd = "much"', '[budget.users."a@b.c"] day_usd: Expected `float | null`'),
        ("[budget.users.ada]\naction = 'limit'", "[budget.users.ada] action: there is no such setting"),
        ("models = 3", "[models] has to be a table"),
        ("[models]\nbig = {}", "[models.big]: name it provider/model"),
        ('[models."a/*/b"]', '[models."a/*/b"]: name it provider/model'),
        ('[models."a/b"]\ncontext = 0', '[models."a/b"] context: Expected `int` >= 1'),
        (
            '[models."a/b"]\nabilities = ["tools", "flight"]',
            "[models.\"a/b\"] abilities[1]: Invalid enum value 'flight'",
        ),
        ('[models."a/b"]\nprice = { input = 1 }', '[models."a/b"] price.output: is required'),
        ('[models."a/b"]\nprice = { input = 1, output = "x" }', '[models."a/b"] price.output: Expected `float`'),
        ('[models."a/b"]\nprice = { input = 1, output = inf }', '[models."a/b"] price.output: Expected `float` <='),
        (
            '[models."a/b"]\nprice = { input = 1, output = 2, x = 3 }',
            '[models."a/b"] price.x: there is no such setting',
        ),
        ('[models."a/b"]\ncolour = "red"', '[models."a/b"] colour: there is no such setting'),
    ],
)
def test_what_does_not_fit_is_told_with_its_file_table_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(StartError) as caught:
        settings(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'plugins.toml'}: {words}")
    assert caught.value.code == 78


def test_overrides_know_what_providers_know() -> None:
    def options(struct: Any, member: str) -> Any:
        return next(f.type for f in msgspec.structs.fields(struct) if f.name == member)

    assert list[Ability] in get_args(options(ModelOverride, "abilities"))
    assert PriceOverride.__struct_fields__ == Price.__struct_fields__
