"""Uniform static quantizers of an attention's operands, one grid a tensor (PTQ4DiT's release, arXiv 2405.16005).

Queries (after their scaling), keys and values have the inputs' bits, probabilities bits of their own and zero point 0.
Ranges are taken once from the calibration data, as those of static inputs are. In the release they already see rounded
weights; here they are those of the full-precision network in the basis of its transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from qdit.activation.static import StaticQuantizer
from qdit.attention.base import operand_values
from qdit.errors import UserError
from qdit.model.base import OPERANDS, Attention
from qdit.quant.affine import affine
from qdit.quant.ranges import Range
from qdit.quant.spec import Grid, QuantSpec

if TYPE_CHECKING:
    from qdit.quantize import Fit


@dataclass(frozen=True, kw_only=True)
class UniformAttention:
    """Static per-tensor quantization of an attention's operands.

    Args:
        operands: which are quantized: q, k, v, probs.
        grid: of q, k and v; see `QuantSpec`. Probabilities have the grid `unsigned`.
        probability_bits: of the probabilities.
        range: the rule that finds a range from the calibration values.

    Raises:
        UserError: an operand is unknown, or bits are out of range.
    """

    operands: list[str]
    grid: Grid
    probability_bits: int
    range: Range
    needs_calibration = True

    def __post_init__(self) -> None:
        if unknown := [o for o in self.operands if o not in OPERANDS]:
            raise UserError(f"attention.operands has {', '.join(unknown)}; choose from {', '.join(OPERANDS)}")
        self.specs(8)

    def specs(self, bits: int) -> dict[str, QuantSpec]:
        """The spec of each quantized operand; nothing is quantized where inputs are not (16 bits)."""
        made: dict[str, QuantSpec] = {}
        for operand in self.operands:
            own = ("unsigned", self.probability_bits) if operand == "probs" else (self.grid, bits)
            spec = QuantSpec(bits=own[1], granularity="tensor", grid=own[0], dynamic=False)
            if not spec.is_identity and bits < 16:
                made[operand] = spec
        return made

    def quantizers(self, fit: "Fit", attentions: Sequence[Attention]) -> dict[str, nn.Module]:
        """See `AttentionPart`: a `StaticQuantizer` for each site."""
        sites = [site for a in attentions for site in a.sites.values() if site in fit.policy]
        values = operand_values(fit.model, attentions, sites, fit.data) if sites else {}
        made: dict[str, nn.Module] = {}
        for site in sites:
            spec = fit.policy[site].activation
            assert spec is not None
            grid = affine(*self.range(values[site].reshape(1, -1), spec), spec)
            made[site] = StaticQuantizer(spec, grid).to(fit.model.device)
        return made
