"""What OpenVINO cannot multiply as integers with qdit's own codes, of a fitted layer or of a recipe before its fit.

OpenVINO's integer product on CPUs takes inputs of 8 bits that have one scale and zero point a product, and weights with
a scale an output channel. Everything else of a layer is written around that product (`qdit.engine.emitted`), so that
little is left to refuse: what has no integers, what has several scales along the channels, and what changes with the
timestep, since a graph is made once.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from qdit.exports.forms import BRANCH, FACTORS, OFFSETS, OPERANDS, PATCHES, ROTATION, TIMED, Form, form_of
from qdit.nn.attention import Attend
from qdit.nn.linear import QuantLinear
from qdit.nn.switch import TimedLinear
from qdit.quant.spec import QuantSpec

WRITTEN = (FACTORS, OFFSETS, ROTATION, BRANCH, PATCHES)
"""Parts of a layer that are computed in floating point before or behind the product."""
OTHERWISE = "execution=auto"
PARTS = {
    TIMED: ("one weight a layer", OTHERWISE),
    OPERANDS: ("attentions in full precision", "attention=none"),
}
"""What there may be in the place of a part, and what to try."""


class Misfit(NamedTuple):
    """What was found, what there may be instead, and what to try."""

    found: str
    allowed: str
    cure: str = OTHERWISE


def misfits(form: Form) -> Iterator[Misfit]:
    """What of a layer's form OpenVINO has no product of integers for; nothing: it runs."""
    for part in form.parts:
        if part not in WRITTEN:
            yield Misfit(part, *PARTS.get(part, ("inputs that are scaled, shifted or rotated", OTHERWISE)))
    weight, inputs = (None if spec is None or spec.is_identity else spec for spec in (form.weight, form.inputs))
    if weight is None and inputs is None:
        return
    if weight is None or inputs is None:
        side, other = ("weights", "inputs") if weight is None else ("inputs", "weights")
        yield Misfit(f"{side} in full precision beside rounded {other}", "both rounded, or neither", "bits=w8a8")
    if weight is not None:
        yield from _of_weight(weight)
    if inputs is not None:
        yield from _of_inputs(inputs)


def _of_weight(spec: QuantSpec) -> Iterator[Misfit]:
    if not spec.is_integer:
        yield Misfit(f"weights in {spec.grid}", "integers", "weight.grid=asymmetric")
    elif spec.granularity == "group":
        yield Misfit(f"weights in groups of {spec.group_size}", "one scale an output channel", "weight=row")


def _of_inputs(spec: QuantSpec) -> Iterator[Misfit]:
    if (spec.time_groups or 1) > 1:
        yield Misfit(f"inputs with {spec.time_groups} groups of timesteps", "one range", "activation/time=one")
    if not spec.is_integer:
        yield Misfit(f"inputs in {spec.grid}", "integers of one grid", "activation=tensor")
    elif spec.granularity not in ("tensor", "row"):
        yield Misfit(f"inputs in {spec.granularity}s", "one scale a tensor or a token", "activation=token")
    if spec.columns:
        yield Misfit("two grids side by side in an input", "one", "activation.columns=joined")


def problem(forms: Mapping[str, Form]) -> str | None:
    """Why OpenVINO cannot run some layers: every kind of misfit, the first layer that has it, and how many more do.

    Args:
        forms: by the name of the layer.
    """
    found: dict[Misfit, list[str]] = {}
    for name, form in forms.items():
        for misfit in misfits(form):
            found.setdefault(misfit, []).append(name)
    told = "; ".join(map(_told, found, found.values()))
    return f"execution=openvino cannot run this recipe: {told}" if found else None


def _told(misfit: Misfit, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"{names[0]}{more}: {misfit.found}, where it takes {misfit.allowed} (try {misfit.cure})"


def forms_in(network: nn.Module) -> dict[str, Form]:
    """The forms of what is quantized in a network, by path."""
    found: dict[str, Form] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, form in found.items() if TIMED in form.parts)
        if isinstance(module, QuantLinear | TimedLinear | Attend) and not inside:
            found[name] = form_of(module)
    return found
