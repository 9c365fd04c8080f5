"""Changes of several metrics beside each other: what is drawn where."""

import numpy as np
import pytest
from helpers.fake_records import metric, record, write

from qdit.plots import draw, study_of
from qdit.plots.dimensions import by_dimension, paired
from qdit.tables import load_results

FULL = {"scene": 0.5, "color": 0.8, "flow_score": 4.0, "zero": 0.0}
CHANGES = {"rtn": {"scene": (-0.1, 0.02), "color": (-0.2, 0.01), "flow_score": (1.0, 0.1), "zero": (1.0, 1.0)}}
CHANGES["q_dit"] = {"scene": (0.05, 0.02), "color": (0.0, None), "flow_score": (-0.2, 0.1)}


@pytest.fixture
def runs(tmp_path):
    direction = {name: None if name == "flow_score" else True for name in FULL}
    whole = {name: metric(value, 0.1, higher=direction[name]) for name, value in FULL.items()}
    write(tmp_path, record("fp", "w16a16", whole))
    for quantizer, changes in CHANGES.items():
        found = {
            name: metric(FULL[name] + delta, 0.3, higher=direction[name]) | {"delta": delta, "delta_stderr": error}
            for name, (delta, error) in changes.items()
        }
        write(tmp_path, record(quantizer, "w4a8", found | {"sqnr": metric(20.0, 1.0)}))
    return tmp_path


def test_changes_are_in_per_cent_of_full_precision_with_two_paired_errors(runs):
    study = study_of(load_results(runs))
    names = ["color", "flow_score", "scene", "sqnr", "zero"]
    assert paired(study, names) == names[:3]  # sqnr is none to full precision, and nothing is a share of 0
    figure = by_dimension(study, "w4a8", names)
    [axes] = figure.axes
    found = {}
    for bar in axes.containers:
        line, _, (spread,) = bar.lines
        (start, stop), y = spread.get_segments()[0][:, 0], float(line.get_ydata()[0])
        found[y] = (float(line.get_xdata()[0]), float(stop - start) / 2)
    wanted = [(m, CHANGES[name].get(m)) for m in names[:3] for name in study.at("w4a8")]
    expected = [(100 * delta / FULL[m], 200 * (error or 0) / FULL[m]) for m, (delta, error) in wanted]
    np.testing.assert_allclose([found[y] for y in sorted(found)], expected, atol=1e-9)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["color ↑", "flow score", "scene ↑"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(study.at("w4a8"))
    middles = axes.get_yticks()
    blocks = np.sort(list(found)).reshape(3, 2)
    assert (np.abs(blocks - middles[:, None]) < 1.5).all()  # a row is in the block of its name


def test_it_is_drawn_by_the_table_and_not_of_two_metrics(runs, tmp_path):
    frame = load_results(runs)
    assert tmp_path / "out" / "dimensions-w4a8.png" in draw(frame, tmp_path / "out")
    assert by_dimension(study_of(frame), "w4a8", ["scene", "color"]) is None
    assert not [p for p in draw(frame, tmp_path / "few", ["scene"]) if "dimensions" in p.name]
