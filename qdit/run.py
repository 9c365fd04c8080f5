"""The recipe of a run: load → calibrate → quantize → sample → evaluate → record, in full precision, then quantized.

`run` is what the command line calls. The same command is the resume: a finished run returns at once, finished chunks of
samples are read from disk, and metrics that a record holds already are not computed again.
"""

import gc
import logging
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qdit import store
from qdit.config import build, resolved
from qdit.errors import UserError
from qdit.store import RunDir, digest, is_full_precision

if TYPE_CHECKING:
    from qdit.parts import Parts

log = logging.getLogger("qdit")
EMBEDDED = Path(__file__).parent / "assets" / "emoji" / "model"


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Carry out one composed config; the record, or None for a dry run.

    Raises:
        UserError: the user can mend it; nothing was half-written.
    """
    config = resolved(cfg)
    if config["dry"]:
        from qdit.dry import describe

        return describe(config)
    configs = [full_precision(config)] + ([] if is_full_precision(config) else [config])
    records = [settled(c) for c in configs]
    if all(records) and not config["overwrite"]:
        log.info("%s: done already, nothing to do (overwrite=true computes it again)", run_dir(config).path)
        return records[-1]
    from qdit.parts import assemble

    parts = assemble(config)
    try:
        return [execute(each, parts) for each in configs][-1]
    finally:
        del parts
        gc.collect()  # a multirun holds one model at a time


def full_precision(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the reference run under the same protocol."""
    reference = deepcopy(config)
    reference["scope"] |= {"roles": [], "include": []}
    reference["bits"] = {"name": "w16a16", "weight": 16, "activation": 16}
    reference["quantizer"] = {"name": "fp", "paper": None}
    return reference | {"name": "fp"}


def run_id(config: dict[str, Any]) -> str:
    """Eight hex digits of everything the result depends on, the checkpoint's contents included."""
    return digest({"science": store.science(config), "weights": weights(config)})


def weights(config: dict[str, Any]) -> str:
    """A digest of the checkpoint's contents."""
    model = config["model"]
    paths = [model["path"]] + ([model["vae_path"]] if model.get("vae_path") else [])
    return "-".join(store.weights_digest(path, EMBEDDED) for path in paths)


def run_dir(config: dict[str, Any]) -> RunDir:
    """Where a config's run lives."""
    return RunDir(Path(config["runs_dir"]) / config["study"] / f"{config['name']}-{run_id(config)}")


def settled(config: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run that holds every wanted metric, else None. Needs no torch."""
    record = run_dir(config).result()
    if record is None or record["status"] != "done":
        return None
    have = {name: metric["settings"] for name, metric in record["metrics"].items()} | record["inapplicable"]
    return record if wanted_metrics(config).items() <= have.items() else None


def wanted_metrics(config: dict[str, Any]) -> dict[str, str]:
    """Name -> digest of its settings, of every metric in the config."""
    return {name: digest(node) for name, node in (config.get("eval") or {}).items()}


def record_failure(cfg: DictConfig, error: Exception, kind: str) -> bool:
    """Note a failed cell of a multirun, so that its table shows it; `kind` is "user" or "internal".

    False if it cannot be noted: the folder cannot be written, or holds the finished record that a new metric failed to
    extend.
    """
    from qdit import record

    try:
        config = resolved(cfg)
        if (run_dir(config).result() or {}).get("status") == "done":
            return False
        failed = record.header(config, run_id(config)) | record.footer(record.now())
        text = str(error).strip() or type(error).__name__
        failed |= {"status": "failed", "error": text, "error_kind": kind, "metrics": {}, "cost": {}}
        run_dir(config).save_result(failed)
    except UserError:
        return False
    return True


def execute(config: dict[str, Any], parts: "Parts") -> dict[str, Any]:
    """Sample and evaluate one config, in full precision or quantized, and write its record."""
    from qdit import record, stages
    from qdit.cost import ledger
    from qdit.policy import Policy
    from qdit.quantize import quantize

    if not config["overwrite"] and (done := settled(config)):
        return done
    where, identity, reference_id = run_dir(config), run_id(config), run_id(full_precision(config))
    opened = build(config["logger"]).open(config, config["study"], config["name"], identity, where.path)
    with where.lock(wait=identity == reference_id), opened as tracker:
        if config["overwrite"]:
            where.clear()
        started, watch, known = record.now(), record.Stopwatch(), (where.result() or {})
        log.info("%s: %s", config["name"], where.path)
        store.atomic_write(where.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        shared = Path(config["cache_dir"]) / "samples" / reference_id
        samples = reference = stages.sample_set(config, parts, shared, None, tracker)
        policy, diagnosis = Policy(), {}
        if identity != reference_id:
            assert parts.recipe is not None
            with watch.stage("quantize"):
                folder = stages.rounding_folder(config, identity)
                quantized = quantize(
                    parts.model, parts.recipe, lambda: stages.calibrate(config, parts, reference_id), folder
                )
            policy = quantized.policy
            policy.save(where.path / "policy.yaml")
            with watch.stage("diagnose"):
                diagnosis = stages.diagnose(config, parts, quantized, where.path)
            samples = stages.sample_set(config, parts, where.path / "samples", quantized, tracker)
        with watch.stage("sample"):
            samples.latents()
        wanted = wanted_metrics(config)
        inapplicable = {n: s for n, s in wanted.items() if samples is reference and parts.metrics[n].paired}
        with watch.stage("evaluate"):
            applicable = {n: s for n, s in wanted.items() if n not in inapplicable}
            metrics = stages.evaluate(applicable, known.get("metrics", {}), parts, samples, reference)
        stages.picture(config, parts, samples, reference, where.path / "samples.png")
        rate = samples.generated / watch.seconds["sample"] if samples.generated else None
        costs = record.cost(ledger(parts.model.denoiser, parts.model.sites(), policy), config, watch, rate)
        result = record.header(config, identity) | {
            "protocol": stages.protocol(config, parts, weights(config)),
            "protocol_id": reference_id,
            "metrics": metrics,
            "inapplicable": inapplicable,  # paired metrics of full precision with itself
            **diagnosis,
            "cost": record.keep_earlier(costs, known.get("cost")),
            **record.footer(started),
        }
        where.save_result(result)
        log.info("  pictures: %s", where.path / "samples.png")
        tracker.finish(result, where.path)
    return result
