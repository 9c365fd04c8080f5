"""Wan 2.2 A14B: the stock pipeline's latents, two networks of which each is fitted at its own timesteps, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.family_checks import check_all_can_be_quantized
from helpers.joint_pipelines import write_wan_pipeline

import qdit
from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.exports.history import read_pipeline
from qdit.ledger import ledger
from qdit.method import quantize
from qdit.model.wan import LoadedWan, Wan
from qdit.model.wan_a14b import NETWORKS, WanA14B
from qdit.policies import Policy
from qdit.runs.checks import too_many_groups
from qdit.runs.diagnose import Trajectory, layer_report, reported
from qdit.runs.sampling import called
from qdit.sampler.pipeline import PipelineSampler
from qdit.sampler.two_scales import TwoScalesSampler
from qdit.seeding import noise

PROMPTS = ["a red  cat", "Blue dog &amp; table", ""]
ABOUT = {"name": "tiny", "text_length": 12, "frames": 9, "height": 64, "width": 64}
OPTIONS = {"name": "wan", "steps": 4, "guided_channels": None, "eta": 0.0, "spacing": "scheduler"}
TIMES = [999, 900, 750, 500]
"""Of four steps; the boundary lies at 875."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline; read only."""
    return write_wan_pipeline(tmp_path_factory.mktemp("wan") / "a14b", boundary=0.875)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    option = WanA14B(path=str(folder), **ABOUT)
    table = option.encode(PROMPTS, tmp_path_factory.mktemp("cache"), torch.device("cpu"))
    return option.load("cpu", torch.float32, table)


@pytest.fixture(scope="module")
def data(model):
    """Six points, in batches of three, which both networks are in."""
    x = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([999, 750, 500, 900, 500, 999]), torch.tensor([0, 1, 2, 1, 0, 2])
    return CalibrationData(x, t, y, 3, visited=TIMES)


def alone(model, name):
    """One of the networks as a Wan 2.1 of its own."""
    size = {"frames": model.frames, "height": model.height, "width": model.width}
    parts = model.denoiser[name], None, None, model.device, model.dtype
    return LoadedWan(*parts, table=model.table, text_length=12, **size)


def sampler(first=3.0, second=2.0, **changes):
    return TwoScalesSampler(**(OPTIONS | {"guidance": first, "guidance_2": second} | changes))


@pytest.mark.parametrize(("first", "second"), [(3.0, 2.0), (3.0, 1.0), (1.0, 1.0)])
def test_latents_are_those_of_the_stock_pipeline(model, folder, first, second):
    import diffusers

    stock = diffusers.WanPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    start = torch.stack([noise(7, "latent", i, model.latent_shape) for i in (0, 1)])
    rows = [model.table.at(torch.tensor(n), torch.float32)["encoder_hidden_states"] for n in ([0, 1], [2, 2])]
    given = {"prompt_embeds": rows[0], "negative_prompt_embeds": rows[1], "latents": start}
    scales = {"guidance_scale": first, "guidance_scale_2": second}
    options = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}
    expected = stock(**given, **scales, **options)[0]
    assert sampler().timesteps(model) == TIMES
    assert torch.equal(sampler(first, second).sample(model, [0, 1], torch.tensor([0, 1]), seed=7), expected)
    if first == second:
        plain = PipelineSampler(**OPTIONS, guidance=first)
        assert torch.equal(plain.sample(model, [0, 1], torch.tensor([0, 1]), seed=7), expected)


