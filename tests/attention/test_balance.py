"""Balanced queries and keys: exact, better where their channels are unlike, and nothing without the key."""

from functools import partial

import pytest
import torch
from helpers import text_models
from helpers.configs import config
from helpers.timed import output, points, recipe, static

from qdit.attention import DynamicAttention, StaticAttention, UniformAttention, UnsignedProbabilities
from qdit.attention.balance import balances, balancing
from qdit.calibration.observers import watching_operands
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.hessian import Hessian, Unweighted
from qdit.method import quantize
from qdit.nn.attention import Attend
from qdit.nn.balanced import Balanced
from qdit.nn.replace import replaced
from qdit.quant.ranges import MinMax
from qdit.rounding import AdaRound
from qdit.runs.identity import run_id

SCORES = ["q", "k"]


def attention(**changes):
    given = {"operands": SCORES, "granularity": "head", "grid": "symmetric", "range": MinMax()}
    return StaticAttention(**given | {"probabilities": UnsignedProbabilities(range=MinMax())} | changes)


def unlike_channels(model):
    """Let queries and keys have channels of unlike size, one the other's inverse: the scores stay."""
    spread = torch.logspace(-1, 1, 32)
    for block in model.denoiser.transformer_blocks:
        with torch.no_grad():
            for layer, by in ((block.attn1.to_q, spread), (block.attn1.to_k, 1 / spread)):
                layer.weight.mul_(by.unsqueeze(1))
                layer.bias.mul_(by)
    return model


def test_both_have_the_same_magnitudes_channel_by_channel(tiny_model):
    data, most = points(), {}
    found = balances(unlike_channels(tiny_model), tiny_model.attentions(), data)

    def see(site, x):
        if site.endswith((".q", ".k")):
            here = (x * found[site]).abs().amax((0, 2))
            most[site] = torch.maximum(most.get(site, here), here)

    with watching_operands(tiny_model, tiny_model.attentions(), see), torch.no_grad():
        tiny_model.denoise(data.x, data.t, data.y)
    for each in tiny_model.attentions():
        torch.testing.assert_close(most[each.sites["q"]], most[each.sites["k"]])
    assert balancing(torch.zeros(2), torch.ones(2)).tolist() == [1, 1]


def test_full_precision_stays_the_same(tiny_model):
    found = balances(tiny_model, tiny_model.attentions(), points())
    keep = torch.nn.Identity()
    put = {
        a.processor: Attend(**{o: Balanced(keep, found[a.sites[o]]) for o in SCORES}).eval()
        for a in tiny_model.attentions()
    }
    before = output(tiny_model)
    with replaced(tiny_model.denoiser, put):
        after = output(tiny_model)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", [attention(), attention(granularity="tensor", grid="asymmetric")], ids=str)
def test_it_is_better_where_channels_are_unlike(tiny_model, part):
    model, errors = unlike_channels(tiny_model), []
    for own in (part, attention(**{**vars(part), "balance": True})):
        made = quantize(model, recipe(static(), own, (16, 4), scope=_nothing()), points)
        errors.append((output(model, made) - output(model)).square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def _nothing():
    from qdit.scope import Scope

    return Scope(roles=["final"])  # a site must be chosen; its error is the same with and without


def test_dynamic_ones_are_balanced_too_and_then_need_data(tiny_model, tmp_path):
    part = DynamicAttention(operands=SCORES, granularity="row", grid="asymmetric", balance=True)
    assert part.needs_calibration
    assert not DynamicAttention(operands=SCORES, granularity="row", grid="asymmetric").needs_calibration
    made = quantize(tiny_model, recipe(static(), part, (4, 4), rounding=AdaRound(iterations=2)), points)
    found = output(tiny_model, made)
    save(made, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), found)
    rounding = UniformAttention(
        operands=["q", "k", "v", "probs"], grid="asymmetric", probability_bits=8, range=MinMax(), balance=True
    )
    whole = quantize(tiny_model, recipe(static(), rounding, (8, 8)), points)
    assert isinstance(next(iter(whole.layers.values())), torch.nn.Module)
    assert torch.isfinite(output(tiny_model, whole)).all()


def test_keys_that_a_mask_hides_do_not_count(tmp_path):
    model = text_models.load("pixart_alpha", tmp_path)
    data = text_models.points(model, 4)
    before = balances(model, model.attentions(), data)
    masked = next(a for a in model.attentions() if model.attended(f"{a.name}.to_k", data.y) is not None)
    hidden = ~model.attended(f"{masked.name}.to_k", data.y)
    seen = {site: [] for site in masked.sites.values()}
    with watching_operands(model, [masked], lambda site, x: seen[site].append(x)), torch.no_grad():
        for x, t, y in data.batches(model):
            model.denoise(x, t, y)
    queries, keys = (torch.cat(seen[masked.sites[operand]]).abs() for operand in SCORES)
    shown = (keys * ~hidden[:, None, :, None]).amax((0, 2))
    assert not torch.equal(shown, keys.amax((0, 2)))
    torch.testing.assert_close(before[masked.sites["q"]].squeeze(1), balancing(queries.amax((0, 2)), shown))
    assert torch.equal(before[masked.sites["k"]], 1 / before[masked.sites["q"]])


def test_mistakes_are_named_and_ids_stay(tiny_model):
    dynamic = partial(DynamicAttention, operands=["probs"], granularity="row", grid="asymmetric")
    for make in (partial(attention, operands=["q", "v"]), dynamic):
        with pytest.raises(UserError, match="scales queries and keys, and attention.operands has"):
            make(balance=True)
    rule = Hessian(target=Unweighted(), candidates=4)
    (problem,) = recipe(static(), attention(range=rule, balance=True)).problems(tiny_model.sites())
    assert "use another range, or attention.balance=false" in problem
    assert "balance" not in repr(attention())
    plain = config("quantizer=tq_dit")
    before = {**plain, "attention": {k: v for k, v in plain["attention"].items() if k != "balance"}}
    assert run_id(before) == run_id(plain)
