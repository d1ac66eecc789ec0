"""Are the draws what they claim to be: scores of K draws against the truth.

Draws [K, ...] and truth [...] are one subject's voxels of one modality, in one unit.
Draws that are right have the truth for one more of their own: the K + 1 values are
exchangeable, and each expectation below is exact for every K, not for many draws only.
Choose the voxels by `within`: background is one value in all, and looks calibrated.
Voxels of a subject go together, so whatever is uncertain is so over subjects:
`subject_interval` and `uniformity` draw and count subjects, never voxels.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import fdtrc

from ummcsgm.inference.draw_statistics import check_level, members, student_interval
from ummcsgm.types import Array, InputError


def within(brain: Array, draws: Array, truth: Array) -> tuple[Array, Array]:
    """The voxels of `brain` [...] bool: draws [K, N] and truth [N], in float64.

    Raises:
        InputError: the shapes disagree, no voxel is inside, or one is not finite.
    """
    brain, shape = np.asarray(brain, bool), np.shape(truth)
    if brain.shape != shape or np.shape(draws)[1:] != shape:
        raise InputError(
            f"draws of {np.shape(draws)} want a truth and a brain of the draws' shape "
            f"but for the first axis, and these are {shape} and {brain.shape}."
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

    Unbiased for E|X - y| - E|X - X'| / 2 at every K >= 2 (Ferro 2014). One voxel's may
    be negative; its mean is what counts. Of draws that are all alike it is the MAE.
    """
    draws, truth = members(draws), np.asarray(truth, np.float64)
    k = len(draws)
    weights = (2 * np.arange(1, k + 1) - k - 1) / (k * (k - 1))
    spread = np.tensordot(weights, np.sort(draws, axis=0), axes=1)
    return np.mean(np.abs(draws - truth), axis=0) - spread


def energy_score(draws: Array, truth: Array) -> Array:
    """The fair energy score [...] of vectors: draws [K, ..., A] and truth [..., A].

    `crps_fair` with Euclidean norms (Gneiting and Raftery 2007, eq. 22), so that it
    sees also whether A modalities go together rightly. At A = 1 it is the CRPS.
    """
    draws, truth = members(draws), np.asarray(truth, np.float64)
    k = len(draws)
    error = np.mean(np.linalg.norm(draws - truth, axis=-1), axis=0)
    pairs = sum(np.linalg.norm(draws[i] - draws[j], axis=-1) for i in range(k) for j in range(i))
    return error - pairs / (k * (k - 1))


def coverage(draws: Array, truth: Array, level: float) -> Array:
    """[...] bool: the truth lies in `student_interval`. It leans on the normal law."""
    low, high = student_interval(draws, level)
    return (low <= truth) & (truth <= high)


def rank_histogram(generator: np.random.Generator, draws: Array, truth: Array) -> Array:
    """[K + 1] counts of the truth's rank among the draws, 0 if it is below them all.

    Uniform if calibrated. The rank among draws that equal the truth is drawn, all
    alike, by `generator`, which the caller addresses by (seed, subject, modality).
    """
    draws = members(draws)
    below, equal = np.sum(draws < truth, axis=0), np.sum(draws == truth, axis=0)
    ranks = below + generator.integers(0, equal, endpoint=True)
    return np.bincount(np.ravel(ranks), minlength=len(draws) + 1)


def coverage_of_ranks(counts: Array, level: float) -> Array:
    """[...] the share of truths in the central `level`, from counts [..., K + 1].

    Without any law: (rank + u) / (K + 1), u uniform, is uniform if calibrated, and
    counts as covered between (1 - level) / 2 and (1 + level) / 2; here is the mean over
    u. So `level` is met exactly at every K; at (K - 1) / (K + 1) it is the share
    between the least and the greatest draw. K < 19 draws have none beyond 90 %: the
    outermost ranks count in part, and the answer cannot fall below
    1 - (1 - level) (K + 1) / 2. So it is the less sensitive: of normal draws with 0.8
    of the spread it says 0.86 at K = 8 and 0.83 at K = 16, `coverage` 0.83 and 0.82.
    """
    check_level(level)
    counts = np.asarray(counts, np.float64)
    edges = np.clip(
        np.arange(counts.shape[-1] + 1) / counts.shape[-1], (1 - level) / 2, (1 + level) / 2
    )
    return counts @ (np.diff(edges) * counts.shape[-1]) / counts.sum(axis=-1)


def uniformity(counts: Array) -> float:
    """The p-value of a rank histogram's flatness, from counts [S, K + 1] by subject.

    The slope (bias) and the curvature (spread) of each subject's histogram, which are
    chi-square's first two components (Jolliffe and Primo 2008), tested to be 0 in the
    mean over subjects by Hotelling's T^2: voxels of a subject may depend on each other
    in any way. For few subjects it leans on near normal subjects' means.

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
            "a test of a rank histogram wants at least 4 subjects that differ, and "
            f"this one has {subjects}."
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

    `values` [S, ...] has a row a subject; whole subjects are drawn with replacement,
    and the central `level` of the statistic is between the answers.

    Raises:
        InputError: there is one subject only, or the level is not inside (0, 1).
    """
    check_level(level)
    values = np.asarray(values)
    if len(values) < 2:
        raise InputError(f"an interval over subjects wants 2, this has {len(values)}.")
    drawn = generator.integers(len(values), size=(resamples, len(values)))
    answers = [statistic(values[rows]) for rows in drawn]
    low, high = np.quantile(answers, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
