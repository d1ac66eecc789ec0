"""The optimizers: which parameters Muon moves as matrices, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ummcsgm.training.optimizers import OPTIMIZERS, make_adam, make_muon, is_hidden_kernel

RATE = 1e-2
KERNELS = {
    "conv": {"kernel": jnp.zeros((3, 3, 16, 32)), "bias": jnp.zeros(32)},
    "dense": {"kernel": jnp.zeros((48, 24))},
    "image": {"kernel": jnp.zeros((32, 4))},  # few outputs
    "patch": {"kernel": jnp.zeros((3, 3, 1, 32))},  # 9 inputs
    "attend": {"kernel": jnp.zeros((64, 2, 32))},
    "norm": {"scale": jnp.zeros(64)},
}


def first_update(optimizer, params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]


def gradient(key, shape):
    """Singular values that span three decades."""
    matrix = np.array(jax.random.normal(key, shape)).reshape(-1, shape[-1])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = np.geomspace(1, 1e-3, len(values))
    return jnp.asarray((left * values @ right).reshape(shape), jnp.float32)


def test_muon_moves_the_hidden_kernels_as_matrices_from_inputs_to_outputs():
    found = is_hidden_kernel(KERNELS)
    assert found["conv"]["kernel"].reduction_axis == (0, 1, 2)
    assert found["conv"]["kernel"].output_axis == 3
    assert found["dense"]["kernel"].reduction_axis == (0,)
    others = ("image", "patch", "attend", "norm")
    assert [found[name] for name in others] == [
        {leaf: None for leaf in KERNELS[name]} for name in others
    ]
    assert found["conv"]["bias"] is None


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (48, 24)])
def test_muon_s_step_has_equal_singular_values_and_the_size_of_adam_s(shape):
    params = {"layer": {"kernel": jnp.zeros(shape)}}
    grads = {"layer": {"kernel": gradient(jax.random.key(1), shape)}}
    step = np.asarray(first_update(make_muon(RATE), params, grads)["layer"]["kernel"])
    matrix = step.reshape(-1, shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False)
    # The iteration ends between .5 and 1.5 of equal for values that are not tiny at the start.
    full = 0.2 * RATE * np.sqrt(max(matrix.shape))
    assert (values[: len(values) // 2] > 0.5 * full).all() and (values < 1.5 * full).all()
    assert 0.1 * RATE < np.sqrt(np.mean(step**2)) < 0.3 * RATE
    assert (np.sum(step * np.asarray(grads["layer"]["kernel"]))) < 0  # downhill


def test_the_other_parameters_of_muon_move_as_with_adam():
    grads = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), KERNELS
    )
    muon, adam = (first_update(make(RATE), KERNELS, grads) for make in (make_muon, make_adam))
    for name in ("image", "patch", "attend", "norm"):
        jax.tree.map(np.testing.assert_array_equal, muon[name], adam[name])
    np.testing.assert_array_equal(muon["conv"]["bias"], adam["conv"]["bias"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_its_schedule(name):
    schedule = optax.linear_schedule(0.0, RATE, 1)  # nothing at the first step
    optimizer = OPTIMIZERS[name](schedule)
    params = {"dense": {"kernel": jnp.ones((32, 32))}, "norm": {"scale": jnp.ones(32)}}
    grads = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    state = optimizer.init(params)
    first, state = optimizer.update(grads, state, params)
    second, _ = optimizer.update(grads, state, params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(first))
    assert all(leaf.any() for leaf in jax.tree.leaves(second))
