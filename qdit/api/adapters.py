"""How qdit sees models that are in memory, and the protocol that words of the command line describe for them."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from qdit import compat as compat
from qdit.api.compose import composed
from qdit.assets import EMBEDDED, MODELS, PREFIX
from qdit.checkpoint import installed
from qdit.config import build, check, resolved
from qdit.dataset.base import Dataset, Source
from qdit.dataset.labels import RandomLabels
from qdit.dataset.prompts import Prompts, unshown
from qdit.errors import UserError, did_you_mean
from qdit.model.adapter import Listener, adapt, completed, moved
from qdit.model.base import DiffusionModel
from qdit.model.conditions import encoded
from qdit.model.files import locate, read_config
from qdit.model.loaded_text import LoadedText
from qdit.model.silence import without_bars
from qdit.nn.clock import Clock


def network_of(model: Any) -> Any:
    """The network of a diffusers transformer, which is itself, or of a qdit model."""
    return getattr(model, "denoiser", model)


def adapter_of(model: Any, **about: Any) -> DiffusionModel:
    """How qdit sees a model: one of its own as it is, a transformer by the adapter for its class.

    Args:
        model: in full precision or quantized.
        about: see `qdit.model.adapter.adapt`.

    Raises:
        UserError: there is none for it.
    """
    network = network_of(model)
    if (state := installed.state_of(network)) is not None:
        return moved(state.adapter)
    return model if network is not model else adapt(model, **about)


def pipeline_adapter(pipe: Any) -> DiffusionModel:
    """How qdit sees a pipeline, which can decode and knows its noise schedule; of one that reads prompts, without any.

    Raises:
        UserError: it is no pipeline, or of a family without adapter.
    """
    if missing := [part for part in ("transformer", "vae", "scheduler") if getattr(pipe, part, None) is None]:
        what = "is no pipeline of diffusers" if len(missing) == 3 else "is no pipeline with a diffusion transformer"
        raise UserError(f"a {type(pipe).__name__} {what}: it has no {missing[0]}")
    return completed(adapter_of(pipe.transformer, pipe=pipe), pipe)


def protocol_of(
    pipe: Any, words: tuple[str, ...], prompts: Sequence[str] | None = None
) -> tuple[Any, Any, Source, dict[str, Any]]:
    """What samples a pipeline as the command line's words say, and as its own defaults are where they say nothing.

    A class-conditional pipeline has qdit's sampler and its own classes, all alike; one that reads prompts has its
    scheduler with the steps and the guidance of its call, and the list of prompts that comes with qdit.

    Args:
        pipe: of diffusers.
        words: of the command line.
        prompts: to be sampled, instead of those of the data set.

    Returns:
        The adapter (with the prompts encoded), the sampler, the data set and the config.

    Raises:
        UserError: the words are wrong, or do not fit the model.
    """
    model = pipeline_adapter(pipe)
    if isinstance(model, LoadedText):
        config = resolved(composed(*_defaults(pipe, model, words), *words))
        check(config)
        dataset: Source = build(config["dataset"])
        if isinstance(dataset, Prompts) and prompts is not None:
            dataset = dataset.showing(prompts)
        model = reading(model, pipe, dataset)
    else:
        config = resolved(composed(*words))
        check(config)
        dataset = build(config["dataset"]) if names_data(words) else classes_of(model)
    sampler = build(config["sampler"])
    if problems := sampler.check(model) + dataset.check(model) + unshown(dataset, sampler.hides_null(model)):
        raise UserError(*problems)
    sampler.inform(model)
    return model, sampler, dataset, config


def names_data(words: Sequence[str]) -> bool:
    """Whether words say which data set."""
    return any(word.lstrip("+").startswith("dataset") for word in words)


def classes_of(model: Any) -> Dataset:
    """A model's own classes, all alike."""
    about = {"name": "classes", "num_classes": model.num_classes, "image_size": model.image_size}
    return Dataset(**about, reference="none", strategy=RandomLabels())


def _defaults(pipe: Any, model: LoadedText, words: tuple[str, ...]) -> list[str]:
    """Words for the sampler and the prompts of a pipeline that reads some, where none are given."""
    own = signature(type(pipe).__call__).parameters
    given = {word.lstrip("+").partition("=")[0] for word in words}
    found = ["dataset=prompts"] if "dataset" not in given else []
    if "sampler" in given:
        return found
    values = {"steps": own.get("num_inference_steps"), "guidance": own.get(model.guidance_word)}
    usual = {key: value.default for key, value in values.items() if value is not None}
    if pipe.config.get("is_distilled"):  # its call ignores the scale
        usual["guidance"] = 1.0
    told = [f"sampler.{key}={value}" for key, value in usual.items()]
    return [*found, "sampler=pixart", "sampler.name=pipeline", *told]


def reading(model: LoadedText, pipe: Any, dataset: Source) -> LoadedText:
    """A copy of an adapter that has the prompts of a data set, encoded by its pipeline.

    Raises:
        UserError: the data set has classes, or the pipeline has no text encoder.
    """
    if not isinstance(dataset, Prompts):
        raise UserError(f"a {type(pipe).__name__} reads prompts, and dataset={dataset.name} has classes")
    if getattr(pipe, "text_encoder", None) is None or getattr(pipe, "tokenizer", None) is None:
        raise UserError(
            f"this {type(pipe).__name__} has no text encoder, and its prompts cannot be encoded: load the whole "
            "pipeline, or use qdit.run, which keeps encoded prompts"
        )
    return model.having(encoded(dataset.texts, model.encoder_of(pipe, model.text_length)))


def embedded(name: str = "emoji_dit") -> Any:
    """A model that comes with qdit as a stock pipeline, ready to be called.

    `emoji_dit` is a `DiTPipeline`: 32×32 emoji of 99 classes. Its folder leaves `out_channels` open, which the
    pipeline cannot read, and has 99 classes, where the pipeline says 1000 for none; both are put right here.
    `emoji_pixart` is a `PixArtAlphaPipeline`: 32×32 emoji by their names, which needs `qdit[text]`; call it with
    `max_sequence_length=12, use_resolution_binning=False, clean_caption=False, guidance_scale=3.0`.
    `emoji_latte` is a `LattePipeline`: clips of 8 frames of 32×32, "rocket moves up"; it needs `qdit[text]`, too, and
    one prompt a call: `video_length=8, height=32, width=32, clean_caption=False, guidance_scale=3.0`.

    Raises:
        UserError: there is no such model.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> pipe.set_progress_bar_config(disable=True)
    >>> pipe([pipe.labels["cat-face"]], num_inference_steps=2).images[0].size
    (32, 32)
    """
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if name not in (known := ["emoji_dit", *sorted(each.parent.name for each in MODELS.glob("*/model_index.json"))]):
        raise UserError(
            f"there is no embedded model {name!r}; there are {', '.join(known)}{did_you_mean(str(name), known)}"
        )
    if name != "emoji_dit":
        folder = locate(PREFIX + name, None, "name", [])
        with without_bars():
            pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.transformer.eval().requires_grad_(False)
        return pipe
    names = {int(label): name for label, name in read_config(EMBEDDED, "model_index.json")["id2label"].items()}
    with without_bars():
        pipe = DiTPipeline.from_pretrained(EMBEDDED, id2label=names, low_cpu_mem_usage=False)
    network = pipe.transformer.eval().requires_grad_(False)
    network.register_to_config(out_channels=network.config.in_channels)
    Listener(Clock(), network.config.num_embeds_ada_norm).listen(network)
    return pipe
