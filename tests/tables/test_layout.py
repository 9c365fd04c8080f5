"""Rows, columns, labels and digits of a table."""

import json

import pytest
from helpers.fake_records import PROTOCOL, cells, column, fid, metric, record, write

from qdit.errors import UserError
from qdit.tables import build_table, floor, load_results, render
from qdit.tables.quantity import metric_quantity, show


def test_long_table_order_and_missing_values(runs):
    table = build_table(load_results(runs))
    labels = [(row[0][0], row[1][0]) for row in cells(table)]
    assert labels == [
        ("full precision", "w16a16"),
        *(("rtn", "w8a8"), ("rtn", "w4a8"), ("ptq4dit", "w8a8"), ("ptq4dit", "w4a8"), ("q_dit", "w8a8")),
        ("q_dit", "w4a8"),
    ]
    assert table.header[2:] == ["SQNR (dB) ↑", "FID_lite0 ↓", "W bits (model)", "MB", "executed"]
    assert column(table, "SQNR")[("full precision", "w16a16")] == "—"
    assert column(table, "FID_lite0")[("rtn", "w4a8")] == "74.00 ± 1.00"
    assert column(table, "W bits")[("rtn", "w4a8")] == "4.50"
    lost = next(row for row in table.rows if (row[0].text, row[1].text) == ("ptq4dit", "w4a8"))
    assert [cell.text for cell in lost[2:]] == ["—"] * 5
    assert lost[2].notes == (1,)
    assert table.footnotes == [
        "ptq4dit-w4a8, seed 0: 2 problems in this config: group_size=96 does not divide 256 bits=1"
    ]


def test_pivot_puts_full_precision_into_every_column(runs):
    table = build_table(load_results(runs), cols="bits", metrics=["fid_lite0", "sqnr"])
    assert table.header == [
        *("quantizer", "FID_lite0 ↓ w8a8", "FID_lite0 ↓ w4a8", "SQNR (dB) ↑ w8a8", "SQNR (dB) ↑ w4a8"),
        *("W bits (model) w8a8", "W bits (model) w4a8"),
    ]
    assert [cell.text for cell in table.rows[0]][:4] == ["full precision", "60.00 ± 1.00", "60.00 ± 1.00", "—"]
    lost = next(row for row in table.rows if row[0].text == "ptq4dit")
    assert [cell.text for cell in lost[1:5]] == ["63.00 ± 1.00", "—", "38.0 ± 0.4", "—"]
    assert [cell.notes for cell in lost[1:5]] == [(), (1,), (), (1,)]
    assert next(row for row in table.rows if row[0].text == "q_dit")[4].mark == "best"


def test_kid_is_scaled_and_small_errors_get_a_digit(tmp_path):
    kid = metric(0.00123, 0.00012, higher=False)
    write(tmp_path, record("rtn", "w8a8", {"kid_lite0": kid, "psnr": metric(float("inf")), "sqnr": metric(40.0, 0.02)}))
    table = build_table(load_results(tmp_path))
    assert table.header[2:5] == ["SQNR (dB) ↑", "PSNR (dB) ↑", "KID_lite0·10³ ↓"]
    assert [cell.text for cell in table.rows[0][2:5]] == ["40.00 ± 0.02", "∞", "1.23 ± 0.12"]


def test_paired_differences_and_costs_are_metrics_too(runs):
    table = build_table(load_results(runs), metrics=["fid_lite0_delta", "seconds_sample"])
    assert table.header[2:4] == ["ΔFID_lite0 ↓", "seconds_sample"]
    assert column(table, "Δ")[("rtn", "w4a8")] == "14.00 ± 0.20"
    assert column(table, "Δ")[("q_dit", "w8a8")] == "0.20 ± 0.20 n.s."
    assert column(table, "Δ")[("full precision", "w16a16")] == "—"


def test_unmentioned_metrics_are_announced(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0), "ssim": metric(0.9)}))
    assert "Also measured: ssim (--metrics all)." in build_table(load_results(tmp_path)).lines
    assert build_table(load_results(tmp_path), metrics=["all"]).header[2:4] == ["SQNR (dB) ↑", "SSIM ↑"]


def test_unknown_names_get_suggestions(runs):
    frame = load_results(runs)
    with pytest.raises(UserError, match=r"'sqrn' \(did you mean sqnr"):
        build_table(frame, metrics=["sqrn"])
    with pytest.raises(UserError, match=r"'sampler.stepz' \(did you mean sampler.steps"):
        build_table(frame, rows=["sampler.stepz"])


