"""The tensors of torchao that a layer of qdit can become, with the layer's own codes, scales and zero points.

Each kind says what of a layer's form it has no place for, and makes the tensor of a layer for which that is nothing.

* `Int8Tensor` multiplies integers: a weight without zero points, and inputs of 8 bits, whose factors it applies itself
  (`act_pre_scale`). Its symmetric inputs have a step of max / 127.5, which is qdit's grid `symmetric_full`; `symmetric`
  has max / 127. Beside inputs in full precision a weight in groups is dequantized first, with its zero points.
* `IntxUnpackedToInt8Tensor` holds any integers of up to 8 bits, a byte each, with zero points and groups, and
  multiplies in floating point. torchao's list of what a file may hold leaves out the name of its rounding of inputs, an
  Enum that is a text, too: the text itself is written, which is allowed and compares equal.

Read in torchao 0.18.0. Left out: packed 4-bit tensors, which run on accelerators alone, and formats with levels.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdit.exports.forms import FACTORS, Form, steps
from qdit.nn.basis import Scale
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import Affine

PER_TOKEN = "int8_asym_per_token"
HALF = 128
"""What codes of 8 bits are moved by, from 0 … 255 to -128 … 127."""


class Lack(NamedTuple):
    """What a kind has no place for."""

    what: str
    """In the words that stand behind "has no"."""
    cure: str | None = None
    """A word of the command line that does without it."""

    def __str__(self) -> str:
        return self.what + (f" ({self.cure})" if self.cure else "")


@dataclass(frozen=True)
class Kind:
    """A class of torchao's tensors.

    Args:
        name: of the class.
        lacks: what it has no place for in a form; `near` allows symmetric inputs to have torchao's step.
        make: the tensor of a layer, given how many dimensions its input has.
        config: torchao's config of such tensors.
    """

    name: str
    lacks: Callable[[Form, bool], Iterator[Lack]]
    make: Callable[[QuantLinear, Form, int], Tensor]
    config: Callable[[Form], Any]


def common(form: Form) -> Iterator[Lack]:
    """What no kind has a place for."""
    yield from (Lack(part) for part in form.parts if part != FACTORS)
    if form.weight is not None and not form.weight.is_integer:
        yield Lack(f"weights in {form.weight.grid}")
    if (spec := form.inputs) is None:
        return
    if form.weight is None:
        yield Lack("weights in full precision behind rounded inputs")
    if not spec.is_integer:
        yield Lack(f"inputs in {spec.grid}")
    elif spec.bits != 8:
        yield Lack(f"inputs of {spec.bits} bits, but of 8")
    if spec.granularity == "group":
        yield Lack("inputs in groups", "activation=token")
    if spec.columns:
        yield Lack("two grids side by side in an input", "activation.columns=joined")
    if (spec.time_groups or 1) > 1:
        yield Lack("inputs whose ranges change with the timestep", "activation/time=one")


def int8_lacks(form: Form, near: bool) -> Iterator[Lack]:
    """What `Int8Tensor` has no place for."""
    yield from common(form)
    weight, spec = form.weight, form.inputs
    dequantized = spec is None and weight is not None and weight.granularity == "group"  # only then are they read
    if weight is not None and weight.is_integer and not dequantized:
        if not weight.symmetric or weight.grid == "unsigned":  # whose zero point is fixed, and not 0 once it is centred
            yield Lack("zero points of weights", "weight.grid=symmetric")
        if weight.granularity == "group":
            yield Lack("groups of weights", "weight=row")
    if spec is None or not spec.is_integer:
        return
    if spec.grid == "symmetric" and spec.dynamic:
        if not near:
            yield Lack("steps of max / 127 for symmetric inputs, but of max / 127.5", "activation.grid=symmetric_full")
    elif spec.grid not in ("asymmetric", "symmetric", "symmetric_full"):
        yield Lack(f"inputs on the grid {spec.grid}", "activation.grid=asymmetric")


def intx_lacks(form: Form, near: bool) -> Iterator[Lack]:
    """What `IntxUnpackedToInt8Tensor` has no place for."""
    yield from common(form)
    if FACTORS in form.parts:
        yield Lack(FACTORS)
    if (spec := form.inputs) is None or not spec.is_integer:
        return
    if not spec.dynamic:
        yield Lack("static inputs", "activation=token")
    if spec.grid != "asymmetric":
        yield Lack(f"{spec.grid} inputs", "activation.grid=asymmetric")


def centred(layer: QuantLinear) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """A weight's codes as int8 [out, in], its scales and zero points by block, and the two sides of a block."""
    rounded = layer.rounded
    assert rounded is not None
    assert isinstance(rounded.grid, Affine)
    spec, grid, (out, channels) = rounded.spec, rounded.grid, rounded.codes.shape
    shift = 0 if grid.signed else 2 ** (spec.bits - 1)
    tensor = spec.granularity == "tensor"
    blocks = 1 if tensor else out, 1 if tensor else channels // spec.row_length(channels, out * channels)
    scale, zero = (t.float().expand(len(grid.scale), 1).reshape(blocks) for t in (grid.scale, grid.zero_point))
    codes = (rounded.codes.int() - shift).to(torch.int8)
    return codes, scale, small(zero - shift), [out // blocks[0], channels // blocks[1]]


def small(zero: Tensor) -> Tensor:
    """Zero points as int8 where it holds them; those of `asymmetric_free` may lie beyond it, and stay as they are."""
    return zero.to(torch.int8) if zero.amin() >= -HALF and zero.amax() < HALF else zero


def int8_tensor(layer: QuantLinear, form: Form, dimensions: int) -> Tensor:
    """See `Kind.make`."""
    from torchao.quantization import Int8Tensor, MappingType, PerRow, PerTensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    codes, scale, zero, block = centred(layer)
    about: dict[str, Any] = {"zero_point": zero} if zero.any() else {}
    done = list(steps(layer.quantizer))
    if factors := [step.by for step in done if isinstance(step, Scale)]:
        about["act_pre_scale"] = torch.stack(factors).prod(0)
    if form.inputs is not None:
        mapping = MappingType.SYMMETRIC if form.inputs.symmetric else MappingType.ASYMMETRIC
        about["act_quant_kwargs"] = QuantizeTensorToInt8Kwargs(PerRow(), mapping)
        if isinstance(own := done[-1], StaticQuantizer):  # its numbers have as many dimensions as the input
            shape, shift = [1] * dimensions, HALF if own.low == 0 else 0
            about["act_quant_kwargs"].granularity = PerTensor()
            about["act_quant_scale"] = own.scale.float().reshape(shape)
            about["act_quant_zero_point"] = (own.zero_point - shift).to(torch.int8).reshape(shape)
    return Int8Tensor(codes, scale, block, layer.dtype, **about)


def intx_tensor(layer: QuantLinear, form: Form, dimensions: int) -> Tensor:
    """See `Kind.make`."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    assert form.weight is not None
    codes, scale, zero, block = centred(layer)
    rounding = PER_TOKEN if form.inputs is not None else None
    return IntxUnpackedToInt8Tensor(codes, scale, zero, _target(form), tuple(block), layer.dtype, rounding)


def _target(form: Form) -> torch.dtype:
    assert form.weight is not None
    return getattr(torch, f"int{form.weight.bits}")


def int8_config(form: Form) -> Any:
    """See `Kind.config`."""
    from torchao import quantization as ao

    assert form.weight is not None
    if form.inputs is None:
        size = form.weight.group_size
        return ao.Int8WeightOnlyConfig(granularity=ao.PerGroup(size) if size else ao.PerRow())
    mapping = ao.MappingType.SYMMETRIC if form.inputs.symmetric else ao.MappingType.ASYMMETRIC
    return ao.Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping)


def intx_config(form: Form) -> Any:
    """See `Kind.config`."""
    from torchao import quantization as ao

    assert form.weight is not None
    granularity = ao.PerGroup(form.weight.group_size) if form.weight.group_size else ao.PerAxis(0)
    mapping = ao.MappingType.SYMMETRIC if form.weight.symmetric else ao.MappingType.ASYMMETRIC
    if form.inputs is None:
        return ao.IntxWeightOnlyConfig(_target(form), granularity, mapping)
    return ao.Int8DynamicActivationIntxWeightConfig(_target(form), granularity, mapping)


KINDS = (
    Kind("Int8Tensor", int8_lacks, int8_tensor, int8_config),
    Kind("IntxUnpackedToInt8Tensor", intx_lacks, intx_tensor, intx_config),
)
"""What is tried for a layer, in this order."""


def kind_of(form: Form, near: bool = False) -> Kind | None:
    """The first kind that can say a form; None if none can."""
    return next((kind for kind in KINDS if next(kind.lacks(form, near), None) is None), None)


def shared(form: Form, near: bool = False) -> list[Lack]:
    """What of a form no kind has a place for."""
    first, *others = ([*kind.lacks(form, near)] for kind in KINDS)
    return [lack for lack in first if all(lack in other for other in others)]


def why_not(form: Form, near: bool = False) -> str:
    """Why no kind can say a form: what no kind has a place for, else what each of them lacks."""
    if found := shared(form, near):
        return f"torchao has no {' and no '.join(map(str, found))}"
    lacking = {kind.name: kind.lacks(form, near) for kind in KINDS}
    return "; ".join(f"its {name} has no {' and no '.join(map(str, each))}" for name, each in lacking.items())


def cures(forms: Collection[Form]) -> list[tuple[str, ...]]:
    """Words of the command line with which a kind would have a place for all of some forms, the fewest first."""
    found = []
    for kind in KINDS:
        lacking = {lack for form in forms if not form.is_plain for lack in kind.lacks(form, False)}
        if lacking and all(lack.cure for lack in lacking):
            found.append(tuple(sorted({str(lack.cure) for lack in lacking}, key=lambda word: ("." in word, word))))
    return sorted(found, key=len)
