"""AdaRound of a whole network: what units see and aim at, what they gain, what they leave untouched, and resuming."""

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from qdit.activation import DynamicActivation, StaticActivation
from qdit.activation.static import StaticQuantizer
from qdit.attention import UniformAttention
from qdit.calibration import CalibrationData
from qdit.config import build
from qdit.errors import UserError
from qdit.layers import QuantLinear, replaced
from qdit.model.dit import list_sites
from qdit.quant.ranges import MinMax
from qdit.quantize import Fit, Recipe, quantize
from qdit.rounding import AdaRound, Nearest
from qdit.rounding.blocks import segments
from qdit.rounding.fisher import importances
from qdit.rounding.lanes import Lanes
from qdit.rounding.reconstruction import Learning
from qdit.rounding.session import Session
from qdit.rounding.units import list_units
from qdit.sampler.noise import generator
from qdit.scope import Scope
from qdit.transform.scaling import ChannelScaling
from qdit.transform.statistics import Maximum
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
ALL = [*BLOCKS, "adaln", "embedder", "final"]
CONF = Path(__file__).parents[2] / "conf"
QUICK = {"iterations": 6, "batch_size": 4, "rate": 0.1}
STATIC = StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax())
TOKEN = DynamicActivation(granularity="row", grid="asymmetric")
OPERANDS = UniformAttention(operands=["q", "k", "v", "probs"], grid="asymmetric", probability_bits=8, range=MinMax())


def recipe(rounding, roles=ALL, bits=(4, 8), activation=STATIC, weight=None, **parts):
    return Recipe(
        scope=Scope(roles=roles),
        weight=WeightGrid(**{"granularity": "row", "grid": "asymmetric", "range": MinMax()} | (weight or {})),
        activation=activation,
        rounding=rounding,
        weight_bits=bits[0],
        activation_bits=bits[1],
        calibration=None,
        **parts,
    )


def points(count, seed=0) -> CalibrationData:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (count,), generator=random)
    x = torch.randn(count, 4, 8, 8, generator=random)
    return CalibrationData(x, torch.randint(0, 1000, (count,), generator=random), labels, 4)


@pytest.fixture
def data() -> CalibrationData:
    """Ten points, in batches that are not all full."""
    return points(10)


def codes(quantized):
    return {name: layer.rounded.codes for name, layer in quantized.layers.items() if layer.rounded is not None}


def steps(quantized):
    """Every static scale of a quantized network, by the path of its quantizer."""
    modules = {**quantized.layers, **quantized.attention}
    return {
        f"{name}.{path}": m.scale
        for name, layer in modules.items()
        for path, m in layer.named_modules()
        if isinstance(m, StaticQuantizer)
    }


@torch.no_grad()
def network_error(model, quantized, data):
    expected = model.denoise(data.x, data.t, data.y)
    with quantized.installed(model):
        return float((model.denoise(data.x, data.t, data.y) - expected).square().mean())


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
    learning = AdaRound(iterations=60, batch_size=8, rate=0.1)
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
    tasks, original = {}, Lanes.task

    def spy(lanes, unit, layers):
        task = tasks[unit.name] = original(lanes, unit, layers)
        hidden = lanes.rounded.hidden
        tasks[unit.name] = (task.target.clone(), None if hidden is None else hidden.clone())
        return task

    monkeypatch.setattr(Lanes, "task", spy)
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


UNITS = [
    "pos_embed.proj",
    *(
        name
        for n in range(2)
        for name in (
            f"transformer_blocks.{n}.norm1.emb.timestep_embedder.linear_1",
            f"transformer_blocks.{n}.norm1.emb.timestep_embedder.linear_2",
            f"block_00{n}",
        )
    ),
    "after",
]


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [0, 1, 3, 4, 6, 7])
def test_no_15_resumed_fit_ends_with_the_bytes_of_an_undisturbed_one(
    tiny_model, data, tmp_path, monkeypatch, killed_at
):
    parts = recipe(AdaRound(**QUICK, weighting="fisher"), attention=OPERANDS)
    whole = quantize(tiny_model, parts, lambda: data, tmp_path / "undisturbed")
    visited = []

    def learn(self, unit, lanes, bar, kill, original=Session.learn):
        visited.append(unit.name)
        if unit.name == kill:
            raise Killed
        original(self, unit, lanes, bar)

    monkeypatch.setattr(Session, "learn", lambda *a: learn(*a, kill=UNITS[killed_at]))
    with pytest.raises(Killed):
        quantize(tiny_model, parts, lambda: data, tmp_path / "killed")
    assert visited == UNITS[: killed_at + 1]
    visited.clear()
    monkeypatch.setattr(Session, "learn", lambda *a: learn(*a, kill=None))
    resumed = quantize(tiny_model, parts, lambda: data, tmp_path / "killed")
    assert visited == UNITS[killed_at:]
    files = sorted((tmp_path / "undisturbed").iterdir())
    assert sorted(file.stem for file in files) == sorted(UNITS)
    for file in files:
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()
    assert all(torch.equal(s, steps(whole)[name]) for name, s in steps(resumed).items())
    assert all(torch.equal(layer.weight, whole.layers[name].weight) for name, layer in resumed.layers.items())


