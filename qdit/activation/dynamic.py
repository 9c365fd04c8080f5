"""Dynamic (per-token) activation quantization: each token, or group of its channels, has its own min-max range.

It needs no calibration, and the result for a sample does not depend on the rest of the batch. Q-DiT calls the variant
with groups "sample-wise dynamic"; ViDiT-Q and QuaRot use the variant per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qdit.activation.regions import SidedInputs
from qdit.activation.time import EqualGroups
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.quant.affine import affine, fake_quantize
from qdit.quant.integers import Codes, encoded
from qdit.quant.ranges import MinMax
from qdit.quant.spec import Granularity, Grid, QuantSpec, as_rows
from qdit.quant.time_groups import Groups


class DynamicQuantizer(nn.Module):
    """Round an input [..., tokens, channels] to the grid of its own rows."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return fake_quantize(x, self.spec)

    @property
    def has_codes(self) -> bool:
        """Whether there are codes."""
        return not self.spec.is_identity

    def codes(self, x: Tensor) -> Codes:
        """`x` as integer codes, in rows [tokens, channels]."""
        rows = as_rows(x, self.spec).float()
        grid = affine(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), self.spec)
        integers, offset = encoded(rows, grid.scale, grid.zero_point, grid.low, grid.high, self.spec.grid)
        tokens = x.numel() // x.shape[-1] if self.spec.granularity != "tensor" else 1
        offset = offset.view(tokens, -1) if offset is not None else None
        return Codes(integers.view(-1, x.shape[-1]), grid.scale.view(tokens, -1), offset)


@dataclass(frozen=True, kw_only=True)
class DynamicActivation:
    """Dynamic activation quantization.

    Args:
        granularity, grid, group_size: see `QuantSpec`.
        regions: inputs with two regions, whose ranges are static; none by default.
    """

    granularity: Granularity
    grid: Grid
    group_size: int | None = None
    regions: SidedInputs = field(default_factory=SidedInputs)
    time = EqualGroups()

    @property
    def needs_ranges(self) -> bool:
        """Whether some inputs need calibrated ranges."""
        return bool(self.regions.roles)

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        return QuantSpec(
            bits=bits, granularity=self.granularity, group_size=self.group_size, grid=self.grid, dynamic=True
        )

    def quantizer(self, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock) -> nn.Module:
        """The module that quantizes a site's input; `values` are needed for two regions only.

        Raises:
            UserError: there are none, or they do not suit two regions.
        """
        if spec.dynamic:
            return DynamicQuantizer(spec)
        if values is None:
            raise UserError("activation.regions has static ranges and needs calibration data; use calibration=uniform")
        return self.regions.quantizer(spec, values, MinMax(), groups, clock)
