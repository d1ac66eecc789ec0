"""Intensities divided by a scale of their volume, and multiplied back.

0 is the background and stays 0; most tissue lies around 1/2. Negative values are data.
The median, and not a high percentile: how much of a tumour takes up gadolinium, or how
large its oedema is, must not decide how bright healthy tissue appears.
"""

import numpy as np

TISSUE = 0.5  # what the median becomes


def fit_scale(volume: np.ndarray) -> float:
    """Twice the median of the voxels of `volume` that are not exactly 0.

    Raises:
        ValueError: there is no such voxel, or the median is not positive.
    """
    values = volume[volume != 0]
    if values.size == 0:
        raise ValueError("every voxel is 0, so there is no intensity to scale by")
    median = float(np.median(values))
    if median <= 0:
        raise ValueError(
            f"the median of the voxels that are not 0 is {median:g}, wanted above 0: "
            "tissue must be brighter than the background, which is 0"
        )
    return median / TISSUE


def normalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in units of `scale`, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) / np.float32(scale)


def denormalise(volume: np.ndarray, scale: float) -> np.ndarray:
    """`volume` in its own units again, float32; 0 stays 0."""
    return np.asarray(volume, np.float32) * np.float32(scale)
