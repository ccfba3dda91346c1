"""Arithmetic with units: pint's parser, which evaluates no Python, on decimals of a bounded size.

What pint's parser would silently misread (`5!` as 5, `7%3` as 21 percent, `5 ft 3 in` as an area, `[1,2]` as 12) is
refused or rewritten before it gets there. On pint's default numbers `9**9**9**9` never ends, since Python's integers
grow without bound; decimals of 40 digits with a small exponent overflow at once, so no input costs more than
milliseconds.
"""

from __future__ import annotations

import decimal
import functools
import re
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from sag.plugin import ToolError, tool

if TYPE_CHECKING:
    import pint

MAX_LENGTH = 200
DIGITS = 40
SHOWN_DIGITS = 15
PI = "3.14159265358979323846264338327950288419716939937510"

_CONTEXT = decimal.Context(prec=DIGITS, Emax=9_999, Emin=-9_999)
_ROUND = decimal.Context(prec=SHOWN_DIGITS, Emax=9_999, Emin=-9_999)
_LOCK = threading.Lock()  # pint does not say that a registry may be used by several threads at once

_SPELLINGS = str.maketrans(
    {"×": "*", "÷": "/", "−": "-", "–": "-", "²": "^2", "³": "^3", "μ": "µ", "\n": " ", "\t": " "}
)
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.+\-*/^()%°µΩπ ,]")
_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_TARGET = re.compile(r"(.+?)\s+(?:to|into|as)\s+(.+)")
_TARGET_IN = re.compile(r"(.+)\s+in\s+([A-Za-z°µΩ].*)")
_SUM = re.compile(rf"(?<![\w.])({_NUMBER}\s*[A-Za-zµ°]+(?:\s+{_NUMBER}\s*[A-Za-zµ°]+)+)(?![\w.^*])")
_SUM_GAP = re.compile(rf"(?<=[A-Za-zµ°])\s+(?={_NUMBER})")
_FRACTION = re.compile(rf"(?<![\w./)^])(?<!\*\*)({_NUMBER})\s*/\s*({_NUMBER})(?=\s*[A-Za-zµ°])")
_AMOUNT = re.compile(
    rf"(?<![\w.^*])({_NUMBER})\s*(?!(?:square|cubic|sq)\b)[A-Za-zµ°][A-Za-z_°µ]*(?:\s*(?:\^|\*\*)\s*[+-]?\d+)?(?![\w.])"
)
_PERCENT = re.compile(rf"({_NUMBER})\s*%(?:\s*of\b)?")


@tool(risk="read", idempotent=True, timeout_s=10)
def calculate(
    expression: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_LENGTH,
            description="What to work out: numbers, + - * / ^ ( ), sqrt(…), percentages and units, and at the end "
            "'to' with a unit to convert to. Examples: '(3 + 4) * 2.5', '15% of 80', '3 miles + 2 km to km', "
            "'20 degC to degF', '90 km/h to m/s', '5 ft 3 in to cm'.",
        ),
    ],
) -> str:
    """Work out a calculation exactly, with units of measurement and conversions between them.

    Use it for any sum that is not trivial, and for converting units. It knows no functions but sqrt, no variables,
    no dates and no currencies.
    """
    return f"{expression.strip()} = {evaluate(expression)}"


def evaluate(expression: str) -> str:
    """The value of an expression with its unit, as text.

    Raises:
        ToolError: It cannot be understood or worked out; the text says why.
    """
    text = _normalize(expression)
    registry, pint = _registry()
    with _LOCK, decimal.localcontext(_CONTEXT) as context:
        context.clear_flags()
        try:
            quantity = _evaluate(registry, text)
            return _show(quantity, bool(context.flags[decimal.Inexact]))
        except pint.UndefinedUnitError as e:
            names = e.unit_names if isinstance(e.unit_names, str) else ", ".join(e.unit_names)
            raise ToolError(f"There is no unit {names!r}.") from None
        except pint.DimensionalityError as e:
            raise ToolError(f"The units do not go together: {e}.") from None
        except pint.OffsetUnitCalculusError:
            raise ToolError(
                "Temperatures on a scale cannot be added or multiplied; use kelvin or delta_degC."
            ) from None
        except (decimal.DivisionByZero, ZeroDivisionError):
            raise ToolError("That divides by zero.") from None
        except (decimal.Overflow, decimal.Underflow, OverflowError):
            raise ToolError("The result is too large or too small for this calculator.") from None
        except decimal.InvalidOperation:
            raise ToolError("That has no value among the real numbers.") from None
        except ToolError:
            raise
        except Exception:  # the parser fails on nonsense with whatever its code runs into, AssertionError above all
            raise ToolError(f"{expression.strip()!r} cannot be understood as a calculation.") from None


