"""Formats that `bits` names, on the parts of recipes: what they take the place of, and what is refused."""

from dataclasses import replace

import pytest
from helpers.configs import config

from qdit.config import check
from qdit.errors import UserError
from qdit.model.base import Site
from qdit.policies import Span
from qdit.runs.identity import run_id, science
from qdit.runs.parts import build_recipe
from qdit.scheme import in_formats


def site(role: str) -> Site:
    return Site("a", role, block=0, in_features=8, out_features=8, tokens=4, stage=0)


def built(*words: str):
    made = config(*words)
    check(made)
    recipe = build_recipe(made)
    assert recipe is not None
    return recipe


def test_a_format_with_blocks_takes_the_place_of_grid_and_groups():
    layer = built("quantizer=q_dit", "bits=nvfp4").layer
    for spec in (layer.weight, layer.activation):
        assert (spec.bits, spec.grid, spec.group_size, spec.scale) == (4, "e2m1", 16, "e4m3")
    assert layer.activation.dynamic


def test_a_format_without_blocks_goes_with_static_ranges_and_attentions():
    recipe = built("quantizer=ptq4dit", "bits=fp8")
    assert (recipe.layer.activation.grid, recipe.layer.activation.granularity) == ("e4m3", "tensor")
    again = built("quantizer=ptq4dit", "attention.renormalise=true", "bits=fp8")
    assert again.attention.probabilities.renormalise
    assert {o: (spec.grid, spec.bits) for o, spec in recipe.operands.items()} == dict.fromkeys(
        ("q", "k", "v", "probs"), ("e4m3", 8)
    )


def test_a_role_has_its_own_format_where_the_bits_fit():
    recipe = built("quantizer=fp4dit", "bits=w4a8")
    assert recipe.layer.weight.grid == "e2m1"
    assert recipe.particular(recipe.layer, site("ffn_up")).weight.grid == "e3m0"
    assert recipe.particular(recipe.layer, site("ffn_down")).weight.grid == "e2m1"
    assert recipe.layer.activation.grid == "e4m3"
    eight = built("quantizer=fp4dit", "bits=w8a8")
    assert eight.particular(eight.layer, site("ffn_up")).weight.grid == "e4m3"


def test_the_attention_follows_the_inputs_format():
    specs = built("quantizer=rtn", "bits=mxfp4", "attention=dynamic").operands
    assert {(spec.group_size, spec.scale) for spec in specs.values()} == {(32, "e8m0")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("quantizer=ptq4dit bits=nvfp4", "use activation=token, or bits=fp8"),
        ("quantizer=rtn bits=nvfp4 attention=uniform calibration=uniform", "attention=dynamic"),
        ("quantizer=tq_dit bits=fp8", "activation/regions=none"),
        ("quantizer=tq_dit bits=fp8 activation/regions=none", "attention/probabilities=float"),
        ("quantizer=rtn weight.scale=e8m0 bits=w4a4", "goes with floating-point formats"),
        ("quantizer=rtn weight=group weight.group_size=24 weight.grid=e2m1 weight.scale=e8m0", "groups of 32"),
        ("quantizer=rtn weight.grid=float bits=w3a8", "4, 6, 8 bits, not 3"),
        ("quantizer=rtn bits=nvfp4 bits.weight=8", "nvfp4 has 4 bits"),
        ("quantizer=rtn bits=nvfp4 bits.weight_format=mxfp4", "set bits.name=mxfp4_nvfp4 too"),
        ("quantizer=rtn bits=lloyd4 weight/range=percentile", "Percentile: .* scaled by the norm of each row"),
        (
            "quantizer=rtn weight.grid=lloyd_max weight/range=percentile_mse",
            "PercentileMSE: .* range=minmax or range=mse",
        ),
        (
            "quantizer=rtn attention=uniform attention.grid=lloyd_max attention/range=percentile",
            "attention: .* the norm",
        ),
        ("quantizer=ptq4dit activation.grid=lloyd_max", "activation: .* scaled by the norm"),
        ("quantizer=rtn +weight.by_role={ffn_up:e9m9}", "weight.by_role=.*a mapping whose values are e2m1, e3m0"),
    ],
)
def test_what_a_part_cannot_have_is_refused_in_words(words, message):
    with pytest.raises(UserError, match=message):
        built(*words.split())


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            "quantizer=tq_dit bits=nvfp4",
            [
                "activation/regions=none",
                "this activation has static",
                "this attention has static",
                "probabilities=float",
            ],
        ),
        (
            "quantizer=rtn bits=lloyd4 activation=tensor weight/range=percentile",
            ["scaled by the norm", "of each row at"],
        ),
        (
            "quantizer=rtn weight.grid=float activation.grid=float attention=dynamic attention.grid=float bits=w3a8 "
            "bits.activation=5 bits.name=w3a5",
            ["weight: grid=float", "activation: grid=float", "attention: grid=float"],
        ),
        (
            "quantizer=rtn bits=nvfp4 bits.weight=9 bits.activation_format=fp5",
            ["bits.weight=9; allowed", "'fp5'; allowed"],
        ),
    ],
)
def test_everything_that_cannot_be_is_said_at_once(words, messages):
    with pytest.raises(UserError) as error:
        built(*words.split())
    assert all(message in str(error.value) for message in messages), str(error.value)


