"""Values of single samples, kept beside the samples, and the difference of two methods over them.

Sample i has the same noise and class in every run of a protocol and seed. What two methods have in common (hard
classes, noise that is far from any image) cancels in the paired difference, sample by sample, so that its standard
error is a fraction of theirs. Where samples share a prompt, errors are over prompts (`qdit.eval.per_sample`). No torch.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qdit.storage.run_folder import CLUSTERS, VALUES
from qdit.storage.seal import Broken, check_tensors
from qdit.tables import collected
from qdit.tables.records import FOLDER

Values = NDArray[np.float64]
"""A metric of each sample, [n]."""


def values(run: Mapping[str, Any], metric: str) -> Values | None:
    """Return a metric of each sample of a run, as `load_results` names it; None where it was not kept."""
    if (settings := run.get(f"{metric}_settings")) is None:
        return None
    return _kept(run, metric).get(f"{metric.split('@')[0]}@{settings}")


def _kept(run: Mapping[str, Any], metric: str) -> dict[str, Values]:
    """All that is kept of the samples of the run that a metric is of, by name."""
    folder = run.get(metric + FOLDER) or run.get("folder")
    path = Path(folder) / VALUES if folder is not None else None
    return _read(path, path.stat().st_mtime_ns) if path is not None and path.is_file() else {}


@lru_cache(maxsize=1024)
def _read(path: Path, _modified: int) -> dict[str, Values]:
    try:
        check_tensors(path)
        collected.check(path, path.parents[2])
        return {name: array.astype(np.float64) for name, array in load_file(path).items()}
    except (SafetensorError, OSError, Broken) as error:
        print(f"{path}: damaged, skipped ({error})", file=sys.stderr)
        return {}  # the record has the mean and its error


def difference(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metric: str
) -> tuple[float, float] | None:
    """Return the mean difference of two methods over samples, and its standard error.

    Runs of one seed that differ in their calibration are averaged first; their spread joins the error. Only seeds that
    both have are compared; the error is never below what the differences of single seeds tell, as a seed also moves the
    calibration data: each is another quantized model.

    Args:
        one, other: the runs of each method, one or several seeds.
        metric: a paired one.

    Returns:
        None where a run keeps no values, or the methods have no seed of the noise in common.
    """
    first, second = _by_seed(one, metric), _by_seed(other, metric)
    seeds = [seed for seed in first or () if seed in (second or ())]
    if first is None or second is None or not seeds:
        return None
    both = [(first[seed], second[seed]) for seed in seeds]
    if any(a.shape[1] != b.shape[1] or np.isinf(a).any() or np.isinf(b).any() for a, b in both):
        return None
    by_seed = [a.mean(0) - b.mean(0) for a, b in both]
    prompts = [_kept(next(run for run in one if run["seed"] == seed), metric).get(CLUSTERS) for seed in seeds]
    each = _by_prompt(np.concatenate(by_seed), prompts)
    if len(each) < 2:
        return None
    calibration = sum(_spread(rows) for pair in both for rows in pair) / len(seeds) ** 2
    variance = max(each.var(ddof=1) / len(each) + calibration, _spread(np.stack(by_seed)))
    return float(each.mean()), float(variance**0.5)


def _by_seed(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[Any, NDArray[np.float64]] | None:
    """Values [runs, n] by the seed of the noise; None if a run has none."""
    rows: dict[Any, list[Values]] = defaultdict(list)
    for run in runs:
        if (own := values(run, metric)) is None:
            return None
        rows[run["seed"]].append(own)
    if not rows or any(len({len(row) for row in group}) > 1 for group in rows.values()):
        return None
    return {seed: np.stack(group) for seed, group in rows.items()}


def _by_prompt(each: Values, prompts: Sequence[Values | None]) -> Values:
    """Means of each prompt's samples, over all seeds, where prompts are shared: those samples are alike.

    Without the samples that the metric does not judge in all runs, of which the value is NaN.
    """
    known, judged = [found for found in prompts if found is not None], ~np.isnan(each)
    if not known or len(known) < len(prompts) or sum(map(len, known)) != len(each):
        return each[judged]
    member = np.unique(np.concatenate(known)[judged], return_inverse=True)[1]
    return np.bincount(member, each[judged]) / np.bincount(member)


def _spread(rows: NDArray[np.float64]) -> float:
    """Variance of the mean over rows, by the spread of their means; 0 of one row."""
    means = np.nanmean(rows, 1)
    return float(means.var(ddof=1) / len(means)) if len(means) > 1 else 0.0
