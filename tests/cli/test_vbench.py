"""qdit-vbench: export and import of a run's videos, and totals of its record."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import commands
from helpers.configs import composed
from helpers.pipelines import write_text_pipeline
from helpers.vbench_suite import write_suite

from qdit.cli import vbench
from qdit.config import resolved
from qdit.eval.vbench import exchange
from qdit.eval.vbench.totals import DIMENSIONS, UNFILTERED
from qdit.runs import run as running
from qdit.runs.identity import canonical, run_dir
from qdit.storage.run_folder import VALUES
from qdit.storage.seal import tensors_about
from qdit.storage.shelf import IDENTITY
from qdit.storage.tensors import load_tensors
from qdit.tables.differences import difference
from qdit.tables.records import load_results


def command(*words) -> None:
    assert vbench.main([str(word) for word in words]) == 0


def complaint(capsys, *words) -> str:
    return commands.complaint(capsys, vbench.main, *words)


@pytest.fixture
def run(tmp_path, no_charts, monkeypatch):
    """The folder of a quantized run of four clips of two prompts; videos are written without PyAV."""
    (tmp_path / "prompts.txt").write_text("a red cat\nblue dog on a table\n")
    return carried_out(tmp_path, monkeypatch, "num_samples=4", f"dataset.file={tmp_path / 'prompts.txt'}")


def carried_out(tmp_path, monkeypatch, *about):
    words = ["model=latte", f"model.path={write_text_pipeline(tmp_path / 'latte', 'latte')}", "model.text_length=12"]
    words += [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", "quantizer=rtn", "bits=w4a8"]
    words += [*about, "batch_size=2", "sampler.steps=1", "device=cpu", "eval=temporal_flickering"]
    running.run(composed(*words))
    monkeypatch.setattr(exchange, "encode", lambda frames, fps, crf: bytes(int(frames.mean())))
    return run_dir(canonical(resolved(composed(*words)))).path


def values_of(run) -> dict:
    return load_tensors(run / VALUES)


def test_videos_go_out_and_results_come_back(run, tmp_path, capsys):
    videos = tmp_path / "videos"
    command("export", run, videos)
    manifest = json.loads((videos / "manifest.json").read_text())
    assert sorted(video["file"] for video in manifest["videos"]) == sorted(
        f.name for f in (videos / "videos").iterdir()
    )
    files = [video["file"] for video in manifest["videos"]]
    assert files == ["a red cat-0.mp4", "blue dog on a table-0.mp4", "a red cat-1.mp4", "blue dog on a table-1.mp4"]
    scores = dict.fromkeys(DIMENSIONS, 0.5) | {"imaging_quality": 50.0}  # of single videos 0 … 100
    values = {name: [0.5, [{"video_path": f, "video_results": x} for f in files]] for name, x in scores.items()}
    values["scene"][1][0]["video_results"] = 0.9
    del values["color"]
    (tmp_path / "r.json").write_text(json.dumps(values))
    kept, before = values_of(run), tensors_about(run / VALUES)[IDENTITY]
    assert any(name.startswith("temporal_flickering@") for name in kept)
    command("import", run, videos, tmp_path / "r.json", "--versions", "vbench 0.1.5, torch 2.1")
    streams = capsys.readouterr()
    assert "scene: 0.6000 ± 0.1000" in streams.out
    assert streams.err.count(UNFILTERED) == 2  # once of the videos, once of VBench's results
    record = json.loads((run / "result.json").read_text())
    assert record["metrics"]["scene"]["clusters"] == 2
    assert record["metrics"]["scene"]["protocol"] == "h264 yuv420p crf=12 fps=8; versions vbench 0.1.5, torch 2.1"
    assert "temporal_flickering" in record["metrics"]
    assert kept.keys() < values_of(run).keys()  # what was known of single samples is still there
    assert all(torch.equal(values_of(run)[name], each) for name, each in kept.items())
    assert tensors_about(run / VALUES)[IDENTITY] == before
    rows = load_results(tmp_path / "runs").to_dict("records")
    own = next(row for row in rows if row["quantizer"] == "rtn")
    assert difference([own], [own], "scene") == (0.0, 0.0)
    assert "no total of VBench without color: it needs all 16" in complaint(capsys, "total", run)
    (tmp_path / "c.json").write_text(json.dumps({"color": values["scene"]}))
    command("import", run, videos, tmp_path / "c.json")
    assert "over several protocols" in complaint(capsys, "total", run)
    command("import", run, videos, tmp_path / "r.json", tmp_path / "c.json")
    command("total", run)
    streams = capsys.readouterr()
    assert "total: 0.2887 ± 0.0035" in streams.out
    assert UNFILTERED in streams.err


def test_of_the_suite_the_manifest_has_the_dimensions(tmp_path, no_charts, monkeypatch, capsys):
    file = write_suite(tmp_path)
    about = ("dataset=vbench", f"dataset.file={file}", "dataset.dimensions=[color,scene]", "num_samples=3")
    command("export", carried_out(tmp_path, monkeypatch, *about), tmp_path / "out")
    manifest = exchange.read_manifest(tmp_path / "out" / "manifest.json")
    files = [video["file"] for video in manifest["videos"]]
    known = {entry["prompt_en"]: entry["dimension"] for entry in json.loads(file.read_text())}
    for name in DIMENSIONS:
        own = [video for video in files if name in known[video.removesuffix("-0.mp4")]]
        assert manifest["dimensions"].get(name, []) == own
    assert manifest["dimensions"]
    assert UNFILTERED not in capsys.readouterr().err  # none of them is flickering


def test_what_does_not_fit_is_said(run, tmp_path, capsys):
    assert "is no folder of a finished run" in complaint(capsys, "export", tmp_path, tmp_path / "videos")
    command("export", run, tmp_path / "videos")
    manifest = exchange.read_manifest(tmp_path / "videos" / "manifest.json")
    other = {key: value for key, value in manifest.items() if key != "digest"} | {"of": "00000000"}
    (tmp_path / "videos" / "manifest.json").write_text(json.dumps(other | {"digest": exchange.digest(other)}))
    (tmp_path / "r.json").write_text("{}")
    words = ("import", run, tmp_path / "videos", tmp_path / "r.json")
    assert "holds videos of run 00000000" in complaint(capsys, *words)
    for file in (run / "samples").glob("latents*"):
        file.unlink()
    assert "are not whole here" in complaint(capsys, "export", run, tmp_path / "again")


def test_nothing_is_imported_into_a_run_that_is_another_or_in_use(run, tmp_path, capsys):
    command("export", run, tmp_path / "out")
    files = [video["file"] for video in exchange.read_manifest(tmp_path / "out" / "manifest.json")["videos"]]
    report = {"dynamic_degree": [1, [{"video_path": f, "video_results": True} for f in files]]}
    (tmp_path / "r.json").write_text(json.dumps(report))
    words = ("import", run, tmp_path / "out", tmp_path / "r.json")
    record = (run / "result.json").read_text()
    code = "from qdit.storage.run_folder import RunDir; import sys, pathlib"
    code += "; lock = RunDir(pathlib.Path(sys.argv[1])).lock(); lock.__enter__(); print(); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(run)], **pipes) as other:
        other.stdout.readline()
        assert "is in use by another qdit process" in complaint(capsys, *words)
        other.stdin.close()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    assert "its model or data are not where they were, or changed" in complaint(capsys, *words)
    assert (run / "result.json").read_text() == record