def test_a_part_of_another_package_that_knows_no_formats_is_named():
    with pytest.raises(UserError, match="bits.activation_format=nvfp4: this attention knows no number formats"):
        in_formats({"attention": object()}, {"activation": 4, "activation_format": "nvfp4"})


def test_a_roles_grid_is_also_that_of_the_roles_that_are_like_it(tiny_model):
    recipe = built("quantizer=fp4dit", "bits=w4a8")
    assert recipe.particular(recipe.layer, site("text_up")).weight.grid == "e3m0"
    own = replace(recipe, weight=replace(recipe.weight, by_role={"ffn_up": "e3m0", "text_up": "e1m2"}))
    assert [own.particular(own.layer, site(role)).weight.grid for role in ("text_up", "ffn_up")] == ["e1m2", "e3m0"]
    wrong = replace(recipe, weight=replace(recipe.weight, by_role={"ffn": "e3m0"}))
    assert any("weight.by_role has 'ffn'; this model has" in each for each in wrong.problems(tiny_model.sites()))
    assert not any("by_role" in each for each in recipe.problems(tiny_model.sites()))


def test_a_roles_grid_holds_in_every_span_of_time():
    recipe = built("quantizer=fp4dit", "bits=w4a8")
    eight, four = replace(recipe, weight_bits=8).layer.weight, recipe.layer.weight
    spans = tuple(Span(first=first, last=first, steps=1, weight=weight) for first, weight in ((9, eight), (1, four)))
    layer = recipe.particular(replace(recipe.layer, spans=spans), site("ffn_up"))
    assert [span.weight.grid for span in layer.spans] == ["e4m3", "e3m0"]
    assert layer.weight in layer.weights


def test_newer_fields_are_no_part_of_what_is_hashed_while_they_change_nothing():
    text = repr(built("quantizer=q_dit", "bits=w4a8")) + repr(built("quantizer=ptq4dit", "bits=w4a8"))
    assert not any(word in text for word in ("scale=", "by_role", "_format", "renormalise", "repair="))
    assert "weight=WeightGrid(granularity='group', grid='asymmetric', range=MinMax(), group_size=128)" in text
    assert "scale='e4m3'" in repr(built("quantizer=q_dit", "bits=nvfp4"))
    assert "by_role={'ffn_up': 'e3m0'}" in repr(built("quantizer=fp4dit", "bits=w4a8"))


def test_new_keys_leave_the_ids_of_before():
    """`weight.scale` and `activation.scale` are neutral at null; another value is another run."""
    before = config("quantizer=q_dit", "bits=w4a8")
    assert before["weight"]["scale"] is None
    assert "scale" not in science(before)["weight"]
    assert run_id(before) == run_id({**before, "weight": {k: v for k, v in before["weight"].items() if k != "scale"}})
    assert run_id(config("quantizer=q_dit", "bits=nvfp4")) != run_id(config("quantizer=q_dit", "bits=mxfp4"))
