"""Images as patches and back: space-to-depth, or the orthonormal Haar transform."""

import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array

STEMS = ("space_to_depth", "haar")


def haar_matrix(patch: int) -> np.ndarray:
    """The orthonormal Haar basis of patch x patch images, [patch^2, patch^2]."""
    rows = np.eye(1)
    while len(rows) < patch:
        averages = np.kron(rows, [1, 1])
        details = np.kron(np.eye(len(rows)), [1, -1])
        rows = np.concatenate([averages, details]) / np.sqrt(2)
    return np.kron(rows, rows)


def to_patches(images: Array, patch: int, stem: str) -> Array:
    """[B, H, W, C] -> [B, H/p, W/p, C p^2], an orthonormal map of each patch."""
    b, h, w, c = images.shape
    grid = images.reshape(b, h // patch, patch, w // patch, patch, c)
    grid = grid.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // patch, w // patch, c, -1)
    if stem == "haar":
        grid = grid @ jnp.asarray(haar_matrix(patch).T, grid.dtype)
    return grid.reshape(b, h // patch, w // patch, -1)


def from_patches(features: Array, patch: int, stem: str) -> Array:
    """[B, h, w, C p^2] -> [B, h p, w p, C], the inverse of `to_patches`."""
    b, h, w, _ = features.shape
    grid = features.reshape(b, h, w, -1, patch * patch)
    if stem == "haar":
        grid = grid @ jnp.asarray(haar_matrix(patch), grid.dtype)
    grid = grid.reshape(b, h, w, -1, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return grid.reshape(b, h * patch, w * patch, -1)


def split_patches(images: Array, patches: Array) -> Array:
    """[B, H, W, C] as [B, h, p, w, q, C]: the pixels of each of [B, h, w] patches."""
    (b, h, w, _), (_, tall, wide, c) = patches.shape, images.shape
    return images.reshape(b, h, tall // h, w, wide // w, c)
