"""Recipes in formats whose blocks a layer cannot have."""

from dataclasses import replace

from helpers.configs import config

from qdit.runs.parts import build_recipe


def test_blocks_that_do_not_divide_a_layer_are_refused_with_what_can_be_done(tiny_model):
    recipe = build_recipe(config("quantizer=rtn", "bits=mxfp4"))
    assert recipe is not None
    assert recipe.problems(tiny_model.sites()) == []
    narrow = [replace(site, in_features=24) for site in tiny_model.sites() if site.role == "qkv"][:1]
    found = recipe.misfits(narrow)
    assert len(found) == 2
    assert f"weight: blocks of 32 (scale=e8m0) do not divide {narrow[0].name} (24 inputs)" in found[0]
    assert all("scope.exclude" in each and "bits=fp8" in each for each in found)
