"""Folders for torchao: reloaded where there is no qdit, with equal codes, and outputs as near as two executions are."""

import json

import numpy
import pytest
import torch
from helpers.stock import read_by_stock_diffusers
from safetensors.torch import load_file

import qdit
from qdit.calibration import CalibrationData
from qdit.errors import UserError
from qdit.execution import executing, has_int8
from qdit.exports import torchao
from qdit.exports.kinds import centred

POINTS = ("calibration.num_samples=8", "calibration.per_trajectory=2", "calibration.batch_size=4")
CPU = torch.device("cpu")
INTX, INT8 = "IntxUnpackedToInt8Tensor", "Int8Tensor"
EXACT, NEAR, FLOOR = 50, 30, 50
"""Decibels between the images: where an input that lies between two steps may go to either, because sums are added in
another order; where the greatest may, too, or steps are others; and between qdit's own two executions."""
RECIPES = {
    "tokens": (INTX, EXACT, "w8a8", "rtn"),
    "four bits, tokens": (INTX, EXACT, "w4a8", "rtn", "weight=group", "weight.group_size=16"),
    "free zero points": (INTX, EXACT, "w4a8", "rtn", "weight.grid=asymmetric_free"),
    "symmetric weights": (INT8, EXACT, "w8a8", "rtn", "weight.grid=symmetric"),
    "symmetric inputs": (INT8, NEAR, "w8a8", "rtn", "weight.grid=symmetric", "activation.grid=symmetric_full"),
    "near": (INT8, NEAR, "w8a8", "rtn", "weight.grid=symmetric", "activation.grid=symmetric"),
    "factors at run time": (INT8, EXACT, "w8a8", "smoothquant", "weight.grid=symmetric", *POINTS),
    "static": (INT8, EXACT, "w8a8", "rtn", "weight.grid=symmetric", "activation=tensor", "scope=blocks_adaln", *POINTS),
    "one scale a tensor": (INT8, EXACT, "w8a8", "ptq4dm", "rounding=nearest", *POINTS),
    "rows alone": (INTX, EXACT, "w8a16", "rtn"),
    "groups alone": (INT8, EXACT, "w4a16", "awq", "weight.group_size=16", *POINTS),
}


