"""Markdown, LaTeX, HTML and CSV."""

import csv
import io

import pandas as pd
import pytest
from helpers.commands import complaint
from helpers.fake_records import failed, metric, record, write

from qdit.cli.table import main
from qdit.tables import build_table, compare, load_results, render


def test_markdown(runs):
    text = render(build_table(load_results(runs), metrics=["sqnr"]), "markdown")
    line = next(line for line in text.splitlines() if line.startswith("| q_dit") and "w8a8" in line)
    assert "**40.5 ± 0.4**" in line
    assert "40.0 ± 0.4 ≈" in text
    assert "[1] ptq4dit-w4a8" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_html_is_escaped(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), failed("q_dit", "w8a8", "a <b> & c"))
    text = render(build_table(load_results(tmp_path)), "html")
    assert "a &lt;b&gt; &amp; c" in text
    assert text.count("<tr>") == 3
    assert text.count("padding:0.2em 0.7em") == text.count("<td") + text.count("<th ")  # no cell touches the next


def test_csv_is_long_and_plain(runs, capsys):
    assert main(["--runs-dir", str(runs), "--format", "csv", "--cols", "bits"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 7
    assert list(rows[0])[:2] == ["quantizer", "bits"]
    best = next(row for row in rows if (row["quantizer"], row["bits"]) == ("q_dit", "w4a8"))
    assert (best["fid_lite0"], best["fid_lite0_stderr"], best["fid_lite0_delta"]) == ("66", "1", "6")
    assert (best["weight_bits"], best["peak_memory_mb"], best["executed"]) == ("4.5", "", "simulated")
    lost = next(row for row in rows if row["status"] == "failed")
    assert (lost["sqnr"], lost["weight_bits"]) == ("", "")


def test_a_long_table_has_the_metrics_that_are_asked_for(runs, capsys):
    words = ["--runs-dir", str(runs), "--format", "csv", "--metrics"]
    assert main([*words, "fid_lite0_delta", "seconds_sample"]) == 0
    head = capsys.readouterr().out.splitlines()[0].split(",")
    assert {"fid_lite0", "fid_lite0_delta", "weight_bits", "seconds_sample", "executed"} <= set(head)
    assert "sqnr" not in head
    assert len(set(head)) == len(head)
    assert main([*words, "all"]) == 0
    every = capsys.readouterr().out
    assert main(words[:-1]) == 0
    assert sorted(every.splitlines()[0].split(",")) == sorted(capsys.readouterr().out.splitlines()[0].split(","))


def test_parquet_has_numbers_as_numbers(runs, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "table.parquet"
    words = ["--runs-dir", str(runs), "--format", "parquet", "--cols", "bits"]
    assert main([*words, "--out", str(out)]) == 0
    found = pd.read_parquet(out).set_index(["quantizer", "bits"])
    assert found.loc[("q_dit", "w4a8"), ["fid_lite0", "fid_lite0_stderr", "weight_bits"]].tolist() == [66, 1, 4.5]
    assert found.loc[("ptq4dit", "w4a8"), "status"] == "failed"
    assert found.sqnr.isna().sum() == 2  # of full precision, and of the run that failed


def test_parquet_needs_a_file_and_its_package(runs, tmp_path, monkeypatch, capsys):
    words = ["--runs-dir", runs, "--format", "parquet"]
    assert "name it with --out" in complaint(capsys, main, *words)

    def missing(*_, **__):
        raise ImportError("no engine")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    assert "pip install 'qdit[parquet]'" in complaint(capsys, main, *words, "--out", tmp_path / "x.parquet")
    document = tmp_path / "README.md"
    document.write_text(f"<!-- qdit-table: --runs-dir {runs} --format parquet -->\n<!-- /qdit-table -->\n")
    assert "a document holds no Parquet" in complaint(capsys, main, "--write", document)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "runs"]


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
@pytest.mark.parametrize("lay_out", [build_table, compare])
def test_a_study_whose_runs_all_failed_has_their_messages_below(lay_out, form, tmp_path):
    families = {"rtn": "baseline", "q_dit": "dit"}
    write(
        tmp_path,
        *(
            failed(name, bits, f"{name} has no room at {bits}", config={"quantizer.family": family})
            for name, family in families.items()
            for bits in ("w8a8", "w4a8")
        ),
    )
    text = render(lay_out(load_results(tmp_path), mix_protocols=True), form)
    for name in families:
        for bits in ("w8a8", "w4a8"):
            assert f"{name} has no room at {bits}" in text.replace("\\_", "_")


HARMFUL = "</td><script>x</script>|a\\|b<!-- /qdit-table --> [c](javascript:d)\x1b[2J\nnew\u202e"


@pytest.fixture
def hostile(tmp_path):
    """A study with a name and a message that try to leave their place."""
    return write(
        tmp_path / "runs",
        record("rtn", "w8a8", {"sqnr": metric(40.0), "=cmd()": metric(1.0)}, name="x"),
        record("=cmd()", "w8a8", {"sqnr": metric(-41.0)}, name="y"),
        record(HARMFUL, "w8a8", {"sqnr": metric(39.0)}, name="z"),
        failed("rtn", "w4a8", HARMFUL),
    )


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
def test_texts_of_records_stay_texts(hostile, form):
    text = render(build_table(load_results(hostile)), form)
    assert "<script" not in text
    assert "<!--" not in text
    assert text.replace("\n", "").isprintable()
    assert "](java" not in text or form != "markdown"
    if form == "markdown":
        bars = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
        assert len(bars) == 1


def test_csv_carries_no_formula_and_keeps_numbers(hostile, capsys):
    assert main(["--runs-dir", str(hostile), "--format", "csv"]) == 0
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 4
    assert {line["quantizer"][:2] for line in lines} == {"rt", "'=", "</"}
    assert {line["sqnr"] for line in lines} == {"40", "-41", "39", ""}
    assert not any(cell and cell[0] in "=+@" for line in lines for cell in (*line, *line.values()))


@pytest.mark.parametrize(("form", "written"), [("markdown", True), ("csv", False)])
def test_a_document_keeps_its_end_whatever_stands_in_its_table(hostile, form, written, tmp_path, capsys):
    document = tmp_path / "README.md"
    words = f"--runs-dir {hostile} --format {form}"
    document.write_text(before := f"<!-- qdit-table: {words} -->\n<!-- /qdit-table -->\nend\n")
    assert main(["--write", str(document)]) == (0 if written else 2)
    assert document.read_text().count("<!-- /qdit-table -->") == 1
    assert document.read_text().endswith("\nend\n")
    if not written:
        assert document.read_text() == before
        assert "holds a marker itself" in capsys.readouterr().err
