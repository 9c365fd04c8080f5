"""How quantized layers multiply: by int8 instructions where the machine has them, else simulated in floating point.

Both give the same products up to the last bits; but these can flip later roundings, so a record says which one ran
(`cost.executed`), and no run mixes them (`stamp`). It is a switch of the whole process, as torch's own switches for
reduced precision are, because layers are called by code that knows nothing of qdit.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qdit.errors import UserError

Execution = Literal["auto", "int8", "simulated"]
CUDA_CAPABILITY = (7, 5)  # the first with int8 tensor cores
SHORT = 128  # keys of an attention that plain products serve faster than the CPU's fused kernel
# glibc's malloc.h; a block of up to 32 MiB, the largest threshold, is then taken from what was freed before
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST, NEVER = -1, -3, 32 << 20, 2**31 - 1

_int8 = False


def has_int8(device: torch.device) -> bool:
    """Whether a device multiplies int8 in hardware."""
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CUDA_CAPABILITY


def int8() -> bool:
    """Whether layers multiply integers now."""
    return _int8


def stamp(device: torch.device, execution: bool = True) -> dict[str, str]:
    """What a number depends on besides its config: where it was computed, with what, and how layers multiplied.

    Two of these differ by flips of rounding, not only by last bits, once a model is quantized. Samples, calibration
    data and finished parts of fits say which made them (`qdit.storage.shelf`), and a record does under `made`.

    Args:
        device: what computes.
        execution: whether quantized layers are part of it.
    """
    kind = device.type
    if kind == "cpu":
        kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    elif kind == "cuda":
        kind = torch.cuda.get_device_name(device)
    made = {"device": kind, "torch": torch.__version__.split("+")[0]}
    return made | {"execution": "int8" if _int8 else "simulated"} if execution else made


@contextmanager
def executing(choice: Execution, device: torch.device) -> Iterator[None]:
    """Multiply as `choice` says while the context lasts; `auto` takes int8 where the device has it.

    Raises:
        UserError: the device cannot do it.
    """
    global _int8
    able = has_int8(device)
    if choice == "int8" and not able:
        raise UserError(f"execution=int8: {device.type} has no int8 product here; use execution=auto or simulated")
    before, _int8 = _int8, able and choice != "simulated"
    try:
        yield
    finally:
        _int8 = before


def repeatable(device: torch.device) -> AbstractContextManager[Any]:
    """Attention whose gradient is the same bits each time: the fused kernels of accelerators add up atomically."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)


def attending(device: torch.device, keys: int) -> AbstractContextManager[Any]:
    """Attention by the faster kernel while the context lasts, the same but for the order of sums.

    torch's fused one for the CPU makes many small products, which cost oneDNN (`tune_cpu`) more than they do MKL: twice
    the time of plain products at 64 keys, eighteen times at 16. On other devices torch chooses.

    Args:
        device: what computes.
        keys: the most that a query attends to.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and keys <= SHORT else nullcontext()


def tune_cpu() -> None:
    """Let this process compute on the CPU as fast as it can, without changing a result but for the order of sums.

    Two defaults cost a third of the time. glibc hands every large block back to the system, and fresh pages cost more
    than the arithmetic on them; where there is no `mallopt`, nothing changes. And torch takes MKL for products in
    float32, which is slow on processors of other makers. It takes oneDNN if bfloat16 would do; but without AMX oneDNN
    has no such product either and stays in float32, which is checked.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    if torch.backends.mkldnn.is_available() and not torch.cpu._is_amx_tile_supported():
        matmul.fp32_precision = "bf16"
        if not _full_precision():
            matmul.fp32_precision = "ieee"


def _full_precision() -> bool:
    """Whether products of float32 have its precision; bfloat16's is a thousand times worse."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ x.double().T
    return bool(((x @ x.T) - exact).abs().amax() <= 1e-5 * exact.abs().amax())
