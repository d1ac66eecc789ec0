"""Metrics of an estimate against the truth, and the mean and sd of values over subjects.

The first functions take images [..., H, W] and return a number for each image. The metrics that a
profile (`protocols.Profile`) may name take volumes [Z, Y, X], scaled alike, the data range `span`
and a region [Z, Y, X] bool, and return one number; they are in METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter

from ummcsgm.types import Array, InputError

WANG_SIGMA = 1.5  # pixels
WANG_RADIUS = 5  # pixels: the window is 11 x 11
CHUNK = 16  # slices that are filtered at once; bounds the memory


class NotMeasuredError(Exception):
    """The reason why a metric has no value for a subject."""


class NoErrorError(NotMeasuredError):
    """PSNR has no value: no slice has an error."""

    def __init__(self):
        super().__init__("truth and estimate agree in every slice")


def psnr(truth: Array, estimate: Array, peak: float) -> Array:
    """Peak signal-to-noise ratio in dB, 20 log10(peak / sqrt(MSE)), of each image.

    It is `inf`, and not capped, where an estimate has no error.
    """
    error = np.mean(np.square(_difference(truth, estimate)), axis=(-2, -1))
    with np.errstate(divide="ignore"):
        return 20 * np.log10(peak / np.sqrt(error))


def mae(truth: Array, estimate: Array) -> Array:
    """Mean absolute error of each image, in the images' units."""
    return np.mean(np.abs(_difference(truth, estimate)), axis=(-2, -1))


def ssim_global(truth: Array, estimate: Array, peak: float) -> Array:
    """Structural similarity of each image with the whole image as one window.

    Wang et al. 2004, eq. 13, with population statistics. The published Table 1 is
    within reach of this form only, not of the windowed one.
    """
    return similarity(_image_mean, truth, estimate, peak)[..., 0, 0]


def ssim_wang(truth: Array, estimate: Array, peak: float) -> Array:
    """Structural similarity of each image in 11 x 11 Gaussian windows, sigma 1.5.

    Wang et al. 2004, eq. 13, with population statistics; the mean over pixels whose
    window lies wholly inside the image.

    Raises:
        InputError: the images are smaller than the window.
    """
    size, shape = 2 * WANG_RADIUS + 1, np.shape(truth)
    if min(shape[-2:]) < size:
        raise InputError(
            f"ssim_wang needs images of at least {size} x {size} pixels, got "
            f"{shape[-2]} x {shape[-1]}."
        )
    values = similarity(_plane_mean, truth, estimate, peak)
    inside = slice(WANG_RADIUS, -WANG_RADIUS)
    return np.mean(values[..., inside, inside], axis=(-2, -1))


def similarity(
    window_mean: Callable[[Array], Array],
    truth: Array,
    estimate: Array,
    peak: float,
    unbiased: float = 1.0,
) -> Array:
    """Wang et al. 2004, eq. 13, at each pixel; `window_mean` averages over its window.

    `unbiased` multiplies population variances: n / (n - 1) makes them sample variances.
    """
    x, y = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_x, mean_y = window_mean(x), window_mean(y)
    variances = window_mean(x * x) - mean_x**2 + window_mean(y * y) - mean_y**2
    covariance = window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = 2 * unbiased * covariance + c2
    return luminance * contrast / (unbiased * variances + c2)


