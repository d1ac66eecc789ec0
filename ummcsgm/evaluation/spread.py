"""The variance of K draws beside the squared error of their mean, and the law of both.

Draws [K, ...] and truth [...] are one subject's voxels of one modality, as
`calibration.within` chooses them. With V the draws' variance and E the mean squared
error of what they are centred on, K draws' mean errs by MSE_K = E + V / K, and draws
are calibrated in their spread where E = V.
"""

import numpy as np

from ummcsgm.inference.draw_statistics import members
from ummcsgm.types import Array


def spread_and_error(draws: Array, truth: Array) -> Array:
    """[2]: the mean variance of the draws (over K - 1) and the MSE of their mean.

    Means over the voxels of one subject, to be pooled before a ratio is taken of them.
    """
    draws = members(draws)
    error = np.mean(np.square(np.mean(draws, axis=0) - truth))
    return np.array([np.mean(np.var(draws, axis=0, ddof=1)), error])


def spread_skill(moments: Array, count: int) -> float:
    """sqrt((K + 1) / K variance / error) of `count` = K draws: 1 if calibrated.

    `moments` [S, 2] are `spread_and_error` of each subject; both are averaged, every
    subject alike, before the ratio (Fortin et al. 2014). Below 1 the spread is small.
    """
    variance, error = np.mean(np.reshape(moments, (-1, 2)), axis=0)
    return float(np.sqrt((count + 1) / count * variance / error))


def recalibration_factor(variances: Array, errors: Array) -> float:
    """What `respread` has to multiply the spread with for a spread-skill ratio of 1.

    [S] mean variances of the draws, and [S] mean squared errors of the very mean they
    are respread about, by subject, every subject alike. The network's own mean and its
    error give sqrt(E / V), for any K. If it is the mean of the K draws, the factor is
    1 / `spread_skill` instead, and holds for that K only.
    """
    return float(np.sqrt(np.mean(errors) / np.mean(variances)))


def respread(draws: Array, mean: Array, factor: float) -> Array:
    """[K, ...]: mean + factor (draw - mean). Not clipped: it may fall below 0."""
    return mean + factor * (np.asarray(draws) - mean)


def law_of_draws(draws: Array, mean: Array, truth: Array) -> Array:
    """[n, 3] rows (k, MSE_k, E + V / k) for k = 1, 2, 4, ... up to K draws averaged.

    MSE_k is the mean over the K // k groups of successive draws. E is the MSE of
    `mean`, which has to come from elsewhere (the network's own): with the mean of the
    same draws for it the law would be an identity. V is the variance of the draws. The
    two agree in expectation if the draws are independent and centred on that mean; and
    E = V if they are calibrated: one draw is then 3.01 dB below the mean.
    """
    draws = members(draws)
    variance = np.mean(np.var(draws, axis=0, ddof=1))
    error = np.mean(np.square(np.asarray(mean, np.float64) - truth))
    rows = []
    for k in 2 ** np.arange(len(draws).bit_length()):
        groups = draws[: len(draws) // k * k].reshape(-1, k, *draws.shape[1:])
        measured = np.mean(np.square(groups.mean(axis=1) - truth))
        rows.append((k, measured, error + variance / k))
    return np.array(rows)


def reliability(draws: Array, truth: Array, edges: Array) -> Array:
    """[bins, 3] sums over voxels: number, predicted variance, squared error.

    Add them over subjects, then divide by the number: the two columns are alike if
    calibrated. Half of the draws puts a voxel into a bin, the other half has its
    variance predicted and its mean's error measured, less the 1/k part of that from
    finitely many draws; then the halves change places, so a voxel counts twice. With
    one set for both, a bin of great variances would hold those great by chance, and
    the curve of calibrated draws would be too flat.

    Raises:
        InputError: there are fewer than 4 draws.
    """
    draws = members(draws, least=4)
    half = len(draws) // 2
    halves = draws[:half], draws[half : 2 * half]
    sums = np.zeros((len(edges) + 1, 3))
    for chooser, judged in (halves, halves[::-1]):
        variance = np.var(judged, axis=0, ddof=1)
        error = np.square(np.mean(judged, axis=0) - truth) - variance / half
        sums += _sums(np.var(chooser, axis=0, ddof=1), variance, error, edges)
    return sums


def reliability_of(variance: Array, errors: Array, edges: Array) -> Array:
    """[bins, 3] sums over voxels as `reliability`, of a variance that is told and not
    estimated from draws: it is its own bin's. `errors` are squared errors."""
    return _sums(variance, variance, errors, edges)


def _sums(chooser: Array, variance: Array, errors: Array, edges: Array) -> Array:
    places = np.digitize(chooser, edges).ravel()
    columns = (np.ones(places.size), np.ravel(variance), np.ravel(errors))
    sums = [np.bincount(places, column, len(edges) + 1) for column in columns]
    return np.stack(sums, axis=1)
