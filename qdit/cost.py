"""The cost ledger: effective bits, bytes and BitOps of a policy with everything counted.

Published labels such as "W4A4" leave out scales, zero points and the layers that stay in full precision; the ledger
does not. Storage: codes at their bits, a 16-bit scale a row, a zero point of the code's bits a row where the grid is
asymmetric, everything else at 16 bits. BitOps: multiply-accumulates of one forward pass of one sample times weight
bits times activation bits, with the attention products at 16 x 16 (no dequantization is counted).
"""

from dataclasses import dataclass

from torch import nn

from qdit.model.base import Site
from qdit.policy import LayerSpec, Policy
from qdit.quant.spec import QuantSpec

SCALE_BITS = 16
FULL_BITS = 16


def weight_storage_bits(site: Site, spec: QuantSpec | None) -> int:
    """Bits to store a site's weight with its scales and zero points."""
    numel = site.in_features * site.out_features
    if spec is None:
        return numel * FULL_BITS
    rows = numel // spec.row_length(site.in_features, numel)
    return numel * spec.bits + rows * (SCALE_BITS + (0 if spec.symmetric else spec.bits))


def activation_storage_bits(spec: QuantSpec | None) -> int:
    """Bits to store a site's calibrated input grid; dynamic grids store nothing."""
    if spec is None or spec.dynamic:
        return 0
    return SCALE_BITS + (0 if spec.symmetric else spec.bits)


@dataclass(frozen=True)
class Ledger:
    """Costs of a model under a policy."""

    weight_bits_quantized: float | None
    """Mean stored bits a weight over the quantized layers; None if there are none."""
    weight_bits_model: float
    """Mean stored bits a parameter over the whole denoiser."""
    model_bytes: int
    """Stored size of the denoiser."""
    bops: float
    """BitOps of one forward pass of one sample."""
    quantized_share: float
    """Share of the denoiser's parameters that are quantized weights."""


def ledger(denoiser: nn.Module, sites: list[Site], policy: Policy) -> Ledger:
    """The ledger of `policy` on a denoiser with the given sites."""
    none = LayerSpec(weight=None, activation=None)
    parameters = sum(p.numel() for p in denoiser.parameters())
    quantized = [s for s in sites if policy.get(s.name, none).weight is not None]
    quantized_numel = sum(s.in_features * s.out_features for s in quantized)
    quantized_bits = sum(weight_storage_bits(s, policy[s.name].weight) for s in quantized)
    grids = sum(activation_storage_bits(layer.activation) for layer in policy.values())
    total = quantized_bits + grids + (parameters - quantized_numel) * FULL_BITS
    bops = 0.0
    for site in sites:
        layer = policy.get(site.name, none)
        bops += site.macs * layer.weight_bits * layer.activation_bits
        if site.role == "attn_out":  # q k^T and p v of the block: tokens^2 x width each
            bops += 2 * site.tokens**2 * site.in_features * FULL_BITS * FULL_BITS
    return Ledger(
        weight_bits_quantized=quantized_bits / quantized_numel if quantized_numel else None,
        weight_bits_model=total / parameters,
        model_bytes=total // 8,
        bops=bops,
        quantized_share=quantized_numel / parameters,
    )
