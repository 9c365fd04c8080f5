"""Integer products, and codes of inputs, by a compiled kernel: `native.cpp`, beside this file.

No product of torch has a scale for each row of the input, or for each group of channels: its sums are scaled in passes
of their own, which take more time than the sums if groups are small. The kernel scales them where they arise. It is
built by the machine's C++ compiler when it is first needed, in about two seconds, for what torch says that the
processor can do, and kept in the user's folder of caches under a digest of source and flags. Where there is no
compiler, or the processor has no AVX-512 VNNI, `library` is None and products take torch's way (`qdit.quant.operands`),
with the same bits.

`qdit.quant.kernels` has its functions as operators of torch. It is loaded by ctypes and not by torch's loader of
extensions, whose locks outlive a process that is killed.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.storage.atomic import atomic_write

log = logging.getLogger("qdit")
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vnni")
AMX, BF16 = ("-mamx-tile", "-mamx-int8"), ("-mavx512bf16",)
COMPILERS = ("c++", "g++", "clang++")


def _fields(numbers: str, pointers: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_long) for name in numbers.split()] + [(name, ctypes.c_void_p) for name in pointers.split()]


class Product(ctypes.Structure):
    """The struct of this name in the source."""

    _fields_ = _fields(
        "rows out channels groups wide x_groups x_each half",
        "x x_scale x_offset weight lowest w_scale w_offset w_sums bias y",
    )


class Codes(ctypes.Structure):
    """The struct of this name in the source."""

    _fields_ = _fields("rows length half grid each lowest highest shift", "x scale zero_point codes")


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, built if need be; None where it cannot be."""
    fits = sys.platform == "linux" and platform.machine() == "x86_64" and torch.cpu._is_avx512_supported()
    if not (fits and torch.cpu._is_vnni_supported()):
        return None
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        log.info("no C++ compiler: integer products take a slower way")
        return None
    flags = FLAGS + AMX * torch.cpu._is_amx_tile_supported() + BF16 * torch.cpu._is_avx512_bf16_supported()
    try:
        return ctypes.CDLL(str(_built(compiler, flags)))
    except (OSError, subprocess.SubprocessError, UserError) as error:
        log.info("%s does not build integer products: they take a slower way (%s)", compiler, error)
        return None


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """The shared library, from the cache or new."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *flags]).encode()).hexdigest()
    built = home / "qdit" / f"native-{key[:16]}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / built.name
            subprocess.run(
                [compiler, *flags, str(SOURCE), "-o", str(made)], check=True, capture_output=True, timeout=300
            )
            atomic_write(built, made.read_bytes())
    return built


def place(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor begins; the caller keeps it."""
    return None if tensor is None else tensor.data_ptr()


def run(name: str, about: ctypes.Structure) -> None:
    """Call a function of the kernel, which is there."""
    kernel = library()
    assert kernel is not None
    getattr(kernel, name)(ctypes.byref(about), ctypes.c_long(torch.get_num_threads()))


_available: bool | None = None


def available() -> bool:
    """Whether there is a kernel; graphs take what calls before them have found, as a constant."""
    global _available
    if not torch.compiler.is_compiling():
        _available = library() is not None
    return bool(_available)
