"""Activation-aware weight quantization (AWQ, arXiv 2306.00978): salient input channels get relatively finer weights.

    a_j = mean |X_:j|        s = max(a, 1e-4)^(i / 20), i = 0 … 19        s ← s / √(max s · min s)
    s* = argmin ‖ x / s Q(W diag(s))ᵀ - x Wᵀ ‖²

Only weights are rounded in the search, because the paper quantizes only weights: scaling up a channel makes its
rounding error smaller in proportion, as long as the range of the row or group that it shares does not grow. i = 0 is no
scaling, so that the error on the sample is never more than that of rounding to nearest. Where s cannot be folded into
the layer that produces the input, x is divided by s at run time (the release wraps the activation function in the same
way).

Simpler than the release: the error is that of all layers that consume (read) an input together, where the release takes
the output of the attention or of the whole block that they belong to. Left out: its search for clipped ranges, which is
a range rule here (`weight/range=hessian`, conf/quantizer/awq.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked, Count
from qdit.model.base import DiffusionModel, Site
from qdit.transform.inputs import Input, row_sample, total_rows, watch_rows
from qdit.transform.scaling import Scaling
from qdit.transform.trial import OutputError, Trial

LEAST = 1e-4  # lower bound of a mean magnitude, as released


def candidates(mean: Float[Tensor, " channels"], steps: int) -> Float[Tensor, "steps channels"]:
    """The factors s of all exponents 0, 1 / steps, … 1 - 1 / steps, with √(max s · min s) = 1.

    >>> candidates(torch.tensor([1.0, 4.0, 16.0]), 2)
    tensor([[1.0000, 1.0000, 1.0000],
            [0.5000, 1.0000, 2.0000]])
    """
    exponents = torch.arange(steps, dtype=torch.float64, device=mean.device) / steps
    s = mean.double().clamp(min=LEAST) ** exponents[:, None]
    return (s / (s.amax(1, keepdim=True) * s.amin(1, keepdim=True)).sqrt()).float()


@dataclass(frozen=True, kw_only=True)
class ActivationAware(Scaling, Checked):
    """Scale by a power of the inputs' mean magnitudes; the exponent of each input is the one of least output error.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        steps: exponents that are tried.
        rows: number of rows (tokens) of an input on which outputs are compared, chosen at random from all calibration
            points. The rows of all inputs are held at once, on the CPU: 4 bytes per channel and row.
        seed: of that choice.

    Raises:
        UserError: a value is out of range.
    """

    steps: Count = 20
    rows: Count = 512
    seed: int = 0

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """The factor s [channels] of every input, by its name, from one pass of the calibration data."""
        inputs, data = self.inputs(model, sites), collect()
        sums = {each.name: torch.zeros(each.channels, dtype=torch.float64) for each in inputs}
        samples = {each.name: row_sample(total_rows(model, each, data), self.rows, self.seed) for each in inputs}

        def see(read: Input, x: Float[Tensor, "rows channels"]) -> None:
            sums[read.name] += x.abs().sum(0, dtype=torch.float64).cpu()
            samples[read.name].add(x)

        watch_rows(model, inputs, data, see)
        found: dict[str, Tensor] = {}
        for each in inputs:
            tried = candidates(sums[each.name] / samples[each.name].seen, self.steps)
            error = OutputError(trial.of_weights, model, each, samples[each.name].value())
            found[each.name] = tried[int(error(tried).argmin())]
        return found
