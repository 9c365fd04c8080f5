"""Attentions step by step: the original's result for all families, masks and chunks; nothing of it in checkpoints."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.attention_processor import Attention
from helpers.families import FAMILIES
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from qdit.checkpoint.serialize import Writer
from qdit.model.derive import derive
from qdit.nn import attention
from qdit.nn.attention import Attend
from qdit.nn.quantizers import DynamicQuantizer, StaticQuantizer
from qdit.nn.replace import put, replaced
from qdit.quant.affine import affine
from qdit.quant.spec import QuantSpec


class Counter(nn.Module):
    """Passes an operand and notes its shapes."""

    def __init__(self, by_rows=False):
        super().__init__()
        self.shapes, self.by_rows = [], by_rows

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x


def inputs_of(given):
    """Meta tensors made real; masks let 7 of the text's tokens through."""
    random = torch.Generator().manual_seed(0)

    def real(key, value):
        if isinstance(value, dict):
            return real_all(value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype != torch.long:
            return torch.randn(value.shape, generator=random)
        made = torch.ones(value.shape, dtype=torch.long)
        if key.endswith("mask"):
            made[:, 7:] = 0
        return made

    def real_all(values):
        return {key: real(key, value) for key, value in values.items()}

    return real_all(given)


def network(family):
    """A random network of a family, its attentions, and a function that runs it."""
    kind, config, given = FAMILIES[family]()
    with torch.device("meta"):
        _, attentions = derive(kind(**config), lambda net: net(**given))
    torch.manual_seed(0)
    net, inputs = kind(**config).eval(), inputs_of(given)

    @torch.no_grad()
    def run():
        return net(**inputs, return_dict=False)[0]

    return net, attentions, run


def distance(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_is_rounded_it_is_the_original_and_every_keyword_arrives(family):
    net, attentions, run = network(family)
    expected = run()
    counters = {a.name: Counter() for a in attentions}
    with replaced(net, {a.processor: Attend(probs=counters[a.name]) for a in attentions}):
        assert distance(run(), expected) <= 1e-6
    assert {a.name: [(a.copies, a.heads, a.tokens, a.keys)] for a in attentions} == {
        name: counter.shapes for name, counter in counters.items()
    }
    assert torch.equal(run(), expected)


def test_other_kernels_are_not_used_meanwhile():
    net, attentions, run = network("flux")
    with attention_backend("native"):
        expected = run()
    processors = [net.get_submodule(a.name).processor for a in attentions]
    for processor in processors:
        processor._attention_backend = AttentionBackendName.XFORMERS  # which is not there
    with replaced(net, {a.processor: Attend() for a in attentions}):
        assert distance(run(), expected) <= 1e-6
    assert {processor._attention_backend for processor in processors} == {AttentionBackendName.XFORMERS}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ALLOWED = draw(2, 1, 5, 7) > 0
ALLOWED[1, 0, 2] = False  # a query without a key
CASES = {
    "plain": {},
    "a scale": {"scale": 0.7},
    "a key mask": {"attn_mask": ALLOWED[:, :, :1] | (torch.arange(7) == 0)},
    "a whole mask": {"attn_mask": ALLOWED},
    "an added mask": {"attn_mask": draw(2, 3, 5, 7) * 3},
    "a mask of two dimensions": {"attn_mask": draw(5, 7) * 3},
    "causal": {"is_causal": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [False, True], ids=["heads", "shared_keys"])
def test_products_are_the_fused_ones_whole_and_in_chunks(case, shared, monkeypatch):
    q, k, v = draw(2, 3, 5, 8), draw(2, 1 if shared else 3, 7, 8, seed=1), draw(2, 1 if shared else 3, 7, 6, seed=2)
    options = CASES[case] | {"enable_gqa": shared}
    expected = scaled_dot_product_attention(q, k, v, **options)
    rounded = Attend(*[StaticQuantizer(spec, affine(-bound, bound, spec)) for bound in torch.full((4, 1, 1), 3.0)])
    whole, whole_rounded = Attend().product(q, k, v, **options), rounded.product(q, k, v, **options)
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr(attention, "WHOLE", 1)
    monkeypatch.setattr(attention, "CHUNK", 2 * 2 * 3 * 7)  # two queries
    torch.testing.assert_close(Attend().product(q, k, v, **options), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rounded.product(q, k, v, **options), whole_rounded, atol=1e-6, rtol=1e-6)
    assert distance(whole_rounded, expected) > 1e-3


spec = QuantSpec(bits=4, granularity="tensor", grid="asymmetric", dynamic=False)


def test_only_modules_that_take_rows_alone_are_given_parts(monkeypatch):
    monkeypatch.setattr(attention, "WHOLE", 1)
    monkeypatch.setattr(attention, "CHUNK", 2 * 3 * 7)
    q, k = draw(1, 3, 5, 8), draw(1, 3, 7, 8, seed=1)
    whole, parts = Counter(), Counter(by_rows=True)
    for probs in (whole, parts):
        Attend(probs=probs).product(q, k, k)
    assert whole.shapes == [(1, 3, 5, 7)]
    assert parts.shapes == [(1, 3, 2, 7), (1, 3, 2, 7), (1, 3, 1, 7)]
    kinds = {g: DynamicQuantizer(QuantSpec(bits=4, granularity=g, grid="asymmetric")) for g in ("tensor", "row")}
    assert {g: attention.by_rows(module) for g, module in kinds.items()} == {"tensor": False, "row": True}
    assert attention.by_rows(None)


def test_shapes_of_class_conditional_transformers_are_never_cut():
    """At 512 px, whatever the batch: their results are those of before."""
    q = torch.empty(256, 16, 1024, 72, device="meta")
    assert Attend()._chunk(q, 1024) == 1024
    assert Attend()._chunk(torch.empty(2, 16, 4096, 72, device="meta"), 4096) == 512


def test_the_original_stays_out_of_checkpoints_and_goes_along_with_copies():
    owner = Attention(query_dim=8, heads=2, dim_head=4).eval()
    original, x = owner.processor, draw(1, 3, 8)
    with torch.no_grad():
        expected = owner(x)
    attend = Attend()
    put(owner, {"processor": attend})
    assert attend.original is original
    assert set(Writer().value(attend, "x")["state"]["attributes"]) == {"q", "k", "v", "probs"}
    assert not attend.state_dict()
    inner = Attend()
    with replaced(owner, {"processor": inner}):
        assert inner.original is original  # not the one that it stands for now
    assert owner.processor is attend
    with torch.no_grad():
        torch.testing.assert_close(deepcopy(owner)(x), expected, atol=1e-6, rtol=1e-6)


def test_what_cannot_be_tapped_is_named():
    owner = Attention(query_dim=8, heads=2, dim_head=4)
    put(owner, {"processor": lambda attn, hidden_states, **_: hidden_states})
    put(owner, {"processor": Attend()})
    with pytest.raises(RuntimeError, match="calls no scaled_dot_product_attention"):
        owner(draw(1, 3, 8))
    with pytest.raises(RuntimeError, match="runs the processor that it replaced"):
        Attend()(draw(1, 3, 8))
    with pytest.raises(NotImplementedError, match="dropout"):
        Attend().product(*draw(3, 1, 1, 2, 2), dropout_p=0.5)
