"""GPTQ of a whole network: streaming against whole passes, sharing, resuming, and every way to choose."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from qdit.activation import DynamicActivation
from qdit.calibration import CalibrationData, NoCalibration
from qdit.calibration.blocks import segments
from qdit.config import build
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.method import Method, quantize
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MSE, MinMax
from qdit.rounding import GPTQ, Nearest, gptq
from qdit.rounding.gptq_columns import InputHessian, curvature, round_columns
from qdit.scope import Scope
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
ALL = [*BLOCKS, "adaln", "embedder", "final"]
CONF = Path(__file__).parents[2] / "conf"


def recipe(
    rounding, roles=BLOCKS, bits=(4, 8), granularity="group", group_size=16, grid="asymmetric", rule=None, **more
):
    return Method(
        scope=Scope(roles=roles),
        weight=WeightGrid(granularity=granularity, group_size=group_size, grid=grid, range=rule or MinMax(), **more),
        activation=DynamicActivation(granularity="row", grid="asymmetric"),
        rounding=rounding,
        weight_bits=bits[0],
        activation_bits=bits[1],
        calibration=None,
    )


@pytest.fixture
def data(tiny_model) -> CalibrationData:
    """Ten points, of which four have the null class, in batches that are not all full."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 3, 9, 10, 10, 1, 2, 10, 5, 10])
    return CalibrationData(
        torch.randn(10, 4, 8, 8, generator=generator), torch.randint(0, 1000, (10,), generator=generator), labels, 4
    )


def rounded(model, parts, data, folder=None):
    return {name: layer.weight for name, layer in quantize(model, parts, lambda: data, folder).layers.items()}


def inputs_by_whole_passes(model, layers, stage, fit, data):
    """The Hessians of the rounded inputs of a stage's sites, seen by hooks while the whole network runs."""
    hessians = {site.name: InputHessian() for site in stage}
    pending: set[str] = set()

    def see(name, layer, args):
        if name not in pending:  # the output layer runs block 0's embedder a second time
            return
        pending.discard(name)
        x = args[0]
        if layer.patch:
            x = torch.nn.functional.unfold(x, layer.patch, stride=layer.patch).transpose(1, 2)
        hessians[name].add(fake_quantize(x, fit.policy[name].activation))

    with replaced(model.denoiser, layers):
        for name in hessians:
            layers[name].register_forward_pre_hook(lambda layer, args, name=name: see(name, layer, args))
        for x, t, y in data.batches(model):
            pending |= set(hessians)
            model.denoise(x, t, y)
    return hessians


def by_whole_passes(model, parts, data):
    """What streaming must equal: for every segment, or stage of one, the whole network runs."""
    method, weights = parts.rounding, {}
    fit = Fit(model, parts, parts.plan(model.sites()), lambda: data)
    for part in segments(model.sites(), fit.policy):
        for stage in [part.sites] if method.order == "together" else part.stages():
            layers = {s.name: QuantLinear(fit.layer(s), weights.get(s.name), fit.quantizers[s.name]) for s in fit.sites}
            hessians = inputs_by_whole_passes(model, layers, stage, fit, data)
            for site in stage:
                curve = curvature(hessians[site.name].value(), method.damping, method.act_order, site.name)
                spec = fit.policy[site.name].weight
                weights[site.name] = round_columns(fit.weight_of(site), curve, spec, parts.weight.fit, 128)
    return {name: found.weight for name, found in weights.items()}


@torch.no_grad()
@pytest.mark.parametrize("order", ["together", "sequential"])
@pytest.mark.parametrize("roles", [BLOCKS, ALL, ["final"], ["qkv", "adaln"]], ids=["blocks", "all", "final", "two"])
def test_streaming_equals_whole_passes(tiny_model, data, order, roles):
    parts = recipe(GPTQ(order=order), roles)
    streamed, expected = rounded(tiny_model, parts, data), by_whole_passes(tiny_model, parts, data)
    assert streamed.keys() == expected.keys()
    for name, weight in streamed.items():
        assert torch.equal(weight, expected[name]), name


