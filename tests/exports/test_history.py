"""What is known of a run: its config and record, and its pipeline."""

import pytest
from diffusers.utils import logging as chatter

import qdit
from qdit.api.compose import composed
from qdit.config import resolved
from qdit.errors import UserError
from qdit.exports.history import read_pipeline, run_folder
from qdit.model.silence import without_bars


def config(*words):
    return resolved(composed(*words))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of a finished run"):
        run_folder(tmp_path)


def test_a_network_that_diffusers_would_make_otherwise_is_refused():
    made = config("quantizer=rtn", "model.timestep_frequencies=dit")
    with pytest.raises(UserError, match="model.timestep_frequencies=dit, which diffusers knows nothing of"):
        read_pipeline(made)


def test_a_pipeline_that_is_not_there_is_refused(tmp_path):
    made = config("quantizer=rtn", f"model.path={tmp_path / 'none'}")
    with pytest.raises(UserError, match="cannot be read"):
        read_pipeline(made)


def test_a_pipeline_is_read_without_bars_and_they_come_back(capfd):
    chatter.enable_progress_bar()
    try:
        with without_bars():
            assert not chatter.is_progress_bar_enabled()
        assert chatter.is_progress_bar_enabled()
        capfd.readouterr()
        qdit.embedded()
        assert "%|" not in capfd.readouterr().err
    finally:
        chatter.disable_progress_bar()
