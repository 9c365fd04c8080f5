"""Sheets of samples: pixel for pixel where there is room, smaller and coarser where there is less; clips in rows."""

import io
from base64 import b64decode

import numpy as np
import pytest
from helpers.fake_records import SETTINGS, metric, record, write
from PIL import Image
from safetensors.numpy import save

from qdit.report.pictures import CLIPS, FRAMES, samples, sheet
from qdit.storage.run_folder import IMAGES, VALUES
from qdit.tables import load_results
from qdit.tables.summary import ROWS, summarise

ROOM = 10**6


def pixels(made) -> np.ndarray:
    """Pixels [frames, n, H, W, 3]."""
    data = b64decode(made.url.removeprefix("data:image/webp;base64,"))
    grid = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    high, wide, _ = grid.shape
    assert (high, wide) == (made.frames * made.height, made.count * made.width)
    return grid.reshape(made.frames, made.height, made.count, made.width, 3).swapaxes(1, 2)


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)


def test_small_samples_are_kept_pixel_for_pixel(noise):
    assert (pixels(sheet(noise, ROOM))[0] == noise.transpose(0, 2, 3, 1)).all()


def test_large_samples_shrink(noise):
    large = noise.repeat(8, 2).repeat(8, 3)
    made = sheet(large, ROOM)
    assert (made.width, made.height) == (128, 128)
    assert (pixels(made)[0][:, ::4, ::4] == noise.transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize("share", [9_000, 4_000])
def test_less_room_costs_quality(noise, share):
    made = sheet(noise, share)
    assert len(b64decode(made.url.partition(",")[2])) <= share
    off = pixels(made)[0].astype(int) - noise.transpose(0, 2, 3, 1)
    assert 0 < np.abs(off).mean() < 80


def test_clips_are_rows_of_frames():
    clips = np.random.default_rng(0).integers(0, 256, (CLIPS + 1, 31, 3, 8, 8), dtype=np.uint8)
    made = sheet(clips, ROOM)
    assert (made.count, made.frames) == (CLIPS, FRAMES)
    shown = pixels(made)
    assert (shown[0] == clips[:CLIPS, 0].transpose(0, 2, 3, 1)).all()
    assert (shown[-1] == clips[:CLIPS, -1].transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize(("higher", "worst"), [(True, [1, 2, 0]), (False, [0, 2, 1]), (None, None)])
def test_no_sample_is_the_worst_by_a_metric_without_a_direction(higher, worst, noise, tmp_path):
    made = record("rtn", "w4a8", {"energy": metric(2.0, 0.1, higher, n=3) | SETTINGS})
    write(tmp_path, made)
    folder = tmp_path / "s" / f"{made['name']}-{made['run_id']}"
    (folder / "samples").mkdir()
    (folder / VALUES).write_bytes(save({f"energy@{SETTINGS['settings']}": np.array([3.0, 1.0, 2.0])}))
    (folder / IMAGES).write_bytes(save({"images": noise[:3]}))
    summary = summarise(load_results(tmp_path), ROWS)
    found = samples(summary, summary.rows)["judged"]
    assert (found[0]["worst"] if found else None) == worst
