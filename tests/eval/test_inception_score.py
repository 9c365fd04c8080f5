"""Inception score: ADM's chunks (evaluation dossier T17, T18)."""

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from qdit.eval import inception_score as module
from qdit.eval.inception_score import inception_score


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return 100.0 * torch.nn.functional.one_hot(labels, classes)


def test_limits():
    assert inception_score(torch.zeros(60, 10)).full == pytest.approx(1)
    assert inception_score(one_hot(torch.arange(100) % 10, 10)).full == pytest.approx(10, rel=1e-6)
    assert inception_score(one_hot(torch.arange(99) % 3, 10)).full == pytest.approx(3, rel=1e-6)
    score = inception_score(torch.randn(80, 7, generator=torch.Generator().manual_seed(0)))
    assert 1 < score.full < 7


@pytest.mark.parametrize("n", [5000, 10000])
def test_equals_torch_fidelity_without_shuffling(n):
    logits = 3 * torch.randn(n, 11, generator=torch.Generator().manual_seed(1))
    theirs = isc_features_to_metric(logits, splits=n // 5000, shuffle=False)["inception_score_mean"]
    assert inception_score(logits).full == pytest.approx(theirs, rel=1e-10)


def test_order_matters_and_a_short_last_chunk_counts(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50)
    labels = torch.arange(120) % 10
    mixed = inception_score(one_hot(labels, 10)).full
    by_class = inception_score(one_hot(labels.sort().values, 10)).full
    assert mixed == pytest.approx(10, rel=1e-6)
    assert by_class < 6
    parts = [float(inception_score(one_hot(part, 10)).full) for part in labels.sort().values.split(50)]
    assert len(parts) == 3
    assert by_class == pytest.approx(sum(parts) / 3, rel=1e-12)


def test_leaving_a_group_out_keeps_the_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 41)  # the last chunk of 82 + 1 samples is one sample, of group 2
    logits = torch.randn(83, 6, generator=torch.Generator().manual_seed(2))
    found = inception_score(logits)
    chunk, group = torch.arange(83) // 41, torch.arange(83) % 20
    for g in (0, 2):
        rest = [logits[(chunk == c) & (group != g)] for c in range(3)]
        scores = [isc_features_to_metric(part, 1, False)["inception_score_mean"] for part in rest if len(part)]
        assert float(found.left_out[g]) == pytest.approx(sum(scores) / len(scores), rel=1e-10)
