"""Precision and recall against naive forms and torch-fidelity (evaluation dossier T21)."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from qdit.errors import UserError
from qdit.eval import precision_recall as neighbours
from qdit.eval.precision_recall import precision_recall, radii_of


def draw(n: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def overlap(x, y):
    return precision_recall(x, y, radii_of(y - y.mean(0)))


@pytest.fixture(params=[7, 4096])
def tile(request, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", request.param)


def test_precision_recall_equals_torch_fidelity(tile):
    x, y = draw(90, 6, 0, 0.8), draw(130, 6, 1) + 0.2
    precision, recall = overlap(x, y)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    assert 0.2 < precision.full < 1
    assert 0.2 < recall.full < 1
    assert precision.full == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall.full == pytest.approx(theirs["recall"], abs=1e-6)


def test_precision_recall_with_a_group_left_out(tile):
    x, y = draw(90, 6, 0, 0.8), draw(130, 6, 1)
    precision, recall = overlap(x, y)
    for g in range(20):
        rest = x[torch.arange(90) % 20 != g]
        theirs = prc_features_to_metric(rest, y, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
        assert float(precision.left_out[g]) == pytest.approx(theirs["precision"], abs=1e-6)
        assert float(recall.left_out[g]) == pytest.approx(theirs["recall"], abs=1e-6)
    assert recall.stderr > 0


def test_limits_and_the_order_of_arguments():
    x, y = draw(80, 6, 0), draw(80, 6, 1)
    assert [j.full for j in overlap(x, x)] == [1, 1]
    assert [j.full for j in overlap(x + 1000, y)] == [0, 0]
    dropped = 0.05 * x  # all samples at the centre of the data
    precision, recall = overlap(dropped, y)
    assert precision.full == 1
    assert recall.full < 0.1
    precision, recall = overlap(y, dropped)
    assert precision.full < 0.1
    assert recall.full == 1


def test_radius_is_the_third_other_point():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    assert radii_of(line).tolist() == [7, 6, 4, 7, 19]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_have_no_third_nearest(n):
    with pytest.raises(UserError, match=rf"not defined for {n} images?: .*give at least 4"):
        radii_of(torch.randn(n, 5))
