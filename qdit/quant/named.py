"""The names of number formats, as plain values: what a config may say, and which format `bits=nvfp4` and its kin are.

A *format* is a set of values that codes of some bits stand for: integers, floating-point numbers of a few bits, or the
levels of a code-book. A *named* format is what hardware and papers call by one name: a format, the values that share a
scale, and how that scale is kept. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdit.errors import UserError

LEVEL_BITS = {"e2m1": 4, "e3m0": 4, "e1m2": 4, "nf4": 4, "e3m2": 6, "e4m3": 8, "e5m2": 8}
"""Formats whose bits their name says, with these (`qdit.quant.formats`)."""
FLOAT = {4: "e2m1", 6: "e3m2", 8: "e4m3"}
"""What `grid=float` is at so many bits: the usual floating-point format."""
SCALE_BLOCKS = {"e8m0": 32, "e4m3": 16, "e4m3_46": 16}
"""Kinds of scales (`qdit.quant.scales`), with the values that share one."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A format with what it owns: its bits, the values that share a scale, and how the scale is kept."""

    grid: str
    width: int | None = None
    """Bits of a code, where the grid does not say them."""
    scale: str | None = None
    """None is 16 bits."""
    group: int | None = None
    """Values that share a scale, where the scale does not say them."""
    rows: bool = False
    """Whether the scale is one of a whole row: an output channel, or a token."""

    @property
    def bits(self) -> int:
        """Of a code."""
        return LEVEL_BITS[self.grid] if self.width is None else self.width

    @property
    def block(self) -> int | None:
        """Values that share a scale; None: a whole row, or what the recipe has."""
        return self.group if self.scale is None else SCALE_BLOCKS[self.scale]

    @property
    def place(self) -> str | None:
        """Where each scale is found at run time, in words; None: where the recipe has it, static ranges included."""
        if self.block is not None:
            return f"each block of {self.block}"
        return "each row" if self.rows else None


NAMED: Mapping[str, Named] = {
    "fp4": Named(grid="e2m1"),
    "fp8": Named(grid="e4m3"),
    "mxfp8": Named(grid="e4m3", scale="e8m0"),
    "mxfp6": Named(grid="e3m2", scale="e8m0"),
    "mxfp4": Named(grid="e2m1", scale="e8m0"),
    "nvfp4": Named(grid="e2m1", scale="e4m3"),
    "nvfp4_46": Named(grid="e2m1", scale="e4m3_46"),
    "int4_g64": Named(grid="symmetric", width=4, group=64),
    "int4_g16": Named(grid="symmetric", width=4, group=16),
    "lloyd4": Named(grid="lloyd_max", width=4, rows=True),
}
"""What `bits.weight_format` and `bits.activation_format` may be."""
KEYS = ("weight_format", "activation_format")
_ALIASES = {"fp4_fp8": "w4a8_fp"}


def at_bits(grid: str, bits: int) -> Any:
    """The format of a grid's name at so many bits: `float` is another at each, all others are themselves.

    >>> at_bits("float", 8), at_bits("symmetric", 8)
    ('e4m3', 'symmetric')

    Raises:
        UserError: there is no usual floating-point format of so many bits.
    """
    if grid != "float" or bits >= 16:
        return "asymmetric" if grid == "float" else grid
    if bits not in FLOAT:
        raise UserError(f"grid=float has {', '.join(map(str, FLOAT))} bits, not {bits}; name a format, such as e2m1")
    return FLOAT[bits]


def owned(part: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """What a part of a recipe has in a named format: granularity, group size, grid and scale; None leaves its own.

    >>> owned({"granularity": "row", "group_size": None, "grid": "asymmetric"}, "nvfp4")["group_size"]
    16
    """
    own = {key: part.get(key) for key in ("granularity", "group_size", "grid", "scale")}
    if name is None:
        return own
    named = NAMED[name]
    rows = {"granularity": "group", "group_size": named.block} if named.block is not None else {}
    rows |= {"granularity": "row", "group_size": None} if named.rows else {}
    return own | rows | {"grid": named.grid, "scale": named.scale}


def at_run_time(name: str, part: str, advice: str) -> list[str]:
    """That a part with static ranges cannot have a named format whose scales are found at run time, in a sentence."""
    if (place := NAMED[name].place) is None:
        return []
    return [
        f"bits.activation_format={name} finds the scale of {place} at run time, and this {part} has static ranges; "
        f"use {advice}"
    ]


def label(bits: Mapping[str, object]) -> str:
    """The name of a pair of bits: `w4a8`, or that of the formats, with 16 where one is not quantized.

    >>> label({"weight": 4, "activation": 8})
    'w4a8'
    >>> label({"weight": 4, "activation": 16, "weight_format": "nvfp4", "activation_format": "nvfp4"})
    'nvfp4_16'
    """
    if not any(bits.get(key) for key in KEYS):
        return f"w{bits['weight']}a{bits['activation']}"
    values = [(bits[key.removesuffix("_format")], bits.get(key)) for key in KEYS]
    one, other = ("16" if width == 16 else str(name or f"int{width}") for width, name in values)
    return one if one == other else _ALIASES.get(f"{one}_{other}", f"{one}_{other}")


def problems(bits: Mapping[str, object]) -> list[str]:
    """What the formats of a config's `bits` cannot be, one sentence each."""
    found = []
    for key in KEYS:
        name, width = bits.get(key), bits[key.removesuffix("_format")]
        if name is None:
            continue
        if name not in NAMED:
            found.append(f"bits.{key}={name!r}; allowed: {', '.join(NAMED)}, or null for the recipe's grid")
        elif width not in (NAMED[str(name)].bits, 16):
            found.append(
                f"bits.{key}={name} has {NAMED[str(name)].bits} bits, and bits.{key.removesuffix('_format')}={width}; "
                "they must be equal, or 16 for none"
            )
    return found
