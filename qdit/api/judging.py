"""Judge a pipeline in memory that others quantized."""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import pandas as pd

from qdit.api.adapters import classes_of, names_data
from qdit.api.compose import composed
from qdit.api.measures import compared, extractors_of, paired_metrics
from qdit.config import build, check, resolved
from qdit.dataset.base import Source
from qdit.dataset.prompts import Prompts, unshown
from qdit.errors import UserError
from qdit.keys import RECIPE_KEYS
from qdit.model.pipeline import Called
from qdit.runs.external import unpaired
from qdit.sampler.draw import draw

OPTION = ("model=pipeline", "model.path=in-memory", "model.against=in-memory")


def judge(
    pipe: Any,
    against: Any,
    *overrides: str,
    prompts: Sequence[str] | None = None,
    n: int = 16,
    metrics: Sequence[str] = ("sqnr", "psnr"),
    seed: int = 0,
) -> pd.DataFrame:
    """How close a pipeline's samples are to another's, both by their own call, on the same noise and conditions.

    Neither needs an adapter of qdit's: any pipeline of diffusers with a transformer and an autoencoder does, whoever
    quantized it and however.

    Args:
        pipe: what is judged.
        against: the same pipeline in full precision.
        overrides: the command line's words, such as `sampler.steps=20` or `sampler.guidance=4.5`.
        prompts: to be sampled; None are those of the data set, or a pipeline's own classes.
        n: samples; the error bars are over them.
        metrics: paired options of `conf/eval`.
        seed: of noise and classes.

    Returns:
        A row a metric: `value`, `stderr`, `n`, `higher_is_better`; see `qdit.fidelity`.

    Raises:
        UserError: the two cannot have the same noise, the words do not fit the call, or a metric is not paired.

    >>> import qdit
    >>> pipe, full = qdit.embedded(), qdit.embedded()
    >>> _ = qdit.quantize(pipe.transformer, "rtn", bits="w8a8")
    >>> bool(qdit.judge(pipe, full, "sampler.steps=2", n=2, metrics=["sqnr"]).value["sqnr"] > 20)
    True
    """
    reads = "prompt" in signature(type(pipe).__call__).parameters
    config = resolved(composed(*OPTION, *overrides, f"eval=[{','.join(metrics)}]"))
    check({key: value for key, value in config.items() if key not in RECIPE_KEYS})
    measures, sampler, dataset = paired_metrics(config, n, seed), build(config["sampler"]), build(config["dataset"])
    if isinstance(dataset, Prompts) and prompts is not None:
        dataset = dataset.showing(prompts)
    texts = dataset.texts if isinstance(dataset, Prompts) and (reads or names_data(overrides)) else None
    judged, full = Called(pipe, texts), Called(against, texts)
    source: Source = classes_of(judged) if not (reads or names_data(overrides)) else dataset
    problems = sampler.check(judged) + source.check(judged)  # pyright: ignore[reportArgumentType]
    if problems := problems + unshown(source, sampler.hides_null(judged)) + unpaired(judged, full):
        raise UserError(*problems)

    drawn = partial(
        draw,
        sampler=sampler,
        source=source,
        count=n,
        batch_size=config["batch_size"],
        seed=seed,
        extract=extractors_of(measures, judged.device),
    )
    return compared(measures, drawn(judged), drawn(full))
