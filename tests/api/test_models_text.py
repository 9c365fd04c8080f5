"""Pipelines that read prompts, in memory: calibrate, quantize, measure, save, and read again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.pipelines import write_text_pipeline

import qdit
from qdit.errors import UserError
from qdit.method import quantize
from qdit.model.latte import Latte
from qdit.model.pixart import PixArt

pytest.importorskip("transformers")

FAMILIES = {"pixart_alpha": 120, "pixart_sigma": 300, "latte": 120}
PROMPTS = ["a red cat", "blue dog on table"]
STATIC = ("rtn", "activation=tensor", "calibration.num_samples=4", "calibration.per_trajectory=2")
ROTATED = ("vidit_q", "calibration.num_samples=4", "calibration.per_trajectory=2")
FRESH = """
import sys
import numpy, torch
import qdit
from diffusers import DiffusionPipeline
sys.path.insert(0, sys.argv[1])
from test_models_text import images
for folder in sys.argv[2:]:
    numpy.save(folder + ".npy", images(DiffusionPipeline.from_pretrained(folder)))
"""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A family's pipeline; read only."""
    return write_text_pipeline(tmp_path_factory.mktemp(request.param) / request.param, request.param, heads=6)


@pytest.fixture
def pipe(folder):
    from diffusers import DiffusionPipeline

    made = DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def images(pipe):
    """Two of the stock pipeline's, as latents."""
    side = 2 * pipe.transformer.config.sample_size
    size = {"use_resolution_binning": False, "height": side, "width": side}
    if hasattr(pipe.transformer.config, "video_length"):
        size = {"height": side, "width": side, "video_length": pipe.transformer.config.video_length}
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.manual_seed(0)}
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red cat", clean_caption=False, **size, **options)[0].numpy()


def test_it_is_the_quantization_of_a_run_with_the_same_prompts(pipe, folder, tmp_path):
    data = qdit.calibrate(pipe, PROMPTS, num_samples=2, steps=2)
    kind, length = (Latte if folder.name == "latte" else PixArt), FAMILIES[folder.name]
    if kind is Latte:  # no mask hides what fills up the rest
        length = min(length, pipe.tokenizer.model_max_length)
    own = {"mask_negative": False} if kind is Latte else {}  # as its options have it
    option = kind(name="tiny", path=str(folder), text_length=length, **own)
    table = option.encode([*PROMPTS, ""], tmp_path, torch.device("cpu"))
    assert data.table is not None
    assert data.table.rows.keys() == table.rows.keys()
    assert all(torch.equal(rows, data.table.rows[key]) for key, rows in table.rows.items())
    model, method = option.load("cpu", torch.float32, table), qdit.recipe(*STATIC, bits="w4a8")
    run = quantize(model, method, lambda: data.picked(method.calibration, model))
    qdit.quantize(pipe.transformer, *STATIC, data=data)
    x, t, y = data.x[:2], data.t[:2], data.y[:2]
    with run.installed(model), torch.no_grad():
        expected = model.denoise(x, t, y)
    rows = table.at(y, torch.float32)
    if folder.name != "latte":
        told = {"resolution": torch.full((2, 2), 16.0), "aspect_ratio": torch.ones(2, 1)}
        rows["added_cond_kwargs"] = told if folder.name == "pixart_alpha" else dict.fromkeys(told)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        assert torch.equal(pipe.transformer(x, timestep=t, **rows, return_dict=False)[0], expected)
    assert qdit.policy(pipe.transformer) == run.policy


def test_a_rotated_pipeline_is_measured_saved_and_read_again(pipe, tmp_path):
    before, data = images_if_stock(pipe), qdit.calibrate(pipe, PROMPTS, num_samples=2, steps=2)
    qdit.quantize(pipe.transformer, *ROTATED, bits="w8a8", data=data)
    frame = qdit.fidelity(pipe, "sampler.steps=2", n=2)
    assert (frame.value > 10).all()
    assert frame.n.tolist() == [2, 2]
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    made = images_if_stock(pipe)
    assert made is None or (made == images_if_stock(again)).all()
    assert made is None or not (made == before).all()
    assert qdit.cost(again.transformer) == qdit.cost(pipe.transformer)
    assert qdit.summary(again.transformer).equals(qdit.summary(pipe.transformer))
    qdit.dequantize(pipe.transformer)
    assert qdit.fidelity(again, "sampler.steps=2", n=2, reference=pipe).equals(frame)
    back = images_if_stock(pipe)
    assert back is None or (back == before).all()


def images_if_stock(pipe):
    """None of α, whose stock pipeline tells the network its size at 128 latents only, and else fails."""
    return None if pipe.transformer.config.get("use_additional_conditions") else images(pipe)


@pytest.mark.parametrize("folder", ["pixart_sigma", "latte"], indirect=True)
def test_prompts_are_those_of_a_file_or_of_qdit(pipe, tmp_path):
    (tmp_path / "captions.txt").write_text("moon\nsea\n")
    data = qdit.calibrate(pipe, None, f"dataset.file={tmp_path / 'captions.txt'}", num_samples=2, steps=1)
    assert data.dataset.class_names() == ["moon", "sea", ""]
    shipped = qdit.calibrate(pipe, num_samples=1, steps=1)
    assert len(shipped.dataset.class_names()) == 33
    assert shipped.sampler.guidance == (7.5 if type(pipe).__name__ == "LattePipeline" else 4.5)


@pytest.mark.parametrize("folder", ["pixart_sigma"], indirect=True)
def test_every_mistake_has_one_message(pipe):
    name = type(pipe).__name__
    with pytest.raises(UserError, match=rf"conditions=\[1, 2\]; a {name} takes prompts, which are texts"):
        qdit.calibrate(pipe, [1, 2])
    with pytest.raises(UserError, match="reads prompts, and dataset=emoji has classes"):
        qdit.calibrate(pipe, None, "dataset=emoji")
    with pytest.raises(UserError, match="no such file"):
        qdit.calibrate(pipe, None, "dataset.file=nowhere.txt")
    with pytest.raises(UserError, match="dataset.negative='blurry' has no effect: sampler.guidance=1 is no guidance"):
        qdit.calibrate(pipe, PROMPTS, "dataset.negative=blurry", "sampler.guidance=1")
    pipe.text_encoder = None
    with pytest.raises(UserError, match=f"this {name} has no text encoder"):
        qdit.calibrate(pipe, PROMPTS)


@pytest.mark.parametrize("folder", ["pixart_sigma"], indirect=True)
def test_data_without_prompts_is_refused(tiny_pipe, pipe):
    data = qdit.calibrate(tiny_pipe, num_samples=2, steps=2)
    with pytest.raises(UserError, match="this model reads prompts, and the data has none"):
        qdit.quantize(pipe.transformer, *STATIC, data=data)
    with pytest.raises(UserError, match="takes classes, which are numbers of 0 to 9"):
        qdit.calibrate(tiny_pipe, ["a red cat"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["pixart_sigma", "latte"], indirect=True
)  # the pipeline of a tiny α cannot be called
def test_a_fresh_process_reads_the_folder(pipe, folder, tmp_path):
    import numpy

    qdit.quantize(pipe.transformer, *ROTATED, data=qdit.calibrate(pipe, PROMPTS, num_samples=2, steps=2))
    pipe.save_pretrained(tmp_path / "mine")
    root = Path(qdit.__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "tests"), *sys.path])
    words = [str(Path(__file__).parent), str(tmp_path / "mine")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True, env=os.environ | {"PYTHONPATH": path})
    assert numpy.array_equal(numpy.load(tmp_path / "mine.npy"), images(pipe))
