"""Every recipe on text to image and text to video, from end to end at W4A8; a fresh process reloads what was saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.clip_pipelines import CLIPS, write_clip_pipeline
from helpers.configs import composed
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.joint_pipelines import write_joint_pipeline, write_wan_pipeline
from helpers.pipelines import write_text_pipeline
from helpers.qwen_pipeline import write_qwen_pipeline
from helpers.sana_pipeline import write_sana_pipeline
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.errors import UserError
from qdit.runs import run as running
from qdit.storage.tensors import load_tensors

PROTOCOL = [
    *("eval=smoke", "device=cpu", "num_samples=2", "batch_size=2", "sampler.steps=2"),
    *("model.text_length=12", "model.text_dtype=float32"),
]
CALIBRATION = ["bits=w4a8", "calibration.num_samples=8", "calibration.per_trajectory=2"]
SMALL = {
    **{"weight.group_size": 16, "activation.group_size": 16, "rounding.iterations": 3, "correction.num_samples": 2},
    "activation.time.groups": 2,
}
RECIPES = sorted(p.stem for p in (CONF / "quantizer").glob("*.yaml") if p.stem not in ("fp", "load", "external"))
JOINT = ("sd35_medium", "flux_dev")
WANS = ("wan_2_1_1b", "wan_2_2_5b", "wan_2_2_a14b")
FLOWS = (*JOINT, *WANS, "ltx", "hunyuan_video", "sana", "qwen_image", "flux2_klein_4b")
FAMILIES = ("pixart_sigma", "latte", *FLOWS, "cogvideox_2b", "cogvideox_5b")
NAMED = ("rtn", "q_dit", "smoothquant", "quarot", "vidit_q", "svdquant", "ptq4dit", "tq_dit")
"""The recipes of papers that every family goes through."""
QUICK = [("pixart_sigma", "quarot_rtn"), ("latte", "quarot_rtn"), ("flux_dev", "tq_dit"), ("sana", "tq_dit")]
QUICK += [("cogvideox_5b", "quarot_rtn"), ("ltx", "rtn"), ("hunyuan_video", "rtn"), ("qwen_image", "quarot_rtn")]
QUICK += [("wan_2_2_a14b", "vidit_q"), ("flux2_klein_4b", "tq_dit")]
LATER = ("wan_2_2_5b", "wan_2_2_a14b", "sana", "qwen_image", "flux2_klein_4b", *CLIPS)
PARTS = [pytest.param(QUICK, id="quick")] + [
    pytest.param([(family, name) for name in names], marks=pytest.mark.slow, id=f"{family}-{names[0]}")
    for family in FAMILIES
    for names in ([NAMED] if family in LATER else [RECIPES[n : n + 5] for n in range(0, len(RECIPES), 5)])
]
"""Cells of one test each, whose reload shares a process: to start one takes longer than a cell."""
SIZES = {"flux_dev": ["model.size=16"], "flux2_klein_4b": ["model.size=16"], "qwen_image": ["model.size=64"]}
SIZES |= {key: ["model.frames=5", "model.height=32", "model.width=32"] for key in (*WANS, *CLIPS)}
SIZES["wan_2_2_a14b"] += ["sampler.steps=4"]  # two for each network, as recipes have two groups of steps
FRESH = """
import json, sys
from helpers.charts import undrawn
from helpers.configs import composed
from qdit.runs.run import run

undrawn()
for words in json.load(sys.stdin):
    assert run(composed(*words))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where the tiny pipelines and all runs are."""
    root = tmp_path_factory.mktemp("families")
    (root / "prompts.txt").write_text("a red cat\nblue dog on a table\n")
    return root


def write(folder: Path) -> None:
    """A family's tiny pipeline, if it is not there."""
    family = folder.name
    if folder.is_dir():
        return
    if family in JOINT:
        write_joint_pipeline(folder, family.removesuffix("_medium"))
    elif family in WANS:
        boundary = 0.875 if family == "wan_2_2_a14b" else None
        write_wan_pipeline(folder, token_times=family == "wan_2_2_5b", boundary=boundary)
    elif family in CLIPS:
        write_clip_pipeline(folder, family)
    elif family == "sana":
        write_sana_pipeline(folder)
    elif family == "flux2_klein_4b":
        write_flux2_pipeline(folder)
    elif family == "qwen_image":
        write_qwen_pipeline(folder)
    else:
        write_text_pipeline(folder, family, heads=4)


def latents(folder: Path) -> list[bytes]:
    return [load_tensors(file)["latents"].numpy().tobytes() for file in sorted((folder / "samples").glob("latents*"))]


def small(*words: str) -> list[str]:
    """What makes a recipe small."""
    config = composed(*words)
    return [f"{key}={value}" for key, value in SMALL.items() if (OmegaConf.select(config, key) or 0) > value]


@pytest.mark.parametrize("cells", PARTS)
def test_recipes_are_saved_and_reload_in_a_fresh_process_with_equal_samples(cells, root, no_charts):
    places = [f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}", f"dataset.file={root / 'prompts.txt'}"]
    made: dict[str, Path] = {}
    again: list[list[str]] = []
    for family, name in cells:
        write(root / family)
        protocol = [f"model={family}", f"model.path={root / family}", *places, *PROTOCOL, *SIZES.get(family, [])]
        words = [*protocol, f"quantizer={name}", *CALIBRATION]
        if name == "ptqd" and family in FLOWS:
            with pytest.raises(UserError, match="corrects predicted noise .epsilon.; this model predicts velocity"):
                running.run(composed(*words, *small(*words)))
            continue
        record = running.run(composed(*words, *small(*words)))
        assert record is not None
        folder = made[record["run_id"]] = root / "runs" / "default" / f"{record['name']}-{record['run_id']}"
        clips = [file for file in ("samples.mp4", "samples_moving.png") if (folder / file).is_file()]
        assert len(clips) == (family in ("latte", *WANS, *CLIPS))
        again.append([*protocol, "quantizer=load", f"quantizer.path={folder}"])
    tests = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    subprocess.run(
        [sys.executable, "-c", FRESH], input=json.dumps(again), text=True, check=True, env=os.environ | tests
    )
    loaded = {}
    for folder in root.glob("runs/default/load-*"):
        record = json.loads((folder / "result.json").read_text())
        assert record["status"] == "done"
        loaded[record["config"]["quantizer.source.run_id"]] = folder
    for run_id, folder in made.items():
        assert latents(folder)
        assert latents(loaded[run_id]) == latents(folder), folder.name
