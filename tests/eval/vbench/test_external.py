"""Dimensions by VBench's own code elsewhere, against a stand-in that speaks the same protocol, and its failures."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qdit.errors import UserError
from qdit.eval.pieces import cut
from qdit.eval.preflight import prepare
from qdit.eval.vbench import exchange, external
from qdit.eval.vbench.exchange import MANIFEST, changed, export, names_of, read_manifest
from qdit.eval.vbench.external import PYTHON, External
from qdit.eval.vbench.results import read_released
from qdit.eval.vbench.suite import SuitePrompt

PACKAGE = """
import json, os, sys, time
from pathlib import Path

__version__ = "0.1.5"


class VBench:  # finds videos as the released code does
    def __init__(self, device, full_info_dir, output_path):
        self.info, self.output = full_info_dir, Path(output_path)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, mode="vbench_standard"):
        what = os.environ.get("STAND_IN", "")
        (dimension,) = dimension_list
        if what == "crash":
            sys.exit("CUDA error: no kernel image is available")
        if what == "sleep":
            time.sleep(60)
        files = getattr(self, "own" if mode == "custom_input" else "standard")(videos_path, dimension, prompt_list)
        if what == "missing" or (what == "nothing red" and dimension == "color"):
            files = files[1:]
        scale = 100 if dimension == "imaging_quality" else 1
        size = os.path.getsize
        values = [{"video_path": file, "video_results": scale * size(file) / 100} for file in files]
        if what == "nan":
            values[0]["video_results"] = float("nan")
        report = {dimension: [0.5, values]}
        (self.output / f"{name}_eval_results.json").write_text(json.dumps(report))

    def own(self, folder, dimension, prompt_list):
        assert dimension not in ("object_class", "multiple_objects", "scene", "appearance_style", "color")
        found = [os.path.join(folder, file) for file in os.listdir(folder) if Path(file).suffix in (".mp4", ".png")]
        prompt_list = {os.path.join(folder, path): prompt_list[path] for path in prompt_list}
        assert {*map(os.path.abspath, found)} <= {*map(os.path.abspath, prompt_list)}
        return found

    def standard(self, folder, dimension, prompt_list):
        names = os.listdir(folder)
        suffix = Path(sorted(names, reverse=True)[0]).suffix  # of any file that is there
        found = []
        for entry in json.loads(Path(self.info).read_text()):
            if dimension in entry["dimension"]:
                wanted = [f"{entry['prompt_en']}-{number}{suffix}" for number in range(5)]
                found += [os.path.join(folder, name) for name in wanted if name in names]
        return found
"""
SUITE = [
    {"prompt_en": "a cat", "dimension": ["color", "imaging_quality"]},
    {"prompt_en": "a 'dog' & $HOME", "dimension": ["scene"]},
    {"prompt_en": "a 'dog' & $HOME", "dimension": ["imaging_quality"]},
]
CAT, DOG = (
    SuitePrompt("a cat", ["color", "imaging_quality"]),
    SuitePrompt("a 'dog' & $HOME", ["scene", "imaging_quality"]),
)


class Samples:
    """Three clips of two prompts of one's own, or clips of the suite's."""

    def __init__(self, seed: int = 0, prompts: tuple[str, ...] = ("a cat", "a 'dog' & $HOME", "a cat")):
        self.n, self.prompts, self.clusters = len(prompts), prompts, prompts
        level = seed + torch.tensor([0, 1, 4, 9, 16, 25, 36][: self.n], dtype=torch.uint8).view(-1, 1, 1, 1, 1)
        self.clips = level.expand(-1, 9, 3, 5, 4).contiguous()

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
    (package / "VBench_full_info.json").write_text(json.dumps(SUITE))
    (package / "torch.py").write_text(
        "__version__ = '2.1'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    script = tmp_path / "python"
    calls = tmp_path / "calls"
    script.write_text(f'#!/bin/sh\necho "$2" >> "{calls}"\nPYTHONPATH="{package}" exec "{sys.executable}" -S "$@"\n')
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
    monkeypatch.chdir(tmp_path)
    external.versions_of.cache_clear()
    return counted


def metric(tmp_path, dimension: str = "overall_consistency", **more) -> External:
    return External(dimension=dimension, folder="kept", **more)  # relative, as `cache` is


def test_videos_say_the_rate_of_their_model(python, tmp_path, monkeypatch):
    """VBench's dynamic degree thins clips out by it."""
    encode, rates = exchange.encode, []

    def told(frames, fps, crf):
        rates.append(fps)
        return encode(frames, fps, crf)

    monkeypatch.setattr(exchange, "encode", told)
    own: Any = Samples()
    own.frames_per_second = 16
    result = metric(tmp_path).compute(own, own)
    assert result.protocol == "h264 yuv420p crf=12 fps=16; device cpu, torch 2.1, vbench 0.1.5"
    assert rates == [16] * 3


