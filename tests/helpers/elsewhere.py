"""An accelerator that is simulated: tensors say that they are on `cuda:0`, and their values are in memory.

What a real one refuses is refused: tensors of two devices in one operation, but for single numbers, copies and indices,
and NumPy. So code that makes a tensor on the wrong device fails without a GPU, whatever the values are. Speed, kernels
and the numbers of a GPU are not simulated; generators of the CPU serve for all.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = torch.device("cuda:0")
COPIES = {"copy_", "_to_copy"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations that take indices of the other device, if what is indexed is there."""
TOGETHER = {"stack", "cat"}
"""Those that take not even single numbers of another."""


class Elsewhere(Tensor):
    """A tensor on the simulated device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        """Describe a tensor without values; torch's own code, which knows no such device here, is told `meta`."""
        about = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **about)  # pyright: ignore

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:
        """The simulated one."""
        return HERE

    @property
    def is_cuda(self) -> bool:
        """So it says."""
        return True

    def __getitem__(self, key: Any) -> Any:
        """With lists of numbers as tensors."""
        return super().__getitem__(_key(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        """With numbers as tensors from here."""
        made = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype, device=HERE)
        super().__setitem__(_key(key), made)

    def tolist(self) -> Any:
        """The numbers."""
        return self.held.tolist()

    def numpy(self, **_: object) -> Any:
        """As with CUDA.

        Raises:
            TypeError: always.
        """
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """As the values, marked."""
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Operations outside of the mode, such as those of a backward pass."""
        return operate(func, args, kwargs or {})


def _key(key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    made = tuple(torch.tensor(part, device=HERE) if isinstance(part, list) else part for part in parts)
    return made if isinstance(key, tuple) else made[0]


def elsewhere(device: Any) -> bool:
    """Whether a device is the simulated one."""
    return device is not None and torch.device(device).type == HERE.type


def refuse_mixtures(func: Any, args: tuple, kwargs: dict) -> None:
    """Raise what CUDA raises where tensors of two devices meet.

    Raises:
        RuntimeError: they do.
    """
    name = func.name().partition("::")[2].partition(".")[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, Elsewhere)]
    assert not here or not any(x.is_meta and not isinstance(x, Elsewhere) for x in tensors), f"{name}: values are lost"
    others = [x for x in tensors if not isinstance(x, Elsewhere) and (x.ndim > 0 or name in TOGETHER)]
    crosses = name in COPIES or (name in INDEXED and isinstance(args[0], Elsewhere))
    if here and others and not crosses:
        shapes = [tuple(x.shape) for x in others]
        raise RuntimeError(f"{name}: expected all tensors on one device, found cuda:0 and cpu of shapes {shapes}")


def operate(func: Any, args: tuple, kwargs: dict) -> Any:
    """Do what is asked with the values, and say where the result is."""
    refuse_mixtures(func, args, kwargs)
    there = any(isinstance(x, Elsewhere) for x in tree_leaves((args, kwargs)))
    if "device" in kwargs and kwargs["device"] is not None:
        # Of a tensor that is there torch's own code knows `meta`.
        there = elsewhere(kwargs["device"]) or (there and torch.device(kwargs["device"]).type == "meta")
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    kwargs.pop("non_blocking", None)
    name = func.name().partition("::")[2].partition(".")[0]
    plain = tree_map_only(Elsewhere, lambda x: x.held, (args, kwargs))
    made = func(*plain[0], **plain[1])
    if name == "copy_" and not isinstance(args[0], Elsewhere):
        return args[0]
    if not there:
        return made
    wrapped = tree_map_only(Tensor, Elsewhere, made)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Generator(torch.Generator):
    """Random numbers of the CPU that say whose they are."""

    asked: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")
        made.asked = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        """Of which they are said to be."""
        return self.asked


class _Asked(TorchFunctionMode):
    """Knows whether `meta` is what the caller asked for, as for a network without values."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before, kwargs = self.meta, kwargs or {}
        self.meta = any(isinstance(x, str | torch.device) and str(x) == "meta" for x in (*args, *kwargs.values()))
        try:
            return func(*args, **kwargs)
        finally:
            self.meta = before


class _Mode(TorchDispatchMode):
    def __init__(self, asked: _Asked) -> None:
        super().__init__()
        self.asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        empty = any(x.is_meta and not isinstance(x, Elsewhere) for x in tensors)  # of a network without values
        if kwargs.get("device") == torch.device("meta") and not (self.asked.meta or empty):
            kwargs["device"] = HERE  # torch's own code makes tensors beside one that it knows as `meta`
        if elsewhere(kwargs.get("device")) or any(isinstance(x, Elsewhere) for x in tensors):
            return operate(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def simulated() -> Iterator[torch.device]:
    """A context in which the simulated device can be used."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is then a copy that is seen
    try:
        with (
            patch("torch.cuda._lazy_init"),
            patch("torch.Generator", _Generator),
            patch("torch.random.fork_rng", lambda devices: nullcontext()),
            _Asked() as asked,
            _Mode(asked),
        ):
            yield HERE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
