"""Hessian-guided ranges (TQ-DiT, PTQ4ViT): of least output error, weighted by its effect on the network's output."""

from qdit.hessian.pearson import Pearson
from qdit.hessian.rule import Hessian
from qdit.hessian.target import DiffusionLoss, LegacyKL, Probe, Target, Unweighted

__all__ = ["DiffusionLoss", "Hessian", "LegacyKL", "Pearson", "Probe", "Target", "Unweighted"]
