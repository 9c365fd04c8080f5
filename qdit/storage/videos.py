"""Clips, frame by frame as 8-bit RGB: read those that others may have made, and write videos. Imports no torch.

Videos need PyAV, of the extra `qdit[video]`; GIFs and animated PNGs are read by Pillow, and folders hold frames.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qdit.storage.arrays import MOST_PIXELS, read_image
from qdit.storage.names import counted
from qdit.storage.reading import Unreadable, size_of

VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi")
MOVING = (".gif", ".apng")
FRAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MEND = "mend it, or take it away"


def is_clip(path: Path) -> bool:
    """Whether the name is a video's or a moving picture's."""
    return path.suffix.lower() in (*VIDEOS, *MOVING)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a clip in order, uint8 [height, width, 3].

    Of a folder these are its images by name, in which numbers count as numbers: 2.png stands before 10.png.

    Raises:
        Unreadable: it is missing, damaged, empty, of changing size, or a video where PyAV is not installed.
    """
    first: tuple[int, ...] | None = None
    reader = _folder if path.is_dir() else _moving if path.suffix.lower() in MOVING else _video
    for frame in reader(path):
        first = first or frame.shape
        if frame.shape != first:
            raise Unreadable(path, f"has frames of {_size(first)} and of {_size(frame.shape)} pixels", _MEND)
        if frame.shape[0] * frame.shape[1] > MOST_PIXELS:
            raise Unreadable(path, f"has frames of {_size(frame.shape)} pixels; up to {MOST_PIXELS:,} are read", _MEND)
        yield frame
    if first is None:
        raise Unreadable(path, "has no frames", _MEND)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


def _folder(path: Path) -> Iterator[np.ndarray]:
    for file in sorted(path.iterdir(), key=lambda file: counted(file.name)):
        if file.suffix.lower() not in FRAMES:
            raise Unreadable(file, f"is no frame ({', '.join(FRAMES)})", "take it away")
        yield read_image(file, _MEND)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file a decoder stumbled over; decoders raise what they like of damaged data."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(path, f"cannot be read as a clip: {text}", _MEND) from error


def _moving(path: Path) -> Iterator[np.ndarray]:
    size_of(path, _MEND)
    with _readable(path), Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            yield np.asarray(image.convert("RGB"))


def _video(path: Path) -> Iterator[np.ndarray]:
    size_of(path, _MEND)
    if find_spec("av") is None:
        raise Unreadable(path, "is a video, which PyAV reads", "pip install 'qdit[video]', or give folders of frames")
    import av  # pyright: ignore[reportMissingImports] - of an extra

    with _readable(path), av.open(str(path)) as container:
        frame: Any
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def encode(frames: Iterable[np.ndarray], fps: int, crf: int) -> bytes:
    """A video in H.264 of frames [H, W, 3] with even sides, by PyAV.

    Args:
        frames: in order.
        fps: frames a second, which the file says of itself.
        crf: the encoder's loss, 0 for the least.
    """
    import av  # pyright: ignore[reportMissingImports] - of an extra

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"  # what every player knows
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
