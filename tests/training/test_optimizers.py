"""The optimizers: which parameters Muon moves as matrices, and by how much."""

import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from ummcsgm.config import build
from ummcsgm.training.optimizers import (
    MUON_ROOT_MEAN_SQUARE,
    OPTIMIZERS,
    is_large_kernel,
    make_adam,
    make_muon,
    orthogonalize,
)

BASE = pathlib.Path(__file__).parents[2] / "configs" / "base.py"
RATE = 1e-2
LARGE = {"conv": (3, 3, 16, 32), "dense": (48, 24)}
OTHERS = {
    "image": (32, 4),  # few outputs
    "patch": (3, 3, 1, 32),  # 9 inputs
    "attend": (64, 2, 32),
    "film": (64, 64),  # reads the condition
}
PARAMS = {
    "block": {
        name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}
        for name, shape in (LARGE | OTHERS).items()
    },
    "condition": {"second": {"kernel": jnp.zeros((64, 64))}},
    "norm": {"scale": jnp.zeros(64)},
}


def first_update(optimizer, params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]


def kernel_of(shape, smallest=1e-3):
    """A kernel whose singular values go from 1 to `smallest`."""
    matrix = np.array(jax.random.normal(jax.random.key(1), (math.prod(shape[:-1]), shape[-1])))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    matrix = left * np.geomspace(1, smallest, len(values)) @ right
    return jnp.asarray(matrix.reshape(shape), jnp.float32)


def test_muon_moves_the_large_kernels_but_not_those_of_the_condition():
    found = is_large_kernel(PARAMS)
    for name in LARGE:
        assert found["block"][name] == {"kernel": True, "bias": False}
    for name in OTHERS:
        assert found["block"][name] == {"kernel": False, "bias": False}
    assert not found["condition"]["second"]["kernel"] and not found["norm"]["scale"]


@pytest.mark.parametrize("shape", [*LARGE.values(), (24, 48), (32, 32)])
def test_an_orthogonalized_kernel_has_its_singular_vectors_and_near_equal_values(shape):
    kernel = kernel_of(shape, 0.05)
    found = np.asarray(orthogonalize(kernel)).reshape(-1, shape[-1])
    left, _, right = np.linalg.svd(np.asarray(kernel).reshape(found.shape), full_matrices=False)
    values = left.T @ found @ right.T
    np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=2e-4 * values.max())
    full = MUON_ROOT_MEAN_SQUARE * math.sqrt(max(found.shape))
    assert (np.diag(values) > 0.65 * full).all() and (np.diag(values) < 1.25 * full).all()
    assert 0.65 < np.sqrt(np.mean(found**2)) / MUON_ROOT_MEAN_SQUARE < 1.25


@pytest.mark.parametrize("shape", LARGE.values())
def test_the_first_step_of_muon_is_that_of_optax(shape):
    params, grads = {"kernel": jnp.zeros(shape)}, {"kernel": kernel_of(shape)}
    dimensions = contrib.MuonDimensionNumbers(tuple(range(len(shape) - 1)), len(shape) - 1)
    theirs = contrib.muon(
        RATE,
        preconditioning="schatten",
        consistent_rms=MUON_ROOT_MEAN_SQUARE,
        muon_weight_dimension_numbers={"kernel": dimensions},
    )
    wanted = first_update(theirs, params, grads)["kernel"]
    found = first_update(make_muon(optax.constant_schedule(RATE)), params, grads)["kernel"]
    np.testing.assert_allclose(found, wanted, atol=2e-3 * float(jnp.abs(wanted).max()))


def test_momentum_looks_one_step_ahead():
    shape = LARGE["dense"]
    first, second = kernel_of(shape), kernel_of(shape)[::-1]
    params, optimizer = {"kernel": jnp.zeros(shape)}, make_muon(optax.constant_schedule(RATE))
    state = optimizer.update({"kernel": first}, optimizer.init(params), params)[1]
    found = optimizer.update({"kernel": second}, state, params)[0]["kernel"]
    momentum = second + 0.95 * (second + 0.95 * first)
    np.testing.assert_allclose(found, -RATE * orthogonalize(momentum), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1e-12, 1e-6, 1e6, 1e18])
def test_a_step_does_not_depend_on_the_size_of_the_gradient(size):
    kernel = kernel_of((3, 3, 16, 32))
    wanted = orthogonalize(kernel)
    found = orthogonalize(kernel * size)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * float(jnp.abs(wanted).max()))


def test_a_kernel_without_gradient_stays():
    assert not orthogonalize(jnp.zeros((32, 48))).any()


def test_the_other_parameters_of_muon_move_as_with_adam():
    grads = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), PARAMS
    )
    muon, adam = (
        first_update(make(optax.constant_schedule(RATE)), PARAMS, grads)
        for make in (make_muon, make_adam)
    )
    large = is_large_kernel(PARAMS)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), muon, adam)
    assert jax.tree.map(lambda moved, equal: moved != equal, large, same) == jax.tree.map(
        lambda _: True, large
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_its_schedule(name):
    optimizer = OPTIMIZERS[name](optax.linear_schedule(0.0, RATE, 1))  # nothing at first
    params = {"dense": {"kernel": jnp.ones((32, 32))}, "norm": {"scale": jnp.ones(32)}}
    grads = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    first, state = optimizer.update(grads, optimizer.init(params), params)
    second, _ = optimizer.update(grads, state, params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(first))
    assert all(leaf.any() for leaf in jax.tree.leaves(second))


def test_the_variance_head_still_follows_the_mean_at_the_end():
    """The mean's error falls most while the other parameters' rate falls to 0."""
    config = runpy.run_path(str(BASE))["get_config"]()
    config.train.steps, config.train.warmup = 4, 1
    optimizer = build.build_update_rule(config).optimizer
    layer = {"kernel": jnp.ones((32, 32)), "bias": jnp.ones(32)}
    params = {"mean_network": {"variance": layer, "stem": layer}, "residual": layer}
    grads = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    state, sizes = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update(grads, state, params)
        sizes.append(jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), updates))
    last = sizes[-1]
    assert all(size > 0.5 * 4e-3 for size in jax.tree.leaves(last["mean_network"]["variance"]))
    others = (last["mean_network"]["stem"], last["residual"])
    assert not any(jax.tree.leaves(others))
    assert all(size > 0 for size in jax.tree.leaves(sizes[2]))
