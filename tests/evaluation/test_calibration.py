"""Scores, coverage, ranks and spread of few draws against closed forms."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import chisquare

from ummcsgm.evaluation.calibration import (
    coverage,
    coverage_of_ranks,
    crps_fair,
    energy_score,
    law_of_draws,
    rank_histogram,
    reliability,
    spread_and_error,
    spread_skill,
    subject_interval,
    uniformity,
    within,
)
from ummcsgm.inference.draw_statistics import student_interval
from ummcsgm.types import InputError

FEW = pytest.mark.parametrize("count", [2, 8, 16])


def _normal(count, seed=0, number=100_000, spread=1.0):
    """Draws [K, N] of N(m, spread^2) and truths [N] of N(m, 1), m unlike in each."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(-5, 5, number)
    truth = mean + rng.normal(size=number)
    return mean + spread * rng.normal(size=(count, number)), truth


def test_voxels_are_those_of_the_brain_in_one_order():
    draws, truth = np.arange(24).reshape(2, 3, 4), 100 + np.arange(12).reshape(3, 4)
    brain = np.zeros((3, 4), bool)
    brain[0, 1] = brain[2, 3] = True
    inside, inside_truth = within(brain, draws.astype(np.float32), truth)
    assert inside.tolist() == [[1, 11], [13, 23]] and inside_truth.tolist() == [101, 111]
    assert inside.dtype == inside_truth.dtype == np.float64


