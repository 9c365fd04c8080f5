"""Samplers: a diffusers scheduler, its steps and its guidance behind one `sample` function."""

from qdit import torchvision_cure as torchvision_cure
