"""What models and data in memory are refused for before anything is done to them."""

from collections.abc import Mapping
from typing import Any

from qdit import checked
from qdit.calibration import CalibrationData
from qdit.calibration.trajectories import Trajectories
from qdit.checkpoint import installed
from qdit.errors import UserError
from qdit.model.base import DiffusionModel
from qdit.model.loaded_text import LoadedText
from qdit.storage.tensors import tensors_digest


def check_numbers(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse arguments that are not what their annotations allow.

    Raises:
        UserError: with a sentence for each.
    """
    if problems := checked.problems(hints, values):
        raise UserError(*problems)


def check_unquantized(network: Any) -> None:
    """Refuse a network that is quantized.

    Raises:
        UserError: it is.
    """
    if (state := installed.state_of(network)) is not None:
        name = (state.about.get("config") or {}).get("name", "by qdit")
        raise UserError(f"the model is quantized already ({name}); qdit.dequantize(model) puts the original back")
    if getattr(network, "hf_quantizer", None) is not None:
        method = network.hf_quantizer.quantization_config.quant_method
        raise UserError(f"the model is quantized already, by {getattr(method, 'value', method)}: give the original")


def check_data(network: Any, adapter: DiffusionModel, data: CalibrationData | None) -> None:
    """Refuse data of another model.

    Raises:
        UserError: it is.
    """
    if data is None:
        return
    if isinstance(adapter, LoadedText) and not adapter.null_class:
        raise UserError("this model reads prompts, and the data has none: give data=qdit.calibrate(pipe)")
    if tuple(data.x.shape[1:]) != adapter.latent_shape or int(data.y.max()) > adapter.null_class:
        raise UserError(
            f"the data is of another model: states {tuple(data.x.shape[1:])}, classes to {int(data.y.max())}; this one "
            f"has states {adapter.latent_shape}, classes to {adapter.null_class}. Calibrate this one"
        )
    if isinstance(data, Trajectories) and data.weights != tensors_digest(network.state_dict()):
        raise UserError("the data is of a model with other weights, or in another dtype: calibrate this one")
