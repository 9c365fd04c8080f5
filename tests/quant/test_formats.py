"""Number formats with levels, against torchao's results, the dossiers' values and naive rounding."""

import pytest
import torch
from helpers.torchao_goldens import FILE, blocks
from safetensors.torch import load_file

from qdit.errors import UserError
from qdit.nn.clock import Clock
from qdit.nn.quantizers import quantizer_of
from qdit.quant.decibels import decibels
from qdit.quant.formats import FLOATS, GAUSSIAN, NF4, format_of, lloyd_max
from qdit.quant.grid import Rounded, covering, extent, fake_quantize, from_tensors, shared, tensors_of
from qdit.quant.packing import pack, unpack
from qdit.quant.ranges import MSE, MinMax, Percentile, PercentileMSE, check_rule, rounding_error
from qdit.quant.scales import SCALES
from qdit.quant.spec import QuantSpec, as_rows
from qdit.quant.time_groups import ALL

TORCHAO = load_file(FILE)
CPU = torch.device("cpu")
SPECS = {
    "e4m3": QuantSpec(bits=8, grid="e4m3"),
    "e5m2": QuantSpec(bits=8, grid="e5m2"),
    "mxfp8": QuantSpec(bits=8, grid="e4m3", granularity="group", group_size=32, scale="e8m0"),
    "mxfp4": QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=32, scale="e8m0"),
    "nvfp4": QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=16, scale="e4m3"),
}
OTHERS = {
    "nvfp4_46": QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=16, scale="e4m3_46"),
    "mxfp6": QuantSpec(bits=6, grid="e3m2", granularity="group", group_size=32, scale="e8m0"),
    "nf4": QuantSpec(bits=4, grid="nf4", granularity="group", group_size=64),
    "lloyd_max": QuantSpec(bits=3, grid="lloyd_max"),
    "e3m0": QuantSpec(bits=4, grid="e3m0"),
}
EVERY = SPECS | OTHERS


def grid_of(x, spec):
    rows = as_rows(x, spec)
    return rows, covering(rows, *extent(rows, spec), spec)


@pytest.mark.parametrize("kind", blocks())
@pytest.mark.parametrize("name", SPECS)
def test_values_are_torchaos_bit_for_bit(name, kind):
    """Of zeros torchao makes NaN where a whole tensor's scale is 0; here they stay."""
    x, expected = blocks()[kind], TORCHAO[f"{name}.{kind}"]
    rows, grid = grid_of(x, SPECS[name])
    made = grid.round(rows).view(x.shape)
    if kind == "zero":
        assert (made == 0).all()
        assert name in ("mxfp4", "mxfp8") or expected.isnan().all()
    else:
        torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("e2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e3m0", [0, 0.25, 0.5, 1, 2, 4, 8, 16]),
        ("e1m2", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
    ],
)
def test_four_bit_levels_are_those_of_fp4dit(name, expected):
    assert FLOATS[name].values(CPU)[:8].tolist() == expected


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_codes_of_fp8_are_torchs_bit_patterns(name):
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    patterns = torch.arange(256).to(torch.uint8)
    values = patterns.view(dtype).float()
    finite = values.isfinite()
    format = FLOATS[name]
    assert torch.equal(format.decode(patterns)[finite], values[finite])
    assert torch.equal(format.encode(values[finite]), patterns[finite])


@pytest.mark.parametrize("name", EVERY)
def test_the_nearest_level_is_the_nearest(name):
    """Levels are fixed points, and nothing that lies between is nearer to another; without a loop in what is tested."""
    spec = EVERY[name]
    format = format_of(spec, 128)
    x = torch.linspace(-1.2, 1.2, 4001) * format.largest
    distance = (x[:, None] - format.levels(CPU)).abs()
    made = format.nearest(x.clone())
    assert torch.equal((made - x).abs(), distance.amin(1))
    assert torch.equal(format.nearest(format.levels(CPU).clone()), format.levels(CPU))
    assert (made.diff() >= 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_codes_are_packed_kept_and_read_back_with_equal_weights(name):
    spec = EVERY[name]
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(2))
    rows, grid = grid_of(weight, spec)
    rounded = Rounded.of(weight, grid, spec)
    assert torch.equal(rounded.weight, grid.round(rows).view(weight.shape))
    assert torch.equal(Rounded.of(rounded.weight, grid, spec).codes, rounded.codes)
    assert torch.equal(unpack(pack(rounded.codes, spec.bits), spec.bits, (8, 128)), rounded.codes)
    kept = tensors_of(grid)
    kept["scale"] = SCALES[spec.scale].unpack(SCALES[spec.scale].pack(kept["scale"]))
    assert kept["scale"].dtype == torch.float32
    assert torch.equal(from_tensors(kept, spec, rows.shape[1]).decode(as_rows(rounded.codes, spec)), grid.round(rows))


