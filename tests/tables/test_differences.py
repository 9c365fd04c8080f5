"""Differences over single samples: their error, ensembles, and when there are none."""

import os

import numpy as np
import pytest
from helpers.fake_records import SETTINGS
from safetensors.numpy import load_file, save

from qdit.storage.run_folder import CLUSTERS, VALUES
from qdit.tables.differences import difference, values

KEY = "sqnr@" + SETTINGS["settings"]


def kept(folder, each, seed=0, settings=SETTINGS["settings"]) -> dict:
    (folder / VALUES).parent.mkdir(parents=True, exist_ok=True)
    (folder / VALUES).write_bytes(save({KEY: np.asarray(each, dtype=np.float64)}))
    return {"folder": str(folder), "seed": seed, "sqnr_settings": settings}


@pytest.fixture
def hardness():
    return np.random.default_rng(0).normal(20, 5, 100)


def test_what_samples_share_cancels(tmp_path, hardness):
    noise = np.random.default_rng(1).normal(0, 0.1, 100)
    found = difference([kept(tmp_path / "a", hardness + 0.05)], [kept(tmp_path / "b", hardness + noise)], "sqnr")
    assert found is not None
    gap, error = found
    assert gap == pytest.approx(0.05 - noise.mean())
    assert error == pytest.approx(noise.std(ddof=1) / 10)


def test_the_spread_of_calibrations_joins_the_error(tmp_path, hardness):
    shifts = (-1.0, 0.0, 1.0)
    several = [kept(tmp_path / f"a{n}", hardness + shift) for n, shift in enumerate(shifts)]
    found = difference(several, [kept(tmp_path / "b", hardness)], "sqnr")
    assert found is not None
    assert found == pytest.approx((0.0, (1 / 3) ** 0.5), abs=1e-12)


def test_seeds_of_the_noise_are_paired_one_by_one(tmp_path, hardness):
    one = [kept(tmp_path / "a0", hardness, 0), kept(tmp_path / "a1", hardness + 9, 1)]
    two = [kept(tmp_path / "b1", hardness + 8, 1), kept(tmp_path / "b0", hardness - 1, 0)]
    assert difference(one, two, "sqnr") == pytest.approx((1.0, 0.0), abs=1e-12)
    assert difference(one, two[:1], "sqnr") == pytest.approx((1.0, 0.0), abs=1e-12)  # of the seed that both have
    assert difference(one[:1], two[:1], "sqnr") is None


def test_models_of_several_seeds_differ_by_more_than_their_samples_tell(tmp_path, hardness):
    """Each seed calibrates another model: the spread of the seeds' means is a lower bound of the error."""
    gains = (0.0, 0.6, 1.2)
    one = [kept(tmp_path / f"a{seed}", hardness + gain, seed) for seed, gain in enumerate(gains)]
    two = [kept(tmp_path / f"b{seed}", hardness, seed) for seed in range(3)]
    assert difference(one, two, "sqnr") == pytest.approx((0.6, np.std(gains, ddof=1) / 3**0.5), abs=1e-9)


def test_there_is_none_without_values_or_of_other_settings(tmp_path, hardness):
    run = kept(tmp_path / "a", hardness)
    assert difference([run], [kept(tmp_path / "b", hardness[:50])], "sqnr") is None
    assert difference([run], [kept(tmp_path / "c", hardness, settings="new")], "sqnr") is None
    assert difference([run], [{"folder": str(tmp_path / "d"), "seed": 0, "sqnr_settings": "5e771465"}], "sqnr") is None
    assert difference([run], [], "sqnr") is None
    assert values(run, "psnr") is None
    assert values(run | {"folder": None}, "sqnr") is None


def test_a_damaged_file_is_no_values(tmp_path, hardness):
    run = kept(tmp_path / "a", hardness)
    assert values(run, "sqnr@5e771465") is None  # its settings stand under that name in a table
    assert values(run | {"sqnr@5e771465_settings": "5e771465"}, "sqnr@5e771465") is not None
    (tmp_path / "a" / VALUES).write_bytes(b"cut")
    assert values(run, "sqnr") is None


def test_samples_that_are_not_judged_by_both_are_left_out(tmp_path):
    """VBench's dimensions judge their own prompts; of others the value is NaN."""
    nan = float("nan")
    one, other = (kept(tmp_path / name, each) for name, each in (("a", [1, nan, 3, 5]), ("b", [0, 9, nan, 2])))
    assert difference([one], [other], "sqnr") == pytest.approx((2.0, 1.0))  # 1 and 3
    none = kept(tmp_path / "c", [nan, 1, nan, nan])
    assert difference([one], [none], "sqnr") is None
    infinite = kept(tmp_path / "d", [float("inf"), 1, 2, 3])
    assert difference([infinite], [infinite], "sqnr") is None
    for folder in ("a", "b"):
        tensors = {KEY: load_file(tmp_path / folder / VALUES)[KEY], CLUSTERS: np.array([0, 0, 1, 1])}
        (tmp_path / folder / VALUES).write_bytes(save(tensors))
        os.utime(tmp_path / folder / VALUES, ns=(0, 1))
    assert difference([one], [other], "sqnr") == pytest.approx((2.0, 1.0))  # of each prompt what is judged
