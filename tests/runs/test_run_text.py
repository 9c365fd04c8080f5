"""Runs of a model that reads prompts: killed while they are encoded, without its encoder, and with what cannot be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from helpers.configs import composed
from helpers.pipelines import WORDS, write_text_pipeline

from qdit.errors import UserError
from qdit.model.conditions import BATCH
from qdit.model.pixart import PixArt
from qdit.model.prompt_encoders import T5
from qdit.runs import run as running
from qdit.storage.run_folder import CLUSTERS, VALUES
from qdit.tables.differences import difference
from qdit.tables.records import load_results
from qdit.tables.table import build_table

CPU = torch.device("cpu")
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from qdit.model.prompt_encoders import T5
from qdit.model.pixart import PixArt

encode, calls = T5.__call__, []

def call(self, prompts):
    calls.append(prompts)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, prompts)

T5.__call__ = call
PixArt(name="tiny", path=sys.argv[1], text_length=12).encode(sys.argv[3:], Path(sys.argv[2]), torch.device("cpu"))
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline; read only."""
    return write_text_pipeline(tmp_path_factory.mktemp("run") / "pixart_sigma", "pixart_sigma")


@pytest.fixture
def folder(pipeline, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pipeline, tmp_path / "pixart_sigma")


def words(folder: Path, root: Path, *more: str) -> list[str]:
    (root / "prompts.txt").write_text("a red cat\nblue dog on a table\n")
    places = [f"model.path={folder}", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}"]
    sizes = ["num_samples=2", "batch_size=2", "sampler.steps=1", "model.text_length=12", "device=cpu"]
    own = ["model=pixart_sigma", "quantizer=rtn", "eval=smoke", f"dataset.file={root / 'prompts.txt'}"]
    found = {word.split("=")[0]: word for word in (*own, *places, *sizes, *more)}
    return list(found.values())


@pytest.mark.slow
def test_a_killed_encoding_goes_on_behind_its_last_whole_batch(pipeline, tmp_path, monkeypatch):
    prompts = [f"{one} {other}" for one in WORDS[:4] for other in WORDS[:5]] + [""]
    code = [sys.executable, "-c", KILLED, str(pipeline), str(tmp_path / "killed"), *prompts]
    done = subprocess.run(code, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "killed").rglob("*.safetensors"))) == BATCH
    option, encode, seen = PixArt(name="tiny", path=str(pipeline), text_length=12), T5.__call__, []
    whole = option.encode(prompts, tmp_path / "whole", CPU)
    monkeypatch.setattr(T5, "__call__", lambda self, some: seen.extend(some) or encode(self, some))
    again = option.encode(prompts, tmp_path / "killed", CPU)
    assert seen == prompts[BATCH:]
    assert all(torch.equal(again.rows[key], rows) for key, rows in whole.rows.items())


def test_a_run_needs_no_encoder_once_its_prompts_are_in_the_cache(folder, tmp_path, no_charts):
    first = running.run(composed(*words(folder, tmp_path)))
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    again = running.run(composed(*words(folder, tmp_path, "bits=w8a8")))
    assert first is not None
    assert again is not None
    assert again["protocol_id"] == first["protocol_id"]
    assert again["metrics"]["sqnr"]["value"] > first["metrics"]["sqnr"]["value"]


def changed(folder: Path, part: str, **changes) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


MISTAKES = {
    "family": (lambda f: changed(f, "transformer", _class_name="FluxTransformer2DModel"), "is of class FluxTransf"),
    "patches": (lambda f: changed(f, "transformer", sample_size=9), "not a multiple of patch_size=2"),
    "no encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "no run with this cache_dir has seen it"),
    "pickle": (pickled, r"only pytorch_model\.bin, a pickle"),
    "empty": (lambda f: (f.parent / "bad.txt").write_text(" \n"), "holds no captions; write one a line"),
    "latin": (lambda f: (f.parent / "bad.txt").write_bytes(b"caf\xe9"), "is not UTF-8 .*save it as UTF-8"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_what_cannot_be_is_one_message_before_anything_is_computed(kind, folder, tmp_path, monkeypatch):
    mistake, message = MISTAKES[kind]
    mistake(folder)
    bad = [f"dataset.file={tmp_path / 'bad.txt'}"] if (tmp_path / "bad.txt").exists() else []
    monkeypatch.setattr(T5, "__call__", lambda *_: pytest.fail("a prompt is encoded"))
    with pytest.raises(UserError, match=message) as caught:
        running.run(composed(*words(folder, tmp_path, *bad)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_negative_prompt_that_is_never_shown_is_refused(folder, tmp_path):
    own = ("dataset.negative=blurry", "dry=true")
    with pytest.raises(UserError, match="negative='blurry' has no effect: sampler.guidance=1 is no guidance; use one"):
        running.run(composed(*words(folder, tmp_path, *own, "sampler.guidance=1")))
    running.run(composed(*words(folder, tmp_path, *own)))
    running.run(composed(*words(folder, tmp_path, "dry=true", "sampler.guidance=1")))


def test_clips_have_curves_over_frames_and_errors_over_prompts(tmp_path):
    """And the table has the metrics' own labels, with a warning where nothing shows motion."""
    own = ["model=latte", "eval=[psnr,temporal_flickering]", "num_samples=4"]
    latte = write_text_pipeline(tmp_path / "latte", "latte")
    record = running.run(composed(*words(latte, tmp_path, *own)))
    assert record is not None
    psnr, flickering = record["metrics"]["psnr"], record["metrics"]["temporal_flickering"]
    assert psnr["value"] == pytest.approx(sum(psnr["by_frame"]) / len(psnr["by_frame"]))
    assert (psnr["clusters"], flickering["clusters"], flickering["n"]) == (2, 2, 4)
    assert flickering["delta"] is not None
    assert next((tmp_path / "runs").rglob("rtn-*/frames.png")).stat().st_size > 1000
    frame = load_results(tmp_path / "runs")
    made = build_table(frame, metrics=["temporal_flickering"])
    assert "flickering ↑" in made.header
    assert any("A frozen clip is best by flickering ↑: read them beside motion_energy" in line for line in made.lines)
    row = next(row for row in frame.to_dict("records") if row["quantizer"] == "rtn")
    values = safetensors.numpy.load_file(Path(row["folder"]) / VALUES)
    assert values[CLUSTERS].tolist() == [0, 1, 0, 1]
    each = values[f"temporal_flickering@{flickering['settings']}"]
    assert flickering["value"] == pytest.approx(each.mean())
    assert flickering["stderr"] == pytest.approx(each.reshape(2, 2).mean(0).std(ddof=1) / 2**0.5)
    assert difference([row], [row], "temporal_flickering") == (0.0, 0.0)
