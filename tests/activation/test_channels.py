"""A power of two a channel: the golden example of its dossier, what it must be at least, and a recipe that has it."""

from dataclasses import replace

import pytest
import torch
from helpers import text_models
from helpers.configs import config
from helpers.timed import DOWN, UP, error, output, points, recipe, static

from qdit.activation import ChannelShift, EqualGroups, SidedInputs
from qdit.activation.channels import channel_shifts, rounded_by_channel
from qdit.calibration import CalibrationData
from qdit.calibration.observers import input_values
from qdit.calibration.reservoir import Sampled, ValueReservoir
from qdit.errors import UserError
from qdit.ledger import activation_storage_bits, ledger
from qdit.method import quantize
from qdit.nn.clock import Clock
from qdit.nn.quantizers import ChannelQuantizer, StaticQuantizer
from qdit.quant.affine import affine, nearest
from qdit.quant.ranges import MinMax, Percentile
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import ALL
from qdit.runs.parts import build_recipe
from qdit.transform import Trial

X = torch.tensor([[-0.1, -0.5, -2, -4], [0.05, 0.25, 0.9, 3], [0.1, 0.6, 2.5, 4], [-0.02, -0.3, -1.1, 1]])


def shifted(**changes):
    return ChannelShift(**{"granularity": "tensor", "grid": "asymmetric", "range": MinMax()} | changes)


def rounder(bits, shifts=3, values=X):
    part = shifted(shifts=shifts)
    spec = part.at("qkv", part.spec(bits))
    known = Sampled(values.T, torch.ones(len(values)), values.flatten()) if shifts else values.flatten()
    return part.quantizer(spec, [known], ALL, Clock())


@pytest.mark.parametrize(("bits", "s", "z"), [(8, 0.00392157, 128), (4, 0.0666667, 8)])
def test_golden_exponents_and_numbers(bits, s, z):
    module = rounder(bits)
    assert isinstance(module, ChannelQuantizer)
    assert module.shifts.tolist() == [[0, 1, 3, 3]]
    assert module.numbers[0].tolist() == pytest.approx([s, z], rel=1e-6)


def test_golden_columns_at_4_bits_and_errors():
    made = rounder(4)(X)
    expected = torch.tensor([[-0.133333, 0.066667, 0.133333, 0], [-2.133333, 1.066667, 2.666667, -1.066667]])
    torch.testing.assert_close(made.T[[0, 2]], expected, atol=2e-6, rtol=0)
    errors = [(module(X) - X).square().mean().item() for module in (rounder(4), rounder(4, 0))]
    assert errors == pytest.approx([0.0169347, 0.0254069], rel=1e-5)


