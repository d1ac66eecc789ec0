"""Noise that makes the slices of a draw coherent.

A slice's noise is N(0, I) whatever its neighbours', so that each slice's draw follows
the same posterior as without coherence: only how slices go together changes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images, InputError, Keys

SPAN = 1024  # slices: a power of 2, more than a volume has
FORGOTTEN = 1e-8  # a correlation below float32's precision


def ar1_noise(keys: Keys, like: Images, *, slices: Array, rho: float) -> Images:
    """Standard normal noise [B, ...] that correlates by rho^|dz| along z.

    Row b is slice `slices[b]` (int, from 0) of the volume of noise that `keys[b]`
    names: the key of (seed, subject, draw) and then the step, without the slice. Rows
    of one key and different z are an AR(1) in z, each voxel for itself; rows of
    different keys are independent. A row depends on its key and its z alone, so a
    volume may be computed in any microbatches. At rho = 0 all slices are independent,
    at rho = 1 they are all the same.

    The AR(1) is not run slice after slice but halved: given the noise at two slices
    2h apart, that of the slice between is normal with, r = rho^h,

        mean  r / (1 + r^2) (first + last),    variance  (1 - r^2) / (1 + r^2)

    and z is reached from the ends of its span by at most 12 addressed innovations. The
    variance is exactly 1, and the correlation is rho^|dz| up to 1e-8: for every z if
    rho < 0.982, else for z < 1024.

    Raises:
        InputError: rho is not inside [0, 1].
    """
    check_rho(rho)
    shape, dtype = like.shape[1:], like.dtype

    def of_slice(key: jax.Array, z: Array) -> Array:
        return _noise_of_slice(key, z, rho, jax.ShapeDtypeStruct(shape, dtype))

    return jax.vmap(of_slice)(keys, jnp.asarray(slices, jnp.int32))


def check_rho(rho: float) -> None:
    """Raises InputError unless `rho` is a correlation from 0 to 1."""
    if not 0 <= rho <= 1:
        raise InputError(f"rho wants to be between 0 and 1, and this is {rho:g}.")


def _noise_of_slice(key: jax.Array, z: Array, rho: float, like: jax.ShapeDtypeStruct) -> Array:
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
    """The span, and for each node on the way to a slice: its distance from the nearest
    node below, its weights of the nodes below and above, and of its own innovation.

    First the two ends of the span, which hardly remember one another, then halvings;
    a span of 1 is a slice by itself, and has one node.
    """
    span = 1
    while span < SPAN and rho**span > FORGOTTEN:
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
