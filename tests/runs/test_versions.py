"""Results that were shipped are found again: ids of runs and keys of what they share, recomputed from records."""

import json
from pathlib import Path

import pytest
from helpers.configs import config
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.keys import nested
from qdit.runs import versions
from qdit.runs.identity import canonical, full_precision, run_id
from qdit.runs.stages import path_id, rounding_folder
from qdit.runs.versions import Version, versioned, without_neutral

RESULTS = Path(__file__).parents[2] / "experiments" / "comparison" / "results"
RECORDS = sorted(RESULTS.rglob("result.json"))


def composed(*words: str) -> dict:
    return canonical(config(*words))


def test_the_id_of_every_shipped_run_follows_from_its_config():
    """A record whose recipe has changed since has another id now, and is made again before it is shipped."""
    assert len(RECORDS) > 80
    for file in RECORDS:
        record = json.loads(file.read_text())
        config = nested(record["config"])
        same = run_id(config) == record["run_id"]
        assert same or versions.versions(config), f"{file}: {run_id(config)}"
        assert run_id(full_precision(config)) == record["protocol_id"], file


# Of commit 7d51186; `cache` is a folder that does not matter.
KEYS = {
    "quantizer=rtn bits=w8a8": ("ae847cd9", "cd3e6e7c", "764c4a46"),
    "quantizer=q_dit bits=w4a8": ("caadaae2", "cd3e6e7c", "cc0ff48f"),
    "quantizer=q_diffusion bits=w4a4 rounding=nearest": ("6f0c8f60", "cd3e6e7c", "6e433f2d"),
    "quantizer=quarot bits=w6a6": ("3f40194f", "cd3e6e7c", "c0edfcef"),
    "quantizer=svdquant bits=w4a4 calibration.seed=1": ("f161c85a", "cd3e6e7c", "b9837e39"),
    "quantizer=fp": ("1ee65d3f", "cd3e6e7c", "e43f5af8"),
    "experiment=q_dit": ("18b27719", "cd3e6e7c", "cc0ff48f"),
}


@pytest.mark.parametrize(("words", "expected"), KEYS.items())
def test_ids_and_cache_keys_stay(words, expected):
    config = composed(*words.split())
    assert (run_id(config), path_id(config), rounding_folder(config).name) == expected


COMPARED = OmegaConf.load(CONF / "grid" / "methods.yaml").hydra.sweeper.params.quantizer.split(",")


@pytest.mark.parametrize("name", ["fp", *COMPARED])
def test_the_commands_of_the_comparison_find_the_shipped_records(name):
    config = composed("study=methods", "num_samples=256", f"quantizer={name}", "bits=w4a4")
    shipped = {json.loads(file.read_text())["run_id"] for file in RECORDS}
    assert run_id(config) in shipped


def test_only_a_part_that_changed_enters_the_hash():
    rtn, repq = composed("quantizer=rtn"), composed("quantizer=repq_vit")
    assert versions.versions(rtn) == {}
    assert versions.versions(repq)["values"] == 2
    chosen = {"rounding": rtn["rounding"]}
    assert versioned(chosen, rtn) == chosen
    assert versioned(chosen, repq) == chosen | {"versions": versions.versions(repq)}


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("quantizer=tq_dit", False),
        ("quantizer=tq_dit model=pixart_sigma dataset=prompts", False),
        ("quantizer=tq_dit model=sd35_medium dataset=prompts", True),
        ("quantizer=tq_dit model=sd35_medium dataset=prompts activation/regions=none", False),
        ("quantizer=rtn model=sd35_medium dataset=prompts", False),
    ],
)
def test_two_regions_of_a_text_have_other_ids_where_there_is_one(words, texts):
    assert ("text_regions" in versions.versions(composed(*words.split()))) == texts


@pytest.mark.parametrize(
    ("words", "sampled"),
    [
        ("quantizer=rtn activation=tensor", False),  # minimum to maximum, which are exact
        ("quantizer=rtn activation=tensor activation/range=mse", True),
        ("quantizer=rtn activation=tensor activation/range=percentile", True),
        ("quantizer=rtn weight/range=mse", False),  # of weights, all of which are seen
        ("quantizer=rtn attention=uniform", True),
        ("quantizer=rtn attention=uniform attention/range=minmax", False),
        ("quantizer=rtn attention=log_sqrt2", True),
        ("quantizer=q_diffusion", False),
        ("quantizer=mixdq", False),
        ("quantizer=ptq4dit", True),
        ("quantizer=ptq4vit", True),
        ("quantizer=rtn transform=reparam", True),
        ("quantizer=rtn transform=reparam transform/range=minmax", False),
    ],
)
def test_what_sees_a_sample_of_values(words, sampled):
    assert ("values" in versions.versions(composed(*words.split()))) == sampled


