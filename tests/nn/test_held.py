"""What a network holds: parameters and buffers once, and what quantized layers hold besides."""

import torch
from torch import nn

from qdit.nn.held import held
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import DynamicQuantizer
from qdit.quant.affine import affine
from qdit.quant.grid import Rounded
from qdit.quant.spec import QuantSpec


def test_tensors_count_once():
    one = nn.Linear(8, 4)
    assert held(nn.Sequential(one, one)) == 4 * (8 * 4 + 4)
    assert held(nn.BatchNorm1d(3)) == 4 * 4 * 3 + 8  # weight, bias, mean, variance; and a count of 64 bits


def test_codes_are_counted_and_values_once_they_are_needed():
    linear, spec = nn.Linear(8, 4, bias=False), QuantSpec(bits=4)
    weight = linear.weight.detach()
    rounded = Rounded.of(weight, affine(weight.amin(1, True), weight.amax(1, True), spec), spec)
    layer = QuantLinear(linear, rounded, DynamicQuantizer(spec))
    codes, scales = 8 * 4, 2 * 4 * 4
    assert held(layer) == codes + scales
    with torch.no_grad():
        layer(torch.randn(2, 8))
    assert held(layer) == codes + scales + 4 * codes
