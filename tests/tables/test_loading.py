"""Records become a frame: one row a run, damaged files named, other schemas refused."""

import pytest
from fake_records import record, write

from qdit.errors import UserError
from qdit.tables import load_results


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
