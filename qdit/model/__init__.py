"""Adapters of pretrained diffusion transformers; importing this package makes torchvision importable first."""

from qdit import compat as compat
