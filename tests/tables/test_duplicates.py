"""A run that is recorded in several studies is one row, with all that any of its records measured."""

import numpy as np
import pytest
from helpers.fake_records import column, fid, metric, record, write
from safetensors.numpy import save

from qdit.storage.run_folder import VALUES
from qdit.tables import build_table, load_results
from qdit.tables.differences import values
from qdit.tables.summary import summarise

SQNR = metric(40.0, 0.1, n=4) | {"settings": "5e771465"}
LATER = {"finished": "2026-11-22T10:00:00"}


def kept(runs, made, each):
    """Write a record with a metric of each sample."""
    write(runs, made)
    samples = runs / made["study"] / f"{made['name']}-{made['run_id']}" / "samples"
    samples.mkdir()
    (samples.parent / VALUES).write_bytes(save({"sqnr@5e771465": np.array(each)}))


def test_a_metric_that_the_last_record_lacks_is_that_of_an_earlier_one(tmp_path):
    kept(tmp_path, record("rtn", "w8a8", {"sqnr": SQNR, "fid": fid(70.0)}, study="a"), [1.0, 2.0, 3.0, 4.0])
    write(tmp_path, record("rtn", "w8a8", {"fid": fid(80.0)}, study="b", **LATER))
    table = build_table(load_results(tmp_path), metrics=["sqnr", "fid"])
    assert column(table, "SQNR")[("rtn", "w8a8")] == "40.0 ± 0.1"
    assert column(table, "FID")[("rtn", "w8a8")] == "80.00 ± 1.00"  # the last value of what both have
    assert "The last record of some runs lacks what an earlier one has: sqnr in a." in " ".join(table.lines)
    (run,) = summarise(load_results(tmp_path), ["quantizer"]).runs
    assert (run["study"], run["sqnr_n"], run["sqnr_settings"]) == ("b", 4, "5e771465")
    assert values(run, "sqnr") == pytest.approx([1, 2, 3, 4])  # from the folder of its own record


def test_so_is_one_of_full_precision_and_of_three_records_the_latest_of_each_counts(tmp_path):
    write(tmp_path, record("fp", "w16a16", {"is_lite0": metric(8.0), "fid": metric(3.0, higher=False)}, study="a"))
    write(tmp_path, record("fp", "w16a16", {"is_lite0": metric(9.0)}, study="b", **LATER))
    write(tmp_path, record("fp", "w16a16", {"kid": metric(1.0)}, study="c", finished="2026-11-23T10:00:00"))
    (run,) = summarise(load_results(tmp_path), ["quantizer"]).runs
    assert (run["is_lite0"], run["fid"], run["kid"]) == (9.0, 3.0, 1.0)
    assert [run["is_lite0_folder"].split("/")[-2], run["fid_folder"].split("/")[-2]] == ["b", "a"]
    assert run.get("kid_folder") is None


def test_several_settings_of_a_metric_keep_their_folders(tmp_path):
    kept(tmp_path, record("rtn", "w8a8", {"sqnr": SQNR}, study="a"), [1.0, 2.0, 3.0, 4.0])
    write(tmp_path, record("rtn", "w8a8", {"ssim": metric(0.5)}, study="b", **LATER))
    write(tmp_path, record("q_dit", "w8a8", {"sqnr": SQNR | {"settings": "0ther000"}}, study="b"))
    runs = summarise(load_results(tmp_path), ["quantizer"]).runs
    run = next(run for run in runs if run["quantizer"] == "rtn")
    assert values(run, "sqnr@5e771465") == pytest.approx([1, 2, 3, 4])


def test_what_both_were_executed_as_is_shown_and_only_then(tmp_path):
    first = record("rtn", "w8a8", {"sqnr": SQNR}, study="a")
    first["cost"]["executed"] = "int8"
    write(tmp_path, first, record("rtn", "w8a8", {"fid": fid(80.0)}, study="b", **LATER))
    (run,) = summarise(load_results(tmp_path), ["quantizer"]).runs
    assert run["executed"] == "int8; simulated"
    write(tmp_path, record("rtn", "w8a8", {"sqnr": SQNR, "fid": fid(80.0)}, study="c", finished="2026-11-24T10:00:00"))
    (run,) = summarise(load_results(tmp_path), ["quantizer"]).runs
    assert run["executed"] == "simulated"
