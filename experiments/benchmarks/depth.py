"""What depth costs a fit: how often each block runs, the most bytes alive at once, and seconds, at several depths.

    python experiments/benchmarks/depth.py                                        # GPTQ of PixArt and Latte
    python experiments/benchmarks/depth.py --fits gptq adaround fisher --families dit pixart latte --depths 2 4 8 16

Networks are random and differ in their number of blocks alone (Latte's count as pairs, a spatial and a temporal one).

* `runs`: calls of a block's own forward in the fit, the least and the most of all blocks. Equal at all depths means
  that the fit is linear in depth; stand-ins, which return what is kept, are no calls.
* `peak`: the most bytes of tensors alive at once, of those that are made while the fit runs, a storage counted once.
  The rounded weights that it returns (codes, scales, zero points and their floating-point copies), which grow with the
  network, are taken off; the network itself and the calibration data were there before. Activations kept on disk would
  not count, but at these sizes none are.
* seconds are of the processor, so that other work on the machine does not show. Fits run twice: once for the clock.
"""

import argparse
import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qdit.activation import DynamicActivation
from qdit.calibration import CalibrationData
from qdit.calibration.blocks import segments
from qdit.method import Method, quantize
from qdit.model.base import DiffusionModel
from qdit.model.conditions import Conditions
from qdit.model.dit import LoadedDiT
from qdit.model.latte import LoadedLatte
from qdit.model.pixart import LoadedPixArt
from qdit.quant.ranges import MinMax
from qdit.quantized import Quantized
from qdit.rounding import GPTQ, AdaRound
from qdit.rounding.base import Rounding
from qdit.scope import Scope
from qdit.weight import WeightGrid

ROLES = ["qkv", "attn_out", "cross_q", "cross_kv", "cross_out", "ffn_up", "ffn_down"]
TEXT, TOKENS = 16, 12  # width and length of a prompt
FITS = {
    "gptq": GPTQ(),
    "adaround": AdaRound(iterations=3, batch_size=4, low_bits=1),
    "fisher": AdaRound(iterations=3, batch_size=4, low_bits=1, weighting="fisher"),
}


