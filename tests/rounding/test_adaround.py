"""AdaRound of a whole network: what units see and aim at, what they gain and what they leave untouched."""

import logging

import pytest
import torch
from helpers.adaround_parts import BLOCKS, CONF, OPERANDS, QUICK, TOKEN, codes, network_error, points, recipe, steps
from omegaconf import OmegaConf

from qdit.calibration import CalibrationData
from qdit.config import build
from qdit.errors import UserError
from qdit.method import quantize
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.rounding import AdaRound, Nearest
from qdit.rounding.reconstruction.loop import Learning
from qdit.rounding.reconstruction.targets import Targets
from qdit.scope import Scope
from qdit.transform.scaling import ChannelScaling
from qdit.transform.statistics import Maximum


@pytest.fixture
def data() -> CalibrationData:
    """Ten points, in batches that are not all full."""
    return points(10)


@pytest.mark.parametrize("weight", [{}, {"granularity": "group", "group_size": 8}, {"granularity": "tensor"}], ids=str)
def test_no_10_without_iterations_it_is_nearest_rounding(tiny_model, data, weight):
    none, nearest = (
        quantize(tiny_model, recipe(r, weight=weight), lambda: data) for r in (AdaRound(iterations=0), Nearest())
    )
    assert all(torch.equal(c, codes(none)[name]) for name, c in codes(nearest).items())
    assert all(torch.equal(s, steps(none)[name]) for name, s in steps(nearest).items())


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"attention": OPERANDS},
        {"activation": TOKEN, "weight": {"granularity": "group", "group_size": 8}, "roles": BLOCKS},
        {"weight": {"granularity": "tensor", "grid": "symmetric"}, "bits": (4, 16)},
        {
            "transform": ChannelScaling(
                name="smooth", roles=["qkv", "ffn_up", "ffn_down"], alpha=0.5, statistic=Maximum()
            )
        },
    ],
    ids=["static", "attention", "dynamic", "weights", "transformed"],
)
def test_no_10_a_learned_network_is_closer_on_points_that_it_did_not_see(tiny_model, parts):
    learning = AdaRound(iterations=60, low_bits=1, batch_size=8, rate=0.1)
    errors = [
        network_error(
            tiny_model, quantize(tiny_model, recipe(r, **{"bits": (3, 8)} | parts), lambda: points(32)), points(16, 1)
        )
        for r in (Nearest(), learning)
    ]
    assert errors[1] < 0.8 * errors[0]


@torch.no_grad()
def test_no_10_no_unit_ends_behind_nearest_rounding(tiny_model, data, caplog):
    wild = AdaRound(iterations=3, batch_size=4, rate=50.0, round_weight=0.0)
    with caplog.at_level(logging.WARNING, "qdit"):
        learned = quantize(tiny_model, recipe(wild, roles=["ffn_down"], bits=(8, 8)), lambda: data)
    assert "block_000 stays at nearest" in caplog.text
    nearest = quantize(tiny_model, recipe(Nearest(), roles=["ffn_down"], bits=(8, 8)), lambda: data)
    assert all(torch.equal(c, codes(nearest)[name]) for name, c in codes(learned).items())
    assert all(torch.equal(s, steps(nearest)[name]) for name, s in steps(learned).items())


@torch.no_grad()
def test_no_11_targets_are_full_precision_and_inputs_those_of_the_quantized_prefix(tiny_model, data, monkeypatch):
    parts = recipe(AdaRound(**QUICK), attention=OPERANDS)
    tasks, original = {}, Targets.task

    def spy(targets, unit, layers, weights=None):
        task = tasks[unit.name] = original(targets, unit, layers, weights)
        boundary = [leaf.clone() for outputs in targets.rounded.outputs.values() for leaf in outputs.leaves]
        tasks[unit.name] = (task.target.clone(), *boundary)
        return task

    monkeypatch.setattr(Targets, "task", spy)
    quantized = quantize(tiny_model, parts, lambda: data)
    blocks = tiny_model.denoiser.transformer_blocks
    seen: list[torch.Tensor] = []

    def outputs(module, run):
        seen.clear()
        handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
        for x, t, y in data.batches(tiny_model):
            run(x, t, y)
        handle.remove()
        return torch.cat(seen)

    for n, block in enumerate(blocks):
        assert torch.equal(tasks[f"block_00{n}"][0], outputs(block, tiny_model.denoise))
    whole = torch.cat([tiny_model.denoise(*batch) for batch in data.batches(tiny_model)])
    assert torch.equal(tasks["after"][0], whole)
    assert torch.equal(tasks["pos_embed.proj"][0], outputs(tiny_model.denoiser.pos_embed.proj, tiny_model.denoise))
    with quantized.installed(tiny_model):
        assert torch.equal(tasks["block_001"][1], outputs(blocks[0], tiny_model.denoise))
        assert torch.equal(tasks["after"][1], outputs(blocks[1], tiny_model.denoise))


