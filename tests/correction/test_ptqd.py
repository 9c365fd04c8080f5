"""PTQD's three parts: recovered where they are known, harmless where there is no error, and used by the sampler."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qdit.activation import DynamicActivation
from qdit.calibration import NoCalibration
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.correction import PTQD, NoiseCorrection
from qdit.correction.ptqd import Moments
from qdit.dataset.base import Dataset
from qdit.dataset.labels import RandomLabels
from qdit.errors import UserError
from qdit.method import Method, quantize
from qdit.quant.ranges import MinMax
from qdit.rounding import Nearest
from qdit.runs.diagnose import timestep_curve, trajectory
from qdit.sampler.ddim import DDIM
from qdit.sampler.ddpm import DDPM
from qdit.sampler.dpm_solver import DPMSolver
from qdit.scope import Scope
from qdit.setting import Setting
from qdit.storage.tensors import load_tensors
from qdit.weight import WeightGrid


class Counted(Dataset):
    """The classes of sample numbers in turn."""

    def labels(self, indices, seed):
        return torch.tensor([i % 10 for i in indices])


LABELS = Counted(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())
PTQD_8 = PTQD(name="ptqd", num_samples=8, batch_size=3)


def sampler(kind=DDIM, **changes):
    defaults = {"name": "test", "steps": 4, "guidance": 1.5, "guided_channels": 3, "eta": 0.0, "spacing": "linspace"}
    return kind(**(defaults | changes))


def recipe(bits=(4, 8), correction=PTQD_8):
    return Method(
        scope=Scope(roles=["qkv", "attn_out", "ffn_up", "ffn_down"]),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        activation=DynamicActivation(granularity="row", grid="asymmetric"),
        rounding=Nearest(),
        calibration=NoCalibration(),
        correction=correction,
        weight_bits=bits[0],
        activation_bits=bits[1],
    )


def fit(model, bits=(4, 8), correction=PTQD_8, folder=None, **changes):
    setting = Setting(sampler=sampler(**changes), dataset=LABELS, folder=folder)  # pyright: ignore[reportArgumentType]
    return quantize(model, recipe(bits, correction), lambda: pytest.fail("no data is needed"), None, setting)


def synthetic(slope, bias, std, n=64, seed=0):
    """Pairs (ε, ε̂ - ε) [n, 4, 8, 8] with known parts."""
    rng = np.random.default_rng(seed)
    full = rng.normal(0.1, 1.0, (n, 4, 8, 8))
    error = slope * full + np.reshape(bias, (1, 4, 1, 1)) + std * rng.normal(size=full.shape)
    return torch.tensor(full), torch.tensor(error)


def moments_of(full, error, batch=5):
    moments = Moments(4)
    for x, d in zip(full.split(batch), error.split(batch), strict=True):
        moments.add(x, d)
    return moments


@pytest.mark.parametrize("slope", [0.08, -0.05])
def test_moments_are_the_three_lines_of_the_definition(slope):
    full, error = synthetic(slope, [0.1, -0.2, 0.0, 0.3], 0.2)
    k = max(np.polyfit(full.flatten(), error.flatten(), 1)[0], 0)
    rest = error - k * full
    b = rest.mean((0, 2, 3))
    found = moments_of(full, error).solve()
    assert found[0] == pytest.approx(k)
    torch.testing.assert_close(found[1], b)
    assert found[2] == pytest.approx((rest - b[:, None, None]).var(unbiased=False).item())


def test_known_parts_are_recovered():
    bias, std, n = [0.1, -0.2, 0.0, 0.3], 0.2, 64
    slope, found, variance = moments_of(*synthetic(0.08, bias, std, n)).solve()
    elements = n * 64
    # The biases of the channels are uncorrelated with ε, and blur the slope like noise of their own standard deviation.
    assert abs(slope - 0.08) < 3 * (std**2 + np.var(bias)) ** 0.5 / (4 * elements) ** 0.5
    assert (found - torch.tensor(bias)).abs().max() < 4 * std / elements**0.5
    assert abs(variance**0.5 - std) < 3 * std / (2 * 4 * elements) ** 0.5


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.3])
def test_the_error_on_the_data_of_the_fit_never_grows(slope):
    full, error = synthetic(slope, [0.1, -0.2, 0.0, 0.3], 0.5, n=4)
    k, b, v = moments_of(full, error).solve()
    correction = NoiseCorrection(torch.tensor([7]), torch.tensor([k]), b[None], torch.tensor([v]))
    after = correction.output(full + error, 7) - full
    assert after.square().mean() <= error.square().mean()
    assert after.var() == pytest.approx(correction.error(7), rel=1e-3)


def test_a_constant_output_has_no_slope():
    k, b, v = moments_of(torch.ones(2, 4, 8, 8), torch.full((2, 4, 8, 8), 0.5)).solve()
    assert (k, v) == (0.0, 0.0)
    assert torch.equal(b, torch.full((4,), 0.5, dtype=torch.float64))


def test_without_an_error_nothing_changes(tiny_model):
    quantized = fit(tiny_model, bits=(16, 16))
    assert quantized.correction is not None
    state = quantized.correction.state_dict()
    assert not any(state[name].any() for name in ("slope", "bias", "variance"))
    labels = torch.tensor([1, 2])
    for kind, eta in ((DDIM, 0.0), (DDIM, 1.0), (DDPM, 1.0), (DPMSolver, 1.0)):
        each = sampler(kind, eta=eta)
        plain = each.sample(tiny_model, [0, 1], labels, 0)
        fitted = fit(tiny_model, bits=(16, 16), kind=kind, eta=eta).correction
        assert torch.equal(each.sample(tiny_model, [0, 1], labels, 0, hook=fitted), plain)


def test_the_fitted_pairs_get_better_and_the_curve_shows_it(tiny_model):
    quantized = fit(tiny_model, bits=(3, 8))
    assert quantized.correction is not None
    assert quantized.correction.timesteps.tolist() == sampler().timesteps(tiny_model)
    drawn = trajectory(tiny_model, sampler(), LABELS, 0, 8)
    path = type(drawn)(drawn.states, drawn.timesteps, drawn.outputs[:, :, :4], drawn.labels)
    noise = SimpleNamespace(predict=lambda *args: sampler().predict(*args)[:, :4])  # without the learned variance
    with_it = timestep_curve(tiny_model, noise, quantized, path)  # pyright: ignore[reportArgumentType]
    bare = fit(tiny_model, bits=(3, 8), correction=None)
    without = timestep_curve(tiny_model, noise, bare, path)  # pyright: ignore[reportArgumentType]
    assert all(a > b - 0.1 for a, b in zip(with_it["y"], without["y"], strict=True))
    assert sum(with_it["y"]) > sum(without["y"])


def test_full_precision_is_untouched_by_a_fit(tiny_model):
    before = {n: p.clone() for n, p in tiny_model.denoiser.named_parameters()}
    modules = dict(tiny_model.denoiser.named_modules())
    fit(tiny_model)
    assert dict(tiny_model.denoiser.named_modules()) == modules
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.denoiser.named_parameters())


def test_a_fit_is_read_from_its_folder(tiny_model, tmp_path):
    first = fit(tiny_model, folder=tmp_path).correction
    never = PTQD(name="ptqd", num_samples=1, batch_size=1)
    again = fit(tiny_model, folder=tmp_path, correction=never).correction
    assert first is not None
    assert again is not None
    rebuilt = NoiseCorrection(**load_tensors(tmp_path / "correction.safetensors"))
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(rebuilt.state_dict()[name], value)


@pytest.mark.parametrize(("kind", "eta", "said"), [(DDIM, 0.0, 1), (DDIM, 0.5, 0), (DDPM, 1.0, 0), (DPMSolver, 1.0, 1)])
def test_what_is_not_corrected_is_said_once(tiny_model, caplog, kind, eta, said):
    with caplog.at_level(logging.INFO, "qdit"):
        fit(tiny_model, kind=kind, eta=eta)
    assert sum("the variance is not" in r.getMessage() for r in caplog.records) == said


def test_other_timesteps_other_predictions_and_divergence_are_refused(tiny_model, monkeypatch):
    correction = fit(tiny_model).correction
    assert correction is not None
    with pytest.raises(UserError, match="not fitted at timestep 3, but at 999, 666, 333, 0"):
        correction.output(torch.zeros(1, 8, 8, 8), 3)
    with pytest.raises(UserError, match="num_samples=0"):
        PTQD(name="ptqd", num_samples=0, batch_size=1)
    assert PTQD_8.problems(tiny_model) == []
    speed = SimpleNamespace(scheduler_config=lambda: {"prediction_type": "v_prediction"})
    (problem,) = PTQD_8.problems(speed)  # pyright: ignore[reportArgumentType]
    assert problem.endswith("this model predicts v_prediction")
    monkeypatch.setattr("qdit.nn.linear.QuantLinear.forward", lambda self, x: nn.functional.linear(x, self.weight) / 0)
    with pytest.raises(UserError, match="is not finite"):
        fit(tiny_model)


def test_a_checkpoint_holds_the_correction(tiny_model, tmp_path):
    quantized = fit(tiny_model)
    save(quantized, tmp_path, provenance(tiny_model))
    loaded = load(tmp_path, tiny_model)
    samples = []
    for each in (quantized, loaded):
        assert each.correction is not None
        with each.installed(tiny_model):
            samples.append(sampler().sample(tiny_model, [0, 1], torch.tensor([1, 2]), 0, hook=each.correction))
    assert torch.equal(*samples)
