"""One run of the command line: composes the config, hands it to `qdit.runs.run`. Imports no torch.

A user's mistake is one message and exit code 2; ours keeps its traceback and ends with 1. In a multirun a failed cell
is recorded, the others go on, and the table at the end shows it as missing (see `qdit.cli.sweep`).
"""

import logging
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qdit.assets import CONF
from qdit.cli.cells import note, tell
from qdit.cli.interrupts import leave_to_controller
from qdit.cli.mistyped import explain
from qdit.cli.quick_hydra import quicken
from qdit.errors import UserError

log = logging.getLogger("qdit")
quicken()
explain()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Compose one run and carry it out; a sweeper that optimises is told the value of its objective."""
    from qdit.runs import run

    leave_to_controller()
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    if multirun:
        check_objective(cfg)
    record, outcome = None, "done"
    try:
        record = run.run(cfg)
    except UserError as error:
        log.error("%s", error)
        if not multirun:
            sys.exit(2)
        outcome = failure(cfg, error, "user")
    except Exception as error:
        if not multirun:
            raise
        traceback.print_exc()
        outcome = failure(cfg, error, "internal")
    if multirun:
        study = OmegaConf.select(cfg, "study", throw_on_resolution_failure=False)
        note(Path(str(cfg.runs_dir)), str(study), outcome)
        if not cfg.dry:
            tell(HydraConfig.get().job.num, str(cfg.name), record, str(cfg.objective))
    if record is not None and not multirun:
        from qdit.cli.sweep import print_table

        print_table(Path(cfg.runs_dir), str(cfg.study))
    return record["metrics"].get(cfg.objective, {}).get("value") if record is not None else None


def check_objective(cfg: DictConfig) -> None:
    """Leave a sweep that optimises, such as hydra/sweeper=optuna, with code 2 if no run would measure its objective."""
    measured = list(cfg.get("eval") or {})
    if not HydraConfig.get().sweeper["_target_"].endswith("BasicSweeper") and cfg.objective not in measured:
        log.error(
            "objective=%s is not measured; this run has %s (see eval)", cfg.objective, ", ".join(measured) or "none"
        )
        sys.exit(2)


def failure(cfg: DictConfig, error: Exception, kind: str) -> str:
    """The kind of a failure of a multirun's cell, which its record tells of, too; a dry run leaves records alone."""
    from qdit.runs.settled import record_failure

    if not cfg.dry:
        record_failure(cfg, error, kind)
    return kind
