"""The cost ledger: effective bits, bytes and BitOps of a policy with everything counted.

Published labels such as "W4A4" leave out scales, zero points and the layers that stay in full precision; the ledger
counts them. Storage: codes at their bits; for each row (of `qdit.quant.spec`) a scale of as many bits as it is kept in
(16; 8 in MX formats and NVFP4, which has a float32 a tensor, too) and, where the grid is asymmetric, a zero point of as
many bits as a code (also with `asymmetric_free`, whose zero points are not clamped and may need more); everything else
at 16 bits. A weight whose bits or basis change over time is counted once for each. BitOps: multiply-accumulates of one
forward pass of one sample times the bits of both factors: weight and input (with the bits by which codes are shifted),
queries and keys, probabilities and values (dequantization is not counted). What a transform
does at run time is counted in both: factors and branches at 16 bits per value, signs at one bit, and its
multiplications and additions, each as a multiply-accumulate of 16 x 16 bits. A low-rank branch is part of its layer's
weight, and counts in its mean bits. Bits of inputs are a mean over the multiply-accumulates of all linear layers: an
input's own with its scales, 16 where it is not quantized, and 16 for what a branch multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from qdit.model.base import Attention, Site
from qdit.policies import LayerSpec, Policy
from qdit.quant.scales import SCALES
from qdit.quant.spec import QuantSpec

SCALE_BITS = 16
FULL_BITS = 16


def weight_storage_bits(site: Site, spec: QuantSpec | None) -> int:
    """Bits to store a site's weight with its scales and zero points."""
    numel = site.in_features * site.out_features
    if spec is None:
        return numel * FULL_BITS
    rows = numel // spec.row_length(site.in_features, numel)
    return numel * spec.bits + rows * row_bits(spec) + SCALES[spec.scale].whole_bits


def row_bits(spec: QuantSpec) -> int:
    """Bits of what values of one row have in common: its scale, as it is kept, and its zero point if it has one."""
    return SCALES[spec.scale].bits + (0 if spec.symmetric else spec.bits)


def activation_storage_bits(spec: QuantSpec | None, heads: int = 1, channels: int = 0) -> int:
    """Bits to store a site's calibrated input grids: of each group of timesteps, and of each head where they have own.

    Two regions have a step each, powers of 2 none; exponents of channels, and the numbers of their clusters, take as
    many bits as they need. Dynamic grids store nothing.
    """
    if spec is None or spec.dynamic:
        return 0
    steps = {"two_region": 2, "two_sided": 2, "log2": 0}.get(spec.grid, 1)
    grids = (spec.time_groups or 1) * (heads if spec.granularity == "head" else 1) * (2 if spec.columns else 1)
    own = channels * (spec.shifts or (spec.clusters or 1) - 1).bit_length()
    return grids * ((spec.clusters or 1) * (steps * SCALE_BITS + (0 if spec.symmetric else spec.bits)) + own)


@dataclass(frozen=True)
class RunTime:
    """What is left to do to one input at run time, for the ledger."""

    site: Site
    """The first layer that reads the input; the others share what is done."""
    storage_bits: int
    """Of factors, signs or branches."""
    operations: int
    """Multiplications and additions for one row of the input."""
    weight_bits: int = 0
    """Of `storage_bits`, what holds a part of the site's own weight: a branch."""


@dataclass(frozen=True)
class Ledger:
    """Costs of a model under a policy."""

    weight_bits_quantized: float | None
    """Mean stored bits per weight over the quantized layers, with their branches; None if there are none."""
    weight_bits_used: float | None
    """Mean bits of the codes of quantized weights that a sampling step uses; None if there are none."""
    weight_bits_model: float
    """Mean stored bits a parameter over the whole denoiser."""
    input_bits: float | None
    """Mean bits of an input, with scales and branches, over the multiply-accumulates of linear layers; None without."""
    model_bytes: int
    """Stored size of the denoiser."""
    bops: float
    """BitOps of one forward pass of one sample."""
    quantized_share: float
    """Share of the denoiser's parameters that are quantized weights."""
    run_time_bytes: int
    """Of `model_bytes`: what a transform stores to change inputs, or to add branches, at run time."""
    run_time_bops: float
    """Of `bops`: changing inputs, and branches, at run time."""


