"""How quantized layers multiply: by int8 or FP8 instructions where the machine has them, else simulated.

All give the same products up to the last bits; but these can flip later roundings, so a record says which one ran
(`cost.executed`), and no run mixes them (`stamp`). It is a switch of the whole process, as torch's own switches for
reduced precision are, because layers are called by code that knows nothing of qdit. An engine of others, OpenVINO, runs
whole networks (`qdit.engine`), and only to sample; layers that are called by themselves are simulated then.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qdit.errors import UserError
from qdit.quant import native

Execution = Literal["auto", "int8", "fp8", "simulated", "openvino"]
CUDA_CAPABILITY = (7, 5)  # the first with int8 tensor cores
CUDA_FP8 = (8, 9)  # the first with those of FP8
SHORT = 128  # keys of an attention that plain products serve faster than the CPU's fused kernel
# glibc's malloc.h; a block of up to `LARGEST` is then taken from what was freed before
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 2**31 - 1
LARGEST = 1 << 30, 32 << 20  # bytes of a block that glibc keeps; older ones refuse more than the second


@dataclass(frozen=True)
class Way:
    """How the quantized layers of a process multiply; a layer that a way refuses is simulated.

    Args:
        name: in stamps and records.
        rows: whether products with one scale a row are integers.
        groups: whether those with a scale for each of several groups of channels are, too.
        eights: whether products of FP8 numbers with one scale a row are multiplied as such.
        engine: whether networks are sampled from by an engine of others; single layers are then simulated.
    """

    name: str
    rows: bool
    groups: bool
    eights: bool = False
    engine: bool = False

    @property
    def layers(self) -> str:
        """The name of the way in which layers multiply that are called by themselves, as fits and diagnoses do."""
        return SIMULATED.name if self.engine else self.name

    def takes(self, groups: int) -> bool:
        """Whether a product with so many groups of channels is of integers."""
        return self.rows if groups == 1 else self.groups


SIMULATED, INT8, INT8_ROWS = Way("simulated", False, False), Way("int8", True, True), Way("int8 by rows", True, False)
FP8, OPENVINO = Way("fp8", True, False, eights=True), Way("openvino", False, False, engine=True)
WAYS = {way.name: way for way in (SIMULATED, INT8, INT8_ROWS, FP8, OPENVINO)}
_way = SIMULATED


def faster(device: torch.device) -> Way:
    """What `auto` takes: measured beforehand (`docs/execution.md`), never in a run, which would not be repeatable.

    ======================================  ===============  =======================
    here                                    one scale a row  groups of channels
    ======================================  ===============  =======================
    CPU with VNNI or AMX, compiled kernel   int8             int8
    CPU with VNNI, oneDNN                   int8             simulated: groups take turns
    CUDA of 8.9 or above                    int8 and fp8     simulated: groups take turns
    CUDA, `torch._int_mm`                   int8             simulated: groups take turns
    any other                               simulated        simulated
    ======================================  ===============  =======================
    """
    if has_fp8(device):
        return FP8
    if not has_int8(device):
        return SIMULATED
    return INT8 if device.type == "cpu" and native.available() else INT8_ROWS


def has_int8(device: torch.device) -> bool:
    """Whether a device multiplies int8 in hardware."""
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CUDA_CAPABILITY


def has_fp8(device: torch.device) -> bool:
    """Whether a device multiplies FP8 in hardware; torch's product on CPUs is there to be compared with."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CUDA_FP8


def way() -> Way:
    """How layers multiply now."""
    return _way


def lacks_openvino(device: torch.device) -> str | None:
    """Why OpenVINO has no products of integers here, and what to do; None: it has.

    Without VNNI its sums of pairs of bytes may overflow.
    """
    if device.type != "cpu":
        return f"execution=openvino runs on CPUs, and device={device.type} is chosen; use device=cpu"
    if not has_int8(device):
        return "execution=openvino needs a processor with VNNI, and this has none; use execution=auto"
    if find_spec("openvino") is None:
        return "execution=openvino needs OpenVINO: pip install 'qdit[openvino]', or use execution=auto"
    return None


def stamp(
    device: torch.device, execution: bool = True, compiled: bool = False, sampled: bool = False
) -> dict[str, str]:
    """What a number depends on besides its config: where it was computed, with what, and how layers multiplied.

    Two of these differ by flips of rounding, not only by last bits, once a model is quantized. Samples, calibration
    data and finished parts of fits say which made them (`qdit.storage.shelf`), and a record does under `made`.

    Args:
        device: what computes.
        execution: whether quantized layers are part of it.
        compiled: whether the network was a compiled graph.
        sampled: whether whole networks were sampled from, which an engine runs if there is one, and not single layers.
    """
    kind = device.type
    if kind == "cpu":
        kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    elif kind == "cuda":
        kind = torch.cuda.get_device_name(device)
    made = {"device": kind, "torch": torch.__version__.split("+")[0]}
    made |= {"execution": _way.name if sampled else _way.layers} if execution else {}
    made |= {"openvino": version("openvino")} if execution and sampled and _way is OPENVINO else {}
    return made | ({"compiled": "whole"} if compiled else {})


@contextmanager
def executing(choice: Execution, device: torch.device, begun: str | None = None) -> Iterator[None]:
    """Multiply as `choice` says while the context lasts; `auto` takes what is `faster`.

    Args:
        choice: `auto`, `int8`, `fp8`, `simulated` or `openvino`.
        device: what computes.
        begun: the name of the way in which this was begun, which `auto` keeps where the device can.

    Raises:
        UserError: the device cannot do it.
    """
    global _way
    if choice == "int8" and not has_int8(device):
        raise UserError(f"execution=int8: {device.type} has no int8 product here; use execution=auto or simulated")
    if choice == "fp8" and not has_fp8(device):
        raise UserError(
            f"execution=fp8: {device.type} has no FP8 product here, which CUDA has from compute capability "
            f"{'.'.join(map(str, CUDA_FP8))} on; use execution=auto or simulated"
        )
    if choice == "openvino" and (lack := lacks_openvino(device)) is not None:
        raise UserError(lack)
    given = {"int8": INT8, "fp8": FP8, "simulated": SIMULATED, "openvino": OPENVINO}
    taken = given[choice] if choice in given else faster(device)
    if choice == "auto" and (kept := WAYS.get(begun or "")) is not None and _can(kept, device):
        taken = kept
    before, _way = _way, taken
    try:
        yield
    finally:
        _way = before


def _can(kept: Way, device: torch.device) -> bool:
    """Whether a device multiplies in a way."""
    if kept.engine:
        return lacks_openvino(device) is None
    return kept is SIMULATED or (has_fp8(device) if kept.eights else has_int8(device))


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
    than the arithmetic on them; where there is no `mallopt`, nothing changes. What was freed stays with the process
    until a model goes (`qdit.environment.release`). And torch takes MKL for products in float32, which is slow on
    processors of other makers. It takes oneDNN if bfloat16 would do; but without AMX oneDNN has no such product either
    and stays in float32, which is checked.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)  # until one is taken
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
