"""Every notebook runs from top to bottom, in this process: a kernel of its own would import everything again."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


MACHINE = re.compile(r"/(?:tmp|home|root|work|Users|var|mnt|usr|opt)/|\bat 0x[0-9a-f]{6}|Traceback")


def cells(path: Path) -> list[str]:
    """The code of a notebook, with a number of samples N that tests can afford."""
    code = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^N = \d+", "N = 2", source, flags=re.MULTILINE) for source in code]


def lines(path: Path) -> list[str]:
    return [line for source in cells(path) for line in source.splitlines() if line.strip()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_executed_from_top_to_bottom_and_says_nothing_of_the_machine(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run .ci/notebooks"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    shown = [
        text
        for output in outputs
        for kind, text in output.get("data", {"text": output.get("text")}).items()
        if kind != "image/png"
    ]
    assert not [found for text in shown for found in MACHINE.findall("".join(text))]
    assert all(set(cell["metadata"]) <= {"tags"} for cell in code), "times of execution"


def test_notebooks_use_the_api():
    inside = {line for path in NOTEBOOKS for line in lines(path) if re.match(r"\s*(from|import) qdit\b", line)}
    has_no_door = {  # rendering of a table in a given format, and one quantizer on a tensor of one's own
        "from qdit.tables import render",
        "from qdit.quant.grid import fake_quantize",
        "from qdit.quant.spec import QuantSpec",
    }
    assert inside == {"import qdit"} | has_no_door


def test_a_pipeline_is_quantized_compared_shown_and_saved_in_under_30_lines():
    [path] = [path for path in NOTEBOOKS if path.stem == "quantize_a_pipeline"]
    code = "\n".join(lines(path))
    assert all(f"qdit.{name}(" in code for name in ("embedded", "calibrate", "quantize", "fidelity"))
    assert len(lines(path)) < 30


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem == "q_dit_variance" else pytest.mark.slow) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell()
    with matplotlib.rc_context({"backend": "agg"}):
        for source in cells(path):
            shell.run_cell(source).raise_error()  # which also makes what it shows
