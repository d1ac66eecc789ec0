"""Noise that is correlated along z, for draws that are consistent from slice to slice.

The noise of each slice is N(0, I), so that the draw of each slice follows the same
posterior as with independent noise.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images, InputError, Keys

MAX_SPAN = 1024  # slices: a power of 2, more than a volume has
NEGLIGIBLE = 1e-8  # a correlation below float32's precision


def ar1_noise(keys: Keys, like: Images, *, slices: Array, rho: float) -> Images:
    """Standard normal noise [B, ...] with correlation rho^|dz| along z.

    Example b is slice `slices[b]` (int, from 0) of the noise volume of `keys[b]`, the key
    of (seed, subject, draw) and then the step, without the slice. Examples of one key are
    an AR(1) in z, each voxel by itself; those of different keys are independent. An
    example depends on its key and its z alone, so a volume may be computed in any
    microbatches. At rho = 0 slices are independent, at rho = 1 they are equal.

    The AR(1) is built by bisection: given the noise at two slices 2h apart, that of the
    slice between is normal with, r = rho^h,

        mean  r / (1 + r^2) (first + last),    variance  (1 - r^2) / (1 + r^2)

    and z is reached from the ends of its span in at most 12 steps. The variance is exactly 1, and
    the correlation is rho^|dz| up to 1e-8: for every z if rho < 0.982, else for z < 1024.

    Raises:
        InputError: rho is not in [0, 1].
    """
    check_rho(rho)
    slice_like = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
    return jax.vmap(lambda key, z: _slice_noise(key, z, rho, slice_like))(
        keys, jnp.asarray(slices, jnp.int32)
    )


def check_rho(rho: float) -> None:
    """Raises InputError unless `rho` is a correlation from 0 to 1."""
    if not 0 <= rho <= 1:
        raise InputError(f"rho must be in [0, 1], got {rho:g}.")


def _slice_noise(key: jax.Array, z: Array, rho: float, like: jax.ShapeDtypeStruct) -> Array:
    def approach(ends: tuple, node: tuple) -> tuple[tuple, None]:
        (start, first, last), (step, of_first, of_last, std) = ends, node
        at = start + step
        noise = jax.random.normal(jax.random.fold_in(key, at), like.shape, like.dtype)
        noise = of_first * first + of_last * last + std * noise
        above = z >= at
        first, last = jnp.where(above, noise, first), jnp.where(above, last, noise)
        return (jnp.where(above, at, start), first, last), None

    span, nodes = _nodes(rho)
    steps, *weights = nodes
    weights = (weight.astype(like.dtype) for weight in weights)
    zero = jnp.zeros(like.shape, like.dtype)
    ends = z // span * span, zero, zero
    return jax.lax.scan(approach, ends, (steps, *weights))[0][1]


def _nodes(rho: float) -> tuple[int, tuple[Array, Array, Array, Array]]:
    """The span, and for each bisection node: its distance from the nearest node below,
    the weights of the nodes below and above, and the std of its innovation.

    First the two ends of the span, almost uncorrelated, then the bisections; a span of 1
    is a single slice with one node.
    """
    span = 1
    while span < MAX_SPAN and rho**span > NEGLIGIBLE:
        span *= 2
    half = 2 ** np.arange(int(math.log2(span)))[::-1]
    link, r = rho**span, rho ** half.astype(np.float64)
    weight, std = r / (1 + r**2), np.sqrt((1 - r**2) / (1 + r**2))
    nodes = (
        np.array([0, span, *half], np.int32),
        np.array([0, link, *weight]),
        np.array([0, 0, *weight]),
        np.array([1, math.sqrt(1 - link**2), *std]),
    )
    return span, tuple(node[: 1 if span == 1 else None] for node in nodes)
