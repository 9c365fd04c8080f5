"""How one tensor is quantized: `QuantSpec`, its bits, granularity and grid, as plain values to save and compare.

A quantizer works on *rows*: the tensor is reshaped so that all values of a row share one scale and one zero point.
`tensor`, `row` and `group` are what the field calls per-tensor; per-channel for weights and per-token for activations;
and group-wise quantization along the input channels.

=================  ==========================  =======================================
granularity        weight [out, in] -> rows    activation [..., tokens, in] -> rows
=================  ==========================  =======================================
`tensor`           [1, out * in]               [1, all]
`row`              [out, in]                   [all tokens, in]
`group` (of g)     [out * in / g, g]           [all tokens * in / g, g]
`head`                                         [heads, all others]: an operand of an attention
=================  ==========================  =======================================
"""

from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from torch import Tensor

from qdit.checked import NEWER, Newer
from qdit.errors import UserError
from qdit.quant.named import LEVEL_BITS, SCALE_BLOCKS

Granularity = Literal["tensor", "row", "group"]
Grid = Literal["asymmetric", "asymmetric_free", "asymmetric_clamped", "symmetric", "symmetric_full", "unsigned"]
"""Integers: grids with one step (`qdit.quant.affine`)."""
LevelGrid = Literal["e2m1", "e3m0", "e1m2", "nf4", "e3m2", "e4m3", "e5m2", "lloyd_max"]
"""Floating-point numbers of a few bits, and code-books (`qdit.quant.formats`)."""
BookGrid = Literal["two_region", "two_sided", "released_sum", "log_sqrt2", "log2", "channel_shift", "clustered"]
"""What has no step, or several, and static ranges (`qdit.quant.books`, `qdit.quant.regions`)."""
GridName = Grid | LevelGrid | Literal["float"]
"""What a config may say; `float` is the usual floating-point format of the bits (`qdit.quant.named`)."""
Columns = Literal["joined", "own"]
"""Whether two inputs side by side have one grid, or each its own."""
Scale = Literal["e8m0", "e4m3", "e4m3_46"]
"""How scales are kept, if not in 16 bits (`qdit.quant.scales`)."""
MIN_BITS, MAX_BITS = 2, 8
IDENTITY_BITS = 16
_LEVELS = frozenset(get_args(LevelGrid))


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantSpec(Newer):
    """Bits, granularity and grid of one tensor.

    Args:
        bits: 2 to 8; 16 is the identity.
        granularity: which values share a scale (see the module's table); `head` is for static quantizers.
        group_size: input channels per group; only with `granularity="group"`.
        grid: `asymmetric` (range extended to hold 0, so the zero point is a code), `asymmetric_free` (Q-DiT's paper:
            the integer zero point is not clamped), `asymmetric_clamped` (Q-DiT's released code: it is clamped without
            extending the range, which collapses single-signed groups), `symmetric` (scale absmax / (2^(b-1) - 1)),
            `symmetric_full` (GPTQ: scale 2 absmax / (2^b - 1), the largest value is clipped), `unsigned` (zero point 0,
            scale max / (2^b - 1): for values that are not negative, such as probabilities); a format with levels
            (`LevelGrid`), which is symmetric, of as many bits as its name says (`lloyd_max` has any); or, for static
            inputs, one of the code-books of `qdit.quant.books` and `qdit.quant.regions`.
        dynamic: whether ranges are taken from the tensor at hand at run time; static ones are calibrated beforehand.
        time_groups: groups of sampling steps, each with ranges of its own; None for one. Only static inputs have them.
        scale: how the scales of a format with levels are kept, each with blocks of its own: `e8m0` (MX, 32 values),
            `e4m3` (NVFP4, 16 values), `e4m3_46` (the same, four over six); None for 16 bits.
        shifts: of `channel_shift`, by how many bits at most a channel's codes are shifted (`qdit.activation.channels`).
        columns: of inputs, how many channels, from the first, have grids apart from those of the others; None: all are
            alike.
        base: of `channel_shift` and `clustered`, the grid of integers, if it is another than `asymmetric`.
        clusters: of `clustered`, how many grids an input's channels share (`qdit.activation.clustered`).

    Raises:
        UserError: a value is out of range.
    """

    bits: int
    granularity: Granularity | Literal["head"] = "row"
    group_size: int | None = None
    grid: Grid | LevelGrid | BookGrid = "asymmetric"
    dynamic: bool = True
    time_groups: int | None = None
    scale: Scale | None = field(default=None, metadata=NEWER)
    shifts: int | None = field(default=None, metadata=NEWER)
    base: Grid | None = field(default=None, metadata=NEWER)
    columns: int | None = field(default=None, metadata=NEWER)
    clusters: int | None = field(default=None, metadata=NEWER)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in (*range(MIN_BITS, MAX_BITS + 1), IDENTITY_BITS):
            raise UserError(
                f"bits={self.bits} is not possible; {MIN_BITS} to {MAX_BITS} are, or {IDENTITY_BITS} for none"
            )
        if self.granularity not in (*get_args(Granularity), "head"):
            raise UserError(
                f"granularity={self.granularity!r} is unknown; choose from {', '.join(get_args(Granularity))}"
            )
        if self.grid not in (*get_args(Grid), *get_args(LevelGrid), *get_args(BookGrid)):
            known = (*get_args(Grid), *get_args(LevelGrid))
            raise UserError(f"grid={self.grid!r} is unknown; choose from {', '.join(known)}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise UserError(
                f"granularity={self.granularity!r} with group_size={self.group_size}: "
                "a group size is given with granularity 'group', and only then"
            )
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise UserError(f"group_size={self.group_size!r} is not possible; a whole number from 1 is, such as 64")
        if not isinstance(self.dynamic, bool):
            raise UserError(f"dynamic={self.dynamic!r} is not possible; true and false are")
        groups = self.time_groups
        if groups is not None and (not isinstance(groups, int) or isinstance(groups, bool) or groups < 1):
            raise UserError(f"time_groups={groups!r} is not possible; a whole number from 1 is, or none")
        for key, grid in (("shifts", "channel_shift"), ("clusters", "clustered")):
            number = getattr(self, key)
            if (self.grid == grid) != (isinstance(number, int) and not isinstance(number, bool)):
                raise UserError(f"grid={self.grid!r} with {key}={number!r}: a number goes with grid {grid!r} alone")
        if self.base is not None and not (self.by_channel and self.base in get_args(Grid)):
            raise UserError(
                f"grid={self.grid!r} with base={self.base!r}: one of {', '.join(get_args(Grid))} goes with grids "
                "'channel_shift' and 'clustered' alone"
            )
        columns = self.columns
        if columns is not None and (
            not isinstance(columns, int) or isinstance(columns, bool) or columns < 1 or self.granularity == "head"
        ):
            raise UserError(
                f"columns={columns!r} with granularity={self.granularity!r}: a whole number from 1 is possible for the "
                "input of a layer, or none"
            )
        if not self.is_identity:
            self._check_format()

    def _check_format(self) -> None:
        """Refuse bits that the format does not have, and scales that go with other formats or blocks."""
        own = LEVEL_BITS.get(self.grid, self.bits)
        if self.bits != own:
            raise UserError(
                f"grid={self.grid!r} has {own} bits, not {self.bits}; grid=float has a format for 4, 6 and 8"
            )
        if self.scale is None:
            return
        if self.scale not in get_args(Scale):
            raise UserError(f"scale={self.scale!r} is unknown; choose from {', '.join(get_args(Scale))}, or null")
        formats = [name for name in get_args(LevelGrid) if name.startswith("e")]
        if self.grid not in formats:
            raise UserError(
                f"scale={self.scale!r} goes with floating-point formats ({', '.join(formats)}), not with "
                f"grid={self.grid!r}; scale=null keeps scales in 16 bits"
            )
        if self.group_size != (block := SCALE_BLOCKS[self.scale]):
            found = f"groups of {self.group_size}" if self.group_size else f"granularity={self.granularity!r}"
            raise UserError(f"scale={self.scale!r} goes with groups of {block} values, not with {found}")

    @property
    def operand_bits(self) -> int:
        """Bits of what an integer kernel multiplies: the codes', and those by which some channels' are shifted."""
        return self.bits + (self.shifts or 0)

    @property
    def is_identity(self) -> bool:
        """Whether values pass unchanged (16 bits)."""
        return self.bits >= IDENTITY_BITS

    @property
    def has_levels(self) -> bool:
        """Whether the format is one with levels: floating-point numbers, or a code-book."""
        return self.grid in _LEVELS

    @property
    def is_integer(self) -> bool:
        """Whether values are integers times one scale, beside a zero point."""
        return self.grid in get_args(Grid)

    @property
    def by_channel(self) -> bool:
        """Whether static grids are found from what is known of each channel."""
        return self.grid in ("channel_shift", "clustered")

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is fixed and need not be stored."""
        grid = self.base or self.grid
        return grid.startswith(("symmetric", "unsigned")) or not (self.is_integer or self.by_channel)

    def row_length(self, channels: int, numel: int) -> int:
        """Values that share a scale, for a tensor with `channels` input channels and `numel` values."""
        return {"tensor": numel, "row": channels, "group": self.group_size or channels}[self.granularity]

    def as_dict(self) -> dict:
        """Plain values, without the fields that do not apply; `QuantSpec(**d)` is the inverse."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def as_rows(x: Tensor, spec: QuantSpec) -> Tensor:
    """View [..., channels] as [rows, row length].

    >>> import torch
    >>> as_rows(torch.zeros(2, 3, 8), QuantSpec(bits=4, granularity="group", group_size=4)).shape
    torch.Size([12, 4])

    Raises:
        UserError: the group size does not divide the channels.
    """
    channels = x.shape[-1]
    length = spec.row_length(channels, x.numel())
    if spec.granularity == "group" and channels % length:
        raise UserError(f"group_size={length} does not divide {channels} channels; {divisors(channels)} do")
    return x.reshape(-1, length)


def divisors(channels: int, smallest: int = 16) -> str:
    """The group sizes that fit, as text.

    >>> divisors(96)
    '16, 24, 32, 48 and 96'
    """
    fits = [str(g) for g in range(min(smallest, channels), channels + 1) if channels % g == 0]
    return f"{', '.join(fits[:-1])} and {fits[-1]}" if len(fits) > 1 else fits[0]
