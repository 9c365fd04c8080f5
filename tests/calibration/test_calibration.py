"""Points are chosen first, and then sampled no further than needed; what each option chooses."""

import numpy as np
import pytest
import torch

from qdit.calibration import NormalCalibration, PairedCalibration, RandomCalibration, UniformCalibration
from qdit.dataset.base import Dataset
from qdit.dataset.labels import RandomLabels
from qdit.errors import UserError
from qdit.sampler.ddim import DDIM
from qdit.sampler.ddpm import DDPM
from qdit.sampler.spacing import visited
from qdit.seeding import CALIBRATION

OPTIONS = [UniformCalibration, PairedCalibration, RandomCalibration, NormalCalibration]
DATASET = Dataset(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())


def make(kind, **changes):
    given = {"num_samples": 12, "per_trajectory": 2, "null_share": 0.5, "batch_size": 3}
    return kind(**given | changes)


def sampler(kind=DDPM, **changes):
    eta = 1.0 if kind is DDPM else 0.0
    given = {"name": "test", "steps": 6, "guidance": 1.5, "guided_channels": 3, "eta": eta, "spacing": "linspace"}
    return kind(**given | changes)


@pytest.fixture
def calls(tiny_model, monkeypatch):
    """Every (x, t, y) that the network is called with."""
    seen, denoise = [], tiny_model.denoise
    monkeypatch.setattr(tiny_model, "denoise", lambda x, t, y: seen.append((x, t, y)) or denoise(x, t, y))
    return seen


@pytest.mark.parametrize("kind", OPTIONS)
def test_points_are_those_of_whole_trajectories(kind, tiny_model):
    calibration, seed = make(kind, seed=4), 3
    data = calibration.collect(tiny_model, sampler(), DATASET, seed)
    points = calibration.choose(6, seed, 0.5)
    assert data.origin.tolist() == [[p.trajectory, p.step] for p in points]
    for x, t, y, point in zip(data.x, data.t, data.y, points, strict=True):
        index, states = [CALIBRATION + point.trajectory], []
        labels = DATASET.labels(index, seed + 4)

        def record(step, timestep, state, output, states=states):
            states.append((timestep, state[0]))

        sampler().sample(tiny_model, index, labels, seed + 4, callback=record)
        assert t.item() == states[point.step][0]
        torch.testing.assert_close(x, states[point.step][1], atol=2e-3, rtol=1e-3)
        assert y.item() == (10 if point.null else labels[0].item())


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("count", "per_trajectory"), [(12, 2), (7, 3), (5, 1), (30, 50)])
def test_as_many_points_as_asked_for(kind, count, per_trajectory):
    calibration = make(kind, num_samples=count, per_trajectory=per_trajectory)
    points = calibration.choose(6, 0, 0.5)
    assert len(points) == len(set(points)) == count
    assert sum(p.null for p in points) == count // 2
    assert all(0 <= p.step < 6 for p in points)
    assert calibration.choose(6, 0, 0.5) == points
    assert calibration.choose(6, 1, 0.5) != points
    assert not any(p.null for p in calibration.choose(6, 0, 0.0))


@pytest.mark.parametrize("kind", OPTIONS)
def test_trajectories_stop_behind_their_last_point(kind, tiny_model, calls):
    """Each batch makes as many calls as its longest trajectory needs, and none for the state itself."""
    calibration = make(kind, num_samples=9, per_trajectory=1, batch_size=3)
    calibration.collect(tiny_model, sampler(), DATASET, 0)
    points = calibration.choose(6, 0, 0.5)
    last = sorted({p.trajectory: p.step for p in points}.values())
    batches = [last[first : first + 3] for first in range(0, len(last), 3)]
    assert len(calls) == sum(max(batch) for batch in batches) < 6 * len(batches)


def test_unguided_networks_never_see_the_null_class(tiny_model):
    for kind in OPTIONS:
        data = make(kind).collect(tiny_model, sampler(guidance=1.0), DATASET, 0)
        assert (data.y < 10).all()
        assert len(data.x) == 12


@pytest.mark.parametrize(
    ("steps", "per_trajectory", "expected"),
    [
        (50, 25, [999, 958, 917, 877, ..., 61, 20]),
        (50, 10, [999, 897, 795, 693, 591, 489, 387, 285, 183, 82]),
        (250, 25, [visited("linspace", 250, 1000)[249 - i] for i in range(0, 250, 10)]),
    ],
)
def test_golden_17_every_kth_step(steps, per_trajectory, expected):
    calibration = make(PairedCalibration, per_trajectory=per_trajectory)
    timesteps = visited("linspace", steps, 1000)[::-1]
    for trajectory in (0, 1, 7):
        found = [timesteps[i] for i in calibration.kept_steps(trajectory, steps, 0)]
        assert len(found) == per_trajectory
        if ... in expected:
            found[4:-2], expected = [...], list(expected)
        assert found == expected


