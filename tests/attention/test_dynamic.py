"""Dynamic quantization of attention operands: blocks along the dimension over which a product sums."""

from dataclasses import replace

import torch
from helpers.timed import output, points, recipe, static

from qdit.activation import EqualGroups
from qdit.attention import DynamicAttention
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.method import quantize
from qdit.model.base import OPERANDS
from qdit.nn.clock import Clock
from qdit.quant.grid import fake_quantize
from qdit.quant.time_groups import ALL
from qdit.rounding import AdaRound


def test_blocks_of_values_lie_along_tokens_and_zeros_fill_the_last():
    part = DynamicAttention(operands=list(OPERANDS), granularity="row", grid="asymmetric").in_format("nvfp4")
    specs = part.specs(4, EqualGroups())
    x = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))  # 24 channels, 40 tokens: neither in 16s
    for operand, spec in specs.items():
        module = part.quantizer(operand, spec, None, ALL, Clock())
        made = module(x)
        lying = x.mT if operand == "v" else x
        padded = torch.cat([lying, torch.zeros(*lying.shape[:-1], -lying.shape[-1] % 16)], -1)
        expected = fake_quantize(padded, spec)[..., : lying.shape[-1]]
        assert torch.equal(made, expected.mT if operand == "v" else expected)
        assert not module.by_rows  # all of a sample share a float32
        assert torch.equal(module(x[:1]), made[:1])


def test_probabilities_sum_to_1_again_and_the_other_operands_are_left():
    part = DynamicAttention(operands=list(OPERANDS), granularity="row", grid="asymmetric", renormalise=True)
    plain = replace(part, renormalise=False)
    x = torch.randn(2, 3, 5, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    x[0, 0, 0] = 0  # a query without a key
    for operand, spec in part.specs(4, EqualGroups()).items():
        module, own = (each.quantizer(operand, spec, None, ALL, Clock()) for each in (part, plain))
        made, rounded = module(x), own(x)
        if operand != "probs":
            assert torch.equal(made, rounded)
            continue
        assert module.by_rows
        torch.testing.assert_close(made, rounded / rounded.sum(-1, keepdim=True).clamp(min=1e-9))
        assert not torch.allclose(rounded.sum(-1), made.sum(-1))
    assert "renormalise" not in repr(plain)


def test_a_checkpoint_and_a_reconstruction_take_it(tiny_model, tmp_path):
    part = DynamicAttention(operands=["probs"], granularity="row", grid="asymmetric", renormalise=True)
    made = quantize(tiny_model, recipe(static(), part, (4, 4), rounding=AdaRound(iterations=2)), points)
    found = output(tiny_model, made)
    save(made, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), found)


def test_nothing_is_quantized_where_inputs_are_not():
    part = DynamicAttention(operands=["q"], granularity="row", grid="float")
    assert part.specs(16, EqualGroups()) == {}
    assert part.specs(8, EqualGroups())["q"].grid == "e4m3"
