"""Videos for a program elsewhere, and its results back: what is written, and what is believed of what returns.

A folder has `{prompt}-{k}.mp4`, VBench's names, and a manifest: each sample's index, prompt, file and digest, and how
the videos were encoded, which belongs to the protocol. mp4 is lossy, so numbers of these videos are never mixed with
those of frames in memory. Results are matched by the manifest, and never by guesses of names.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Piece
from qdit.storage.atomic import atomic_write, write_json
from qdit.storage.digest import digest, sha256
from qdit.storage.reading import read_json
from qdit.storage.videos import encode

MANIFEST = "manifest.json"
FPS, CRF = 8, 12
_AGAIN = "export the videos again, and run the dimension on them"


def names_of(prompts: Sequence[str]) -> list[str]:
    """VBench's file name of each sample, numbered within its prompt.

    Raises:
        UserError: no prompts are known, or one gives no name of a file.
    """
    if not prompts:
        raise UserError("VBench names videos by their prompts, and no prompts are known")
    if bad := next((p for p in prompts if "/" in p or "\0" in p or not 0 < len(os.fsencode(p)) <= 240), None):
        raise UserError(f"the prompt {bad[:60]!r} gives no name of a file: up to 240 bytes without / are allowed")
    count: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        names.append(f"{prompt}-{count[prompt]}.mp4")
        count[prompt] += 1
    same = Counter(name.lower() for name in names)
    if twice := next((name for name in names if same[name.lower()] > 1), None):
        raise UserError(
            f"{twice}: two prompts differ in upper and lower case alone, which some disks cannot tell apart"
        )
    return names


def export(pieces: Iterable[Piece], prompts: Sequence[str], folder: Path, of: str = "") -> Path:
    """Write videos and their manifest; returns the manifest's path.

    Args:
        pieces: of all samples, which are clips.
        prompts: of each sample.
        folder: to write to.
        of: the id of the run whose samples they are.

    Raises:
        UserError: the prompts give no names, or the folder cannot be written.
    """
    names, videos = names_of(prompts), []
    waiting: list[Tensor] = []
    for piece in pieces:
        waiting.append(piece.frames)
        if not piece.last:
            continue
        for clip in torch.cat(waiting, 1):
            number = len(videos)
            atomic_write(folder / names[number], encode(_even(clip.permute(0, 2, 3, 1).numpy()), FPS, CRF))
            videos.append({"index": number, "prompt": prompts[number], "file": names[number]})
        waiting = []
    for video in videos:
        video["sha256"] = sha256(folder / video["file"])
    about: dict[str, Any] = {"of": of, "encoding": f"h264 yuv420p crf={CRF} fps={FPS}", "videos": videos}
    write_json(folder / MANIFEST, about | {"digest": digest(about)})
    return folder / MANIFEST


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
        raise UserError(f"{path} was changed after it was written; {_AGAIN}")
    return found


def read_values(path: Path, manifest: dict[str, Any], dimension: str) -> tuple[Tensor, dict[str, str]]:
    """The value of each sample, float64 [n], and the versions that made it.

    Raises:
        UserError: the file is of other videos or of another dimension, lacks one, or holds what is no value.
    """
    found = read_json(path, _AGAIN)
    if found.get("manifest") != manifest["digest"]:
        raise UserError(f"{path} is of other videos than the manifest's ({found.get('manifest')}); {_AGAIN}")
    if found.get("dimension") != dimension:
        raise UserError(f"{path} is of {found.get('dimension')}, not of {dimension}; {_AGAIN}")
    versions = found.get("versions")
    return numbers_of(found.get("values"), manifest, dimension, path), versions if isinstance(versions, dict) else {}


def read_released(path: Path, manifest: dict[str, Any], dimension: str) -> Tensor:
    """The value of each sample in a file `…_eval_results.json` as VBench writes it, float64 [n].

    Raises:
        UserError: the file lacks the dimension or a video, or holds what is no value.
    """
    found = read_json(path, "give the file that VBench wrote")
    try:
        values = {Path(each["video_path"]).name: each["video_results"] for each in found[dimension][1]}
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} has no results of {dimension} as VBench writes them ({error!r})") from error
    return numbers_of(values, manifest, dimension, path)


def numbers_of(values: Any, manifest: dict[str, Any], dimension: str, path: Path) -> Tensor:
    """Values by file as those of the samples, float64 [n].

    Raises:
        UserError: a video is missing or unknown, or a value is none.
    """
    files = [video["file"] for video in manifest["videos"]]
    if not isinstance(values, dict):
        raise UserError(f"{path} has no values; {_AGAIN}")
    if lost := [file for file in files if file not in values]:
        raise UserError(f"{path} lacks {len(lost)} of {len(files)} videos, first {lost[0]}; {_AGAIN}")
    if more := [file for file in values if file not in files]:
        raise UserError(f"{path} has {len(more)} videos that the manifest has not, first {more[0]}; {_AGAIN}")
    scale = 100.0 if dimension == "imaging_quality" else 1.0  # VBench's values of single videos are 0 … 100 there
    numbers = [_number(values[file], path, file) / scale for file in files]
    if bad := next((number for number in numbers if not -1 <= number <= 1), None):
        raise UserError(f"{path} has a value of {bad:g}; those of {dimension} lie in -1 … 1")
    return torch.tensor(numbers, dtype=torch.float64)


def protocol(manifest: dict[str, Any], versions: dict[str, str]) -> str:
    """What a program's numbers of these videos depend on, readably."""
    code = ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) or "unknown versions"
    return f"{manifest['encoding']}; {code}"


def _number(value: Any, path: Path, file: str) -> float:
    """A value, of a truth value 0 or 1."""
    if isinstance(value, bool | int | float) and isfinite(value):
        return float(value)
    raise UserError(f"{path}: the value of {file} is {value!r}, no finite number; {_AGAIN}")
