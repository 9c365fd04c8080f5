"""Dynamic activations: each token (or group of its channels) gets the grid of its own minimum and maximum.

Needs no calibration, and a sample's result does not depend on its batch mates. Q-DiT calls the group variant
"sample-wise dynamic"; ViDiT-Q and QuaRot use the token variant.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from qdit.quant.affine import fake_quantize
from qdit.quant.spec import Granularity, Grid, QuantSpec


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
    """Dynamic activation quantization; see `QuantSpec` for the arguments."""

    granularity: Granularity
    grid: Grid
    group_size: int | None = None
    needs_ranges = False

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        return QuantSpec(
            bits=bits, granularity=self.granularity, group_size=self.group_size, grid=self.grid, dynamic=True
        )

    def quantizer(self, spec: QuantSpec, values: Tensor | None) -> nn.Module:
        """The module that quantizes a site's input; `values` are not needed."""
        return DynamicQuantizer(spec)
