"""Attentions step by step: equal to diffusers', gone afterwards, each operand on its grid; every report knows them."""

import pytest
import torch
from diffusers.models.attention_processor import Attention as Original

from qdit.activation import DynamicActivation, StaticActivation
from qdit.attention import UniformAttention
from qdit.calibration import CalibrationData, NoCalibration
from qdit.calibration.observers import operand_values, watching_operands
from qdit.errors import UserError
from qdit.ledger import ledger
from qdit.method import Method, quantize
from qdit.model.base import OPERANDS
from qdit.nn.attention import Attend
from qdit.nn.quantizers import StaticQuantizer
from qdit.nn.replace import put, replaced
from qdit.policies import Policy
from qdit.quant.ranges import MinMax, PercentileMSE
from qdit.quant.time_groups import ALL
from qdit.rounding import GPTQ, Nearest
from qdit.runs.diagnose import Trajectory, layer_report
from qdit.runs.plan import operand_rows
from qdit.scope import Scope
from qdit.search import ILP, Fixed
from qdit.search.budget import MeanGroup
from qdit.setting import Setting
from qdit.transform import ChannelScaling
from qdit.transform.statistics import PerTimestep
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
BLOCK = "transformer_blocks.1"
RUN: dict = {"sampler": None, "dataset": None}  # these searches sample nothing


def points(seed=0, n=6):
    x = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return CalibrationData(x, torch.linspace(0, 999, n).long(), torch.arange(n) % 10, 3)


def uniform(**changes):
    given = {"operands": list(OPERANDS), "grid": "asymmetric_free", "probability_bits": 8, "range": MinMax()}
    return UniformAttention(**given | changes)


def recipe(bits=(16, 8), attention=None, **changes):
    given = {
        "scope": Scope(roles=BLOCKS),
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "activation": StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax()),
        "rounding": Nearest(),
        "calibration": None,
        "attention": attention or uniform(),
    }
    return Method(**given | changes, weight_bits=bits[0], activation_bits=bits[1])


@torch.no_grad()
def output(model, installed=None):
    unseen = points(1)
    if installed is None:
        return model.denoise(unseen.x, unseen.t, unseen.y)
    with installed.installed(model):
        return model.denoise(unseen.x, unseen.t, unseen.y)


def explicit(model, **operands):
    return {a.processor: Attend(**operands) for a in model.attentions()}