def test_four_over_six_puts_a_block_where_its_error_is_least():
    """[10, 20, 30, 40] lies on the grid whose maximum is 4, and 30 becomes 26.67 where it is 6 (frontier §2.10)."""
    x = torch.tensor([[10.0, 20, 30, 40]]).repeat(1, 4)
    assert fake_quantize(x, OTHERS["nvfp4_46"]).equal(x)
    at_six = fake_quantize(x, QuantSpec(bits=4, grid="e2m1", granularity="group", group_size=16))
    assert at_six[0, 2].item() == pytest.approx(26.6667, abs=1e-3)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    one, other = (fake_quantize(noise, spec) for spec in (SPECS["nvfp4"], OTHERS["nvfp4_46"]))
    assert (other - noise).square().sum() < (one - noise).square().sum()


def gaussian_db(**spec) -> float:
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(4))
    error = fake_quantize(x, QuantSpec(bits=4, **spec)) - x
    return decibels(x.square().mean(), error.square().mean()).item()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"grid": "e2m1", "granularity": "group", "group_size": 16}, 20.5),
        ({"grid": "e2m1", "granularity": "group", "group_size": 32}, 19.9),
        ({"grid": "e2m1", "granularity": "group", "group_size": 16, "scale": "e4m3_46"}, 21.3),
        ({"grid": "lloyd_max"}, 20.2),
        ({"grid": "symmetric", "granularity": "group", "group_size": 16}, 21.4),
        ({"grid": "symmetric", "granularity": "group", "group_size": 64}, 19.4),
        ({"grid": "symmetric", "granularity": "group", "group_size": 128}, 18.6),
    ],
)
def test_gaussian_values_have_the_dossiers_ratios(spec, expected):
    assert gaussian_db(**spec) == pytest.approx(expected, abs=0.1)


def test_lloyd_max_code_books_have_the_known_errors():
    """Of a Gaussian with 4, 8 and 16 levels: .1175, .0345, .0095 (frontier §2.2)."""
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(5))
    for bits, expected in ((2, 0.1175), (3, 0.0345), (4, 0.0095)):
        book = lloyd_max(bits, GAUSSIAN)
        assert (book.nearest(x.clone()) - x).square().mean().item() == pytest.approx(expected, rel=0.02)
    assert max(lloyd_max(4, 64).table) < max(lloyd_max(4, GAUSSIAN).table)  # a coordinate of few cannot be large


def test_rows_of_zeros_stay_and_the_scale_of_a_norm_follows_the_row():
    spec = OTHERS["lloyd_max"]
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(fake_quantize(8 * x, spec), 8 * fake_quantize(x, spec))
    for each in EVERY.values():  # a code-book need not have 0
        assert fake_quantize(torch.zeros(2, 128), each).abs().amax() < 1e-37


def test_items_of_a_batch_do_not_depend_on_each_other():
    x = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(7)) * torch.tensor([1.0, 50, 0.01]).view(3, 1, 1)
    whole = fake_quantize(x, SPECS["nvfp4"])
    assert torch.equal(whole, torch.cat([fake_quantize(x[n : n + 1], SPECS["nvfp4"]) for n in range(3)]))


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_46"])
@pytest.mark.parametrize(
    "rule", [MSE(candidates=20), PercentileMSE(shares=[0.8, 0.9, 0.99])], ids=["mse", "percentiles"]
)
def test_ranges_are_scored_on_the_grid_that_is_deployed(rule, name):
    """What the scales of a tensor have in common does not follow the clipping, so no row has a better candidate."""
    spec = EVERY[name]
    rows = as_rows(torch.randn(32, 64, generator=torch.Generator().manual_seed(8)).pow(3), spec)
    whole = shared(rows, spec)
    deployed = covering(rows, *rule(rows, spec), spec)
    assert torch.equal(deployed.whole, whole)
    lo, hi = extent(rows, spec)
    if isinstance(rule, MSE):
        candidates = [(lo * factor, hi * factor) for factor in rule.factors()]
    else:
        candidates = [Percentile(p=share)(rows, spec) for share in rule.shares]
    tried = [rounding_error(rows, covering(rows, *ends, spec, whole), rule.power) for ends in candidates]
    torch.testing.assert_close(rounding_error(rows, deployed, rule.power), torch.stack(tried).amin(0))