def test_both_networks_have_sites_attentions_and_folds_by_their_names(model):
    sites, attentions, folds = model.sites(), model.attentions(), model.folds()
    assert [turn.name for turn in model.turns()] == list(NETWORKS)
    halves = [turn.model for turn in model.turns()]
    assert [site for half in halves for site in half.sites()] == sites
    assert [attention for half in halves for attention in half.attentions()] == attentions
    assert [fold for half in halves for fold in half.folds()] == folds
    assert len({site.name for site in sites}) == 2 * len(halves[0].sites())
    assert {site.block: site.path for site in sites if site.path} == {
        n: f"{NETWORKS[n // 2]}.blocks.{n % 2}" for n in range(4)
    }
    second = alone(model, NETWORKS[1])
    assert [f"{NETWORKS[1]}.{site.name}" for site in second.sites()] == [site.name for site in halves[1].sites()]
    assert [fold.readers for fold in second.folds()] == [
        tuple(name.removeprefix("transformer_2.") for name in fold.readers) for fold in halves[1].folds()
    ]


def test_a_batch_of_both_networks_is_divided(model, data):
    x, t, y = next(data.batches(model))
    whole = model.denoise(x, t, y)
    for n in range(3):
        part = model.denoiser[NETWORKS[int(t[n] < 875)]]
        rows = model.table.at(y[n : n + 1], torch.float32)
        found = part(x[n : n + 1], timestep=t[n : n + 1], **rows, return_dict=False)[0]
        assert torch.allclose(whole[n : n + 1], found, atol=1e-5)


def test_everything_can_be_quantized_and_at_sixteen_bits_nothing_changes(model, data):
    check_all_can_be_quantized(model, data)


WALKS = {
    "gptq": ("q_dit", "weight.group_size=16", "activation.group_size=16"),
    "tq_dit": ("tq_dit", "activation.time.groups=2"),
    "chain": ("svdquant", "transform.steps.lowrank.rank=4", "weight.group_size=16", "activation.group_size=16"),
}


@pytest.mark.parametrize("case", WALKS)
def test_each_network_is_fitted_as_if_it_were_alone(model, data, case, tmp_path):
    """As a Wan 2.1 of its own, on the points at its own timesteps: codes, ranges over time and factors are equal."""
    recipe = qdit.recipe(*WALKS[case], bits="w4a8")
    found = quantize(model, recipe, lambda: data, tmp_path / "both")
    for turn in model.turns():
        one = alone(model, turn.name)
        expected = quantize(one, recipe, lambda turn=turn: data.at(turn.takes), tmp_path / turn.name)
        assert {f"{turn.name}.{name}" for name in expected.layers} == {
            n for n in found.layers if n.startswith(f"{turn.name}.")
        }
        own = data.at(turn.takes)
        with expected.installed(one):
            wanted = one.denoise(own.x, own.t, own.y)
        with found.installed(model):
            assert torch.equal(model.denoise(own.x, own.t, own.y), wanted)


def test_a_network_that_the_scope_leaves_out_is_as_it_was(model, data):
    recipe = qdit.recipe("quarot_rtn", "scope.exclude=[transformer_2.*]", bits="w4a8")
    with quantize(model, recipe, lambda: data).installed(model):
        changed = [model.denoise(part.x, part.t, part.y) for turn in model.turns() if (part := data.at(turn.takes))]
    full = [model.denoise(part.x, part.t, part.y) for turn in model.turns() if (part := data.at(turn.takes))]
    assert [torch.equal(*pair) for pair in zip(changed, full, strict=True)] == [False, True]