@pytest.mark.parametrize(
    ("words", "learns"),
    [
        *((f"quantizer={name}", True) for name in ("ptq4dit", "ptq4dm", "ptqd", "q_diffusion")),
        ("quantizer=rtn rounding=adaround_paper", True),
        ("quantizer=ptq4dit rounding=nearest", False),
        ("quantizer=quarot", False),
    ],
)
def test_what_reconstructs_has_other_ids_and_cache_keys(words, learns, monkeypatch):
    config = composed(*words.split())
    assert ("adaround" in versions.versions(config)) == learns
    now = run_id(config), rounding_folder(config)
    monkeypatch.setattr(versions, "VERSIONS", tuple(v for v in versions.VERSIONS if v.part != "adaround"))
    assert all(
        (key != other) == learns for key, other in zip(now, (run_id(config), rounding_folder(config)), strict=True)
    )


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("quantizer=qdit_w4a8 bits=nvfp4", {"two_levels"}),
        ("quantizer=q_dit bits=nvfp4_46 weight/range=percentile", {"two_levels"}),
        ("quantizer=q_dit bits=nvfp4", set()),
        ("quantizer=qdit_w4a8 bits=mxfp4", set()),
        ("quantizer=qdit_w4a8 bits=w4a8", set()),
        ("quantizer=orbitquant bits=w4a4", set()),  # a row is a direction
        ("quantizer=orbitquant bits=w4a4 activation=tensor activation.grid=lloyd_max", {"lloyd_max"}),
        ("quantizer=rtn attention=uniform attention/range=minmax attention.grid=lloyd_max", {"lloyd_max"}),
        ("quantizer=fp4dit bits=w4a8 rounding=nearest", set()),
        ("quantizer=fp4dit bits=w4a8 rounding=nearest model=pixart_sigma dataset=prompts", {"by_role"}),
        ("quantizer=rtn rounding=adaround model=qwen_image dataset=prompts", {"adaround", "streams"}),
        ("quantizer=rtn rounding=adaround model=sd3_medium dataset=prompts", {"adaround"}),
        ("quantizer=passion_sr model=sd3_medium dataset=prompts", {"learned_streams"}),
        ("quantizer=passion_sr model=emoji_pixart", set()),
    ],
)
def test_which_recipes_have_other_numbers_than_before(words, changed):
    assert versions.versions(composed(*words.split())).keys() == changed


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("quantizer=fq_vit", {"channel_shift"}),
        ("quantizer=fq_vit activation.shifts=0", set()),
        ("quantizer=repq_vit", {"values"}),
        ("quantizer=qvd", {"values", "aligned"}),  # behind GELU, too
        ("quantizer=repq_vit model=dit_xl_2_256", {"values", "aligned"}),
        ("quantizer=tq_dit model=emoji_pixart", versions.versions(composed("quantizer=tq_dit")).keys()),
        ("quantizer=rtn attention=dynamic model=qwen_image", set()),
        ("quantizer=rtn attention=uniform attention/range=minmax model=qwen_image", {"joint_operands"}),
        ("quantizer=eda_dm", {"adaround", "inner", "density"}),
        ("quantizer=eda_dm calibration=uniform rounding.inner=0", {"adaround"}),
    ],
)
def test_which_parts_after_the_seeds_have_other_numbers_than_before(words, changed):
    assert versions.versions(composed(*words.split())).keys() == changed


def test_versions_and_new_keys_are_told_by_the_config_alone(monkeypatch):
    config = composed("quantizer=rtn")
    monkeypatch.setattr(versions, "NEUTRAL", {"weight.new": 1, "group": {"name": "none"}})
    with_new = {"weight": config["weight"] | {"new": 1}, "group": {"name": "none"}}
    assert without_neutral(with_new) == {"weight": config["weight"]}
    assert without_neutral({"weight": {"new": 2}}) == {"weight": {"new": 2}}
    monkeypatch.setattr(
        versions, "VERSIONS", (Version("a", 1, "", lambda _: True), Version("b", 3, "", lambda _: True))
    )
    assert versions.versions(config) == {"b": 3}


def test_calibration_data_are_known_by_the_versions_of_what_chose_them():
    assert versions.versions(composed("quantizer=eda_dm"), calibrating=True) == {"density": 2}
    assert versions.versions(composed("quantizer=qdrop"), calibrating=True) == {}
    two_calls = composed("quantizer=eda_dm", "model=wan_2_1_1b")
    assert versions.versions(two_calls, calibrating=True) == {"density": 2, "density_calls": 2}


def test_operands_with_a_rule_of_their_own_have_a_version():
    assert versions.versions(composed("quantizer=q_hyvit"))["operands"] == 2
    assert "operands" not in versions.versions(composed("quantizer=tq_dit")) | versions.versions(
        composed("quantizer=ptq_vit")
    )
    assert versions.versions(composed("quantizer=ptq_vit", "attention.range.ranking=0"))["operands"] == 2
