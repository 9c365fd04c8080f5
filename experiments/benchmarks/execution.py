"""Ways to multiply: full precision, simulated quantization, integers by torch's own operations, integers as they run.

    python experiments/benchmarks/execution.py [--batch 1 4 16] [--blocks 2] [--compile]
                                               [--others openvino torchao sdnq quanto onnxruntime]
                                               [--tables layers networks memory]

Widths of DiT-XL/2 at 256 tokens, random weights, one thread. Runs alternate in one process; times are of the processor,
of all threads of the process (`time.process_time`: engines of others compute on threads of their own), so that other
work costs caches and not turns; each is the median. Only ratios mean anything. The integer products of `layers` take
codes; `networks` are whole calls of a network, quantizing included. `torch` is qdit before it had forms of weights and
a kernel: `torch._int_mm`, group by group, and its own passes around it. `openvino` is full precision by OpenVINO in
float32 and bfloat16, and those recipes that `execution=openvino` runs.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from time import process_time

import torch
from tabulate import tabulate
from torch import Tensor, nn

import qdit
from qdit import compat as compat  # before diffusers
from qdit.calibration import CalibrationData
from qdit.engine.misfits import forms_in, problem
from qdit.engine.openvino import OpenVINO
from qdit.execution import attending, executing, tune_cpu
from qdit.nn.compiled import Compiled, calling
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
    "static w8a8": ("rtn", "w8a8", "activation=tensor"),
    "quarot w4a4": ("quarot", "w4a4", "rounding=nearest"),
    "vidit_q w4a4": ("vidit_q", "w4a4", ""),
    "svdquant w4a4": ("svdquant", "w4a4", "transform.steps.lowrank.rank=32 transform.steps.lowrank.iterations=0"),
}
INSIDE = re.compile(r"transformer_blocks\.\d+\.(attn1|ff)\.").match
Ways = Mapping[str, Callable[[], object]]


def medians(ways: Ways, repeats: int) -> dict[str, float]:
    """Seconds of each way; they take turns, and the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = process_time()
            way()
            times[name].append(process_time() - start)
    return {name: median(taken[1:]) for name, taken in times.items()}


def codes(rows: int, channels: int, groups: int) -> Codes:
    integers = torch.randint(-128, 128, (rows, channels), dtype=torch.int8)
    return Codes(integers, torch.rand(rows, groups), torch.randint(-128, 128, (rows, groups)).float())


def layers(args: argparse.Namespace) -> str:
    """Products of codes, against products in floating point of the same shape."""
    rows, tokens = [], args.batch[0] * TOKENS
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
                "now, bfloat16": partial(form.product, x, None, torch.bfloat16),
            }
            found = medians(ways, args.repeats)
            times = [f"{each * 1e3:.1f}" for each in found.values()]
            pairs = ("torch", "now"), ("float32", "now"), ("bfloat16", "now, bfloat16")
            ratios = [f"{found[one] / found[other]:.2f}" for one, other in pairs]
            rows.append([f"{channels} → {out}", groups, type(form).__name__, *times, *ratios])
    heads = ["layer", "groups", "form", "float32 (ms)", "bfloat16 (ms)", "int8, torch (ms)", "int8, now (ms)"]
    heads += ["its output in bfloat16 (ms)", "× torch", "× float32", "× bfloat16"]
    return tabulate(rows, heads, "github", disable_numparse=True)


def network(blocks: int, dtype: torch.dtype, recipe: tuple[str, str, str] | None) -> nn.Module:
    from diffusers import DiTTransformer2DModel
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()
    torch.manual_seed(0)
    model = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=blocks).to(dtype).eval()
    if recipe is not None:
        name, bits, more = recipe
        qdit.quantize(model, name, *more.split(), bits=bits, data=points())
    return model


def points() -> CalibrationData:
    """A few random states, which give static ranges to random weights."""
    return CalibrationData(torch.randn(8, 4, 32, 32), torch.arange(0, 800, 100), torch.arange(8), batch_size=4)


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


