"""The preconditioning `mean`: exact for a Gaussian, one encoding a question, whose gradient goes
where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import PATTERNS, SDES, each_sde
from mean_checks import (
    OWN,
    PAIR,
    SEEN,
    STD,
    TIMES,
    KnownMean,
    assert_exact_posterior,
    assert_levels_are_those_of_the_config,
    assert_levels_share_a_mean,
    assert_losses_move_their_own_parts,
    band_parts,
    known_params,
    objective_of,
    questions,
    random_params,
    small_model,
    voxels,
)

from ummcsgm.diffusion import sde as sdes
from ummcsgm.diffusion.loss import training_losses, weigh_bands
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import (
    ScoreModel,
    make_denoise,
    make_posterior,
    mm_csn_output,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGES, MEAN = 0.4 * voxels(0), 0.3 * voxels(1)


def condition_of(images=IMAGES):
    return mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS))


def model_of(sde, output=0.0):
    return ScoreModel(KnownMean(sde, MEAN, output), sde, STD, "mean")


def at(values):
    return np.asarray(values, np.float64)[:, None, None, None]


@each_sde
def test_a_gaussian_in_the_haar_basis_has_its_posterior_exactly(sde):
    assert_exact_posterior(sde)


@each_sde
def test_the_network_meets_the_residual_with_variance_1_in_each_band(sde):
    """And ln(tau) / 4, and the missing set; 0 where b is seen."""
    model, noise = model_of(sde), voxels(2)
    residual = sum(
        np.sqrt(power) * part for power, part in zip(OWN, band_parts(voxels(3)), strict=True)
    )
    clean = np.where(SEEN, IMAGES, MEAN + residual).astype(np.float32)
    x = sdes.perturb(sde, jnp.asarray(clean), jnp.asarray(TIMES), jnp.asarray(noise))
    make_denoise(model, known_params(), condition_of())(x, jnp.asarray(TIMES))
    ((shown, missing, level),) = model.network.shown
    np.testing.assert_array_equal(missing, PATTERNS)
    tau = at(sde.std(TIMES)) / at(sde.mean(TIMES))
    np.testing.assert_allclose(level, 0.25 * np.log(tau[:, 0, 0, 0]), atol=1e-4)
    hidden = np.where(SEEN, 0, residual + tau * noise)
    expected = sum(
        part / np.sqrt(power + tau**2) for power, part in zip(OWN, band_parts(hidden), strict=True)
    )
    np.testing.assert_allclose(shown, expected, atol=2e-3)
    assert not np.any(np.asarray(shown)[np.broadcast_to(SEEN, shown.shape)])


@each_sde
def test_an_answer_of_f_star_denoises_perfectly(sde):
    """F* = (a - m - c_skip r) / c_out in each band returns a."""
    clean, noise = np.where(SEEN, IMAGES, 0.4 * voxels(4)), voxels(2)
    x = sdes.perturb(sde, jnp.asarray(clean, jnp.float32), jnp.asarray(TIMES), jnp.asarray(noise))
    tau = at(sde.noise_level(TIMES))
    missing = ~SEEN
    target = band_parts(np.where(missing, clean - MEAN, 0))
    shown = band_parts(np.where(missing, np.asarray(x) / at(sde.mean(TIMES)) - MEAN, 0))
    output = sum(
        (a - power / (power + tau**2) * r) / np.sqrt(power * tau**2 / (power + tau**2))
        for a, r, power in zip(target, shown, OWN, strict=True)
    )
    model = model_of(sde, output.astype(np.float32))
    ours = make_denoise(model, known_params(), condition_of())(x, jnp.asarray(TIMES))
    np.testing.assert_allclose(ours, clean, atol=1e-4)


@each_sde
def test_eq_5_is_x_plus_the_score_of_the_posterior(sde):
    """score = -(alpha^2 V + sigma^2)^-1 (x - alpha m); b where seen."""
    t = np.linspace(0.1, 0.9, 15).astype(np.float32)
    alpha, sigma = at(sde.mean(t)), at(sde.std(t))
    x = (alpha * MEAN + (alpha * 0.4 + sigma) * voxels(5)).astype(np.float32)
    condition = condition_of()
    denoise = make_denoise(model_of(sde), known_params(), condition)
    ours = mm_csn_output(sde, denoise, condition, jnp.asarray(x), jnp.asarray(t))
    parts = zip(band_parts(np.where(SEEN, 0, x - alpha * MEAN)), OWN, strict=True)
    score = -sum(part / (alpha**2 * power + sigma**2) for part, power in parts)
    truth = np.where(SEEN, IMAGES, x + score)
    np.testing.assert_allclose(ours * sigma, truth * sigma, atol=3e-4)
    kept = np.broadcast_to(SEEN, truth.shape)
    np.testing.assert_array_equal(np.asarray(ours)[kept], IMAGES[kept])


@each_sde
def test_about_0_the_output_is_bit_for_bit_the_published_formula(sde):
    """c_skip y + c_out F(c_in y | b / s): Karras et al. 2022, table 1."""
    output, x = jnp.asarray(voxels(6)), jnp.asarray(voxels(2))

    class Network:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            self.inputs = inputs
            return output

    network, t, variance = Network(), jnp.asarray(TIMES), STD**2
    ours = make_denoise(ScoreModel(network, sde, STD), None, condition_of())(x, t)
    tau = sde.noise_level(t)[:, None, None, None]
    total = jnp.sqrt(jnp.square(tau) + variance)
    y = x / sde.mean(t)[:, None, None, None]
    plain = variance / jnp.square(total) * y + tau * STD / total * output
    np.testing.assert_array_equal(ours, np.where(SEEN, IMAGES, plain))
    shown = np.where(SEEN, IMAGES / np.float32(STD), y / total)
    np.testing.assert_allclose(network.inputs, shown, rtol=1e-6)


def test_the_levels_of_a_question_share_one_mean_and_are_averaged():
    assert_levels_share_a_mean(SDES["vp"])


def test_the_levels_are_those_that_the_config_names():
    assert_levels_are_those_of_the_config()


def test_the_loss_of_a_band_is_edm_with_its_own_power():
    """Each band by its own power, in the shares of the square roots of their sizes."""
    sde = SDES["vp"]
    model, error = model_of(sde), np.where(SEEN, 0, voxels(7))
    ours = weigh_bands(
        model,
        jnp.asarray(OWN[:, :, 0, 0].swapaxes(0, 1)),
        jnp.asarray(error),
        TIMES,
        jnp.asarray(PATTERNS),
    )
    tau2 = at(sde.noise_level(TIMES))[:, 0, 0] ** 2
    shares = np.sqrt([1, 3, 12])
    sizes = np.array([1, 3, 12]) / 16  # of the coefficients
    bands = [np.square(part).mean(axis=(1, 2)) for part in band_parts(error)]
    truth = sum(
        share / shares.sum() * (mean / size * (1 / power + 1 / tau2)).sum(axis=1)
        for share, size, mean, power in zip(shares, sizes, bands, OWN[:, :, 0, 0], strict=True)
    )
    np.testing.assert_allclose(ours, truth / PATTERNS.sum(axis=1), rtol=1e-4)


# Gradients of a real network.


@pytest.fixture(scope="module")
def model():
    return small_model(SDES["vp"])


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def test_each_loss_moves_its_own_part_alone_and_no_statistics():
    assert_losses_move_their_own_parts(SDES["vp"])


def test_neither_what_is_missing_nor_noise_on_the_seen_reaches_the_answer(model, params):
    missing = jnp.asarray(PAIR)
    hidden = np.asarray(missing)[:, None, None]
    images, x = 0.4 * voxels(0, (16, 16))[:2], voxels(1, (16, 16))[:2]

    @jax.jit
    def answer(images, x):
        condition = mask_inputs(images, missing)
        posterior = make_posterior(model, params, condition)
        return posterior.estimate(x, jnp.array([0.2, 0.7])).mean, posterior.moments().mean

    ours = answer(images, x)
    spoiled = answer(np.where(hidden, np.nan, images), np.where(hidden, x, np.nan))
    for one, other in zip(ours, spoiled, strict=True):
        np.testing.assert_array_equal(one, other)
        kept = np.broadcast_to(~hidden, one.shape)
        np.testing.assert_array_equal(np.asarray(one)[kept], images[kept])
        assert np.abs(one - images)[~kept].min() > 0
    of_x = np.asarray(jax.jit(jax.grad(lambda x: answer(images, x)[0].sum()))(x))
    wide = np.broadcast_to(hidden, of_x.shape)
    assert not np.any(of_x[~wide]) and np.abs(of_x[wide]).min() > 0
    # And what it may depend on does reach it.
    assert np.any((answer(images + 0.1, x)[0] - ours[0])[wide] != 0)


def test_a_row_that_is_not_scored_changes_nothing(model, params):
    missing = PAIR
    scored = missing & np.array([[True], [False]])
    images = jnp.asarray(0.4 * voxels(0, (16, 16))[:2])

    @jax.jit
    def losses(images):
        inputs = questions(2, grid=(16, 16), missing=missing, scored=scored)
        return training_losses(model, params, objective_of(2), images, inputs)

    ours = losses(images)
    theirs = losses(jnp.where(jnp.array([False, True])[:, None, None, None], 7.0, images))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)
    for loss in (ours.loss, ours.mean_loss, ours.variance_loss):
        assert loss[1] == 0 != loss[0]
    np.testing.assert_array_equal(ours.residual["examples"].sum(axis=0), scored.sum(axis=0))


def test_the_residuals_sums_are_those_of_the_scored_images():
    """By hand: of each band the mean square, of the blocks the largest."""
    model = model_of(SDES["vp"])
    inputs = questions(2)
    losses = training_losses(model, known_params(), objective_of(2), jnp.asarray(IMAGES), inputs)
    residual = np.where(SEEN, 0, IMAGES - MEAN)
    sizes = np.array([1, 3, 12]) / 16
    missing = PATTERNS.sum(axis=1)
    power = [np.square(part).mean(axis=(1, 2)) for part in band_parts(residual)]
    largest = np.square(residual).max(axis=(1, 2))  # of one pixel each
    for size in range(1, 5):
        rows = missing == size
        ours = {name: value[size - 1] for name, value in losses.residual.items()}
        sums = np.array([band[rows].sum(axis=0) for band in power]) / sizes[:, None]
        np.testing.assert_allclose(ours["band_power"], sums, rtol=1e-5)
        np.testing.assert_array_equal(ours["examples"], PATTERNS[rows].sum(axis=0))
        assert np.all(ours["deviation"] >= largest[rows].sum(axis=0) * (1 - 1e-5))
