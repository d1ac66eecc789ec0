"""Whether slices that were drawn one by one make a volume: metrics along z.

Volumes are [Z, Y, X], their slices neighbours in ascending z. In-plane metrics do not
see it if each slice is right and neighbours disagree.
"""

import numpy as np

from ummcsgm.evaluation.metrics import ssim_wang
from ummcsgm.types import Array, InputError


def gradient_scores(truth: Array, estimate: Array, brain: Array) -> dict[str, float]:
    """Means of |d/dz| in the truth's units a slice, where both slices have brain.

    `gradient` is the estimate's and `gradient_truth` the truth's: one draw's should be
    the truth's, a posterior mean's is below it. `gradient_error` is the mean of
    |d/dz estimate - d/dz truth|; 0 is best.

    Raises:
        InputError: no two neighbouring slices have brain at one place.
    """
    both = _neighbours(brain)
    of_truth = np.diff(np.asarray(truth, np.float64), axis=0)[both]
    of_estimate = np.diff(np.asarray(estimate, np.float64), axis=0)[both]
    return {
        "gradient": float(np.mean(np.abs(of_estimate))),
        "gradient_truth": float(np.mean(np.abs(of_truth))),
        "gradient_error": float(np.mean(np.abs(of_estimate - of_truth))),
    }


def coronal_ssim(truth: Array, estimate: Array, brain: Array, peak: float) -> float:
    """`ssim_wang` of the coronal planes, [Z, X] at each y, a fraction.

    A mean over planes, each weighted by its number of brain voxels. Outside the brain
    the estimate is set to 0, as in `metrics.score`; the truth is there as given.

    Raises:
        InputError: there are fewer slices or columns than the window's 11, or no brain.
    """
    area = np.sum(brain, axis=(0, 2))
    if not area.any():
        raise InputError("no coronal plane to score: the brain is empty.")
    wanted = np.swapaxes(truth, 0, 1)
    given = np.swapaxes(np.where(brain, estimate, 0), 0, 1)
    similarity = ssim_wang(wanted, given, peak)
    return float(np.average(similarity, weights=area))


def neighbour_sums(residuals: Array, brain: Array) -> Array:
    """[3] sums over pairs of neighbours along z: r r', r^2 and r'^2, r below r'.

    Of `residuals` [Z, ...] with mean 0 and one scale, as (truth - mean) / sd or
    (draw - mean) / sd, at pairs that lie both in `brain` [Z, ...]. They add up over
    modalities and subjects; `lag_one` makes a correlation of them.

    Raises:
        InputError: no two neighbouring slices have brain at one place.
    """
    both = _neighbours(brain)
    residuals = np.asarray(residuals, np.float64)
    low, high = residuals[:-1][both], residuals[1:][both]
    return np.array([low @ high, low @ low, high @ high])


def lag_one(sums: Array) -> float:
    """The correlation of neighbours along z, in [-1, 1], pooled over sums [S, 3].

    About 0, not about the voxels' mean: an error that a whole subject shares is
    coherent too.
    """
    cross, low, high = np.sum(np.reshape(sums, (-1, 3)), axis=0)
    return float(cross / np.sqrt(low * high))


def _neighbours(brain: Array) -> Array:
    brain = np.asarray(brain, bool)
    both = brain[:-1] & brain[1:]
    if not both.any():
        raise InputError(
            "no neighbours along z: no two neighbouring slices have brain at one place."
        )
    return both


def fit_rho(sums: Array) -> float:
    """The rho in [0, 1] at which draws are as coherent along z as the errors are.

    `sums` [S, 3] are `through_plane.neighbour_sums` of each validation subject's
    residuals (truth - mean) / sd. The mean is to be the network's own: the mean of K
    draws adds an error that is not the network's, and lowers the answer to
    K / (K + 1) of it where draws are independent along z. A sampler that is linear in
    its noise (a normal posterior) passes rho on as it is, others a little less of it.
    """
    return min(max(lag_one(sums), 0.0), 1.0)