def compiled(model: nn.Module, way: str, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """Calls of a network as one graph."""
    graph = Compiled(model)

    def run() -> Tensor:
        with calling(graph):
            return call(model, way, inputs)

    return run


def by_openvino(model: nn.Module, inputs: tuple[Tensor, ...], hint: str = "f32") -> Callable[[], Tensor]:
    """Calls of a network by OpenVINO; in full precision `hint` says what it computes in."""
    engine = OpenVINO(model, {"INFERENCE_PRECISION_HINT": hint})

    def run() -> Tensor:
        with calling(engine):
            return call(model, "full", inputs)

    run()
    print(f"openvino, {hint}: {engine.seconds:.0f} s to compile, {engine.layers or 'no quantized layers'}")
    return run


def by_torchao(model: nn.Module) -> nn.Module:
    """The layers that qdit's recipes quantize, by torchao: weights and dynamic inputs of 8 bits."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig(), lambda m, name: isinstance(m, nn.Linear) and INSIDE(name))
    return model


def by_sdnq(model: nn.Module) -> nn.Module:
    """The same layers by SDNQ, with its products of integers."""
    from sdnq import sdnq_post_load_quant

    others = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not INSIDE(name)]
    options = {"weights_dtype": "int8", "use_quantized_matmul": True, "add_skip_keys": False}
    return sdnq_post_load_quant(model, modules_to_not_convert=others, **options)


def by_quanto(model: nn.Module) -> nn.Module:
    """The same layers by optimum-quanto: int8 weights, and inputs of int8 with one range, of the first call."""
    from optimum.quanto import Calibration, freeze, qint8, quantize

    others = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not INSIDE(name)]
    quantize(model, weights=qint8, activations=qint8, exclude=others)
    with torch.no_grad(), Calibration():
        model(torch.randn(1, 4, 32, 32).to(model.dtype), torch.full((1,), 500), torch.zeros(1, dtype=torch.long))
    freeze(model)
    return model


def by_onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """All layers by onnxruntime's dynamic quantization: int8 weights, inputs of a range a tensor; else in float32."""
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    x, t, y = inputs
    names = ["x", "t", "y"]
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = f"{folder}/plain.onnx", f"{folder}/quantized.onnx"
        told = {"hidden_states": x, "timestep": t, "class_labels": y, "return_dict": False}
        torch.onnx.export(model.float(), (), plain, kwargs=told, input_names=names, dynamo=True, verbose=False)
        quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8, per_channel=True)
        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    found = [each.name for each in session.get_inputs()]
    given = dict(zip(found, (each.numpy() for each in inputs), strict=True))
    return lambda: session.run(None, given)


OTHERS = {"torchao": by_torchao, "sdnq": by_sdnq, "quanto": by_quanto}
ENGINES = ("openvino", "onnxruntime")


def networks(args: argparse.Namespace) -> str:
    """Whole networks, against the fastest way in full precision."""
    rows = []
    for name in args.dtypes:
        for batch in args.batch:
            found = medians(ways_of(args, getattr(torch, name), batch), args.repeats)
            best = min(time for way, time in found.items() if way.startswith("full"))
            shown = [(way, f"{time * 1e3:.0f}", f"{best / time:.2f}") for way, time in found.items()]
            rows += [[name, batch, *each] for each in shown]
    heads = ["network", "batch", "way", "ms", "× the best full"]
    return tabulate(rows, heads, "github", disable_numparse=True)


def ways_of(args: argparse.Namespace, dtype: torch.dtype, batch: int) -> Ways:
    """All that a network is called in."""
    torch._dynamo.reset()  # graphs of another batch are not called again
    inputs = torch.randn(batch, 4, 32, 32), torch.full((batch,), 500), torch.arange(batch)
    full, engine = network(args.blocks, dtype, None), "openvino" in args.others
    ways: dict[str, Callable[[], object]] = {"full": partial(call, full, "full", inputs)}
    if args.compile:
        ways["full, compiled"] = compiled(full, "full", inputs)
    if engine:
        hints = ("f32",) if dtype == torch.float32 else ("f32", "bf16")
        ways |= {f"full, openvino {hint}": by_openvino(full, inputs, hint) for hint in hints}
    for recipe in args.recipes:
        made = {way: network(args.blocks, dtype, RECIPES[recipe]) for way in ("simulated", "torch", "now")}
        ways |= {f"{recipe}: {way}": partial(call, model, way, inputs) for way, model in made.items()}
        assert torch.equal(call(made["torch"], "torch", inputs), call(made["now"], "now", inputs))
        if args.compile:
            ways[f"{recipe}: now, compiled"] = compiled(made["now"], "now", inputs)
        if engine and problem(forms_in(made["simulated"])) is None:
            ways[f"{recipe}: openvino"] = by_openvino(made["simulated"], inputs)
    for other in (other for other in args.others if other in OTHERS):
        model = OTHERS[other](network(args.blocks, dtype, None))
        ways[f"{other} w8a8"] = partial(call, model, "full", inputs)
        if args.compile and other != "quanto":  # whose tensors torch cannot make a graph of
            ways[f"{other} w8a8, compiled"] = compiled(model, "full", inputs)
    if "onnxruntime" in args.others:
        ways["onnxruntime w8a8"] = by_onnxruntime(network(args.blocks, torch.float32, None), inputs)
    return ways


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
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--others", nargs="*", choices=(*OTHERS, *ENGINES), default=(), help="those installed")
    parser.add_argument("--compile", action="store_true", help="compiled networks, too, which takes minutes")
    tables = {"layers": layers, "networks": networks, "memory": memory}
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_cpu()
    amx = torch.cpu._is_amx_tile_supported()
    print(
        f"batch {args.batch[0]}, {TOKENS} tokens, one thread, {torch.backends.cpu.get_cpu_capability()}, AMX: {amx}\n"
    )
    for name in args.tables:
        print(tables[name](args), end="\n\n")


if __name__ == "__main__":
    main()
