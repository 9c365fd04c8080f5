"""What a quantized model is, costs, and is worth."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from qdit.api.adapters import adapter_of, network_of, pipeline_adapter, protocol_of
from qdit.api.checks import check_numbers
from qdit.checked import Samples, Whole
from qdit.checkpoint import installed
from qdit.config import build
from qdit.errors import UserError
from qdit.eval.extractor import FeatureExtractor, loading
from qdit.eval.frames import survey
from qdit.eval.per_sample import PairedMetric
from qdit.eval.samples import Drawn
from qdit.ledger import Ledger, ledger, weight_storage_bits
from qdit.model.loaded_text import LoadedText
from qdit.policies import LayerSpec, Policy
from qdit.runs.plan import spec_text, weight_text
from qdit.sampler.draw import draw


def policy(model: Any) -> Policy:
    """How each site of a quantized model is quantized: site name -> `LayerSpec`; other sites are in full precision.

    Raises:
        UserError: the model is not quantized by qdit.

    >>> import qdit
    >>> transformer = qdit.quantize(qdit.embedded().transformer, "rtn", bits="w4a8")
    >>> spec = qdit.policy(transformer)["transformer_blocks.0.ff.net.2"]
    >>> spec.weight.bits, spec.activation.bits, spec.activation.granularity
    (4, 8, 'row')
    """
    return Policy(installed.needed(network_of(model)).quantized.policy)


def cost(model: Any) -> Ledger:
    """What a model costs: bytes, mean bits a weight, and BitOps of one call for one sample, everything counted.

    Args:
        model: a transformer, quantized or not, or a model of qdit's.

    Raises:
        UserError: there is no adapter for it.

    >>> import qdit
    >>> transformer = qdit.embedded().transformer
    >>> full = qdit.cost(transformer)
    >>> small = qdit.cost(qdit.quantize(transformer, "rtn", bits="w4a8"))
    >>> round(small.weight_bits_model, 2), small.model_bytes < 0.6 * full.model_bytes
    (9.08, True)
    """
    adapter = adapter_of(model)
    state = installed.state_of(adapter.denoiser)
    if state is None:
        return ledger(adapter.denoiser, adapter.sites(), Policy(), adapter.attentions())
    about = adapter.sites(), state.quantized.policy, adapter.attentions(), state.run_time
    return ledger(state.parameters, *about)


def summary(model: Any) -> pd.DataFrame:
    """A row a site of a quantized model, in forward order: linear layers, then quantized operands of attentions.

    Columns: `role`, `block`, `out`, `in`; `weight` and `input`, how they are rounded; `weight_bits` and `input_bits`,
    16 in full precision; `megabytes` (10⁶ bytes) of the weight with its scales.

    Raises:
        UserError: the model is not quantized by qdit.

    >>> import qdit
    >>> frame = qdit.summary(qdit.quantize(qdit.embedded().transformer, "rtn", bits="w4a8"))
    >>> print(frame.loc["transformer_blocks.0.attn1.to_q", ["role", "weight", "input_bits"]].to_string())
    role                            qkv
    weight        4 bits row asymmetric
    input_bits                        8
    """
    adapter, found, none = adapter_of(model), policy(model), LayerSpec(weight=None, activation=None)
    rows = []
    for site in adapter.sites():
        layer = found.get(site.name, none)
        size = sum(weight_storage_bits(site, spec) for spec in layer.weights) / 8e6
        rows.append((site.name, site.role, site.block, site.out_features, site.in_features, layer, size))
    for attention in adapter.attentions():
        for operand, name in attention.sites.items():
            if name in found:
                rows.append((name, operand, attention.block, None, None, found[name], None))
    return pd.DataFrame(
        {
            "role": [row[1] for row in rows],
            "block": pd.array([row[2] for row in rows], dtype="Int64"),
            "out": pd.array([row[3] for row in rows], dtype="Int64"),
            "in": pd.array([row[4] for row in rows], dtype="Int64"),
            "weight": [weight_text(row[5]) for row in rows],
            "input": [spec_text(row[5].activation) for row in rows],
            "weight_bits": [row[5].weight_bits for row in rows],
            "input_bits": [row[5].activation_bits for row in rows],
            "megabytes": [row[6] for row in rows],
        },
        index=pd.Index([row[0] for row in rows], name="site"),
    )


def fidelity(
    pipe: Any,
    *overrides: str,
    n: int = 16,
    metrics: Sequence[str] = ("sqnr", "psnr"),
    seed: int = 0,
    reference: Any = None,
) -> pd.DataFrame:
    """How close a quantized pipeline's samples are to those of full precision, on the same noise and conditions.

    Args:
        pipe: a diffusers pipeline whose transformer is quantized.
        overrides: the command line's words for the sampler and the data set, such as `dataset.file=captions.txt`.
        n: samples; the error bars are over them.
        metrics: paired options of `conf/eval`: sqnr and latent_mse of final latents, psnr and ssim of images.
        seed: of noise and classes.
        reference: the pipeline in full precision; None is the original of `pipe`.

    Returns:
        A row a metric: `value` (dB, but for ssim and latent_mse), `stderr`, `n`, `higher_is_better`.

    Raises:
        UserError: the pipeline is not quantized and no reference is given, it has no original, a metric is not paired,
            or a value is out of range.

    >>> import qdit
    >>> pipe = qdit.embedded()
    >>> _ = qdit.quantize(pipe.transformer, "rtn", bits="w8a8")
    >>> frame = qdit.fidelity(pipe, "sampler.steps=2", n=2, metrics=["sqnr"])
    >>> frame.index.tolist(), bool(frame.value["sqnr"] > 20)
    (['sqnr'], True)
    """
    model, sampler, dataset, config = protocol_of(pipe, (*overrides, f"eval=[{','.join(metrics)}]"))
    measures = paired_metrics(config, n, seed)
    drawn = partial(
        draw,
        sampler=sampler,
        source=dataset,
        count=n,
        batch_size=config["batch_size"],
        seed=seed,
        extract=extractors_of(measures, model.device),
    )
    if reference is None:
        with installed.full_precision(pipe.transformer):
            full = drawn(model)
    else:
        other = pipeline_adapter(reference)
        full = drawn(other.having(model.table) if isinstance(other, LoadedText) else other)
    return compared(measures, drawn(model), full)


def paired_metrics(config: dict[str, Any], n: int, seed: int) -> dict[str, PairedMetric]:
    """The metrics of a config, which compare so many samples of a seed.

    Raises:
        UserError: one is of a set of samples, lacks its weights, or there are no samples.
    """
    check_numbers({"n": Samples, "seed": Whole}, {"n": n, "seed": seed})
    measures = {name: build(node) for name, node in config["eval"].items()}
    if wrong := [name for name, metric in measures.items() if not isinstance(metric, PairedMetric)]:
        raise UserError(f"{', '.join(wrong)} compares no pairs of samples, one by one: use qdit.run")
    if problems := list(dict.fromkeys(p for metric in measures.values() for p in metric.preflight(n))):
        raise UserError(*problems)
    return measures


def extractors_of(measures: Mapping[str, PairedMetric], device: torch.device) -> Callable[[str], FeatureExtractor]:
    """What gives the extractors that metrics read, by name, loaded when they are first asked for."""
    found = {metric.extractor: metric.network() for metric in measures.values() if metric.extractor}
    return loading({name: extractor for name, extractor in found.items() if extractor is not None}, device)


def compared(measures: Mapping[str, PairedMetric], quantized: Drawn, full: Drawn) -> pd.DataFrame:
    """A row a metric, as `fidelity` says."""
    survey(measures.values(), quantized, full)
    found = {name: metric.compute(quantized, full) for name, metric in measures.items()}
    columns = ("value", "stderr", "n", "higher_is_better")
    return pd.DataFrame(
        {column: [getattr(result, column) for result in found.values()] for column in columns},
        index=pd.Index(list(found), name="metric"),
    )
