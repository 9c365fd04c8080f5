"""Records become a frame: one row a run, damaged files named, other schemas refused."""

import pytest
from helpers.fake_records import failed, metric, record, write

from qdit.errors import UserError
from qdit.storage.record_check import wrong
from qdit.tables import build_table, load_results, render, where


def test_one_row_a_run_with_metrics_costs_and_config(runs):
    frame = load_results(runs, "s")
    assert len(frame) == 7
    row = frame[(frame["quantizer"] == "q_dit") & (frame["bits"] == "w4a8")].iloc[0]
    assert (row["sqnr"], row["sqnr_stderr"], row["sqnr_n"]) == (24.0, 0.4, 256)
    assert (row["fid_lite0_delta"], row["fid_lite0_delta_stderr"]) == (6.0, 0.2)
    assert (row["weight_bits"], row["weight_bits_quantized"], row["model_mb"], row["gbops"]) == (4.5, 4.0, 4.0, 2000.0)
    assert (row["seconds"], row["seconds_sample"], row["executed"]) == (31.0, 30.0, "simulated")
    assert row["sampler.steps"] == 20
    assert isinstance(row["sampler.steps"], int)
    full = frame[frame["quantizer"] == "fp"].iloc[0]
    assert full[["sqnr", "fid_lite0_delta", "peak_memory_mb"]].isna().all()


def test_damaged_files_are_named_and_skipped(runs, capsys):
    for name, text in (("cut", '{"schema": 1, "sta'), ("list", "[1]"), ("other", '{"a": 1}')):
        (runs / "s" / name).mkdir()
        (runs / "s" / name / "result.json").write_text(text)
    (runs / "s" / "binary").mkdir()
    (runs / "s" / "binary" / "result.json").write_bytes(b"\xff\xfe\x00")
    assert len(load_results(runs)) == 7
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert all(any(name in line for line in errors) for name in ("cut", "list", "other", "binary"))


def test_an_unknown_schema_is_refused(runs):
    write(runs, record("rtn", "w3a8", {}, schema=7))
    with pytest.raises(UserError, match=r"rtn-w3a8.*schema 7.*reads schema 1"):
        load_results(runs)


def test_no_runs_says_where_and_which_studies(runs, tmp_path):
    with pytest.raises(UserError, match=r"runs/table1.*are s"):
        load_results(runs, "table1")
    with pytest.raises(UserError, match="--runs-dir"):
        load_results(tmp_path / "nowhere")


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


ODD = {
    "quantizer.name={}": {"config": {"quantizer.name": {}, "bits.name": "w4a8"}},
    "bits.name=4": {"config": {"quantizer.name": "rtn", "bits.name": 4}},
    "config=": {"config": ["a"]},
    "config.key=": {"config": {"key": {"a": 1}}},
    "metrics=": {"metrics": []},
    "metrics.sqnr=": {"metrics": {"sqnr": 3}},
    "metrics.sqnr.value=": {"metrics": {"sqnr": metric("x")}},
    "metrics.sqnr.n=": {"metrics": {"sqnr": metric(1.0, n=1e999)}},
    "higher_is_better=": {"metrics": {"sqnr": metric(1.0, higher="up")}},
    "cost.seconds.fit=": {"cost": {"seconds": {"fit": {}}}},
    "cost.executed=": {"cost": {"executed": 7}},
    "curves.c.x=": {"curves": {"c": {"x": 7, "y": [1]}}},
    "curves.c has no number": {"curves": {"c": {"x": [1, 2], "y": [1]}}},
    "protocol=": {"protocol": ["a"]},
    "status=": {"status": "maybe"},
    "seed=": {"seed": {"a": 1}},
    "git.commit=": {"git": {"commit": 7}},
    "finished=": {"finished": 7},
    "nested deeper": {"layers": deep(100)},
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_record_is_named_and_takes_no_other_with_it(what, tmp_path, capsys):
    assert what in (wrong(record("rtn", "w4a8", {}) | ODD[what]) or "nothing")
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("rtn", "w4a8", {}) | ODD[what])
    assert len(load_results(tmp_path)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "damaged, skipped" in line
    assert what in line


def test_nesting_beyond_what_python_reads_is_damage(runs, capsys):
    (runs / "s" / "deep").mkdir()
    (runs / "s" / "deep" / "result.json").write_text("[" * 100_000)
    assert len(load_results(runs)) == 7
    assert "deep/result.json: damaged, skipped" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["v[1]", "*", "2026_11_28", "a b"])
def test_a_study_is_found_under_its_very_name(study, tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}, study=study), record("rtn", "w4a8", {}, study="v1"))
    assert load_results(tmp_path, study)["study"].tolist() == [study]


def test_a_study_whose_runs_all_failed_shows_why(tmp_path):
    write(tmp_path, failed("rtn", "w8a8", "no such folder"), failed("rtn", "w4a8", "no such folder"))
    text = render(build_table(load_results(tmp_path)), "markdown")
    assert "[1] rtn-w8a8, seed 0: no such folder" in text
    assert text.count("| rtn") == 2


def test_records_older_than_a_key_are_not_told_apart_by_what_was_then(tmp_path):
    """Of a key in a group that they have, of one in a new group, and where a condition names the key."""
    recipe = {"activation.name": "token", "activation.range.name": "minmax", "calibration.seed": 0}
    newer = {"activation.columns": "joined", "activation.range.scheme": "fixed", "repair.name": "none"}
    old = record("q_dit", "w4a8", {"sqnr": metric(20.0, 1.0)}, config=recipe)
    new = record("q_dit", "w4a8", {"sqnr": metric(22.0, 1.0)}, config=recipe | newer | {"calibration.seed": 1})
    frame = load_results(write(tmp_path / "runs", old, new))
    assert build_table(frame).n_keys == 2  # quantizer and bits
    assert len(build_table(frame).rows) == 1
    assert len(where(frame, ["activation.columns=joined", "repair.name=none"])) == 2
    other = record("q_dit", "w4a8", {"sqnr": metric(25.0, 1.0)}, config=recipe | newer | {"repair.name": "bias"})
    assert len(build_table(load_results(write(tmp_path / "more", old, new, other))).rows) == 2


def test_a_scope_that_names_roles_of_other_families_is_the_same_scope_on_a_dit(tmp_path):
    """Records came to name them when the families came; elsewhere they tell recipes apart."""

    def lines(model, place):
        recipe = {"model._target_": model, "scope.include": []}
        old = record(
            "q_dit", "w4a8", {"sqnr": metric(20.0)}, config=recipe | {"scope.roles": ["qkv"], "calibration.seed": 0}
        )
        more = {"scope.roles": ["qkv", "cross_q"], "calibration.seed": 1}
        new = record("q_dit", "w4a8", {"sqnr": metric(22.0)}, config=recipe | more)
        return len(build_table(load_results(write(tmp_path / place, old, new))).rows)

    assert lines("qdit.model.dit.DiT", "dit") == 1
    assert lines("qdit.model.pixart.PixArt", "pixart") == 2


def test_a_study_as_a_shell_completes_it(runs):
    assert len(load_results(runs, "s/")) == len(load_results(runs, "s"))
