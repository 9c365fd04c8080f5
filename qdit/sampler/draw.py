"""Draw a few samples in memory, for a search, a notebook, or whoever else compares models without a run's folder."""

from collections.abc import Callable

from torch import Tensor

from qdit.dataset.base import Source
from qdit.eval.samples import Drawn, no_extractor
from qdit.model.base import DiffusionModel
from qdit.model.pipeline import Called
from qdit.sampler.own_call import OwnCall
from qdit.sampler.sampler import Sampler


def draw(
    model: DiffusionModel | Called,
    sampler: Sampler | OwnCall,
    source: Source,
    *,
    count: int,
    batch_size: int,
    seed: int,
    first: int = 0,
    extract: Callable[[str], Callable[[Tensor], dict[str, Tensor]]] = no_extractor,
) -> Drawn:
    """The samples `first` … `first + count - 1` of a model as it is now, with what they were asked to show.

    Args:
        model: in full precision or quantized.
        sampler: makes the latents; they are kept in float32 on the CPU.
        source: of the conditions.
        count: how many.
        batch_size: samples drawn at a time.
        seed: of all noise and of the conditions; samples of two models are pairs if theirs is the same.
        first: the number of the first sample, by which a search has other noise than the evaluation (`qdit.seeding`).
        extract: extractor name -> (images -> features by name); without, the samples are for metrics of pairs alone.

    Raises:
        UserError: the sampler does not fit the model.
    """
    batches = list(source.batches(first, count, batch_size, seed))
    chunks = [sampler.sample(model, *batch, seed).float().cpu() for batch in batches]  # pyright: ignore[reportArgumentType] - a sampler checks that it fits
    asked = source.asked([number for _, labels in batches for number in labels.tolist()])
    return Drawn(
        chunks,
        model.decode,
        extract,
        prompts=asked["prompts"] or (),
        clusters=asked["clusters"],
        framewise=model.framewise,
        frames_per_second=model.frames_per_second,
    )
