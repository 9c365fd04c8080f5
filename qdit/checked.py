"""Which values a field may have: what its annotation allows, checked in configs and, for parts, in Python too.

A range stands beside the type, and words where a number alone says too little:

    steps: Count
    damping: Annotated[float, Ge(0), "0.01 is usual"]

Imports no torch.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate

from qdit.errors import from_problems

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Samples = Annotated[int, Ge(1), Le(10_000_000)]  # FID takes 50,000
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
UpperShare = Annotated[float, Gt(0.5), Le(1), "such as 0.999"]
"""A quantile that is an upper end."""
Bits = Annotated[int, Predicate(lambda bits: 2 <= bits <= 8 or bits == 16), "2 to 8, or 16 for full precision"]

_HOLD: Mapping[type, Callable[[Any, Any], bool]] = {
    Ge: lambda value, bound: value >= bound.ge,
    Gt: lambda value, bound: value > bound.gt,
    Le: lambda value, bound: value <= bound.le,
    Lt: lambda value, bound: value < bound.lt,
    MinLen: lambda value, bound: len(value) >= bound.min_length,
    Predicate: lambda value, bound: bound.func(value),
}
_WORDS: Mapping[type, Callable[[Any], str]] = {
    Ge: lambda bound: f"of at least {bound.ge:,}",
    Gt: lambda bound: f"above {bound.gt:,}",
    Le: lambda bound: f"at most {bound.le:,}",
    Lt: lambda bound: f"below {bound.lt:,}",
}
_SIMPLE = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


class Checked:
    """A dataclass whose fields are checked when it is made.

    Raises:
        UserError: naming each field whose annotation does not allow its value.
    """

    def __post_init__(self) -> None:
        wrong = problems(
            {f.name: f.type for f in fields(self)},  # type: ignore[arg-type]  # of subclasses, which are dataclasses
            vars(self),
            type(self).__name__,
        )
        if wrong:
            raise from_problems(wrong, type(self).__name__)


NEWER: Mapping[str, bool] = {"newer": True}
"""Metadata of a field that is younger than what was hashed by the `repr` of its class."""


class Newer:
    """A dataclass (with `repr=False`) whose `repr`, which is hashed, leaves out newer fields with their defaults."""

    def __repr__(self) -> str:
        own = fields(self)  # type: ignore[arg-type]  # of subclasses, which are dataclasses
        shown = [f for f in own if not (f.metadata.get("newer") and getattr(self, f.name) == _default(f))]
        return f"{type(self).__qualname__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def problems(hints: Mapping[str, Any], values: Mapping[str, Any], where: str = "") -> list[str]:
    """A sentence for each key whose value its annotation does not allow."""
    prefix = f"{where}." if where else ""
    return [
        f"{prefix}{key}={values[key]!r}; allowed: {describe(hint)}"
        for key, hint in hints.items()
        if key in values and not fits(values[key], hint)
    ]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a simple annotated type; a class that is no simple type is not a number or a text."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [bound for bound in args[1:] if type(bound) in _HOLD]
        return fits(value, args[0]) and all(_HOLD[type(bound)](value, bound) for bound in bounds)
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(v, args[0]) for v in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    return not isinstance(hint, type) or hint in (Any, object, Path) or not isinstance(value, bool | int | float | str)


def describe(hint: Any) -> str:
    """An annotation in a user's words.

    >>> describe(Annotated[int, Ge(1), "128 is usual"] | None)
    'a whole number of at least 1 (128 is usual) or null'
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(args[0], args[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin is list:
        return f"a list of {describe(args[0])}"
    if origin is dict:
        return f"a mapping whose values are {describe(args[1])}"
    return _SIMPLE.get(hint, getattr(hint, "__name__", str(hint)))


def _bounded(hint: Any, bounds: tuple[Any, ...]) -> str:
    """A type with its bounds, and with the words that stand beside them."""
    if least := [bound.min_length for bound in bounds if isinstance(bound, MinLen)]:
        text = f"a list of {least[0]} or more, each {describe(get_args(hint)[0])}"
    else:
        ends = {type(bound): bound for bound in bounds}
        words = [_WORDS[kind](bound) for kind, bound in ends.items() if kind in _WORDS]
        if ends.keys() >= {Ge, Le}:
            words = [f"from {ends[Ge].ge:,} to {ends[Le].le:,}"]
        text = " ".join([describe(hint), " and ".join(words)]).strip()
    said = [bound for bound in bounds if isinstance(bound, str)]
    return f"{text} ({'; '.join(said)})" if said else text