def test_floor_of_real_data_stands_below_full_precision(runs, tmp_path, monkeypatch):
    folder = tmp_path / "assets" / "none"
    folder.mkdir(parents=True)
    (folder / "floor-lite0.json").write_text(json.dumps({"floor": {"256": {"fid_lite0": {"mean": 55.5, "std": 0.6}}}}))
    monkeypatch.setattr(floor, "ASSETS", tmp_path / "assets")
    table = build_table(load_results(runs), metrics=["sqnr", "fid_lite0"])
    assert [cell.text for cell in table.rows[1]][:4] == ["real data", "", "—", "55.50 ± 0.60"]
    assert "Real data" in render(table, "markdown")
    write(runs, record("rtn", "w8a8", {"fid_lite0": fid(30.0, n=512)}, protocol=PROTOCOL.replace("N=256", "N=512")))
    several = build_table(load_results(runs), metrics=["fid_lite0"], mix_protocols=True)
    assert "real data" not in {cell.text for row in several.rows for cell in row}  # which N would it be of?


def test_shipped_floor_can_be_read():
    mean, std = floor.floor("fid_lite0", "emoji", 1024)
    assert mean > 0
    assert std > 0
    assert floor.floor("fid_lite0", "emoji", 1000) is None
    assert floor.floor("fid", "emoji", 1024) is None
    assert floor.floor("fid_lite0", "imagenet256", 1024) is None


def test_recipes_that_differ_are_never_averaged(tmp_path):
    nearest = {"rounding._target_": "qdit.rounding.Nearest", "weight.group_size": 64, "eval.sqnr._target_": "x"}
    gptq = {"rounding._target_": "qdit.rounding.GPTQ", "rounding.percdamp": 0.01, "weight.group_size": 64}
    write(
        tmp_path,
        record("q_dit", "w4a8", {"sqnr": metric(20.0)}, config=nearest),
        record("q_dit", "w4a8", {"sqnr": metric(22.0)}, config=gptq),
        record("q_dit", "w4a8", {"sqnr": metric(23.0)}, config=gptq | {"weight.group_size": 32}),
        record("fp", "w16a16", {}, config=nearest),
    )
    table = build_table(load_results(tmp_path))
    assert table.header[:4] == ["quantizer", "bits", "rounding", "weight.group_size"]
    assert column(table, "SQNR") == {
        ("full precision", "w16a16", "", ""): "—",
        ("q_dit", "w4a8", "GPTQ", "32"): "23.0",
        ("q_dit", "w4a8", "GPTQ", "64"): "22.0",
        ("q_dit", "w4a8", "Nearest", "64"): "20.0",
    }


def test_one_run_in_two_studies_is_one_row(tmp_path):
    first = record("rtn", "w8a8", {"sqnr": metric(40.0)}, study="a")
    second = first | {"study": "b", "finished": "2026-11-22T00:00:00", "metrics": {"sqnr": metric(41.0)}}
    write(tmp_path, first, second, record("fp", "w16a16", {}, study="a"), record("fp", "w16a16", {}, study="b"))
    table = build_table(load_results(tmp_path))
    assert column(table, "SQNR") == {("full precision", "w16a16"): "—", ("rtn", "w8a8"): "41.0"}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (0.004, "0.994 ± 0.004"),
        (0.0004, "0.9939 ± 0.0004"),
        (0.00003, "0.99391 ± 0.00003"),
        (4e-9, "0.993913 ± 0.000000"),
        (0.0, "0.994 ± 0.000"),
    ],
)
def test_an_error_has_as_many_decimals_as_show_it(error, shown):
    assert show(0.993913, error, metric_quantity("ssim", True)) == shown


def test_full_precision_takes_no_run_of_the_part_that_its_record_names(tmp_path):
    """Its record has the parts of the recipe that it was made for: it is no row of theirs."""
    made = [
        record("q_dit", bits, {"sqnr": metric(value)}, config={"rounding.name": name})
        for bits, name, value in (("w4a8", "a", 15.0), ("w4a4", "a", 11.0), ("w4a8", "b", 18.0), ("w4a4", "b", 12.0))
    ]
    write(tmp_path, record("fp", "w16a16", {"is_lite0": metric(9.0)}, config={"rounding.name": "a"}), *made)
    for cols in (None, "bits"):
        table = build_table(load_results(tmp_path), metrics=["sqnr"], rows=["rounding.name"], cols=cols)
        shown = [row[0].text for row in table.rows]
        assert shown[0] == "full precision"
        assert {"a", "b"} == set(shown[1:])
        assert {text.split()[0] for row in cells(table) for text, *_ in row} >= {"15.0", "11.0", "18.0", "12.0"}


def test_full_precision_stands_beside_runs_where_no_key_is_a_part(tmp_path):
    for model in ("one", "two"):
        about = {"config": {"model.name": model}, "protocol": f"{PROTOCOL} · {model}"}
        write(tmp_path, record("fp", "w16a16", {"is_lite0": metric(9.0)}, **about))
        write(tmp_path, record("rtn", "w4a8", {"sqnr": metric(15.0)}, **about))
    table = build_table(load_results(tmp_path), metrics=["sqnr"], rows=["model.name"], cols="bits", mix_protocols=True)
    assert sorted(row[0].text for row in table.rows) == ["one", "one, full precision", "two", "two, full precision"]
