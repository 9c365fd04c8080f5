"""Clips are read frame by frame."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from qdit.storage import videos
from qdit.storage.reading import Unreadable
from qdit.storage.videos import frames_of, is_clip


class Container:
    """What PyAV opens: a context with frames."""

    def __init__(self, path):
        if Path(path).read_bytes() == b"broken":
            raise ValueError("Invalid data found when processing input")
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def decode(self, video):
        assert video == 0
        for level in (0, 9):
            yield SimpleNamespace(to_ndarray=lambda format, level=level: np.full((4, 6, 3), level, np.uint8))


def test_videos_are_pyavs(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "b.mp4").write_bytes(b"broken")
    monkeypatch.setattr(videos, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=Container))
    assert [int(frame[0, 0, 0]) for frame in frames_of(tmp_path / "a.mp4")] == [0, 9]
    with pytest.raises(Unreadable, match="b.mp4 cannot be read as a clip: Invalid data"):
        list(frames_of(tmp_path / "b.mp4"))
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    with pytest.raises(Unreadable, match=r"a.mp4 is a video, which PyAV reads; pip install 'qdit\[video\]'"):
        list(frames_of(tmp_path / "a.mp4"))


def test_folders_hold_frames_of_one_size_and_nothing_else(tmp_path):
    for number, side in enumerate((4, 4, 5)):
        Image.new("RGB", (side, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(Unreadable, match="has frames of 4×4 and of 5×4 pixels"):
        list(frames_of(tmp_path))
    (tmp_path / "2.png").unlink()
    assert [int(frame[0, 0, 0]) for frame in frames_of(tmp_path)] == [0, 1]
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(Unreadable, match="notes.txt is no frame"):
        list(frames_of(tmp_path))


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    """As names are sorted as text, 10 would stand before 2."""
    for number in (1, 2, 10):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert [int(frame[0, 0, 0]) for frame in frames_of(tmp_path)] == [1, 2, 10]


def test_an_empty_folder_has_no_frames(tmp_path):
    with pytest.raises(Unreadable, match="has no frames"):
        list(frames_of(tmp_path))
    assert (is_clip(tmp_path / "a.MP4"), is_clip(tmp_path / "a.png")) == (True, False)
