"""A network whose calls are one compiled graph (`torch.compile`), for a while.

A quantized layer in a graph is a few operators: the kernel's own (`qdit.quant.kernels`), or the passes of simulation,
which the compiler fuses with what is around them: norms, GELU, residuals. Sums come in another order than uncompiled,
so that last bits differ, and a record says that its samples were made so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.nn.switch import TimedLinear


class Calls(Protocol):
    """What is called in the place of a network, for a while."""

    network: nn.Module
    seconds: float
    """Spent on what comes before the calls proper, such as compiling."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        ...


class Compiled:
    """Calls of a network in place of its own: one graph for all inputs of some shapes.

    The first call of each shape runs the network once as it is, which lets weights take the form in which they are
    multiplied; what that gives is dropped, so that all outputs are compiled ones.

    Args:
        network: whose calls are compiled.
        backend: of torch.compile.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        self.network, self.seconds = network, 0.0
        """Spent on first calls: on compiling, and on what they compute."""
        self._graph = torch.compile(network._call_impl, fullgraph=True, dynamic=False, backend=backend)
        self._nows = {id(m.now): m.now for m in network.modules() if isinstance(m, TimedLinear)}.values()
        self._seen: set[tuple[Any, ...]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives.

        Raises:
            UserError: it cannot be one graph.
        """
        start = perf_counter()
        groups = [now.settle() for now in self._nows]
        key = (*(_shape(each) for each in (*args, *kwargs.values())), *groups)
        if key in self._seen:
            return self._graph(*args, **kwargs)
        self.network._call_impl(*args, **kwargs)
        try:
            made = self._graph(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(
                f"compile=true: torch cannot make one graph of this network ({_first_line(error)}); use compile=false"
            ) from error
        self._seen.add(key)
        self.seconds += perf_counter() - start
        return made


@contextmanager
def calling(calls: Calls | None) -> Iterator[None]:
    """Meanwhile a network's calls are these; with None, its own."""
    if calls is None:
        yield
        return
    before, calls.network._compiled_call_impl = calls.network._compiled_call_impl, calls
    try:
        yield
    finally:
        calls.network._compiled_call_impl = before


def _shape(given: Any) -> Any:
    return (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else type(given)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
