"""The temporal unit: which sites it has, what it compares, that it learns, and how it goes on after a kill."""

import pytest
import torch
from helpers import text_models
from helpers.adaround_parts import ALL, QUICK, codes, points, recipe, steps

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import segments
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.rounding import AdaRound
from qdit.rounding.reconstruction.session import Session
from qdit.rounding.reconstruction.temporal import Modulations, points_over_time, temporal, temporal_task
from qdit.rounding.reconstruction.units import list_units

TEMPORAL = AdaRound(**QUICK, units="temporal")


@pytest.fixture
def data():
    return points(6)


def coarse(layer):
    changed = QuantLinear(layer, None, None)
    changed.weight = (4 * changed.weight).round() / 4
    return changed


@pytest.mark.parametrize("alike", [True, False])
def test_every_site_is_in_one_unit_with_it_or_without(tiny_model, alike):
    sites = tiny_model.sites()
    parts = segments(sites, {site.name for site in sites})
    plain, apart = (
        [unit for group in list_units(parts, lambda one, other: alike, own) for unit in group]
        for own in ([], temporal(sites))
    )
    for units in (plain, apart):
        names = [name for unit in units for name in (*(site.name for site in unit.sites), *unit.twins)]
        assert sorted(names) == sorted(site.name for site in sites)
    first, *others = apart
    assert first.temporal
    assert {site.role for site in first.sites} == {"adaln", "embedder", "final"}
    assert {"proj_out_1"} == {site.name for site in first.sites if site.role == "final"}
    assert len(first.twins) == 2 * alike
    assert not any(site.tokens == 1 for unit in others for site in unit.sites)


@pytest.mark.parametrize("family", ["dit", "sd3", "flux_dev", "pixart_sigma", "latte"])
def test_modulations_are_those_of_a_whole_forward_pass(tiny_model, family, tmp_path, data):
    model = tiny_model if family == "dit" else text_models.load(family, tmp_path)
    data = data if family == "dit" else text_models.points(model, 4)
    made = Modulations(model, data)
    changed = {site.name: coarse(model.denoiser.get_submodule(site.name)) for site in temporal(model.sites())[:3]}
    found = []
    for layers in ({}, changed):
        seen = {}
        with replaced(model.denoiser, layers), torch.no_grad():
            handles = [
                model.denoiser.get_submodule(name).register_forward_hook(
                    lambda m, a, out, name=name, seen=seen: seen.__setitem__(name, out)
                )
                for name in made.shown
            ]
            model.denoise(data.x, data.t, data.y)
            expected = torch.cat([seen[name].reshape(len(data.t), -1) for name in made.shown], 1)
            found.append(made(data, torch.arange(len(data.t))))
            for handle in handles:
                handle.remove()
        torch.testing.assert_close(found[-1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_all_timesteps_of_the_sampler_are_seen_with_every_condition():
    visited = list(range(0, 100, 10))
    data = CalibrationData(torch.zeros(40, 1, 2, 2), torch.full((40,), 90), torch.arange(40) % 2, 4, visited=visited)
    own = points_over_time(data)
    assert {tuple(pair) for pair in zip(own.t.tolist(), own.y.tolist(), strict=True)} == {
        (t, y) for t in visited for y in (0, 1)
    }
    few = points_over_time(CalibrationData(data.x[:3], data.t[:3], data.y[:3], 4, visited=visited))
    assert sorted(few.t.tolist()) == visited


@pytest.mark.parametrize("count", [128, 256, 1600])
@pytest.mark.parametrize("steps", [4, 20, 25, 50, 63])
def test_timesteps_and_conditions_are_seen_alike(count, steps):
    """At real numbers of points; conditions are told apart, and every other one is the null condition."""
    visited, conditions = list(range(steps)), torch.arange(count)
    data = CalibrationData(torch.zeros(count, 1, 1, 1), torch.zeros_like(conditions), conditions, 8, visited=visited)
    own = points_over_time(data)
    times, used = own.t.bincount(), own.y.bincount(minlength=count)
    assert len(times) == steps
    assert times.max() - times.min() <= 1
    assert used.max() - used.min() <= 2
    nulls = torch.zeros(steps).index_add_(0, own.t, (own.y % 2).float())
    assert ((nulls - times / 2).abs() <= 1).all()


def test_it_learns_embedders_and_modulations_together(tiny_model, data):
    """Rounded so, the modulations are nearer to full precision than to nearest; embedders have moved, too."""
    slow = {"iterations": 30, "low_bits": 1, "rate": 0.3, "batch_size": 6, "round_weight": 0.0}
    task = temporal_task(tiny_model, data)
    errors, made = [], []
    for how in (AdaRound(iterations=0), AdaRound(**slow, units="temporal")):
        made.append(quantize(tiny_model, recipe(how, ["adaln", "embedder"], bits=(3, 8)), lambda: data))
        with made[-1].installed(tiny_model), torch.no_grad():
            errors.append((task.predict(torch.arange(6)) - task.target).square().mean())
    assert errors[1] < 0.95 * errors[0]
    nearest, learned = (codes(each) for each in made)
    moved = {name for name in nearest if not torch.equal(nearest[name], learned[name])}
    assert {name.rpartition(".")[2] for name in moved} >= {"linear", "linear_1", "linear_2"}


def test_equal_embedders_learn_once_and_all_get_it(tiny_model, data):
    blocks = tiny_model.denoiser.transformer_blocks
    blocks[1].norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    made = quantize(tiny_model, recipe(TEMPORAL, ALL), lambda: data)
    for n in (1, 2):
        one, two = (made.layers[f"transformer_blocks.{b}.norm1.emb.timestep_embedder.linear_{n}"] for b in range(2))
        assert torch.equal(one.rounded.codes, two.rounded.codes)
        assert torch.equal(one.quantizer.scale, two.quantizer.scale)


def test_a_killed_fit_goes_on_behind_the_temporal_unit(tiny_model, data, tmp_path, monkeypatch):
    learned = []
    original = Session.learn
    monkeypatch.setattr(Session, "learn", lambda self, unit, *a: learned.append(unit.name) or original(self, unit, *a))
    whole = quantize(tiny_model, recipe(TEMPORAL, ALL), lambda: data, tmp_path)
    assert learned == ["temporal", "pos_embed.proj", "block_000", "block_001", "after"]
    (tmp_path / "block_001.safetensors").unlink()
    again = quantize(tiny_model, recipe(TEMPORAL, ALL), lambda: data, tmp_path)
    assert learned[5:] == ["block_001"]
    for found in (codes, steps):
        assert all(torch.equal(value, found(again)[name]) for name, value in found(whole).items())


def test_without_such_sites_nothing_changes_and_its_name_is_checked(tiny_model, data):
    plain, apart = (
        quantize(tiny_model, recipe(AdaRound(**QUICK, units=units), ["qkv"]), lambda: data)
        for units in ("blocks", "temporal")
    )
    assert all(torch.equal(value, codes(apart)[name]) for name, value in codes(plain).items())
    assert "units" not in repr(AdaRound())
    with pytest.raises(UserError, match="units='spatial'"):
        AdaRound(units="spatial")