def group_rows(rows: Sequence[dict], names: Sequence[str]) -> dict[tuple, list[dict]]:
    """The rows by their values of the columns `names`, in the order of first appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def mean_and_sd(values: Sequence[float | None]) -> dict[str, float]:
    """`mean`, `sd` (of a sample) and number `subjects` of the values that are not None.

    NaN for the mean of no value and for the sd of fewer than two.
    """
    values = [value for value in values if value is not None]
    with np.errstate(invalid="ignore"):  # a value may be infinite
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    mean = float(np.mean(values)) if values else float("nan")
    return {"mean": mean, "sd": sd, "subjects": len(values)}


def _difference(truth: Array, estimate: Array) -> Array:
    return np.asarray(estimate, np.float64) - np.asarray(truth, np.float64)


def _image_mean(images: Array) -> Array:
    return np.mean(images, axis=(-2, -1), keepdims=True)


def _gaussian_mean(images: Array, axes: tuple[int, ...]) -> Array:
    for axis in axes:
        images = gaussian_filter1d(images, WANG_SIGMA, axis=axis, radius=WANG_RADIUS)
    return images


_plane_mean = partial(_gaussian_mean, axes=(-2, -1))


@dataclass(frozen=True)
class Window:
    """A window around each voxel: `mean` averages over it, `margins` is its half size.

    `unbiased` is 1 for the variances of a population, n / (n - 1) for a sample's.
    """

    mean: Callable[[Array], Array]
    margins: tuple[int, int, int]
    unbiased: float


GAUSSIAN = Window(_plane_mean, (0, WANG_RADIUS, WANG_RADIUS), 1.0)
GAUSSIAN_3D = Window(partial(_gaussian_mean, axes=(0, 1, 2)), (WANG_RADIUS,) * 3, 1.0)
UNIFORM = Window(partial(uniform_filter, size=(1, 7, 7)), (0, 3, 3), 49 / 48)
UNIFORM_3D = Window(partial(uniform_filter, size=(7, 7, 7)), (3, 3, 3), 343 / 342)

Metric = Callable[[Array, Array, float, Array], float]


def _psnr_slices(truth: Array, estimate: Array, span: float, region: Array) -> float:
    """Mean over the slices with an error: the others have no finite PSNR."""
    values = psnr(truth, estimate, span)
    values = values[~np.isposinf(values)]
    if not values.size:
        raise NoErrorError
    return np.mean(values)


def _mae_slices(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return np.mean(mae(truth, estimate))


def _mse_slices(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return np.mean(np.square(_difference(truth, estimate)))


def _ssim_global_slices(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return np.mean(ssim_global(truth, estimate, span))


def _ssim_wang_slices(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return np.mean(ssim_wang(truth, estimate, span))


def _psnr_voxels(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return psnr(truth[region][None], estimate[region][None], span)


def _mae_voxels(truth: Array, estimate: Array, span: float, region: Array) -> float:
    return mae(truth[region][None], estimate[region][None])


def _nmse_volume(truth: Array, estimate: Array, span: float, region: Array) -> float:
    truth = truth.astype(np.float64)
    return np.sum(np.square(estimate - truth)) / np.sum(np.square(truth))


def _ssim_in_windows(
    window: Window, truth: Array, estimate: Array, span: float, region: Array
) -> float:
    """SSIM, the mean over the region's voxels whose window lies wholly inside."""
    inside = region & _whole_window(region.shape, window.margins)
    if not inside.any():
        raise InputError("no voxel of the region has its whole window inside the volume.")
    total, margin = 0.0, window.margins[0]
    for first in range(0, len(inside), CHUNK):
        chunk = inside[first : first + CHUNK]
        if chunk.any():
            start = max(first - margin, 0)
            near = slice(start, first + CHUNK + margin)
            values = similarity(window.mean, truth[near], estimate[near], span, window.unbiased)
            total += values[first - start :][: len(chunk)][chunk].sum()
    return total / np.count_nonzero(inside)


def _ssim_zeroed(truth: Array, estimate: Array, span: float, region: Array) -> float:
    """SSIM in 3-D Gaussian windows of both volumes set to 0 outside the region; the
    data range is the larger one of what is left of each."""
    truth, estimate = np.where(region, truth, 0), np.where(region, estimate, 0)
    span = float(max(np.ptp(truth), np.ptp(estimate)))
    if not span > 0:
        raise InputError("all values are equal, so that SSIM has no data range.")
    return _ssim_in_windows(GAUSSIAN_3D, truth, estimate, span, np.ones_like(region))


def _whole_window(shape: tuple[int, ...], margins: tuple[int, ...]) -> Array:
    """[Z, Y, X] True except within `margins` voxels of either end of each axis."""
    pairs = list(zip(shape, margins, strict=True))
    if any(size <= 2 * margin for size, margin in pairs):
        voxels = " x ".join(map(str, shape))
        window = " x ".join(str(2 * margin + 1) for margin in margins)
        raise InputError(f"{voxels} voxels are fewer than an SSIM window of {window}.")
    inside = np.zeros(shape, bool)
    inside[tuple(slice(margin, size - margin) for size, margin in pairs)] = True
    return inside


# Each with its version: raise it when the function gives other numbers, so that the
# hashes of the profiles that name it change.
METRICS: dict[str, tuple[Metric, int]] = {
    "psnr of slices": (_psnr_slices, 2),
    "mae of slices": (_mae_slices, 1),
    "mse of slices": (_mse_slices, 1),
    "global ssim of slices": (_ssim_global_slices, 1),
    "gaussian ssim of slices": (_ssim_wang_slices, 1),
    "gaussian ssim in the plane": (partial(_ssim_in_windows, GAUSSIAN), 1),
    "uniform ssim in the plane": (partial(_ssim_in_windows, UNIFORM), 1),
    "psnr of voxels": (_psnr_voxels, 1),
    "mae of voxels": (_mae_voxels, 1),
    "nmse of the volume": (_nmse_volume, 1),
    "uniform ssim": (partial(_ssim_in_windows, UNIFORM_3D), 1),
    "gaussian ssim": (partial(_ssim_in_windows, GAUSSIAN_3D), 1),
    "gaussian ssim of the zeroed volume": (_ssim_zeroed, 1),
}
