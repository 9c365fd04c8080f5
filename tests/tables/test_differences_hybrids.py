"""The sweep of later parts on the hybrids: its cells compose; its script chooses on one seed and judges on another."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.configs import composed, config
from helpers.fake_records import SETTINGS, metric, record, write
from omegaconf import OmegaConf
from safetensors.numpy import save

from qdit.assets import CONF
from qdit.runs.parts import build_recipe
from qdit.storage.run_folder import VALUES
from qdit.tables import load_results

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments/comparison/hybrid_parts.py"))
GAINS = {"2_bias": (1.0, 1.0), "3_channel_shift": (-1.0, 5.0), "5_renormalised": (0.5, 0.0)}
"""Of a part over its base, on the samples that choose, and on those that judge."""


@pytest.fixture
def runs(tmp_path):
    random = np.random.default_rng(0)
    for seed in (1, 0):
        hardness, offsets = random.normal(20, 5, 64), {"1_none": 0.0, "4_probabilities": -3.0}
        for part, gains in GAINS.items():
            offsets[part] = offsets[SCRIPT["BASES"][part]] + gains[1 - seed]
        for name, offset in offsets.items():
            each = hardness + offset + random.normal(0, 0.1, 64)
            made = record(name, "w4a8", {"sqnr": metric(each.mean(), 0.1) | SETTINGS}, seed=seed, study="hybrid_parts")
            write(tmp_path, made)
            folder = tmp_path / "hybrid_parts" / f"{made['name']}-{made['run_id']}"
            (folder / VALUES).parent.mkdir(parents=True, exist_ok=True)
            (folder / VALUES).write_bytes(save({f"sqnr@{SETTINGS['settings']}": each}))
    return [dict(row) for row in load_results(tmp_path, "hybrid_parts").to_dict("records")]


def test_parts_are_chosen_on_one_seed_and_adopted_by_another(runs):
    found = {v.part: v for v in SCRIPT["verdicts"](runs, 1, 0, "sqnr")}
    assert {part: v.adopted for part, v in found.items()} == {
        "2_bias": True,
        "3_channel_shift": False,  # it gains on the samples that judge alone
        "5_renormalised": False,  # and this on those that choose alone
        "7_drop": None,
    }
    assert found["2_bias"].judged_by == pytest.approx((1.0, 0.02), abs=0.06)
    shown = SCRIPT["table"](list(found.values()), "sqnr", 1, 0)
    assert len(shown.splitlines()) == 6
    assert "adopt" in shown.splitlines()[2]
    assert shown.splitlines()[5].count("—") == 3


def test_less_is_a_gain_where_lower_is_better(runs):
    turned = [run | {"sqnr_higher_is_better": False} for run in runs]
    gains = [SCRIPT["gain"](each, "2_bias", 1, "sqnr")[0] for each in (runs, turned)]
    assert gains[0] == pytest.approx(1.0, abs=0.06)
    assert gains[1] == -gains[0]
    with pytest.raises(SystemExit, match="no better side"):
        SCRIPT["gain"]([run | {"sqnr_higher_is_better": None} for run in runs], "2_bias", 1, "sqnr")


def test_rows_that_are_not_made_yet_leave_it_open(runs):
    (verdict,) = [v for v in SCRIPT["verdicts"]([r for r in runs if r["seed"]], 1, 0, "sqnr") if v.part == "2_bias"]
    assert verdict.chosen
    assert verdict.adopted is None


def test_cells_of_the_grid_are_hybrids_with_one_part(tiny_model):
    node = OmegaConf.load(CONF / "grid/hybrid_parts.yaml").hydra.sweeper.params
    found = {}
    for overlay in node.experiment.split(","):
        for quantizer in ("qdit_w4a8", "qdit_w4a4"):
            words = [f"quantizer={quantizer}", f"experiment={overlay}", "grid=hybrid_parts"]
            cell = config(*words)
            assert cell["study"] == "hybrid_parts"
            recipe = build_recipe(cell)
            assert recipe is not None
            assert recipe.transform is not None
            assert type(recipe.weight).__name__ == "WeightGrid"
            found[cell["quantizer"]["name"]] = recipe
    assert set(SCRIPT["BASES"]) | set(SCRIPT["BASES"].values()) == set(found)
    assert found["2_bias"].repair is not None
    assert found["3_channel_shift"].activation.shifts == 3
    assert [found[f"{n}"].attention.probabilities.renormalise for n in ("4_probabilities", "5_renormalised")] == [
        False,
        True,
    ]
    assert [found[n].rounding.drop for n in ("6_adaround", "7_drop")] == [0.0, 0.5]
    assert composed("grid=hybrid_parts", "num_samples=32").num_samples == 32


def test_the_comparison_shows_the_verdicts_of_what_is_shipped():
    comparison = CONF.parent / "experiments/comparison"
    runs = [dict(row) for row in load_results(comparison / "results", "hybrid_parts").to_dict("records")]
    assert {(row["bits"], row["seed"]) for row in runs} >= {("w4a8", 0), ("w4a8", 1), ("w4a4", 0), ("w4a4", 1)}
    shown = SCRIPT["table"](SCRIPT["verdicts"](runs, 1, 0, "sqnr"), "sqnr", 1, 0)
    assert shown in (comparison / "parts.md").read_text(encoding="utf-8")
