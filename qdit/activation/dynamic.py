"""Dynamic activations: each token (or group of its channels) gets the grid of its own minimum and maximum.

Needs no calibration, and a sample's result does not depend on its batch mates. Q-DiT calls the group variant
"sample-wise dynamic"; ViDiT-Q and QuaRot use the token variant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qdit.activation.regions import SidedInputs
from qdit.activation.time import EqualGroups
from qdit.errors import UserError
from qdit.quant.affine import fake_quantize
from qdit.quant.ranges import MinMax
from qdit.quant.spec import Granularity, Grid, QuantSpec
from qdit.quant.time_groups import Groups
from qdit.sampler.clock import Clock


class DynamicQuantizer(nn.Module):
    """Round an input [..., tokens, channels] to the grid of its own rows."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return fake_quantize(x, self.spec)


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
        """The module that quantizes a site's input; `values` are needed for two regions only."""
        if spec.dynamic:
            return DynamicQuantizer(spec)
        if values is None:
            raise UserError("activation.regions has static ranges and needs calibration data; use calibration=uniform")
        return self.regions.quantizer(spec, values, MinMax(), groups, clock)
