"""Where does the error come from? SQNR per layer and per timestep, teacher-forced on full-precision trajectories.

Teacher-forced means that every step starts from the full-precision x_t, so that errors do not accumulate: the local
error of each timestep, the right target for sensitivity.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdit.calibration.observers import attended_rows, watching, watching_operands
from qdit.dataset.base import Source
from qdit.model.base import DiffusionModel
from qdit.nn.attention import by_rows
from qdit.quant.decibels import decibels
from qdit.quant.time_groups import Time
from qdit.quantized import Quantized
from qdit.sampler.sampler import Sampler, each_time
from qdit.seeding import DIAGNOSIS
from qdit.storage.progress import progress


@dataclass(frozen=True)
class Trajectory:
    """States of a full-precision trajectory: x_t [steps, n, C, h, w], t [steps], outputs [steps, n, …], labels [n]."""

    states: Tensor
    timesteps: list[Time]
    outputs: Tensor
    labels: Tensor


@torch.no_grad()
def trajectory(model: DiffusionModel, sampler: Sampler, dataset: Source, seed: int, n: int) -> Trajectory:
    """Sample `n` trajectories in full precision and keep every state and guided output."""
    indices = [DIAGNOSIS + i for i in range(n)]
    labels = dataset.labels(indices, seed)
    kept: list[tuple[Time, Tensor, Tensor]] = []
    sampler.sample(model, indices, labels, seed, callback=lambda step, t, x, out: kept.append((t, x.cpu(), out.cpu())))
    return Trajectory(
        torch.stack([k[1] for k in kept]), [k[0] for k in kept], torch.stack([k[2] for k in kept]), labels
    )


@torch.no_grad()
def timestep_curve(model: DiffusionModel, sampler: Sampler, quantized: Quantized, path: Trajectory) -> dict:
    """Mean SQNR (dB) of the guided output at every step of the path, with its standard error over samples.

    A correction of the output belongs to what is sampled, and so to this curve; reports of layers have none of it.
    """
    mean, error = [], []
    with quantized.installed(model):
        for step, t in enumerate(progress(path.timesteps, desc="error by timestep", unit="step", leave=False)):
            output = sampler.predict(model, path.states[step].to(model.device), t, path.labels.to(model.device))
            if quantized.correction is not None:
                output = quantized.correction.output(output, t)
            full = path.outputs[step].double()
            values = decibels(_energy(full), _energy(output.cpu().double() - full))
            mean.append(values.mean().item())
            error.append((values.std() / len(values) ** 0.5).item() if len(values) > 1 else None)
    return {
        "x": path.timesteps,
        "y": mean,
        "stderr": error,
        "xlabel": "timestep",
        "ylabel": "teacher-forced SQNR (dB)",
    }


def _energy(x: Tensor) -> Tensor:
    """Sum of squares of each sample."""
    return x.flatten(1).square().sum(1)


@torch.no_grad()
def layer_report(model: DiffusionModel, quantized: Quantized, path: Trajectory, steps: int = 4) -> list[dict]:
    """Each quantized layer's SQNR (dB) on its full-precision input, over evenly spaced steps of the path.

    Inputs and outputs are those of the network as its transform rewrote it: the ones that the layer was made for. An
    operand of an attention has the SQNR of its own values, and no weight.
    """
    sites = [s for s in model.sites() if s.name in quantized.policy]
    energy: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
    labels = path.labels.to(model.device)

    def add(site: str, exact: Tensor, rounded: Tensor, tokens: int = 1) -> None:
        """Count values whose dimension `tokens` holds a layer's rows, or an operand's tokens."""
        if model.attended(site, labels) is not None:
            ordered = (rows.movedim(tokens, 1) for rows in (exact, rounded))
            exact, rounded = (attended_rows(model, site, labels, rows) for rows in ordered)
        noise = (rounded - exact).float().square().sum()
        energy[site] += torch.stack([exact.float().square().sum(), noise]).cpu()

    def compare(site, layer, x, output) -> None:
        add(site.name, output, quantized.layers[site.name](x))

    attentions = [a for a in model.attentions() if a.processor in quantized.attention] if quantized.attention else []
    operands = {site: (a, operand) for a in attentions for operand, site in a.sites.items() if site in quantized.policy}

    def compare_operand(site: str, x: Tensor) -> None:
        if site in operands:
            attention, operand = operands[site]
            add(site, x, getattr(quantized.attention[attention.processor], operand)(x), tokens=2)

    in_parts = all(by_rows(attend.probs) for attend in quantized.attention.values())
    chosen = reported(model, path.timesteps, steps)
    with (
        quantized.rewrite.installed(model),
        watching(model, sites, compare),
        watching_operands(model, attentions, compare_operand, in_parts),
    ):
        for step in chosen:
            x = path.states[step].to(model.device, model.dtype)
            model.denoise(x, each_time(path.timesteps[step], labels), labels)
    places = {s.name: (s.role, s.block, quantized.policy[s.name].weight_bits) for s in sites}
    places |= {site: (operand, attention.block, None) for site, (attention, operand) in operands.items()}
    return [
        {
            "site": site,
            "role": role,
            "block": block,
            "weight_bits": weight_bits,
            "activation_bits": quantized.policy[site].activation_bits,
            "sqnr": decibels(*energy[site]).item(),
        }
        for site, (role, block, weight_bits) in places.items()
        if site in energy  # a network whose turn does not come has none
    ]


def reported(model: DiffusionModel, timesteps: Sequence[Time], steps: int) -> list[int]:
    """So many evenly spaced steps of a path at most; where networks take turns, so many of each."""
    times = torch.tensor(timesteps)
    taken = [turn.takes(times) for turn in model.turns()] or [torch.ones_like(times, dtype=torch.bool)]
    chosen: set[int] = set()
    for places in (mask.nonzero().flatten().tolist() for mask in taken):
        spread = torch.linspace(0, len(places) - 1, min(steps, len(places))).round().int()
        chosen |= {places[n] for n in spread.tolist()}
    return sorted(chosen)
