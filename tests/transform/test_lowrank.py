"""A low-rank branch beside a weight: exact at any place of a chain, and alternated with the rounding (SVDQuant)."""

import itertools

import pytest
import torch
from helpers.rewriting import (
    BLOCKS,
    EVERYTHING,
    assert_same,
    calibration,
    output,
    points,
    recipe,
    scaling,
    unable_to_fold,
)
from helpers.splitting import BLOCK, FULL, NAME, chain, lowrank, matrix, svdquant

from qdit.calibration import NoCalibration
from qdit.errors import UserError
from qdit.quant.grid import fake_quantize
from qdit.quant.spec import QuantSpec
from qdit.transform import Chain, Hadamard, LowRank, Trial, rewritten
from qdit.transform.lowrank import EXACT, alternated, truncated
from qdit.transform.statistics import Maximum

ORDERS = [o for n in (1, 2, 3) for o in itertools.permutations(["smooth", "lowrank", "hadamard"], n) if "lowrank" in o]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("roles", [BLOCKS, EVERYTHING], ids=["blocks", "everything"])
def test_split_networks_are_the_original_in_any_order(tiny_model, monkeypatch, order, roles):
    transform, sites, original = chain(*order, roles=roles), tiny_model.sites(), output(tiny_model)
    trial = Trial(recipe(roles=roles))
    chosen = [site for site in sites if site.role in roles]
    split = rewritten(transform, tiny_model, chosen, calibration, trial, None)
    assert_same(output(tiny_model, split), original)
    assert all(split.layers[site.name].branch.up.shape == (site.out_features, 4) for site in chosen)
    unfolded = rewritten(transform, unable_to_fold(tiny_model, monkeypatch), chosen, calibration, trial, None)
    assert_same(output(tiny_model, unfolded), original)
    assert torch.equal(output(tiny_model), original)


def test_a_layer_may_be_split_twice(tiny_model):
    twice = Chain(name="twice", steps={"one": lowrank(2, 0), "scale": scaling(BLOCKS, Maximum()), "two": lowrank(3, 0)})
    split = rewritten(twice, tiny_model, tiny_model.sites(), calibration, Trial(recipe()), None)
    assert split.layers[NAME].branch.up.shape == (32, 5)
    assert_same(output(tiny_model, split), output(tiny_model))
    once = rewritten(lowrank(5, 0), tiny_model, tiny_model.sites(), calibration, Trial(recipe()), None)
    assert once.layers[NAME].weight.norm() < split.layers[NAME].weight.norm()


def test_half_precision_loses_no_more_than_half_precision(tiny_pipeline):
    from qdit.model.dit import DiT

    model = DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.bfloat16)
    sites = [site for site in model.sites() if site.role in BLOCKS]
    split = rewritten(chain("smooth", "lowrank"), model, sites, calibration, Trial(recipe()), None)
    data = points(1)
    expected = model.denoise(data.x.bfloat16(), data.t, data.y)
    with split.installed(model):
        found = model.denoise(data.x.bfloat16(), data.t, data.y)
    assert found.dtype == torch.bfloat16
    assert (found - expected).float().square().mean() < 1e-3 * expected.float().square().mean()


@pytest.mark.parametrize("shape", [(48, 40), (40, 48), (EXACT + 88, EXACT + 8)])
def test_the_factors_are_the_largest_singular_parts(shape):
    weight = matrix(0, (shape[0], 6)) @ matrix(1, (6, shape[1])) + 0.02 * matrix(2, shape)
    up, down = truncated(weight, 6)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close((weight - up @ down).norm(), values[6:].norm(), rtol=1e-2, atol=0)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))
    torch.testing.assert_close(up.norm(dim=0), values[:6].sqrt(), rtol=1e-3, atol=0)


def test_random_projections_are_always_the_same_and_take_nothing_from_the_stream():
    weight = matrix(0, (EXACT + 88, EXACT + 8))
    torch.manual_seed(5)
    one, after = truncated(weight, 8), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one, truncated(weight, 8), strict=True))


def test_what_is_left_falls_with_the_rank():
    weight = matrix()
    left = [weight - up @ down for up, down in (truncated(weight, rank) for rank in (1, 4, 8, 16, 32, 40))]
    norms, largest = ([float(measure(rest)) for rest in left] for measure in (torch.norm, lambda r: r.abs().max()))
    assert norms == sorted(norms, reverse=True)
    assert largest[0] > largest[2] > largest[4] > largest[5]
    assert norms[-1] < 1e-5 * weight.norm()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_alternation_never_ends_with_more_error(bits, seed):
    weight, x = matrix(seed), matrix(seed + 50, (200, 40)) * torch.logspace(-1, 1, 40)
    spec = QuantSpec(bits=bits, grid="symmetric")
    coarse = fake_quantize(x, QuantSpec(bits=8, grid="symmetric"))

    def error(rest, codes):
        return float((x @ rest.T - coarse @ codes.T).square().mean())

    def rounded(rest):
        return fake_quantize(rest, spec)

    (up, down), errors = alternated(weight, 6, 20, rounded, error)
    rest = weight - up @ down
    assert error(rest, rounded(rest)) == min(errors)
    kept = errors[:-1] if len(errors) > 1 and errors[-1] >= errors[-2] else errors
    assert kept == sorted(kept, reverse=True)
    plain, alone = alternated(weight, 6, 0, rounded, error)
    assert all(torch.equal(a, b) for a, b in zip(plain, truncated(weight, 6), strict=True))
    assert min(errors) <= alone[0] == errors[0]


