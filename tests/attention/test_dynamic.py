"""Dynamic quantization of attention operands: blocks along the dimension over which a product sums."""

import torch

from qdit.activation import EqualGroups
from qdit.attention import DynamicAttention
from qdit.model.base import OPERANDS
from qdit.nn.clock import Clock
from qdit.quant.grid import fake_quantize
from qdit.quant.time_groups import ALL


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


def test_nothing_is_quantized_where_inputs_are_not():
    part = DynamicAttention(operands=["q"], granularity="row", grid="float")
    assert part.specs(16, EqualGroups()) == {}
    assert part.specs(8, EqualGroups())["q"].grid == "e4m3"
