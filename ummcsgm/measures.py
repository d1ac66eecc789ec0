"""The metrics that a profile may name, each of a truth and an estimate, scaled alike.

Each takes volumes [Z, Y, X], the data range `span` and the region [Z, Y, X] bool, and
uses of them what its name says; metrics of slices are means over the slices. With a
name comes a version, which is to be raised whenever the function gives other numbers:
hashes of profiles depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter

from ummcsgm.metrics import (
    WANG_RADIUS,
    WANG_SIGMA,
    mae,
    psnr,
    similarity,
    ssim_global,
    ssim_wang,
    window_mean,
)
from ummcsgm.types import Array, InputError

UNIFORM = 7  # voxels along each axis of a uniform window


def _psnr_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(psnr(wanted, given, span))


def _mae_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(mae(wanted, given))


def _mse_slices(wanted: Array, given: Array, span: float, region: Array) -> float:
    return np.mean(np.square(given.astype(np.float64) - wanted))


def _ssim_global_slices(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    return np.mean(ssim_global(wanted, given, span))


def _ssim_gaussian_slices(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    return np.mean(ssim_wang(wanted, given, span))


def _ssim_uniform_slices(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    return _ssim_uniform(wanted, given, span, (1, UNIFORM, UNIFORM))


def _psnr_voxels(wanted: Array, given: Array, span: float, region: Array) -> float:
    return psnr(wanted[region][None], given[region][None], span)


def _mae_voxels(wanted: Array, given: Array, span: float, region: Array) -> float:
    return mae(wanted[region][None], given[region][None])


def _nmse_volume(wanted: Array, given: Array, span: float, region: Array) -> float:
    wanted = wanted.astype(np.float64)
    return np.sum(np.square(given - wanted)) / np.sum(np.square(wanted))


def _ssim_uniform_volume(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    return _ssim_uniform(wanted, given, span, (UNIFORM, UNIFORM, UNIFORM))


def _ssim_uniform(
    wanted: Array, given: Array, span: float, window: tuple[int, ...]
) -> float:
    """Over uniform windows wholly inside, with the variances of samples."""
    count = int(np.prod(window))
    values = similarity(
        lambda images: uniform_filter(images, window),
        wanted,
        given,
        span,
        count / (count - 1),
    )
    return _inside(values, tuple(size // 2 for size in window)).mean()


def _ssim_gaussian_volume(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    """Over 11 x 11 x 11 windows of sigma 1.5 wholly inside, population variances."""
    values = similarity(_volume_mean, wanted, given, span)
    return _inside(values, (WANG_RADIUS,) * 3).mean()


def _ssim_gaussian_zeroed(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    """As _ssim_gaussian_volume, both set to 0 outside the region, and the span that of
    the values which are left: the largest of both."""
    wanted, given = np.where(region, wanted, 0), np.where(region, given, 0)
    span = float(max(np.ptp(wanted), np.ptp(given)))
    if not span > 0:
        raise InputError("there is one value only: SSIM has no range.")
    return _ssim_gaussian_volume(wanted, given, span, region)


def _ssim_gaussian_region(
    wanted: Array, given: Array, span: float, region: Array
) -> float:
    """Axial 11 x 11 windows, over the voxels of the region whose window is inside."""
    inside = np.zeros(region.shape, bool)
    _inside(inside, (0, WANG_RADIUS, WANG_RADIUS))[...] = True
    inside &= region
    z = np.flatnonzero(inside.any(axis=(1, 2)))
    if not z.size:
        raise InputError("no voxel of the region has its whole window in the frame.")
    return similarity(window_mean, wanted[z], given[z], span)[inside[z]].mean()


def _volume_mean(volume: Array) -> Array:
    for axis in range(3):
        volume = gaussian_filter1d(volume, WANG_SIGMA, axis=axis, radius=WANG_RADIUS)
    return volume


def _inside(values: Array, margins: tuple[int, ...]) -> Array:
    """`values` without `margins` voxels at either end of each axis."""
    pairs = list(zip(values.shape, margins, strict=True))
    if any(size <= 2 * margin for size, margin in pairs):
        size = " x ".join(map(str, values.shape))
        window = " x ".join(str(2 * margin + 1) for margin in margins)
        raise InputError(f"{size} voxels are fewer than an SSIM window of {window}.")
    return values[tuple(slice(margin, size - margin) for size, margin in pairs)]


Metric = Callable[[Array, Array, float, Array], float]

METRICS: dict[str, tuple[Metric, int]] = {
    "psnr of slices": (_psnr_slices, 1),
    "mae of slices": (_mae_slices, 1),
    "mse of slices": (_mse_slices, 1),
    "global ssim of slices": (_ssim_global_slices, 1),
    "gaussian ssim of slices": (_ssim_gaussian_slices, 1),
    "uniform ssim of slices": (_ssim_uniform_slices, 1),
    "psnr of voxels": (_psnr_voxels, 1),
    "mae of voxels": (_mae_voxels, 1),
    "nmse of the volume": (_nmse_volume, 1),
    "uniform ssim of the volume": (_ssim_uniform_volume, 1),
    "gaussian ssim of the volume": (_ssim_gaussian_volume, 1),
    "gaussian ssim of the zeroed volume": (_ssim_gaussian_zeroed, 1),
    "gaussian ssim of axial windows": (_ssim_gaussian_region, 1),
}
