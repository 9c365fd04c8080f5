"""The comparison: chosen by itself, families under titles, bits side by side, parts that fit, in all formats."""

import pytest
from helpers.fake_records import comparison, failed, metric, record, write

from qdit.cli.table import main
from qdit.tables import build_table, compare, is_comparison, load_results, render
from qdit.tables.families import OTHER, rank, title


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = comparison(
        tmp_path_factory.mktemp("study"), ("smoothquant", "tq_dit", "qdit_w4a8", "q_dit", "rtn", "quarot")
    )
    broken = failed("awq", "w4a8", "out of memory", config={"quantizer.family": "baseline"})
    return write(root, broken)


def test_rows_are_methods_in_families_and_columns_are_bits(study):
    table = compare(load_results(study))
    assert [row[0].text for row in table.rows] == [
        *("full precision", "rtn", "awq", "quarot", "smoothquant", "q_dit", "tq_dit", "qdit_w4a8")
    ]
    assert table.sections == {1: "Baselines", 5: "DiT methods", 7: "Hybrids"}
    assert [label for label, _ in table.spans] == [
        *("SQNR (dB) ↑", "SSIM ↑", "FID_lite0 ↓", "IS_lite0 ↑"),  # paired first
        *("W bits (model)", "MB", "quantization (s)", "samples/s"),
    ]
    assert all(values == ["w8a8", "w6a6", "w4a8", "w4a4"] for _, values in table.spans)
    awq = table.rows[2]
    assert {cell.text for cell in awq[1:]} == {"—"}  # what failed, and what was never run
    assert awq[3].notes == (1,)
    assert table.footnotes == ["awq-w4a8, seed 0: out of memory"]
    at = table.header.index("FID_lite0 ↓ w4a4")
    assert next(row for row in table.rows if row[0].text == "quarot")[at].text == "—"


def test_calibration_seeds_are_a_mean(study):
    table = compare(load_results(study), metrics=["sqnr"])
    assert "Mean over 3 seeds: q_dit, tq_dit." in " ".join(table.lines)


def test_neighbours_are_told_apart_sample_by_sample(study):
    table = compare(load_results(study), metrics=["sqnr", "ssim"])
    marks = {row[0].text: [cell.mark for cell in row[1:9]] for row in table.rows}
    assert marks["quarot"] == ["best"] * 8
    assert marks["rtn"][:4] == [""] * 4  # 0.4 dB less than quarot, and both ± 0.4
    assert marks["rtn"][4] == "tied"  # no values of single samples were kept: by standard errors
    below = " ".join(table.lines)
    assert (
        "≈: differs from the best by less than two standard errors of the difference sample by sample (sqnr)" in below
    )
    assert "or of the values, as if independent (ssim)" in below


def test_it_is_chosen_by_itself_and_only_where_it_fits(study, tmp_path, capsys):
    assert main(["--runs-dir", str(study)]) == 0
    assert capsys.readouterr().out.startswith("| SQNR (dB) ↑")
    assert main(["--runs-dir", str(study), "--cols", "bits", "--metrics", "sqnr", "fid_lite0"]) == 0
    assert "| *Hybrids*" in capsys.readouterr().out
    assert main(["--runs-dir", str(study), "--rows", "quantizer"]) == 0
    assert capsys.readouterr().out.startswith("| quantizer")
    ablation = {"quantizer.family": "dit"}
    write(tmp_path, *(record(q, b, {}, config=ablation) for q in ("1_static", "2_groups") for b in ("w8a8", "w4a8")))
    assert not is_comparison(load_results(tmp_path))
    write(tmp_path, record("rtn", "w4a8", {}, config={"quantizer.family": "baseline"}))
    assert is_comparison(load_results(tmp_path))


def test_a_family_of_ones_own_and_none_at_all(tmp_path):
    for name, family in (("b", "baseline"), ("mine", "Ours"), ("nameless", None), ("d", "dit")):
        write(tmp_path, record(name, "w8a8", {"sqnr": metric(40.0)}, config={"quantizer.family": family}))
    table = compare(load_results(tmp_path))
    assert list(table.sections.values()) == ["Baselines", "DiT methods", "Ours", OTHER]
    assert title("") == OTHER
    assert rank("baseline") < rank("dit") < rank("hybrid") < rank("Ours") < rank(None)


def test_without_families_there_are_no_titles(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("q_dit", "w8a8", {"sqnr": metric(41.0)}))
    assert build_table(load_results(tmp_path), cols="bits", group_by="family").sections == {}


def test_a_wide_markdown_table_is_one_table_a_quantity(study):
    text = render(compare(load_results(study)), "markdown")
    heads = [line for line in text.splitlines() if line.endswith("|") and "w8a8" in line]
    assert len(heads) == 8
    assert heads[0].split("|")[1].strip() == "SQNR (dB) ↑"
    assert text.count("| *Hybrids*") == 8
    narrow = render(compare(load_results(study), metrics=["sqnr"]), "markdown")
    assert "| quantizer" in narrow
    assert "SQNR (dB) ↑ w8a8" in narrow


def test_html_has_quantities_over_bits(study):
    text = render(compare(load_results(study)), "html")
    assert text.count('<th colspan="4"') == 8
    assert text.count(">Baselines</th>") == 1
    assert text.count("<tr>") == 2 + 8 + 3


def test_several_protocols_have_no_titles(study, tmp_path):
    frame = load_results(study)
    other = frame.copy()
    other["protocol"] = other["protocol"].str.replace("ddim20", "ddim50")
    other["protocol_id"] = "other"
    other["run_id"] = other["run_id"] + "x"
    import pandas as pd

    table = compare(pd.concat([frame, other], ignore_index=True), mix_protocols=True)
    assert table.sections == {}
    assert table.header[0] == "protocol"
