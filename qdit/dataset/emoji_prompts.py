"""Prompts of the embedded text models as a data set: names of emoji, and names with a motion.

They are drawn once, by a fixed shuffle, so that sample i has the same prompt in every run; calibration sees others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

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

    `emoji` are names; `motions` a name and a motion each, the motions in turn, of pairs that the clip model was trained
    on; `motions_held_out` the 5 % of pairs that it has not seen together. See `Prompts` for the other arguments.

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


def _captions(kind: str, first: int) -> list[Caption]:
    """`COUNT` captions from the one numbered `first` on; each occurs once."""
    drawn = dict.fromkeys(_names() if kind == "emoji" else _motions(kind == "motions_held_out"))
    return [Caption(text, text) for text in islice(drawn, first, first + COUNT)]


def _names() -> list[str]:
    """All names, shuffled."""
    names = base_emoji()[1]
    return [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()]


def _motions(held: bool) -> Iterator[str]:
    """Names with each motion in turn, as long as every motion has another: pairs held out of the training, or not."""
    names = _names()
    yield from (
        text
        for row in zip(*([caption(n, p) for n in names if held_out(n, p) == held] for p in PHRASES), strict=False)
        for text in row
    )
