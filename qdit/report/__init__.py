"""A study as one page of HTML that needs nothing else: table, Pareto front, samples, error maps. For `qdit-report`.

    html = page(load_results("runs", study="mine"), "mine", command)

What is in it comes from `qdit.tables` and `qdit.plots`; here it is only laid out. Jinja2 is the frame, and charts are
drawn by some 300 lines of plain JavaScript. Altair was left out: Vega's bundle takes 0.9 MB of the 3 MB in which the
samples of a study have to fit, no mark of its charts is reached by keyboard, and its colours do not follow a page into
the dark. No torch.
"""

from qdit.report.page import page

__all__ = ["page"]
