"""Runs and their records, as `qdit` and `qdit-table` make and show them."""

from pathlib import Path
from typing import Any

import pandas as pd

from qdit.api.compose import composed
from qdit.errors import UserError
from qdit.runs.run import run as carry_out
from qdit.tables import Table, build_table, differences, load_results


def run(*overrides: str) -> dict[str, Any] | None:
    """Carry out one run, as the command line `qdit` does; the same words again are the resume.

    Args:
        overrides: the command line's words. Sweeps (`-m`, `grid=`) are the command line's alone.

    Returns:
        The record, which also lies in the run's folder as `result.json`; None with `dry=true`.

    Raises:
        UserError: the words make no run, or it cannot be carried out here.

    >>> import qdit
    >>> qdit.run("quantizer=rtn", "bits=w4a4", "dry=true")    # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    rtn-w4a4 ...
    """
    return carry_out(composed(*overrides))


def results(runs_dir: str | Path = "runs", study: str | None = None) -> pd.DataFrame:
    """The records below a folder: a row a run, a column a metric, a cost or a key of the config.

    Args:
        runs_dir: where runs were made.
        study: one of its folders; None is all.

    Raises:
        UserError: there is no record, or one is of another schema.

    >>> import qdit
    >>> frame = qdit.results("experiments/comparison/results", "methods")
    >>> frame.loc[frame[frame.bits == "w4a4"].sqnr.idxmax(), "quantizer"]
    'qdit_w4a4'
    """
    return load_results(runs_dir, study)


def table(frame: pd.DataFrame, **layout: Any) -> Table:
    """A table of runs, with what is best and what cannot be told apart from it marked.

    Args:
        frame: of `results`, perhaps narrowed.
        layout: `rows`, `cols`, `metrics`, `seeds`, `mix_protocols`, `group_by`: see `qdit.tables.build_table`.

    Raises:
        UserError: the runs mix protocols, or a name is unknown.

    >>> import qdit
    >>> from qdit.tables import render
    >>> shown = qdit.table(qdit.results("experiments/comparison/results", "methods"), cols="bits", metrics=["sqnr"])
    >>> render(shown, "markdown").splitlines()[0].split()[1]
    'quantizer'
    """
    return build_table(frame, **layout)


def difference(one: pd.DataFrame, other: pd.DataFrame, metric: str = "sqnr") -> tuple[float, float]:
    """The mean over samples of a paired metric of one method minus that of another, and its standard error.

    Sample i has the same noise and class in both, so what they share cancels, sample by sample: the error is a
    fraction of that of either mean.

    Args:
        one: the rows of `results` of a method: one, or several seeds of noise or of calibration.
        other: those of the method that it is compared with.
        metric: that was measured sample by sample.

    Returns:
        Both in the metric's unit, which is dB for sqnr.

    Raises:
        UserError: the runs mix protocols, the samples' values were not kept, or the rows have other seeds.

    >>> import qdit
    >>> runs = qdit.results("experiments/comparison/results", "methods").query("bits == 'w4a8'")
    >>> mean, stderr = qdit.difference(runs.query("quantizer == 'svdquant'"), runs.query("quantizer == 'rtn'"))
    >>> mean > 5 * stderr
    True
    """
    both = pd.concat([one, other])  # a protocol has one id a seed
    if (protocols := max(len(set(own["protocol_id"])) for _, own in both.groupby("seed"))) > 1:
        raise UserError(f"the runs are of {protocols} protocols, whose samples are no pairs: narrow them to one")
    found = differences.difference(one.to_dict("records"), other.to_dict("records"), metric)  # pyright: ignore
    if found is None:
        raise UserError(
            f"{metric} was not kept sample by sample in both, or their seeds are not the same: a difference is of a "
            "paired metric, such as sqnr, of runs that have the same seeds"
        )
    return found
