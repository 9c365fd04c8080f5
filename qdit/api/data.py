"""Calibration data of models that are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qdit.api.adapters import pipeline_adapter, protocol_of
from qdit.calibration.trajectories import Trajectories, trajectories
from qdit.checkpoint import installed
from qdit.errors import UserError
from qdit.storage.tensors import tensors_digest


def calibrate(
    pipe: Any,
    conditions: Sequence[int] | None = None,
    *overrides: str,
    num_samples: int = 64,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Trajectories:
    """Sample trajectories in full precision, of which recipes pick the points that they see.

    Args:
        pipe: a diffusers pipeline, quantized or not. Its scheduler says how the training's noise was; steps are taken
            by qdit's sampler.
        conditions: classes, repeated in order; None draws them, all alike, or as `dataset=emoji` does.
        overrides: the command line's words for the sampler, the data set and `batch_size`.
        num_samples: of trajectories; every step of each is kept, x_t [num_samples · steps, C, h, w] in float32.
        steps: of the sampler; None is the sampler's own, 20 of DDIM.
        guidance: above 1 is classifier-free guidance; None is the sampler's own, 2.
        seed: of noise and classes.

    Raises:
        UserError: there is no adapter for the pipeline, or a value is out of range.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> data = qdit.calibrate(pipe, num_samples=2, steps=4)
    >>> data, tuple(data.x.shape), data.timesteps
    (Trajectories(2 × 4 states (4, 8, 8)), (8, 4, 8, 8), [0, 250, 500, 750])
    """
    given = {"sampler.steps": steps, "sampler.guidance": guidance}
    words = (*overrides, *(f"{key}={value}" for key, value in given.items() if value is not None))
    model = pipeline_adapter(pipe)
    sampler, dataset, config = protocol_of(model, words)
    classes = None if conditions is None else [int(each) for each in conditions]
    if num_samples < 1 or classes == [] or any(not 0 <= each < model.num_classes for each in classes or ()):
        raise UserError(
            f"num_samples={num_samples}, conditions={conditions}; at least one sample, of classes 0 to "
            f"{model.num_classes - 1}, is needed"
        )
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