REFUSED = {
    "search": (("q_dit", "search=random_small"), "search allocates .* of one; use search=none"),
    "ranges": (("viditq_v1",), "rewritten once each; use transform.each alone"),
    "density": (("rtn", "calibration=density"), "features are not alike at any time; use calibration=uniform"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_of_one_network_is_refused(model, data, case):
    words, message = REFUSED[case]
    with pytest.raises(UserError, match=f"2 networks, .*{message}"):
        quantize(model, qdit.recipe(*words, bits="w4a8"), lambda: data)


def test_a_network_needs_points_at_its_timesteps(model, data):
    late = data.at(model.turns()[1].takes)
    with pytest.raises(
        UserError, match=r"none of the 3 calibration points is at the timesteps of transformer \(875 up"
    ):
        quantize(model, qdit.recipe("smoothquant", bits="w4a8"), lambda: late)


def test_reports_show_layers_of_both_and_a_pass_costs_one(model, data):
    assert reported(model, [999, 900, 750, 500, 300], 2) == [0, 1, 2, 4]
    quantized = quantize(model, qdit.recipe("rtn", bits="w8a8"), lambda: data)
    path = Trajectory(data.x.view(3, 2, *data.x.shape[1:]), [999, 750, 500], data.x[:0], torch.tensor([0, 1]))
    assert [row["site"] for row in layer_report(model, quantized, path, 1)] == list(quantized.layers)
    late = Trajectory(path.states[1:], [750, 500], path.outputs, path.labels)
    assert {row["site"].split(".")[0] for row in layer_report(model, quantized, late)} == {"transformer_2"}
    assert called(model) == [model.denoiser[name] for name in NETWORKS]
    one = model.turns()[0].model
    both = ledger(model.denoiser, model.sites(), Policy(), model.attentions(), turns=2)
    assert both.bops == ledger(model.denoiser, one.sites(), Policy(), one.attentions()).bops
    assert both.model_bytes == sum(p.numel() for p in model.denoiser.parameters()) * 2


WRONG = {
    "one": (Wan, {}, "has boundary_ratio=0.875; use model=wan_2_2_a14b"),
    "boundary": (WanA14B, {"boundary_ratio": 0.9}, "has boundary_ratio=0.875; .* with this model.boundary_ratio"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_number_of_networks_is_refused(folder, case):
    kind, changes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        kind(path=str(folder), **(ABOUT | changes)).outline("cpu", torch.float32)


def test_networks_that_differ_or_lack_are_refused(tmp_path):
    folder = write_wan_pipeline(tmp_path / "a14b", boundary=0.875)
    file = folder / "transformer_2" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_layers": 1}))
    with pytest.raises(UserError, match="transformer and transformer_2 differ in num_layers"):
        WanA14B(path=str(folder), **ABOUT).outline("cpu", torch.float32)
    file.unlink()
    with pytest.raises(UserError, match="transformer_2"):
        WanA14B(path=str(folder), **ABOUT).outline("cpu", torch.float32)


def test_the_python_api_refuses_a_pipeline_of_two(folder):
    import diffusers

    with pytest.raises(UserError, match="two transformers, .*use qdit.run with model=wan_2_2_a14b"):
        qdit.calibrate(diffusers.WanPipeline.from_pretrained(folder), PROMPTS[:1], num_samples=1, steps=2)


def test_a_run_of_two_is_not_exported():
    with pytest.raises(UserError, match="this run quantized two networks, and an export holds one"):
        read_pipeline({"model": {"path": "x", "boundary_ratio": 0.875}})


def test_scales_that_cannot_be_are_refused(model):
    alone = SimpleNamespace(turns=list, guided="two_calls", scheduler_config=dict)
    assert "this model has one" in sampler().check(alone)[0]
    assert "sampler.guidance=1 turns guidance off" in sampler(1.0, 2.0).check(model)[0]
    assert "allowed: 1 (the conditional" in sampler(3.0, 0.5).check(model)[0]
    assert sampler().check(model) == []
    assert sampler().protocol(model).endswith("|cfg=3 on all, 2 in the second network")


def test_more_groups_of_timesteps_than_a_network_has_steps_are_said_before_a_fit(model):
    steps = [sum(bool(turn.takes(torch.tensor(t))) for t in TIMES) for turn in model.turns()]
    fewest = min(steps)
    method = qdit.recipe("tq_dit", f"activation.time.groups={fewest + 1}")
    said = too_many_groups(method, sampler(), model)
    names = [turn.name for turn, own in zip(model.turns(), steps, strict=True) if own <= fewest]
    assert [line.split(" has ")[0].split(", and ")[1] for line in said] == names
    assert all(f"use activation.time.groups={fewest} at most" in line for line in said)
    assert too_many_groups(qdit.recipe("tq_dit", f"activation.time.groups={fewest}"), sampler(), model) == []
