"""The comparison that is shipped: complete, under one protocol, and what the documents show of it."""

import re

import pytest
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.cli import report, table
from qdit.tables import load_results
from qdit.tables.differences import values

ROOT = CONF.parent
RECIPES, SEEDS = (
    set(OmegaConf.load(CONF / "grid" / f"{grid}.yaml").hydra.sweeper.params.quantizer.split(","))
    for grid in ("methods", "seeds")
)
"""Of the comparison, and of the seeds; test_grid_methods.py names the others."""
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
ON_CLIPS = {
    "rtn",
    "smoothquant",
    "quarot",
    "svdquant",
    "q_dit",
    "vidit_q",
    "ptq4dit",
    "tq_dit",
    "qdit_w4a8",
    "qdit_w4a4",
}
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs/results.md",
    *sorted(p for p in (ROOT / "experiments/comparison").glob("*.md") if "<!-- qdit-table:" in p.read_text("utf-8")),
]


@pytest.fixture(scope="module")
def runs():
    return load_results(ROOT / "experiments/comparison/results", "methods")


def test_every_recipe_is_there_at_every_bits_with_errors_and_one_protocol(runs):
    quantized = runs[runs.quantizer != "fp"]
    cells = set(zip(quantized.quantizer, quantized.bits, strict=True))
    assert cells == {(name, bits) for name in RECIPES | SEEDS | {"repq_vit_renormalised"} for bits in BITS}
    sets = {
        name: set(rows["calibration.seed"]) for name, rows in quantized[quantized.bits == "w4a4"].groupby("quantizer")
    }
    assert all(sets[name] == {0, 1, 2} for name in (*SEEDS, "ptq4dit", "q_dit", "vidit_q", "tq_dit"))
    assert (runs.status == "done").all()
    assert runs.protocol_id.nunique() == 1
    assert quantized[["sqnr", "sqnr_stderr", "fid_lite0_delta", "fid_lite0_delta_stderr"]].notna().all(None)
    assert (quantized.sqnr_n == 256).all()


def test_every_format_is_there_under_every_recipe_with_values_of_single_samples():
    params = OmegaConf.load(CONF / "grid" / "formats.yaml").hydra.sweeper.params
    runs = load_results(ROOT / "experiments/comparison/results", "formats")
    quantized = [row for row in runs.to_dict("records") if row["quantizer"] != "fp"]
    cells = {(row["quantizer"], row["bits"]) for row in quantized}
    assert cells == {(name, bits) for name in params.quantizer.split(",") for bits in params.bits.split(",")}
    assert runs.protocol_id.nunique() == 1
    assert all(len(values(row, "sqnr")) == 256 for row in quantized)
    assert all(row["weight_bits_quantized"] > 4 for row in quantized)
    assert all(row["input_bits"] > 4 for row in quantized)


@pytest.mark.parametrize(
    ("study", "names", "bits", "count"),
    [
        ("methods_text", RECIPES, ("w8a8", "w4a8", "w4a4"), 128),
        ("methods_video", ON_CLIPS, ("w8a8", "w4a4"), 64),
    ],
)
def test_other_models_have_their_recipes_under_one_protocol(study, names, bits, count):
    runs = load_results(ROOT / "experiments/comparison/results", study)
    quantized = runs[runs.quantizer != "fp"]
    cells = set(zip(quantized.quantizer, quantized.bits, strict=True))
    assert cells >= {(name, each) for name in names for each in bits}
    assert (runs.status == "done").all()
    assert runs.protocol_id.nunique() == 1
    assert (quantized.sqnr_n == count).all()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_documents_show_what_is_shipped(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # their commands are given there
    again = tmp_path / "README.md"
    again.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert table.main(["--write", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), f"qdit-table --write {path.name}"


def test_the_page_of_the_comparison_shows_what_is_shipped(tmp_path, monkeypatch):
    """But for the bytes of pictures, which are of their encoder, and the line that says what made the page."""
    monkeypatch.chdir(ROOT)
    again = tmp_path / "page.html"
    words = ["methods", "--runs-dir", "experiments/comparison/results", "--output"]
    assert report.main([*words, str(again)]) == 0
    changing = re.compile(r'\{"url": [^}]*\}|<p>This page: [^<]*</p>')
    old, new = (changing.sub("", file.read_text("utf-8")) for file in (ROOT / "docs/comparison.html", again))
    assert new == old, f"qdit-report {' '.join(words)} docs/comparison.html"
