"""Saliences and factors by the numbers of the paper's definitions (PTQ4DiT eq. 3-11); no model."""

import pytest
import torch
from scipy.stats import spearmanr

from qdit.errors import UserError
from qdit.quant.grid import fake_quantize
from qdit.quant.spec import QuantSpec
from qdit.transform import ChannelScaling
from qdit.transform.alpha import factors
from qdit.transform.statistics import Maximum, MiddleTimestep, PerRow, PerTimestep, spearman

WEIGHT = torch.tensor([1.0, 2, 4, 8])
ROWS = torch.tensor([[8.0, 1, 2, 4], [1, 8, 4, 2], [4, 2, 8, 1]])
STATISTICS = (Maximum(), MiddleTimestep(), PerTimestep(), PerRow())


def salience(statistic, rows=ROWS, timesteps=None, weight=WEIGHT, batch=2):
    gathering = statistic.start(weight)
    timesteps = torch.arange(len(rows)) if timesteps is None else timesteps
    for part in torch.arange(len(rows)).split(batch):
        gathering.add(rows[part], timesteps[part])
    return gathering.value()


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=2e-6, rtol=1e-6)


def test_balancing_with_spearmans_calibration_by_hand():
    rho = spearman(ROWS, WEIGHT)
    close(rho, [-0.2, 0.2, -0.4])
    close((-rho).softmax(0), [0.345815, 0.231806, 0.422379])
    activation = salience(PerTimestep())
    close(activation, [4.687839, 3.045024, 4.997886, 2.269250])
    r = factors(activation, WEIGHT, 0.5)
    close(r, [2.165142, 1.233901, 1.117798, 0.532594])
    close(1 / r, [0.461864, 0.810438, 0.894616, 1.877603])
    close(activation / r, [2.165142, 2.467802, 4.471191, 4.260751])


def test_ranks_correlate_as_scipys_do_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 9, (7, 40), generator=generator).float()
    weight = torch.randint(0, 9, (40,), generator=generator).float()
    close(spearman(rows, weight), [spearmanr(row, weight).statistic for row in rows])
    assert spearman(torch.ones(1, 40), weight).item() == 0
    assert spearman(rows, torch.ones(40)).tolist() == [0] * 7


def test_equal_correlations_give_the_mean_and_one_timestep_its_own_salience():
    close(salience(PerTimestep(), weight=torch.ones(4)), ROWS.mean(0).tolist())
    for statistic in STATISTICS:
        close(salience(statistic, ROWS[:1]), ROWS[0].tolist())


def test_calibration_ignores_the_order_of_timesteps_and_the_size_of_the_weight():
    torch.testing.assert_close(salience(PerTimestep(), ROWS[[2, 0, 1]]), salience(PerTimestep()))
    torch.testing.assert_close(salience(PerTimestep(), weight=3 * WEIGHT), salience(PerTimestep()))
    generator = torch.Generator().manual_seed(1)
    eta = (-spearman(torch.rand(50, 6, generator=generator), torch.rand(6, generator=generator))).softmax(0)
    assert eta.max() / eta.min() <= 7.39


def test_what_each_statistic_sees_of_several_samples_a_timestep():
    rows, timesteps = torch.cat([ROWS, ROWS / 2, 2 * ROWS[:1]]), torch.tensor([10, 500, 900, 10, 500, 900, 500])
    close(salience(Maximum(), rows, timesteps), [16, 8, 8, 8])
    close(salience(MiddleTimestep(), rows, timesteps), [16, 8, 4, 8])
    by_timestep = torch.stack([rows[timesteps == t].amax(0) for t in (10, 500, 900)])
    torch.testing.assert_close(salience(PerTimestep(), rows, timesteps), salience(PerTimestep(), by_timestep))
    eta = (-spearman(rows, WEIGHT)).softmax(0)
    torch.testing.assert_close(salience(PerRow(), rows, timesteps), (eta @ rows.double()).float())


def test_balanced_saliences_are_equal_and_no_larger():
    generator = torch.Generator().manual_seed(2)
    activation, weight = (torch.rand(64, generator=generator) * scale for scale in (30.0, 0.5))
    r = factors(activation, weight, 0.5)
    torch.testing.assert_close(activation / r, weight * r)
    assert (activation / r).max() <= max(activation.max(), weight.max())
    torch.testing.assert_close(factors(9 * activation, weight, 0.5), 3 * r)
    torch.testing.assert_close(factors(activation, weight, 1.0), activation)
    torch.testing.assert_close(factors(activation, weight, 0.0), 1 / weight)


def test_dead_channels_keep_their_scale():
    activation, weight = torch.tensor([4.0, 0, 2, 1e-9]), torch.tensor([1.0, 1, 0, 1])
    for alpha in (0.0, 0.5, 1.0):
        r = factors(activation, weight, alpha)
        assert r[1:].tolist() == [1, 1, 1]
        assert r.isfinite().all()
    assert factors(torch.zeros(3), torch.ones(3), 0.5).tolist() == [1, 1, 1]


def test_scaled_rows_keep_their_codes():
    """Q(diag(b) W) = diag(b) Q(W): folding before or after the rounding of a row is the same."""
    generator = torch.Generator().manual_seed(3)
    weight, b = torch.randn(16, 32, generator=generator), torch.rand(16, 1, generator=generator) * 4 + 0.1
    spec = QuantSpec(bits=4, granularity="row", dynamic=False)
    torch.testing.assert_close(fake_quantize(b * weight, spec), b * fake_quantize(weight, spec))


def test_values_that_cannot_be_are_refused(tiny_model):
    with pytest.raises(UserError, match="ChannelScaling.alpha=1.5; allowed: a number from 0 to 1"):
        ChannelScaling(name="smooth", roles=[], alpha=1.5, statistic=Maximum())
    unknown = ChannelScaling(name="smooth", roles=["mlp"], alpha=0.5, statistic=Maximum())
    assert unknown.problems(tiny_model.sites())[0].startswith("transform.roles has 'mlp'; this model has adaln, ")
