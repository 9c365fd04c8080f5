"""Judging what others quantized: folders that diffusers loads, sampled by their own call on one noise."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.configs import composed
from helpers.pipelines import write_text_pipeline

import qdit
from qdit.errors import UserError
from qdit.model.pipeline import Called
from qdit.runs.external import stored_bits
from qdit.runs.run import run
from qdit.seeding import generator
from qdit.tables import build_table, load_results, render

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny PixArt in full precision, by torchao in int8 (loaded by stock diffusers), and by qdit; read only."""
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    root = tmp_path_factory.mktemp("judge")
    write_text_pipeline(root / "full", "pixart_sigma", heads=6)
    ao = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    network = PixArtTransformer2DModel.from_pretrained(
        root / "full" / "transformer", quantization_config=ao, torch_dtype=torch.float32
    )
    PixArtSigmaPipeline.from_pretrained(root / "full", transformer=network).save_pretrained(root / "ao")
    pipe = PixArtSigmaPipeline.from_pretrained(root / "full")
    qdit.quantize(pipe.transformer, "rtn", bits="w4a8")
    pipe.save_pretrained(root / "own")
    return root


@pytest.fixture
def words(folders, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\nblue dog on a table\n")
    places = [f"model.against={folders / 'full'}", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    sizes = ["num_samples=3", "batch_size=2", "sampler.steps=2", "device=cpu", "sampler.guidance=3.0"]
    call = "sampler.call={height: 16, width: 16, use_resolution_binning: false, clean_caption: false}"
    return ["model=pipeline", "study=judge", *places, *sizes, call, f"dataset.file={tmp_path / 'prompts.txt'}"]


def test_folders_of_others_and_of_qdit_stand_in_one_table(folders, words, tmp_path):
    ao = run(composed(*words, f"model.path={folders / 'ao'}"))
    own = run(composed(*words, f"model.path={folders / 'own'}"))
    assert ao is not None
    assert own is not None
    assert ao["protocol_id"] == own["protocol_id"]
    assert ao["cost"]["executed"] == own["cost"]["executed"] == "external"
    assert ao["metrics"]["sqnr"]["value"] > own["metrics"]["sqnr"]["value"] + 5  # 8 bits, and 4
    assert ao["metrics"]["psnr"]["n"] == 3
    assert ao["metrics"]["psnr"]["stderr"] > 0
    assert 8 < ao["cost"]["weight_bits_model"] < 12
    assert "bops" not in ao["cost"]
    assert own["cost"]["bops"] > 0
    text = render(build_table(load_results(tmp_path / "runs", "judge"), metrics=["sqnr", "psnr"]), "markdown")
    assert all(word in text for word in ("full precision", "| ao ", "| own "))
    before = [path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert run(composed(*words, f"model.path={folders / 'ao'}")) == ao  # done already
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")] == before


def test_overwrite_judges_again(folders, words, tmp_path):
    first = run(composed(*words, f"model.path={folders / 'own'}"))
    assert first is not None
    record = tmp_path / "runs" / "judge" / f"{first['name']}-{first['run_id']}" / "result.json"
    before = record.stat().st_mtime_ns
    again = run(composed(*words, f"model.path={folders / 'own'}", "overwrite=true"))
    assert again is not None
    assert record.stat().st_mtime_ns != before
    assert again["metrics"]["sqnr"]["value"] == first["metrics"]["sqnr"]["value"]


def test_it_samples_what_the_stock_call_samples(folders):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folders / "ao", torch_dtype=torch.float32)
    called = Called(pipe, ["a red cat", "blue dog", ""])
    size = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    seeds = [generator(0, "latent", i) for i in (0, 1)]
    made = called.decode(called.call(torch.tensor([1, 0]), seeds, **size))
    seeds = [generator(0, "latent", i) for i in (0, 1)]
    stock = pipe(["blue dog", "a red cat"], generator=seeds, output_type="pt", **size).images
    assert made.shape == stock.shape
    assert (made.float() - 255 * stock).abs().max() <= 1
    assert "decode" not in vars(pipe.vae)


def test_classes_and_their_null_class(tiny_pipe):
    called = Called(tiny_pipe, None)
    made = called.call(torch.tensor([1, 7]), [generator(0, "latent", i) for i in (0, 1)], num_inference_steps=2)
    assert made.shape == (2, 4, 8, 8)
    assert (called.num_classes, called.image_size) == (10, 16)
    assert tiny_pipe.transformer._forward_pre_hooks == {}


def test_the_plan_says_what_is_judged(folders, words, tmp_path, capsys):
    assert run(composed(*words, f"model.path={folders / 'own'}", "dry=true")) is None
    judged, full = capsys.readouterr().out.splitlines()[-2:]
    assert judged.startswith(f"model.path={folders / 'own'} (own): ")
    assert full.endswith("16.00 bits a weight over the transformer")
    assert not (tmp_path / "runs").exists()


def test_every_mistake_is_one_message(folders, words, tmp_path):
    def refused(*more):
        with pytest.raises(UserError) as found:
            run(composed(*words, *more))
        return str(found.value)

    good = f"model.path={folders / 'ao'}"
    assert "model_index.json is missing" in refused(f"model.path={tmp_path}")
    assert "quantizer=rtn is a recipe of qdit's: leave it out" in refused(good, "quantizer=rtn")
    assert "give the folder of the same pipeline in full precision" in refused(good, "model.against=null")
    words = [word for word in words if not word.startswith(("dataset.file", "sampler.call"))]
    assert "takes no class_labels; use another dataset" in refused(good, "dataset=emoji")
    assert "does not take strength; it takes" in refused(good, "sampler.call={strength: 1}")
    assert "sampler.call has generator, which qdit gives" in refused(good, "sampler.call={generator: 1}")


def test_a_negative_prompt_that_the_call_would_not_show_is_refused(folders, words, tmp_path):
    good = [f"model.path={folders / 'ao'}", "dataset.negative=blurry"]
    with pytest.raises(UserError, match="negative='blurry' has no effect: .* guidance_scale=1; use one above 1"):
        run(composed(*words, *good, "sampler.guidance=1", "dry=true"))
    assert run(composed(*words, *good, "dry=true")) is None
    assert run(composed(*words, *good, "dataset.negative=''", "sampler.guidance=1", "dry=true")) is None


def test_a_call_says_what_hides_its_negative_prompt():
    class Flux:
        def __call__(self, prompt, negative_prompt=None, true_cfg_scale=1.0, guidance_scale=3.5): ...

    class Klein:
        def __call__(self, prompt, guidance_scale=4.0): ...

    def called(kind):
        pipe: Any = kind()
        network: Any = torch.nn.Linear(1, 1)
        network.config, network.device, network.dtype = SimpleNamespace(), torch.device("cpu"), torch.float32
        pipe.transformer, pipe.vae, pipe.set_progress_bar_config = network, torch.nn.Identity(), lambda **_: None
        return Called(pipe, ["a cat", "blurry"])

    assert "use one above 1 (sampler.call={true_cfg_scale: 4})" in str(called(Flux).hides_null({"guidance_scale": 9.0}))
    assert called(Flux).hides_null({"true_cfg_scale": 2}) is None
    again = called(Flux).hides_null({"true_cfg_scale": 2, "negative_prompt": "dark"})
    assert again == "sampler.call has another negative_prompt; leave one of them out"
    assert "the call of a Klein takes no negative_prompt" in str(called(Klein).hides_null({}))


def test_a_missing_package_is_one_message(folders, words, tmp_path):
    import shutil

    copy = shutil.copytree(folders / "full", tmp_path / "foreign")
    config = json.loads((copy / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "sdnq", "weights_dtype": "int8"}
    (copy / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"model.path={copy} needs a package that is not here: .*sdnq"):
        run(composed(*words, f"model.path={copy}"))


def test_stored_bits_are_those_of_codes_and_of_16_bits():
    layer = torch.nn.Linear(8, 4, bias=True)
    layer.register_buffer("codes", torch.zeros(4, 4, dtype=torch.uint8))
    assert stored_bits(layer) == 16 * (32 + 4) + 8 * 16
