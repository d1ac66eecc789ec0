"""What can be wrong with one volume: each check is a sentence or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ummcsgm.data.nifti import Geometry, spacing

LARGEST = 2300.0  # ml: no brain is larger, a head is
FRAME, FULL = 1800.0, 0.85  # ml of a frame, and its share, that no brain fills
CONSTANT = 0.5  # share of the frame's faces that has one value in a background
NEGATIVE = 0.1  # share of the brain; filters ring around 0, in hardly any of it
ONE = 1.001  # the end of a scale of -1 or 0 to 1, rounding included
BYTE = 255.0  # the end of the other usual scale
SATURATED = 0.005  # share of the brain that is exactly as bright as its maximum
THICK = 0.1  # of the largest slice of the brain: one that must not be empty
TILT, STRETCH = 15.0, 3.0  # degrees; longest edge of a voxel by the shortest
ADVICE = "intensities are scaled once more here; give the originals if you can"
WORDS = {  # in what reading a file says of it, and the code of that
    "there is no such file": "unreadable",
    "volumes, an array of": "four_d",
    "NaN or infinite": "not_finite",
    "is empty": "empty",
    "everywhere": "constant",
    "does not place it": "unplaced",
    "wanted a 4-D one": "four_d",
    "a 3-D volume": "not_3d",
    "real numbers": "not_real",
}
REMEDIES = {
    "unreadable": "copy or convert it again",
    "four_d": "give each modality the one volume that is meant",
    "not_finite": "find the step of the preprocessing that made them",
    "empty": "replace or remove it",
    "constant": "replace or remove it",
    "unplaced": "convert it again with its sform or qform",
    "not_3d": "convert it to one 3-D volume",
    "not_real": "convert it to integers or floats",
}


@dataclass(frozen=True)
class Symptom:
    """Something wrong; `what` goes on after the name of the file or of the subject."""

    severity: str
    code: str
    what: str


def of_reading(message: str) -> tuple[str, str]:
    """The code of what an InputError says of a file, and its sentence with a remedy."""
    code = next((code for words, code in WORDS.items() if words in message), None)
    code = "unreadable" if code is None else code
    return code, f"{message}; {REMEDIES[code]}"


def foreground(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """Where `volume` [Z, Y, X] is not background, and the value of the background.

    The background is 0, or what most of the frame's faces are.
    """
    faces = [np.take(volume, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    most = counts.argmax()
    common = counts[most] > CONSTANT * counts.sum()
    value = float(values[most]) if common else 0.0
    return volume != np.float32(value), value


def of_volume(
    volume: np.ndarray, brain: np.ndarray, background: float, geometry: Geometry
) -> Iterator[Symptom]:
    """What is wrong with the intensities of `volume`, and with where it is not 0."""
    values = volume[brain]
    low, high = (float(end) for end in (values.min(), values.max()))
    if low == high:
        what = f"is {low:g} in all of the brain: it is a mask and no image; replace it"
        yield Symptom("stop", "constant", what)
        return
    if background != 0:
        what = (
            f"has a background of {background:.4g}, not 0: set it to 0, or name a "
            "brain mask in config.data.mask"
        )
        yield Symptom("stop", "background", what)
    checks = (
        _bare_skull(brain, float(np.prod(spacing(geometry))) / 1000),
        _scaled(volume, values, low, high),
        _eight_bits(low, high, geometry.header.get_data_dtype()),
        _saturated(values, high),
    )
    yield from filter(None, checks)


def of_grid(geometry: Geometry) -> Iterator[Symptom]:
    """What is unusual about how the voxels lie in space."""
    axes = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0)
    cosines = np.abs(axes).max(axis=0).clip(0, 1)
    tilt = float(np.rad2deg(np.arccos(cosines.min())))
    if tilt > TILT:
        what = (
            f"has a grid that is turned by {tilt:.0f} degrees, so that its slices are "
            "not axial: resample it to an upright grid"
        )
        yield Symptom("warn", "oblique", what)
    edges = spacing(geometry)
    if max(edges) > STRETCH * min(edges):
        shown = " x ".join(f"{edge:.3g}" for edge in edges[::-1])
        what = (
            f"has voxels of {shown} mm, {max(edges) / min(edges):.1f} times as long as "
            "wide: slices will not agree with one another; resample, or expect it"
        )
        yield Symptom("warn", "anisotropic", what)


def empty_slices(brain: np.ndarray, area: np.ndarray) -> Symptom | None:
    """Slices [Z] that are empty in this volume amid the brain of the subject.

    `area` [Z] counts the voxels of the brain in any of its modalities.
    """
    thick = np.flatnonzero(area >= THICK * area.max())
    amid = np.arange(thick[0], thick[-1] + 1)
    empty = amid[~brain.any(axis=(1, 2))[amid]]
    if not empty.size:
        return None
    what = (
        f"{empty.size} of the {amid.size} axial slices amid the brain are empty, the "
        f"first at z = {empty[0]} (from 0, upwards): replace the file, or crop the "
        "subject to what was scanned"
    )
    return Symptom("warn", "empty_slices", what)


def _bare_skull(brain: np.ndarray, voxel: float) -> Symptom | None:
    """More is not 0 than a brain; `voxel` in ml."""
    size, frame = np.count_nonzero(brain) * voxel, brain.size * voxel
    share = np.count_nonzero(brain) / brain.size
    if size <= LARGEST and not (share > FULL and frame > FRAME):
        return None
    what = (
        f"is not skull-stripped: {size:.0f} ml are not 0, {share:.0%} of the frame, "
        "and no brain is so large; strip it, or name a brain mask in config.data.mask"
    )
    return Symptom("stop", "not_stripped", what)


def _eight_bits(low: float, high: float, dtype: np.dtype) -> Symptom | None:
    """The intensities are those of a picture: bytes, or scaled to what bytes hold."""
    if high <= ONE or not (dtype == np.uint8 or (low >= 0 and high == BYTE)):
        return None
    kind = "is stored in 8 bits" if dtype == np.uint8 else "is scaled to 0 ... 255"
    what = f"{kind}, its brain {low:.3g} ... {high:.3g}: it is a picture; {ADVICE}"
    return Symptom("warn", "normalised", what)


def _scaled(volume: np.ndarray, values: np.ndarray, low: float, high: float) -> Symptom | None:
    """The intensities are no longer those of a scanner."""
    if high <= 0:
        what = f"has no positive value in the brain, at most {high:g}: add an offset"
        return Symptom("stop", "negative", what)
    if high <= ONE and low >= -ONE:
        what = f"is normalised already, to {low:.3g} ... {high:.3g}; {ADVICE}"
        return Symptom("warn", "normalised", what)
    negative = np.count_nonzero(values < 0) / values.size
    whole = abs(volume.mean()) < 0.01 and abs(volume.std() - 1) < 0.01
    mean, sd = float(values.mean()), float(values.std())
    if negative > NEGATIVE or whole or (abs(mean) < 0.1 and abs(sd - 1) < 0.1):
        what = (
            f"looks z-scored: {negative:.0%} of the brain are negative, its mean is "
            f"{mean:.3g} and its sd {sd:.3g}; {ADVICE}"
        )
        return Symptom("warn", "normalised", what)
    return None


def _saturated(values: np.ndarray, high: float) -> Symptom | None:
    """Too many voxels have the largest value of all."""
    share = np.count_nonzero(values == high) / values.size
    if share <= SATURATED:
        return None
    what = (
        f"is saturated: {share:.1%} of the brain are exactly {high:g}, its maximum; "
        "use the file from before it was clipped"
    )
    return Symptom("warn", "saturated", what)
