"""Shipped records are those that were collected; another one is named and skipped."""

import json
import runpy
import shutil
from pathlib import Path

from qdit.tables.collected import DIGESTS
from qdit.tables.records import read_record

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments/comparison/results/methods"


def test_the_digests_of_shipped_records_are_theirs():
    """After a change: python experiments/comparison/collect.py --digests."""
    collect = runpy.run_path(str(ROOT / "experiments/comparison/collect.py"))
    assert collect["digests"](RESULTS) == json.loads((RESULTS / DIGESTS).read_text())


def test_a_record_that_was_not_collected_is_named(tmp_path, capsys):
    run = next(folder for folder in sorted(RESULTS.iterdir()) if folder.is_dir())
    shutil.copytree(run, tmp_path / run.name)
    shutil.copyfile(RESULTS / DIGESTS, tmp_path / DIGESTS)
    file = tmp_path / run.name / "result.json"
    assert read_record(file) is not None
    file.write_text(file.read_text().replace("1", "2", 1))
    assert read_record(file) is None
    assert f"{file}: damaged, skipped (its digest" in capsys.readouterr().err
