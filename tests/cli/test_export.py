"""The command `qdit-export`: its words reach the API, mistakes are one message, its table is written in documents."""

from pathlib import Path

import pandas as pd
import pytest
from helpers.commands import complaint

import qdit
from qdit.cli.documents import filled
from qdit.cli.export import listed, main

PAGE = Path(__file__).parents[2] / "docs" / "use_what_you_quantized.md"


@pytest.fixture
def table(monkeypatch):
    asked = []
    frame = pd.DataFrame({"torchao": ["yes"], "diffusers": ["yes"]}, pd.Index(["rtn"], name="recipe"))
    monkeypatch.setattr(qdit, "targets", lambda bits: asked.append(bits) or frame, raising=False)
    return asked


def test_the_words_reach_the_api(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(qdit, "export", lambda *words, **more: given.append((*words, more)), raising=False)
    assert main([str(tmp_path / "run"), str(tmp_path / "mine"), "--to", "diffusers", "--push", "me/mine"]) == 0
    assert main([str(tmp_path / "run"), str(tmp_path / "mine"), "--near"]) == 0
    assert given == [
        (tmp_path / "run", tmp_path / "mine", "diffusers", {"near": False, "push": "me/mine"}),
        (tmp_path / "run", tmp_path / "mine", "torchao", {"near": True, "push": None}),
    ]
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}\n" * 2


def test_mistakes_are_one_message(capsys, tmp_path):
    assert "give the folder of a run" in complaint(capsys, main)
    assert "no folder of a finished run" in complaint(capsys, main, tmp_path / "run", tmp_path / "mine")
    assert "no export to 'onnx'" in complaint(capsys, main, tmp_path, tmp_path / "mine", "--to", "onnx")


def test_the_list_is_printed_and_written_between_the_lines_of_a_document(table, capsys, tmp_path):
    assert main(["--list", "--bits", "w4a8"]) == 0
    assert capsys.readouterr().out == listed("w4a8")
    document = tmp_path / "page.md"
    document.write_text("<!-- qdit-export: w8a8 -->\nold\n<!-- /qdit-export -->\n")
    assert main(["--write", str(document)]) == 0
    assert "| recipe | torchao | diffusers |\n|---|---|---|\n| `rtn` | yes | yes |\n" in document.read_text()
    assert table == ["w4a8", "w4a8", "w8a8"]


@pytest.mark.slow
def test_the_pages_table_is_what_the_command_writes():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(PAGE, "qdit-export", listed, "w8a8") == text
