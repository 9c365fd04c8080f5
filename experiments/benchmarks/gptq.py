"""What GPTQ costs: the column loop against a plain one, and a whole network against its depth.

    python experiments/benchmarks/gptq.py columns                 # a block of DiT-XL/2: widths 1152 and 4608
    python experiments/benchmarks/gptq.py depth --depths 4 8 16   # seconds a block, peak memory beyond the model

Processor seconds are reported, so that other work on the machine does not show. `columns` compares only the loop: the
Hessian's factor is the same for both, and rows are vectorised in both; what is gained comes from lazy blocks, in-place
updates and contiguous columns. `depth` counts the live bytes of tensors: those that a fit makes and frees, without the
rounded weights, which it returns and which grow with the network.
"""

import argparse
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdit.activation import DynamicActivation
from qdit.calibration import CalibrationData
from qdit.method import Method, quantize
from qdit.model.dit import list_sites
from qdit.nn.clock import Clock
from qdit.quant.affine import round_to_grid
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ
from qdit.rounding.gptq_columns import Curvature, round_columns
from qdit.scope import Scope
from qdit.weight import WeightGrid

ROLES = ["qkv", "attn_out", "ffn_up", "ffn_down"]
XL = {"qkv": (3456, 1152), "attn_out": (1152, 1152), "ffn_up": (4608, 1152), "ffn_down": (1152, 4608)}


def plain(weight: torch.Tensor, curve: Curvature, spec, fit, block_size: int) -> torch.Tensor:
    """Column by column, every later column updated at once; rows vectorised."""
    weight, factor = weight.clone(), curve.factor.to(weight.dtype)
    for i in range(weight.shape[1]):
        if i % spec.group_size == 0:
            grid = fit(weight[:, i : i + spec.group_size].contiguous(), spec)
        rounded = round_to_grid(weight[:, i : i + 1], grid)
        error = (weight[:, i : i + 1] - rounded) / factor[i, i]
        weight[:, i:] -= error * factor[i, i:]
        weight[:, i : i + 1] = rounded
    return weight


def columns(group_size: int) -> None:
    """Time the loops on one block of DiT-XL/2, with random factors of the right kind."""
    part = WeightGrid(granularity="group", group_size=group_size, grid="asymmetric", range=MinMax())
    spec, total = part.spec(4), torch.zeros(2)
    for role, (out, channels) in XL.items():
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(out, channels, generator=generator) / channels**0.5
        upper = torch.randn(channels, channels, generator=generator).triu(1) / channels**0.5 * 0.1
        factor = (upper + torch.eye(channels)).double()
        natural = torch.arange(channels)
        curve = Curvature(factor, natural, torch.zeros(channels, dtype=torch.bool), by_activity=False)
        seconds = []
        for method in (plain, round_columns):
            start = time.process_time()
            method(weight, curve, spec, part.fit, 128)
            seconds.append(time.process_time() - start)
        total += torch.tensor(seconds)
        gain = seconds[0] / seconds[1]
        print(f"{role:9} {out}x{channels}: plain {seconds[0]:7.2f} s, qdit {seconds[1]:5.2f} s, {gain:.1f}x")
    print(f"block: plain {total[0]:.2f} s, qdit {total[1]:.2f} s, {total[0] / total[1]:.1f}x")


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
        before = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) in before or storage in self.known:
                continue
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result


class Network:
    """A random DiT, as far as a fit sees it."""

    device, dtype = torch.device("cpu"), torch.float32
    clock = Clock()

    def __init__(self, depth: int, width: int) -> None:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        self.denoiser = DiTTransformer2DModel(
            num_attention_heads=width // 64, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=depth,
            sample_size=16, patch_size=2, num_embeds_ada_norm=10,
        ).eval()  # fmt: skip

    def sites(self):
        return list_sites(self.denoiser)

    def denoise(self, x, t, y):
        return self.denoiser(x, timestep=t, class_labels=y, return_dict=False)[0]


def depth(depths: list[int], width: int, points: int) -> None:
    """Time and measure whole fits of networks that differ in depth alone."""
    parts = Method(
        scope=Scope(roles=ROLES),
        weight=WeightGrid(granularity="group", group_size=64, grid="asymmetric", range=MinMax()),
        activation=DynamicActivation(granularity="group", group_size=64, grid="asymmetric"),
        rounding=GPTQ(),
        weight_bits=4,
        activation_bits=8,
        calibration=None,
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(points, 4, 16, 16, generator=generator)
    data = CalibrationData(x, torch.arange(points) * 7 % 1000, torch.arange(points) % 11, 8)
    costs = []
    for blocks in depths:
        network = Network(blocks, width)
        start = time.process_time()
        quantized = quantize(network, parts, lambda: data)  # pyright: ignore[reportArgumentType]
        seconds = time.process_time() - start
        with LiveBytes() as live:
            again = quantize(network, parts, lambda: data)  # pyright: ignore[reportArgumentType]
        held = [(layer.weight, layer.rounded.codes, layer.rounded.grid) for layer in again.layers.values()]
        result = sum(w.nbytes + codes.nbytes + grid.scale.nbytes + grid.zero_point.nbytes for w, codes, grid in held)
        assert len(quantized.layers) == len(again.layers)
        costs.append((seconds / blocks, live.peak - result))
        print(
            f"depth {blocks:2}: {seconds:6.2f} s, {1000 * seconds / blocks:6.0f} ms a block, "
            f"peak {(live.peak - result) / 2**20:6.1f} MiB beyond {result / 2**20:.1f} MiB of rounded weights"
        )
    spread = [max(cost) / min(cost) for cost in zip(*costs, strict=True)]
    print(f"largest over smallest: {spread[0]:.2f} in time a block, {spread[1]:.2f} in peak memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("columns", "depth"))
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.what == "columns":
        columns(chosen.group_size)
    else:
        depth(chosen.depths, chosen.width, chosen.points)


if __name__ == "__main__":
    main()
