"""Samplers: a diffusers scheduler, its steps and its guidance behind one `sample` function."""

from qdit import compat as compat
