"""Dynamic (per-token) activation quantization: each token, or group of its channels, has its own range.

It needs no calibration, and the result for a sample does not depend on the rest of the batch; of scales with two levels
(NVFP4's) the float32 that a tensor's have in common does. One scale for a whole tensor would be shared by all samples
of a batch, and by a condition and its null, so that it is refused. Q-DiT calls the variant
with groups "sample-wise dynamic"; ViDiT-Q and QuaRot use the variant per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from qdit.activation.regions import SidedInputs
from qdit.activation.time import EqualGroups
from qdit.checked import NEWER, Newer
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant.named import at_bits, owned
from qdit.quant.ranges import MinMax
from qdit.quant.spec import Columns, Granularity, GridName, QuantSpec, Scale
from qdit.quant.time_groups import Groups


@dataclass(frozen=True, kw_only=True, repr=False)
class DynamicActivation(Newer):
    """Dynamic activation quantization.

    Args:
        granularity, group_size, scale: see `QuantSpec`; `row` or `group`.
        grid: see `QuantSpec`; `float` is the usual floating-point format of the bits.
        columns: of inputs that are two side by side (`Site.second`), whether these have grids of their own: `own`, or
            `joined`.
        regions: inputs with two regions, whose ranges are static; none by default.

    Raises:
        UserError: a whole tensor is to have one scale.
    """

    granularity: Granularity
    grid: GridName
    group_size: int | None = None
    regions: SidedInputs = field(default_factory=SidedInputs)
    scale: Scale | None = field(default=None, metadata=NEWER)
    columns: Columns = field(default="joined", metadata=NEWER)
    time = EqualGroups()

    def __post_init__(self) -> None:
        if self.granularity == "tensor":
            raise UserError(
                "activation.granularity=tensor with ranges that are found at run time gives all samples of a batch one "
                "scale, so that results depend on batch_size; use activation.granularity=row, or activation=tensor, "
                "whose ranges are calibrated"
            )

    @property
    def needs_ranges(self) -> bool:
        """Whether some inputs need calibrated ranges."""
        return bool(self.regions.roles)

    def in_format(self, name: str) -> "DynamicActivation":
        """The same in a named format (`qdit.quant.named`).

        Raises:
            UserError: some inputs have two regions.
        """
        if problems := self.regions.misfits(name):
            raise UserError(*problems)
        return replace(self, **owned(vars(self), name))

    def spec(self, bits: int) -> QuantSpec:
        """The `QuantSpec` of an input at `bits`."""
        rows = {"granularity": self.granularity, "group_size": self.group_size}
        return QuantSpec(bits=bits, grid=at_bits(self.grid, bits), scale=self.scale, dynamic=True, **rows)

    def at(self, role: str, spec: QuantSpec | None) -> QuantSpec | None:
        """The spec of a site with a role, where others have `spec`."""
        return self.regions.at(role, spec, self.time)

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
