"""What depth costs: each block runs as often in a deep network as in a shallow one, and memory stays as it is."""

import pytest

from experiments.benchmarks.depth import FITS, network, points, spent

RUNS = {"gptq": 2, "adaround": 2 + 3 + 2 * 2, "fisher": 2 + 3 + 2 * 2 + 2}
"""Of a block, for 8 points: GPTQ's Hessians, and on; AdaRound's two lanes, 3 iterations, the error of two batches
before and behind them; Fisher weights of two batches. The last block is not passed on in the lane that is rounded."""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "name", "depths"),
    [
        ("pixart", "gptq", (2, 4, 8)),
        ("latte", "gptq", (2, 4, 8)),
        ("latte", "adaround", (2, 4)),
        ("pixart", "fisher", (2, 4)),
        slow("pixart", "adaround", (2, 4, 8)),
        slow("latte", "adaround", (2, 4, 8)),
        slow("latte", "fisher", (2, 4, 8)),
    ],
)
def test_time_is_linear_in_depth_and_memory_does_not_grow(family, name, depths):
    found = []
    for depth in depths:
        model = network(family, depth, width=16)
        found.append(spent(model, points(model, 8, 8), FITS[name], ["attn_out", "ffn_up"]))
    assert {each.runs for each in found} == {(RUNS[name] - 1, RUNS[name])}
    if name != "fisher":  # the one backward pass holds the activations of all blocks
        peaks = [each.peak for each in found]
        assert max(peaks) <= 1.15 * min(peaks)