def images(pipe):
    made = pipe([1, 7], guidance_scale=1.0, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np")
    return made.images


def decibels(found, expected) -> float:
    error = float(((found - expected) ** 2).sum())
    return 10 * numpy.log10(float((expected**2).sum()) / error) if error else numpy.inf


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    from diffusers import DiTPipeline

    made = DiTPipeline.from_pretrained(tiny_pipeline)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    """For each recipe its folder, the codes, scales and zero points of its layers, and its images by two executions."""
    root, made = tmp_path_factory.mktemp("exported"), {}
    data = qdit.calibrate(pipe, num_samples=4, steps=4)
    for name, (_, _, bits, *words) in RECIPES.items():
        qdit.quantize(pipe.transformer, *words, bits=bits, data=data)
        qdit.export(pipe, root / name, near=name == "near")
        layers = {path: centred(layer) for path, layer in qdit_layers(pipe)}
        with executing("simulated", CPU):
            simulated = images(pipe)
        integers = None  # without VNNI sums of pairs of bytes overflow
        if has_int8(CPU):
            with executing("int8", CPU):
                integers = images(pipe)
        made[name] = (root / name, layers, simulated, integers)
        qdit.dequantize(pipe.transformer)
    read_by_stock_diffusers([folder for folder, *_ in made.values()])
    return made


def qdit_layers(pipe):
    from qdit.checkpoint.installed import needed

    return needed(pipe.transformer).quantized.layers.items()


@pytest.mark.parametrize("name", RECIPES)
def test_a_process_without_qdit_finds_equal_codes(name, exported):
    folder, layers, *_ = exported[name]
    found = load_file(f"{folder}.safetensors")
    assert {key.removesuffix(".weight/codes") for key in found if key.endswith("/codes")} == layers.keys()
    for path, (codes, scale, zero, _) in layers.items():
        assert torch.equal(found[f"{path}.weight/codes"], codes)
        assert torch.equal(found[f"{path}.weight/scale"], scale)
        assert torch.equal(found.get(f"{path}.weight/zero", torch.zeros_like(zero)), zero)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"
    assert "qdit" not in json.dumps(config)


@pytest.mark.parametrize("name", RECIPES)
def test_a_process_without_qdit_makes_the_images(name, exported):
    folder, _, simulated, integers = exported[name]
    found, (_, bound, *_) = numpy.load(f"{folder}.npy"), RECIPES[name]
    assert decibels(found, simulated) > bound
    assert integers is None or decibels(integers, simulated) > FLOOR


@pytest.mark.parametrize("name", RECIPES)
def test_the_kind_of_tensor_is_the_one_that_is_meant(name, exported):
    from safetensors import safe_open

    folder = exported[name][0]
    with safe_open(folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as stream:
        about = stream.metadata()
    kinds = {json.loads(about[key])["_type"] for key in json.loads(about["tensor_names"])} - {"Tensor"}
    assert kinds == {RECIPES[name][0]}


REFUSED = {
    "rotation of inputs at run time": ("quarot_rtn", "w8a8"),
    "low-rank branch": (
        *("svdquant", "w8a8", "transform.steps.lowrank.rank=4", "weight.group_size=16", "activation.group_size=16"),
        *POINTS,
    ),
    r"inputs in groups \(activation=token\)": ("q_dit", "w8a8", "weight=row", "activation.group_size=16", *POINTS),
    "inputs of 4 bits": ("rtn", "w4a4"),
    "weights that change with the timestep": ("viditq_v1", "w8a8", *POINTS),
    "rounded operands of attentions": ("rtn", "w8a8", "attention=dynamic"),
    "quantized patch embedding": ("rtn", "w8a8", "scope=all"),
    r"zero points of weights \(weight.grid=symmetric\).* no factors of inputs": ("smoothquant", "w8a8", *POINTS),
    "inputs whose ranges change with the timestep": (
        *("rtn", "w8a8", "weight.grid=symmetric", "activation=time_grouped", "activation.time.groups=2"),
        *POINTS,
    ),
    "weights in e4m3": ("rtn", "fp8"),
    r"steps of max / 127 .*\(activation.grid=symmetric_full\)": (
        *("rtn", "w8a8", "weight.grid=symmetric", "activation.grid=symmetric"),
    ),
}


@pytest.fixture(scope="module")
def data(pipe):
    return qdit.calibrate(pipe, num_samples=4, steps=4)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_torchao_cannot_say_is_refused_naming_the_part_and_the_other_export(reason, pipe, data, tmp_path):
    name, bits, *words = REFUSED[reason]
    qdit.quantize(pipe.transformer, name, *words, bits=bits, data=data)
    try:
        with pytest.raises(UserError, match=f"{reason}.*which .* would need.*--to diffusers"):
            qdit.export(pipe, tmp_path / "mine")
        assert not any(tmp_path.rglob("*.safetensors"))
    finally:
        qdit.dequantize(pipe.transformer)


def test_without_torchao_the_message_says_what_to_install(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(torchao, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qdit\[export\]'"):
        torchao.stock(pipe.transformer)
    monkeypatch.undo()
    monkeypatch.setattr(torchao, "version", lambda name: "0.9.0")
    with pytest.raises(UserError, match="too old"):
        torchao.stock(pipe.transformer)


def test_a_bias_that_the_original_has_not_is_not_lost_in_silence(tmp_path):
    from diffusers import DiTTransformer2DModel

    about = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "sample_size": 8}
    network = DiTTransformer2DModel(**about, in_channels=4, attention_bias=False, num_embeds_ada_norm=10).eval()
    words = ("weight.grid=symmetric", "repair=bias", "scope=blocks")
    given = torch.randn(4, 4, 8, 8), torch.tensor([1, 50, 400, 999]), torch.arange(4)
    data = CalibrationData(*given, batch_size=4)
    qdit.quantize(network, "rtn", *words, bits="w8a8", data=data)
    with pytest.raises(UserError, match=r"transform made .*to_q.bias .*and the original has none"):
        qdit.export(network, tmp_path / "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "words", [["weight.grid=symmetric"], ["weight.grid=symmetric", "activation.grid=symmetric_full"], []]
)
def test_coarse_sums_in_bfloat16_are_warned_of(dtype, words, caplog):
    """Of `Int8Tensor` with asymmetric inputs alone: the other tensor and symmetric inputs need no correction."""
    network = qdit.embedded().transformer.to(dtype)
    qdit.quantize(network, "rtn", *words, bits="w8a8")
    torchao.stock(network)
    told = [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]
    assert len(told) == (dtype == torch.bfloat16 and words == ["weight.grid=symmetric"])
