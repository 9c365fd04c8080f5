"""The design table: what it says of recipes, that docs/methods.md has it, and recipes of one's own in it."""

from pathlib import Path

import pytest

from qdit.assets import CONF
from qdit.cli import design
from qdit.cli.options import groups, option_table
from qdit.errors import UserError
from qdit.tables.families import FAMILIES, OTHER

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "docs/methods.md", ROOT / "docs/components.md"]


@pytest.fixture(scope="module")
def table():
    return design.table()


@pytest.fixture
def once(table, monkeypatch):
    """The table, made once: that takes a composition a recipe."""
    monkeypatch.setattr(design, "table", lambda config_dir=None: table)


@pytest.fixture
def few(monkeypatch):
    """Of the recipes that are shipped, one."""
    monkeypatch.setattr(design, "NO_METHOD", {path.stem for path in (CONF / "quantizer").glob("*.yaml")} - {"rtn"})


def rows(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    head = table.splitlines()[0].strip("| ").split(" | ")
    return {cells[0].strip("`"): dict(zip(head, cells, strict=True)) for cells in lines}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_the_documents_are_in_step_with_the_configs(path, once):
    assert design.updated(path) == path.read_text(encoding="utf-8"), (
        "qdit-design --write docs/methods.md docs/components.md"
    )


def test_components_have_every_group():
    text = (ROOT / "docs/components.md").read_text(encoding="utf-8")
    assert [group for group in groups() if f"<!-- qdit-design: options of {group} -->" not in text] == []


def test_options_of_a_group():
    text = option_table("rounding")
    assert "| `rounding=nearest` (default) | Each weight takes the closest code. |" in text
    with pytest.raises(UserError, match="no config group 'colour'"):
        option_table("colour")


def test_every_recipe_is_a_row(table):
    recipes = {path.stem for path in (CONF / "quantizer").glob("*.yaml")} - set(design.NO_METHOD)
    assert set(rows(table)) == recipes


def test_cells_are_the_recipe(table):
    found = rows(table)
    assert set(found["rtn"].values()) - {"`rtn`", "Round to nearest"} == {"·"}
    q_dit = found["q_dit"]
    assert (q_dit["weight"], q_dit["activation"], q_dit["rounding"], q_dit["search"]) == ("group", "group", "gptq", "·")
    assert "2406.17343" in q_dit["method"]
    assert q_dit["method"].startswith("Q-DiT, CVPR 2025")
    assert found["ptq4dit"]["activation"] == "tensor, percentile_mse, asymmetric_free"
    assert found["tq_dit"]["activation"] == "tensor, hessian, gelu regions, equal times, symmetric_full"
    assert found["q_diffusion"]["weight"] == "row, mse*"  # the number of candidates is its own


def test_families_come_in_their_order(table):
    heads = [line.split("**")[1] for line in table.splitlines() if line.startswith("| **")]
    assert heads == [title for title in (*FAMILIES.values(), OTHER) if title in heads]


def test_a_recipe_of_ones_own_is_a_row(tmp_path, capsys, few):
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "mine.yaml").write_text(
        "# @package _global_\n# Mine, as it stands: a hybrid.\ndefaults:\n  - override /rounding: gptq\n"
        "weight: {grid: symmetric}\nquantizer: {name: mine, family: hybrid, paper: null}\n"
    )
    assert design.main(["--config-dir", str(tmp_path)]) == 0
    mine = rows(capsys.readouterr().out)["mine"]
    assert (mine["method"], mine["rounding"], mine["weight"]) == ("Mine", "gptq", "row, symmetric")


def test_mistakes_are_one_message(tmp_path, capsys, few):
    (tmp_path / "notes.md").write_text("no markers\n")
    assert design.main(["--write", str(tmp_path / "notes.md")]) == 2
    assert "has no lines" in capsys.readouterr().err
    assert design.main(["--config-dir", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /weight: nonsense\n"
    )
    assert design.main(["--config-dir", str(tmp_path)]) == 2
    assert "mine.yaml does not compose" in capsys.readouterr().err
    assert (tmp_path / "notes.md").read_text() == "no markers\n"


def test_it_writes_between_the_markers(tmp_path, once):
    path = tmp_path / "notes.md"
    path.write_text("above\n\n<!-- qdit-design: recipes -->\nold\n<!-- /qdit-design -->\n\nbelow\n")
    assert design.main(["--write", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\n\nbelow\n")
    assert "`q_dit`" in text
    assert "old" not in text
