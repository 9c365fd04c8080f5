"""The recipe of a run: load → calibrate → quantize → sample → evaluate → record, in full precision, then quantized.

`run` is what the command line calls. The same command is the resume: a finished run returns at once, finished chunks of
samples are read from disk, and metrics that a record holds already are not computed again.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from qdit.config import build, resolved
from qdit.environment import release
from qdit.runs.identity import canonical, full_precision, is_external, is_full_precision, run_dir, run_id
from qdit.runs.settled import finished, settled
from qdit.storage.atomic import remove, writable
from qdit.tracking import reporting

if TYPE_CHECKING:
    from qdit.runs.setup import Setup

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
    if first := "torch" not in sys.modules:
        log.info("loading torch")
    from qdit.execution import attending, executing, tune_cpu
    from qdit.runs import external, setup

    if first:
        log.info("loading %s", config["model"]["name"])
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
        release()  # a multirun holds one model at a time


def execute(config: dict[str, Any], parts: "Setup") -> dict[str, Any]:
    """Make one run, in full precision or quantized, alone in its directory."""
    from qdit.execution import way
    from qdit.runs.measure import cached, measure

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
