"""Every notebook runs from top to bottom, in this process: a kernel of its own would import everything again."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    """The code of a notebook, with a number of samples N that tests can afford."""
    code = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^N = \d+", "N = 2", source, flags=re.MULTILINE) for source in code]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell()
    with matplotlib.rc_context({"backend": "agg"}):
        for source in cells(path):
            shell.run_cell(source).raise_error()  # which also makes what it shows
