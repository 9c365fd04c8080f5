"""The time of the sampling loop, for quantizers that depend on it (TQ-DiT's time groups, time-indexed policies)."""

from dataclasses import dataclass


@dataclass
class Clock:
    """One mutable object: whoever runs the denoiser sets it before each call, time-dependent layers read it."""

    step: int = 0
    """0 for the first (noisiest) denoising step."""
    timestep: int = 0
    """What the model is told, on the scale of its training (0 … 999)."""
    num_steps: int = 1
    """Length of the whole trajectory."""

    def set(self, step: int, timestep: int, num_steps: int) -> None:
        """Move to one step of a trajectory."""
        self.step, self.timestep, self.num_steps = step, timestep, num_steps