def _normalize(expression: str) -> str:
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"The expression is longer than {MAX_LENGTH} characters.")
    text = expression.strip().rstrip("=?").replace("->", " to ").replace("=>", " to ").translate(_SPELLINGS)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=[\d(])", " * ", text)
    if not text.strip():
        raise ToolError("There is nothing to calculate.")
    if bad := _FORBIDDEN.search(text) or re.search(r",", text):
        raise ToolError(f"{bad[0]!r} means nothing here; write numbers, + - * / ^ ( ), %, sqrt(…) and units.")
    if re.search(r"\d\s*\.\s*\.|\d\s+\d|\d\.\d+\.", text):
        raise ToolError("Two numbers stand side by side; put an operator between them.")
    text = _PERCENT.sub(_percent, text)
    if "%" in text:
        raise ToolError("'%' means percent, after a number: '15% of 80'.")
    text = re.sub(r"([A-Za-z]) squared\b", r"\1^2", re.sub(r"([A-Za-z]) cubed\b", r"\1^3", text))
    text = re.sub(r"(?<![A-Za-z_])(?:pi|π)(?![A-Za-z_])", f"({PI})", text)
    return _roots(_SUM.sub(lambda m: f"({_SUM_GAP.sub(' + ', m[1])})", text))


def _percent(match: re.Match[str]) -> str:
    following = match.string[match.end() :].lstrip()
    if match[0].rstrip().endswith("of"):
        return f"({match[1]}/100)*"
    if following[:1].isalnum() or following[:1] == "(":
        if re.match(r"(to|into|as|in)\b", following):
            return f"({match[1]}/100)"
        raise ToolError("'%' means percent, after a number: '15% of 80'. There is no remainder operator.")
    return f"({match[1]}/100)"


def _roots(text: str) -> str:
    """Write `sqrt(x)` as `((x)**0.5)`, since the parser knows no functions."""
    while (found := re.search(r"\bsqrt\s*\(", text)) is not None:
        depth = 1
        for i in range(found.end(), len(text)):
            depth += {"(": 1, ")": -1}.get(text[i], 0)
            if depth == 0:
                break
        else:
            raise ToolError("A parenthesis is not closed.")
        text = f"{text[: found.start()]}(({text[found.end() : i]})**0.5){text[i + 1 :]}"
    return text


def _evaluate(registry: Any, text: str) -> Any:
    if (match := _TARGET.fullmatch(text)) is not None:
        return _parse(registry, match[1]).to(registry.parse_units(match[2]))
    if (match := _TARGET_IN.fullmatch(text)) is not None:
        # 'in' is an inch too: '3 in * 2' is no conversion, so what follows has to be a unit and nothing else.
        try:
            target = registry.parse_units(match[2])
        except Exception:
            target = None
        if target is not None:
            return _parse(registry, match[1]).to(target)
    quantity = _parse(registry, text)
    return quantity.to_root_units() if quantity.unitless else quantity  # 'pi' and 'm/km' are numbers after all


def _parse(registry: Any, text: str) -> Any:
    # The parser reads '100 km / 2 h' as (100 km / 2) * h, so a number and its unit are held together; in '1/2 mile' it
    # is the fraction that belongs together.
    text = re.sub(r"\s+per\s+", "/", re.sub(r"\s*([*/^])\s*", r"\1", text))
    text = _FRACTION.sub(r"(\1/\2)", text)
    quantity = registry.parse_expression(_AMOUNT.sub(r"(\g<0>)", text))
    if not isinstance(quantity.magnitude, Decimal):
        quantity = registry.Quantity(Decimal(quantity.magnitude), quantity.units)
    return quantity


def _show(quantity: Any, inexact: bool) -> str:
    number = +quantity.magnitude
    if not number.is_finite():
        raise ToolError("That has no finite value.")
    unit = f"{quantity.units:~P}"
    # A factor between units may have been rounded long before, when it was kept.
    if inexact or unit or len(quantity.magnitude.as_tuple().digits) > DIGITS:
        number = _ROUND.plus(number)
    if number == 0:
        number = Decimal(0)
    number = number.normalize()
    text = f"{number:f}" if -7 <= number.adjusted() < DIGITS else f"{number:e}"
    return f"{text} {unit}".strip()


@functools.cache
def _registry() -> tuple[Any, Any]:
    """Pint and its registry, made on first use: that takes a quarter of a second, which a tool spends in its thread."""
    with _LOCK:
        import pint

        registry: pint.UnitRegistry[Any] = pint.UnitRegistry(
            non_int_type=Decimal, autoconvert_offset_to_baseunit=True, cache_folder=None
        )
        return registry, pint
