"""What a metric profile may do to a truth and an estimate before it compares them.

Both are scaled, then the estimate's background is seen to; regions say where they are
compared. Each name in the tables at the foot stands for a function and its version,
which is to be raised whenever the function gives other numbers: hashes of profiles
depend on it. Volumes are [Z, Y, X].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class Scan:
    """A truth, an estimate of it, and where they are compared.

    `tumour` is None where there is no segmentation.
    """

    truth: Array
    estimate: Array
    brain: Array  # bool
    tumour: Array | None  # bool


class NotMeasuredError(Exception):
    """Why a metric has no value for a subject, in a word or a sentence."""


def _kept(wanted: Array, given: Array, brain: Array) -> tuple[Array, Array]:
    return wanted, given


def _outside_brain(wanted: Array, given: Array, brain: Array) -> tuple[Array, Array]:
    return wanted, np.where(brain, given, 0)


def _where_truth_is_0(wanted: Array, given: Array, brain: Array) -> tuple[Array, Array]:
    return wanted, np.where(wanted == 0, 0, given)


def _by_truth_percentile(
    scan: Scan, percentiles: tuple[float, ...], peak: float
) -> tuple[Array, Array]:
    """Both times what makes the truth's percentile over its brain the peak; clipped."""
    inside = scan.truth[scan.brain]
    bright = np.percentile(inside, percentiles[0]) if inside.size else 0.0
    if not bright > 0:
        raise InputError(
            f"the truth's {percentiles[0]} percentile over the brain is {bright:g}: "
            "there is nothing to scale by."
        )
    factor = float(peak / bright)
    wanted, given = scan.truth * factor, scan.estimate * factor
    return np.clip(wanted, 0, peak), np.clip(given, 0, peak)


def _by_own_slice_max(
    scan: Scan, percentiles: tuple[float, ...], peak: float
) -> tuple[Array, Array]:
    """Each slice of each over its own largest value; negative values are 0."""
    scaled = []
    for volume in (scan.truth, scan.estimate):
        bright = np.clip(volume, 0, None).astype(np.float64)
        top = bright.max(axis=(1, 2), keepdims=True)
        scaled.append(peak * bright / np.where(top > 0, top, 1))
    return tuple(scaled)


def _by_own_min_max(scan: Scan, percentiles: tuple[float, ...], peak: float) -> tuple[Array, Array]:
    """Each from its own least to its own largest value, as 0 to peak; negative values
    are 0 before."""
    wanted, given = (np.clip(own, 0, None) for own in (scan.truth, scan.estimate))
    return (
        _stretched(wanted, wanted.min(), wanted.max(), peak),
        _stretched(given, given.min(), given.max(), peak),
    )


def _by_truth_max_rounded(
    scan: Scan, percentiles: tuple[float, ...], peak: float
) -> tuple[Array, Array]:
    """Both from 0 to the truth's largest value, clipped, as whole levels."""
    top = scan.truth.max()
    return (
        np.rint(_stretched(scan.truth, 0, top, peak)),
        np.rint(_stretched(scan.estimate, 0, top, peak)),
    )


def _by_own_percentiles(
    scan: Scan, percentiles: tuple[float, ...], peak: float
) -> tuple[Array, Array]:
    """Each between its own percentiles over all voxels, the lower one at least 0."""
    scaled = []
    for volume in (scan.truth, scan.estimate):
        low, high = np.percentile(volume, percentiles)
        scaled.append(_stretched(volume, max(low, 0), high, peak))
    return tuple(scaled)


def _stretched(volume: Array, low: float, high: float, peak: float) -> Array:
    if not high > low:
        raise InputError(
            f"the values to scale between are {low:g} and {high:g}: there is nothing between them."
        )
    return (np.clip(volume, low, high).astype(np.float64) - low) / (high - low) * peak


def _frame(scan: Scan) -> Array:
    return np.ones(scan.brain.shape, bool)


def _brain(scan: Scan) -> Array:
    return scan.brain


def _tumour(scan: Scan) -> Array:
    if not _segmented(scan).any():
        raise NotMeasuredError("tumour-free")
    return scan.tumour


def _healthy(scan: Scan) -> Array:
    return scan.brain & ~_segmented(scan)


def _not_tumour(scan: Scan) -> Array:
    return ~_segmented(scan)


def _segmented(scan: Scan) -> Array:
    if scan.tumour is None:
        raise NotMeasuredError("no segmentation")
    return scan.tumour


Change = Callable[[Array, Array, Array], tuple[Array, Array]]
Scale = Callable[[Scan, tuple[float, ...], float], tuple[Array, Array]]
Place = Callable[[Scan], Array]

BACKGROUNDS: dict[str, tuple[Change, int]] = {
    "kept": (_kept, 1),
    "0 outside the brain": (_outside_brain, 1),
    "0 where the scaled truth is 0": (_where_truth_is_0, 1),
}
SCALINGS: dict[str, tuple[Scale, int]] = {
    "truth's percentile": (_by_truth_percentile, 1),
    "own slice maximum": (_by_own_slice_max, 1),
    "own minimum and maximum, negatives 0": (_by_own_min_max, 1),
    "truth's maximum, rounded": (_by_truth_max_rounded, 1),
    "own percentiles": (_by_own_percentiles, 1),
}
REGIONS: dict[str, tuple[Place, int]] = {
    "frame": (_frame, 1),
    "brain": (_brain, 1),
    "tumour": (_tumour, 1),
    "healthy": (_healthy, 1),
    "not tumour": (_not_tumour, 1),
}
