"""Rows against rows: differences sample by sample, better on the good side of a metric alone."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_records import SETTINGS, metric, record, write
from safetensors.numpy import save

from qdit.storage.run_folder import VALUES

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments/comparison/against.py"))


@pytest.fixture
def runs_dir(tmp_path):
    random, hardness = np.random.default_rng(0), np.random.default_rng(1).normal(20, 5, 64)
    for name, gain in (("better", 1.0), ("usual", 0.0), ("level", 0.001)):
        each = {"sqnr": hardness + gain, "mse": hardness - gain}
        each = {key: values + random.normal(0, 0.1, 64) for key, values in each.items()}
        about = {key: metric(values.mean(), 0.1) | SETTINGS for key, values in each.items()}
        about["mse"] |= {"higher_is_better": False}
        made = record(name, "w4a4", about, study="s")
        write(tmp_path, made)
        (file := tmp_path / "s" / f"{made['name']}-{made['run_id']}" / VALUES).parent.mkdir(exist_ok=True)
        file.write_bytes(save({f"{key}@{SETTINGS['settings']}": values for key, values in each.items()}))
    return tmp_path


def test_a_row_is_better_where_its_interval_leaves_zero_out_on_the_good_side(runs_dir):
    better, usual, level = (SCRIPT["row_of"](runs_dir, "s", f"{name}@w4a4") for name in ("better", "usual", "level"))
    shown, wins = SCRIPT["verdict"](better, usual, "sqnr")
    assert wins
    assert float(shown.split()[0]) == pytest.approx(1.0, abs=0.06)
    assert SCRIPT["verdict"](better, usual, "mse")[1]
    assert not SCRIPT["verdict"](usual, better, "sqnr")[1]
    assert not SCRIPT["verdict"](level, usual, "sqnr")[1]
    assert SCRIPT["line"](better, usual, ("sqnr", "mse"))[-1] == "2 of 2"
    assert SCRIPT["verdict"](better, usual, "ssim") == ("—", False)


def test_a_row_that_is_not_there_is_named_with_those_that_are(runs_dir):
    with pytest.raises(
        SystemExit, match=r"better@w8a8: no such row of seed 0 in s; there are better@w4a4, level@w4a4, usual@w4a4"
    ):
        SCRIPT["row_of"](runs_dir, "s", "better@w8a8")


def test_a_row_may_be_of_another_study(runs_dir):
    there, here = SCRIPT["row_of"](runs_dir, "other", "s:better@w4a4"), SCRIPT["row_of"](runs_dir, "s", "better@w4a4")
    assert there["run_id"] == here["run_id"]


def test_rows_of_other_seeds_or_protocols_are_not_taken(runs_dir):
    row = SCRIPT["row_of"](runs_dir, "s", "better@w4a4")
    with pytest.raises(SystemExit, match="no such row of seed 1"):
        SCRIPT["row_of"](runs_dir, "s", "better@w4a4", 1)
    with pytest.raises(SystemExit, match="different protocols"):
        SCRIPT["line"](row, row | {"protocol_id": "another"}, ("sqnr",))
