"""Integer products by a compiled kernel, `native.cpp`, beside this file.

No product of torch has a scale for each row of the input, or for each group of channels: its sums are scaled in passes
of their own, which take more time than the sums if groups are small. The kernel scales them where they arise. It is
built by the machine's C++ compiler when it is first needed, in about two seconds, for what torch says that the
processor can do, and kept in the user's folder of caches under a digest of source and flags. Where there is no
compiler, or the processor has no AVX-512 VNNI, `library` is None and products take torch's way (`qdit.quant.operands`),
with the same bits.

It is loaded by ctypes and not by torch's loader of extensions, whose locks outlive a process that is killed.
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
from jaxtyping import Float, Int8
from torch import Tensor

from qdit.errors import UserError
from qdit.quant.integers import Codes
from qdit.storage.atomic import atomic_write

log = logging.getLogger("qdit")
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vnni")
AMX = ("-mamx-tile", "-mamx-int8")
COMPILERS = ("c++", "g++", "clang++")
COLUMNS, FOUR = 32, 4  # a tile's outputs, and the channels that one instruction adds up
POINTERS = ("x", "x_scale", "x_offset", "weight", "w_scale", "w_offset", "w_sums", "bias", "y")


class _Product(ctypes.Structure):
    """The struct of this name in the source."""

    _fields_ = [(name, ctypes.c_long) for name in ("rows", "out", "channels", "groups", "wide")] + [
        (name, ctypes.c_void_p) for name in POINTERS
    ]


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
    flags = FLAGS + AMX * torch.cpu._is_amx_tile_supported()
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


class Tiled:
    """A weight whose product the kernel computes, one byte a code.

    Args:
        weight: its codes.
        parts: equal parts of the channels within which weight and input have one scale each.
    """

    def __init__(self, weight: Codes, parts: int) -> None:
        self.shape, self.parts, self.groups = weight.integers.shape, parts, weight.groups
        out, channels = self.shape
        integers = weight.integers.new_zeros(out + -out % COLUMNS, channels)
        integers[:out] = weight.integers
        tiles = integers.view(-1, COLUMNS, channels // FOUR, FOUR)
        self.tiles = tiles.transpose(1, 2).contiguous()
        self.sums = integers.view(len(integers), parts, -1).sum(-1, dtype=torch.int32).T.float().contiguous()
        self.scale = self._wide(weight.scale)
        self.offset = None if weight.offset is None else self._wide(weight.offset)

    @staticmethod
    def fits(weight: Codes, parts: int) -> bool:
        """Whether the kernel can do these."""
        return weight.integers.shape[1] // parts % FOUR == 0 and library() is not None

    def _wide(self, numbers: Float[Tensor, "out groups"]) -> Float[Tensor, "parts wide"]:
        wide = numbers.new_zeros(self.parts, self.sums.shape[1])
        wide[:, : self.shape[0]] = numbers.T.repeat_interleave(self.parts // self.groups, 0)
        return wide

    def codes(self) -> Int8[Tensor, "out channels"]:
        """The weight's integers."""
        return self.tiles.transpose(1, 2).reshape(-1, self.shape[1])[: self.shape[0]]

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [each for each in (self.tiles, self.sums, self.scale, self.offset) if each is not None]

    def product(self, x: Codes, bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        """See `qdit.quant.integers.product`."""
        (out, channels), rows = self.shape, len(x.integers)
        each = lambda t: t.expand(rows, -1).repeat_interleave(self.parts // x.groups, 1).contiguous()  # noqa: E731
        starts = self.scale.new_zeros(self.scale.shape[1])
        if bias is not None:
            starts[:out] = bias
        y = self.scale.new_empty(rows, out)
        offset = None if x.offset is None else each(x.offset)
        tensors = (
            x.integers.contiguous(),
            each(x.scale),
            offset,
            self.tiles,
            self.scale,
            self.offset,
            self.sums,
            starts,
            y,
        )
        places = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        about = _Product(rows, out, channels, self.parts, len(starts), *places)
        kernel = library()
        assert kernel is not None
        kernel.qdit_product(ctypes.byref(about), ctypes.c_long(torch.get_num_threads()))
        return y
