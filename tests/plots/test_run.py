"""Figures are drawn: files exist, and what must be exact (pixels, fronts, protocols) is."""

import numpy as np
import pytest
import torch
from PIL import Image

from qdit.plots import run as figures


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def random_images(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def holds(canvas: np.ndarray, tile: np.ndarray) -> bool:
    """Whether the tile stands somewhere on the canvas, pixel for pixel."""
    height, width, _ = tile.shape
    corners = np.argwhere((canvas == tile[0, 0]).all(-1))
    return any(np.array_equal(canvas[y : y + height, x : x + width], tile) for y, x in corners)


def test_sample_grid_keeps_every_pixel(tmp_path):
    first, second = random_images(3, 32), random_images(3, 32).flip(0)
    path = figures.sample_grid(
        [("full precision", first), ("rtn", second)],
        tmp_path / "new" / "samples.png",
        ["a", "b", "a long caption " * 5],
    )
    canvas = pixels(path)
    for image in (*first, *second):
        tile = image.permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
        assert holds(canvas, tile)


def test_sample_grid_wraps_and_leaves_large_images(tmp_path):
    wide = pixels(figures.sample_grid([("fp", random_images(4, 128))], tmp_path / "a.png", columns=4))
    tall = pixels(figures.sample_grid([("fp", random_images(4, 128))], tmp_path / "b.png", columns=2))
    assert tall.shape[0] > 256
    assert wide.shape[1] > 512 > tall.shape[1] > 256


def test_difference_is_white_where_images_agree():
    first = random_images(1, 4)
    assert (figures.difference(first, first) == 255).all()
    darker = figures.difference(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8), torch.full((1, 3, 2, 2), 190).byte())
    assert (darker == 255 - 40).all()


def test_charts_are_drawn(tmp_path):
    layers = [
        {"site": f"b{b}.{r}", "role": r, "block": b, "sqnr": 20.0 + b} for b in range(3) for r in ("qkv", "ffn_up")
    ]
    layers += [{"site": "final", "role": "final", "block": None, "sqnr": 30.0}]
    layers += [{"site": "gone", "role": "qkv", "block": 1, "sqnr": None}]
    curve = {"x": [999, 500, 0], "y": [30.0, 29.0, 20.0], "xlabel": "timestep", "ylabel": "SQNR (dB)"}
    drawn = [
        figures.layer_chart(layers, tmp_path / "layers.png", title="rtn-w4a8"),
        figures.layer_chart([], tmp_path / "no-layers.png"),
        figures.timestep_chart({"rtn": curve | {"stderr": [0.1, 0.2, 0.3]}, "q_dit": curve}, tmp_path / "t.png"),
        figures.frame_chart({"PSNR (dB)": [30.0, 28.0, 25.0], "temporal error": [1.0, 2.0]}, tmp_path / "f.png", "rtn"),
        figures.timestep_chart({"one sample": curve | {"stderr": [None] * 3}}, tmp_path / "one.png"),
    ]
    for path in drawn:
        assert pixels(path).std() > 5


def test_a_metric_and_its_worst_frame_have_one_panel(tmp_path):
    psnr = {"PSNR (dB)": [30.0, 28.0, 25.0]}
    one, both, two = (
        pixels(figures.frame_chart(curves, tmp_path / "f.png"))
        for curves in (psnr, psnr | {"PSNR, worst frame (dB)": [30.0, 28.0, 25.0]}, psnr | {"SSIM": [0.9, 0.8, 0.7]})
    )
    assert np.array_equal(one, both)
    assert two.shape[1] > 1.5 * one.shape[1]


def test_group_map_has_a_cell_a_gene_and_leaves_others_blank(tmp_path):
    groups = [
        {"role": role, "stage": stage, "block": block, "group_size": size}
        for block, sizes in {0: (32, 256), 1: (256, 32), None: (32, 32)}.items()
        for stage, (role, size) in enumerate(zip(("qkv", "ffn_up"), sizes, strict=True))
        if block is not None or stage == 0
    ]
    canvas = pixels(figures.group_map(groups, tmp_path / "groups.png", "searched"))
    colours, counts = np.unique(canvas.reshape(-1, 3), axis=0, return_counts=True)
    filled = [n for colour, n in zip(colours.tolist(), counts, strict=True) if n > 500 and colour != [255] * 3]
    small, large = sorted(filled, reverse=True)[:2]
    assert small / large == pytest.approx(3 / 2, rel=0.1)  # three cells of 32, two of 256, one blank


def test_a_map_of_bits_shows_groups_that_offer_different_ones(tmp_path):
    quality = {"site": "qkv", "group": "quality", "bits": [4, 8], "loss": {"4": [3.0, 0.0], "8": [1.0, 1.0]}}
    losses = {"2": [9.0, 8.0], "4": [4.0, 2.0], "8": [1.0, 1.0]}
    content = {"site": "ffn", "group": "content", "bits": [2, 8], "loss": losses}
    maps = [
        pixels(figures.bit_map(rows, tmp_path / f"{number}.png"))
        for number, rows in enumerate(([quality, content], [content, quality]))
    ]
    assert np.array_equal(maps[0], maps[1])  # the first row need not have all of them
    everywhere = quality | {"loss": losses}
    assert not np.array_equal(maps[0], pixels(figures.bit_map([everywhere, content], tmp_path / "all.png")))