def test_alternation_lowers_the_error_where_weights_are_coarse():
    weight, x = matrix(), matrix(9, (300, 40))
    _, errors = alternated(
        weight,
        *(8, 30, lambda rest: fake_quantize(rest, QuantSpec(bits=3, grid="symmetric"))),
        lambda rest, codes: float((x @ (rest - codes).T).square().mean()),
    )
    assert len(errors) > 3
    assert min(errors) < 0.8 * errors[0]


def test_the_alternation_uses_the_recipe_s_grid_and_inputs(tiny_model):
    sites = [site for site in tiny_model.sites() if site.role in BLOCKS]
    found = {
        bits: lowrank(4, 10).measure(tiny_model, sites, calibration, Trial(svdquant(bits=bits)))
        for bits in ((2, 8), (4, 8), (16, 16))
    }
    plain = lowrank(4, 0).measure(tiny_model, sites, lambda: pytest.fail("no data is needed"), Trial(svdquant()))
    assert found[16, 16].keys() == plain.keys() == {f"{part}/{s.name}" for part in ("up", "down") for s in sites}
    assert all(torch.equal(found[16, 16][key], plain[key]) for key in plain)
    changed = [sum(not torch.equal(found[bits][key], plain[key]) for key in plain) for bits in ((2, 8), (4, 8))]
    assert min(changed) > len(plain) / 2


def test_errors_are_measured_on_what_the_layer_reads(tiny_model, monkeypatch):
    """Behind what a chain does at run time; here all of its rows."""
    seen = {}

    def factors(self, weight, site, x, trial):
        seen[site.name] = x
        return truncated(weight, self.rank)

    monkeypatch.setattr(LowRank, "factors", factors)
    transform, sites = chain("hadamard", "lowrank"), [s for s in tiny_model.sites() if s.role in BLOCKS]
    split = rewritten(transform, tiny_model, sites, calibration, Trial(recipe()), None)
    caught = []
    handle = tiny_model.denoiser.get_submodule(NAME).register_forward_hook(lambda m, args, out: caught.append(args[0]))
    for batch in calibration().batches(tiny_model):
        with torch.no_grad():
            tiny_model.denoise(*batch)
    handle.remove()
    rows = split.inputs[NAME](torch.cat([x.flatten(0, -2) for x in caught]))
    assert seen.keys() == {s.name for s in sites}
    torch.testing.assert_close(seen[NAME], rows, atol=1e-4, rtol=0)
    assert seen["transformer_blocks.0.attn1.to_q"] is seen["transformer_blocks.0.attn1.to_k"]


def test_what_a_rotation_at_run_time_bars_from_being_absorbed_is_counted(tiny_model):
    """A scaling behind a rotation is done behind it, not by what makes the input before it."""
    sites = [site for site in tiny_model.sites() if site.role == "qkv"]
    first = f"{BLOCK}.attn1.to_q"
    for order, factors in ((("hadamard", "smooth"), [32, 16 * 32]), (("smooth", "hadamard"), [32])):
        transform = chain(*order, roles=["qkv"])
        left = [each.storage_bits for each in transform.run_time(tiny_model, sites) if each.site.name == first]
        assert left == factors
        assert transform.carriers(tiny_model, sites)[first] is None
        split = rewritten(transform, tiny_model, sites, calibration, Trial(recipe()), None)
        assert len(list(split.inputs[first].modules())) == (3 if len(left) == 2 else 1)  # of a sequence of two


def test_a_rotation_to_come_is_foreseen(tiny_model):
    """The error is that of the rotated residual on its grid; the factors are those of the original basis."""
    sites = [site for site in tiny_model.sites() if site.name == NAME]
    spec = Trial(recipe((3, 8)))
    turn = Hadamard(name="hadamard", roles=["ffn_down"], block=None, seed=0)
    way = turn.ways(tiny_model, sites)[NAME][0]
    before, behind = (
        lowrank(4, 10).measure(tiny_model, sites, calibration, trial) for trial in (spec, spec.before({NAME: (way,)}))
    )
    weight = tiny_model.denoiser.get_submodule(NAME).weight.detach()

    def error(found):
        rest = way(weight - found[f"up/{NAME}"] @ found[f"down/{NAME}"])
        return float((rest - spec.weight(sites[0], rest)).norm())

    assert error(behind) < error(before)
    (best,) = (
        lowrank(4, 10).measure(tiny_model, sites, calibration, spec.before({NAME: ways})) for ways in [(way, way)]
    )
    assert all(torch.equal(best[key], behind[key]) for key in best)


def test_what_cannot_be_is_named(tiny_model):
    sites = tiny_model.sites()
    assert lowrank(FULL).problems(sites) == []
    (problem,) = chain("smooth", "lowrank", rank=33).problems(sites)
    assert problem.startswith("transform.steps.lowrank.rank=33 is more than transformer_blocks.0.attn1.to_q has (32 in")
    assert lowrank(roles=["nobody"]).problems(sites)[0].startswith("transform.roles has 'nobody'")
    for wrong in ({"rank": -1}, {"iterations": -1}):
        with pytest.raises(UserError, match="=-1; allowed: a whole number of at least 0"):
            lowrank(**wrong)
    (problem,) = recipe(transform=lowrank(), calibration=NoCalibration()).problems(sites)
    assert problem.startswith("transform needs data")
    assert recipe(transform=lowrank(iterations=0), calibration=NoCalibration()).problems(sites) == []