def attention_products(attention: Attention, policy: Policy) -> tuple[int, int]:
    """BitOps of an attention's two products, q kᵀ and probs v, for one sample; 16 bits where they are not quantized."""
    none = LayerSpec(weight=None, activation=None)
    bits = {operand: policy.get(site, none).activation_bits for operand, site in attention.sites.items()}
    return attention.macs * bits["q"] * bits["k"], attention.macs * bits["probs"] * bits["v"]


def input_bits(site: Site, spec: QuantSpec | None) -> float:
    """Bits of a value of a site's input, with its share of its row's scale and zero point."""
    if spec is None:
        return FULL_BITS
    values = site.tokens * site.in_features
    length = values if spec.granularity == "tensor" else spec.row_length(site.in_features, values)
    if spec.columns:  # a row is two
        length /= 2
    return spec.bits + (row_bits(spec) / length if spec.dynamic else 0)


def mean_input_bits(sites: Sequence[Site], policy: Policy, run_time: Sequence[RunTime]) -> float | None:
    """Mean bits of the inputs of linear layers over their multiply-accumulates, those of branches included."""
    none = LayerSpec(weight=None, activation=None)
    shares = [(site.macs, input_bits(site, policy.get(site.name, none).activation)) for site in sites]
    shares += [(left.site.tokens * left.operations, FULL_BITS) for left in run_time if left.weight_bits]
    total = sum(macs for macs, _ in shares)
    return sum(macs * bits for macs, bits in shares) / total if total else None


def ledger(
    denoiser: nn.Module | int,
    sites: Sequence[Site],
    policy: Policy,
    attentions: Sequence[Attention] = (),
    run_time: Sequence[RunTime] = (),
    turns: int = 1,
) -> Ledger:
    """The ledger of `policy` on a denoiser.

    Args:
        denoiser: in full precision, or how many parameters it has.
        sites, attentions: the model's, all of them.
        policy: how they are quantized.
        run_time: what a transform leaves to be done at run time.
        turns: how many networks there are, of which each pass runs one; BitOps are the mean of theirs.
    """
    none = LayerSpec(weight=None, activation=None)
    parameters = denoiser if isinstance(denoiser, int) else sum(p.numel() for p in denoiser.parameters())
    quantized = [s for s in sites if any(policy.get(s.name, none).weights)]
    quantized_numel = sum(s.in_features * s.out_features for s in quantized)
    quantized_bits = sum(weight_storage_bits(s, spec) for s in quantized for spec in policy[s.name].weights)
    used_bits = sum(s.in_features * s.out_features * policy[s.name].weight_bits for s in quantized)
    channels = {site.name: site.in_features for site in sites}
    heads = {name: attention.heads for attention in attentions for name in attention.sites.values()}
    grids = sum(
        activation_storage_bits(layer.activation, heads.get(name, 1), channels.get(name, 0)) * layer.bases
        for name, layer in policy.items()
    )
    full = [s for s in sites if not any(policy.get(s.name, none).weights)]
    again = sum(s.in_features * s.out_features * (policy.get(s.name, none).bases - 1) for s in full) * FULL_BITS
    names = {site.name for site in quantized}
    branches = sum(left.weight_bits for left in run_time if left.site.name in names)
    changes = sum(left.storage_bits for left in run_time)
    total = quantized_bits + grids + changes + again + (parameters - quantized_numel) * FULL_BITS
    bops = float(sum(sum(attention_products(attention, policy)) for attention in attentions))
    for site in sites:
        layer = policy.get(site.name, none)
        bops += site.macs * layer.weight_bits * layer.operand_bits
    changing = float(sum(left.site.tokens * left.operations for left in run_time)) * FULL_BITS**2
    return Ledger(
        weight_bits_quantized=(quantized_bits + branches) / quantized_numel if quantized_numel else None,
        weight_bits_used=used_bits / quantized_numel if quantized_numel else None,
        weight_bits_model=total / parameters,
        input_bits=mean_input_bits(sites, policy, run_time),
        model_bytes=total // 8,
        bops=(bops + changing) / turns,
        quantized_share=quantized_numel / parameters,
        run_time_bytes=changes // 8,
        run_time_bops=changing / turns,
    )
