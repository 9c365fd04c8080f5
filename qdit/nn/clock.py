"""The clock: tells layers the timestep of each sample, for quantizers that depend on it (TQ-DiT's timestep groups)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Clock:
    """One object that all layers of a model share: the code that runs the network, or a part of it, sets its timesteps.

    `DiffusionModel.denoise` does so, and thereby all that goes through it: sampling, calibration, metrics of layers.
    Code that runs single blocks (`qdit.rounding`) does it too. Outside of such a call the clock shows nothing, so that
    a layer cannot read an old timestep.
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
        """The timestep of each of so many rows, [samples]; a sample's rows follow one another (a video's frames).

        Raises:
            RuntimeError: nothing is shown: a layer was run by itself.
        """
        if self.timesteps is None:
            raise RuntimeError("a layer that depends on time was run outside of the network: see qdit.nn.clock")
        shown = self.timesteps
        return shown.expand(samples) if len(shown) == 1 else each_row(shown, samples)


def each_row(timesteps: Tensor, rows: int) -> Tensor:
    """The timesteps [B] of samples for their rows, sample by sample, [rows]."""
    return timesteps.repeat_interleave(rows // len(timesteps))
