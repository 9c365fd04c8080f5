"""AdaRound's units: which there are, how a killed fit goes on, equal layers, and the weights of their errors."""

import pytest
import torch
from helpers.adaround_parts import BLOCKS, OPERANDS, QUICK, TOKEN, points, recipe, steps

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import segments
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.method import quantize
from qdit.model.dit import list_sites
from qdit.rounding import AdaRound, Nearest
from qdit.rounding.reconstruction import session
from qdit.rounding.reconstruction.fisher import importances
from qdit.rounding.reconstruction.session import Session
from qdit.rounding.reconstruction.units import list_units
from qdit.seeding import generator


@pytest.fixture
def data() -> CalibrationData:
    """Ten points, in batches that are not all full."""
    return points(10)


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


@pytest.mark.parametrize(
    "killed_at", [pytest.param(n, marks=() if n in (1, 6) else pytest.mark.slow) for n in (0, 1, 3, 4, 6, 7)]
)
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


def test_foreign_files_are_refused_and_damaged_ones_made_again(tiny_model, data, tmp_path):
    quantize(tiny_model, recipe(AdaRound(**QUICK), ["qkv"]), lambda: data, tmp_path)
    with pytest.raises(UserError, match=r"block_000\.safetensors holds other weights"):
        quantize(tiny_model, recipe(AdaRound(**QUICK), BLOCKS), lambda: data, tmp_path)
    file = tmp_path / "block_000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(b"nothing")
    quantize(tiny_model, recipe(AdaRound(**QUICK), ["qkv"]), lambda: data, tmp_path)
    assert file.read_bytes() == whole


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


def test_importances_are_squared_gradients_of_the_output(tiny_model, data):
    parts = segments(tiny_model.sites(), {s.name for s in tiny_model.sites()})
    units = [unit for group in list_units(parts, lambda one, other: True) for unit in group]
    found = importances(tiny_model, data, units, seed=3)
    assert "after" not in found
    assert found["block_000"][0].shape == (10, 1, 32)
    assert found["pos_embed.proj"][0].shape == (10, 32, 1, 1)
    assert found[UNITS[1]][0].shape == (10, 32)
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
    torch.testing.assert_close(found["block_000"][0], squares / squares.mean())
    assert all(p.grad is None for p in tiny_model.denoiser.parameters())


def test_where_nothing_reaches_the_prediction_all_outputs_count_alike(tiny_model, data):
    torch.nn.init.zeros_(tiny_model.denoiser.transformer_blocks[1].norm1.linear.weight)  # as before any training
    parts = segments(tiny_model.sites(), {s.name for s in tiny_model.sites()})
    units = [unit for group in list_units(parts, lambda one, other: False) for unit in group]
    found = importances(tiny_model, data, units, seed=3)
    assert (found["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1"][0] == 1).all()
    assert all(own.isfinite().all() for parts in found.values() for own in parts)


@pytest.mark.parametrize(("bits", "iterations"), [(4, 3), (3, 12)])
@pytest.mark.parametrize("unit", ["relative", "absolute"])
def test_the_schedule_of_a_unit_follows_its_bits_and_the_unit_of_steps(tiny_model, monkeypatch, bits, iterations, unit):
    seen = []
    monkeypatch.setattr(session, "reconstruct", lambda task, learner, how, *others: seen.append((how, learner)))
    how = AdaRound(iterations=3, low_bits=4, step_unit=unit)
    quantize(tiny_model, recipe(how, BLOCKS, bits=(bits, 8)), lambda: points(4))
    assert [learning.iterations for learning, _ in seen] == 2 * [iterations]
    steps = [step for _, learner in seen for step in learner.steps.values()]
    assert steps
    assert all(bool((step.unit == 1).all()) == (unit == "absolute") for step in steps)
    assert all(torch.equal(step.scale, step.quantizer.scale) for step in steps)
