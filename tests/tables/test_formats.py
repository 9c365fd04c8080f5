"""Markdown, LaTeX, HTML and CSV."""

import csv
import io

from fake_records import failed, metric, record, write

from qdit.tables import build_table, load_results, main, render


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
