"""Variances beside squared errors, where both are known."""

import numpy as np
import pytest

from ummcsgm.evaluation.calibration import (
    law_of_draws,
    recalibration_factor,
    reliability,
    respread,
    spread_and_error,
    spread_skill,
)
from ummcsgm.types import InputError

COUNTS = pytest.mark.parametrize("count", [2, 4, 8, 16])


def _posterior(count, spread=1.0, seed=0, number=60_000):
    """(draws, mean, truth): voxels with sds of 0.3 to 3, draws `spread` times those."""
    rng = np.random.default_rng(seed)
    sd = 10 ** rng.uniform(-0.5, 0.5, number)
    mean = 100 * rng.normal(size=number)
    truth = mean + sd * rng.normal(size=number)
    return mean + spread * sd * rng.normal(size=(count, number)), mean, truth


@COUNTS
@pytest.mark.parametrize("spread", [0.7, 0.9, 1.0, 1.2])
def test_spread_skill_is_1_if_calibrated_and_the_spread_if_many(count, spread):
    """(1 + 1/K) s^2 / (1 + s^2 / K) is 1 at s = 1 for all K, and s^2 for large K."""
    draws, _, truth = _posterior(count, spread)
    expected = np.sqrt((1 + 1 / count) / (1 + spread**2 / count)) * spread
    measured = spread_skill(spread_and_error(draws, truth), count)
    assert measured == pytest.approx(expected, rel=0.012)


def test_spread_skill_of_many_draws_is_the_factor_on_the_spread():
    draws, _, truth = _posterior(200, 0.9, number=20_000)
    assert spread_skill(spread_and_error(draws, truth), 200) == pytest.approx(0.9, rel=0.01)


def test_moments_are_pooled_over_subjects_before_the_ratio():
    draws, truth = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([2.0, 8.0])
    assert spread_and_error(draws, truth).tolist() == [1.0, 4.5]
    moments = np.array([[1.0, 4.0], [3.0, 1.0]])
    assert spread_skill(moments, 3) == pytest.approx((4 / 3 * 4 / 5) ** 0.5)


@COUNTS
@pytest.mark.parametrize("spread", [0.7, 1.5])
def test_respread_draws_are_calibrated_whatever_their_number(count, spread):
    draws, mean, truth = _posterior(count, spread)
    errors = [np.mean((mean - truth) ** 2)]
    factor = recalibration_factor([spread_and_error(draws, truth)[0]], errors)
    assert factor == pytest.approx(1 / spread, rel=0.01)
    mended = respread(draws, mean, factor)
    assert spread_skill(spread_and_error(mended, truth), count) == pytest.approx(1, abs=0.012)
    few = respread(_posterior(2, spread, seed=1)[0], _posterior(2, seed=1)[1], factor)
    truth = _posterior(2, spread, seed=1)[2]
    assert spread_skill(spread_and_error(few, truth), 2) == pytest.approx(1, abs=0.012)


def test_about_the_draws_own_mean_the_factor_is_the_inverse_spread_skill():
    draws, _, truth = _posterior(4, 0.6)
    own = draws.mean(axis=0)
    factor = 1 / spread_skill(spread_and_error(draws, truth), 4)
    mended = respread(draws, own, factor)
    np.testing.assert_allclose(mended.mean(axis=0), own, atol=1e-9)
    assert spread_skill(spread_and_error(mended, truth), 4) == pytest.approx(1)


def test_the_factor_is_pooled_over_subjects_and_the_respread_by_hand():
    assert recalibration_factor([1.0, 3.0], [12.0, 4.0]) == 2.0
    draws = np.array([[1.0, 10.0], [3.0, 10.0]])
    assert respread(draws, np.array([2.0, 11.0]), 3.0).tolist() == [[-1, 8], [5, 8]]