def test_orders_differ_and_attention_inputs_do_not_see_it(tiny_model, data):
    together, sequential = (rounded(tiny_model, recipe(GPTQ(order=o)), data) for o in ("together", "sequential"))
    differ = {name.split(".", 1)[1] for name in together if not torch.equal(together[name], sequential[name])}
    assert "0.attn1.to_q" not in differ
    assert "0.ff.net.2" in differ


def test_readers_of_one_input_share_a_hessian(tiny_model, data, monkeypatch):
    seen = []
    monkeypatch.setattr(gptq, "curvature", lambda *a: seen.append(a[-1]) or curvature(*a))
    rounded(tiny_model, recipe(GPTQ()), data)
    assert [name.split(".", 2)[2] for name in seen] == ["attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"] * 2


def test_hessian_sees_every_point_the_null_class_too(tiny_model, data, monkeypatch):
    rows = []
    monkeypatch.setattr(
        InputHessian, "add", lambda self, x, add=InputHessian.add: rows.append(x.flatten(0, -2)) or add(self, x)
    )
    rounded(tiny_model, recipe(GPTQ(), roles=["adaln"]), data)
    assert [len(r) for r in rows] == [4, 4, 2] * 2  # a row a sample: ten points in each of two blocks
    nulls = torch.cat(rows[:3])[data.y == 10]
    assert nulls.abs().sum() > 0


def test_full_precision_inputs_depend_on_nothing_quantized(tiny_model, data):
    wanted = rounded(tiny_model, recipe(GPTQ(inputs="full_precision"), bits=(3, 8)), data)
    for other in (
        recipe(GPTQ(inputs="full_precision"), bits=(3, 2)),
        recipe(GPTQ(inputs="full_precision", order="sequential"), bits=(3, 8)),
    ):
        found = rounded(tiny_model, other, data)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    seen = rounded(tiny_model, recipe(GPTQ(), bits=(3, 8)), data)
    assert not torch.equal(seen["transformer_blocks.1.ff.net.2"], wanted["transformer_blocks.1.ff.net.2"])


@torch.no_grad()
@pytest.mark.parametrize(
    "weight",
    [
        {"granularity": "row", "group_size": None},
        {"granularity": "tensor", "group_size": None},
        {"group_size": 8},
        {"group_size": 32, "grid": "symmetric_full"},
        {"grid": "symmetric", "rule": MSE(candidates=10)},
        {"grid": "asymmetric_free"},
    ],
    ids=str,
)
def test_every_weight_option_comes_closer_to_full_precision_than_nearest(tiny_model, data, weight):
    x, t, y = data.x, data.t, data.y
    expected = tiny_model.denoise(x, t, y)
    errors = []
    for rounding in (Nearest(), GPTQ(order="sequential")):
        with quantize(tiny_model, recipe(rounding, bits=(3, 16), **weight), lambda: data).installed(
            tiny_model
        ) as model:
            errors.append(float((model.denoise(x, t, y) - expected).square().mean()))
    assert errors[1] < errors[0]
    assert torch.equal(tiny_model.denoise(x, t, y), expected)


class Killed(Exception):
    pass


NVFP4 = {"grid": "e2m1", "scale": "e4m3"}


@pytest.mark.parametrize(
    ("killed_at", "format"), [("before", {}), ("block_000", {}), ("block_001", {}), ("after", {}), ("block_001", NVFP4)]
)
def test_resumed_fit_ends_with_the_bytes_of_an_undisturbed_one(
    tiny_model, data, tmp_path, monkeypatch, killed_at, format
):
    parts = recipe(GPTQ(), ALL, **format)
    rounded(tiny_model, parts, data, tmp_path / "undisturbed")
    visited = []

    def visit(self, fit, walk, segment, kill, original=GPTQ.round_segment):
        visited.append(segment.name)
        if segment.name == kill:
            raise Killed
        return original(self, fit, walk, segment)

    monkeypatch.setattr(GPTQ, "round_segment", lambda *a: visit(*a, kill=killed_at))
    with pytest.raises(Killed):
        rounded(tiny_model, parts, data, tmp_path / "killed")
    finished, visited[:] = len(visited) - 1, []
    monkeypatch.setattr(GPTQ, "round_segment", lambda *a: visit(*a, kill=None))
    rounded(tiny_model, parts, data, tmp_path / "killed")
    assert visited == ["before", "block_000", "block_001", "after"][finished:]
    for file in (tmp_path / "undisturbed").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


