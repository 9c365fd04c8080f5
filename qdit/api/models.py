"""Quantize, save and load models that are in memory: transformers of stock diffusers pipelines, and qdit's own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from qdit.api.adapters import adapter_of, network_of
from qdit.api.checks import check_data, check_numbers, check_unquantized
from qdit.api.compose import composed_recipe
from qdit.calibration import CalibrationData
from qdit.calibration.trajectories import Trajectories
from qdit.checked import Whole
from qdit.checkpoint import checkpoint, installed
from qdit.checkpoint.checkpoint import transform_of
from qdit.checkpoint.diffusers import QditConfig, QditQuantizer
from qdit.checkpoint.manifest import Manifest
from qdit.environment import versions
from qdit.errors import UserError
from qdit.execution import stamp
from qdit.ledger import RunTime
from qdit.method import Method
from qdit.method import quantize as fit
from qdit.model.adapter import moved
from qdit.model.base import DiffusionModel
from qdit.model.loaded import Loaded
from qdit.model.loaded_text import LoadedText
from qdit.quantized import Quantized
from qdit.runs.versions import versioned
from qdit.setting import Setting
from qdit.storage.digest import digest
from qdit.storage.shelf import Shelf
from qdit.storage.tensors import tensors_digest

Model = TypeVar("Model")


def quantize(
    model: Model,
    recipe: str | Method = "q_dit",
    *overrides: str,
    bits: str = "w4a8",
    data: CalibrationData | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Model:
    """Quantize a transformer in place, by the same code as a run.

    From then on every call of it is quantized, whoever calls, and `save_pretrained` saves it so.

    Args:
        model: a diffusers transformer, such as `pipe.transformer`, or a model of qdit's.
        recipe: a name (see `qdit.recipe`), or what `qdit.recipe` returned.
        overrides: the command line's words, with a name.
        bits: of weights and inputs, with a name.
        data: of `qdit.calibrate`; None where the recipe needs none.
        seed: of a search.
        cache_dir: where finished blocks of a long rounding are kept, to go on after a kill; None keeps none.

    Returns:
        `model`, for convenience.

    Raises:
        UserError: there is no adapter for the model, it is quantized already, the recipe is unknown, does not fit
            it or needs data, or the data is of another model.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> qdit.quantize(pipe.transformer, "rtn", bits="w8a8") is pipe.transformer
    True
    >>> qdit.policy(pipe.transformer)["transformer_blocks.0.attn1.to_q"].weight.bits
    8
    """
    network = network_of(model)
    check_unquantized(network)
    check_numbers({"seed": Whole}, {"seed": seed})
    given = data if isinstance(data, Trajectories) else None
    if isinstance(recipe, str):
        # What a recipe has once a step (TFMQ-DM's ranges) it has for the steps of the data.
        steps = (f"sampler.steps={len(given.timesteps)}",) if given is not None else ()
        method, config = composed_recipe(recipe, (*steps, *overrides), bits)
    elif overrides:
        raise UserError("words are for a recipe's name: give them to qdit.recipe")
    else:
        method, config = recipe, None
    if method.correction is not None:
        raise UserError(
            "this recipe corrects the sampler, which is not in the transformer: leave it out (correction=none), or "
            "sample by qdit.run"
        )
    adapter = adapter_of(model, **(given.facts if given is not None else {}))
    seeing = adapter.having(given.table) if isinstance(adapter, LoadedText) and given is not None else adapter
    check_data(network, seeing, data)
    if given is not None and isinstance(seeing, Loaded):
        seeing.complete(given.autoencoder, given.schedule)  # a search samples, and PixArt-α is told the image's size
        given.sampler.inform(seeing)
    place = None
    if cache_dir is not None:
        about: dict[str, Any] = {"recipe": _described(method, config), "weights": tensors_digest(network.state_dict())}
        rows = given.table.rows if given is not None and given.table is not None else {}
        about["data"] = tensors_digest({"x": data.x, "t": data.t, "y": data.y} | rows) if data is not None else ""
        made = stamp(adapter.device, execution=True)
        place = Shelf(Path(cache_dir) / "rounding" / digest(about), about, made, shared=True)
    quantized = fit(
        seeing,
        method,
        cache(_collector(method, data, seeing)),
        place,
        _setting(method, data, seed, Path(cache_dir or "cache")),
    )
    about = {"config": config} if config is not None else {}
    _install(adapter, quantized, method.run_time(adapter), about)
    return model


def _described(method: Method, config: dict[str, Any] | None) -> dict[str, Any] | str:
    """What finished blocks are kept under: what a recipe says, without newer keys and fields that change nothing."""
    return repr(method) if config is None else versioned(config, config)


def _collector(method: Method, data: CalibrationData | None, model: DiffusionModel) -> Callable[[], CalibrationData]:
    def collect() -> CalibrationData:
        if data is None:
            raise UserError("this recipe needs calibration data: give data=qdit.calibrate(pipe)")
        return data.picked(method.calibration, model) if isinstance(data, Trajectories) else data

    return collect


def _setting(method: Method, data: CalibrationData | None, seed: int, cache_dir: Path) -> Setting | None:
    """What is around a search; the trajectories say it.

    Raises:
        UserError: there is a search, and no trajectories.
    """
    if method.search is None:
        return None
    if not isinstance(data, Trajectories):
        raise UserError("this recipe searches, and samples for it: give data=qdit.calibrate(pipe), or use qdit.run")
    dataset = data.dataset
    prepared = method.search.preflight(dataset, cache_dir, seed)
    return Setting(sampler=data.sampler, dataset=data.dataset, seed=seed, prepared=prepared)


def _install(adapter: DiffusionModel, quantized: Quantized, left: list[RunTime], about: dict[str, Any]) -> None:
    network: Any = adapter.denoiser
    about = {"versions": versions()} | about
    if isinstance(adapter, Loaded):
        about |= adapter.facts
    installed.install(adapter, quantized, left, about, QditQuantizer(QditConfig(model=network)))


def full_precision(model: Any) -> Any:
    """A context in which a quantized model is the original, bit for bit.

    Args:
        model: that `quantize` or `load` has quantized.

    Raises:
        UserError: it is not quantized, or was read from a folder, which has no original.

    >>> import qdit
    >>> transformer = qdit.quantize(qdit.embedded().transformer, "rtn")
    >>> with qdit.full_precision(transformer):
    ...     type(transformer.proj_out_2).__name__, type(transformer.transformer_blocks[0].ff.net[2]).__name__
    ('Linear', 'Linear')
    >>> type(transformer.transformer_blocks[0].ff.net[2]).__name__
    'QuantLinear'
    """
    return installed.full_precision(network_of(model))


def dequantize(model: Model) -> Model:
    """Put the original back into a quantized model for good.

    Args:
        model: that `quantize` or `load` has quantized.

    Raises:
        UserError: it is not quantized, or was read from a folder, which has no original.

    >>> import qdit
    >>> transformer = qdit.quantize(qdit.embedded().transformer, "rtn")
    >>> type(qdit.dequantize(transformer).transformer_blocks[0].ff.net[2]).__name__
    'Linear'
    """
    installed.remove(network_of(model))
    return model


def save(model: Any, folder: str | Path) -> None:
    """Save what is different from the original, as a run does: the original is needed to load it.

    `save_pretrained` of the pipeline saves a folder that stands alone.

    Args:
        model: that `quantize` or `load` has quantized.
        folder: of `quantized.json` and `quantized.safetensors`; a checkpoint that is there is replaced.

    Raises:
        UserError: the model is not quantized, or has no original.

    >>> import qdit, tempfile
    >>> pipe, folder = qdit.embedded(), tempfile.mkdtemp()
    >>> qdit.save(qdit.quantize(pipe.transformer, "rtn"), folder)
    >>> _ = qdit.load(folder, qdit.dequantize(pipe.transformer))
    >>> len(qdit.policy(pipe.transformer))
    48
    """
    network = network_of(model)
    state = installed.needed(network)
    with installed.full_precision(network):
        about = checkpoint.provenance(moved(state.adapter), **{k: v for k, v in state.about.items() if k == "config"})
    Path(folder).mkdir(parents=True, exist_ok=True)
    checkpoint.save(state.quantized, Path(folder), about)


def load(folder: str | Path, model: Model) -> Model:
    """Quantize a model in place by a checkpoint: no data, no recipe, and the outputs of the model that was saved.

    Args:
        folder: that `save` wrote, or of a run.
        model: the original of the one that was saved, in full precision.

    Returns:
        `model`, for convenience.

    Raises:
        UserError: there is no checkpoint, it is damaged or of another model, or corrects the sampler.
    """
    check_unquantized(network_of(model))
    adapter, manifest = adapter_of(model), Manifest.read(folder)
    quantized = checkpoint.load(manifest.folder, adapter)
    if quantized.correction is not None:
        raise UserError(f"{folder} corrects the sampler, which is not in the transformer: use qdit quantizer=load")
    left, found = [], transform_of(manifest)
    if found is not None:
        transform, names = found
        left = transform.run_time(adapter, [site for site in adapter.sites() if site.name in set(names)])
    config = manifest.content["provenance"].get("config")
    _install(adapter, quantized, left, {"config": config} if config is not None else {})
    return model
