"""PTQ4DiT whole, all its parts at once: golden tests 12, 15 and 16 of its specification."""

from types import SimpleNamespace

import pytest
import torch

from qdit.activation import StaticActivation
from qdit.attention import UniformAttention
from qdit.calibration import CalibrationData
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.ledger import ledger
from qdit.method import Method, quantize
from qdit.model.base import OPERANDS
from qdit.model.dit import list_attentions, list_folds, list_sites
from qdit.policies import Policy
from qdit.quant.ranges import PercentileMSE
from qdit.rounding import Nearest
from qdit.rounding.adaround import AdaRound
from qdit.scope import Scope
from qdit.transform import ChannelScaling
from qdit.transform.statistics import PerTimestep
from qdit.weight import WeightGrid

EVERYTHING = ["qkv", "attn_out", "ffn_up", "ffn_down", "adaln", "embedder", "final"]
MIB = 2**20


def points(seed=0, n=8):
    x = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return CalibrationData(x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11, 4)


def recipe(rounding, bits=(4, 8)):
    grid = {"grid": "asymmetric_free", "range": PercentileMSE()}
    return Method(
        scope=Scope(roles=EVERYTHING),
        transform=ChannelScaling(
            name="salience", roles=["qkv", "attn_out", "ffn_up"], alpha=0.5, statistic=PerTimestep()
        ),
        weight=WeightGrid(granularity="row", **grid),
        activation=StaticActivation(granularity="tensor", **grid),
        attention=UniformAttention(operands=list(OPERANDS), probability_bits=8, **grid),
        rounding=rounding,
        weight_bits=bits[0],
        activation_bits=bits[1],
        calibration=None,
    )


@torch.no_grad()
def output(model, quantized):
    unseen = points(1)
    with quantized.installed(model):
        return model.denoise(unseen.x, unseen.t, unseen.y)


@pytest.fixture
def dit_xl():
    """DiT-XL/2 for 256 pixels without its weights' values."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
    sites, attentions = list_sites(denoiser), list_attentions(denoiser)
    return SimpleNamespace(
        denoiser=denoiser,
        sites=lambda: sites,
        attentions=lambda: attentions,
        folds=lambda: list_folds(sites, attentions),
    )


@pytest.mark.parametrize("rounding", [Nearest(), AdaRound(iterations=4, batch_size=4)])
def test_golden_12_nothing_is_left_in_training_mode_and_calls_repeat(tiny_model, rounding):
    quantized = quantize(tiny_model, recipe(rounding), points)
    assert not tiny_model.denoiser.training
    with quantized.installed(tiny_model):
        assert not any(module.training for module in tiny_model.denoiser.modules())
    first = output(tiny_model, quantized)
    assert torch.equal(first, output(tiny_model, quantized))
    assert first.isfinite().all()
    assert not any(module.training for module in tiny_model.denoiser.modules())


def test_operands_learn_their_steps_with_their_block(tiny_model):
    plain = quantize(tiny_model, recipe(Nearest()), points)
    # Rounding learns enough that no block is worse off and falls back to its calibrated steps.
    learned = quantize(tiny_model, recipe(AdaRound(iterations=40, batch_size=8)), points)
    assert learned.attention.keys() == plain.attention.keys()
    moved = [
        not torch.equal(getattr(attend, operand).scale, getattr(learned.attention[path], operand).scale)
        for path, attend in plain.attention.items()
        for operand in OPERANDS
    ]
    assert all(moved)


def test_golden_15_a_checkpoint_has_the_attentions_and_needs_no_data(tiny_model, tmp_path):
    quantized = quantize(tiny_model, recipe(AdaRound(iterations=3, batch_size=4)), points)
    save(quantized, tmp_path, provenance(tiny_model))
    loaded = load(tmp_path, tiny_model)
    assert loaded.policy == quantized.policy
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, quantized))


def test_golden_16_counts_of_dit_xl(dit_xl):
    """The original's modules: q, k and v are one, and the embedders exist once, where diffusers has one a block."""
    parts = recipe(Nearest())
    policy = parts.with_attention(parts.plan(dit_xl.sites()), dit_xl)
    linear = [site for site in dit_xl.sites() if site.name in policy]
    modules = {(s.role, s.stage, s.block if s.role != "embedder" else s.block is None) for s in linear}
    assert len(linear) == len(dit_xl.sites()) == 9 * 28 + 3
    assert len(modules) == 145
    assert len(policy) - len(linear) == 4 * 28
    assert parts.transform is not None
    assert len(parts.transform.inputs(dit_xl, linear)) == 84
    spent, full = (ledger(dit_xl.denoiser, dit_xl.sites(), p, dit_xl.attentions()) for p in (policy, Policy()))
    assert full.bops / 256 == pytest.approx(118.6e9, rel=0.01)  # the published 118.64 GFLOPs, of multiply-accumulates
    assert spent.bops / full.bops == pytest.approx(4 * 8 / 256, rel=0.05)


@pytest.mark.parametrize(("bits", "size"), [(8, 645.72), (4, 323.79)])
def test_golden_16_sizes_of_dit_xl(dit_xl, bits, size):
    """The paper's accounting: every parameter of the original at the weights' bits, 4 bytes an output channel."""
    copies = sum(p.numel() for n, p in dit_xl.denoiser.named_parameters() if ".emb." in n and ".0.norm1" not in n)
    parameters = sum(p.numel() for p in dit_xl.denoiser.parameters()) - copies + 256 * 1152  # the position table
    kept = [s for s in dit_xl.sites() if s.role != "embedder" or s.block in (None, 0)]
    channels = sum(s.out_features for s in kept)
    assert (parameters, channels) == (675_129_632, 489_632)
    assert parameters * 4 / MIB == pytest.approx(2575.42, abs=0.005)
    assert (parameters * bits / 8 + 4 * channels) / MIB == pytest.approx(size, abs=0.005)