@pytest.mark.parametrize("spread", [1.0, 0.6])
def test_the_mean_of_k_draws_errs_by_the_law(spread):
    draws, mean, truth = _posterior(16, spread)
    law = law_of_draws(draws, mean, truth)
    assert law[:, 0].tolist() == [1, 2, 4, 8, 16]
    np.testing.assert_allclose(law[:, 1], law[:, 2], rtol=0.015)
    error = np.mean((mean - truth) ** 2)
    expected = error * (1 + spread**2 / law[:, 0])
    np.testing.assert_allclose(law[:, 1], expected, rtol=0.015)


def test_one_draw_is_3_decibels_below_the_mean_only_if_calibrated():
    draws, mean, truth = _posterior(8)
    single = law_of_draws(draws, mean, truth)[0, 1]
    loss = 10 * np.log10(single / np.mean((mean - truth) ** 2))
    assert loss == pytest.approx(10 * np.log10(2), abs=0.05)


def test_the_law_fails_for_draws_that_depend_on_each_other_or_have_another_mean():
    draws, mean, truth = _posterior(8)
    pairs = np.repeat(draws[:4], 2, axis=0)
    measured, predicted = law_of_draws(pairs, mean, truth)[1, 1:]
    assert measured > 1.2 * predicted
    measured, predicted = law_of_draws(draws + 2, mean, truth)[-1, 1:]
    assert measured > 1.5 * predicted


def test_the_law_by_hand_with_a_draw_left_over():
    draws = np.array([[0.0], [2.0], [4.0]])
    law = law_of_draws(draws, np.array([1.0]), np.array([0.0]))
    assert law.tolist() == [[1, 20 / 3, 5], [2, 1, 3]]


def _edges(draws, bins):
    """Variances that part the voxels into `bins` of equal numbers."""
    first = draws[: len(draws) // 2]
    return np.quantile(np.var(first, axis=0, ddof=1), np.arange(1, bins) / bins)


@pytest.mark.parametrize("count", [4, 8, 9, 16])
def test_a_reliable_spread_is_on_the_diagonal_in_every_bin(count):
    """With as few as 2 + 2 draws; one set for both would be off by half at the ends."""
    draws, _, truth = _posterior(count, number=200_000)
    edges = _edges(draws, 5)
    number, predicted, measured = reliability(draws, truth, edges).T
    assert number.sum() == 2 * 200_000
    np.testing.assert_allclose(number / number.sum(), 0.2, atol=0.01)
    np.testing.assert_allclose(measured / predicted, 1, atol=0.08)
    assert (np.diff(predicted / number) > 0).all()
    assert predicted[-1] > 4 * predicted[0]


def test_a_small_spread_is_off_the_diagonal_by_its_square():
    draws, _, truth = _posterior(16, 0.8, number=200_000)
    _, predicted, measured = reliability(draws, truth, _edges(draws, 4)).T
    np.testing.assert_allclose(predicted / measured, 0.64, atol=0.05)


def test_reliability_adds_up_over_voxels_and_keeps_empty_bins():
    draws, _, truth = _posterior(6, number=900)
    edges = _edges(draws, 3)
    parts = [reliability(draws[:, s], truth[s], edges) for s in np.split(np.arange(900), 3)]
    np.testing.assert_allclose(sum(parts), reliability(draws, truth, edges))
    wide = reliability(draws, truth, [1e6, 1e7])
    assert wide[:, 0].tolist() == [1800, 0, 0] and not wide[1:].any()


def test_reliability_by_hand():
    draws, truth = np.array([[0.0], [2.0], [1.0], [7.0]]), np.array([3.0])
    # halves: variances 2 and 18, means 1 and 4
    sums = reliability(draws, truth, [10.0])
    assert sums.tolist() == [[1, 18, 1 - 9], [1, 2, 4 - 1]]


def test_too_few_draws_are_refused():
    one, truth = np.zeros((1, 3)), np.zeros(3)
    for ask in (lambda: spread_and_error(one, truth), lambda: law_of_draws(one, truth, truth)):
        with pytest.raises(InputError, match="at least 2 draws.* has 1"):
            ask()
    with pytest.raises(InputError, match="at least 4 draws.* has 3"):
        reliability(np.zeros((3, 3)), truth, [1.0])
