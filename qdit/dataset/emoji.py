"""The embedded data: Noto emoji at 32×32 in 99 subcategories (see `experiments/emoji_dit/build_data.py`)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qdit.dataset.base import Dataset
from qdit.storage.arrays import read_arrays

FILE = Path(__file__).parents[1] / "assets" / "emoji" / "emoji32.npz"


@cache
def _read(file: Path) -> dict[str, np.ndarray]:
    """Read the labels and the class names.

    Raises:
        UserError: the file is missing or damaged.
    """
    names = ("labels", "classes")
    return dict(zip(names, read_arrays(file, names, "reinstall qdit"), strict=True))


@dataclass(kw_only=True)
class Emoji(Dataset):
    """Class names and frequencies come from the file."""

    def frequencies(self) -> Float[Tensor, " K"]:
        """Return the share of each class in the data."""
        counts = torch.from_numpy(np.bincount(_read(FILE)["labels"], minlength=self.num_classes))
        return counts / counts.sum()

    def class_names(self) -> list[str]:
        """Return the subcategories' names."""
        return [str(name) for name in _read(FILE)["classes"]]