def test_without_quantizers_it_is_the_original(tiny_model):
    original = output(tiny_model)
    with replaced(tiny_model.denoiser, explicit(tiny_model)):
        torch.testing.assert_close(output(tiny_model), original, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", [None, "layer_norm"])
def test_masks_other_keys_and_norms_are_the_originals(norm):
    torch.manual_seed(0)
    attention = Original(query_dim=24, cross_attention_dim=20, heads=3, dim_head=8, qk_norm=norm).eval()
    x, other, mask = torch.randn(2, 5, 24), torch.randn(2, 7, 20), torch.zeros(2, 1, 7)
    mask[0, :, 4:] = -1e4
    with torch.no_grad():
        expected = [attention(x, other), attention(x, other, mask), attention(x, other, mask.expand(2, 5, 7)[:, :1])]
        put(attention, {"processor": Attend()})
        found = [attention(x, other), attention(x, other, mask), attention(x, other, mask.expand(2, 5, 7)[:, :1])]
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_full_precision_is_back_even_after_an_error(tiny_model):
    before, modules = output(tiny_model), dict(tiny_model.denoiser.named_modules())
    held = [block.attn1.processor for block in tiny_model.denoiser.transformer_blocks]
    quantized = quantize(tiny_model, recipe((4, 4)), points)
    with quantized.installed(tiny_model):
        assert isinstance(tiny_model.denoiser.transformer_blocks[0].attn1.processor, Attend)
    with pytest.raises(KeyError), quantized.installed(tiny_model):
        raise KeyError
    assert dict(tiny_model.denoiser.named_modules()) == modules
    assert all(b.attn1.processor is p for b, p in zip(tiny_model.denoiser.transformer_blocks, held, strict=True))
    assert "processor" in vars(tiny_model.denoiser.transformer_blocks[0].attn1)
    assert torch.equal(output(tiny_model), before)


def test_facts_of_the_tiny_model(tiny_model):
    first, second = tiny_model.attentions()
    assert (second.name, second.block, second.heads, second.head_dim, second.tokens, second.keys) == (
        *("transformer_blocks.1.attn1", 1),
        *(2, 16, 16, 16),
    )
    assert first.sites["probs"] == "transformer_blocks.0.attn1.probs"
    shapes = {}
    with watching_operands(tiny_model, [first], lambda site, x: shapes.update({site: tuple(x.shape)})):
        output(tiny_model)
    assert shapes == {first.sites[o]: (6, 2, 16, 16) for o in OPERANDS}
    assert first.macs == 2 * 16 * 16 * 16


def test_every_operand_is_on_its_grid_and_the_product_is_the_naive_one(tiny_model):
    quantized = quantize(tiny_model, recipe((16, 4), activation=StaticActivation16()), points)
    modules = quantized.attention[f"{BLOCK}.attn1.processor"]
    attention = tiny_model.denoiser.get_submodule(f"{BLOCK}.attn1")
    x = torch.randn(3, 16, 32)

    def heads(layer):
        return layer(x).view(3, 16, 2, 16).transpose(1, 2)

    with torch.no_grad():
        q, k, v = (
            modules.q(heads(attention.to_q) / 4),
            modules.k(heads(attention.to_k)),
            modules.v(heads(attention.to_v)),
        )
        probs = modules.probs((q @ k.mT).softmax(-1))
        expected = attention.to_out[0]((probs @ v).transpose(1, 2).reshape(3, 16, 32))
        with replaced(tiny_model.denoiser, quantized.attention):
            torch.testing.assert_close(attention(x), expected)
    for operand, bits in (("q", 4), ("k", 4), ("v", 4), ("probs", 8)):
        module, values = getattr(modules, operand), {"q": q, "k": k, "v": v, "probs": probs}[operand]
        assert isinstance(module, StaticQuantizer)
        assert quantized.policy[f"{BLOCK}.attn1.{operand}"].activation == module.spec
        assert len(values.unique()) <= 2**bits
        codes = values / module.scale + module.zero_point
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)


class StaticActivation16(StaticActivation):
    """Linear inputs stay as they are; what is looked at are attentions."""

    needs_ranges = False

    def __init__(self):
        super().__init__(granularity="tensor", grid="asymmetric", range=MinMax())

    def spec(self, bits):
        return super().spec(16)


@pytest.mark.parametrize("rule", [MinMax(), PercentileMSE()], ids=lambda r: type(r).__name__)
def test_golden_13_probabilities_have_zero_point_0_and_a_step_of_255ths(tiny_model, rule):
    with torch.no_grad():  # sharp attention: its greatest probabilities are all but 1
        for block in tiny_model.denoiser.transformer_blocks:
            block.attn1.to_q.weight *= 30
    quantized = quantize(tiny_model, recipe(attention=uniform(range=rule)), points)
    for attend in quantized.attention.values():
        assert attend.probs.zero_point.item() == 0
        assert attend.probs.scale.item() == pytest.approx(1 / 255, rel=1e-3)
        assert (attend.probs.low, attend.probs.high) == (0, 255)
        assert attend.probs(torch.zeros(1, 1, 2, 2)).abs().max() == 0


def test_ranges_are_those_of_the_calibration_data(tiny_model):
    quantized = quantize(tiny_model, recipe(), points)
    sites = {site: ALL for a in tiny_model.attentions() for site in a.sites.values()}
    values = operand_values(tiny_model, tiny_model.attentions(), points(), sites)
    for path, attend in quantized.attention.items():
        for operand in ("q", "k", "v"):
            (found,) = values[path.replace("processor", operand)]
            torch.testing.assert_close(
                getattr(attend, operand).scale.item(), ((found.max() - found.min()) / 255).item()
            )


