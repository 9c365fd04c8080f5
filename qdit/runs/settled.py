"""Runs that are over: which are finished with all that is wanted of them, and what a failed one leaves. No torch."""

from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from qdit.config import build, resolved
from qdit.environment import now
from qdit.errors import UserError
from qdit.runs.identity import canonical, is_full_precision, run_dir, run_id, wanted_metrics
from qdit.storage.run_folder import RunDir
from qdit.tracking import reported, reporting


def complaints(cfg: DictConfig) -> list[str]:
    """The problems of a composed config that show before its model is read; none for a finished run."""
    try:
        config = canonical(resolved(cfg))
        if config["overwrite"] or settled(config) is None:
            from qdit.runs.parts import plan

            plan(config)
    except UserError as error:
        return error.lines()
    except Exception:
        return []  # the run itself will tell
    return []


def finished(configs: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The records of these runs if all are settled; a logger that has not seen one of them is told."""
    if any(config["overwrite"] for config in configs):
        return None
    records = [record for config in configs if (record := settled(config)) is not None]
    if len(records) < len(configs):
        return None
    records = [without_error(run_dir(config), record) for config, record in zip(configs, records, strict=True)]
    for config, record in zip(configs, records, strict=True):
        logger, where = build(config["logger"]), run_dir(config)
        if not reported(logger, where.path):
            with reporting(logger, config, record["run_id"], where.path) as tracker:
                tracker.finish(record, where.path)
    return records


def settled(config: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run that holds every wanted metric, else None. Needs no torch.

    Raises:
        UserError: it was made with another `execution` than the one demanded, or the record is damaged.
    """
    record = run_dir(config).result()
    if record is None or record["status"] != "done":
        return None
    check_execution(record, config)
    if unsaved(record, config):
        return None
    have = {name: metric["settings"] for name, metric in record["metrics"].items()} | record["inapplicable"]
    return record if wanted_metrics(config).items() <= have.items() else None


def check_execution(record: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse a finished record that was made with another `execution` than the one demanded; `auto` takes any.

    Raises:
        UserError: it was.
    """
    wanted, cost = config["execution"], record["cost"]
    if wanted == "auto" or is_full_precision(config):
        return
    known = "int8" if "int8" in str(cost.get("executed")) else "simulated"  # records of an earlier qdit say no more
    if (found := (record.get("made") or {}).get("execution", known)) != wanted:
        raise UserError(
            f"{run_dir(config).path} was made with execution={found}, and execution={wanted} is asked for: take it "
            "with execution=auto, make another one in another study, or replace it with overwrite=true"
        )


def unsaved(record: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a checkpoint is wanted that the run was told not to save; a deleted one is not made again."""
    return config["save_checkpoint"] and record.get("checkpoint", {}) is None


def without_error(where: RunDir, record: dict[str, Any]) -> dict[str, Any]:
    """A record that holds all that is wanted, without the failure to extend it that an earlier command left there."""
    if "update_error" not in record:
        return record
    with suppress(UserError), where.lock():  # another process that holds it writes it anew
        known = where.result()
        if known == record:
            whole = {key: value for key, value in record.items() if key not in ("update_error", "error_kind")}
            return where.save_result(whole)
    return record


def record_failure(cfg: DictConfig, error: Exception, kind: str) -> bool:
    """Note a failed cell of a multirun, so that its table shows it; `kind` is "user" or "internal".

    A finished record that a new metric failed to extend keeps everything and gains `update_error`. False if nothing can
    be noted: the config has no run, or its folder cannot be written or is another process's.
    """
    from qdit.runs import record

    text = str(error).strip() or type(error).__name__
    try:
        config = canonical(resolved(cfg))
        where = run_dir(config)
        with where.lock():
            known = where.result()
            if known is not None and known["status"] == "done":
                where.save_result(known | {"update_error": text, "error_kind": kind})
            else:
                failed = record.header(config, run_id(config)) | record.footer(now())
                failed |= {"status": "failed", "error": text, "error_kind": kind, "metrics": {}, "cost": {}}
                where.save_result(failed)
    except UserError:
        return False
    return True