def test_each_of_several_tensors_has_a_common_part_of_its_own():
    spec = SPECS["nvfp4"]
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(9)) * torch.tensor([1.0, 2, 300, 400]).view(-1, 1)
    both = shared(rows, spec, items=2)
    assert torch.equal(both[:2], shared(rows[:2], spec).expand(2, 1))
    assert torch.equal(both[2:], shared(rows[2:], spec).expand(2, 1))
    assert torch.equal(MSE()(rows, spec, both)[1][:2], MSE()(rows[:2], spec)[1])
    assert shared(rows, SPECS["mxfp4"]) is None
    assert shared(rows, QuantSpec(bits=4)) is None


@pytest.mark.parametrize("name", ["e4m3", "lloyd_max", "nf4"])
def test_a_whole_tensor_may_have_one_scale_at_run_time(name):
    spec = QuantSpec(bits=8 if name == "e4m3" else 4, grid=name, granularity="tensor")
    x = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(10))
    made = fake_quantize(x, spec)
    assert made.shape == x.shape
    assert (made - x).abs().amax() < 0.7


@pytest.mark.parametrize("spec", [*EVERY.values(), QuantSpec(bits=8, grid="e4m3", granularity="tensor")])
def test_of_no_values_none_are_made(spec):
    for shape in ((0, 4, 64), (2, 0, 64), (0, 64)):
        assert fake_quantize(torch.zeros(shape), spec).shape == shape


def test_a_static_code_book_is_the_same_whatever_the_batch():
    """A batch is no direction of so many coordinates: values are rounded as they are alone."""
    spec = QuantSpec(bits=4, grid="lloyd_max", granularity="tensor", dynamic=False)
    x = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(11))
    row = x.reshape(1, -1)
    quantizer = quantizer_of(spec, [covering(row, *extent(row, spec), spec)], ALL, Clock())
    whole = quantizer(x)
    assert torch.equal(whole, torch.cat([quantizer(x[n : n + 1]) for n in range(4)]))
    assert torch.equal(whole, quantizer(x.repeat(8, 1, 1))[:4])


def test_tables_of_levels_are_made_once_and_serve_every_context():
    book = format_of(OTHERS["nf4"], 64)
    assert book is NF4
    with torch.inference_mode():
        first = lloyd_max(5, 48).levels(CPU)
    assert lloyd_max(5, 48).levels(CPU) is first
    assert not first.is_inference()
    assert book.values(CPU) is NF4.values(CPU)


def test_scales_that_are_no_numbers_stay_so_and_large_ones_are_finite():
    """OCP's E8M0 has NaN at 255, and 2^127 is its largest number."""
    scales = SCALES["e8m0"]
    kept = scales.kept(torch.tensor([[1.0], [torch.nan], [3.3e38], [0.0]]))
    assert kept[2].item() == 2.0**127
    for name in SCALES:
        kept = SCALES[name].kept(torch.tensor([[1.0], [torch.nan], [torch.inf]]))
        again = SCALES[name].unpack(SCALES[name].pack(kept))
        torch.testing.assert_close(again, kept, rtol=0, atol=0, equal_nan=True)
    assert scales.pack(torch.tensor([torch.nan, -torch.nan])).tolist() == [255, 255]


def test_a_range_of_values_does_not_go_with_the_scale_of_a_norm():
    for rule in (Percentile(), PercentileMSE()):
        with pytest.raises(UserError, match="grid=lloyd_max is scaled by the norm of each row; use range=minmax"):
            check_rule(rule, "e2m1", "lloyd_max")
        check_rule(rule, "e2m1")
    check_rule(MinMax(), "lloyd_max")
    check_rule(MSE(), "lloyd_max")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": 8, "grid": "e2m1"}, "has 4 bits, not 8"),
        ({"bits": 4, "grid": "asymmetric", "granularity": "group", "group_size": 16, "scale": "e4m3"}, "e2m1, e3m0"),
        ({"bits": 4, "grid": "e2m1", "granularity": "group", "group_size": 24, "scale": "e8m0"}, "groups of 32"),
        ({"bits": 4, "grid": "e2m1", "scale": "e4m3"}, "granularity='row'"),
        ({"bits": 4, "grid": "e2m1", "granularity": "group", "group_size": 16, "scale": "fp32"}, "e8m0, e4m3"),
    ],
)
def test_what_a_format_cannot_have_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        QuantSpec(**wrong)


def test_specs_of_before_are_printed_and_kept_as_before():
    spec = QuantSpec(bits=4)
    assert repr(spec) == (
        "QuantSpec(bits=4, granularity='row', group_size=None, grid='asymmetric', dynamic=True, time_groups=None)"
    )
    assert "scale" not in spec.as_dict()
    assert QuantSpec(**SPECS["nvfp4"].as_dict()) == SPECS["nvfp4"]
    assert repr(SPECS["nvfp4"]).endswith("scale='e4m3')")
