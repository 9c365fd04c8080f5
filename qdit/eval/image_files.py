"""Real images of a folder or of an npz, as they are or cropped as ADM crops them.

ADM's centre crop (guided-diffusion `image_datasets.py`): halve with a box filter while the short side is at least
twice the target, resize the short side bicubically, crop the centre.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qdit.errors import UserError
from qdit.storage.arrays import MOST_PIXELS, array_names, read_arrays, read_image
from qdit.storage.reading import size_of
from qdit.storage.walk import entries_below

BATCH = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MEND = "mend it, or take it away"
_AGAIN = "copy or download it again"


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to a square of `size` px."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


class Images:
    """Images of a folder (all depths, sorted by path) or of an npz (`arr_0` or `images`), as uint8 [H, W, 3]."""

    def __init__(self, path: Path, size: int | None = None, files: Sequence[Path] | None = None) -> None:
        """Find the images, or take these files of the folder; with `size` each gets ADM's centre crop.

        Raises:
            UserError: there is nothing there, or the npz holds no uint8 RGB images, or the size is below 1 px.
        """
        if size is not None and size < 1:
            raise UserError(f"--size {size} is no side of an image; give the pixels of the model's images, such as 256")
        self.path, self.size = path, size
        self.items: np.ndarray | list[Path] = _arrays(path) if path.suffix == ".npz" else list(files or _files(path))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image.

        Raises:
            UserError: it cannot be read, or is too long and thin to be cropped to the size.
        """
        item = self.items[index]
        image = read_image(item, _MEND) if isinstance(item, Path) else item
        if self.size is None:
            return image
        height, width = image.shape[:2]
        if height * width * (self.size / min(height, width)) ** 2 > MOST_PIXELS:
            where = item if isinstance(item, Path) else f"image {index} of {self.path}"
            raise UserError(f"{where} has {width} x {height} pixels, too long and thin to be cropped; {_MEND}")
        return np.asarray(adm_crop(Image.fromarray(image), self.size))

    def batches(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """Chosen images, uint8 [b, 3, H, W].

        Raises:
            UserError: images of different sizes, without a size to crop them to.
        """
        for start in range(0, len(indices), BATCH):
            images = [self[i] for i in indices[start : start + BATCH]]
            if len({image.shape for image in images}) > 1:
                shapes = sorted({image.shape[:2] for image in images})
                raise UserError(f"{self.path} holds images of different sizes ({shapes[0]}, {shapes[1]}); give --size")
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _arrays(path: Path) -> np.ndarray:
    names = array_names(path, _AGAIN)
    found = next((key for key in ("arr_0", "images") if key in names), None)
    if found is None:
        raise UserError(f"{path} has no images: it holds {', '.join(names)}; arr_0 or images is wanted")
    (images,) = read_arrays(path, [found], _AGAIN)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise UserError(f"{path}: {found} is {images.dtype} {images.shape}; uint8 [n, height, width, 3] is wanted")
    return images


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        size_of(path, f"give an npz, or a folder with images ({', '.join(SUFFIXES)})")
    entries = sorted(entries_below(path)) if path.is_dir() else []
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    for file in files:
        size_of(file, _MEND)  # a link to nothing, or a pipe, that is left out in silence would change numbers
    if not files:
        raise UserError(f"{path} is not an npz and not a folder with images ({', '.join(SUFFIXES)})")
    return files
