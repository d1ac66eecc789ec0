"""The orthonormal Haar transform of images [B, H, W, C], level by level (Haar 1910).

White noise stays white: every coefficient of unit white noise has variance 1. A coarse
coefficient of level j is the sum over a block of 2^j x 2^j pixels, divided by 2^j.
"""

from typing import NamedTuple

import jax.numpy as jnp

from ummcsgm.types import Array


class HaarBands(NamedTuple):
    """`coarse` [B, H / 2^J, W / 2^J, C], and `details` [B, h, w, C, 3] from the coarsest
    level, on the grid of `coarse`, to the finest, on H/2 x W/2."""

    coarse: Array
    details: tuple[Array, ...]


def split_level(images: Array) -> tuple[Array, Array]:
    """(coarse [B, H/2, W/2, C], details [B, H/2, W/2, C, 3]) of one level."""
    b, h, w, c = images.shape
    quads = images.reshape(b, h // 2, 2, w // 2, 2, c)
    p, q, r, s = (quads[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    details = jnp.stack([p - q + r - s, p + q - r - s, p - q - r + s], axis=-1)
    return (p + q + r + s) / 2, details / 2


def merge_level(coarse: Array, details: Array) -> Array:
    """The images of one level, the inverse of `split_level`."""
    x, y, z = (details[..., i] for i in range(3))
    top = jnp.stack([coarse + x + y + z, coarse - x + y - z], axis=3)
    bottom = jnp.stack([coarse + x - y - z, coarse - x - y + z], axis=3)
    b, h, w, c = coarse.shape
    return jnp.stack([top, bottom], axis=2).reshape(b, 2 * h, 2 * w, c) / 2


def haar(images: Array, levels: int) -> HaarBands:
    """The bands of `levels` levels; H and W must be multiples of 2^levels."""
    details = []
    for _ in range(levels):
        images, finer = split_level(images)
        details.append(finer)
    return HaarBands(images, tuple(reversed(details)))


def inverse_haar(bands: HaarBands) -> Array:
    """The images [B, H, W, C] of the bands."""
    images = bands.coarse
    for details in bands.details:
        images = merge_level(images, details)
    return images
