"""α fixed, and by output error an input at a time, alone and with a rotation behind it that is a choice, too."""

import pytest
import torch
from helpers.rewriting import (
    BLOCKS,
    EVERYTHING,
    assert_same,
    calibration,
    output,
    recipe,
    unable_to_fold,
)

from qdit.activation import StaticActivation
from qdit.calibration.observers import input_maxima
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.basis import Rotation
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ
from qdit.transform import (
    Chain,
    ChannelScaling,
    FixedAlpha,
    GridAlpha,
    Hadamard,
    SelectiveHadamard,
    Trial,
    rewritten,
)
from qdit.transform.alpha import factors
from qdit.transform.inputs import sample_rows
from qdit.transform.scaling import weight_salience
from qdit.transform.statistics import FirstTimestep, Maximum
from qdit.transform.timestep_aware import TimestepAware
from qdit.transform.trial import OutputError, unchanged

ROWS = 40
GRID = GridAlpha(steps=10, rows=ROWS)
ALPHAS = [step / 10 for step in range(11)]


def smooth(alpha=GRID, roles=BLOCKS):
    return ChannelScaling(name="smooth", roles=roles, alpha=alpha, statistic=Maximum())


def rotation(kind=Hadamard, roles=BLOCKS, **changes):
    return kind(name="hadamard", roles=roles, block=None, seed=0, **changes)


def chained(kind=SelectiveHadamard, alpha=GRID, roles=BLOCKS):
    rows = {"rows": ROWS} if kind is SelectiveHadamard else {}
    return Chain(name="chain", steps={"smooth": smooth(alpha, roles), "hadamard": rotation(kind, roles, **rows)})


MAKE = {"grid": smooth, "behind a rotation": lambda **k: chained(Hadamard, **k), "balanced": chained}


def trial(bits=(4, 4), **changes):
    return Trial(recipe(bits, **changes))


def saliences(model, transform):
    """Maxima of inputs and of weights, by the name of the input."""
    inputs, found = transform.inputs(model, model.sites()), {}

    def see(site, maxima, _):
        found[site.name] = torch.maximum(found.get(site.name, torch.zeros(1)), maxima.amax(0))

    input_maxima(model, [each.quantized[0] for each in inputs], calibration(), see)
    return {each.name: (found[each.name], weight_salience(model, each)) for each in inputs}


def errors(model, transform, bits=(4, 4), turn=None):
    """By input: the output error of no scaling and of each α, one at a time."""
    inputs = transform.inputs(model, model.sites())
    rows, found = sample_rows(model, inputs, calibration(), ROWS, 0), {}
    for each in inputs:
        pair, made = saliences_of(model, transform)[each.name], trial(bits)
        if turn is not None:
            made = made.before({site.name: (turn.turn(model, each),) for site in each.quantized})
        error = OutputError(made, model, each, rows[each.name])
        tried = [torch.ones(each.channels), *(factors(*pair, alpha) for alpha in ALPHAS)]
        found[each.name] = torch.stack([error(r[None])[0] for r in tried])
    return found


_KNOWN = {}


def saliences_of(model, transform):
    key = id(model)
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = saliences(model, transform)
    return _KNOWN[key]


