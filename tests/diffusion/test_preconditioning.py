"""denoise(x, t) and eq. 5: exact on the seen, the score on the missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import PATTERNS, SDES, all_patterns, each_sde, make_gaussian_denoise

from ummcsgm.diffusion import sde as sdes
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import (
    ScoreModel,
    make_denoise,
    make_posterior,
    mm_csn_output,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

TIMES = np.linspace(0.05, 1, 15, dtype=np.float32)
MISSING = np.broadcast_to(PATTERNS[:, None, None], (15, 16, 16, 4))


class Spy:
    """A network that answers what it is told to, and keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer

    def conditioning_cache(self, *inputs):
        return None

    def apply(self, params, inputs, missing, level, once):
        self.inputs, self.missing, self.level = inputs, missing, level
        return params * self.answer


class Exact:
    """The network, for a data_std of 0.4, whose denoised images are those of `denoise(x, t)`."""

    def __init__(self, sde, denoise):
        self.sde, self.denoise = sde, denoise

    def conditioning_cache(self, *inputs):
        return None

    def apply(self, params, inputs, missing, level, once):
        tau = jnp.exp(4 * level)
        t = self.sde.time(tau)
        tau, mean = (values[:, None, None, None] for values in (tau, self.sde.mean(t)))
        total = jnp.sqrt(tau**2 + 0.4**2)
        y = inputs * total
        return (self.denoise(mean * y, t) - 0.4**2 / total**2 * y) / (0.4 * tau / total)


