"""Diagonal scaling (smoothing): moves quantization difficulty between an input and its weight, channel by channel.

    r_j = s(X)_j^α / s(W)_j^(1-α)        x ← x / r        W ← W diag(r)

with the salience of the input s(X)_j, a config option of its own (`qdit.transform.statistics`), and that of the weight,
s(W)_j = max_o |W_oj|, over all quantized layers that consume the input (its readers: q, k and v together).

* SmoothQuant (arXiv 2211.10438, eq. 4): s(X) is the maximum over all data; α, the migration strength, is the share of
  the difficulty that moves to the weights. Some later code writes the complement, 1 - α.
* ViDiT-Q (arXiv 2406.02540): s(X) is taken at the first sampling step, and a rotation follows; its release takes the
  maximum over all steps.
* PTQ4DiT (arXiv 2405.16005, eq. 3-11): α = 0.5 makes both saliences √(s(X) s(W)), "channel-wise salience balancing";
  the statistic is Spearman's salience calibration.

All factors are computed from the original weights. Folding a factor into a value row does not change the row's codes on
its own grid (per-row scales commute with it), so the order in which inputs are treated does not matter. Dead channels,
whose salience is almost 0 on either side, keep their scale; the released code divides by zero there.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_maxima
from qdit.checked import Checked, Share
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.nn.basis import Scale
from qdit.nn.patches import matrix
from qdit.transform.alpha import Alpha, FixedAlpha
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import Input, fold_of, sample_rows
from qdit.transform.statistics import Statistic
from qdit.transform.trial import OutputError, Trial


@dataclass(frozen=True, kw_only=True)
class Scaling(Drafted):
    """Base of transforms that scale the channels of inputs and weights: it puts the factors where they belong.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
    """

    needs_calibration = True

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: one 16-bit factor and one multiplication per channel."""
        left = [each.quantized[0] for each in self.inputs(model, sites) if fold_of(model, each) is None]
        return [RunTime(site, 16 * site.in_features, site.in_features) for site in left]

    @abstractmethod
    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """The factor r [channels] of every input, by its name."""

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`. A factor that is folded reaches all readers of the input, quantized or not."""
        model = draft.model
        for each in self.inputs(model, sites):
            r = measured[each.name].to(model.device)
            fold = fold_of(model, each)
            for site in each.readers if fold else each.quantized:
                draft.scale_columns(site.name, r)
            if fold is not None:
                draft.scale_output(fold, 1 / r)
                continue
            if (r == 1).all():
                continue  # not scaled
            scale = Scale(1 / r, model.dtype)
            for site in each.quantized:
                draft.at_run_time(site.name, scale)


@dataclass(frozen=True, kw_only=True)
class ChannelScaling(Scaling, Checked):
    """Scale by a power of the saliences.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        alpha: exponent of the activations' salience, 0 to 1 (the weights' is 1 - alpha); or the rule that chooses it.
        statistic: computes the activations' salience.

    Raises:
        UserError: alpha is out of range.
    """

    alpha: Share | Alpha
    statistic: Statistic

    @property
    def rule(self) -> Alpha:
        """How factors are found."""
        return self.alpha if isinstance(self.alpha, Alpha) else FixedAlpha(value=self.alpha)

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """See `Scaling`: from one pass of the calibration data, and one more for the rows that some rules ask for."""
        inputs, data = self.inputs(model, sites), collect()
        weights = {each.name: weight_salience(model, each) for each in inputs}
        gathering = {name: self.statistic.start(weight) for name, weight in weights.items()}
        first = [each.quantized[0] for each in inputs]
        input_maxima(model, first, data, lambda site, maxima, t: gathering[site.name].add(maxima, t))
        saliences = {name: (made.value(), weights[name]) for name, made in gathering.items()}

        def errors(rows: int, seed: int) -> Iterator[tuple[str, OutputError]]:
            sampled = sample_rows(model, inputs, data, rows, seed)
            return ((each.name, OutputError(trial, model, each, sampled[each.name])) for each in inputs)

        return self.rule.choose(saliences, errors)


def weight_salience(model: DiffusionModel, read: Input) -> Float[Tensor, " channels"]:
    """max_o |W_oj| over the quantized layers that read an input, float32."""
    maxima = [matrix(model.denoiser.get_submodule(site.name)).float().abs().amax(0) for site in read.quantized]
    return torch.stack(maxima).amax(0)
