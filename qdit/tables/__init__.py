"""Tables of results: result.json files → DataFrame → Markdown, LaTeX, CSV, HTML. Console script: `qdit-table`.

    frame = load_results("runs", study="smoke")
    print(render(build_table(frame, cols="bits", metrics=["sqnr", "fid_lite0"]), "markdown"))

What a table promises: numbers of different protocols, or of one metric with different settings or references, never
share a column; full precision of the same protocol comes first; a missing number is —, never 0; the best value is bold,
and what differs from it by less than two standard errors is marked.
The layout follows lm-evaluation-harness's `make_table`: `higher_is_better` travels with each number. No torch here.
"""

from qdit.tables.compare import compare, is_comparison
from qdit.tables.overview import overview
from qdit.tables.records import load_results
from qdit.tables.render import render, to_csv
from qdit.tables.select import where
from qdit.tables.table import Table, build_table

__all__ = ["Table", "build_table", "compare", "is_comparison", "load_results", "overview", "render", "to_csv", "where"]
