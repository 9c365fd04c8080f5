"""Samples that anything made: a folder of images or of clips, judged by the same metrics as a run's samples.

Images lie at any depth. Clips are videos and moving pictures at any depth or, where that is said, subfolders of frames.
All are of one size, and clips of one length, or are refused by name. Two folders are paired by their samples' names,
without the suffix of a file; a subfolder has none, whatever dots are in its name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Features, Piece
from qdit.eval.pieces import FRAMES, Collected, read_prompts
from qdit.storage.arrays import read_image
from qdit.storage.videos import FRAMES as SUFFIXES
from qdit.storage.videos import frames_of, is_clip
from qdit.storage.walk import entries_below

BATCH = 32
_MEND = "mend it, or take it away"
Shape = tuple[int, int, int]
"""Frames, height and width."""


@dataclass(eq=False)  # what was found of a set is remembered by identity
class Folder:
    """Images or clips of a folder, in the order of their names; see `qdit.eval.base.Samples`.

    Args:
        path: of the folder.
        files: of the samples.
        clips: whether they are clips.
        extract: extractor name -> (images -> features by name).
        prompts, clusters: what each was asked to show, and the prompts' ids, where they are known.
    """

    path: Path
    files: list[Path]
    clips: bool
    extract: Callable[[str], Callable[[Tensor], Features]]
    prompts: Sequence[str] = ()
    clusters: Sequence[str] | None = None
    shape: Shape | None = field(default=None, init=False)
    """Of the first sample; None before it is read."""
    _features: dict[str, Features] = field(default_factory=dict, init=False)

    @classmethod
    def find(cls, path: Path, extract: Callable[[str], Callable[[Tensor], Features]], frames: bool = False) -> "Folder":
        """The samples of a folder.

        Args:
            path: of the folder.
            extract: see the class.
            frames: whether each subfolder is a clip, of which it holds the frames.

        Raises:
            UserError: there are none, or images and clips both, or two have one name.
        """
        if not path.is_dir():
            raise UserError(f"{path} is no folder; give one of images ({', '.join(SUFFIXES)}) or of clips")
        entries = sorted(path.iterdir() if frames else entries_below(path), key=lambda entry: _name(entry, path))
        if frames:
            files, images = [entry for entry in entries if entry.is_dir()], []
        else:
            files = [entry for entry in entries if is_clip(entry)]
            images = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
        if files and images:
            raise UserError(
                f"{path} holds clips ({files[0].name}) and images ({images[0].name}); give a folder of each"
            )
        if not (files or images):
            wanted = "subfolders of frames" if frames else f"images ({', '.join(SUFFIXES)}) or clips"
            raise UserError(f"{path} holds no {wanted}")
        made = cls(path, files or images, bool(files), extract)
        if len(set(made.names)) < made.n:
            twice = next(name for name in made.names if made.names.count(name) > 1)
            raise UserError(f"{path} has two samples named {twice}; names without their suffix tell samples apart")
        return made

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """The names of the samples: paths below the folder, without suffix."""
        return [_name(file, self.path).as_posix() for file in self.files]

    def size(self) -> tuple[int, int]:
        """Height and width of the first sample, of which as little as possible is read.

        Raises:
            UserError: it cannot be read.
        """
        first = self.files[0]
        height, width, _ = (next(iter(frames_of(first))) if self.clips else read_image(first, _MEND)).shape
        return height, width

    def length(self, most: int) -> int:
        """Frames of the first sample, of which no more than `most` are counted.

        Raises:
            UserError: it cannot be read.
        """
        return sum(1 for _ in islice(frames_of(self.files[0]), most)) if self.clips else 1

    def latents(self) -> Tensor:
        """None are here.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.path} holds pixels, no latents; leave out sqnr and latent_mse")

    def images(self) -> Iterator[Tensor]:
        """Images in chunks, uint8 [b, 3, H, W], or clips, uint8 [1, T, 3, H, W]."""
        whole: list[Tensor] = []
        for piece in self.pieces():
            whole.append(piece.frames)
            if piece.last:
                clip = torch.cat(whole, 1)
                yield clip if self.clips else clip[:, 0]
                whole = []

    def pieces(self, extractors: Sequence[str] = ()) -> Iterator[Piece]:
        """All samples in pieces; features of these extractors are made on the way, and kept.

        Raises:
            UserError: a file cannot be read, or is of another size or length than the first.
        """
        found = {name: Collected(self.extract(name)) for name in extractors}
        for piece in self._clips() if self.clips else self._images():
            for each in found.values():
                each.read(piece)
            yield piece
        self._features |= {name: each.finish() for name, each in found.items()}

    def _images(self) -> Iterator[Piece]:
        for start in range(0, self.n, BATCH):
            files = self.files[start : start + BATCH]
            read = [self._fitting(file, read_image(file, _MEND)) for file in files]
            yield Piece(torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)[:, None], 0, True)

    def _clips(self) -> Iterator[Piece]:
        for file in self.files:
            start, waiting = 0, []
            for frame in frames_of(file):
                if len(waiting) == FRAMES:
                    yield _piece(waiting, start, last=False)
                    start, waiting = start + FRAMES, []
                waiting.append(frame)
            self._fitting(file, waiting[0], start + len(waiting))
            yield _piece(waiting, start, last=True)

    def _fitting(self, file: Path, frame: np.ndarray, length: int = 1) -> np.ndarray:
        """A frame of a file whose size and length are those of the first file."""
        shape: Shape = (length, frame.shape[0], frame.shape[1])
        self.shape = self.shape or shape
        if shape != self.shape:
            raise UserError(f"{file} has {said(shape)}, and {self.files[0].name} has {said(self.shape)}; {_MEND}")
        return frame

    def missing(self, extractors: Sequence[str]) -> list[str]:
        """Those of these extractors whose features are still to be made."""
        return [name for name in extractors if name not in self._features]

    def features(self, extractor: str) -> Features:
        """Features of all samples, [n, D] of images and [n, T, D] of clips."""
        for _ in self.pieces([extractor]) if self.missing([extractor]) else ():
            pass
        return self._features[extractor]

    def texts(self, extractor: str) -> Tensor:
        """Features of each sample's prompt, [n, D]."""
        return read_prompts(self.extract(extractor), self.prompts)


def _name(entry: Path, folder: Path) -> Path:
    """What tells a sample of a folder from the others."""
    below = entry.relative_to(folder)
    return below if entry.is_dir() else below.with_suffix("")


def said(shape: Shape) -> str:
    """A shape for messages."""
    frames, height, width = shape
    return f"{frames} frames of {width}×{height} pixels" if frames > 1 else f"{width}×{height} pixels"


def _piece(frames: list[np.ndarray], start: int, last: bool) -> Piece:
    return Piece(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None], start, last)


def paired(folder: Folder, other: Folder) -> bool:
    """Whether two folders have the same names, so that their samples are pairs; false where none is the same.

    Raises:
        UserError: some names are the same and some are not, or the samples are of different kinds.
    """
    if folder.clips != other.clips:
        kinds = ["clips" if each.clips else "images" for each in (folder, other)]
        raise UserError(f"{folder.path} holds {kinds[0]} and {other.path} {kinds[1]}, which cannot be compared")
    own, theirs = set(folder.names), set(other.names)
    if own == theirs:
        return True
    if not own & theirs:
        return False
    sides = ((own - theirs, other), (theirs - own, folder))
    lacks = [f"{side.path} lacks {_some(sorted(names))}" for names, side in sides if names]
    raise UserError(f"{folder.path} and {other.path} share {len(own & theirs)} names, but {' and '.join(lacks)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
