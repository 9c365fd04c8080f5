"""Ways to multiply: full precision, simulated quantization, integers by torch's own operations, integers as they run.

    python experiments/benchmarks/execution.py [--batch 4] [--blocks 2] [--repeats 5] [--tables layers networks memory]

Widths of DiT-XL/2 at 256 tokens, random weights, one thread. Runs alternate in one process; times are of the processor
(`time.thread_time`), so that other work costs caches and not turns; each is the median. Only ratios mean anything.
The integer products of `layers` take codes; `networks` are whole calls of a network, quantizing included. `torch` is
qdit before it had forms of weights and a kernel: `torch._int_mm`, group by group, and its own passes around it.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from time import thread_time

import torch
from tabulate import tabulate
from torch import Tensor, nn

import qdit
from qdit import compat as compat  # before diffusers
from qdit.execution import attending, executing, tune_cpu
from qdit.nn.linear import QuantLinear
from qdit.quant import native, operands
from qdit.quant.integers import Codes

CPU, WIDTH, TOKENS = torch.device("cpu"), 1152, 256
LAYERS = ((1152, 1152), (1152, 4608), (4608, 1152))
GROUPS = "weight=group activation=group"
RECIPES = {
    "rtn w8a8": ("rtn", "w8a8", ""),
    "rtn w4a4": ("rtn", "w4a4", ""),
    "groups of 128, w8a8": ("rtn", "w8a8", GROUPS),
    "groups of 128, w4a8": ("rtn", "w4a8", GROUPS),
}
Ways = Mapping[str, Callable[[], object]]


def medians(ways: Ways, repeats: int) -> dict[str, float]:
    """Seconds of each way; they take turns, and the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = thread_time()
            way()
            times[name].append(thread_time() - start)
    return {name: median(taken[1:]) for name, taken in times.items()}


def codes(rows: int, channels: int, groups: int) -> Codes:
    integers = torch.randint(-128, 128, (rows, channels), dtype=torch.int8)
    return Codes(integers, torch.rand(rows, groups), torch.randint(-128, 128, (rows, groups)).float())


def layers(args: argparse.Namespace) -> str:
    """Products of codes, against products in floating point of the same shape."""
    rows, tokens = [], args.batch * TOKENS
    for channels, out in LAYERS:
        floats = torch.randn(tokens, channels), torch.randn(channels, out)
        halves = [each.bfloat16() for each in floats]
        for groups in (1, channels // 128):
            x, weight = codes(tokens, channels, groups), codes(out, channels, groups)
            plain, form = operands.Plain(weight), operands.formed(weight, groups)
            assert torch.equal(plain.product(x, None), form.product(x, None))
            ways: Ways = {
                "float32": lambda floats=floats: floats[0] @ floats[1],
                "bfloat16": lambda halves=halves: halves[0] @ halves[1],
                "torch": partial(plain.product, x, None),
                "now": partial(form.product, x, None),
            }
            found = medians(ways, args.repeats)
            times = [f"{each * 1e3:.1f}" for each in found.values()]
            ratios = [f"{found[name] / found['now']:.2f}" for name in ("torch", "bfloat16", "float32")]
            rows.append([f"{channels} → {out}", groups, type(form).__name__, *times, *ratios])
    heads = ["layer", "groups", "form", "float32 (ms)", "bfloat16 (ms)", "int8, torch (ms)", "int8, now (ms)"]
    return tabulate(rows, [*heads, "× torch", "× bfloat16", "× float32"], "github", disable_numparse=True)


def network(blocks: int, dtype: torch.dtype, recipe: tuple[str, str, str] | None) -> nn.Module:
    from diffusers import DiTTransformer2DModel
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()
    torch.manual_seed(0)
    model = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=blocks).to(dtype).eval()
    if recipe is not None:
        name, bits, more = recipe
        qdit.quantize(model, name, *more.split(), bits=bits)
    return model


@contextmanager
def by_torch() -> Iterator[None]:
    """Meanwhile layers that multiply integers for the first time do so by torch's own operations."""
    before, native.library = native.library, lambda: None  # type: ignore[assignment]
    formed, operands.formed = operands.formed, lambda weight, _: operands.Plain(weight)
    try:
        yield
    finally:
        native.library, operands.formed = before, formed


def call(model: nn.Module, way: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """One call of a network: in `full` precision, `simulated`, on integers by `torch`, or on them as they run `now`."""
    execution = executing("simulated" if way in ("full", "simulated") else "int8", CPU)
    with torch.no_grad(), execution, attending(CPU, TOKENS), by_torch() if way == "torch" else nullcontext():
        x, t, y = inputs
        return model(x.to(model.dtype), timestep=t, class_labels=y).sample  # type: ignore[operator]


def networks(args: argparse.Namespace) -> str:
    """Whole networks, against the same in full precision."""
    inputs = torch.randn(args.batch, 4, 32, 32), torch.full((args.batch,), 500), torch.arange(args.batch)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        full = network(args.blocks, dtype, None)
        for name, recipe in RECIPES.items():
            made = {way: network(args.blocks, dtype, recipe) for way in ("simulated", "torch", "now")} | {"full": full}
            ways = {way: partial(call, made[way], way, inputs) for way in ("full", "simulated", "torch", "now")}
            assert torch.equal(ways["torch"](), ways["now"]())
            found = medians(ways, args.repeats)
            times = [f"{found[way] * 1e3:.0f}" for way in ways]
            ratios = [f"{found[way] / found['now']:.2f}" for way in ("full", "simulated", "torch")]
            rows.append([name, str(dtype).removeprefix("torch."), *times, *ratios])
    heads = ["recipe", "network", "full (ms)", "simulated (ms)", "int8, torch (ms)", "int8, now (ms)"]
    return tabulate(rows, [*heads, "× full", "× simulated", "× torch"], "github", disable_numparse=True)


def memory(args: argparse.Namespace) -> str:
    """Bytes that quantized layers hold for a weight, after a call of each kind."""
    inputs = torch.randn(1, 4, 32, 32), torch.full((1,), 500), torch.zeros(1, dtype=torch.long)
    rows = []
    for name, recipe in RECIPES.items():
        model = network(1, torch.float32, recipe)
        found = [m for m in model.modules() if isinstance(m, QuantLinear)]
        count = sum(m.shape[0] * m.shape[1] for m in found)
        row: list[str] = [name]
        for execution in ("simulated", "int8"):
            call(model, "now" if execution == "int8" else execution, inputs)
            row.append(f"{sum(m.bytes for m in found) / count:.2f}")
        rows.append(row)
    return tabulate(rows, ["recipe", "simulated", "int8"], "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    tables = {"layers": layers, "networks": networks, "memory": memory}
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_cpu()
    amx = torch.cpu._is_amx_tile_supported()
    print(f"batch {args.batch}, {TOKENS} tokens, one thread, {torch.backends.cpu.get_cpu_capability()}, AMX: {amx}\n")
    for name in args.tables:
        print(tables[name](args), end="\n\n")


if __name__ == "__main__":
    main()
