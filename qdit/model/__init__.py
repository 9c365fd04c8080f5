"""Adapters of pretrained diffusion transformers; importing this package makes torchvision importable first."""

from qdit import torchvision_cure as torchvision_cure
