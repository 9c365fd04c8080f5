"""Tables: every promise of `qdit.tables` on synthetic records, and the exit codes of what surrounds a multirun."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

from qdit.callback import TableCallback
from qdit.errors import UserError
from qdit.tables import build_table, floor, load_results, main, render, where

PROTOCOL = "emoji_dit|emoji|ddim20|cfg=2.0|N=256|seed={seed}|bs=32|float32"


def metric(value, stderr=None, higher=True, delta=None, delta_stderr=None, n=256):
    return {
        **{"value": value, "stderr": stderr, "n": n, "higher_is_better": higher},
        **{"delta": delta, "delta_stderr": delta_stderr},
    }


def fid(value, stderr=1.0, full=60.0, delta_stderr=0.2, n=256):
    return metric(value, stderr, higher=False, delta=value - full, delta_stderr=delta_stderr, n=n)


def record(quantizer, bits, metrics, *, seed=0, study="s", protocol=PROTOCOL, config=None, **changes):
    full = quantizer == "fp"
    text = protocol.format(seed=seed)
    weight_bits = float(bits.split("a")[0][1:])
    cost = {
        **{"weight_bits_model": weight_bits + 0.5, "weight_bits_quantized": weight_bits},
        **{"model_bytes": int(weight_bits * 1e6), "bops": 2e12, "seconds": {"quantize": 1.0, "sample": 30.0}},
        **{"samples_per_second": 8.0, "peak_memory_bytes": None},
        "executed": "full precision" if full else "simulated",
    }
    recipe = {"quantizer.name": quantizer, "bits.name": bits, "seed": seed, "sampler.steps": 20, "dataset.name": "none"}
    return {
        **{
            "schema": 1,
            "status": "done",
            "error": None,
            "study": study,
            "name": "fp" if full else f"{quantizer}-{bits}",
        },
        **{"run_id": f"{abs(hash((quantizer, bits, seed, text, str(config)))):08x}"[:8], "seed": seed},
        **{"config": recipe | (config or {}), "protocol": text, "protocol_id": f"id{abs(hash(text)) % 10**6}"},
        **{"metrics": metrics, "curves": {}, "layers": [], "cost": cost, "versions": {}, "git": None},
        **{"started": "2026-11-21T10:00:00", "finished": "2026-11-21T10:05:00"},
    } | changes


def failed(quantizer, bits, error, **changes):
    """What run.py writes for a failed cell: no protocol, no numbers."""
    whole = record(quantizer, bits, {}, **{"status": "failed", "error": error, "error_kind": "user"} | changes)
    return whole | {"protocol": None, "protocol_id": None, "cost": {}}


def write(runs_dir: Path, *records) -> Path:
    for each in records:
        folder = runs_dir / each["study"] / f"{each['name']}-{each['run_id']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(each))
    return runs_dir


def cells(table) -> list[list[tuple[str, str]]]:
    return [[(cell.text, cell.mark) for cell in row] for row in table.rows]


def column(table, name) -> dict[tuple[str, ...], str]:
    at = next(i for i, header in enumerate(table.header) if header.startswith(name))
    return {tuple(c.text for c in row[: table.n_keys]): row[at].text for row in table.rows}


@pytest.fixture
def runs(tmp_path):
    """Full precision, three methods at two bits, one of which failed."""
    return write(
        tmp_path / "runs",
        record("fp", "w16a16", {"fid_lite0": metric(60.0, 1.0, higher=False)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, 0.4), "fid_lite0": fid(61.0)}),
        record("rtn", "w4a8", {"sqnr": metric(21.0, 0.4), "fid_lite0": fid(74.0)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.5, 0.4), "fid_lite0": fid(60.2)}),
        record("q_dit", "w4a8", {"sqnr": metric(24.0, 0.4), "fid_lite0": fid(66.0)}),
        record("ptq4dit", "w8a8", {"sqnr": metric(38.0, 0.4), "fid_lite0": fid(63.0)}),
        failed("ptq4dit", "w4a8", "2 problems in this config:\n  group_size=96 does not divide 256\n  bits=1"),
    )


# Loading


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


# Layout


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


def test_best_is_bold_at_its_bits_and_ties_are_marked(runs):
    table = build_table(load_results(runs), metrics=["sqnr", "fid_lite0"])
    marks = {(row[0].text, row[1].text): (row[2].mark, row[3].mark) for row in table.rows}
    assert marks[("full precision", "w16a16")] == ("", "")  # the reference does not compete
    assert marks[("q_dit", "w8a8")] == ("best", "best")
    # 0.5 dB of two errors of 0.4: tied. FID 0.8 apart: alone 1.0 each would tie, paired 0.2 each tells them apart.
    assert marks[("rtn", "w8a8")] == ("tied", "")
    assert marks[("rtn", "w4a8")] == ("", "")
    assert marks[("ptq4dit", "w4a8")] == ("", "")


def test_unpaired_errors_are_used_where_one_paired_is_missing(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": metric(61.0, 1.0, higher=False)}),
        record("q_dit", "w8a8", {"fid_lite0": fid(60.2)}),
    )
    table = build_table(load_results(tmp_path))
    assert [row[2].mark for row in table.rows] == ["tied", "best"]


def test_rows_of_other_seeds_are_compared_by_their_differences_to_full_precision(tmp_path):
    """Seed 1 is an easy one: its value is lower, and its difference to full precision is not."""
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0, full=60.0)}, seed=0),
        record("q_dit", "w8a8", {"fid_lite0": fid(51.1, full=50.0)}, seed=1),
        record("ptq4dit", "w8a8", {"fid_lite0": fid(60.9, full=50.0)}, seed=1),
    )
    table = build_table(load_results(tmp_path))
    assert {row[0].text: row[2].mark for row in table.rows} == {"rtn": "tied", "ptq4dit": "", "q_dit": "best"}


def test_without_an_error_bar_nothing_is_tied(tmp_path):
    write(
        tmp_path,
        record("fp", "w16a16", {"sqnr": metric(40.0, 0.4)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, None)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.1, 0.4)}),
        record("ptq4dit", "w8a8", {"sqnr": metric(float("inf"), None)}),
        record("tq_dit", "w8a8", {"sqnr": metric(float("inf"), None)}),
    )
    marks = {row[0].text: row[2].mark for row in build_table(load_results(tmp_path)).rows}
    assert marks == {"full precision": "", "rtn": "", "q_dit": "", "ptq4dit": "best", "tq_dit": "best"}


def test_a_value_without_a_rival_is_not_best(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("rtn", "w4a8", {"sqnr": metric(21.0)}))
    assert {cell.mark for row in build_table(load_results(tmp_path)).rows for cell in row} == {""}


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


# Runs that differ in more than their row says


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


# Seeds


@pytest.fixture
def seeded(tmp_path):
    records = [record("rtn", "w8a8", {"sqnr": metric(v, 0.1)}, seed=s) for s, v in enumerate((39.0, 40.0, 41.0))]
    records += [record("fp", "w16a16", {"is_lite0": metric(9.0)}, seed=s) for s in range(3)]
    records.append(failed("q_dit", "w8a8", "out of memory", seed=1))
    records.append(record("q_dit", "w8a8", {"sqnr": metric(43.0, 0.1)}, seed=0))
    return write(tmp_path / "runs", *records)


def test_seeds_become_mean_and_deviation(seeded):
    table = build_table(load_results(seeded), metrics=["sqnr"])
    assert column(table, "SQNR")[("rtn", "w8a8")] == "40.0 ± 1.0"
    assert "(1 or 3 seeds a row)" in " ".join(table.lines)
    assert "seeds 0, 1, 2" in table.lines[-1]
    partly = next(row for row in table.rows if row[0].text == "q_dit")
    assert (partly[2].text, partly[2].notes) == ("43.0 ± 0.1", (1,))
    assert table.footnotes == ["q_dit-w8a8, seed 1: out of memory"]


def test_seeds_all_is_a_row_each(seeded):
    table = build_table(load_results(seeded), metrics=["sqnr"], seeds="all")
    assert table.header[:3] == ["quantizer", "bits", "seed"]
    values = column(table, "SQNR")
    assert [values[("rtn", "w8a8", str(seed))] for seed in range(3)] == ["39.0 ± 0.1", "40.0 ± 0.1", "41.0 ± 0.1"]
    assert values[("q_dit", "w8a8", "1")] == "—"


def test_calibration_seeds_are_seeds(tmp_path):
    for seed, value in enumerate((20.0, 22.0)):
        write(tmp_path, record("q_dit", "w4a8", {"sqnr": metric(value)}, config={"calibration.seed": seed}))
    assert column(build_table(load_results(tmp_path)), "SQNR") == {("q_dit", "w4a8"): "21.0 ± 1.4"}
    split = build_table(load_results(tmp_path), seeds="all")
    assert split.header[:4] == ["quantizer", "bits", "seed", "calibration.seed"]


# Protocols


@pytest.fixture
def mixed(runs):
    other = PROTOCOL.replace("ddim20", "ddim50")
    steps = {"sampler.steps": 50}
    return write(
        runs,
        record("rtn", "w4a8", {"fid_lite0": fid(50.0, full=40.0)}, protocol=other, config=steps),
        record("fp", "w16a16", {"fid_lite0": metric(40.0, 1.0, higher=False)}, protocol=other, config=steps),
    )


def test_protocols_are_not_mixed(mixed):
    with pytest.raises(UserError) as error:
        build_table(load_results(mixed))
    text = str(error.value)
    assert "ddim20" in text
    assert "ddim50" in text
    assert "cfg=2.0" not in text  # only what differs
    assert "--mix-protocols" in text
    condition = next(line for line in text.splitlines() if "ddim50" in line).split("--where ")[1]
    kept = build_table(where(load_results(mixed), [condition]))
    assert column(kept, "FID") == {
        ("full precision", "w16a16"): "40.00 ± 1.00",
        ("rtn", "w4a8"): "50.00 ± 1.00",
    }


def test_one_text_with_two_identifiers_is_two_protocols(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("q_dit", "w8a8", {}, protocol_id="retrained"))
    with pytest.raises(UserError, match="id=retrained"):
        build_table(load_results(tmp_path))


def test_mixed_protocols_stand_apart(mixed):
    table = build_table(load_results(mixed), mix_protocols=True)
    assert table.header[0] == "protocol"
    fids = column(table, "FID")
    assert fids[("ddim50", "full precision", "w16a16")] == "40.00 ± 1.00"
    assert fids[("ddim20", "full precision", "w16a16")] == "60.00 ± 1.00"
    at = table.header.index("FID_lite0 ↓")
    assert not next(row for row in table.rows if row[0].text == "ddim50" and row[1].text == "rtn")[at].mark
    assert sum(line.startswith("Protocol ") for line in table.lines) == 2


def test_a_key_that_tells_protocols_apart_needs_no_label(mixed):
    table = build_table(load_results(mixed), cols="sampler.steps", metrics=["fid_lite0"], mix_protocols=True)
    assert table.header[:4] == ["quantizer", "bits", "FID_lite0 ↓ 20", "FID_lite0 ↓ 50"]
    assert [cell.text for cell in table.rows[0]][2:4] == ["60.00 ± 1.00", "40.00 ± 1.00"]


def test_sample_counts_are_not_mixed(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0)}),
        record("q_dit", "w8a8", {"fid_lite0": fid(60.0, n=128)}),
    )
    with pytest.raises(UserError, match="fid_lite0 was computed from 128 and from 256 samples"):
        build_table(load_results(tmp_path))


OLD, NEW = {"settings": "0ld00000"}, {"settings": "ffff0000"}


@pytest.fixture
def two_references(tmp_path):
    """The reference was made anew after the first run; full precision and a later run have the new one."""
    return write(
        tmp_path,
        record("fp", "w16a16", {"fid_lite0": metric(70.0, 1.0, higher=False) | NEW}),
        record("rtn", "w8a8", {"fid_lite0": fid(61.0) | OLD, "sqnr": metric(30.0) | OLD}),
        record("q_dit", "w8a8", {"fid_lite0": fid(71.0, full=70.0) | NEW, "sqnr": metric(31.0) | OLD}),
        failed("ptq4dit", "w8a8", "no"),
    )


@pytest.mark.parametrize("mix", [False, True])
def test_a_metric_of_two_references_is_two_columns(two_references, mix):
    frame = load_results(two_references)
    table = build_table(frame, metrics=["fid_lite0", "sqnr"], mix_protocols=mix)
    assert table.header[2:5] == ["FID_lite0@0ld00000 ↓", "FID_lite0@ffff0000 ↓", "SQNR (dB) ↑"]
    shown = {row[0].text: [cell.text for cell in row[2:4]] for row in table.rows}
    assert shown["full precision"] == ["—", "70.00 ± 1.00"]
    assert shown["rtn"] == ["61.00 ± 1.00", "—"]
    assert shown["q_dit"] == ["—", "71.00 ± 1.00"]
    assert {cell.mark for row in table.rows for cell in row[2:4]} == {""}  # neither has a rival
    assert any("fid_lite0 was computed with several settings" in line for line in table.lines)
    deltas = build_table(frame, metrics=["fid_lite0_delta"])
    assert deltas.header[2:4] == ["ΔFID_lite0@0ld00000 ↓", "ΔFID_lite0@ffff0000 ↓"]
    assert column(deltas, "ΔFID_lite0@ffff")[("q_dit", "w8a8")] == "1.00 ± 0.20"


def test_seeds_of_two_references_are_not_averaged(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0) | OLD}, seed=0),
        record("rtn", "w8a8", {"fid_lite0": fid(71.0) | NEW}, seed=1),
    )
    [row] = build_table(load_results(tmp_path)).rows
    assert [cell.text for cell in row[2:4]] == ["61.00 ± 1.00", "71.00 ± 1.00"]


def test_a_metric_of_one_reference_keeps_its_name(two_references):
    table = build_table(where(load_results(two_references), ["fid_lite0_settings=ffff0000"]))
    assert table.header[2:4] == ["SQNR (dB) ↑", "FID_lite0 ↓"]
    assert not any("several settings" in line for line in table.lines)


def test_the_protocol_stands_below_the_table(runs):
    last = build_table(load_results(runs)).lines[-1]
    assert last.endswith(
        "emoji_dit · emoji · ddim20 · cfg=2.0 · N=256 · bs=32 · float32 · seed 0 · quantized runs: simulated."
    )


# Conditions


def test_where_keeps_the_full_precision_of_what_is_left(runs):
    frame = where(load_results(runs), ["bits=w4a8", "quantizer=rtn,q_dit", "sampler.steps=20"])
    assert sorted(zip(frame["quantizer"], frame["bits"], strict=True)) == [
        ("fp", "w16a16"),
        ("q_dit", "w4a8"),
        ("rtn", "w4a8"),
    ]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("bits", "write key=value"),
        ("bitz=w4a8", r"'bitz' \(did you mean bits"),
        ("bits=w3a8", "leaves no run; bits takes w16a16, w4a8, w8a8"),
    ],
)
def test_where_refuses_with_advice(runs, condition, message):
    with pytest.raises(UserError, match=message):
        where(load_results(runs), [condition])


# Formats


def test_markdown(runs):
    text = render(build_table(load_results(runs), metrics=["sqnr"]), "markdown")
    line = next(line for line in text.splitlines() if line.startswith("| q_dit") and "w8a8" in line)
    assert "**40.5 ± 0.4**" in line
    assert "40.0 ± 0.4 ≈" in text
    assert "[1] ptq4dit-w4a8" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_latex_is_escaped(runs):
    text = render(build_table(load_results(runs), metrics=["sqnr", "fid_lite0"]), "latex")
    assert r"q\_dit & w8a8 & \textbf{40.5 $\pm$ 0.4}" in text
    assert r"FID\_lite0 $\downarrow$" in text
    assert r"40.0 $\pm$ 0.4 $\approx$" in text
    assert text.isascii()
    assert text.count(r"\\") == 8


def test_html_is_escaped(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), failed("q_dit", "w8a8", "a <b> & c"))
    text = render(build_table(load_results(tmp_path)), "html")
    assert "a &lt;b&gt; &amp; c" in text
    assert text.count("<tr>") == 3


def test_csv_is_long_and_plain(runs, capsys):
    assert main(["--runs-dir", str(runs), "--format", "csv", "--cols", "bits", "--metrics", "sqnr"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 7
    assert list(rows[0])[:2] == ["quantizer", "bits"]
    best = next(row for row in rows if (row["quantizer"], row["bits"]) == ("q_dit", "w4a8"))
    assert (best["fid_lite0"], best["fid_lite0_stderr"], best["fid_lite0_delta"]) == ("66", "1", "6")
    assert (best["weight_bits"], best["peak_memory_mb"], best["executed"]) == ("4.5", "", "simulated")
    lost = next(row for row in rows if row["status"] == "failed")
    assert (lost["sqnr"], lost["weight_bits"]) == ("", "")


# The command


def test_command_writes_a_file(runs, tmp_path, capsys):
    out = tmp_path / "new" / "table.md"
    assert main(["--runs-dir", str(runs), "--study", "s", "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text().startswith("| quantizer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "nope"], "studies of"),
        (["--metrics", "sqrn"], "did you mean sqnr"),
        (["--where", "bits"], "write key=value"),
        (["--rows", "bits", "--cols", "bits"], "one key twice"),
        (["--expect", "missing.csv"], "cannot be read"),
    ],
)
def test_mistakes_of_the_user_are_one_message_and_code_2(runs, capsys, arguments, message):
    assert main(["--runs-dir", str(runs), *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_expect_a_number_of_finished_runs(runs, capsys):
    assert main(["--runs-dir", str(runs), "--expect", "6"]) == 0
    assert main(["--runs-dir", str(runs), "--expect", "7"]) == 1
    assert "expected 7 finished runs, found 6" in capsys.readouterr().err


def test_expect_an_earlier_table(runs, tmp_path, capsys):
    old = tmp_path / "old.csv"
    base = ["--runs-dir", str(runs)]
    assert main([*base, "--format", "csv", "--out", str(old)]) == 0
    assert main([*base, "--expect", str(old)]) == 0
    [path] = runs.glob("s/rtn-w4a8-*/result.json")
    changed = json.loads(path.read_text())
    changed["metrics"]["sqnr"]["value"] = 22.0  # within 2·√(0.4² + 0.4²) = 1.13
    path.write_text(json.dumps(changed))
    assert main([*base, "--expect", str(old)]) == 0
    assert main([*base, "--expect", str(old), "--tolerance", "0.01"]) == 1
    assert "rtn w4a8: sqnr is 22, expected 21" in capsys.readouterr().err
    changed["metrics"]["sqnr"]["value"] = 23.0
    changed["metrics"]["fid_lite0"]["value"] = None
    changed["cost"]["model_bytes"] += 1000
    path.write_text(json.dumps(changed))
    assert main([*base, "--expect", str(old)]) == 1
    errors = capsys.readouterr().err
    for text in ("sqnr is 23", "fid_lite0 is missing, expected 74", "model_mb is 4.001"):
        assert text in errors
    for other in runs.glob("s/q_dit-w8a8-*/result.json"):
        other.unlink()
    assert main([*base, "--expect", str(old)]) == 1
    assert "q_dit w8a8: the row is missing" in capsys.readouterr().err
    assert main([*base, "--rows", "sampler.steps", "quantizer", "--expect", str(old)]) == 2


def test_expect_does_not_compare_protocols(runs, tmp_path, capsys):
    old = tmp_path / "old.csv"
    assert main(["--runs-dir", str(runs), "--format", "csv", "--out", str(old)]) == 0
    old.write_text(old.read_text().replace("N=256", "N=1024"))
    assert main(["--runs-dir", str(runs), "--expect", str(old)]) == 1
    assert "expected emoji_dit|emoji|ddim20|cfg=2.0|N=1024" in capsys.readouterr().err


def test_no_torch_is_imported():
    code = "import sys, qdit.tables, qdit.callback; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Around a multirun


def sweep(runs_dir, made) -> int:
    """Go through Hydra's own dispatcher, which swallows exceptions but not SystemExit."""
    config = OmegaConf.create({"runs_dir": str(runs_dir), "cache_dir": str(runs_dir / "cache"), "study": "s"})
    callbacks = Callbacks()
    callbacks.callbacks = [TableCallback()]
    try:
        callbacks.on_multirun_start(config=config)
        write(runs_dir, *made)
        callbacks.on_multirun_end(config=config)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("kinds", "code"), [((), 0), (("user",), 2), (("user", "user"), 2), (("user", "internal"), 1), ((None,), 1)]
)
def test_exit_code_of_a_sweep(tmp_path, capsys, kinds, code):
    earlier = failed("rtn", "w3a8", "an earlier sweep's failure", error_kind="internal")
    write(tmp_path, earlier)
    made = [record("rtn", "w8a8", {"sqnr": metric(40.0)})]
    made += [failed(f"bad{i}", "w8a8", "no", error_kind=kind) for i, kind in enumerate(kinds)]
    assert sweep(tmp_path, made) == code
    assert "| rtn" in capsys.readouterr().out


def test_a_sweep_over_protocols_still_gets_its_table(tmp_path, capsys):
    made = [
        record("rtn", "w8a8", {"sqnr": metric(40.0)}, protocol=PROTOCOL.replace("N=256", n)) for n in ("N=1", "N=2")
    ]
    assert sweep(tmp_path, made) == 0
    assert "| protocol" in capsys.readouterr().out


def test_runs_dir_that_cannot_be_written_stops_a_sweep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sweep(tmp_path / "file", []) == 2
    assert "cannot write runs_dir=" in capsys.readouterr().err
