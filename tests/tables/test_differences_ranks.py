"""Rank correlations of studies: SciPy's, with the direction of a metric, and intervals that know of noise."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_records import SETTINGS, metric, record, write
from safetensors.numpy import save
from scipy.stats import spearmanr

from qdit.storage.run_folder import VALUES
from qdit.tables import load_results

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments/comparison/ranks.py"))
LEVELS = {"rtn": 11.0, "awq": 13.0, "q_dit": 14.5, "svdquant": 15.5, "qdit_w4a4": 19.0}
OTHERS = {"rtn": 5.0, "awq": 9.0, "q_dit": 8.0, "svdquant": 10.0, "viditq_v1": 1.0}


def study(root, name, levels, noise, sign=1.0):
    random = np.random.default_rng(0)
    for quantizer, level in levels.items():
        each = sign * (level + random.normal(0, noise, 64))
        about = metric(each.mean(), 0.1) | SETTINGS | {"higher_is_better": sign > 0}
        made = record(quantizer, "w4a4", {"sqnr": about}, study=name)
        write(root, made)
        (folder := root / name / f"{made['name']}-{made['run_id']}" / VALUES).parent.mkdir(parents=True, exist_ok=True)
        folder.write_bytes(save({f"sqnr@{SETTINGS['settings']}": each}))
    return SCRIPT["side"](load_results(root, name), "sqnr", "w4a4")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_common_recipes_are_ranked_better_ones_higher(tmp_path, sign):
    sides = study(tmp_path, "one", LEVELS, 0.1), study(tmp_path, "other", OTHERS, 0.1, sign)
    common = [*LEVELS][:4]
    expected = spearmanr([LEVELS[name] for name in common], [OTHERS[name] for name in common]).statistic
    assert SCRIPT["rank_correlation"](*(each.means[common] for each in sides)) == pytest.approx(expected)
    assert SCRIPT["interval"](*sides, common, 200) == pytest.approx((expected, expected))
    shown = SCRIPT["table"](
        ["one:sqnr", "other:sqnr"], {"w4a4": dict(zip(["one:sqnr", "other:sqnr"], sides, strict=True))}, 50
    )
    cells = [cell.strip() for cell in shown.splitlines()[2].split("|")]
    assert cells[4:6] == ["4", f"{expected:.2f}"]


def test_noisy_samples_widen_the_interval_and_two_recipes_have_none(tmp_path):
    sides = study(tmp_path, "one", LEVELS, 20.0), study(tmp_path, "other", OTHERS, 20.0)
    low, high = SCRIPT["interval"](*sides, [*LEVELS][:4], 200)
    assert high - low > 0.5
    few = {"one:sqnr": sides[0], "other:sqnr": study(tmp_path, "few", {"rtn": 1.0, "awq": 2.0}, 0.1)}
    assert SCRIPT["table"]([*few], {"w4a4": few}, 50).splitlines()[2].count("—") == 2


def test_a_metric_of_whole_sets_has_no_interval(tmp_path):
    one = study(tmp_path, "one", LEVELS, 0.1)
    assert SCRIPT["interval"](one, one._replace(samples=None), [*LEVELS], 10) is None


def test_a_ranking_is_of_one_seed_and_one_protocol(tmp_path):
    study(tmp_path, "one", LEVELS, 0.1)
    frame = load_results(tmp_path, "one")
    write(tmp_path, record("rtn", "w4a4", {"sqnr": metric(99.0, 0.1) | SETTINGS}, study="one", seed=1))
    assert SCRIPT["side"](load_results(tmp_path, "one"), "sqnr", "w4a4").means["rtn"] < 12
    for changed in ({"quantizer": frame.quantizer.iloc[1]}, {"protocol_id": "another"}):
        with pytest.raises(SystemExit, match="several runs of seed 0, or protocols differ"):
            SCRIPT["side"](
                frame.assign(**{key: [value, *frame[key][1:]] for key, value in changed.items()}), "sqnr", "w4a4"
            )