def test_golden_18_pairs_share_all_but_the_class(tiny_model):
    data = make(PairedCalibration, num_samples=20, per_trajectory=5).collect(tiny_model, sampler(), DATASET, 0)
    assert torch.equal(data.x[::2], data.x[1::2])
    assert torch.equal(data.t[::2], data.t[1::2])
    assert torch.equal(data.origin[::2], data.origin[1::2])
    assert (data.y[::2] < 10).all()
    assert (data.y[1::2] == 10).all()
    assert len({tuple(row) for row in data.origin[::2].tolist()}) == 10
    assert set(data.origin[:, 0].tolist()) == {0, 1}


@pytest.mark.parametrize("kind", [DDIM, DDPM])
def test_golden_18_both_halves_of_a_guided_batch_share_all_but_the_class(kind, tiny_model, calls):
    labels = torch.tensor([3, 0, 7])
    sampler(kind).sample(tiny_model, [0, 1, 2], labels, 0)
    assert len(calls) == 6
    for x, t, y in calls:
        assert torch.equal(x[:3], x[3:])
        assert len(set(t.tolist())) == 1
        assert y.tolist() == [3, 0, 7, 10, 10, 10]


def test_papers_counts_of_dit_xl():
    """25 even timesteps with 32 latents, each with its class and without: 1,600 rows; at 512 pixels 10 × 64."""
    for count, steps, latents in ((1600, 25, 32), (1280, 10, 64)):
        points = make(PairedCalibration, num_samples=count, per_trajectory=steps).choose(50, 0, 0.5)
        assert {p.trajectory for p in points} == set(range(latents))
        by_step = [sum(p.step == step for p in points) for step in range(50)]
        assert sorted(set(by_step)) == [0, 2 * latents]
        assert by_step.count(2 * latents) == steps


def test_normal_times_have_their_distribution_and_are_clipped():
    calibration = make(NormalCalibration, num_samples=4000, per_trajectory=1)
    points = calibration.choose(50, 0, 0.0)
    times = 1 - (np.array([p.step for p in points]) + 0.5) / 50
    drawn = np.clip(np.random.default_rng(1).normal(0.4, 0.4, 200_000), 0, 1)
    assert times.mean() == pytest.approx(drawn.mean(), abs=0.02)
    assert times.std() == pytest.approx(drawn.std(), abs=0.02)
    shares = np.bincount([p.step for p in points], minlength=50) / 4000
    assert shares[-1] == pytest.approx((drawn <= 0.02).mean(), abs=0.02)  # what was clipped at the image
    assert shares[0] == pytest.approx((drawn >= 0.98).mean(), abs=0.02)
    assert shares[1:-1].max() < 0.04
    assert np.sum(calibration.chances(50)) == pytest.approx(1)


def test_a_narrow_normal_still_gives_different_steps():
    calibration = make(NormalCalibration, num_samples=40, per_trajectory=20, mean=0.5, deviation=0.001)
    steps = [p.step for p in calibration.choose(50, 0, 0.0)]
    assert {24, 25} <= set(steps)
    assert len(steps) == 40


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (UniformCalibration, {"num_samples": 0}, "num_samples=0"),
        (RandomCalibration, {"null_share": 1.5}, "null_share=1.5; allowed: a number from 0 to 1"),
        (PairedCalibration, {"null_share": 0.6}, "null_share=0.6; pairs have a share of 0 to 0.5"),
        (NormalCalibration, {"deviation": 0.0}, "deviation=0.0; allowed: a number above 0"),
    ],
)
def test_impossible_values_are_refused(kind, wrong, message):
    with pytest.raises(UserError, match=message):
        make(kind, **wrong)


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
def test_networks_that_take_turns_share_the_points_fairly(shift):
    """At the numbers of Wan 2.2 A14B: each sees all of its steps, all trajectories, half of the time the null class."""
    sigma = torch.linspace(1, 0, 41)[:-1]
    times = 1000 * shift * sigma / (1 + (shift - 1) * sigma)
    points = UniformCalibration(num_samples=128, per_trajectory=4, null_share=0.5, batch_size=32).choose(40, 0, 0.5)
    for takes in (times >= 875, times < 875):
        own = [point for point in points if takes[point.step]]
        assert {point.step for point in own} == set(takes.nonzero().flatten().tolist())
        assert {point.trajectory for point in own} == set(range(32))
        assert 0.35 < np.mean([point.null for point in own]) < 0.65
