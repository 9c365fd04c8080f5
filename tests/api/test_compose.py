"""Configs in Python are those of the command line."""

import pytest
from hydra.core.global_hydra import GlobalHydra

import qdit
from qdit.api.compose import composed, composed_recipe
from qdit.cli.design import Row
from qdit.errors import UserError
from qdit.keys import COMPONENTS


def test_a_recipe_is_what_the_command_line_composes():
    method, config = composed_recipe("q_dit", ("rounding=nearest", "weight.group_size=32"), "w8a8")
    assert (method.weight.group_size, method.weight_bits, config["name"]) == (32, 8, "q_dit-w8a8")
    assert type(method.rounding).__name__ == "Nearest"
    assert qdit.recipe("q_dit", "rounding=nearest", "weight.group_size=32", bits="w8a8") == method


def test_bits_are_a_name():
    with pytest.raises(UserError, match=r"bits=4 is no name.*'w4a8'"):
        qdit.recipe("rtn", bits=4)  # type: ignore[arg-type]


def test_names_that_look_like_numbers_stay_names_and_hydra_is_left_as_it_was():
    assert composed("study=2026_11_28").study == "2026_11_28"
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("weight=nothing",), "nothing"),
        (("no.such.key=1",), "no"),
        (("weight",), "no word of the command line"),
        ((3,), "no word of the command line"),
        (("weight=row,group",), "weight"),
    ],
)
def test_a_word_that_has_no_place_is_one_message(words, message):
    with pytest.raises(UserError, match=message):
        composed(*words)


@pytest.mark.parametrize("word", ["grid=bits", "+grid=bits", "hydra.mode=MULTIRUN", "hydra/launcher=joblib"])
def test_words_of_the_command_itself_are_refused_instead_of_dropped(word):
    with pytest.raises(UserError, match=f"`qdit {word.lstrip('+')}`"):
        composed("quantizer=rtn", word)


def test_the_design_is_the_commands_table(monkeypatch):
    row = Row("mine", "My method", None, "own", ["·"] * len(COMPONENTS))
    monkeypatch.setattr("qdit.api.compose.listed", lambda: [row])
    frame = qdit.design()
    assert frame.index.tolist() == ["mine"]
    assert frame.loc["mine", ["title", "family", *COMPONENTS]].tolist() == ["My method", "own", *row.cells]


@pytest.mark.parametrize(
    "word", ["execution=int8", "dtype=bfloat16", "model=emoji_latte", "seed=9", "eval=smoke", "bit=w4a4"]
)
def test_words_that_say_nothing_about_a_recipe_are_refused(word):
    with pytest.raises(UserError, match="is no part of a recipe, and would do nothing here"):
        composed_recipe("rtn", (word,), "w8a8")


@pytest.mark.parametrize("word", ["weight.group_size=32", "weight/range=mse", "sampler.steps=9", "+weight.by_role={}"])
def test_words_of_a_recipe_are_taken(word):
    assert composed_recipe("q_dit", (word,), "w8a8")[0].weight_bits == 8
