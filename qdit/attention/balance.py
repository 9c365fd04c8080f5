"""Queries and keys whose channels are balanced: the one is multiplied by what the other is divided by.

    q kᵀ = (q s)(k / s)ᵀ,    s = √(max |k| / max |q|) of each channel of each head

is exact, and gives both the same greatest magnitude, channel by channel, so that none of the two loses its small
channels on one grid. It is what is left of Q-ViT's (arXiv 2210.06707) normalised queries and keys without training;
PassionSR (arXiv 2411.17106) learns such scales. The rows that make queries and keys, or the weights of norms behind
them, can absorb s (with rotary embeddings a pair of channels would have to share it); the ledger does not count it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.calibration.data import CalibrationData, Pass
from qdit.calibration.observers import watching_operands
from qdit.errors import UserError
from qdit.model.base import Attention, DiffusionModel, Operand


def balancing(queries: Float[Tensor, "*shape"], keys: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """s, of the greatest magnitudes of queries and keys; 1 where either is 0.

    >>> balancing(torch.tensor([1.0, 8.0, 0.0]), torch.tensor([4.0, 2.0, 3.0]))
    tensor([2.0000, 0.5000, 1.0000])
    """
    alive = (queries > 0) & (keys > 0)
    return torch.where(alive, keys / torch.where(alive, queries, 1.0), 1.0).sqrt()


def both_rounded(operands: Sequence[Operand]) -> None:
    """Refuse to balance queries and keys of which one stays as it is.

    Raises:
        UserError: one is not quantized.
    """
    if not {"q", "k"} <= set(operands):
        raise UserError(
            f"attention.balance=true scales queries and keys, and attention.operands has {', '.join(operands)}; use "
            "attention.balance=false, or both of q and k"
        )


@torch.no_grad()
def balances(
    model: DiffusionModel, attentions: Sequence[Attention], data: CalibrationData
) -> dict[str, Float[Tensor, "heads 1 channels"]]:
    """What queries and keys are multiplied by, by site, from one pass of the calibration data in full precision."""
    most: dict[str, Tensor] = {}
    calls = Pass(model, data)

    def see(site: str, x: Tensor) -> None:
        if site.rpartition(".")[2] not in ("q", "k"):
            return
        size = x.float().abs()
        if (mask := model.attended(site, calls.y)) is not None:
            size = size * mask.to(size)[:, None, :, None]
        here = size.amax((0, 2))
        most[site] = torch.maximum(most[site], here) if site in most else here

    with watching_operands(model, attentions, see, by_rows=True):
        calls.run()
    found: dict[str, Tensor] = {}
    for each in attentions:
        s = balancing(most[each.sites["q"]], most[each.sites["k"]]).unsqueeze(1)
        found |= {each.sites["q"]: s, each.sites["k"]: 1 / s}
    return found
