"""Intensities divided by a scale of their volume, and multiplied back.

0 is the background and stays 0; about 1 is bright tissue. Negative values are data.
"""

import numpy as np

PERCENTILE = 99.5  # of the voxels that are not background


def fit_scale(volume: np.ndarray) -> float:
    """The 99.5th percentile of the voxels of `volume` that are not exactly 0.

    Raises:
        ValueError: there is no such voxel, or the percentile is not positive.
    """
    values = volume[volume != 0]
    if values.size == 0:
        raise ValueError("every voxel is 0, so there is no intensity to scale by")
    scale = float(np.percentile(values, PERCENTILE))
    if scale <= 0:
        raise ValueError(
            f"the {PERCENTILE} percentile of the voxels that are not 0 is {scale:g}, "
            "wanted above 0: tissue must be brighter than the background, which is 0"
        )
    return scale


def normalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in units of `scale`, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) / np.float32(scale)


def denormalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in its own units again, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) * np.float32(scale)
