"""The comparison's grid: every recipe is in it, cells are what their names say, its seeds add to the same study."""

from pathlib import Path

import pytest
from helpers.configs import config as composed
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.runs.identity import run_id

NO_METHODS = {"fp", "load", "external"}
RECIPES = sorted({path.stem for path in (CONF / "quantizer").glob("*.yaml")} - NO_METHODS)
PUBLISHED = ["ptq4dit", "q_dit", "vidit_q", "tq_dit"]


def swept(grid: str, key: str) -> list[str]:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "grid" / f"{grid}.yaml"))
    assert isinstance(node, dict)
    return node["hydra"]["sweeper"]["params"][key].split(",")


def test_every_recipe_is_compared_once_at_every_bits():
    """Those that came later are in grids of their own; the seeds' is of the same study."""
    methods, formats, seeds = (set(swept(grid, "quantizer")) for grid in ("methods", "format_recipes", "seeds"))
    assert sorted(methods | formats | seeds) == RECIPES
    assert methods & formats == {"rtn", "svdquant", "awq"}  # what the others are measured against
    assert not (methods | formats) & seeds
    assert composed("grid=seeds")["study"] == "methods"
    assert swept("methods", "bits") == swept("seeds", "bits") == ["w8a8", "w6a6", "w4a8", "w4a4"]


def test_the_four_dit_methods_are_repeated():
    assert swept("methods_seeds", "quantizer") == PUBLISHED
    assert swept("methods_seeds", "bits") == swept("methods", "bits")
    assert swept("methods_seeds", "calibration.seed") == ["1", "2"]


def test_seeds_join_the_study_under_its_protocol_and_seed_0_is_the_first_grids():
    first = composed("grid=methods", "quantizer=q_dit", "bits=w4a8")
    again = composed("grid=methods_seeds", "quantizer=q_dit", "bits=w4a8", "calibration.seed=0")
    other = composed("grid=methods_seeds", "quantizer=q_dit", "bits=w4a8", "calibration.seed=1")
    plain = composed("quantizer=q_dit", "bits=w4a8", "num_samples=1024", "study=elsewhere")
    assert first["study"] == other["study"] == "methods"
    assert first["seed"] == other["seed"]
    assert run_id(first) == run_id(again) == run_id(plain) != run_id(other)
    plain["quantizer"].pop("family")
    assert run_id(plain) == run_id(first)  # a family is a label


def test_the_number_of_samples_is_a_key():
    assert composed("grid=methods")["num_samples"] == composed("grid=methods_seeds")["num_samples"] == 1024
    assert composed("grid=methods", "num_samples=256")["num_samples"] == 256


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w4a4"])
def test_bits_that_are_allocated_are_on_average_those_of_the_column(bits):
    config = composed("grid=methods", "quantizer=mixdq", f"bits={bits}")
    assert config["search"]["budget"]["at_most"] == config["bits"]["weight"]


def test_no_grid_lists_a_row_twice():
    for path in Path(CONF / "grid").glob("*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        for values in node["hydra"]["sweeper"]["params"].values():
            assert len(set(str(values).split(","))) == len(str(values).split(","))
