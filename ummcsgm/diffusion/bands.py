"""Scales of a residual: the power of its bands, and its largest deviation over a block.

What b does not fix of an image is correlated over long distances (is this lesion bright?), so that
the standard deviation of a coefficient grows with its scale. An orthonormal transform keeps white
noise white, so at one noise level each band has a different signal to noise ratio.

The bands of an image [H, W, M] are the coarse coefficients of J Haar levels and the details of each
level, the coarsest first: J + 1 in all.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images
from ummcsgm.utils.haar import HaarBands


def band_factors(values: Array) -> HaarBands:
    """`values` [B, bands, M] shaped so that they broadcast over coefficients."""
    coarse, *details = jnp.moveaxis(values, 1, 0)[:, :, None, None]
    return HaarBands(coarse, tuple(level[..., None] for level in details))


def map_bands(function, *bands: HaarBands) -> HaarBands:
    """`function` of each level's coefficients."""
    return jax.tree.map(function, *bands)


def band_means(bands: HaarBands) -> Array:
    """[B, bands, M] the mean over the coefficients of each band."""
    coarse = bands.coarse.mean(axis=(1, 2))
    return jnp.stack([coarse, *(level.mean(axis=(1, 2, 4)) for level in bands.details)], axis=1)


def band_sizes(levels: int) -> np.ndarray:
    """[bands] the coefficients of each band, for one coarse coefficient."""
    return np.array([1, *(3 * 4**level for level in range(levels))])


def largest_deviation(residual: Images) -> Array:
    """[B, M] the square of the largest deviation over a block, in units of white noise of std 1.

    Of the blocks of 1, 2, 4, ... pixels a side that fit into the image, and of the whole image: the
    sum of the residual over the n pixels of a block, divided by sqrt(n). A lesion of n pixels that
    may be brighter by A has A sqrt(n): x_t shows whether it is once the noise level is not large
    against that.
    """
    side, blocks = 1, residual
    pixels = residual.shape[1] * residual.shape[2]
    whole = jnp.square(residual.sum(axis=(1, 2))) / pixels
    largest = jnp.maximum(jnp.square(residual).max(axis=(1, 2)), whole)
    while 2 * side <= min(residual.shape[1:3]):
        side *= 2
        rows, columns = (size // 2 * 2 for size in blocks.shape[1:3])
        blocks = blocks[:, :rows, :columns]
        blocks = blocks[:, ::2] + blocks[:, 1::2]
        blocks = blocks[:, :, ::2] + blocks[:, :, 1::2]
        largest = jnp.maximum(largest, jnp.square(blocks / side).max(axis=(1, 2)))
    return largest
