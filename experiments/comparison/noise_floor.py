"""How far samples move that should not: the noise floor under the comparison's numbers.

    qdit -m quantizer=rtn,q_dit,svdquant bits=w8a8,w4a4 num_samples=256 execution=simulated study=floor
    python experiments/comparison/noise_floor.py [--runs-dir runs] [--study floor] [--num-samples 128]

The quantized models of a study are sampled again from their checkpoints, on the same noise: on integers, simulated, on
integers once more, and on integers with every weight of the patch embedding, which no recipe of a row here quantizes,
moved to the next float32. Of each pair two things are shown: how far the samples lie apart (SQNR of one against the
other, the mean over samples, in dB), and how much the SQNR to full precision, which the comparison shows, differs
(mean and standard error of the differences sample by sample). The first row is full precision itself.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tabulate import tabulate
from torch import Tensor

from qdit.checkpoint import checkpoint
from qdit.config import resolved
from qdit.execution import Execution, executing, tune_cpu
from qdit.model.base import DiffusionModel
from qdit.quant.decibels import decibels
from qdit.quantized import Quantized
from qdit.runs.setup import Setup, assemble
from qdit.tables import load_results


@contextmanager
def moved(model: DiffusionModel) -> Iterator[None]:
    """Meanwhile every weight of the patch embedding is the next float32 above."""
    weight = model.denoiser.get_submodule("pos_embed.proj").weight
    before = weight.data
    weight.data = torch.nextafter(before, torch.full_like(before, torch.inf))
    try:
        yield
    finally:
        weight.data = before


def latents(parts: Setup, config: dict[str, Any], quantized: Quantized | None, execution: Execution, n: int) -> Tensor:
    """The first `n` samples [n, C, h, w] of a run's noise and batches, quantized or in full precision."""
    found = []
    with executing(execution, parts.model.device):
        for start in range(0, n, config["batch_size"]):
            indices = list(range(start, min(start + config["batch_size"], n)))
            about = parts.model, indices, parts.dataset.labels(indices, config["seed"]), config["seed"]
            if quantized is None:
                found.append(parts.sampler.sample(*about))
            else:
                with quantized.installed(parts.model):
                    found.append(parts.sampler.sample(*about, hook=quantized.correction))
    return torch.cat(found).float()


def apart(one: Tensor, other: Tensor) -> Tensor:
    """SQNR [n] in dB of `other`, with `one` as the signal."""
    return decibels(one.flatten(1).square().sum(1), (other - one).flatten(1).square().sum(1))


def shown(full: Tensor, usual: Tensor, other: Tensor) -> list[str]:
    """The two columns of a pair."""
    between = apart(usual, other)
    if torch.equal(usual, other):
        return ["the same bits", "0"]
    change = apart(full, other) - apart(full, usual)
    error = change.std() / len(change) ** 0.5
    return [f"{between.mean():.1f}", f"{change.mean():+.2f} ± {error:.2f}"]


def rows(run: dict[str, Any], n: int, full: dict[str, Tensor]) -> list[str]:
    """One line of the table."""
    folder = Path(run["folder"])
    config = resolved(OmegaConf.load(folder / "config.yaml"))
    loaded = {"quantizer": {"name": "load", "path": str(folder / "checkpoint")}, "execution": "auto"}
    parts = assemble(config | loaded | {"num_samples": n, "eval": {}})
    if not full:
        full["usual"] = latents(parts, config, None, "simulated", n)
        with moved(parts.model):
            full["moved"] = latents(parts, config, None, "simulated", n)
    quantized = checkpoint.load(folder / "checkpoint", parts.model)
    usual = latents(parts, config, quantized, "int8", n)
    others = [latents(parts, config, quantized, way, n) for way in ("int8", "simulated")]
    with moved(parts.model):
        others.append(latents(parts, config, quantized, "int8", n))
    cells = [cell for other in others for cell in shown(full["usual"], usual, other)]
    return [run["quantizer"], run["bits"], f"{apart(full['usual'], usual).mean():.1f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--study", default="floor")
    parser.add_argument("--num-samples", type=int, default=128)
    args = parser.parse_args()
    tune_cpu()
    runs = load_results(args.runs_dir, args.study)
    runs = runs[(runs.status == "done") & runs.folder.map(lambda folder: (Path(folder) / "checkpoint").is_dir())]
    full: dict[str, Tensor] = {}
    lines = [rows(run, args.num_samples, full) for run in runs.to_dict("records")]
    first = f"{apart(full['usual'], full['moved']).mean():.1f}"
    heads = ["recipe", "bits", "SQNR (dB)", "again: apart (dB)", "SQNR moves (dB)"]
    heads += ["simulated: apart (dB)", "SQNR moves (dB)", "one unit: apart (dB)", "SQNR moves (dB)"]
    lines = [["full precision", "w16a16", "—", "—", "—", "—", "—", first, "—"], *lines]
    print(tabulate(lines, heads, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
