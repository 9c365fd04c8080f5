"""What one run computes: it quantizes, samples and evaluates, and says so in a record.

Whatever an earlier attempt finished is taken up: rounded layers, chunks of samples, metrics of a record.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qdit.checkpoint.manifest import is_loaded
from qdit.environment import now, reset_peak_memory
from qdit.eval.samples import SampleSet
from qdit.execution import stamp, way
from qdit.nn.held import held
from qdit.policies import Policy
from qdit.quantized import Quantized
from qdit.runs import evaluation, external, record, sampling, stages
from qdit.runs.identity import full_precision, identity, is_external, is_full_precision, run_dir, run_id, wanted_metrics
from qdit.runs.settled import unsaved
from qdit.runs.setup import Setup
from qdit.storage.atomic import atomic_write
from qdit.storage.run_folder import RunDir
from qdit.storage.shelf import Shelf, without_execution
from qdit.tracking import Tracker

Fit = Callable[[], Quantized]
"""Makes the quantized network when it is first asked for, and returns the same one from then on."""


@dataclass(frozen=True)
class Network:
    """What a record says of the network that made its samples: full precision, unless more is known."""

    policy: Policy = field(default_factory=Policy)
    executed: str = "full precision"
    layers: dict[str, int] | None = None
    """How many layers each way of execution has."""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    """Entries of the record: `stages.DIAGNOSIS`."""


def measure(config: dict[str, Any], parts: Setup, where: RunDir, tracker: Tracker) -> dict[str, Any]:
    """Quantize, sample and evaluate one config; its record."""
    reset_peak_memory()
    started, watch, reference_config = now(), record.Stopwatch(), full_precision(config)
    atomic_write(where.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    reference = sampling.sample_set(reference_config, parts, shelf_of(reference_config, parts), None, tracker)
    samples, fit = own_samples(config, parts, reference, tracker)
    known, kept = taken(config, where.result() or {}, where, samples, reference)
    network = network_of(config, parts, where, known if kept else None, fit, watch)
    with watch.stage("sample"):
        samples.latents()
    watch.move(samples.compiling, "sample", "compile")
    network = replace(network, layers=samples.ran or network.layers)
    wanted = wanted_metrics(config)
    # Paired metrics of full precision with itself say nothing.
    inapplicable = {n: s for n, s in wanted.items() if samples is reference and parts.metrics[n].paired}
    with watch.stage("evaluate"):
        applicable = {n: s for n, s in wanted.items() if n not in inapplicable}
        metrics = known.get("metrics", {}) | where.metrics(samples.made)
        keep = partial(where.save_metrics, made=samples.made)
        metrics = evaluation.evaluate(applicable, metrics, parts, samples, reference, keep, tracker)
    evaluation.picture(config, parts, samples, reference, where.path / "samples.png")
    evaluation.frames_picture(metrics, where.path / "frames.png", config["name"])
    costs = cost_of(config, parts, network, fit, samples, watch)
    return record.header(config, run_id(config)) | {
        "protocol": stages.protocol(reference_config, parts),
        "protocol_id": run_id(reference_config),
        "metrics": metrics,
        "inapplicable": known.get("inapplicable", {}) | inapplicable,
        **network.diagnosis,
        **({"made": samples.made} if samples.made else {}),
        **({"policy": where.policy_digest()} if network.policy else {}),
        "cost": record.keep_earlier(costs, known.get("cost")),
        **record.footer(started),
    }


def own_samples(
    config: dict[str, Any], parts: Setup, reference: SampleSet, tracker: Tracker
) -> tuple[SampleSet, Fit | None]:
    """The samples that a run is judged by, made when they are first read, and what quantizes the network for them."""
    if is_full_precision(config):
        return reference, None
    place = shelf_of(config, parts)
    if is_external(config):
        return sampling.sample_set(config, external.judged(parts), place / "samples", None, tracker), None
    fit = cache(partial(stages.fit, config, parts, place, tracker))
    return sampling.sample_set(config, parts, place / "samples", fit, tracker), fit


def network_of(
    config: dict[str, Any],
    parts: Setup,
    where: RunDir,
    known: dict[str, Any] | None,
    fit: Fit | None,
    watch: record.Stopwatch,
) -> Network:
    """What the record is to say of the network: as `known` from a record whose samples are used, or quantized now."""
    if fit is None:
        return Network(executed="external" if is_external(config) else "full precision")
    if known is not None:
        diagnosis = {key: known[key] for key in stages.DIAGNOSIS if key in known}
        policy, cost = Policy.load(where.path / "policy.yaml"), known["cost"]
        return Network(policy, cost["executed"], cost.get("executed_layers"), diagnosis)
    with watch.stage("quantize"):
        policy, executed, layers = fit().policy, fit().executed, fit().layers_by_execution
    policy.save(where.path / "policy.yaml")
    with watch.stage("save"):
        diagnosis = stages.save(config, parts, fit(), where.path, run_id(config))
    with watch.stage("diagnose"):
        diagnosis |= stages.diagnose(config, parts, fit(), where.path)
    return Network(policy, executed, layers, diagnosis)


def cost_of(
    config: dict[str, Any],
    parts: Setup,
    network: Network,
    fit: Fit | None,
    samples: SampleSet,
    watch: record.Stopwatch,
) -> dict[str, Any]:
    """What the record says of bits, bytes, operations, times and memory."""
    spent = asdict(parts.costs(network.policy)) if parts.external is None else external.cost(parts, config)
    spent |= {"executed_layers": network.layers} if network.layers else {}
    rate = samples.generated / watch.seconds["sample"] if samples.generated else None
    return record.cost(spent, network.executed, watch, rate, resident(parts, fit) if rate else None)


def cached(config: dict[str, Any]) -> Path:
    """What a run keeps in the cache: its samples in full precision, its rounded weights otherwise."""
    if is_loaded(config) or is_external(config):
        return run_dir(config).path / "samples"  # nothing of it is in the cache
    if is_full_precision(config):
        return Path(config["cache_dir"]) / "samples" / run_id(config)
    return stages.rounding_folder(config)


def shelf_of(config: dict[str, Any], parts: Setup) -> Shelf:
    """Where what a run makes lies: in the run's folder, or, in full precision, in the cache with other machines'."""
    reference = is_full_precision(config)
    folder = cached(config) if reference else run_dir(config).path
    return Shelf(folder, identity(config), stamp(parts.model.device, execution=not reference), shared=reference)


def taken(
    config: dict[str, Any], known: dict[str, Any], where: RunDir, samples: SampleSet, reference: SampleSet
) -> tuple[dict[str, Any], bool]:
    """The part of a record that is used, and whether its samples are; otherwise all samples are made again.

    The samples of a finished record are used wherever they were made, and new metrics are computed on them.
    """
    if known.get("status") != "done":
        return known, False
    made = known.get("made")  # none in a record of an earlier qdit
    if not unsaved(known, config) and known.get("policy") in (None, where.policy_digest()) and samples.adopt(made):
        if reference is not samples:
            reference.adopt(made and without_execution(made))
        return known, True
    return (known if made in (None, samples.made) else {}), False


def resident(parts: Setup, fit: Fit | None) -> int | None:
    """Bytes of the network's tensors as it has just made samples; None where others quantized it, or ran it."""
    if parts.external is not None:
        return None
    if fit is None:
        return held(parts.model.denoiser)
    if way().engine:  # what it holds is no tensor of torch
        return None
    with fit().installed(parts.model) as model:
        return held(model.denoiser)
