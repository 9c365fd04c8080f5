"""Two inputs side by side with grids of their own: FLUX's last layer of a single block, and nothing else."""

import pytest
import torch
from helpers.text_models import load, points

import qdit
from qdit.checkpoint import checkpoint
from qdit.ledger import activation_storage_bits, input_bits
from qdit.method import quantize
from qdit.nn.columns import ColumnParts
from qdit.quant.grid import fake_quantize
from qdit.quant.spec import QuantSpec

SITE = "single_transformer_blocks.0.proj_out"
WIDTH = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load("flux_dev", tmp_path_factory.mktemp("flux"))


def made(model, *words):
    return quantize(model, qdit.recipe("rtn", *words, bits="w4a8"), lambda: points(model, 4))


def test_only_inputs_that_are_two_have_two_grids(model):
    own = made(model, "activation=token", "activation.columns=own")
    specs = {name: layer.activation.columns for name, layer in own.policy.items() if layer.activation is not None}
    assert {name for name, columns in specs.items() if columns} == {SITE, SITE.replace(".0.", ".1.")}
    assert specs[SITE] == WIDTH
    assert made(model, "activation=token").policy == made(model, "activation=token", "activation.columns=joined").policy
    grouped = made(model, "activation=group", "activation.group_size=16", "activation.columns=own")
    assert grouped.policy[SITE].activation.columns is None  # groups are apart as they are


def test_dynamic_rows_are_rounded_half_by_half(model):
    quantizer = made(model, "activation=token", "activation.columns=own").layers[SITE].quantizer
    x = torch.randn(3, 5, 160) * torch.cat([torch.ones(WIDTH), torch.full((128,), 20.0)])
    whole = QuantSpec(bits=8)
    naive = torch.cat([fake_quantize(x[..., :WIDTH], whole), fake_quantize(x[..., WIDTH:], whole)], -1)
    assert torch.equal(quantizer(x), naive)
    assert torch.equal(fake_quantize(x, QuantSpec(bits=8, columns=WIDTH)), naive)
    error, joined = (quantizer(x) - x)[..., :WIDTH].abs().max(), (fake_quantize(x, whole) - x)[..., :WIDTH].abs().max()
    assert error < joined / 5


def test_static_ranges_are_those_of_each_half(model, tmp_path):
    own = made(model, "activation=tensor", "activation.columns=own", "calibration=uniform")
    quantizer = own.layers[SITE].quantizer
    assert isinstance(quantizer, ColumnParts)
    seen = []
    handle = model.denoiser.get_submodule(SITE).register_forward_hook(lambda m, args, out: seen.append(args[0]))
    data = points(model, 4)
    for x, t, y in data.batches(model):
        model.denoise(x, t, y)
    handle.remove()
    x = torch.cat([part.flatten(0, -2) for part in seen])
    for part, half in ((x[:, :WIDTH], quantizer.first), (x[:, WIDTH:], quantizer.second)):
        span = part.amax().clamp(min=0) - part.amin().clamp(max=0)
        torch.testing.assert_close(half.scale.squeeze(), span / 255)
    checkpoint.save(own, tmp_path, checkpoint.provenance(model))
    again = checkpoint.load(tmp_path, model).layers[SITE].quantizer
    assert torch.equal(again(x), quantizer(x))


def test_the_ledger_counts_both_grids(model):
    site = next(site for site in model.sites() if site.name == SITE)
    one, two = QuantSpec(bits=8), QuantSpec(bits=8, columns=WIDTH)
    assert input_bits(site, two) - 8 == 2 * (input_bits(site, one) - 8)
    static = {"bits": 8, "granularity": "tensor", "dynamic": False}
    assert activation_storage_bits(QuantSpec(**static, columns=WIDTH)) == 2 * activation_storage_bits(
        QuantSpec(**static)
    )