def test_voxels_that_cannot_be_scored_are_refused():
    draws, truth, brain = np.zeros((2, 3, 4)), np.zeros((3, 4)), np.ones((3, 4), bool)
    for shape in ((3, 4), (2, 4, 3)):
        with pytest.raises(InputError, match=r"got \(3, 4\) and \(3, 4\)"):
            within(brain, np.zeros(shape), truth)
    with pytest.raises(InputError, match=r"\(4,\)"):
        within(brain[0], draws, truth)
    with pytest.raises(InputError, match="empty"):
        within(~brain, draws, truth)
    draws[1, 2, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        within(brain, draws, truth)
    brain[2, 2] = False
    within(brain, draws, truth)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_crps_is_unbiased_at_every_number_of_draws(count):
    """1 / sqrt(pi) for N(0, 1); the biased form would give (1 + 1/K) of it."""
    draws, truth = _normal(count, number=200_000)
    measured = crps_fair(draws, truth).mean()
    assert measured == pytest.approx(1 / np.sqrt(np.pi), abs=0.004)


@pytest.mark.parametrize("truth", [0.0, 0.7, -2.5])
def test_crps_of_a_normal_law_is_the_analytic_one(truth):
    """Gneiting and Raftery 2007, eq. 21: of N(2, 3^2) at 2 + 3 z."""
    rng = np.random.default_rng(1)
    draws = 2 + 3 * rng.normal(size=(5, 200_000))
    density = np.exp(-(truth**2) / 2) / np.sqrt(2 * np.pi)
    expected = truth * (2 * ndtr(truth) - 1) + 2 * density - 1 / np.sqrt(np.pi)
    assert crps_fair(draws, 2 + 3 * truth).mean() == pytest.approx(3 * expected, abs=0.02)


def test_crps_is_its_formula_voxel_by_voxel_and_the_mae_of_equal_draws():
    rng = np.random.default_rng(2)
    draws, truth = rng.normal(size=(5, 3, 4)), rng.normal(size=(3, 4))
    pairs = sum(abs(a - b) for a, b in itertools.product(draws, draws))
    expected = np.mean(abs(draws - truth), axis=0) - pairs / (2 * 5 * 4)
    np.testing.assert_allclose(crps_fair(draws, truth), expected, atol=1e-12)
    alike = np.broadcast_to(draws[0], draws.shape)
    np.testing.assert_allclose(crps_fair(alike, truth), abs(draws[0] - truth))


def test_the_crps_is_least_where_the_spread_is_right():
    scores = [crps_fair(*_normal(8, spread=s)).mean() for s in (0.6, 1.0, 1.6)]
    assert scores[1] < scores[0] - 0.01 and scores[1] < scores[2] - 0.01


def test_the_energy_score_is_its_formula_and_the_crps_of_one_modality():
    rng = np.random.default_rng(3)
    draws, truth = rng.normal(size=(4, 6, 3)), rng.normal(size=(6, 3))
    norm = lambda v: np.sqrt(np.sum(v**2, axis=-1))  # noqa: E731
    pairs = sum(norm(a - b) for a, b in itertools.product(draws, draws))
    expected = np.mean(norm(draws - truth), axis=0) - pairs / (2 * 4 * 3)
    np.testing.assert_allclose(energy_score(draws, truth), expected, atol=1e-12)
    one = energy_score(draws[..., :1], truth[..., :1])
    np.testing.assert_allclose(one, crps_fair(draws[..., 0], truth[..., 0]))


def test_the_energy_score_is_least_for_the_law_of_the_truth():
    """Also against draws whose modalities are each right but do not go together."""
    rng = np.random.default_rng(4)
    root = np.linalg.cholesky([[1, 0.9], [0.9, 1]])
    truth = rng.normal(size=(60_000, 2)) @ root.T
    draws = rng.normal(size=(6, 60_000, 2)) @ root.T
    apart = np.stack([draws[..., 0], np.roll(draws[..., 1], 1, axis=0)], -1)
    right = energy_score(draws, truth)
    for wrong in (apart, 0.7 * draws, 1.4 * draws, draws + [0.3, 0.3]):
        worse = energy_score(wrong, truth) - right
        assert worse.mean() > 5 * worse.std() / np.sqrt(len(truth))


def test_the_energy_score_does_not_depend_on_the_number_of_draws():
    """E|X - Y| - E|X - X'| / 2 = sqrt(pi) / 2 for two of N(0, I) in the plane."""
    rng = np.random.default_rng(5)
    for count in (2, 8):
        draws, truth = rng.normal(size=(count, 99_999, 2)), rng.normal(size=(99_999, 2))
        measured = energy_score(draws, truth).mean()
        assert measured == pytest.approx(np.sqrt(np.pi) / 2, abs=0.006)


@FEW
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_students_interval_covers_what_it_says_at_every_number_of_draws(count, level):
    draws, truth = _normal(count)
    assert coverage(draws, truth, level).mean() == pytest.approx(level, abs=0.004)


@FEW
@pytest.mark.parametrize("spread", [0.7, 0.9, 1.3])
def test_wrong_spread_shows_in_the_coverage_as_it_should(count, spread):
    draws, truth = _normal(count, spread=spread)
    ratio = spread * np.sqrt((1 + 1 / count) / (1 + spread**2 / count))
    reach = ratio * stdtrit(count - 1, 0.95)
    expected = 2 * stdtr(count - 1, reach) - 1
    assert coverage(draws, truth, 0.9).mean() == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("count, ranks, student", [(8, 0.86, 0.83), (16, 0.83, 0.82)])
def test_ranks_see_a_small_spread_less_well_at_few_draws(count, ranks, student):
    draws, truth = _normal(count, spread=0.8)
    counts = rank_histogram(np.random.default_rng(0), draws, truth)
    assert coverage_of_ranks(counts, 0.9) == pytest.approx(ranks, abs=0.007)
    assert coverage(draws, truth, 0.9).mean() == pytest.approx(student, abs=0.007)


def test_students_interval_by_hand_and_its_ends_are_inside():
    low, high = student_interval(np.array([1.0, 3.0]), 0.5)
    assert (low, high) == pytest.approx((2 - 3**0.5, 2 + 3**0.5))  # t_1 = 1, sd sqrt 2
    same = np.full((3, 2), 4.0)
    assert coverage(same, np.array([4.0, 4.1]), 0.9).tolist() == [True, False]


@pytest.mark.parametrize("law", ["normal", "exponential", "uniform"])
@FEW
def test_ranks_are_uniform_and_cover_by_the_level_whatever_the_law(law, count):
    rng = np.random.default_rng(6)
    values = getattr(rng, law)(size=(count + 1, 100_000))
    counts = rank_histogram(rng, values[1:], values[0])
    assert counts.shape == (count + 1,) and counts.sum() == 100_000
    expected = 100_000 / (count + 1)
    assert np.sum((counts - expected) ** 2 / expected) < count + 5 * (2 * count) ** 0.5
    for level in (0.5, 0.9):
        assert coverage_of_ranks(counts, level) == pytest.approx(level, abs=0.005)


def test_ranks_count_the_draws_below():
    draws = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    truth = np.array([0.5, 1.5, 2.5, 3.5])
    counts = rank_histogram(np.random.default_rng(0), draws, truth)
    assert counts.tolist() == [1, 1, 2]


def test_ties_are_drawn_alike_by_the_generator_that_is_given():
    draws, truth = np.zeros((3, 40_000)), np.zeros(40_000)
    draws[2] = 1.0  # two ties: ranks 0, 1 and 2 alike, never 3
    first, again, other = (
        rank_histogram(np.random.default_rng(seed), draws, truth) for seed in (7, 7, 8)
    )
    assert first[3] == 0 and first.tolist() == again.tolist() != other.tolist()
    np.testing.assert_allclose(first[:3] / 40_000, 1 / 3, atol=0.012)


def test_small_spread_makes_a_valley_large_spread_a_hill_and_bias_a_slope():
    rng = np.random.default_rng(9)
    shares = {}
    for name, spread, shift in (("small", 0.8, 0), ("large", 1.3, 0), ("low", 1, -0.5)):
        draws, truth = _normal(8, spread=spread)
        shares[name] = 9 * rank_histogram(rng, draws + shift, truth) / truth.size
    assert min(shares["small"][[0, 8]]) > 1.25 and shares["small"][4] < 0.95
    assert max(shares["large"][[0, 8]]) < 0.8 and shares["large"][4] > 1.05
    assert (np.diff(shares["low"]) > 0).all()


def test_coverage_of_ranks_by_hand():
    flat, outer = np.ones(9), np.array([5, 0, 0, 0, 0, 0, 0, 0, 5])
    assert coverage_of_ranks(np.stack([flat, 3 * flat, outer]), 0.9) == pytest.approx(
        [0.9, 0.9, 1 - 0.05 * 9]
    )
    counts = np.random.default_rng(10).integers(1, 50, 9)
    inner = counts[1:-1].sum() / counts.sum()
    assert coverage_of_ranks(counts, 7 / 9) == pytest.approx(inner)
    counts = np.random.default_rng(11).integers(1, 50, 20)  # 19 draws: all but 0 and 19
    inner = counts[1:-1].sum() / counts.sum()
    assert coverage_of_ranks(counts, 0.9) == pytest.approx(inner)
    counts = np.array([0, 4, 0, 0, 0, 0, 0, 0, 0, 0])  # 40 %: rank 1 is outside of it
    assert coverage_of_ranks(counts, 0.4) == 0


def _by_subject(rng, subjects, spread, count=7, voxels=60):
    """Rank counts [S, K + 1] of subjects whose voxels hardly differ from each other."""
    rows = []
    for _ in range(subjects):
        shared = rng.normal(size=(count + 1, 1))
        values = 0.8 * shared + 0.6 * rng.normal(size=(count + 1, voxels))
        rows.append(rank_histogram(rng, spread * values[1:], values[0]))
    return np.array(rows)


def test_the_test_of_flatness_counts_subjects_not_voxels():
    """Dependent voxels raise no false alarm: 5 % of 300 calibrated studies are below
    .05, where chi-square over the voxels refuses nearly all."""
    rng = np.random.default_rng(12)
    studies = [_by_subject(rng, 20, 1.0) for _ in range(300)]
    values = np.array([uniformity(counts) for counts in studies])
    assert 0.02 < np.mean(values < 0.05) < 0.09
    assert 0.4 < np.mean(values) < 0.6
    by_voxel = [chisquare(counts.sum(axis=0)).pvalue for counts in studies]
    assert np.mean(np.array(by_voxel) < 0.05) > 0.9


def test_the_test_of_flatness_sees_wrong_spread_and_bias():
    rng = np.random.default_rng(13)
    assert uniformity(_by_subject(rng, 200, 0.6)) < 1e-3
    assert uniformity(_by_subject(rng, 200, 1.7)) < 1e-3
    slope = rng.poisson(np.linspace(80, 120, 9), size=(12, 9))
    assert uniformity(slope) < 1e-3


def test_the_test_of_flatness_is_hotellings_by_hand():
    """K = 2: ranks 0, 1, 2 have slope -1, 0, 1 and curvature 1/3, -2/3, 1/3."""
    counts = np.array([[2, 1, 1], [1, 1, 2], [3, 0, 1], [1, 3, 0], [0, 2, 2]])
    shares = counts / 4
    parts = np.stack([shares[:, 2] - shares[:, 0], 1 / 3 - shares[:, 1]], 1)
    mean, covariance = parts.mean(0), np.cov(parts.T)
    ratio = 3 / 8 * 5 * mean @ np.linalg.inv(covariance) @ mean
    expected = (1 + 2 * ratio / 3) ** (-3 / 2)  # of F(2, 3), in closed form
    assert uniformity(counts) == pytest.approx(expected, rel=1e-9)
    assert uniformity(counts * [[1], [7], [1], [1], [3]]) == pytest.approx(expected)


def test_too_few_subjects_or_equal_ones_are_refused():
    with pytest.raises(InputError, match="at least 4 subjects.* 3"):
        uniformity(np.random.default_rng(0).integers(1, 9, (3, 5)))
    with pytest.raises(InputError, match="that differ"):
        uniformity(np.ones((9, 5)))
    with pytest.raises(InputError, match="needs at least 2, got 1"):
        subject_interval(np.random.default_rng(0), np.mean, np.ones((1, 3)), level=0.9, resamples=9)


def test_the_bootstrap_draws_whole_subjects():
    """sd of a mean over 40 subjects with their own means, of 500 voxels each."""
    rng = np.random.default_rng(14)
    values = rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 500))
    low, high = subject_interval(
        rng, lambda v: v.mean(axis=(0, 1)), values, level=0.9, resamples=2000
    )
    expected = 2 * 1.645 * values.mean(axis=1).std() / 40**0.5
    assert high - low == pytest.approx(expected, rel=0.08)
    assert low < values.mean() < high
    again = subject_interval(np.random.default_rng(3), np.median, values, level=0.5, resamples=50)
    assert again == subject_interval(
        np.random.default_rng(3), np.median, values, level=0.5, resamples=50
    )


