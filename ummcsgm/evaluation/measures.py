"""The metrics that a profile may name, each of a truth and an estimate, scaled alike.

Each takes volumes [Z, Y, X], the data range `span` and the region [Z, Y, X] bool. Those
of slices are means over whole slices, those of the volume are of all of it; the others
are of the region's voxels. With a name comes a version, which is to be raised whenever
the function gives other numbers: hashes of profiles depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter

from ummcsgm.evaluation.metrics import (
    WANG_RADIUS,
    WANG_SIGMA,
    mae,
    psnr,
    similarity,
    ssim_global,
    window_mean,
)
from ummcsgm.evaluation.normalisation import NotMeasuredError
from ummcsgm.types import Array, InputError

Metric = Callable[[Array, Array, float, Array], float]
SLAB = 16  # slices whose windows are in memory together


def _psnr_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    """Of slices that differ: the others have none, and are often without any image."""
    differ = (wanted != given).any(axis=(1, 2))
    if not differ.any():
        raise NotMeasuredError("truth and estimate agree in every slice")
    return np.mean(psnr(wanted[differ], given[differ], span))


def _mae_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(mae(wanted, given))


def _mse_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(np.square(given.astype(np.float64) - wanted))


def _ssim_global_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(ssim_global(wanted, given, span))


def _psnr_voxels(wanted: Array, given: Array, span: float, region: Array) -> float:
    return psnr(wanted[region][None], given[region][None], span)


def _mae_voxels(wanted: Array, given: Array, span: float, region: Array) -> float:
    return mae(wanted[region][None], given[region][None])


def _nmse_volume(wanted: Array, given: Array, span: float, region: Array) -> float:
    wanted = wanted.astype(np.float64)
    return np.sum(np.square(given - wanted)) / np.sum(np.square(wanted))


def _in_windows(window: Window) -> Metric:
    """SSIM, a mean over the voxels of the region whose window lies wholly inside."""

    def ssim(wanted: Array, given: Array, span: float, region: Array) -> float:
        inside = region & _inside(region.shape, window.margins)
        if not inside.any():
            raise InputError("no voxel of the region has its whole window inside.")
        total, margin = 0.0, window.margins[0]
        for first in range(0, len(inside), SLAB):
            own = inside[first : first + SLAB]
            if own.any():
                start = max(first - margin, 0)
                near = slice(start, first + SLAB + margin)
                values = similarity(window.mean, wanted[near], given[near], span, window.unbiased)
                total += values[first - start :][: len(own)][own].sum()
        return total / np.count_nonzero(inside)

    return ssim


def _ssim_gaussian_zeroed(wanted: Array, given: Array, span: float, region: Array) -> float:
    """SSIM in Gaussian windows, both set to 0 outside the region, and the span that of
    the values which are left: the larger one of both."""
    wanted, given = np.where(region, wanted, 0), np.where(region, given, 0)
    span = float(max(np.ptp(wanted), np.ptp(given)))
    if not span > 0:
        raise InputError("there is one value only: SSIM has no range.")
    return _in_windows(GAUSSIAN_3D)(wanted, given, span, np.ones_like(region))


def _uniform_mean(window: tuple[int, int, int]) -> Callable[[Array], Array]:
    return lambda volume: uniform_filter(volume, window)


def _volume_mean(volume: Array) -> Array:
    for axis in range(3):
        volume = gaussian_filter1d(volume, WANG_SIGMA, axis=axis, radius=WANG_RADIUS)
    return volume


def _inside(shape: tuple[int, ...], margins: tuple[int, ...]) -> Array:
    """True but in `margins` voxels at either end of each axis."""
    pairs = list(zip(shape, margins, strict=True))
    if any(size <= 2 * margin for size, margin in pairs):
        voxels = " x ".join(map(str, shape))
        window = " x ".join(str(2 * margin + 1) for margin in margins)
        raise InputError(f"{voxels} voxels are fewer than an SSIM window of {window}.")
    inside = np.zeros(shape, bool)
    inside[tuple(slice(margin, size - margin) for size, margin in pairs)] = True
    return inside


@dataclass(frozen=True)
class Window:
    """Around each voxel: how the mean over it is taken, and how far it reaches.

    `unbiased` is 1 for the variances of a population, n / (n - 1) for a sample's.
    """

    mean: Callable[[Array], Array]
    margins: tuple[int, int, int]
    unbiased: float


GAUSSIAN = Window(window_mean, (0, WANG_RADIUS, WANG_RADIUS), 1.0)
GAUSSIAN_3D = Window(_volume_mean, (WANG_RADIUS,) * 3, 1.0)
UNIFORM = Window(_uniform_mean((1, 7, 7)), (0, 3, 3), 49 / 48)
UNIFORM_3D = Window(_uniform_mean((7, 7, 7)), (3, 3, 3), 343 / 342)

METRICS: dict[str, tuple[Metric, int]] = {
    "psnr of slices": (_psnr_slices, 2),
    "mae of slices": (_mae_slices, 1),
    "mse of slices": (_mse_slices, 1),
    "global ssim of slices": (_ssim_global_slices, 1),
    "gaussian ssim in the plane": (_in_windows(GAUSSIAN), 1),
    "uniform ssim in the plane": (_in_windows(UNIFORM), 1),
    "psnr of voxels": (_psnr_voxels, 1),
    "mae of voxels": (_mae_voxels, 1),
    "nmse of the volume": (_nmse_volume, 1),
    "uniform ssim": (_in_windows(UNIFORM_3D), 1),
    "gaussian ssim": (_in_windows(GAUSSIAN_3D), 1),
    "gaussian ssim of the zeroed volume": (_ssim_gaussian_zeroed, 1),
}
