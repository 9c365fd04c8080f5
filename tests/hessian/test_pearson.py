"""Ranges of the most similar output: the golden examples, naive loops over candidates, and a recipe that has them."""

import pytest
import torch
from helpers.configs import config
from helpers.timed import output, points

from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.hessian import Pearson
from qdit.hessian.grids import multiples
from qdit.hessian.linears import reader
from qdit.hessian.pearson import Order, alike_weights, correlation, judge_of, ranking, sums_of, unlike
from qdit.hessian.products import Moving, Other
from qdit.hessian.scores import Layer, moments
from qdit.method import quantize
from qdit.quant.affine import affine
from qdit.quant.books import Uniform
from qdit.quant.spec import QuantSpec
from qdit.runs.parts import build_recipe

RULE = Pearson(candidates=12)
WEIGHT = QuantSpec(bits=4, granularity="tensor", grid="symmetric_full", dynamic=False)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alike(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1]


def test_golden_a_gain_is_not_seen():
    o = torch.tensor([1.0, 2, 3, 4])
    near, like = torch.tensor([1.0, 2, 3, 5]), 0.5 * o + 1
    found = correlation(torch.stack([sums_of(o, like), sums_of(o, near)], 1).double())
    assert found.tolist() == pytest.approx([1.0, 0.982708], abs=1e-6)
    assert [(made - o).square().mean().item() for made in (like, near)] == [0.375, 0.25]  # and yet
    assert correlation(sums_of(o, torch.ones(4))) == 0


def test_golden_rankings():
    scores = torch.tensor([3, 1, 2, 2.1])
    others = [(3, 1, 2, 2.1), (3, 1, 2, 2), (2, 2, 2, 2), (1, 3, 2, 2)]
    found = [ranking(scores, torch.tensor(other, dtype=torch.float32), 0.2) for other in others]
    assert [loss.item() for loss, _ in found] == pytest.approx([0.1, 0.2, 1.2, 7.2], abs=1e-6)
    assert {pairs for _, pairs in found} == {6}


@pytest.mark.parametrize("keys", [5, 64, 200])
def test_the_ranking_loss_is_that_of_a_loop_over_pairs(keys):
    scores = draw(3, keys)
    rounded = scores + 0.3 * draw(3, keys, seed=1)
    loss, pairs = ranking(scores, rounded, 0.2)
    apart = (rounded[:, :, None] - rounded[:, None]) * (scores[:, :, None] - scores[:, None]).sign()
    every = (0.2 - apart).clamp(min=0).triu(1).sum((1, 2))
    if keys <= 64:
        assert pairs == keys * (keys - 1) // 2
        torch.testing.assert_close(loss, every)
    else:
        assert pairs < keys * (keys - 1) // 4
        torch.testing.assert_close(loss / pairs, every / (keys * (keys - 1) / 2), rtol=0.1, atol=0)


def layer(out=6, channels=24, rows=100):
    weight, x = draw(out, channels), draw(rows, channels, seed=1) * torch.logspace(-1, 1, channels) + 0.5
    return Layer(weight, torch.ones(rows), torch.ones(out)), x


def test_of_a_weight_the_most_similar_output_comes_first():
    own, x = layer()
    x_hat = (2 * x).round() / 2
    largest = own.weight.abs().max().view(1, 1)
    start, tried = affine(-largest, largest, WEIGHT), RULE.factors().unsqueeze(1)
    ranked = alike_weights(own, moments(own, x, x_hat), (x, x_hat), start, tried)
    found = {}
    for factor in tried:
        made = start.scaled(factor.view(1, 1)).round(own.weight.view(1, -1)).view_as(own.weight)
        found[factor.item()] = alike(x @ own.weight.T, x_hat @ made.T).item()
    assert ranked.flatten().tolist() == sorted(found, key=lambda factor: -found[factor])
    with torch.device("meta"):  # another default device than that of the weight
        assert torch.equal(alike_weights(own, moments(own, x, x_hat), (x, x_hat), start, tried), ranked)


def moving(values, cells):
    spec = QuantSpec(bits=4, granularity="tensor", grid="asymmetric", dynamic=False)
    start = affine(values.amin().view(1, 1), values.amax().view(1, 1), spec)
    numbers = torch.cat([start.scale, start.zero_point], 1).repeat(int(cells.max()) + 1, 1)
    return Moving(values, Uniform(start.low, start.high), cells), multiples(numbers, 0, RULE.factors())


