"""Every example runs as it is written, on a tiny pipeline in place of the embedded one, with few samples."""

import re
import sys
from pathlib import Path

import pytest

import qdit
from qdit.assets import CONF

EXAMPLES = sorted((CONF.parent / "examples").glob("*.py"))
ROOM = 40  # lines of code; a class of one's own may take some more


def short(file: Path) -> str:
    """An example with numbers that tests can afford."""
    return re.sub(r"^N, STEPS = .+", "N, STEPS = 2, 2", file.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture
def here(tmp_path, tiny_pipeline, tiny_pipe, monkeypatch, no_charts):
    """In an empty folder, with a tiny model, whose runs have its size."""
    run = qdit.run
    model = [f"model.path={tiny_pipeline}", "dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16"]
    tiny = [*model, "dataset.reference=emoji", "batch_size=2", "device=cpu"]
    monkeypatch.setattr(qdit, "embedded", lambda: tiny_pipe, raising=False)
    monkeypatch.setattr(qdit, "run", lambda *words: run(*tiny, *words), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(CONF.parent / "examples")
    return tmp_path


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file, here, monkeypatch, capsys):
    if file.stem == "export_a_model":
        pytest.importorskip("torchao")
    folder = CONF.parent / "experiments/comparison/results"
    monkeypatch.setattr(sys, "argv", [file.name, *([str(folder)] if file.stem == "read_a_study" else [])])
    exec(compile(short(file), file.name, "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    expected = {
        "quantize_a_pipeline": r"sqnr(.|\n)+two images and the pipeline",
        "compare_two_recipes": r"quarot - rtn: -?\d+\.\d\d ± \d+\.\d\d dB paired",
        "own_parts": r"MinMax \{'sqnr'(.|\n)+own_parts\.Shrunk \{'sqnr': .+'worst'",
        "export_a_model": r"torchao: .+ of 255\ndiffusers: .+ 0\.0 of 255",
        "read_a_study": r"The best at each bit-width:(.|\n)+Within two standard errors of the best at w\da\d: \w+",
    }
    assert re.search(expected[file.stem], said), said


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_says_how_it_is_run(file):
    text = file.read_text(encoding="utf-8")
    code = [line for line in text.split('"""', 2)[2].splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= ROOM
    assert f"python examples/{file.name}" in text
