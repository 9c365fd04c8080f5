"""Dimensions by VBench's own code elsewhere, against a stand-in that speaks the same protocol, and its failures."""

import json
import sys
from pathlib import Path

import pytest
import torch

from qdit.errors import UserError
from qdit.eval.pieces import cut
from qdit.eval.preflight import prepare
from qdit.eval.vbench import exchange, external
from qdit.eval.vbench.exchange import MANIFEST, export, names_of, read_manifest, read_released
from qdit.eval.vbench.external import PYTHON, External

PACKAGE = """
import json, os, sys, time
from pathlib import Path

__version__ = "0.1.5"


class VBench:
    def __init__(self, device, info, output):
        self.output = Path(output)

    def evaluate(self, videos_path, name, dimension_list, mode, prompt_list=None):
        what = os.environ.get("STAND_IN", "")
        (dimension,) = dimension_list
        if what == "crash":
            sys.exit("CUDA error: no kernel image is available")
        if what == "sleep":
            time.sleep(60)
        files = sorted(Path(videos_path).glob("*.mp4"))
        assert mode == "vbench_standard" or set(prompt_list) == {str(file) for file in files}
        files = files[1:] if what == "missing" else files
        scale = 100 if dimension == "imaging_quality" else 1
        values = [{"video_path": str(file), "video_results": scale * len(file.read_bytes()) / 100} for file in files]
        if what == "nan":
            values[0]["video_results"] = float("nan")
        report = {dimension: [0.5, values]}
        (self.output / f"{name}_eval_results.json").write_text(json.dumps(report))
"""


