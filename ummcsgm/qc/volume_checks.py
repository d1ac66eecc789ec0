"""The checks of one volume: intensities, brain and grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ummcsgm.data.nifti import Geometry, spacing
from ummcsgm.qc.findings import Problem

MAX_BRAIN = 2300.0  # ml: no brain is larger, a head is
MIN_FRAME, FULL_SHARE = 1800.0, 0.85  # ml of a frame, and its share, that no brain fills
MAX_NEGATIVE = 0.1  # share of the brain; filters ring around 0, in hardly any of it
UNIT_END = 1.001  # the end of a scale of -1 or 0 to 1, rounding included
BYTE_END = 255.0  # the end of the other usual scale
MAX_SATURATED = 0.005  # share of the brain that is exactly as bright as its maximum
THICK_SHARE = 0.1  # of the largest slice of the brain: one that must not be empty
MAX_TILT, MAX_STRETCH = 15.0, 3.0  # degrees; longest edge of a voxel by the shortest
ADVICE = "intensities are scaled once more here; give the originals if you can"


def check_volume(
    volume: np.ndarray, brain: np.ndarray, background: float, geometry: Geometry
) -> Iterator[Problem]:
    """The problems of the intensities of `volume`, and of the region where it is not 0."""
    values = volume[brain]
    low, high = (float(end) for end in (values.min(), values.max()))
    if low == high:
        text = f"is {low:g} in all of the brain: it is a mask and no image; replace it"
        yield Problem("stop", "constant", text)
        return
    if background != 0:
        text = (
            f"has a background of {background:.4g}, not 0: set it to 0, or name a "
            "brain mask in config.data.mask"
        )
        yield Problem("stop", "background", text)
    checks = (
        _check_skull(brain, float(np.prod(spacing(geometry))) / 1000),
        _check_scale(volume, values, low, high),
        _check_eight_bits(low, high, geometry.header.get_data_dtype()),
        _check_saturation(values, high),
    )
    yield from filter(None, checks)


def check_grid(geometry: Geometry) -> Iterator[Problem]:
    """The problems of how the voxels lie in space."""
    axes = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0)
    cosines = np.abs(axes).max(axis=0).clip(0, 1)
    tilt = float(np.rad2deg(np.arccos(cosines.min())))
    if tilt > MAX_TILT:
        text = (
            f"has a grid that is turned by {tilt:.0f} degrees, so that its slices are "
            "not axial: resample it to an upright grid"
        )
        yield Problem("warn", "oblique", text)
    edges = spacing(geometry)
    if max(edges) > MAX_STRETCH * min(edges):
        shown = " x ".join(f"{edge:.3g}" for edge in edges[::-1])
        text = (
            f"has voxels of {shown} mm, {max(edges) / min(edges):.1f} times as long as "
            "wide: slices will not agree with one another; resample, or expect it"
        )
        yield Problem("warn", "anisotropic", text)


def check_empty_slices(brain: np.ndarray, area: np.ndarray) -> Problem | None:
    """The problem of slices [Z] that are empty in this volume amid the subject's brain.

    `area` [Z] counts the voxels of the brain in any of its modalities.
    """
    thick = np.flatnonzero(area >= THICK_SHARE * area.max())
    amid = np.arange(thick[0], thick[-1] + 1)
    empty = amid[~brain.any(axis=(1, 2))[amid]]
    if not empty.size:
        return None
    text = (
        f"{empty.size} of the {amid.size} axial slices amid the brain are empty, the "
        f"first at z = {empty[0]} (from 0, upwards): replace the file, or crop the "
        "subject to what was scanned"
    )
    return Problem("warn", "empty_slices", text)


def _check_skull(brain: np.ndarray, voxel: float) -> Problem | None:
    """The problem of a volume that is not 0 in more than a brain; `voxel` in ml."""
    size, frame = np.count_nonzero(brain) * voxel, brain.size * voxel
    share = np.count_nonzero(brain) / brain.size
    if size <= MAX_BRAIN and not (share > FULL_SHARE and frame > MIN_FRAME):
        return None
    text = (
        f"is not skull-stripped: {size:.0f} ml are not 0, {share:.0%} of the frame, "
        "and no brain is so large; strip it, or name a brain mask in config.data.mask"
    )
    return Problem("stop", "not_stripped", text)


def _check_eight_bits(low: float, high: float, dtype: np.dtype) -> Problem | None:
    """The problem of a picture: bytes, or intensities scaled to what bytes hold."""
    if high <= UNIT_END or not (dtype == np.uint8 or (low >= 0 and high == BYTE_END)):
        return None
    kind = "is stored in 8 bits" if dtype == np.uint8 else "is scaled to 0 ... 255"
    text = f"{kind}, its brain {low:.3g} ... {high:.3g}: it is a picture; {ADVICE}"
    return Problem("warn", "normalised", text)


def _check_scale(volume: np.ndarray, values: np.ndarray, low: float, high: float) -> Problem | None:
    """The problem of intensities that are not those of a scanner."""
    if high <= 0:
        text = f"has no positive value in the brain, at most {high:g}: add an offset"
        return Problem("stop", "negative", text)
    if high <= UNIT_END and low >= -UNIT_END:
        text = f"is normalised already, to {low:.3g} ... {high:.3g}; {ADVICE}"
        return Problem("warn", "normalised", text)
    negative = np.count_nonzero(values < 0) / values.size
    whole = abs(volume.mean()) < 0.01 and abs(volume.std() - 1) < 0.01
    mean, sd = float(values.mean()), float(values.std())
    if negative > MAX_NEGATIVE or whole or (abs(mean) < 0.1 and abs(sd - 1) < 0.1):
        text = (
            f"looks z-scored: {negative:.0%} of the brain are negative, its mean is "
            f"{mean:.3g} and its sd {sd:.3g}; {ADVICE}"
        )
        return Problem("warn", "normalised", text)
    return None


def _check_saturation(values: np.ndarray, high: float) -> Problem | None:
    """The problem of too many voxels with the largest value."""
    share = np.count_nonzero(values == high) / values.size
    if share <= MAX_SATURATED:
        return None
    text = (
        f"is saturated: {share:.1%} of the brain are exactly {high:g}, its maximum; "
        "use the file from before it was clipped"
    )
    return Problem("warn", "saturated", text)
