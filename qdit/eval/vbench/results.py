"""Results of VBench's own code: read, and checked against the manifest of the videos.

A value is NaN where a dimension does not judge a sample: its prompt is another dimension's, VBench reads no more than
five videos of a prompt, or, of `color`, no frame showed the object.
"""

from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.vbench.exchange import AGAIN
from qdit.storage.reading import read_json

DROPPING = ("color",)
"""Dimensions of which VBench leaves out videos: those in which it does not find what it is to judge."""


def read_values(path: Path, manifest: dict[str, Any], dimension: str) -> tuple[Float[Tensor, " n"], dict[str, str]]:
    """The value of each sample, float64 [n], and the versions that made it, of a file that `remote` wrote.

    Raises:
        UserError: the file is of other videos or of another dimension, lacks one, or holds what is no value.
    """
    found = read_json(path, AGAIN)
    if found.get("manifest") != manifest["digest"]:
        raise UserError(f"{path} is of other videos than the manifest's ({found.get('manifest')}); {AGAIN}")
    if found.get("dimension") != dimension:
        raise UserError(f"{path} is of {found.get('dimension')}, not of {dimension}; {AGAIN}")
    versions = found.get("versions")
    return numbers_of(found.get("values"), manifest, dimension, path), versions if isinstance(versions, dict) else {}


def read_released(path: Path, manifest: dict[str, Any], dimension: str) -> Float[Tensor, " n"]:
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


def judged(manifest: dict[str, Any], dimension: str) -> list[str]:
    """The files that a dimension judges.

    Raises:
        UserError: none of the prompts is its own.
    """
    known = manifest.get("dimensions")  # none in a manifest of an earlier qdit
    if known is None:
        return [video["file"] for video in manifest["videos"]]
    if not known.get(dimension):
        raise UserError(f"no prompt of these videos is of {dimension}; sample with dataset.dimensions=[{dimension}]")
    return known[dimension]


def numbers_of(values: Any, manifest: dict[str, Any], dimension: str, path: Path) -> Float[Tensor, " n"]:
    """Values by file as those of the samples, float64 [n]; NaN where a sample is not judged.

    Raises:
        UserError: a video is missing or unknown, or a value is none.
    """
    files = judged(manifest, dimension)
    if not isinstance(values, dict):
        raise UserError(f"{path} has no values; {AGAIN}")
    lost = [file for file in files if file not in values]
    if lost and dimension not in DROPPING:
        raise UserError(f"{path} lacks {len(lost)} of {len(files)} videos, first {lost[0]}; {AGAIN}")
    if more := [file for file in values if file not in {*files}]:
        raise UserError(
            f"{path} has {len(more)} videos beside the {len(files)} that {dimension} judges, first {more[0]}; prompts "
            "of VBench's suite are for its mode vbench_standard"
        )
    scale = 100.0 if dimension == "imaging_quality" else 1.0  # VBench's values of single videos are 0 … 100 there
    known = {file: _number(values[file], path, file) / scale for file in files if file in values}
    if bad := next((number for number in known.values() if not -1 <= number <= 1), None):
        raise UserError(f"{path} has a value of {bad:g}; those of {dimension} lie in -1 … 1")
    return torch.tensor([known.get(video["file"], nan) for video in manifest["videos"]], dtype=torch.float64)


def _number(value: Any, path: Path, file: str) -> float:
    """A value, of a truth value 0 or 1."""
    if isinstance(value, bool | int | float) and isfinite(value):
        return float(value)
    raise UserError(f"{path}: the value of {file} is {value!r}, no finite number; {AGAIN}")
