"""The command of a record makes the same run: composed, it has the same science."""

import shlex

import pytest
from omegaconf import OmegaConf

from qdit.api.compose import composed
from qdit.cli.recall import command, recalled
from qdit.config import resolved
from qdit.keys import flatten
from qdit.runs.identity import science


def recorded(*words):
    return flatten(resolved(composed(*words)))


@pytest.mark.parametrize(
    "words",
    [
        ["quantizer=fp", "num_samples=16", "seed=3"],
        ["quantizer=q_dit", "bits=w4a4", "weight.group_size=64", "sampler.steps=10", "study=mine"],
        ["quantizer=rtn", "bits=nvfp4", "transform=smooth", "transform.alpha=0.3", "rounding=gptq", "eval=paired"],
        ["quantizer=vidit_q", "search=none", "sampler=ddpm", "dtype=bfloat16", "scope.exclude=[pos_embed.proj,'a b']"],
        ["quantizer=rtn", "bits=w8a8", "weight.grid=symmetric", "seed=3", "model.revision=null", "num_samples=4"],
        ["quantizer=q_dit", "bits=w4a8", "eval=paired", "scope.exclude=['*.attn1.*']"],
        ["quantizer=q_dit", "rounding=nearest", "sampler=ddpm"],
        ["quantizer=rtn", "bits.name=w5a7", "bits.weight=5", "bits.activation=7", "model.path=/some/where"],
        ["quantizer=repq_vit", "attention.probabilities.renormalise=true"],
        ["quantizer=repq_vit", "quantizer.name=mine", "attention.probabilities.renormalise=true"],
        ["quantizer=qdit_w4a4", "experiment=hybrid_parts/2_bias"],
        ["quantizer=rtn", "bits=w8a8", "experiment=seed_parts/bias"],
        ["experiment=alpha/smooth", "alpha=0.3"],
        ["experiment=q_dit_ablation/3_dynamic", "study=default"],
    ],
    ids=lambda words: words[0] + words[-1],
)
def test_the_command_makes_the_same_run(words):
    config = resolved(composed(*words))
    line = command([flatten(config)])
    program, *found = shlex.split(line)
    again = resolved(composed(*found))
    assert program == "qdit"
    assert science(again) == science(config)
    assert set(again["eval"]) == set(config["eval"])
    assert (again["study"], again["name"]) == (config["study"], config["name"])


def test_the_words_are_few():
    line = command([recorded("quantizer=q_dit", "bits=w4a4", "weight.group_size=64")])
    assert line == "qdit quantizer=q_dit bits=w4a4 weight.group_size=64"


def test_seeds_are_one_sweep():
    configs = [recorded("quantizer=rtn", f"calibration.seed={seed}") for seed in (10, 0, 2)]
    assert command(configs) == "qdit -m quantizer=rtn bits=w4a8 calibration.seed=0,2,10"


def test_what_an_earlier_qdit_did_not_record_is_left_to_this_one():
    config = recorded("quantizer=rtn", "bits=w4a4")
    old = {k: v for k, v in config.items() if k not in ("weight.scale", "bits.weight_format", "model.vae_revision")}
    assert command([old | {"mean_bits": 4}]) == "qdit quantizer=rtn bits=w4a4"


def test_a_checkpoint_is_loaded_again():
    config = recorded("quantizer=rtn", "bits=w4a4", "num_samples=16", "sampler.steps=5")
    loaded = {"quantizer.name": "load", "quantizer.path": "runs/mine/a run", "quantizer.checkpoint": "0a1b"}
    line = command([config | loaded])
    assert line == "qdit quantizer=load 'quantizer.path='\"'\"'runs/mine/a run'\"'\"'' sampler.steps=5 num_samples=16"
    assert composed(*shlex.split(line)[1:]).quantizer.path == "runs/mine/a run"


@pytest.mark.parametrize("name", ["mine", "<b>", "load=1", None])
def test_a_recipe_like_none_here_has_no_command_but_a_reason(name):
    config = recorded("quantizer=rtn") | {"quantizer.name": name, "quantizer.paper": "one's own"}
    line, reason = recalled([config])
    assert line == ""
    assert reason == f"recipe {name} is in no file of conf/, and like none there; --config-dir knows it"


def test_a_recipe_of_ones_own_is_given_its_name():
    line = command([recorded("quantizer=rtn", "calibration.seed=3") | {"quantizer.name": "load=1"}])
    assert composed(*shlex.split(line)[1:]).name == "load=1-w4a8"
    assert "quantizer=rtn" in line


def test_overlays_are_found_by_the_name_that_they_give():
    line = command([recorded("quantizer=rtn", "experiment=seed_parts/bias")])
    assert line == "qdit quantizer=rtn experiment=seed_parts/bias bits=w4a8 study=default"


def test_values_are_words_of_hydra():
    from qdit.cli.words import as_value

    values = [
        None,
        True,
        3,
        0.5,
        "a",
        "it's",
        "",
        ["x y", None],
        {"a": [1, "b"]},
        "1e3",
        "null",
        "a,b",
        "${x}",
        "C:\\data\\x.txt",
        "it's \\ ",
        "\\",
        "\\'",
        "a\\\\",
        "\\\\'b\\",
    ]
    for value in values:
        [made] = OmegaConf.to_container(_parsed(f"k={as_value(value)}"), resolve=False).values()  # pyright: ignore
        assert made == value


def _parsed(word):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [override] = OverridesParser.create().parse_overrides([word])
    return OmegaConf.create({"k": override.value()})
