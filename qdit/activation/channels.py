"""One scale a tensor and a power of two a channel: the power-of-two factor of FQ-ViT (arXiv 2111.13824, eq. 5-7).

Inputs behind LayerNorms vary from channel to channel. With b bits, K shifts and the range [lo, hi] of the tensor

    top = (hi - lo) / (2^b - 1),   s = top / 2^K,   z = round(-lo / top),
    α_c = argmin_{k = 0 … K} ‖x_c - Q(x_c; 2^k s, z)‖²,   x̂_c = 2^α_c s (code - z)

so that each channel c has the best of K + 1 ranges, of which the widest is the tensor's. The zero point is that of the
widest and serves all. An integer kernel shifts codes less zero points to the left by α_c, and multiplies integers of
b + K bits; the ledger counts them so.

In the paper the grid is that of a LayerNorm's own input, the residual stream, which no DiT paper rounds; here it is
that of the inputs that LayerNorms make. The released code chooses α on the last calibration batch alone, and its
integer LayerNorm never clamps. Exponents are chosen on a sample of each channel's values whose errors count as
those of all values would (`qdit.calibration.reservoir.Sampled`): few values lie at the ends of a range, and just these
are what a smaller step cuts off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from qdit.activation.by_channel import ByChannel
from qdit.calibration.reservoir import Sampled
from qdit.nn.clock import Clock
from qdit.nn.quantizers import ChannelQuantizer
from qdit.quant.affine import Affine, affine, nearest
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups


def channel_shifts(
    values: Float[Tensor, "*many channels n"], widest: Affine, most: int, weights: Float[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, "*many"], Int[Tensor, "*many channels"]]:
    """(s, α): the base step, and the exponent of least squared error of each channel; the smallest of equal ones.

    Args:
        values: of each channel of a tensor, or of several.
        widest: the grid of each whole tensor, a row.
        most: K.
        weights: how many values of a channel each stands for; None: all are given.
    """
    many = values.shape[:-2]
    base, zero_point = (part.float().view(*many, 1, 1) for part in (widest.scale, widest.zero_point))
    ends = zero_point, widest.low, widest.high
    count = torch.ones(values.shape[-1], device=values.device) if weights is None else weights.to(values.device)
    steps = [base / 2 ** (most - k) for k in range(most + 1)]
    errors = [(nearest(values, step, *ends) - values).double().square() @ count.double() for step in steps]
    return base.view(many) / 2**most, torch.stack(errors).argmin(0)


def rounded_by_channel(
    x: Float[Tensor, "*many rows channels"], spec: QuantSpec, most: int
) -> Float[Tensor, "*many rows channels"]:
    """Matrices rounded as static inputs with exponents are that have just these values.

    Args:
        x: one or several matrices.
        spec: of a whole one.
        most: K.
    """
    lo, hi = (end.double().view(-1, 1) for end in x.float().flatten(-2).aminmax(dim=-1))
    widest = affine(lo, hi, spec)
    base, alpha = channel_shifts(x.float().mT, widest, most)
    steps = base[..., None, None] * torch.exp2(alpha.float()).unsqueeze(-2)
    zero_point = widest.zero_point.float().view(*base.shape, 1, 1)
    return nearest(x.float(), steps, zero_point, widest.low, widest.high).to(x.dtype)


@dataclass(frozen=True, kw_only=True, repr=False)
class ChannelShift(ByChannel):
    """Static quantization with a power of two a channel at some inputs; other inputs have one scale.

    Args:
        granularity, grid, range, group_size, scale, regions, time: see `StaticActivation`; `grid` is of integers.
        shifts: K, the greatest exponent; 0 is `StaticActivation`.
        shifted: roles of the layers whose inputs have exponents: on DiT those behind LayerNorms; where blocks attend to
            a text, also the readers of queries, keys and values there, whose inputs no LayerNorm makes.

    Raises:
        UserError: see `StaticActivation`; or a value is out of range.
    """

    shifts: Annotated[int, Ge(0), Le(8)] = 3
    shifted: list[str] = field(default_factory=lambda: ["qkv", "ffn_up"])
    kind, does, count, plain, where = "channel_shift", "shifts", "shifts", 0, "shifted"

    def calibrated(self, spec: QuantSpec, samples: Sequence[Sampled], groups: Groups, clock: Clock) -> nn.Module:
        """See `ByChannel`."""
        whole = replace(self.spec(spec.bits), time_groups=spec.time_groups)
        ends = [self.range(sample.flat.view(1, -1), whole) for sample in samples]
        grids = [affine(lo.double(), hi.double(), whole) for lo, hi in ends]  # where -lo / top is a half, it is exactly
        pairs = zip(samples, grids, strict=True)
        found = [channel_shifts(each.values, grid, self.shifts, each.weights) for each, grid in pairs]
        numbers = torch.stack(
            [torch.stack([s, g.zero_point.squeeze()]) for (s, _), g in zip(found, grids, strict=True)]
        )
        shifts = torch.stack([alpha for _, alpha in found]).to(torch.uint8)
        return ChannelQuantizer(spec, (grids[0].low, grids[0].high), numbers, shifts, groups, clock)