def _posterior(count, spread=1.0, seed=0, number=40_000):
    """(draws, mean, truth): voxels with sds of 0.3 to 3, draws `spread` times those."""
    rng = np.random.default_rng(seed)
    sd = 10 ** rng.uniform(-0.5, 0.5, number)
    mean = 100 * rng.normal(size=number)
    truth = mean + sd * rng.normal(size=number)
    return mean + spread * sd * rng.normal(size=(count, number)), mean, truth


@pytest.mark.parametrize("count", [2, 8, 200])
@pytest.mark.parametrize("spread", [0.7, 1.0, 1.2])
def test_spread_skill_is_1_if_calibrated_and_the_spread_if_many(count, spread):
    """(1 + 1/K) s^2 / (1 + s^2 / K) is 1 at s = 1 for all K, and s^2 for large K."""
    draws, _, truth = _posterior(count, spread)
    expected = np.sqrt((1 + 1 / count) / (1 + spread**2 / count)) * spread
    measured = spread_skill(spread_and_error(draws, truth), count)
    assert measured == pytest.approx(expected, rel=0.012)


def test_moments_are_pooled_over_subjects_before_the_ratio():
    draws, truth = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([2.0, 8.0])
    assert spread_and_error(draws, truth).tolist() == [1.0, 4.5]
    moments = np.array([[1.0, 4.0], [3.0, 1.0]])
    assert spread_skill(moments, 3) == pytest.approx((4 / 3 * 4 / 5) ** 0.5)


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
    """Variances that split the voxels into `bins` of equal numbers."""
    first = draws[: len(draws) // 2]
    return np.quantile(np.var(first, axis=0, ddof=1), np.arange(1, bins) / bins)


@pytest.mark.parametrize("count", [4, 9, 16])
def test_a_reliable_spread_is_on_the_diagonal_in_every_bin(count):
    """With as few as 2 + 2 draws; one set for both would be off by half at the ends."""
    draws, _, truth = _posterior(count, number=100_000)
    edges = _edges(draws, 5)
    number, predicted, measured = reliability(draws, truth, edges).T
    assert number.sum() == 2 * 100_000
    np.testing.assert_allclose(number / number.sum(), 0.2, atol=0.01)
    np.testing.assert_allclose(measured / predicted, 1, atol=0.08)
    assert (np.diff(predicted / number) > 0).all()
    assert predicted[-1] > 4 * predicted[0]


def test_a_small_spread_is_off_the_diagonal_by_its_square():
    draws, _, truth = _posterior(16, 0.8, number=100_000)
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


def test_wrong_levels_and_too_few_draws_are_refused():
    one, truth = np.zeros((1, 3)), np.zeros(3)
    for level in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"level must be in \(0, 1\)"):
            coverage(np.zeros((9, 3)), truth, level)
        with pytest.raises(InputError, match=r"level must be in \(0, 1\)"):
            coverage_of_ranks(np.ones(9), level)
    for function in (
        lambda: crps_fair(one, truth),
        lambda: crps_fair(np.float64(1), truth),
        lambda: energy_score(one, truth),
        lambda: rank_histogram(np.random.default_rng(0), one, truth),
        lambda: spread_and_error(one, truth),
        lambda: law_of_draws(one, truth, truth),
    ):
        with pytest.raises(InputError, match="at least 2 draws.* got 1"):
            function()
    with pytest.raises(InputError, match="at least 4 draws.* got 3"):
        reliability(np.zeros((3, 3)), truth, [1.0])