def test_damaged_and_foreign_files_are_refused(tiny_model, data, tmp_path):
    quantize(tiny_model, recipe(AdaRound(**QUICK), ["qkv"]), lambda: data, tmp_path)
    with pytest.raises(UserError, match=r"block_000\.safetensors holds other weights"):
        quantize(tiny_model, recipe(AdaRound(**QUICK), BLOCKS), lambda: data, tmp_path)
    (tmp_path / "block_000.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"block_000\.safetensors is damaged"):
        quantize(tiny_model, recipe(AdaRound(**QUICK), ["qkv"]), lambda: data, tmp_path)


def xl_on_meta():
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
    for block in denoiser.transformer_blocks[1:]:  # the published checkpoint's copies are equal
        block.norm1.emb = denoiser.transformer_blocks[0].norm1.emb
    return denoiser


def test_no_16_units_of_dit_xl_2():
    class Model:
        denoiser = xl_on_meta()

        def sites(self):
            return list_sites(self.denoiser)

    parts = recipe(AdaRound(), activation=TOKEN)
    fit = Fit(Model(), parts, parts.plan(Model().sites()), lambda: points(1))  # pyright: ignore[reportArgumentType]
    units = [unit for group in Session(fit, AdaRound(), lagging=False, fisher=False).units for unit in group]
    assert len(units) == 32
    assert [unit.name.rsplit(".")[-1] for unit in units[:5]] == [
        "proj",
        "linear_1",
        "linear_2",
        "block_000",
        "block_001",
    ]
    assert [len(unit.twins) for unit in units[:4]] == [0, 27, 27, 0]
    assert sum(len(unit.sites) + len(unit.twins) for unit in units) == len(Model().sites())
    apart = list_units(segments(Model().sites(), fit.policy), lambda one, other: False)
    assert sum(map(len, apart)) == 1 + 28 * 3 + 1


def test_equal_embedders_learn_once(tiny_model, data):
    blocks = tiny_model.denoiser.transformer_blocks
    embedder = blocks[0].norm1.emb.timestep_embedder
    blocks[1].norm1.emb.timestep_embedder.load_state_dict(embedder.state_dict())
    quantized = quantize(tiny_model, recipe(AdaRound(iterations=40)), lambda: data)
    paths = [f"transformer_blocks.{{}}.norm1.emb.timestep_embedder.linear_{n}" for n in (1, 2)]
    for path in paths:
        one, two = (quantized.layers[path.format(n)] for n in range(2))
        assert torch.equal(one.rounded.codes, two.rounded.codes)
        assert torch.equal(one.quantizer.scale, two.quantizer.scale)
    ranges = quantize(tiny_model, recipe(Nearest()), lambda: data).layers[paths[0].format(1)].quantizer
    assert not torch.equal(ranges.scale, quantized.layers[paths[0].format(1)].quantizer.scale)


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


def test_importances_are_squared_gradients_of_the_output(tiny_model, data):
    parts = segments(tiny_model.sites(), {s.name for s in tiny_model.sites()})
    units = [unit for group in list_units(parts, lambda one, other: True) for unit in group]
    found = importances(tiny_model, data, units, seed=3)
    assert "after" not in found
    assert found["block_000"].shape == (10, 1, 32)
    assert found["pos_embed.proj"].shape == (10, 32, 1, 1)
    assert found[UNITS[1]].shape == (10, 32)
    signs = torch.stack(
        [torch.randint(0, 2, (8, 8, 8), generator=generator(3, "fisher", n)) * 2.0 - 1 for n in range(10)]
    )
    seen = []
    block = tiny_model.denoiser.transformer_blocks[0]
    handle = block.register_forward_hook(
        lambda m, args, output: seen.append(output.detach().requires_grad_()) or seen[-1]
    )
    output = tiny_model.denoise(data.x, data.t, data.y)
    handle.remove()
    (gradient,) = torch.autograd.grad((output * signs).sum(), seen)
    squares = gradient.square().mean(1, keepdim=True)
    torch.testing.assert_close(found["block_000"], squares / squares.mean())
    assert all(p.grad is None for p in tiny_model.denoiser.parameters())


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
    default = Learning()
    assert (default.round_weight, default.warmup, default.beta_start, default.beta_end) == (0.01, 0.2, 20, 2)
    for wrong in ({"inputs": "rounded"}, {"weighting": "curvature"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            AdaRound(**wrong)
