"""The kernels that a run chooses: the same numbers, and the process as it was afterwards."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from qdit.execution import SHORT, attending


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
