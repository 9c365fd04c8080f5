"""Probabilities of a recipe: rows that sum to 1, powers of 2, time groups; saved, read and counted."""

import pytest
import torch
from helpers.configs import config
from helpers.timed import points

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.ledger import activation_storage_bits
from qdit.method import quantize
from qdit.model.base import OPERANDS
from qdit.nn.quantizers import BookQuantizer
from qdit.quant.books import Renormalised
from qdit.quant.spec import QuantSpec
from qdit.runs.identity import run_id
from qdit.runs.parts import build_recipe

TIMED = ["activation=tensor", "activation/time=equal", "activation.time.groups=2"]
PROBABILITIES = ["unsigned", "two_region", "log_sqrt2", "log2", "released_sum", "float"]


@torch.no_grad()
def output(model):
    data = points(seed=1)
    return model.denoise(data.x, data.t, data.y)


def fitted(model, *words):
    recipe = build_recipe(config("quantizer=rtn", "bits=w8a8", *words))
    assert recipe is not None
    assert recipe.problems(model.sites()) == []
    return quantize(model, recipe, points)


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("time", [[], TIMED], ids=["", "time"])
def test_rows_sum_to_one_at_any_time_and_are_saved(tiny_model, name, time, tmp_path):
    words = ["attention=multi_region", f"attention/probabilities={name}", *time]
    made = fitted(tiny_model, *words, "attention.probabilities.renormalise=true")
    for attend in made.attention.values():
        assert isinstance(attend.probs, BookQuantizer)
        assert isinstance(attend.probs.book, Renormalised)
        rows = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
        with tiny_model.clock.showing(torch.tensor([0, 999])):
            torch.testing.assert_close(attend.probs(rows).sum(-1), torch.ones(2, 2, 16), atol=1e-5, rtol=0)
            assert attend.probs(rows.bfloat16()).dtype == torch.bfloat16
    original = output(tiny_model)
    with made.installed(tiny_model):
        found = output(tiny_model)
    assert 0 < (found - original).square().mean() < 3e-2 * original.square().mean()
    save(made, tmp_path, provenance(tiny_model))
    with load(tmp_path, tiny_model).installed(tiny_model):
        assert torch.equal(output(tiny_model), found)


def test_every_recipe_that_rounds_probabilities_has_the_key_and_without_it_is_the_published_one():
    for words in ("quantizer=ptq4dit", "quantizer=repq_vit", "quantizer=tq_dit", "quantizer=ptq4vit"):
        plain = config(words)
        key = "attention.renormalise" if "probabilities" not in plain["attention"] else ""
        key = key or "attention.probabilities.renormalise"
        assert run_id(config(words, f"{key}=false")) == run_id(plain) != run_id(config(words, f"{key}=true"))


def test_a_uniform_attention_has_it_too(tiny_model):
    made = fitted(tiny_model, "attention=uniform", "attention.renormalise=true", "attention/range=minmax")
    plain = fitted(tiny_model, "attention=uniform", "attention/range=minmax")
    for path, attend in made.attention.items():
        assert isinstance(attend.probs.book, Renormalised)
        rows = torch.rand(1, 1, 3, 5).softmax(-1)
        expected = plain.attention[path].probs(rows)
        torch.testing.assert_close(attend.probs(rows), expected / expected.sum(-1, True))


def test_powers_of_two_have_bits_of_their_own_and_store_nothing(tiny_model):
    made = fitted(tiny_model, "attention=log2")
    specs = {site.rpartition(".")[2]: layer.activation for site, layer in made.policy.items() if "attn1" in site}
    assert [specs[o].bits for o in OPERANDS] == [8, 8, 8, 4]
    assert specs["probs"] == QuantSpec(bits=4, granularity="tensor", grid="log2", dynamic=False)
    assert activation_storage_bits(specs["probs"]) == 0
    assert activation_storage_bits(specs["v"]) == 16 + 8
