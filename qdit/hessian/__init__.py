"""Ranges of least error in a layer's output, weighted by what the network's output minds (TQ-DiT, PTQ4ViT)."""

from qdit.hessian.rule import Hessian
from qdit.hessian.target import DiffusionLoss, LegacyKL, Probe, Target

__all__ = ["DiffusionLoss", "Hessian", "LegacyKL", "Probe", "Target"]
