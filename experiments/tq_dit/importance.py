"""What it costs that importances are kept as means of rows and of channels, by the released score.

    python experiments/tq_dit/importance.py [--bits 6] [--rows 2048] [--blocks 0 3 7]

TQ-DiT and PTQ4ViT weigh the squared error of each entry of a layer's output by its own squared gradient g²; qdit keeps
the mean of g² of each row and of each channel, whose product stands for it. Here the ranges of weights are chosen among
the recipe's candidates by both, with full-precision inputs, and judged by the released score: how much worse than the
best candidate is the one that the product chooses? Judged on the rows that chose, and on as many others.
"""

import argparse
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from qdit.assets import CONF
from qdit.calibration.observers import outputs, watching
from qdit.config import resolved
from qdit.execution import repeatable
from qdit.hessian.importance import points_at_once
from qdit.runs.setup import assemble
from qdit.seeding import generator

ROLES = ("qkv", "attn_out", "ffn_up", "ffn_down")


def collected(model, data, sites, target, seed: int, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs [rows, in] and squared gradients [rows, out] at the same random rows, by site."""
    names = [site.name for site in sites]
    tokens = {site.name: site.tokens for site in sites}
    wanted = {n: torch.randperm(len(data.x) * tokens[n], generator=generator(seed, n, 0))[:rows] for n in names}
    inputs, squares = ({name: [] for name in names} for _ in range(2))
    first, data = 0, replace(data, batch_size=points_at_once(model))
    for x, t, y in data.batches(model):
        seen: dict[str, Tensor] = {}

        def see(site, layer, value, out, seen=seen) -> None:
            seen[site.name] = value.detach().flatten(0, -2)

        with (
            torch.enable_grad(),
            repeatable(model.device),
            outputs(model.denoiser, names) as nodes,
            watching(model, sites, see),
        ):
            output = model.denoise(x, t, y)[:, : x.shape[1]].float()
            slopes = list(target.slopes(output.detach(), torch.arange(first, first + len(x)), seed))
            found = [torch.autograd.grad(output, [nodes[n][0] for n in names], s, retain_graph=True) for s in slopes]
        for k, name in enumerate(names):
            g2 = torch.stack([each[k].flatten(0, -2).square() for each in found]).mean(0)
            start = first * tokens[name]
            here = wanted[name][(wanted[name] >= start) & (wanted[name] < start + len(g2))] - start
            inputs[name].append(seen[name][here].float())
            squares[name].append(g2[here].float())
        first += len(x)
    return {name: (torch.cat(inputs[name]), torch.cat(squares[name])) for name in names}


def product_of_means(g2: Tensor) -> Tensor:
    """What qdit keeps of g² [rows, out]."""
    return g2.mean(1, keepdim=True) * g2.mean(0) / g2.mean()


def scores(weight: Tensor, start, factors: Tensor, x: Tensor, weighings: list[Tensor]) -> Tensor:
    """The weighted squared error of the output of each candidate, [candidates, weighings]."""
    found = []
    for factor in factors:
        rounded = start.scaled(factor.view(1, 1)).round(weight.reshape(1, -1)).view_as(weight)
        error = (x @ (weight - rounded).T).square_()
        found.append(torch.stack([(error * weighing).sum() for weighing in weighings]))
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 3, 7])
    arguments = parser.parse_args()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["quantizer=tq_dit", f"bits=w{arguments.bits}a{arguments.bits}", "device=cpu"]
        config = resolved(compose("config", words))
    parts = assemble(config)
    recipe, model = parts.recipe, parts.model
    assert recipe is not None
    rule = recipe.weight.range
    with torch.no_grad():
        data = recipe.calibration.collect(model, parts.sampler, parts.dataset, config["seed"])
        sites = [s for s in model.sites() if s.block in arguments.blocks and s.role in ROLES]
        found = collected(model, data, sites, rule.target, rule.seed, 2 * arguments.rows)
        worse = []
        print(f"{'site':40s} {'chosen by entries':>18s} {'by means':>9s} {'worse, same rows':>17s} {'other rows':>11s}")
        for site in sites:
            weight, (x, g2) = model.denoiser.get_submodule(site.name).weight.float(), found[site.name]
            (own, other), (own_g2, other_g2) = x.split(arguments.rows), g2.split(arguments.rows)
            start, factors = recipe.weight.fit(weight, recipe.layer.weight), rule.factors()
            chosen_by = scores(weight, start, factors, own, [own_g2, product_of_means(own_g2)])
            judged = scores(weight, start, factors, other, [other_g2])[:, 0]
            entries, means = chosen_by.argmin(0).tolist()
            ratios = [float(each[means] / each[entries]) - 1 for each in (chosen_by[:, 0], judged)]
            worse.append(ratios)
            choice = f"{factors[entries]:18.3f} {factors[means]:9.3f}"
            print(f"{site.name:40s} {choice} {ratios[0]:17.1%} {ratios[1]:11.1%}", flush=True)
        mean, most = torch.tensor(worse).mean(0), torch.tensor(worse).amax(0)
        print(f"mean {mean[0]:.1%} and {mean[1]:.1%}, most {most[0]:.1%} and {most[1]:.1%} of {len(sites)} weights")


if __name__ == "__main__":
    main()
