"""The recipe of a run: load → calibrate → quantize → sample → evaluate → record, in full precision, then quantized.

`run` is what the command line calls. The same command is the resume: a finished run returns at once, finished chunks of
samples are read from disk, and metrics that a record holds already are not computed again.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qdit.checkpoint.manifest import is_loaded
from qdit.config import build, resolved
from qdit.environment import now, reset_peak_memory
from qdit.runs.identity import (
    canonical,
    full_precision,
    identity,
    is_external,
    is_full_precision,
    run_dir,
    run_id,
    wanted_metrics,
)
from qdit.runs.settled import finished, settled, unsaved
from qdit.storage.atomic import atomic_write, remove, writable
from qdit.storage.run_folder import RunDir
from qdit.tracking import reporting

if TYPE_CHECKING:
    from qdit.eval.samples import SampleSet
    from qdit.quantized import Quantized
    from qdit.runs.setup import Setup
    from qdit.storage.shelf import Shelf
    from qdit.tracking import Tracker

log = logging.getLogger("qdit")


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Carry out one composed config; the record, or None for a dry run.

    Raises:
        UserError: for what the user can correct; nothing is half-written.
    """
    config = canonical(resolved(cfg))
    if config["dry"]:
        from qdit.runs import external, plan

        return (external if is_external(config) else plan).describe(config)
    # The reference is made again only when it is itself the run that is asked for.
    configs = [config] if is_full_precision(config) else [full_precision(config) | {"overwrite": False}, config]
    if (records := finished(configs)) is not None:
        log.info("%s: done already, nothing to do (overwrite=true computes it again)", run_dir(config).path)
        return records[-1]
    from qdit.execution import attending, executing, tune_cpu
    from qdit.runs import external, setup

    tune_cpu()
    parts = (external if is_external(config) else setup).assemble(config)
    for key in ("runs_dir", "cache_dir"):
        writable(Path(config[key]), key)
    try:
        keys = max((attention.keys for attention in parts.model.attentions()), default=0)
        begun = None if config["overwrite"] else run_dir(config).begun()
        with executing(config["execution"], parts.model.device, begun), attending(parts.model.device, keys):
            return [execute(each, parts) for each in configs][-1]
    finally:
        del parts
        gc.collect()  # a multirun holds one model at a time


def execute(config: dict[str, Any], parts: "Setup") -> dict[str, Any]:
    """Make one run, in full precision or quantized, alone in its directory."""
    from qdit.execution import way

    where, reference = run_dir(config), is_full_precision(config)
    with where.lock(wait=reference):
        if not config["overwrite"] and (done := settled(config)):  # made by another process while this one waited
            return done
        log.info("%s: %s", config["name"], where.path)
        if config["overwrite"]:
            where.clear()
            remove(cached(config), "**/*.safetensors", "**/*.jsonl")
        where.begin(way().name)
        with reporting(build(config["logger"]), config, run_id(config), where.path) as tracker:
            result = where.save_result(measure(config, parts, where, tracker))
            log.info("  pictures: %s", where.path / "samples.png")
            tracker.finish(result, where.path)
    return result


def cached(config: dict[str, Any]) -> Path:
    """What a run keeps in the cache: its samples in full precision, its rounded weights otherwise."""
    from qdit.runs import stages

    if is_loaded(config):
        return run_dir(config).path / "samples"  # nothing of it is in the cache
    if is_full_precision(config):
        return Path(config["cache_dir"]) / "samples" / run_id(config)
    return stages.rounding_folder(config)


def shelf_of(config: dict[str, Any], parts: "Setup") -> "Shelf":
    """Where what a run makes lies: in the run's folder, or, in full precision, in the cache with other machines'."""
    from qdit.execution import stamp
    from qdit.storage.shelf import Shelf

    reference = is_full_precision(config)
    folder = cached(config) if reference else run_dir(config).path
    return Shelf(folder, identity(config), stamp(parts.model.device, execution=not reference), shared=reference)


