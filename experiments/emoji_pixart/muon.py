"""Muon (Jordan 2024) in the precision in which products are fast, all matrices of one shape in one product.

torch's own works in bfloat16, one matrix after the other: on a processor without bfloat16 a step of the text model took
it 30 s, where the whole forward and backward pass took 4.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, as published; five of them bring singular values to between .7 and 1.2."""


class Muon(torch.optim.Optimizer):
    """Momentum of Nesterov, then the nearest matrix with equal singular values, as large as an update of AdamW.

    Updates equal those of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw", weight_decay=0)` up to its rounding.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix that has a gradient; there is no closure."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, matrices in shapes.items():
                size = 0.2 * max(shape) ** 0.5
                pushed = torch.stack([self._pushed(p, group["momentum"]) for p in matrices])
                updates = orthogonal(pushed.to(group["dtype"])).to(pushed.dtype)
                torch._foreach_add_(matrices, list(updates), alpha=-group["lr"] * size)

    def _pushed(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient, looked at from where the average of gradients leads."""
        state = self.state[parameter]
        average = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)


def orthogonal(matrices: Float[Tensor, "B M N"], rounds: int = 5) -> Float[Tensor, "B M N"]:
    """Matrices with the singular vectors of the given ones and singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
