"""Recipes on the embedded model: a run that is killed goes on, is saved, and gives the same samples when loaded."""

from pathlib import Path

import pytest
from helpers.checkpoints import refuse
from helpers.configs import composed
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.config import resolved
from qdit.runs import run as running
from qdit.runs.identity import run_dir
from qdit.storage.shelf import Shelf
from qdit.storage.tensors import load_tensors

PROTOCOL = ["eval=smoke", "device=cpu", "sampler.steps=3", "num_samples=2", "batch_size=1"]
RANGES = ("weight", "activation", "attention")
SMALL = {
    **{"calibration.num_samples": 12, "calibration.per_trajectory": 3, "rounding.iterations": 2},
    **{"transform.iterations": 2, "transform.steps.smooth.alpha.steps": 2, "transform.steps.lowrank.iterations": 1},
    **{f"{group}.range.{key}": most for group in RANGES for key, most in (("candidates", 2), ("rounds", 1))},
    **{f"{group}.range.tokens": 256 for group in RANGES},
    "activation.time.groups": 3,  # of a step each
}
"""What makes the fit of a recipe short, where it has more."""


class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal."""


def grid(name: str) -> list[str]:
    """The recipes of a grid."""
    node = OmegaConf.load(CONF / "grid" / f"{name}.yaml")
    return OmegaConf.select(node, "hydra.sweeper.params.quantizer").split(",")


def small(*words: str) -> list[str]:
    """The words, with those that make their fit short."""
    config = composed(*words)
    values = {key: (OmegaConf.select(config, key), most) for key, most in SMALL.items()}
    return [*words, *(f"{key}={most}" for key, (own, most) in values.items() if isinstance(own, int) and own > most)]


def places(root: Path) -> list[str]:
    """Where runs and what they share lie."""
    return [f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}"]


def run(root: Path, *words: str) -> dict:
    """The record of a run."""
    record = running.run(composed(*PROTOCOL, *places(root), *words))
    assert record is not None
    return record


def latents(folder: Path) -> list[bytes]:
    """The bytes of a run's samples."""
    return [load_tensors(file)["latents"].numpy().tobytes() for file in sorted((folder / "samples").glob("latents*"))]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where all recipes find the same samples in full precision, made here."""
    root = tmp_path_factory.mktemp("embedded")
    run(root, "quantizer=fp")
    return root


SEEDS = [
    f"quantizer={name} bits={bits}" for name in ("repq_vit", "ptq4vit", *grid("seeds")) for bits in ("w4a8", "w4a4")
]
RECIPES = [f"quantizer={name} bits={bits}" for name in grid("format_recipes") for bits in ("w4a8", "w4a4")]
FORMATS = [
    *(f"quantizer={name} bits={bits}" for name in ("rtn", "hq_dit") for bits in ("nvfp4", "nvfp4_46", "mxfp4")),
    *(f"quantizer=rtn bits={bits}" for bits in ("fp8", "mxfp6", "mxfp8", "int4_g16", "int4_g64", "lloyd4", "w4a8_fp")),
    *("quantizer=fp4dit bits=w4a8_fp", "quantizer=svdquant_gptq bits=nvfp4", "quantizer=quarot bits=mxfp4"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", dict.fromkeys([*SEEDS, *RECIPES, *FORMATS]))
def test_a_killed_run_goes_on_is_saved_and_loaded_with_equal_samples(words, root, monkeypatch, no_charts):
    """Killed behind the second piece of the fit that is kept, or, where a fit has fewer, behind the first samples."""
    chosen, saved = small(*words.split()), []

    def save(self, *args, **kwargs):
        if "rounding" in self.folder.parts:
            saved.append(self)
            if len(saved) == 3:
                raise Killed
        return keep(self, *args, **kwargs)

    def reached(_, done):
        if done > 1:  # the first samples are kept
            raise Killed

    keep = Shelf.save
    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "save", save)
        patch.setattr("qdit.storage.progress.StepBar.reach", reached)
        with pytest.raises(Killed):
            run(root, *chosen)
    folder = run_dir(resolved(composed(*PROTOCOL, *places(root), *chosen))).path
    kept = {file: file.stat().st_mtime_ns for file in (folder / "samples").glob("latents*")}
    assert kept or len(saved) == 3
    record = run(root, *chosen)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(latents(folder)) == 2
    with monkeypatch.context() as patch:
        patch.setattr("qdit.runs.stages.calibrate", refuse)
        patch.setattr("qdit.runs.stages.quantize", refuse)
        same = ["quantizer=load", f"quantizer.path={folder}", f"dtype={record['config']['dtype']}"]
        loaded = run(root, *same)
    other = root / "runs" / loaded["study"] / f"{loaded['name']}-{loaded['run_id']}"
    assert latents(other) == latents(folder)
    assert loaded["metrics"] == record["metrics"]
    assert loaded["layers"] == record["layers"]
    assert record["metrics"]["sqnr"]["value"] > -20