class Samples:
    """Three clips of two prompts."""

    n, prompts, clusters = 3, ("a cat", "a 'dog' & $HOME", "a cat"), ("0", "1", "0")

    def __init__(self, seed: int = 0):
        level = seed + torch.tensor([0, 1, 4], dtype=torch.uint8).view(3, 1, 1, 1, 1)
        self.clips = level.expand(3, 9, 3, 5, 4).contiguous()

    def pieces(self, extractors=()):
        yield from cut([self.clips])

    def missing(self, extractors):
        return []


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An interpreter that has a stand-in of VBench, and an encoder that needs no PyAV."""
    package = tmp_path / "other"
    package.mkdir()
    (package / "vbench.py").write_text(PACKAGE)
    (package / "torch.py").write_text(
        "__version__ = '2.1'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{package}" exec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    counted = []

    def encode(frames, fps, crf):
        counted.append(len(frames))
        assert all(side % 2 == 0 for side in frames.shape[1:3])
        return bytes(10 + int(frames[0, 0, 0, 0]))

    monkeypatch.setattr(exchange, "encode", encode)
    monkeypatch.setattr(external, "find_spec", lambda name: object())
    monkeypatch.setenv(PYTHON, str(script))
    monkeypatch.delenv("STAND_IN", raising=False)
    return counted


def metric(tmp_path, dimension: str = "scene", **more) -> External:
    return External(dimension=dimension, folder=str(tmp_path / "kept"), **more)


def test_a_dimension_is_one_process_and_its_results_are_kept(python, tmp_path, monkeypatch):
    own, full = Samples(), Samples(7)
    result = metric(tmp_path).compute(own, full)
    assert result.value == pytest.approx(((0.10 + 0.14) / 2 + 0.11) / 2)  # the mean over prompts
    assert (result.clusters, result.n) == (2, 3)
    assert result.delta == pytest.approx(-0.07)
    assert result.protocol == "h264 yuv420p crf=12 fps=8; torch 2.1, vbench 0.1.5"
    assert python == [9] * 6
    assert metric(tmp_path, "imaging_quality").each(own, full).tolist() == pytest.approx([0.10, 0.11, 0.14])
    assert python == [9] * 6  # the videos are those of the first dimension
    monkeypatch.setenv("STAND_IN", "crash")
    assert metric(tmp_path).compute(Samples(), full).value == result.value  # the same videos are judged once


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("crash", "failed with code 1:\n    CUDA error: no kernel image is available"),
        ("sleep", "was ended after 1 s; raise the metric's timeout"),
        ("missing", "lacks 1 of 3 videos, first a 'dog' & $HOME-0.mp4"),
        ("nan", "the number NaN is not finite"),
    ],
)
def test_failures_are_said_and_nothing_is_kept(python, tmp_path, monkeypatch, what, said):
    own = Samples()
    monkeypatch.setenv("STAND_IN", what)
    with pytest.raises(UserError) as caught:
        metric(tmp_path, timeout=1 if what == "sleep" else 60).compute(own, own)
    assert said in str(caught.value)
    assert not list((tmp_path / "kept").rglob("scene.json"))
    monkeypatch.delenv("STAND_IN")
    assert metric(tmp_path).compute(own, own).value > 0  # the same command, given again


def test_results_of_another_set_are_refused(python, tmp_path):
    own, other = Samples(), Samples(9)
    metric(tmp_path).compute(own, own)
    metric(tmp_path).compute(other, other)
    first, second = sorted((tmp_path / "kept").glob("*/scene.json"))
    first.write_text(second.read_text())
    with pytest.raises(UserError, match="is of other videos than the manifest's"):
        [metric(tmp_path).compute(each, each) for each in (own, other)]
    manifest = first.with_name(MANIFEST)
    manifest.write_text(manifest.read_text().replace("a cat", "a cow", 1))
    with pytest.raises(UserError, match="was changed after it was written"):
        [metric(tmp_path).compute(each, each) for each in (own, other)]


def test_preflight_says_what_is_missing(python, tmp_path, monkeypatch):
    assert metric(tmp_path).preflight(3) == []
    with pytest.raises(UserError, match="eval.scene: it judges the prompts of vbench alone; use dataset=vbench"):
        prepare({"scene": metric(tmp_path)}, n=3, dataset="none", cache_dir=tmp_path, suite=None)
    prepare({"scene": metric(tmp_path)}, n=3, dataset="none", cache_dir=tmp_path, suite="vbench")
    (tmp_path / "other" / "vbench.py").unlink()
    assert "-c 'import vbench' fails: failed with code 1" in metric(tmp_path).preflight(3)[0]
    assert "cannot be started" in metric(tmp_path, python=str(tmp_path / "nothing")).preflight(3)[0]
    monkeypatch.delenv(PYTHON)
    assert "set $QDIT_VBENCH_PYTHON" in metric(tmp_path).preflight(3)[0]
    with pytest.raises(UserError, match="dimension='beauty'; VBench has subject_consistency"):
        metric(tmp_path, "beauty")


def test_names_are_vbenchs():
    assert names_of(["a", "b", "a"]) == ["a-0.mp4", "b-0.mp4", "a-1.mp4"]
    for bad, said in ((["a/b"], "'a/b' gives no name of a file"), (["ä" * 130], "gives no name"), ([], "no prompts")):
        with pytest.raises(UserError, match=said):
            names_of(bad)
    with pytest.raises(UserError, match="upper and lower case alone"):
        names_of(["A fantasy landscape", "a fantasy landscape"])


def test_files_that_vbench_writes_are_read(python, tmp_path):
    manifest = read_manifest(export(Samples().pieces(), Samples.prompts, tmp_path / "videos", "0123abcd"))
    assert manifest["of"] == "0123abcd"
    files = [video["file"] for video in manifest["videos"]]
    report = {
        "imaging_quality": [0.6, [{"video_path": f"/else/{f}", "video_results": 60 + n} for n, f in enumerate(files)]]
    }
    report["dynamic_degree"] = [1.0, [{"video_path": f, "video_results": n > 0} for n, f in enumerate(files)]]
    (tmp_path / "r.json").write_text(json.dumps(report))
    read = {name: read_released(tmp_path / "r.json", manifest, name).tolist() for name in report}
    assert read == {"imaging_quality": pytest.approx([0.6, 0.61, 0.62]), "dynamic_degree": [0, 1, 1]}
    with pytest.raises(UserError, match="has no results of scene as VBench writes them"):
        read_released(Path(tmp_path / "r.json"), manifest, "scene")
