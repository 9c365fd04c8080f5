"""Figures of a study: which files, images pixel for pixel, what is missing."""

from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.fake_records import PROTOCOL, comparison, metric, record, write
from matplotlib.figure import Figure
from PIL import Image

from qdit.cli.table import main
from qdit.errors import UserError
from qdit.plots import draw, study_of
from qdit.plots.pictures import side_by_side
from qdit.plots.style import save
from qdit.storage.run_folder import IMAGES
from qdit.tables import load_results, where


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def blank(monkeypatch):
    """Figures are made, and their files are empty: drawing takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    return comparison(tmp_path_factory.mktemp("study"), ("rtn", "quarot", "q_dit", "tq_dit", "qdit_w4a8"))


def test_every_figure_is_drawn(study_dir, tmp_path, capsys):
    assert main(["--runs-dir", str(study_dir), "--figures", str(tmp_path), "--at", "w4a8"]) == 0
    files = {path.name for path in tmp_path.iterdir()}
    costs = {f"{m}-{c}.png" for m in ("sqnr", "fid_lite0") for c in ("bits", "bytes", "bitops")}
    assert files == costs | {"sqnr.png", "fid_lite0.png", "timesteps-w4a8.png", "samples-w4a8.png"}
    assert all(pixels(path).std() > 5 for path in tmp_path.iterdir())
    captured = capsys.readouterr()
    assert captured.out.startswith("| SQNR (dB) ↑")  # the table comes first, as ever
    assert set(captured.err.split()) == {str(tmp_path / name) for name in files}


def test_figures_are_also_vectors(study_dir, tmp_path, blank):
    words = ["--metrics", "sqnr", "--figures", str(tmp_path), "--figure-files", "svg", "pdf"]
    assert main(["--runs-dir", str(study_dir), "--at", "w4a8", *words]) == 0
    names = ("sqnr", "sqnr-bits", "sqnr-bytes", "sqnr-bitops", "timesteps-w4a8", "samples-w4a8")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}


def test_pictures_of_vectors_stand_where_those_of_the_png_do(study_dir, tmp_path):
    study = study_of(load_results(study_dir))
    figure = side_by_side(study, "w4a8")
    svg = ElementTree.parse(save(figure, tmp_path / "a.svg")).getroot()
    canvas = pixels(save(figure, tmp_path / "a.png"))
    scale = canvas.shape[1] / float(svg.attrib["viewBox"].split()[2])
    boxes = [element.attrib for element in svg.iter("{http://www.w3.org/2000/svg}image")]
    assert len(boxes) == 6 * 8  # full precision and five methods
    assert {round(float(box["width"]) * scale) for box in boxes} == {64}
    first = save(figure, tmp_path / "a.pdf").read_bytes()
    assert save(figure, tmp_path / "b.pdf").read_bytes() == first  # no date in it
    assert save(figure, tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()
    assert first.startswith(b"%PDF")
    assert b"/Type3" not in first


def test_figures_of_chosen_metrics(study_dir, tmp_path, blank):
    files = draw(load_results(study_dir), tmp_path, ["ssim"])
    assert {path.name for path in files} == {
        *("ssim.png", "ssim-bits.png", "ssim-bytes.png", "ssim-bitops.png", "timesteps-w4a4.png", "samples-w4a4.png")
    }


def test_bits_that_nothing_was_run_at(study_dir, tmp_path):
    with pytest.raises(UserError, match="--at w3a8: no method .* there are w8a8, w6a6, w4a8, w4a4"):
        draw(load_results(study_dir), tmp_path, bits="w3a8")


def test_one_protocol_and_something_to_draw(tmp_path):
    runs = write(tmp_path, record("fp", "w16a16", {"is": metric(9.0)}))
    with pytest.raises(UserError, match="nothing to draw"):
        study_of(load_results(runs))
    write(tmp_path, record("rtn", "w8a8", {"is": metric(8.5, 0.1)}))
    write(tmp_path, record("q_dit", "w8a8", {"is": metric(7.0)}, protocol=PROTOCOL.replace("N=256", "N=9")))
    with pytest.raises(UserError, match="N=9"):
        draw(load_results(runs), tmp_path / "figures")


def test_a_study_averages_seeds_and_keeps_families_together(study_dir):
    study = study_of(load_results(study_dir))
    assert list(study.at("w4a8")) == ["rtn", "quarot", "q_dit", "tq_dit", "qdit_w4a8"]
    assert {name: row["seeds"] for name, row in study.at("w4a8").items()}["q_dit"] == 3
    assert study.bits == ["w8a8", "w6a6", "w4a8", "w4a4"]
    assert study.busiest() == "w4a4"  # all have as many methods
    assert study.full is not None


def test_namesakes_are_told_apart(tmp_path):
    for group_size in (64, 128):
        write(tmp_path, record("q_dit", "w4a8", {"sqnr": metric(20.0)}, config={"weight.group_size": group_size}))
    assert list(study_of(load_results(tmp_path)).at("w4a8")) == ["q_dit 64", "q_dit 128"]


def test_a_row_of_samples_a_method_pixel_for_pixel(study_dir, tmp_path):
    files = draw(load_results(study_dir), tmp_path, ["sqnr"], "w4a8")
    canvas = pixels(files[-1])
    image = np.random.default_rng(0)
    image.normal(0, 3, 64)  # as fake_records draws them
    tile = image.integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)[7].transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
    corners = np.argwhere((canvas == tile[0, 0]).all(-1))
    found = [tuple(c) for c in corners if np.array_equal(canvas[c[0] : c[0] + 64, c[1] : c[1] + 64], tile)]
    assert len(found) == 6  # full precision and five methods, in one column
    assert len({column for _, column in found}) == 1


def test_runs_without_images_or_curves_are_left_out(study_dir, tmp_path, capsys, blank):
    frame = where(load_results(study_dir), ["quantizer=rtn,q_dit", "bits=w4a8"])
    kept = {path: path.read_bytes() for path in study_dir.glob(f"s/q_dit-w4a8-*/{IMAGES}")}
    try:
        for path in kept:
            path.unlink()
        files = draw(frame, tmp_path, ["sqnr"])
        assert "no images of q_dit" in capsys.readouterr().err
        assert {path.name for path in files} >= {"samples-w4a8.png", "timesteps-w4a8.png"}
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    runs = write(tmp_path / "bare", record("rtn", "w8a8", {"sqnr": metric(40.0)}))
    assert {path.name for path in draw(load_results(runs), tmp_path / "out")} == {
        *("sqnr-bits.png", "sqnr-bytes.png", "sqnr-bitops.png")
    }


def test_names_of_records_stay_in_the_folder_and_begin_no_formula(tmp_path):
    for bits in ("w8a8", "w4a8"):
        write(tmp_path / "runs", record(r"a$\frac$b", bits, {"../../x": metric(40.0), "sqnr": metric(1.0)}))
    made = draw(load_results(tmp_path / "runs"), tmp_path / "in" / "here", ["all"])
    assert len(made) >= 4
    assert {path.parent for path in made} == {tmp_path / "in" / "here"}
    assert all(path.is_file() for path in made)
