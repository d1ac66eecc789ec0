"""Intensities divided by a scale of their volume, and multiplied back.

0 is the background and stays 0; most tissue lies around 1/2. Negative values are data.
The median, and not a high percentile: how much of a tumour takes up gadolinium, or how
large its oedema is, must not decide how bright healthy tissue appears. It is taken of
magnitudes, so that z-scored volumes have a scale too.
"""

import numpy as np

TISSUE = 0.5  # what the median becomes


def fit_scale(volume: np.ndarray) -> float:
    """Twice the median magnitude of the voxels of `volume` that are not exactly 0.

    Raises:
        ValueError: there is no such voxel, or none is positive.
    """
    values = volume[volume != 0]
    if values.size == 0:
        raise ValueError("every voxel is 0, so there is no intensity to scale by")
    if values.max() < 0:
        raise ValueError(
            f"every voxel that is not 0 is negative, at most {values.max():g}: tissue "
            "must be brighter than the background, which is 0"
        )
    return float(np.median(np.abs(values))) / TISSUE


def normalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in units of `scale`, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) / np.float32(scale)


def denormalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in its own units again, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) * np.float32(scale)
