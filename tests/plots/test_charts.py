"""Charts of a study: what tells its points apart."""

from qdit.plots.charts import markers


def test_formats_have_markers_of_their_own_and_usual_bits_the_same_in_every_figure():
    formats = ["w4a4", "int4_g64", "int4_g16", "mxfp4", "nvfp4", "nvfp4_46", "lloyd4"]
    found = markers(formats)
    assert len({found[bits] for bits in formats}) == len(formats)
    assert markers(["w8a8", "w4a4"])["w4a4"] == found["w4a4"] == "v"
