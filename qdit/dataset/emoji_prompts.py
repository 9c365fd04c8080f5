"""Prompts of the embedded text models as a data set: names of emoji, and names with a motion.

They are drawn once, by a fixed shuffle, so that sample i has the same prompt in every run; calibration sees others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from qdit.dataset.captions import base_emoji, caption, held_out
from qdit.dataset.motion import PHRASES
from qdit.dataset.prompts import Caption, Prompts
from qdit.errors import UserError

KINDS = ("emoji", "motions", "motions_held_out")
COUNT = 240
"""Evaluated prompts, and as many of calibration: twenty of each of the twelve motions."""


@dataclass(kw_only=True)
class EmojiPrompts(Prompts):
    """Prompts of one of `KINDS`, which `file` names.

    `emoji` are names; `motions` a name and a motion each, no emoji twice and the motions in turn, of pairs that the
    clip model was trained on; `motions_held_out` of the 5 % of pairs that it has not seen together. See `Prompts` for
    the other arguments.

    Raises:
        UserError: `file` is another word.
    """

    def __post_init__(self) -> None:
        """Draw the prompts; a file of captions for calibration is read."""
        if self.file not in KINDS:
            raise UserError(f"dataset.file={self.file!r}; allowed: {', '.join(KINDS)} (dataset=prompts reads files)")
        self.captions = _captions(self.file, 0)
        others = _captions(self.file.removesuffix("_held_out"), COUNT)
        self.calibration = self._load("calibration_file") if self.calibration_file else others


def motion_pairs(held: bool) -> Iterator[tuple[int, int]]:
    """Indices of an emoji and of its motion: the motions in turn, each with another emoji of one fixed shuffle.

    Args:
        held: whether the pairs are those held out of the clip model's training, or the others.
    """
    names, left = base_emoji()[1], _shuffled()
    for motion in cycle(range(len(PHRASES))):
        found = next((i for i in left if held_out(names[i], PHRASES[motion]) == held), None)
        if found is None:
            return
        left.remove(found)
        yield found, motion


def _captions(kind: str, first: int) -> list[Caption]:
    """`COUNT` captions from the one numbered `first` on; each occurs once."""
    names = base_emoji()[1]
    if kind == "emoji":
        texts = (names[i] for i in _shuffled())
    else:
        texts = (caption(names[i], PHRASES[m]) for i, m in motion_pairs(kind == "motions_held_out"))
    return [Caption(text, text) for text in islice(dict.fromkeys(texts), first, first + COUNT)]


def _shuffled() -> list[int]:
    """Indices of all emoji, in the one order."""
    return torch.randperm(len(base_emoji()[1]), generator=torch.Generator().manual_seed(0)).tolist()
