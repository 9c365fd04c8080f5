"""LaTeX: the structure of what is written, and, where there is a TeX, that it compiles and fits its lines."""

import re
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
from helpers.fake_records import comparison, metric, record, write

from qdit.assets import CONF
from qdit.cli import table as command
from qdit.tables import build_table, compare, load_results, render

ROOT = CONF.parent
PDFLATEX = shutil.which("pdflatex")
PAGE = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\\end{document}\n"


def tabulars(text: str) -> list[list[str]]:
    return [found.splitlines() for found in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL)]


def columns(line: str) -> int:
    """How many columns a row of a tabular fills."""
    wide = [int(found) for found in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return line.replace(r"\&", "").count("&") + 1 + sum(wide) - len(wide)


def test_values_and_errors_meet_with_true_minus_signs(tmp_path):
    loss = metric(-0.5, 0.25, delta=-1.25, delta_stderr=0.5)
    write(tmp_path, record("q_dit", "w8a8", {"sqnr": loss}), record("rtn", "w8a8", {"sqnr": metric(-4.0, 0.25)}))
    text = render(build_table(load_results(tmp_path), metrics=["sqnr", "sqnr_delta"]), "latex")
    assert r"q\_dit & w8a8 & \textbf{$-$0.5} & $\pm$ \textbf{0.2} & $-$1.2 & $\pm$ 0.5 & " in text
    assert r"rtn & w8a8 & $-$4.0 & $\pm$ 0.2 & \multicolumn{2}{c}{---} & " in text
    assert text.isascii()


def test_each_quantity_is_a_float_with_caption_and_label(tmp_path):
    table = replace(compare(load_results(comparison(tmp_path, ("rtn", "q_dit", "ptq4dit"), 8))), title="my study")
    text = render(table, "latex")
    found = tabulars(text)
    assert len(found) == text.count(r"\caption{") == text.count(r"\end{table}") >= len(table.spans)
    assert r"\caption{SQNR (dB) $\uparrow$, study my study.}" in text
    labels = re.findall(r"\\label\{(.+)\}", text)
    assert labels[0] == "tab:my-study-sqnr-db"
    assert len(set(labels)) == len(labels)
    for lines in found:
        kinds = re.sub(r"@\{[^}]*\}", "", lines[0][1:-1])
        rows = [line for line in lines[1:] if line.endswith(r"\\")]
        assert {columns(line) for line in rows} == {len(kinds)}
    assert text.count(r"\emph{DiT methods}") == len(found)


def test_a_long_table_is_cut_where_a_line_ends_and_keeps_its_keys(tmp_path):
    names = [f"metric{number}_with_a_long_name" for number in range(9)]
    write(tmp_path, record("rtn", "w8a8", {name: metric(1.0, 0.1) for name in names}))
    text = render(build_table(load_results(tmp_path), metrics=names), "latex")
    assert len(tabulars(text)) > 2
    assert all("rtn & w8a8 & " in "\n".join(lines) for lines in tabulars(text))
    for name in names:
        assert text.count(name.replace("_", r"\_")) == 1


@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex")
def test_the_readmes_table_and_a_wider_one_compile_within_an_articles_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = re.findall(r"<!-- qdit-table: (.+?) -->", (ROOT / "README.md").read_text(encoding="utf-8"))[0]
    deltas = "--runs-dir experiments/comparison/results --study methods --metrics fid_lite0_delta"
    for number, words in enumerate((asked, deltas)):
        out = tmp_path / f"{number}.tex"
        assert command.main([*shlex.split(words), "--format", "latex", "--out", str(out)]) == 0
        out.write_text(PAGE % out.read_text())
        done = subprocess.run(
            [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", out.name], cwd=tmp_path, capture_output=True
        )
        log = out.with_suffix(".log").read_text(errors="replace")
        assert done.returncode == 0, log[-2000:]
        assert "Overfull" not in log
