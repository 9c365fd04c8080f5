"""Runs save checkpoints and take them up, for every recipe, from the command line."""

from pathlib import Path

import pytest
from helpers.checkpoints import refuse
from helpers.configs import composed
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.checkpoint.manifest import MANIFEST
from qdit.config import resolved
from qdit.errors import UserError
from qdit.keys import RECIPE_KEYS
from qdit.runs import run as running
from qdit.storage.tensors import load_tensors

PROTOCOL = [
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=emoji"),
    *("eval=smoke", "device=cpu", "sampler.steps=3", "num_samples=4", "batch_size=2"),
]
SMALL = {
    **{"weight.group_size": 16, "activation.group_size": 16, "rounding.iterations": 3, "correction.num_samples": 2},
    "activation.time.groups": 2,
}


def run(pipeline: Path, root: Path, *words: str) -> tuple[dict, Path]:
    """The record of a run on the tiny pipeline, and its folder."""
    places = [f"model.path={pipeline}", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}"]
    every = [*PROTOCOL, *places, *words]
    cfg = composed(*{word.split("=")[0]: word for word in every}.values())
    record = running.run(cfg)
    assert record is not None
    return record, root / "runs" / record["study"] / f"{record['name']}-{record['run_id']}"


def small(*words: str) -> list[str]:
    """The words, with what makes their recipe small."""
    config = composed(*words)
    wanted = [f"{key}={value}" for key, value in SMALL.items() if (OmegaConf.select(config, key) or 0) > value]
    return [*words, "calibration.num_samples=8", *wanted]


@pytest.fixture(autouse=True)
def _quick(no_charts):
    pass


def latents(folder: Path) -> list[bytes]:
    files = sorted((folder / "samples").glob("latents*"))  # which also say of which run they are
    return [load_tensors(file)["latents"].numpy().tobytes() for file in files]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where all recipes find the same samples in full precision."""
    return tmp_path_factory.mktemp("recipes")


QUANTIZERS = sorted(p.stem for p in (CONF / "quantizer").glob("*.yaml") if p.stem not in ("fp", "load", "external"))
OPTIONS = [
    *("quantizer=rtn weight.grid=symmetric bits=w3a8", "quantizer=rtn weight.grid=symmetric_full bits=w6a6"),
    *("quantizer=rtn weight.grid=asymmetric_free bits=w8a16", "quantizer=rtn scope=all activation=tensor"),
    *("quantizer=rtn weight=tensor attention=uniform", "quantizer=rtn correction=ptqd dtype=bfloat16"),
    "quantizer=q_dit transform=salience scope=blocks_adaln",
    *("quantizer=rtn attention=uniform bits=w4a4", "quantizer=fq_vit bits=w4a4 activation/time=equal"),
    "quantizer=rtn weight=tensor repair=bias repair.inputs=quantized",
    *("quantizer=ptq4dit bits=fp8", "quantizer=fp4dit bits=w4a8_fp", "quantizer=rtn bits=mxfp8"),
    *("quantizer=vidit_q bits=lloyd4", "quantizer=quarot bits=mxfp4", "quantizer=svdquant_gptq bits=nvfp4"),
    "quantizer=awq_clip bits=nvfp4_46 attention=dynamic",
]


# Of each kind of saved tensor one: a branch, groups of times, a policy, a correction, a rotation, scales of two levels.
QUICK = {f"quantizer={name}" for name in ("svdquant", "tq_dit", "qdit_w4a4")} | {*OPTIONS[5:7], OPTIONS[-1]}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=() if words in QUICK else pytest.mark.slow)
        for words in [*(f"quantizer={name}" for name in QUANTIZERS), *OPTIONS]
    ],
)
def test_every_recipe_is_saved_and_loaded_with_identical_samples(words, tiny_pipeline, root, monkeypatch):
    record, folder = run(tiny_pipeline, root, *small(*words.split()))
    assert record["checkpoint"]["bytes"] == sum(file.stat().st_size for file in (folder / "checkpoint").iterdir())
    monkeypatch.setattr("qdit.runs.stages.calibrate", refuse)
    monkeypatch.setattr("qdit.runs.stages.quantize", refuse)
    same = [f"dtype={record['config']['dtype']}", f"quantizer.path={folder}"]
    loaded, other = run(tiny_pipeline, root, "quantizer=load", *same)
    assert latents(other) == latents(folder)
    assert loaded["metrics"] == record["metrics"]
    assert loaded["layers"] == record["layers"]
    assert {k: v for k, v in loaded["cost"].items() if k in ("model_bytes", "bops", "weight_bits_quantized")} == {
        k: v for k, v in record["cost"].items() if k in ("model_bytes", "bops", "weight_bits_quantized")
    }
    assert loaded["name"] == f"load-{record['name']}"
    assert loaded["config"]["quantizer.name"] == "load"
    assert loaded["config"]["quantizer.source.run_id"] == record["run_id"]
    assert loaded["config"]["bits.name"] == record["config"]["bits.name"]


def test_parts_of_a_recipe_beside_a_checkpoint_are_refused(tiny_pipeline, tmp_path):
    config = resolved(composed("quantizer=load", "quantizer.path=x"))
    assert [key for key in RECIPE_KEYS if key in config] == ["bits"]
    with pytest.raises(UserError, match="rounding and bits cannot be chosen with quantizer=load"):
        run(tiny_pipeline, tmp_path, "quantizer=load", "quantizer.path=x", "bits=w8a8", "rounding=gptq")
    with pytest.raises(UserError, match="no value for quantizer.path; give one"):
        run(tiny_pipeline, tmp_path, "quantizer=load")
    with pytest.raises(UserError, match=r"quantizer.path=7; the folder of a run"):
        run(tiny_pipeline, tmp_path, "quantizer=load", "quantizer.path=7")


def test_runs_save_when_told_to_and_overwriting_a_load_leaves_its_source(tiny_pipeline, tmp_path, capsys):
    from qdit.sampler.sampler import Sampler

    record, folder = run(tiny_pipeline, tmp_path, "quantizer=rtn", "save_checkpoint=false")
    assert record["checkpoint"] is None
    assert not (folder / "checkpoint").exists()
    before = latents(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "step", lambda *a: pytest.fail("samples were made again"))
        record, _ = run(tiny_pipeline, tmp_path, "quantizer=rtn")
    assert record["checkpoint"]["bytes"] > 0
    (folder / "checkpoint" / MANIFEST).rename(tmp_path / MANIFEST)
    assert run(tiny_pipeline, tmp_path, "quantizer=rtn")[0] == record  # what was thrown away is not made again
    (tmp_path / MANIFEST).rename(folder / "checkpoint" / MANIFEST)
    words = ["quantizer=load", f"quantizer.path={folder}"]
    _, loaded = run(tiny_pipeline, tmp_path, *words)
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")}
    run(tiny_pipeline, tmp_path, *words, "overwrite=true")
    assert latents(loaded) == before
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")} == kept
    assert not (loaded / "checkpoint").exists()
    assert running.run(composed(*PROTOCOL, f"model.path={tiny_pipeline}", *words, "dry=true")) is None
    shown = capsys.readouterr().out
    assert "12 of 21 sites quantized" in shown
    assert f"saved by quantizer rtn, study default, name rtn-w4a8, seed 0, run_id {record['run_id']}" in shown
