"""Charts of where the error comes from stay numbers when a layer is dead, exact or diverges."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import QuantSpec
from qdit.quantized import Quantized
from qdit.runs.diagnose import Trajectory, layer_report, timestep_curve

SITE = "transformer_blocks.0.attn1.to_q"
SPEC = LayerSpec(weight=QuantSpec(bits=4), activation=None)


class Times(nn.Module):
    """Stands for a quantized layer: the layer's output times a factor."""

    def __init__(self, layer: nn.Linear, factor: float) -> None:
        super().__init__()
        self.weight, self.bias, self.factor = layer.weight, layer.bias, factor

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias) * self.factor


@pytest.fixture
def path():
    """Two steps of two samples, random."""
    states = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Trajectory(states, [900, 100], states, torch.tensor([1, 2]))


@pytest.mark.parametrize(("factor", "expected"), [(float("nan"), -120), (float("inf"), -120), (1.0, 120), (0.9, 20)])
def test_layers(tiny_model, path, factor, expected):
    layer = tiny_model.denoiser.get_submodule(SITE)
    assert isinstance(layer, nn.Linear)
    (row,) = layer_report(tiny_model, Quantized(Policy({SITE: SPEC}), {SITE: Times(layer, factor)}), path)
    assert row["sqnr"] == pytest.approx(expected, abs=0.01)
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("output", [0.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("state", [0.0, 1.0])
def test_timesteps(tiny_model, path, output, state):
    """Whatever the network gives, against a signal that may be zero."""
    sampler: Any = SimpleNamespace(predict=lambda model, x, t, y: torch.full_like(x, output))
    held = Trajectory(path.states, path.timesteps, path.outputs * state, path.labels)
    curve = timestep_curve(tiny_model, sampler, Quantized(Policy(), {}), held)
    json.dumps(curve, allow_nan=False)
    assert all(-120 <= y <= 120 for y in curve["y"])
