"""Images in a figure."""

import numpy as np
from PIL import Image

from qdit.plots.style import save
from qdit.plots.tiles import strips, tiles


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_large_images_shrink_by_whole_pixels(tmp_path):
    images = np.zeros((2, 3, 256, 256), dtype=np.uint8)
    images[:, 0, ::2] = 200  # a mean of 100 in red
    small = pixels(save(tiles([("a", images, "black")], width=64), tmp_path / "a.png"))
    assert small.shape[0] < 120
    assert (small == (100, 0, 0)).all(-1).sum() >= 2 * 64 * 64
    odd = pixels(save(tiles([("a", images[:, :, :255, :255], "black")], width=64), tmp_path / "b.png"))
    assert odd.shape[0] > 255  # what cannot be divided stays


def test_clips_are_strips_of_small_frames_from_the_first_to_the_last():
    clips = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None, None, None], (2, 40, 3, 30, 51))
    shown = strips(clips, side=17, most=5)
    assert shown.shape == (2, 3, 10, 5 * 17)
    assert shown[0, 0, 0, ::17].tolist() == [0, 10, 20, 29, 39]
    assert strips(clips[:, 0]).shape == (2, 3, 30, 51)
