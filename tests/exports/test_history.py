"""What is known of a run: its pipeline, and a command that makes the very same."""

import shlex

import pytest

from qdit.api.compose import composed
from qdit.config import resolved
from qdit.errors import UserError
from qdit.exports.history import command_of, read_pipeline, run_folder


def config(*words):
    return resolved(composed(*words))


WORDS = {
    "plain": ["quantizer=rtn", "bits=w8a8"],
    "values": ["quantizer=rtn", "bits=w8a8", "weight.grid=symmetric", "seed=3", "model.revision=null", "num_samples=4"],
    "metrics": ["quantizer=q_dit", "bits=w4a8", "eval=paired", "scope.exclude=['*.attn1.*']"],
    "another part": ["quantizer=q_dit", "rounding=nearest", "sampler=ddpm"],
    "nothing that matters": ["quantizer=rtn", "bits=w8a8", "device=cpu", "runs_dir=elsewhere", "study=mine"],
}


@pytest.mark.parametrize("name", WORDS)
def test_the_command_composes_to_the_same_config(name):
    made = config(*WORDS[name])
    command = command_of(made, config)
    assert command is not None
    program, *words = shlex.split(command)
    again = config(*words)
    assert program == "qdit"
    assert {key: again[key] for key in ("weight", "model", "seed", "num_samples", "bits")} == {
        key: made[key] for key in ("weight", "model", "seed", "num_samples", "bits")
    }
    assert "runs_dir" not in command


def test_where_no_command_makes_the_same_none_is_told():
    made = config("quantizer=rtn", "bits=w8a8")
    assert command_of({**made, "quantizer": {**made["quantizer"], "name": "no_recipe"}}, config) is None


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
