"""What a sweeper that optimises is told of a run, and what it is asked before."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from qdit.cli import command

BASIC, OTHER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra_plugins.other.Sweeper"


def swept_by(monkeypatch, sweeper):
    found = SimpleNamespace(sweeper={"_target_": sweeper})
    monkeypatch.setattr(command, "HydraConfig", SimpleNamespace(get=lambda: found))


def test_an_objective_that_no_run_measures_ends_the_sweep(monkeypatch, caplog):
    config = OmegaConf.create({"objective": "fid", "eval": {"sqnr": {}, "psnr": {}}})
    swept_by(monkeypatch, BASIC)
    command.check_objective(config)
    swept_by(monkeypatch, OTHER)
    with pytest.raises(SystemExit) as left:
        command.check_objective(config)
    assert left.value.code == 2
    assert caplog.messages == ["objective=fid is not measured; this run has sqnr, psnr (see eval)"]
    command.check_objective(OmegaConf.merge(config, {"objective": "psnr"}))
    with pytest.raises(SystemExit):
        command.check_objective(OmegaConf.merge(config, {"eval": None}))


def test_a_sweeper_is_told_the_value_of_the_objective(monkeypatch):
    from qdit.runs import run

    monkeypatch.delenv("QDIT_SWEEP", raising=False)
    config = {"objective": "sqnr", "eval": {"sqnr": {}}, "dry": False, "name": "rtn", "runs_dir": "none", "study": "s"}
    config = OmegaConf.create(config)
    about = {"sweeper": {"_target_": OTHER}, "job": SimpleNamespace(num=0)}
    found = SimpleNamespace(mode=command.RunMode.MULTIRUN, **about)
    monkeypatch.setattr(command, "HydraConfig", SimpleNamespace(get=lambda: found))
    job = command.main.__wrapped__
    for record, value in (({"metrics": {"sqnr": {"value": 12.5}}}, 12.5), ({"metrics": {}}, None), (None, None)):
        monkeypatch.setattr(run, "run", lambda _, record=record: record)
        assert job(config) == value
