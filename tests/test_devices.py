"""Recipes, metrics and a whole run where the network is on an accelerator: a simulated one, as tests have no GPU.

A tensor that is made on the wrong device fails here as it would there; numbers are those of the CPU.
"""

from unittest.mock import patch

import pytest
import torch
import torch._dynamo
from helpers import text_models
from helpers.configs import config
from helpers.elsewhere import HERE, simulated

from qdit.assets import CONF
from qdit.calibration import CalibrationData
from qdit.method import quantize
from qdit.model.adapter import moved
from qdit.runs.parts import build_recipe

HARD = {"apq_vit", "q_hyvit", "passion_sr", "ptq_vit"}
HARD |= {"ditas", "hq_dit", "ptq4dm", "q_diffusion", "svdquant_gptq", "tfmq_dm", "viditq_v1", "eda_dm", "ptq4dit"}
HARD |= {"awq_clip", "qdit_w4a4", "qdit_w4a8", "quarot"}
"""Recipes that take long even here, or whose parts others have: in the slow tests."""
NOT_HERE = {"fp", "load", "external", "ptqd", "mixdq"}
"""Nothing is quantized, or it takes a sampler."""
NAMES = sorted({path.stem for path in (CONF / "quantizer").glob("*.yaml")} - NOT_HERE)


def points():
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    visited = list(range(0, 1000, 125))[::-1]
    origin = torch.stack([torch.zeros(8, dtype=torch.long), torch.arange(8)], 1)
    return CalibrationData(x, torch.tensor(visited), torch.arange(8) % 10, 3, visited=visited, origin=origin)


def recipe(name):
    """A recipe with groups that fit into the tiny model, and as little work as it allows."""
    whole = config(f"quantizer={name}", "sampler.steps=8")
    words = [f"{g}.group_size=8" for g in ("weight", "activation") if whole[g].get("group_size")]
    for group in ("weight", "activation", "attention"):
        if "hessian" in str((whole[group].get("range") or {}).get("_target_")):
            words += [f"{group}.range.candidates=4", f"{group}.range.tokens=32"]  # fewer than groups of timesteps
    if (whole["activation"].get("time") or {}).get("groups", 1) > 8:
        words.append("activation.time.groups=4")
    words += ["rounding.iterations=2"] if "iterations" in whole["rounding"] else []
    words += ["transform.iterations=2"] if "iterations" in whole["transform"] else []
    made = build_recipe(config(f"quantizer={name}", "bits=w4a8", "sampler.steps=8", *words))
    assert made is not None
    return made


@torch.no_grad()
def output(model, data, made):
    with made.installed(model):
        where = model.device
        return model.denoise(data.x.to(where), data.t.to(where), data.y.to(where)).cpu()


def there(model):
    """The model on the simulated device."""
    model.denoiser.to(HERE)
    return moved(model)


def both(load, data, name):
    """What a network that is quantized here predicts, and one that is quantized there."""
    model = load()
    expected = output(model, data, quantize(model, recipe(name), lambda: data))
    with simulated(), patch("torch.cuda.get_device_capability", lambda *_: (7, 0)):
        model = there(load())
        found = output(model, data, quantize(model, recipe(name), lambda: data))
    return expected, found


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HARD else n for n in NAMES])
def test_a_recipe_fits_and_runs_where_the_network_is(name, tiny_pipeline):
    from qdit.model.dit import DiT

    expected, found = both(lambda: DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.float32), points(), name)
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()  # a code at an edge may go the other way


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("pixart_sigma", name) for name in ("svdquant", "tq_dit", "vidit_q")),
        *(("sd3", name) for name in ("smoothquant", "rtn")),
        ("qwen_image", "rtn"),
        ("latte", "vidit_q"),
        *(pytest.param("latte", name, marks=pytest.mark.slow) for name in ("q_dit", "tq_dit")),
        *(pytest.param("qwen_image", name, marks=pytest.mark.slow) for name in ("eda_dm", "ptq4vit", "tq_dit")),
        pytest.param("sd3", "qdit_w4a4", marks=pytest.mark.slow),
    ],
)
def test_texts_masks_and_clips_too(family, name, tmp_path):
    model = text_models.load(family, tmp_path)
    expected, found = both(lambda: text_models.load(family, tmp_path), text_models.points(model, 8), name)
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


def test_tensors_of_two_devices_do_not_meet():
    x, y = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    with simulated() as device:
        there = x.to(device)
        assert (there.device, (there + 1).device, there.cpu().device) == (HERE, HERE, torch.device("cpu"))
        assert torch.equal((there * 2.0 + torch.tensor(1.0)).cpu(), x * 2 + 1)
        assert torch.equal(there[:, [2, 0]].cpu(), x[:, [2, 0]])
        for meet in (lambda: there + y, lambda: torch.stack([there[0, 0], y[0, 0]]), lambda: y[there[0].long() > 1]):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                meet()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        leaf = there.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(leaf.square().sum(), leaf)
        assert torch.equal(gradient.cpu(), 2 * x)


@pytest.mark.slow
@pytest.mark.parametrize(("execution", "capability"), [("simulated", (7, 0)), ("int8", (8, 0))])
def test_a_whole_run_samples_and_is_judged_there(execution, capability, tmp_path):
    import qdit

    words = ["num_samples=40", "batch_size=20", "sampler.steps=2", "eval=[fidelity,all_lite0]", "quantizer=rtn"]
    words += ["bits=w8a8", f"execution={execution}"]
    here = qdit.run(*words, f"runs_dir={tmp_path / 'here'}", f"cache_dir={tmp_path / 'own'}")
    with (
        simulated(),
        patch("torch.cuda.device_count", lambda: 1),
        patch("torch.cuda.get_device_name", lambda *_: "simulated"),
        patch("torch.cuda.get_device_capability", lambda *_: capability),
    ):
        found = qdit.run(*words, "device=cuda:0", f"runs_dir={tmp_path / 'there'}", f"cache_dir={tmp_path / 'other'}")
    assert here is not None
    assert found is not None
    for name, metric in here["metrics"].items():  # some are shares of 40 samples
        assert found["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-2, abs=0.05), (
            name
        )  # a share of 40 samples
