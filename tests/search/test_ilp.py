"""What `ilp` and `hessian` put into the integer programme."""

from dataclasses import replace

import pytest
import torch

from qdit.calibration import NoCalibration
from qdit.errors import UserError
from qdit.method import quantize
from qdit.rounding import GPTQ
from qdit.search import ILP, Hessian
from qdit.search.base import Bench
from qdit.search.budget import BitOps, Bytes, MeanGroup


def bench(parts, model, search, **changes) -> Bench:
    recipe = parts.recipe(search=search, **changes)
    space = search.space(recipe, model.sites())
    return Bench(model, recipe, space, search.budget.table(space), parts.data, parts.setting())


OPTIONS = {"budget": MeanGroup(at_least=1), "group_sizes": [4, 8, 16, 32]}


def test_output_errors_by_hand_and_smaller_groups_are_better(parts, tiny_model):
    made = bench(parts, tiny_model, ILP(**OPTIONS))
    errors = made.recipe.search.errors(made)
    finest, coarsest = (sum(error[size] for error in errors) for size in (4, 32))
    assert finest < coarsest

    gene = made.space.genes[1]  # one site: the attention's output
    (site,), caught = gene.sites, []
    layer = tiny_model.denoiser.get_submodule(site.name)
    handle = layer.register_forward_hook(lambda m, args, out: caught.append((args[0], out)))
    with torch.no_grad():
        for batch in parts.data().batches(tiny_model):
            tiny_model.denoise(*batch)
    handle.remove()
    quantized = made.variants.of_size(8).layers[site.name]
    noise = sum((quantized(x) - y).double().square().sum() for x, y in caught)
    energy = sum(y.double().square().sum() for _, y in caught)
    assert errors[1][8] == pytest.approx(float(noise / energy), rel=1e-5)


def test_what_the_collection_of_data_computes_is_not_watched(parts, tiny_model):
    def collect():
        data = parts.data()
        with torch.no_grad():
            tiny_model.denoise(3 * data.x, data.t, data.y)
        return data

    made = bench(parts, tiny_model, ILP(**OPTIONS))
    errors = made.recipe.search.errors(made)
    assert made.recipe.search.errors(replace(made, collect=collect)) == errors


def test_traces_are_those_of_the_jacobian(parts, tiny_model):
    """The estimate against the exact trace of 2 JᵀJ, one backward pass an output, for one small layer."""
    search = Hessian(**OPTIONS, probes=64)
    made = bench(parts, tiny_model, search)
    site = made.space.genes[1].sites[0]
    estimate = search.traces(made, [site])[site.name]
    weight = tiny_model.denoiser.get_parameter(f"{site.name}.weight")
    assert not weight.requires_grad
    data = made.collect()
    weight.requires_grad_(True)
    total = 0.0
    for n in range(len(data.x)):
        flat = tiny_model.denoise(data.x[n : n + 1], data.t[n : n + 1], data.y[n : n + 1])[:, :4].flatten()
        for value in flat[::4]:  # a quarter of the outputs is enough
            (slope,) = torch.autograd.grad(value, weight, retain_graph=True)
            total += 4 * float(slope.square().sum())
    weight.requires_grad_(False)
    assert estimate == pytest.approx(2 * total / len(data.x), rel=0.2)


def test_curvature_weighs_the_weights_error(parts, tiny_model):
    search = Hessian(**OPTIONS)
    made = bench(parts, tiny_model, search)
    errors = search.errors(made)
    assert all(error[4] < error[32] for error in errors)
    gene = made.space.genes[1]
    site = gene.sites[0]
    weight = tiny_model.denoiser.get_parameter(f"{site.name}.weight").detach()
    change = (made.variants.of_size(8).layers[site.name].weight - weight).square().sum()
    expected = search.traces(made, [s for g in made.space.genes for s in g.sites])[site.name]
    assert errors[1][8] == pytest.approx(float(expected / weight.numel() * change), rel=1e-4)


@pytest.mark.parametrize("kind", [ILP, Hessian])
@pytest.mark.parametrize("budget", [MeanGroup(at_least=16), BitOps(uniform=16), Bytes(uniform=16)])
def test_every_budget_is_kept_and_used(parts, tiny_model, kind, budget):
    search = kind(**OPTIONS | {"budget": budget})
    recipe = parts.recipe(rounding=GPTQ(), search=search)
    found = quantize(tiny_model, recipe, parts.data, None, parts.setting())
    space = search.space(recipe, tiny_model.sites())
    table, choice = budget.table(space), found.allocation.choice
    assert table.allows(choice)
    assert len(set(choice)) > 1
    assert found.policy == space.policy(choice)
    assert found.allocation.details["total_error"] > 0


def test_needs_are_named(parts, tiny_model):
    sites = tiny_model.sites()
    recipe = parts.recipe(search=ILP(**OPTIONS), calibration=NoCalibration())
    assert "search needs data" in recipe.problems(sites)[0]
    recipe = parts.recipe(search=Hessian(**OPTIONS), weight_bits=16)
    assert "search=hessian weighs the errors of weights in groups" in recipe.problems(sites)[0]
    with pytest.raises(UserError, match="Hessian.probes=0; allowed: a whole number of at least 1"):
        Hessian(**OPTIONS, probes=0)