@pytest.fixture
def uneven(tiny_model):
    """A model whose inputs have large channels, and not the same ones everywhere."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for block in tiny_model.denoiser.transformer_blocks:
            for start in (32, 128):  # of the scales of both modulations
                block.norm1.linear.bias[start : start + 32] += 20 * torch.rand(32, generator=generator) ** 6
            block.attn1.to_v.weight[::5] *= 6
    return tiny_model


def test_a_fixed_alpha_is_a_number_and_the_paper_formula_bit_for_bit(uneven):
    number, rule = smooth(0.3), smooth(FixedAlpha(value=0.3))
    found = [t.measure(uneven, uneven.sites(), calibration, trial()) for t in (number, rule)]
    expected = {name: factors(*pair, 0.3) for name, pair in saliences(uneven, number).items()}
    assert found[0].keys() == found[1].keys() == expected.keys()
    for name, r in expected.items():
        assert torch.equal(found[0][name], r)
        assert torch.equal(found[1][name], r)


def test_golden_a_half_gives_both_sides_the_same_maxima_and_conventions_are_complements(uneven):
    """specs: SmoothQuant's one-line test; ViDiT-Q's golden test 3."""
    for activation, weight in saliences(uneven, smooth(0.5)).values():
        r = factors(activation, weight, 0.5)
        torch.testing.assert_close(activation / r, weight * r)
        torch.testing.assert_close(weight * r, (activation * weight).sqrt())
        mask = weight**0.7 / activation**0.3  # ViDiT-Q's of 0.7 is multiplied with x
        torch.testing.assert_close(mask, 1 / factors(activation, weight, 0.3))
        twice = factors(2 * activation, weight, 0.0)
        assert torch.equal(twice, factors(activation, weight, 0.0))


@pytest.mark.parametrize("bits", [(4, 4), (3, 8), (8, 16)])
def test_the_grid_takes_the_best_of_a_loop_and_says_which(uneven, bits):
    found = smooth().measure(uneven, uneven.sites(), calibration, trial(bits))
    expected = errors(uneven, smooth(), bits)
    for name, tried in expected.items():
        best = int(tried.argmin())
        alpha = found.get(f"alpha/{name}")
        assert (None if alpha is None else alpha.item()) == (ALPHAS[best - 1] if best else None)
        pair = saliences_of(uneven, smooth())[name]
        assert torch.equal(found[name], factors(*pair, ALPHAS[best - 1]) if best else torch.ones_like(pair[0]))
    assert found.keys() - expected.keys() <= {f"alpha/{name}" for name in expected}


def test_the_grid_is_never_worse_than_any_fixed_alpha_by_its_own_measure(uneven):
    total = {}
    sites = uneven.sites()
    for alpha in (GRID, 0.0, 0.3, 0.5, 0.8, 1.0):
        found = smooth(alpha).measure(uneven, sites, calibration, trial())
        inputs = smooth().inputs(uneven, sites)
        rows = sample_rows(uneven, inputs, calibration(), ROWS, 0)
        total[alpha] = {e.name: OutputError(trial(), uneven, e, rows[e.name])(found[e.name][None]) for e in inputs}
    for alpha, error in total.items():
        assert all(total[GRID][name] <= error[name] for name in error), alpha
    assert sum(total[GRID].values()) < sum(total[0.5].values())


def test_behind_a_rotation_the_error_is_that_behind_it(uneven):
    found = chained(Hadamard).measure(uneven, uneven.sites(), calibration, trial())
    alone = smooth().measure(uneven, uneven.sites(), calibration, trial())
    expected = errors(uneven, smooth(), turn=rotation())
    for name, tried in expected.items():
        best = int(tried.argmin())
        alpha = found.get(f"smooth/alpha/{name}")
        assert (None if alpha is None else alpha.item()) == (ALPHAS[best - 1] if best else None)
    assert any(not torch.equal(found[f"smooth/{name}"], alone[name]) for name in expected)


def test_scaling_and_rotation_are_chosen_together(uneven):
    found = chained().measure(uneven, uneven.sites(), calibration, trial())
    plain, turned = errors(uneven, smooth()), errors(uneven, smooth(), turn=rotation())
    for name in plain:
        both = torch.stack([plain[name], turned[name]])  # the first of equals is that without a rotation
        assert found[f"hadamard/{name}"].item() == int(both.amin(1).argmin())
        best = int(both.amin(0).argmin())
        alpha = found.get(f"smooth/alpha/{name}")
        assert (None if alpha is None else alpha.item()) == (ALPHAS[best - 1] if best else None)
    assert {found[f"hadamard/{name}"].item() for name in plain} == {0, 1}


def test_full_precision_is_neither_scaled_nor_rotated(uneven):
    found = chained().measure(uneven, uneven.sites(), calibration, trial((16, 16)))
    assert not any("/alpha/" in key for key in found)
    rewrite = chained().rewrite(uneven, uneven.sites(), found)
    assert rewrite.inputs == {}
    for name, layer in rewrite.layers.items():
        assert torch.equal(layer.weight, uneven.denoiser.get_submodule(name).weight)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("roles", [BLOCKS, EVERYTHING], ids=["blocks", "everything"])
def test_folded_and_unfolded_and_original_networks_are_equal(tiny_model, monkeypatch, make, roles):
    transform, sites, original = make(roles=roles), tiny_model.sites(), output(tiny_model)
    folded = rewritten(transform, tiny_model, sites, calibration, trial(), None)
    assert_same(output(tiny_model, folded), original)
    unfolded = rewritten(transform, unable_to_fold(tiny_model, monkeypatch), sites, calibration, trial(), None)
    assert_same(output(tiny_model, unfolded), original)


def test_only_what_was_chosen_is_done_at_run_time(uneven):
    sites, name, other = uneven.sites(), "transformer_blocks.0.ff.net.2", "transformer_blocks.1.ff.net.2"
    chain, measured = chained(roles=["ffn_down"]), {}
    measured = {f"smooth/{n}": torch.full((128,), f) for n, f in ((name, 1.0), (other, 2.0))}
    measured |= {f"hadamard/{n}": torch.tensor(r, dtype=torch.int8) for n, r in ((name, 1), (other, 0))}
    rewrite = chain.rewrite(uneven, sites, measured)
    assert type(rewrite.inputs[name]) is Rotation
    assert type(rewrite.inputs[other]).__name__ == "Scale"
    assert rewrite.layers.keys() == {name, other}
    assert_same(output(uneven, rewrite), output(uneven))


def test_readers_that_share_an_input_share_its_factor(uneven):
    found = chained().measure(uneven, uneven.sites(), calibration, trial())
    names = {key.rpartition("/")[2] for key in found}
    assert not any(name.endswith(("to_k", "to_v")) for name in names)
    rewrite = chained().rewrite(uneven, uneven.sites(), found)
    for block in range(2):
        changes = [rewrite.inputs.get(f"transformer_blocks.{block}.attn1.to_{n}") for n in "qkv"]
        assert all(change is changes[0] for change in changes)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_checkpoint_and_a_resumed_fit_need_no_data(uneven, tmp_path, make):
    static = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
    parts = recipe((4, 4), transform=make())
    quantized = quantize(uneven, parts, calibration, tmp_path)
    expected = output(uneven, quantized)
    save(quantized, tmp_path / "saved", provenance(uneven))
    torch.manual_seed(987)
    assert torch.equal(output(uneven, load(tmp_path / "saved", uneven)), expected)
    again = quantize(uneven, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert torch.equal(output(uneven, again), expected)
    other = quantize(uneven, recipe((4, 4), transform=make(), activation=static), calibration)
    assert not torch.equal(output(uneven, other), expected)


def test_outputs_of_the_whole_network_are_closer(uneven):
    def error(transform, **changes):
        quantized = quantize(uneven, recipe((4, 6), transform=transform, **changes), calibration)
        return (output(uneven, quantized) - output(uneven)).square().mean().item()

    found = {name: error(make()) for name, make in MAKE.items()}
    assert max(found.values()) < error(None)
    assert found["balanced"] < error(chained(Hadamard, 0.4335))
    assert error(chained(), rounding=GPTQ()) < error(None)


def test_a_basis_for_each_range_of_timesteps_may_choose_otherwise(uneven):
    transform = TimestepAware(name="by_range", ranges=2, each=chained())
    quantized = quantize(uneven, recipe((6, 6), transform=transform), calibration)
    assert_same(output(uneven, quantized.rewrite), output(uneven))
    exact = output(uneven)
    assert (output(uneven, quantized) - exact).square().mean() < 0.1 * exact.square().mean()


def test_the_first_timestep_is_the_noisiest():
    gathering = FirstTimestep().start(torch.ones(2))
    gathering.add(torch.tensor([[1.0, 9], [5, 2], [3, 4]]), torch.tensor([10, 990, 990]))
    gathering.add(torch.tensor([[8.0, 8]]), torch.tensor([500]))
    assert gathering.value().tolist() == [5, 4]


@pytest.mark.parametrize("alpha", [1.5, -0.1, "much", True, float("nan")])
def test_what_is_no_share_is_refused(alpha):
    with pytest.raises(UserError, match="ChannelScaling.alpha=.*; allowed: a number from 0 to 1"):
        smooth(alpha)


def test_grids_and_samples_that_cannot_be_are_refused():
    for make in (lambda: GridAlpha(steps=0), lambda: GridAlpha(rows=0)):
        with pytest.raises(UserError, match="GridAlpha.(steps|rows)=0; allowed: a whole number of at least 1"):
            make()
    with pytest.raises(UserError, match="SelectiveHadamard.rows=0; allowed: a whole number of at least 1"):
        rotation(SelectiveHadamard, rows=0)
    assert GridAlpha(steps=10, rows=ROWS) == GRID
    assert unchanged(3) == 3