def test_ranges_are_those_of_the_transformed_basis(tiny_model):
    """The factor of the attention's output is folded into the values, whose range moves with it."""
    scaling = ChannelScaling(name="salience", roles=["attn_out"], alpha=0.5, statistic=PerTimestep())
    plain = quantize(tiny_model, recipe(), points)
    scaled = quantize(tiny_model, recipe(transform=scaling), points)
    path = f"{BLOCK}.attn1.processor"
    torch.testing.assert_close(scaled.attention[path].q.scale, plain.attention[path].q.scale)
    assert not torch.allclose(scaled.attention[path].v.scale, plain.attention[path].v.scale, rtol=1e-2)
    original = output(tiny_model)
    assert (output(tiny_model, scaled) - original).square().mean() < 1e-3 * original.square().mean()


def test_more_bits_are_better_and_each_operand_counts(tiny_model):
    original = output(tiny_model)

    def error(bits, operands=OPERANDS, probability_bits=None):
        part = uniform(operands=list(operands), probability_bits=probability_bits or bits)
        parts = recipe((16, bits), attention=part, activation=StaticActivation16())
        return (output(tiny_model, quantize(tiny_model, parts, points)) - original).square().mean().item()

    errors = [error(bits) for bits in (8, 6, 4)]
    assert 0 < errors[0] < errors[1] < errors[2]
    alone = [error(4, [operand]) for operand in OPERANDS]
    assert min(alone) > 0
    assert max(alone) < errors[2]


def test_batch_mates_do_not_meet(tiny_model):
    quantized = quantize(tiny_model, recipe((16, 8)), points)
    unseen = points(1)
    with quantized.installed(tiny_model), torch.no_grad():
        together = tiny_model.denoise(unseen.x, unseen.t, unseen.y)
        alone = [tiny_model.denoise(unseen.x[i : i + 1], unseen.t[i : i + 1], unseen.y[i : i + 1]) for i in range(6)]
    assert ((together - torch.cat(alone)).abs() < 1e-3).float().mean() > 0.99


def test_half_precision_keeps_its_type(tiny_pipeline):
    from qdit.model.dit import DiT

    model = DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.bfloat16)
    assert output(model, quantize(model, recipe(), points)).dtype == torch.bfloat16


def test_sites_that_are_excluded_and_inputs_of_16_bits_stay(tiny_model):
    scope = Scope(roles=BLOCKS, exclude=["transformer_blocks.0.*"])
    quantized = quantize(tiny_model, recipe(scope=scope), points)
    assert list(quantized.attention) == [f"{BLOCK}.attn1.processor"]
    assert all(site.startswith(BLOCK) for site in quantized.policy)
    assert quantize(tiny_model, recipe((4, 16), calibration=NoCalibration()), points).attention == {}
    only = quantize(tiny_model, recipe(attention=uniform(operands=["probs"])), points)
    attend = only.attention[f"{BLOCK}.attn1.processor"]
    assert (attend.q, attend.k, attend.v) == (None, None, None)
    assert {site.split(".")[-1] for site in only.policy if "attn1" in site} == {"to_q", "to_k", "to_v", "0", "probs"}


def test_the_policy_and_the_ledger_know_the_operands(tiny_model, tmp_path):
    policy = quantize(tiny_model, recipe((8, 6)), points).policy
    policy.save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert policy[f"{BLOCK}.attn1.k"].weight is None
    attentions, sites = tiny_model.attentions(), tiny_model.sites()
    found, full = (ledger(tiny_model.denoiser, sites, p, attentions) for p in (policy, Policy()))
    linear = sum(s.macs * (8 * 6 if s.name in policy else 256) for s in sites)
    assert found.bops == linear + 2 * attentions[0].macs * (6 * 6 + 8 * 6)
    assert full.bops == 256 * (sum(s.macs for s in sites) + 4 * attentions[0].macs)
    without = ledger(tiny_model.denoiser, sites, Policy({k: v for k, v in policy.items() if v.weight}), attentions)
    # A 16-bit scale for each operand of two attentions, and a zero point of its bits for all but the probabilities.
    assert found.model_bytes - without.model_bytes == pytest.approx(2 * (4 * 16 + 3 * 6) / 8, abs=1)
    rows = operand_rows(attentions, policy)
    assert [row[:6] for row in rows[::3]] == [
        ["transformer_blocks.*.attn1.q", "2", "q", "2 × 16 × 16", "", "6 bits tensor asymmetric_free"],
        ["transformer_blocks.*.attn1.probs", "2", "probs", "2 × 16 × 16", "", "8 bits tensor unsigned"],
    ]


