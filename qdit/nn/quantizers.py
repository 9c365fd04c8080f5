"""Quantizers of inputs and operands.

Dynamic, of any number format; static of one grid of integers, or of a code-book whose numbers depend on the head and on
the time (TQ-DiT: TGQ).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qdit.nn.by_channel import ByChannelQuantizer
from qdit.nn.clock import Clock
from qdit.quant.affine import Affine
from qdit.quant.books import Book, Scaled, Uniform, renormalised
from qdit.quant.eights import Eights, is_eights
from qdit.quant.eights import covered as eights
from qdit.quant.grid import RowGrid, fake_quantize
from qdit.quant.integers import Codes, covered, encoded
from qdit.quant.scales import SCALES
from qdit.quant.spec import QuantSpec, as_rows
from qdit.quant.time_groups import Groups, group_of


class StaticQuantizer(nn.Module):
    """Round an input to one calibrated grid."""

    by_rows = True
    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec, grid: Affine) -> None:
        super().__init__()
        self.spec, self.low, self.high = spec, grid.low, grid.high
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return fake_quantize(x, self.spec, Affine(self.scale, self.zero_point, self.low, self.high))

    @property
    def has_codes(self) -> bool:
        """Whether the grid is one of a whole tensor."""
        return self.spec.granularity == "tensor"

    def codes(self, x: Tensor) -> Codes:
        """`x` as integers, of rows [tokens, channels]."""
        rows = x.reshape(-1, x.shape[-1])
        integers, offset = encoded(rows, self.scale, self.zero_point, self.low, self.high, self.spec.grid)
        return Codes(integers, self.scale, offset)


class DynamicQuantizer(nn.Module):
    """Round an input [..., tokens, channels] to the grid of its own rows."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return fake_quantize(x, self.spec)

    @property
    def by_rows(self) -> bool:
        """Whether each row has a grid of its own."""
        return self.spec.granularity != "tensor" and not SCALES[self.spec.scale].whole_bits

    @property
    def has_codes(self) -> bool:
        """Whether there are integers."""
        return self.spec.is_integer and not self.spec.is_identity

    @property
    def has_eights(self) -> bool:
        """Whether there are FP8 numbers with a scale a row."""
        return is_eights(self.spec)

    def codes(self, x: Tensor) -> Codes | Eights:
        """`x` as integer codes or FP8 numbers, in rows [tokens, channels]."""
        if self.has_eights:
            return eights(as_rows(x, self.spec), self.spec)
        integers, scale, offset = covered(as_rows(x, self.spec), self.spec)
        tokens = x.numel() // x.shape[-1] if self.spec.granularity != "tensor" else 1
        offset = offset.view(tokens, -1) if offset is not None else None
        return Codes(integers.view(-1, x.shape[-1]), scale.view(tokens, -1), offset)


class OperandQuantizer(DynamicQuantizer):
    """Round an operand [rows, heads, tokens, channels] of an attention to the grid of its own rows.

    Args:
        spec: groups lie along the dimension over which the operand's product sums; zeros fill up the last one.
        along_tokens: whether that is the tokens, as of values; of all others it is the last dimension.
    """

    def __init__(self, spec: QuantSpec, along_tokens: bool) -> None:
        super().__init__(spec)
        self.along_tokens = along_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        rows = x.mT if self.along_tokens else x
        length = rows.shape[-1]
        made = fake_quantize(F.pad(rows, (0, -length % (self.spec.group_size or 1))), self.spec)[..., :length]
        return made.mT if self.along_tokens else made

    @property
    def has_codes(self) -> bool:
        """Products of attentions are not those of linear layers."""
        return False

    @property
    def has_eights(self) -> bool:
        """See `has_codes`."""
        return False


