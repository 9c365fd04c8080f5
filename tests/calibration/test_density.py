"""Points by density and variety of features: the golden example, shares, and what is collected."""

import pytest
import torch
from helpers import text_models

from qdit.calibration import DensityCalibration
from qdit.calibration.density import WeightedCalibration, _products, compared, shared_out, step_weights
from qdit.dataset.base import Dataset
from qdit.dataset.labels import RandomLabels
from qdit.errors import UserError
from qdit.sampler.ddim import DDIM
from qdit.seeding import CALIBRATION

DATASET = Dataset(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())
SAMPLER = DDIM(name="test", steps=6, guidance=1.5, guided_channels=3, eta=0.0, spacing="linspace")
COMMON = {"num_samples": 16, "per_trajectory": 2, "null_share": 0.5, "batch_size": 3}


def of(features):
    f = torch.tensor(features)
    return compared(f @ f.T, f.shape[1])


def test_products_say_what_features_do():
    f = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * 0.01 + 3  # nearly alike
    squares, cosines = compared(_products(list(f)), 5000)
    torch.testing.assert_close(squares, torch.stack([(f - row).double().square().mean(1) for row in f]).float())
    torch.testing.assert_close(cosines, torch.nn.functional.cosine_similarity(f[:, None], f[None], dim=2))


def test_golden_weights_and_shares():
    weights = step_weights(*of([[1.0, 0], [1, 1], [4, 0]]), radius=3.0, variety=1.2)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.2, 0.0]))
    assert shared_out(weights.tolist(), 16) == [5, 11, 0]
    assert shared_out(weights.tolist(), 16, least=1)[2] == 1


def test_equal_steps_get_equal_shares_and_all_points_are_given_out():
    weights = step_weights(*of([[1.0] * 3] * 5), 1.0, 1.2).tolist()
    assert weights == [0.0] * 5
    assert shared_out(weights, 15) == [3] * 5
    for count in range(5, 40):
        assert sum(shared_out([0.1, 2.0, 0.7, 0.0, 1.3], count, least=1)) == count


def test_states_are_distinct_and_in_the_shares_asked_for():
    made = WeightedCalibration(**COMMON, weights=[1.0, 2.2, 0.0, 0.0, 0.0, 0.0])
    states = made.states(16, 6, seed=3)
    assert len(set(states)) == 16
    counts = [sum(step == n for _, step in states) for n in range(6)]
    assert counts == shared_out(made.weights, 16, least=1)
    assert states != made.states(16, 6, seed=4)
    assert sorted(step for own, step in states if own == 1) == made.kept_steps(1, 6, 3)
    with pytest.raises(UserError, match="6 weights for 5 steps"):
        made.states(16, 5, 0)


def test_collected_points_lie_on_trajectories_and_every_step_has_one(tiny_model):
    made = DensityCalibration(**COMMON, seed=4)
    data = made.collect(tiny_model, SAMPLER, DATASET, 3)
    again = made.collect(tiny_model, SAMPLER, DATASET, 3)
    assert torch.equal(data.x, again.x)
    assert len(data.x) == 16
    assert sorted(set(data.t.tolist())) == sorted(SAMPLER.timesteps(tiny_model))
    products, values = made.products(tiny_model, SAMPLER, DATASET, 3)
    assert products.shape == (6, 6)
    assert values == made.probes * 2 * 16 * 32  # the null condition's, too
    squares, cosines = compared(products, values)
    weights = step_weights(squares, cosines, 0.5 * float(squares.sum() / 30), 1.2)
    counts = torch.tensor([int((data.origin[:, 1] == n).sum()) for n in range(6)])
    assert counts.tolist() == shared_out(weights.tolist(), 16, least=1)
    trajectory, step = data.origin[0].tolist()
    index, states = [CALIBRATION + trajectory], []

    def record(at, timestep, state, output):
        states.append(state[0])

    SAMPLER.sample(tiny_model, index, DATASET.labels(index, 7), 7, callback=record)
    torch.testing.assert_close(data.x[0], states[step].cpu(), atol=2e-3, rtol=1e-3)


def test_wrong_values_are_named():
    with pytest.raises(UserError, match="radius=0"):
        DensityCalibration(**COMMON, radius=0)


class OneStep:
    """A sampler that calls the network once."""

    def sample(self, model, indices, labels, seed, callback):
        data = text_models.points(model, len(indices))
        callback(0, 0, data.x, model.denoise(data.x, data.t, data.y))


class NoLabels:
    def labels(self, indices, seed):
        return torch.zeros(len(indices))


class TwoCalls(OneStep):
    """And once more, as guidance does that takes two calls."""

    def sample(self, model, indices, labels, seed, callback):
        data = text_models.points(model, len(indices))
        model.denoise(data.x + 1, data.t, data.y)
        super().sample(model, indices, labels, seed, callback)


def test_features_are_those_of_both_calls_of_guidance(tmp_path):
    model = text_models.load("pixart_sigma", tmp_path)
    about = {"num_samples": 4, "per_trajectory": 2, "null_share": 0.0, "batch_size": 3, "seed": 0, "probes": 1}
    made = DensityCalibration(**about)
    one, values = made.products(model, OneStep(), NoLabels(), 0)  # pyright: ignore[reportArgumentType]
    both, more = made.products(model, TwoCalls(), NoLabels(), 0)  # pyright: ignore[reportArgumentType]
    assert more == 2 * values
    assert float(both) > float(one)


@pytest.mark.parametrize("family", ["sd3", "sd35", "flux_dev"])
def test_of_image_and_text_the_image_is_compared(family, tmp_path):
    model = text_models.load(family, tmp_path)
    about = {"num_samples": 4, "per_trajectory": 2, "null_share": 0.0, "batch_size": 3, "seed": 0, "probes": 3}
    made = DensityCalibration(**about)
    products, values = made.products(model, OneStep(), NoLabels(), 0)  # pyright: ignore[reportArgumentType]
    site = next(site for site in model.sites() if site.role == "qkv")
    assert products.shape == (1, 1)
    assert values == 3 * site.tokens * site.in_features
