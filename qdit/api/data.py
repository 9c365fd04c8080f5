"""Calibration data of models that are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from qdit.api.adapters import protocol_of
from qdit.api.checks import check_numbers
from qdit.calibration.trajectories import Trajectories, trajectories
from qdit.checked import Samples, Whole
from qdit.checkpoint import installed
from qdit.errors import UserError
from qdit.model.loaded_text import LoadedText
from qdit.storage.tensors import tensors_digest


def calibrate(
    pipe: Any,
    conditions: Sequence[int] | Sequence[str] | np.ndarray | Tensor | None = None,
    *overrides: str,
    num_samples: int = 64,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Trajectories:
    """Sample trajectories in full precision, of which recipes pick the points that they see.

    Args:
        pipe: a diffusers pipeline, quantized or not. Of a class-conditional one the scheduler says how the training's
            noise was, and steps are taken by qdit's sampler; one that reads prompts takes its scheduler's.
        conditions: classes or prompts, repeated in order. None draws classes, all alike, or as `dataset=emoji` does;
            or takes the 32 prompts that come with qdit.
        overrides: the command line's words for the sampler, the data set (`dataset.file=captions.txt`,
            `dataset.negative=blurry`) and `batch_size`.
        num_samples: of trajectories; every step of each is kept, x_t [num_samples · steps, C, h, w] in float32, and
            what the text encoder made of each prompt.
        steps: of the sampler; None is its own: 20 of DDIM, or those of the pipeline's call.
        guidance: above 1 is classifier-free guidance; None is the sampler's own: 2, or that of the pipeline's call.
        seed: of noise and classes.

    Raises:
        UserError: there is no adapter for the pipeline, it has no text encoder, or a value is out of range.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> data = qdit.calibrate(pipe, num_samples=2, steps=4)
    >>> data, tuple(data.x.shape), data.timesteps
    (Trajectories(2 × 4 states (4, 8, 8)), (8, 4, 8, 8), [0, 250, 500, 750])
    """
    check_numbers({"num_samples": Samples, "seed": Whole}, {"num_samples": num_samples, "seed": seed})
    if isinstance(conditions, np.ndarray | Tensor):
        conditions = conditions.tolist()
    if isinstance(conditions, str) or not isinstance(conditions, Sequence | None):
        raise UserError(f"conditions={conditions!r:.80} is one, and a list is needed, such as [{conditions!r:.80}]")
    given = {"sampler.steps": steps, "sampler.guidance": guidance}
    words = (*overrides, *(f"{key}={value}" for key, value in given.items() if value is not None))
    prompts = None if conditions is None else [each for each in conditions if isinstance(each, str)]
    model, sampler, dataset, config = protocol_of(pipe, words, prompts)
    reads = isinstance(model, LoadedText)
    whole = all(isinstance(each, str | Integral) and not isinstance(each, bool) for each in conditions or ())
    if conditions is not None and (not whole or len(prompts or ()) != (len(conditions) if reads else 0)):
        what = "prompts, which are texts" if reads else f"classes, which are numbers of 0 to {model.num_classes - 1}"
        raise UserError(f"conditions={list(conditions)!r:.80}; a {type(pipe).__name__} takes {what}")
    classes = None if conditions is None else list(range(len(conditions))) if reads else [int(c) for c in conditions]
    if classes == [] or any(not 0 <= each < model.num_classes for each in classes or ()):
        raise UserError(f"conditions={conditions}; at least one class of 0 to {model.num_classes - 1} is needed")
    with _unquantized(pipe.transformer):
        weights = tensors_digest(pipe.transformer.state_dict())
        return trajectories(model, sampler, dataset, num_samples, seed, config["batch_size"], weights, classes)


@contextmanager
def _unquantized(network: Any) -> Iterator[None]:
    """Full precision while the context lasts, which it may be already."""
    if installed.state_of(network) is None:
        yield
    else:
        with installed.full_precision(network):
            yield
