"""Two regions, below and above 0, for inputs that come from a GELU (TQ-DiT, arXiv 2502.04056, and PTQ4ViT: MRQ).

GELU's negative values lie in a short interval whose end is known, and get half of the codes with a step of their own.
The step of the positive values follows from the range that the input's range rule finds for them. Where images and text
have feed-forward networks of their own (joint attention), `ffn_down` means both. `parallel_out` (FLUX's single blocks)
is left out: of its input only a part comes from a GELU, the other is the attention's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qdit.activation.time import TimeGroups
from qdit.checked import Checked, Positive
from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.quantizers import BookQuantizer
from qdit.quant.affine import SMALLEST_SCALE, affine
from qdit.quant.ranges import Range
from qdit.quant.regions import GELU_MINIMUM, TwoSided
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups

_LIKE = {"text_down": "ffn_down"}
"""Of `qdit.model.roles.KIN`, whose whole input comes from the same function."""


@dataclass(frozen=True, kw_only=True)
class SidedInputs(Checked):
    """Which inputs have two regions, and where the negative one ends.

    Args:
        roles: of the layers whose inputs have two regions; none by default. `ffn_down` is also the text's, `text_down`.
        negative: how far the negative region reaches; GELU's own minimum, as released, or None for the range rule.

    Raises:
        UserError: `negative` is not positive.
    """

    roles: list[str] = field(default_factory=list)
    negative: Positive | None = GELU_MINIMUM

    def at(self, role: str, spec: QuantSpec | None, time: TimeGroups) -> QuantSpec | None:
        """The spec of a site with a role, where others have `spec`."""
        if spec is None or (role not in self.roles and _LIKE.get(role) not in self.roles):
            return spec
        return QuantSpec(
            bits=spec.bits, granularity="tensor", grid="two_sided", dynamic=False, time_groups=time.count("inputs")
        )

    def misfits(self, name: str) -> list[str]:
        """That two regions cannot have a named format, in a sentence."""
        if not self.roles:
            return []
        return [
            f"bits.activation_format={name} has one scale for both signs, and activation.regions has two regions of "
            "integers; use activation/regions=none"
        ]

    def quantizer(
        self, spec: QuantSpec, values: Sequence[Tensor], rule: Range, groups: Groups, clock: Clock
    ) -> nn.Module:
        """The module that quantizes a site's input.

        Args:
            spec: as `at` made it.
            values: of the input, [n] for each group of timesteps.
            rule: finds the ranges.
            groups: of timesteps.
            clock: says which timestep each sample is at.

        Raises:
            UserError: the values go far below GELU's.
        """
        steps = torch.stack([self._steps(sample, spec, rule) for sample in values])
        return BookQuantizer(spec, TwoSided(spec.bits), steps.unsqueeze(1), groups, clock)

    def _steps(self, values: Tensor, spec: QuantSpec, rule: Range) -> Tensor:
        """The negative and the positive step, [2]."""
        half = 2 ** (spec.bits - 1)
        positive = _step(values.clamp(min=0), spec, rule)
        if self.negative is None:
            return torch.stack([_step(-values.clamp(max=0), spec, rule) * ((half - 0.5) / half), positive])
        if values.amin() < -2 * self.negative:
            raise UserError(
                f"an input with two regions goes down to {values.amin().item():.3g}, its activation function to "
                f"{-self.negative:.3g}: a transform changes it, or a role in activation.regions.roles has another "
                "function before it; use activation.regions.negative=null, which calibrates both sides"
            )
        return torch.stack([torch.full_like(positive, self.negative / half), positive])


def _step(values: Tensor, spec: QuantSpec, rule: Range) -> Tensor:
    """The step of a symmetric grid (Δ₀ = max / (H - ½)) for the values above 0."""
    side = values[values > 0].reshape(1, -1)
    if not side.numel():
        return torch.tensor(SMALLEST_SCALE)
    both = QuantSpec(bits=spec.bits, granularity="tensor", grid="symmetric_full", dynamic=False)
    return affine(*rule(side, both), both).scale.squeeze().cpu()
