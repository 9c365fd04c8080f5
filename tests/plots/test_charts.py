"""Charts of a study: what tells its points apart; a front only where one of two values is the better."""

import pytest
from helpers.fake_records import metric, record, write

from qdit.plots.charts import against_cost, markers
from qdit.plots.study import study_of
from qdit.tables import load_results


def test_formats_have_markers_of_their_own_and_usual_bits_the_same_in_every_figure():
    formats = ["w4a4", "int4_g64", "int4_g16", "mxfp4", "nvfp4", "nvfp4_46", "lloyd4"]
    found = markers(formats)
    assert len({found[bits] for bits in formats}) == len(formats)
    assert markers(["w8a8", "w4a4"])["w4a4"] == found["w4a4"] == "v"


@pytest.mark.parametrize(("higher", "said"), [(True, "Pareto front"), (None, "no Pareto front")])
def test_a_front_is_drawn_where_one_side_is_better(higher, said, tmp_path):
    made = (
        record(name, bits, {"energy": metric(3.0, 0.1, higher)}) for name in ("rtn", "awq") for bits in ("w4a8", "w8a8")
    )
    figure = against_cost(study_of(load_results(write(tmp_path, *made))), "weight_bits", "energy")
    [axes] = figure.axes
    drawn = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]
    assert [len(line.get_xydata()) > 0 for line in drawn] == [higher is True]
    legends = [each for each in axes.get_children() if hasattr(each, "get_texts")]
    texts = [text.get_text() for each in [*legends, *figure.legends] for text in each.get_texts()]
    assert any(text.startswith(said) for text in texts), texts
