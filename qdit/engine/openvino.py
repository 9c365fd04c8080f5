"""OpenVINO as an engine: a quantized network, exported once for each shape of its inputs, runs as its graph on the CPU.

The network is exported by torch with its quantized layers written as `qdit.engine.emitted` says, and read by OpenVINO's
frontend for torch. What is not a product of integers is computed in float32, whatever the network's dtype: to bfloat16
OpenVINO cuts values off where torch rounds them, and the scales of tokens would be in it, too, which is no grid of
qdit's.

Left out: accelerators, shapes that change within a graph, and OpenVINO's converter, which reports its use to a server.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdit.engine.emitted import Emitted
from qdit.engine.misfits import forms_in, problem
from qdit.errors import UserError
from qdit.execution import lacks_openvino
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced

OPTIONS: Mapping[str, str] = {
    "NUM_STREAMS": "1",
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else inputs of what else it finds quantized are rounded to its own grids
}
HALVES = (torch.bfloat16, torch.float16)
INSTEAD: dict[Any, Any] = {torch.ops.aten.empty_like.default: lambda x, **_: torch.zeros_like(x)}
"""Operations that its frontend does not know, by others: Wan's rotary embeddings fill an empty tensor."""


class OpenVINO:
    """Calls of a network in place of its own, by OpenVINO: one graph for all inputs of some shapes.

    Args:
        network: whose calls are its graph's.
        options: of the CPU plugin, beside or in place of `OPTIONS`.

    Raises:
        UserError: OpenVINO is missing, has no products of integers here, or cannot run a layer.
    """

    def __init__(self, network: nn.Module, options: Mapping[str, str] | None = None) -> None:
        if (lack := lacks_openvino(torch.device("cpu")) or problem(forms_in(network))) is not None:
            raise UserError(lack)
        self.network, self.seconds = network, 0.0
        """Spent on first calls: on exporting and compiling, and on what they compute."""
        self.layers: dict[str, int] = {}
        """How many quantized layers the last graph multiplies in integers, and how many it does not."""
        self.options = {**OPTIONS, "INFERENCE_NUM_THREADS": str(torch.get_num_threads()), **(options or {})}
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives.

        Raises:
            UserError: torch cannot export the network, or OpenVINO cannot read what it exports.
        """
        start = perf_counter()
        given, shape = pytree.tree_flatten((args, kwargs))
        key = (str(shape), *map(_described, given))
        if (graph := self._graphs.get(key)) is not None:
            return graph(given)
        graph = self._graphs[key] = _Graph(self.network, given, shape, self.options)
        self.layers = graph.layers
        made = graph(given)
        self.seconds += perf_counter() - start
        return made


class _Graph:
    """A network as a graph for inputs of one shape.

    Args:
        network: quantized.
        given: the leaves of its arguments; what is no tensor is part of the graph.
        shape: how the leaves make up the arguments.
        options: of the CPU plugin.
    """

    def __init__(self, network: nn.Module, given: list[Any], shape: Any, options: Mapping[str, str]) -> None:
        layers = {name: each for name, each in network.named_modules() if isinstance(each, QuantLinear)}
        written = {name: Emitted(each) for name, each in layers.items() if each.rounded is not None}
        self.dtype = _dtype(network)
        try:
            with torch.no_grad(), replaced(network, written), in_float32(network), _quiet():
                tensors = tuple(_plain(x) for x in given if isinstance(x, Tensor))
                program = torch.export.export(_Flat(network, given, shape), tensors).run_decompositions(INSTEAD)
                self.compiled = _core().compile_model(_read(program), "CPU", dict(options))
        except Exception as error:  # torch's and OpenVINO's have no common base
            raise UserError(
                f"execution=openvino: this network cannot be exported ({_reason(error)}); use execution=auto"
            ) from error
        self.request, self.made = self.compiled.create_infer_request(), program.call_spec.out_spec
        names = list(program.graph_signature.user_inputs)
        self.places = [names.index((port.get_names() & {*names}).pop()) for port in self.compiled.inputs]
        integers = min(integer_products(self.compiled), len(written))
        counts = {"openvino int8": integers, "openvino float": len(written) - integers}
        self.layers = {name: count for name, count in counts.items() if count}

    def __call__(self, given: list[Any]) -> Any:
        """The network's output for arguments of these leaves."""
        import openvino

        tensors = [_plain(x).contiguous().numpy() for x in given if isinstance(x, Tensor)]
        for place, number in enumerate(self.places):
            self.request.set_input_tensor(place, openvino.Tensor(tensors[number], shared_memory=True))
        self.request.infer()
        count = len(self.compiled.outputs)
        outputs = [torch.from_numpy(self.request.get_output_tensor(n).data.copy()) for n in range(count)]
        assert self.made is not None
        return pytree.tree_unflatten([x.to(self.dtype) if x.is_floating_point() else x for x in outputs], self.made)


class _Flat(nn.Module):
    """A network as a function of its tensors alone.

    Args:
        network: what is called.
        given, shape: as of `_Graph`.
    """

    def __init__(self, network: nn.Module, given: list[Any], shape: Any) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        self.given = [None if isinstance(x, Tensor) else (x,) for x in given]

    def forward(self, *tensors: Tensor) -> Any:
        """The network's output."""
        left = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(left) if x is None else x[0] for x in self.given], self.shape)
        return self.network._call_impl(*args, **kwargs)


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Meanwhile the tensors of a network that are in 16 bits are float32."""
    owners: list[dict[str, Any]] = [d for module in network.modules() for d in (module._parameters, module._buffers)]
    held = [(owner, name, x) for owner in owners for name, x in owner.items() if x is not None]
    before = [(owner, name, x) for owner, name, x in held if x.dtype in HALVES]
    try:
        for owner, name, x in before:
            owner[name] = nn.Parameter(x.float(), False) if isinstance(x, nn.Parameter) else x.float()
        yield
    finally:
        for owner, name, x in before:
            owner[name] = x


def integer_products(compiled: Any) -> int:
    """How many products of a compiled model run on integers, by what its plugin says of them."""
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos]
    return sum(kind in ("FullyConnected", "MatMul") and how.lower().endswith("i8") for kind, how in kinds)


def _read(program: Any) -> Any:
    """What torch exported as a model of OpenVINO."""
    from openvino.frontend.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(program)  # read from again while it is converted
    return frontend.convert(frontend.load(decoder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said of what torch will change, and of operations that OpenVINO's frontend misses in it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _dtype(network: nn.Module) -> torch.dtype:
    """Of a network, which its quantized layers say, or else its parameters."""
    quantized = (m.dtype for m in network.modules() if isinstance(m, QuantLinear))
    return next(chain(quantized, (x.dtype for x in network.parameters())), torch.float32)


def _plain(x: Tensor) -> Tensor:
    """A tensor as a graph takes it."""
    return x.float() if x.is_floating_point() else x


def _described(given: Any) -> Any:
    return (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else repr(given)


def _reason(error: Exception) -> str:
    """The first line of an error, or the last of the frontend's list of what it cannot convert."""
    lines = str(error).strip().splitlines()
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return next(iter(listed[-1:] + lines), type(error).__name__)
