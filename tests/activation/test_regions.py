"""Two regions behind GELU."""

from dataclasses import replace

import pytest
from helpers.timed import DOWN, error, points, recipe, static

from qdit.activation import DynamicActivation, SidedInputs
from qdit.calibration.observers import input_values
from qdit.errors import UserError
from qdit.method import quantize
from qdit.quant.regions import GELU_MINIMUM
from qdit.transform import Hadamard


@pytest.mark.parametrize(
    "activation",
    [static(regions=SidedInputs(roles=["ffn_down"])), DynamicActivation(granularity="row", grid="asymmetric")],
    ids=["static", "dynamic"],
)
def test_inputs_behind_gelu_have_two_regions_whatever_the_others_have(activation, tiny_model):
    activation = replace(activation, regions=SidedInputs(roles=["ffn_down"]))
    quantized = quantize(tiny_model, recipe(activation, bits=(8, 6)), points)
    sided = {name for name, layer in quantized.policy.items() if layer.activation.grid == "two_sided"}
    assert sided == {s.name for s in tiny_model.sites() if s.role == "ffn_down"}
    negative, positive = quantized.layers[DOWN].quantizer.numbers[0, 0].tolist()
    site = next(s for s in tiny_model.sites() if s.name == DOWN)
    (values,) = input_values(tiny_model, [site], points())[DOWN]
    assert negative == pytest.approx(GELU_MINIMUM / 32)
    assert positive == pytest.approx(values.max().item() / 31.5)
    assert error(tiny_model, quantized) > 0


def test_two_regions_are_better_behind_gelu_than_one(tiny_model):
    one = quantize(tiny_model, recipe(static(grid="symmetric_full"), bits=(16, 4)), points)
    regions = SidedInputs(roles=["ffn_down"])
    two = quantize(tiny_model, recipe(static(grid="symmetric_full", regions=regions), bits=(16, 4)), points)
    site = next(s for s in tiny_model.sites() if s.name == DOWN)
    (values,) = input_values(tiny_model, [site], points())[DOWN]

    def rounding(quantized):
        return (quantized.layers[DOWN].quantizer(values.view(1, -1)) - values).square().mean()

    assert rounding(two) < rounding(one)


def test_a_side_that_a_transform_moved_is_calibrated_or_refused(tiny_model):
    spread = Hadamard(name="hadamard", roles=["ffn_down"], block=None, seed=0)
    parts = {"transform": spread, "bits": (8, 8)}
    with pytest.raises(UserError, match="negative=null"):
        quantize(tiny_model, recipe(static(regions=SidedInputs(roles=["ffn_down"])), **parts), points)
    both = static(regions=SidedInputs(roles=["ffn_down"], negative=None))
    quantized = quantize(tiny_model, recipe(both, **parts), points)
    plain = quantize(tiny_model, recipe(static(), **parts), points)
    assert error(tiny_model, quantized) < 3 * error(tiny_model, plain)


@pytest.mark.parametrize("activation", [static(), DynamicActivation(granularity="row", grid="asymmetric")])
def test_the_texts_layers_are_behind_a_gelu_too_and_flux_single_blocks_only_in_part(activation):
    activation = replace(activation, regions=SidedInputs(roles=["ffn_down"]))
    spec = activation.spec(8)
    roles = ("ffn_down", "text_down", "ffn_up", "text_up", "parallel_out", "qkv")
    sided = [role for role in roles if activation.at(role, spec).grid == "two_sided"]
    assert sided == ["ffn_down", "text_down"]
