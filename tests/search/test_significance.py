"""Values that noise explains are tied."""

import numpy as np
import pytest

from qdit.search.significance import classes, evened, tied


def test_rows_that_noise_explains_share_a_class():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 16))
    clear, first, second = 5 + 0.1 * noise[0], 1 + noise[1], 1.05 + noise[2]
    assert classes(np.stack([first, clear, second]))[0] == [1]
    assert sorted(classes(np.stack([first, clear, second]))[1]) == [0, 2]
    common = 10 * noise[3]  # what all samples share says nothing of a difference
    assert classes(np.stack([1 + common, 2 + 0.1 * noise[0] + common])) == [[1], [0]]
    wild = 6 + 20 * noise[3]  # one row that could be anything does not tie what is told apart
    found = classes(np.stack([clear, 1 + 0.1 * noise[1], wild]))
    assert [0 in members for members in found] == [True, False]


def test_ties_have_one_value_and_no_difference_is_none():
    rng = np.random.default_rng(1)
    n = 16

    def cell(at2, at4):
        return {2: at2 + rng.standard_normal(n), 4: at4 + 0.01 * rng.standard_normal(n), 8: np.zeros(n)}

    losses = tied([[cell(10.0, 0.5), cell(10.1, 0.0)], [cell(3.0, 0.2), cell(0.0, 0.0)]])
    (a, b), (c, d) = losses
    assert a[2] == b[2] == pytest.approx(10, abs=0.5)
    assert c[2] == pytest.approx(3, abs=0.7)
    assert d[2] == d[4] == b[4] == 0.0
    assert a[4] == pytest.approx(0.5, abs=0.02)
    assert c[4] == pytest.approx(0.2, abs=0.02)
    assert all(each[8] == 0 and each[2] >= each[4] for each in (a, b, c, d))


def test_a_sample_that_turns_away_does_not_outvote_the_others():
    quiet, loud = np.full(7, 1.0), np.full(7, 0.1)
    samples = [[{4: np.append(quiet, 1.0), 8: np.zeros(8)}], [{4: np.append(loud, 500.0), 8: np.zeros(8)}]]
    first, second = evened(samples)
    assert samples[0][0][4].mean() < samples[1][0][4].mean()  # by the last sample alone
    assert first[0][4].mean() > second[0][4].mean()
    assert first[0][4] + second[0][4] == pytest.approx(first[0][4][0] + second[0][4][0])  # each sample loses as much
    assert (first[0][4] + second[0][4]).mean() == pytest.approx((samples[0][0][4] + samples[1][0][4]).mean())


def test_samples_that_lose_nothing_stay_at_nothing():
    assert not np.any(evened([[{4: np.zeros(3), 8: np.zeros(3)}]])[0][0][4])
