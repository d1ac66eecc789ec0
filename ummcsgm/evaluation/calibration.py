"""Whether K draws are distributed as the truth is: scores, coverage, ranks and spread.

Draws [K, ...] and truth [...] are the voxels of one subject and modality, in one unit,
and `within` selects those of the brain: a background of one value looks calibrated.
If the draws are right, the truth is exchangeable with them, and each expectation below
is exact for every K >= 2. Voxels of a subject depend on each other, so uncertainty is
that over subjects (`subject_interval`, `uniformity`), never over voxels.

With V the variance of the draws and E the mean squared error of what they are centred
on, the mean of K draws has the error E + V / K; their spread is calibrated if E = V.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import fdtrc

from ummcsgm.inference.draw_statistics import check_level, members, student_interval
from ummcsgm.types import Array, InputError

LEVEL = 0.9  # of the intervals whose coverage is counted, and of those over subjects
RESAMPLES = 1000  # of a bootstrap over subjects


def within(brain: Array, draws: Array, truth: Array) -> tuple[Array, Array]:
    """The voxels inside `brain` [...] bool: draws [K, N] and truth [N], in float64.

    Raises:
        InputError: the shapes disagree, no voxel is inside, or one is not finite.
    """
    brain, shape = np.asarray(brain, bool), np.shape(truth)
    if brain.shape != shape or np.shape(draws)[1:] != shape:
        raise InputError(
            f"draws of {np.shape(draws)} need a truth and a brain of {np.shape(draws)[1:]}, "
            f"got {shape} and {brain.shape}."
        )
    draws = np.asarray(draws)[:, brain].astype(np.float64)
    truth = np.asarray(truth)[brain].astype(np.float64)
    if truth.size == 0:
        raise InputError("no voxel to score: the brain is empty.")
    if not (np.isfinite(draws).all() and np.isfinite(truth).all()):
        raise InputError("a draw or the truth is not finite inside the brain.")
    return draws, truth


def crps_fair(draws: Array, truth: Array) -> Array:
    """The continuous ranked probability score [...], in the truth's units; 0 is best.

        mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 K (K - 1))

    Unbiased for E|X - y| - E|X - X'| / 2 at every K >= 2 (Ferro 2014), so a single
    voxel's may be negative: use means. If all draws are equal, it is the absolute error.
    """
    draws, truth = members(draws), np.asarray(truth, np.float64)
    k = len(draws)
    weights = (2 * np.arange(1, k + 1) - k - 1) / (k * (k - 1))
    spread = np.tensordot(weights, np.sort(draws, axis=0), axes=1)
    return np.mean(np.abs(draws - truth), axis=0) - spread


def energy_score(draws: Array, truth: Array) -> Array:
    """The fair energy score [...] of vectors: draws [K, ..., A] and truth [..., A].

    `crps_fair` with Euclidean norms (Gneiting and Raftery 2007, eq. 22): it also sees
    whether the A modalities depend on each other rightly. At A = 1 it is the CRPS.
    """
    draws, truth = members(draws), np.asarray(truth, np.float64)
    k = len(draws)
    error = np.mean(np.linalg.norm(draws - truth, axis=-1), axis=0)
    pairs = sum(np.linalg.norm(draws[i] - draws[j], axis=-1) for i in range(k) for j in range(i))
    return error - pairs / (k * (k - 1))


def coverage(draws: Array, truth: Array, level: float) -> Array:
    """[...] bool: the truth lies in `student_interval`, which assumes a normal law."""
    low, high = student_interval(draws, level)
    return (low <= truth) & (truth <= high)


def rank_histogram(generator: np.random.Generator, draws: Array, truth: Array) -> Array:
    """[K + 1] counts of the truth's rank among the draws, 0 if it is below them all.

    Uniform if calibrated. The rank among draws that equal the truth is uniformly
    random, from `generator`, which the caller seeds by (seed, subject, modality).
    """
    draws = members(draws)
    below, equal = np.sum(draws < truth, axis=0), np.sum(draws == truth, axis=0)
    ranks = below + generator.integers(0, equal, endpoint=True)
    return np.bincount(np.ravel(ranks), minlength=len(draws) + 1)


def coverage_of_ranks(counts: Array, level: float) -> Array:
    """[...] the fraction of truths in the central `level`, from counts [..., K + 1].

    It assumes no law: (rank + u) / (K + 1), u uniform, is uniform if calibrated, and is covered
    between (1 - level) / 2 and (1 + level) / 2; this is the mean over u. So `level` is met exactly
    at every K, and at (K - 1) / (K + 1) this is the fraction between the smallest and the largest
    draw. Below K = 19 no draw lies beyond 90 %: the outermost ranks count in part, and the result
    is at least 1 - (1 - level) (K + 1) / 2. It is less sensitive than `coverage`: for normal draws
    with 0.8 of the spread it is 0.86 at K = 8 and 0.83 at K = 16, against 0.83 and 0.82.
    """
    check_level(level)
    counts = np.asarray(counts, np.float64)
    edges = np.clip(
        np.arange(counts.shape[-1] + 1) / counts.shape[-1], (1 - level) / 2, (1 + level) / 2
    )
    return counts @ (np.diff(edges) * counts.shape[-1]) / counts.sum(axis=-1)


def uniformity(counts: Array) -> float:
    """The p-value that a rank histogram is flat, from counts [S, K + 1] by subject.

    Hotelling's T^2 tests that the slope (bias) and the curvature (spread) of the
    subjects' histograms, the first two components of chi-square (Jolliffe and Primo
    2008), have mean 0 over subjects. Voxels of a subject may depend on each other in any
    way. With few subjects it assumes that these are nearly normal over subjects.

    Raises:
        InputError: there are fewer than 4 subjects, or they are all alike.
    """
    counts = np.asarray(counts, np.float64)
    subjects, ranks = len(counts), np.arange(counts.shape[1])
    slope = ranks - ranks.mean()
    curve = slope**2 - np.mean(slope**2)
    parts = counts @ np.stack([slope, curve], 1) / counts.sum(1, keepdims=True)
    if subjects < 4 or np.linalg.matrix_rank(np.cov(parts.T)) < 2:
        raise InputError(
            f"a test of a rank histogram needs at least 4 subjects that differ, got {subjects}."
        )
    mean = parts.mean(axis=0)
    squared = subjects * mean @ np.linalg.solve(np.cov(parts.T), mean)
    ratio = (subjects - 2) / (2 * (subjects - 1)) * squared
    return float(fdtrc(2, subjects - 2, ratio))


def subject_interval(
    generator: np.random.Generator,
    statistic: Callable[[Array], Array],
    values: Array,
    *,
    level: float,
    resamples: int,
) -> tuple[Array, Array]:
    """(low, high) of `statistic(values)` [...] by a bootstrap over subjects.

    `values` [S, ...] has a row for each subject; whole subjects are drawn with
    replacement, and the interval holds the central `level` of the statistics. (Not
    scipy.stats.bootstrap: it draws other resamples, and would change every interval.)

    Raises:
        InputError: there is one subject only, or the level is not inside (0, 1).
    """
    check_level(level)
    values = np.asarray(values)
    if len(values) < 2:
        raise InputError(f"an interval over subjects needs at least 2, got {len(values)}.")
    drawn = generator.integers(len(values), size=(resamples, len(values)))
    statistics = [statistic(values[indices]) for indices in drawn]
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap_interval(statistic: Callable[[Array], Array], values: Array) -> tuple[Array, Array]:
    """The ends of the central LEVEL of a statistic, by a bootstrap over subjects [S, ...].

    Both are the statistic itself for one subject.
    """
    if len(values) < 2:
        return statistic(values), statistic(values)
    generator = np.random.default_rng(0)
    return subject_interval(generator, statistic, values, level=LEVEL, resamples=RESAMPLES)


def spread_and_error(draws: Array, truth: Array) -> Array:
    """[2]: the mean variance of the draws (over K - 1) and the MSE of their mean.

    Means over the voxels of one subject; average them over subjects before taking a ratio.
    """
    draws = members(draws)
    error = np.mean(np.square(np.mean(draws, axis=0) - truth))
    return np.array([np.mean(np.var(draws, axis=0, ddof=1)), error])


def spread_skill(moments: Array, count: int) -> Array:
    """[...] sqrt((K + 1) / K variance / error) of `count` = K draws: 1 if calibrated.

    `moments` [S, ..., 2], or [2] of one subject, are `spread_and_error` of each subject; both are
    averaged over subjects before the ratio (Fortin et al. 2014). Below 1 the spread is too small.
    """
    means = np.mean(np.atleast_2d(moments), axis=0)
    return np.sqrt((count + 1) / count * means[..., 0] / means[..., 1])


def law_of_draws(draws: Array, mean: Array, truth: Array) -> Array:
    """[n, 3] rows (k, MSE_k, E + V / k) for means of k = 1, 2, 4, ... up to K draws.

    MSE_k is the mean over the K // k groups of successive draws, V the variance of the draws, E the
    MSE of `mean`. That has to be the network's own mean: with the mean of the same draws the law is
    an identity. Both columns agree in expectation if the draws are independent and centred on
    `mean`. If they are calibrated, E = V, and one draw is 3.01 dB below the mean.
    """
    draws = members(draws)
    variance = np.mean(np.var(draws, axis=0, ddof=1))
    error = np.mean(np.square(np.asarray(mean, np.float64) - truth))
    rows = []
    for k in 2 ** np.arange(len(draws).bit_length()):
        groups = draws[: len(draws) // k * k].reshape(-1, k, *draws.shape[1:])
        error_of_k = np.mean(np.square(groups.mean(axis=1) - truth))
        rows.append((k, error_of_k, error + variance / k))
    return np.array(rows)


def reliability(draws: Array, truth: Array, edges: Array) -> Array:
    """[bins, 3] sums over voxels: number, predicted variance, squared error.

    Add them over subjects, then divide by the number: the two columns are equal if calibrated. One
    half of the draws puts a voxel into a bin; the other half gives its variance and the error of
    its mean, less the 1/k part that is due to k draws. Then the halves are swapped, so each voxel
    counts twice. With one set for both, a bin of large variances would hold those that are large by
    chance, and the curve of calibrated draws would be too flat.

    Raises:
        InputError: there are fewer than 4 draws.
    """
    draws = members(draws, least=4)
    half = len(draws) // 2
    halves = draws[:half], draws[half : 2 * half]
    sums = np.zeros((len(edges) + 1, 3))
    for binning, tested in (halves, halves[::-1]):
        variance = np.var(tested, axis=0, ddof=1)
        error = np.square(np.mean(tested, axis=0) - truth) - variance / half
        sums += _sums_in_bins(np.var(binning, axis=0, ddof=1), variance, error, edges)
    return sums


def reliability_of(variance: Array, errors: Array, edges: Array) -> Array:
    """[bins, 3] sums over voxels as of `reliability`, of a `variance` that is predicted
    and not estimated from draws. `errors` are squared errors."""
    return _sums_in_bins(variance, variance, errors, edges)


def _sums_in_bins(binned: Array, variance: Array, errors: Array, edges: Array) -> Array:
    bins = np.digitize(binned, edges).ravel()
    columns = (np.ones(bins.size), np.ravel(variance), np.ravel(errors))
    sums = [np.bincount(bins, column, len(edges) + 1) for column in columns]
    return np.stack(sums, axis=1)
