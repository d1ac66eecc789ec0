"""Noise along z by its exact weights, by its draws, and in a sampler that is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.diffusion import correlated_noise
from ummcsgm.diffusion.correlated_noise import ar1_noise
from ummcsgm.diffusion.samplers import address_keys
from ummcsgm.evaluation.through_plane import fit_rho, neighbour_sums
from ummcsgm.inference.predictor import run_in_microbatches
from ummcsgm.types import InputError


def _keys(number, seed=0):
    """[number] times the key of one (subject, draw)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 7), 0)
    return jnp.broadcast_to(key, (number,))


@functools.cache
def _compiled(shape, rho, dtype=jnp.float32):
    return jax.jit(
        lambda keys, slices: ar1_noise(
            keys, jnp.zeros((len(slices), *shape), dtype), slices=slices, rho=rho
        )
    )


def _noise(keys, slices, shape, rho):
    """[B, *shape] in float64, compiled once for a shape and a rho."""
    return np.asarray(_compiled(shape, rho)(keys, np.asarray(slices)), np.float64)


def _weights(monkeypatch, slices, rho):
    """[Z, innovations]: how much of each addressed innovation is in each slice."""
    size = correlated_noise.MAX_SPAN * 2 + 1
    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "fold_in", lambda key, at: at)
        patch.setattr(jax.random, "normal", lambda at, shape, dtype: jax.nn.one_hot(at, size))
        like = jnp.zeros((len(slices), size))
        keys = jnp.zeros(len(slices))
        return np.asarray(ar1_noise(keys, like, slices=slices, rho=rho))


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.5, 0.9, 0.98, 0.99, 1.0])
def test_the_covariance_along_z_is_rho_to_the_distance_exactly(monkeypatch, rho):
    slices = np.array([*range(40), 127, 128, 129, 200, 255, 256, 600, 1022, 1023])
    weights = _weights(monkeypatch, slices, rho).astype(np.float64)
    distance = np.abs(slices[:, None] - slices).astype(float)
    np.testing.assert_allclose(weights @ weights.T, rho**distance, atol=2e-6)


def test_without_long_memory_there_is_no_last_slice(monkeypatch):
    slices = np.arange(1000, 1060)
    weights = _weights(monkeypatch, slices, 0.9).astype(np.float64)
    distance = np.abs(slices[:, None] - slices).astype(float)
    np.testing.assert_allclose(weights @ weights.T, 0.9**distance, atol=2e-6)


@pytest.mark.parametrize("rho, most", [(0.0, 1), (0.5, 7), (0.9, 10), (0.999, 12)])
def test_a_slice_costs_few_innovations(monkeypatch, rho, most):
    weights = _weights(monkeypatch, np.arange(300), rho)
    assert (weights != 0).sum(axis=1).max() <= most


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.995])
def test_each_slice_is_standard_normal_and_its_voxels_independent(rho):
    noise = _noise(_keys(20), np.arange(20) + 45, (80, 80, 2), rho)
    flat = noise.reshape(20, -1)  # 12800 voxels
    np.testing.assert_allclose(flat.mean(1), 0, atol=0.035)
    np.testing.assert_allclose(flat.var(1), 1, atol=0.05)
    np.testing.assert_allclose((flat**4).mean(1), 3, atol=0.4)
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[..., 0], noise[..., 1])):
        np.testing.assert_allclose((a * b).mean((1, 2)), 0, atol=0.06)
    correlation = np.corrcoef(flat)
    distance = np.abs(np.arange(20)[:, None] - np.arange(20))
    np.testing.assert_allclose(correlation, float(rho) ** distance, atol=0.045)


def test_seeds_subjects_draws_and_steps_are_independent():
    addresses = np.array([[7, 0], [7, 1], [8, 0]])
    keys = [address_keys(0, addresses), address_keys(1, addresses)]
    keys += [jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys[0])]
    rows = jnp.concatenate(keys)
    noise = _noise(rows, np.full(9, 30), (100, 100), 0.95)
    correlation = np.corrcoef(noise.reshape(9, -1))
    np.testing.assert_allclose(correlation, np.eye(9), atol=0.045)


def test_a_slice_does_not_depend_on_its_microbatch_or_order():
    slices = np.arange(30, 53)
    keys = address_keys(0, np.tile([[7, 0]], (23, 1)))  # (subject, draw)
    make = _compiled((6, 5), 0.9)
    whole = np.asarray(make(keys, slices))
    for size in (4, 1):
        parts = run_in_microbatches(make, size, 23, lambda rows: (keys[rows], slices[rows]))
        assert np.array_equal(np.concatenate([*parts]), whole)
    shuffled = np.random.default_rng(0).permutation(23)
    assert np.array_equal(make(keys, slices[shuffled]), whole[shuffled])
    eager = ar1_noise(keys[:2], jnp.zeros((2, 6, 5)), slices=[35, 36], rho=0.9)
    np.testing.assert_allclose(eager, whole[5:7], atol=1e-6)


def test_the_dtype_of_the_images_is_kept():
    for dtype in (jnp.bfloat16, jnp.float32):
        noise = jax.eval_shape(_compiled((4,), 0.5, dtype), _keys(2), jnp.arange(2))
        assert noise.dtype == dtype and noise.shape == (2, 4)


@pytest.mark.parametrize("rho", [-0.1, 1.01, float("nan")])
def test_a_correlation_outside_0_and_1_is_refused(rho):
    with pytest.raises(InputError, match="rho must be in"):
        ar1_noise(_keys(1), jnp.zeros((1, 2)), slices=[0], rho=rho)


def _residuals(rho, seed):
    return _noise(_keys(40, seed=seed), np.arange(40), (30, 30), rho)


@pytest.mark.parametrize("rho", [0.3, 0.85])
def test_rho_is_found_again_from_residuals_within_their_brains(rho):
    sums = []
    for seed in range(3):
        residuals = _residuals(rho, seed)
        brain = np.ones(residuals.shape, bool)
        brain[:, :8], residuals[:, :8] = False, 50.0
        sums.append(neighbour_sums(residuals, brain))
    assert fit_rho(np.array(sums)) == pytest.approx(rho, abs=0.012)


def test_the_mean_of_k_independent_draws_lowers_rho_by_k_over_k_plus_1():
    residuals = _residuals(0.8, 0) - np.mean(
        [_residuals(0.0, seed) for seed in range(1, 5)], axis=0
    )
    sums = neighbour_sums(residuals, np.ones(residuals.shape, bool))
    assert fit_rho(sums) == pytest.approx(0.8 * 4 / 5, abs=0.02)


def test_rho_is_not_below_0_or_above_1():
    assert fit_rho(np.array([-3.0, 4.0, 4.0])) == 0.0
    assert fit_rho(np.array([4.000001, 4.0, 4.0])) == 1.0