def voxels(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(15, 16, 16, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(make_network, random_params):
    """f(params, images, x): what a network of random weights denoises, and eq. 5."""
    network = make_network()
    model = ScoreModel(network, SDES["vp"], 0.4)

    @jax.jit
    def answer(params, images, x):
        condition = mask_inputs(images, jnp.asarray(PATTERNS))
        denoise = make_denoise(model, params, condition)
        return denoise(x, TIMES), mm_csn_output(model.sde, denoise, condition, x, TIMES)

    return answer, random_params(network)


def test_the_seen_are_returned_bit_for_bit_by_denoise_and_eq_5(trained):
    answer, params = trained
    images = voxels(0)
    denoised, filled = answer(params, images, voxels(1))
    for result in (denoised, filled):
        np.testing.assert_array_equal(
            np.asarray(result)[~MISSING].view(np.int32), images[~MISSING].view(np.int32)
        )
        assert np.all(np.asarray(result)[MISSING] != images[MISSING])


def test_eq_5_less_x_is_the_score_of_what_the_network_denoised(trained):
    answer, params = trained
    x = voxels(1)
    denoised, filled = answer(params, voxels(0), x)
    score = sdes.score_from_denoised(SDES["vp"], x, denoised, TIMES)
    ours = (np.asarray(filled) - x)[MISSING]
    np.testing.assert_allclose(ours, score[MISSING], rtol=1e-4, atol=1e-4)


def test_neither_what_is_missing_nor_noise_on_the_seen_reaches_the_answer(trained):
    answer, params = trained
    images, x = voxels(0), voxels(1)
    hidden = np.where(MISSING, np.nan, images)
    noised = np.where(MISSING, x, np.nan)
    for ours, theirs in zip(answer(params, hidden, noised), answer(params, images, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # And what it may depend on does reach it.
    assert np.any(answer(params, images + 0.1, x)[0][MISSING] != theirs[MISSING])


def test_the_seen_have_exactly_no_gradient_and_the_missing_have_one(make_network, random_params):
    network = make_network()
    model = ScoreModel(network, SDES["vp"], 0.4)
    images, x = jnp.asarray(voxels(0)[:2]), jnp.asarray(voxels(1)[:2])
    missing = jnp.asarray(PATTERNS[:2])

    def total(params, where):
        denoise = make_denoise(model, params, mask_inputs(images, missing))
        return jnp.sum(jnp.where(where, denoise(x, TIMES[:2]), 0))

    gradient = jax.jit(jax.grad(total))
    on_seen = gradient(random_params(network), ~MISSING[:2])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(on_seen))
    on_missing = gradient(random_params(network), MISSING[:2])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(on_missing)) > 1e-2


def test_for_vp_and_unit_data_the_networks_answer_is_minus_the_velocity():
    sde, x, velocity = SDES["vp"], voxels(2), voxels(3)
    network = Spy(-velocity)
    condition = mask_inputs(jnp.asarray(voxels(0)), jnp.asarray(PATTERNS))
    denoised = make_denoise(ScoreModel(network, sde, 1.0), 1.0, condition)(x, TIMES)
    recovered = sdes.velocity_from_denoised(sde, x, denoised, TIMES)
    np.testing.assert_allclose(recovered[MISSING], velocity[MISSING], rtol=1e-4, atol=1e-4)
    # And its input is x itself: c_in / mean = 1.
    np.testing.assert_allclose(np.asarray(network.inputs)[MISSING], x[MISSING], rtol=1e-4)


@each_sde
def test_the_network_meets_unit_variances_and_the_log_of_the_noise_level(sde):
    """x of data with std 0.4, b divided by 0.4, ln(tau) / 4, and the missing set."""
    rng, std = np.random.default_rng(5), 0.4
    clean = (std * rng.normal(size=(15, 32, 32, 4))).astype(np.float32)
    noise = jnp.asarray(rng.normal(size=clean.shape), jnp.float32)
    x = sdes.perturb(sde, clean, TIMES, noise)
    network = Spy(jnp.zeros(clean.shape))
    condition = mask_inputs(jnp.asarray(clean), jnp.asarray(PATTERNS))
    make_denoise(ScoreModel(network, sde, std), 1.0, condition)(x, TIMES)
    spread = np.asarray(network.inputs).std(axis=(1, 2))
    np.testing.assert_allclose(spread, 1, atol=5 / np.sqrt(2 * 1024))
    level = 0.25 * np.log(np.asarray(sde.std(TIMES)) / np.asarray(sde.mean(TIMES)))
    np.testing.assert_allclose(network.level, level, atol=1e-4)
    np.testing.assert_array_equal(network.missing, PATTERNS)


@each_sde
def test_an_answer_of_f_star_denoises_perfectly(sde):
    """F* = (a - c_skip y) / c_out, of science's section 2, returns a."""
    clean, std = 0.4 * voxels(0), 0.4
    x = sdes.perturb(sde, clean, TIMES, voxels(1))
    tau = np.asarray(sde.noise_level(TIMES), np.float64)[:, None, None, None]
    y = np.asarray(x, np.float64) / np.asarray(sde.mean(TIMES))[:, None, None, None]
    skip, out = std**2 / (tau**2 + std**2), tau * std / np.sqrt(tau**2 + std**2)
    network = Spy(((clean - skip * y) / out).astype(np.float32))
    condition = mask_inputs(jnp.asarray(clean), jnp.asarray(PATTERNS))
    denoised = make_denoise(ScoreModel(network, sde, std), 1.0, condition)(x, TIMES)
    np.testing.assert_allclose(denoised, clean, atol=2e-5)


@each_sde
def test_eq_5_is_x_plus_the_analytic_score_of_a_gaussian(sde):
    """score = -(alpha^2 V + sigma^2)^-1 (x - alpha m), in the fifteen missing patterns."""
    images, condition, mean, variance = all_patterns(0, (8, 8))
    t = np.linspace(0.1, 0.9, 15).astype(np.float32)
    alpha, sigma = (np.asarray(f(t), np.float64) for f in (sde.mean, sde.std))
    x = alpha[:, None, None, None] * images
    x = x + sigma[:, None, None, None] * np.random.default_rng(1).normal(size=x.shape)
    denoise = make_gaussian_denoise(sde, mean, variance)
    ours = mm_csn_output(sde, denoise, condition, jnp.asarray(x, jnp.float32), t)
    total = alpha[:, None, None] ** 2 * variance
    total = total + sigma[:, None, None] ** 2 * np.eye(4)
    residual = x - alpha[:, None, None, None] * mean
    score = -np.einsum("bij,bhwj->bhwi", np.linalg.inv(total), residual)
    asked = PATTERNS[:, None, None]
    truth = np.where(asked, x + score, images)
    scale = 1 / sigma[:, None, None, None]
    np.testing.assert_allclose(ours / scale, truth / scale, atol=2e-4)


@each_sde
def test_one_evaluation_answers_the_posterior_mean(sde):
    """D(0, 1) = m - V / (V + tau^2) m: the mean but for 1 / tau(1)^2 of it."""
    images, condition, mean, variance = all_patterns(0, (8, 8))
    denoise = make_gaussian_denoise(sde, mean, variance)
    network = Exact(sde, denoise)
    posterior = make_posterior(ScoreModel(network, sde, 0.4), None, condition)
    ours = np.asarray(posterior.moments().mean, np.float64)
    tau = float(sde.noise_level(jnp.float32(1)))
    largest = np.linalg.eigvalsh(variance).max()
    reach = np.sqrt(np.square(mean).sum(axis=-1).max())
    bound = largest / (largest + tau**2) * reach + 1e-5
    assert bound < 4e-3
    assert np.max(np.abs(ours - mean)) < bound
    seen = np.broadcast_to(~PATTERNS[:, None, None], ours.shape)
    np.testing.assert_array_equal(ours[seen], images.astype(np.float32)[seen])


def test_the_mean_is_asked_of_the_token_the_loss_trains_on(make_network):
    """t = 1 for every row and exactly zero where missing."""
    network, sde = Spy(jnp.ones((15, 16, 16, 4))), SDES["vp"]
    condition = mask_inputs(jnp.asarray(voxels(0)), jnp.asarray(PATTERNS))
    make_posterior(ScoreModel(network, sde, 0.4), 1.0, condition).moments()
    np.testing.assert_array_equal(np.asarray(network.inputs)[MISSING], 0)
    np.testing.assert_allclose(network.level, 0.25 * np.log(152.2), atol=1e-3)
