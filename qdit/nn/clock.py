"""The time of what the network runs on, for quantizers that depend on it (TQ-DiT's groups of timesteps)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Clock:
    """One object for all layers of a model: whoever runs the network, or a part of it, lets it show the timesteps.

    `DiffusionModel.denoise` does so, hence everything that goes through it: sampling, calibration, metrics of layers.
    Who runs blocks by themselves (`qdit.rounding`) does it too. Outside of a call it shows nothing, so that a layer
    cannot read an old time.
    """

    timesteps: Tensor | None = None
    """What the model is told, on the scale of its training (0 … 999): one for each sample, [B]."""

    @contextmanager
    def showing(self, timesteps: Tensor) -> Iterator[None]:
        """Show the timesteps [B] of the samples that are run on meanwhile; batches may mix them."""
        before, self.timesteps = self.timesteps, timesteps
        try:
            yield
        finally:
            self.timesteps = before

    def read(self, samples: int) -> Tensor:
        """The timestep of each of so many samples, [samples].

        Raises:
            RuntimeError: nothing is shown: a layer was run by itself.
        """
        if self.timesteps is None:
            raise RuntimeError("a layer that depends on time was run outside of the network: see qdit.nn.clock")
        return self.timesteps.expand(samples)
