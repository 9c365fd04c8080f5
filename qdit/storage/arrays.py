"""Read arrays and images that others may have made: an npz without pickle, an image as 8-bit RGB. Imports no torch.

The sizes that a file claims are compared with what it holds before memory is allocated. Images are never degraded
silently: 16 bits are scaled to 8, and what has no true 8-bit RGB copy (transparency, floating point, several frames) is
refused.
"""

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib.npyio import NpzFile

from qdit.storage.reading import Unreadable, read_bytes, size_of

if TYPE_CHECKING:
    from PIL import Image

LARGEST_IMAGE = 2**28
"""Bytes of an image file."""
MOST_PIXELS = 178_956_970
"""Pixels of an image: twice Pillow's own limit, at which it refuses, too."""
_DEFLATE = 1032  # times smaller, at most
_DIRECT = ("1", "L", "RGB", "CMYK", "YCbCr", "HSV")  # modes of Pillow that have a true copy in 8-bit RGB
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")


def array_names(path: Path, advice: str) -> list[str]:
    """The names of the arrays of an npz, in its order.

    Raises:
        Unreadable: as `read_arrays`.
    """
    with _archive(path, advice) as arrays:
        return list(arrays)


def read_arrays(path: Path, names: Iterable[str], advice: str) -> list[np.ndarray]:
    """Arrays of an npz, without pickle.

    Raises:
        Unreadable: the file is missing, no npz, damaged, lacks one, or claims more than it holds; or one holds objects.
    """
    with _archive(path, advice) as arrays:
        return [arrays[name] for name in names]


@contextmanager
def _archive(path: Path, advice: str) -> Iterator[NpzFile]:
    size_of(path, advice)
    try:
        with path.open("rb") as stream:
            if stream.read(4) not in (
                b"PK\3\4",
                b"PK\5\6",
            ):  # numpy would take anything for a single array, or a pickle
                raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as arrays:
            _check_claims(arrays)
            yield arrays
    except Exception as error:  # of a damaged archive zipfile, zlib, lzma, tokenize and numpy raise what they like
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(path, f"cannot be read as npz: {text}", advice) from error


def _check_claims(arrays: NpzFile) -> None:
    """Compare the sizes that headers claim with each other, with the file, and with the machine's memory.

    Raises:
        ValueError: they do not agree.
    """
    archive: zipfile.ZipFile = arrays.zip  # pyright: ignore[reportAssignmentType] - None once it is closed
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("an array is there twice")
    total = sum(info.file_size for info in archive.infolist())
    if total > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ValueError(f"it claims {total:,} bytes of arrays, and this machine has {memory:,}")
    for info in archive.infolist():
        if info.file_size > _DEFLATE * info.compress_size + 1024 or not info.filename.endswith(".npy"):
            raise ValueError(f"{info.filename} is no array, or claims more than it holds")
        with archive.open(info) as stream:
            wanted, held = _claim(stream), info.file_size - stream.tell()
        if wanted not in (None, held):
            raise ValueError(f"{info.filename} claims {wanted:,} bytes, and holds {held:,}")


def _claim(stream: IO[bytes]) -> int | None:
    """Bytes that an array's header claims to be followed by; None for objects, which numpy refuses to unpickle."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array claims the shape {shape}")
    return None if dtype.hasobject else prod(map(int, shape)) * dtype.itemsize


def read_image(path: Path, advice: str) -> np.ndarray:
    """An image as uint8 [height, width, 3].

    Greyscale of 16 bits is scaled (65535 becomes 255); palettes, greyscale, CMYK and alpha channels that are opaque
    everywhere are converted.

    Raises:
        Unreadable: it is missing, damaged, without pixels, too large, or has no true copy in 8-bit RGB.
    """
    data = read_bytes(path, advice, LARGEST_IMAGE)
    try:
        return _rgb(_opened(data))
    except Exception as error:  # decoders of a dozen formats raise what they like of damaged data
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(path, f"cannot be read as an image: {text}", advice) from error


def _opened(data: bytes) -> "Image.Image":
    """The image, whose checksums are compared where the format has some.

    Raises:
        ValueError: no pixels, too many, or several frames.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("its format is none of those that are known, or it is damaged") from None
    if image.format == "PNG":  # Pillow decodes pixels without looking at their checksums
        image.verify()
        image = Image.open(io.BytesIO(data))
    if min(image.size) < 1 or image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels; 1 to {MOST_PIXELS:,} are allowed")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras append a preview to a JPEG
        raise ValueError(f"it has {frames} frames; save the one that is meant")
    image.load()
    return image


def _rgb(image: "Image.Image") -> np.ndarray:
    """An image as uint8 [height, width, 3].

    Raises:
        ValueError: something would be lost.
    """
    mode = image.mode
    if mode in _SIXTEEN or (mode == "I" and image.format in ("PNG", "PPM")):  # "I" is Pillow's older name for 16 bits
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError("it is transparent in places; save it on the background that is meant")
        mode = "RGB"
    if mode not in _DIRECT:
        raise ValueError(f"its pixels are of Pillow's mode {mode}; save it as RGB with 8 bits")
    return np.asarray(image.convert("RGB"))
