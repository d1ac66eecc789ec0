"""The optimizers that a config can name, by their learning rate.

Adam          Kingma and Ba 2015
Muon          momentum whose singular values are made equal (Jordan et al. 2024), for the larger
              kernels of convolutions and dense layers; Adam for everything else
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ummcsgm.types import Array, Params

ADAM_BETAS = (0.9, 0.99)
MUON_MOMENTUM = 0.95
# Of a step, in learning rates. That of Adam is about .2 (Liu et al. 2025, arXiv 2502.16982, section
# 2.2); in short runs steps of 2.5 times that learn more.
MUON_ROOT_MEAN_SQUARE = 0.5
MUON_SMALLEST_SIDE = 16  # smaller matrices, such as those of the image's channels, are Adam's
OF_CONDITION = {"condition", "film"}  # the layers that read the noise level and A|B
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: fast, to between .7 and 1.2
NEWTON_SCHULZ_STEPS = 5


def make_adam(rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam at `rate` for all parameters."""
    return optax.adam(rate, *ADAM_BETAS)


def make_muon(rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon at `rate` for the parameters that `is_large_kernel` names, Adam for the others."""
    muon = optax.chain(
        optax.trace(MUON_MOMENTUM, nesterov=True),
        optax.stateless_with_tree_map(lambda kernel, _: orthogonalize(kernel)),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({True: muon, False: make_adam(rate)}, is_large_kernel)


def is_large_kernel(params: Params) -> Params:
    """A tree of bools like `params`: whether Muon moves each.

    True for kernels of convolutions (their window counts as inputs) and dense layers, of at least
    `MUON_SMALLEST_SIDE` inputs and outputs; but not those that read an example's condition, of
    which a batch has few values: their gradients have few directions, and equal singular values
    would make noise of the others.
    """

    def is_large(path: tuple, kernel: Array) -> bool:
        names = [getattr(part, "key", None) for part in path]
        if names[-1] != "kernel" or kernel.ndim not in (2, 4) or OF_CONDITION & set(names):
            return False
        return min(math.prod(kernel.shape[:-1]), kernel.shape[-1]) >= MUON_SMALLEST_SIDE

    return jax.tree_util.tree_map_with_path(is_large, params)


def orthogonalize(kernel: Array) -> Array:
    """`kernel` [..., outputs] with singular values near each other, as a matrix to its outputs.

    Its root mean square is about `MUON_ROOT_MEAN_SQUARE`, whatever the kernel's. Newton-Schulz's
    iteration X <- (a + b X X' + c (X X')^2) X keeps the singular vectors. All its steps are
    functions of the first X X', which is small where the kernel is long. `optax.contrib.muon`
    multiplies by X in each step, and takes 2.3 times as long for the quickstart's kernels.
    """
    # The first gradients may be so small that their fourth powers underflow to 0.
    kernel = kernel / (jnp.abs(kernel).max() + 1e-30)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = matrix.shape
    product = _multiply(matrix, matrix.T) if rows < columns else _multiply(matrix.T, matrix)
    # No singular value is larger than the fourth root of the sum of their fourth powers.
    size = jnp.linalg.norm(product) + 1e-30
    factor = _newton_schulz(product / size) / jnp.sqrt(size)
    matrix = _multiply(factor, matrix) if rows < columns else _multiply(matrix, factor)
    scale = MUON_ROOT_MEAN_SQUARE * math.sqrt(max(rows, columns))
    return scale * matrix.reshape(kernel.shape)


def _newton_schulz(product: Array) -> Array:
    """F so that F X has singular values near 1, of X X' whose largest eigenvalue is at most 1."""
    constant, linear, square = NEWTON_SCHULZ
    identity = jnp.eye(len(product), dtype=product.dtype)
    factor = identity
    for step in range(NEWTON_SCHULZ_STEPS):
        change = constant * identity + linear * product + square * _multiply(product, product)
        factor = _multiply(factor, change) if step else change
        if step < NEWTON_SCHULZ_STEPS - 1:
            product = _multiply(_multiply(change, product), change)
    return factor


def _multiply(a: Array, b: Array) -> Array:
    """a b in float32, on accelerators too: a product of products has no digits to spare."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adam": make_adam,
    "muon": make_muon,
}
