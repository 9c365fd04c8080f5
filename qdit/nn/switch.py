"""A layer with several weights for different ranges of timesteps, of which the clock picks one.

ViDiT-Q (arXiv 2406.02540) allocates bits separately in four ranges of the sampling trajectory. Each bit-width that
occurs is a layer of its own, so that nothing is rounded twice and a range of 8 bits has exactly the weights of a model
in 8 bits. Its first version balances channels separately in each range; each of these bases is a layer of its own
(`qdit.transform.timestep_aware`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qdit.nn.clock import Clock
from qdit.nn.patches import Patch, patch_size
from qdit.quant.time_groups import Groups


@dataclass(eq=False)
class Now:
    """The current group of timesteps, found once per call of the network for all layers.

    Args:
        clock: the model's.
        groups: of timesteps.
    """

    clock: Clock
    groups: Groups

    _seen: ClassVar[Tensor | None] = None
    _found: ClassVar[int | Tensor] = 0
    _settled: ClassVar[int | None] = None
    """What compiled graphs take for the group: a constant of each, found before it is called."""

    def group(self) -> int | Tensor:
        """The number of the group, ascending in time; one for each sample [B] where samples differ.

        Raises:
            RuntimeError: the clock shows nothing: a layer was run by itself.
        """
        if torch.compiler.is_compiling() and self._settled is not None:
            return self._settled
        shown = self.clock.timesteps
        if shown is None or shown is not self._seen:
            found = self.groups.of(self.clock.read(1 if shown is None else len(shown)))
            alike = bool((found == found[0]).all())
            self._seen, self._found = shown, int(found[0]) if alike else found  # pyright: ignore[reportAttributeAccessIssue]
        return self._found

    def settle(self) -> int | None:
        """Find the group before a compiled graph is called, which cannot choose by values; None where samples differ.

        A graph is made for each group that occurs.
        """
        found = self.group()
        self._settled = found if isinstance(found, int) else None  # pyright: ignore[reportAttributeAccessIssue]
        return self._settled


class TimedLinear(nn.Module):
    """Layers of one site, of which each range of timesteps uses one.

    Args:
        variants: the layers, [B, ...] -> [B, ...], all of one shape.
        order: for each group of timesteps, ascending, the number of its variant.
        now: which group it is; all layers of a model share it.
    """

    def __init__(self, variants: Sequence[nn.Module], order: Sequence[int], now: Now) -> None:
        super().__init__()
        self.variants = nn.ModuleList(variants)
        self.order, self.now = tuple(order), now

    @property
    def patch(self) -> Patch | None:
        """The patches that a patch embedding multiplies (see `qdit.nn.patches.patch_size`)."""
        return patch_size(self.variants[0])

    @property
    def weight(self) -> Tensor:
        """The first variant's weight [out, in]: all have its shape, dtype and device."""
        weight = self.variants[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """The output of the variant for the current timestep; samples of a batch may be at different timesteps."""
        group = self.now.group()
        if isinstance(group, int):
            return self.variants[self.order[group]](x)
        clock, each = self.now.clock, len(x) // len(group)
        timesteps, due = clock.read(len(group)), torch.tensor(self.order, device=group.device)[group]
        parts, rows = [], []
        for number, variant in enumerate(self.variants):
            if (chosen := due == number).any():
                rows.append(chosen.repeat_interleave(each).nonzero().flatten())
                with clock.showing(timesteps[chosen]):  # what is inside may depend on time, too
                    parts.append(variant(x[rows[-1]]))
        return torch.cat(parts)[torch.cat(rows).argsort()]
