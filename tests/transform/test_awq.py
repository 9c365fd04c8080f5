"""AWQ: the one-line tests of the dossier, a naive search, exactness, and its recipe."""

import pytest
import torch
from helpers.configs import config as composed
from helpers.rewriting import (
    BLOCKS,
    EVERYTHING,
    assert_same,
    calibration,
    output,
    recipe,
    unable_to_fold,
)

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.config import check
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.patches import matrix
from qdit.quant.ranges import MinMax
from qdit.runs.parts import build_recipe
from qdit.transform import ActivationAware, Trial, rewritten
from qdit.transform.awq import candidates
from qdit.transform.inputs import sample_rows, watch_rows
from qdit.weight import WeightGrid

ROWS = 40
GROUPS = WeightGrid(granularity="group", grid="asymmetric", range=MinMax(), group_size=8)


def awq(roles=BLOCKS, steps=20):
    return ActivationAware(name="awq", roles=roles, steps=steps, rows=ROWS)


def trial(bits=(4, 16)):
    return Trial(recipe(bits, weight=GROUPS))


@pytest.fixture
def uneven(tiny_model):
    """A few channels of the inputs are large."""
    with torch.no_grad():
        for block in tiny_model.denoiser.transformer_blocks:
            block.norm1.linear.bias[32:64:9] += 15
            block.norm1.linear.bias[128:160:9] += 15
    return tiny_model


def naive(model, read, x, mean, steps=20):
    """The factor and the errors of all exponents, one at a time (llm-awq's loop)."""
    found = []
    for step in range(steps):
        s = mean.clamp(min=1e-4) ** (step / steps)
        s = s / (s.max() * s.min()).sqrt()
        error = 0.0
        for site in read.quantized:
            weight = matrix(model.denoiser.get_submodule(site.name)).float()
            rounded = trial().weight(site, weight * s) / s
            error += (x @ rounded.T - x @ weight.T).double().square().sum().item()
        found.append((error, s))
    return found


def means(model, transform):
    seen = {}
    watch_rows(
        model, transform.inputs(model, model.sites()), calibration(), lambda r, x: seen.setdefault(r.name, []).append(x)
    )
    return {name: torch.cat(rows).abs().mean(0) for name, rows in seen.items()}


def test_the_search_is_that_of_a_loop_and_never_worse_than_rounding_to_nearest(uneven):
    transform, sites = awq(), uneven.sites()
    found, mean = transform.measure(uneven, sites, calibration, trial()), means(uneven, transform)
    rows = sample_rows(uneven, transform.inputs(uneven, sites), calibration(), ROWS, 0)
    scaled = 0
    for read in transform.inputs(uneven, sites):
        tried = naive(uneven, read, rows[read.name], mean[read.name])
        errors = [error for error, _ in tried]
        (best,) = [e for e, s in tried if torch.allclose(s, found[read.name], rtol=1e-4)]
        assert best <= min(errors) * 1.0001
        assert best <= errors[0]  # the exponent 0 is round to nearest
        scaled += best < errors[0]
    assert scaled > 2


def test_no_exponent_is_round_to_nearest(uneven):
    plain = quantize(uneven, recipe((4, 16), weight=GROUPS, transform=None), calibration)
    first = quantize(uneven, recipe((4, 16), weight=GROUPS, transform=awq(steps=1)), calibration)
    assert first.rewrite.inputs == {}
    assert torch.equal(output(uneven, first), output(uneven, plain))


def test_factors_are_normalised_and_small_means_are_raised():
    s = candidates(torch.tensor([0.0, 1e-4, 1.0, 100.0]), 20)
    assert s.shape == (20, 4)
    assert s[0].tolist() == [1] * 4
    torch.testing.assert_close(s.amax(1) * s.amin(1), torch.ones(20))
    assert torch.equal(s[:, 0], s[:, 1])
    assert (s[1:].diff(dim=1)[:, 1:] > 0).all()
    torch.testing.assert_close(s[10], torch.tensor([1e-2, 1e-2, 1.0, 10.0]) / 0.1**0.5)


def test_only_weights_are_rounded_in_the_search(uneven):
    found = [awq().measure(uneven, uneven.sites(), calibration, trial(bits)) for bits in ((4, 16), (4, 3))]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("roles", [BLOCKS, EVERYTHING], ids=["blocks", "everything"])
def test_folded_and_unfolded_and_original_networks_are_equal(uneven, monkeypatch, roles):
    # In float64, so that no difference comes from the order of sums, which machines choose.
    uneven.denoiser.double()
    uneven.dtype = torch.float64
    transform, sites, original = awq(roles), uneven.sites(), output(uneven)
    folded = rewritten(transform, uneven, sites, calibration, trial(), None)
    assert_same(output(uneven, folded), original)
    assert original.dtype == torch.float64
    unfolded = rewritten(transform, unable_to_fold(uneven, monkeypatch), sites, calibration, trial(), None)
    assert_same(output(uneven, unfolded), original)
    assert folded.inputs.keys() < unfolded.inputs.keys()


def test_it_helps_and_is_saved_and_resumed_without_data(uneven, tmp_path):
    parts = recipe((5, 16), weight=GROUPS, transform=awq())
    quantized, original = quantize(uneven, parts, calibration, tmp_path), output(uneven)
    expected = output(uneven, quantized)
    plain = output(uneven, quantize(uneven, recipe((5, 16), weight=GROUPS, transform=None), calibration))
    assert (expected - original).square().mean() < (plain - original).square().mean()
    save(quantized, tmp_path / "saved", provenance(uneven))
    assert torch.equal(output(uneven, load(tmp_path / "saved", uneven)), expected)
    again = quantize(uneven, parts, lambda: pytest.fail("data was collected again"), tmp_path)
    assert torch.equal(output(uneven, again), expected)


def test_values_that_cannot_be_are_refused(tiny_model):
    with pytest.raises(UserError, match="ActivationAware.steps=0; allowed: a whole number of at least 1"):
        awq(steps=0)
    assert awq(["mlp"]).problems(tiny_model.sites())[0].startswith("transform.roles has 'mlp'; this model has ")


def test_the_recipe_has_the_papers_defaults():
    config = composed("quantizer=awq", "bits=w4a16")
    check(config)
    parts = build_recipe(config)
    assert parts is not None
    assert isinstance(parts.transform, ActivationAware)
    assert (parts.weight_bits, parts.activation_bits, parts.transform.steps) == (4, 16, 20)
    assert (parts.weight.granularity, parts.weight.group_size, parts.weight.grid) == ("group", 128, "asymmetric")
