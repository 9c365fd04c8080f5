"""The embedded data: Noto emoji at 32×32 in 99 subcategories (see `experiments/emoji_dit/build_data.py`)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qdit.dataset.base import Dataset
from qdit.errors import UserError

FILE = Path(__file__).parents[1] / "assets" / "emoji" / "emoji32.npz"


@cache
def _read(file: Path) -> dict[str, np.ndarray]:
    """Read the labels and the class names.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as data:
            return {"labels": data["labels"], "classes": data["classes"]}
    except Exception as error:  # zipfile, zlib, OSError, KeyError, ValueError: whatever a damaged archive raises
        raise UserError(f"{file} is missing or damaged ({error}); reinstall qdit") from error


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
