"""Statistical significance of measured losses: every sample counts equally, and differences within the noise are ties.

The errors of samples differ by orders of magnitude: a trajectory that turns to another image loses more than all others
together, so that bits chosen by mean losses would be chosen by it alone. So losses are measured in units of what their
sample loses over all measurements. To first order, minimizing their mean then minimizes the mean of logarithms, which
is what `sqnr` takes.

ViDiT-Q ranks layers by metrics of ten prompts; the sensitivities that its first release shipped do not differ by more
than their noise. Here all values come from the same noise and labels, so that the standard error of a difference is
that of the paired differences. Values that cannot be told apart are replaced by one common value, so that no allocator
can rank them.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qdit.search.bit_budget import Losses
from qdit.search.sensitivity import Cells

STANDARD_ERRORS = 2.0


def standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard error of the mean over the last axis."""
    return values.std(-1, ddof=1) / values.shape[-1] ** 0.5


def classes(values: NDArray[np.float64]) -> list[list[int]]:
    """Rows of paired values [m, n] by falling mean, in classes of rows that are not told apart.

    A row opens a class when any row of the class before is larger by more than two standard errors of the difference.
    Not being told apart is not transitive; what is so ordered is: of two rows that are told apart, the larger one is
    never in a later class, and no class has two rows that are told apart.

    >>> classes(np.array([[1.0, 1.1, 0.9], [5.0, 5.2, 4.9], [1.0, 0.9, 1.2]]))
    [[1], [2, 0]]
    """
    order = sorted(range(len(values)), key=lambda row: (-values[row].mean(), row))
    found: list[list[int]] = []
    for row in order:
        if found:
            difference = values[found[-1]] - values[row]
            if not (difference.mean(-1) > STANDARD_ERRORS * standard_error(difference)).any():
                found[-1].append(row)
                continue
        found.append([row])
    return found


def evened(samples: Cells) -> Cells:
    """Losses of each sample, divided by their sum over all measurements and rescaled by the mean of these sums.

    Args:
        samples: for each gene and range, by bits, the loss of each sample [n].

    >>> evened([[{4: np.array([1.0, 90.0]), 8: np.array([1.0, 10.0])}]])
    [[{4: array([25.5, 45.9]), 8: array([25.5,  5.1])}]]
    """
    total = np.sum([np.abs(values) for gene in samples for cell in gene for values in cell.values()], axis=0)
    scale = np.where(total > 0, total / max(total.mean(), np.finfo(float).tiny), 1.0)
    return [[{bits: values / scale for bits, values in cell.items()} for cell in gene] for gene in samples]


def tied(samples: Cells) -> Losses:
    """The losses that allocators use: excess over those at the most bits, one value per class of ties, 0 within noise.

    Args:
        samples: for each gene and range, by bits, the loss of each sample.

    Returns:
        For each gene and range, by bits: the mean over its class (among all genes and ranges at these bits) of the loss
        more than at the most bits. It is 0 in the class of no difference, and never rises with bits.
    """
    cells = [cell for gene in samples for cell in gene]
    widths = sorted(cells[0], reverse=True)
    losses: list[dict[int, float]] = [{widths[0]: 0.0} for _ in cells]
    for wider, bits in pairwise(widths):
        more = np.stack([cell[bits] - cell[widths[0]] for cell in cells] + [np.zeros_like(cells[0][bits])])
        for members in classes(more):
            value = 0.0 if len(cells) in members else max(0.0, float(more[members].mean()))
            for row in members:
                if row < len(cells):
                    losses[row][bits] = max(value, losses[row][wider])
    ranges = len(samples[0])
    return [losses[n : n + ranges] for n in range(0, len(losses), ranges)]