@pytest.mark.parametrize("format", [{}, NVFP4, {"grid": "e2m1", "scale": "e8m0", "group_size": 32}])
def test_finished_fit_needs_no_data(tiny_model, data, tmp_path, format):
    parts = recipe(GPTQ(), **format)
    first = rounded(tiny_model, parts, data, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["block_000.safetensors", "block_001.safetensors"]

    def refuse():
        raise AssertionError("no data is needed")

    again = quantize(tiny_model, parts, refuse, tmp_path)
    assert all(torch.equal(again.layers[name].weight, first[name]) for name in first)


def test_foreign_files_are_refused_and_damaged_ones_made_again(tiny_model, data, tmp_path, caplog):
    first = rounded(tiny_model, recipe(GPTQ(), ["qkv"]), data, tmp_path)
    with pytest.raises(UserError, match=r"block_000\.safetensors holds other weights"):
        rounded(tiny_model, recipe(GPTQ()), data, tmp_path)
    with pytest.raises(UserError, match=r"block_000\.safetensors holds other weights"):
        rounded(tiny_model, recipe(GPTQ(), ["qkv"], group_size=32), data, tmp_path)
    file = tmp_path / "block_000.safetensors"
    whole = file.read_bytes()
    for damaged in (b"nothing", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        file.write_bytes(damaged)
        caplog.clear()
        again = rounded(tiny_model, recipe(GPTQ(), ["qkv"]), data, tmp_path)
        assert all(torch.equal(again[name], weight) for name, weight in first.items())
        assert "block_000.safetensors is damaged" in caplog.text
        assert file.read_bytes() == whole


@torch.no_grad()
def test_no_12_sixteen_bits_and_no_sites_change_nothing(tiny_model, data):
    def refuse():
        raise AssertionError("no data is needed")

    x, t, y = data.x, data.t, data.y
    expected = tiny_model.denoise(x, t, y)
    for parts in (recipe(GPTQ(), bits=(16, 16)), recipe(GPTQ(), roles=[])):
        quantized = quantize(tiny_model, parts, refuse)
        with quantized.installed(tiny_model) as model:
            assert torch.equal(model.denoise(x, t, y), expected)
    weights = rounded(tiny_model, recipe(GPTQ(), bits=(16, 8)), data)
    assert all(torch.equal(w, tiny_model.denoiser.get_parameter(f"{n}.weight")) for n, w in weights.items())


def test_segments_hold_the_chosen_sites_in_forward_order(tiny_model):
    sites = tiny_model.sites()
    found = segments(sites, {s.name for s in sites})
    assert [s.name for s in found] == ["before", "block_000", "block_001", "after"]
    assert [s.block for s in found] == [None, "transformer_blocks.0", "transformer_blocks.1", None]
    assert [site for part in found for site in part.sites] == sites
    assert [len(stage) for stage in found[1].stages()] == [1, 1, 1, 3, 1, 1, 1]
    with pytest.raises(UserError, match="no transformer blocks"):
        segments(sites[:1], set())


def test_what_cannot_be_is_refused(tiny_model):
    for wrong in ({"damping": -0.1}, {"block_size": 0}, {"order": "backwards"}, {"inputs": "rounded"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            GPTQ(**wrong)
    parts = recipe(GPTQ())
    object.__setattr__(parts, "calibration", NoCalibration())
    assert any("calibration=none" in problem for problem in parts.problems(tiny_model.sites()))


def test_inputs_that_are_not_finite_are_refused_by_name(tiny_model, data):
    data.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"transformer_blocks\.0\.attn1\.to_q are not finite"):
        rounded(tiny_model, recipe(GPTQ()), data)


def test_the_option_holds_the_class_defaults():
    assert build(OmegaConf.load(CONF / "rounding" / "gptq.yaml")) == GPTQ()
