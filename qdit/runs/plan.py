"""The plan that `qdit dry=true` prints: what would be quantized, at which bits and cost; what would not, and why."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from qdit.checkpoint.manifest import Manifest
from qdit.config import build
from qdit.dataset.prompts import Prompts
from qdit.ledger import Ledger, attention_products, weight_storage_bits
from qdit.model.base import Attention, Site
from qdit.model.text import TextModel
from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import QuantSpec
from qdit.runs.setup import Setup, assemble, missing_here
from qdit.scope import Scope
from qdit.transform import Transform


def describe(config: dict[str, Any]) -> None:
    """Print the plan of a config; nothing is written or computed."""
    parts = assemble(config)
    policy = parts.policy()
    console = Console(width=None if Console().is_terminal else 240)
    table = headed(config["name"])
    left: dict[str, list[str]] = {}
    for site, *cells, why in [*site_rows(parts, policy), *operand_rows(parts.model.attentions(), policy)]:
        table.add_row(site, *cells)
        if why:
            left.setdefault(why, []).append(site)
    costs = parts.costs(policy)
    console.print(table)
    for why, sites in left.items():
        console.print(f"in full precision ({why}): {', '.join(sites)}", highlight=False)
    console.print(costs_text(parts, policy, costs), highlight=False)
    console.print(memory_text(parts, build(config["model"])), highlight=False)
    if parts.loaded is not None:
        console.print(checkpoint_text(parts.loaded), highlight=False)
    if (recipe := parts.recipe) and recipe.transform:
        console.print(transforms_text(parts, recipe.transform, recipe.scope, costs), highlight=False)
    if recipe and recipe.search:
        console.print(f"search: {recipe.search.summary(recipe, parts.model.sites())}", highlight=False)
    if missing := missing_here(config, parts):
        console.print(missing, highlight=False, markup=False)


def headed(title: str) -> Table:
    """The table without its rows; names of sites fold where a terminal is narrow, bits do not go."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("site", overflow="fold", min_width=14)
    for column in ("count", "role", "out × in"):
        table.add_column(column, no_wrap=True)
    for column in ("weight", "input"):
        table.add_column(column, min_width=10)
    for column in ("MB", "GBitOps"):
        table.add_column(column, no_wrap=True, justify="right")
    return table


def site_rows(parts: Setup, policy: Policy) -> Iterator[list[str]]:
    """The sites as rows of the table, those of all blocks that are alike as one, with why they are left alone."""
    none = LayerSpec(weight=None, activation=None)

    def kind(site: Site) -> tuple:
        layer = policy.get(site.name, none)
        return pattern(site.name), site.role, site.out_features, site.in_features, repr(layer)

    for _, group in groupby(sorted(parts.model.sites(), key=kind), key=kind):
        alike = list(group)
        first, layer = alike[0], policy.get(alike[0].name, none)
        yield [
            pattern(first.name),
            str(len(alike)),
            first.role,
            f"{first.out_features} × {first.in_features}",
            weight_text(layer),
            spec_text(layer.activation),
            f"{sum(weight_storage_bits(s, spec) for s in alike for spec in layer.weights) / 8e6:.2f}",
            f"{sum(s.macs for s in alike) * layer.weight_bits * layer.operand_bits / 1e9:.1f}",
            parts.why_not(first) or "",
        ]


def costs_text(parts: Setup, policy: Policy, costs: Ledger) -> str:
    """How much is quantized, at how many bits, and what bytes and operations come to, beside full precision."""
    sites, full = parts.model.sites(), parts.costs(Policy())
    bits = "—" if costs.weight_bits_quantized is None else f"{costs.weight_bits_quantized:.2f}"
    input_bits = "—" if costs.input_bits is None else f"{costs.input_bits:.2f}"
    return (
        f"{sum(s.name in policy for s in sites)} of {len(sites)} sites quantized, "
        f"{costs.quantized_share:.1%} of the parameters; "
        f"bits a weight, all counted: {bits} over those, {costs.weight_bits_model:.2f} over the model; "
        f"of an input: {input_bits}\n"
        f"{costs.model_bytes / 1e6:.2f} MB (16 bits: {full.model_bytes / 1e6:.2f}), "
        f"{costs.bops / 1e9:.0f} GBitOps a sample and step (16 bits: {full.bops / 1e9:.0f})"
    )


def transforms_text(parts: Setup, transform: Transform, scope: Scope, costs: Ledger) -> str:
    """What the parts of a transform do to which sites' inputs, and what is left of them at run time."""
    chosen = scope.select(parts.model.sites())
    found = {name: part.carriers(parts.model, chosen) for name, part in transform.parts.items()}
    return "\n".join(
        [
            *(f"transform {name}: {transform_text(carriers)}" for name, carriers in found.items()),
            f"  of all that is counted above, at run time: {costs.run_time_bytes / 1e3:.1f} kB of factors, signs and "
            f"branches, {costs.run_time_bops / 1e9:.2f} GBitOps at "
            f"{len({each.site.name for each in parts.run_time()})} layers",
        ]
    )