def test_no_11_eight_bits_lose_next_to_nothing(tiny_model, data):
    quantized = quantize(tiny_model, recipe(AdaRound(**QUICK), bits=(8, 8)), lambda: data)
    expected = tiny_model.denoise(data.x, data.t, data.y)
    assert network_error(tiny_model, quantized, data) < 1e-3 * float(expected.square().mean())


def test_no_12_evaluation_mode_parameters_and_outputs_are_as_they_were(tiny_model, data):
    parameters = list(tiny_model.denoiser.parameters())
    for n, parameter in enumerate(parameters):
        parameter.requires_grad_(n % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if n % 4 == 0 else None
    with torch.no_grad():
        expected = tiny_model.denoise(data.x, data.t, data.y)
    quantized = quantize(tiny_model, recipe(AdaRound(**QUICK), attention=OPERANDS), lambda: data)
    assert not any(module.training for module in tiny_model.denoiser.modules())
    assert [p.requires_grad for p in parameters] == [n % 2 == 0 for n in range(len(parameters))]
    assert all(
        (p.grad is None) == bool(n % 4) and (p.grad is None or bool((p.grad == 1).all()))
        for n, p in enumerate(parameters)
    )
    assert all("forward" not in vars(module) for module in tiny_model.denoiser.modules())
    with torch.no_grad():
        assert torch.equal(tiny_model.denoise(data.x, data.t, data.y), expected)
        with quantized.installed(tiny_model):
            assert not any(m.training for layer in quantized.layers.values() for m in layer.modules())
            one, two = (tiny_model.denoise(data.x, data.t, data.y) for _ in range(2))
    assert torch.equal(one, two)
    assert not any(m.weight.requires_grad for m in quantized.layers.values())


def test_every_static_step_learns(tiny_model, data):
    learned, start = (
        steps(quantize(tiny_model, recipe(r, attention=OPERANDS), lambda: data))
        for r in (AdaRound(iterations=40), Nearest())
    )
    assert learned.keys() == start.keys()
    assert sum(name.endswith(("processor.q", "processor.probs")) for name in start) == 4
    assert all(not torch.equal(scale, start[name]) for name, scale in learned.items())


def test_full_precision_inputs_depend_on_nothing_quantized(tiny_model, data):
    how = AdaRound(**QUICK, inputs="full_precision")
    whole = quantize(tiny_model, recipe(how, BLOCKS), lambda: data)
    parts = recipe(how, BLOCKS)
    object.__setattr__(parts, "scope", Scope(roles=BLOCKS, exclude=["transformer_blocks.0.*"]))
    second = codes(quantize(tiny_model, parts, lambda: data))
    assert len(second) == 6
    assert all(torch.equal(c, codes(whole)[name]) for name, c in second.items())
    asymmetric = codes(quantize(tiny_model, recipe(AdaRound(**QUICK), BLOCKS), lambda: data))
    assert any(not torch.equal(c, asymmetric[name]) for name, c in second.items())


def test_sixteen_bits_and_no_sites_learn_nothing(tiny_model):
    def refuse():
        raise AssertionError("no data is needed")

    for parts in (
        recipe(AdaRound(), bits=(16, 16)),
        recipe(AdaRound(), roles=[]),
        recipe(AdaRound(), activation=TOKEN, bits=(16, 8)),
    ):
        assert codes(quantize(tiny_model, parts, refuse)) == {}


def test_learned_layers_are_plain_quantized_layers(tiny_model, data):
    quantized = quantize(tiny_model, recipe(AdaRound(**QUICK)), lambda: data)
    for layer in quantized.layers.values():
        assert isinstance(layer, QuantLinear)
        assert torch.equal(layer.weight, layer.rounded.weight)
    with replaced(tiny_model.denoiser, {}):
        assert quantized.policy.keys() == quantized.layers.keys()


def test_inputs_that_are_not_finite_are_refused_by_name(tiny_model, data):
    data.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="block_000 are not finite"):
        quantize(tiny_model, recipe(AdaRound(**QUICK), BLOCKS, activation=TOKEN), lambda: data)


def test_the_options_hold_the_class_defaults_and_the_papers_values():
    assert build(OmegaConf.load(CONF / "rounding" / "adaround.yaml")) == AdaRound()
    paper = OmegaConf.load(CONF / "rounding" / "adaround_paper.yaml")
    assert (paper.iterations, paper.batch_size, paper.rate, paper.step_rate) == (20_000, 32, 1e-3, 4e-5)
    assert (paper.low_bits, paper.step_unit) == (1, "absolute")
    default = Learning()
    assert (default.round_weight, default.warmup, default.beta_start, default.beta_end) == (0.01, 0.2, 20, 2)
    for wrong in ({"inputs": "rounded"}, {"weighting": "curvature"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            AdaRound(**wrong)
