"""Folders that diffusers writes and reads: the script of the README as written, and what is wrong with others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import qdit
from qdit.errors import UserError

FOLDER = Path(qdit.__file__).parents[1]
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
POINTS = ("calibration.num_samples=8", "calibration.per_trajectory=2", "calibration.batch_size=4")
RECIPES = {
    "dynamic": ("rtn", "weight=group", "weight.group_size=16"),
    "static": ("rtn", "activation=tensor", "scope=all", *POINTS),
    "time": ("rtn", "activation=time_grouped", "activation.time.groups=2", "attention=multi_region", *POINTS),
    "rotated": ("quarot", "rounding=nearest"),
    "by_range": ("viditq_v1", *POINTS),
    "lowrank": (
        *("svdquant", "transform.steps.lowrank.rank=4", "transform.steps.lowrank.iterations=2"),
        *("weight.group_size=16", "activation.group_size=16", *POINTS),
    ),
}
FRESH = """
import sys
import numpy, torch
import qdit
from diffusers import DiTPipeline
for folder in sys.argv[1:]:
    pipe = DiTPipeline.from_pretrained(folder)
    images = pipe([1, 7], num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
    numpy.save(folder + ".npy", images)
"""


def images(pipe):
    return pipe([1, 7], num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images


@pytest.fixture
def saved(tiny_pipe, tmp_path) -> Path:
    qdit.quantize(tiny_pipe.transformer, *RECIPES["dynamic"])
    tiny_pipe.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("which", ["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def test_every_kind_of_recipe_is_reloaded_by_a_fresh_process_with_equal_images(which, request, tmp_path):
    import numpy

    pipe = request.getfixturevalue("tiny_pipe") if which == "tiny" else qdit.embedded()
    data = qdit.calibrate(pipe, num_samples=4, steps=4)
    original, made = images_of_full_precision(pipe), {}
    for kind, words in RECIPES.items():
        qdit.quantize(pipe.transformer, *words, bits="w4a4", data=data)
        made[kind] = images(pipe)
        pipe.save_pretrained(tmp_path / kind)
        qdit.dequantize(pipe.transformer)
    folders = [str(tmp_path / kind) for kind in RECIPES]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path])}
    subprocess.run([sys.executable, "-c", FRESH, *folders], check=True, env=environment, cwd=tmp_path)
    for kind, folder in zip(RECIPES, folders, strict=True):
        assert numpy.array_equal(numpy.load(f"{folder}.npy"), made[kind]), kind
        assert not numpy.array_equal(made[kind], original), kind
    assert numpy.array_equal(images_of_full_precision(pipe), original)


def images_of_full_precision(pipe):
    with qdit.full_precision(qdit.quantize(pipe.transformer, *RECIPES["dynamic"])):
        found = images(pipe)
    qdit.dequantize(pipe.transformer)
    return found


def test_the_file_holds_packed_codes_and_what_stayed_in_full_precision(saved, tiny_pipeline):
    config = json.loads((saved / "transformer" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "qdit"
    assert config["policy"]["transformer_blocks.0.attn1.to_q"]["weight"]["bits"] == 4
    with safe_open(saved / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as stream:
        names = set(stream.keys())
        codes = stream.get_tensor("transformer_blocks.0.attn1.to_q.codes")
    assert (codes.dtype, codes.numel()) == (torch.uint8, 32 * 32 // 2)
    assert "transformer_blocks.0.norm1.linear.weight" in names
    assert "transformer_blocks.0.attn1.to_q.weight" not in names


def test_a_folder_that_was_read_is_saved_again_as_it_was(saved, tmp_path):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(saved)
    pipe.save_pretrained(tmp_path / "again")
    headers = []
    for folder in (saved, tmp_path / "again"):
        with safe_open(folder / "transformer" / WEIGHTS, "pt") as stream:
            headers.append(stream.metadata())  # with the digest of all tensors
    assert headers[0] == headers[1]
    with pytest.raises(UserError, match="holds no full-precision weights"):
        qdit.dequantize(pipe.transformer)
    with pytest.raises(UserError, match="quantized already"):
        qdit.quantize(pipe.transformer, "rtn")


def change(folder: Path, file: str, edit) -> None:
    path = folder / "transformer" / file
    if file.endswith(".json"):
        content = json.loads(path.read_text())
        edit(content["quantization_config"])
        path.write_text(json.dumps(content))
        return
    with safe_open(path, "pt") as stream:
        tensors, about = {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata()  # noqa: SIM118
    edit(tensors, about)
    save_file(tensors, path, about)


SITE = "transformer_blocks.0.attn1.to_q"
DAMAGE = {
    "format": (CONFIG, lambda c: c.update(format=2), "in format 2"),
    "no keys": (CONFIG, lambda c: c.pop("policy"), "config.json is damaged"),
    "other bits": (CONFIG, lambda c: c["policy"][SITE]["weight"].update(bits=8), "another save, or was changed"),
    "a tensor": (WEIGHTS, lambda t, about: t[f"{SITE}.codes"].add_(1), "tensors were changed"),
    "a missing tensor": (WEIGHTS, lambda t, about: t.pop("proj_out_1.weight"), "tensors were changed"),
    "no header": (WEIGHTS, lambda t, about: about.clear(), "not of qdit"),
    "header": (WEIGHTS, lambda t, about: about.update(qdit=about["qdit"].replace("rounded", "wounded")), "header"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_foreign_folder_is_refused_in_one_message(saved, kind):
    from diffusers import DiTTransformer2DModel

    file, edit, message = DAMAGE[kind]
    change(saved, file, edit)
    with pytest.raises(UserError, match=message):
        DiTTransformer2DModel.from_pretrained(saved / "transformer")


def test_another_dtype_and_a_pickle_are_refused(saved, tiny_pipe):
    from diffusers import DiTTransformer2DModel

    with pytest.raises(UserError, match=r"quantized in torch\.float32"):
        DiTTransformer2DModel.from_pretrained(saved / "transformer", torch_dtype=torch.bfloat16)
    with pytest.raises(UserError, match="no pickle"):
        tiny_pipe.transformer.save_pretrained(saved / "pickle", safe_serialization=False)


def test_half_precision_keeps_its_float32_scales(tiny_pipeline, tmp_path):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(tiny_pipeline / "transformer", torch_dtype=torch.bfloat16)
    qdit.quantize(model, "rtn")
    model.save_pretrained(tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.get_submodule(SITE).rounded.grid.scale.dtype == model.get_submodule(SITE).rounded.grid.scale.dtype


def test_what_is_quantized_for_a_while_is_not_saved_as_if_it_were_the_original(tiny_model, tmp_path):
    from helpers.checkpoints import fitted

    with fitted(tiny_model).installed(tiny_model), pytest.raises(UserError, match="only for a while"):
        tiny_model.denoiser.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    tiny_model.denoiser.save_pretrained(tmp_path)
