"""A pass of calibration data tells those that watch it which points are running."""

import torch

from qdit.calibration.data import CalibrationData, Pass


def test_a_pass_says_what_each_batch_is_shown(tiny_model):
    t, y = torch.tensor([1, 5, 9]), torch.tensor([2, 0, 7])
    data = CalibrationData(torch.randn(3, *tiny_model.latent_shape), t, y, batch_size=2)
    calls, seen = Pass(tiny_model, data), []
    handle = tiny_model.denoiser.register_forward_hook(lambda *_: seen.append((calls.t.tolist(), calls.y.tolist())))
    try:
        calls.run()
    finally:
        handle.remove()
    assert seen == [([1, 5], [2, 0]), ([9], [7])]