def network(family: str, blocks: int, width: int = 32, side: int = 8, head: int = 8) -> DiffusionModel:
    """A random model of a family: `dit`, `pixart` or `latte`, which has 3 frames; `head` is a head's width."""
    import diffusers

    torch.manual_seed(0)
    shape = {"sample_size": side, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": blocks}
    shape |= {"attention_head_dim": head, "num_attention_heads": width // head}
    device, dtype = torch.device("cpu"), torch.float32
    if family == "dit":
        plain = diffusers.DiTTransformer2DModel(**shape, num_embeds_ada_norm=10).eval()
        return LoadedDiT(plain, None, None, device, dtype)
    shape |= {"cross_attention_dim": width, "caption_channels": TEXT, "norm_type": "ada_norm_single"}
    rows = {"encoder_hidden_states": torch.randn(4, TOKENS, TEXT)}
    if family == "latte":
        clips = diffusers.LatteTransformer3DModel(**shape, video_length=3).eval()
        return LoadedLatte(clips, None, None, device, dtype, table=Conditions(rows), text_length=TOKENS)
    rows["encoder_attention_mask"] = torch.ones(4, TOKENS, dtype=torch.long)
    images = diffusers.PixArtTransformer2DModel(**shape, use_additional_conditions=False).eval()
    return LoadedPixArt(images, None, None, device, dtype, table=Conditions(rows), text_length=TOKENS)


def recipe(rounding: Rounding, roles: list[str]) -> Method:
    """Weights of 4 bits and inputs of 8, which are dynamic: samples of static ones' values grow with the sites."""
    return Method(
        scope=Scope(roles=roles),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        activation=DynamicActivation(granularity="row", grid="asymmetric"),
        rounding=rounding,
        weight_bits=4,
        activation_bits=8,
        calibration=None,
    )


def points(model: DiffusionModel, count: int, batch_size: int) -> CalibrationData:
    """Calibration points of noise."""
    x = torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return CalibrationData(x, torch.arange(count) * 7 % 1000, torch.arange(count) % 4, batch_size)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on; `peak` is the most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage in self.known or any(storage is given for given in storages([*args, *(kwargs or {}).values()])):
                continue
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result


def storages(values: object) -> Iterator[torch.UntypedStorage]:
    """Of a tensor, or of tensors in nested lists; those of the meta device are none."""
    if isinstance(values, torch.Tensor):
        if values.device.type != "meta":
            yield values.untyped_storage()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from storages(value)


@contextmanager
def counting(model: DiffusionModel) -> Iterator[Counter[str]]:
    """Counts the calls of each block's own forward, by the block's path."""
    paths = [part.block for part in segments(model.sites(), ()) if part.block is not None]
    blocks = {id(model.denoiser.get_submodule(path)): path for path in paths}
    kinds = {type(model.denoiser.get_submodule(path)) for path in paths}
    originals = {kind: kind.forward for kind in kinds}
    counts = Counter(dict.fromkeys(paths, 0))

    def counted(original):
        def forward(self: nn.Module, *args, **kwargs):
            counts[blocks[id(self)]] += 1
            return original(self, *args, **kwargs)

        return forward

    try:
        for kind, original in originals.items():
            kind.forward = counted(original)
        yield counts
    finally:
        for kind, original in originals.items():
            kind.forward = original


def weight_bytes(quantized: Quantized) -> int:
    """The bytes of rounded weights: codes, scales, zero points, and their floating-point copies."""
    total = 0
    for layer in quantized.layers.values():
        rounded = layer.rounded
        total += layer.weight.nbytes + rounded.codes.nbytes + rounded.grid.scale.nbytes + rounded.grid.zero_point.nbytes
    return total


@dataclass(frozen=True)
class Spent:
    """What a fit took."""

    runs: tuple[int, int]
    """Of a block: the least and the most."""
    peak: int
    """Bytes alive at once, without the rounded weights."""
    weights: int
    """Bytes of rounded weights."""


def spent(model: DiffusionModel, data: CalibrationData, rounding: Rounding, roles: list[str] = ROLES) -> Spent:
    """Fit, and count."""
    with counting(model) as counts, LiveBytes() as live:
        quantized = quantize(model, recipe(rounding, roles), lambda: data)
    own = weight_bytes(quantized)
    return Spent((min(counts.values()), max(counts.values())), live.peak - own, own)


def report(family: str, name: str, depths: list[int], width: int, count: int, batch_size: int) -> None:
    """Print what the fits of one kind take, and whether that grows with depth."""
    peaks, runs = [], set()
    for depth in depths:
        model = network(family, depth, width)
        data = points(model, count, batch_size)
        start = time.process_time()
        quantize(model, recipe(FITS[name], ROLES), lambda data=data: data)
        seconds = time.process_time() - start
        found = spent(model, data, FITS[name])
        peaks.append(found.peak)
        runs.add(found.runs)
        least, most = found.runs
        print(
            f"{family:7} {name:9} depth {depth:2}: each block runs {least} to {most} times, peak "
            f"{found.peak / 2**20:6.2f} MiB beyond {found.weights / 2**20:5.2f} MiB of weights, "
            f"{seconds:6.2f} s, {1000 * seconds / depth:5.0f} ms a block"
        )
    print(
        f"{family:7} {name:9} runs equal: {len(runs) == 1}; peak, largest over smallest: {max(peaks) / min(peaks):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=("dit", "pixart", "latte"), default=["pixart", "latte"])
    parser.add_argument("--fits", nargs="+", choices=FITS, default=["gptq"])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.getLogger("qdit").setLevel(logging.ERROR)  # so few iterations help no unit, and every unit says so
    for family in chosen.families:
        for name in chosen.fits:
            report(family, name, chosen.depths, chosen.width, chosen.points, chosen.batch_size)


if __name__ == "__main__":
    main()