def test_a_dimension_is_one_process_and_its_results_are_kept(python, tmp_path, monkeypatch):
    own, full = Samples(), Samples(7)
    result = metric(tmp_path).compute(own, full)
    assert result.value == pytest.approx(((0.10 + 0.14) / 2 + 0.11) / 2)  # the mean over prompts
    assert (result.clusters, result.n) == (2, 3)
    assert result.delta == pytest.approx(-0.07)
    assert result.protocol == "h264 yuv420p crf=12 fps=8; device cpu, torch 2.1, vbench 0.1.5"
    assert python == [9] * 6
    assert metric(tmp_path, "imaging_quality").each(own, full).tolist() == pytest.approx([0.10, 0.11, 0.14])
    assert python == [9] * 6  # the videos are those of the first dimension
    monkeypatch.setenv("STAND_IN", "crash")
    assert metric(tmp_path).compute(Samples(), full).value == result.value  # the same videos are judged once
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (len(calls), calls.count("versions")) == (1 + 2 + 1, 1)  # VBench is asked for its version once


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
    assert not list((tmp_path / "kept").rglob("overall_consistency-*.json"))
    monkeypatch.delenv("STAND_IN")
    assert metric(tmp_path).compute(own, own).value > 0  # the same command, given again


def test_of_the_suite_a_dimension_judges_its_own_prompts(python, tmp_path, monkeypatch):
    own, full = (Samples(seed, (CAT, DOG, CAT)) for seed in (0, 7))
    result = metric(tmp_path, "scene").compute(own, full)
    assert (result.value, result.n, result.delta) == (pytest.approx(0.11), 1, pytest.approx(-0.07))
    assert result.each.isnan().tolist() == [True, False, True]
    assert metric(tmp_path, "color").each(own, full).isnan().tolist() == [False, True, False]
    assert metric(tmp_path, "imaging_quality").compute(own, full).n == 3
    with pytest.raises(
        UserError, match=r"no prompt of these videos is of human_action; sample with dataset.dimensions"
    ):
        metric(tmp_path, "human_action").compute(own, full)
    monkeypatch.setenv("STAND_IN", "missing")
    with pytest.raises(UserError, match="lacks 1 of 3 videos"):
        metric(tmp_path, "imaging_quality").compute(Samples(3, (CAT, DOG, CAT)), full)


def test_color_leaves_videos_out(python, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "nothing red")
    own, full = (Samples(seed, (CAT, DOG, CAT)) for seed in (0, 7))
    result = metric(tmp_path, "color").compute(own, full)
    assert (result.value, result.n, result.stderr) == (pytest.approx(0.14), 1, None)
    assert result.each.isnan().tolist() == [True, True, False]
    with pytest.raises(UserError, match="color judges none of the 1 samples"):
        metric(tmp_path, "color").compute(lonely := Samples(0, (CAT,)), lonely)


def test_five_videos_of_a_prompt_are_judged(python, tmp_path):
    own = Samples(0, (CAT,) * 6 + (DOG,))
    result = metric(tmp_path, "imaging_quality").compute(own, own)
    assert (result.n, result.clusters) == (6, 2)
    assert result.each.isnan().tolist() == [False] * 5 + [True, False]
    own = Samples(0, ("a cat",) * 7)  # one's own prompts: all
    assert metric(tmp_path).compute(own, own).n == 7


def test_results_are_of_a_version(python, tmp_path):
    own = Samples()
    before = metric(tmp_path).compute(own, own)
    code = tmp_path / "other" / "vbench.py"
    code.write_text(code.read_text().replace("0.1.5", "0.1.6").replace("scale * size(file) / 100", "0.25"))
    assert metric(tmp_path).compute(own, own) == before  # as this process knows it
    external.versions_of.cache_clear()
    after = metric(tmp_path).compute(own, own)
    assert (after.value, after.protocol) == (0.25, before.protocol.replace("0.1.5", "0.1.6"))
    code.write_text(code.read_text().replace('__version__ = "0.1.6"', ""))
    external.versions_of.cache_clear()
    assert "vbench source " in metric(tmp_path).compute(own, own).protocol


def test_videos_that_were_changed_are_written_again(python, tmp_path):
    metric(tmp_path).compute(own := Samples(), own)
    (file,) = (tmp_path / "kept").glob("*/videos/a cat-1.mp4")
    assert file.read_bytes() == bytes(14)
    file.write_bytes(b"another")
    assert metric(tmp_path, "human_action").compute(again := Samples(), again).value > 0
    assert file.read_bytes() == bytes(14)
    assert changed(file.parents[1] / MANIFEST) == []


