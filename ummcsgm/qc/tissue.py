"""Volumes made comparable: coarse, and free of the scanner's slow shading.

What two contrasts of one brain have in common shows at 2.5 mm; there a subject's four
volumes are searched for shifts and swaps in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FINE, COARSE = 2.5, 6.5  # mm: what voxels are averaged to, and the largest of use
SHADING = 20.0  # mm: what varies more slowly is the coil and not the brain
FEWEST = 1500  # voxels with which a statistic means something
WHOLE = 0.99  # share of the brain in an averaged voxel that belongs to it


@dataclass(frozen=True)
class Tissue:
    """How far each voxel is above the mean around it, as a part of that mean."""

    values: np.ndarray  # [Z, Y, X] float32, 0 outside the brain
    brain: np.ndarray  # [Z, Y, X] bool
    spacing: np.ndarray  # dz, dy, dx in mm


def flattened(volume: np.ndarray, brain: np.ndarray, spacing: tuple) -> Tissue | None:
    """The tissue of `volume` [Z, Y, X] in `brain` [Z, Y, X], about 2.5 mm a voxel.

    None where the voxels are too large, or the brain in them too small, to compare.
    """
    parts = tuple(max(1, round(FINE / size)) for size in spacing)
    edges = np.array(spacing) * parts
    inside = _blocks(brain.astype(np.float32), parts) > WHOLE
    if edges.max() > COARSE or ndimage.binary_erosion(inside).sum() < FEWEST:
        return None
    mean = _blocks(volume, parts)
    lift = min(0.0, float(np.percentile(mean[inside], 1)))  # of z-scored volumes
    mean = np.where(inside, mean - lift, 0).astype(np.float32)
    around = _smooth(mean, SHADING / edges) / np.maximum(
        _smooth(inside.astype(np.float32), SHADING / edges), 1e-3
    )
    least = 1e-6 * float(np.abs(mean).max()) + 1e-30
    values = np.where(inside, mean / np.maximum(around, least) - 1, 0)
    return Tissue(values.astype(np.float32), inside, edges)


def _smooth(volume: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(volume, sd, truncate=2.5, mode="constant")


def _blocks(volume: np.ndarray, parts: tuple[int, ...]) -> np.ndarray:
    """The means of blocks of `parts` voxels; what fills none at the end is left out."""
    for axis, part in enumerate(parts):
        lines = np.moveaxis(volume, axis, 0)
        lines = lines[: len(lines) // part * part]
        total = sum(lines[k::part] for k in range(part)) / np.float32(part)
        volume = np.moveaxis(total, 0, axis)
    return volume