class SummingToOne(nn.Module):
    """A quantizer of probabilities whose rows, the last dimension, are divided by their sums (`Renormalised`)."""

    def __init__(self, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return renormalised(self.quantizer(x).float()).to(x.dtype)  # sums of bfloat16 would not be 1

    @property
    def by_rows(self) -> bool:
        """Whether the quantizer does the same to some rows as to them among all."""
        return self.quantizer.by_rows


class BookQuantizer(nn.Module):
    """Round an input [B, …] to a code-book, with the numbers of each sample's group of timesteps.

    Args:
        spec: bits and kind.
        book: what rounds.
        numbers: of the book, for each group, and for each head of inputs [B, heads, …]; other inputs have one head.
        groups: of timesteps.
        clock: shows the timesteps; with one group it is not read.
    """

    by_rows = True
    numbers: Tensor
    edges: Tensor

    def __init__(
        self, spec: QuantSpec, book: Book, numbers: Float[Tensor, "groups heads numbers"], groups: Groups, clock: Clock
    ) -> None:
        super().__init__()
        self.spec, self.book, self.clock = spec, book, clock
        self.register_buffer("numbers", numbers.float())
        self.register_buffer("edges", groups.tensor())

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        numbers = self.now(len(x))
        return self.book(x.float(), *numbers.reshape(*numbers.shape, *[1] * (x.ndim - 2))).to(x.dtype)

    def now(self, batch: int) -> Float[Tensor, "numbers samples heads"]:
        """The numbers at the time of each of `batch` samples, or of all."""
        numbers = self.numbers
        if len(self.edges):
            numbers = numbers[group_of(self.clock.read(batch), self.edges)]
        return numbers.permute(2, 0, 1)

    @property
    def has_codes(self) -> bool:
        """Whether the book is a uniform grid of all channels."""
        return isinstance(self.book, Uniform) and self.numbers.shape[1] == 1

    def codes(self, x: Tensor) -> Codes:
        """`x` as integers, of rows [tokens, channels]."""
        assert isinstance(self.book, Uniform)
        rows = x.reshape(-1, x.shape[-1])
        scale, zero_point = self.now(len(x))
        if len(scale) > 1:  # one grid per sample, for all its tokens
            scale, zero_point = (t.repeat_interleave(len(rows) // len(x), 0) for t in (scale, zero_point))
        integers, offset = encoded(rows, scale, zero_point, self.book.low, self.book.high, self.spec.grid)
        return Codes(integers, scale, offset)


class ChannelQuantizer(ByChannelQuantizer):
    """Round an input [B, …, channels] to one base step times a power of two for each channel.

    Its numbers [groups, 2] are the base step and the zero point, and the channels' own the exponents. Codes have a
    scale each; integer products would need them shifted, in more than 8 bits.
    """

    own = "shifts"
    shifts: Tensor

    def grids(self) -> tuple[Tensor, Tensor]:
        """See `ByChannelQuantizer`; one zero point serves all channels."""
        step, zero_point = self.numbers.unsqueeze(-1).unbind(1)
        return step * torch.exp2(self.shifts.float()), zero_point


def static_quantizer(
    spec: QuantSpec, book: Book, numbers: Float[Tensor, "groups heads numbers"], groups: Groups, clock: Clock
) -> nn.Module:
    """The module of a code-book; arguments as `BookQuantizer`.

    A uniform grid of a whole tensor makes a `StaticQuantizer`, which gives the same bits and whose step size can learn.
    """
    if isinstance(book, Uniform) and spec.granularity == "tensor" and groups.count == 1:
        scale, zero_point = numbers.view(2, 1, 1)
        return StaticQuantizer(spec, Affine(scale.clone(), zero_point.clone(), book.low, book.high))
    return BookQuantizer(spec, book, numbers, groups, clock)


def quantizer_of(spec: QuantSpec, grids: Sequence[RowGrid], groups: Groups, clock: Clock) -> nn.Module:
    """The module of static grids with one step, one for each group of timesteps; their rows are heads."""
    numbers = torch.stack([torch.cat([getattr(grid, name) for name in grid.PER_ROW], 1) for grid in grids])
    first = grids[0]
    book = Uniform(first.low, first.high) if isinstance(first, Affine) else Scaled(spec.bits, spec.grid)
    return static_quantizer(spec, book, numbers, groups, clock)
