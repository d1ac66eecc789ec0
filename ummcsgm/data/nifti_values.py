"""Integers in a file that stand for real numbers: level x slope + intercept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ummcsgm.types import InputError

ROUNDING = 1e-3  # of the largest magnitude: what an integer type may round away


def physical(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """The float32 values that `stored` stands for."""
    with np.errstate(all="ignore"):  # what becomes infinite is refused where it is read
        if (slope, inter) == (1.0, 0.0):
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * slope + inter).astype(np.float32)


def check_finite(path: Path, volume: np.ndarray) -> None:
    """`volume` is finite. Raises InputError if it is not."""
    broken = volume.size - np.count_nonzero(np.isfinite(volume))
    if broken:
        raise InputError(
            f"{path}: {broken} of {volume.size} voxels are NaN or infinite, wanted none"
        )


def check_values(path: Path, volume: np.ndarray) -> None:
    """`volume` is finite and holds more than one value.

    Raises:
        InputError: it is not, or does not.
    """
    check_finite(path, volume)
    if volume.min() == volume.max():
        value = float(volume.flat[0])
        seen = "is empty: every voxel is 0" if value == 0 else f"is {value:g} everywhere"
        raise InputError(f"{path}: the volume {seen}, wanted an image")


def stored_as(
    dtype: np.dtype, scaling: tuple[float, float], volume: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """What to store for `volume` in `dtype`, with its slope and intercept.

    These are `scaling` where it holds every value within the range of the type, 0 as
    exactly 0 and the others but for rounding by 1/1000 of the largest magnitude, or as
    finely as a scaling can that spans all values; else they are such a scaling.
    """
    if dtype.kind == "f":
        return volume.astype(dtype), 1.0, 0.0
    new = _new_scaling(volume, dtype)
    stored = _levels(volume, dtype, *scaling)
    if stored is None or not _holds(physical(stored, *scaling), volume, new[0] / 2):
        stored, scaling = _levels(volume, dtype, *new), new
    return stored, *scaling


def _holds(again: np.ndarray, volume: np.ndarray, finest: float) -> bool:
    """Whether `again` is `volume`, but for rounding by 1/1000 or by `finest`."""
    rounded = max(ROUNDING * float(np.abs(volume).max()), finest)
    near = np.abs(again.astype(np.float64) - volume).max() <= rounded
    return np.array_equal(again, volume) or (near and not again[volume == 0].any())


def _levels(volume: np.ndarray, dtype: np.dtype, slope: float, inter: float) -> np.ndarray | None:
    """The integers nearest to `volume`; None where one is out of `dtype`'s range."""
    levels = np.rint((volume.astype(np.float64) - inter) / slope)
    limits = np.iinfo(dtype)
    inside = limits.min <= levels.min() and levels.max() < limits.max + 1.0
    return levels.astype(dtype) if inside else None


def _new_scaling(volume: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """A slope and an intercept by which `volume` fits `dtype` and 0 stays 0.

    The slope is a power of two: its multiples are then exact in the header's
    float32, so that level * slope + intercept is 0 and not nearly 0.
    """
    low, high = min(float(volume.min()), 0.0), max(float(volume.max()), 0.0)
    top = min(np.iinfo(dtype).max, 2**24)
    if dtype.kind == "i":
        return _power_of_two(max(high, -low) / top), 0.0
    slope = _power_of_two((high - low) / (top - 1))
    return slope, -slope * float(np.ceil(-low / slope))


def _power_of_two(value: float) -> float:
    """The least power of two, of those a float32 holds, not under `value`; 1 for 0."""
    return 2.0 ** max(float(np.ceil(np.log2(value))), -126.0) if value > 0 else 1.0