def test_operands_are_reported(tiny_model):
    quantized = quantize(tiny_model, recipe((8, 8)), points)
    unseen = points(1)
    rows = layer_report(tiny_model, quantized, Trajectory(unseen.x[None], [500], unseen.x[None], unseen.y))
    assert len(rows) == len(quantized.policy) == 12 + 8
    operands = {(row["role"], row["block"]): row for row in rows if row["role"] in OPERANDS}
    assert operands["probs", 1]["site"] == f"{BLOCK}.attn1.probs"
    assert operands["probs", 1]["weight_bits"] is None
    assert all(20 < row["sqnr"] < 70 for row in operands.values())


def test_gptq_sees_quantized_attentions(tiny_model):
    """The attention's output that the projection's Hessian is made of."""
    coarse = quantize(tiny_model, recipe((3, 2), rounding=GPTQ(), attention=uniform(probability_bits=2)), points)
    fine = quantize(tiny_model, recipe((3, 2), rounding=GPTQ(), attention=uniform(probability_bits=8)), points)
    name = "transformer_blocks.0.attn1.to_out.0"
    assert not torch.equal(coarse.layers[name].weight, fine.layers[name].weight)
    assert torch.equal(
        coarse.layers["transformer_blocks.0.attn1.to_q"].weight, fine.layers[name.replace("to_out.0", "to_q")].weight
    )


def test_a_searched_policy_keeps_its_attentions(tiny_model, tmp_path):
    """Group sizes are searched for linear sites; the file holds the operands too, and other recipes refuse it."""
    groups = {"granularity": "group", "group_size": 16, "grid": "asymmetric"}
    parts = {
        "weight": WeightGrid(**groups, range=MinMax()),
        "activation": DynamicActivation(**groups),
        "search": ILP(budget=MeanGroup(at_least=16), group_sizes=[16, 32]),
    }
    found = quantize(tiny_model, recipe((4, 8), **parts), points, None, Setting(**RUN))
    assert len(found.policy) == 12 + 8
    assert found.attention.keys() == {a.processor for a in tiny_model.attentions()}
    found.policy.save(tmp_path / "policy.yaml")
    fixed = Fixed(policy=str(tmp_path / "policy.yaml"), budget=MeanGroup(at_least=16))
    again = quantize(tiny_model, recipe((4, 8), **parts | {"search": fixed}), points, None, Setting(**RUN))
    assert again.policy == found.policy
    assert torch.equal(output(tiny_model, again), output(tiny_model, found))
    for other in ({"attention": uniform(probability_bits=6)}, {"attention": uniform(grid="symmetric")}):
        (problem,) = recipe((4, 8), **parts | {"search": fixed} | other).problems(tiny_model.sites())
        assert "does not fit: transformer_blocks.0.attn1." in problem
    bare = Policy({site: spec for site, spec in found.policy.items() if spec.weight})
    bare.save(tmp_path / "policy.yaml")
    (problem,) = recipe((4, 8), **parts | {"search": fixed}).problems(tiny_model.sites())
    assert "its attentions are in full precision" in problem


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"operands": ["q", "scores"]}, "operands=.*'scores'.*; allowed: a list of q, k, v, probs"),
        ({"probability_bits": 1}, "bits=1 is not possible"),
        ({"grid": "cubic"}, "grid='cubic'; allowed"),
    ],
)
def test_impossible_values_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        uniform(**wrong)


def test_data_is_asked_for(tiny_model):
    parts = recipe(calibration=NoCalibration(), activation=StaticActivation16())
    (problem,) = parts.problems(tiny_model.sites())
    assert problem.startswith("attention needs data")
