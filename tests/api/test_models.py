"""Quantizing what is in memory: the same layers as a run's, in place, and back."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import qdit
from qdit.api.compose import composed_recipe
from qdit.api.models import _described
from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.method import quantize

STATIC = ("rtn", "activation=tensor", "calibration.num_samples=8", "calibration.per_trajectory=2")
TIMED = ("rtn", "activation=time_grouped", "activation.time.groups=2", *STATIC[2:])


def points(n=4):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


@torch.no_grad()
def output(transformer, t=500):
    x, y = points()
    return transformer(x, timestep=torch.full((len(x),), t), class_labels=y).sample


def test_it_is_the_quantization_of_a_run(tiny_pipe, tiny_model):
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    method = qdit.recipe(*STATIC, bits="w4a8")
    run = quantize(tiny_model, method, lambda: data.picked(method.calibration, tiny_model))
    qdit.quantize(tiny_pipe.transformer, *STATIC, data=data)
    x, y = points()
    with run.installed(tiny_model), torch.no_grad():
        expected = tiny_model.denoise(x, torch.full((4,), 500), y)
    assert torch.equal(output(tiny_pipe.transformer), expected)
    assert qdit.policy(tiny_pipe.transformer) == run.policy


def test_the_points_are_those_of_a_run(tiny_pipe, tiny_model):
    from qdit.dataset.base import Dataset
    from qdit.dataset.labels import RandomLabels

    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    source = qdit.recipe(*STATIC).calibration
    about = {"name": "x", "num_classes": 10, "image_size": 16, "reference": "none", "strategy": RandomLabels()}
    expected, found = source.collect(tiny_model, data.sampler, Dataset(**about), 0), data.picked(source, tiny_model)
    torch.testing.assert_close(found.x, expected.x)
    assert torch.equal(found.y, expected.y)
    assert torch.equal(found.t, expected.t)
    assert found.timesteps == expected.timesteps


def test_points_by_density_are_those_of_a_run_and_ranges_are_a_step_of_the_datas(tiny_pipe, tiny_model):
    """EDA-DM looks at features, and TFMQ-DM has as many ranges as the data's sampler has steps."""
    data = qdit.calibrate(tiny_pipe, num_samples=8, steps=5)
    few = ("calibration.num_samples=12", "calibration.per_trajectory=3", "calibration.probes=2")
    source = qdit.recipe("eda_dm", *few).calibration
    expected = source.collect(tiny_model, data.sampler, data.dataset, 0)
    found = data.picked(source, tiny_model)
    assert torch.equal(found.t, expected.t)
    torch.testing.assert_close(found.x, expected.x)
    other = qdit.recipe("eda_dm", *few, "calibration.variety=50").calibration
    assert sorted(data.picked(other, tiny_model).t.tolist()) != sorted(found.t.tolist())
    words = ("rounding.iterations=2", "calibration.num_samples=20", "calibration.per_trajectory=5")
    qdit.quantize(tiny_pipe.transformer, "tfmq_dm", *words, data=data)
    layer = qdit.policy(tiny_pipe.transformer)["transformer_blocks.0.ff.net.2"]
    assert layer.activation is not None
    assert layer.activation.time_groups == 5


def test_the_original_comes_back_bit_for_bit(tiny_pipe):
    before = output(tiny_pipe.transformer)
    with qdit.full_precision(qdit.quantize(tiny_pipe.transformer, "rtn", bits="w4a4")) as model:
        assert torch.equal(output(model), before)
        assert "quantization_config" not in model.config
    assert not torch.equal(output(tiny_pipe.transformer), before)
    qdit.dequantize(tiny_pipe.transformer)
    assert torch.equal(output(tiny_pipe.transformer), before)
    assert not tiny_pipe.transformer._forward_pre_hooks
    qdit.quantize(
        tiny_pipe.transformer, "rtn", "attention=uniform", *STATIC[2:], data=qdit.calibrate(tiny_pipe, steps=2)
    )
    qdit.dequantize(tiny_pipe.transformer)
    assert torch.equal(output(tiny_pipe.transformer), before)


def test_stock_calls_tell_layers_the_time_and_copies_have_a_clock_of_their_own(tiny_pipe):
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    transformer = qdit.quantize(tiny_pipe.transformer, *TIMED, bits="w4a4", data=data)
    early, late = output(transformer, 0), output(transformer, 750)
    x, y = points()
    with torch.no_grad():
        mixed = transformer(x, timestep=torch.tensor([0, 0, 750, 750]), class_labels=y).sample
    torch.testing.assert_close(mixed, torch.cat([early[:2], late[2:]]))
    twin = deepcopy(transformer)
    assert torch.equal(output(twin, 750), late)
    qdit.dequantize(twin)
    assert torch.equal(output(transformer, 750), late)


def test_checkpoints_of_format_1(tiny_pipe, tmp_path):
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    transformer = qdit.quantize(tiny_pipe.transformer, *STATIC, data=data)
    expected, cost = output(transformer), qdit.cost(transformer)
    qdit.save(transformer, tmp_path / "checkpoint")
    qdit.load(tmp_path / "checkpoint", qdit.dequantize(transformer))
    assert torch.equal(output(transformer), expected)
    assert qdit.cost(transformer) == cost


