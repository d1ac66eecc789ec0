"""How far an estimate is from the truth: one number an image, and Table 1's profile.

The same prediction scores 7.8 dB and 0.42 SSIM apart under protocols in use, so that a
number means something only beside the name of the `Profile` that produced it. Those of
other protocols are in `profiles`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from ummcsgm.types import Array, InputError

WANG_SIGMA = 1.5  # pixels
WANG_RADIUS = 5  # pixels: the window is 11 x 11


def psnr(truth: Array, estimate: Array, peak: float) -> Array:
    """Peak signal-to-noise ratio in dB of images [..., H, W], one number an image.

    20 log10(peak / sqrt(MSE)). A perfect estimate gets `inf`. It is not capped and not
    left out, so that a mean over images with a perfect one among them is `inf` too: no
    choice of cap can pass for a measured number.
    """
    error = np.mean(np.square(_difference(truth, estimate)), axis=(-2, -1))
    with np.errstate(divide="ignore"):
        return 20 * np.log10(peak / np.sqrt(error))


def mae(truth: Array, estimate: Array) -> Array:
    """Mean absolute error of images [..., H, W] in their units, one number an image."""
    return np.mean(np.abs(_difference(truth, estimate)), axis=(-2, -1))


def ssim_global(truth: Array, estimate: Array, peak: float) -> Array:
    """Structural similarity with the whole image as the one window, a fraction [...].

    Wang et al. 2004, eq. 13, with population statistics of each image [..., H, W].
    The published Table 1 is within reach of this form only, not of the windowed one.
    """
    return similarity(_image_mean, truth, estimate, peak)[..., 0, 0]


def ssim_wang(truth: Array, estimate: Array, peak: float) -> Array:
    """Structural similarity of Wang et al. 2004, a fraction [...] an image [..., H, W].

    Eq. 13 in an 11 x 11 Gaussian window of sigma 1.5 with population statistics,
    averaged over the pixels whose window lies wholly inside the image.

    Raises:
        InputError: the images are smaller than the window.
    """
    size, shape = 2 * WANG_RADIUS + 1, np.shape(truth)
    if min(shape[-2:]) < size:
        raise InputError(
            f"ssim_wang needs images of at least {size} x {size} pixels, and these are "
            f"{shape[-2]} x {shape[-1]}."
        )
    values = similarity(window_mean, truth, estimate, peak)
    inside = slice(WANG_RADIUS, -WANG_RADIUS)
    return np.mean(values[..., inside, inside], axis=(-2, -1))


def _difference(truth: Array, estimate: Array) -> Array:
    return np.asarray(estimate, np.float64) - np.asarray(truth, np.float64)


def _image_mean(images: Array) -> Array:
    return np.mean(images, axis=(-2, -1), keepdims=True)


def window_mean(images: Array) -> Array:
    """Each pixel's mean over Wang's window around it, of images [..., H, W]."""
    for axis in (-2, -1):
        images = gaussian_filter1d(images, WANG_SIGMA, axis=axis, radius=WANG_RADIUS)
    return images


def similarity(
    mean: Callable[[Array], Array],
    truth: Array,
    estimate: Array,
    peak: float,
    unbiased: float = 1.0,
) -> Array:
    """Wang et al. 2004, eq. 13, with `mean` for the average over a window.

    `unbiased` multiplies population variances: n / (n - 1) makes them those of samples.
    """
    x, y = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = 2 * unbiased * covariance + c2
    return luminance * contrast / (unbiased * variances + c2)


@dataclass(frozen=True)
class Profile:
    """A protocol by name: which slices are scored, and in which grey levels.

    Axial slices `first` to `last` (both scored, counted from the most inferior) of
    volumes `depth` slices deep; of other volumes the slices where the brain covers more
    than `brain_fraction` of the frame. Slices without any brain are never scored. Grey
    levels run from 0 to `peak`, which is the truth volume's own `percentile` over its
    brain voxels.
    """

    name: str
    depth: int
    first: int
    last: int
    brain_fraction: float
    percentile: float
    peak: float


TABLE1 = Profile(
    name="umm-csgm-table1",
    depth=155,
    first=50,
    last=109,
    brain_fraction=0.2,
    percentile=99.9,
    peak=255.0,
)


def scored_slices(brain: Array, profile: Profile) -> Array:
    """The z of the slices of `brain` [Z, Y, X] bool that `profile` scores, ascending.

    Raises:
        InputError: there is no slice to score.
    """
    area = np.mean(brain, axis=(1, 2))
    if len(brain) == profile.depth:
        z = np.arange(profile.depth)
        scored = (profile.first <= z) & (z <= profile.last) & (area > 0)
        wanted = f"some brain in slices {profile.first} to {profile.last}"
    else:
        scored = area > profile.brain_fraction
        wanted = f"a slice with brain on more than {profile.brain_fraction:.0%} of it"
    if not scored.any():
        raise InputError(
            f"no slice to score: profile {profile.name} wants {wanted}, and in this "
            f"volume of {len(brain)} slices the brain covers at most "
            f"{area.max(initial=0):.1%} of a slice."
        )
    return np.flatnonzero(scored)


def score(
    truth: Array, estimate: Array, brain: Array, slices: Array, profile: Profile
) -> dict[str, float]:
    """The subject's mean over `slices` of each metric, by the metric's name.

    `truth` and `brain` are [Z, Y, X], `estimate` [S, Y, X] has the given slices only,
    in the truth's units. The frame is not cropped: background counts, and the estimate
    is set to 0 there. Both are scaled by the truth volume's percentile and clipped to
    [0, peak]. `psnr` is in dB, both SSIMs are fractions, `mae` is in grey levels. The
    mean of `psnr` is over the slices' decibels, and `inf` if any slice is perfect.

    Raises:
        InputError: no slice is given, the shapes disagree, or the truth is all dark.
    """
    truth, brain = np.asarray(truth), np.asarray(brain, bool)
    _check_volumes(truth, estimate, brain, slices)
    to_grey = grey_scale(truth, brain, profile)
    wanted = np.clip(truth[slices] * to_grey, 0, profile.peak)
    given = np.where(brain[slices], estimate, 0)
    given = np.clip(given * to_grey, 0, profile.peak)
    scores = {
        "psnr": psnr(wanted, given, profile.peak),
        "ssim_global": ssim_global(wanted, given, profile.peak),
        "ssim_wang": ssim_wang(wanted, given, profile.peak),
        "mae": mae(wanted, given),
    }
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _check_volumes(truth: Array, estimate: Array, brain: Array, slices: Array) -> None:
    if len(slices) == 0:
        raise InputError("no slice to score: the list of slices is empty.")
    expected = (len(slices), *truth.shape[1:])
    if brain.shape != truth.shape or np.shape(estimate) != expected:
        raise InputError(
            f"a truth of {truth.shape} scored on {len(slices)} slices wants a brain of "
            f"{truth.shape} and an estimate of {expected}, and these are "
            f"{brain.shape} and {np.shape(estimate)}."
        )


def grey_scale(truth: Array, brain: Array, profile: Profile) -> float:
    """What the truth's units are multiplied with to become grey levels.

    Raises:
        InputError: the truth volume's percentile over its brain is not positive.
    """
    inside = truth[brain]
    bright = np.percentile(inside, profile.percentile) if inside.size else 0.0
    if not bright > 0:
        raise InputError(
            f"the truth's {profile.percentile} percentile over the brain is "
            f"{bright:g}, and profile {profile.name} wants it positive."
        )
    return float(profile.peak / bright)
