"""Models that leave: a run's folder becomes one that diffusers reads, with a card; and which recipe goes where."""

import json

import pytest
import torch

import qdit
from qdit.api import exports
from qdit.api.compose import composed_recipe
from qdit.checkpoint.installed import needed, replacements
from qdit.cli import recall
from qdit.errors import UserError
from qdit.exports.forms import form_of, forms_of
from qdit.exports.targets import TARGETS

SMALL = (
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=none"),
    *("sampler.steps=2", "num_samples=4", "batch_size=4", "eval=paired", "device=cpu"),
)


def images(pipe):
    return pipe(
        [1, 7], guidance_scale=1.0, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np"
    ).images


@pytest.fixture(scope="module")
def run(tiny_pipeline, tmp_path_factory):
    """The folder of a run, and its pipeline, quantized by its checkpoint."""
    from diffusers import DiTPipeline

    root = tmp_path_factory.mktemp("run")
    places = (f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}", f"model.path={tiny_pipeline}")
    record = qdit.run("quantizer=rtn", "bits=w8a8", *SMALL, *places)
    assert record is not None
    pipe = DiTPipeline.from_pretrained(tiny_pipeline, low_cpu_mem_usage=False)
    [folder] = (root / "runs" / "default").glob("rtn-*")
    qdit.load(folder, pipe.transformer)
    return folder, pipe


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_is_exported_with_its_metrics_and_reloaded(target, run, tmp_path):
    from diffusers import DiTPipeline
    from huggingface_hub import ModelCard

    folder, pipe = run
    qdit.export(folder, tmp_path / "mine", target)
    assert {file.suffix for file in (tmp_path / "mine").rglob("*.*")} <= {".json", ".safetensors", ".md"}
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert {result.metric_type for result in card.data.eval_results} >= {"sqnr", "psnr"}
    record = json.loads((folder / "result.json").read_text())
    assert f"$ {recall.command([record['config']])}\n" in card.text  # which tests/cli/test_recall.py composes again
    assert "$ qdit quantizer=rtn" in card.text
    assert 'DiTPipeline.from_pretrained("mine", torch_dtype=torch.float32)' in card.text
    found = DiTPipeline.from_pretrained(tmp_path / "mine", torch_dtype=torch.float32)
    if target == "diffusers":
        assert (images(found) == images(pipe)).all()
    assert abs(images(found) - images(pipe)).max() < 1e-3


def test_a_transformer_alone_is_exported_and_reloaded(run, tmp_path):
    transformer = run[1].transformer
    given = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.tensor([1, 2]))
    for target in TARGETS:
        qdit.export(transformer, tmp_path / target, target)
        found = type(transformer).from_pretrained(tmp_path / target, torch_dtype=torch.float32)
        assert torch.allclose(found(*given, return_dict=False)[0], transformer(*given, return_dict=False)[0], atol=1e-4)
        assert f'DiTTransformer2DModel.from_pretrained("{target}"' in (tmp_path / target / "README.md").read_text()


def test_what_cannot_be_is_refused_before_anything_is_written(tiny_pipe, run, tmp_path):
    with pytest.raises(UserError, match="is not quantized"):
        qdit.export(tiny_pipe, tmp_path / "mine")
    with pytest.raises(UserError, match="no folder of a finished run"):
        qdit.export(tmp_path / "no_run", tmp_path / "mine")
    with pytest.raises(UserError, match="no export to 'onnx'"):
        qdit.export(run[1], tmp_path / "mine", "onnx")
    assert not (tmp_path / "mine").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        qdit.export(run[1], tmp_path / "full")


def test_an_export_is_uploaded_where_that_is_wanted(run, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(exports, "upload", lambda folder, repo: given.append((folder, repo)))
    qdit.export(run[1], tmp_path / "mine", "diffusers", push="me/rtn")
    assert given == [(tmp_path / "mine", "me/rtn")]
    assert 'from_pretrained("me/rtn"' in (tmp_path / "mine" / "README.md").read_text()


def test_the_table_says_yes_with_which_words_or_no_and_why():
    frame = qdit.targets("ptqd", "quarot", "rtn", "smoothquant")
    assert frame["torchao"].to_dict() == {
        "ptqd": "no: quantized patch embedding, rounded operands of attentions",
        "quarot": "no: rotation of inputs at run time",
        "rtn": "yes",
        "smoothquant": "with `weight.grid=symmetric`",
    }
    assert frame["diffusers"].to_dict() == {"ptqd": "with `correction=none`"} | dict.fromkeys(frame.index[1:], "yes")


def test_an_unknown_recipe_has_no_row_and_all_have_one_where_none_is_named(monkeypatch):
    with pytest.raises(UserError, match="there is no recipe 'gptq'; there are apq_vit, awq"):
        qdit.targets("gptq")
    monkeypatch.setattr(exports, "recipes", lambda: ["rtn"])
    assert qdit.targets(bits="w4a4")["torchao"].to_dict() == {"rtn": "no: inputs of 4 bits, but of 8"}


PLANNED = {
    "rtn": (),
    "smoothquant": (),
    "awq": ("weight.group_size=16",),
    "quarot": ("rounding=nearest",),
    "repq_vit": (),
    "svdquant": ("transform.steps.lowrank.rank=4", "weight.group_size=16", "activation.group_size=16"),
    "viditq_v1": (),
    "q_diffusion": ("rounding=nearest", "weight.range.candidates=4"),
}


@pytest.mark.parametrize("name", PLANNED)
def test_what_a_recipe_is_said_to_make_is_what_a_fit_makes(name, tiny_pipe):
    points = ("calibration.num_samples=8", "calibration.batch_size=4", "calibration.per_trajectory=2")
    words = (*PLANNED[name], *(() if name == "rtn" else points))
    data = qdit.calibrate(tiny_pipe, num_samples=4, steps=4)
    network = tiny_pipe.transformer
    qdit.quantize(network, name, *words, bits="w8a8", data=data)
    state = needed(network)
    made = {
        path.removesuffix(".processor"): form
        for path, layer in replacements(state.quantized).items()
        if not (form := form_of(layer)).is_plain
    }
    adapter = state.adapter
    qdit.dequantize(network)
    planned = forms_of(composed_recipe(name, words, "w8a8")[0], adapter)
    assert made.keys() == planned.keys()
    for path, form in planned.items():
        assert (form.weight, form.inputs) == (made[path].weight, made[path].inputs), path
        assert {*form.parts} >= {*made[path].parts}, path  # a factor of 1 is left out
        assert bool(form.parts) == bool(made[path].parts) or name in ("smoothquant", "awq", "repq_vit"), path


def test_bits_that_are_not_there_are_refused_and_no_cells():
    with pytest.raises(UserError, match="bits=w9a9: there is no such option"):
        qdit.targets("rtn", bits="w9a9")