def test_more_exponents_are_never_worse_and_none_are_the_tensors_grid():
    values = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 0.3, 1, 2, 5, 9])
    errors = [(rounder(4, k, values)(values) - values).square().mean().item() for k in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert isinstance(rounder(4, 0, values), StaticQuantizer)
    spec = QuantSpec(bits=4, granularity="tensor", dynamic=False)
    widest = affine(values.amin().view(1, 1), values.amax().view(1, 1), spec)
    assert channel_shifts(values.T, widest, 0)[1].tolist() == [0] * 6
    same = channel_shifts(values[:, 2].expand(5, -1), widest, 3)[1]
    assert len(same.unique()) == 1


@pytest.mark.parametrize("tails", ["short", "long"])
def test_exponents_of_a_sample_do_nearly_as_well_as_those_of_all_values(tails):
    """A hundred values of each channel, and its extremes: neither do these rule, nor is all beyond the sample cut."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(64, 16384, generator=random)
    if tails == "long":
        values *= torch.rand(64, 16384, generator=random).clamp(min=1e-6).log().neg().sqrt()  # Laplace's
    values *= 2 ** (4 * torch.rand(64, 1, generator=random))
    reservoir = ValueReservoir(size=64 * 128, rows=64)
    reservoir.add(values)
    known = reservoir.sampled()
    assert known.values.shape[1] < 150
    assert known.weights.sum().item() == pytest.approx(16384)
    fair = torch.cat(reservoir.kept, 1)
    worst = {}
    for bits in (4, 6, 8):
        widest = affine(*(end.view(1, 1) for end in values.aminmax()), shifted().spec(bits))

        def error(*given, widest=widest):
            base, alpha = channel_shifts(given[0], widest, 3, *given[1:])
            steps = (base * 2.0**alpha).unsqueeze(1)
            made = nearest(values, steps, widest.zero_point, widest.low, widest.high)
            return (made - values).square().sum().item()

        every = error(values)
        found = {"weighed": error(*known[:2]), "extremes": error(reservoir.values()), "fair": error(fair)}
        worst = {key: max(worst.get(key, 0.0), value / every) for key, value in found.items()}
    assert worst["weighed"] < 1.3
    assert worst["extremes"] > 1.4  # as if a value of the sample stood for no more of them than an extreme does
    assert worst["fair"] > 1.2  # as if nothing lay beyond the sample


def test_ranges_of_rules_see_extremes_of_the_whole_input_alone():
    """Of a thousand channels with few values each, the extremes would be a share that a quantile does not cut."""
    reservoir = ValueReservoir(size=4 * 1000, rows=1000)
    reservoir.add(torch.randn(1000, 2048, generator=torch.Generator().manual_seed(0)))
    known = reservoir.sampled()
    part = shifted(range=Percentile(p=0.99))
    module = part.quantizer(part.at("qkv", part.spec(4)), [known], ALL, Clock())
    span = module.numbers[0, 0].item() * 8 * 15
    assert span == pytest.approx(2 * 2.326, rel=0.1)
    assert known.flat.aminmax() == known.values.aminmax()


def test_matrices_are_rounded_as_inputs_with_just_their_values_are(tiny_model):
    x = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 32)
    spec = shifted().spec(4)
    for one, made in zip(x, rounded_by_channel(x, spec, 3), strict=True):
        assert torch.equal(made, rounder(4, 3, one)(one))
    trial = Trial(recipe(shifted(), bits=(8, 4)))
    sites = {site.role: site for site in tiny_model.sites()}
    assert torch.equal(trial.input(sites["ffn_up"], x), rounded_by_channel(x, spec, 3))
    assert torch.equal(trial.input(sites["attn_out"], x[0]), rounder(4, 0, x[0])(x[0]))


def test_inputs_behind_layer_norms_have_exponents_and_no_shift_is_static_bit_for_bit(tiny_model):
    made = quantize(tiny_model, recipe(shifted(), bits=(8, 6)), points)
    kinds = {s.role: type(_of(made, s.name)) for s in tiny_model.sites() if s.name in made.layers}
    assert kinds == {"qkv": ChannelQuantizer, "ffn_up": ChannelQuantizer} | dict.fromkeys(
        ("attn_out", "ffn_down"), StaticQuantizer
    )
    plain = quantize(tiny_model, recipe(static(), bits=(8, 6)), points)
    none = quantize(tiny_model, recipe(shifted(shifts=0), bits=(8, 6)), points)
    assert none.policy == plain.policy
    assert torch.equal(output(tiny_model, none), output(tiny_model, plain))
    assert error(tiny_model, made) > 0


def _of(made, name):
    quantizer = made.layers[name].quantizer
    return getattr(quantizer, "quantizer", quantizer)


def test_it_is_better_than_one_scale_where_channels_differ(tiny_model):
    for block in tiny_model.denoiser.transformer_blocks:
        with torch.no_grad():
            block.norm1.linear.weight[32:64].mul_(torch.logspace(-2, 1, 32).view(-1, 1))
            block.norm1.linear.bias[32:64].sub_(0.95)
    (site,) = [s for s in tiny_model.sites() if s.name == "transformer_blocks.1.attn1.to_q"]
    errors = []
    for part in (static(), shifted()):
        module = _of(quantize(tiny_model, recipe(part, bits=(16, 4)), points), site.name)
        (known,) = input_values(tiny_model, [site], points(), by_channel=[site.name])[site.name]
        errors.append((module(known.values.T) - known.values.T).square().mean())
    assert errors[1] < 0.7 * errors[0]


def test_groups_of_timesteps_have_exponents_of_their_own(tiny_model):
    made = quantize(tiny_model, recipe(shifted(time=EqualGroups(groups=2)), bits=(16, 4)), points)
    module, data = _of(made, UP), points()
    assert module.shifts.shape == (2, 32)
    parts = [data.t < module.edges[0], data.t >= module.edges[0]]
    for group, mine in enumerate(parts):
        own = CalibrationData(data.x[mine], data.t[mine], data.y[mine], 3, visited=data.visited)
        alone = _of(quantize(tiny_model, recipe(shifted(), bits=(16, 4)), lambda own=own: own), UP)
        assert torch.equal(alone.shifts[0], module.shifts[group])
        torch.testing.assert_close(alone.numbers[0], module.numbers[group])
        x = torch.randn(3, 5, 32)
        with tiny_model.clock.showing(own.t[:1].repeat(3)):
            torch.testing.assert_close(module(x), alone(x))


def test_the_ledger_counts_shifted_operands_and_exponents(tiny_model):
    spec = QuantSpec(bits=4, granularity="tensor", grid="channel_shift", dynamic=False, shifts=3)
    assert activation_storage_bits(spec, channels=32) == 16 + 4 + 2 * 32
    assert activation_storage_bits(replace(spec, time_groups=2), channels=32) == 2 * (16 + 4 + 2 * 32)
    symmetric = shifted(grid="symmetric").at("qkv", shifted(grid="symmetric").spec(4))
    assert activation_storage_bits(symmetric, channels=32) == 16 + 2 * 32
    sites = tiny_model.sites()
    own, plain = (
        ledger(1_000_000, sites, quantize(tiny_model, recipe(part, bits=(8, 4)), points).policy)
        for part in (shifted(), static())
    )
    wide = sum(s.macs for s in sites if s.role in ("qkv", "ffn_up"))
    assert own.bops - plain.bops == wide * 8 * 3


def test_mistakes_are_named(tiny_model):
    with pytest.raises(UserError, match="shifts=-1"):
        shifted(shifts=-1)
    with pytest.raises(UserError, match="goes with grid 'channel_shift' alone"):
        QuantSpec(bits=4, shifts=2)
    with pytest.raises(UserError, match="base='symmetric': one of asymmetric,"):
        QuantSpec(bits=4, base="symmetric")
    made = build_recipe(config("quantizer=fq_vit", "calibration=none"))
    assert made is not None
    assert "activation and attention needs data" in made.problems(tiny_model.sites())[0]


def test_two_regions_come_first(tiny_model):
    part = shifted(regions=SidedInputs(roles=["ffn_down"]), shifted=["qkv", "ffn_down"])
    made = quantize(tiny_model, recipe(part, bits=(8, 8)), points)
    assert made.policy[DOWN].activation.grid == "two_sided"


def test_rows_behind_a_prompts_end_are_left_out_and_channels_stay_channels(tmp_path):
    """The mask is over tokens, whatever is told apart."""
    model = text_models.load("pixart_sigma", tmp_path)
    data = text_models.points(model, 6)
    site = next(site for site in model.sites() if site.role == "cross_kv")
    [(apart, weights, together)] = input_values(model, [site], data, by_channel={site.name})[site.name]
    [flat] = input_values(model, [site], data)[site.name]
    assert apart.shape[0] == site.in_features
    assert apart.shape[1] == weights.sum() == sum(text_models.LENGTHS[prompt] for prompt in data.y.tolist())
    assert torch.equal(apart.flatten().sort().values, flat.sort().values)
    assert torch.equal(together.sort().values, flat.sort().values)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "activation=channel_shift activation/range=hessian",
            "range=hessian tries no steps of activation=channel_shift",
        ),
        (
            "quantizer=fq_vit repair=bias repair.inputs=quantized transform=timestep_aware",
            "network for each range of timesteps apart",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(words, said, tiny_model):
    problems = build_recipe(config(*f"quantizer=rtn {words}".split()[-len(words.split()) :])).problems(
        tiny_model.sites()
    )
    assert said in " ".join(problems)


def test_unknown_roles_are_refused():
    with pytest.raises(UserError, match=r"activation.shifted has roles nonsense; choose from"):
        shifted(shifted=["nonsense"])
