"""Errors clustered by prompt."""

import pytest
import torch
from scipy.stats import t as student

from qdit.eval.per_sample import mean_of


def test_one_sample_a_prompt_is_the_plain_error():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    assert mean_of(values, [str(i) for i in range(20)]) == mean_of(values)
    assert mean_of(values).stderr == pytest.approx(float(values.std()) / 20**0.5)


def test_prompts_count_once_however_many_samples_they_have():
    values = torch.tensor([0.0, 0.0, 0.0, 8.0, 4.0])
    found = mean_of(values, ["a", "a", "a", "b", "c"])
    assert found == (4.0, pytest.approx(4 / 3**0.5), 3)
    assert mean_of(values, ["a"] * 5) == (pytest.approx(2.4), None, 1)


def test_intervals_cover_where_plain_ones_do_not():
    """1,000 repeats of 50 prompts with 5 samples each, of intraclass correlation 1/2."""
    g = torch.Generator().manual_seed(1)
    prompts = [str(i // 5) for i in range(250)]
    inside, plain = 0, 0
    for _ in range(1000):
        values = (torch.randn(50, 1, generator=g) + torch.randn(50, 5, generator=g)).flatten().double()
        own, naive = mean_of(values, prompts), mean_of(values)
        assert own.stderr
        assert naive.stderr
        inside += abs(own.value) < student.ppf(0.975, 49) * own.stderr
        plain += abs(naive.value) < student.ppf(0.975, 249) * naive.stderr
    assert 930 <= inside <= 970
    assert plain < 850
