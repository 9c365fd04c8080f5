"""What quantized networks take while they run: their tensors, counted, and what the process holds for them.

    python experiments/benchmarks/memory.py [--width 1152] [--blocks 1] [--recipes rtn q_dit …] [--dtype bfloat16]

A network of DiT's, as wide as DiT-XL/2 unless told otherwise, with random weights, is quantized, written by
`save_pretrained`, and read again in a process of its own, which has loaded its libraries and nothing else. Recipes that
are calibrated see eight points of noise, and PTQ4DiT learns for two steps: their numbers are worth nothing, and their
memory is what it would be.

`held` counts the tensors after a call; `a weight` is that of quantized layers alone, in bytes; `resident` and `peak`
are the process's, less what it held before it read the network; all in MB.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import qdit
from qdit import compat as compat  # before diffusers
from qdit.calibration import CalibrationData
from qdit.environment import peak_memory_bytes, reset_peak_memory
from qdit.execution import executing, tune_cpu
from qdit.nn.held import held
from qdit.nn.linear import QuantLinear

RECIPES = {"rtn": (), "q_dit": (), "vidit_q": (), "svdquant": (), "ptq4dit": ("rounding.iterations=2",)}
BITS = ("w8a8", "w4a8", "w4a4")
HEADS = ("recipe", "bits", "execution", "a weight (B)", "held (MB)", "× full", "resident (MB)", "peak (MB)")
CPU = torch.device("cpu")


def points(dtype: torch.dtype) -> CalibrationData:
    x, t = torch.randn(8, 4, 32, 32).to(dtype), torch.tensor([0, 250, 500, 750]).repeat(2)
    return CalibrationData(x, t, torch.arange(8), batch_size=2)


def make(folder: Path, width: int, blocks: int, dtype: torch.dtype, recipe: tuple[str, str] | None) -> None:
    """Write a network, quantized by a recipe and its bits."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = {"num_attention_heads": 16, "attention_head_dim": width // 16, "num_layers": blocks}
    model = DiTTransformer2DModel(**shape).to(dtype).eval()
    if recipe is not None:
        name, bits = recipe
        qdit.quantize(model, name, *RECIPES[name], bits=bits, data=points(dtype))
    model.save_pretrained(folder)


def resident() -> int:
    """Bytes that this process holds, after what is free has gone back to the system."""
    import ctypes
    import os

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path, execution: Any, dtype: torch.dtype, answer: Callable[[Any], None]) -> None:
    """Read a network, call it, and answer with bytes: a weight, of tensors, resident, and at the most."""
    from diffusers import DiTTransformer2DModel

    torch.set_num_threads(1)
    before = resident()
    reset_peak_memory()
    model: Any = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).eval()
    x, t, y = torch.randn(1, 4, 32, 32).to(dtype), torch.tensor([500]), torch.tensor([0])
    with torch.inference_mode(), nullcontext() if execution is None else executing(execution, CPU):
        model(x, timestep=t, class_labels=y)
    layers = [each for each in model.modules() if isinstance(each, QuantLinear)]
    weights = sum(each.shape[0] * each.shape[1] for each in layers)
    each = sum(layer.bytes for layer in layers) / weights if weights else None
    answer((each, held(model), resident() - before, peak_memory_bytes() - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    tune_cpu()
    with tempfile.TemporaryDirectory() as folder:  # what loads libraries, before this process is copied
        make(Path(folder), 64, 1, torch.float32, ("rtn", "w8a8"))
        measure(Path(folder), "int8", torch.float32, [].append)
    dtype, processes = getattr(torch, args.dtype), get_context("fork")

    def apart(job: Any, *words: Any) -> None:
        process = processes.Process(target=job, args=words)
        process.start()
        process.join()
        assert process.exitcode == 0

    rows: list[list[str]] = []
    full = 0
    for recipe in [None, *((name, bits) for name in args.recipes for bits in args.bits)]:
        with tempfile.TemporaryDirectory() as folder:
            apart(make, Path(folder), args.width, args.blocks, dtype, recipe)
            both = recipe is not None and recipe[0] == args.recipes[0]  # the first recipe shows what simulation takes
            for execution in ("int8", "simulated") if both else ("int8" if recipe else None,):
                answer = processes.SimpleQueue()
                apart(measure, Path(folder), execution, dtype, answer.put)
                a_weight, *counts = answer.get()
                full = full or counts[0]
                shown = [f"{count / 1e6:.1f}" for count in counts]
                shown.insert(1, f"{counts[0] / full:.2f}")
                about = [*(recipe or ("full precision", args.dtype)), execution or ""]
                rows.append([*about, f"{a_weight:.2f}" if a_weight else "", *shown])
                print(*rows[-1], flush=True)
    print(tabulate(rows, HEADS, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
