"""The exponent α (migration strength) of SmoothQuant's factors r = s(X)^α / s(W)^(1-α): fixed, or chosen by search.

Papers set α by hand, differently at every bit-width (ViDiT-Q's configs have 0.3, 0.5665, 0.75 and 0.99 in a convention
that is the complement of this one). The grid search tries candidates, "no scaling" among them, and takes the one whose
quantized layers have the least output error under the recipe's bits and grids.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.checked import Checked, Count, Share
from qdit.transform.trial import OutputError

DEAD = 1e-5  # salience, relative to the largest, below which a channel is dead; SmoothQuant clamps at 1e-5
CHOSEN = "alpha/"  # prefix of the key of an input's chosen α; an input without such a key is not scaled

Saliences = tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]
"""Of an input and of the weights that read it."""


def factors(
    activation: Float[Tensor, " channels"], weight: Float[Tensor, " channels"], alpha: float
) -> Float[Tensor, " channels"]:
    """r = s(X)^α / s(W)^(1-α), 1 for dead channels.

    >>> factors(torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]), 0.5)
    tensor([2., 3., 1.])
    """
    dead = torch.zeros_like(activation, dtype=torch.bool)
    for salience in (activation, weight):
        dead |= salience <= DEAD * salience.amax()
    r = activation.double() ** alpha / weight.double() ** (1 - alpha)
    return torch.where(dead, 1.0, r).float()


@runtime_checkable
class Alpha(Protocol):
    """A rule that finds the factors of all inputs."""

    def choose(
        self, saliences: Mapping[str, Saliences], errors: Callable[[int, int], Iterable[tuple[str, OutputError]]]
    ) -> dict[str, Tensor]:
        """The factor r [channels] of every input, by its name, and what else is worth keeping.

        Args:
            saliences: by the name of the input.
            errors: given a number of rows and the seed of their choice, each input's name with its output error.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FixedAlpha(Checked):
    """One α for all inputs.

    Args:
        value: α, from 0 to 1; a config may give the number alone instead of this class.

    Raises:
        UserError: it is out of range, or no number.
    """

    value: Share

    def choose(
        self, saliences: Mapping[str, Saliences], errors: Callable[[int, int], Iterable[tuple[str, OutputError]]]
    ) -> dict[str, Tensor]:
        """See `Alpha`."""
        return {name: factors(*pair, self.value).cpu() for name, pair in saliences.items()}


@dataclass(frozen=True, kw_only=True)
class GridAlpha(Checked):
    """For each input the α = 0, 1 / steps, … 1 of least output error, or no scaling; the first of equals wins.

    Args:
        steps: of the grid.
        rows: number of rows (tokens) of an input on which outputs are compared, chosen at random from all calibration
            points. The rows of all inputs are held at once, on the CPU: 4 bytes per channel and row.
        seed: of that choice.

    Raises:
        UserError: a value is out of range.
    """

    steps: Count = 20
    rows: Count = 512
    seed: int = 0

    def choose(
        self, saliences: Mapping[str, Saliences], errors: Callable[[int, int], Iterable[tuple[str, OutputError]]]
    ) -> dict[str, Tensor]:
        """See `Alpha`; a chosen α is kept under `CHOSEN` and the input's name."""
        alphas = [step / self.steps for step in range(self.steps + 1)]
        found: dict[str, Tensor] = {}
        for name, error in errors(self.rows, self.seed):
            activation, weight = saliences[name]
            candidates = torch.stack([torch.ones_like(weight), *(factors(activation, weight, a) for a in alphas)])
            best = int(error(candidates).argmin())
            found[name] = candidates[best].cpu()
            if best > 0:
                found[f"{CHOSEN}{name}"] = torch.tensor(alphas[best - 1], dtype=torch.float64)
        return found
