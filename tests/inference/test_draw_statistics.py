"""Quantiles of few draws: exact coverage, by hand, monotonic in the level."""

import numpy as np
import pytest

from ummcsgm.inference.draw_statistics import quantile, quantiles, student_interval
from ummcsgm.types import InputError


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_the_truth_is_below_a_quantile_as_often_as_it_says(law):
    rng = np.random.default_rng(15)
    values = getattr(rng, law)(size=(9, 200_000))
    levels = [1 / 9, 2 / 9, 4 / 9, 8 / 9]
    below = values[0] < quantiles(values[1:], levels)
    np.testing.assert_allclose(below.mean(axis=1), levels, atol=0.004)


def test_quantiles_by_hand_and_in_their_shape():
    draws = np.array([7.0, 1.0, 3.0])[:, None, None] + np.zeros((3, 2, 5))
    values = quantiles(draws, [0.25, 0.5, 0.75, 0.625])
    assert values.shape == (4, 2, 5)
    assert values[:, 0, 0].tolist() == [1.0, 3.0, 7.0, 5.0]


def test_quantiles_that_need_more_draws_are_refused_with_their_number():
    draws = np.zeros((8, 3))
    for level in (0.05, 0.95):
        with pytest.raises(InputError, match=f"{level} needs at least 19 draws.* 8"):
            quantiles(draws, [0.5, level])
        quantiles(np.zeros((19, 3)), [level])
    with pytest.raises(InputError, match="at least 9 draws"):
        quantiles(draws, [0.1])
    quantiles(np.zeros((9, 3)), [0.1, 0.9])


@pytest.mark.parametrize("count", [2, 4, 8, 11, 19])
@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_quantiles_of_rising_levels_never_cross(law, count):
    """Also between a level that draws reach and one of Student's, and of a skewed law."""
    draws = getattr(np.random.default_rng(count), law)(size=(count, 2000))
    draws[:, 0] = [0.0] * (count - 1) + [1.0]
    levels = np.linspace(0.01, 0.99, 99)
    values = np.stack([quantile(draws, level) for level in levels])
    assert (np.diff(values, axis=0) >= -1e-9).all()


def test_levels_outside_0_and_1_and_a_single_draw_are_refused():
    for level in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"level must be in \(0, 1\), got"):
            quantiles(np.zeros((99, 3)), [level])
        with pytest.raises(InputError, match=r"level must be in \(0, 1\), got"):
            student_interval(np.zeros((99, 3)), level)
    for function in (lambda x: quantiles(x, [0.5]), lambda x: student_interval(x, 0.9)):
        with pytest.raises(InputError, match="at least 2 draws.* got 1"):
            function(np.zeros((1, 3)))
