"""The digest of a metric's settings: what changes it, what does not, and that it costs nothing."""

import os
from pathlib import Path

import pytest
from helpers.configs import config
from hydra.utils import get_class
from omegaconf import OmegaConf

from qdit.assets import cached
from qdit.eval.distribution import DistributionMetric
from qdit.runs.identity import WITHOUT_REFERENCE, full_precision, run_id, science, settings
from qdit.runs.stages import path_id
from qdit.storage.digest import sha256

CONF = Path(__file__).resolve().parents[2] / "conf" / "eval"
FID = {"_target_": "qdit.eval.distribution.FID", "extractor": "lite0"}


@pytest.fixture
def stored(tmp_path) -> Path:
    """A made-up reference file of the data set `mine` in the cache."""
    path = cached("mine", "lite0", tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"statistics")
    return path


def test_another_reference_is_another_metric(stored, tmp_path):
    before = settings(FID, "mine", tmp_path)
    assert before == settings(FID, "mine", tmp_path)
    stored.write_bytes(b"statistics of other images")
    after = settings(FID, "mine", tmp_path)
    stored.unlink()
    absent = settings(FID, "mine", tmp_path)
    assert len({before, after, absent, settings(FID, "emoji", tmp_path)}) == 4  # emoji's is shipped


def test_the_shipped_file_comes_before_the_cache_as_in_find(stored, tmp_path):
    before = settings(FID, "emoji", tmp_path)
    stored.rename(cached("emoji", "lite0", tmp_path))
    assert settings(FID, "emoji", tmp_path) == before


def test_the_way_to_a_file_does_not_count_and_other_keys_do(stored, tmp_path):
    here = settings(FID | {"weights": None, "allow_download": False}, "mine", tmp_path)
    there = settings(FID | {"weights": "/elsewhere/weights.pth", "allow_download": True}, "mine", tmp_path)
    assert here == there == settings(FID, "mine", tmp_path)
    assert settings(FID | {"power": 3}, "mine", tmp_path) != here
    moved = tmp_path / "moved"
    cached("mine", "lite0", moved).parent.mkdir(parents=True)
    cached("mine", "lite0", moved).write_bytes(b"statistics")
    assert settings(FID, "mine", moved) == here


def test_paired_metrics_need_no_reference(stored, tmp_path):
    sqnr = {"_target_": "qdit.eval.paired.SQNR"}
    assert settings(sqnr, "mine", tmp_path) == settings(sqnr, "nowhere", tmp_path)


def test_metrics_without_reference_are_those_that_say_so():
    for path in CONF.glob("*.yaml"):
        for node in OmegaConf.load(path).values():
            if isinstance(node, str) or "_target_" not in node:
                continue
            metric = get_class(node["_target_"])
            if issubclass(metric, DistributionMetric):
                assert metric.needs_reference == (node["_target_"] not in WITHOUT_REFERENCE), path.name


def test_a_file_is_read_again_only_when_it_changed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first, status = sha256(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256(path) == first  # size and time are the key
    path.write_bytes(b"three")
    assert sha256(path) != first


def test_what_a_file_of_captions_says_is_part_of_a_run(tmp_path):
    """And of what runs share; lists that come with qdit tell by their names, and change no id that was."""
    file = tmp_path / "captions.txt"
    file.write_text("a red cat\n")
    words = ("model=emoji_pixart", "dataset=prompts", "quantizer=rtn")
    mine = config(*words, f"dataset.file={file}")
    before = run_id(mine), run_id(full_precision(mine)), path_id(mine)
    assert before == (run_id(mine), run_id(full_precision(mine)), path_id(mine))
    file.write_text("a blue dog\n")
    after = run_id(mine), run_id(full_precision(mine)), path_id(mine)
    assert all(old != new for old, new in zip(before, after, strict=True))
    other = config(*words, f"dataset.file={file}", f"dataset.calibration_file={tmp_path / 'calibration.txt'}")
    alone = run_id(other)
    (tmp_path / "calibration.txt").write_text("a green bird\n")
    assert run_id(other) != alone
    assert science(config(*words, "dataset.file=plain"))["dataset"] == config(*words, "dataset.file=plain")["dataset"]


def test_a_list_of_prompts_that_changed_since_is_another():
    clips, images = (science(config(f"model={model}"))["dataset"] for model in ("emoji_latte", "emoji_pixart"))
    assert clips["file_version"] == "2"
    assert "file_version" not in images


def test_the_head_of_a_metric_is_part_of_its_settings(tmp_path):
    head = tmp_path / "head.pth"
    node = {"_target_": "qdit.eval.text.Aesthetic", "extractor": "clip_l14_vbench", "head": str(head)}
    found = [settings(node, "none", tmp_path)]
    for content in (b"one", b"another"):
        head.write_bytes(content)
        found.append(settings(node, "none", tmp_path))
    assert len(set(found)) == 3
