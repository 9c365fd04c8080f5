"""The kernels that a run chooses, by a table or as it began: the same numbers, and the process as it was afterwards."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from qdit import execution
from qdit.execution import INT8, INT8_ROWS, SHORT, SIMULATED, attending, executing, faster, way


@pytest.mark.parametrize("keys", [SHORT, SHORT + 1])
def test_either_kernel_of_attention_gives_the_same_and_the_switch_goes_back(keys):
    q, k, v = torch.randn(3, 2, 4, keys, 8)
    fused = torch.backends.cuda.flash_sdp_enabled()
    with attending(torch.device("cpu"), keys):
        assert torch.backends.cuda.flash_sdp_enabled() == (fused and keys > SHORT)
        found = scaled_dot_product_attention(q, k, v)
    assert torch.backends.cuda.flash_sdp_enabled() == fused
    weights = (q.double() @ k.double().mT / 8**0.5).softmax(-1)
    assert_close(found.double(), weights @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("integers", "kernel", "expected"), [(True, True, INT8), (True, False, INT8_ROWS), (False, True, SIMULATED)]
)
def test_auto_takes_what_the_table_says_and_keeps_what_was_begun(integers, kernel, expected, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(execution, "has_int8", lambda device: integers)
    monkeypatch.setattr(execution.native, "available", lambda: kernel)
    assert faster(device) is expected
    for begun, kept in ((None, expected), ("simulated", SIMULATED), ("int8", INT8 if integers else SIMULATED)):
        with executing("auto", device, begun):
            assert way() is kept
    with executing("simulated", device, "int8"):
        assert way() is SIMULATED


def test_ways_take_products_by_their_groups():
    taken = {way.name: (way.takes(1), way.takes(9)) for way in execution.WAYS.values()}
    assert taken == {
        "simulated": (False, False),
        "int8": (True, True),
        "int8 by rows": (True, False),
        "fp8": (True, False),
    }
