"""What all quantizers by channel have in common: they go with every rounding, and are saved."""

import pytest
import torch
from helpers.timed import error, output, points, recipe

from qdit.activation import ChannelShift, Clustered
from qdit.checkpoint.checkpoint import load, provenance, save
from qdit.errors import UserError
from qdit.method import quantize
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ, AdaRound

GIVEN = {"granularity": "tensor", "grid": "asymmetric", "range": MinMax()}


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound(iterations=2)], ids=["gptq", "adaround"])
@pytest.mark.parametrize("kind", [ChannelShift, Clustered])
def test_it_goes_with_every_rounding_and_is_saved(tiny_model, tmp_path, kind, rounding):
    made = quantize(tiny_model, recipe(kind(**GIVEN), bits=(4, 4), rounding=rounding), points)
    found = output(tiny_model, made)
    save(made, tmp_path, provenance(tiny_model))
    assert torch.equal(output(tiny_model, load(tmp_path, tiny_model)), found)
    assert error(tiny_model, made) > 0


@pytest.mark.parametrize("kind", [ChannelShift, Clustered])
def test_its_grid_is_of_integers_and_its_roles_are_known(kind):
    with pytest.raises(UserError, match=f"activation={kind.kind} {kind.does} integers, and grid='e2m1' has none"):
        kind(**GIVEN | {"grid": "e2m1"})
    with pytest.raises(UserError, match=f"activation.{kind.where} has roles heads; choose from"):
        kind(**GIVEN | {kind.where: ["heads"]})
