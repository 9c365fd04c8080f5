"""Channel shifts: inputs whose channels are centred before they are rounded (TaQ-DiT, arXiv 2411.14172, behind GELU).

    x' = x - v,    b' = b + W v,    v ← m v + (1 - m) (max x + min x) / 2    for each channel, batch after batch

One grid for a whole tensor must reach from the least channel to the greatest; behind a GELU all channels lie on one
side, at different heights, and centred ones need less. v starts at the first batch's middle, and m = 0.95, as there. A
change of v reaches the output by nothing but rounding: v is folded into what makes the input where a fold does, and is
taken away at run time elsewhere. Not here: the joint learning of weights and ranges (`rounding=adaround`), and the
paper's migration of outliers, which could not be read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor

from qdit.calibration import CalibrationData
from qdit.checked import Checked
from qdit.ledger import RunTime
from qdit.model.base import DiffusionModel, Site
from qdit.nn.basis import Shift
from qdit.transform.folding import Draft, Drafted
from qdit.transform.inputs import Input, watch_rows
from qdit.transform.trial import Trial


def middles(
    before: Float[Tensor, " channels"] | None, rows: Float[Tensor, "rows channels"], momentum: float
) -> Float[Tensor, " channels"]:
    """v of each channel after one more batch; None before the first one.

    >>> import torch
    >>> first = middles(None, torch.tensor([[0.0, 2.0], [4.0, 2.0]]), 0.95)
    >>> first, middles(first, torch.tensor([[0.0, 0.0], [44.0, 42.0]]), 0.95)
    (tensor([2., 2.]), tensor([3.0000, 2.9500]))
    """
    lo, hi = rows.float().aminmax(dim=0)
    middle = (lo + hi) / 2
    return middle if before is None else momentum * before + (1 - momentum) * middle


@dataclass(frozen=True, kw_only=True)
class Centred(Drafted, Checked):
    """Take the middle of each channel's range away from inputs.

    Args:
        name, roles: see `qdit.transform.folding.Drafted`.
        momentum: m; 0 takes the last batch's middle.

    Raises:
        UserError: a value is out of range.
    """

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    needs_calibration = True
    shifting = True

    def measure(
        self, model: DiffusionModel, sites: list[Site], collect: Callable[[], CalibrationData], trial: Trial
    ) -> dict[str, Tensor]:
        """v [channels] of every input, by its name, from one pass of the calibration data in its order."""
        found: dict[str, Tensor] = {}

        def see(read: Input, rows: Tensor) -> None:
            if len(rows):  # a batch may have none that is attended to
                found[read.name] = middles(found.get(read.name), rows, self.momentum)

        watch_rows(model, self.inputs(model, sites), collect(), see)
        return {name: v.cpu() for name, v in found.items()}

    def run_time(self, model: DiffusionModel, sites: list[Site]) -> list[RunTime]:
        """See `Transform`: one 16-bit number and one subtraction for each channel."""
        left = [each for each in self.inputs(model, sites) if self.fold(model, each) is None]
        return [RunTime(each.quantized[0], 16 * each.channels, each.channels) for each in left]

    def edit(self, draft: Draft, sites: list[Site], measured: dict[str, Tensor]) -> None:
        """See `Step`. What is folded reaches all readers of the input, quantized or not."""
        model = draft.model
        for each in self.inputs(model, sites):
            d, fold = -measured[each.name].to(model.device), self.fold(model, each)
            for site in each.readers if fold else each.quantized:
                draft.shift_columns(site.name, d)
            if fold is not None:
                draft.shift_output(fold, d)
                continue
            change = Shift(d, model.dtype)
            for site in each.quantized:
                draft.at_run_time(site.name, change)
