"""How qdit sees models that are in memory, and the protocol that words of the command line describe for them."""

from typing import Any

from qdit import compat as compat
from qdit.api.compose import composed
from qdit.assets import EMBEDDED
from qdit.checkpoint import installed
from qdit.config import build, check, resolved
from qdit.dataset.base import Dataset, Source
from qdit.dataset.labels import RandomLabels
from qdit.errors import UserError
from qdit.model.adapter import Listener, adapt, completed, moved
from qdit.model.base import DiffusionModel
from qdit.model.files import read_config
from qdit.nn.clock import Clock


def network_of(model: Any) -> Any:
    """The network of a diffusers transformer, which is itself, or of a qdit model."""
    return getattr(model, "denoiser", model)


def adapter_of(model: Any) -> DiffusionModel:
    """How qdit sees a model: one of its own as it is, a transformer by the adapter for its class.

    Raises:
        UserError: there is none for it.
    """
    network = network_of(model)
    if (state := installed.state_of(network)) is not None:
        return moved(state.adapter)
    return model if network is not model else adapt(model)


def pipeline_adapter(pipe: Any) -> DiffusionModel:
    """How qdit sees a pipeline, which can decode and knows its noise schedule.

    Raises:
        UserError: it is no pipeline, or of a family without adapter.
    """
    if missing := [part for part in ("transformer", "vae", "scheduler") if getattr(pipe, part, None) is None]:
        raise UserError(f"a {type(pipe).__name__} is no pipeline of diffusers: it has no {missing[0]}")
    return completed(adapter_of(pipe.transformer), pipe)


def protocol_of(model: DiffusionModel, words: tuple[str, ...]) -> tuple[Any, Source, dict[str, Any]]:
    """The sampler, the data set and the config of the command line's words; without a word for it, the data set is
    the model's classes, all alike.

    Raises:
        UserError: the words are wrong, or do not fit the model.
    """
    config = resolved(composed(*words))
    check(config)
    sampler = build(config["sampler"])
    if any(word.lstrip("+").startswith("dataset") for word in words):
        dataset: Source = build(config["dataset"])
    else:
        about = {"name": "classes", "num_classes": model.num_classes, "image_size": model.image_size}
        dataset = Dataset(**about, reference="none", strategy=RandomLabels())
    if problems := sampler.check(model) + dataset.check(model):
        raise UserError(*problems)
    return sampler, dataset, config


def embedded() -> Any:
    """The embedded model as a stock `DiTPipeline`, ready to be called: 32×32 emoji of 99 classes.

    Its folder leaves `out_channels` open, which `DiTPipeline` cannot read, and has 99 classes, where `DiTPipeline` says
    1000 for none; both are put right here.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> pipe.set_progress_bar_config(disable=True)
    >>> pipe([pipe.labels["cat-face"]], num_inference_steps=2).images[0].size
    (32, 32)
    """
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

    names = {int(label): name for label, name in read_config(EMBEDDED, "model_index.json")["id2label"].items()}
    pipe: Any = DiTPipeline.from_pretrained(EMBEDDED, id2label=names, low_cpu_mem_usage=False)
    network = pipe.transformer.eval().requires_grad_(False)
    network.register_to_config(out_channels=network.config.in_channels)
    Listener(Clock(), network.config.num_embeds_ada_norm).listen(network)
    return pipe
