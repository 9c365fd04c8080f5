"""The digest of a metric's settings: what changes it, what does not, and that it costs nothing."""

import os
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from qdit.assets import cached
from qdit.eval.distribution import DistributionMetric
from qdit.runs.identity import WITHOUT_REFERENCE, settings
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
