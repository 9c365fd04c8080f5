"""Effective bits, worked out by hand: scales in their own bits, branches, kept layers."""

import pytest

from qdit.ledger import RunTime, input_bits, ledger, weight_storage_bits
from qdit.model.base import Site
from qdit.policies import LayerSpec, Policy
from qdit.quant.named import NAMED, owned
from qdit.quant.spec import QuantSpec

WIDTH, TOKENS = 1152, 256
WEIGHTS = WIDTH * WIDTH
ROW = {"granularity": "row", "group_size": None, "grid": "symmetric", "scale": None}


def site(name: str) -> Site:
    return Site(
        name=name,
        role="qkv",
        block=0,
        stage=0,
        in_features=WIDTH,
        out_features=WIDTH,
        tokens=TOKENS,
    )


def spec(name: str, dynamic: bool = False) -> QuantSpec:
    return QuantSpec(bits=NAMED[name].bits, dynamic=dynamic, **owned(ROW, name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvfp4", 4 + 8 / 16 + 32 / WEIGHTS),
        ("mxfp4", 4.25),
        ("mxfp6", 6.25),
        ("mxfp8", 8.25),
        ("int4_g64", 4.25),
        ("int4_g16", 5),
        ("fp8", 8 + 16 / WIDTH),
    ],
)
def test_weights_cost_their_codes_and_their_scales_as_they_are_kept(name, expected):
    assert weight_storage_bits(site("a"), spec(name)) / WEIGHTS == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("int4_g16", 5), ("fp8", 8 + 16 / WIDTH)]
)
def test_inputs_cost_their_scales_too(name, expected):
    assert input_bits(site("a"), spec(name, dynamic=True)) == pytest.approx(expected)
    assert input_bits(site("a"), None) == 16


def test_four_recipes_cost_what_is_worked_out_by_hand():
    """Two layers 1152 x 1152, one of which is kept in 16 bits, and nothing else."""
    sites = [site("a"), site("kept")]

    def costs(name: str, *run_time: RunTime):
        layer = LayerSpec(weight=spec(name), activation=spec(name, dynamic=True))
        return ledger(2 * WEIGHTS, sites, Policy({"a": layer}), run_time=run_time)

    rank = 32 * 2 * WIDTH  # of both factors, for one row of the input too
    branch = RunTime(sites[0], 16 * rank, rank, weight_bits=16 * rank)
    nearest, mx, svd = costs("nvfp4"), costs("mxfp4"), costs("nvfp4", branch)
    rotated = costs("int4_g64", RunTime(sites[0], WIDTH, WIDTH * 11))
    tensor = 32 / WEIGHTS
    assert nearest.weight_bits_quantized == pytest.approx(4.5 + tensor)
    assert nearest.weight_bits_model == pytest.approx((4.5 + tensor + 16) / 2)
    assert mx.weight_bits_quantized == pytest.approx(4.25)
    assert svd.weight_bits_quantized == pytest.approx(4.5 + tensor + 8 / 9)  # rank 32: 16 * 32 * 2 / 1152 more bits
    assert rotated.weight_bits_quantized == pytest.approx(4.25)
    assert rotated.weight_bits_model == pytest.approx((4.25 + 16 + WIDTH / WEIGHTS) / 2)
    assert (nearest.input_bits, mx.input_bits) == (pytest.approx((4.5 + 16) / 2), pytest.approx((4.25 + 16) / 2))
    macs = WEIGHTS + WEIGHTS + rank  # a branch multiplies the input in 16 bits
    assert svd.input_bits == pytest.approx((4.5 * WEIGHTS + 16 * (WEIGHTS + rank)) / macs)