def taken(
    config: dict[str, Any], known: dict[str, Any], where: RunDir, samples: "SampleSet", reference: "SampleSet"
) -> tuple[dict[str, Any], bool]:
    """The part of a record that is used, and whether its samples are; otherwise all samples are made again.

    The samples of a finished record are used wherever they were made, and new metrics are computed on them.
    """
    from qdit.storage.shelf import without_execution

    if known.get("status") != "done":
        return known, False
    made = known.get("made")  # none in a record of an earlier qdit
    if not unsaved(known, config) and known.get("policy") in (None, where.policy_digest()) and samples.adopt(made):
        if reference is not samples:
            reference.adopt(made and without_execution(made))
        return known, True
    return (known if made in (None, samples.made) else {}), False


def resident(parts: "Setup", fit: "Callable[[], Quantized] | None") -> int | None:
    """Bytes of the network's tensors as it has just made samples; None where others quantized it."""
    from qdit.nn.held import held

    if parts.external is not None:
        return None
    if fit is None:
        return held(parts.model.denoiser)
    with fit().installed(parts.model) as model:
        return held(model.denoiser)


def measure(config: dict[str, Any], parts: "Setup", where: RunDir, tracker: "Tracker") -> dict[str, Any]:
    """Quantize, sample and evaluate one config; its record."""
    from qdit.ledger import ledger
    from qdit.policies import Policy
    from qdit.runs import evaluation, external, record, stages

    reset_peak_memory()
    started, watch, reference_config = now(), record.Stopwatch(), full_precision(config)
    known = where.result() or {}
    atomic_write(where.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    samples = reference = stages.sample_set(reference_config, parts, shelf_of(reference_config, parts), None, tracker)
    fit: Callable[[], Quantized] | None = None
    policy, executed, layers, diagnosis = Policy(), "full precision", None, {}
    if is_external(config):
        place = shelf_of(config, parts) / "samples"
        samples = stages.sample_set(config, external.judged(parts), place, None, tracker)
        executed = "external"
    elif not is_full_precision(config):
        place = shelf_of(config, parts)
        fit = cache(partial(stages.fit, config, parts, place, tracker))
        samples = stages.sample_set(config, parts, place / "samples", fit, tracker)
    known, kept = taken(config, known, where, samples, reference)
    if fit is not None and kept:
        policy, executed = Policy.load(where.path / "policy.yaml"), known["cost"]["executed"]
        layers = known["cost"].get("executed_layers")
        diagnosis = {k: known[k] for k in stages.DIAGNOSIS if k in known}
    elif fit is not None:
        with watch.stage("quantize"):
            policy, executed, layers = fit().policy, fit().executed, fit().layers_by_execution
        policy.save(where.path / "policy.yaml")
        with watch.stage("save"):
            diagnosis = stages.save(config, parts, fit(), where.path, run_id(config))
        with watch.stage("diagnose"):
            diagnosis |= stages.diagnose(config, parts, fit(), where.path)
    with watch.stage("sample"):
        samples.latents()
    watch.move(samples.compiling, "sample", "compile")
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
    rate = samples.generated / watch.seconds["sample"] if samples.generated else None
    if parts.external is not None:
        spent = external.cost(parts, config)
    else:
        left = parts.run_time() if policy else []
        about = parts.model.sites(), policy, parts.model.attentions(), left, len(parts.model.turns()) or 1
        spent = asdict(ledger(parts.model.denoiser, *about))
    spent |= {"executed_layers": layers} if layers else {}
    costs = record.cost(spent, executed, watch, rate, resident(parts, fit) if rate else None)
    return record.header(config, run_id(config)) | {
        "protocol": stages.protocol(reference_config, parts),
        "protocol_id": run_id(reference_config),
        "metrics": metrics,
        "inapplicable": known.get("inapplicable", {}) | inapplicable,
        **diagnosis,
        **({"made": samples.made} if samples.made else {}),
        **({"policy": where.policy_digest()} if policy else {}),
        "cost": record.keep_earlier(costs, known.get("cost")),
        **record.footer(started),
    }