def test_a_long_fit_is_taken_up(tiny_pipe, tmp_path):
    words = ("quarot", "rounding=gptq", *STATIC[2:])
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    first = output(qdit.quantize(tiny_pipe.transformer, *words, data=data, cache_dir=tmp_path))
    assert list(tmp_path.rglob("*.safetensors"))
    qdit.dequantize(tiny_pipe.transformer)
    assert torch.equal(output(qdit.quantize(tiny_pipe.transformer, *words, data=data, cache_dir=tmp_path)), first)


def test_finished_blocks_are_found_whatever_keys_are_newer_and_not_where_numbers_changed():
    described = _described(*composed_recipe("q_dit", (), "w4a8"))
    assert "versions" not in described
    assert "repair" not in described
    assert described["bits"] == {"name": "w4a8", "weight": 4, "activation": 8}
    assert not {"scale"} & (described["weight"].keys() | described["activation"].keys())
    assert _described(*composed_recipe("qdit_w4a8", (), "nvfp4"))["versions"] == {"two_levels": 2}


def test_a_search_samples_as_the_trajectories_were(tiny_pipe):
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    words = ("mixdq", "calibration.num_samples=8", "calibration.per_trajectory=2")
    qdit.quantize(tiny_pipe.transformer, *words, bits="w4a8", data=data)
    assert {spec.weight_bits for spec in qdit.policy(tiny_pipe.transformer).values()} <= {2, 4, 8}


def refusals(pipe):
    other = CalibrationData(torch.zeros(1, 4, 4, 4), torch.zeros(1).long(), torch.zeros(1).long(), 1)
    yield lambda: qdit.quantize(pipe.transformer, "rnt"), r"no recipe 'rnt'; did you mean rtn\?"
    yield lambda: qdit.quantize(pipe.transformer, "fp"), "fp is no recipe that quantizes"
    yield lambda: qdit.quantize(pipe.transformer, "rtn", bits="w9a9"), "bits/w9a9"
    yield lambda: qdit.quantize(pipe.transformer, "rtn", "weight.nonsense=1"), "nonsense"
    yield lambda: qdit.quantize(pipe.transformer, "rtn", "weight"), "no word of the command line"
    yield lambda: qdit.quantize(pipe.transformer, "rtn", "scope=none"), "selects nothing"
    yield lambda: qdit.quantize(pipe, "rtn"), r"no adapter for a DiTPipeline.*pipe\.transformer"
    yield lambda: qdit.quantize(torch.nn.Linear(2, 2), "rtn"), "no adapter for a Linear"
    yield lambda: qdit.quantize(pipe.transformer, *STATIC), "needs calibration data"
    yield lambda: qdit.quantize(pipe.transformer, "ptqd"), "corrects the sampler"
    yield lambda: qdit.quantize(pipe.transformer, "mixdq"), "searches"
    yield lambda: qdit.quantize(pipe.transformer, *STATIC, data=other), "data is of another model: states"
    yield lambda: qdit.calibrate(pipe.transformer), "is no pipeline"
    yield lambda: qdit.calibrate(pipe, [10]), "one class of 0 to 9"
    yield lambda: qdit.calibrate(pipe, num_samples=0), "num_samples=0; allowed"
    yield lambda: qdit.calibrate(pipe, steps=0), "sampler.steps=0"
    yield lambda: qdit.policy(pipe.transformer), "not quantized by qdit"
    yield lambda: qdit.fidelity(pipe), "not quantized by qdit"


def test_every_mistake_has_one_message(tiny_pipe):
    for mistake, message in refusals(tiny_pipe):
        with pytest.raises(UserError, match=message):
            mistake()
    data = qdit.calibrate(tiny_pipe, num_samples=1, steps=2)
    with pytest.raises(UserError, match=r"takes 8 points of 4 trajectories, and the data has 1.*num_samples=4"):
        qdit.quantize(tiny_pipe.transformer, *STATIC, data=data)
    with torch.no_grad():
        tiny_pipe.transformer.proj_out_1.bias += 1
    with pytest.raises(UserError, match="other weights"):
        qdit.quantize(tiny_pipe.transformer, *STATIC, data=data)
    qdit.quantize(tiny_pipe.transformer, "rtn")
    with pytest.raises(UserError, match=r"quantized already \(rtn-w4a8\)"):
        qdit.quantize(tiny_pipe.transformer, "rtn")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_samples": 8.5}, "num_samples=8.5; allowed: a whole number from 1"),
        ({"num_samples": "8"}, "num_samples='8'; allowed"),
        ({"seed": -1}, "seed=-1; allowed"),
        ({"conditions": "cat face"}, r"a list is needed, such as \['cat face'\]"),
        ({"conditions": 5}, r"a list is needed, such as \[5\]"),
        ({"conditions": [1.7]}, "takes classes, which are numbers"),
        ({"conditions": [True]}, "takes classes, which are numbers"),
        ({"conditions": []}, "at least one class"),
    ],
)
def test_what_is_no_calibration_is_refused(tiny_pipe, given, said):
    with pytest.raises(UserError, match=said):
        qdit.calibrate(tiny_pipe, steps=2, **given)


def test_an_embedded_model_of_another_name_is_refused():
    with pytest.raises(UserError, match=r"there is no embedded model 'emoji_pixrt'.*did you mean emoji_pixart"):
        qdit.embedded("emoji_pixrt")


@pytest.mark.parametrize("classes", [np.array([3, 1]), torch.tensor([3, 1]), [np.int64(3), 1], (3, 1)])
def test_classes_are_whole_numbers_of_any_kind(tiny_pipe, classes):
    assert qdit.calibrate(tiny_pipe, classes, num_samples=2, steps=2).y.tolist() == [3, 3, 1, 1]
