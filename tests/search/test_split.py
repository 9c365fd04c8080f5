"""A budget is divided among groups."""

import pytest

from qdit.search.split import ByError, ByRatio, Even, Share

SHARES = [Share("first", [0], {2: 20.0, 4: 40.0, 8: 80.0}), Share("second", [1], {2: 10.0, 4: 20.0, 8: 40.0})]


@pytest.mark.parametrize("split", [Even(), ByError(), ByRatio()])
@pytest.mark.parametrize("limit", [30.0, 47.0, 90.0, 500.0])
def test_splits_keep_the_limit_and_give_every_group_its_least(split, limit):
    error = lambda share, bits: (100 if share.name == "first" else 1) * 4.0**-bits  # noqa: E731
    for limits in split.limits(SHARES, limit, error):
        assert sum(limits) <= max(limit, 30.0) * (1 + 1e-9)
        assert all(share.least <= found * (1 + 1e-9) for share, found in zip(SHARES, limits, strict=True))


@pytest.mark.parametrize("limit", [47.0, 90.0, 115.0, 120.0])
def test_what_one_group_cannot_spend_the_others_may(limit):
    for limits in ByRatio().limits(SHARES, limit, lambda share, bits: 0.0):
        assert sum(limits) == pytest.approx(limit)
        assert all(found <= share.most * (1 + 1e-9) for share, found in zip(SHARES, limits, strict=True))


def test_the_group_with_the_larger_error_gets_more():
    even = Even().limits(SHARES, 60.0, lambda share, bits: 0.0)[0]
    assert even == pytest.approx([40.0, 20.0])
    error = lambda share, bits: (1 if share.name == "first" else 1e4) * 4.0**-bits  # noqa: E731
    (by_error,) = ByError().limits(SHARES, 60.0, error)
    assert by_error[1] > even[1]
    ratios = ByRatio(ratios=[0.5, 1.0]).limits(SHARES, 60.0, error)
    assert ratios[1] == pytest.approx(even)
    assert ratios[0] == pytest.approx([30.0, 30.0])
