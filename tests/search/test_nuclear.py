"""Bits by nuclear norms: the golden examples, what is compared, the choice of a plain loop, and a run."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers.configs import config

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import segments
from qdit.calibration.observers import watching_operands
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.hessian.operands import inside
from qdit.method import quantize
from qdit.nn.replace import replaced
from qdit.runs.parts import build_recipe
from qdit.scope import Scope
from qdit.search import Nuclear
from qdit.search.allocate import MILP, DynamicProgramme
from qdit.search.bit_budget import MeanBits, Rest
from qdit.search.nuclear import modules_of, nuclear, points_of, relative_norm


def search(**changes):
    return Nuclear(**{"widths": [3, 4, 6], "budget": MeanBits(at_most=4.5), "allocator": MILP(), "points": 4} | changes)


@pytest.fixture
def recipe(parts):
    def make(**changes):
        return parts.recipe(**{"search": search()} | changes)

    return make


def test_golden_norms():
    uniform, near = torch.full((4, 4), 0.25), 0.6 * torch.eye(4) + 0.1
    assert nuclear(torch.stack([torch.eye(4), uniform, near])).tolist() == pytest.approx([4, 1, 2.8], abs=1e-5)
    maps = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert ((nuclear(maps) >= 1 - 1e-5) & (nuclear(maps) <= 7)).all()
    assert relative_norm(torch.eye(4)[None]) == pytest.approx(1)
    assert relative_norm(uniform[None]) == pytest.approx(0.5)
    assert relative_norm(torch.zeros(1, 4, 4)) == 0


def test_all_layers_of_a_module_have_its_bits_and_the_rest_the_recipes(tiny_model, recipe, parts):
    wide = search(budget=MeanBits(at_most=5.5))
    made = recipe(scope=Scope(roles=[*parts.blocks, "adaln"]), weight_bits=8, search=wide)
    found = quantize(tiny_model, made, parts.data, setting=parts.setting())
    kinds = {"qkv": "attention", "attn_out": "attention", "ffn_up": "ffn", "ffn_down": "ffn"}
    bits = {}
    for site in tiny_model.sites():
        if site.name in found.layers:
            bits.setdefault((site.block, kinds.get(site.role, "rest")), set()).add(found.policy[site.name].weight.bits)
    assert all(len(widths) == 1 for widths in bits.values())
    assert {next(iter(w)) for (_, kind), w in bits.items() if kind == "rest"} == {8}
    inner = [(b, w) for (b, kind), w in bits.items() if kind != "rest"]
    assert {next(iter(w)) for _, w in inner} <= {3, 4, 6}


def test_it_is_the_choice_of_least_sum_within_the_budget(tiny_model, recipe, parts):
    made = recipe()
    space, rest = made.search.space(made, tiny_model.sites()), Rest.of(tiny_model, made)
    modules = modules_of(space)
    assert [(module.block, module.kind) for module in modules] == [
        (f"transformer_blocks.{n}", kind) for n in range(2) for kind in ("attention", "feed_forward")
    ]
    losses = [{3: 5.0 + n, 4: 2.0 / (n + 1), 6: 0.1} for n in range(4)]
    numel = [sum(space.numel(space.genes[g]) for g in module.genes) for module in modules]
    allowed = {
        choice: sum(loss[b] for loss, b in zip(losses, choice, strict=True))
        for choice in product((3, 4, 6), repeat=4)
        if sum(n * b for n, b in zip(numel, choice, strict=True)) <= 4.5 * sum(numel)
    }
    expected = min(allowed, key=allowed.__getitem__)
    for allocator in (MILP(), DynamicProgramme()):
        plan = search(allocator=allocator).choose(space, modules, losses, rest)
        assert all(plan[g] == (b,) for module, b in zip(modules, expected, strict=True) for g in module.genes)


@pytest.mark.parametrize("count", [128, 512, 1600, 6400])
@pytest.mark.parametrize("steps", [20, 25, 50])
def test_points_are_fair_over_timesteps_and_conditions(count, steps):
    """At real numbers of points; every other one has the null condition, as calibrations make them."""
    numbers = torch.arange(count)
    t, y = 980 - 980 // steps * ((numbers // 2 * 7 + numbers // steps) % steps), numbers % 2
    shares = []
    for first in range(0, count, 97):  # the same points in other orders
        data = CalibrationData(torch.zeros(count, 1, 1, 1), t.roll(first), y.roll(first), 8)
        rows = points_of(data, 16)
        assert len(set(rows.tolist())) == 16
        times = sorted(set(t.tolist()))
        starts = [len(times) * part // 16 for part in range(16)]
        parts = [sum(start <= times.index(each) for start in starts) for each in data.t[rows].tolist()]
        assert len(set(parts)) == 16
        shares.append(data.y[rows].float().mean())
    assert 0.3 < torch.stack(shares).mean() < 0.7


def test_modules_are_compared_alone_on_full_precision(tiny_model, recipe, parts):
    """Probabilities of an attention whose layers alone are rounded, by hand."""
    found = quantize(tiny_model, recipe(), parts.data, setting=parts.setting())
    by_site = {row["site"]: row for row in found.allocation.details["bits"]}
    row = by_site["transformer_blocks.1.attn1.to_q"]
    assert row["group"] == "attention"
    assert row["loss"].keys() == {"3", "4", "6"}
    four = quantize(tiny_model, parts.recipe(weight_bits=4), parts.data)
    names = [s.name for s in tiny_model.sites() if s.block == 1 and s.role in ("qkv", "attn_out")]
    data, seen = parts.data(), []
    rows = points_of(data, 4)
    attention = inside(tiny_model.attentions(), segments(tiny_model.sites(), names)[2])
    for layers in ({}, {name: four.layers[name] for name in names}):
        maps = []
        watched = watching_operands(tiny_model, attention, lambda s, x, maps=maps: maps.append((s, x)))
        with replaced(tiny_model.denoiser, layers), watched, torch.no_grad():
            tiny_model.denoise(data.x[rows], data.t[rows], data.y[rows])
        seen.append(next(x for site, x in maps if site.endswith("probs")))
    lost = (seen[1] - seen[0]).square().sum() / seen[0].square().sum()
    assert row["loss"]["4"][0] == pytest.approx(float(lost) * relative_norm(seen[0]), rel=1e-4)


def test_a_recipe_runs_and_is_saved(tiny_model, parts, tmp_path):
    words = ["quantizer=ptq_vit", "bits=w6a6", "search=nuclear", "search.widths=[4,6,8]", "search.budget.at_most=6"]
    small = [f"{g}.range.{k}" for g in ("weight", "activation") for k in ("candidates=3", "rounds=1", "tokens=64")]
    small += ["attention.range.candidates=3", "attention.range.rounds=1", "attention.range.tokens=64"]
    made = build_recipe(config(*words, *small))
    assert made is not None
    assert made.problems(tiny_model.sites()) == []
    assert "chosen among 4, 6, 8, by nuclear norms, with a budget of 6" in made.search.summary(made, tiny_model.sites())
    found = quantize(tiny_model, made, parts.data, tmp_path / "fit", parts.setting())
    assert found.allocation.details["mean_bits"] <= 6
    data = parts.data()

    def output(quantized):
        with quantized.installed(tiny_model), torch.no_grad():
            return tiny_model.denoise(data.x, data.t, data.y)

    save(found, tmp_path / "saved", provenance(tiny_model))
    assert torch.equal(output(load(tmp_path / "saved", tiny_model)), output(found))


def test_what_cannot_be_is_refused(tiny_model, recipe, parts):
    assert "none is in scope" in recipe(scope=Scope(roles=["adaln"])).problems(tiny_model.sites())[0]
    many = [replace(site, tokens=4096) for site in tiny_model.sites()]
    assert "of 4096 tokens that takes hours" in recipe().problems(many)[0]
    assert "cannot be met" in recipe(search=search(budget=MeanBits(at_most=2))).problems(tiny_model.sites())[0]
