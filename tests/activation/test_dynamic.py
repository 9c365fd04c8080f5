"""Dynamic inputs: what a sample's result may depend on."""

import pytest
import torch
from helpers.configs import config

from qdit.activation import DynamicActivation
from qdit.attention.dynamic import DynamicAttention
from qdit.config import build
from qdit.errors import UserError
from qdit.nn.quantizers import DynamicQuantizer


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("activation=token activation.granularity=tensor", "use activation.granularity=row, or activation=tensor"),
        ("attention=dynamic attention.granularity=tensor", "use attention.granularity=row, or attention=uniform"),
    ],
)
def test_a_scale_that_a_batch_shares_is_refused(words, advice):
    group = words.partition("=")[0]
    with pytest.raises(Exception, match=advice):
        build(config("quantizer=rtn", *words.split())[group])


def test_a_scale_that_a_batch_shares_is_refused_in_python():
    with pytest.raises(UserError, match="depend on batch_size"):
        DynamicActivation(granularity="tensor", grid="asymmetric")
    with pytest.raises(UserError, match="depend on batch_size"):
        DynamicAttention(operands=["q", "k"], granularity="tensor", grid="asymmetric")


@pytest.mark.parametrize("rows", [{"granularity": "row"}, {"granularity": "group", "group_size": 8}])
def test_a_sample_alone_is_the_sample_in_a_batch(rows):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 100.0]).view(
        3, 1, 1
    )
    quantizer = DynamicQuantizer(DynamicActivation(grid="asymmetric", **rows).spec(4))
    assert torch.equal(quantizer(x)[:1], quantizer(x[:1]))