def memory_text(parts: Setup, loader: Any) -> str:
    """What must be in the device's memory for weights and conditions, stage by stage."""

    def size(module: nn.Module) -> str:
        return megabytes(sum(weight.nbytes for weight in module.parameters()))

    decoder = getattr(parts.model, "autoencoder", None)
    rest = f"autoencoder {size(decoder)}" if decoder is not None else "autoencoder unknown, as its config is not here"
    what = f"{len(turns)} transformers" if (turns := parts.model.turns()) else "transformer"
    model = f"{what} {size(parts.model.denoiser)} in {text_of(parts.model.dtype)}, {rest}"
    if not isinstance(loader, TextModel) or not isinstance(parts.dataset, Prompts):
        return f"memory of weights: {model}"
    found = loader.encoder_bytes()
    encoder = "whose size is not known before it is here," if found is None else megabytes(found)
    return (
        f"memory of weights: first the text encoder alone, {encoder} in {loader.text_dtype}, for "
        f"{len(parts.dataset.texts)} prompts (none once they are in the cache), which is freed; then {model}"
    )


def megabytes(count: int) -> str:
    """So many bytes, readably."""
    return f"{count / 1e6:,.2f} MB"


def text_of(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")


def operand_rows(attentions: Sequence[Attention], policy: Policy) -> list[list[str]]:
    """The attentions' quantized operands as rows of the table; a product's BitOps stand with its first operand."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for attention in attentions:
        scores, output = attention_products(attention, policy)
        products: dict[str, float] = {"q": scores, "probs": output}
        for operand, site in attention.sites.items():
            if site in policy:
                columns = attention.keys if operand == "probs" else attention.head_dim
                rows = attention.tokens if operand in ("q", "probs") else attention.keys
                shape = f"{attention.heads} × {rows} × {columns}"
                key = pattern(site), operand, shape, spec_text(policy[site].activation)
                groups.setdefault(key, []).append(products.get(operand, 0.0))
    return [
        [site, str(len(bops)), operand, shape, "", spec, "", f"{sum(bops) / 1e9:.1f}" if any(bops) else "", ""]
        for (site, operand, shape, spec), bops in groups.items()
    ]


def checkpoint_text(manifest: Manifest) -> str:
    """Where a checkpoint is, what it belongs to, and which run saved it."""
    source, about = manifest.source, manifest.content["provenance"]
    lines = [
        f"checkpoint: {manifest.folder}, {manifest.bytes() / 1e6:.2f} MB, of {about.get('made_of')} in "
        f"{manifest.content['base']['dtype']}",
        "saved by " + ", ".join(f"{key} {value}" for key, value in source.items() if value is not None),
        "with " + ", ".join(f"{key} {value}" for key, value in about["versions"].items()),
    ]
    for key in ("transform", "attention", "rounding", "repair", "correction"):
        part = (about.get("config") or {}).get(key) or {}
        if "_target_" in part:
            lines.append(f"{key}: {part.get('name') or part['_target_'].rpartition('.')[2]}")
    return "\n".join(lines)


def pattern(name: str) -> str:
    """A site's name with its block number starred."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1) if "blocks." in name else name


def transform_text(carriers: dict[str, str | None]) -> str:
    """What a transform does to which sites' inputs, and what of it is left to do at run time.

    >>> transform_text({"blocks.0.up": "blocks.0.norm", "blocks.1.up": "blocks.1.norm", "blocks.0.down": None})
    'folded into blocks.*.norm for blocks.*.up; at run time for blocks.*.down'
    """
    sites: dict[str, dict[str, None]] = {}
    for site, carrier in carriers.items():
        where = f"folded into {pattern(carrier)}" if carrier else "at run time"
        sites.setdefault(where, {})[pattern(site)] = None
    return "; ".join(f"{where} for {', '.join(names)}" for where, names in sites.items()) or "no site has its roles"


def weight_text(layer: LayerSpec) -> str:
    """A weight's spec in a few words, with what changes over time: its bits, noisiest range first, or its basis."""
    text = spec_text(layer.weight)
    if layer.spans:
        text = (
            f"{'/'.join(str(span.weight.bits if span.weight else 16) for span in layer.spans)} bits over time, {text}"
        )
    if layer.bases > 1:
        text = f"{layer.bases} bases over time, {text}"
    return text


def spec_text(spec: QuantSpec | None) -> str:
    """A spec in a few words; whether an input's is static follows from its rows being the tensor."""
    if spec is None:
        return "16 bits"
    rows = f"group {spec.group_size}" if spec.group_size else spec.granularity
    times = f", {spec.time_groups} groups of steps" if spec.time_groups else ""
    return f"{spec.bits} bits {rows} {spec.grid}{f' under {spec.scale}' if spec.scale else ''}{times}"
