"""Clips that play, with an encoder and without."""

import io
import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from qdit.plots import clips


def moving(count=5, length=3, side=16):
    """Clips whose frame t is of brightness 40 t + n."""
    light = 40 * np.arange(length)[None] + np.arange(count)[:, None]
    return np.broadcast_to(light[:, :, None, None, None], (count, length, 3, side, side)).astype(np.uint8)


def test_full_precision_plays_above_quantized_frame_by_frame():
    own = moving()
    shown = clips.frames([("full precision", own), ("rtn-w4a8", 255 - own)], ["a cat", "a dog", "the sea", "x", "y"])
    assert len(shown) == 3
    height, width, _ = shown[0].shape
    assert height % 2 == width % 2 == 0
    side = 192
    assert width >= 4 * side  # four in a row, and the fifth below
    columns = [np.flatnonzero((frame[:, -side // 2] == 40 * time + 3).all(-1)) for time, frame in enumerate(shown)]
    assert [len(rows) for rows in columns] == [side] * 3
    below = [np.flatnonzero((frame[:, -side // 2] == 252 - 40 * time).all(-1)) for time, frame in enumerate(shown)]
    assert all(rows.min() > above.max() for rows, above in zip(below, columns, strict=True))


def test_without_an_encoder_a_png_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    (tmp_path / "samples.mp4").touch()
    path = clips.play([("full precision", moving())], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["samples_moving.png"]
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("PNG", 3)  # pyright: ignore[reportAttributeAccessIssue]
        image.seek(2)
        assert 82 in np.array(image.convert("RGB"))


def test_with_an_encoder_it_is_a_video(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "find_spec", lambda name: ModuleType(name))
    monkeypatch.setattr(clips, "mp4", lambda shown: b"a video")
    (tmp_path / "samples_moving.png").touch()
    assert clips.play([("full precision", moving())], tmp_path).read_bytes() == b"a video"
    assert [file.name for file in tmp_path.iterdir()] == ["samples.mp4"]


@pytest.mark.skipif(find_spec("av") is None, reason="needs qdit[video]")
def test_the_video_has_the_frames():
    import av  # pyright: ignore[reportMissingImports]

    shown = clips.frames([("full precision", moving())])
    with av.open(io.BytesIO(clips.mp4(shown))) as container:
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(found) == 3
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, shown, strict=True)]
    assert max(errors) < 3
    assert "av" in sys.modules
