"""Quantiles and prediction intervals of K draws of the posterior, valid for small K.

Draws that are right have the truth for one more of their own: the K + 1 values are
exchangeable, so that a level is met exactly at every K, not for many draws only.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from ummcsgm.types import Array, InputError


def members(draws: Array, least: int = 2) -> Array:
    """Returns the draws [K, ...] in float64. Raises InputError if K is below `least`."""
    draws = np.atleast_1d(np.asarray(draws, np.float64))
    if len(draws) < least:
        raise InputError(f"a spread needs at least {least} draws of each voxel, got {len(draws)}.")
    return draws


def check_level(level: float) -> None:
    """Raises InputError unless `level` is a probability in (0, 1)."""
    if not 0 < level < 1:
        raise InputError(f"level must be in (0, 1), got {level:g}.")


def student_interval(draws: Array, level: float) -> tuple[Array, Array]:
    """Returns (low, high), each [...]: holds the truth with probability `level`, if normal.

        mean +- t_{K-1} sd sqrt(1 + 1/K)

    The prediction interval of Student's t: exact at every K if the draws and the truth
    are of one normal law. 1.645 in place of t would cover 86 %, not 90 %, at K = 8.
    """
    draws = members(draws)
    check_level(level)
    k = len(draws)
    t = stdtrit(k - 1, (1 + level) / 2)
    half = t * np.sqrt(1 + 1 / k) * np.std(draws, axis=0, ddof=1)
    mean = np.mean(draws, axis=0)
    return mean - half, mean + half


def quantiles(draws: Array, levels: Sequence[float]) -> Array:
    """Returns [Q, ...]: the truth is below with probability `level`, whatever the law.

    Exact where level (K + 1) is a whole number i: there it is the i-th smallest draw.
    Between two such levels it is linear between two draws (Weibull's positions).

    Raises:
        InputError: a level is outside (0, 1) or beyond what K draws reach, which is
            1 / (K + 1) to K / (K + 1); `student_interval` reaches farther.
    """
    draws = members(draws)
    for level in levels:
        check_level(level)
        needed = int(np.ceil(round(1 / min(level, 1 - level), 9))) - 1
        if needed > len(draws):
            raise InputError(
                f"the quantile {level:g} needs at least {needed} draws, got {len(draws)}."
            )
    return np.quantile(draws, levels, axis=0, method="weibull")


def quantile(draws: Array, level: float) -> Array:
    """Returns [...]: the truth is below with probability `level`.

    That of `quantiles` where so many draws reach it, else the end of the prediction
    interval of `student_interval`, which is right for a normal law, and never inside
    the outermost draw: quantiles of several levels do not cross.

    Raises:
        InputError: there are fewer than 2 draws, or `level` is outside (0, 1).
    """
    check_level(level)
    if 1 / min(level, 1 - level) <= len(draws) + 1 + 1e-9:
        return quantiles(draws, [level])[0]
    low, high = student_interval(draws, abs(2 * level - 1))
    if level < 0.5:
        return np.minimum(low, np.min(draws, axis=0))
    return np.maximum(high, np.max(draws, axis=0))
