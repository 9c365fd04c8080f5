"""Merged moments and the grouped jackknife (evaluation dossier T11-T16)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qdit.eval.distribution import FID, KID, FIDInfinity, InceptionScore, Precision, Recall
from qdit.eval.kid import mean_within
from qdit.eval.precision_recall import radii_of
from qdit.eval.statistics import Jackknife, Moments, frechet_distance, frechet_jackknife, groups_of, symmetric_root


def features(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 33, 34], [7] * 14 + [2]])
def test_merge_equals_numpy_in_any_split_and_order(sizes):
    x = features(100, 9)
    parts = [Moments.of(part) for part in x.split(sizes)]
    for order in (parts, parts[::-1]):
        total = order[0]
        for part in order[1:]:
            total = total.merge(part)
        assert total.n == 100
        np.testing.assert_allclose(total.mean, x.double().mean(0), atol=1e-13)
        np.testing.assert_allclose(total.covariance(), np.cov(x.double().numpy(), rowvar=False), atol=1e-12)


def test_mean_far_from_zero_keeps_its_digits():
    """Float32 accumulators, or raw second moments, lose this."""
    x = features(1000, 5) + 3000
    total = Moments.of(x[:400]).merge(Moments.of(x[400:]))
    np.testing.assert_allclose(total.covariance(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_divides_by_n_minus_one():
    assert float(Moments.of(torch.tensor([[0.0], [2.0]])).covariance()) == 2.0


def test_taking_a_group_out_equals_computing_without_it():
    x = features(103, 7) + 50
    total, groups = Moments.of(x), groups_of(103)
    for g in range(20):
        left, direct = total.without(Moments.of(x[groups == g])), Moments.of(x[groups != g])
        assert left.n == direct.n
        np.testing.assert_allclose(left.mean, direct.mean, rtol=1e-13)
        np.testing.assert_allclose(left.covariance(), direct.covariance(), atol=1e-11)


def test_standard_error_of_a_mean_and_of_a_paired_difference():
    """For a mean over groups of one the jackknife is the textbook formula; of paired data it sees the pairing."""
    a = torch.arange(20.0).double().square()
    b = a + torch.linspace(0, 1, 20).double()

    def mean(x):
        return Jackknife.over_groups(groups_of(20), lambda keep: float(x[keep].mean()))

    assert mean(a).stderr == pytest.approx(float(a.std()) / math.sqrt(20), rel=1e-12)
    assert mean(a).corrected == pytest.approx(float(a.mean()), rel=1e-12)
    difference = mean(b).minus(mean(a))
    assert difference.full == pytest.approx(0.5)
    assert difference.stderr == pytest.approx(float((b - a).std()) / math.sqrt(20), rel=1e-9)


def test_coverage_and_bias_correction():
    """FD of 16-d Gaussians, n = 200: about 95 % of the intervals hold the mean, and the correction removes the bias."""
    dim, n, repeats = 16, 200, 120
    mu, sigma = torch.zeros(dim).double(), torch.eye(dim).double()
    scale, shift = 1.2, 0.1
    truth = frechet_distance(mu, sigma, mu + shift, scale**2 * sigma)
    root = symmetric_root(sigma)
    found = [frechet_jackknife(features(n, dim, seed).double() * scale + shift, mu, root) for seed in range(repeats)]
    full = torch.tensor([j.full for j in found])
    covered = sum(abs(j.full - float(full.mean())) < 2.09 * j.stderr for j in found) / repeats
    assert 0.88 <= covered <= 0.995
    corrected = torch.tensor([j.corrected for j in found]).mean()
    assert float(full.mean()) > 1.2 * truth
    assert abs(float(corrected) - truth) < 0.2 * abs(float(full.mean()) - truth)
    assert found[0].bias_corrected().stderr == found[0].stderr


def test_samples_of_a_prompt_are_left_out_together():
    """Their error is that of means over prompts; groups that mix them believe in five times as many samples."""
    prompts = [f"prompt {n % 60}" for n in range(300)]
    groups = groups_of(300, prompts)
    assert groups.tolist() == [n % 60 % 20 for n in range(300)]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=random).double().repeat(5) + 0.1 * torch.randn(300, generator=random).double()
    shares = [n % 47 for n in range(300)]  # neighbours of one group are not of one prompt
    prompts = [f"prompt {n}" for n in shares]
    x = x[torch.tensor(shares)] + 0.1 * torch.randn(300, generator=random).double()

    def error(groups):
        return Jackknife.over_groups(groups, lambda keep: float(x[keep].mean())).stderr

    means = torch.stack([x[torch.tensor(shares) == n].mean() for n in range(47)])
    truth = float(means.std()) / math.sqrt(47)
    assert error(groups_of(300, prompts)) == pytest.approx(truth, rel=0.35)
    assert error(groups_of(300)) < 0.65 * truth


@pytest.mark.parametrize("count", [4, 13, 20, 27, 39])
def test_few_prompts_are_a_group_each(count):
    """The error is then the textbook one of a mean over prompts, not that of as many separate samples."""
    prompts = [f"prompt {n % count}" for n in range(8 * count)]
    groups = groups_of(len(prompts), prompts)
    assert groups.tolist() == [n % count for n in range(8 * count)]
    random = torch.Generator().manual_seed(0)
    means = torch.randn(count, generator=random).double()
    x = means.repeat(8) + 0.1 * torch.randn(8 * count, generator=random).double()
    found = Jackknife.over_groups(groups, lambda keep: float(x[keep].mean()))
    assert found.stderr_over(prompts) == pytest.approx(float(x.view(8, count).mean(0).std()) / math.sqrt(count))


def test_fewer_than_four_prompts_have_no_error_and_separate_samples_are_as_ever():
    prompts = [f"prompt {n % 3}" for n in range(60)]
    x = features(60, 1)[:, 0].double()
    assert torch.equal(groups_of(60, prompts), groups_of(60))
    found = Jackknife.over_groups(groups_of(60, prompts), lambda keep: float(x[keep].mean()))
    assert found.stderr_over(prompts) is None
    assert found.stderr_over(None) == found.stderr_over([str(n) for n in range(60)]) == found.stderr > 0
    for n in (40, 45, 300):  # classes, or a prompt each
        assert groups_of(n).tolist() == groups_of(n, [str(i) for i in range(n)]).tolist() == [i % 20 for i in range(n)]


@pytest.mark.parametrize("metric", [FID, FIDInfinity, KID, InceptionScore, Precision, Recall])
@pytest.mark.parametrize("count", [3, 4, 25, 50])
def test_distances_to_a_data_set_leave_prompts_out_together(metric, count, monkeypatch):
    asked = []
    own = metric(extractor="lite0")
    kept = own.jackknife
    monkeypatch.setattr(metric, "jackknife", lambda _, x, ref, groups: asked.append(groups) or kept(x, ref, groups))
    n = 120
    x = {"pooled": features(n, 6), "logits": features(n, 6)}
    real = features(200, 6, 1)
    reference = SimpleNamespace(
        mu=real.double().mean(0),
        root=symmetric_root(torch.cov(real.double().T)),
        features=lambda: real,
        radii=radii_of(real - real.mean(0)),
        kernel_within=mean_within(real),
        digest="made up",
    )
    clusters = [f"{index % count}" for index in range(n)]
    samples = SimpleNamespace(n=n, clusters=clusters, features=lambda _: x)
    result = own.compute(samples, samples, reference)
    assert result.clusters == count
    assert math.isfinite(result.value)
    full = SimpleNamespace(n=n, clusters=clusters, features=lambda _: {key: value + 1 for key, value in x.items()})
    change = own.compute(samples, full, reference)
    if count < 4:
        assert result.stderr is change.delta_stderr is None
    else:
        assert result.stderr > 0
        assert change.delta_stderr is not None
        assert asked[0].tolist() == [index % count % (20 if count == 50 else count) for index in range(n)]
