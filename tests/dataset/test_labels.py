"""Labels by index, even and by frequency."""

import pytest
import torch

from qdit.dataset.labels import BalancedLabels, FrequencyLabels, RandomLabels

STRATEGIES = [RandomLabels(), FrequencyLabels(), BalancedLabels()]
EVEN = torch.full((10,), 0.1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_label_is_a_function_of_seed_and_index(strategy):
    together = strategy.draw(range(100), 0, EVEN)
    assert torch.equal(strategy.draw([73, 5], 0, EVEN), together[[73, 5]])
    assert not torch.equal(strategy.draw(range(100), 1, EVEN), together)
    assert set(together.tolist()) == set(range(10))


def test_balanced_labels_are_balanced_and_not_sorted():
    labels = BalancedLabels().draw(range(40), 0, EVEN)
    assert torch.bincount(labels).tolist() == [4] * 10
    assert labels[:10].tolist() != sorted(labels[:10].tolist())
    assert BalancedLabels().draw([33, 3], 0, EVEN).tolist() == labels[[33, 3]].tolist()


def test_balanced_labels_do_not_repeat_their_order():
    # With one order for all runs, index mod 20 (the jackknife's group) would fix the class mod 20.
    first, second = BalancedLabels().draw(range(20), 0, EVEN).split(10)
    assert first.tolist() != second.tolist()


def test_frequency_labels_follow_the_frequencies():
    frequencies = torch.tensor([0.5, 0.0, 0.3, 0.2])
    counts = torch.bincount(FrequencyLabels().draw(range(4000), 0, frequencies), minlength=4) / 4000
    assert counts[1] == 0
    assert (counts - frequencies).abs().max() < 0.03


def test_random_labels_ignore_the_frequencies():
    counts = torch.bincount(RandomLabels().draw(range(4000), 0, torch.tensor([0.97, 0.01, 0.01, 0.01])))
    assert (counts / 4000 - 0.25).abs().max() < 0.03
