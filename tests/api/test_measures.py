"""What is said of a quantized model: policy, cost, summary, and how close it is to full precision."""

import pytest

import qdit
from qdit.errors import UserError
from qdit.sampler.ddim import DDIM

POINTS = ("calibration.num_samples=8", "calibration.per_trajectory=2")


def test_a_folder_that_was_read_says_the_same_of_itself(tiny_pipe, tmp_path):
    from diffusers import DiTPipeline

    words = ("vidit_q", "attention=uniform", *POINTS)
    qdit.quantize(tiny_pipe.transformer, *words, data=qdit.calibrate(tiny_pipe, num_samples=4, steps=4))
    tiny_pipe.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path)
    assert qdit.policy(again.transformer) == qdit.policy(tiny_pipe.transformer)
    assert qdit.cost(again.transformer) == qdit.cost(tiny_pipe.transformer)
    assert qdit.cost(again.transformer).run_time_bops > 0
    frame = qdit.summary(again.transformer)
    assert frame.equals(qdit.summary(tiny_pipe.transformer))
    assert frame.loc["transformer_blocks.0.attn1.probs", "role"] == "probs"
    assert (frame.weight_bits == 16).any()
    with pytest.raises(UserError, match="holds no full-precision weights"):
        qdit.fidelity(again, "sampler.steps=2", n=2)
    original = qdit.fidelity(tiny_pipe, "sampler.steps=2", n=2)
    qdit.dequantize(tiny_pipe.transformer)
    assert qdit.fidelity(again, "sampler.steps=2", n=2, reference=tiny_pipe).equals(original)


def test_fidelity_is_that_of_the_metrics_with_errors(tiny_pipe):
    frame = {}
    for bits in ("w4a8", "w8a8"):
        qdit.quantize(tiny_pipe.transformer, "rtn", bits=bits)
        frame[bits] = qdit.fidelity(tiny_pipe, "sampler.steps=2", n=4, metrics=["sqnr", "latent_mse"])
        qdit.dequantize(tiny_pipe.transformer)
    assert frame["w8a8"].value["sqnr"] > frame["w4a8"].value["sqnr"]
    assert frame["w8a8"].value["latent_mse"] < frame["w4a8"].value["latent_mse"]
    assert (frame["w8a8"].stderr > 0).all()
    assert frame["w8a8"].n.tolist() == [4, 4]


def test_metrics_are_told_what_samples_show(tiny_pipe, monkeypatch):
    found = []
    compared = lambda measures, *drawn: found.extend(drawn)  # noqa: E731
    for module in ("measures", "judging"):
        monkeypatch.setattr(f"qdit.api.{module}.compared", compared)
    qdit.quantize(tiny_pipe.transformer, "rtn", bits="w8a8")
    qdit.fidelity(tiny_pipe, "sampler.steps=2", n=3)
    qdit.judge(tiny_pipe, tiny_pipe, "sampler.steps=2", n=3, metrics=["psnr"])
    assert len(found) == 4
    assert all(len(each.prompts) == each.n == 3 and each.clusters is None for each in found)


def test_metrics_of_a_data_set_are_refused(tiny_pipe):
    with pytest.raises(UserError, match=r"fid_lite0 compares no pairs.*qdit\.run"):
        qdit.fidelity(tiny_pipe, metrics=["fid_lite0"])
    with pytest.raises(UserError, match="n=0"):
        qdit.fidelity(tiny_pipe, n=0)
    for number in (2.5, float("nan"), "4", True):
        with pytest.raises(UserError, match="allowed: a whole number from 1"):
            qdit.fidelity(tiny_pipe, n=number)
    with pytest.raises(UserError, match=r"seed=-1; allowed"):
        qdit.fidelity(tiny_pipe, seed=-1)


def test_metrics_of_features_have_their_network_and_lack_weights_before_anything_is_sampled(tiny_pipe, monkeypatch):
    qdit.quantize(tiny_pipe.transformer, "rtn", bits="w8a8")
    metrics = ["sqnr", "feature_distance_lite0"]
    frame = qdit.fidelity(tiny_pipe, "sampler.steps=2", n=2, metrics=metrics)
    assert (frame.value > 0).all()
    judged = qdit.judge(tiny_pipe, tiny_pipe, "sampler.steps=2", n=2, metrics=metrics)
    assert judged.value["feature_distance_lite0"] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(DDIM, "sample", lambda *_, **__: pytest.fail("sampled"))
    monkeypatch.setenv("QDIT_WEIGHTS", "nowhere")
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.pth"):
        qdit.fidelity(tiny_pipe, n=2, metrics=["lpips_alex"])
