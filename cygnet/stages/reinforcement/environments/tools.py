"""The tools that come with Cygnet: plain functions, called in a process of their own."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cygnet.corpus.builtin import builtin_rows
from cygnet.corpus.sentences import first_sentences
from cygnet.errors import nearest

TOOLS = ("calculator", "unit_converter", "dictionary")
MAX_EXPRESSION_CHARS = 200
MAX_POWER_BITS = 4096
MAX_DEFINITION_CHARS = 240

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "abs": abs, "round": round, "min": min, "max": max,
}  # fmt: skip


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"an expression has at most {MAX_EXPRESSION_CHARS} characters")
    written = expression.replace("×", "*").replace("÷", "/").replace("^", "**").strip()
    return shown(_value(ast.parse(written, mode="eval").body))


def unit_converter(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a value from one unit to another."""
    source, target = _unit(from_unit), _unit(to_unit)
    if source[0] != target[0]:
        raise ValueError(f"{from_unit} is a {source[0]}, {to_unit} a {target[0]}")
    return shown((float(value) * source[1] + source[2] - target[2]) / target[1])


def dictionary(word: str) -> str:
    """Look a word up in the encyclopedia."""
    entries = _entries()
    found = entries.get(word.strip().casefold())
    if found is None:
        raise KeyError(f"no entry {word!r}{nearest(word.strip().casefold(), entries)}")
    return found


def shown(number: Any) -> str:
    """Return a number as a person writes it: whole without a point, else six digits."""
    if isinstance(number, int):
        return str(number)
    if not isinstance(number, float) or not math.isfinite(number):
        raise ValueError(f"the result is {number}")
    return str(round(number)) if number == round(number) and abs(number) < 1e15 else f"{number:.6g}"


def _value(node: ast.expr) -> Any:
    """Return what a parsed expression comes to: numbers, arithmetic, and a few functions alone."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return node.value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=unary, operand=operand) if type(unary) in _UNARY:
            return _UNARY[type(unary)](_value(operand))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_value, arguments))
    raise ValueError(f"cannot evaluate {ast.unparse(node)!r}")


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) * max(math.log2(abs(base)) if base else 0, 1) > MAX_POWER_BITS:
        raise ValueError("the power is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    return value


_UNITS: dict[str, tuple[str, float, float]] = {}
"""Name: what it measures, and how it becomes the basic unit (times the factor, plus the offset)."""


def _define(kind: str, names: str, factor: float, offset: float = 0.0) -> None:
    for name in names.split():
        _UNITS[name] = (kind, factor, offset)


for _kind, _names, _factor in (
    ("length", "mm millimeter millimetre", 0.001), ("length", "cm centimeter centimetre", 0.01),
    ("length", "m meter metre", 1), ("length", "km kilometer kilometre", 1000),
    ("length", "in inch inches", 0.0254), ("length", "ft foot feet", 0.3048),
    ("length", "yd yard", 0.9144), ("length", "mi mile", 1609.344),
    ("mass", "mg milligram", 1e-6), ("mass", "g gram", 0.001), ("mass", "kg kilogram", 1),
    ("mass", "oz ounce", 0.028349523125), ("mass", "lb pound", 0.45359237),
    ("volume", "ml milliliter millilitre", 0.001), ("volume", "cl centiliter", 0.01),
    ("volume", "l liter litre", 1), ("volume", "cup", 0.2365882365),
    ("volume", "tbsp tablespoon", 0.01478676478125), ("volume", "tsp teaspoon", 0.00492892159375),
    ("volume", "gal gallon", 3.785411784),
    ("time", "s second", 1), ("time", "min minute", 60), ("time", "h hour", 3600),
    ("time", "day", 86400), ("time", "week", 604800),
):  # fmt: skip
    _define(_kind, _names, _factor)
_define("temperature", "k kelvin", 1.0)
_define("temperature", "c celsius", 1.0, 273.15)
_define("temperature", "f fahrenheit", 5 / 9, 273.15 - 32 * 5 / 9)


def _unit(name: str) -> tuple[str, float, float]:
    key = name.strip().lower().removeprefix("degrees ").removeprefix("degree ")
    found = _UNITS.get(key) or _UNITS.get(key.removesuffix("s"))
    if found is None:
        raise ValueError(f"no unit {name!r}{nearest(key, _UNITS)}")
    return found


@lru_cache(maxsize=1)
def _entries() -> dict[str, str]:
    """Return the first sentence of each article of the encyclopedia, by its title in lower case."""
    entries = {}
    for row in builtin_rows("encyclopedia_en"):
        if sentence := first_sentences(row["text"], 1, MAX_DEFINITION_CHARS):
            entries[row["title"].casefold()] = sentence
    return entries