def test_of_an_input_all_readers_outputs_count_as_one_by_group(monkeypatch):
    (one, x), (other, _) = layer(), layer(out=30)
    cells = torch.arange(len(x)) % 2
    operand, table = moving(x.unsqueeze(1), cells)
    hats = [(4 * part.weight).round() / 4 for part in (one, other)]
    products = [reader(part, hat) for part, hat in zip((one, other), hats, strict=True)]
    expected = torch.empty(len(table), 2, dtype=torch.float64)
    for n, numbers in enumerate(table):
        made = operand.rounded(numbers.unsqueeze(0))[:, 0, 0]
        for cell in range(2):
            mine = cells == cell
            pairs = [(x[mine] @ p.weight.T, made[mine] @ hat.T) for p, hat in zip((one, other), hats, strict=True)]
            expected[n, cell] = 1 - alike(*(torch.cat([pair[k].flatten() for pair in pairs]) for k in range(2)))
    for values in (2**18, 500):
        monkeypatch.setattr("qdit.hessian.products.CHUNK_VALUES", {"cpu": values})
        torch.testing.assert_close(judge_of(RULE)(operand, products, table), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("operand", ["q", "k"])
def test_keys_that_a_mask_hides_do_not_count(operand):
    """As if they were not there, whatever they are; each item has its own number of keys."""
    q, k = draw(4, 7, 16), draw(4, 9, 16, seed=1)
    lengths, judge = torch.tensor([6, 9, 2, 4]), judge_of(Pearson(candidates=12, ranking=0.5), operand, width=16)
    mask = (torch.arange(9) < lengths.unsqueeze(1)).float()
    values, fixed = (q, k) if operand == "q" else (k, q)
    rounded = (2 * fixed).round() / 2
    cells = torch.arange(4)  # an item each, so that those of other lengths are apart
    own, table = moving(values, cells)
    counted = mask.unsqueeze(1 if operand == "q" else 2)
    found = judge(own, [Other(rounded.mT, (fixed - rounded).mT, torch.ones(4, 1, 1), counted)], table)
    for item, length in enumerate(lengths.tolist()):
        some = slice(item, item + 1)
        short = [part[some, :length] if part.shape[1] == 9 else part[some] for part in (values, fixed, rounded)]
        alone = Moving(short[0], own.book, torch.zeros(1, dtype=torch.long))
        other = Other(short[2].mT, (short[1] - short[2]).mT, torch.ones(1, 1, 1))
        expected = judge(alone, [other], table[:, some])
        torch.testing.assert_close(found[:, some], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("operand", ["q", "k"])
def test_of_queries_and_keys_the_order_of_scores_counts(operand):
    q, k = draw(4, 7, 16), draw(4, 9, 16, seed=1)
    values, fixed = (q, k) if operand == "q" else (k, q)
    rounded = (2 * fixed).round() / 2
    own, table = moving(values, torch.zeros(4, dtype=torch.long))
    other = Other(rounded.mT, (fixed - rounded).mT, torch.ones(4, 1, 1))
    found = judge_of(Pearson(candidates=12, ranking=0.5), operand, width=16)(own, [other], table)[:, 0]
    plain = unlike(own, [other], table)[:, 0]
    scores = q @ k.mT
    for n, numbers in enumerate(table):
        made = own.rounded(numbers.unsqueeze(0))[:, 0] @ rounded.mT
        made = made if operand == "q" else made.mT
        losses = [ranking(4 * scores, 4 * part, 0.2)[0].sum().item() / (4 * 7 * 36) for part in (made, scores)]
        assert found[n].item() == pytest.approx(
            1 - alike(scores, made).item() + 0.5 * (losses[0] - losses[1]), abs=1e-5
        )
        assert plain[n].item() == pytest.approx(1 - alike(scores, made).item(), abs=1e-5)
    assert Order(0.5, 0.2, 4.0, False).excess(scores, scores)[0].abs().max() == 0


def test_a_recipe_runs_resumes_and_is_saved(tiny_model, tmp_path, monkeypatch):
    recipe = build_recipe(config("quantizer=ptq_vit", "bits=w6a6"))
    assert recipe is not None
    assert recipe.problems(tiny_model.sites()) == []
    made = quantize(tiny_model, recipe, points, tmp_path / "fit")
    found = output(tiny_model, made)
    monkeypatch.setattr("qdit.hessian.linears.alike_weights", None)  # what was finished is not searched again
    again = quantize(tiny_model, recipe, points, tmp_path / "fit")
    assert torch.equal(output(tiny_model, again), found)
    save(made, tmp_path / "saved", provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path / "saved", tiny_model)), found)
    assert {spec.activation.granularity for spec in made.policy.values()} == {"tensor"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weight=row", "weight/range=pearson"], "weight.range=pearson compares whole outputs"),
        (
            ["weight=tensor", "weight/range=pearson", "activation=tensor", "activation/range=hessian"],
            "weight.range=pearson and activation.range=hessian have others",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_model, words, said):
    recipe = build_recipe(config("quantizer=rtn", *words))
    assert recipe is not None
    assert said in " ".join(recipe.problems(tiny_model.sites()))
    with pytest.raises(UserError, match="ranking=-1"):
        Pearson(ranking=-1.0)