def test_what_a_wrapper_started_ends_with_it(python, tmp_path, monkeypatch):
    """Of `conda run` and its kin the interpreter is a child, which holds the pipes."""
    script = tmp_path / "python"
    script.write_text(script.read_text().replace("exec ", "") + "exit $?\n")
    monkeypatch.setenv("STAND_IN", "sleep")
    started = time.monotonic()
    with pytest.raises(UserError, match="was ended after 1 s"):
        metric(tmp_path, timeout=1).compute(own := Samples(), own)
    assert time.monotonic() - started < 30  # the stand-in sleeps for 60


def test_results_of_another_set_are_refused(python, tmp_path):
    own, other = Samples(), Samples(9)
    metric(tmp_path).compute(own, own)
    metric(tmp_path).compute(other, other)
    first, second = sorted((tmp_path / "kept").glob("*/overall_consistency-*.json"))
    first.write_text(second.read_text())
    with pytest.raises(UserError, match="is of other videos than the manifest's"):
        [metric(tmp_path).compute(each, each) for each in (own, other)]
    manifest = first.with_name(MANIFEST)
    manifest.write_text(manifest.read_text().replace("a cat", "a cow", 1))
    with pytest.raises(UserError, match="was changed after it was written"):
        [metric(tmp_path).compute(each, each) for each in (own, other)]


def test_preflight_says_what_is_missing(python, tmp_path, monkeypatch):
    scene = metric(tmp_path, "scene")
    assert scene.preflight(3) == []
    assert scene.unreadable([CAT]) == ["none of these prompts is one of scene; name it in dataset.dimensions"]
    assert scene.unreadable([CAT, DOG]) == metric(tmp_path).unreadable(["a cat"]) == []
    assert "gives no name of a file" in scene.unreadable(["a/b"])[0]
    with pytest.raises(UserError, match="eval.scene: it judges the prompts of vbench alone; use dataset=vbench"):
        prepare({"scene": scene}, n=3, dataset="none", cache_dir=tmp_path, suite=None)
    prepare({"scene": scene}, n=3, dataset="none", cache_dir=tmp_path, suite="vbench")
    (tmp_path / "other" / "vbench.py").unlink()
    assert scene.preflight(3) == []  # it was asked already
    external.versions_of.cache_clear()
    assert "cannot import torch and vbench: it failed with code 1:" in scene.preflight(3)[0]
    assert "cannot be started" in metric(tmp_path, python=str(tmp_path / "nothing")).preflight(3)[0]
    monkeypatch.delenv(PYTHON)
    assert "set $QDIT_VBENCH_PYTHON" in metric(tmp_path).preflight(3)[0]
    with pytest.raises(UserError, match="dimension='beauty'; VBench has subject_consistency"):
        metric(tmp_path, "beauty")


def test_names_are_vbenchs():
    assert names_of(["a", "b", "a"]) == ["a-0.mp4", "b-0.mp4", "a-1.mp4"]
    for bad, said in ((["a/b"], "'a/b' gives no name of a file"), (["ä" * 111], "gives no name"), ([], "no prompts")):
        with pytest.raises(UserError, match=said):
            names_of(bad)


def test_the_longest_prompt_can_be_written(python, tmp_path):
    export(Samples().pieces(), ["ä" * 110] * 3, tmp_path)


def test_case_matters_where_the_disk_cannot_tell(python, tmp_path, monkeypatch):
    both = Samples(0, ("A fantasy landscape", "a fantasy landscape"))  # VBench has these two
    export(both.pieces(), both.prompts, tmp_path / "here")
    assert len(list((tmp_path / "here" / "videos").iterdir())) == 2
    monkeypatch.setattr(exchange, "_tells_cases_apart", lambda folder: False)
    with pytest.raises(UserError, match=r"differ in upper and lower case alone, which the disk of .* cannot tell"):
        export(both.pieces(), both.prompts, tmp_path / "there")
    export(Samples().pieces(), Samples().prompts, tmp_path / "there")


def test_other_videos_in_the_folder_are_refused(python, tmp_path):
    export(Samples().pieces(), Samples().prompts, tmp_path)
    export(Samples(5).pieces(), Samples().prompts, tmp_path)
    with pytest.raises(UserError, match="videos holds a 'dog' & [$]HOME-0.mp4, which is no video of these samples"):
        export(Samples().pieces(), ["a cat"] * 3, tmp_path)


def test_files_that_vbench_writes_are_read(python, tmp_path):
    manifest = read_manifest(export(Samples().pieces(), Samples().prompts, tmp_path / "out", "0123abcd"))
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
    suite = read_manifest(export(Samples().pieces(), (CAT, DOG, CAT), tmp_path / "suite"))
    assert suite["dimensions"] == {"color": [files[0], files[2]], "imaging_quality": files, "scene": [files[1]]}
    report = {"scene": [0.5, [{"video_path": f, "video_results": 0.5} for f in files]]}
    (tmp_path / "r.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="has 2 videos beside the 1 that scene judges, first a cat-0.mp4"):
        read_released(tmp_path / "r.json", suite, "scene")
