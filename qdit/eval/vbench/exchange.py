"""Videos for a program elsewhere, and its results back: what is written, and what is believed of what returns.

A folder has a manifest and, alone in a folder below, `{prompt}-{k}.mp4`, VBench's names. The manifest has each sample's
index, prompt, file and digest, how the videos were encoded, which belongs to the protocol, and which of them each
dimension judges. mp4 is lossy, so numbers of these videos are never mixed with those of frames in memory. Results are
matched by the manifest, and never by guesses of names.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Piece
from qdit.eval.vbench.suite import VIDEOS_A_PROMPT, SuitePrompt
from qdit.storage.atomic import atomic_write, write_json
from qdit.storage.digest import digest, sha256
from qdit.storage.reading import read_json
from qdit.storage.videos import encode

MANIFEST, VIDEOS = "manifest.json", "videos"
FPS, CRF = 8, 12
"""Frames a second where nobody says another rate, and the constant rate factor."""
LONGEST = 220
"""Bytes of a prompt: a file's name takes 255, with a number and more while it is written. VBench's have up to 210."""
AGAIN = "export the videos again, and run the dimension on them"


def names_of(prompts: Sequence[str]) -> list[str]:
    """VBench's file name of each sample, numbered within its prompt.

    Raises:
        UserError: no prompts are known, or one gives no name of a file.
    """
    if not prompts:
        raise UserError("VBench names videos by their prompts, and no prompts are known")
    if bad := next((p for p in prompts if "/" in p or "\0" in p or not 0 < len(os.fsencode(p)) <= LONGEST), None):
        raise UserError(f"the prompt {bad[:60]!r} gives no name of a file: up to {LONGEST} bytes without / are allowed")
    count: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        names.append(f"{prompt}-{count[prompt]}.mp4")
        count[prompt] += 1
    return names


def judged_by(prompts: Sequence[str], names: Sequence[str]) -> dict[str, list[str]] | None:
    """The files that each dimension judges: of VBench's suite the first five of each prompt that is the dimension's.

    None for prompts of one's own, of which a dimension judges all.
    """
    if not all(isinstance(prompt, SuitePrompt) for prompt in prompts):
        return None
    found: dict[str, list[str]] = {}
    count: Counter[str] = Counter()
    for prompt, name in zip(prompts, names, strict=True):
        if count[prompt] < VIDEOS_A_PROMPT and isinstance(prompt, SuitePrompt):
            for dimension in prompt.dimensions:
                found.setdefault(dimension, []).append(name)
        count[prompt] += 1
    return found


def export(pieces: Iterable[Piece], prompts: Sequence[str], folder: Path, of: str = "", fps: int = FPS) -> Path:
    """Write videos and their manifest; returns the manifest's path.

    Args:
        pieces: of all samples, which are clips.
        prompts: of each sample; those of VBench's suite are `SuitePrompt`.
        folder: to write to.
        of: the id of the run whose samples they are.
        fps: frames a second, which the files say of themselves: VBench's dynamic degree thins fast clips out by it.

    Raises:
        UserError: the prompts give no names, or not on this disk; or the folder cannot be written, or holds others.
    """
    names, videos = names_of(prompts), []
    place = _place(folder, names)
    waiting: list[Tensor] = []
    for piece in pieces:
        waiting.append(piece.frames)
        if not piece.last:
            continue
        for clip in torch.cat(waiting, 1):
            number = len(videos)
            video = encode(_even(clip.permute(0, 2, 3, 1).numpy()), fps, CRF)
            atomic_write(place / names[number], video)
            about = {"index": number, "prompt": str(prompts[number]), "file": names[number]}
            videos.append(about | {"sha256": hashlib.sha256(video).hexdigest()})
        waiting = []
    found: dict[str, Any] = {"of": of, "encoding": f"h264 yuv420p crf={CRF} fps={fps}", "videos": videos}
    found["dimensions"] = judged_by(prompts, names)
    write_json(folder / MANIFEST, found | {"digest": digest(found)})
    return folder / MANIFEST


def _place(folder: Path, names: Sequence[str]) -> Path:
    """The folder of the videos, in which nothing else is: VBench judges whatever it finds there."""
    place = folder / VIDEOS
    try:
        place.mkdir(parents=True, exist_ok=True)
        strange = sorted({path.name for path in place.iterdir()} - {*names})
        alike = Counter(name.lower() for name in names)
        twice = [name for name in names if alike[name.lower()] > 1]
        if twice and not _tells_cases_apart(place):
            raise UserError(
                f"{twice[0]} and {twice[-1]} differ in upper and lower case alone, which the disk of {folder} cannot "
                "tell apart; write to another disk"
            )
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror}; choose another folder") from error
    if strange:
        raise UserError(f"{place} holds {strange[0]}, which is no video of these samples; give an empty folder")
    return place


def _tells_cases_apart(folder: Path) -> bool:
    """Whether two names that differ in upper and lower case alone are two files of a folder."""
    with TemporaryDirectory(prefix=".case-", dir=folder) as probe:
        return not Path(probe).with_name(Path(probe).name.upper()).exists()


def _even(frames: np.ndarray) -> np.ndarray:
    """Frames whose sides the encoder takes: an odd one loses its last row or column."""
    height, width = frames.shape[1:3]
    return frames[:, : height - height % 2, : width - width % 2]


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest whose digest is its own.

    Raises:
        UserError: it is missing or damaged.
    """
    found = read_json(path, "qdit-vbench export writes it")
    if digest({key: value for key, value in found.items() if key != "digest"}) != found.get("digest"):
        raise UserError(f"{path} was changed after it was written; {AGAIN}")
    return found


def changed(path: Path) -> list[Path]:
    """The videos of a manifest that are missing, or are not what was exported."""
    files = [(path.parent / VIDEOS / video["file"], video["sha256"]) for video in read_manifest(path)["videos"]]
    return [file for file, known in files if not file.is_file() or sha256(file) != known]


def protocol(manifest: dict[str, Any], versions: dict[str, str]) -> str:
    """What a program's numbers of these videos depend on, readably."""
    code = ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) or "unknown versions"
    return f"{manifest['encoding']}; {code}"
