"""Named formats: what they own, what they are called, and what `bits` refuses."""

import pytest

from qdit.quant.named import LEVEL_BITS, NAMED, SCALE_BLOCKS, at_bits, label, owned, problems
from qdit.quant.spec import QuantSpec

RECIPE = {"granularity": "group", "group_size": 128, "grid": "asymmetric", "scale": None}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_makes_a_spec_and_has_the_bits_and_blocks_of_its_grid_and_scale(name):
    named = NAMED[name]
    spec = QuantSpec(bits=named.bits, **owned(RECIPE, name))
    assert (spec.grid, spec.scale) == (named.grid, named.scale)
    assert LEVEL_BITS.get(named.grid, named.bits) == named.bits
    assert named.scale is None or named.block == SCALE_BLOCKS[named.scale]


def test_a_format_without_blocks_keeps_the_recipes_rows():
    assert owned(RECIPE, "fp8")["group_size"] == 128
    assert owned(RECIPE, "nvfp4")["group_size"] == 16
    assert owned(RECIPE, "lloyd4")["granularity"] == "row"
    assert owned(RECIPE, None) == RECIPE


def test_float_is_another_format_at_each_width():
    assert [at_bits("float", bits) for bits in (4, 6, 8)] == ["e2m1", "e3m2", "e4m3"]
    assert at_bits("e2m1", 8) == "e2m1"


@pytest.mark.parametrize(
    ("weight", "activation", "formats", "expected"),
    [
        (4, 4, ("nvfp4", "nvfp4"), "nvfp4"),
        (4, 8, ("fp4", "fp8"), "w4a8_fp"),
        (4, 8, ("nvfp4", "mxfp8"), "nvfp4_mxfp8"),
        (4, 16, ("nvfp4", "nvfp4"), "nvfp4_16"),
        (4, 8, (None, "fp8"), "int4_fp8"),
        (4, 8, (None, None), "w4a8"),
    ],
)
def test_names_of_bits_tell_the_formats(weight, activation, formats, expected):
    bits = {"weight": weight, "activation": activation, "weight_format": formats[0], "activation_format": formats[1]}
    assert label(bits) == expected
    assert problems(bits) == []


def test_bits_and_formats_must_agree():
    (found,) = problems({"weight": 8, "activation": 4, "weight_format": "nvfp4", "activation_format": "mxfp4"})
    assert "nvfp4 has 4 bits, and bits.weight=8" in found
    (found,) = problems({"weight": 4, "activation": 4, "weight_format": "fp5"})
    assert "nvfp4_46" in found
